//! From policy, inventory and the plan before to the next plan, with a report that says what each
//! step did or waits for. Pure; planning again with what is then seen, unchanged, changes nothing.
//!
//! Steps, in the order in which they run:
//! 1. `stop-late`: what does not get ready in time is stopped;
//! 2. `stop-outcast`: a process that the cluster has given up for good is stopped;
//! 3. `stop-surplus`: nodes beyond the policy are stopped, the highest numbers first, a minority at
//!    once;
//! 4. `clear`: names whose surplus process has ended are dropped;
//! 5. `replace`: what has ended is started anew under its name, as the next generation;
//! 6. `launch`: wanted names that were never started are; the first one forms the cluster, and the
//!    others wait for it.

use crate::inventory::{Inventory, NodeSeen, ProcessState};
use crate::plan::{Plan, PlannedNode, SEEDS_MAX, Start, Wanted};
use crate::policy::Policy;
use core::fmt;

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportLine {
    /// The step.
    pub step: &'static str,
    /// What it did or waits for.
    pub text: String,
}

impl fmt::Display for ReportLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.text)
    }
}

/// What came of planning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The next plan; `None` if the one before still holds.
    pub next: Option<Plan>,
    /// What each step did or waits for.
    pub report: Vec<ReportLine>,
    /// Names that failed to start too often and are not tried again.
    pub given_up: Vec<String>,
}

/// Plans.
#[must_use]
pub fn plan(policy: &Policy, seen: &Inventory, parent: &Plan) -> Planned {
    let nodes = parent.nodes.clone();
    let mut planner = Planner { policy, seen, nodes, report: Vec::new(), given_up: Vec::new() };
    planner.plan_stop_late();
    planner.plan_stop_outcast();
    planner.plan_stop_surplus();
    planner.plan_clear();
    planner.plan_replace();
    planner.plan_launch();
    let Planner { nodes, report, given_up, .. } = planner;
    let changed = nodes != parent.nodes;
    let next =
        changed.then(|| Plan { number: parent.number + 1, parent: Some(parent.number), nodes });
    Planned { next, report, given_up }
}

/// Whether the cluster has given a node up for good.
const fn is_outcast(seen: &NodeSeen) -> bool {
    matches!(seen.member, Some(state) if !state.is_live())
}

struct Planner<'a> {
    policy: &'a Policy,
    seen: &'a Inventory,
    nodes: Vec<PlannedNode>,
    report: Vec<ReportLine>,
    given_up: Vec<String>,
}

impl<'a> Planner<'a> {
    fn say(&mut self, step: &'static str, text: String) {
        self.report.push(ReportLine { step, text });
    }

