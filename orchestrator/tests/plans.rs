//! Scripts of what happens to processes, with the plans that follow: `tests/golden/*.txt`.
//!
//! A line that begins with `> ` is a command; below it stands what it printed. `UPDATE_GOLDEN=1`
//! rewrites the files; the difference is then reviewed. Every plan goes through the checker and is
//! planned again.
//!
//! ```text
//! nodes N              the policy wants N nodes
//! pass MS              time passes
//! ready NAME ID        a process becomes ready as this node
//! exit NAME            a process ends with code 1
//! kill NAME            a process ends by signal 9
//! member NAME STATE    what the cluster thinks of a process's node
//! plan                 plans, prints report and difference; what is to start, starts
//! ```

use nearstate_orchestrator::check::check;
use nearstate_orchestrator::inventory::{Exit, Inventory, NodeSeen, ProcessState, ReadyNode};
use nearstate_orchestrator::plan::{Plan, Wanted};
use nearstate_orchestrator::planner::plan;
use nearstate_orchestrator::policy::Policy;
use nearstate_placement::MemberState;
use nearstate_store::{NodeId, Time};
use std::fmt::Write;
use std::path::Path;

struct World {
    policy: Policy,
    seen: Inventory,
    plan: Plan,
}

impl World {
    fn new() -> Self {
        let seen = Inventory { at: Time(0), nodes: Vec::new(), cluster_exists: false };
        Self { policy: Policy::of_nodes(3).unwrap(), seen, plan: Plan::empty() }
    }

    fn node(&mut self, name: &str) -> &mut NodeSeen {
        self.seen.nodes.iter_mut().find(|node| node.name == name).expect("it was started")
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["nodes", count] => self.policy.nodes = number(count) as u16,
            ["pass", ms] => self.seen.at = self.seen.at.plus_ms(number(ms)),
            ["ready", name, id] => {
                let listen = ([127, 0, 0, 1], 9000 + number(id) as u16).into();
                let ready = ReadyNode { node: NodeId(number(id)), listen, port: "p".into() };
                let node = self.node(name);
                node.process = ProcessState::Ready(ready);
                node.failed_starts = 0;
                self.seen.cluster_exists = true;
            }
            ["exit", name] => self.exit(name, Exit::Code(1)),
            ["kill", name] => self.exit(name, Exit::Signal(9)),
            ["member", name, "dead"] => self.node(name).member = Some(MemberState::Dead),
            ["member", name, "alive"] => self.node(name).member = Some(MemberState::Alive),
            ["plan"] => return self.plan(),
            _ => panic!("no such command: {command}"),
        }
        String::new()
    }

    fn exit(&mut self, name: &str, exit: Exit) {
        let at = self.seen.at;
        let node = self.node(name);
        let was_ready = node.ready().is_some();
        node.process = ProcessState::Exited { exit, at, was_ready };
        node.failed_starts += u32::from(!was_ready);
    }

    fn plan(&mut self) -> String {
        let planned = plan(&self.policy, &self.seen, &self.plan);
        let mut out = String::new();
        for line in &planned.report {
            writeln!(out, "{line}").unwrap();
        }
        let Some(next) = planned.next else { return out + "no change\n" };
        assert_eq!(check(&self.policy, &self.seen, &self.plan, &next), vec![], "{next:?}");
        for line in next.difference(&self.plan) {
            writeln!(out, "{line}").unwrap();
        }
        self.plan = next;
        self.carry_out();
        let again = plan(&self.policy, &self.seen, &self.plan).next;
        assert_eq!(again, None, "planning again changes nothing");
        out
    }

    fn carry_out(&mut self) {
        for node in &self.plan.nodes {
            let seen = self.seen.nodes.iter_mut().find(|seen| seen.name == node.name);
            let known = seen.as_ref().map_or(0, |seen| seen.generation);
            if node.wanted == Wanted::Stop || known >= node.generation {
                continue;
            }
            let fresh = NodeSeen {
                name: node.name.clone(),
                generation: node.generation,
                process: ProcessState::Starting { since: self.seen.at },
                member: None,
                failed_starts: seen.as_ref().map_or(0, |seen| seen.failed_starts),
            };
            match seen {
                Some(seen) => *seen = fresh,
                None => self.seen.nodes.push(fresh),
            }
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

fn replay(script: &str) -> String {
    let mut world = World::new();
    let mut out = String::new();
    for line in script.lines().filter(|line| line.starts_with("> ") || line.starts_with('#')) {
        writeln!(out, "{line}").unwrap();
        if let Some(command) = line.strip_prefix("> ") {
            out += &world.run(command);
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
    assert!(seen >= 4, "scripts are missing");
}
