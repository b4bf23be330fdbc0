//! Expiry in real stores: once for each entry, on all replicas alike, never before its time, though
//! the owner dies in the middle; and what packets of other nodes see, reaches all replicas.
//!
//! Times are those that the log carries; nothing here measures how long anything takes.

#![expect(clippy::disallowed_methods, reason = "tests own sockets")]

use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_store::clock::boot_now;
use nearstate_store::disk::{DiskConfig, Durability};
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::lease::LeaseCell;
use nearstate_store::link::LinkCompletion;
use nearstate_store::machine::{Machine, Reply, SnapshotError};
use nearstate_store::transaction::{Condition, SeenNote};
use nearstate_store::upkeep::{Upkeep, UpkeepClock};
use nearstate_store::{
    Doorbell, Endpoint, Fill, Key, LogIndex, NodeId, Outcome, Region, RegionIdentity, ShardId,
    SlotId, SlotSet, SoftTerms, Table, Tally, TenantId, Transaction, TransactionId, Value, Write,
    decode_batch,
};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SHARD: ShardId = ShardId(1);
const CAPACITY: u32 = 1000;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(90);
const SOFT: SoftTerms = SoftTerms { within_ms: 200 };

/// What the log said, as one replica applied it.
#[derive(Debug, Default)]
struct Seen {
    /// The shard's time of each put.
    put: BTreeMap<Key, u64>,
    /// Expiries that took effect, with the shard's time.
    expired: Vec<(Key, u64)>,
    told: Vec<SeenNote>,
    /// Entries after the last batch.
    entries: u64,
}

/// A flow machine that is watched.
struct Watched(FlowMachine, Arc<Mutex<Seen>>);

impl Machine for Watched {
    fn check(payload: &[u8]) -> Result<(), nearstate_store::machine::PayloadError> {
        FlowMachine::check(payload)
    }

    fn apply(&mut self, index: LogIndex, payload: &[u8]) -> Reply {
        let reply = self.0.apply(index, payload);
        let batch = decode_batch(payload).expect("was checked");
        let Reply::Outcomes(outcomes) = &reply else { panic!("{reply:?}") };
        let mut seen = self.1.lock().unwrap();
        let (time_ms, decided) = (self.0.time_ms(), batch.transactions.iter().zip(outcomes));
        for (transaction, _) in decided.filter(|(_, o)| matches!(o, Outcome::Committed(_))) {
            match transaction.conditions.first() {
                Some(Condition::Expired(key, _)) => seen.expired.push((*key, time_ms)),
                _ => seen.put.extend(transaction.writes.iter().filter_map(|write| match write {
                    Write::Put { key, .. } => Some((*key, time_ms)),
                    _ => None,
                })),
            }
        }
        seen.told.extend(batch.seen);
        seen.entries = self.0.reader().entries();
        reply
    }

    fn upkeep(&mut self, clock: &UpkeepClock, work: &mut Upkeep) {
        self.0.upkeep(clock, work);
    }

    fn time_ms(&self) -> u64 {
        self.0.time_ms()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.snapshot()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.0.install(snapshot)
    }

    fn state_hash(&self) -> u64 {
        self.0.state_hash()
    }
}

struct Nobody;

impl AppHandler for Nobody {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        async { Vec::new() }.boxed()
    }
}

struct Node {
    store: Arc<Store>,
    seen: Arc<Mutex<Seen>>,
    address: SocketAddr,
}

impl Node {
    async fn start(id: u64) -> Self {
        Self::start_with(StoreConfig::new(1, NodeId(id), id * 1000 + 1)).await
    }

