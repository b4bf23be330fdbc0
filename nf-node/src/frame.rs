//! Frames and the pool that they come from.
//!
//! A node's frames are allocated once, at start; afterwards they only move: from the pool to a
//! port, through a pipe, out of a port and back to the pool. An empty pool is an ordinary outcome:
//! the port receives nothing until a frame comes back.

use arrayvec::ArrayVec;
use core::fmt;
use nearstate_placement::Side;
use thiserror::Error;

/// Bytes of a frame's buffer; nothing longer is carried.
pub const FRAME_BYTES: usize = 2048;
/// Frames that a port hands over at once.
pub const BURST_MAX: usize = 32;

const _: () = assert!(FRAME_BYTES <= u16::MAX as usize, "offsets in a frame are 16 bits");

/// The frames of one receive.
pub type Burst = ArrayVec<Frame, BURST_MAX>;

/// It does not fit into a frame's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a frame of {0} bytes does not fit: at most {FRAME_BYTES} bytes are carried")]
pub struct FrameTooLong(pub usize);

/// One Ethernet frame in a buffer of its own.
pub struct Frame {
    /// The buffer; the frame is its first `len` bytes.
    pub bytes: Box<[u8; FRAME_BYTES]>,
    /// Length of the frame, at most [`FRAME_BYTES`].
    pub len: u16,
    /// Where it came in; once a verdict is there, the side that it leaves on.
    pub side: Side,
    /// Given by whoever sent it, and given back with it.
    pub tag: u64,
}

impl Frame {
    /// An empty frame.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: Box::new([0; FRAME_BYTES]), len: 0, side: Side::Inside, tag: 0 }
    }

    /// The frame's bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The frame's bytes, to be changed.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }

    /// Takes over a copy of these bytes.
    ///
    /// # Errors
    /// If they do not fit; the frame is as before then.
    pub fn copy_from(&mut self, bytes: &[u8]) -> Result<(), FrameTooLong> {
        let room = self.bytes.get_mut(..bytes.len()).ok_or(FrameTooLong(bytes.len()))?;
        room.copy_from_slice(bytes);
        self.len = bytes.len() as u16;
        Ok(())
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes, {:?}, tag {})", self.len, self.side, self.tag)
    }
}

/// A bounded stock of frames, for one thread.
#[derive(Debug)]
pub struct FramePool {
    free: Vec<Frame>,
    capacity: usize,
}

impl FramePool {
    /// A pool that owns `capacity` frames.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let mut free = Vec::with_capacity(capacity);
        free.resize_with(capacity, Frame::new);
        Self { free, capacity }
    }

    /// A frame, if one is free. Its bytes are whatever was in it before, its length is 0.
    pub fn take(&mut self) -> Option<Frame> {
        let mut frame = self.free.pop()?;
        frame.len = 0;
        Some(frame)
    }

    /// Gives a frame back. One that is over the pool's capacity is freed, so nothing grows.
    pub fn give(&mut self, frame: Frame) {
        if self.free.len() < self.capacity {
            self.free.push(frame);
        }
    }

    /// How many frames are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// How many frames the pool was made with.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_bounded_both_ways() {
        let mut pool = FramePool::new(2);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.give(first);
        pool.give(second);
        pool.give(Frame::new());
        assert_eq!((pool.free(), pool.capacity()), (2, 2));
    }

    #[test]
    fn a_frame_refuses_what_does_not_fit_and_keeps_what_it_has() {
        let mut frame = Frame::new();
        frame.copy_from(&[1, 2, 3]).unwrap();
        assert_eq!(frame.copy_from(&[0; FRAME_BYTES + 1]), Err(FrameTooLong(FRAME_BYTES + 1)));
        assert_eq!(frame.as_slice(), [1, 2, 3]);
        frame.copy_from(&[7; FRAME_BYTES]).unwrap();
        assert_eq!(frame.as_mut_slice().len(), FRAME_BYTES);
    }

    #[test]
    fn a_taken_frame_is_empty() {
        let mut pool = FramePool::new(1);
        let mut frame = pool.take().unwrap();
        frame.copy_from(&[9; 100]).unwrap();
        pool.give(frame);
        assert!(pool.take().unwrap().as_slice().is_empty());
    }
}
