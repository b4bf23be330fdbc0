//! Scripts of what happens to a cluster, with the plans that follow: `tests/golden/*.txt`.
//!
//! A line that begins with `> ` is a command; below it stands what it printed. `UPDATE_GOLDEN=1`
//! rewrites the files; the difference is then reviewed. Every map goes through the system machine,
//! every plan is checked and planned again.
//!
//! ```text
//! form SLOTS SHARDS REPLICAS   node n1 makes the cluster
//! join NAME                    a node joins
//! state ID STATE               what is thought of a member changes
//! lag SHARD ID N               the leader says how far behind a replica is
//! silent SHARD                 the shard's leader says nothing; its followers answer
//! lead SHARD ID                elections fall so
//! unknown SHARD                nothing is known of the shard's group
//! plan                         plans, prints report and difference, proposes
//! settle                       the groups do as the map says
//! show                         prints the shards
//! ```

use nearstate_placement::check::{assert_step, check_map};
use nearstate_placement::difference::{MapDifference, describe};
use nearstate_placement::planner::{PlanPolicy, ShardFact, plan};
use nearstate_placement::system::{SystemCommand, SystemMachine, SystemReply};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::{LogIndex, Machine, NodeId, Reply, ShardId, Term};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

struct Cluster {
    machine: SystemMachine,
    facts: Vec<ShardFact>,
    nonce: u64,
    term: u64,
}

impl Cluster {
    fn new() -> Self {
        let machine = SystemMachine::new(Arc::new(|_| {}));
        Self { machine, facts: Vec::new(), nonce: 0, term: 0 }
    }

