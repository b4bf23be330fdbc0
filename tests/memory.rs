//! Too little memory for a node's tables: said at start, with the setting to change, before the
//! cluster has heard of the node.
//!
//! The nodes are real processes. Their memory is bounded by the shell's `ulimit -v`, which holds
//! for every user, and their tables are private memory that is never touched, so the machine needs
//! far less than they ask for.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");
/// Cells of a table: 100 MiB, four times.
const CAPACITY: u32 = 500_000;
/// Room for a node and for two of its four tables.
const LIMITED_KIB: u32 = 300_000;

/// A node process that ends with the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn config(directory: &Path, name: &str, start: &str, capacity: u32) -> String {
    let directory = directory.display();
    format!(
        r#"
        cluster = "memory"
        name = "{name}"
        listen = "127.0.0.1:0"
        directory = "{directory}"
        table-capacity = {capacity}
        shared-memory-reads = false
        start = {start}
        port = {{ kind = "shm", path = "{directory}/{name}.ring", ring = 64 }}
        [chain]
        functions = ["firewall"]
        "#
    )
}

const FORM: &str = "{ form = { slots = 64, shards = 4 } }";

fn join(seed: &str) -> String {
    format!("{{ join = {{ seeds = [\"{seed}\"] }} }}")
}

/// A node on this configuration, with so much address space if it is limited.
fn command(directory: &Path, config: &str, limit_kib: Option<u32>) -> Command {
    let path = directory.join("node.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = match limit_kib {
        Some(kib) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &kib.to_string(), PROGRAM]);
            shell
        }
        None => Command::new(PROGRAM),
    };
    // Neither the number of processors nor the allocator's reserves are to count.
    command.env("TOKIO_WORKER_THREADS", "2").env("MALLOC_ARENA_MAX", "1");
    command.args(["node", "--config"]).arg(path).stdin(Stdio::null());
    command
}

/// Starts a node; gives it with the words of its ready line.
fn start(directory: &Path, config: &str) -> (Node, Vec<String>) {
    let mut child = command(directory, config, None).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    assert_eq!(words.first().map(String::as_str), Some("ready"), "{line:?}");
    (Node(child), words)
}

fn word<'a>(words: &'a [String], key: &str) -> &'a str {
    words.iter().find_map(|word| word.strip_prefix(key)).expect("the ready line has it")
}

/// Runs a node that is not to start, and gives what it says.
fn refusal(mut command: Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

/// The setting, how much it would take, and where it was looked for.
fn assert_helpful(said: &str, capacity: u32) {
    for part in [&*format!("`table-capacity` = {capacity}"), "bytes", "anonymous memory"] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
}

#[test]
fn a_node_without_memory_for_its_tables_is_not_seen_by_the_cluster() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let (_first, words) = start(directory, &config(directory, "n1", FORM, CAPACITY));
    let join = join(word(&words, "listen="));
    let poor = config(directory, "poor", &join, CAPACITY);
    assert_helpful(&refusal(command(directory, &poor, Some(LIMITED_KIB))), CAPACITY);
    // The cluster counts its members up: had it let the poor one in, this would be the third.
    let (_second, words) = start(directory, &config(directory, "n2", &join, CAPACITY));
    assert_eq!(word(&words, "node="), "2");
}

#[test]
fn a_node_without_memory_for_its_tables_has_not_formed_a_cluster() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let form = config(directory, "n1", FORM, CAPACITY);
    assert_helpful(&refusal(command(directory, &form, Some(LIMITED_KIB))), CAPACITY);
    let files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().path()).collect();
    let traces = files.iter().filter(|path| path.extension().is_none_or(|end| end != "toml"));
    assert_eq!(traces.count(), 0, "{files:?}");
    // The same node may form it once it has the memory.
    let (_node, words) = start(directory, &form);
    assert_eq!(word(&words, "node="), "1");
}

#[test]
fn more_than_the_machine_has_is_found_before_any_of_it_is_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    // 64 tables of 6 GB. Each alone might fit.
    let form = "{ form = { slots = 64, shards = 64 } }";
    for shared in ["false", "true"] {
        let greedy = config(directory, "n1", form, 32_000_000)
            .replace("shared-memory-reads = false", &format!("shared-memory-reads = {shared}"));
        let said = refusal(command(directory, &greedy, None));
        for part in ["`table-capacity` = 32000000", "64 shards", "bytes", "are available"] {
            assert!(said.contains(part), "{said:?} does not say {part:?}");
        }
    }
}
