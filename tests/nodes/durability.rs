//! What is left of a cluster whose processes were all killed at once: with durability `disk`
//! everything that was acknowledged, with `memory` nothing, and it says so.

use crate::process::{CLUSTER, Node, PATIENCE, command, form, join, ready};
use crate::sender::Sender;
use nearstate_placement::api::{Request, ShardRole};
use nearstate_store::{Endpoint, Epoch, NodeId};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

const FLOWS: u16 = 40;

/// A loopback address that no other test uses, so that a port that is given up for a moment is not
/// taken by somebody else.
fn own_address() -> String {
    static TESTS: AtomicU8 = AtomicU8::new(1);
    let [low, high, ..] = std::process::id().to_le_bytes();
    format!("127.{}.{}.{}", 64 + high % 64, low, TESTS.fetch_add(1, Ordering::Relaxed))
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

    /// The command that runs a node with this configuration at the place.
    fn command(&self, name: &str, config: &str) -> Command {
        let more = format!(
            "durability = \"{}\"\n[timing]\nheartbeat-ms = 100\nelection-min-ms = 1000\n\
             election-max-ms = 1500\nlease-ms = 1000\n[chain]\n",
            self.durability
        );
        let config = config.replace("127.0.0.1:0", &format!("{}:0", self.address));
        command(self.path(), &format!("{name}.toml"), &config.replacen("[chain]\n", &more, 1))
    }

    fn form(&self) -> Command {
        self.command("n1", &form(self.path()))
    }

    fn join(&self, name: &str, seed: &str) -> Command {
        self.command(name, &join(self.path(), name, seed))
    }

    fn ready(&self, name: &str, child: Child) -> Node {
        ready(self.path(), &format!("{name}.toml"), child)
    }
}

/// Waits until every shard has an owner with this many voters, all of them caught up, and gives the
/// entries of all flow shards.
fn settle(nodes: &[Node], voters: usize) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut owned = BTreeMap::new();
        let mut seen = Vec::new();
        for node in nodes {
            let Some(report) = node.status() else { continue };
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
        nodes[0].try_ask(&Request::GetMap { newer_than: Epoch(u64::MAX - 1), wait_ms: 200 });
    }
}

/// Sends a packet of each flow through a node, and gives where they then came from.
fn send(node: &Node, flows: impl Iterator<Item = u16>) -> BTreeMap<u16, Endpoint> {
    let mut sender = Sender::new(node);
    let inside = |flow| Endpoint::v4([10, 0, 0, 1], 2000 + flow);
    flows.map(|flow| (flow, sender.external_of(inside(flow)))).collect()
}

/// Three nodes that hold the state of some flows.
fn three(place: &Place) -> (Vec<Node>, BTreeMap<u16, Endpoint>) {
    let mut nodes = vec![place.ready("n1", place.form().spawn().unwrap())];
    for name in ["n2", "n3"] {
        let child = place.join(name, &nodes[0].listen).spawn().unwrap();
        nodes.push(place.ready(name, child));
    }
    settle(&nodes, 3);
    let sources = send(&nodes[0], 0..FLOWS);
    assert_eq!(sources.len(), usize::from(FLOWS));
    (nodes, sources)
}

/// SIGKILL to all, before any of them can notice.
fn kill_all(nodes: Vec<Node>) -> Vec<(NodeId, String)> {
    let known = nodes.iter().map(|node| (node.id, node.listen.clone())).collect();
    for node in &nodes {
        node.signal(Signal::KILL);
    }
    drop(nodes);
    known
}

/// All at once, for none is ready without the others.
fn start_again(place: &Place, seed: &str) -> Vec<Node> {
    let commands =
        [("n1", place.form()), ("n2", place.join("n2", seed)), ("n3", place.join("n3", seed))];
    let children = commands.map(|(name, mut command)| (name, command.spawn().unwrap()));
    children.into_iter().map(|(name, child)| place.ready(name, child)).collect()
}

#[test]
fn a_durable_cluster_that_was_killed_as_a_whole_has_all_that_it_acknowledged() {
    let place = Place::new("disk");
    let (nodes, sources) = three(&place);
    let entries = settle(&nodes, 3);
    assert!(entries >= u64::from(FLOWS), "{entries}");
    let known = kill_all(nodes);

    let nodes = start_again(&place, &known[0].1);
    let again: Vec<_> = nodes.iter().map(|node| (node.id, node.listen.clone())).collect();
    assert_eq!(again, known, "the same nodes, at the same places");
    assert_eq!(settle(&nodes, 3), entries);
    // Through another node and in another order: translated as before, by what is remembered.
    assert_eq!(send(&nodes[1], (0..FLOWS).rev()), sources);
    let more = send(&nodes[2], FLOWS..FLOWS + 5);
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
    let nodes = start_again(&place, &known[0].1);
    assert_eq!((nodes[0].id, nodes[1].id), (known[0].0, known[1].0));
    assert!(nodes[2].id > NodeId(3), "a damaged memory came back under its old id");
    assert!(home.with_extension("disk.damaged").join("shard-1").exists());
    settle(&nodes, 3);
    assert_eq!(send(&nodes[2], 0..FLOWS), sources);
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
    let refused = place.join("n2", &known[0].1).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("form it anew"), "{said}");
    // What it says to do works.
    std::fs::remove_file(place.path().join(format!("{CLUSTER}.n1.formed"))).unwrap();
    let anew = place.ready("n1", place.form().spawn().unwrap());
    assert_eq!(settle(std::slice::from_ref(&anew), 1), 0, "state came from nowhere");
}
