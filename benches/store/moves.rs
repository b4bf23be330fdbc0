//! How long writes of a slot are held up while it moves to another shard.
//!
//! Three processes hold a system shard and two flow shards, and drive moves as nodes do: orders,
//! phases and the new map go through the system shard's log. In the process that owns the source a
//! client writes to the slot without a pause, one transaction at a time, as a pipe would. Counted
//! is, for each move, the longest that one write took between the order and its end: what the seal
//! holds up, and the write itself.

use crate::replica::{CLUSTER, NoApp, Replica, answer};
use crate::report::Report;
use hdrhistogram::Histogram;
use nearstate_placement::mover::drive;
use nearstate_placement::service::ControlError;
use nearstate_placement::system::{SystemCommand, SystemMachine, SystemReply};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::clock::boot_now;
use nearstate_store::driver::{ShardSetup, Store, StoreConfig, runtime};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::link::{LinkCompletion, PipeLink};
use nearstate_store::{
    Doorbell, Endpoint, Fill, Key, LeaseCell, Machine, NodeId, Outcome, Region, RegionIdentity,
    Reply, ShardId, SlotId, SlotMap, SlotSet, Table, TenantId, Transaction, TransactionId, Value,
    Write,
};
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The first argument of a process that is to be one of the three.
pub(crate) const ARGUMENT: &str = "--moving-replica";

const P50: &str = "slot_move_hold_p50_ms";
const P99: &str = "slot_move_hold_p99_ms";
const WHOLE: &str = "slot_move_whole_p50_ms";

const SLOTS: u32 = 1024;
const SHARDS: u16 = 2;
/// Entries of the source shard.
const ENTRIES: u64 = 100_000;
const CAPACITY: u32 = 200_000;
const SOURCE: ShardId = ShardId(1);
const TARGET: ShardId = ShardId(2);
/// Under way while the shard is filled.
const FILL_DEPTH: u64 = 512;
const DEADLINE_MS: u64 = 30_000;
/// Rounds that look for completions before the client waits, as a pipe does.
const IDLE_ROUNDS: u32 = 64;

type Failure = Box<dyn Error>;

/// One of the three processes.
struct Served {
    store: Arc<Store>,
    slots: SlotMap,
    map: watch::Receiver<Arc<Map>>,
    client: u64,
}

fn flow_shard(shard: ShardId, node: u64) -> Result<ShardSetup, Failure> {
    let region = Region::anonymous(Table::bytes_for(CAPACITY)?)?;
    let identity = RegionIdentity { cluster: CLUSTER, shard };
    let table = Table::format(Arc::new(region), identity, CAPACITY, node + u64::from(shard.0))?;
    let reads = Arc::new(table.reader());
    let generation = table.generation_cell();
    let mut slots = SlotSet::none(SLOTS);
    let of_shard = (0..).zip(Map::first_slots(SLOTS, SHARDS)).filter(|(_, of)| *of == shard.0);
    of_shard.for_each(|(slot, _)| slots.insert(SlotId(slot)));
    let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] });
    Ok(ShardSetup {
        id: shard,
        machine: Box::new(machine),
        check: FlowMachine::check,
        reads: Some(reads),
        region: None,
        lease: Arc::new(LeaseCell::none()),
        generation: Some(Arc::new(move |term| generation.set(term))),
    })
}

fn system_shard(slots: &SlotMap) -> (ShardSetup, watch::Receiver<Arc<Map>>) {
    let (publish, map) = watch::channel(Arc::new(Map::unformed()));
    let slots = slots.clone();
    let machine = SystemMachine::new(Arc::new(move |map| {
        slots.load(&map.slot_to_shard);
        publish.send_replace(map);
    }));
    let setup = ShardSetup {
        id: ShardId::SYSTEM,
        machine: Box::new(machine),
        check: SystemMachine::check,
        reads: None,
        region: None,
        lease: Arc::new(LeaseCell::none()),
        generation: None,
    };
    (setup, map)
}

/// What the process does that was started with [`ARGUMENT`] and its node id.
pub(crate) fn serve(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let node: u64 = arguments.next().ok_or("a node id is missing")?.parse()?;
    let runtime = runtime()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let slots = SlotMap::new(Map::first_slots(SLOTS, SHARDS));
    let (system, map) = system_shard(&slots);
    let setups = vec![system, flow_shard(SOURCE, node)?, flow_shard(TARGET, node)?];
    let config = StoreConfig::new(CLUSTER, NodeId(node), node * 7 + u64::from(std::process::id()));
    let store = runtime.block_on(Store::start(config, listener, setups, Arc::new(NoApp)))?;
    store.follow_slots(slots.clone());
    runtime.spawn(run_driver(store.clone(), map.clone()));
    let served = Served { store, slots, map, client: node << 16 };
    answer(&address.to_string())?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let said = served.answer(&runtime, word, rest).unwrap_or_else(|e| format!("! {e}"));
        answer(&said)?;
    }
    runtime.shutdown_background();
    Ok(())
}

