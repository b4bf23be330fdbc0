//! A Raft-replicated in-memory store of flow state, read in place.

pub mod clock;
pub mod doorbell;
pub mod key;
pub mod machine;
pub mod pool_spec;
pub mod region;
pub mod transaction;
pub mod types;

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
