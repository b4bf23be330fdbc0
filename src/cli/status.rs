//! `nearstate status`: the cluster as one node's map has it, and what each member says of itself.

use super::Ended;
use crate::ask::{AskError, ClusterName, ask};
use clap::Args;
use nearstate_placement::api::{Request, Response, ShardRole, StatusReport};
use nearstate_placement::{Map, Member};
use nearstate_store::{Epoch, NodeId, ShardId};
use serde_json::json;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

/// Counters that the table shows; `--json` has all of them.
const SHOWN: [&str; 5] =
    ["packets_in", "packets_out", "commits", "access:local", "access:remote_shm"];

/// The options of `nearstate status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Where one node listens; the others are found through it
    #[arg(long, value_name = "ADDR")]
    node: SocketAddr,
    #[command(flatten)]
    cluster: ClusterName,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What a member answered.
type Answered = (Member, Result<StatusReport, String>);

/// Runs it.
pub(super) fn run(args: &StatusArgs) -> Ended {
    let request = Request::GetMap { newer_than: Epoch(0), wait_ms: 0 };
    let map = match ask(&args.cluster, args.node, &request)? {
        Response::Map(map) => map,
        other => return Err(AskError::unexpected(args.node, &other).into()),
    };
    let members = map.members.iter().filter(|member| member.state.is_live());
    let answers: Vec<Answered> =
        members.map(|member| (member.clone(), status_of(&args.cluster, member.address))).collect();
    if args.json {
        println!("{:#}", as_json(&map, &answers));
    } else {
        print!("{}", as_table(&map, &answers));
    }
    let all_well = answers.iter().all(|(_, answer)| answer.is_ok());
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status_of(cluster: &ClusterName, address: SocketAddr) -> Result<StatusReport, String> {
    match ask(cluster, address, &Request::Status) {
        Ok(Response::Status(report)) => Ok(*report),
        Ok(other) => Err(AskError::unexpected(address, &other).to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn as_table(map: &Map, answers: &[Answered]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "map {}: {} slots in {} shards, {} members",
        map.epoch,
        map.slots,
        map.shards.len().saturating_sub(1),
        answers.len()
    );
    let _ = write!(text, "\n{:<10} {:<12} {:<10} {:<21}", "node", "name", "state", "address");
    for counter in SHOWN {
        let _ = write!(text, " {:>17}", counter);
    }
    text.push('\n');
    for (member, answer) in answers {
        let _ = write!(
            text,
            "{:<10} {:<12} {:<10} {:<21}",
            member.id.to_string(),
            member.name,
            member.state.name(),
            member.address.to_string()
        );
        match answer {
            Ok(report) => {
                for name in SHOWN {
                    let _ = write!(text, " {:>17}", counter(report, name));
                }
                text.push('\n');
            }
            Err(error) => {
                let _ = writeln!(text, " no answer: {error}");
            }
        }
    }
    let _ = writeln!(
        text,
        "\n{:<10} {:>6} {:<10} {:>6} {:<24} {:>10} entries",
        "shard", "slots", "owner", "term", "voters", "applied"
    );
    for shard in &map.shards {
        text.push_str(&shard_line(map, shard.shard, answers));
    }
    text
}

fn counter(report: &StatusReport, name: &str) -> u64 {
    report.counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, count)| *count)
}

/// A shard as its owner sees it, else what the map says.
fn shard_line(map: &Map, shard: ShardId, answers: &[Answered]) -> String {
    let slots = map.slot_to_shard.iter().filter(|&&of| of == shard.0).count();
    let owned = answers.iter().find_map(|(member, answer)| {
        let mut shards = answer.as_ref().ok()?.shards.iter();
        let seen = shards.find(|seen| seen.shard == shard && seen.role == ShardRole::Owner)?;
        Some((member.id, seen))
    });
    let Some((owner, seen)) = owned else {
        let replicas = nodes(map.shards.get(usize::from(shard.0)).map_or(&[], |s| &s.replicas));
        return format!("{:<10} {slots:>6} nobody; replicas {replicas}\n", shard.to_string());
    };
    format!(
        "{:<10} {slots:>6} {:<10} {:>6} {:<24} {:>10} {} of {}\n",
        shard.to_string(),
        owner.to_string(),
        seen.term.0,
        nodes(&seen.voters),
        seen.applied.0,
        seen.entries,
        seen.capacity
    )
}

fn nodes(ids: &[NodeId]) -> String {
    ids.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ")
}

fn as_json(map: &Map, answers: &[Answered]) -> serde_json::Value {
    let nodes: Vec<_> = answers
        .iter()
        .map(|(member, answer)| {
            let mut node = json!({
                "id": member.id.0,
                "name": member.name,
                "state": member.state.name(),
                "address": member.address.to_string(),
                "ports": member.ports,
            });
            match answer {
                Ok(report) => {
                    node["incarnation"] = report.incarnation.into();
                    node["uptime_ms"] = report.uptime_ms.into();
                    node["map_epoch"] = report.map_epoch.0.into();
                    node["counters"] = report.counters.iter().cloned().collect();
                    node["shards"] = shards_json(report);
                }
                Err(error) => node["error"] = error.as_str().into(),
            }
            node
        })
        .collect();
    json!({ "epoch": map.epoch.0, "slots": map.slots, "nodes": nodes })
}

fn shards_json(report: &StatusReport) -> serde_json::Value {
    let shard = |seen: &nearstate_placement::api::ShardStatus| {
        json!({
            "shard": seen.shard.0,
            "role": seen.role.name(),
            "term": seen.term.0,
            "leader": seen.leader.map(|id| id.0),
            "applied": seen.applied.0,
            "lease_left_ms": seen.lease_left_ms,
            "entries": seen.entries,
            "capacity": seen.capacity,
            "voters": seen.voters.iter().map(|id| id.0).collect::<Vec<_>>(),
        })
    };
    report.shards.iter().map(shard).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::api::ShardStatus;
    use nearstate_placement::map::{MemberState, ShardPlacement};
    use nearstate_store::{LogIndex, Term};

    fn map() -> Map {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            address: SocketAddr::from(([127, 0, 0, 1], 4000 + id as u16)),
            ports: Vec::new(),
            state: MemberState::Alive,
        };
        let shard = |number: u16| ShardPlacement {
            shard: ShardId(number),
            replicas: vec![NodeId(1), NodeId(2)],
            preferred: NodeId(1),
            owner: None,
        };
        Map {
            epoch: Epoch(4),
            lineage: 1,
            slots: 4,
            replicas_wanted: 2,
            slot_to_shard: vec![1, 2, 1, 1],
            shards: vec![shard(0), shard(1), shard(2)],
            members: vec![member(1), member(2)],
        }
    }

    fn report() -> StatusReport {
        let shard = ShardStatus {
            shard: ShardId(1),
            role: ShardRole::Owner,
            term: Term(7),
            leader: Some(NodeId(1)),
            applied: LogIndex(55),
            lease_left_ms: 100,
            entries: 9,
            capacity: 64,
            voters: vec![NodeId(1), NodeId(2)],
            lag: Vec::new(),
        };
        StatusReport {
            node: NodeId(1),
            name: "n1".into(),
            incarnation: 1,
            uptime_ms: 5,
            map_epoch: Epoch(4),
            shards: vec![shard],
            counters: vec![("packets_in".into(), 123)],
        }
    }

    #[test]
    fn the_table_says_who_owns_what_and_who_is_silent() {
        let map = map();
        let answers =
            [(map.members[0].clone(), Ok(report())), (map.members[1].clone(), Err("gone".into()))];
        let text = as_table(&map, &answers);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(line("node-1").contains("123"), "{text}");
        assert!(line("node-2").ends_with("no answer: gone"), "{text}");
        let words: Vec<_> = line("shard-1").split_whitespace().collect();
        assert_eq!(words, ["shard-1", "3", "node-1", "7", "1", "2", "55", "9", "of", "64"]);
        assert!(line("shard-2").contains("nobody; replicas 1 2"), "{text}");
        let json = as_json(&map, &answers);
        assert_eq!(json["nodes"][0]["counters"]["packets_in"], 123);
        assert_eq!(json["nodes"][1]["error"], "gone");
        assert_eq!(json["nodes"][0]["shards"][0]["role"], "owner");
    }
}
