//! How nodes begin, join, leave and end, and what they say of it.

use crate::process::{Node, PATIENCE, PROGRAM, command, form, join, ready, start};
use nearstate_placement::api::ShardRole;
use nearstate_placement::{Map, MemberState};
use nearstate_store::{Epoch, NodeId, ShardId, Term};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Waits until every shard has these voters and an owner that the map knows, and this node owns
/// something.
fn settled(node: &Node, voters: usize) -> Map {
    loop {
        let map = node.map_with(Epoch(0), |map| map.is_formed());
        let shards = node.status().unwrap().shards;
        let whole = shards.iter().all(|shard| shard.voters.len() == voters);
        let owned = map.shards.iter().all(|s| s.owner.is_some_and(|o| o.0 == s.preferred));
        let flow = |id| map.shards[1..].iter().filter(|s| s.preferred == id).count();
        let counts: Vec<usize> = map.alive().map(|member| flow(member.id)).collect();
        let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap() < 2;
        if whole && owned && spread && shards.iter().any(|shard| shard.role == ShardRole::Owner) {
            return map;
        }
    }
}

/// Runs a node that is not to start, and gives what it says.
fn refusal(directory: &Path, config: &str) -> String {
    let output = command(directory, "refused.toml", config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Names of the files of a directory, sorted.
fn files(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn two_nodes_make_a_cluster_that_can_be_looked_at() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let first = start(directory, "n1.toml", &form(directory));
    let second = start(directory, "n2.toml", &join(directory, "n2", &first.listen));

    let status = second.run("status --json");
    assert!(status.status.success(), "{status:?}");
    let status = String::from_utf8(status.stdout).unwrap();
    for name in ["\"n1\"", "\"n2\"", "packets_in"] {
        assert!(status.contains(name), "{name} is not in {status}");
    }
    let (_, port) = second.listen.rsplit_once(':').unwrap();
    let by_name = ["status", "--cluster", "test", "--node", &format!("localhost:{port}")];
    let status = Command::new(PROGRAM).args(by_name).output().unwrap();
    assert!(status.status.success(), "host names are taken: {status:?}");
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.lines().all(|line| line.chars().count() <= 100), "{status}");
    assert!(status.contains("n1 (id 1)") && status.contains("n2 (id 2)"), "{status}");

    // A DNS question from 10.0.0.1 to 192.0.2.1. Whoever is asked, the owner's copy is read.
    let hex = "0200000000020200000000010800450000200001000040\
               11aeca0a000001c0000201 04d2 0035 000c 0000 61626364";
    let hex: String = hex.split_whitespace().collect();
    settled(&first, 2);
    for node in [&first, &second] {
        let deadline = Instant::now() + PATIENCE;
        let words = loop {
            let way = node.run(&format!("trace --side inside --hex {hex}"));
            let words = String::from_utf8(way.stdout).unwrap();
            // On a busy machine an owner may miss a renewal, and says so.
            if !words.contains("no lease at the moment") {
                break words;
            }
            assert!(Instant::now() < deadline, "{words}");
        };
        for said in [
            "from inside: UDP, udp 10.0.0.1:1234 -> 192.0.2.1:53",
            "the owner, under its lease",
            "step 2/2  nat",
            "reads   the mapping of inside endpoint udp 10.0.0.1:1234",
            "leaves    then 46 bytes to outside: UDP, udp 198.19.0.",
        ] {
            assert!(words.contains(said), "{said:?} is not in {words}");
        }
    }
}

#[test]
fn a_second_node_of_a_living_ones_name_is_refused_at_once_and_leaves_no_trace() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let first = start(directory, "n1.toml", &form(directory));
    let second = start(directory, "n2.toml", &join(directory, "n2", &first.listen));
    settled(&first, 2);
    let applied = || {
        let shards = first.status().unwrap().shards;
        shards.iter().find(|shard| shard.shard == ShardId::SYSTEM).unwrap().applied.0
    };
    let before = applied();
    let other = tempfile::tempdir().unwrap();
    for (name, holder) in [("n1", &first), ("n2", &second)] {
        let said = refusal(other.path(), &join(other.path(), name, &first.listen));
        let named = format!("{name} (id {}) at {} is alive", holder.id.0, holder.listen);
        assert!(said.contains(&named) && said.contains("`name`"), "{said}");
    }
    // What the cluster itself still puts in order is a few entries.
    assert!(applied() < before + 20, "asking again and again fills the system shard's log");
    assert_eq!(files(other.path()), ["refused.toml"], "nothing is left");
}

