//! The same packets through one node that sees them all: the production pipe on a plain local table,
//! inside this process. What the cluster's run is compared with.

use super::DemoError;
use super::driver::{Driver, Lane};
use super::outcome::Outcomes;
use super::random::Random;
use super::replay::{Answer, Push, Replay};
use super::script::Script;
use super::steerer::{NodeIndex, Steer, Steerer};
use nearstate_nf_node::baseline::Baseline;
use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::frame::{Burst, Frame, FramePool};
use nearstate_nf_node::pipe::{Output, Pipe, PipeSettings, SteeredChain};
use nearstate_nf_node::verdict::DropReason;
use nearstate_store::clock::boot_now;
use nearstate_store::{SlotId, Time};
use std::collections::VecDeque;
use std::sync::Arc;

/// Packets inside the baseline node at a time.
const WINDOW: usize = 32;
/// Frames of its pool.
const FRAMES: usize = 4 * WINDOW;

/// Runs a script through one node.
pub(crate) fn run(
    script: &Script,
    chain: Chain,
    steer_seed: u32,
    capacity: usize,
) -> Result<Outcomes, DemoError> {
    let nowhere = Box::new(|_, _: &_| SlotId(0));
    let steerer = Steerer::new(Steer::Random, nowhere, Random::new(0, 0));
    let mut replay = Replay::new(script, steerer, WINDOW);
    replay.handle_node_up(0);
    let mut driver = Driver::new(replay, BaselineNode::new(chain, steer_seed, capacity)?);
    while driver.step(&boot_now) {}
    let replay = driver.replay;
    assert!(replay.is_done(), "the baseline node waits for nobody, but has stopped");
    Ok(replay.into_outcomes())
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

/// Packets that left or were dropped, in order.
#[derive(Default)]
struct Said(VecDeque<(Frame, Option<DropReason>)>);

impl Output for Said {
    fn clock(&mut self) -> Time {
        boot_now()
    }

    fn leave(&mut self, frame: Frame) {
        self.0.push_back((frame, None));
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.0.push_back((frame, Some(reason)));
    }
}

impl BaselineNode {
    fn new(chain: Chain, steer_seed: u32, capacity: usize) -> Result<Self, DemoError> {
        let access = Baseline::new(chain.slots(), chain.pools(), capacity)?;
        let stages = SteeredChain::new(Arc::new(chain), steer_seed);
        Ok(Self {
            pipe: Pipe::new(stages, access, PipeSettings::default()),
            pool: FramePool::new(FRAMES),
            burst: Burst::new(),
            said: Said::default(),
            given: None,
        })
    }
}

impl Lane for BaselineNode {
    fn push(&mut self, push: &Push<'_>) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        frame.copy_from(push.frame).expect("the script refuses frames that are too long");
        frame.side = push.side;
        frame.tag = u64::from(push.tag);
        self.burst.push(frame);
        self.pipe.on_burst(boot_now(), &mut self.burst, &mut self.said);
        true
    }

    fn flush(&mut self) {}

    fn pop(&mut self, _: NodeIndex) -> Option<(u64, Answer<'_>)> {
        if let Some(frame) = self.given.take() {
            self.pool.give(frame);
        }
        if self.said.0.is_empty() {
            self.pipe.on_completions(boot_now(), &mut self.said);
        }
        let (frame, reason) = self.said.0.pop_front()?;
        let frame = self.given.insert(frame);
        let answer = match reason {
            Some(reason) => Answer::Dropped(reason),
            None => Answer::Left(frame.side, frame.as_slice()),
        };
        Some((frame.tag, answer))
    }
}
