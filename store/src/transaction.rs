//! The closed list of what a transaction may ask, and of what may come of it.
//!
//! A transaction names one slot. Its conditions are checked and its writes are done at one log
//! index, all or none. Its id makes a retry take effect once: the machine remembers the outcome.

use crate::key::Key;
use crate::tally::Tally;
use crate::types::{LogIndex, PoolId, ShardId, SlotId, Time, Version};
pub use crate::write::Write;
use arrayvec::ArrayVec;
use rkyv::{Archive, Deserialize, Serialize};

/// Conditions one transaction may have.
pub const CONDITIONS_MAX: usize = 4;
/// Writes one transaction may have.
pub const WRITES_MAX: usize = 6;

/// Who asked, and the how-many-th it was. `client` is unique for one life of one pipe; serials of a
/// client rise by one.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub struct TransactionId {
    /// The asker: `node id << 16 | pipe`.
    pub client: u64,
    /// Its count, from 1.
    pub serial: u64,
}

/// What must hold for a transaction to take effect.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No entry has this key.
    Absent(Key),
    /// An entry has this key.
    Present(Key),
    /// The entry of this key has just this version.
    Version(Key, Version),
    /// The entry of this key has just this version, a lifetime, and was not seen during it: the
    /// condition of an expiry. Whoever refreshes it first makes it fail.
    Expired(Key, Version),
}

/// A place in the key or value of a [`Write::Put`] into which the endpoint that an earlier
/// [`Write::Take`] of the same transaction took is written: 6 bytes, IPv4 address and port in
/// network order.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fill {
    /// Byte offset in the key, if the key is to be filled.
    pub key_at: Option<u8>,
    /// Byte offset in the value, if the value is to be filled.
    pub value_at: Option<u8>,
}

/// A port wanted from a slot's pool.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// The pool.
    pub pool: PoolId,
    /// IP protocol: TCP, UDP and ICMP have port spaces of their own.
    pub protocol: u8,
    /// Who it is for (a subscriber's address, IPv4-mapped); quotas and blocks are per holder.
    pub holder: [u8; 16],
    /// The port that the flow uses inside: its parity is kept (RFC 4787 REQ-4), and it seeds the
    /// choice.
    pub like_port: u16,
}

/// Conditions and writes on keys of one slot, decided at one log index.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Makes a retry take effect once.
    pub id: TransactionId,
    /// The slot that all its keys belong to.
    pub slot: SlotId,
    /// All must hold.
    pub conditions: ArrayVec<Condition, CONDITIONS_MAX>,
    /// Done in order, all or none.
    pub writes: ArrayVec<Write, WRITES_MAX>,
}

/// Why a transaction was refused although its conditions held.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The shard's table has no place for another entry.
    TableFull,
    /// The slot's pool has no port left.
    PoolEmpty,
    /// The holder has all the port blocks it may have.
    QuotaReached,
    /// The shard does not hold this slot (the asker's map is old).
    NotThisSlot,
    /// The id is older than what the shard remembers, so whether it took effect is unknown.
    IdForgotten,
    /// A write makes no sense: fill without take, offset out of range, unknown pool.
    Malformed,
    /// The shard has written as often as versions can count: for good.
    VersionsUsedUp,
}

/// What came of a transaction.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect at this index.
    Committed(LogIndex),
    /// Condition number `0` of the list did not hold; nothing was changed.
    ConditionFailed(u8),
    /// Nothing was changed.
    Refused(Refusal),
    /// Nothing was changed: the slot is on its way to this shard. It may be there already; if it
    /// comes back, it is where it was.
    Elsewhere(ShardId),
}

/// Somebody's packets keep an entry alive: soft state on its way to all replicas.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenNote {
    /// Which entry; nothing happens if there is none.
    pub key: Key,
    /// How long before this is said it was last seen.
    pub age_ms: u32,
    /// What was counted since the last note.
    pub tally: Tally,
}

impl SeenNote {
    /// When the entry was last seen, by the clock of whoever hears of it now.
    #[must_use]
    pub const fn seen_at(&self, now: Time) -> Time {
        Time(now.0.saturating_sub(self.age_ms as u64 * 1_000_000))
    }
}

/// Many transactions in one log entry, with the time at which they are decided.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Batch {
    /// The shard's time in milliseconds, as its owner says it (it goes on from the owner before,
    /// by the new one's own clock); the machine never lets its time fall.
    pub time_ms: u64,
    /// In the order in which they are decided.
    pub transactions: Vec<Transaction>,
    /// What was seen, before any of them; no entry's version rises by that.
    pub seen: Vec<SeenNote>,
}

/// The keys whose entries a transaction looks at, some of them twice.
pub(crate) fn keys_of(transaction: &Transaction) -> impl Iterator<Item = &Key> {
    let conditions = transaction.conditions.iter().map(|condition| match condition {
        Condition::Absent(key)
        | Condition::Present(key)
        | Condition::Version(key, _)
        | Condition::Expired(key, _) => key,
    });
    let writes = transaction.writes.iter().filter_map(|write| match write {
        Write::Put { key, .. }
        | Write::Delete(key)
        | Write::Touch(key)
        | Write::Add { key, .. } => Some(key),
        Write::Take(_) | Write::Return { .. } => None,
    });
    conditions.chain(writes)
}
