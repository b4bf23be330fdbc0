//! A port in a shared file: how packets reach a node in another process without any privilege.
//!
//! The node makes the file ([`ShmPort`]), whoever drives it opens it ([`ShmPeer`]). Two rings, one
//! a direction, each with one producer and one consumer; a slot is a descriptor of two words and a
//! frame. A producer writes slots and publishes them with one store of its cursor when it flushes;
//! then it rings the other end's doorbell. A descriptor of length 0 from the node says that the
//! frame with its tag was dropped, and why.
//!
//! ```text
//! byte 0      magic, slots        one writer, before the file is used
//!      128    doorbell of the node         256   doorbell of the peer
//!      384    to node: head   512  tail    640   to peer: head   768  tail
//!      1024   slots to the node, then slots to the peer
//! ```
//!
//! Cursors only rise; a slot is its cursor modulo the number of slots. What the other end wrote is
//! not trusted: a cursor that cannot be counts as "nothing there" (or "full"), lengths are held
//! against the slot, and indexes are masked, so the worst that the other end can do is to send
//! wrong frames.

use crate::frame::{Burst, FRAME_BYTES, Frame, FramePool, FrameTooLong};
use crate::port::Port;
use crate::verdict::DropReason;
use core::sync::atomic::{AtomicU64, Ordering};
use nearstate_placement::Side;
use nearstate_store::{Doorbell, Region, RegionError};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// Slots of one direction that a file may have at most.
pub const SLOTS_MAX: usize = 1 << 16;
/// Slots of one direction unless told otherwise.
pub const SLOTS_DEFAULT: usize = 1024;

/// "nstport1" as the file's first word.
const MAGIC: u64 = u64::from_le_bytes(*b"nstport1");
/// Two cache lines, because processors fetch them in pairs.
const LINE_BYTES: usize = 128;
const WORD_MAGIC: usize = 0;
const WORD_SLOTS: usize = 1;
const BELL_NODE_AT: usize = LINE_BYTES;
const BELL_PEER_AT: usize = 2 * LINE_BYTES;
const CURSORS_TO_NODE_AT: usize = 3 * LINE_BYTES;
const CURSORS_TO_PEER_AT: usize = 5 * LINE_BYTES;
const SLOTS_AT: usize = 1024;
/// Tag and descriptor word.
const DESCRIPTOR_BYTES: usize = 16;
const SLOT_BYTES: usize = DESCRIPTOR_BYTES + FRAME_BYTES;

const _: () = assert!(CURSORS_TO_PEER_AT + 2 * LINE_BYTES <= SLOTS_AT);
const _: () = assert!(SLOT_BYTES.is_multiple_of(8));

/// Why a shared port could not be made or opened.
#[derive(Debug, Error)]
pub enum ShmError {
    /// Not a number of slots that works.
    #[error("a shared port of {0} slots cannot be: use a power of two up to {SLOTS_MAX}")]
    Slots(usize),
    /// The file itself.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// It is something else, or its owner has not finished making it.
    #[error(
        "the file is not a packet port of this version, or its node has not finished making it"
    )]
    NotAPort,
}

/// Why a frame could not be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PushError {
    /// All slots are taken; the node has to take some first.
    #[error("the port is full: wait until the node has taken some frames")]
    Full,
    /// No slot holds it.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
}

/// The words in front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    tag: u64,
    len: usize,
    side: Side,
    reason: u8,
}

impl Descriptor {
    fn word(self) -> u64 {
        let side = match self.side {
            Side::Inside => 0,
            Side::Outside => 1,
        };
        self.len as u64 | side << 16 | u64::from(self.reason) << 24
    }

    /// `None` if the length does not fit a slot.
    fn from_words(tag: u64, word: u64) -> Option<Self> {
        let len = (word & 0xffff) as usize;
        let side = if word >> 16 & 1 == 0 { Side::Inside } else { Side::Outside };
        (len <= FRAME_BYTES).then_some(Self { tag, len, side, reason: (word >> 24) as u8 })
    }
}

