//! The demo as a stranger runs it: real processes, a real kill, and what it says about them.

use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn demo(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearstate"));
    command.arg("demo").args(words.split_whitespace()).stdin(Stdio::null());
    command
}

fn report(output: &Output) -> Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

#[test]
fn a_kill_in_the_middle_loses_no_state_and_no_packet() {
    for steer in ["owner", "random"] {
        let words = format!("--flows 400 --packets 12000 --steer {steer} --kill 40 --json -");
        let report = report(&demo(&words).output().unwrap());
        let count = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((count("mismatches"), count("state_lost")), (0, 0), "{steer}: {report:#}");
        let drops: u64 =
            report["drops"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(count("packets_in"), count("packets_out") + drops, "{steer}");
        assert_eq!(report["kills"].as_array().unwrap().len(), 1, "{steer}");
        assert!(report["kills"][0]["replaced_by"].is_string(), "{steer}: {report:#}");
        assert!(count("commits") > 0, "{steer}");
    }
}

#[test]
fn a_kill_in_the_middle_of_a_nat64_loses_no_state_and_no_packet() {
    for (chain, steer) in [("nat64", "random"), ("firewall,nat,nat64", "owner")] {
        let words = "--flows 400 --packets 12000 --kill 40 --json -";
        let words = format!("--chain {chain} --steer {steer} {words}");
        let report = report(&demo(&words).output().unwrap());
        let count = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((count("mismatches"), count("state_lost")), (0, 0), "{chain}: {report:#}");
        assert_eq!(report["kills"].as_array().unwrap().len(), 1, "{chain}");
        assert!(count("commits") >= 400, "the flows are translated: {report:#}");
        assert_eq!(report["drops"].as_object().unwrap().len(), 0, "{chain}: {report:#}");
    }
}

#[test]
fn slots_move_back_and_forth_under_the_packets_and_nobody_notices() {
    for (steer, kill) in [("random", "--no-kill"), ("owner", "--no-kill"), ("random", "--kill 60")]
    {
        // Every slot has flows, and those that move have some hundred packets while they do.
        let words = "--flows 800 --packets 60000 --chain firewall,nat --moves 32";
        let output = demo(&format!("{words} --steer {steer} {kill} --json -")).output().unwrap();
        let report = report(&output);
        let count = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((count("mismatches"), count("state_lost")), (0, 0), "{steer}: {report:#}");
        let drops: u64 =
            report["drops"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(count("packets_in"), count("packets_out") + drops, "{steer}");
        assert!(count("slots_moved") > 0, "{steer}: none while packets flowed: {report:#}");
        let told = String::from_utf8(output.stderr).unwrap();
        let arrived = told.lines().filter(|line| line.contains("8 slots moved to")).count();
        assert_eq!(arrived, 4, "{steer}: all that were ordered have arrived: {told}");
    }
}

#[test]
fn more_nodes_than_replicas_share_the_shards_and_one_may_be_killed() {
    for nodes in [4, 5] {
        let words = format!("--nodes {nodes} --flows 600 --packets 12000 --kill 40 --json -");
        let report = report(&demo(&words).output().unwrap());
        let count = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((count("mismatches"), count("state_lost")), (0, 0), "{nodes}: {report:#}");
        assert!(report["kills"][0]["replaced_by"].is_string(), "{nodes}: {report:#}");
        let seen = report["nodes"].as_array().unwrap();
        assert_eq!(seen.len(), nodes + 1, "each, and a new one in the place of the killed");
        for node in &seen[..nodes] {
            let commits = node["commits"].as_u64().unwrap();
            assert!(commits > 0, "{nodes}: {} was given nothing to own: {report:#}", node["name"]);
        }
        // A cluster that steers packets to nodes that cannot own their slots would be far below.
        let locality = report["locality"].as_f64().unwrap();
        assert!(locality > 0.6, "{nodes}: {report:#}");
    }
}

/// Run directories of this demo, wherever they may be.
fn run_directories(demo: u32, temporary: &Path) -> Vec<PathBuf> {
    let prefix = format!("nearstate-demo-{demo}-");
    let list = |parent: &Path| std::fs::read_dir(parent).into_iter().flatten().flatten();
    let all = list(temporary).chain(list(Path::new("/dev/shm")));
    let of_it = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    of_it.map(|entry| entry.path()).collect()
}

#[test]
fn an_ended_demo_leaves_nothing_behind_and_a_killed_one_nothing_behind_the_next() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut demos, mut nodes) = (Vec::new(), Vec::new());
    for (signal, when) in
        [(Signal::KILL, "ready"), (Signal::INT, "packets go in"), (Signal::HUP, "ready")]
    {
        let mut child = demo("--flows 2000 --packets 400000")
            .env("TMPDIR", scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut pids = Vec::new();
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some((_, pid)) = line.split_once("pid ") {
                pids.push(pid.trim_end_matches(')').to_owned());
            }
            if line.contains(when) {
                break;
            }
        }
        assert!(!pids.is_empty(), "nodes were launched");
        assert_eq!(run_directories(child.id(), scratch.path()).len(), 1);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        // Its end closes the pipe.
        lines.for_each(drop);
        demos.push(child.id());
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{signal:?}");
        if signal != Signal::KILL {
            assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{signal:?}");
            let left: Vec<_> =
                demos.iter().flat_map(|demo| run_directories(*demo, scratch.path())).collect();
            assert!(left.is_empty(), "{signal:?} leaves {left:?}");
        }
        nodes.extend(pids);
    }
    for pid in nodes {
        assert!(!Path::new(&format!("/proc/{pid}/exe")).exists(), "{pid} still runs");
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn bad_input_is_told_and_nothing_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pcap");
    std::fs::write(&empty, b"").unwrap();
    for (words, said, code) in [
        ("--pcap missing.pcap".to_owned(), "does not exist", 1),
        (format!("--pcap {}", empty.display()), "is empty", 1),
        ("--nodes 2 --kill 50".to_owned(), "--nodes 3", 1),
        ("--chain firewall,nta".to_owned(), "'nta'", 2),
        ("--nodes 0".to_owned(), "--nodes", 2),
    ] {
        let output = demo(&words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {told}");
        assert!(told.contains("error:") && told.contains(said), "{words}: {told}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("launched"), "{words}");
    }
}
