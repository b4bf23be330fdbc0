//! Nodes as an operator starts them: real processes, their configurations, their command line.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");

/// A node process that ends with the test.
struct Node {
    child: Child,
    listen: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn config(directory: &Path, name: &str, start: &str) -> String {
    let directory = directory.display();
    format!(
        r#"
        cluster = "test"
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

fn form(directory: &Path) -> String {
    config(directory, "n1", "{ form = { slots = 64, shards = 2 } }")
}

fn join(directory: &Path, name: &str, seed: &str) -> String {
    config(directory, name, &format!("{{ join = {{ seeds = [\"{seed}\"] }} }}"))
}

fn command(directory: &Path, file: &str, config: &str) -> Command {
    let path = directory.join(file);
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["node", "--config"]).arg(path).stdin(Stdio::null());
    command
}

/// Starts a node and waits until it says that it is ready.
fn start(directory: &Path, file: &str, config: &str) -> Node {
    let mut child = command(directory, file, config).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("ready"), "{line:?}");
    let listen = words.find_map(|word| word.strip_prefix("listen=")).unwrap().to_owned();
    Node { child, listen }
}

/// Runs a node that is not to start, and gives what it says.
fn refusal(directory: &Path, config: &str) -> String {
    let output = command(directory, "refused.toml", config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn ask(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).args(["--cluster", "test"]).output().unwrap()
}

#[test]
fn two_nodes_make_a_cluster_that_can_be_looked_at() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let first = start(directory, "n1.toml", &form(directory));
    let second = start(directory, "n2.toml", &join(directory, "n2", &first.listen));

    let status = ask(&["status", "--node", &second.listen, "--json"]);
    assert!(status.status.success(), "{status:?}");
    let status = String::from_utf8(status.stdout).unwrap();
    for name in ["\"n1\"", "\"n2\"", "packets_in"] {
        assert!(status.contains(name), "{name} is not in {status}");
    }

    // A DNS question from 10.0.0.1 to 192.0.2.1.
    let hex = "0200000000020200000000010800450000200001000040\
               11aeca0a000001c0000201 04d2 0035 000c 0000 61626364";
    let hex: String = hex.split_whitespace().collect();
    let way = ask(&["trace", "--node", &first.listen, "--side", "inside", "--hex", &hex]);
    let words = String::from_utf8(way.stdout).unwrap();
    assert!(words.contains("10.0.0.1:1234 -> 192.0.2.1:53"), "{words}");
    assert!(words.contains("owned by") || words.contains("owned here"), "{words}");

    drop((first, second));
    let left: Vec<_> = std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().path()).collect();
    let regions = left.iter().filter(|path| path.extension().is_some_and(|e| e == "region"));
    assert_eq!(regions.count(), 0, "{left:?}");
}

#[test]
fn a_second_node_of_a_living_ones_name_is_not_let_in() {
    let scratch = tempfile::tempdir().unwrap();
    let first = start(scratch.path(), "n1.toml", &form(scratch.path()));
    let other = tempfile::tempdir().unwrap();
    let said = refusal(other.path(), &join(other.path(), "n1", &first.listen));
    assert!(said.contains("a member of this name is alive"), "{said}");
}

#[test]
fn a_node_with_other_rules_is_not_let_in() {
    let scratch = tempfile::tempdir().unwrap();
    let first = start(scratch.path(), "n1.toml", &form(scratch.path()));
    for (from, to) in [("allow out any", "deny out any"), ("1024", "2048")] {
        let config = join(scratch.path(), "n2", &first.listen).replace(from, to);
        let said = refusal(scratch.path(), &config);
        assert!(said.contains("is not that of the cluster"), "{said}");
    }
}

#[test]
fn a_node_that_has_formed_a_cluster_forms_no_second_one() {
    let scratch = tempfile::tempdir().unwrap();
    drop(start(scratch.path(), "n1.toml", &form(scratch.path())));
    let said = refusal(scratch.path(), &form(scratch.path()));
    assert!(said.contains("has formed the cluster before"), "{said}");
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let good = form(directory);
    for (from, to, said) in [
        ("cluster =", "clutser =", "unknown field `clutser`"),
        ("127.0.0.1:0", address.as_str(), "choose another port"),
        ("table-capacity = 1024", "table-capacity = 0", "`table-capacity` is 0"),
        ("slots = 64", "slots = 63", "a power of two"),
        ("\"firewall\", \"nat\"", "\"nat\", \"router\"", "router"),
        ("allow out any", "allow owt any", "owt"),
    ] {
        assert!(good.contains(from));
        let other = tempfile::tempdir().unwrap();
        let config = form(other.path()).replace(from, to);
        let words = refusal(other.path(), &config);
        assert!(words.contains(said), "{words:?} does not say {said:?}");
    }
}

#[test]
fn the_examples_are_configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for name in ["n1", "n2", "n3"] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
        let config = nearstate_nf_node::node_config::NodeConfig::parse(&text).unwrap();
        assert_eq!(config.name, name);
        nearstate_nf_node::Chain::new(&config.chain, 1024).unwrap();
    }
}
