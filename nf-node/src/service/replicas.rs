//! The tables of a node: a region a shard, the machine that writes it, and what reads it.

use super::{ClusterShape, NodeError};
use crate::chain::Chain;
use crate::cluster_access::LocalShard;
use crate::nf::entry_rules::FunctionRules;
use crate::node_config::NodeConfig;
use nearstate_placement::Map;
use nearstate_placement::system::SystemMachine;
use nearstate_store::driver::{RegionAddress, ShardSetup};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::lease::LeaseCell;
use nearstate_store::region::{Region, require_memory};
use nearstate_store::{
    Machine, RegionError, RegionIdentity, ShardId, SlotId, SlotSet, Table, TableError, TableReader,
};
use std::path::PathBuf;
use std::sync::Arc;

use super::system_view::SystemView;

/// All replicas of a node: setups for the store driver, and views for pipes, by shard number.
pub(super) struct Replicas {
    /// For the driver.
    pub(super) setups: Vec<ShardSetup>,
    /// For pipes; the system shard has none.
    pub(super) views: Vec<Option<ReplicaView>>,
}

/// What reads a replica on its own node.
#[derive(Clone)]
pub(super) struct ReplicaView {
    /// The table.
    pub(super) reader: TableReader,
    /// Until when this node owns the shard.
    pub(super) lease: Arc<LeaseCell>,
}

impl ReplicaView {
    /// The view as a pipe takes it.
    pub(super) fn to_local(&self) -> LocalShard {
        LocalShard { reader: self.reader.clone(), lease: self.lease.clone() }
    }
}

impl Replicas {
    /// Makes regions and machines for this life of the node, which its nonce names. The files go
    /// when the regions are dropped.
    ///
    /// # Errors
    /// If the memory for all of them cannot be had; then none is taken.
    pub(super) fn new(
        config: &NodeConfig,
        nonce: u64,
        (shape, chain): (ClusterShape, &Chain),
        view: &SystemView,
    ) -> Result<Self, NodeError> {
        let bytes = Table::bytes_for(config.table_capacity)?;
        require_memory(bytes as u64 * u64::from(shape.shards))
            .map_err(|source| too_little(config, shape.shards, source))?;
        let mut replicas = Self { setups: vec![system_setup(view)], views: vec![None] };
        for number in 1..=shape.shards {
            let shard = ShardId(number);
            let path = region_path(config, nonce, shard);
            let region = if config.shared_memory_reads {
                Region::create_shared(&path, bytes)
            } else {
                Region::anonymous(bytes)
            };
            let region = region.map_err(|source| too_little(config, shape.shards, source))?;
            let table = make_table(config, shard, region).map_err(|error| match error {
                NodeError::Table(TableError::NoMemory { .. }) => {
                    let source = RegionError::Io {
                        action: "reserve",
                        path: "anonymous memory".into(),
                        source: std::io::ErrorKind::OutOfMemory.into(),
                    };
                    too_little(config, shape.shards, source)
                }
                other => other,
            })?;
            let reader = table.reader();
            let lease = Arc::new(LeaseCell::none());
            let generation = table.generation_cell();
            let machine = flow_machine(table, (shape, shard), chain);
            replicas.setups.push(ShardSetup {
                id: shard,
                machine: Box::new(machine),
                check: FlowMachine::check,
                reads: Some(Arc::new(reader.clone())),
                region: config.shared_memory_reads.then_some(RegionAddress { path }),
                lease: lease.clone(),
                generation: Some(Arc::new(move |term| generation.set(term))),
            });
            replicas.views.push(Some(ReplicaView { reader, lease }));
        }
        Ok(replicas)
    }
}

/// The machine of a flow shard, with nothing in it. Equal on all nodes, for its log decides the
/// rest.
pub(super) fn flow_machine(
    table: Table,
    (shape, shard): (ClusterShape, ShardId),
    chain: &Chain,
) -> FlowMachine {
    let mut slots = SlotSet::none(shape.slots);
    let shard_of_slot = Map::first_slots(shape.slots, shape.shards);
    for (slot, _) in shard_of_slot.iter().enumerate().filter(|(_, of)| **of == shard.0) {
        slots.insert(SlotId(slot as u16));
    }
    let pools = chain.pools().to_vec();
    FlowMachine::new(FlowMachineConfig { table, slots, pools })
        .with_rules(Arc::new(FunctionRules))
        .with_soft_state(chain.soft())
}

/// How the names of this node's region files begin, over all its lives.
fn prefix(config: &NodeConfig) -> String {
    format!("{}.{}.", config.cluster, config.name)
}

/// Removes the region files that dead lives of this node's name have left behind: they hold memory.
/// What a living process still has locked stays.
pub(super) fn remove_orphans(config: &NodeConfig) {
    for path in region_files(config, "") {
        if Region::remove_orphan(&path) {
            tracing::info!(path = %path.display(), "removed what a dead node left behind");
        }
    }
}

/// Removes the region files of this life, after it has ended: readers that have one mapped keep it,
/// and nobody is to map it again.
pub(super) fn remove_region_files(config: &NodeConfig, nonce: u64) {
    for path in region_files(config, &format!("{nonce:016x}.")) {
        // Somebody else may have been faster; what stays is found the next time.
        let _ = std::fs::remove_file(path);
    }
}

/// Region files of this node's name whose names go on like this.
fn region_files(config: &NodeConfig, more: &str) -> Vec<PathBuf> {
    let Ok(files) = std::fs::read_dir(&config.directory) else { return Vec::new() };
    let start = format!("{}{more}", prefix(config));
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&start) && name.ends_with(".region")
    };
    files.flatten().map(|file| file.path()).filter(is_one).collect()
}

fn region_path(config: &NodeConfig, nonce: u64, shard: ShardId) -> PathBuf {
    config.directory.join(format!("{}{nonce:016x}.{shard}.region", prefix(config)))
}

fn too_little(config: &NodeConfig, shards: u16, source: RegionError) -> NodeError {
    let capacity = config.table_capacity;
    let place = if config.shared_memory_reads {
        config.directory.display().to_string()
    } else {
        "anonymous memory".to_owned()
    };
    let bytes = Table::bytes_for(capacity).map_or(0, |bytes| bytes as u64);
    NodeError::Memory { capacity, bytes, place, shards, source }
}

fn system_setup(view: &SystemView) -> ShardSetup {
    let publisher = view.clone();
    ShardSetup {
        id: ShardId::SYSTEM,
        machine: Box::new(SystemMachine::new(Arc::new(move |map| publisher.publish(map)))),
        check: SystemMachine::check,
        reads: None,
        region: None,
        lease: Arc::new(LeaseCell::none()),
        generation: None,
    }
}

fn make_table(config: &NodeConfig, shard: ShardId, region: Region) -> Result<Table, NodeError> {
    let (bytes, backing) = (region.len_bytes(), region.backing());
    tracing::info!(%shard, bytes, ?backing, "made a table");
    // Each region hashes in its own way, so nobody can know which keys collide in it.
    let hash_key = super::formation::draw_nonce().map_err(NodeError::Random)?;
    let identity = RegionIdentity { cluster: config.cluster_id(), shard };
    Ok(Table::format(Arc::new(region), identity, config.table_capacity, hash_key)?)
}