/// Drives moves as a node does.
async fn run_driver(store: Arc<Store>, mut map: watch::Receiver<Arc<Map>>) {
    loop {
        let first = map.borrow_and_update().moves.first().copied();
        let owns = |shard| store.status(shard).is_some_and(|status| status.owns(boot_now()));
        if let Some(order) = first.filter(|order| owns(order.from)) {
            let ask = |command: SystemCommand| {
                let store = store.clone();
                let asked: nearstate_placement::service::BoxFuture<'_, _> =
                    Box::pin(async move { ask_system(&store, &command).await });
                asked
            };
            drive(order, &*store, &ask).await;
        }
        let _ = tokio::time::timeout(Duration::from_millis(50), map.changed()).await;
    }
}

async fn ask_system(store: &Store, command: &SystemCommand) -> Result<Reply, ControlError> {
    let proposed = store.propose(ShardId::SYSTEM, command.encode()).await;
    proposed.map_err(|error| ControlError(error.to_string()))
}

impl Served {
    fn answer(
        &self,
        runtime: &tokio::runtime::Runtime,
        word: &str,
        rest: &str,
    ) -> Result<String, Failure> {
        match word {
            "peers" => {
                let peer = |peer: &str| -> Result<(NodeId, SocketAddr), Failure> {
                    let (id, address) = peer.split_once('=').ok_or("ID=ADDRESS is wanted")?;
                    Ok((NodeId(id.parse()?), address.parse()?))
                };
                let book = rest.split_whitespace().map(peer).collect::<Result<Vec<_>, _>>()?;
                runtime.block_on(async { self.store.set_peers(&book) });
                Ok("ok".into())
            }
            "form" => runtime.block_on(self.form(rest)),
            "owns" => Ok(self.owns(SOURCE).to_string()),
            "fill" => self.fill(runtime),
            "moves" => self.measure(runtime, rest.parse()?),
            _ => Err(format!("{word} means nothing").into()),
        }
    }

    fn owns(&self, shard: ShardId) -> bool {
        self.store.status(shard).is_some_and(|status| status.owns(boot_now()))
    }

    async fn form(&self, rest: &str) -> Result<String, Failure> {
        let voters = rest.split_whitespace().map(|id| Ok::<_, Failure>(NodeId(id.parse()?)));
        let voters = voters.collect::<Result<Vec<_>, _>>()?;
        for shard in [ShardId::SYSTEM, SOURCE, TARGET] {
            self.store.initialize(shard, &voters).await?;
        }
        let member = |id: &NodeId| Member {
            id: *id,
            name: format!("n{}", id.0),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            ports: vec![],
            state: MemberState::Alive,
        };
        let members = voters.iter().map(member).collect();
        let form =
            SystemCommand::Form { members, slots: SLOTS, shards: SHARDS, replicas: 3, lineage: 7 };
        loop {
            if ask_system(&self.store, &form).await.is_ok() {
                return Ok("ok".into());
            }
        }
    }

    fn link(&self, runtime: &tokio::runtime::Runtime, number: u64) -> Result<Client, Failure> {
        let bell = Arc::new(Doorbell::new()?);
        let _inside = runtime.enter();
        let client = self.client | number;
        let link = self.store.pipe_link(client, bell.clone());
        Ok(Client { link, bell, client, serial: 0, slots: self.slots.clone() })
    }

    /// Makes the source's entries, as many for each slot.
    fn fill(&self, runtime: &tokio::runtime::Runtime) -> Result<String, Failure> {
        let mut client = self.link(runtime, 1)?;
        let (mut submitted, mut done) = (0, 0);
        while done < ENTRIES {
            while submitted < ENTRIES && submitted - done < FILL_DEPTH {
                client.put(submitted)?;
                submitted += 1;
            }
            done += client.wait()?;
        }
        Ok("ok".into())
    }

    /// Moves so many slots, one after the other; says percentiles in nanoseconds.
    fn measure(&self, runtime: &tokio::runtime::Runtime, count: u16) -> Result<String, Failure> {
        let mut client = self.link(runtime, 2)?;
        let (mut held, mut whole) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
        for number in 0..u64::from(count) {
            let (began, slot) = (Instant::now(), source_slot(number));
            runtime.block_on(self.order(slot))?;
            let mut longest = 0;
            // A few writes more once the map says so: the last one may still be held up.
            let mut after = 0;
            while after < 3 {
                let moved = {
                    let map = self.map.borrow();
                    map.shard_of(slot) == Some(TARGET)
                };
                after += u32::from(moved);
                let write = Instant::now();
                client.put(number)?;
                client.wait()?;
                longest = longest.max(write.elapsed().as_nanos() as u64);
            }
            held.record(longest)?;
            let mut map = self.map.clone();
            runtime.block_on(map.wait_for(|map| map.moves.is_empty()))?;
            whole.record(began.elapsed().as_nanos() as u64)?;
        }
        let (p50, p99) = (held.value_at_quantile(0.5), held.value_at_quantile(0.99));
        Ok(format!("{p50} {p99} {}", whole.value_at_quantile(0.5)))
    }

