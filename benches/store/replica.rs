//! One replica as a process of its own, and the words in which the benchmark talks to it.
//!
//! The child runs one store with one flow shard, on the runtime that a node runs on, and does what
//! lines on its standard input say, one after the other; each is answered by one line. It ends with
//! its standard input. It measures with its own clock, which all processes of a host share.

use crate::processes::book;
pub(crate) use crate::processes::{Replica, answer};
use crate::{commits, remote};
use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig, runtime};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::{
    LeaseCell, Machine, NodeId, Region, RegionIdentity, ShardId, SlotSet, Table, TableReader, clock,
};
use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// The first argument of a process that is to be a replica.
pub(crate) const ARGUMENT: &str = "--replica";
/// The shard of all replicas.
pub(crate) const SHARD: ShardId = ShardId(1);
/// Slots of the cluster; all of them are the shard's.
pub(crate) const SLOTS: u32 = 1024;

pub(crate) const CLUSTER: u64 = 0xbe;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error>;

/// Nobody asks.
pub(crate) struct NoApp;

impl AppHandler for NoApp {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        async { Vec::new() }.boxed()
    }
}

/// The child's side: a store, and who asks it.
pub(crate) struct Served {
    pub(crate) store: Arc<Store>,
    pub(crate) node: NodeId,
    pub(crate) reader: TableReader,
    /// Links made so far: each is a client of its own.
    pub(crate) links: u64,
}

impl Served {
    /// The number of the client that the next link is.
    pub(crate) fn next_client(&mut self) -> u64 {
        self.links += 1;
        self.node.0 << 16 | self.links
    }
}

/// What the process does that was started with [`ARGUMENT`], node id and capacity.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut number =
        || -> Result<u64, Failure> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
    let (node, capacity) = (NodeId(number()?), u32::try_from(number()?)?);
    let runtime = runtime()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (setup, reader) = shard(capacity, node)?;
    let config = StoreConfig::new(CLUSTER, node, node.0 * 7 + u64::from(std::process::id()));
    let store = runtime.block_on(Store::start(config, listener, vec![setup], Arc::new(NoApp)))?;
    let mut served = Served { store, node, reader, links: 0 };
    answer(&address.to_string())?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let said = serve(&mut served, &runtime, (word, rest)).unwrap_or_else(|e| format!("! {e}"));
        answer(&said)?;
    }
    runtime.shutdown_background();
    Ok(())
}

fn shard(capacity: u32, node: NodeId) -> Result<(ShardSetup, TableReader), Failure> {
    let region = Region::anonymous(Table::bytes_for(capacity)?)?;
    let identity = RegionIdentity { cluster: CLUSTER, shard: SHARD };
    let table = Table::format(Arc::new(region), identity, capacity, 0x5eed + node.0)?;
    let reader = table.reader();
    let slots = SlotSet::all(SLOTS);
    let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] });
    let setup = ShardSetup {
        id: SHARD,
        machine: Box::new(machine),
        check: FlowMachine::check,
        reads: Some(Arc::new(reader.clone())),
        region: None,
        lease: Arc::new(LeaseCell::none()),
        generation: None,
    };
    Ok((setup, reader))
}

