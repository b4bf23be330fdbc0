//! The form of a flow machine's snapshot: a head, then five checksummed sections.
//!
//! ```text
//! head      magic 8, format version 4, sections 4
//! section   number 4, length 8, content, CRC-32 of all three 4
//! 1 meta    mutations 8, time in ms 8, slot count 4, held slots: count 4, 2 each
//! 2 entries count 8, then key 40, value 64, version and slot 8, life 8 each
//! 3 pools   count 4, then pool 1, slot 2, blocks, resting ports
//! 4 memory  count 8, then client 8, serial 8, outcome 9, slot 2 each
//! 5 moves   over 8; a slot that goes: flag 1, number 8, slot 2, shard 2, released 1; a slot that
//!           comes: flag 1, number 8, attempt 8, slot 2, pieces 4, pools: length 4, bytes
//! ```
//!
//! All numbers are little-endian. Reading is total: a value or an error, no more memory than the
//! bytes given justify, and nothing but the exact form that writing makes.

use crate::Entry;
use crate::flow_moves::{Incoming, Moving, Outgoing};
use crate::key::{Key, Value};
use crate::lifetimes::Life;
use crate::machine::SnapshotError;
use crate::outcome_memory::OutcomeMemory;
use crate::pool::{Block, Resting, SlotPool};
use crate::slot_move::POOLS_BYTES_MAX;
use crate::slot_set::SlotSet;
use crate::transaction::{Outcome, Refusal, TransactionId};
use crate::types::{LogIndex, ShardId, SlotId, Version};
use std::collections::{BTreeSet, VecDeque};

const MAGIC: &[u8; 8] = b"NSFLOWS\0";
/// Rises with every change of the form.
pub const SNAPSHOT_VERSION: u32 = 4;
const SECTIONS: u32 = 5;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 120;

/// The first section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mutations: u64,
    pub(crate) time_ms: u64,
    pub(crate) slots: SlotSet,
}

/// Puts the sections, in their order, into one whole.
pub(crate) fn assemble(sections: [Vec<u8>; SECTIONS as usize]) -> Vec<u8> {
    let bytes = sections.iter().map(|section| section.len() + 16).sum::<usize>();
    let mut out = Vec::with_capacity(HEAD_BYTES + bytes);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
    out.extend_from_slice(&SECTIONS.to_le_bytes());
    for (number, section) in (1_u32..).zip(sections) {
        let from = out.len();
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(section.len() as u64).to_le_bytes());
        out.extend_from_slice(&section);
        let crc = crc32fast::hash(&out[from..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }
    out
}

/// Takes a whole apart into its sections; their checksums fit.
pub(crate) fn take_apart(bytes: &[u8]) -> Result<[Source<'_>; SECTIONS as usize], SnapshotError> {
    let mut source = Source(bytes);
    if source.bytes::<8>()? != *MAGIC {
        return Err(SnapshotError::Damaged("it does not begin like one"));
    }
    let found = source.u32()?;
    if found != SNAPSHOT_VERSION {
        return Err(SnapshotError::Version { found, expected: SNAPSHOT_VERSION });
    }
    if source.u32()? != SECTIONS {
        return Err(SnapshotError::Damaged("wrong number of sections"));
    }
    let mut sections = [Source(&[]); SECTIONS as usize];
    for (number, section) in (1_u32..).zip(&mut sections) {
        let whole = source.0;
        let found = source.u32()?;
        let length = usize::try_from(source.u64()?).unwrap_or(usize::MAX);
        *section = Source(source.slice(length)?);
        let crc = crc32fast::hash(&whole[..12 + length]);
        if found != number || source.u32()? != crc {
            return Err(SnapshotError::Damaged("a checksum does not fit"));
        }
    }
    source.end()?;
    Ok(sections)
}

pub(crate) fn write_meta(meta: &Meta) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&meta.mutations.to_le_bytes());
    out.extend_from_slice(&meta.time_ms.to_le_bytes());
    out.extend_from_slice(&meta.slots.slot_count().to_le_bytes());
    out.extend_from_slice(&(meta.slots.iter().count() as u32).to_le_bytes());
    meta.slots.iter().for_each(|slot| out.extend_from_slice(&slot.0.to_le_bytes()));
    out
}

pub(crate) fn read_meta(mut source: Source<'_>) -> Result<Meta, SnapshotError> {
    let (mutations, time_ms, slot_count) = (source.u64()?, source.u64()?, source.u32()?);
    if slot_count > SlotSet::SLOTS_MAX {
        return Err(SnapshotError::Damaged("too many slots"));
    }
    let mut slots = SlotSet::none(slot_count);
    for _ in 0..source.u32()? {
        let slot = SlotId(source.u16()?);
        if u32::from(slot.0) >= slot_count || slots.contains(slot) {
            return Err(SnapshotError::Damaged("a slot that cannot be"));
        }
        slots.insert(slot);
    }
    source.end()?;
    Ok(Meta { mutations, time_ms, slots })
}

