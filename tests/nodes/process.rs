//! A node of a test: a process of the shipped program, its configuration, and what it answers.

use nearstate_nf_node::node_config::cluster_id;
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response, StatusReport};
use nearstate_store::client::Client;
use nearstate_store::{Epoch, NodeId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");
/// The cluster of all nodes here; each test has one of its own, for it knows no other seeds.
pub(crate) const CLUSTER: &str = "test";
/// Far longer than anything takes on a machine that does much else: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

fn config(directory: &Path, name: &str, start: &str) -> String {
    let directory = directory.display();
    format!(
        r#"
        cluster = "{CLUSTER}"
        name = "{name}"
        listen = "127.0.0.1:0"
        directory = "{directory}"
        table-capacity = 1024
        start = {start}
        port = {{ kind = "shm", path = "{directory}/{name}.ring", ring = 64 }}
        [chain]
        functions = ["firewall", "nat"]
        [chain.nat]
        addresses = ["198.19.0.0/28"]
        [chain.firewall]
        rules = ["allow out any"]
        "#
    )
}

/// The configuration of n1, which forms a cluster of two flow shards.
pub(crate) fn form(directory: &Path) -> String {
    config(directory, "n1", "{ form = { slots = 64, shards = 2 } }")
}

/// The configuration of a node that joins.
pub(crate) fn join(directory: &Path, name: &str, seed: &str) -> String {
    config(directory, name, &format!("{{ join = {{ seeds = [\"{seed}\"] }} }}"))
}

/// The command that runs a node with this configuration.
pub(crate) fn command(directory: &Path, file: &str, config: &str) -> Command {
    let path = directory.join(file);
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["node", "--config"]).arg(path).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Starts a node, `n1` from `n1.toml`, and waits until it says that it is ready.
pub(crate) fn start(directory: &Path, file: &str, config: &str) -> Node {
    ready(directory, file, command(directory, file, config).spawn().unwrap())
}

/// Waits until a node that was started from this file says that it is ready.
pub(crate) fn ready(directory: &Path, file: &str, mut child: Child) -> Node {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready "), "{line:?}");
    let word = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let said = |key| word(key).unwrap_or_else(|| panic!("{line:?} has no {key}")).to_owned();
    let (id, listen) = (NodeId(said("node=").parse().unwrap()), said("listen="));
    let name = file.strip_suffix(".toml").unwrap().to_owned();
    Node { name, directory: directory.to_owned(), child, id, listen }
}

/// A process that ends with the test.
pub(crate) struct Node {
    pub(crate) name: String,
    directory: PathBuf,
    pub(crate) child: Child,
    pub(crate) id: NodeId,
    pub(crate) listen: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    pub(crate) fn ring(&self) -> PathBuf {
        self.directory.join(format!("{}.ring", self.name))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code after this signal.
    pub(crate) fn end_by(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.child.wait().unwrap().code()
    }

    /// What a command says of it.
    pub(crate) fn run(&self, words: &str) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(words.split_whitespace()).args(["--node", &self.listen]);
        command.args(["--cluster", CLUSTER]).output().unwrap()
    }

    /// What a command says of it, to programs; whether it succeeds is said too.
    pub(crate) fn json(&self, words: &str) -> (bool, Value) {
        let output = self.run(&format!("{words} --json"));
        let told = String::from_utf8_lossy(&output.stderr);
        let said = serde_json::from_slice(&output.stdout);
        (output.status.success(), said.unwrap_or_else(|error| panic!("{error}: {told}")))
    }

    /// Its answer, if it gives one.
    pub(crate) fn try_ask(&self, request: &Request) -> Option<Response> {
        let address: SocketAddr = self.listen.parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let patience = Duration::from_secs(60);
        let answer = runtime.block_on(async {
            let client = Client::connect(cluster_id(CLUSTER), address, patience).await.ok()?;
            client.call(request.encode(), patience).await.ok()
        });
        Some(Response::decode(&answer?).unwrap())
    }

    pub(crate) fn status(&self) -> Option<StatusReport> {
        match self.try_ask(&Request::Status)? {
            Response::Status(report) => Some(*report),
            other => panic!("{other:?}"),
        }
    }

    /// The first map from this one on that is as wanted.
    pub(crate) fn map_with(&self, newer_than: Epoch, is_wanted: impl Fn(&Map) -> bool) -> Map {
        let (mut newer_than, deadline) = (newer_than, Instant::now() + PATIENCE);
        while Instant::now() < deadline {
            let asked = self.try_ask(&Request::GetMap { newer_than, wait_ms: 500 });
            if let Response::Map(map) = asked.expect("it answers") {
                if is_wanted(&map) {
                    return map;
                }
                newer_than = map.epoch;
            }
        }
        panic!("no such map comes");
    }
}
