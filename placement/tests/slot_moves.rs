//! Slots that move between real stores over real TCP, while clients write and read, and while
//! owners die: everything that was acknowledged stays readable, once, all the time.
//!
//! Three stores in one process hold the system shard and two flow shards; each drives moves as a
//! node does. A death is a store that is shut down. Nothing here measures how long anything takes.

#![expect(clippy::disallowed_methods, reason = "tests own sockets and tasks")]

use nearstate_placement::mover::drive;
use nearstate_placement::service::{BoxFuture, ControlError};
use nearstate_placement::system::{SystemCommand, SystemMachine, SystemRefusal, SystemReply};
use nearstate_placement::{Map, Member, MemberState, MovePhase};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Compaction;
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::link::{LinkCompletion, PipeLink};
use nearstate_store::slot_move::{MoveEntry, MoveReply, Piece, Step};
use nearstate_store::transaction::Condition;
use nearstate_store::upkeep::{Ending, EntryRules, PlainRules, PoolPort};
use nearstate_store::{
    Doorbell, Endpoint, Entry, Fill, Key, LeaseCell, Machine, NodeId, Outcome, PoolId, PoolSpec,
    Region, RegionIdentity, Reply, ShardId, SlotId, SlotMap, SlotSet, Table, TableReader, Take,
    TenantId, Transaction, TransactionId, Value, Write,
};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const SLOTS: u32 = 8;
/// Of shard 1 at first.
const MOVING: SlotId = SlotId(2);
const CAPACITY: u32 = 8_000;
/// Entries of the moving slot that nobody changes: enough for several pieces.
const QUIET: u16 = 1_500;
/// Keys that each client counts up.
const KEYS: u16 = 5;
/// Ports that each client takes, while slots move.
const PORTS: u16 = 200;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The pool of all machines.
const POOL: PoolId = PoolId(4);
const UDP: u8 = 17;
/// The kind of the keys whose entries hold a port.
const HOLDER: u8 = 2;

/// An entry of that kind has its port's endpoint in its second word.
#[derive(Debug)]
struct Holders;

impl EntryRules for Holders {
    fn end(&self, key: &Key, entry: &Entry, ending: &mut Ending) {
        PlainRules.end(key, entry, ending);
    }

    fn port(&self, key: &Key, entry: &Entry) -> Option<PoolPort> {
        let endpoint = entry.value.to_bytes()[8..14].try_into().ok()?;
        (key.kind() == HOLDER).then_some(PoolPort { pool: POOL, protocol: UDP, endpoint })
    }
}

struct Nobody;

impl AppHandler for Nobody {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        Box::pin(async { Vec::new() })
    }
}

/// A node's store, what a pipe of it reads in place, and its map.
struct Node {
    store: Arc<Store>,
    tables: [(TableReader, Arc<LeaseCell>); 2],
    slots: SlotMap,
    map: watch::Receiver<Arc<Map>>,
    address: SocketAddr,
    driver: tokio::task::JoinHandle<()>,
}

fn flow_shard(number: u16, hash_key: u64) -> (ShardSetup, TableReader) {
    let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
    let identity = RegionIdentity { cluster: 1, shard: ShardId(number) };
    let table = Table::format(Arc::new(region), identity, CAPACITY, hash_key).unwrap();
    let reader = table.reader();
    let mut slots = SlotSet::none(SLOTS);
    for (slot, shard) in (0..).zip(Map::first_slots(SLOTS, 2)) {
        if shard == number {
            slots.insert(SlotId(slot));
        }
    }
    let addresses = vec![Ipv4Addr::new(198, 19, 0, 1)];
    let pools = vec![PoolSpec::new(POOL, addresses, SLOTS, 1).unwrap()];
    let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools });
    let machine = machine.with_rules(Arc::new(Holders));
    let setup = ShardSetup {
        id: ShardId(number),
        machine: Box::new(machine),
        check: FlowMachine::check,
        reads: Some(Arc::new(reader.clone())),
        region: None,
        lease: Arc::new(LeaseCell::none()),
        generation: None,
    };
    (setup, reader)
}

