//! Real traffic, the same result wherever its packets go (P4): each trace through one node, through
//! three with a random node for each packet, and through three of which one is killed.
//!
//! Every run is compared packet by packet with a node that sees all of it and has no store (the
//! demo does that), and the runs with each other by what they let through and why they dropped the
//! rest. The traces are not part of the project: `NEARSTATE_TRACES` names their directory, or they
//! lie in `../shared/traces`; a test without its trace says so and ends.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The three ways through.
const WAYS: [&str; 3] =
    ["--nodes 1", "--nodes 3 --steer random --no-kill", "--nodes 3 --steer random --kill 50"];

fn trace(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    let directory = std::env::var_os("NEARSTATE_TRACES").map_or_else(beside, PathBuf::from);
    let path = directory.join(name);
    if !path.exists() {
        println!("skipped: {} is not here; NEARSTATE_TRACES names a directory", path.display());
        return None;
    }
    Some(path)
}

fn run(path: &Path, chain: &str, way: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_nearstate"))
        .args(["demo", "--json", "-", "--chain", chain, "--pcap"])
        .arg(path)
        .args(way.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{chain} {way}: {told}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// Sends a trace all three ways; gives what came of it.
fn all_ways(name: &str, chain: &str) -> Option<Value> {
    let path = trace(name)?;
    let reports = WAYS.map(|way| {
        let report = run(&path, chain, way);
        let count = |key: &str| report[key].as_u64().unwrap();
        let what = format!("{name}, {chain}, {way}");
        assert_eq!((count("mismatches"), count("state_lost")), (0, 0), "{what}: {report:#}");
        let drops = report["drops"].as_object().unwrap().values().filter_map(Value::as_u64);
        assert_eq!(count("packets_in"), count("packets_out") + drops.sum::<u64>(), "{what}");
        let kills = report["kills"].as_array().unwrap().len();
        assert_eq!(kills, usize::from(way.contains("--kill")), "{what}: the fault was applied");
        report
    });
    for (way, report) in WAYS.iter().zip(&reports).skip(1) {
        for key in ["packets_in", "packets_out", "drops", "flows"] {
            assert_eq!(report[key], reports[0][key], "{name}, {chain}, {way}: {key}");
        }
    }
    let [report, ..] = reports;
    Some(report)
}

fn dropped(report: &Value, reason: &str) -> u64 {
    report["drops"][reason].as_u64().unwrap_or(0)
}

/// What passed of a trace that has packets to pass.
fn passed(report: &Value) -> u64 {
    report["packets_out"].as_u64().unwrap()
}

#[test]
fn enterprise_mix_is_the_same_at_one_node_at_three_and_with_a_kill() {
    let Some(report) = all_ways("enterprise-mix.pcap", "firewall,nat") else { return };
    assert!(passed(&report) > 80_000, "{report:#}");
}

/// The same hosts, behind a NAT64: they speak IPv6, and errors cross both ways.
#[test]
fn traces_over_ipv6_are_the_same_at_one_node_at_three_and_with_a_kill() {
    for (name, least) in [("enterprise-mix.pcap", 80_000), ("icmp-errors.pcap", 1_500)] {
        let Some(report) = all_ways(name, "nat64") else { return };
        assert!(passed(&report) > least, "{report:#}");
        assert_eq!(dropped(&report, "no-translation"), 0, "{report:#}");
        assert!(dropped(&report, "icmp-unrelated") <= 30, "{report:#}");
    }
}

#[test]
fn icmp_errors_are_the_same_at_one_node_at_three_and_with_a_kill() {
    for chain in ["firewall,nat", "nat"] {
        let Some(report) = all_ways("icmp-errors.pcap", chain) else { return };
        // 176 of its errors are about flows of the trace.
        assert!(passed(&report) > 1_500, "{report:#}");
        assert!(dropped(&report, "icmp-unrelated") <= 30, "{report:#}");
    }
}

#[test]
fn fragments_are_the_same_at_one_node_at_three_and_with_a_kill() {
    for chain in ["firewall,nat", "nat"] {
        let Some(report) = all_ways("fragments.pcap", chain) else { return };
        assert!(dropped(&report, "fragment") > 800, "none is let through yet: {report:#}");
    }
}

#[test]
fn malformed_packets_are_the_same_at_one_node_at_three_and_with_a_kill() {
    for chain in ["firewall,nat", "nat"] {
        let Some(report) = all_ways("malformed.pcap", chain) else { return };
        for reason in ["bad-ip-header", "bad-ip-checksum", "bad-ip-length", "bad-tcp-header"] {
            assert!(dropped(&report, reason) > 0, "{reason}: {report:#}");
        }
    }
}
