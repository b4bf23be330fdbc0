//! `nearstate status`: the cluster as one node's map has it, and what each member says of itself.

use super::Ended;
use super::slots::moves_json;
use super::status_table::{as_tables, screen_width};
use crate::ask::{AskError, ClusterName, NODE_ADDRESS, NodeAddress, ask, ask_at};
use clap::Args;
use nearstate_placement::api::{
    MemberAge, Request, Response, ShardRole, ShardStatus, StatusReport,
};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::{Epoch, NodeId, ShardId};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;

/// How long a member that is gone, and not replaced, is shown.
pub(super) const GONE_SHOWN_MS: u64 = 600_000;

/// The options of `nearstate status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 0 if every member that is not gone answers, else 1. Of a name only \
    the newest life is shown, and for 10 min if it is gone: `left` has ended in good order, \
    `dead` was given up, `retired` was given up and no shard counts on it any more."
)]
pub(super) struct StatusArgs {
    /// Where one node listens; the others are found through it
    #[arg(long, value_name = NODE_ADDRESS)]
    node: NodeAddress,
    #[command(flatten)]
    cluster: ClusterName,
    /// Show all lives that the cluster remembers, not only the newest of each name
    #[arg(long)]
    all: bool,
    /// Print JSON instead of tables, with all lives
    #[arg(long)]
    json: bool,
}

/// A member, and what it says of itself.
pub(super) struct Answered {
    pub(super) member: Member,
    /// How many milliseconds it has been what the map says, and whether somebody saw that begin.
    pub(super) state_for: Option<(u64, bool)>,
    /// `None` if it is gone and was not asked.
    pub(super) answer: Option<Result<StatusReport, String>>,
}

/// What is shown.
pub(super) struct Seen {
    pub(super) map: Map,
    pub(super) members: Vec<Answered>,
}

impl Seen {
    /// The owner of a shard and what it says of it.
    pub(super) fn owned(&self, shard: ShardId) -> Option<(NodeId, &ShardStatus)> {
        self.reports().find_map(|(node, report)| {
            let mut shards = report.shards.iter();
            let status = shards.find(|s| s.shard == shard && s.role == ShardRole::Owner)?;
            Some((node, status))
        })
    }

    /// Shards of whose voters no majority answers.
    pub(super) fn without_majority(&self) -> Vec<ShardId> {
        let is_lost = |shard: &ShardId| {
            let voters = self.voters(*shard);
            let answers = self.reports().filter(|(node, _)| voters.contains(node)).count();
            self.owned(*shard).is_none() && answers * 2 <= voters.len()
        };
        self.map.shards.iter().map(|placement| placement.shard).filter(is_lost).collect()
    }

    /// Who votes, as the latest term says that somebody tells of; else as the map wants it.
    fn voters(&self, shard: ShardId) -> Vec<NodeId> {
        let told = self.reports().flat_map(|(_, report)| &report.shards);
        let told = told.filter(|status| status.shard == shard && !status.voters.is_empty());
        match told.max_by_key(|status| status.term) {
            Some(status) => status.voters.clone(),
            None => self.map.shard(shard).map(|s| s.replicas.clone()).unwrap_or_default(),
        }
    }

    fn reports(&self) -> impl Iterator<Item = (NodeId, &StatusReport)> {
        let answered = self.members.iter();
        answered.filter_map(|seen| Some((seen.member.id, seen.answer.as_ref()?.as_ref().ok()?)))
    }
}

