//! A slot that moves between real shards of three stores while it is written to, and a driver that
//! dies at every step of the way: whoever drives it next brings it to its end, nothing is lost and
//! nothing is there twice.
//!
//! A driver is a future, and dies by being dropped: right after it has sent something, so that this
//! may or may not arrive, or when it is woken by the answer, which nobody reads then.

#![expect(clippy::disallowed_methods, reason = "tests own sockets")]

use core::cell::Cell;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use futures::future::BoxFuture;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Timing;
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig};
use nearstate_store::slot_mover::{MoveError, SlotOrder};
use nearstate_store::transaction::Batch;
use nearstate_store::{
    Endpoint, Fill, FlowMachine, FlowMachineConfig, Key, LeaseCell, Machine, NodeId, Outcome,
    Region, RegionIdentity, Reply, ShardId, SlotId, SlotSet, Table, TableReader, TenantId,
    Transaction, TransactionId, Value, Write, encode_batch,
};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

const SHARDS: [ShardId; 2] = [ShardId(1), ShardId(2)];
const SLOTS: u32 = 4;
/// The slot that moves.
const SLOT: SlotId = SlotId(1);
const CAPACITY: u32 = 2_000;
/// Entries that nobody writes to after the beginning: more than one piece of a copy takes.
const STILL: u16 = 700;
/// Entries that are written to all the time.
const BUSY: u16 = 50;
/// More steps than there are in any move.
const STEPS_MAX: usize = 500;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(90);

struct Nobody;

impl AppHandler for Nobody {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        Box::pin(core::future::ready(Vec::new()))
    }
}

struct Node {
    store: Arc<Store>,
    readers: Vec<TableReader>,
    address: SocketAddr,
}

impl Node {
    async fn start(id: u64) -> Self {
        let timing = Timing {
            heartbeat_ms: 50,
            election_min_ms: 300,
            election_max_ms: 450,
            lease_ms: 450,
            lease_margin_ms: 50,
        };
        let config = StoreConfig { timing, ..StoreConfig::new(1, NodeId(id), id * 1000 + 1) };
        let (mut setups, mut readers) = (vec![], vec![]);
        for shard in SHARDS {
            let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
            let identity = RegionIdentity { cluster: 1, shard };
            let table = Table::format(Arc::new(region), identity, CAPACITY, id).unwrap();
            let reader = table.reader();
            let is_source = shard == SHARDS[0];
            let slots = if is_source { SlotSet::all(SLOTS) } else { SlotSet::none(SLOTS) };
            let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] });
            readers.push(reader.clone());
            setups.push(ShardSetup {
                id: shard,
                machine: Box::new(machine),
                check: FlowMachine::check,
                reads: Some(Arc::new(reader)),
                region: None,
                lease: Arc::new(LeaseCell::none()),
                generation: None,
            });
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let store = Store::start(config, listener, setups, Arc::new(Nobody)).await.unwrap();
        Self { store, readers, address }
    }

    fn owns(&self, shard: ShardId) -> bool {
        self.store.status(shard).is_some_and(|status| status.owns(boot_now()))
    }
}

async fn form() -> Vec<Node> {
    let mut nodes = vec![];
    for id in 1..=3 {
        nodes.push(Node::start(id).await);
    }
    let book: Vec<_> = nodes.iter().map(|node| (node.store.node(), node.address)).collect();
    nodes.iter().for_each(|node| node.store.set_peers(&book));
    let voters: Vec<NodeId> = book.iter().map(|(id, _)| *id).collect();
    for (shard, node) in SHARDS.into_iter().zip(&nodes) {
        node.store.initialize(shard, &voters).await.unwrap();
    }
    nodes
}