impl Node {
    async fn start(id: u64) -> Self {
        let slots = SlotMap::new(Map::first_slots(SLOTS, 2));
        let (publish, map) = watch::channel(Arc::new(Map::unformed()));
        let followed = slots.clone();
        let system = SystemMachine::new(Arc::new(move |map| {
            followed.load(&map.slot_to_shard);
            publish.send_replace(map);
        }));
        let system = ShardSetup {
            id: ShardId::SYSTEM,
            machine: Box::new(system),
            check: SystemMachine::check,
            reads: None,
            region: None,
            lease: Arc::new(LeaseCell::none()),
            generation: None,
        };
        let ((one, first), (two, second)) = (flow_shard(1, id), flow_shard(2, id + 100));
        let tables = [(first, one.lease.clone()), (second, two.lease.clone())];
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let compaction = Compaction::after(50);
        let config = StoreConfig { compaction, ..StoreConfig::new(1, NodeId(id), id * 1000 + 1) };
        // Snapshots in the middle of moves.
        let setups = vec![system, one, two];
        let store = Store::start(config, listener, setups, Arc::new(Nobody));
        let store = store.await.unwrap();
        store.follow_slots(slots.clone());
        let driver = tokio::spawn(run_driver(store.clone(), map.clone()));
        Self { store, tables, slots, map, address, driver }
    }

    fn owns(&self, shard: ShardId) -> bool {
        self.store.status(shard).is_some_and(|status| status.owns(boot_now()))
    }

    async fn die(&self) {
        self.driver.abort();
        self.store.shutdown().await;
    }
}

/// Drives moves as a node does.
async fn run_driver(store: Arc<Store>, mut map: watch::Receiver<Arc<Map>>) {
    loop {
        let first = map.borrow_and_update().moves.first().copied();
        let owns = |shard| store.status(shard).is_some_and(|status| status.owns(boot_now()));
        if let Some(order) = first.filter(|order| owns(order.from)) {
            drive(order, &*store, &|command| ask(&store, command)).await;
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), map.changed()).await;
    }
}

fn ask(store: &Store, command: SystemCommand) -> BoxFuture<'_, Result<Reply, ControlError>> {
    Box::pin(async move {
        let proposed = store.propose(ShardId::SYSTEM, command.encode()).await;
        proposed.map_err(|error| ControlError(error.to_string()))
    })
}

struct Cluster(Vec<Node>);

impl Cluster {
    async fn form() -> Self {
        let mut nodes = vec![];
        for id in 1..=3 {
            nodes.push(Node::start(id).await);
        }
        let book: Vec<_> = nodes.iter().map(|node| (node.store.node(), node.address)).collect();
        nodes.iter().for_each(|node| node.store.set_peers(&book));
        let voters: Vec<NodeId> = book.iter().map(|(id, _)| *id).collect();
        for shard in 0..3 {
            nodes[0].store.initialize(ShardId(shard), &voters).await.unwrap();
        }
        let member = |(id, address): &(NodeId, SocketAddr)| Member {
            id: *id,
            name: format!("n{}", id.0),
            address: *address,
            ports: vec![],
            state: MemberState::Alive,
        };
        let members = book.iter().map(member).collect();
        let cluster = Self(nodes);
        let form =
            SystemCommand::Form { members, slots: SLOTS, shards: 2, replicas: 3, lineage: 7 };
        cluster.command(form).await;
        cluster
    }

    /// Until the system shard has answered, and nothing that came before is in the way: the maps
    /// that a test looks at may be older than the one that the order meets.
    async fn command(&self, command: SystemCommand) {
        let answered = async {
            loop {
                let answer = match ask(&self.0[0].store, command.clone()).await {
                    Ok(Reply::System(bytes)) => SystemReply::decode(&bytes).unwrap(),
                    _ => SystemReply::Refused(SystemRefusal::NotFormed),
                };
                match answer {
                    SystemReply::Refused(SystemRefusal::NotFormed | SystemRefusal::SlotBusy(_)) => {
                        tokio::task::yield_now().await;
                    }
                    answer => break answer,
                }
            }
        };
        let reply = tokio::time::timeout(PATIENCE, answered).await.expect("no system shard");
        assert!(matches!(reply, SystemReply::Done(_)), "{reply:?}");
    }

