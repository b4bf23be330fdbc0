//! What is left of a cluster whose processes were all killed at once: with durability `disk`
//! everything that was acknowledged, with `memory` nothing, and it says so.

use nearstate_nf_node::node_config::cluster_id;
use nearstate_nf_node::packet::{PacketBuilder, parse};
use nearstate_nf_node::port::shm::{ShmEvent, ShmPeer};
use nearstate_placement::Side;
use nearstate_placement::api::{Request, Response, ShardRole, StatusReport};
use nearstate_store::client::Client;
use nearstate_store::{Endpoint, Epoch};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");
const CLUSTER: &str = "durable";
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
const FLOWS: u16 = 40;

/// A loopback address that no other test uses, so that a port that is given up for a moment is not
/// taken by somebody else.
fn own_address() -> String {
    static TESTS: AtomicU8 = AtomicU8::new(1);
    let [low, high, ..] = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", 64 + high % 64, low, TESTS.fetch_add(1, Ordering::Relaxed))
}

struct Node {
    child: Child,
    listen: SocketAddr,
    id: u64,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the nodes of a test live.
struct Place {
    directory: tempfile::TempDir,
    address: String,
    durability: &'static str,
}

impl Place {
    fn new(durability: &'static str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), address: own_address(), durability }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ring(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.ring"))
    }

    fn command(&self, name: &str, start: &str) -> Command {
        let (directory, ring) = (self.path().display(), self.ring(name));
        let config = format!(
            r#"
            cluster = "{CLUSTER}"
            name = "{name}"
            listen = "{}:0"
            directory = "{directory}"
            durability = "{}"
            table-capacity = 1024
            start = {start}
            port = {{ kind = "shm", path = "{}", ring = 64 }}
            [timing]
            heartbeat-ms = 100
            election-min-ms = 1000
            election-max-ms = 1500
            lease-ms = 1000
            [chain]
            functions = ["firewall", "nat"]
            [chain.nat]
            addresses = ["198.19.0.0/28"]
            [chain.firewall]
            rules = ["allow out any"]
            "#,
            self.address,
            self.durability,
            ring.display()
        );
        let file = self.path().join(format!("{name}.toml"));
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["node", "--config"]).arg(file).stdin(Stdio::null());
        command
    }

    fn form(&self) -> Command {
        self.command("n1", "{ form = { slots = 64, shards = 2 } }")
    }

