//! `nearstate store`, `nat` and `explain`, as an operator uses them: on real nodes that hold flows,
//! and on the files that they leave.

use crate::process::{CLUSTER, Node, PATIENCE, PROGRAM, command, form, join, ready, start};
use crate::sender::Sender;
use nearstate_store::Endpoint;
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

const FLOWS: u16 = 20;

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

/// What a command says about a node, and whether it succeeds.
fn ask(node: &Node, command: &str) -> (bool, String) {
    let output = node.run(command);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() || !said.is_empty(), "{command}: {:?}", output.stderr);
    (output.status.success(), said)
}

/// What a command says once it succeeds: on a busy machine a shard may be without owner for a
/// moment, and a command that needs one says so and fails.
fn told<T: std::fmt::Debug>(mut ask: impl FnMut() -> (bool, T)) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            (true, said) => return said,
            (false, said) => assert!(Instant::now() < deadline, "{said:#?}"),
        }
    }
}

fn json_of(node: &Node, command: &str) -> Value {
    told(|| node.json(command))
}

/// Asks until the answer is as wanted.
fn ask_until(node: &Node, command: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, said) = node.json(command);
        if wanted(&said) {
            return said;
        }
        assert!(Instant::now() < deadline, "{command}: {said:#}");
    }
}

/// Sends a packet of each flow through a node, and gives where the last then came from.
fn send(node: &Node) -> Endpoint {
    let mut sender = Sender::new(node);
    let flows = (0..FLOWS).map(|flow| Endpoint::v4([10, 0, 0, 1], 2000 + flow));
    flows.map(|inside| sender.external_of(inside)).last().unwrap()
}

/// What an entry is about, its version and its slot: what is counted at it rises meanwhile.
fn identity(entry: &Value) -> (String, String, String) {
    (entry["about"].to_string(), entry["version"].to_string(), entry["slot"].to_string())
}

fn has_two_replicas(said: &Value) -> bool {
    let agree = |shard: &Value| shard["verdict"] == "agree" && shard["agreeing"] == 2;
    said["shards"].as_array().unwrap().iter().all(agree)
}

#[test]
fn what_nodes_hold_can_be_looked_at_and_what_they_leave_be_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let durable = |config: String| config.replacen("[chain]", "durability = \"disk\"\n[chain]", 1);
    let mut first = start(directory, "n1.toml", &durable(form(directory)));
    let config = durable(join(directory, "n2", &first.listen));
    let mut second = start(directory, "n2.toml", &config);
    ask_until(&first, "store hash", has_two_replicas);
    let external = send(&first).to_string();

    // Both hold the same, and each flow has three entries.
    let hashes = ask_until(&second, "store hash", has_two_replicas);
    assert_eq!(hashes["shards"].as_array().unwrap().len(), 3, "{hashes:#}");
    let stat =
        ask_until(&second, "store stat", |said| said["shards"].as_array().unwrap().len() == 3);
    let tables = stat["shards"].as_array().unwrap().iter().map(|shard| &shard["table"]);
    let entries: u64 = tables.filter_map(|table| table["entries"].as_u64()).sum();
    assert_eq!(entries, 3 * u64::from(FLOWS), "{stat:#}");
    assert!(stat["shards"].as_array().unwrap().iter().all(|one| one["is_durable"] == true));
    let said = told(|| ask(&first, "store stat --shard 1"));
    assert!(said.contains("log on disk") && said.contains("from home: "), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");

    // A flow is found by what is known of it: its endpoints, or its external endpoint.
    let found = json_of(&second, "store get udp 10.0.0.1:2003 192.0.2.1:53");
    let kinds = |found: &Value, node: &str| {
        let entries = found["entries"].as_array().unwrap().iter();
        let at_node = entries.filter(|entry| entry["node"].as_str().unwrap().starts_with(node));
        at_node.map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for node in ["n1", "n2"] {
        assert_eq!(kinds(&found, node).len(), 2, "{found:#}");
        assert!(kinds(&found, node).contains(&"firewall".to_owned()), "{found:#}");
    }
    let said = told(|| ask(&first, &format!("store get udp {external}")));
    assert!(said.contains("the holder of external endpoint udp"), "{said}");
    assert!(said.contains("owner at ") && said.contains("copy at "), "{said}");
    let (well, said) = ask(&first, "store get tcp 10.0.0.1:2003");
    assert!(!well && said.contains("no node"), "{said}");

    check_listings(&first, &stat);
    check_nat(&second);
    check_explain(&first);

    let damaged = directory.join(format!("{CLUSTER}.n2.disk"));
    let in_use = run(&["store", "verify", &damaged.display().to_string()]);
    assert_eq!(in_use.status.code(), Some(1));
    let said = String::from_utf8(in_use.stderr).unwrap();
    assert!(said.contains("cannot be checked"), "{said}");
    // Durable nodes end and are expected back. One alone commits nothing, so what it holds stands
    // still: else the owner's notes on what it counted would come between two looks.
    first.end_by(Signal::TERM);
    check_stopped(&mut second, &damaged);
    check_files(directory, &damaged);
}

#[test]
fn the_log_says_which_pages_each_table_got() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let shared = form(directory);
    let own = shared.replacen("[chain]", "shared-memory-reads = false\n[chain]", 1);
    for (name, config) in [("shared", shared), ("own", own)] {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        let config = config.replace(scratch.path().to_str().unwrap(), directory.to_str().unwrap());
        let log = directory.join("log");
        let mut starting = command(&directory, "n1.toml", &config);
        starting.env_remove("NEARSTATE_LOG").stderr(std::fs::File::create(&log).unwrap());
        let node = ready(&directory, "n1.toml", starting.spawn().unwrap());
        let stat = json_of(&node, "store stat");
        let log = std::fs::read_to_string(log).unwrap();
        let tables: Vec<_> = stat["shards"].as_array().unwrap()[1..].iter().collect();
        assert_eq!(tables.len(), 2, "{stat:#}");
        for shard in tables {
            let (bytes, memory) = (&shard["table"]["bytes"], &shard["table"]["memory"]);
            let memory = memory.as_str().unwrap();
            assert_eq!(memory.starts_with("shared file on "), name == "shared", "{memory}");
            assert!(memory.ends_with(" pages"), "{memory}");
            let wanted = format!("memory for a region bytes={bytes} backing={memory}");
            assert!(log.lines().any(|line| line.ends_with(&wanted)), "{wanted}: {log}");
        }
    }
}

