//! What a shard's log drives: a deterministic machine that eats entry payloads.
//!
//! Replication knows payloads only as bytes. Two machines exist: the flow machine
//! ([`crate::flow_machine`]) and the system machine of the placement crate (map, members, policy).

use crate::flow_machine::FlowMachineStats;
use crate::key::Key;
use crate::move_board::MoveBoard;
use crate::pool_check::{PoolLeak, PoolReport};
use crate::pool_use::PoolUsage;
use crate::slot_move::{TakeOut, TakenOut};
use crate::transaction::Outcome;
use crate::types::{LogIndex, Term, Time};
use crate::upkeep::{EntryTimer, Upkeep, UpkeepClock};
use std::sync::Arc;
use thiserror::Error;

/// What applying one entry answered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Reply {
    /// Nothing to say (blank and membership entries).
    #[default]
    None,
    /// One outcome for each transaction of the batch, in order.
    Outcomes(Box<[Outcome]>),
    /// An answer in the machine's own encoding: the system machine's, or to a step of a move.
    System(Box<[u8]>),
}

/// A payload that is not what it should be. It came from the outside and is refused before it
/// reaches a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// Not a valid archive.
    #[error("the entry is not a valid archive: {0}")]
    Archive(String),
    /// Of another version of this program.
    #[error(
        "the entry has format version {found}, this node reads {expected}: all nodes must be of \
         one version"
    )]
    Version {
        /// What it says.
        found: u8,
        /// What this build reads.
        expected: u8,
    },
    /// Not a batch of transactions.
    #[error("the entry is not a valid batch: {0}")]
    Batch(&'static str),
    /// More than the limit.
    #[error("the entry holds {count} items, more than the limit of {limit}")]
    TooMany {
        /// What it holds.
        count: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// A snapshot that cannot be installed. The machine is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Cut short, or a checksum or count does not fit.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// Made by another format version.
    #[error("the snapshot has format version {found}, this node reads {expected}")]
    Version {
        /// What it says.
        found: u32,
        /// What this build reads.
        expected: u32,
    },
    /// It does not fit into the table.
    #[error("the snapshot holds {entries} entries, the table has room for {capacity}")]
    TooLarge {
        /// Entries of the snapshot.
        entries: u64,
        /// Cells of the table.
        capacity: u64,
    },
}

/// A shard's state, changed by nothing but its log.
pub trait Machine: Send + 'static {
    /// Whether these bytes from the network are a payload that [`Machine::apply`] may see.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn check(payload: &[u8]) -> Result<(), PayloadError>
    where
        Self: Sized;

    /// Told before each payload where in the log it stands, for whoever keeps a record; no state
    /// may hang on the term.
    fn enter(&mut self, index: LogIndex, term: Term) {
        let (_, _) = (index, term);
    }

    /// Applies one checked payload. Deterministic: equal machines and payloads give equal machines
    /// and replies on every replica.
    ///
    /// # Panics
    /// If the payload was not checked: that is our own bug.
    fn apply(&mut self, index: LogIndex, payload: &[u8]) -> Reply;

    /// The shard's time after what was applied, in milliseconds; 0 if nothing has said it yet, or
    /// the machine keeps none. Decided by the log alone, and never falls.
    fn time_ms(&self) -> u64 {
        0
    }

    /// The whole state, self-describing and checksummed.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// Says why the snapshot cannot be used; the state is then as it was.
    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError>;

    /// What is to be proposed because time has passed; only the owner asks, between two entries. A
    /// bounded piece of work: [`Upkeep::is_more`] says whether to ask again. Changes no state.
    fn upkeep(&mut self, clock: &UpkeepClock, work: &mut Upkeep) {
        let (_, _) = (clock, work);
    }

    /// A part of a slot that moves to another shard, for whoever drives the move. Changes no state.
    /// A machine without slots has none to give.
    fn take_out(&mut self, ask: TakeOut) -> TakenOut {
        let _ = ask;
        TakenOut::Lost
    }

    /// Where it says what it has a part in of moves; a machine without slots never says anything.
    fn moves(&self) -> Arc<MoveBoard> {
        Arc::default()
    }

    /// How the ports of its pools are used, with so many holders at most. Takes a scan.
    fn pool_usage(&self, holders_max: usize) -> PoolUsage {
        let _ = holders_max;
        PoolUsage::default()
    }

    /// How long each of these entries lives, as far as this replica knows at a time of its node's
    /// clock; `None` if there is no such entry.
    fn entry_timers(&self, keys: &[Key], now: Time) -> Vec<Option<EntryTimer>> {
        let _ = now;
        vec![None; keys.len()]
    }

    /// How many outcomes of transactions it remembers; 0 if it is no machine of transactions.
    fn outcomes_remembered(&self) -> u64 {
        0
    }

    /// What it has decided since it was made, on this replica; no state. `None` if it is no machine
    /// of transactions.
    fn decisions(&self) -> Option<FlowMachineStats> {
        None
    }

    /// Whether every port in use has its entry, and every entry its port; `None` if it has no
    /// pools. Scans everything.
    fn check_pools(&self) -> Option<Result<PoolReport, PoolLeak>> {
        None
    }

    /// Equal on all replicas that have applied the same index.
    fn state_hash(&self) -> u64;
}