#[test]
fn a_node_that_is_told_to_end_hands_over_first() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let mut first = start(directory, "n1.toml", &form(directory));
    let second = start(directory, "n2.toml", &join(directory, "n2", &first.listen));
    let third = start(directory, "n3.toml", &join(directory, "n3", &first.listen));
    let before = settled(&first, 3);
    let owned: Vec<(ShardId, Term)> = before
        .shards
        .iter()
        .filter_map(|shard| shard.owner.filter(|o| o.0 == first.id).map(|o| (shard.shard, o.1)))
        .collect();
    assert!(owned.iter().any(|(shard, _)| *shard == ShardId::SYSTEM), "{before:?}");
    assert_eq!(first.end_by(Signal::TERM), Some(0));

    // By the time that it has left, others own what it owned: nobody had to miss it first.
    let after = second.map_with(before.epoch, |map| !map.state_of(first.id).is_live());
    assert_eq!(after.state_of(first.id), MemberState::Left, "{after:?}");
    for (shard, term) in owned {
        let (owner, now) = after.shard(shard).unwrap().owner.unwrap();
        assert!(owner != first.id && now > term, "{shard}: {after:?}");
    }
    let said = third.run("status");
    let said = String::from_utf8(said.stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("n1 (id 1)")).expect("it is still shown");
    assert!(line.contains("left") && line.contains(" ago"), "{said}");

    // Its next life has its name, and takes its place.
    let back = start(directory, "n1.toml", &join(directory, "n1", &second.listen));
    assert!(back.id > third.id);
    let said = String::from_utf8(third.run("status").stdout).unwrap();
    let has_row = |start: &str| said.lines().any(|line| line.starts_with(start));
    assert!(!has_row("n1 (id 1)") && has_row("n1 (id 4)"), "{said}");
}

#[test]
fn who_has_said_goodbye_is_listed_as_left_and_its_log_ends_in_peace() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let first = start(directory, "n1.toml", &form(directory));
    let _others = ["n2", "n3"].map(|name| {
        start(directory, &format!("{name}.toml"), &join(directory, name, &first.listen))
    });
    settled(&first, 3);
    // A capture without packets: the node is over as soon as it is in.
    let capture = directory.join("in.pcap");
    let words = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1];
    std::fs::write(&capture, words.map(u32::to_ne_bytes).concat()).unwrap();
    let shm = format!("kind = \"shm\", path = \"{}/n4.ring\", ring = 64", directory.display());
    let path = |name: &str| directory.join(name).display().to_string();
    let (input, inside, outside) = (path("in.pcap"), path("inside.pcap"), path("outside.pcap"));
    let pcap = format!(
        "kind = \"pcap\", input = \"{input}\", inside_output = \"{inside}\", \
         outside_output = \"{outside}\""
    );
    let config = join(directory, "n4", &first.listen);
    assert!(config.contains(&shm), "{config}");
    let ended = command(directory, "n4.toml", &config.replace(&shm, &pcap)).output().unwrap();
    let (said, log) = (String::from_utf8(ended.stdout), String::from_utf8(ended.stderr));
    let (said, log) = (said.unwrap(), log.unwrap());
    assert!(ended.status.success() && said.contains(&format!("port={input}\n")), "{said}{log}");
    assert!(log.contains("left the cluster") && !log.contains("WARN"), "{log}");
    // No group knows it any more, and still it has left, not died.
    first.map_with(Epoch(0), |map| map.state_of(NodeId(4)) == MemberState::Departed);
    let status = String::from_utf8(first.run("status").stdout).unwrap();
    let line = status.lines().find(|line| line.starts_with("n4 (id 4)")).expect("it is shown");
    assert!(line.contains("  left "), "{status}");
}

#[test]
fn the_loss_of_the_majority_is_said_by_log_status_and_door() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let founder = &mut command(directory, "n1.toml", &form(directory));
    let founder = founder.stderr(Stdio::piped()).spawn().unwrap();
    let mut first = ready(directory, "n1.toml", founder);
    let log = BufReader::new(first.child.stderr.take().unwrap());
    let others = ["n2", "n3"].map(|name| {
        start(directory, &format!("{name}.toml"), &join(directory, name, &first.listen))
    });
    settled(&first, 3);
    for mut other in others {
        assert_eq!(other.end_by(Signal::KILL), None);
    }
    let said = refusal(directory, &join(directory, "n2", &first.listen));
    assert!(said.contains("has no majority") && said.contains("only n1 (id 1) answers"), "{said}");
    let status = first.run("status");
    assert_eq!(status.status.code(), Some(1));
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("No majority of shard-0"), "{status}");
    let silent = |name: &str| status.lines().any(|l| l.starts_with(name) && l.contains("silent"));
    assert!(silent("n2 (id 2)") && silent("n3 (id 3)"), "{status}");
    let mut lines = log.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("WARN") && line.contains("nobody leads these shards")));
    // The other end of its log stays open for as long as it runs.
    drop(first);
}

#[test]
fn a_node_that_still_tries_to_join_ends_with_its_launcher() {
    let scratch = tempfile::tempdir().unwrap();
    let config = join(scratch.path(), "n2", "127.0.0.1:1");
    let launched = config.replace("table-capacity", "end-with-stdin = true\n table-capacity");
    let mut command = command(scratch.path(), "n2.toml", &launched);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).env("NEARSTATE_LOG", "debug");
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("not let in yet")), "it tries");
    drop(child.stdin.take());
    let rest: Vec<String> = log.collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
}

