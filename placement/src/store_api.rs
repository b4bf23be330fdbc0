//! Questions about what a node's replicas hold, for people who look into a store.
//!
//! Part of the control messages ([`crate::api`]): bounded, validated on arrival, and nothing here
//! acts. What a node answers is what *it* holds; whether that is current, its lease says.

#![expect(missing_docs, reason = "rkyv's derive makes resolver fields without a text")]

use crate::archive::{DecodeError, limit};
use crate::limits;
use nearstate_store::limits::POOLS_MAX;
use nearstate_store::{Key, LogIndex, PoolId, ShardId, SlotId, Value, Version};
use rkyv::{Archive, Deserialize, Serialize};

/// How often things happened, by their names.
pub type Counts = Vec<(String, u64)>;

/// What may be asked about a store.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// How the table, the log and the machine of a shard are.
    Stat(ShardId),
    /// A piece of a listing of a shard's entries.
    Scan {
        /// Which shard.
        shard: ShardId,
        /// The cell to begin at: 0, or where the piece before ended.
        from: u32,
        /// Entries to list at most, 1 to [`limits::SCAN_ENTRIES_MAX`].
        entries: u32,
        /// Only those of this slot.
        slot: Option<SlotId>,
    },
    /// The entries of some keys, in all shards that the node has a replica of.
    Get(Vec<Key>),
    /// The hash of a shard's state, and the log index that it belongs to.
    Hash(ShardId),
    /// How the ports of a shard's pools are used.
    Pools(ShardId),
    /// What the node has refused since it began, by reason.
    Refusals,
}

/// What a node answers; nothing (`None`) where it has no such replica.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum StoreResponse {
    /// To [`StoreRequest::Stat`].
    Stat(Option<Box<StoreStat>>),
    /// To [`StoreRequest::Scan`].
    Scan(Option<ScanPiece>),
    /// To [`StoreRequest::Get`].
    Get(Vec<HeldEntry>),
    /// To [`StoreRequest::Hash`].
    Hash(Option<StateHash>),
    /// To [`StoreRequest::Pools`].
    Pools(Option<HeldPools>),
    /// To [`StoreRequest::Refusals`].
    Refusals(Counts),
}

/// A shard's replica, as far down as it can be seen from outside.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct StoreStat {
    /// The last entry of the log.
    pub last_log: LogIndex,
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// Outcomes of transactions that are remembered.
    pub outcomes_remembered: u64,
    /// What its machine has decided since the process began; nothing of the system shard.
    pub decisions: Counts,
    /// Milliseconds for which this node's lease still holds.
    pub lease_left_ms: u32,
    /// Whether the log is kept on a disk.
    pub is_durable: bool,
    /// Whether writes are refused because that disk is full.
    pub disk_is_full: bool,
    /// The table; nothing for the system shard, which has none.
    pub table: Option<TableStat>,
}

/// A replica's table, counted cell by cell.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TableStat {
    /// Entries.
    pub entries: u32,
    /// Entries that it was made for.
    pub capacity: u32,
    /// Entries of the overflow area.
    pub overflow: u32,
    /// Places of the overflow area.
    pub overflow_places: u32,
    /// Entries that were moved since it was made.
    pub displacements: u64,
    /// How many entries lie how many cells from their home.
    pub distances: Vec<u32>,
    /// How many entries of the overflow area are found in the first bucket, the second, and so on.
    pub probes: Vec<u32>,
    /// Bytes of memory.
    pub bytes: u64,
    /// The kind of memory, in words.
    pub memory: String,
    /// Cells that cannot be read: 0, unless they were being written all the time.
    pub unreadable: u32,
    /// Entries where no read finds them: 0, unless they were moved under the count.
    pub misplaced: u32,
}

