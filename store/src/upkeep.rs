//! What an owner does for its shard beside answering: it ends what has expired, and tells the
//! others what was seen.
//!
//! The words only: when the owner looks ([`UpkeepClock`]), what it then has to propose
//! ([`Upkeep`]), and how entries end ([`EntryRules`]), which is the business of whoever put them.
//! How much is done at a time is bounded, so that commits never wait long behind it.

use crate::Entry;
use crate::block_journal::BlockRecord;
use crate::key::Key;
use crate::limits::SEEN_NOTES_MAX;
use crate::transaction::{
    CONDITIONS_MAX, Condition, SeenNote, Transaction, TransactionId, WRITES_MAX, Write,
};
use crate::types::{PoolId, SlotId, Term, Time};
use arrayvec::ArrayVec;
use core::fmt;

/// Expiries of one piece of work.
pub const EXPIRIES_MAX: usize = 256;
/// Timers that one piece of work looks at.
pub const TIMERS_AT_ONCE: u32 = 1024;
/// Cells whose marks one piece of work looks at.
pub const CELLS_AT_ONCE: u32 = 1 << 15;
/// Other entries without which an entry does not end.
pub const PARTNERS_MAX: usize = CONDITIONS_MAX - 1;

/// How soon what was seen is known to all replicas, unless told otherwise.
pub const SOFT_STATE_MS: u64 = 1_000;
/// Passes over all marks, each so long, in which every tally is told once.
pub const TALLY_PASSES: u32 = 8;

/// What may be lost of soft state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftTerms {
    /// What was seen is replicated within this time; so much is lost with an owner. Less than an
    /// eighth of an entry's life is not worth a message: of a long-lived entry that much may be
    /// missing. (A new owner knows that it does not know; see `flow_upkeep`.) What was counted is
    /// replicated within [`TALLY_PASSES`] times as long.
    pub within_ms: u64,
}

impl Default for SoftTerms {
    fn default() -> Self {
        Self { within_ms: SOFT_STATE_MS }
    }
}

impl SoftTerms {
    /// By how much an entry that lives so long must have been seen later than all replicas know,
    /// to be worth a note.
    #[must_use]
    pub const fn worth_ms(self, ttl_ms: u64) -> u64 {
        let eighth = ttl_ms / 8;
        if eighth > self.within_ms { eighth } else { self.within_ms }
    }
}

/// When and as whom an owner looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpkeepClock {
    /// The shard's time: what an entry of the log that is made now would carry.
    pub time_ms: u64,
    /// This node's clock, which marks go by.
    pub now: Time,
    /// The term in which it owns the shard.
    pub term: Term,
}

/// An entry's end, to be proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The slot of all its keys.
    pub slot: SlotId,
    /// That nobody has seen it meanwhile.
    pub conditions: ArrayVec<Condition, CONDITIONS_MAX>,
    /// What ends with it.
    pub writes: ArrayVec<Write, WRITES_MAX>,
}

impl Expiry {
    /// The proposal under this id.
    #[must_use]
    pub fn into_transaction(self, id: TransactionId) -> Transaction {
        let Self { slot, conditions, writes } = self;
        Transaction { id, slot, conditions, writes }
    }
}

/// A piece of work: what is to be proposed. Made once and filled again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Entries that have expired, at most [`EXPIRIES_MAX`].
    pub expiries: Vec<Expiry>,
    /// What was seen, at most [`SEEN_NOTES_MAX`].
    pub seen: Vec<SeenNote>,
    /// Blocks of ports that have changed hands, for the log, at most
    /// [`crate::block_journal::BLOCK_RECORDS_AT_ONCE`].
    pub blocks: Vec<BlockRecord>,
    /// Whether notes of what was seen are wanted now; the others wait.
    pub wants_seen: bool,
    /// Nothing else is wanted than all that was seen and counted, at once, from this cell on: the
    /// owner is about to go. Rises to the cell to go on with.
    pub tells_all_from: Option<u32>,
    /// Timers that were looked at.
    pub steps: u32,
    /// Cells whose marks were looked at.
    pub cells: u32,
    /// There was more to do than is done at a time.
    pub is_more: bool,
}

impl Upkeep {
    /// Room for a piece of work.
    #[must_use]
    pub fn new() -> Self {
        Self {
            expiries: Vec::with_capacity(EXPIRIES_MAX),
            seen: Vec::with_capacity(SEEN_NOTES_MAX),
            ..Self::default()
        }
    }

    /// Empty hands; the memory stays.
    pub fn clear(&mut self) {
        self.expiries.clear();
        self.seen.clear();
        self.blocks.clear();
        (self.steps, self.cells, self.is_more) = (0, 0, false);
    }
}

/// How long an entry lives, for people who look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTimer {
    /// Seconds after it was last seen; 0 is without end.
    pub ttl_s: u32,
    /// For how long nobody has seen it, as far as is known.
    pub idle_ms: u64,
}

/// What ends together with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Other entries, with lifetimes of their own: as long as one of them is seen, nothing ends.
    pub partners: ArrayVec<Key, PARTNERS_MAX>,
    /// What is done when it ends; with nothing, nothing ends.
    pub writes: ArrayVec<Write, WRITES_MAX>,
}

/// A port of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolPort {
    /// The pool.
    pub pool: PoolId,
    /// IP protocol whose port space it is.
    pub protocol: u8,
    /// IPv4 address and port in network order.
    pub endpoint: [u8; 6],
}

/// What whoever puts entries knows of them. Pure: the same answers on every node, at any time.
pub trait EntryRules: Send + Sync + fmt::Debug {
    /// What ends when this entry has not been seen for its lifetime. `ending` is empty.
    fn end(&self, key: &Key, entry: &Entry, ending: &mut Ending);

    /// The first of the two words of such an entry's value that count packets and bytes, if it has
    /// such. They rise by notes of what was seen, without a new version, and stay what they are
    /// when the value is put anew.
    fn tally(&self, key: &Key) -> Option<usize> {
        let _ = key;
        None
    }

    /// The port that is in use because of this entry: a port in use has one such entry.
    fn port(&self, key: &Key, entry: &Entry) -> Option<PoolPort>;
}

/// Entries that end alone and hold no ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainRules;

impl EntryRules for PlainRules {
    fn end(&self, key: &Key, _: &Entry, ending: &mut Ending) {
        ending.writes.push(Write::Delete(*key));
    }

    fn port(&self, _: &Key, _: &Entry) -> Option<PoolPort> {
        None
    }
}
