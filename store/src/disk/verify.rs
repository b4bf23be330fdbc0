//! Looks at a stopped node's files and says what they hold, without changing anything.
//!
//! The same decoding as at a start; [`verify_files`] is pure over the bytes given.

use super::files::{Directory, LOCK};
use super::format::Identity;
use super::layer::Look;
use super::recovery::{Damage, RecoveryError, Replay, SegmentFacts, latest_run};
use super::snapshot_file::{self, SnapshotHead};
use super::writer::check_snapshot;
use super::{DiskError, SEGMENT_BYTES_MAX};
use crate::types::{LogIndex, NodeId, Term};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// What a start would make of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are whole.
    Whole,
    /// They are whole but for the end of the log, which a crash has torn: so many bytes are cut at
    /// the next start. Nobody was told that what they held was safe.
    TornTail(u64),
    /// They cannot be used.
    Unusable(RecoveryError),
    /// Nothing is there.
    Empty,
}

/// The newest snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The last entry in it.
    pub last: Option<LogIndex>,
    /// Bytes of its content.
    pub bytes: u64,
}

/// One replica's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardReport {
    /// The directory's name.
    pub name: String,
    /// Whose they are, if they say so.
    pub identity: Option<Identity>,
    /// The segments that were read, in order.
    pub segments: Vec<SegmentFacts>,
    /// The newest snapshot.
    pub snapshot: Option<SnapshotFacts>,
    /// The vote: in which term, for whom.
    pub vote: Option<(Term, NodeId)>,
    /// The first entry that the log keeps.
    pub first: Option<LogIndex>,
    /// The last entry.
    pub last: Option<LogIndex>,
    /// How far the replica knew the log to be committed.
    pub committed: Option<LogIndex>,
    /// What a start would make of it.
    pub verdict: Verdict,
}

/// All replicas of a node's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One a shard, by name.
    pub shards: Vec<ShardReport>,
}

impl Report {
    /// Whether a start would use all of it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let usable =
            |shard: &ShardReport| matches!(shard.verdict, Verdict::Whole | Verdict::TornTail(_));
        self.shards.iter().all(usable)
    }
}

/// Looks at a node's directory of logs: [`super::DiskConfig::directory`].
///
/// # Errors
/// If it cannot be read, or a running process has it.
pub fn verify(directory: &Path) -> Result<Report, DiskError> {
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // A shard's directory has a lock file from its first moment.
        if !path.join(LOCK).exists() {
            continue;
        }
        let Some(mut files) = Directory::lock_to_look(&path)? else {
            return Err(DiskError::InUse(path));
        };
        let names = files.list()?;
        shards.push(look(name, &mut files, &names));
    }
    shards.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(Report { shards })
}

/// Looks at one replica's files, given by name.
#[must_use]
pub fn verify_files(name: &str, files: &BTreeMap<String, Vec<u8>>) -> ShardReport {
    let names: Vec<String> = files.keys().cloned().collect();
    look(name.to_owned(), &mut Given(files), &names)
}

fn look(name: String, files: &mut impl Look, names: &[String]) -> ShardReport {
    let mut replay = Replay::new(None);
    let mut snapshot = None;
    let usable = read(files, names, &mut replay, &mut snapshot);
    let torn = replay.segments.last().map_or(0, |facts| facts.torn);
    let verdict = match usable {
        Err(error) => Verdict::Unusable(error),
        Ok(()) if replay.segments.is_empty() => Verdict::Empty,
        Ok(()) if torn > 0 => Verdict::TornTail(torn),
        Ok(()) => Verdict::Whole,
    };
    let state = replay.state;
    ShardReport {
        name,
        identity: replay.identity(),
        snapshot: snapshot.map(|(head, content)| SnapshotFacts {
            last: head.last_log.map(|at| LogIndex(at.index)),
            bytes: content.len() as u64,
        }),
        vote: state.vote.map(|vote| (Term(vote.term), NodeId(vote.node))),
        first: (state.first < state.next()).then_some(LogIndex(state.first)),
        last: state.last.map(|at| LogIndex(at.index)),
        committed: state.committed.map(|at| LogIndex(at.index)),
        segments: replay.segments,
        verdict,
    }
}

/// What a snapshot is of, and its content.
type Snapshot = (SnapshotHead, Vec<u8>);

/// All that a replica's files hold.
pub(super) fn read_all(files: &mut impl Look) -> Result<(Replay, Option<Snapshot>), DiskError> {
    let (mut replay, mut snapshot) = (Replay::new(None), None);
    let names = files.list()?;
    read(files, &names, &mut replay, &mut snapshot)?;
    Ok((replay, snapshot))
}

fn read(
    files: &mut impl Look,
    names: &[String],
    replay: &mut Replay,
    snapshot: &mut Option<Snapshot>,
) -> Result<(), RecoveryError> {
    let run = latest_run(names);
    for (place, number) in run.iter().enumerate() {
        let file = super::recovery::segment_name(*number);
        let unreadable = |_| Damage::File { file: file.clone(), what: "it cannot be read" };
        let bytes = files.read(&file, SEGMENT_BYTES_MAX).map_err(unreadable)?;
        replay.segment(*number, &bytes, place + 1 == run.len())?;
    }
    let newest = match snapshot_file::read_newest(files, names, replay.identity()) {
        Ok(newest) => newest,
        Err(DiskError::Recovery(error)) => return Err(error),
        Err(other) => {
            tracing::warn!(error = %other, "a snapshot cannot be read");
            let file = "the newest snapshot".to_owned();
            return Err(Damage::File { file, what: "it cannot be read" }.into());
        }
    };
    *snapshot = newest.map(|(_, head, content)| (head, content));
    if run.is_empty() && snapshot.is_none() {
        return Ok(());
    }
    replay.finish()?;
    check_snapshot(&replay.state, snapshot.as_ref().map(|(head, _)| head))
}

/// Files that are only looked at.
struct Given<'a>(&'a BTreeMap<String, Vec<u8>>);

impl Look for Given<'_> {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn read(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        match self.0.get(name) {
            Some(bytes) if bytes.len() as u64 > most => Err(io::ErrorKind::FileTooLarge.into()),
            Some(bytes) => Ok(bytes.clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
