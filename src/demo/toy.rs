//! For tests: nodes that share a plain NAT, answer late and out of order, and can die.
//!
//! The cluster as the driver sees it, from one seed: what a node holds when it dies is gone, though
//! the state that it made may stay, as after a commit whose packet did not leave.

use super::driver::{Driver, Lane};
use super::outcome::Outcomes;
use super::random::Random;
use super::replay::{Answer, Push, Replay};
use super::script::Script;
use super::steerer::{NodeIndex, Steer, Steerer};
use nearstate_nf_node::packet::parse;
use nearstate_nf_node::{DropReason, rewrite};
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Endpoint, SlotId, Time};
use std::collections::BTreeMap;

/// What a toy node says.
type Said = Result<(Side, Vec<u8>), DropReason>;

/// Inside and external endpoints, shared by all nodes.
#[derive(Default)]
pub(super) struct Nat {
    first_port: u16,
    external: BTreeMap<(u8, Endpoint), Endpoint>,
    inside: BTreeMap<(u8, Endpoint), Endpoint>,
}

impl Nat {
    fn process(&mut self, side: Side, frame: &[u8]) -> Said {
        let parsed = parse(frame)?;
        let FlowTuple { protocol, source, destination } = parsed.tuple;
        let tuple = match side {
            Side::Inside => {
                let next = self.first_port + self.external.len() as u16;
                let external = *self
                    .external
                    .entry((protocol, source))
                    .or_insert(Endpoint::v4([198, 19, 0, 1], next));
                self.inside.insert((protocol, external), source);
                FlowTuple { source: external, ..parsed.tuple }
            }
            Side::Outside => {
                let inside = self.inside.get(&(protocol, destination));
                let inside = *inside.ok_or(DropReason::NoMapping)?;
                FlowTuple { destination: inside, ..parsed.tuple }
            }
        };
        let mut frame = frame.to_vec();
        rewrite::apply(&mut frame, &parsed, &tuple);
        Ok((side.opposite(), frame))
    }
}

/// See the module's text.
pub(super) struct ToyLane {
    nat: Nat,
    /// What each node will say.
    waiting: Vec<Vec<(u32, Said)>>,
    room: usize,
    random: Random,
    said: Option<(u32, Said)>,
    repeat_percent: u64,
}

impl ToyLane {
    /// Nodes whose NAT gives out ports from `first_port` on.
    pub(super) fn new(nodes: usize, first_port: u16, seed: u64) -> Self {
        let nat = Nat { first_port, ..Nat::default() };
        let waiting = vec![Vec::new(); nodes];
        Self { nat, waiting, room: 9, random: Random::new(seed, 9), said: None, repeat_percent: 5 }
    }

    /// A node dies with what it holds.
    pub(super) fn die(&mut self, node: NodeIndex) {
        self.waiting[node].clear();
    }
}

impl Lane for ToyLane {
    fn push(&mut self, push: &Push<'_>) -> bool {
        let held = &mut self.waiting[push.node];
        if held.len() >= self.room {
            return false;
        }
        held.push((push.tag, self.nat.process(push.side, push.frame)));
        true
    }

    fn flush(&mut self) {}

    fn pop(&mut self, node: NodeIndex) -> Option<(u64, Answer<'_>)> {
        let held = &mut self.waiting[node];
        if held.is_empty() || self.random.percent(30) {
            return None;
        }
        let at = self.random.below(held.len() as u64) as usize;
        let said = if self.random.percent(self.repeat_percent) {
            held[at].clone()
        } else {
            held.swap_remove(at)
        };
        let (tag, said) = self.said.insert(said);
        let answer = match said {
            Ok((side, frame)) => Answer::Left(*side, frame),
            Err(reason) => Answer::Dropped(*reason),
        };
        Some((u64::from(*tag), answer))
    }
}

/// What a toy run gives.
pub(super) struct ToyRun {
    pub(super) outcomes: Outcomes,
    pub(super) retransmitted: u64,
    pub(super) unexpected: u64,
}

/// Runs a script through `nodes` toy nodes; with `kill`, the first node dies half way and another
/// takes its place.
pub(super) fn run(script: &Script, nodes: usize, first_port: u16, kill: bool) -> ToyRun {
    let slot_of = Box::new(|_: Side, tuple: &FlowTuple| SlotId(tuple.source.port % 8));
    let mut steerer = Steerer::new(Steer::Owner, slot_of, Random::new(5, 2));
    steerer.handle_owners((0..8).map(|slot| Some(slot % nodes)).collect());
    let lane = ToyLane::new(nodes + usize::from(kill), first_port, u64::from(first_port));
    let mut driver = Driver::new(Replay::new(script, steerer, 16), lane);
    (0..nodes).for_each(|node| driver.replay.handle_node_up(node));
    let mut killed = !kill;
    let mut idle = 0;
    while !driver.replay.is_done() {
        idle = if driver.step(&|| Time(0)) { 0 } else { idle + 1 };
        assert!(idle < 1000, "nothing moves: {} packets done", driver.replay.done());
        let half_way = driver.replay.done() * 2 > script.len();
        if !killed && half_way && driver.replay.inside(0) > 0 {
            killed = true;
            driver.lane.die(0);
            driver.bury(0, Time(0));
            driver.replay.handle_node_up(nodes);
        }
    }
    assert!(killed, "the run was over before anybody could be killed");
    let (retransmitted, unexpected) = (driver.replay.retransmitted(), driver.replay.unexpected());
    ToyRun { outcomes: driver.replay.into_outcomes(), retransmitted, unexpected }
}
