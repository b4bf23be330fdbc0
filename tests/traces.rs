//! Real traffic, the same result wherever its packets go (P4): each trace through one node, through
//! three with a random node for each packet, and through three of which one is killed.
//!
//! Every run is compared packet by packet with a node that sees all of it and has no store (the
//! demo does that), and the runs with each other by what they let through and why they dropped the
//! rest. The traces are not part of the project: `NEARSTATE_TRACES` names their directory, or they
//! lie in `../shared/traces`; a test without its trace says so and ends.

use nearstate_nf_node::port::capture::CaptureReader;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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
    for chain in ["firewall,nat", "nat", "firewall"] {
        let Some(report) = all_ways("fragments.pcap", chain) else { return };
        assert_eq!(dropped(&report, "fragment"), 0, "each has a reason of its own: {report:#}");
        assert!(passed(&report) > 490, "{report:#}");
        for reason in ["fragments-waiting", "fragment-scattered", "contention"] {
            assert_eq!(dropped(&report, reason), 0, "{reason}: {report:#}");
        }
    }
}

/// Bytes of a datagram: where they belong, whether they are the last, and what they are.
type Part = (usize, bool, Vec<u8>);

/// Takes the fragment out of a frame: its datagram's ends, identification and IPv4 protocol, and
/// its bytes. As `fragments.datagrams.tsv` does, it looks at the outermost IP header only.
fn part(frame: &[u8]) -> Option<((IpAddr, IpAddr, u32, u8), Part)> {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    match frame.get(12..14)? {
        [8, 0] => {
            let [header, total] = [usize::from(frame[14] & 15) * 4, word(16)];
            let end = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
            let name = (end(26), end(30), word(18) as u32, frame[23]);
            let bytes = frame[14 + header..14 + total].to_vec();
            let flags = word(20) & 0x3fff;
            (flags != 0).then(|| (name, ((flags & 0x1fff) * 8, flags & 0x2000 == 0, bytes)))
        }
        [0x86, 0xdd] if frame[20] == 44 => {
            let end = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
            let ident = u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]);
            let bytes = frame[62..54 + word(18)].to_vec();
            let name = (end(22), end(38), ident, 0);
            Some((name, (word(56) & 0xfff8, word(56) & 1 == 0, bytes)))
        }
        _ => None,
    }
}

/// The payload, if the parts are all there and none overlap.
fn whole(parts: &BTreeSet<Part>) -> Option<Vec<u8>> {
    let (mut payload, mut is_over) = (vec![], false);
    for (offset, is_last, bytes) in parts {
        if *offset != payload.len() || is_over {
            return None;
        }
        payload.extend_from_slice(bytes);
        is_over = *is_last;
    }
    is_over.then_some(payload)
}

/// Through a firewall, which changes nothing: what leaves, put together by other code, has the
/// hashes that the trace comes with; and nothing that contradicts itself becomes whole.
#[test]
fn datagrams_in_fragments_come_out_with_the_hashes_of_the_trace() {
    let Some(path) = trace("fragments.pcap") else { return };
    let Some(list) = trace("fragments.datagrams.tsv") else { return };
    let out = tempfile::tempdir().unwrap();
    let way = format!("--nodes 3 --steer random --kill 50 --out {}", out.path().display());
    run(&path, "firewall", &way);
    let mut parts: BTreeMap<_, BTreeSet<Part>> = BTreeMap::new();
    for side in ["inside.pcap", "outside.pcap"] {
        for packet in CaptureReader::open(&out.path().join(side)).unwrap() {
            let found = part(&packet.unwrap().bytes);
            found.into_iter().for_each(|(name, part)| {
                parts.entry(name).or_default().insert(part);
            });
        }
    }
    let (mut right, mut untaken) = (0, 0);
    for line in std::fs::read_to_string(list).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [
            _,
            version,
            source,
            destination,
            ident,
            protocol,
            _,
            _,
            complete,
            overlap,
            conflict,
            _,
            hash,
        ] = fields[..]
        else {
            panic!("{line}");
        };
        let protocol = if version == "4" { protocol.parse().unwrap() } else { 0 };
        let ends = (source.parse().unwrap(), destination.parse().unwrap());
        let name = (ends.0, ends.1, ident.parse().unwrap(), protocol);
        let found = parts.get(&name);
        let payload = found.and_then(whole);
        if overlap == "1" || conflict == "1" || complete == "0" {
            assert!(payload.is_none(), "{line}");
        } else if let Some(payload) = payload {
            let digits: String =
                Sha256::digest(&payload).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digits, hash, "{line}");
            right += 1;
        } else {
            let has_first = found.is_some_and(|parts| parts.iter().any(|part| part.0 == 0));
            // More than a datagram can hold: it has a first, and must not become whole.
            let is_too_long = fields[11].parse::<usize>().unwrap() > 65_535;
            assert!(!has_first || is_too_long, "{line}");
            untaken += 1;
        }
    }
    assert!(right > 80, "{right} are right, {untaken} are not taken");
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