    async fn owner(&self, shard: ShardId) -> usize {
        until(|| self.0.iter().position(|node| node.owns(shard))).await
    }

    /// Every port in use has its entry, in every replica of both shards, and all replicas hold the
    /// same. Gives how many ports are in use.
    async fn check_replicas(&self) -> u64 {
        let mut live = 0;
        for shard in [1, 2].map(ShardId) {
            let looked = async {
                loop {
                    let mut seen = vec![];
                    for node in &self.0 {
                        seen.push(node.store.inspect(shard, true).await.expect("it runs"));
                    }
                    if seen.iter().all(|one| one.applied == seen[0].applied) {
                        return seen;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let seen = tokio::time::timeout(PATIENCE, looked).await.expect("they never meet");
            let hashes: Vec<_> = seen.iter().map(|one| one.state_hash).collect();
            assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{shard}: {hashes:?}");
            for one in &seen {
                one.pools.unwrap().unwrap_or_else(|leak| panic!("{shard}: {leak}"));
            }
            live += seen[0].pools.unwrap().unwrap().live;
        }
        live
    }

    /// Waits until some living node's map says so.
    async fn until_map(&self, wanted: impl Fn(&Map) -> bool) {
        until(|| self.0.iter().any(|node| wanted(&node.map.borrow())).then_some(())).await;
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

fn key(client: u64, number: u16) -> Key {
    key_of(1, client, number)
}

fn key_of(kind: u8, client: u64, number: u16) -> Key {
    let end = Endpoint::v4([10, 0, 0, client as u8], number);
    Key::new(kind, UDP, TenantId(0), (end, Endpoint::default()))
}

/// Counts keys of its own up, one transaction at a time, and reads what it counted.
struct Client {
    number: u64,
    serial: u64,
    link: PipeLink,
    slots: SlotMap,
    tables: [(TableReader, Arc<LeaseCell>); 2],
    counts: [u64; KEYS as usize],
    ports: u16,
    held: Arc<AtomicU64>,
}

impl Client {
    fn new(node: &Node, number: u64, held: Arc<AtomicU64>) -> Self {
        let link = node.store.pipe_link(number, Arc::new(Doorbell::new().unwrap()));
        let (slots, tables) = (node.slots.clone(), node.tables.clone());
        Self { number, serial: 0, link, slots, tables, counts: [0; KEYS as usize], ports: 0, held }
    }

    async fn commit(&mut self, condition: Condition, write: impl IntoIterator<Item = Write>) {
        self.serial += 1;
        let transaction = Transaction {
            id: TransactionId { client: self.number, serial: self.serial },
            slot: MOVING,
            conditions: [condition].into_iter().collect(),
            writes: write.into_iter().collect(),
        };
        let shard = self.slots.shard_of(MOVING);
        let deadline = boot_now().plus_ms(60_000);
        self.link.submit(self.serial, shard, &transaction, deadline).unwrap();
        let link = &mut self.link;
        match until(|| link.poll()).await {
            LinkCompletion::Transaction { outcome: Some(Outcome::Committed(_)), .. } => {}
            other => panic!("{other:?}"),
        }
    }

    async fn put(&mut self, number: u16) {
        let key = key(self.number, number);
        let (value, fill) = (Value::ZERO, Fill::default());
        self.commit(Condition::Absent(key), [Write::Put { key, value, fill, ttl_s: 0 }]).await;
    }

    /// Takes a port for a new entry.
    async fn take_port(&mut self) {
        let key = key_of(HOLDER, self.number, self.ports);
        let holder = [self.number as u8; 16];
        let take = Take { pool: POOL, protocol: UDP, holder, like_port: 0 };
        let (value, fill) = (Value::ZERO, Fill { key_at: None, value_at: Some(8) });
        let put = Write::Put { key, value, fill, ttl_s: 0 };
        self.commit(Condition::Absent(key), [Write::Take(take), put]).await;
        self.ports += 1;
    }

    async fn count_up(&mut self, number: u16) {
        let key = key(self.number, number);
        self.commit(Condition::Present(key), [Write::Add { key, at: 0, amount: 1 }]).await;
        self.counts[usize::from(number)] += 1;
    }

    /// Reads a count as a pipe does: in place under the lease, else by asking.
    async fn read(&mut self, number: u16) -> Option<u64> {
        let key = key(self.number, number);
        let shard = self.slots.shard_of(MOVING);
        let (reader, lease) = &self.tables[usize::from(shard.0) - 1];
        if boot_now() < lease.until() {
            let entry = reader.get(&key);
            if reader.holds(MOVING) && boot_now() < lease.until() {
                return entry.map(|entry| entry.value.0[0]);
            }
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        let deadline = boot_now().plus_ms(60_000);
        self.link.post_read(0, (shard, MOVING), &key, deadline).unwrap();
        let link = &mut self.link;
        match until(|| link.poll()).await {
            LinkCompletion::Read { answer: Some((entry, _)), .. } => {
                entry.map(|entry| entry.value.0[0])
            }
            other => panic!("{other:?}"),
        }
    }

    async fn check(&mut self) {
        for number in 0..KEYS {
            let wanted = self.counts[usize::from(number)];
            assert_eq!(self.read(number).await, Some(wanted), "client {}", self.number);
        }
    }

    /// Until told to stop.
    async fn run(mut self, stop: Arc<AtomicBool>) -> Self {
        for turn in (0..KEYS).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if turn == 0 && self.ports < PORTS {
                self.take_port().await;
            }
            self.count_up(turn).await;
            assert_eq!(self.read(turn).await, Some(self.counts[usize::from(turn)]));
        }
        self
    }
}

/// A client a node, all at work.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Client>>,
}

impl Load {
    async fn begin(cluster: &Cluster) -> Self {
        let held = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut filler = Client::new(&cluster.0[0], 99, held.clone());
        for number in 0..QUIET {
            filler.put(number).await;
        }
        let mut clients = vec![];
        for (node, number) in cluster.0.iter().zip(1..) {
            let mut client = Client::new(node, number, held.clone());
            for number in 0..KEYS {
                client.put(number).await;
            }
            clients.push(tokio::spawn(client.run(stop.clone())));
        }
        Self { stop, clients }
    }

    /// The client of a node goes with it.
    fn dies(&mut self, at: usize) {
        self.clients.remove(at).abort();
    }

    /// What every client counted is what is read, and ports are in use for those who took them.
    async fn end(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut ports, all) = (0, self.clients.len() == 3);
        for client in self.clients {
            let mut client = client.await.expect("a client found a fault");
            assert!(client.counts.iter().sum::<u64>() > 0);
            client.check().await;
            ports += u64::from(client.ports);
        }
        let live = cluster.check_replicas().await;
        assert!(live >= ports && (live == ports || !all), "{live} ports in use, {ports} taken");
    }
}

fn to(shard: u16) -> SystemCommand {
    SystemCommand::MoveSlots { slots: vec![MOVING.0], to: ShardId(shard) }
}

fn has_moved(map: &Map, shard: u16) -> bool {
    map.moves.is_empty() && map.shard_of(MOVING) == Some(ShardId(shard))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_there_and_back_while_clients_of_all_nodes_count_and_read() {
    let cluster = Cluster::form().await;
    let load = Load::begin(&cluster).await;
    for shard in [2, 1, 2, 1, 2] {
        cluster.command(to(shard)).await;
        cluster.until_map(|map| has_moved(map, shard)).await;
    }
    load.end(&cluster).await;
    let owner = &cluster.0[cluster.owner(ShardId(1)).await];
    let reader = &owner.tables[0].0;
    assert_eq!(reader.entries(), 0, "nothing is left at the source");
    for node in &cluster.0 {
        node.die().await;
    }
}

/// Kills the owner of a shard as soon as the move is in a phase; the rest brings it to its end.
async fn kill_in(phase: MovePhase, shard: ShardId) {
    let mut cluster = Cluster::form().await;
    let mut load = Load::begin(&cluster).await;
    let victim = cluster.owner(shard).await;
    cluster.command(to(2)).await;
    // A phase may be over before anybody looks; then it is killed in the one after.
    cluster
        .until_map(|map| has_moved(map, 2) || map.moves.first().is_some_and(|m| m.phase >= phase))
        .await;
    load.dies(victim);
    cluster.0.remove(victim).die().await;
    cluster.until_map(|map| has_moved(map, 2)).await;
    load.end(&cluster).await;
    for node in &cluster.0 {
        node.die().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_the_owner_of_its_source_dies_in_any_phase() {
    for phase in [MovePhase::Copying, MovePhase::Switching, MovePhase::Dropping] {
        kill_in(phase, ShardId(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_the_owner_of_its_target_dies_in_any_phase() {
    for phase in [MovePhase::Copying, MovePhase::Switching, MovePhase::Dropping] {
        kill_in(phase, ShardId(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_the_owner_of_the_map_dies_in_any_phase() {
    for phase in [MovePhase::Copying, MovePhase::Switching, MovePhase::Dropping] {
        kill_in(phase, ShardId::SYSTEM).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_move_leaves_the_slot_where_it_was_or_where_it_went() {
    let cluster = Cluster::form().await;
    let load = Load::begin(&cluster).await;
    for _ in 0..5 {
        cluster.command(to(2)).await;
        cluster.command(SystemCommand::CancelMoves).await;
        cluster.until_map(|map| map.moves.is_empty()).await;
        cluster.command(to(1)).await;
        cluster.until_map(|map| has_moved(map, 1)).await;
    }
    load.end(&cluster).await;
    for node in &cluster.0 {
        node.die().await;
    }
}

/// Puts a step of a move into a shard's log, through one of the nodes.
async fn step(node: &Node, shard: ShardId, step: Step) -> MoveReply {
    match node.store.propose(shard, MoveEntry::new(1, step).encode()).await {
        Ok(Reply::System(bytes)) => MoveReply::decode(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_slot_on_its_way_waits_for_its_adoption_outside_the_log() {
    let cluster = Cluster::form().await;
    let (source, target) = (ShardId(1), ShardId(2));
    let owner = &cluster.0[cluster.owner(target).await];
    cluster.owner(source).await;
    let (slot, seal) = (MOVING, || Step::Seal { slot: MOVING, to: target });
    let node = &cluster.0[0];
    assert_eq!(step(node, target, Step::Begin { attempt: 1, slot }).await, MoveReply::Done);
    assert_eq!(step(node, source, seal()).await, MoveReply::Done);
    let before = owner.store.status(target).unwrap().last_log;
    let mut links = vec![];
    for (node, number) in cluster.0.iter().zip(1..) {
        let mut client = Client::new(node, number, Arc::default());
        let deadline = boot_now().plus_ms(60_000);
        let (key, value, fill) = (key(number, 0), Value::ZERO, Fill::default());
        client.link.post_read(0, (source, MOVING), &key, deadline).unwrap();
        let transaction = Transaction {
            id: TransactionId { client: number, serial: 1 },
            slot: MOVING,
            conditions: [Condition::Absent(key)].into_iter().collect(),
            writes: [Write::Put { key, value, fill, ttl_s: 0 }].into_iter().collect(),
        };
        client.link.submit(1, source, &transaction, deadline).unwrap();
        links.push(client.link);
    }
    // As long as this takes, everybody has been told where to ask, and has asked there.
    for node in cluster.0.iter().cycle().take(9) {
        assert_eq!(step(node, source, seal()).await, MoveReply::Done);
    }
    assert_eq!(owner.store.status(target).unwrap().last_log, before, "nobody writes in vain");
    assert!(links.iter_mut().all(|link| link.poll().is_none()), "nobody is served");
    // No pools.
    let last = Piece { pools: vec![0; 12], ..Piece::default() };
    let adopted = step(node, target, Step::Adopt { attempt: 1, pieces: 0, last }).await;
    assert_eq!(adopted, MoveReply::Done);
    for link in &mut links {
        for _ in 0..2 {
            match until(|| link.poll()).await {
                LinkCompletion::Transaction { outcome: Some(Outcome::Committed(_)), .. }
                | LinkCompletion::Read { answer: Some(_), .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    for node in &cluster.0 {
        node.die().await;
    }
}