/// One direction, seen from either end.
#[derive(Debug)]
struct Ring {
    region: Arc<Region>,
    cursors_at: usize,
    slots_at: usize,
    slots: u64,
}

impl Ring {
    fn new(region: &Arc<Region>, cursors_at: usize, slots: usize) -> Self {
        let index = usize::from(cursors_at == CURSORS_TO_PEER_AT);
        let slots_at = SLOTS_AT + index * slots * SLOT_BYTES;
        Self { region: region.clone(), cursors_at, slots_at, slots: slots as u64 }
    }

    /// The consumer's cursor.
    fn head(&self) -> &AtomicU64 {
        &self.region.words()[self.cursors_at / 8]
    }

    /// The producer's cursor.
    fn tail(&self) -> &AtomicU64 {
        &self.region.words()[(self.cursors_at + LINE_BYTES) / 8]
    }

    fn slot_at(&self, cursor: u64) -> usize {
        self.slots_at + (cursor & (self.slots - 1)) as usize * SLOT_BYTES
    }
}

#[derive(Debug)]
struct Producer {
    ring: Ring,
    tail: u64,
    published: u64,
    /// The consumer's cursor as last seen: only looked at again when the ring seems full.
    head_seen: u64,
    /// Something was published and the other end's bell has not rung for it.
    unannounced: bool,
}

impl Producer {
    fn new(ring: Ring) -> Self {
        let tail = ring.tail().load(Ordering::Relaxed);
        let head_seen = ring.head().load(Ordering::Acquire);
        Self { ring, tail, published: tail, head_seen, unannounced: false }
    }

    /// Whether a slot is free. A cursor that cannot be counts as full.
    fn has_room(&mut self) -> bool {
        if self.tail.wrapping_sub(self.head_seen) < self.ring.slots {
            return true;
        }
        // Full: what was written so far must be seen, or nobody would ever make room.
        self.publish();
        self.head_seen = self.ring.head().load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head_seen) < self.ring.slots
    }

    /// Writes a slot, to be seen after the next [`Producer::publish`]. `false`: no room.
    fn write(&mut self, descriptor: Descriptor, bytes: &[u8]) -> bool {
        debug_assert!(bytes.len() <= FRAME_BYTES);
        if !self.has_room() {
            return false;
        }
        let at = self.ring.slot_at(self.tail);
        let words = self.ring.region.words();
        words[at / 8].store(descriptor.tag, Ordering::Relaxed);
        words[at / 8 + 1].store(descriptor.word(), Ordering::Relaxed);
        self.ring.region.copy_in(at + DESCRIPTOR_BYTES, bytes);
        self.tail = self.tail.wrapping_add(1);
        true
    }

    /// Makes all slots that were written visible.
    fn publish(&mut self) {
        if self.published != self.tail {
            self.ring.tail().store(self.tail, Ordering::Release);
            self.published = self.tail;
            self.unannounced = true;
        }
    }

    /// Publishes, and rings the other end's bell if there is anything new since the last time.
    fn announce(&mut self, bell: &Doorbell) {
        self.publish();
        if core::mem::take(&mut self.unannounced) {
            bell.ring();
        }
    }
}

#[derive(Debug)]
struct Consumer {
    ring: Ring,
    head: u64,
    /// The producer's cursor as last seen.
    tail_seen: u64,
}

impl Consumer {
    fn new(ring: Ring) -> Self {
        let head = ring.head().load(Ordering::Relaxed);
        let tail_seen = ring.tail().load(Ordering::Acquire);
        Self { ring, head, tail_seen }
    }

    /// Whether a slot can be read. A cursor that cannot be counts as nothing there.
    fn has_more(&mut self) -> bool {
        if self.tail_seen == self.head {
            self.tail_seen = self.ring.tail().load(Ordering::Acquire);
        }
        let waiting = self.tail_seen.wrapping_sub(self.head);
        if waiting > self.ring.slots {
            self.tail_seen = self.head;
            return false;
        }
        waiting > 0
    }

