//! One entry's place in a table: two cache lines that carry their own versions.
//!
//! ```text
//!         word 0          words 1..6            words 6, 7
//! line 0  version         key, 40 bytes         value, bytes 0..16
//!         word 8          words 9..15                            word 15
//! line 1  version         value, bytes 16..64                    meta
//!
//! version  63..48 checksum | 47 overflow (line 0 only) | 46..0 sequence, odd while being written
//! meta     63..16 entry version | 15..0 slot
//! ```
//!
//! The one writer makes both sequences odd, stores the payload, then makes them even again, line 1
//! first. A reader takes the sequence of line 0, the payload and the sequence of line 1, then looks
//! at line 0 again: equal, even sequences mean a payload of one write. A one-sided read that
//! promises no order between cache lines is covered too: each line has a sequence of its own that
//! is odd before any word of that line changes, so both lines even and equal means both lines of
//! one write. The checksum of each line (over payload and sequence) is the second defence for
//! readers that share nothing with the writer but memory.
//!
//! The overflow bit belongs to the table, not to the entry: it says that some key whose home is
//! this cell lies in the overflow area, so that one read of a neighbourhood tells absent from
//! elsewhere. An empty cell has a key of kind 0.

use crate::Entry;
use crate::key::{Key, Value};
use crate::types::{SlotId, Version};
use crate::words::Word;
use core::sync::atomic::Ordering;

/// Words of a cell: two cache lines.
pub const CELL_WORDS: usize = 16;
/// Words of a cache line.
const LINE_WORDS: usize = 8;
/// Payload words of a cell: key 5, value 8, meta 1.
const PAYLOAD_WORDS: usize = 14;
const SEQUENCE: u64 = (1 << 47) - 1;
const OVERFLOW: u64 = 1 << 47;
const CHECKSUM: u64 = 0xffff << 48;
/// Odd, and without long runs of equal bits: a change of any one bit changes the upper 16.
const MULTIPLIERS: [u64; LINE_WORDS] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
    0x8ebc_6af0_9c88_c6e3,
    0x5899_65cc_7537_4cc3,
];
/// The largest entry version that a cell can hold.
pub const VERSION_MAX: u64 = (1 << 48) - 1;

/// A cell in a region, or in a model of one.
pub(crate) type Cell<W> = [W; CELL_WORDS];

/// Why a reader has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Torn {
    /// A write is under way or came in between.
    BeingWritten,
    /// Stable, but a checksum does not fit.
    Checksum,
}

/// A cell's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) key: Key,
    pub(crate) entry: Entry,
}

impl Content {
    /// What an empty cell holds.
    pub(crate) const EMPTY: Self = Self {
        key: Key([0; 5]),
        entry: Entry { value: Value::ZERO, version: Version(0), slot: SlotId(0) },
    };

    fn to_words(self) -> [u64; PAYLOAD_WORDS] {
        let mut words = [0; PAYLOAD_WORDS];
        words[..5].copy_from_slice(&self.key.0);
        words[5..13].copy_from_slice(&self.entry.value.0);
        words[13] = self.entry.version.0 << 16 | u64::from(self.entry.slot.0);
        words
    }

    #[inline]
    fn from_words(words: &[u64; PAYLOAD_WORDS]) -> Self {
        let mut key = [0; 5];
        let mut value = [0; 8];
        key.copy_from_slice(&words[..5]);
        value.copy_from_slice(&words[5..13]);
        let (version, slot) = (Version(words[13] >> 16), SlotId(words[13] as u16));
        Self { key: Key(key), entry: Entry { value: Value(value), version, slot } }
    }
}

/// Writes a cell and leaves its overflow bit. Only the table's one writer may call it.
pub(crate) fn write<W: Word>(cell: &Cell<W>, content: Content) {
    debug_assert!(content.entry.version.0 <= VERSION_MAX);
    let old = cell[0].load(Ordering::Relaxed);
    let flag = old & OVERFLOW;
    // A writer that died may have left it odd.
    let writing = (old | 1) & SEQUENCE;
    let stable = (writing + 1) & SEQUENCE;
    cell[0].store(writing | flag, Ordering::Relaxed);
    cell[LINE_WORDS].store(writing, Ordering::Relaxed);
    // Whoever sees a payload word of this write sees an odd sequence when it looks again.
    W::fence(Ordering::Release);
    let words = content.to_words();
    for (to, word) in cell[1..LINE_WORDS].iter().chain(&cell[LINE_WORDS + 1..]).zip(words) {
        to.store(word, Ordering::Relaxed);
    }
    let (first, second) = words.split_at(LINE_WORDS - 1);
    cell[LINE_WORDS].store(stable | checksum(second, stable), Ordering::Release);
    cell[0].store(stable | flag | checksum(first, stable), Ordering::Release);
}