/// An entry as a node holds it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldEntry {
    /// In which shard.
    pub shard: ShardId,
    /// Whether this node owned the shard after the read: then it is the current one.
    pub is_current: bool,
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// Its version.
    pub version: Version,
    /// Its slot.
    pub slot: SlotId,
    /// How long it lives; only an owner that was asked for the entry says so.
    pub timer: Option<HeldTimer>,
}

/// How long an entry lives.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldTimer {
    /// Seconds after it was last seen; 0 is without end.
    pub ttl_s: u32,
    /// For how long nobody has seen it, as far as its owner knows.
    pub idle_ms: u64,
}

/// How the ports of a shard's pools are used.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct HeldPools {
    /// Whether this node owned the shard after it had looked: then it is the current use.
    pub is_current: bool,
    /// By pool.
    pub pools: Vec<HeldPool>,
    /// Who has most blocks comes first; at most [`limits::HOLDERS_MAX`].
    pub holders: Vec<PortHolder>,
    /// How many holders there are in all.
    pub holders_count: u32,
}

/// What a shard gives out of one pool. Three port spaces: TCP, UDP, ICMP identifiers.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPool {
    /// The pool.
    pub pool: PoolId,
    /// Blocks of the shard's slots.
    pub blocks: u32,
    /// Blocks with a holder.
    pub blocks_held: u32,
    /// Most blocks that a holder may have in one slot.
    pub blocks_per_holder_max: u16,
    /// Ports in use.
    pub live: [u64; 3],
    /// Returned ports that rest.
    pub resting: [u64; 3],
}

/// What one holder has of a pool in a shard.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortHolder {
    /// Of which pool.
    pub pool: PoolId,
    /// The address, IPv4 as IPv4-mapped.
    pub holder: [u8; 16],
    /// Its blocks.
    pub blocks: u32,
    /// Its ports in use.
    pub live: u64,
    /// Its returned ports that rest.
    pub resting: u64,
}

/// A piece of a listing.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ScanPiece {
    /// The entries.
    pub entries: Vec<HeldEntry>,
    /// Where the next piece begins; nothing after the last.
    pub next: Option<u32>,
}

/// What a replica's state comes to.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// Equal on all replicas that have applied the same entries.
    pub hash: u64,
    /// How the ports of its pools are used; nothing for the system shard.
    pub ports: Option<PortUse>,
}

/// How the ports of a replica's pools are used: what is live or rests was given out and is not
/// free.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// In use, each for one entry.
    pub live: u64,
    /// Returned, and not to be given out yet.
    pub resting: u64,
    /// Whether a port is in use for no entry, or an entry has none; then the counts are 0.
    pub leaks: bool,
}

impl StoreRequest {
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Scan { entries, .. } => {
                limit("entries of a listing", *entries as usize, limits::SCAN_ENTRIES_MAX)
            }
            Self::Get(keys) => limit("keys", keys.len(), limits::GET_KEYS_MAX),
            Self::Stat(_) | Self::Hash(_) | Self::Pools(_) | Self::Refusals => Ok(()),
        }
    }
}

impl StoreResponse {
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Stat(stat) => stat.iter().try_for_each(|stat| stat.validate()),
            Self::Scan(piece) => {
                let entries = piece.as_ref().map_or(0, |piece| piece.entries.len());
                limit("entries of a listing", entries, limits::SCAN_ENTRIES_MAX)
            }
            Self::Get(found) => {
                limit("entries", found.len(), limits::GET_KEYS_MAX * limits::SHARDS_MAX)
            }
            Self::Hash(_) => Ok(()),
            Self::Refusals(counts) => check_counts(counts),
            Self::Pools(held) => held.iter().try_for_each(|held| {
                limit("pools", held.pools.len(), POOLS_MAX)?;
                limit("holders", held.holders.len(), limits::HOLDERS_MAX)
            }),
        }
    }
}

fn check_counts(counts: &Counts) -> Result<(), DecodeError> {
    limit("counts", counts.len(), limits::COUNTERS_MAX)?;
    let name =
        |(name, _): &(String, u64)| limit("bytes of a line", name.len(), limits::TEXT_BYTES_MAX);
    counts.iter().try_for_each(name)
}