    /// Reads the next slot's frame into `bytes`. `None` for a descriptor that cannot be; it is
    /// passed over. Call only after [`Consumer::has_more`].
    fn read(&mut self, bytes: &mut [u8; FRAME_BYTES]) -> Option<Descriptor> {
        let at = self.ring.slot_at(self.head);
        let words = self.ring.region.words();
        let tag = words[at / 8].load(Ordering::Relaxed);
        let word = words[at / 8 + 1].load(Ordering::Relaxed);
        self.head = self.head.wrapping_add(1);
        let descriptor = Descriptor::from_words(tag, word)?;
        self.ring.region.copy_out(at + DESCRIPTOR_BYTES, &mut bytes[..descriptor.len]);
        Some(descriptor)
    }

    /// Gives the slots that were read back to the producer.
    fn release(&self) {
        self.ring.head().store(self.head, Ordering::Release);
    }
}

/// The node's end.
#[derive(Debug)]
pub struct ShmPort {
    incoming: Consumer,
    outgoing: Producer,
    bell: Arc<Doorbell>,
    peer_bell: Doorbell,
    /// Drops that found no slot. While there are any nothing is received, so there are never more
    /// than frames inside the node.
    drops: VecDeque<(u64, DropReason)>,
}

impl ShmPort {
    /// Makes the file. It is removed when the port is dropped.
    ///
    /// # Errors
    /// If the number of slots is no power of two up to [`SLOTS_MAX`], or the file cannot be made.
    pub fn create(path: &Path, slots: usize) -> Result<Self, ShmError> {
        if !slots.is_power_of_two() || slots > SLOTS_MAX {
            return Err(ShmError::Slots(slots));
        }
        let bytes = SLOTS_AT + 2 * slots * SLOT_BYTES;
        let region = Arc::new(Region::create_shared(path, bytes)?);
        region.words()[WORD_SLOTS].store(slots as u64, Ordering::Relaxed);
        // Last, and read first by the peer: all before it is there then.
        region.words()[WORD_MAGIC].store(MAGIC, Ordering::Release);
        Ok(Self {
            incoming: Consumer::new(Ring::new(&region, CURSORS_TO_NODE_AT, slots)),
            outgoing: Producer::new(Ring::new(&region, CURSORS_TO_PEER_AT, slots)),
            bell: Arc::new(Doorbell::in_region(region.clone(), BELL_NODE_AT / 4)),
            peer_bell: Doorbell::in_region(region, BELL_PEER_AT / 4),
            drops: VecDeque::with_capacity(slots),
        })
    }

    fn write_drops(&mut self) {
        while let Some((tag, reason)) = self.drops.front().copied() {
            let descriptor = Descriptor { tag, len: 0, side: Side::Inside, reason: reason as u8 };
            if !self.outgoing.write(descriptor, &[]) {
                return;
            }
            self.drops.pop_front();
        }
    }
}

impl Port for ShmPort {
    fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        if !self.drops.is_empty() {
            self.flush();
            if !self.drops.is_empty() {
                return 0;
            }
        }
        let before = burst.len();
        while !burst.is_full() && self.incoming.has_more() {
            let Some(mut frame) = pool.take() else { break };
            match self.incoming.read(&mut frame.bytes) {
                Some(descriptor) => {
                    frame.len = descriptor.len as u16;
                    frame.side = descriptor.side;
                    frame.tag = descriptor.tag;
                    burst.push(frame);
                }
                None => pool.give(frame),
            }
        }
        self.incoming.release();
        burst.len() - before
    }

    fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        debug_assert!(frame.len > 0, "an empty frame would read as a drop");
        let descriptor =
            Descriptor { tag: frame.tag, len: usize::from(frame.len), side: frame.side, reason: 0 };
        if !self.outgoing.write(descriptor, frame.as_slice()) {
            return Err(frame);
        }
        pool.give(frame);
        Ok(())
    }

    fn flush(&mut self) {
        self.write_drops();
        self.outgoing.announce(&self.peer_bell);
    }

    fn report_drop(&mut self, tag: u64, reason: DropReason) {
        self.drops.push_back((tag, reason));
        self.write_drops();
    }

    fn bell(&self) -> Option<Arc<Doorbell>> {
        Some(self.bell.clone())
    }
}