/// A listing is bounded, and says so; a slot's is part of it.
fn check_listings(node: &Node, stat: &Value) {
    let listed = |more: &str| {
        let said = json_of(node, &format!("store scan {more}"));
        let entries = said["entries"].as_array().unwrap().iter().map(identity);
        (entries.collect::<Vec<_>>(), said["is_all"] == true)
    };
    // All flows are of one inside host, so they are in one slot.
    let tables = stat["shards"].as_array().unwrap().iter();
    let full = tables.max_by_key(|one| one["table"]["entries"].as_u64()).unwrap();
    let full = full["shard"].to_string();
    let (one, is_all) = listed(&format!("--shard {full} --limit 5"));
    assert_eq!((one.len(), is_all), (5, false));
    let (one, is_all) = listed(&format!("--shard {full} --limit 1000"));
    assert_eq!((one.len(), is_all), (usize::from(3 * FLOWS), true));
    let (_, _, slot) = &one[0];
    assert_eq!(listed(&format!("--shard {full} --slot {slot}")).0, one);
    assert_eq!(listed(&format!("--shard {full} --slot 65535")).0.len(), 0);
}

/// One inside host has a block, a port of it for each flow, and a mapping.
fn check_nat(node: &Node) {
    let pools = json_of(node, "nat pools --interval 0");
    let pool = &pools["pools"][0];
    assert_eq!(pools["pools"].as_array().unwrap().len(), 1, "{pools:#}");
    assert_eq!((&pool["blocks_held"], &pool["live"]["udp"]), (&1.into(), &FLOWS.into()));
    assert!(pool["full_in_s"].is_null(), "one look says nothing of growth: {pools:#}");
    let said = told(|| ask(node, "nat pools --interval 1"));
    assert!(said.contains("full in") && said.contains("0.0"), "{said}");

    let held = json_of(node, "nat subscribers");
    let (one, is_all) = (&held["subscribers"][0], &held["is_all"]);
    assert_eq!((&one["subscriber"], &one["live"]), (&"10.0.0.1".into(), &FLOWS.into()));
    assert_eq!((held["subscribers"].as_array().unwrap().len(), is_all), (1, &true.into()));

    let mappings = |more: &str| {
        let said = json_of(node, &format!("nat mappings {more}"));
        (said["mappings"].as_array().unwrap().clone(), said["is_all"] == true)
    };
    let (all, is_all) = mappings("");
    assert_eq!((all.len(), is_all), (usize::from(FLOWS), true));
    let external = |one: &Value| one["external"].as_str().unwrap().to_owned();
    assert!(all.iter().all(|one| external(one).starts_with("198.19.0.")), "{all:#?}");
    let (some, is_all) = mappings("--limit 7");
    assert_eq!((some.len(), is_all), (7, false));
    let same: Vec<_> = mappings("--inside 10.0.0.1").0.iter().map(identity).collect();
    assert_eq!(same, all.iter().map(identity).collect::<Vec<_>>());
    assert_eq!(mappings("--inside 10.0.0.2"), (Vec::new(), true));
}