impl StoreStat {
    fn validate(&self) -> Result<(), DecodeError> {
        check_counts(&self.decisions)?;
        let Some(table) = &self.table else { return Ok(()) };
        limit("distances", table.distances.len(), limits::DISTANCES_MAX)?;
        limit("probes", table.probes.len(), limits::DISTANCES_MAX)?;
        limit("bytes of a line", table.memory.len(), limits::TEXT_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Request, Response};

    fn held(number: u64) -> HeldEntry {
        HeldEntry {
            shard: ShardId(1),
            is_current: true,
            key: Key([1, number, 0, 0, 0]),
            value: Value([number; 8]),
            version: Version(number),
            slot: SlotId(3),
            timer: Some(HeldTimer { ttl_s: 300, idle_ms: 1 << 40 }),
        }
    }

    fn pools(holders: usize) -> Response {
        let pool = PoolId(1);
        let (live, resting) = ([1, 2, 3], [4, 5, 6]);
        let counts =
            HeldPool { pool, blocks: 9, blocks_held: 8, blocks_per_holder_max: 7, live, resting };
        let holder = PortHolder { pool, holder: [9; 16], blocks: 1, live: 2, resting: 3 };
        let (pools, holders) = (vec![counts], vec![holder; holders]);
        let held = HeldPools { is_current: true, pools, holders, holders_count: 9999 };
        Response::Store(StoreResponse::Pools(Some(held)))
    }

    fn counts(count: usize) -> Response {
        let counts = vec![("stale-term".to_owned(), 3); count];
        Response::Store(StoreResponse::Refusals(counts))
    }

    fn scan(entries: u32) -> Request {
        let (shard, from, slot) = (ShardId(1), 8, Some(SlotId(3)));
        Request::Store(StoreRequest::Scan { shard, from, entries, slot })
    }

    fn get(keys: usize) -> Request {
        Request::Store(StoreRequest::Get(vec![Key([1; 5]); keys]))
    }

    #[test]
    fn questions_survive_the_wire_and_too_much_is_refused() {
        let one = |request| Request::Store(request);
        for request in [
            one(StoreRequest::Stat(ShardId(2))),
            one(StoreRequest::Hash(ShardId(0))),
            one(StoreRequest::Pools(ShardId(1))),
            one(StoreRequest::Refusals),
            scan(limits::SCAN_ENTRIES_MAX as u32),
            get(limits::GET_KEYS_MAX),
        ] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for request in [scan(limits::SCAN_ENTRIES_MAX as u32 + 1), get(limits::GET_KEYS_MAX + 1)] {
            let decoded = Request::decode(&request.encode());
            assert!(matches!(decoded, Err(DecodeError::Limit { .. })), "{decoded:?}");
        }
    }

    #[test]
    fn answers_survive_the_wire_and_too_much_is_refused() {
        let piece = |entries| {
            let entries = (0..entries).map(|number| held(number as u64)).collect();
            Response::Store(StoreResponse::Scan(Some(ScanPiece { entries, next: Some(16) })))
        };
        let hash = StateHash { applied: LogIndex(7), hash: 9, ports: None };
        for response in [
            piece(limits::SCAN_ENTRIES_MAX),
            Response::Store(StoreResponse::Get(vec![held(1)])),
            Response::Store(StoreResponse::Hash(Some(hash))),
            Response::Store(StoreResponse::Stat(None)),
            pools(limits::HOLDERS_MAX),
            counts(limits::COUNTERS_MAX),
        ] {
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
        for response in [
            piece(limits::SCAN_ENTRIES_MAX + 1),
            pools(limits::HOLDERS_MAX + 1),
            counts(limits::COUNTERS_MAX + 1),
        ] {
            let decoded = Response::decode(&response.encode());
            assert!(matches!(decoded, Err(DecodeError::Limit { .. })));
        }
    }
}