    async fn start_with(config: StoreConfig) -> Self {
        let id = config.node.0;
        let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
        let identity = RegionIdentity { cluster: 1, shard: SHARD };
        let table = Table::format(Arc::new(region), identity, CAPACITY, id).unwrap();
        let reader = table.reader();
        let machine =
            FlowMachine::new(FlowMachineConfig { table, slots: SlotSet::all(4), pools: vec![] })
                .with_soft_state(SOFT);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let setup = ShardSetup {
            id: SHARD,
            machine: Box::new(Watched(machine, seen.clone())),
            check: Watched::check,
            reads: Some(Arc::new(reader)),
            region: None,
            lease: Arc::new(LeaseCell::none()),
            generation: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let store = Store::start(config, listener, vec![setup], Arc::new(Nobody)).await.unwrap();
        Self { store, seen, address }
    }

    fn owns(&self) -> bool {
        self.store.status(SHARD).is_some_and(|status| status.owns(boot_now()))
    }

    /// Commits a put through a link, whoever owns the shard.
    async fn put(&self, key: Key, ttl_s: u32) {
        let bell = Arc::new(Doorbell::new().unwrap());
        let client = u64::from(key.ends().0.port) << 16 | self.store.node().0;
        let mut link = self.store.pipe_link(client, bell);
        let put = Write::Put { key, value: Value::ZERO, fill: Fill::default(), ttl_s };
        let transaction = Transaction {
            id: TransactionId { client, serial: 1 },
            slot: SlotId(1),
            conditions: Default::default(),
            writes: [put].into_iter().collect(),
        };
        link.submit(1, SHARD, &transaction, boot_now().plus_ms(60_000)).unwrap();
        let answered = until(|| link.poll()).await;
        let outcome = matches!(
            answered,
            LinkCompletion::Transaction { outcome: Some(Outcome::Committed(_)), .. }
        );
        assert!(outcome, "{answered:?}");
    }
}

async fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            match found() {
                Some(found) => return found,
                None => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("it never came")
}

fn key(number: u16) -> Key {
    Key::new(1, 17, TenantId(0), (Endpoint::v4([10, 0, 0, 1], number), Endpoint::default()))
}

async fn form() -> Vec<Node> {
    let mut nodes = vec![];
    for id in 1..=3 {
        nodes.push(Node::start(id).await);
    }
    let book: Vec<_> = nodes.iter().map(|node| (node.store.node(), node.address)).collect();
    nodes.iter().for_each(|node| node.store.set_peers(&book));
    let voters: Vec<NodeId> = book.iter().map(|(id, _)| *id).collect();
    nodes[0].store.initialize(SHARD, &voters).await.unwrap();
    nodes
}

async fn owner(nodes: &[Node]) -> usize {
    until(|| nodes.iter().position(Node::owns)).await
}

const ENTRIES: u16 = 40;

const fn ttl_s(number: u16) -> u32 {
    number as u32 % 4 + 1
}

/// Each entry has expired once, in its time, and all replicas say so.
fn check_expiries(nodes: &[Node], dead: &Node) {
    let [one, two] = [&nodes[0], &nodes[1]].map(|node| node.seen.lock().unwrap());
    assert_eq!((one.entries, two.entries), (0, 0));
    assert_eq!(one.expired, two.expired, "replicas disagree");
    let mut keys: Vec<Key> = one.expired.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    let mut expected: Vec<Key> = (0..ENTRIES).map(key).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected, "each once");
    for (expired, at_ms) in &one.expired {
        let least = one.put[expired] + u64::from(ttl_s(expired.ends().0.port)) * 1000;
        assert!(*at_ms >= least, "{expired:?} expired {} ms early", least - at_ms);
    }
    let known = dead.seen.lock().unwrap();
    assert_eq!(known.expired[..], one.expired[..known.expired.len()], "what was said stays said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_entry_expires_once_and_not_early_though_its_owner_dies() {
    let mut nodes = form().await;
    owner(&nodes).await;
    for number in 0..ENTRIES {
        nodes[usize::from(number) % 3].put(key(number), ttl_s(number)).await;
    }
    // Some have expired, and the rest is still to come.
    let first = owner(&nodes).await;
    until(|| (nodes[first].seen.lock().unwrap().expired.len() >= 5).then_some(())).await;
    let dead = nodes.remove(first);
    dead.store.shutdown().await;
    for node in &nodes {
        let all = || node.seen.lock().unwrap().expired.len() >= usize::from(ENTRIES);
        until(|| all().then_some(())).await;
    }
    check_expiries(&nodes, &dead);
    for node in nodes {
        node.store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_packets_of_another_node_see_reaches_all_replicas_and_is_counted() {
    let nodes = form().await;
    let at = owner(&nodes).await;
    let other = &nodes[(at + 1) % 3];
    other.put(key(7), 16).await;
    let mut link = other.store.pipe_link(99, Arc::new(Doorbell::new().unwrap()));
    let told = |node: &Node| node.seen.lock().unwrap().told.iter().any(|n| n.key == key(7));
    until(|| {
        link.note_seen(SHARD, &key(7), (boot_now(), Tally::ZERO));
        nodes.iter().all(told).then_some(())
    })
    .await;
    assert_eq!(link.notes_lost(), 0);
    let counts: u64 = nodes
        .iter()
        .filter_map(|node| node.store.upkeep_counts(SHARD))
        .map(|counts| counts.told)
        .sum();
    assert!(counts >= 1, "{counts}");
    for node in nodes {
        node.store.shutdown().await;
    }
}

/// A node on disk comes back under its old name, and the log remembers what its owner's task has
/// proposed: the expiries of its next life are others all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_expire_after_a_restart_as_before() {
    let scratch = tempfile::tempdir().unwrap();
    let durability = || Durability::Disk(DiskConfig::new(scratch.path().join("n1")));
    let start = || {
        Node::start_with(StoreConfig {
            durability: durability(),
            ..StoreConfig::new(1, NodeId(1), 1)
        })
    };
    let mut expired_before = 0;
    for life in 0..3_u16 {
        let node = start().await;
        node.store.set_peers(&[(NodeId(1), node.address)]);
        if life == 0 {
            node.store.initialize(SHARD, &[NodeId(1)]).await.unwrap();
        }
        until(|| node.owns().then_some(())).await;
        for number in 0..20 {
            node.put(key(100 * life + number), 1).await;
        }
        // What the log tells again is seen again.
        let expired = || node.seen.lock().unwrap().expired.len();
        until(|| (expired() == expired_before + 20).then_some(())).await;
        expired_before += 20;
        assert_eq!(node.seen.lock().unwrap().entries, 0);
        // Whoever asked hears a little later.
        let counts = || node.store.upkeep_counts(SHARD).unwrap();
        until(|| (counts().expired == 20).then_some(())).await;
        assert_eq!(counts().undecided, 0, "life {life}: {:?}", counts());
        node.store.shutdown().await;
    }
}
