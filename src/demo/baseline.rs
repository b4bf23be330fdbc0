//! The same packets through one node that sees them all: the production pipe on a plain local
//! table, inside this process. What the cluster's run is compared with.
//!
//! Where its pipe waits for a time to come, the clock is put on: nobody sleeps here.

use super::DemoError;
use super::driver::{Driver, Lane};
use super::outcome::Outcomes;
use super::random::Random;
use super::replay::{Answer, Push, Replay};
use super::script::Script;
use super::steerer::{NodeIndex, Steer, Steerer};
use nearstate_nf_node::baseline::{Baseline, BaselineConfig};
use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::frame::{Burst, Frame, FramePool};
use nearstate_nf_node::pipe::{EARLY_SHARE, Output, PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use nearstate_nf_node::verdict::DropReason;
use nearstate_store::clock::boot_now;
use nearstate_store::{SlotId, Time};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

/// Packets inside the baseline node at a time: as many later fragments may wait for their first
/// ones.
const WINDOW: usize = PARKED_MAX / EARLY_SHARE;
/// Frames of its pool.
const FRAMES: usize = 2 * WINDOW;

/// Runs a script through one node.
pub(crate) fn run(
    script: &Script,
    chain: Chain,
    steer_seed: u32,
    capacity: u32,
) -> Result<Outcomes, DemoError> {
    let nowhere = Box::new(|_, _: &_| SlotId(0));
    let steerer = Steerer::new(Steer::Random, nowhere, Random::new(0, 0));
    let mut replay = Replay::new(script, steerer, WINDOW);
    replay.handle_node_up(0);
    let mut driver = Driver::new(replay, BaselineNode::new(chain, steer_seed, capacity)?);
    while !driver.replay.is_done() {
        let clock = driver.lane.said.clock.clone();
        let moved = driver.step(&|| clock.now());
        assert!(moved || driver.lane.wait(), "the baseline node waits for nobody, but has stopped");
    }
    Ok(driver.replay.into_outcomes())
}

/// A pipe without a store, and what came out of it.
struct BaselineNode {
    pipe: Pipe<Baseline, SteeredChain>,
    pool: FramePool,
    burst: Burst,
    said: Said,
    /// The frame of the answer that was given last.
    given: Option<Frame>,
}

/// The time, and how far it was put on.
#[derive(Clone, Default)]
struct Clock(Rc<Cell<u64>>);

impl Clock {
    fn now(&self) -> Time {
        boot_now().plus_ns(self.0.get())
    }

    fn put_to(&self, at: Time) {
        self.0.set(self.0.get() + at.since_ns(self.now()));
    }
}

/// Packets that left or were dropped, in order.
#[derive(Default)]
struct Said {
    ended: VecDeque<(Frame, Option<DropReason>)>,
    clock: Clock,
}

impl Output for Said {
    fn clock(&mut self) -> Time {
        self.clock.now()
    }

    fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
        self.ended.push_back((frame, None));
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.ended.push_back((frame, Some(reason)));
    }
}

impl BaselineNode {
    fn new(chain: Chain, steer_seed: u32, capacity: u32) -> Result<Self, DemoError> {
        let access = Baseline::new(BaselineConfig {
            capacity,
            slots: chain.slots(),
            pools: chain.pools().to_vec(),
            hash_key: steer_seed.into(),
            pending_max: PARKED_MAX,
        })?;
        let stages = SteeredChain::new(Arc::new(chain), steer_seed);
        let settings = PipeSettings { client: 1, parked_max: PARKED_MAX, seed: steer_seed.into() };
        Ok(Self {
            pipe: Pipe::new(stages, access, settings),
            pool: FramePool::new(FRAMES),
            burst: Burst::new(),
            said: Said::default(),
            given: None,
        })
    }

    /// Puts the clock to what the pipe waits for; false if it waits for nothing.
    fn wait(&mut self) -> bool {
        let Some(at) = self.pipe.next_deadline() else { return false };
        self.said.clock.put_to(at);
        self.pipe.on_deadline(self.said.clock.now(), &mut self.said);
        true
    }
}

impl Lane for BaselineNode {
    fn push(&mut self, push: &Push<'_>) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        frame.copy_from(push.frame).expect("the script refuses frames that are too long");
        frame.side = push.side;
        frame.tag = u64::from(push.tag);
        self.burst.push(frame);
        self.pipe.on_burst(self.said.clock.now(), &mut self.burst, &mut self.said);
        true
    }

