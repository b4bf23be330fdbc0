//! Whatever is sent that nobody meant: refused for one reason, counted once under it, and no
//! shard's state is another afterwards.

#![expect(clippy::disallowed_methods, reason = "tests own sockets")]

use crate::cluster::{CLUSTER, Echo, Held, PATIENCE, SHARD, SumMachine, config};
use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_store::clock::boot_now;
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig};
use nearstate_store::frame::{self, FRAME_BODY_MAX, FrameKind, WIRE_VERSION};
use nearstate_store::lease::LeaseCell;
use nearstate_store::transport::CLIENTS_MAX;
use nearstate_store::wire::{
    Append, AskVote, Ballot, EntryBody, HandOver, Hello, LogEntry, Members, Position, Request,
    Response, SnapshotChunk,
};
use nearstate_store::{
    FlowMachine, FlowMachineConfig, Key, LogIndex, Machine, NodeId, Outcome, RefusalReason, Region,
    RegionIdentity, ShardId, SlotId, SlotSet, Table, Transaction, TransactionId, Value, Write,
};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A shard that this node has a replica of and does not own.
const FOREIGN: ShardId = ShardId(2);
const LINEAGE: u64 = 0xa;
/// Requests of one connection that are served at a time.
const SERVED_MAX: u64 = 4096;
/// The id under which the test speaks as a node.
const PEER: u64 = 6;
const RETIRED: u64 = 8;

/// Never answers those who say that they can wait.
struct Slow;

impl AppHandler for Slow {
    fn handle(&self, from: Option<NodeId>, request: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        if request == b"wait" {
            futures::future::pending().boxed()
        } else {
            Echo.handle(from, request)
        }
    }
}

struct Node {
    store: Arc<Store>,
    address: SocketAddr,
}

fn setup(id: ShardId) -> ShardSetup {
    let lease = Arc::new(LeaseCell::none());
    let common = |machine, check, reads| ShardSetup {
        id,
        machine,
        check,
        reads,
        region: None,
        lease,
        generation: None,
    };
    if id == FOREIGN {
        let held = Arc::new(Mutex::new(Held::default()));
        return common(Box::new(SumMachine(held)), SumMachine::check_payload, None);
    }
    let region = Region::anonymous(Table::bytes_for(64).unwrap()).unwrap();
    let identity = RegionIdentity { cluster: CLUSTER, shard: id };
    let table = Table::format(Arc::new(region), identity, 64, 7).unwrap();
    let reader = table.reader();
    let slots = SlotSet::all(16);
    let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: Vec::new() });
    common(Box::new(machine), FlowMachine::check, Some(Arc::new(reader)))
}