    fn join(&self, name: &str, seed: SocketAddr) -> Command {
        self.command(name, &format!("{{ join = {{ seeds = [\"{seed}\"] }} }}"))
    }
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// Waits until a node says that it is ready.
fn ready(mut child: Child) -> Node {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let word = |prefix| {
        let found = line.split_whitespace().find_map(|word| word.strip_prefix(prefix));
        found.unwrap_or_else(|| panic!("{line:?} has no {prefix}")).to_owned()
    };
    let (listen, id) = (word("listen=").parse().unwrap(), word("node=").parse().unwrap());
    Node { child, listen, id }
}

async fn ask(address: SocketAddr, request: Request) -> Option<Response> {
    let patience = Duration::from_secs(5);
    let client = Client::connect(cluster_id(CLUSTER), address, patience).await.ok()?;
    Response::decode(&client.call(request.encode(), patience).await.ok()?).ok()
}

async fn status(node: &Node) -> Option<StatusReport> {
    match ask(node.listen, Request::Status).await? {
        Response::Status(report) => Some(*report),
        _ => None,
    }
}

/// Waits until every shard has an owner with this many voters, all of them caught up, and gives the
/// entries of all flow shards.
fn settle(nodes: &[Node], voters: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    runtime.block_on(async {
        loop {
            let mut owned = BTreeMap::new();
            let mut seen = Vec::new();
            for node in nodes {
                let Some(report) = status(node).await else { continue };
                for shard in report.shards {
                    let settled =
                        shard.voters.len() == voters && shard.lag.iter().all(|(_, lag)| *lag == 0);
                    if shard.role == ShardRole::Owner && settled {
                        owned.insert(shard.shard, shard.entries);
                    }
                    seen.push((node.id, shard.shard, shard.role, shard.voters, shard.lag));
                }
            }
            if owned.len() == 3 {
                return owned.values().sum();
            }
            assert!(Instant::now() < deadline, "never settled: {seen:?}");
            // Until the map changes, or for a while.
            let news = Request::GetMap { newer_than: Epoch(u64::MAX - 1), wait_ms: 200 };
            ask(nodes[0].listen, news).await;
        }
    })
}

fn frame(flow: u16) -> Vec<u8> {
    let (from, to) = ([10, 0, 0, 1], [192, 0, 2, 1]);
    PacketBuilder::udp(Endpoint::v4(from, 2000 + flow), Endpoint::v4(to, 53)).payload(b"?").build()
}

/// Sends packets of flows through a node until each has left, and gives where they then came from:
/// a packet leaves when the state that it made is acknowledged.
fn send(ring: &Path, flows: impl Iterator<Item = u16>) -> BTreeMap<u16, Endpoint> {
    let mut peer = ShmPeer::open(ring).unwrap();
    let bell = peer.bell();
    let deadline = Instant::now() + PATIENCE;
    let mut sources = BTreeMap::new();
    for flow in flows {
        peer.push(Side::Inside, u64::from(flow), &frame(flow)).unwrap();
        peer.flush();
        while !sources.contains_key(&flow) {
            let seen = bell.count();
            let mut again = false;
            match peer.pop() {
                Some(ShmEvent::Packet { tag, bytes, .. }) => {
                    sources.insert(tag as u16, parse(bytes).unwrap().tuple.source);
                }
                Some(ShmEvent::Dropped { .. }) => again = true,
                None => drop(bell.wait(seen, Duration::from_secs(1))),
            }
            if again {
                peer.push(Side::Inside, u64::from(flow), &frame(flow)).unwrap();
                peer.flush();
            }
            assert!(Instant::now() < deadline, "flow {flow} never left");
        }
    }
    sources
}

/// Three nodes that hold the state of some flows.
fn three(place: &Place) -> (Vec<Node>, BTreeMap<u16, Endpoint>) {
    let mut nodes = vec![ready(spawn(place.form()))];
    for name in ["n2", "n3"] {
        nodes.push(ready(spawn(place.join(name, nodes[0].listen))));
    }
    settle(&nodes, 3);
    let sources = send(&place.ring("n1"), 0..FLOWS);
    assert_eq!(sources.len(), usize::from(FLOWS));
    (nodes, sources)
}

/// SIGKILL to all, before any of them can notice.
fn kill_all(nodes: Vec<Node>) -> Vec<(u64, SocketAddr)> {
    let known = nodes.iter().map(|node| (node.id, node.listen)).collect();
    for node in &nodes {
        let pid = rustix::process::Pid::from_child(&node.child);
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    drop(nodes);
    known
}

fn start_again(place: &Place, seed: SocketAddr) -> Vec<Node> {
    let children = [place.form(), place.join("n2", seed), place.join("n3", seed)].map(spawn);
    children.into_iter().map(ready).collect()
}

#[test]
fn a_durable_cluster_that_was_killed_as_a_whole_has_all_that_it_acknowledged() {
    let place = Place::new("disk");
    let (nodes, sources) = three(&place);
    let entries = settle(&nodes, 3);
    assert!(entries >= u64::from(FLOWS), "{entries}");
    let known = kill_all(nodes);

    let nodes = start_again(&place, known[0].1);
    let again: Vec<_> = nodes.iter().map(|node| (node.id, node.listen)).collect();
    assert_eq!(again, known, "the same nodes, at the same places");
    assert_eq!(settle(&nodes, 3), entries);
    // Through another node and in another order: translated as before, by what is remembered.
    assert_eq!(send(&place.ring("n2"), (0..FLOWS).rev()), sources);
    let more = send(&place.ring("n3"), FLOWS..FLOWS + 5);
    assert!(more.values().all(|source| !sources.values().any(|old| old == source)), "{more:?}");

    // And once more, with one of them damaged: it comes back as another node.
    let known = kill_all(nodes);
    let home = place.path().join(format!("{CLUSTER}.n3.disk"));
    for entry in std::fs::read_dir(home.join("shard-1")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let nodes = start_again(&place, known[0].1);
    assert_eq!((nodes[0].id, nodes[1].id), (known[0].0, known[1].0));
    assert!(nodes[2].id > 3, "a damaged memory came back under its old id");
    assert!(home.with_extension("disk.damaged").join("shard-1").exists());
    settle(&nodes, 3);
    assert_eq!(send(&place.ring("n3"), 0..FLOWS), sources);
}

#[test]
fn a_cluster_in_memory_that_was_killed_as_a_whole_does_not_pretend() {
    let place = Place::new("memory");
    let (nodes, _) = three(&place);
    let known = kill_all(nodes);
    let refused = place.form().output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    for words in ["has lost its memory", "the cluster's state is lost", "remove the file"] {
        assert!(said.contains(words), "{said}");
    }
    let refused = place.join("n2", known[0].1).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("form it anew"), "{said}");
    // What it says to do works.
    std::fs::remove_file(place.path().join(format!("{CLUSTER}.n1.formed"))).unwrap();
    let anew = ready(spawn(place.form()));
    assert_eq!(settle(std::slice::from_ref(&anew), 1), 0, "state came from nowhere");
}
