//! The ports that one slot gives out of one pool.
//!
//! Ports are given in blocks of 64 to a holder (a subscriber), so that logs and quotas count blocks
//! and a holder's flows keep to one address (paired pooling, RFC 4787 REQ-2). TCP, UDP and ICMP
//! have port spaces of their own inside a block. A port keeps the parity of the flow's own port
//! while there is room (RFC 4787 REQ-4) and is otherwise picked at random (RFC 6056). A returned
//! port rests for [`PORT_HOLD_DOWN_MS`](crate::limits::PORT_HOLD_DOWN_MS) before it is given out
//! again (RFC 6888 REQ-8). A block with no live and no resting port is free for everybody.
//!
//! Deterministic: time and seed come from the log.

use crate::pool_spec::{BLOCK_PORTS, PoolSpec};
use crate::transaction::{Refusal, Take};
use crate::types::SlotId;
use core::net::Ipv4Addr;
use core::ops::Range;
use std::collections::{BTreeMap, VecDeque};

/// Ports of a block with even numbers: blocks begin at even ports.
const EVEN: u64 = 0x5555_5555_5555_5555;
/// Port spaces of a block: TCP, UDP, ICMP.
const CLASSES: usize = 3;

/// A block that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) holder: [u8; 16],
    pub(crate) live: [u64; CLASSES],
    pub(crate) resting: [u64; CLASSES],
}

/// A returned port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resting {
    pub(crate) until_ms: u64,
    pub(crate) block: u32,
    pub(crate) class: u8,
    pub(crate) bit: u8,
}

/// How the ports of a slot are used. `live + resting` is all that was given out and is not free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Blocks that the slot has.
    pub blocks: u32,
    /// Blocks with a holder.
    pub blocks_held: u32,
    /// Ports in use.
    pub live: u64,
    /// Returned ports that rest.
    pub resting: u64,
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPool {
    run: Range<u32>,
    /// Each holder's blocks, in the order in which it got them, side by side: a port is picked
    /// among all of them.
    holders: BTreeMap<[u8; 16], Vec<(u32, Block)>>,
    /// The holder of each block that has one.
    holder_of: BTreeMap<u32, [u8; 16]>,
    /// In the order in which they become free: the machine's time never falls.
    resting: VecDeque<Resting>,
}

impl SlotPool {
    /// The slot's pool with all ports free.
    #[must_use]
    pub fn new(spec: &PoolSpec, slot: SlotId) -> Self {
        let run = spec.blocks_of(slot);
        let (holders, holder_of) = (BTreeMap::new(), BTreeMap::new());
        Self { run, holders, holder_of, resting: VecDeque::new() }
    }

    /// Takes a port: IPv4 address and port in network order.
    ///
    /// # Errors
    /// If the protocol has no ports, the holder's quota is reached, or no block is free.
    pub fn take(
        &mut self,
        spec: &PoolSpec,
        take: &Take,
        now_ms: u64,
        seed: u64,
    ) -> Result<[u8; 6], Refusal> {
        let class = class_of(take.protocol).ok_or(Refusal::Malformed)?;
        self.wake(now_ms);
        // An ICMP identifier has no parity to keep.
        let wanted = match (class, take.like_port % 2) {
            (2, _) => u64::MAX,
            (_, 0) => EVEN,
            _ => !EVEN,
        };
        if let Some((block, bit)) = self.pick(&take.holder, class, wanted, seed) {
            return Ok(self.give(spec, block, class, bit));
        }
        match self.new_block(spec, &take.holder, seed) {
            Ok(block) => {
                let bit = nth_set(wanted, (seed >> 32) % u64::from(wanted.count_ones()));
                Ok(self.give(spec, block, class, bit))
            }
            // A port of the wrong parity is better than none.
            Err(refusal) => {
                let (block, bit) = self.pick(&take.holder, class, u64::MAX, seed).ok_or(refusal)?;
                Ok(self.give(spec, block, class, bit))
            }
        }
    }

    /// Takes back a port that was just taken, as if it had not been.
    pub fn undo_take(&mut self, spec: &PoolSpec, protocol: u8, endpoint: [u8; 6]) {
        let (block, class, bit) =
            self.locate(spec, protocol, endpoint).expect("only what was taken is undone");
        let held = self.block_mut(block).expect("a taken port's block has a holder");
        assert!(held.live[class] >> bit & 1 == 1, "only a live port is undone");
        held.live[class] &= !(1 << bit);
        let _ = self.free_if_unused(block);
    }

    /// Block and holder of a port that was just taken, if the block was free before: these `taken`
    /// ports are all that is used of it.
    pub(crate) fn fresh_block(
        &self,
        spec: &PoolSpec,
        (protocol, endpoint): (u8, [u8; 6]),
        taken: u32,
    ) -> Option<(u32, [u8; 16])> {
        let (number, _, _) = self.locate(spec, protocol, endpoint)?;
        let block = self.block(number)?;
        let ones = |words: [u64; CLASSES]| words.iter().map(|w| w.count_ones()).sum::<u32>();
        let is_fresh = ones(block.live) == taken && ones(block.resting) == 0;
        is_fresh.then_some((number, block.holder))
    }