/// Sets or clears the overflow bit of a cell and leaves its content. Only for the one writer.
pub(crate) fn set_overflow<W: Word>(cell: &Cell<W>, overflow: bool) {
    let word = cell[0].load(Ordering::Relaxed) & !OVERFLOW;
    cell[0].store(word | if overflow { OVERFLOW } else { 0 }, Ordering::Release);
}

/// Reads a cell that a writer may be changing at the moment.
#[inline]
pub(crate) fn read<W: Word>(cell: &Cell<W>) -> Result<Content, Torn> {
    read_words(cell).map(|(words, _)| Content::from_words(&words))
}

/// As [`read`], and verifies both checksums: for readers of other processes.
#[inline]
pub(crate) fn read_verified<W: Word>(cell: &Cell<W>) -> Result<Content, Torn> {
    let (words, versions) = read_words(cell)?;
    verify(&words, versions)?;
    Ok(Content::from_words(&words))
}

/// The entry of a key, if that is what the cell holds: as [`read`] or [`read_verified`].
#[inline]
pub(crate) fn read_entry<W: Word>(
    cell: &Cell<W>,
    key: &Key,
    verified: bool,
) -> Result<Option<Entry>, Torn> {
    let mut found = None;
    if hand_over(cell, key, verified, |entry| found = Some(entry)) {
        return Ok(found);
    }
    settle(cell, key, verified)
}

/// [`read_entry`] of a cell that is being written or holds another key.
#[cold]
fn settle<W: Word>(cell: &Cell<W>, key: &Key, verified: bool) -> Result<Option<Entry>, Torn> {
    let content = if verified { read_verified(cell)? } else { read(cell)? };
    Ok((content.key == *key).then_some(content.entry))
}

/// Gives the entry of a key to `take`, if the cell holds it intact. Otherwise nothing is said, not
/// even that the key is not there.
///
/// Always inlined: the words then go from the cell to where they are wanted, without the copies of
/// an `Option` in an `Option` in between, which are half of what a read costs.
#[inline(always)]
pub(crate) fn hand_over<W: Word>(
    cell: &Cell<W>,
    key: &Key,
    verified: bool,
    take: impl FnOnce(Entry),
) -> bool {
    let before = cell[0].load(Ordering::Acquire);
    let held: [u64; 5] = core::array::from_fn(|at| cell[1 + at].load(Ordering::Relaxed));
    let differ = held.iter().zip(key.0).fold(before & 1, |all, (word, wanted)| all | word ^ wanted);
    if differ != 0 {
        return false;
    }
    let word = |at: usize| cell[at].load(Ordering::Relaxed);
    let v = [word(6), word(7), word(9), word(10), word(11), word(12), word(13), word(14)];
    let (meta, second) = (word(15), word(LINE_WORDS));
    W::fence(Ordering::Acquire);
    let after = cell[0].load(Ordering::Relaxed);
    let mut wrong = (after ^ before) & !OVERFLOW | (second ^ before) & SEQUENCE;
    if verified {
        let [a, b, c, d, e] = held;
        let first = checksum(&[a, b, c, d, e, v[0], v[1]], before & SEQUENCE);
        let other = checksum(&[v[2], v[3], v[4], v[5], v[6], v[7], meta], second & SEQUENCE);
        wrong |= (before & CHECKSUM) ^ first | (second & CHECKSUM) ^ other;
    }
    if wrong != 0 {
        return false;
    }
    let (version, slot) = (Version(meta >> 16), SlotId(meta as u16));
    take(Entry { value: Value(v), version, slot });
    true
}

