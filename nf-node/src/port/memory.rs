//! A port in memory: frames that were built before go in, as often as asked for.
//!
//! Receiving copies a frame into a buffer of the pool, as a card would write it there. What is sent
//! is either kept, for tests to look at, or only counted and its buffer given back, for benchmarks:
//! then nothing is copied and nothing allocated after the start.

use crate::frame::{Burst, Frame, FramePool};
use crate::port::Port;
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::Doorbell;
use std::sync::Arc;

/// What becomes of what leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Frames and drop reports are kept.
    All,
    /// They are only counted.
    Counts,
}

/// A frame that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The side it left on.
    pub side: Side,
    /// Whose it is.
    pub tag: u64,
    /// What it was.
    pub bytes: Vec<u8>,
}

/// See the module's text.
#[derive(Debug)]
pub struct MemoryPort {
    input: Vec<(Side, Vec<u8>)>,
    next: usize,
    /// Rounds through the input that are left, the current one included.
    rounds: u64,
    received: u64,
    keep: Keep,
    room: usize,
    sent: Vec<Sent>,
    drops: Vec<(u64, DropReason)>,
    sent_count: u64,
    drop_count: u64,
}

impl MemoryPort {
    /// A port that gives these frames once and keeps what leaves. The tag of a frame is its number,
    /// from 0 on.
    #[must_use]
    pub fn new(input: Vec<(Side, Vec<u8>)>) -> Self {
        Self::replaying(input, 1, Keep::All)
    }

    /// A port that gives these frames `rounds` times. Tags count on.
    #[must_use]
    pub fn replaying(input: Vec<(Side, Vec<u8>)>, rounds: u64, keep: Keep) -> Self {
        Self {
            rounds: if input.is_empty() { 0 } else { rounds },
            input,
            next: 0,
            received: 0,
            keep,
            room: usize::MAX,
            sent: Vec::new(),
            drops: Vec::new(),
            sent_count: 0,
            drop_count: 0,
        }
    }

    /// Lets only this many more frames out: to see what happens when there is no room.
    pub fn set_room(&mut self, frames: usize) {
        self.room = frames;
    }

    /// Adds a frame behind the others.
    pub fn push(&mut self, side: Side, bytes: Vec<u8>) {
        self.input.push((side, bytes));
        self.rounds = self.rounds.max(1);
    }

    /// What left and was kept.
    #[must_use]
    pub fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// What was reported as dropped and kept.
    #[must_use]
    pub fn drops(&self) -> &[(u64, DropReason)] {
        &self.drops
    }

    /// How many frames left.
    #[must_use]
    pub const fn sent_count(&self) -> u64 {
        self.sent_count
    }

    /// How many drops were reported.
    #[must_use]
    pub const fn drop_count(&self) -> u64 {
        self.drop_count
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let before = burst.len();
        while !burst.is_full() && !self.exhausted() {
            let Some(mut frame) = pool.take() else { break };
            let (side, bytes) = &self.input[self.next];
            let tag = self.received;
            self.received += 1;
            self.next += 1;
            if self.next == self.input.len() && self.rounds > 1 {
                self.next = 0;
                self.rounds -= 1;
            }
            if frame.copy_from(bytes).is_err() {
                pool.give(frame);
                self.report_drop(tag, DropReason::FrameTooLong);
                continue;
            }
            frame.side = *side;
            frame.tag = tag;
            burst.push(frame);
        }
        burst.len() - before
    }

    fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        if self.room == 0 {
            return Err(frame);
        }
        self.room -= 1;
        self.sent_count += 1;
        if self.keep == Keep::All {
            let bytes = frame.as_slice().to_vec();
            self.sent.push(Sent { side: frame.side, tag: frame.tag, bytes });
        }
        pool.give(frame);
        Ok(())
    }

    fn flush(&mut self) {}

    fn report_drop(&mut self, tag: u64, reason: DropReason) {
        self.drop_count += 1;
        if self.keep == Keep::All {
            self.drops.push((tag, reason));
        }
    }

    fn bell(&self) -> Option<Arc<Doorbell>> {
        None
    }

    fn exhausted(&self) -> bool {
        self.rounds == 0 || self.next >= self.input.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FRAME_BYTES;

    #[test]
    fn frames_come_in_order_as_often_as_asked_for() {
        let input = vec![(Side::Inside, vec![1]), (Side::Outside, vec![2, 2])];
        let mut port = MemoryPort::replaying(input, 3, Keep::All);
        let (mut pool, mut burst) = (FramePool::new(4), Burst::new());
        assert_eq!(port.receive(&mut pool, &mut burst), 4, "the pool has no more");
        for frame in burst.drain(..) {
            port.send(frame, &mut pool).unwrap();
        }
        assert_eq!(port.receive(&mut pool, &mut burst), 2);
        assert!(port.exhausted());
        let last = burst.pop().unwrap();
        assert_eq!((last.tag, last.side, last.as_slice()), (5, Side::Outside, &[2, 2][..]));
        assert_eq!(port.sent()[3].bytes, [2, 2]);
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn without_room_a_frame_comes_back() {
        let mut port = MemoryPort::new(vec![(Side::Inside, vec![1])]);
        let (mut pool, mut burst) = (FramePool::new(1), Burst::new());
        port.set_room(0);
        port.receive(&mut pool, &mut burst);
        let frame = port.send(burst.pop().unwrap(), &mut pool).unwrap_err();
        assert_eq!(frame.as_slice(), [1]);
    }

    #[test]
    fn what_no_buffer_holds_is_reported() {
        let mut port = MemoryPort::new(vec![(Side::Inside, vec![0; FRAME_BYTES + 1])]);
        let (mut pool, mut burst) = (FramePool::new(1), Burst::new());
        assert_eq!(port.receive(&mut pool, &mut burst), 0);
        assert_eq!(port.drops(), [(0, DropReason::FrameTooLong)]);
        assert_eq!(pool.free(), 1);
    }
}
