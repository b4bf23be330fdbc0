//! Why a node did not start, or ended: each in words that say what to do.

use crate::chain_config::ChainConfigError;
use nearstate_store::disk::DiskError;
use nearstate_store::driver::StartError;
use nearstate_store::{RegionError, ShardId, TableError};
use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// Why a node did not start, or ended.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The chain cannot be built.
    #[error("the chain: {0}")]
    Chain(#[from] ChainConfigError),
    /// The address cannot be listened on.
    #[error(
        "`listen` is {address}, and that cannot be listened on: {source}; choose another port, or \
         0 for any free one"
    )]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory cannot be used.
    #[error(
        "`directory` is {}, and this node cannot write there: {source}; name a directory that \
         this user may make or write to",
        path.display()
    )]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file in it cannot be used.
    #[error("{}, in `directory`, cannot be written: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(std::io::Error),
    /// It has formed the cluster in an earlier life.
    #[error(
        "{} says that this node has formed the cluster before and has lost its memory since. If \
         other members live, start it with `start = {{ join = ... }}`. If all were down at once, \
         the cluster's state is lost (`durability = \"disk\"` would have kept it): to form a new \
         cluster without it, remove the file, start this node again, and let the others join",
        .0.display()
    )]
    FormedBefore(PathBuf),
    /// It is a member under another address, or with other ports.
    #[error(
        "the cluster knows this node's `{key}` as {was}, and the configuration says {is}: set it \
         back, or give the node another directory to let it join as a new one"
    )]
    Moved {
        /// Which setting.
        key: &'static str,
        /// What members know.
        was: String,
        /// What the configuration says.
        is: String,
    },
    /// Its logs cannot be looked at.
    #[error("the logs of this node: {0}")]
    Disk(#[source] DiskError),
    /// It was a member in an earlier life.
    #[error(
        "{} says that this node was a member of a cluster of this name, and forming one would \
         make two; start it with `start = {{ join = ... }}`, or remove the file if that cluster \
         is gone",
        .0.display()
    )]
    JoinedBefore(PathBuf),
    /// A mark cannot be read.
    #[error(
        "{} is no mark of this program; remove it if the cluster that this node was in is gone",
        .0.display()
    )]
    NoMark(PathBuf),
    /// A mark is of another version.
    #[error(
        "{} is a mark of another version of this program: start that version, or remove the file \
         if the cluster that this node was in is gone",
        .0.display()
    )]
    MarkOfAnotherVersion(PathBuf),
    /// Every seed is of another cluster of the same name.
    #[error(
        "all seeds belong to another cluster of this name, formed at another time than the one \
         that {} speaks of; name seeds of that one, or remove the file if it is gone", .0.display()
    )]
    OtherLineage(PathBuf),
    /// A seed is of another cluster of the same name, and none of its own answers.
    #[error(
        "no seed answers that belongs to the cluster which {} says this node was in: {told}. If \
         that cluster is gone, remove the file and start this node again: it then joins the one \
         that is there. If it lives, name members of it in `start.join.seeds`",
        mark.display()
    )]
    OwnLineageSilent {
        /// The file that says which cluster the node was in.
        mark: PathBuf,
        /// What the seeds said.
        told: String,
    },
    /// A member says that it will not be let in.
    #[error("not let into the cluster: {0}")]
    NotLetIn(String),
    /// No member could let it in.
    #[error(
        "none of `start.join.seeds` has let this node into the cluster: {0}; start a node that \
         forms the cluster first, or name members that run. (If all members were down at once \
         and `durability` is \"memory\", the cluster's state is lost: form it anew, then join it)"
    )]
    NoSeed(String),
    /// It would have to let itself in.
    #[error(
        "`start.join.seeds` names nobody but this node itself ({0}); name another member's \
         address, or form the cluster here with `start = {{ form = ... }}`"
    )]
    OnlySeed(SocketAddr),
    /// The cluster has given the node up.
    #[error("the cluster has taken this node for dead and given it up; start it again")]
    GivenUp,
    /// A replica has stopped by itself.
    #[error("the replica of {0} has stopped, see the log; start the node again")]
    ReplicaStopped(ShardId),
    /// The system shard refused to be formed.
    #[error("the cluster cannot be formed: {0}")]
    NotFormed(String),
    /// The tables' memory cannot be had.
    #[error(
        "no memory for the tables: `table-capacity` = {capacity} takes {bytes} bytes from {place} \
         for each of {shards} shards: {source}"
    )]
    Memory {
        /// The setting.
        capacity: u32,
        /// Bytes of one table.
        bytes: u64,
        /// Where they were to be.
        place: String,
        /// Tables wanted.
        shards: u16,
        /// What was missing.
        source: RegionError,
    },
    /// What wakes the pipe cannot be had.
    #[error("no memory for the doorbell of the pipe: {0}")]
    Doorbell(#[from] RegionError),
    /// A table cannot be made.
    #[error("no table: {0}")]
    Table(#[from] TableError),
    /// The store does not start.
    #[error("the store: {0}")]
    Store(#[from] StartError),
    /// The port cannot be opened.
    #[error("`{key}`: {reason}")]
    Port {
        /// Which setting.
        key: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The thread of the pipe cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
