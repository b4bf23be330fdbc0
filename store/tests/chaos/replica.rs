//! A node as a process of its own: a store with flow shards in shared memory, clients that use it,
//! and the words in which the test talks to it.
//!
//! The test starts its own program again for each; lines on the standard input say what to do, one
//! after the other, and each is answered by one line that begins with [`MARK`] (the test runner
//! says things there too). It ends with its input, and at the latest with the test.

#![expect(clippy::disallowed_methods, reason = "a node owns sockets and threads")]

use crate::load::{CLIENTS, CLUSTER, Client, Replica, Shared, WINDOW_KEYS};
use crate::machine::RecordingMachine;
use crate::record::{KeyNumber, Record, Recorder, SHARDS, SLOTS, path_of, shard_of, writer_of};
use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Compaction;
use nearstate_store::consensus::{Role, ShardStatus};
use nearstate_store::driver::{AppHandler, RegionAddress, ShardSetup, Store, StoreConfig, runtime};
use nearstate_store::flow_machine::FlowMachineConfig;
use nearstate_store::{
    Doorbell, Entry, FlowMachine, LeaseCell, LogIndex, Machine, NodeId, Region, RegionIdentity,
    ShardId, SlotId, SlotSet, Table, Term, Time,
};
use std::error::Error;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Before each answer.
pub(crate) const MARK: &str = ">> ";
/// Who the process is to be: node, lineage of the cluster, directories of records and of regions.
pub(crate) const VARIABLE: &str = "NEARSTATE_CHAOS_NODE";

/// Entries that a table has room for: every key that is ever in use.
const CAPACITY: u32 = 16_384;
/// Often enough that newcomers get a snapshot, not the log.
const SNAPSHOT_EVERY: u64 = 500;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a newcomer may take to catch up before the change is tried again.
const CATCH_UP: Duration = Duration::from_secs(10);

pub(crate) type Failure = Box<dyn Error>;

/// The file of a node's table.
pub(crate) fn region_path(directory: &Path, node: NodeId, shard: ShardId) -> PathBuf {
    directory.join(format!("{}.{}.region", node.0, shard.0))
}

/// Nobody asks.
struct NoApp;

impl AppHandler for NoApp {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        async { Vec::new() }.boxed()
    }
}

struct Node {
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
    id: NodeId,
    recorder: Recorder,
    replicas: Arc<[Replica]>,
    origin: Time,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

/// The whole life of the process.
pub(crate) fn run(description: &str) -> Result<(), Failure> {
    // Also if the test is killed while this process is stopped.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // A thread of the store or of a client that panics has found a fault: the test is to hear it.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    let mut words = description.splitn(4, ' ');
    let mut word = || words.next().ok_or("NODE LINEAGE RECORDS REGIONS");
    let (id, lineage) = (NodeId(word()?.parse()?), word()?.parse()?);
    let (records, regions) = (PathBuf::from(word()?), PathBuf::from(word()?));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut node = Node::start((id, lineage), (&records, &regions), listener)?;
    answer(&address.to_string())?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let rest: Vec<&str> = rest.split_whitespace().collect();
        let said = node.serve(word, &rest).unwrap_or_else(|error| format!("! {error}"));
        answer(&said)?;
    }
    node.rest();
    // Regions remove their files when they are dropped.
    node.runtime.block_on(node.store.shutdown());
    Ok(())
}

fn answer(line: &str) -> Result<(), std::io::Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{line}")?;
    out.flush()
}

fn shard(
    shard: ShardId,
    node: NodeId,
    regions: &Path,
    recorder: &Recorder,
) -> Result<(ShardSetup, Replica), Failure> {
    let path = region_path(regions, node, shard);
    let region = Region::create_shared(&path, Table::bytes_for(CAPACITY)?)?;
    let identity = RegionIdentity { cluster: CLUSTER, shard };
    let hash_key = 0x5eed + node.0 * 64 + u64::from(shard.0);
    let table = Table::format(Arc::new(region), identity, CAPACITY, hash_key)?;
    let (reader, generation) = (table.reader(), table.generation_cell());
    let mut slots = SlotSet::none(SLOTS);
    let held = (0..SLOTS as u16).map(SlotId).filter(|slot| shard_of(*slot) == shard);
    held.for_each(|slot| slots.insert(slot));
    let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] });
    let lease = Arc::new(LeaseCell::none());
    let owner = recorder.clone();
    let setup = ShardSetup {
        id: shard,
        machine: Box::new(RecordingMachine::new(shard, machine, recorder.clone())),
        check: RecordingMachine::check,
        reads: Some(Arc::new(reader.clone())),
        region: Some(RegionAddress { path }),
        lease: lease.clone(),
        generation: Some(Arc::new(move |term| {
            // 0: it owns the shard no more.
            if term != 0 {
                owner.write(&[Record::Owner { at: boot_now(), shard, term: Term(term) }]);
            }
            generation.set(term);
        })),
    };
    Ok((setup, Replica { reader, lease }))
}