pub(crate) fn write_entries(
    count: u32,
    entries: impl Iterator<Item = (Key, Entry, Life)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + count as usize * ENTRY_BYTES);
    out.extend_from_slice(&u64::from(count).to_le_bytes());
    for (key, entry, life) in entries {
        out.extend_from_slice(&key.to_bytes());
        out.extend_from_slice(&entry.value.to_bytes());
        let meta = entry.version.0 << 16 | u64::from(entry.slot.0);
        out.extend_from_slice(&meta.to_le_bytes());
        out.extend_from_slice(&life.to_word().to_le_bytes());
    }
    out
}

/// The entries of a section, their number checked against its length; no life where its word is not
/// one.
pub(crate) fn read_entries(
    mut source: Source<'_>,
) -> Result<impl Iterator<Item = (Key, Entry, Option<Life>)> + Clone + '_, SnapshotError> {
    let count = source.u64()?;
    let (chunks, rest) = source.0.as_chunks::<ENTRY_BYTES>();
    if chunks.len() as u64 != count || !rest.is_empty() {
        return Err(SnapshotError::Damaged("the entries do not fit their count"));
    }
    Ok(chunks.iter().map(|bytes| {
        let mut words = [0; ENTRY_BYTES / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let mut value = Value::ZERO;
        value.0.copy_from_slice(&words[5..13]);
        let (version, slot) = (Version(words[13] >> 16), SlotId(words[13] as u16));
        let key = Key([words[0], words[1], words[2], words[3], words[4]]);
        (key, Entry { value, version, slot }, Life::from_word(words[14]))
    }))
}

