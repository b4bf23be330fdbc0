//! Durability `disk`: the log, the vote and the snapshots of a replica in files.
//!
//! The idea: whatever the group may count on is on the disk before it is acknowledged. Records of
//! all kinds go into one log in the order in which they happened ([`format`]), written and synced
//! by one thread a replica for everything that waits (`sync_thread`, `writer`); snapshots are
//! files beside it (`snapshot_file`). A replica that comes back reads them (`recovery`) and is
//! the same voter as before; `verify` and `stopped` only look at them. What is damaged is never
//! served: the node comes back as somebody else (promise P6), and [`set_aside`] keeps the files for
//! people to look at.
//!
//! A full disk is no error: entries are refused, the leadership is given away, and it heals when
//! there is room. A failed sync ends the replica, and is never tried again.
//!
//! Everything but `files` and `sync_thread` is pure and runs in tests on a model of a disk that
//! forgets at a crash what was not synced.

mod files;
pub(crate) mod format;
pub(crate) mod layer;
mod recovery;
pub(crate) mod snapshot_file;
mod stopped;
mod sync_thread;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

pub use format::{FORMAT_VERSION, Identity};
pub use recovery::{Damage, RecoveryError, SegmentFacts};
pub use stopped::{StoppedError, StoppedReplica};
pub use verify::{Report, ShardReport, SnapshotFacts, Verdict, verify, verify_files};

pub(crate) use format::{Body, Entry, LogState, Record};
pub(crate) use snapshot_file::SnapshotHead;
pub(crate) use sync_thread::{DiskLog, DiskSnapshots, Opened, open};
pub(crate) use writer::Recovered;

use crate::consensus::SNAPSHOT_BYTES_MAX;
use crate::types::ShardId;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Bytes of a segment, unless told otherwise. Twice as many are set aside for each replica.
pub const SEGMENT_BYTES: u64 = 8 << 20;
/// The largest segment that is written or read.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// The smallest segment: what is under way when the disk turns out to be full must fit into it.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
/// The largest file of a snapshot.
const SNAPSHOT_FILE_BYTES_MAX: u64 = SNAPSHOT_BYTES_MAX as u64 + (64 << 10);
/// Directories that may be set aside under one name.
const ASIDE_MAX: u32 = 1000;

/// Whether a replica's log outlives its process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// It does not: a process that ends has forgotten everything, and its id is never used again.
    #[default]
    Memory,
    /// It does, in files.
    Disk(DiskConfig),
}

/// Where and how logs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// A directory of this node alone; each shard has one in it.
    pub directory: PathBuf,
    /// The logs must be there: this node id has been used before, so a missing log is a lost one.
    pub must_exist: bool,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

impl DiskConfig {
    /// Logs in this directory, which are made if they are not there.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory, must_exist: false, segment_bytes: SEGMENT_BYTES }
    }

    /// The directory of one shard's replica.
    #[must_use]
    pub fn shard_directory(&self, shard: ShardId) -> PathBuf {
        self.directory.join(shard.to_string())
    }
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub enum DiskError {
    /// What is there cannot be used.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// Another process has it.
    #[error("{0} is in use by another process: a node's directory is its own")]
    InUse(PathBuf),
    /// It is not there and must be.
    #[error("{0} holds no log, and this node's id was used before: the log is lost")]
    Lost(PathBuf),
    /// No room for the first segment.
    #[error("no room for a log segment of {0} bytes: free some space, or use another directory")]
    NoRoom(u64),
    /// A segment size that does not work.
    #[error(
        "segments of {0} bytes cannot be: they have {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}"
    )]
    SegmentBytes(u64),
    /// The system refused.
    #[error("the disk: {0}")]
    Io(#[from] io::Error),
}

impl DiskError {
    /// Whether the memory of this replica is gone: then the node must come back under a new id.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Recovery(RecoveryError::Damaged(_)))
    }
}

/// What disks did, for all replicas of a node together.
#[derive(Debug, Default)]
pub struct DiskCounts {
    /// Syncs of log segments.
    pub syncs: AtomicU64,
    /// Requests that were refused because the disk was full.
    pub refused_full: AtomicU64,
    /// Times that a disk turned out to be full.
    pub became_full: AtomicU64,
    /// Times that there was room again.
    pub healed: AtomicU64,
    /// Snapshots that were put off because there was no room for them.
    pub snapshots_put_off: AtomicU64,
    /// Replicas that were stopped because the disk failed.
    pub failures: AtomicU64,
}

impl DiskCounts {
    /// The figures with their names.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 6] {
        [
            ("disk_syncs", &self.syncs),
            ("disk_refused_full", &self.refused_full),
            ("disk_became_full", &self.became_full),
            ("disk_healed", &self.healed),
            ("disk_snapshots_put_off", &self.snapshots_put_off),
            ("disk_failures", &self.failures),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Gives a directory with damaged files a name that says so, beside where it was, and nothing of it
/// is lost. Gives the new name.
///
/// # Errors
/// If the system refuses, or too many directories were set aside already.
pub fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for number in 1..=ASIDE_MAX {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let aside = directory.with_file_name(format!("{name}.damaged{suffix}"));
        if !aside.exists() {
            std::fs::rename(directory, &aside)?;
            if let Some(parent) = directory.parent() {
                std::fs::File::open(parent)?.sync_all()?;
            }
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!(
        "{ASIDE_MAX} directories were set aside beside {}: remove some",
        directory.display()
    )))
}

/// Shared counters of a node.
pub(crate) type Counts = Arc<DiskCounts>;