/// Writes down who leads, whenever that changes.
async fn watch_leader(store: Arc<Store>, shard: ShardId, recorder: Recorder) {
    let Some(mut watch) = store.watch(shard) else { return };
    let mut last = None;
    loop {
        let (term, leader) = {
            let status = watch.borrow_and_update();
            (status.term, status.leader)
        };
        if let Some(leader) = leader.filter(|leader| last != Some((term, *leader))) {
            last = Some((term, leader));
            recorder.write(&[Record::Leader { at: boot_now(), shard, term, leader }]);
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

impl Node {
    fn start(
        (id, lineage): (NodeId, u64),
        (records, regions): (&Path, &Path),
        listener: TcpListener,
    ) -> Result<Self, Failure> {
        let recorder = Recorder::create(&path_of(records, id))?;
        let (mut setups, mut replicas) = (Vec::new(), Vec::new());
        for number in 1..=SHARDS {
            let (setup, replica) = shard(ShardId(number), id, regions, &recorder)?;
            setups.push(setup);
            replicas.push(replica);
        }
        let runtime = runtime()?;
        let nonce = id.0 << 32 | u64::from(std::process::id());
        let compaction = Compaction::after(SNAPSHOT_EVERY);
        let config = StoreConfig { lineage, compaction, ..StoreConfig::new(CLUSTER, id, nonce) };
        let app = Arc::new(NoApp);
        let started = Store::start(config, listener, setups, app);
        let store = runtime.block_on(started)?;
        for number in 1..=SHARDS {
            runtime.spawn(watch_leader(store.clone(), ShardId(number), recorder.clone()));
        }
        Ok(Self {
            store,
            runtime,
            id,
            recorder,
            replicas: replicas.into(),
            origin: Time(0),
            stop: Arc::default(),
            done: Arc::default(),
            clients: Vec::new(),
        })
    }

    fn serve(&mut self, word: &str, rest: &[&str]) -> Result<String, Failure> {
        let numbers =
            || -> Result<Vec<u64>, Failure> { rest.iter().map(|word| Ok(word.parse()?)).collect() };
        match (word, rest) {
            ("peers", peers) => self.meet(peers),
            ("load", _) => {
                let [origin] = numbers()?[..] else { return Err("load ORIGIN".into()) };
                self.load(Time(origin))
            }
            ("done", []) => Ok(self.done.load(Ordering::Relaxed).to_string()),
            ("rest", []) => {
                self.rest();
                Ok("ok".into())
            }
            (_, [shard, ..]) => {
                let shard = ShardId(shard.parse()?);
                self.serve_shard(word, shard, &numbers()?[1..])
            }
            _ => Err(format!("{word} means nothing").into()),
        }
    }

    fn serve_shard(&self, word: &str, shard: ShardId, rest: &[u64]) -> Result<String, Failure> {
        match (word, rest) {
            ("form", voters) => {
                let voters: Vec<NodeId> = voters.iter().copied().map(NodeId).collect();
                self.runtime.block_on(self.store.initialize(shard, &voters))?;
                Ok("ok".into())
            }
            ("owner", []) => {
                let status = self.wait(shard, |status| match status.leader {
                    Some(leader) if leader == self.id => status.owns(boot_now()),
                    leader => leader.is_some(),
                })?;
                Ok(format!("{} {}", status.leader.map_or(0, |leader| leader.0), status.term.0))
            }
            ("owns", []) => {
                let status = self.store.status(shard).ok_or("no such shard")?;
                let owns = status.owns(boot_now());
                Ok(if owns { status.term.0.to_string() } else { "0".to_owned() })
            }
            ("leader", []) => {
                let status = self.store.status(shard).ok_or("no such shard")?;
                Ok(status.leader.map_or(0, |leader| leader.0).to_string())
            }
            ("replace", &[old, new]) => {
                self.runtime.block_on(self.replace(shard, NodeId(old), NodeId(new)))
            }
            ("transfer", &[to]) => {
                let asked = self.store.transfer_leader(shard, NodeId(to));
                self.runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await })??;
                Ok("ok".into())
            }
            ("end", []) => {
                let (number, key) =
                    (CLIENTS + u64::from(shard.0), KeyNumber(u64::from(shard.0) - 1));
                let index = self.client(number)?.last_word(key).ok_or("a last write is lost")?;
                Ok(index.0.to_string())
            }
            ("dump", &[applied]) => self.dump(shard, LogIndex(applied)),
            _ => Err(format!("{word} {rest:?} means nothing").into()),
        }
    }

    fn meet(&self, peers: &[&str]) -> Result<String, Failure> {
        let peer = |peer: &&str| -> Result<(NodeId, SocketAddr), Failure> {
            let (id, address) = peer.split_once('=').ok_or("ID=ADDRESS is wanted")?;
            Ok((NodeId(id.parse()?), address.parse()?))
        };
        let book = peers.iter().map(peer).collect::<Result<Vec<_>, _>>()?;
        let _inside = self.runtime.enter();
        self.store.set_peers(&book);
        Ok("ok".into())
    }

    fn load(&mut self, origin: Time) -> Result<String, Failure> {
        self.origin = origin;
        for pipe in 1..=CLIENTS {
            let client = self.client(pipe)?;
            self.clients.push(std::thread::spawn(move || client.run()));
        }
        Ok("ok".into())
    }

    fn client(&self, pipe: u64) -> Result<Client, Failure> {
        let number = self.id.0 << 16 | pipe;
        let bell = Arc::new(Doorbell::new()?);
        let link = {
            let _inside = self.runtime.enter();
            self.store.pipe_link(number, bell.clone())
        };
        let shared = Shared {
            replicas: self.replicas.clone(),
            recorder: self.recorder.clone(),
            origin: self.origin,
            stop: self.stop.clone(),
            done: self.done.clone(),
        };
        Ok(Client::new(shared, number, (link, bell)))
    }

    fn rest(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a panic ends the process");
        }
    }

    fn wait(
        &self,
        shard: ShardId,
        until: impl FnMut(&ShardStatus) -> bool,
    ) -> Result<ShardStatus, Failure> {
        self.runtime.block_on(async {
            let mut watch = self.store.watch(shard).ok_or("no such shard")?;
            let status = tokio::time::timeout(PATIENCE, watch.wait_for(until)).await??;
            Ok(status.clone())
        })
    }

    /// Lets a new node take the place of one that is gone; answers when the new one has a vote.
    async fn replace(&self, shard: ShardId, old: NodeId, new: NodeId) -> Result<String, Failure> {
        let status = self.store.status(shard).ok_or("no such shard")?;
        if status.role != Role::Leader {
            return Err("another node leads".into());
        }
        if status.voters.contains(&new) && !status.voters.contains(&old) {
            return Ok("ok".into());
        }
        if !status.learners.contains(&new) && !status.voters.contains(&new) {
            self.store.add_learner(shard, new).await?;
        }
        let mut watch = self.store.watch(shard).ok_or("no such shard")?;
        let caught_up = watch.wait_for(|status| {
            let at = |id| status.matched.iter().find(|(node, _)| *node == id);
            let at = at(new).and_then(|(_, at)| *at);
            at.is_some_and(|at| Some(at) >= status.applied) || status.role != Role::Leader
        });
        let voters = tokio::time::timeout(CATCH_UP, caught_up).await??.voters.clone();
        let voters = voters.into_iter().filter(|node| *node != old && *node != new).chain([new]);
        self.store.change_voters(shard, voters.collect()).await?;
        Ok("ok".into())
    }

    /// Writes down what the table holds once everything up to an index is applied. Nothing is
    /// written any more.
    fn dump(&self, shard: ShardId, applied: LogIndex) -> Result<String, Failure> {
        let status = self.wait(shard, |status| status.applied >= Some(applied))?;
        let reader = &self.replicas[usize::from(shard.0) - 1].reader;
        let mut records = Vec::new();
        let mut found = 0;
        // All keys that were ever in use: after as many that were not, none follows.
        let (mut number, mut unused) = (0, 0);
        while found < reader.entries() && unused < u64::from(CAPACITY) * WINDOW_KEYS {
            let key = KeyNumber(number);
            (number, unused) = (number + 1, unused + 1);
            let entry = (key.shard() == shard).then(|| reader.get(&key.key())).flatten();
            let Some(Entry { value, version, .. }) = entry else { continue };
            let op = writer_of(&value, key).ok_or("a value that nobody wrote")?;
            records.push(Record::Final { key, op, version });
            (found, unused) = (found + 1, 0);
        }
        let applied = status.applied.unwrap_or_default();
        records.push(Record::FinalEnd { shard, applied, entries: reader.entries() });
        self.recorder.write(&records);
        Ok(found.to_string())
    }
}
