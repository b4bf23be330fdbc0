//! What a node answers to those who look into its replicas: counts, listings, entries, hashes.
//!
//! All of it is read beside the pipes and the writer. What takes long runs on a thread of its own,
//! because the store has one thread for everything else.

use super::answers::Answers;
use super::replicas::ReplicaView;
use super::store_words::{held_entry, named, port_use, table_stat};
use nearstate_placement::limits::{HOLDERS_MAX, SCAN_CELLS_MAX, SCAN_ENTRIES_MAX};
use nearstate_placement::store_api::{
    HeldEntry, HeldPool, HeldPools, HeldTimer, PortHolder, ScanPiece, StateHash, StoreRequest,
    StoreResponse, StoreStat, TableStat,
};
use nearstate_store::clock::boot_now;
use nearstate_store::driver::Store;
use nearstate_store::pool_use::{HolderUse, PoolUse};
use nearstate_store::upkeep::EntryTimer;
use nearstate_store::{Entry, FlowMachineStats, Key, LogIndex, ShardId, TableReader, TableScan};

impl Answers {
    /// Answers a question about this node's replicas.
    pub(super) async fn store_answer(&self, request: StoreRequest) -> StoreResponse {
        match request {
            StoreRequest::Stat(shard) => {
                StoreResponse::Stat(self.store_stat(shard).await.map(Box::new))
            }
            StoreRequest::Scan { shard, from, entries, slot } => {
                let entries_max = (entries as usize).min(SCAN_ENTRIES_MAX);
                let scan = TableScan { from, entries_max, cells_max: SCAN_CELLS_MAX, slot };
                StoreResponse::Scan(self.scan(shard, scan).await)
            }
            StoreRequest::Get(keys) => StoreResponse::Get(self.held(keys).await),
            StoreRequest::Hash(shard) => StoreResponse::Hash(self.state_hash(shard).await),
            StoreRequest::Pools(shard) => StoreResponse::Pools(self.held_pools(shard).await),
            StoreRequest::Refusals => {
                let counts = self.store.get().map(|store| store.refusals().named());
                StoreResponse::Refusals(named(counts.into_iter().flatten()))
            }
        }
    }

    fn replica(&self, shard: ShardId) -> Option<&ReplicaView> {
        self.replicas.get(usize::from(shard.0))?.as_ref()
    }

    /// The store, if this node is in the group of the shard.
    fn store_of(&self, shard: ShardId) -> Option<&Store> {
        let store = self.store.get()?;
        let status = store.status(shard)?;
        let is_in = status.voters.contains(&self.node) || status.learners.contains(&self.node);
        is_in.then_some(&**store)
    }

    async fn store_stat(&self, shard: ShardId) -> Option<StoreStat> {
        let store = self.store_of(shard)?;
        let seen = store.inspect(shard, false).await?;
        let table = match self.replica(shard) {
            Some(view) => Some(count(view.reader.clone()).await?),
            None => None,
        };
        let status = store.status(shard)?;
        Some(StoreStat {
            last_log: status.last_log.unwrap_or(LogIndex(0)),
            applied: seen.applied,
            outcomes_remembered: seen.outcomes_remembered,
            decisions: named(seen.decisions.iter().flat_map(FlowMachineStats::named)),
            lease_left_ms: (status.lease_until.since_ns(boot_now()) / 1_000_000) as u32,
            is_durable: store.is_durable(),
            disk_is_full: store.disk_is_full(shard),
            table,
        })
    }

    async fn scan(&self, shard: ShardId, scan: TableScan) -> Option<ScanPiece> {
        self.store_of(shard)?;
        let view = self.replica(shard)?;
        let reader = view.reader.clone();
        let scanned = tokio::task::spawn_blocking(move || scan.run(&reader)).await;
        let (found, next) = scanned.ok()?;
        let is_current = view.is_current();
        let held = |found: nearstate_store::ScannedEntry| {
            held_entry(shard, is_current, (&found.key, found.entry))
        };
        Some(ScanPiece { entries: found.into_iter().map(held).collect(), next })
    }

    async fn held(&self, keys: Vec<Key>) -> Vec<HeldEntry> {
        let mut all = Vec::new();
        for (number, view) in (0..).zip(&self.replicas) {
            let shard = ShardId(number);
            let (Some(view), Some(store)) = (view.as_ref(), self.store_of(shard)) else { continue };
            let found = keys.iter().filter_map(|key| Some((*key, view.reader.get(key)?)));
            let found: Vec<(Key, Entry)> = found.collect();
            // After the reads.
            let is_current = view.is_current();
            let wanted =
                if is_current { found.iter().map(|(key, _)| *key).collect() } else { vec![] };
            let timers = match wanted.is_empty() {
                true => Vec::new(),
                false => store.entry_timers(shard, wanted).await.unwrap_or_default(),
            };
            for (at, (key, entry)) in found.iter().enumerate() {
                let timer = timers.get(at).copied().flatten();
                let timer = timer.map(|EntryTimer { ttl_s, idle_ms }| HeldTimer { ttl_s, idle_ms });
                all.push(HeldEntry { timer, ..held_entry(shard, is_current, (key, *entry)) });
            }
        }
        all
    }

    async fn held_pools(&self, shard: ShardId) -> Option<HeldPools> {
        let view = self.replica(shard)?;
        let usage = self.store_of(shard)?.pool_usage(shard, HOLDERS_MAX).await?;
        let pool = |one: PoolUse| {
            let PoolUse { pool, blocks, blocks_held, blocks_per_holder_max, live, resting } = one;
            HeldPool { pool, blocks, blocks_held, blocks_per_holder_max, live, resting }
        };
        let holder = |one: HolderUse| {
            let HolderUse { pool, holder, blocks, live, resting } = one;
            PortHolder { pool, holder, blocks, live, resting }
        };
        Some(HeldPools {
            is_current: view.is_current(),
            pools: usage.pools.into_iter().map(pool).collect(),
            holders: usage.holders.into_iter().map(holder).collect(),
            holders_count: usage.holders_count,
        })
    }

    async fn state_hash(&self, shard: ShardId) -> Option<StateHash> {
        let seen = self.store_of(shard)?.inspect(shard, true).await?;
        let ports = seen.pools.map(|pools| port_use(shard, pools));
        Some(StateHash { applied: seen.applied, hash: seen.state_hash?, ports })
    }
}

impl ReplicaView {
    /// Whether this node owns the shard, so that what was read before is current.
    fn is_current(&self) -> bool {
        boot_now() < self.lease.until()
    }
}

async fn count(reader: TableReader) -> Option<TableStat> {
    tokio::task::spawn_blocking(move || table_stat(&reader)).await.ok()
}