const KINDS: [&str; 3] = ["nat-out", "nat-in", "firewall"];

/// The owner's one entry of a kind, if an owner answers.
fn owned<'a>(said: &'a Value, kind: &str) -> Option<&'a Value> {
    let entries = said["entries"].as_array().unwrap().iter();
    let mut owned = entries.filter(|one| one["kind"] == kind && one["is_current"] == true);
    let found = owned.next();
    assert!(owned.next().is_none(), "{kind} twice: {said:#}");
    found
}

/// A flow is told with its entries, their timers and what was counted, and what becomes of its
/// packets.
fn check_explain(node: &Node) {
    let command = "explain udp 10.0.0.1:2003 192.0.2.1:53";
    // Each of its packets counts at the mapping and at the firewall's entry; the owner tells that
    // soon. One that loses its place before has lost the count, and another packet shows it.
    let mut sender = Sender::new(node);
    let mut lost = Instant::now() + PATIENCE / 8;
    let counted = |said: &Value| {
        let of_kind = |kind: &str| {
            let entries = said["entries"].as_array().unwrap().iter();
            let of_kind = entries.filter(|one| one["kind"] == kind);
            of_kind.map(|one| one["packets"].as_u64().unwrap_or(0)).collect::<Vec<_>>()
        };
        let is_told = |kind| matches!(of_kind(kind)[..], [one, two] if one == two && one > 0);
        let is_known = is_told("nat-out") && is_told("firewall");
        if !is_known && Instant::now() > lost {
            lost += PATIENCE / 8;
            sender.external_of(Endpoint::v4([10, 0, 0, 1], 2003));
        }
        is_known && KINDS.iter().all(|kind| owned(said, kind).is_some())
    };
    let said = ask_until(node, command, counted);
    for kind in KINDS {
        let owned = owned(&said, kind).unwrap();
        assert_eq!(owned["ttl_s"], if kind == "nat-in" { 0 } else { 300 }, "{said:#}");
        let each = if kind == "nat-in" { 0 } else { 43 };
        let count = owned["packets"].as_u64().unwrap_or(0);
        assert_eq!(owned["bytes"].as_u64().unwrap_or(0), each * count, "{said:#}");
    }
    let packets = said["packets"].as_array().unwrap();
    let lines = |at: usize| packets[at]["trace"].to_string();
    assert!(lines(0).contains("leaves") && lines(1).contains("leaves"), "{said:#}");
    assert!(packets[1]["packet"].as_str().unwrap().contains("-> 198.19.0."), "{said:#}");
    let text = told(|| {
        let (well, text) = ask(node, command);
        (well && !text.contains("owned by nobody"), text)
    });
    assert!(text.contains("owned by ") && text.contains("ends in "), "{text}");
    let count = owned(&said, "nat-out").unwrap()["packets"].as_u64().unwrap();
    assert!(text.contains(&format!("packets {count}, bytes {}", count * 43)), "{text}");
    let (well, text) = ask(node, "explain tcp 10.0.0.9:1 192.0.2.1:80");
    assert!(!well && text.contains("no node") && text.contains("commit"), "{text}");
}

/// What a command says of a stopped node's files.
fn look(command: &str, directory: &Path) -> (bool, Value) {
    let directory = directory.display().to_string();
    let mut words: Vec<&str> = command.split_whitespace().collect();
    words.extend(["--directory", &directory, "--json"]);
    let output = run(&words);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = serde_json::from_slice(&output.stdout);
    (output.status.success(), said.unwrap_or(Value::String(told)))
}

/// All files below a directory.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// What a node's replicas come to, once all that is committed is applied.
fn settled_hashes(node: &Node) -> Vec<Value> {
    let mut last = Vec::new();
    ask_until(node, "store hash", |said| {
        let shards = said["shards"].as_array().unwrap().iter();
        let replicas = shards.flat_map(|shard| shard["replicas"].as_array().unwrap().clone());
        let own = replicas.filter(|replica| replica["id"] == node.id.0).collect::<Vec<_>>();
        let is_settled = own == last;
        last = own;
        is_settled
    });
    last
}

