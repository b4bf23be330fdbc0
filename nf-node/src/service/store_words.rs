//! What is found in a replica, in the words of the messages about it: of a live one and of a
//! stopped one alike.

use nearstate_placement::store_api::{Counts, HeldEntry, PortUse, TableStat};
use nearstate_store::pool_check::{PoolLeak, PoolReport};
use nearstate_store::{Entry, Key, RegionStats, ShardId, TableReader};

pub(super) fn named(counts: impl Iterator<Item = (&'static str, u64)>) -> Counts {
    counts.map(|(name, count)| (name.to_owned(), count)).collect()
}

pub(super) fn held_entry(
    shard: ShardId,
    is_current: bool,
    (key, entry): (&Key, Entry),
) -> HeldEntry {
    let Entry { value, version, slot } = entry;
    HeldEntry { shard, is_current, key: *key, value, version, slot, timer: None }
}

pub(super) fn port_use(shard: ShardId, pools: Result<PoolReport, PoolLeak>) -> PortUse {
    match pools {
        Ok(PoolReport { live, resting, .. }) => PortUse { live, resting, leaks: false },
        Err(leak) => {
            tracing::error!(%shard, %leak, "a port has leaked");
            PortUse { live: 0, resting: 0, leaks: true }
        }
    }
}

/// Counts a table cell by cell, which takes long.
pub(super) fn table_stat(reader: &TableReader) -> TableStat {
    let counted = RegionStats::scan(reader);
    let table = counted.table;
    TableStat {
        entries: table.entries,
        capacity: table.capacity,
        overflow: table.overflow,
        overflow_places: table.overflow_places,
        displacements: table.displacements,
        distances: table.distances.to_vec(),
        probes: table.probes.to_vec(),
        bytes: table.bytes,
        memory: counted.backing.to_string(),
        unreadable: counted.unreadable,
        misplaced: counted.misplaced,
    }
}
