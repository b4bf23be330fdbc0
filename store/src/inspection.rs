//! Looks at a running shard's machine, for people who ask what a replica holds.
//!
//! A look is taken between two log entries, so what it finds belongs to one applied index and can
//! be compared with other replicas'. Commits of the shard wait meanwhile; the connections and
//! heartbeats of the node do not. It changes nothing.

use crate::clock::boot_now;
use crate::disk::Durability;
use crate::driver::Store;
use crate::flow_machine::FlowMachineStats;
use crate::key::Key;
use crate::pool_check::{PoolLeak, PoolReport};
use crate::pool_use::PoolUsage;
use crate::types::{LogIndex, ShardId};
use crate::upkeep::EntryTimer;

/// What a replica's machine holds, at one log index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// Outcomes of transactions that are remembered, so that a retry takes effect once.
    pub outcomes_remembered: u64,
    /// What was decided since this replica's process began; nothing of the system shard.
    pub decisions: Option<FlowMachineStats>,
    /// Equal on all replicas that have applied the same index, if it was asked for.
    pub state_hash: Option<u64>,
    /// How its ports are used, or what leaks, if the hash was asked for and it has pools.
    pub pools: Option<Result<PoolReport, PoolLeak>>,
}

impl Store {
    /// Whether its logs outlive the process.
    #[must_use]
    pub const fn is_durable(&self) -> bool {
        matches!(self.config.durability, Durability::Disk(_))
    }

    /// How the ports of a shard's pools are used, with so many holders at most.
    pub async fn pool_usage(&self, shard: ShardId, holders_max: usize) -> Option<PoolUsage> {
        let replica = &self.shards.get(&shard)?.replica;
        Some(replica.look(move |machine| machine.pool_usage(holders_max)).await?.1)
    }

    /// How long each of these entries of a shard lives.
    pub async fn entry_timers(
        &self,
        shard: ShardId,
        keys: Vec<Key>,
    ) -> Option<Vec<Option<EntryTimer>>> {
        let replica = &self.shards.get(&shard)?.replica;
        let now = boot_now();
        Some(replica.look(move |machine| machine.entry_timers(&keys, now)).await?.1)
    }

    /// Looks at a shard's machine; with its hash and its pools, which takes scans of all that it
    /// holds (some 100 ms a million entries). `None` if there is no such shard here, or it has
    /// stopped.
    pub async fn inspect(&self, shard: ShardId, with_hash: bool) -> Option<Inspection> {
        let replica = &self.shards.get(&shard)?.replica;
        let looked = replica.look(move |machine| {
            let scanned = with_hash.then(|| (machine.state_hash(), machine.check_pools()));
            ((machine.outcomes_remembered(), machine.decisions()), scanned)
        });
        let (applied, ((outcomes_remembered, decisions), scanned)) = looked.await?;
        let (state_hash, pools) = scanned.unzip();
        let pools = pools.flatten();
        Some(Inspection { applied, outcomes_remembered, decisions, state_hash, pools })
    }
}