/// What a killed node has left says the same as it said itself when it was the last.
fn check_stopped(node: &mut Node, home: &Path) {
    let shards = ["--shard 1 --limit 1000", "--shard 2 --limit 1000"];
    let flow = "store get udp 10.0.0.1:2003 192.0.2.1:53";
    let entries = |said: &Value| {
        let of_node = said["entries"].as_array().unwrap().iter();
        let of_node = of_node.filter(|one| one["node"].is_null() || one["node"] == "n2 (id 2)");
        let mut entries: Vec<_> = of_node.map(identity).collect();
        entries.sort();
        entries
    };
    let table = |said: &Value| {
        let shards = said["shards"].as_array().unwrap().iter();
        let figures = ["shard", "applied", "outcomes_remembered", "is_durable"];
        let words = |one: &Value| {
            let mut words: Vec<_> = figures.iter().map(|name| one[name].to_string()).collect();
            words.push(one["table"]["entries"].to_string());
            words.push(one["table"]["capacity"].to_string());
            words
        };
        shards.map(words).collect::<Vec<_>>()
    };
    for command in ["store stat", "store scan --shard 1", flow, "store hash"] {
        let (well, said) = look(command, home);
        assert!(!well && said.to_string().contains("in use by another process"), "{said:#}");
    }
    let hashes = settled_hashes(node);
    assert_eq!(hashes.len(), 3);
    let stat = json_of(node, "store stat");
    assert_eq!(stat["refusals"]["oversize"], 0, "{stat:#}");
    let scans = shards.map(|shard| entries(&json_of(node, &format!("store scan {shard}"))));
    let (well, found) = node.json(flow);
    assert!(!well, "the other node does not answer: {found:#}");
    let found = entries(&found);
    node.end_by(Signal::KILL);

    let files = contents(home);
    let (well, left) = look("store hash", home);
    assert!(well, "{left:#}");
    let left = left["shards"].as_array().unwrap().iter().map(|shard| &shard["replicas"][0]);
    assert_eq!(left.cloned().collect::<Vec<_>>(), hashes, "index, hash and ports of each shard");
    let (well, left) = look("store stat", home);
    assert!(well && left["refusals"].is_null(), "{left:#}");
    assert_eq!(table(&left), table(&stat));
    for (shard, scan) in shards.iter().zip(scans) {
        assert_eq!(entries(&look(&format!("store scan {shard}"), home).1), scan);
    }
    let (well, left) = look(flow, home);
    assert!(well && found.len() == 2, "{left:#}");
    assert_eq!(entries(&left), found);
    let (well, none) = look("store get tcp 10.0.0.1:2003", home);
    assert!(!well && none["entries"].as_array().unwrap().is_empty(), "{none:#}");
    let (well, said) = look("store scan --shard 3", home);
    assert!(!well && said.to_string().contains("flow shards 1 to 2"), "{said:#}");
    let (well, said) = look("store stat", &home.join("shard-1"));
    assert!(!well && said.to_string().contains("CLUSTER.NAME.disk"), "{said:#}");
    assert!(contents(home) == files, "nothing is written");
}

/// Two stopped nodes' files are whole, and a flipped bit is found.
fn check_files(directory: &Path, damaged: &Path) {
    let place = directory.display().to_string();
    let whole = run(&["store", "verify", &place, "--json"]);
    let said: Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert!(whole.status.success(), "{said:#}");
    assert_eq!(said["nodes"].as_array().unwrap().len(), 2, "{said:#}");
    let shards = said["nodes"][1]["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 3, "{said:#}");
    assert!(shards.iter().all(|shard| shard["last"].as_u64() > Some(0)), "{said:#}");

    let mut segments = std::fs::read_dir(damaged.join("shard-1")).unwrap().map(Result::unwrap);
    let is_log = |entry: &std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("log-") && name.ends_with(".segment")
    };
    let path = segments.find(is_log).unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    // In its head, which was synced before anything else was.
    bytes[20] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let found = run(&["store", "verify", &place]);
    let said = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("DAMAGED").count(), 1, "{said}");
    assert!(said.contains("the checksum of its header does not fit"), "{said}");
    assert_eq!(bytes, std::fs::read(&path).unwrap(), "nothing is changed");

    let empty = run(&["store", "verify", &damaged.join("shard-1").display().to_string()]);
    assert_eq!(empty.status.code(), Some(1));
    let said = String::from_utf8(empty.stderr).unwrap();
    assert!(said.contains("holds no node's logs"), "{said}");
}
