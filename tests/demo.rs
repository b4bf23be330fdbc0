//! The demo as a stranger runs it: real processes, a real kill, and what it says about them.

use serde_json::Value;
use std::io::{BufRead, BufReader};
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
fn an_interrupted_demo_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
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
        if line.contains("packets go in") {
            break;
        }
    }
    assert_eq!(pids.len(), 3, "three nodes were launched");
    let demo_pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(demo_pid, rustix::process::Signal::INT).unwrap();
    // Its end closes the pipe.
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists(), "{pid} still runs");
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
        ("--chain firewall,nta".to_owned(), "'nta'", 1),
        ("--nodes 0".to_owned(), "--nodes", 2),
    ] {
        let output = demo(&words).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words}: {told}");
        assert!(told.contains("error:") && told.contains(said), "{words}: {told}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("launched"), "{words}");
    }
}
