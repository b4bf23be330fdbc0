//! Slots that move between shards of real nodes while one of those that move them is killed: the
//! move comes to its end all the same, every flow keeps its address, no port leaks, and all
//! replicas hold the same.

use crate::process::{Node, PATIENCE, form, join, start};
use crate::sender::Sender;
use nearstate_placement::{Map, MovePhase};
use nearstate_store::{Endpoint, Epoch, ShardId};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// Inside hosts: each has its slot.
const HOSTS: u8 = 60;
const FLOWS_OF_HOST: u16 = 3;
const SOURCE: ShardId = ShardId(1);
const TARGET: ShardId = ShardId(2);
/// All slots of the source.
const SLOTS: u16 = 32;
/// Of them, so many have moved when a node is killed.
const BEFORE: usize = 5;

/// Waits until so many replicas of every shard hold the same, and no port has leaked; gives the
/// ports in use.
fn replicas_agree(node: &Node, replicas: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, said) = node.json("store hash");
        let shards = said["shards"].as_array().unwrap();
        let ports = |shard: &Value| shard["replicas"][0]["ports"]["live"].as_u64();
        for replica in shards.iter().flat_map(|shard| shard["replicas"].as_array().unwrap()) {
            assert_ne!(replica["ports"]["leaks"], true, "{said:#}");
        }
        let agree = |shard: &Value| {
            assert_ne!(shard["verdict"], "differ", "{said:#}");
            shard["agreeing"].as_u64() == Some(replicas)
        };
        if shards.len() == 3 && shards.iter().all(agree) {
            return shards.iter().filter_map(ports).sum();
        }
        assert!(Instant::now() < deadline, "{said:#}");
    }
}

type Seen = BTreeMap<(u8, u16), Endpoint>;

/// Sends a packet of each flow through a node until it has left, and gives where each then came
/// from.
fn send(node: &Node) -> Seen {
    let mut sender = Sender::new(node);
    let flows = (1..=HOSTS).flat_map(|host| (0..FLOWS_OF_HOST).map(move |flow| (host, flow)));
    let inside = |(host, flow)| Endpoint::v4([10, 0, 0, host], 2000 + flow);
    flows.map(|flow| (flow, sender.external_of(inside(flow)))).collect()
}

/// Every entry lies in the shard that the map says.
fn lies_where_the_map_says(node: &Node, map: &Map) {
    let mut entries = 0;
    for shard in [SOURCE, TARGET] {
        let (_, said) = node.json(&format!("store scan --shard {} --limit 10000", shard.0));
        assert_eq!(said["is_all"], true);
        for entry in said["entries"].as_array().unwrap() {
            let slot = entry["slot"].as_u64().unwrap() as usize;
            assert_eq!(map.slot_to_shard[slot], shard.0, "{entry:#}");
            entries += 1;
        }
    }
    let flows = usize::from(HOSTS) * usize::from(FLOWS_OF_HOST);
    assert_eq!(entries, 3 * flows, "each flow has three entries");
}

/// Kills the owner of a shard in the middle of an order to move all slots of the source.
fn kill_owner_of(shard: ShardId) {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let mut nodes = vec![start(directory, "n1.toml", &form(directory))];
    for name in ["n2", "n3"] {
        let config = join(directory, name, &nodes[0].listen);
        nodes.push(start(directory, &format!("{name}.toml"), &config));
    }
    let owner = |map: &Map, shard: ShardId| map.shards[usize::from(shard.0)].owner.map(|o| o.0);
    nodes[0].map_with(Epoch(0), |map| {
        let (one, two) = (owner(map, SOURCE), owner(map, TARGET));
        let settled = map.shards.iter().all(|s| s.owner.map(|o| o.0) == Some(s.preferred));
        settled && one != two && map.shards.iter().all(|shard| shard.replicas.len() == 3)
    });
    replicas_agree(&nodes[0], 3);
    let flows = send(&nodes[0]);

    let ordered = nodes[0].run(&format!("slots move --from 1 --count {SLOTS} --to 2 --no-wait"));
    assert!(ordered.status.success(), "{ordered:?}");
    let map = nodes[0].map_with(Epoch(0), |map| {
        let first = map.moves.first();
        let is_switching = first.is_some_and(|first| first.phase == MovePhase::Switching);
        is_switching && map.moves.len() <= usize::from(SLOTS) - BEFORE
    });
    let victim = nodes.iter().position(|node| Some(node.id) == owner(&map, shard)).unwrap();
    let mut victim = nodes.remove(victim);
    assert_eq!(victim.end_by(Signal::KILL), None);
    let left = nodes[0].map_with(Epoch(0), |_| true).moves.len();
    assert!(left > 0, "it was killed in the middle");
    let config = join(directory, &victim.name, &nodes[0].listen);
    nodes.push(start(directory, &format!("{}.toml", victim.name), &config));
    loop {
        assert_eq!(send(&nodes[1]), flows, "flows keep their addresses while their slots move");
        if nodes[0].map_with(Epoch(0), |_| true).moves.is_empty() {
            break;
        }
    }
    let map = nodes[0].map_with(Epoch(0), |map| map.moves.is_empty());
    assert!(map.slot_to_shard.iter().all(|shard| *shard == TARGET.0), "all have arrived");
    let ports = replicas_agree(&nodes[0], 3);
    assert_eq!(ports, flows.len() as u64, "a port for each flow, in use just once");
    lies_where_the_map_says(&nodes[0], &map);
    for node in &nodes {
        assert_eq!(send(node), flows, "through {}", node.name);
    }
}

#[test]
fn slots_arrive_although_the_owner_of_their_source_is_killed() {
    kill_owner_of(SOURCE);
}

#[test]
fn slots_arrive_although_the_owner_of_their_target_is_killed() {
    kill_owner_of(TARGET);
}