/// What comes back from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShmEvent<'a> {
    /// A frame left.
    Packet {
        /// The side it left on.
        side: Side,
        /// The tag it was pushed with.
        tag: u64,
        /// What it is now.
        bytes: &'a [u8],
    },
    /// A frame did not leave.
    Dropped {
        /// The tag it was pushed with.
        tag: u64,
        /// Why.
        reason: DropReason,
    },
}

/// The driver's end.
#[derive(Debug)]
pub struct ShmPeer {
    incoming: Consumer,
    outgoing: Producer,
    bell: Arc<Doorbell>,
    node_bell: Doorbell,
    buffer: Box<[u8; FRAME_BYTES]>,
}

impl ShmPeer {
    /// Opens the file that a node has made. At most one peer a file.
    ///
    /// # Errors
    /// If it is not there, or is not a port of this version.
    pub fn open(path: &Path) -> Result<Self, ShmError> {
        Self::over(Arc::new(Region::open_shared(path)?))
    }

    /// The same over memory that holds what a node has made.
    ///
    /// # Errors
    /// If it is no port of this version.
    pub fn over(region: Arc<Region>) -> Result<Self, ShmError> {
        if region.len_bytes() < SLOTS_AT
            || region.words()[WORD_MAGIC].load(Ordering::Acquire) != MAGIC
        {
            return Err(ShmError::NotAPort);
        }
        let slots = region.words()[WORD_SLOTS].load(Ordering::Relaxed);
        let slots = usize::try_from(slots).map_err(|_| ShmError::NotAPort)?;
        if !slots.is_power_of_two()
            || slots > SLOTS_MAX
            || region.len_bytes() < SLOTS_AT + 2 * slots * SLOT_BYTES
        {
            return Err(ShmError::NotAPort);
        }
        Ok(Self {
            incoming: Consumer::new(Ring::new(&region, CURSORS_TO_PEER_AT, slots)),
            outgoing: Producer::new(Ring::new(&region, CURSORS_TO_NODE_AT, slots)),
            bell: Arc::new(Doorbell::in_region(region.clone(), BELL_PEER_AT / 4)),
            node_bell: Doorbell::in_region(region, BELL_NODE_AT / 4),
            buffer: Box::new([0; FRAME_BYTES]),
        })
    }

    /// Writes a frame that comes in on `side`; the node sees it after [`ShmPeer::flush`].
    ///
    /// # Errors
    /// If no slot is free, or none is large enough.
    pub fn push(&mut self, side: Side, tag: u64, bytes: &[u8]) -> Result<(), PushError> {
        if bytes.len() > FRAME_BYTES {
            return Err(FrameTooLong(bytes.len()).into());
        }
        let descriptor = Descriptor { tag, len: bytes.len(), side, reason: 0 };
        if self.outgoing.write(descriptor, bytes) { Ok(()) } else { Err(PushError::Full) }
    }

    /// Makes what was pushed visible, and wakes the node.
    pub fn flush(&mut self) {
        self.outgoing.announce(&self.node_bell);
    }

