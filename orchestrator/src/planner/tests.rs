//! Whatever happens to processes: every plan keeps the rules, planning again changes nothing, and
//! once the trouble is over all wanted nodes serve. (What plans look like is in `tests/golden`.)

use super::*;
use crate::check::check;
use crate::inventory::{Exit, ReadyNode};
use nearstate_placement::MemberState;
use nearstate_store::{NodeId, Time};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Happening {
    Ready(usize),
    Dies(usize),
    Outcast(usize),
    Passes(u64),
    Wanted(u16),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0_usize..5).prop_map(Happening::Ready),
        2 => (0_usize..5).prop_map(Happening::Dies),
        1 => (0_usize..5).prop_map(Happening::Outcast),
        1 => (0_u64..30_000).prop_map(Happening::Passes),
        1 => (2_u16..6).prop_map(Happening::Wanted),
    ]
}

struct World {
    policy: Policy,
    seen: Inventory,
    plan: Plan,
    ids: u64,
}

impl World {
    fn happen(&mut self, happening: Happening) {
        let at = self.seen.at;
        let node = |seen: &Inventory, at: usize| at % seen.nodes.len().max(1);
        match happening {
            Happening::Passes(ms) => self.seen.at = at.plus_ms(ms),
            Happening::Wanted(nodes) => self.policy.nodes = nodes,
            _ if self.seen.nodes.is_empty() => {}
            Happening::Ready(i) => {
                self.ids += 1;
                let (i, id) = (node(&self.seen, i), self.ids);
                let seen = &mut self.seen.nodes[i];
                if matches!(seen.process, ProcessState::Starting { .. }) {
                    let listen = ([127, 0, 0, 1], id as u16).into();
                    let ready = ReadyNode { node: NodeId(id), listen, port: String::new() };
                    seen.process = ProcessState::Ready(ready);
                    seen.failed_starts = 0;
                    self.seen.cluster_exists = true;
                }
            }
            Happening::Dies(i) => {
                let i = node(&self.seen, i);
                self.end(i);
            }
            Happening::Outcast(i) => {
                let i = node(&self.seen, i);
                let seen = &mut self.seen.nodes[i];
                if seen.ready().is_some() {
                    seen.member = Some(MemberState::Dead);
                }
            }
        }
    }

    fn end(&mut self, at: usize) {
        let when = self.seen.at;
        let seen = &mut self.seen.nodes[at];
        if seen.is_running() {
            let was_ready = seen.ready().is_some();
            seen.failed_starts += u32::from(!was_ready);
            seen.process = ProcessState::Exited { exit: Exit::Signal(9), at: when, was_ready };
        }
    }

    /// Plans and carries out. False if nothing was to be done.
    fn turn(&mut self) -> bool {
        let Some(next) = plan(&self.policy, &self.seen, &self.plan).next else { return false };
        assert_eq!(check(&self.policy, &self.seen, &self.plan, &next), vec![], "{next:?}");
        self.plan = next;
        for node in &self.plan.nodes {
            let known = self.seen.nodes.iter().position(|seen| seen.name == node.name);
            let generation = known.map_or(0, |at| self.seen.nodes[at].generation);
            if node.wanted == Wanted::Stop || generation >= node.generation {
                continue;
            }
            let failed_starts = known.map_or(0, |at| self.seen.nodes[at].failed_starts);
            let process = ProcessState::Starting { since: self.seen.at };
            let (name, generation) = (node.name.clone(), node.generation);
            let fresh = NodeSeen { name, generation, process, member: None, failed_starts };
            match known {
                Some(at) => {
                    assert!(!self.seen.nodes[at].is_running(), "two processes of {}", node.name);
                    self.seen.nodes[at] = fresh;
                }
                None => self.seen.nodes.push(fresh),
            }
        }
        let again = plan(&self.policy, &self.seen, &self.plan).next;
        assert_eq!(again, None, "planning again changes nothing");
        true
    }

    /// What is asked to end, ends; what was started becomes ready.
    fn calm(&mut self) {
        for at in 0..self.seen.nodes.len() {
            let planned = self.plan.node(&self.seen.nodes[at].name);
            if planned.is_some_and(|planned| planned.wanted == Wanted::Stop) {
                self.end(at);
            }
            self.happen(Happening::Ready(at));
        }
        self.happen(Happening::Passes(1_000));
        self.turn();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn plans_keep_the_rules_whatever_happens(
        happenings in proptest::collection::vec(any_happening(), 0..60),
    ) {
        let seen = Inventory { at: Time(0), nodes: Vec::new(), cluster_exists: false };
        let policy = Policy { failed_starts_max: 1_000, ..Policy::of_nodes(3).unwrap() };
        let mut world = World { policy, seen, plan: Plan::empty(), ids: 0 };
        for happening in happenings {
            world.happen(happening);
            world.turn();
        }
        let alive = |world: &World| world.seen.ready().any(|(seen, _)| seen.member.is_none());
        world.policy.retry_after_ms = 0;
        (0..3).for_each(|_| world.calm());
        // With nobody left to join there is no way back, and none is invented.
        prop_assume!(alive(&world));
        world.policy.nodes = 5;
        (0..12).for_each(|_| world.calm());
        let serving: Vec<&str> = world
            .policy
            .names()
            .filter_map(|name| world.seen.node(&name).filter(|seen| seen.ready().is_some()))
            .map(|seen| seen.name.as_str())
            .collect();
        prop_assert_eq!(serving.len(), 5, "only {:?} serve", serving);
    }
}