pub(crate) fn write_pool(out: &mut Vec<u8>, pool: u8, slot: SlotId, state: &SlotPool) {
    let (blocks, resting) = state.parts();
    out.push(pool);
    out.extend_from_slice(&slot.0.to_le_bytes());
    out.extend_from_slice(&state.counts().blocks_held.to_le_bytes());
    for (number, block) in blocks {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&block.holder);
        for word in block.live.iter().chain(&block.resting) {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    out.extend_from_slice(&(resting.len() as u32).to_le_bytes());
    for port in resting {
        out.extend_from_slice(&port.until_ms.to_le_bytes());
        out.extend_from_slice(&port.block.to_le_bytes());
        out.extend_from_slice(&[port.class, port.bit]);
    }
}

/// One pool as it was written: pool, slot, blocks, resting ports.
pub(crate) type PoolParts = (u8, SlotId, Vec<(u32, Block)>, VecDeque<Resting>);

pub(crate) fn read_pool(source: &mut Source<'_>) -> Result<PoolParts, SnapshotError> {
    let [pool] = source.bytes()?;
    let slot = SlotId(source.u16()?);
    // Grown as the bytes come: a count alone reserves nothing.
    let mut blocks = Vec::new();
    for _ in 0..source.u32()? {
        let (number, holder) = (source.u32()?, source.bytes::<16>()?);
        let live = [source.u64()?, source.u64()?, source.u64()?];
        let resting = [source.u64()?, source.u64()?, source.u64()?];
        blocks.push((number, Block { holder, live, resting }));
    }
    let mut resting = VecDeque::new();
    for _ in 0..source.u32()? {
        let (until_ms, block, [class, bit]) = (source.u64()?, source.u32()?, source.bytes()?);
        resting.push_back(Resting { until_ms, block, class, bit });
    }
    Ok((pool, slot, blocks, resting))
}

pub(crate) fn write_memory(
    memory: impl Iterator<Item = (TransactionId, SlotId, Outcome)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut count = 0_u64;
    out.extend_from_slice(&count.to_le_bytes());
    for (id, slot, outcome) in memory {
        write_outcome(&mut out, id, outcome);
        out.extend_from_slice(&slot.0.to_le_bytes());
        count += 1;
    }
    out[..8].copy_from_slice(&count.to_le_bytes());
    out
}

pub(crate) fn read_memory(source: Source<'_>) -> Result<OutcomeMemory, SnapshotError> {
    let mut memory = OutcomeMemory::default();
    read_outcomes(source, |(id, slot, outcome)| memory.remember(id, slot, outcome))?;
    // Read in another order than it is written, it would forget in another order: here, and not at
    // the other replicas.
    let (mut written, mut is_same) = (memory.iter(), true);
    read_outcomes(source, |outcome| is_same &= written.next() == Some(outcome))?;
    drop(written);
    if is_same {
        Ok(memory)
    } else {
        Err(SnapshotError::Damaged("outcomes in an order that cannot be"))
    }
}

fn read_outcomes(
    mut source: Source<'_>,
    mut take: impl FnMut((TransactionId, SlotId, Outcome)),
) -> Result<(), SnapshotError> {
    for _ in 0..source.u64()? {
        let (id, outcome) = read_outcome(&mut source)?;
        take((id, SlotId(source.u16()?), outcome));
    }
    source.end()
}

/// What came of a transaction.
pub(crate) fn write_outcome(out: &mut Vec<u8>, id: TransactionId, outcome: Outcome) {
    let (kind, number) = match outcome {
        Outcome::Committed(index) => (0, index.0),
        Outcome::ConditionFailed(number) => (1, u64::from(number)),
        Outcome::Refused(refusal) => (2, refusal as u64),
        Outcome::Elsewhere(_) => unreachable!("that is not remembered: our own bug"),
    };
    out.extend_from_slice(&id.client.to_le_bytes());
    out.extend_from_slice(&id.serial.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(crate) fn read_outcome(
    source: &mut Source<'_>,
) -> Result<(TransactionId, Outcome), SnapshotError> {
    let id = TransactionId { client: source.u64()?, serial: source.u64()? };
    let ([kind], number) = (source.bytes()?, source.u64()?);
    let outcome = match (kind, u8::try_from(number)) {
        (0, _) => Outcome::Committed(LogIndex(number)),
        (1, Ok(number)) => Outcome::ConditionFailed(number),
        (2, Ok(number)) => Outcome::Refused(
            REFUSALS
                .into_iter()
                .find(|refusal| *refusal as u8 == number)
                .ok_or(SnapshotError::Damaged("an outcome that cannot be"))?,
        ),
        _ => return Err(SnapshotError::Damaged("an outcome that cannot be")),
    };
    if id.serial == 0 {
        return Err(SnapshotError::Damaged("a transaction without a serial"));
    }
    Ok((id, outcome))
}

pub(crate) fn write_moves(moving: &Moving) -> Vec<u8> {
    let mut out = moving.over.to_le_bytes().to_vec();
    out.push(u8::from(moving.out.is_some()));
    if let Some(Outgoing { number, slot, to }) = moving.out {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&slot.0.to_le_bytes());
        out.extend_from_slice(&to.0.to_le_bytes());
    }
    out.push(u8::from(moving.coming.is_some()));
    if let Some(coming) = &moving.coming {
        out.extend_from_slice(&coming.number.to_le_bytes());
        out.extend_from_slice(&coming.attempt.to_le_bytes());
        out.extend_from_slice(&coming.slot.0.to_le_bytes());
        out.extend_from_slice(&coming.pieces.to_le_bytes());
        out.extend_from_slice(&(coming.pools.len() as u32).to_le_bytes());
        out.extend_from_slice(&coming.pools);
    }
    out
}

/// The moves of a machine that holds these slots; the keys of what comes are to be found.
pub(crate) fn read_moves(mut source: Source<'_>, slots: &SlotSet) -> Result<Moving, SnapshotError> {
    const WRONG: SnapshotError = SnapshotError::Damaged("a move that cannot be");
    let mut moving = Moving::of(source.u64()?);
    let exists = |slot: SlotId| u32::from(slot.0) < slots.slot_count();
    if source.flag()? {
        let (number, slot, to) = (source.u64()?, SlotId(source.u16()?), ShardId(source.u16()?));
        if number <= moving.over || !exists(slot) || slots.contains(slot) {
            return Err(WRONG);
        }
        moving.out = Some(Outgoing { number, slot, to });
    }
    if source.flag()? {
        let (number, attempt, slot) = (source.u64()?, source.u64()?, SlotId(source.u16()?));
        let (pieces, length) = (source.u32()?, source.u32()? as usize);
        let pools = source.slice(length)?.to_vec();
        let between = number <= moving.over || moving.out.is_some();
        if between || !exists(slot) || slots.contains(slot) || length > POOLS_BYTES_MAX {
            return Err(WRONG);
        }
        let keys = BTreeSet::new();
        moving.coming = Some(Incoming { number, attempt, slot, pieces, pools, keys });
    }
    source.end()?;
    Ok(moving)
}

const REFUSALS: [Refusal; 7] = [
    Refusal::TableFull,
    Refusal::PoolEmpty,
    Refusal::QuotaReached,
    Refusal::NotThisSlot,
    Refusal::IdForgotten,
    Refusal::Malformed,
    Refusal::VersionsUsedUp,
];

/// Bytes that are read from the front; too few of them is an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a>(pub(crate) &'a [u8]);

impl<'a> Source<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn flag(&mut self) -> Result<bool, SnapshotError> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(SnapshotError::Damaged("a mark that is neither 0 nor 1")),
        }
    }

    pub(crate) fn slice(&mut self, length: usize) -> Result<&'a [u8], SnapshotError> {
        let (front, rest) =
            self.0.split_at_checked(length).ok_or(SnapshotError::Damaged("it is cut short"))?;
        self.0 = rest;
        Ok(front)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.slice(N)?);
        Ok(bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, SnapshotError> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// Nothing may be left.
    pub(crate) const fn end(&self) -> Result<(), SnapshotError> {
        if self.0.is_empty() { Ok(()) } else { Err(SnapshotError::Damaged("it is too long")) }
    }
}
