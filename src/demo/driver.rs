//! Moves packets between the two ends that [`Replay`] plays and the ports of nodes.
//!
//! A step pushes what may go in and takes what came out, a bounded number of each, and never waits;
//! whoever calls it waits when a step found nothing to do.

use super::measure::Meter;
use super::replay::{Answer, Heard, Push, Replay};
use super::steerer::NodeIndex;
use nearstate_nf_node::DropReason;
use nearstate_store::Time;

/// Packets that are pushed, and that are taken from one node, in one step.
const BURST: usize = 64;

/// The packet ports of all nodes, as the driver reaches them.
pub(crate) trait Lane {
    /// Hands a packet to its node; false if there is no room.
    fn push(&mut self, push: &Push<'_>) -> bool;

    /// Makes pushed packets known to their nodes.
    fn flush(&mut self);

    /// The next answer of a node, if there is one: the packet's number and what became of it.
    fn pop(&mut self, node: NodeIndex) -> Option<(u64, Answer<'_>)>;
}

/// See the module's text.
pub(crate) struct Driver<'a, L> {
    /// The two ends.
    pub(crate) replay: Replay<'a>,
    /// The ports.
    pub(crate) lane: L,
    /// What is measured.
    pub(crate) meter: Meter,
}

impl<'a, L: Lane> Driver<'a, L> {
    /// A driver before its first packet.
    pub(crate) fn new(replay: Replay<'a>, lane: L) -> Self {
        Self { replay, lane, meter: Meter::new() }
    }

    /// Pushes and takes packets; false if there were none.
    pub(crate) fn step(&mut self, clock: &impl Fn() -> Time) -> bool {
        let mut moved = self.push_burst(clock());
        for at in 0..self.replay.living().len() {
            let node = self.replay.living()[at];
            moved |= self.take(node, BURST, clock()) > 0;
        }
        moved
    }

    /// A node is dead: takes all that it had put out, then sends again what was inside it. Gives
    /// how many packets that were.
    pub(crate) fn bury(&mut self, node: NodeIndex, now: Time) -> u64 {
        while self.take(node, BURST, now) == BURST {}
        self.replay.handle_node_down(node)
    }

    fn push_burst(&mut self, now: Time) -> bool {
        let mut pushed = 0;
        while pushed < BURST {
            let Some(push) = self.replay.poll_output(now) else { break };
            let tag = push.tag;
            if !self.lane.push(&push) {
                self.replay.handle_refused(tag);
                break;
            }
            pushed += 1;
        }
        if pushed > 0 {
            self.meter.handle_start(now);
            self.lane.flush();
        }
        pushed > 0
    }

    fn take(&mut self, node: NodeIndex, most: usize, now: Time) -> usize {
        for taken in 0..most {
            let Some((tag, answer)) = self.lane.pop(node) else { return taken };
            let tag = u32::try_from(tag).unwrap_or(u32::MAX);
            // It waited for a packet that never came, not for a node.
            let is_orphan = matches!(answer, Answer::Dropped(DropReason::FragmentNoFirst));
            match self.replay.handle_answer(now, node, tag, answer) {
                Heard::First { latency_ns } if !is_orphan => {
                    self.meter.handle_answer(now, latency_ns);
                }
                _ => {}
            }
        }
        most
    }
}
