//! Plans that are wrong, made by hand: the checker must see each.

use super::*;
use crate::inventory::{Exit, NodeSeen, ReadyNode};
use nearstate_store::{NodeId, Time};
use std::net::SocketAddr;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn ready(number: u16) -> NodeSeen {
    let id = NodeId(number.into());
    let ready = ReadyNode { node: id, listen: address(number), port: "p".to_owned() };
    let process = ProcessState::Ready(ready);
    NodeSeen { name: format!("n{number}"), generation: 1, process, member: None, failed_starts: 0 }
}

fn running(number: u16, generation: u64) -> PlannedNode {
    let wanted = Wanted::Run(Start::Join(vec![address(1)]));
    PlannedNode { name: format!("n{number}"), generation, wanted }
}

/// Three nodes that are wanted and run, and the plan that has them.
fn world() -> (Policy, Inventory, Plan) {
    let nodes = vec![ready(1), ready(2), ready(3)];
    let seen = Inventory { at: Time(0), nodes, cluster_exists: true };
    let nodes = (1..=3).map(|number| running(number, 1)).collect();
    (Policy::of_nodes(3).unwrap(), seen, Plan { number: 4, parent: Some(3), nodes })
}

type Edit = fn(&mut Inventory, &mut Plan);

#[track_caller]
fn assert_found(edit: Edit, expected: &Violation) {
    let (policy, mut seen, parent) = world();
    let mut plan = Plan { number: 5, parent: Some(4), nodes: parent.nodes.clone() };
    edit(&mut seen, &mut plan);
    let found = check(&policy, &seen, &parent, &plan);
    assert!(found.contains(expected), "{expected} is not in {found:?}");
}

fn end(seen: &mut Inventory, at: usize) {
    seen.nodes[at].process =
        ProcessState::Exited { exit: Exit::Signal(9), at: Time(0), was_ready: true };
}

#[test]
fn a_replacement_of_what_has_ended_keeps_all_rules() {
    let (policy, mut seen, parent) = world();
    end(&mut seen, 1);
    let mut plan = Plan { number: 5, parent: Some(4), nodes: parent.nodes.clone() };
    plan.nodes[1] = running(2, 2);
    assert_eq!(check(&policy, &seen, &parent, &plan), vec![]);
}

#[test]
fn bad_plans_are_found() {
    use Violation as V;
    let n2 = || "n2".to_owned();
    assert_found(|_, plan| plan.number = 7, &V::Lineage(7));
    assert_found(|_, plan| plan.parent = None, &V::Lineage(5));
    assert_found(|_, plan| plan.nodes.push(running(2, 1)), &V::NameTwice(n2()));
    assert_found(|_, plan| plan.nodes.push(running(4, 1)), &V::BeyondPolicy("n4".into()));
    assert_found(|_, plan| plan.nodes[1] = running(2, 2), &V::SecondLife(n2()));
    assert_found(|_, plan| drop(plan.nodes.remove(1)), &V::Forgotten(n2()));
    let skips: Edit = |seen, plan| {
        end(seen, 1);
        plan.nodes[1] = running(2, 3);
    };
    assert_found(skips, &V::Generation(n2(), 1, 3));
    let other_seeds: Edit =
        |_, plan| plan.nodes[1].wanted = Wanted::Run(Start::Join(vec![address(9)]));
    assert_found(other_seeds, &V::ChangedUnderWay(n2()));
    let revives: Edit = |seen, plan| {
        end(seen, 1);
        plan.nodes[1].generation = 2;
        plan.nodes[1].wanted = Wanted::Run(Start::Join(vec![]));
    };
    assert_found(revives, &V::Seeds(n2(), 0));
    let forms: Edit = |seen, plan| {
        end(seen, 1);
        plan.nodes[1].generation = 2;
        plan.nodes[1].wanted = Wanted::Run(Start::Form);
    };
    assert_found(forms, &V::SecondCluster(n2()));
}

#[test]
fn not_more_than_a_minority_stops_at_once() {
    let (mut policy, seen, parent) = world();
    policy.nodes = 1;
    let mut plan = Plan { number: 5, parent: Some(4), nodes: parent.nodes.clone() };
    plan.nodes[2].wanted = Wanted::Stop;
    assert_eq!(check(&policy, &seen, &parent, &plan), vec![]);
    plan.nodes[1].wanted = Wanted::Stop;
    let expected = Violation::MajorityStopped { stopping: 2, ready: 3 };
    assert_eq!(check(&policy, &seen, &parent, &plan), vec![expected]);
}