#[inline]
fn verify(words: &[u64; PAYLOAD_WORDS], versions: (u64, u64)) -> Result<(), Torn> {
    let (first, second) = words.split_at(LINE_WORDS - 1);
    let mut wrong = 0;
    for (line, version) in [(first, versions.0), (second, versions.1)] {
        // A cell that was never written is all zero, and so is the checksum of that.
        wrong |= (version & CHECKSUM) ^ checksum(line, version & SEQUENCE);
    }
    if wrong == 0 { Ok(()) } else { Err(Torn::Checksum) }
}

#[inline]
fn read_words<W: Word>(cell: &Cell<W>) -> Result<([u64; PAYLOAD_WORDS], (u64, u64)), Torn> {
    let before = cell[0].load(Ordering::Acquire);
    if before & 1 != 0 {
        return Err(Torn::BeingWritten);
    }
    let mut words = [0; PAYLOAD_WORDS];
    for (word, from) in
        words.iter_mut().zip(cell[1..LINE_WORDS].iter().chain(&cell[LINE_WORDS + 1..]))
    {
        *word = from.load(Ordering::Relaxed);
    }
    let second = cell[LINE_WORDS].load(Ordering::Relaxed);
    W::fence(Ordering::Acquire);
    let after = cell[0].load(Ordering::Relaxed);
    // The overflow bit comes and goes without the content.
    if (after ^ before) & !OVERFLOW != 0 || (second ^ before) & SEQUENCE != 0 {
        return Err(Torn::BeingWritten);
    }
    Ok((words, (before, second)))
}

/// 16 bits over a line's payload and sequence, in their place in the version word: a multilinear
/// hash, whose products do not wait for each other.
#[inline]
fn checksum(line: &[u64], sequence: u64) -> u64 {
    let mut sum = sequence.wrapping_mul(MULTIPLIERS[LINE_WORDS - 1]);
    for (word, multiplier) in line.iter().zip(MULTIPLIERS) {
        sum = sum.wrapping_add(word.wrapping_mul(multiplier));
    }
    sum & CHECKSUM
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU64;

    fn content(seed: u64) -> Content {
        Content {
            key: Key([seed | 1; 5]),
            entry: Entry {
                value: Value([seed.wrapping_mul(3); 8]),
                version: Version(seed & VERSION_MAX),
                slot: SlotId(seed as u16),
            },
        }
    }

    fn cell() -> Cell<AtomicU64> {
        core::array::from_fn(|_| AtomicU64::new(0))
    }

    #[test]
    fn what_is_written_is_read_by_both_readers() {
        let cell = cell();
        assert_eq!(read_verified(&cell), Ok(Content::EMPTY));
        for seed in [1, 0x1234_5678_9abc_def0, u64::MAX] {
            write(&cell, content(seed));
            assert_eq!(read(&cell), Ok(content(seed)));
            assert_eq!(read_verified(&cell), Ok(content(seed)));
            set_overflow(&cell, true);
            assert_eq!(cell[0].load(Ordering::Relaxed) & OVERFLOW, OVERFLOW);
            assert_eq!(read_verified(&cell), Ok(content(seed)));
        }
        write(&cell, Content::EMPTY);
        assert_eq!(read_verified(&cell), Ok(Content::EMPTY));
        assert_eq!(cell[0].load(Ordering::Relaxed) & OVERFLOW, OVERFLOW, "it is the table's");
    }

    #[test]
    fn a_change_of_any_word_is_seen() {
        let cell = cell();
        write(&cell, content(77));
        for (at, word) in cell.iter().enumerate() {
            for bit in 0..64 {
                let good = word.load(Ordering::Relaxed);
                word.store(good ^ 1 << bit, Ordering::Relaxed);
                // The overflow bits say nothing about the content.
                let harmless = bit == 47 && at % LINE_WORDS == 0;
                assert_eq!(
                    read_verified(&cell) == Ok(content(77)),
                    harmless,
                    "word {at} bit {bit}"
                );
                word.store(good, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn a_writer_that_died_in_the_middle_is_waited_for_and_written_over() {
        let cell = cell();
        write(&cell, content(5));
        cell[0].fetch_or(1, Ordering::Relaxed);
        assert_eq!(read(&cell), Err(Torn::BeingWritten));
        write(&cell, content(6));
        assert_eq!(read_verified(&cell), Ok(content(6)));
    }
}
