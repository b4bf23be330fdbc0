//! Rules for plans. Written from what a plan means, not from how it is made: no code is shared with
//! the planner. The service asserts them on each plan before it is carried out.

use crate::inventory::{Inventory, ProcessState};
use crate::plan::{Plan, PlannedNode, SEEDS_MAX, Start, Wanted};
use crate::policy::Policy;
use std::collections::BTreeSet;
use thiserror::Error;

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A plan follows its parent.
    #[error("plan {0} does not follow its parent")]
    Lineage(u64),
    /// One process a name.
    #[error("{0} is planned twice")]
    NameTwice(String),
    /// What is not wanted is not started.
    #[error("{0} would be launched, but the policy does not want it")]
    BeyondPolicy(String),
    /// A new process only after the one before has ended.
    #[error("{0} would get a second process while the first may live")]
    SecondLife(String),
    /// Generations rise one by one.
    #[error("{0} goes from generation {1} to {2}")]
    Generation(String, u64, u64),
    /// A process does not come back, nor does its start change.
    #[error("{0} would be changed under way")]
    ChangedUnderWay(String),
    /// A process is dropped only once it has ended.
    #[error("{0} would be forgotten while it may live")]
    Forgotten(String),
    /// There is one cluster.
    #[error("{0} would form a second cluster")]
    SecondCluster(String),
    /// Who joins needs somebody to ask.
    #[error("{0} has {1} seeds; it needs 1 to {SEEDS_MAX}")]
    Seeds(String, usize),
    /// A majority goes on.
    #[error("{stopping} of {ready} ready nodes would be stopping at once")]
    MajorityStopped {
        /// How many.
        stopping: usize,
        /// Of how many.
        ready: usize,
    },
}

/// All rules that going from `parent` to `plan` breaks.
#[must_use]
pub fn check(policy: &Policy, seen: &Inventory, parent: &Plan, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    if plan.parent != Some(parent.number) || plan.number != parent.number + 1 {
        found.push(Violation::Lineage(plan.number));
    }
    let mut names = BTreeSet::new();
    for node in &plan.nodes {
        if !names.insert(&node.name) {
            found.push(Violation::NameTwice(node.name.clone()));
        }
        let before = parent.nodes.iter().find(|before| before.name == node.name);
        if Some(node) != before {
            check_node(policy, seen, (before, node), &mut found);
        }
    }
    for before in parent.nodes.iter().filter(|before| !names.contains(&before.name)) {
        if !has_ended(seen, before) {
            found.push(Violation::Forgotten(before.name.clone()));
        }
    }
    check_forming(seen, plan, &mut found);
    check_stops((policy, seen), parent, plan, &mut found);
    found
}

fn check_node(
    policy: &Policy,
    seen: &Inventory,
    (before, node): (Option<&PlannedNode>, &PlannedNode),
    found: &mut Vec<Violation>,
) {
    let name = || node.name.clone();
    let generation = before.map(|before| before.generation).or_else(|| {
        seen.nodes.iter().find(|seen| seen.name == node.name).map(|seen| seen.generation)
    });
    let known = generation.unwrap_or(0);
    let Wanted::Run(start) = &node.wanted else {
        if before.is_none_or(|before| before.generation != node.generation) {
            found.push(Violation::Generation(name(), known, node.generation));
        }
        return;
    };
    if let Some(before) = before
        && before.generation == node.generation
    {
        found.push(Violation::ChangedUnderWay(name()));
        return;
    }
    if node.generation != known + 1 {
        found.push(Violation::Generation(name(), known, node.generation));
    }
    if !(1..=policy.nodes).any(|number| policy.name(number) == node.name) {
        found.push(Violation::BeyondPolicy(name()));
    }
    let lives = seen
        .nodes
        .iter()
        .any(|seen| seen.name == node.name && !matches!(seen.process, ProcessState::Exited { .. }));
    if lives || before.is_some_and(|before| !has_ended(seen, before)) {
        found.push(Violation::SecondLife(name()));
    }
    if let Start::Join(seeds) = start
        && (seeds.is_empty() || seeds.len() > SEEDS_MAX)
    {
        found.push(Violation::Seeds(name(), seeds.len()));
    }
}

fn has_ended(seen: &Inventory, node: &PlannedNode) -> bool {
    seen.nodes.iter().any(|seen| {
        seen.name == node.name
            && seen.generation == node.generation
            && matches!(seen.process, ProcessState::Exited { .. })
    })
}

fn check_forming(seen: &Inventory, plan: &Plan, found: &mut Vec<Violation>) {
    let forming = plan.nodes.iter().filter(|node| node.wanted == Wanted::Run(Start::Form));
    for (count, node) in forming.enumerate() {
        let launched = seen
            .nodes
            .iter()
            .any(|seen| seen.name == node.name && seen.generation >= node.generation);
        if count > 0 || (seen.cluster_exists && !launched) {
            found.push(Violation::SecondCluster(node.name.clone()));
        }
    }
}

/// What the cluster has given up already is no loss, and what nobody counts on yet neither. A stop
/// that was ordered before stays ordered, even if others have died since; it only forbids new ones.
fn check_stops(
    (policy, seen): (&Policy, &Inventory),
    parent: &Plan,
    plan: &Plan,
    found: &mut Vec<Violation>,
) {
    let is_ready = |name: &str| {
        let mut nodes = seen.nodes.iter();
        nodes.any(|seen| {
            let given_up = seen.member.is_some_and(|state| state.is_gone() || state.is_past());
            seen.name == name && matches!(seen.process, ProcessState::Ready(_)) && !given_up
        })
    };
    let counts = |node: &&PlannedNode| {
        let surplus = !(1..=policy.nodes).any(|number| policy.name(number) == node.name);
        surplus && is_ready(&node.name) && node.wanted == Wanted::Stop
    };
    let is_new = |node: &PlannedNode| !parent.nodes.contains(node);
    let stopping = plan.nodes.iter().filter(counts).count();
    let ready = seen.nodes.iter().filter(|seen| is_ready(&seen.name)).count();
    if plan.nodes.iter().filter(counts).any(is_new) && stopping * 2 >= ready {
        found.push(Violation::MajorityStopped { stopping, ready });
    }
}

#[cfg(test)]
mod tests;