    /// Whether a port is one of this slot's.
    #[must_use]
    pub fn owns(&self, spec: &PoolSpec, protocol: u8, endpoint: [u8; 6]) -> bool {
        self.locate(spec, protocol, endpoint).is_some()
    }

    /// Gives a port back; it rests first, until the time that this gives. `None` if it was not in
    /// use.
    pub fn give_back(
        &mut self,
        spec: &PoolSpec,
        protocol: u8,
        endpoint: [u8; 6],
        now_ms: u64,
    ) -> Option<u64> {
        let (block, class, bit) = self.locate(spec, protocol, endpoint)?;
        let held = self.block_mut(block)?;
        if held.live[class] >> bit & 1 == 0 {
            return None;
        }
        held.live[class] &= !(1 << bit);
        held.resting[class] |= 1 << bit;
        let until_ms = now_ms.saturating_add(spec.hold_down_ms());
        self.resting.push_back(Resting { until_ms, block, class: class as u8, bit: bit as u8 });
        Some(until_ms)
    }

    /// The ports in use: protocol class (see [`port_class`]), IPv4 address and port in network
    /// order.
    pub fn live_ports<'a>(
        &'a self,
        spec: &'a PoolSpec,
    ) -> impl Iterator<Item = (u8, [u8; 6])> + 'a {
        self.holders.values().flatten().flat_map(move |(number, block)| {
            (0..CLASSES as u8).flat_map(move |class| {
                let live = block.live[usize::from(class)];
                let bits = (0..u32::from(BLOCK_PORTS)).filter(move |bit| live >> bit & 1 == 1);
                bits.map(move |bit| (class, endpoint_of(spec, *number, bit)))
            })
        })
    }

    /// The blocks with a holder.
    pub(crate) fn held_blocks(&self) -> impl Iterator<Item = &Block> + '_ {
        self.holders.values().flatten().map(|(_, block)| block)
    }

    /// Counts by a scan of all blocks.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let ones =
            |words: [u64; CLASSES]| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        PoolCounts {
            blocks: self.run.len() as u32,
            blocks_held: self.holder_of.len() as u32,
            live: self.held_blocks().map(|block| ones(block.live)).sum(),
            resting: self.held_blocks().map(|block| ones(block.resting)).sum(),
        }
    }

    /// Everything that a snapshot must hold: blocks in the order of their holders' lists, and the
    /// resting ports.
    pub(crate) fn parts(&self) -> (impl Iterator<Item = (u32, Block)> + '_, &VecDeque<Resting>) {
        (self.holders.values().flatten().copied(), &self.resting)
    }

    /// This fresh pool filled with what [`SlotPool::parts`] gave, or nothing if the parts do not
    /// fit together.
    pub(crate) fn with_parts(
        mut self,
        blocks: Vec<(u32, Block)>,
        resting: VecDeque<Resting>,
    ) -> Option<Self> {
        let mut due = 0;
        let mut rest: BTreeMap<u32, [u64; CLASSES]> = BTreeMap::new();
        for port in &resting {
            let word = rest.entry(port.block).or_default().get_mut(usize::from(port.class))?;
            let twice = port.bit >= 64 || *word >> port.bit & 1 == 1;
            if twice || port.until_ms < due {
                return None;
            }
            *word |= 1 << port.bit;
            due = port.until_ms;
        }
        for (number, block) in blocks {
            let resting = rest.remove(&number).unwrap_or_default();
            let overlap = (0..CLASSES).any(|class| block.live[class] & block.resting[class] != 0);
            let unused = block.live == [0; CLASSES] && block.resting == [0; CLASSES];
            if !self.run.contains(&number) || overlap || unused || block.resting != resting {
                return None;
            }
            if self.holder_of.insert(number, block.holder).is_some() {
                return None;
            }
            self.holders.entry(block.holder).or_default().push((number, block));
        }
        self.resting = resting;
        rest.is_empty().then_some(self)
    }

    /// Ends the rest of ports whose time has come.
    pub(crate) fn wake(&mut self, now_ms: u64) {
        self.wake_and_tell(now_ms, &mut |_, _| {});
    }

    /// The same; tells blocks that are free again, and who had them.
    pub(crate) fn wake_and_tell(&mut self, now_ms: u64, tell: &mut dyn FnMut(u32, [u8; 16])) {
        while let Some(port) = self.resting.front().copied().filter(|p| p.until_ms <= now_ms) {
            self.resting.pop_front();
            let block = self.block_mut(port.block).expect("a resting port has its block");
            block.resting[usize::from(port.class)] &= !(1 << port.bit);
            if let Some(holder) = self.free_if_unused(port.block) {
                tell(port.block, holder);
            }
        }
    }

    /// A block, if somebody holds it.
    fn block(&self, number: u32) -> Option<&Block> {
        let theirs = self.holders.get(self.holder_of.get(&number)?)?;
        theirs.iter().find(|(other, _)| *other == number).map(|(_, block)| block)
    }

    fn block_mut(&mut self, number: u32) -> Option<&mut Block> {
        let theirs = self.holders.get_mut(self.holder_of.get(&number)?)?;
        theirs.iter_mut().find(|(other, _)| *other == number).map(|(_, block)| block)
    }

    /// A free port at random among a holder's blocks.
    fn pick(&self, holder: &[u8; 16], class: usize, wanted: u64, seed: u64) -> Option<(u32, u32)> {
        let blocks = self.holders.get(holder)?;
        let free = |block: &Block| !(block.live[class] | block.resting[class]) & wanted;
        let counts = blocks.iter().map(|(_, block)| u64::from(free(block).count_ones()));
        let mut nth = seed.checked_rem(counts.sum())?;
        for (number, block) in blocks {
            let ports = free(block);
            let count = u64::from(ports.count_ones());
            if nth < count {
                return Some((*number, nth_set(ports, nth)));
            }
            nth -= count;
        }
        None
    }

    /// A free block for a holder, on the address that it has already if there is one.
    fn new_block(&mut self, spec: &PoolSpec, holder: &[u8; 16], seed: u64) -> Result<u32, Refusal> {
        let theirs = self.holders.get(holder).map_or(&[][..], Vec::as_slice);
        if theirs.len() >= usize::from(spec.blocks_per_holder_max()) {
            return Err(Refusal::QuotaReached);
        }
        let address = theirs.first().map(|(block, _)| spec.block_start(*block).0);
        let paired = |block: &u32| address.is_none_or(|a| spec.block_start(*block).0 == a);
        let is_free = |block: &u32| !self.holder_of.contains_key(block);
        let nth_free = |fits: &dyn Fn(&u32) -> bool| {
            let count = self.run.clone().filter(|b| is_free(b) && fits(b)).count() as u64;
            let nth = seed.checked_rem(count)? as usize;
            self.run.clone().filter(|b| is_free(b) && fits(b)).nth(nth)
        };
        let block = nth_free(&paired).or_else(|| nth_free(&|_| true)).ok_or(Refusal::PoolEmpty)?;
        let empty = Block { holder: *holder, live: [0; CLASSES], resting: [0; CLASSES] };
        self.holder_of.insert(block, *holder);
        self.holders.entry(*holder).or_default().push((block, empty));
        Ok(block)
    }

    fn give(&mut self, spec: &PoolSpec, block: u32, class: usize, bit: u32) -> [u8; 6] {
        let held = self.block_mut(block).expect("the block was just picked");
        assert!((held.live[class] | held.resting[class]) >> bit & 1 == 0, "a port has one holder");
        held.live[class] |= 1 << bit;
        endpoint_of(spec, block, bit)
    }

    fn locate(
        &self,
        spec: &PoolSpec,
        protocol: u8,
        endpoint: [u8; 6],
    ) -> Option<(u32, usize, u32)> {
        let class = class_of(protocol)?;
        let [a, b, c, d, high, low] = endpoint;
        let port = u16::from_be_bytes([high, low]);
        let block = spec.block_of(Ipv4Addr::new(a, b, c, d), port)?;
        self.run.contains(&block).then_some((block, class, u32::from(port % BLOCK_PORTS)))
    }

    /// Frees a block that is not used any more; who had it.
    fn free_if_unused(&mut self, number: u32) -> Option<[u8; 16]> {
        let block = self.block(number)?;
        if block.live != [0; CLASSES] || block.resting != [0; CLASSES] {
            return None;
        }
        let holder = block.holder;
        let theirs = self.holders.get_mut(&holder).expect("a held block stands with its holder");
        theirs.retain(|(other, _)| *other != number);
        if theirs.is_empty() {
            self.holders.remove(&holder);
        }
        self.holder_of.remove(&number);
        Some(holder)
    }
}

fn endpoint_of(spec: &PoolSpec, block: u32, bit: u32) -> [u8; 6] {
    let (address, first) = spec.block_start(block);
    let [a, b, c, d] = address.octets();
    let [high, low] = (first + bit as u16).to_be_bytes();
    [a, b, c, d, high, low]
}

/// The port space that a protocol uses: 0 TCP, 1 UDP, 2 ICMP; `None` if it has no ports.
#[must_use]
pub const fn port_class(protocol: u8) -> Option<u8> {
    match class_of(protocol) {
        Some(class) => Some(class as u8),
        None => None,
    }
}

const fn class_of(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(0),
        17 => Some(1),
        1 | 58 => Some(2),
        _ => None,
    }
}

/// The place of the `nth` set bit (from 0); there is one.
fn nth_set(mut word: u64, nth: u64) -> u32 {
    for _ in 0..nth {
        word &= word - 1;
    }
    debug_assert!(word != 0);
    word.trailing_zeros()
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
