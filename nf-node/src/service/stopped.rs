//! What a stopped durable node held: its logs and snapshots, played back into tables of this
//! process.
//!
//! The same machines as in a node, and the same words as a live node answers with
//! ([`nearstate_placement::store_api`]); nobody owns anything, so nothing is current. One shard is
//! in memory at a time, and the directory is only read.

use super::durable::inhabitant;
use super::formation::draw_nonce;
use super::identity::ClusterShape;
use super::replicas::flow_machine;
use super::store_words::{held_entry, port_use, table_stat};
use crate::chain::Chain;
use crate::chain_config::ChainConfigError;
use crate::node_config::NodeConfig;
use nearstate_placement::store_api::{HeldEntry, ScanPiece, StateHash, StoreStat};
use nearstate_placement::system::SystemMachine;
use nearstate_store::disk::{StoppedError as ReplicaError, StoppedReplica};
use nearstate_store::{
    FlowMachine, Key, LogIndex, Machine, NodeId, Region, RegionError, RegionIdentity, ShardId,
    Table, TableError, TableScan,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// Why a stopped node's state cannot be had.
#[derive(Debug, Error)]
pub enum StoppedError {
    /// A file is not there, or cannot be read.
    #[error(
        "{} cannot be read: give the directory CLUSTER.NAME.disk of a node whose durability is \
         \"disk\", as this version leaves it",
        path.display()
    )]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file says nothing that this version understands.
    #[error("{} is damaged, or another version has written it", .0.display())]
    Unusable(PathBuf),
    /// The chain of its configuration cannot be built.
    #[error("the chain: {0}")]
    Chain(#[from] ChainConfigError),
    /// No memory for its table.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// No such table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(std::io::Error),
    /// There is no such shard.
    #[error("this node has no {0}: its cluster has the flow shards 1 to {1}")]
    NoSuchShard(ShardId, u16),
    /// A shard's files cannot be used.
    #[error("{shard}: {source}")]
    Replica {
        /// Which.
        shard: ShardId,
        /// Why.
        source: ReplicaError,
    },
}

/// A stopped node's directory.
#[derive(Debug)]
pub struct StoppedNode {
    directory: PathBuf,
    config: NodeConfig,
    node: NodeId,
    shape: ClusterShape,
    chain: Chain,
}

/// One shard of it, as it was.
struct Played<M> {
    shard: ShardId,
    machine: M,
    last_log: LogIndex,
    applied: LogIndex,
}

impl StoppedNode {
    /// Reads who it was.
    ///
    /// # Errors
    /// If the directory is none of a durable node of this version.
    pub fn open(directory: &Path) -> Result<Self, StoppedError> {
        let (life, config) = inhabitant(directory)?;
        let chain = Chain::new(&config.chain, life.slots)?;
        let shape = ClusterShape { slots: life.slots, shards: life.shards };
        Ok(Self { directory: directory.to_owned(), config, node: life.node, shape, chain })
    }

    /// Its id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// What people call it.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} (id {})", self.config.name, self.node.0)
    }

    /// The shards of its cluster, the system shard first.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..=self.shape.shards).map(ShardId)
    }

    /// How a shard's table, log and machine were.
    ///
    /// # Errors
    /// If its files cannot be used, or a running process has them.
    pub fn stat(&self, shard: ShardId) -> Result<StoreStat, StoppedError> {
        if shard == ShardId::SYSTEM {
            return Ok(self.system()?.stat());
        }
        let played = self.flows(shard)?;
        Ok(StoreStat { table: Some(table_stat(&played.machine.reader())), ..played.stat() })
    }

    /// A piece of a listing of a shard's entries.
    ///
    /// # Errors
    /// If its files cannot be used, or a running process has them.
    pub fn scan(&self, shard: ShardId, scan: TableScan) -> Result<ScanPiece, StoppedError> {
        let played = self.flows(shard)?;
        let (found, next) = scan.run(&played.machine.reader());
        let held = found.iter().map(|found| held_entry(shard, false, (&found.key, found.entry)));
        Ok(ScanPiece { entries: held.collect(), next })
    }

    /// The entries of some keys, in all shards.
    ///
    /// # Errors
    /// If files cannot be used, or a running process has them.
    pub fn get(&self, keys: &[Key]) -> Result<Vec<HeldEntry>, StoppedError> {
        let mut all = Vec::new();
        for shard in self.shards().filter(|shard| *shard != ShardId::SYSTEM) {
            let reader = self.flows(shard)?.machine.reader();
            let found = keys.iter().filter_map(|key| Some((key, reader.get(key)?)));
            all.extend(found.map(|found| held_entry(shard, false, found)));
        }
        Ok(all)
    }

    /// What a shard's state comes to, at the last entry that was known to be committed.
    ///
    /// # Errors
    /// If its files cannot be used, or a running process has them.
    pub fn hash(&self, shard: ShardId) -> Result<StateHash, StoppedError> {
        if shard == ShardId::SYSTEM {
            return Ok(self.system()?.hash());
        }
        Ok(self.flows(shard)?.hash())
    }

    fn system(&self) -> Result<Played<SystemMachine>, StoppedError> {
        self.play(ShardId::SYSTEM, SystemMachine::new(Arc::new(drop)))
    }

    fn flows(&self, shard: ShardId) -> Result<Played<FlowMachine>, StoppedError> {
        if !(1..=self.shape.shards).contains(&shard.0) {
            return Err(StoppedError::NoSuchShard(shard, self.shape.shards));
        }
        let capacity = self.config.table_capacity;
        let region = Region::anonymous(Table::bytes_for(capacity)?)?;
        let identity = RegionIdentity { cluster: self.config.cluster_id(), shard };
        let hash_key = draw_nonce().map_err(StoppedError::Random)?;
        let table = Table::format(Arc::new(region), identity, capacity, hash_key)?;
        self.play(shard, flow_machine(table, (self.shape, shard), &self.chain))
    }

    fn play<M: Machine>(&self, shard: ShardId, mut machine: M) -> Result<Played<M>, StoppedError> {
        let failed = |source| StoppedError::Replica { shard, source };
        let replica = StoppedReplica::open(&self.directory, shard).map_err(failed)?;
        let applied = replica.play(&mut machine).map_err(failed)?;
        Ok(Played { shard, machine, last_log: replica.last_log(), applied })
    }
}

impl<M: Machine> Played<M> {
    fn stat(&self) -> StoreStat {
        StoreStat {
            last_log: self.last_log,
            applied: self.applied,
            outcomes_remembered: self.machine.outcomes_remembered(),
            // Those of a process that has ended.
            decisions: Vec::new(),
            lease_left_ms: 0,
            is_durable: true,
            disk_is_full: false,
            table: None,
        }
    }

    fn hash(&self) -> StateHash {
        let ports = self.machine.check_pools().map(|pools| port_use(self.shard, pools));
        StateHash { applied: self.applied, hash: self.machine.state_hash(), ports }
    }
}