/// Runs it.
pub(super) fn run(args: &StatusArgs) -> Ended {
    let request = Request::GetMap { newer_than: Epoch(0), wait_ms: 0 };
    let map = match ask(&args.cluster, &args.node, &request)? {
        (_, Response::Map(map)) => map,
        (address, other) => return Err(AskError::unexpected(address, &other).into()),
    };
    let mut seen = look(map, |address| status_of(&args.cluster, address));
    if !args.all && !args.json {
        seen.members.retain(|member| is_shown(&seen.map, member));
    }
    if args.json {
        println!("{:#}", as_json(&seen));
    } else {
        print!("{}", as_tables(&seen, screen_width()));
    }
    let all_well = seen.members.iter().all(|seen| !matches!(seen.answer, Some(Err(_))));
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status_of(cluster: &ClusterName, address: SocketAddr) -> Result<StatusReport, String> {
    match ask_at(cluster, address, &Request::Status) {
        Ok(Response::Status(report)) => Ok(*report),
        Ok(other) => Err(AskError::unexpected(address, &other).to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks every member that is not gone, and finds out for how long the others have been.
fn look(map: Map, ask: impl Fn(SocketAddr) -> Result<StatusReport, String>) -> Seen {
    let answer = |member: &Member| member.state.is_live().then(|| ask(member.address));
    let answers: Vec<_> = map.members.iter().map(answer).collect();
    let ages: Vec<MemberAge> = answers
        .iter()
        .filter_map(|answer| answer.as_ref()?.as_ref().ok())
        .flat_map(|report| report.members.iter().copied())
        .collect();
    let members = map.members.iter().zip(answers).map(|(member, answer)| {
        let state_for = state_for(member, &ages);
        Answered { member: member.clone(), state_for, answer }
    });
    let members = members.collect();
    Seen { map, members }
}

/// The word for a member's state. Whether groups still count on one that has left is no matter.
pub(super) const fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Departed => MemberState::Left.name(),
        other => other.name(),
    }
}

/// Who has watched longest knows best.
fn state_for(member: &Member, ages: &[MemberAge]) -> Option<(u64, bool)> {
    let of = |age: &&MemberAge| age.node == member.id && age.state == member.state;
    ages.iter().filter(of).map(|age| (age.for_ms, age.is_exact)).max()
}

/// Whether people want to see it: it may live, or it is the last of its name and not long gone.
fn is_shown(map: &Map, seen: &Answered) -> bool {
    let Member { id, name, state, .. } = &seen.member;
    let is_replaced = || map.members.iter().any(|other| other.name == *name && other.id > *id);
    let is_recent = || seen.state_for.is_none_or(|(for_ms, _)| for_ms < GONE_SHOWN_MS);
    state.is_live() || (!is_replaced() && is_recent())
}

fn as_json(seen: &Seen) -> serde_json::Value {
    let nodes: Vec<_> = seen.members.iter().map(member_json).collect();
    let without_majority: Vec<u16> = seen.without_majority().iter().map(|id| id.0).collect();
    json!({
        "epoch": seen.map.epoch.0,
        "slots": seen.map.slots,
        "moves": moves_json(&seen.map),
        "shards_without_majority": without_majority,
        "nodes": nodes,
    })
}

fn member_json(seen: &Answered) -> serde_json::Value {
    let member = &seen.member;
    let mut node = json!({
        "id": member.id.0,
        "name": member.name,
        "state": state_word(member.state),
        "state_for_ms": seen.state_for.map(|(for_ms, _)| for_ms),
        "state_for_is_exact": seen.state_for.map(|(_, is_exact)| is_exact),
        "gone": !matches!(
            member.state,
            MemberState::Alive | MemberState::Suspected | MemberState::Leaving
        ),
        "address": member.address.to_string(),
        "ports": member.ports,
    });
    match &seen.answer {
        Some(Ok(report)) => {
            node["incarnation"] = report.incarnation.into();
            node["uptime_ms"] = report.uptime_ms.into();
            node["map_epoch"] = report.map_epoch.0.into();
            node["counters"] = report.counters.iter().cloned().collect();
            node["shards"] = report.shards.iter().map(shard_json).collect();
        }
        Some(Err(error)) => node["error"] = error.as_str().into(),
        None => {}
    }
    node
}

fn shard_json(seen: &ShardStatus) -> serde_json::Value {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::map::ShardPlacement;
    use nearstate_store::{LogIndex, Term};

    fn map(states: &[(&str, MemberState)]) -> Map {
        let member = |(at, (name, state)): (usize, &(&str, MemberState))| Member {
            id: NodeId(at as u64 + 1),
            name: (*name).to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 4001 + at as u16)),
            ports: Vec::new(),
            state: *state,
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
            moves: vec![],
            shards: vec![shard(0), shard(1), shard(2)],
            members: states.iter().enumerate().map(member).collect(),
        }
    }

    fn report() -> StatusReport {
        let shard = ShardStatus {
            shard: ShardId(1),
            role: ShardRole::Owner,
            term: Term(7),
            leader: Some(NodeId(1)),
            applied: LogIndex(5_500),
            lease_left_ms: 100,
            entries: 9,
            capacity: 65_536,
            voters: vec![NodeId(1), NodeId(2)],
            lag: Vec::new(),
        };
        let age = |node: u64, state, for_ms| MemberAge {
            node: NodeId(node),
            state,
            for_ms,
            is_exact: node != 4,
        };
        StatusReport {
            node: NodeId(1),
            name: "n1".into(),
            incarnation: 1,
            uptime_ms: 5,
            map_epoch: Epoch(4),
            shards: vec![shard],
            counters: vec![("packets_in".into(), 12_345), ("access:local".into(), 3)],
            members: vec![
                age(3, MemberState::Left, 12_000),
                age(4, MemberState::Dead, 130_000),
                age(5, MemberState::Retired, GONE_SHOWN_MS),
            ],
        }
    }

    fn looked() -> Seen {
        use MemberState::{Alive, Dead, Left, Retired, Suspected};
        let map =
            map(&[("n1", Alive), ("n2", Suspected), ("n3", Left), ("n4", Dead), ("n5", Retired)]);
        look(map, |address| match address.port() {
            4001 => Ok(report()),
            4002 => Err("gone away".into()),
            _ => panic!("a member that is gone is asked"),
        })
    }

    fn shown() -> Seen {
        let mut seen = looked();
        seen.members.retain(|member| is_shown(&seen.map, member));
        seen
    }

    #[test]
    fn of_a_name_only_the_newest_life_is_shown() {
        use MemberState::{Alive, Dead, Departed, Left, Retired};
        let states = [("n1", Alive), ("n2", Retired), ("n2", Dead), ("n2", Departed), ("n3", Left)];
        let mut seen = look(map(&states), |_| Ok(report()));
        assert_eq!(seen.members.len(), states.len(), "all are known");
        seen.members.retain(|member| is_shown(&seen.map, member));
        let ids: Vec<u64> = seen.members.iter().map(|seen| seen.member.id.0).collect();
        assert_eq!(ids, [1, 4, 5]);
        let text = as_tables(&seen, 100);
        let line = text.lines().find(|line| line.starts_with("n2 (id 4)")).unwrap();
        assert!(line.contains("  left"), "it has said goodbye: {text}");
    }

    #[test]
    fn the_loss_of_a_majority_is_said_in_words() {
        let states = ["n1", "n2", "n3"].map(|name| (name, MemberState::Alive));
        let answers = |answering: &[u16], role| {
            let mut map = map(&states);
            for shard in &mut map.shards {
                shard.replicas = [1, 2, 3].map(NodeId).to_vec();
            }
            let mut told = report();
            told.shards[0].role = role;
            told.shards[0].voters = [1, 2, 3].map(NodeId).to_vec();
            let seen = look(map, |address| match address.port() - 4000 {
                port if answering.contains(&port) => Ok(told.clone()),
                _ => Err("no node answers".into()),
            });
            let text = as_tables(&seen, 100);
            (seen.without_majority().len(), text)
        };
        let (lost, text) = answers(&[1], ShardRole::Follower);
        assert_eq!(lost, 3);
        assert!(text.contains("No majority of shard-0, shard-1, shard-2 answers:"), "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("member states are the last known"), "{text}");
        let silent = text.lines().find(|line| line.starts_with("n2 (id 2)")).unwrap();
        assert!(silent.contains("alive, silent"), "{text}");
        let (lost, text) = answers(&[1, 3], ShardRole::Follower);
        assert_eq!(lost, 0, "{text}");
        assert!(!text.contains("No majority"), "{text}");
    }

    #[test]
    fn the_tables_say_who_owns_what_who_is_silent_and_who_is_gone() {
        let text = as_tables(&shown(), 100);
        let cells = |start: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(start)).expect("a line");
            line.split("  ").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
        };
        let first = ["n1 (id 1)", "alive", "127.0.0.1:4001", "12,345", "0", "0", "100.0 %"];
        assert_eq!(cells("n1 (id 1)"), first);
        assert_eq!(cells("n2 (id 2)"), ["n2 (id 2)", "suspected", "127.0.0.1:4002"]);
        assert!(text.contains("\n    gone away\n"), "{text}");
        assert_eq!(cells("n3 (id 3)"), ["n3 (id 3)", "left 12 s ago", "127.0.0.1:4003"]);
        assert_eq!(cells("n4 (id 4)")[1], "dead over 2 min ago");
        assert!(!text.contains("n5"), "its time is over: {text}");
        assert!(text.contains("until a node of their name joins, or for 10 min"), "{text}");
        let voters = "n1 (id 1), n2 (id 2)";
        let shard = ["shard-1", "3", "n1 (id 1)", "7", voters, "5,500", "9 of 65,536"];
        assert_eq!(cells("shard-1"), shard);
        assert_eq!(cells("shard-2"), ["shard-2", "1", "nobody"]);
        assert!(text.contains(&format!("    replicas: {voters}\n")), "{text}");
        assert!(!text.contains("node-"), "one spelling of a node: {text}");
    }

    #[test]
    fn lines_fit_the_screen_and_no_access_is_no_share() {
        let mut seen = shown();
        for width in [60, 80, 100] {
            let text = as_tables(&seen, width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
        }
        let Some(Ok(report)) = &mut seen.members[0].answer else { panic!("it answered") };
        report.counters.clear();
        let text = as_tables(&seen, 100);
        let line = text.lines().find(|line| line.starts_with("n1 (id 1)")).unwrap();
        assert!(line.ends_with("  -"), "{text}");
    }

    #[test]
    fn the_json_has_every_member() {
        let json = as_json(&looked());
        let nodes = json["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 5);
        assert_eq!(json["shards_without_majority"], json!([0, 2]));
        assert_eq!(nodes[0]["counters"]["packets_in"], 12_345);
        assert_eq!(nodes[0]["shards"][0]["role"], "owner");
        assert_eq!(nodes[1]["error"], "gone away");
        assert_eq!(
            (&nodes[2]["state"], &nodes[2]["state_for_ms"]),
            (&"left".into(), &12_000.into())
        );
        assert_eq!((&nodes[0]["gone"], &nodes[3]["gone"]), (&false.into(), &true.into()));
    }
}
