//! The examples of configurations: they can be used, and the annotated one is whole and true.

use nearstate_nf_node::chain_config::{ChainConfig, FunctionName, Nat64Config, ServiceProtocol};
use nearstate_nf_node::node_config::{
    self, Durability, NodeConfig, PortConfig, SHARDS_MAX, Start, TimingConfig,
};
use nearstate_nf_node::static_config::StaticConfig;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nearstate");

fn example(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap()
}

/// Runs an example as a process, and gives what it prints; `None` if it was not built, as it is by
/// `cargo test` of everything but not of this test alone.
fn run_example(name: &str) -> Option<Result<String, String>> {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    if !program.exists() {
        println!("skipped: {name} was not built; `cargo test --workspace` builds it");
        return None;
    }
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    Some(if output.status.success() { Ok(said) } else { Err(format!("{said}{told}")) })
}

#[test]
fn the_store_alone_writes_reads_and_watches() {
    // A busy host may cost the owner its lease in between; then the example says so and ends.
    let mut said = run_example("store_alone");
    for _ in 0..4 {
        match &said {
            Some(Err(told)) if told.contains("an election came between") => {
                said = run_example("store_alone");
            }
            _ => break,
        }
    }
    let Some(said) = said else { return };
    let said = said.unwrap_or_else(|told| panic!("{told}"));
    let lines: Vec<&str> = said.lines().collect();
    let wanted: [&[&str]; 7] = [
        &["three replicas on loopback; node-", " owns the shard"],
        &["written through node-", ", if absent: Committed(LogIndex("],
        &["once more, if absent: ConditionFailed(0)"],
        &["read in place at node-", ": v1 in "],
        &["asked through node-", ": v1 in "],
        &["changed, if still that version: Committed(LogIndex("],
        &["which watched, now holds Some(Entry", "Value(0300000000000000", "Version(2)"],
    ];
    assert_eq!(lines.len(), wanted.len(), "{said}");
    for (line, words) in lines.iter().zip(wanted) {
        assert!(words.iter().all(|word| line.contains(word)), "{line:?} has not {words:?}");
    }
    let owner = lines[0].split(' ').find(|word| word.starts_with("node-")).unwrap();
    assert!(lines[3].contains(&format!("at {owner}:")), "the owner reads in place: {said}");
}

#[test]
fn the_examples_are_configurations() {
    let files = [("n1", "n1"), ("n2", "n2"), ("n3", "n3"), ("pcap", "n4"), ("node", "n1")];
    for (file, name) in files {
        let config = NodeConfig::parse(&example(file)).unwrap();
        assert_eq!(config.name, name);
        nearstate_nf_node::Chain::new(&config.chain, 1024).unwrap();
    }
}

#[test]
fn the_annotated_example_shows_the_defaults() {
    let needed = r#"
        cluster = "nearstate"
        name = "n1"
        listen = "127.0.0.1:7001"
        directory = "/dev/shm/nearstate"
        start = { form = { shards = 3 } }
        port = { kind = "shm", path = "/dev/shm/nearstate/n1.ring" }
        [chain]
        functions = ["firewall", "nat"]
        nat = { addresses = ["198.19.0.0/24"] }
        firewall = { rules = ["allow out any", "deny in any"] }
    "#;
    let mut whole = NodeConfig::parse(&example("node")).unwrap();
    assert_eq!(whole, NodeConfig::parse(needed).unwrap());
    // The parts that are comments, because they cannot stand beside the others.
    let text = example("node").replace("# [chain.load_balancer]", "[chain.load_balancer]");
    let commented = text.split_once("[chain.load_balancer]").unwrap().1;
    let keys = |line: &&str| line.contains(" = ") || line.starts_with("# [[");
    let lines = commented.lines().filter(keys).map(|line| line.trim_start_matches("# "));
    let balancer: Vec<&str> = lines.collect();
    let balancer = balancer.join("\n").replace("[[chain.load_balancer.", "[[");
    let shown = toml::from_str(&balancer).unwrap_or_else(|error| panic!("{error}: {balancer}"));
    whole.chain.load_balancer = Some(shown);
    let (_, commented) = text.split_once("# [chain.nat64]").unwrap();
    let commented = commented.split_once("\n\n").unwrap().0;
    let lines = commented.lines().filter(keys).map(|line| line.trim_start_matches("# "));
    let nat64 = lines.collect::<Vec<_>>().join("\n").replace("[[chain.nat64.", "[[");
    let shown: Nat64Config = toml::from_str(&nat64).unwrap_or_else(|e| panic!("{e}: {nat64}"));
    let least = "addresses = [\"198.19.1.0/24\"]\n[[static]]\nexternal = \"198.19.1.1:443\"\n\
                 inside = \"[2001:db8::5]:8443\"\nprotocol = \"tcp\"";
    assert_eq!(shown, toml::from_str(least).unwrap());
    whole.chain.functions.push(FunctionName::Nat64);
    whole.chain.nat64 = Some(shown);
    nearstate_nf_node::Chain::new(&ChainConfig { load_balancer: None, ..whole.chain.clone() }, 64)
        .unwrap();
    let least = "[[service]]\nprotocol = \"tcp\"\naddress = \"203.0.113.80:443\"\n\
                 backends = [{ endpoint = \"10.0.1.1:8443\" }, \
                 { endpoint = \"10.0.1.2:8443\", weight = 2 }]";
    assert_eq!(whole.chain.load_balancer, Some(toml::from_str(least).unwrap()));
}

