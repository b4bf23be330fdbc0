//! What a stopped replica's files hold, played back into a machine without a group.
//!
//! For people who ask what a node held when it ended. The files are read as at a start, and never
//! written; while they are read their lock is held, so a process that has them is left alone and
//! none begins meanwhile. Only entries that the replica knew to be committed are applied: of later
//! ones nobody knows here whether they took effect.

use super::files::{Directory, LOCK};
use super::format::{Body, Identity};
use super::recovery::Replay;
use super::{DiskError, verify};
use crate::machine::{Machine, PayloadError, SnapshotError};
use crate::types::{LogIndex, ShardId, Term};
use std::io;
use std::path::Path;
use thiserror::Error;

/// Why a stopped replica's state cannot be had.
#[derive(Debug, Error)]
pub enum StoppedError {
    /// Its files cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Nothing is there.
    #[error("no log was found")]
    Empty,
    /// The machine does not take its snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine does not take an entry.
    #[error("entry {index}: {source}")]
    Entry {
        /// Where in the log.
        index: u64,
        /// Why not.
        source: PayloadError,
    },
}

impl From<io::Error> for StoppedError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error.into())
    }
}

/// One stopped replica. The directory's lock is held as long as it lives.
#[derive(Debug)]
pub struct StoppedReplica {
    identity: Identity,
    /// The last entry in the snapshot, and its content.
    snapshot: Option<(Option<u64>, Vec<u8>)>,
    replay: Replay,
    _lock: Directory,
}

impl StoppedReplica {
    /// Reads the files of one shard of a node's directory ([`super::DiskConfig::directory`]).
    ///
    /// # Errors
    /// If there are none, a running process has them, or they cannot be used.
    pub fn open(directory: &Path, shard: ShardId) -> Result<Self, StoppedError> {
        let path = directory.join(shard.to_string());
        if !path.join(LOCK).exists() {
            return Err(StoppedError::Empty);
        }
        let Some(mut lock) = Directory::lock_to_look(&path)? else {
            return Err(DiskError::InUse(path).into());
        };
        let (replay, snapshot) = verify::read_all(&mut lock)?;
        let identity = replay.identity().ok_or(StoppedError::Empty)?;
        let snapshot = snapshot.map(|(head, content)| (head.last_log.map(|at| at.index), content));
        Ok(Self { identity, snapshot, replay, _lock: lock })
    }

    /// Whose files they are.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The last entry of the log, applied or not.
    #[must_use]
    pub fn last_log(&self) -> LogIndex {
        let snapshot = self.snapshot.as_ref().and_then(|(last, _)| *last);
        let last = self.replay.state.last.map(|at| at.index);
        LogIndex(last.max(snapshot).unwrap_or(0))
    }

    /// Makes of an empty machine what this replica's was. Gives the last entry that is in it.
    ///
    /// # Errors
    /// If the machine is one of other settings, or the files hold what no machine takes.
    pub fn play<M: Machine>(&self, machine: &mut M) -> Result<LogIndex, StoppedError> {
        let mut applied = None;
        if let Some((last, content)) = &self.snapshot {
            machine.install(content)?;
            applied = *last;
        }
        let state = &self.replay.state;
        let committed = state.committed.map(|at| at.index).min(state.last.map(|at| at.index));
        let is_due = |index: u64| applied.is_none_or(|at| index > at) && Some(index) <= committed;
        for entry in self.replay.entries.iter().filter(|entry| is_due(entry.at.index)) {
            let Body::Payload(payload) = &entry.body else { continue };
            let index = entry.at.index;
            M::check(payload).map_err(|source| StoppedError::Entry { index, source })?;
            machine.enter(LogIndex(index), Term(entry.at.term));
            machine.apply(LogIndex(index), payload);
        }
        Ok(LogIndex(applied.max(committed).unwrap_or(0)))
    }
}