    fn flush(&mut self) {}

    fn pop(&mut self, _: NodeIndex) -> Option<(u64, Answer<'_>)> {
        if let Some(frame) = self.given.take() {
            self.pool.give(frame);
        }
        if self.said.ended.is_empty() {
            self.pipe.on_completions(self.said.clock.now(), &mut self.said);
        }
        let (frame, reason) = self.said.ended.pop_front()?;
        let frame = self.given.insert(frame);
        let answer = match reason {
            Some(reason) => Answer::Dropped(reason),
            None => Answer::Left(frame.side, frame.as_slice()),
        };
        Some((frame.tag, answer))
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::compare;
    use super::super::frames::Frames;
    use super::super::outcome::Outcome;
    use super::super::script::Scene;
    use super::super::traffic::{TrafficSpec, generate};
    use super::super::{SLOTS, scene};
    use super::*;
    use nearstate_nf_node::chain_config::ChainConfig;
    use nearstate_placement::Side;

    const SPEC: TrafficSpec = TrafficSpec { flows: 400, packets: 8_000, seed: 5 };

    fn outcomes(names: &[&str], script: &Script, seed: u32) -> Outcomes {
        let chain = Chain::new(&ChainConfig::named(names).unwrap(), SLOTS).unwrap();
        run(script, chain, seed, 1 << 17).unwrap()
    }

    fn left(outcomes: &Outcomes, to: Side) -> usize {
        let numbers = 0..outcomes.len() as u32;
        let is_so = |outcome| matches!(outcome, Outcome::Left { side, .. } if side == to);
        numbers.filter(|&number| is_so(outcomes.get(number))).count()
    }

    #[test]
    fn generated_traffic_passes_both_ways_and_other_ports_change_nothing() {
        let script = Script::new(generate(&SPEC), &Scene::inside_calls());
        let one = outcomes(&["firewall", "nat"], &script, 1);
        let other = outcomes(&["firewall", "nat"], &script, 2);
        let (out, back) = (left(&one, Side::Outside), left(&one, Side::Inside));
        assert_eq!(out + back, script.len(), "nothing of it is refused");
        assert!(back * 10 > script.len() * 3);
        let found = compare(&script, &other, &one, true);
        assert_eq!((found.mismatches, found.state_lost), (0, 0), "{:?}", found.told);
        let strict = compare(&script, &other, &one, false);
        assert!(strict.mismatches > 0, "other seeds give other ports");
    }

    #[test]
    fn clients_of_a_service_are_answered_by_it() {
        for names in [["load-balancer", "firewall"], ["firewall", "load-balancer"]] {
            let scene = scene(&ChainConfig::named(&names).unwrap());
            let script = Script::new(generate(&SPEC), &scene);
            let outcomes = outcomes(&names, &script, 1);
            let (to_backends, to_clients) =
                (left(&outcomes, Side::Inside), left(&outcomes, Side::Outside));
            assert!(to_backends * 10 > script.len() * 2, "{names:?}: {to_backends}");
            assert!(to_clients * 10 > script.len() * 2, "{names:?}: {to_clients}");
        }
    }

    #[test]
    fn damaged_packets_are_dropped_and_nothing_else_happens() {
        let mut frames = generate(&SPEC);
        let mut random = Random::new(7, 7);
        for number in 0..frames.len() as u32 {
            let frame = frames.frame_mut(number);
            for _ in 0..random.below(3) {
                let at = random.below(frame.len() as u64) as usize;
                frame[at] ^= 1 << random.below(8);
            }
        }
        let mut cut = Frames::default();
        for number in 0..frames.len() as u32 {
            let frame = frames.frame(number);
            let length = random.below(frame.len() as u64 + 1) as usize;
            let kept = if number % 4 == 0 { &frame[..length] } else { frame };
            cut.push(kept, kept.len() as u32, 0);
        }
        let script = Script::new(cut, &Scene::inside_calls());
        let one = outcomes(&["firewall", "nat"], &script, 1);
        let other = outcomes(&["firewall", "nat"], &script, 9);
        assert_eq!((one.pending(), other.pending()), (0, 0));
        let found = compare(&script, &other, &one, true);
        assert_eq!((found.mismatches, found.state_lost), (0, 0), "{:?}", found.told);
    }
}