async fn owner(nodes: &[Node], shard: ShardId) -> &Node {
    let search = async {
        loop {
            if let Some(node) = nodes.iter().find(|node| node.owns(shard)) {
                return node;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, search).await.expect("nobody owns the shard")
}

fn key(number: u16) -> Key {
    Key::new(1, 17, TenantId(0), (Endpoint::v4([10, 0, 0, 1], number), Endpoint::default()))
}

fn value(number: u64) -> Value {
    let mut value = Value::ZERO;
    value.0[0] = number;
    value
}

/// A client, and all that it was told is so.
struct Client {
    store: Arc<Store>,
    /// Where the slot was when it last heard of it.
    at: ShardId,
    serial: u64,
    told: BTreeMap<u16, u64>,
}

impl Client {
    /// Puts the next value into an entry, wherever its slot is, once.
    async fn put(&mut self, number: u16) {
        self.serial += 1;
        let (key, value, fill) = (key(number), value(self.serial), Fill::default());
        let transaction = Transaction {
            id: TransactionId { client: 1 << 16, serial: self.serial },
            slot: SLOT,
            conditions: Default::default(),
            writes: [Write::Put { key, value, fill, ttl_s: 0 }].into_iter().collect(),
        };
        let batch = Batch { time_ms: 0, transactions: vec![transaction], seen: vec![] };
        let payload = encode_batch(&batch);
        loop {
            let Ok(reply) = self.store.propose(self.at, payload.clone()).await else { continue };
            let Reply::Outcomes(outcomes) = reply else { panic!("{reply:?}") };
            match outcomes[0] {
                Outcome::Committed(_) => break,
                Outcome::Elsewhere(shard) => self.at = shard,
                // Not adopted yet, or gone from there.
                Outcome::Refused(_) => tokio::task::yield_now().await,
                failed @ Outcome::ConditionFailed(_) => panic!("{failed:?}"),
            }
        }
        self.told.insert(number, self.serial);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Copying,
    Switching,
    Dropping,
    Over,
}

/// Brings a move to its end. `phase` is what the map would say of it, and outlives the driver.
async fn drive(store: &Store, order: SlotOrder, phase: &Cell<Phase>) {
    let mut copied = None;
    while phase.get() != Phase::Over {
        let done = match phase.get() {
            Phase::Copying => store.copy_slot(&order).await.map(|done| copied = Some(done)),
            Phase::Switching => store.switch_slot(&order, copied.take()).await,
            _ => store.drop_slot(&order).await,
        };
        match done {
            Ok(()) => phase.set(match phase.get() {
                Phase::Copying => Phase::Switching,
                Phase::Switching => Phase::Dropping,
                _ => Phase::Over,
            }),
            Err(MoveError::Again(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{order:?} in {phase:?}: {error}"),
        }
    }
}

/// How a driver dies after so many turns.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// Right after the last turn.
    AtOnce,
    /// When something has come that would have given it another turn.
    WhenWoken,
}

/// Lets a driver have so many turns and no more; whether it came to its end.
async fn lives(driver: impl Future<Output = ()>, turns: usize, death: Death) -> bool {
    let mut driver = pin!(driver);
    let mut had = 0;
    poll_fn(|context| {
        if had == turns {
            return Poll::Ready(false);
        }
        had += 1;
        match driver.as_mut().poll(context) {
            Poll::Pending if had == turns && matches!(death, Death::AtOnce) => Poll::Ready(false),
            turn => turn.map(|()| true),
        }
    })
    .await
}

/// The shard has the slot with all that the client was told, and the other has nothing of it.
async fn check(nodes: &[Node], client: &Client, to: usize) {
    let at = owner(nodes, SHARDS[to]).await;
    let (holder, other) = (&at.readers[to], &owner(nodes, SHARDS[1 - to]).await.readers[1 - to]);
    assert!(holder.holds(SLOT) && !other.holds(SLOT));
    assert_eq!((holder.entries(), other.entries()), (client.told.len() as u64, 0));
    for (number, told) in &client.told {
        let found = holder.get(&key(*number)).expect("it is lost");
        assert_eq!(found.value, value(*told), "entry {number}");
    }
}

/// Writes until it is told to stop.
async fn keep_writing(client: Arc<Mutex<Client>>, is_over: Arc<std::sync::atomic::AtomicBool>) {
    let mut number = 0;
    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
        client.lock().await.put(STILL + number % BUSY).await;
        number += 1;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_arrives_whole_whatever_step_its_driver_dies_at() {
    let nodes = form().await;
    let at = owner(&nodes, SHARDS[0]).await.store.clone();
    let mut client = Client { store: at, at: SHARDS[0], serial: 0, told: BTreeMap::new() };
    for number in 0..STILL {
        client.put(number).await;
    }
    let client = Arc::new(Mutex::new(client));
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn(keep_writing(client.clone(), is_over.clone()));

    let (mut number, mut to, mut deaths) = (0, 1, BTreeMap::new());
    for death in [Death::AtOnce, Death::WhenWoken] {
        for turns in 1..STEPS_MAX {
            number += 1;
            let order = SlotOrder { number, slot: SLOT, from: SHARDS[1 - to], to: SHARDS[to] };
            let phase = Cell::new(Phase::Copying);
            let first = owner(&nodes, order.from).await;
            let driver = lives(drive(&first.store, order, &phase), turns, death);
            let lived = timeout(PATIENCE, driver).await.expect("the first driver hangs");
            *deaths.entry(format!("{:?}", phase.get())).or_insert(0) += u32::from(!lived);
            // Another node takes over.
            let next = nodes.iter().find(|node| node.store.node() != first.store.node()).unwrap();
            let driver = drive(&next.store, order, &phase);
            timeout(PATIENCE, driver).await.expect("the second driver hangs");
            check(&nodes, &*client.lock().await, to).await;
            to = 1 - to;
            if lived {
                break;
            }
        }
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.await.unwrap();
    println!("{number} moves, {} writes, deaths by phase: {deaths:?}", client.lock().await.serial);
    for phase in [Phase::Copying, Phase::Switching, Phase::Dropping] {
        assert!(deaths[&format!("{phase:?}")] > 0, "nobody died while {phase:?}: {deaths:?}");
    }
    for node in &nodes {
        node.store.shutdown().await;
    }
}