    fn apply(&mut self, command: &SystemCommand) -> SystemReply {
        match self.machine.apply(LogIndex(1), &command.encode()) {
            Reply::System(bytes) => SystemReply::decode(&bytes).expect("our own bytes"),
            other => panic!("not a system reply: {other:?}"),
        }
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["form", slots, shards, replicas] => self.form(slots, shards, replicas),
            ["join", name] => self.join(name),
            ["state", id, to] => self.state(id, to),
            ["lag", shard, id, lag] => {
                let id = NodeId(number(id));
                let fact = self.fact(shard);
                fact.lag.retain(|(node, _)| *node != id);
                fact.lag.push((id, number(lag)));
                String::new()
            }
            ["silent", shard] => {
                self.fact(shard).said_by_leader = false;
                String::new()
            }
            ["lead", shard, id] => {
                let fact = self.fact(shard);
                (fact.leader, fact.said_by_leader) = (Some(NodeId(number(id))), true);
                self.report_owner(ShardId(number(shard) as u16), NodeId(number(id)));
                String::new()
            }
            ["unknown", shard] => {
                self.facts.retain(|fact| fact.shard.0 != number(shard) as u16);
                String::new()
            }
            ["plan"] => self.plan(),
            ["settle"] => self.settle(),
            ["show"] => self.machine.map().shards.iter().fold(String::new(), |mut out, shard| {
                writeln!(out, "{}", describe(shard)).expect("strings take all");
                out
            }),
            _ => panic!("no such command: {command}"),
        }
    }

    fn form(&mut self, slots: &str, shards: &str, replicas: &str) -> String {
        let founder = Member {
            id: NodeId(0),
            name: "n1".to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            ports: vec![],
            state: MemberState::Alive,
        };
        let reply = self.apply(&SystemCommand::Form {
            members: vec![founder],
            slots: number(slots) as u32,
            shards: number(shards) as u16,
            replicas: number(replicas) as u16,
            lineage: 1,
        });
        format!("{reply:?}\n")
    }

    fn join(&mut self, name: &str) -> String {
        self.nonce += 1;
        let reply = self.apply(&SystemCommand::Join {
            name: name.to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            ports: vec![],
            nonce: self.nonce,
        });
        format!("{reply:?}\n")
    }

    fn state(&mut self, id: &str, to: &str) -> String {
        use MemberState::{Alive, Dead, Leaving, Left, Retired, Suspected};
        let states = [Alive, Suspected, Dead, Retired, Leaving, Left];
        let state = states.into_iter().find(|state| state.name() == to);
        let state = state.unwrap_or_else(|| panic!("no such state: {to}"));
        match self.apply(&SystemCommand::SetMember { id: NodeId(number(id)), state }) {
            SystemReply::Done(_) => String::new(),
            other => format!("{other:?}\n"),
        }
    }

    fn plan(&mut self) -> String {
        let before = self.machine.map().clone();
        let policy = PlanPolicy::default();
        let planned = plan(&before, &self.facts, &policy);
        let mut out = String::new();
        for line in &planned.report {
            writeln!(out, "{line}").expect("strings take all");
        }
        let Some(next) = planned.next else { return out + "no change\n" };
        assert_step(&before, &next);
        assert_eq!(plan(&next, &self.facts, &policy).next, None, "planning again changes nothing");
        let command = SystemCommand::SetMap { expected: before.epoch, map: next.clone() };
        assert_eq!(self.apply(&command), SystemReply::Done(next.epoch));
        out + &MapDifference::between(&before, &next).to_string()
    }

    /// What the groups come to when every node follows the map: the living and wanted vote, dead
    /// voters stay until they are replaced, the preferred owner leads.
    fn settle(&mut self) -> String {
        let map = self.machine.map().clone();
        let known = core::mem::take(&mut self.facts);
        self.facts = map.shards.iter().map(|shard| settled(&map, shard.shard, &known)).collect();
        let owners: Vec<_> =
            self.facts.iter().filter_map(|fact| Some((fact.shard, fact.leader?))).collect();
        for (shard, leader) in owners {
            self.report_owner(shard, leader);
        }
        String::new()
    }

    fn report_owner(&mut self, shard: ShardId, node: NodeId) {
        let known = self.machine.map().shard(shard).and_then(|placement| placement.owner);
        if known.map(|(owner, _)| owner) != Some(node) {
            self.term += 1;
            let term = Term(self.term);
            let reply = self.apply(&SystemCommand::ReportOwner { shard, node, term });
            assert!(matches!(reply, SystemReply::Done(_)), "{reply:?}");
        }
    }

    fn fact(&mut self, shard: &str) -> &mut ShardFact {
        let shard = number(shard) as u16;
        self.facts.iter_mut().find(|fact| fact.shard.0 == shard).expect("settle first")
    }
}

fn settled(map: &Map, shard: ShardId, known: &[ShardFact]) -> ShardFact {
    let placement = map.shard(shard).expect("a shard of the map");
    let leader = Some(placement.preferred).filter(|node| map.state_of(*node).is_live());
    // Who was gone before it could vote never will.
    let voted =
        |node: &NodeId| known.iter().any(|fact| fact.shard == shard && fact.voters.contains(node));
    let votes = |node: &NodeId| map.state_of(*node).is_live() || voted(node);
    let voters = placement.replicas.iter().copied().filter(votes).collect();
    ShardFact { shard, leader, said_by_leader: true, voters, lag: Vec::new() }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn replay(script: &str) -> String {
    let mut cluster = Cluster::new();
    let mut out = String::new();
    for line in script.lines().filter(|line| line.starts_with("> ") || line.starts_with('#')) {
        writeln!(out, "{line}").expect("strings take all");
        if let Some(command) = line.strip_prefix("> ") {
            out += &cluster.run(command);
            let planned = command == "plan";
            let broken = check_map(cluster.machine.map());
            assert!(!planned || broken.is_empty(), "after {command}: {broken:?}");
        }
    }
    out
}

#[test]
fn scripts_print_what_they_printed_when_they_were_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).expect("the folder is part of the repository") {
        let path = file.expect("a readable folder").path();
        let script = std::fs::read_to_string(&path).expect("a readable script");
        let printed = replay(&script);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &printed).expect("a writable script");
        } else {
            assert_eq!(printed, script, "{}: see the head of this file", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 5, "scripts are missing");
}