/// All keys that a configuration can have. Without `..`, so that a new one comes in here.
fn all_keys() -> Vec<String> {
    fn walk(value: &toml::Value, keys: &mut Vec<String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    keys.push(key.clone());
                    walk(value, keys);
                }
            }
            toml::Value::Array(values) => values.iter().for_each(|value| walk(value, keys)),
            _ => {}
        }
    }
    let names = ["firewall", "nat"];
    let mut chain = ChainConfig::named(&names).unwrap();
    chain.load_balancer = ChainConfig::named(&["load-balancer"]).unwrap().load_balancer;
    chain.nat64 = ChainConfig::named(&["nat64"]).unwrap().nat64;
    chain.nat.as_mut().unwrap().static_mappings = vec![StaticConfig {
        external: "198.19.0.1:443".parse().unwrap(),
        inside: "10.0.0.5:8443".parse().unwrap(),
        protocol: Some(ServiceProtocol::Tcp),
    }];
    let starts = [
        Start::Form { slots: 2, shards: 1, replicas: 1 },
        Start::Join { seeds: vec!["127.0.0.1:1".parse().unwrap()] },
    ];
    let path = || "p".into();
    let ports = [
        PortConfig::Shm { path: path(), ring: 2 },
        PortConfig::Pcap { input: path(), inside_output: path(), outside_output: path() },
    ];
    let mut keys = Vec::new();
    for (start, port) in starts.into_iter().zip(ports) {
        let config = NodeConfig {
            cluster: "c".into(),
            name: "n".into(),
            listen: "127.0.0.1:1".parse().unwrap(),
            directory: path(),
            log_directory: Some(path()),
            start,
            durability: Durability::Disk,
            port,
            table_capacity: 64,
            shared_memory_reads: true,
            end_with_stdin: true,
            steer_seed: 1,
            timing: TimingConfig {
                heartbeat_ms: 1,
                election_min_ms: 2,
                election_max_ms: 3,
                lease_ms: 3,
                lease_margin_ms: 4,
            },
            chain: chain.clone(),
        };
        walk(&toml::Value::try_from(&config).unwrap(), &mut keys);
    }
    keys
}

#[test]
fn the_annotated_example_has_every_key_and_the_true_ranges() {
    let text = example("node");
    for key in all_keys() {
        let is_there = text.lines().map(|line| line.trim_start_matches("# ")).any(|line| {
            let in_table = line.contains(&format!("{{ {key} = "));
            let inside = line.contains(&format!(", {key} = "));
            let header = line.trim_matches(['[', ']']).split('.').any(|part| part == key);
            line.starts_with(&format!("{key} = ")) || in_table || inside || header
        });
        assert!(is_there, "examples/node.toml does not have the key {key}");
    }
    for (what, limit) in [
        ("cells", node_config::CAPACITY_MAX as usize),
        ("shards", usize::from(SHARDS_MAX)),
        ("slots", nearstate_placement::steer::SLOTS_MAX as usize),
        ("characters of a name", node_config::NAME_BYTES_MAX),
        ("rules", nearstate_nf_node::nf::rules::RULES_MAX),
        ("addresses", nearstate_store::pool_spec::ADDRESSES_MAX),
        ("prefixes", nearstate_nf_node::nf::nat44::UNTRANSLATED_MAX),
        ("static mappings", nearstate_placement::static_map::STATIC_MAPPINGS_MAX),
        ("blocks", nearstate_store::pool_spec::BLOCKS_PER_ADDRESS as usize),
        ("places", nearstate_nf_node::maglev::TABLE_SIZE_MAX as usize),
    ] {
        let number = limit.to_string();
        let mut words = text.split(|c: char| !c.is_ascii_digit());
        assert!(words.any(|word| word == number), "examples/node.toml says no {number} of {what}");
    }
    let help = Command::new(PROGRAM).args(["node", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("shared-memory-reads = true"), "{help}");
}
