//! Where packets come from and go to: the trait that a pipe drives, and its bodies.
//!
//! A port has two sides, inside and outside; a frame says on which it came in, and is sent out of
//! the side that it names then. Calls never block. A port that cannot take a frame gives it back:
//! what becomes of it is the pipe's decision, and the drop is counted there.

pub mod capture;
pub mod memory;
pub mod pcap;
pub mod shm;

use crate::frame::{Burst, Frame, FramePool};
use crate::verdict::DropReason;
use nearstate_store::Doorbell;
use std::sync::Arc;

/// A source and sink of frames, owned by one thread.
pub trait Port: Send {
    /// Receives up to the burst's free room, in buffers from the pool; returns how many.
    /// `Frame.side` is where each came in.
    fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize;

    /// Sends one frame out of `frame.side`; its buffer goes back to the pool.
    ///
    /// # Errors
    /// Gives the frame back when there is no room.
    fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame>;

    /// Makes what was sent visible, or really sends it.
    fn flush(&mut self);

    /// Tells the other end that its frame with this tag did not leave, where the port can say so.
    fn report_drop(&mut self, tag: u64, reason: DropReason);

    /// Rung by the other end when frames come, if the port can; the pipe waits on it when idle.
    fn bell(&self) -> Option<Arc<Doorbell>>;

    /// Whether what is not received now stays where it is, as in a capture: then nothing is
    /// received that might find no place to wait in.
    fn can_wait(&self) -> bool {
        false
    }

    /// No more frames will ever come (the end of a capture).
    fn exhausted(&self) -> bool {
        false
    }
}
