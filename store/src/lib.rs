//! A Raft-replicated in-memory store of flow state, read in place.

pub mod client;
pub mod clock;
mod connection;
pub mod consensus;
pub mod doorbell;
pub mod driver;
pub mod frame;
pub mod group_commit;
pub mod key;
pub mod lease;
pub mod link;
pub mod machine;
pub mod pool_spec;
mod raft;
pub mod region;
mod serve;
mod shard;
pub mod transaction;
pub mod transport;
pub mod types;
pub mod wire;

pub use doorbell::Doorbell;
pub use key::{Endpoint, Key, Value};
pub use machine::{Machine, Reply};
pub use pool_spec::PoolSpec;
pub use region::{Backing, Region, RegionError};
pub use transaction::{Condition, Fill, Outcome, Refusal, Take, Transaction, TransactionId, Write};
pub use types::{Epoch, LogIndex, NodeId, PoolId, ShardId, SlotId, TenantId, Term, Time, Version};

/// An entry as a reader sees it: value and version belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the key holds.
    pub value: Value,
    /// When, in the order of the shard's mutations, it was written.
    pub version: Version,
    /// The slot that it belongs to.
    pub slot: SlotId,
}