    /// The next thing that came back, if there is one.
    pub fn pop(&mut self) -> Option<ShmEvent<'_>> {
        loop {
            if !self.incoming.has_more() {
                return None;
            }
            let descriptor = self.incoming.read(&mut self.buffer);
            self.incoming.release();
            let Some(Descriptor { tag, len, side, reason }) = descriptor else { continue };
            if len > 0 {
                return Some(ShmEvent::Packet { side, tag, bytes: &self.buffer[..len] });
            }
            if let Some(reason) = DropReason::ALL.get(usize::from(reason)) {
                return Some(ShmEvent::Dropped { tag, reason: *reason });
            }
        }
    }

    /// Rung by the node when something comes back.
    #[must_use]
    pub fn bell(&self) -> Arc<Doorbell> {
        self.bell.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn ends(slots: usize) -> (tempfile::TempDir, ShmPort, ShmPeer) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let port = ShmPort::create(&path, slots).unwrap();
        let peer = ShmPeer::open(&path).unwrap();
        (dir, port, peer)
    }

    #[test]
    fn frames_and_drops_go_there_and_back() {
        let (_dir, mut port, mut peer) = ends(4);
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        peer.push(Side::Inside, 7, b"to drop").unwrap();
        peer.push(Side::Outside, 8, b"to send").unwrap();
        assert_eq!(port.receive(&mut pool, &mut burst), 0, "not flushed yet");
        peer.flush();
        assert_eq!(port.receive(&mut pool, &mut burst), 2);
        let mut second = burst.pop().unwrap();
        let first = burst.pop().unwrap();
        assert_eq!((first.tag, first.side, first.as_slice()), (7, Side::Inside, &b"to drop"[..]));
        assert_eq!(second.side, Side::Outside);
        pool.give(first);
        port.report_drop(7, DropReason::RuleDenied);
        second.side = Side::Inside;
        port.send(second, &mut pool).unwrap();
        assert_eq!(peer.pop(), None, "not flushed yet");
        port.flush();
        assert_eq!(peer.pop(), Some(ShmEvent::Dropped { tag: 7, reason: DropReason::RuleDenied }));
        assert_eq!(
            peer.pop(),
            Some(ShmEvent::Packet { side: Side::Inside, tag: 8, bytes: b"to send" })
        );
        assert_eq!(peer.pop(), None);
        assert_eq!(pool.free(), 8);
    }

    #[test]
    fn full_is_an_answer_and_no_drop_report_is_lost() {
        let (_dir, mut port, mut peer) = ends(2);
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        peer.push(Side::Inside, 0, b"a").unwrap();
        peer.push(Side::Inside, 1, b"b").unwrap();
        assert_eq!(peer.push(Side::Inside, 2, b"c"), Err(PushError::Full));
        peer.flush();
        port.receive(&mut pool, &mut burst);
        for tag in 0..5 {
            port.report_drop(tag, DropReason::NoState);
        }
        let frame = burst.pop().unwrap();
        let frame = port.send(frame, &mut pool).unwrap_err();
        pool.give(frame);
        peer.push(Side::Inside, 2, b"c").unwrap();
        peer.flush();
        assert_eq!(port.receive(&mut pool, &mut burst), 0, "reports are waiting");
        let mut tags = Vec::new();
        for _ in 0..4 {
            port.flush();
            while let Some(ShmEvent::Dropped { tag, .. }) = peer.pop() {
                tags.push(tag);
            }
        }
        assert_eq!(tags, [0, 1, 2, 3, 4]);
        assert_eq!(port.receive(&mut pool, &mut burst), 1);
    }

    #[test]
    fn sizes_at_the_edges() {
        let (_dir, mut port, mut peer) = ends(4);
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        let too_long = peer.push(Side::Inside, 0, &[0; FRAME_BYTES + 1]);
        assert_eq!(too_long, Err(PushError::TooLong(FrameTooLong(FRAME_BYTES + 1))));
        peer.push(Side::Inside, 1, &[]).unwrap();
        peer.push(Side::Inside, 2, &[9; FRAME_BYTES]).unwrap();
        peer.flush();
        assert_eq!(port.receive(&mut pool, &mut burst), 2);
        assert_eq!((burst[0].len, burst[1].len), (0, FRAME_BYTES as u16));
    }

    #[test]
    fn hostile_words_in_the_file_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        let mut port = ShmPort::create(&path, 4).unwrap();
        let mut peer = ShmPeer::open(&path).unwrap();
        let region = Region::open_shared(&path).unwrap();
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        let tail = &region.words()[(CURSORS_TO_NODE_AT + LINE_BYTES) / 8];
        for cursor in [5, u64::MAX, 1 << 40] {
            tail.store(cursor, Ordering::Release);
            assert_eq!(port.receive(&mut pool, &mut burst), 0, "cursor {cursor}");
        }
        // A length beyond the slot is passed over.
        region.words()[SLOTS_AT / 8 + 1].store(0xffff, Ordering::Relaxed);
        tail.store(1, Ordering::Release);
        assert_eq!(port.receive(&mut pool, &mut burst), 0);
        assert_eq!(pool.free(), 8);
        // A reason that is none is passed over.
        let back = SLOTS_AT + 4 * SLOT_BYTES;
        region.words()[back / 8 + 1].store(255 << 24, Ordering::Relaxed);
        region.words()[(CURSORS_TO_PEER_AT + LINE_BYTES) / 8].store(1, Ordering::Release);
        assert_eq!(peer.pop(), None);
        // A consumer that claims more than was sent makes the ring look full, nothing else.
        region.words()[CURSORS_TO_PEER_AT / 8].store(1 << 50, Ordering::Release);
        for tag in 0..8 {
            port.report_drop(tag, DropReason::NoState);
        }
        port.flush();
    }

    #[test]
    fn only_a_port_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        assert!(matches!(ShmPort::create(&path, 3), Err(ShmError::Slots(3))));
        assert!(matches!(ShmPeer::open(&path), Err(ShmError::Region(RegionError::Missing(_)))));
        let other = Region::create_shared(&path, 4096).unwrap();
        assert!(matches!(ShmPeer::open(&path), Err(ShmError::NotAPort)));
        other.words()[WORD_SLOTS].store(1 << 10, Ordering::Relaxed);
        other.words()[WORD_MAGIC].store(MAGIC, Ordering::Relaxed);
        assert!(matches!(ShmPeer::open(&path), Err(ShmError::NotAPort)), "shorter than it says");
    }

    #[test]
    fn two_threads_exchange_frames_in_order() {
        const FRAMES: u64 = 20_000;
        const LONG: Duration = Duration::from_secs(60);
        let (_dir, mut port, mut peer) = ends(16);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut pool, mut burst) = (FramePool::new(64), Burst::new());
                let bell = port.bell().unwrap();
                let mut waiting: VecDeque<Frame> = VecDeque::new();
                let mut done = 0;
                while done < FRAMES {
                    let seen = bell.count();
                    let got = port.receive(&mut pool, &mut burst);
                    waiting.extend(burst.drain(..));
                    while let Some(frame) = waiting.pop_front() {
                        match port.send(frame, &mut pool) {
                            Ok(()) => done += 1,
                            Err(frame) => {
                                waiting.push_front(frame);
                                break;
                            }
                        }
                    }
                    port.flush();
                    if got == 0 && waiting.is_empty() && done < FRAMES {
                        bell.wait(seen, LONG);
                    }
                }
            });
            let bell = peer.bell();
            let (mut pushed, mut popped) = (0, 0u64);
            while popped < FRAMES {
                let seen = bell.count();
                while pushed < FRAMES
                    && peer.push(Side::Inside, pushed, &pushed.to_be_bytes()).is_ok()
                {
                    pushed += 1;
                }
                peer.flush();
                let before = popped;
                while let Some(event) = peer.pop() {
                    let bytes = &popped.to_be_bytes()[..];
                    let expected = ShmEvent::Packet { side: Side::Inside, tag: popped, bytes };
                    assert_eq!(event, expected);
                    popped += 1;
                }
                if popped == before && popped < FRAMES {
                    bell.wait(seen, LONG);
                }
            }
        });
    }
}
