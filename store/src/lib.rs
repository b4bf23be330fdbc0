//! A Raft-replicated in-memory store of flow state, read in place.

pub mod batch;
pub mod block_journal;
pub mod cell;
pub mod client;
pub mod clock;
mod committer;
mod connection;
pub mod consensus;
pub mod disk;
pub mod doorbell;
pub mod driver;
pub mod embedded;
pub mod flow_machine;
mod flow_moves;
mod flow_upkeep;
pub mod frame;
mod full_disk;
mod grant_board;
pub mod group_commit;
mod hello;
mod hold_up;
pub mod inspection;
mod keeper;
pub mod key;
pub mod layout;
pub mod lease;
pub mod lifetimes;
pub mod limits;
pub mod link;
mod local_reads;
pub mod location_cache;
mod lookup;
pub mod machine;
pub mod move_board;
mod note_relay;
pub mod outcome_memory;
mod plan;
pub mod pool;
pub mod pool_check;
pub mod pool_spec;
pub mod pool_use;
mod raft;
pub mod refusal_counts;
pub mod region;
pub mod remote_read;
mod serve;
mod shard;
mod shard_time;
pub mod slot_map;
pub mod slot_move;
pub mod slot_mover;
pub mod slot_set;
pub mod snapshot;
mod succession;
mod suspension;
pub mod table;
pub mod table_reader;
pub mod table_scan;
pub mod table_stats;
mod table_writer;
mod tally;
mod tenure;
pub mod timer_wheel;
pub mod transaction;
pub mod transport;
pub mod types;
pub mod upkeep;
pub mod wire;
mod word_array;
mod words;
mod write;

pub use batch::{decode_batch, encode_batch};
pub use doorbell::Doorbell;
pub use embedded::{Embedded, EmbeddedConfig};
pub use flow_machine::{FlowMachine, FlowMachineConfig, FlowMachineStats};
pub use inspection::Inspection;
pub use keeper::UpkeepCounts;
pub use key::{Address, Endpoint, Key, Value};
pub use layout::KeyHash;
pub use lease::LeaseCell;
pub use location_cache::LocationCache;
pub use machine::{Machine, Reply};
pub use pool_spec::PoolSpec;
pub use refusal_counts::{RefusalCounts, RefusalReason};
pub use region::{Backing, Region, RegionError};
pub use slot_map::SlotMap;
pub use slot_set::SlotSet;
pub use table::{Table, TableFull};
pub use table_reader::{ReadError, RegionIdentity, TableError, TableReader};
pub use table_scan::{ScannedEntry, TableScan};
pub use table_stats::{RegionStats, TableStats};
pub use tally::Tally;
pub use transaction::{Condition, Fill, Outcome, Refusal, Take, Transaction, TransactionId, Write};
pub use types::{Epoch, LogIndex, NodeId, PoolId, ShardId, SlotId, TenantId, Term, Time, Version};
pub use upkeep::{EntryRules, SoftTerms};

/// An entry as a reader sees it: value and version belong together, but for the two words that
/// count packets, if the entry has such ([`EntryRules::tally`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the key holds.
    pub value: Value,
    /// When, in the order of the shard's mutations, it was written.
    pub version: Version,
    /// The slot that it belongs to.
    pub slot: SlotId,
}

impl Entry {
    /// Room for an entry that is about to be read.
    pub const BLANK: Self = Self { value: Value::ZERO, version: Version(0), slot: SlotId(0) };
}
