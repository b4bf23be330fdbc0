//! The tables of a node: a region a shard, the machine that writes it, and what reads it.

use super::NodeError;
use crate::cluster_access::LocalShard;
use crate::nf::entry_rules::FunctionRules;
use crate::node_config::NodeConfig;
use nearstate_placement::Map;
use nearstate_placement::system::SystemMachine;
use nearstate_store::driver::{LocalReads, RegionAddress, ShardSetup};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::lease::LeaseCell;
use nearstate_store::region::Region;
use nearstate_store::{
    Entry, Key, Machine, NodeId, PoolSpec, RegionIdentity, ShardId, SlotId, SlotSet, SoftTerms,
    Table, TableReader, Time,
};
use std::path::PathBuf;
use std::sync::Arc;

use super::system_view::SystemView;

/// What a cluster's shape says of every replica.
pub(super) struct Shape<'a> {
    /// Slots of the cluster.
    pub(super) slots: u32,
    /// Flow shards of the cluster.
    pub(super) shards: u16,
    /// NAT pools of the chain.
    pub(super) pools: &'a [PoolSpec],
    /// What may be lost of soft state.
    pub(super) soft: SoftTerms,
}

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

struct TableReads(TableReader);

impl LocalReads for TableReads {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.0.get(key)
    }

    fn note_seen(&self, key: &Key, at: Time) {
        // Whether there is such an entry is not asked here.
        let _ = self.0.get_seen(key, self.0.hash(key), at);
    }
}

impl Replicas {
    /// Makes regions and machines. The files go when the regions are dropped.
    pub(super) fn new(
        config: &NodeConfig,
        node: NodeId,
        shape: &Shape<'_>,
        view: &SystemView,
    ) -> Result<Self, NodeError> {
        let mut replicas = Self { setups: vec![system_setup(view)], views: vec![None] };
        let shard_of_slot = Map::first_slots(shape.slots, shape.shards);
        for number in 1..=shape.shards {
            let shard = ShardId(number);
            let mut slots = SlotSet::none(shape.slots);
            for (slot, _) in shard_of_slot.iter().enumerate().filter(|(_, s)| **s == number) {
                slots.insert(SlotId(slot as u16));
            }
            let table = make_table(config, node, shard)?;
            let reader = table.0.reader();
            let lease = Arc::new(LeaseCell::none());
            let generation = table.0.generation_cell();
            let machine = FlowMachine::new(FlowMachineConfig {
                table: table.0,
                slots,
                pools: shape.pools.to_vec(),
            })
            .with_rules(Arc::new(FunctionRules))
            .with_soft_state(shape.soft);
            replicas.setups.push(ShardSetup {
                id: shard,
                machine: Box::new(machine),
                check: FlowMachine::check,
                reads: Some(Arc::new(TableReads(reader.clone()))),
                region: config.shared_memory_reads.then_some(RegionAddress { path: table.1 }),
                lease: lease.clone(),
                generation: Some(Arc::new(move |term| generation.set(term))),
            });
            replicas.views.push(Some(ReplicaView { reader, lease }));
        }
        Ok(replicas)
    }
}

/// How the names of this node's region files begin, over all its lives.
fn prefix(config: &NodeConfig) -> String {
    format!("{}.{}.", config.cluster, config.name)
}

/// Removes the region files of this node's name. Before a life begins: what a killed one left
/// behind holds memory. After it has ended: readers that have a file mapped keep it, and nobody is
/// to map it again.
pub(super) fn remove_region_files(config: &NodeConfig) {
    let Ok(files) = std::fs::read_dir(&config.directory) else { return };
    let prefix = prefix(config);
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".region") {
            // Somebody else may have been faster; what stays is found the next time.
            let _ = std::fs::remove_file(file.path());
        }
    }
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

fn make_table(
    config: &NodeConfig,
    node: NodeId,
    shard: ShardId,
) -> Result<(Table, PathBuf), NodeError> {
    let cluster = config.cluster_id();
    let path = config.directory.join(format!("{}{}.{shard}.region", prefix(config), node.0));
    let bytes = Table::bytes_for(config.table_capacity)?;
    let region = if config.shared_memory_reads {
        Region::create_shared(&path, bytes)?
    } else {
        Region::anonymous(bytes)?
    };
    tracing::info!(%shard, bytes, backing = ?region.backing(), "made a table");
    // Each region hashes in its own way, so nobody can know which keys collide in it.
    let hash_key = super::formation::draw_nonce().map_err(NodeError::Random)?;
    let identity = RegionIdentity { cluster, shard };
    let table = Table::format(Arc::new(region), identity, config.table_capacity, hash_key)?;
    Ok((table, path))
}
