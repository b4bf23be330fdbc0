//! How a node gets its id: it forms a cluster once, or it joins one.
//!
//! An id is one life of one process (promise P6). A node that forms leaves a mark in its directory
//! before it votes for the first time, and refuses to form again: its memory is gone, so it must
//! come back as somebody else. A node that joins gets an id that the system shard never gives
//! twice. A durable node that comes back has its id already ([`super::durable`]). The edge: reads
//! and writes the mark.

use super::NodeError;
use super::durable::read;
use super::mark::{self, MARK_BYTES_MAX, MarkError};
use nearstate_placement::system::{SystemCommand, SystemRefusal, SystemReply};
use nearstate_store::driver::Store;
use nearstate_store::{NodeId, Reply, ShardId};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A number that no other life of any node draws.
pub(super) fn draw_nonce() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// Where a node's marks are: files that say, after its memory is gone, which cluster it belonged
/// to. A cluster's name alone does not: another may have been formed under it.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// The node's directory.
    pub(super) directory: &'a Path,
    /// The cluster's name.
    pub(super) cluster: &'a str,
    /// The node's name.
    pub(super) name: &'a str,
}

impl Origin<'_> {
    /// The file that says that a node of this name has formed this cluster.
    fn former(&self) -> PathBuf {
        self.directory.join(format!("{}.{}.formed", self.cluster, self.name))
    }

    /// The file that says that it was let in.
    fn member(&self) -> PathBuf {
        self.directory.join(format!("{}.{}.joined", self.cluster, self.name))
    }

    /// Leaves the mark of a founder, durably, before anything is voted on.
    ///
    /// # Errors
    /// [`NodeError::FormedBefore`] or [`NodeError::JoinedBefore`] if there is a mark already.
    pub(super) fn mark_as_former(&self, lineage: u64) -> Result<(), NodeError> {
        let (former, member) = (self.former(), self.member());
        if member.exists() {
            return Err(NodeError::JoinedBefore(member));
        }
        if self.leave(&former, lineage)? { Ok(()) } else { Err(NodeError::FormedBefore(former)) }
    }

    /// Leaves the mark of a member, durably, unless there is one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn mark_as_member(&self, lineage: u64) -> Result<(), NodeError> {
        if self.lineage()?.is_none() {
            self.leave(&self.member(), lineage)?;
        }
        Ok(())
    }

    /// Which cluster the node belonged to, and the file that says so.
    ///
    /// # Errors
    /// If there is a mark that cannot be read.
    pub(super) fn lineage(&self) -> Result<Option<(u64, PathBuf)>, NodeError> {
        for path in [self.former(), self.member()] {
            let bytes = match read(&path, MARK_BYTES_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(NodeError::File { path, source }),
            };
            return match mark::decode(&bytes) {
                Ok(lineage) => Ok(Some((lineage, path))),
                Err(MarkError::Version) => Err(NodeError::MarkOfAnotherVersion(path)),
                Err(MarkError::Nonsense) => Err(NodeError::NoMark(path)),
            };
        }
        Ok(None)
    }

    /// Makes a mark; `false` if it was there already.
    fn leave(&self, path: &Path, lineage: u64) -> Result<bool, NodeError> {
        let failed = |source| NodeError::File { path: path.to_owned(), source };
        let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            other => other.map_err(failed)?,
        };
        file.write_all(mark::encode(lineage).as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let directory = File::open(self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(failed).map(|()| true)
    }
}

/// Makes every group with this node as its only voter, then writes the first map.
pub(super) async fn form(
    store: &Arc<Store>,
    me: NodeId,
    shards: u16,
    shape: &SystemCommand,
) -> Result<(), NodeError> {
    for shard in 0..=shards {
        store
            .initialize(ShardId(shard), &[me])
            .await
            .map_err(|error| NodeError::NotFormed(error.to_string()))?;
    }
    let reply = store
        .propose(ShardId::SYSTEM, shape.encode())
        .await
        .map_err(|error| NodeError::NotFormed(error.to_string()))?;
    let Reply::System(bytes) = reply else {
        return Err(NodeError::NotFormed("no answer of the system shard".to_owned()));
    };
    match SystemReply::decode(&bytes) {
        // A founder that was killed in the middle forms again.
        Ok(SystemReply::Done(_) | SystemReply::Refused(SystemRefusal::AlreadyFormed)) => Ok(()),
        Ok(SystemReply::Refused(refusal)) => Err(NodeError::NotFormed(refusal.to_string())),
        Ok(SystemReply::Joined(..)) => Err(NodeError::NotFormed("a wrong answer".to_owned())),
        Err(error) => Err(NodeError::NotFormed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_forms_once_and_remembers_which_cluster_it_belongs_to() {
        let directory = tempfile::tempdir().unwrap();
        let node = |name| Origin { directory: directory.path(), cluster: "c", name };
        node("n1").mark_as_former(7).unwrap();
        let again = node("n1").mark_as_former(8);
        assert!(matches!(again, Err(NodeError::FormedBefore(_))), "{again:?}");
        // It comes back as a member: its first mark stays.
        node("n1").mark_as_member(7).unwrap();
        assert_eq!(node("n1").lineage().unwrap(), Some((7, node("n1").former())));
        assert!(!node("n1").member().exists());

        assert_eq!(node("n2").lineage().unwrap(), None);
        node("n2").mark_as_member(7).unwrap();
        node("n2").mark_as_member(7).unwrap();
        assert_eq!(node("n2").lineage().unwrap(), Some((7, node("n2").member())));
        let forms = node("n2").mark_as_former(9);
        assert!(matches!(forms, Err(NodeError::JoinedBefore(_))), "{forms:?}");
    }

    #[test]
    fn a_mark_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let node = Origin { directory: directory.path(), cluster: "c", name: "n1" };
        for text in ["", "lineage", "lineage-1 0", "lineage-1 x", "00000000000000ff"] {
            std::fs::write(node.former(), text).unwrap();
            let error = node.lineage().unwrap_err().to_string();
            assert!(error.contains("c.n1.formed is no mark"), "{error}");
        }
        for text in ["lineage 00000000000000ff", "lineage-2 ff"] {
            std::fs::write(node.former(), text).unwrap();
            let error = node.lineage().unwrap_err().to_string();
            assert!(error.contains("c.n1.formed is a mark of another version"), "{error}");
        }
    }

    #[test]
    fn two_nonces_differ() {
        assert_ne!(draw_nonce().unwrap(), draw_nonce().unwrap());
    }
}