impl Node {
    /// Owns one shard, in which something is; has a replica of another.
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let config = StoreConfig { lineage: LINEAGE, ..config(5) };
        let shards = vec![setup(SHARD), setup(FOREIGN)];
        let store = Store::start(config, listener, shards, Arc::new(Slow)).await.unwrap();
        store.initialize(SHARD, &[NodeId(5)]).await.unwrap();
        let mut watch = store.watch(SHARD).unwrap();
        let owns = watch.wait_for(|status| status.owns(boot_now()));
        tokio::time::timeout(PATIENCE, owns).await.expect("a lone node owns").unwrap();
        Self { store, address }
    }

    /// Somebody has led for a term meanwhile, and is gone: so there is an old term.
    async fn pass_terms(&self) {
        let _led = self.send(&asks(PEER, &append(ballot(3, PEER), vec![]))).await;
        let mut watch = self.store.watch(SHARD).unwrap();
        let owns = watch.wait_for(|status| status.term.0 > 3 && status.owns(boot_now()));
        tokio::time::timeout(PATIENCE, owns).await.expect("it owns again").unwrap();
    }

    /// What every shard holds.
    async fn state(&self) -> Vec<(ShardId, LogIndex, Option<u64>)> {
        let mut states = Vec::new();
        for shard in [SHARD, FOREIGN] {
            let seen = self.store.inspect(shard, true).await.unwrap();
            assert!(seen.state_hash.is_some());
            states.push((shard, seen.applied, seen.state_hash));
        }
        states
    }

    fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.store.refusals().named().into_iter().collect()
    }

    /// Waits until the counts differ from those before, and gives by how much.
    async fn counted_since(
        &self,
        before: &BTreeMap<&'static str, u64>,
    ) -> Vec<(&'static str, u64)> {
        let more = async {
            loop {
                let now = self.counts();
                if now != *before {
                    let rise = |(name, count): (&'static str, u64)| (name, count - before[name]);
                    return now.into_iter().map(rise).filter(|(_, rise)| *rise > 0).collect();
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, more).await.unwrap_or_default()
    }

    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // It may hang up before it has read all.
        let _ = stream.write_all(bytes).await;
        stream
    }
}

fn hello(from: u64) -> Hello {
    let to = if from == 0 { 0 } else { 5 };
    Hello { cluster: CLUSTER, lineage: LINEAGE, from, to, nonce: from }
}

fn said(hello: Hello) -> Vec<u8> {
    framed(FrameKind::Hello, 0, &hello.encode().unwrap())
}

fn framed(kind: FrameKind, id: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(kind, id, body, &mut bytes);
    bytes
}

/// A connection of this node (0: of a client) that asks so.
fn asks(from: u64, request: &Request) -> Vec<u8> {
    let request = framed(FrameKind::Request, 1, &request.encode().unwrap());
    [said(hello(from)), request].concat()
}

/// The same without a look at what is asked.
fn asks_blindly(request: &Request) -> Vec<u8> {
    let body = rkyv::to_bytes::<rkyv::rancor::Error>(request).unwrap();
    [said(hello(PEER)), framed(FrameKind::Request, 1, &body)].concat()
}

/// One good frame with a byte changed.
fn with_byte(at: usize, change: impl Fn(u8) -> u8) -> Vec<u8> {
    let mut bytes = said(hello(0));
    bytes[at] = change(bytes[at]);
    bytes
}

fn header_only(length: u32) -> Vec<u8> {
    let mut bytes = said(hello(0))[..frame::FRAME_HEADER].to_vec();
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn put(serial: u64) -> Transaction {
    Transaction {
        id: TransactionId { client: 9, serial },
        slot: SlotId(3),
        conditions: Default::default(),
        writes: core::iter::once(Write::put(Key([1, 2, 3, 4, 5]), Value([serial; 8]))).collect(),
    }
}

type Row = (&'static str, Vec<u8>, RefusalReason);

fn bad_connections() -> Vec<Row> {
    use RefusalReason as R;
    let too_long = FRAME_BODY_MAX as u32 + 1;
    vec![
        ("another cluster", said(Hello { cluster: 1, ..hello(PEER) }), R::Cluster),
        ("another lineage", said(Hello { lineage: 0xb, ..hello(PEER) }), R::Lineage),
        ("for another node", said(Hello { to: 4, ..hello(PEER) }), R::WrongNode),
        ("an older node dials", said(hello(3)), R::Direction),
        ("an id's second life", said(Hello { nonce: 77, ..hello(PEER) }), R::Reincarnated),
        ("a removed id", said(hello(RETIRED)), R::Retired),
        ("not a word", Vec::new(), R::Silent),
        ("another version", with_byte(8, |_| WIRE_VERSION + 1), R::Version),
        ("another kind of frame", with_byte(9, |_| 9), R::Garbage),
        ("zeros that are none", with_byte(10, |_| 1), R::Garbage),
        ("a flipped bit in the body", with_byte(frame::FRAME_HEADER, |byte| byte ^ 1), R::Garbage),
        ("an empty frame", header_only(0), R::Garbage),
        ("a frame that is too long", header_only(too_long), R::Oversize),
        ("the longest frame of all", header_only(u32::MAX), R::Oversize),
        (
            "a frame that is too long, from a node",
            [said(hello(PEER)), header_only(too_long)].concat(),
            R::Oversize,
        ),
        ("no hello", framed(FrameKind::Request, 1, &[1; 64]), R::Message),
        ("a hello that is none", framed(FrameKind::Hello, 1, &[1; 3]), R::Message),
        ("a second hello", [said(hello(PEER)), said(hello(PEER))].concat(), R::Message),
        (
            "a request that is none",
            [said(hello(PEER)), framed(FrameKind::Request, 1, &[0xff; 64])].concat(),
            R::Message,
        ),
        ("no transaction", asks_blindly(&Request::Transactions(SHARD, vec![])), R::Message),
        (
            "too many transactions",
            asks_blindly(&Request::Transactions(SHARD, vec![put(1); 65])),
            R::Message,
        ),
        (
            "a payload that is too long",
            asks_blindly(&Request::Propose(SHARD, vec![0; 300 << 10])),
            R::Message,
        ),
    ]
}

/// A leader's ballot, and what goes with it.
fn ballot(term: u64, node: u64) -> Ballot {
    Ballot { term, node, committed: true }
}

fn append(ballot: Ballot, entries: Vec<LogEntry>) -> Request {
    Request::Append(SHARD, Append { ballot, prev: None, entries, commit: None })
}

fn vote(term: u64, node: u64) -> Request {
    let ballot = Ballot { term, node, committed: false };
    let ask = AskVote { ballot, last_log: None, transfer: false, pre: false, orphaned: false };
    Request::Vote(SHARD, ask)
}

fn hand_over(ballot: Ballot) -> Request {
    Request::HandOver(SHARD, HandOver { ballot, to: 5, last_log: None })
}

fn snapshot(ballot: Ballot, offset: u64, crc: u32) -> Request {
    let last_log = Some(Position { term: 0, index: 900 });
    let members = Members { configs: vec![vec![PEER]], nodes: vec![PEER] };
    let bytes = vec![7; 10];
    let (members_at, total) = (last_log, offset + 10);
    let transfer = 1;
    let chunk = SnapshotChunk {
        ballot,
        transfer,
        last_log,
        members_at,
        members,
        total,
        crc,
        offset,
        bytes,
    };
    Request::Snapshot(SHARD, chunk)
}

fn bad_requests() -> Vec<Row> {
    use RefusalReason as R;
    let asks_node = |request| asks(PEER, &request);
    let crc = crc32fast::hash(&[7; 10]);
    let old = ballot(2, PEER);
    let other = ballot(99, 7);
    let nonsense = |term| LogEntry {
        at: Position { term, index: 0 },
        body: EntryBody::Payload(vec![1, 2, 3]),
    };
    let crowd = (0..=SERVED_MAX).flat_map(|id| {
        framed(FrameKind::Request, id, &Request::App(b"wait".to_vec()).encode().unwrap())
    });
    vec![
        ("a client proposes", asks(0, &Request::Propose(SHARD, vec![1])), R::ClientMayNot),
        ("a client asks for a lease", asks(0, &Request::ReadLease(SHARD)), R::ClientMayNot),
        ("a client leads", asks(0, &append(ballot(99, PEER), vec![])), R::ClientMayNot),
        ("leads as another", asks_node(append(other, vec![])), R::ForeignVoice),
        ("stands as another", asks_node(vote(99, 7)), R::ForeignVoice),
        ("a snapshot of another's", asks_node(snapshot(other, 0, crc)), R::ForeignVoice),
        ("another's offer", asks_node(hand_over(other)), R::ForeignVoice),
        ("a leader of an old term", asks_node(append(old, vec![])), R::StaleTerm),
        ("an entry of an old term", asks_node(append(old, vec![nonsense(2)])), R::Malformed),
        ("a candidate of an old term", asks_node(vote(2, PEER)), R::StaleTerm),
        ("a snapshot of an old term", asks_node(snapshot(old, 0, crc)), R::StaleTerm),
        ("an offer of an old term", asks_node(hand_over(old)), R::StaleTerm),
        (
            "an entry that no machine takes",
            asks_node(append(ballot(99, PEER), vec![nonsense(99)])),
            R::Malformed,
        ),
        ("a snapshot that is damaged", asks_node(snapshot(old, 0, !crc)), R::Malformed),
        ("a piece of no snapshot", asks_node(snapshot(old, 10, crc)), R::Busy),
        ("a payload that is none", asks_node(Request::Propose(SHARD, vec![1])), R::Malformed),
        ("no such shard", asks_node(Request::ReadLease(ShardId(9))), R::NoSuchShard),
        ("nothing to map", asks_node(Request::ReadLease(SHARD)), R::Malformed),
        (
            "transactions for who does not own",
            asks_node(Request::Transactions(FOREIGN, vec![put(1)])),
            R::NotOwner,
        ),
        (
            "a proposal for who does not own",
            asks_node(Request::Propose(FOREIGN, vec![0; 8])),
            R::NotOwner,
        ),
        ("one request too many", said(hello(PEER)).into_iter().chain(crowd).collect(), R::Busy),
    ]
}

async fn transact(stream: &mut TcpStream, id: u64, transaction: Transaction) -> Outcome {
    let request = Request::Transactions(SHARD, vec![transaction]).encode().unwrap();
    stream.write_all(&framed(FrameKind::Request, id, &request)).await.unwrap();
    let mut decoder = frame::FrameDecoder::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.next_frame().unwrap() {
            if frame.kind == FrameKind::Response && frame.id == id {
                match Response::decode(&frame.body).unwrap() {
                    Response::Outcomes(outcomes) => return outcomes[0],
                    other => panic!("{other:?}"),
                }
            }
        }
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "it hung up");
        decoder.feed(&buffer[..read]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_counted_for_its_reason_and_changes_no_state() {
    let node = Node::start().await;
    node.store.set_peers(&[(NodeId(RETIRED), node.address)]);
    node.store.set_peers(&[]);
    let mut stream = node.send(&said(hello(PEER))).await;
    assert!(matches!(transact(&mut stream, 1, put(1)).await, Outcome::Committed(_)));
    node.pass_terms().await;
    let first = node.state().await;
    assert!(node.counts().values().all(|count| *count == 0), "{:?}", node.counts());

    for (name, bytes, reason) in bad_connections().into_iter().chain(bad_requests()) {
        let before = node.counts();
        let stream = node.send(&bytes).await;
        let counted = node.counted_since(&before).await;
        assert_eq!(counted, [(reason.name(), 1)], "{name}");
        assert_eq!(node.state().await, first, "{name}");
        drop(stream);
    }

    // Clients have so much room and no more.
    let before = node.counts();
    let mut clients = Vec::new();
    for _ in 0..=CLIENTS_MAX {
        let mut client = node.send(&said(hello(0))).await;
        client.read_u8().await.unwrap();
        clients.push(client);
    }
    assert_eq!(node.counted_since(&before).await, [(RefusalReason::NoRoom.name(), 1)]);
    assert_eq!(node.state().await, first);
    node.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_twice_takes_effect_once_and_refusals_of_the_log_are_remembered() {
    let node = Node::start().await;
    let mut stream = node.send(&said(hello(PEER))).await;
    let first = transact(&mut stream, 1, put(1)).await;
    assert!(matches!(first, Outcome::Committed(_)));
    // The same message again: the outcome of then.
    assert_eq!(transact(&mut stream, 2, put(1)).await, first);
    let elsewhere = Transaction { slot: SlotId(99), ..put(2) };
    let unheld = transact(&mut stream, 3, elsewhere).await;
    assert!(matches!(unheld, Outcome::Refused(_)), "{unheld:?}");
    let seen = node.store.inspect(SHARD, true).await.unwrap();
    let decisions = seen.decisions.unwrap();
    assert_eq!((decisions.committed, decisions.repeated, decisions.refused), (1, 1, 1));
    // A slot may come to the shard later, so that refusal alone is not for ever.
    assert_eq!(seen.outcomes_remembered, 1);
    let add = Write::Add { key: Key([9, 9, 9, 9, 9]), at: 200, amount: 1 };
    let lost = Transaction { writes: core::iter::once(add).collect(), ..put(3) };
    let refused = transact(&mut stream, 4, lost.clone()).await;
    assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
    assert_eq!(transact(&mut stream, 5, lost).await, refused);
    let seen = node.store.inspect(SHARD, true).await.unwrap();
    assert_eq!(seen.outcomes_remembered, 2, "a refusal is state, so that it is given once");
    assert_eq!(seen.decisions.unwrap().repeated, 2);
    node.store.shutdown().await;
}