    async fn order(&self, slot: SlotId) -> Result<(), Failure> {
        let command = SystemCommand::MoveSlots { slots: vec![slot.0], to: TARGET };
        match ask_system(&self.store, &command).await? {
            Reply::System(bytes) => match SystemReply::decode(&bytes)? {
                SystemReply::Done(_) => Ok(()),
                other => Err(format!("no order: {other:?}").into()),
            },
            other => Err(format!("no answer: {other:?}").into()),
        }
    }
}

/// The slot of an entry: one of those that were the source's at first.
fn source_slot(number: u64) -> SlotId {
    let shards = u64::from(SHARDS);
    SlotId((number % (u64::from(SLOTS) / shards) * shards) as u16)
}

/// Writes over a link, as a pipe does.
struct Client {
    link: PipeLink,
    bell: Arc<Doorbell>,
    client: u64,
    serial: u64,
    slots: SlotMap,
}

impl Client {
    /// Sets entry `number`; the entries lie in the source's slots in turn.
    fn put(&mut self, number: u64) -> Result<(), Failure> {
        self.serial += 1;
        let [.., b3, b2, b1, b0] = number.to_be_bytes();
        let end = Endpoint::v4([10, b2, b1, b0], u16::from(b3));
        let key = Key::new(3, 17, TenantId(0), (end, Endpoint::default()));
        let (value, fill) = (Value([self.serial; 8]), Fill::default());
        let transaction = Transaction {
            id: TransactionId { client: self.client, serial: self.serial },
            slot: source_slot(number),
            conditions: Default::default(),
            writes: [Write::Put { key, value, fill, ttl_s: 0 }].into_iter().collect(),
        };
        let shard = self.slots.shard_of(transaction.slot);
        let deadline = boot_now().plus_ms(DEADLINE_MS);
        Ok(self.link.submit(self.serial, shard, &transaction, deadline)?)
    }

    /// Waits for completions; gives how many have come.
    fn wait(&mut self) -> Result<u64, Failure> {
        let mut idle = 0;
        loop {
            let seen = self.bell.count();
            let mut taken = 0;
            while let Some(completion) = self.link.poll() {
                match completion {
                    LinkCompletion::Transaction {
                        outcome: Some(Outcome::Committed(_)), ..
                    } => {}
                    other => return Err(format!("no commit: {other:?}").into()),
                }
                taken += 1;
            }
            if taken > 0 {
                return Ok(taken);
            }
            idle += 1;
            if idle < IDLE_ROUNDS {
                core::hint::spin_loop();
            } else {
                self.bell.wait(seen, Duration::from_secs(1));
            }
        }
    }
}

/// Three processes that know each other.
fn form() -> Result<Vec<Replica>, Failure> {
    let start = |id| Replica::start_as(ARGUMENT, id, CAPACITY);
    let mut replicas = (1..=3).map(start).collect::<Result<Vec<_>, _>>()?;
    let peers: Vec<String> = replicas.iter().map(Replica::peer).collect();
    let peers = format!("peers {}", peers.join(" "));
    for replica in &mut replicas {
        replica.ask(&peers)?;
    }
    replicas[0].ask("form 1 2 3")?;
    Ok(replicas)
}

/// Waits until one owns the source.
fn owner(replicas: &mut [Replica]) -> Result<usize, Failure> {
    loop {
        for (at, replica) in replicas.iter_mut().enumerate() {
            if replica.ask("owns")? == "true" {
                return Ok(at);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    if !report.wants_any(&[P50, P99, WHOLE]) {
        return Ok(());
    }
    // The source has 512 slots.
    let moves = if report.quick() { 200 } else { 500 };
    let mut replicas = form()?;
    let owner = owner(&mut replicas)?;
    replicas[owner].ask("fill")?;
    let said = replicas[owner].ask(&format!("moves {moves}"))?;
    let numbers = said.split(' ').map(str::parse::<f64>).collect::<Result<Vec<_>, _>>()?;
    let [p50, p99, whole] = numbers[..] else { return Err("three numbers are wanted".into()) };
    report.row(P50, p50 / 1e6, "ms");
    report.row(P99, p99 / 1e6, "ms");
    report.row(WHOLE, whole / 1e6, "ms");
    Ok(())
}
