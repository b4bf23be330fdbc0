//! The stores of two nodes in this process, as `nearstate node` starts them.
//!
//! One forms the group of the flows' shard and owns it. The other has no part in that group: it
//! asks the owner for a read lease, as any node does, and reads the owner's table through a mapping
//! of its own. A pipe reaches either through the shipped [`ClusterAccess`]. One voter, so a commit
//! costs no network: what it costs with three stands in rows of its own (`new_flows`).

use nearstate_nf_node::cluster_access::{ClusterAccess, LocalShard};
use nearstate_nf_node::nf::entry_rules::FunctionRules;
use nearstate_store::driver::{AppHandler, RegionAddress, ShardSetup, Store, StoreConfig, runtime};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::link::PipeLink;
use nearstate_store::{
    Doorbell, LeaseCell, Machine as _, NodeId, PoolSpec, Region, RegionIdentity, ShardId, SlotMap,
    SlotSet, Table, TableReader, clock,
};
use std::error::Error;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const CLUSTER: u64 = 0xbe4c;
/// The flows' shard; all slots are its.
pub(crate) const SHARD: ShardId = ShardId(1);
/// Longer than an election and a grant take; only a fault of ours reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the flows need.
pub(crate) struct Shape {
    pub(crate) slots: u32,
    pub(crate) capacity: u32,
    pub(crate) pools: Vec<PoolSpec>,
    /// Where the owner's region goes; the other's gets a name beside it.
    pub(crate) region: PathBuf,
}

/// The two nodes' stores, with the runtime that they live on.
pub(crate) struct Cluster {
    runtime: Runtime,
    owner: Node,
    reader: Node,
}

/// A node's store.
pub(crate) struct Node {
    pub(crate) store: Arc<Store>,
    pub(crate) address: SocketAddr,
    table: TableReader,
    lease: Arc<LeaseCell>,
    slots: u32,
}

/// Nobody asks these nodes anything.
struct Silent;

impl AppHandler for Silent {
    fn handle(
        &self,
        _: Option<NodeId>,
        _: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        Box::pin(async { Vec::new() })
    }
}

impl Cluster {
    /// Starts both, and waits until the first owns the shard.
    pub(crate) fn start(shape: &Shape) -> Result<Self, Box<dyn Error>> {
        let runtime = runtime()?;
        let beside = Shape {
            // It never holds an entry.
            capacity: 64,
            pools: shape.pools.clone(),
            region: shape.region.with_extension("reader"),
            slots: shape.slots,
        };
        let (owner, reader) = runtime.block_on(async {
            let owner = Node::start(NodeId(1), shape).await?;
            let reader = Node::start(NodeId(2), &beside).await?;
            owner.store.set_peers(&[(NodeId(2), reader.address)]);
            reader.store.set_peers(&[(NodeId(1), owner.address)]);
            owner.store.initialize(SHARD, &[NodeId(1)]).await?;
            let mut status = owner.store.watch(SHARD).ok_or("the shard is there")?;
            let owns = status.wait_for(|status| status.owns(clock::boot_now()));
            tokio::time::timeout(PATIENCE, owns).await??;
            Ok::<_, Box<dyn Error>>((owner, reader))
        })?;
        Ok(Self { runtime, owner, reader })
    }

    /// The owner's access, by which flows are opened and read in place.
    pub(crate) fn owner_access(&self) -> Result<ClusterAccess, Box<dyn Error>> {
        let link = self.owner.link(&self.runtime, Arc::new(Doorbell::new()?));
        Ok(self.owner.access(link))
    }

    /// The other's access, once it has a read lease.
    pub(crate) fn reader_access(&self) -> Result<ClusterAccess, Box<dyn Error>> {
        let mut link = self.reader.link(&self.runtime, Arc::new(Doorbell::new()?));
        let until = Instant::now() + PATIENCE;
        while link.grant(SHARD).is_none_or(|grant| grant.valid_until() <= clock::boot_now()) {
            assert!(Instant::now() < until, "the owner grants no read lease");
            std::thread::yield_now();
        }
        Ok(self.reader.access(link))
    }

    pub(crate) fn stop(self) {
        self.runtime.block_on(async {
            self.reader.store.shutdown().await;
            self.owner.store.shutdown().await;
        });
    }
}

impl Node {
    /// Starts it; nobody knows it yet.
    pub(crate) async fn start(id: NodeId, shape: &Shape) -> Result<Self, Box<dyn Error>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let region = Region::create_shared(&shape.region, Table::bytes_for(shape.capacity)?)?;
        let identity = RegionIdentity { cluster: CLUSTER, shard: SHARD };
        let table = Table::format(Arc::new(region), identity, shape.capacity, 0x5eed)?;
        let (reader, generation) = (table.reader(), table.generation_cell());
        let (slots, pools) = (SlotSet::all(shape.slots), shape.pools.clone());
        let lease = Arc::new(LeaseCell::none());
        let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools })
            .with_rules(Arc::new(FunctionRules));
        let setup = ShardSetup {
            id: SHARD,
            machine: Box::new(machine),
            check: FlowMachine::check,
            reads: Some(Arc::new(reader.clone())),
            region: Some(RegionAddress { path: shape.region.clone() }),
            lease: lease.clone(),
            generation: Some(Arc::new(move |term| generation.set(term))),
        };
        let config = StoreConfig::new(CLUSTER, id, 1000 + id.0);
        let store = Store::start(config, listener, vec![setup], Arc::new(Silent)).await?;
        Ok(Self { store, address, table: reader, lease, slots: shape.slots })
    }

    /// A pipe's link to it, which rings this bell.
    pub(crate) fn link(&self, runtime: &Runtime, bell: Arc<Doorbell>) -> PipeLink {
        let _inside = runtime.enter();
        self.store.pipe_link(self.store.node().0 << 16, bell)
    }

    /// What a pipe of this node has of the flows' shard.
    pub(crate) fn access(&self, link: PipeLink) -> ClusterAccess {
        let slots = SlotMap::new((0..self.slots).map(|_| SHARD.0));
        let local = LocalShard { reader: self.table.clone(), lease: self.lease.clone() };
        ClusterAccess::new(CLUSTER, slots, vec![None, Some(local)], link, true)
    }
}
