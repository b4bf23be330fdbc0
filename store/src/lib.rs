//! A Raft-replicated in-memory store of flow state, read in place.

pub mod batch;
pub mod cell;
pub mod client;
pub mod clock;
mod connection;
pub mod consensus;
pub mod doorbell;
pub mod driver;
pub mod flow_machine;
pub mod frame;
pub mod group_commit;
pub mod key;
pub mod layout;
pub mod lease;
pub mod limits;
pub mod link;
pub mod machine;
pub mod outcome_memory;
mod plan;
pub mod pool;
pub mod pool_spec;
mod raft;
pub mod region;
mod serve;
mod shard;
pub mod slot_set;
pub mod snapshot;
mod succession;
pub mod table;
pub mod table_reader;
pub mod transaction;
pub mod transport;
pub mod types;
pub mod wire;

pub use batch::encode_batch;
pub use doorbell::Doorbell;
pub use flow_machine::{FlowMachine, FlowMachineConfig, FlowMachineStats};
pub use key::{Endpoint, Key, Value};
pub use lease::LeaseCell;
pub use machine::{Machine, Reply};
pub use pool_spec::PoolSpec;
pub use region::{Backing, Region, RegionError};
pub use slot_set::SlotSet;
pub use table::{Table, TableFull, TableStats};
pub use table_reader::{ReadError, RegionIdentity, TableError, TableReader};
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