    /// What was seen of just the process that is planned, not of one before it.
    fn seen(&self, at: usize) -> Option<&'a NodeSeen> {
        let node = &self.nodes[at];
        self.seen.node(&node.name).filter(|seen| seen.generation == node.generation)
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.policy.names().any(|wanted| wanted == name)
    }

    fn runs(&self, at: usize) -> bool {
        matches!(self.nodes[at].wanted, Wanted::Run(_))
    }

    fn plan_stop_late(&mut self) {
        for at in 0..self.nodes.len() {
            let Some(NodeSeen { process: ProcessState::Starting { since }, .. }) = self.seen(at)
            else {
                continue;
            };
            let waited_ms = self.seen.at.since_ns(*since) / 1_000_000;
            if self.runs(at) && waited_ms >= self.policy.ready_timeout_ms {
                self.nodes[at].wanted = Wanted::Stop;
                let text = format!("{} is not ready in time", self.nodes[at].name);
                self.say("stop-late", text);
            }
        }
    }

    fn plan_stop_outcast(&mut self) {
        for at in 0..self.nodes.len() {
            let outcast = self.seen(at).is_some_and(|seen| is_outcast(seen) && seen.is_running());
            if self.runs(at) && outcast {
                self.nodes[at].wanted = Wanted::Stop;
                let text = format!("the cluster has given up {}", self.nodes[at].name);
                self.say("stop-outcast", text);
            }
        }
    }

    fn plan_stop_surplus(&mut self) {
        const STEP: &str = "stop-surplus";
        let stopping = |planner: &Self| {
            let stopping = |at: &usize| {
                !planner.runs(*at) && planner.seen(*at).is_some_and(NodeSeen::is_running)
            };
            (0..planner.nodes.len()).filter(stopping).count()
        };
        for at in (0..self.nodes.len()).rev() {
            if !self.runs(at) || self.is_wanted(&self.nodes[at].name) {
                continue;
            }
            let name = self.nodes[at].name.clone();
            let ready = self.seen.ready().filter(|(seen, _)| !is_outcast(seen)).count();
            if (stopping(self) + 1) * 2 >= ready {
                self.say(STEP, format!("{name} waits: more than a minority would stop at once"));
                continue;
            }
            self.nodes[at].wanted = Wanted::Stop;
            self.say(STEP, format!("{name} is not wanted any more"));
        }
    }

    fn plan_clear(&mut self) {
        let policy = self.policy;
        let seen = self.seen;
        let mut cleared = Vec::new();
        self.nodes.retain(|node| {
            let ended = seen
                .node(&node.name)
                .is_some_and(|seen| seen.generation == node.generation && !seen.is_running());
            let wanted = policy.names().any(|name| name == node.name);
            let keep = wanted || !ended;
            if !keep {
                cleared.push(node.name.clone());
            }
            keep
        });
        for name in cleared {
            self.say("clear", format!("{name} has ended"));
        }
    }

    fn plan_replace(&mut self) {
        const STEP: &str = "replace";
        for at in 0..self.nodes.len() {
            let Some(seen) = self.seen(at) else { continue };
            let ProcessState::Exited { exit, at: when, .. } = &seen.process else { continue };
            let name = self.nodes[at].name.clone();
            if seen.failed_starts >= self.policy.failed_starts_max {
                let text = format!("{name} failed to start {} times: given up", seen.failed_starts);
                self.say(STEP, text);
                self.given_up.push(name);
                continue;
            }
            let wait_ms = self.policy.retry_after_ms * u64::from(seen.failed_starts);
            if self.seen.at < when.plus_ms(wait_ms) {
                self.say(STEP, format!("{name} waits before its next start"));
                continue;
            }
            let Some(start) = self.start_of(&name) else {
                self.say(STEP, format!("{name} waits: no node is ready to let it in"));
                continue;
            };
            self.nodes[at].generation += 1;
            self.nodes[at].wanted = Wanted::Run(start);
            self.say(STEP, format!("{name} ended ({exit})"));
        }
    }

    fn plan_launch(&mut self) {
        let policy = self.policy;
        for name in policy.names() {
            if self.nodes.iter().any(|node| node.name == name) {
                continue;
            }
            let Some(start) = self.start_of(&name) else {
                self.say("launch", format!("{name} waits: no node is ready to let it in"));
                continue;
            };
            // A name that comes back after it was cleared goes on counting.
            let generation = self.seen.node(&name).map_or(1, |seen| seen.generation + 1);
            self.say("launch", name.clone());
            self.nodes.push(PlannedNode { name, generation, wanted: Wanted::Run(start) });
        }
    }

    /// How a process of this name gets into the cluster; `None` while it cannot. Only the first
    /// name forms, and only if there was never a cluster: a second one of the same name would be a
    /// lie.
    fn start_of(&self, name: &str) -> Option<Start> {
        if !self.seen.cluster_exists {
            return (name == self.policy.name(1)).then_some(Start::Form);
        }
        let others = self.seen.ready().filter(|(seen, _)| seen.name != name);
        let seeds: Vec<_> = others.map(|(_, ready)| ready.listen).take(SEEDS_MAX).collect();
        (!seeds.is_empty()).then_some(Start::Join(seeds))
    }
}

#[cfg(test)]
mod tests;