fn serve(
    served: &mut Served,
    runtime: &tokio::runtime::Runtime,
    (word, rest): (&str, &str),
) -> Result<String, Failure> {
    let ids = || rest.split_whitespace().map(|id| Ok(NodeId(id.parse()?))).collect();
    match word {
        "peers" => {
            let book = book(rest)?;
            runtime.block_on(async { served.store.set_peers(&book) });
            Ok("ok".into())
        }
        "form" => {
            let voters: Result<Vec<NodeId>, Failure> = ids();
            runtime.block_on(served.store.initialize(SHARD, &voters?))?;
            Ok("ok".into())
        }
        "owner" => runtime.block_on(owner(served)),
        "replace" => {
            let ids: Result<Vec<NodeId>, Failure> = ids();
            let ids = ids?;
            let [old, new] = ids[..] else { return Err("replace OLD NEW".into()) };
            runtime.block_on(replace(served, old, new))
        }
        "caught-up" => {
            let count: u64 = rest.parse()?;
            while served.reader.entries() < count {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(clock::boot_now().0.to_string())
        }
        // The number of the client that comes next.
        "client" => Ok((served.node.0 << 16 | (served.links + 1)).to_string()),
        "read" => remote::read(served, runtime, rest),
        "create" => commits::create(served, runtime, rest),
        "latency" => commits::latency(served, runtime, rest),
        "first" => commits::first(served, runtime),
        "cpu" => Ok(cpu_us()?.to_string()),
        _ => Err(format!("{word} means nothing").into()),
    }
}

/// Waits until somebody owns the shard, and says who; if it is this node, its lease has begun.
async fn owner(served: &Served) -> Result<String, Failure> {
    let mut watch = served.store.watch(SHARD).ok_or("no such shard")?;
    let settled = watch.wait_for(|status| match status.leader {
        Some(leader) if leader == served.node => status.owns(clock::boot_now()),
        Some(_) => true,
        None => false,
    });
    let status = tokio::time::timeout(PATIENCE, settled).await??;
    Ok(status.leader.map_or(0, |leader| leader.0).to_string())
}

/// Lets a new node take the place of one that is gone; answers when the new one has a vote.
async fn replace(served: &Served, old: NodeId, new: NodeId) -> Result<String, Failure> {
    served.store.add_learner(SHARD, new).await?;
    let mut watch = served.store.watch(SHARD).ok_or("no such shard")?;
    let caught_up = watch.wait_for(|status| {
        let at = |id| status.matched.iter().find(|(node, _)| *node == id).and_then(|(_, at)| *at);
        at(new).is_some_and(|at| Some(at) >= status.applied)
    });
    let voters = tokio::time::timeout(PATIENCE, caught_up).await??.voters.clone();
    let voters = voters.into_iter().filter(|node| *node != old).chain([new]).collect();
    served.store.change_voters(SHARD, voters).await?;
    Ok("ok".into())
}

/// Processor time of this process so far.
fn cpu_us() -> Result<u64, Failure> {
    // Nanoseconds on a processor are the first word; one file a thread.
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(total / 1000)
}

/// Replicas that know each other.
pub(crate) struct Cluster {
    pub(crate) replicas: Vec<Replica>,
    capacity: u32,
    next_id: u64,
}

impl Cluster {
    /// Three replicas of one shard, one of which owns it.
    pub(crate) fn form(capacity: u32) -> Result<Self, Failure> {
        let mut cluster = Self { replicas: vec![], capacity, next_id: 1 };
        for _ in 0..3 {
            cluster.join()?;
        }
        cluster.introduce()?;
        let voters: Vec<String> = cluster.replicas.iter().map(|r| r.id.to_string()).collect();
        cluster.replicas[0].ask(&format!("form {}", voters.join(" ")))?;
        cluster.owner()?;
        Ok(cluster)
    }

    /// Starts a replica under a new id; nobody knows it yet.
    pub(crate) fn join(&mut self) -> Result<u64, Failure> {
        let id = self.next_id;
        self.replicas.push(Replica::start_as(ARGUMENT, id, self.capacity)?);
        self.next_id += 1;
        Ok(id)
    }

    /// Tells all replicas where the others are.
    pub(crate) fn introduce(&mut self) -> Result<(), Failure> {
        let peers: Vec<String> = self.replicas.iter().map(Replica::peer).collect();
        let line = format!("peers {}", peers.join(" "));
        self.replicas.iter_mut().try_for_each(|replica| replica.ask(&line).map(drop))
    }

    /// Waits until all agree who the owner is, and gives its place.
    pub(crate) fn owner(&mut self) -> Result<usize, Failure> {
        loop {
            let said: Vec<String> =
                self.replicas.iter_mut().map(|r| r.ask("owner")).collect::<Result<_, _>>()?;
            if said.iter().all(|id| *id == said[0]) {
                let id: u64 = said[0].parse()?;
                if let Some(at) = self.replicas.iter().position(|replica| replica.id == id) {
                    return Ok(at);
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