#[test]
fn every_polite_end_of_a_node_takes_its_files_along() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let scratch = tempfile::tempdir().unwrap();
        let mut node = start(scratch.path(), "n1.toml", &form(scratch.path()));
        assert!(files(scratch.path()).len() > 2, "regions and a ring");
        assert_eq!(node.end_by(signal), Some(0), "{signal:?}");
        assert_eq!(files(scratch.path()), ["n1.toml", "test.n1.formed"], "{signal:?}");
    }
}

#[test]
fn what_a_killed_node_leaves_goes_when_its_name_starts_again() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    // With one replica of each shard the cluster goes on without the second node.
    let alone = form(directory).replace("shards = 2", "shards = 2, replicas = 1");
    let first = start(directory, "n1.toml", &alone);
    let config = join(directory, "n2", &first.listen);
    let mut second = start(directory, "n2.toml", &config);
    assert_eq!(second.end_by(Signal::KILL), None);
    let regions = || -> BTreeSet<String> {
        let is_one = |name: &String| name.starts_with("test.n2.") && name.ends_with(".region");
        files(directory).into_iter().filter(is_one).collect()
    };
    let left = regions();
    assert_eq!(left.len(), 2, "a killed process cannot clean up");
    let _again = start(directory, "n2.toml", &config);
    let now = regions();
    assert_eq!(now.len(), 2);
    assert!(now.is_disjoint(&left), "{left:?} is still there");
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
    let mut node = start(scratch.path(), "n1.toml", &form(scratch.path()));
    assert_eq!(node.end_by(Signal::TERM), Some(0));
    let said = refusal(scratch.path(), &form(scratch.path()));
    assert!(said.contains("has formed the cluster before"), "{said}");
}

/// Listens, and says the same to everybody.
fn another_program(words: &'static [u8]) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(words);
        }
    });
    address
}

#[test]
fn other_clusters_and_other_programs_are_told_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let node = start(scratch.path(), "n1.toml", &form(scratch.path()));
    let web = another_program(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    let mute = another_program(b"");
    let nobody = "127.0.0.1:1".to_owned();
    for (address, cluster, said) in [
        (&node.listen, "tset", "belongs to another cluster than \"tset\""),
        (&web, "test", "another program listens there"),
        (&mute, "test", "ends the connection without an answer"),
        (&nobody, "test", "no node answers at 127.0.0.1:1"),
    ] {
        let asked = ["status", "--node", address, "--cluster", cluster];
        let output = Command::new(PROGRAM).args(asked).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && words.contains(said), "{said:?}: {words}");
    }
    let other = tempfile::tempdir().unwrap();
    let good = join(other.path(), "n2", &node.listen);
    for (from, to, said) in [
        ("cluster = \"test\"", "cluster = \"tset\"", "belongs to another cluster"),
        (node.listen.as_str(), web.as_str(), "another program listens there"),
    ] {
        let words = refusal(other.path(), &good.replace(from, to));
        assert!(words.contains(said) && words.contains("start.join.seeds"), "{words}");
    }
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    let scratch = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = format!("`listen` is {address}");
    let directory = format!("directory = \"{}\"", scratch.path().display());
    let ring = format!("path = \"{}/n1.ring\"", scratch.path().display());
    for (from, to, said) in [
        ("cluster =", "clutser =", "unknown field `clutser`"),
        ("127.0.0.1:0", address.as_str(), listen.as_str()),
        ("127.0.0.1:0", address.as_str(), "choose another port"),
        ("127.0.0.1:0", "192.0.2.1:0", "`listen` is 192.0.2.1:0"),
        ("table-capacity = 1024", "table-capacity = 0", "`table-capacity` is 0"),
        ("slots = 64", "slots = 63", "a power of two"),
        ("\"firewall\", \"nat\"", "\"nat\", \"router\"", "router"),
        ("allow out any", "allow owt any", "owt"),
        (directory.as_str(), "directory = \"/dev/null/run\"", "`directory` is /dev/null/run"),
        (ring.as_str(), "path = \"/missing/n1.ring\"", "`port.path`: cannot create /missing"),
    ] {
        let config = form(scratch.path());
        assert!(config.contains(from), "{from}");
        let words = refusal(scratch.path(), &config.replace(from, to));
        assert!(words.contains(said), "{words:?} does not say {said:?}");
    }
    let missing =
        Command::new(PROGRAM).args(["node", "--config", "missing.toml"]).output().unwrap();
    let words = String::from_utf8(missing.stderr).unwrap();
    assert!(
        missing.status.code() == Some(1) && words.contains("missing.toml (--config)"),
        "{words}"
    );
}

#[test]
fn a_wrong_command_line_is_exit_code_2_and_ranges_are_in_the_help() {
    for words in [
        "trace --side inside --hex 00 --chain nat,firewall",
        "demo --chain firewall,nta",
        "status --node localhost",
        "status --node 127.0.0.1:0",
    ] {
        let output = Command::new(PROGRAM).args(words.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {output:?}");
    }
    let help = Command::new(PROGRAM).args(["demo", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for range in ["1 to 1000000 ", "1 to 10000000 ", "1 to 9;", "1 to 99 %"] {
        assert!(help.contains(range), "{range:?} is not in {help}");
    }
}
