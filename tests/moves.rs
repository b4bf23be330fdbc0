//! Slots that move between shards of real nodes while one of those that move them is killed: the
//! move comes to its end all the same, every flow keeps its address, no port leaks, and all
//! replicas hold the same.

use nearstate_nf_node::node_config::cluster_id;
use nearstate_nf_node::packet::{PacketBuilder, parse};
use nearstate_nf_node::port::shm::{ShmEvent, ShmPeer};
use nearstate_placement::api::{Request, Response};
use nearstate_placement::{Map, MovePhase, Side};
use nearstate_store::client::Client;
use nearstate_store::{Endpoint, Epoch, NodeId, ShardId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");
const CLUSTER: &str = "moves";
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Inside hosts: each has its slot.
const HOSTS: u8 = 60;
const FLOWS_OF_HOST: u16 = 3;
const SOURCE: ShardId = ShardId(1);
const TARGET: ShardId = ShardId(2);
/// All slots of the source.
const SLOTS: u16 = 32;
/// Of them, so many have moved when a node is killed.
const BEFORE: usize = 5;

struct Node {
    name: &'static str,
    child: Child,
    id: NodeId,
    listen: String,
    ring: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(directory: &Path, name: &'static str, start: &str) -> Node {
    let place = directory.display();
    let config = format!(
        r#"
        cluster = "{CLUSTER}"
        name = "{name}"
        listen = "127.0.0.1:0"
        directory = "{place}"
        table-capacity = 4096
        start = {start}
        port = {{ kind = "shm", path = "{place}/{name}.ring", ring = 64 }}
        [chain]
        functions = ["firewall", "nat"]
        [chain.nat]
        addresses = ["198.19.0.0/28"]
        [chain.firewall]
        rules = ["allow out any"]
        "#
    );
    let file = directory.join(format!("{name}.toml"));
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["node", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let word = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let said = |key| word(key).unwrap_or_else(|| panic!("{line:?} has no {key}")).to_owned();
    let (id, listen) = (NodeId(said("node=").parse().unwrap()), said("listen="));
    Node { name, child, id, listen, ring: directory.join(format!("{name}.ring")) }
}

fn join(directory: &Path, name: &'static str, seed: &Node) -> Node {
    start(directory, name, &format!("{{ join = {{ seeds = [\"{}\"] }} }}", seed.listen))
}

impl Node {
    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(words.split_whitespace()).args(["--node", &self.listen]);
        command.args(["--cluster", CLUSTER]).output().unwrap()
    }

    fn json(&self, words: &str) -> Value {
        let output = self.run(&format!("{words} --json"));
        let told = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
    }

    /// The first map that is as wanted.
    fn map_with(&self, is_wanted: impl Fn(&Map) -> bool) -> Map {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deadline = Instant::now() + PATIENCE;
        runtime.block_on(async {
            let address = self.listen.parse().unwrap();
            let client = Client::connect(cluster_id(CLUSTER), address, PATIENCE).await.unwrap();
            let mut newer_than = Epoch(0);
            loop {
                assert!(Instant::now() < deadline, "no such map comes");
                let request = Request::GetMap { newer_than, wait_ms: 500 };
                let answer = client.call(request.encode(), PATIENCE).await.unwrap();
                if let Response::Map(map) = Response::decode(&answer).unwrap() {
                    if is_wanted(&map) {
                        return map;
                    }
                    newer_than = map.epoch;
                }
            }
        })
    }

    /// Waits until so many replicas of every shard hold the same, and no port has leaked; gives the
    /// ports in use.
    fn replicas_agree(&self, replicas: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.json("store hash");
            let shards = said["shards"].as_array().unwrap();
            let ports = |shard: &Value| shard["replicas"][0]["ports"]["live"].as_u64();
            for replica in shards.iter().flat_map(|shard| shard["replicas"].as_array().unwrap()) {
                assert_ne!(replica["ports"]["leaks"], true, "{said:#}");
            }
            let agree = |shard: &Value| {
                assert_ne!(shard["verdict"], "differ", "{said:#}");
                shard["agreeing"].as_u64() == Some(replicas)
            };
            if shards.len() == 3 && shards.iter().all(agree) {
                return shards.iter().filter_map(ports).sum();
            }
            assert!(Instant::now() < deadline, "{said:#}");
        }
    }
}

type Seen = BTreeMap<(u8, u16), Endpoint>;

/// Sends a packet of each flow through a node until it has left, and gives where each then came
/// from.
fn send(node: &Node) -> Seen {
    let mut peer = ShmPeer::open(&node.ring).unwrap();
    let bell = peer.bell();
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Seen::new();
    for (host, flow) in (1..=HOSTS).flat_map(|host| (0..FLOWS_OF_HOST).map(move |f| (host, f))) {
        let inside = Endpoint::v4([10, 0, 0, host], 2000 + flow);
        let frame =
            PacketBuilder::udp(inside, Endpoint::v4([192, 0, 2, 1], 53)).payload(b"?").build();
        let mut waits = false;
        let source = loop {
            assert!(Instant::now() < deadline, "flow {flow} of {host} never left {}", node.name);
            if !waits {
                peer.push(Side::Inside, u64::from(flow), &frame).unwrap();
                peer.flush();
                waits = true;
            }
            let count = bell.count();
            match peer.pop() {
                Some(ShmEvent::Packet { bytes, .. }) => break parse(bytes).unwrap().tuple.source,
                // Nobody owned its shard just then.
                Some(ShmEvent::Dropped { .. }) => waits = false,
                None => drop(bell.wait(count, Duration::from_secs(1))),
            }
        };
        seen.insert((host, flow), source);
    }
    seen
}

/// Every entry lies in the shard that the map says.
fn lies_where_the_map_says(node: &Node, map: &Map) {
    let mut entries = 0;
    for shard in [SOURCE, TARGET] {
        let said = node.json(&format!("store scan --shard {} --limit 10000", shard.0));
        assert_eq!(said["is_all"], true);
        for entry in said["entries"].as_array().unwrap() {
            let slot = entry["slot"].as_u64().unwrap() as usize;
            assert_eq!(map.slot_to_shard[slot], shard.0, "{entry:#}");
            entries += 1;
        }
    }
    let flows = usize::from(HOSTS) * usize::from(FLOWS_OF_HOST);
    assert_eq!(entries, 3 * flows, "each flow has three entries");
}

/// Kills the owner of a shard in the middle of an order to move all slots of the source.
fn kill_owner_of(shard: ShardId) {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let first = start(directory, "n1", "{ form = { slots = 64, shards = 2 } }");
    let (second, third) = (join(directory, "n2", &first), join(directory, "n3", &first));
    let mut nodes = vec![first, second, third];
    let owner = |map: &Map, shard: ShardId| map.shards[usize::from(shard.0)].owner.map(|o| o.0);
    nodes[0].map_with(|map| {
        let (one, two) = (owner(map, SOURCE), owner(map, TARGET));
        let settled = map.shards.iter().all(|s| s.owner.map(|o| o.0) == Some(s.preferred));
        settled && one != two && map.shards.iter().all(|shard| shard.replicas.len() == 3)
    });
    nodes[0].replicas_agree(3);
    let flows = send(&nodes[0]);

    let ordered = nodes[0].run(&format!("slots move --from 1 --count {SLOTS} --to 2 --no-wait"));
    assert!(ordered.status.success(), "{ordered:?}");
    let map = nodes[0].map_with(|map| {
        let first = map.moves.first();
        let is_switching = first.is_some_and(|first| first.phase == MovePhase::Switching);
        is_switching && map.moves.len() <= usize::from(SLOTS) - BEFORE
    });
    let victim = nodes.iter().position(|node| Some(node.id) == owner(&map, shard)).unwrap();
    let mut victim = nodes.remove(victim);
    victim.child.kill().unwrap();
    victim.child.wait().unwrap();
    let left = nodes[0].map_with(|_| true).moves.len();
    assert!(left > 0, "it was killed in the middle");
    let name = victim.name;
    drop(victim);

    let again = join(directory, name, &nodes[0]);
    nodes.push(again);
    loop {
        assert_eq!(send(&nodes[1]), flows, "flows keep their addresses while their slots move");
        if nodes[0].map_with(|_| true).moves.is_empty() {
            break;
        }
    }
    let map = nodes[0].map_with(|map| map.moves.is_empty());
    assert!(map.slot_to_shard.iter().all(|shard| *shard == TARGET.0), "all have arrived");
    let ports = nodes[0].replicas_agree(3);
    assert_eq!(ports, flows.len() as u64, "a port for each flow, in use just once");
    lies_where_the_map_says(&nodes[0], &map);
    for node in &nodes {
        assert_eq!(send(node), flows, "through {}", node.name);
    }
}

#[test]
fn slots_arrive_although_the_owner_of_their_source_is_killed() {
    kill_owner_of(SOURCE);
}

#[test]
fn slots_arrive_although_the_owner_of_their_target_is_killed() {
    kill_owner_of(TARGET);
}
