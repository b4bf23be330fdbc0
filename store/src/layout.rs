//! Where things lie in a table's region, and where a key belongs: arithmetic only.
//!
//! ```text
//! word 0         1536                                                 a multiple of 16
//! +--------------+--------------+----------------+--------------+------------------------------+
//! | header       | tags         | flags          | spills       | cells, 128 bytes each        |
//! | magic,       | a byte a     | a bit a home:  | a bit a      | homes    | 7 to 22 | over-    |
//! | geometry,    | cell, 0 if   | a key of this  | bucket: a    |          | spare   | flow     |
//! | counts,      | empty, else  | home lies in   | key of it is |          |         | buckets  |
//! | 256 counters | 1..=255 of   | the overflow   | in the next  |          |         | of 8     |
//! | of moves,    | the hash     | area           | bucket       |          |         | cells    |
//! | slots held   |              |                |              |          |         |          |
//! +--------------+--------------+----------------+--------------+------------------------------+
//!
//! a key of home h:  cell h .. h + 7 (its neighbourhood: 1 KiB in a row), or one of the 32 cells of
//!                   the 4 overflow buckets that follow from h
//!
//! cells             h-1      h     h+1    h+2    h+3    h+4    h+5    h+6    h+7    h+8
//!                 +------+------+------+------+------+------+------+------+------+------+
//! tags            |  17  |  c3  |  00  |  5e  |  c3  |  91  |  ...                      |
//!                 +------+------+------+------+------+------+------+------+------+------+
//!                         ^------------- read as two words, shifted into one ------^
//!                         tag c3 fits cells h and h + 3: only their keys are compared
//! ```
//!
//! - **Capacity** is a number of entries, 1 to 2^28. There are 5/4 as many homes, so a table that
//!   holds its capacity fills its cells to 80 %, and no replica is full before another.
//! - **Probe lengths.** A key found in its neighbourhood costs one read of at most 1 KiB: the two
//!   lines of its cell for a reader that sees the tags, or the eight cells at once for one that
//!   only reads far away. At 80 % fill that is more than 99 % of the entries, also after any number
//!   of entries have come and gone; the others lie in the overflow area, of which the entries use
//!   an eighth. `TableStats` counts both by distance.
//! - **Bytes.** 1.25 cells an entry, an overflow area of 1/16 of that, and a byte and a bit a cell:
//!   172 bytes an entry at full capacity, 215 with 80 % of the capacity taken.
//! - **Moves.** A home's counter (one for every 256th home) is odd while an entry of such a home
//!   is being moved. A reader that found its key asks no counter; only one that did not must know
//!   that the key was not on the way from a place not yet read to one already read.
//!
//! - **Slots.** What lies in a table is served only as long as the shard holds the entry's slot. A
//!   reader that has its answer, also that a key is absent, looks whether the bit of the slot is
//!   set: the writer clears it before another shard may change anything of the slot, and sets it
//!   after everything of the slot is there.
//!
//! All of it follows from one number, the capacity; a reader that believes nothing else in a header
//! than a capacity that fits the region's size cannot be led astray by the rest.

use crate::key::Key;
use crate::limits::CAPACITY_MAX;

/// `NEARSTOR`, little-endian.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"NEARSTOR");
/// Rises with every change of the layout.
pub const LAYOUT_VERSION: u64 = 3;
/// Cells of a neighbourhood: eight of 128 bytes are one one-sided read of 1 KiB.
pub const NEIGHBOURHOOD: u32 = 8;
/// Cells of one bucket of the overflow area.
const BUCKET: u32 = 8;
/// Buckets of the overflow area in which a key may lie.
pub(crate) const BUCKET_PROBES: u32 = 4;

/// Places of the header's words.
pub(crate) mod header {
    use crate::slot_set::SlotSet;

    const SLOTS_MAX: u32 = SlotSet::SLOTS_MAX;
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const LAYOUT: usize = 1;
    pub(crate) const CLUSTER: usize = 2;
    pub(crate) const SHARD: usize = 3;
    pub(crate) const GENERATION: usize = 4;
    pub(crate) const CAPACITY: usize = 5;
    pub(crate) const HASH_KEY: usize = 6;
    // What the writer changes lies on other cache lines than what every reader reads.
    pub(crate) const ENTRIES: usize = 16;
    pub(crate) const OVERFLOW: usize = 17;
    /// Entries that were moved since the table was made.
    pub(crate) const DISPLACEMENTS: usize = 18;
    /// The slot that is on its way to another shard: a mark, that shard, the slot; 0 if none is.
    pub(crate) const LEAVING: usize = 20;
    pub(crate) const LEAVING_MARK: u64 = 1 << 32;
    /// Counters of moves, one for the homes that are equal modulo their number.
    pub(crate) const MOVES: usize = 256;
    pub(crate) const MOVES_COUNT: u32 = 256;
    /// A bit for each slot that the shard holds; for as many slots as a cluster may have.
    pub(crate) const HELD: usize = 512;
    pub(crate) const WORDS: usize = HELD + SLOTS_MAX as usize / 64;
}

/// The places in a region of a table for `capacity` entries. Indexes count words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) capacity: u32,
    /// Cells that can be a key's home: with `capacity` entries they are filled to 80 %.
    pub(crate) homes: u32,
    /// The first cell of the overflow area: a multiple of 8, so a bucket's tags are one word.
    pub(crate) overflow_first: u32,
    pub(crate) buckets: u32,
    pub(crate) flags_at: usize,
    pub(crate) spills_at: usize,
    pub(crate) cells_at: usize,
    pub(crate) words: usize,
}

impl Layout {
    /// The layout for a capacity, if that is a possible one.
    pub(crate) fn new(capacity: u32) -> Option<Self> {
        if capacity == 0 || capacity > CAPACITY_MAX {
            return None;
        }
        let homes = (capacity + capacity.div_ceil(4)).max(NEIGHBOURHOOD);
        // One bucket's worth of tags beyond the last neighbourhood: windows read two words.
        let overflow_first = (homes + NEIGHBOURHOOD - 1).next_multiple_of(8) + 8;
        // Small tables have no law of large numbers to rely on.
        let buckets = (homes / 16).div_ceil(BUCKET).max(BUCKET_PROBES);
        let cells = overflow_first + buckets * BUCKET;
        let flags_at = header::WORDS + (cells / 8) as usize;
        let spills_at = flags_at + homes.div_ceil(64) as usize;
        let cells_at =
            (spills_at + buckets.div_ceil(64) as usize).next_multiple_of(crate::cell::CELL_WORDS);
        let words = cells_at + cells as usize * crate::cell::CELL_WORDS;
        Some(Self {
            capacity,
            homes,
            overflow_first,
            buckets,
            flags_at,
            spills_at,
            cells_at,
            words,
        })
    }

    /// All cells, spare and overflow ones too.
    pub(crate) const fn cells(&self) -> u32 {
        self.overflow_first + self.buckets * BUCKET
    }

    /// The word of tags that a cell's tag lies in.
    #[inline]
    pub(crate) const fn tag_word(cell: u32) -> usize {
        header::WORDS + (cell / 8) as usize
    }

    /// The counter of moves of a home's entries.
    #[inline]
    pub(crate) const fn moves_word(home: u32) -> usize {
        header::MOVES + (home % header::MOVES_COUNT) as usize
    }

    #[inline]
    pub(crate) const fn home(&self, hash: u64) -> u32 {
        home_of(hash, self.homes)
    }

    /// The first cells of the buckets in which a key of this home may lie, in the order of trial.
    pub(crate) fn buckets_of(&self, home: u32) -> impl Iterator<Item = u32> + use<> {
        let mixed = u64::from(home).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = ((mixed * u64::from(self.buckets)) >> 32) as u32;
        let (buckets, start) = (self.buckets, self.overflow_first);
        (0..BUCKET_PROBES.min(buckets)).map(move |i| start + (first + i) % buckets * BUCKET)
    }

    /// The number of the bucket that begins at an overflow cell.
    pub(crate) const fn bucket_number(&self, first_cell: u32) -> u32 {
        (first_cell - self.overflow_first) / BUCKET
    }
}

/// A table's keyed hash: wyhash's folded multiplication over the five words of a key. The key is
/// random for each region, so nobody outside can make keys collide; it has nothing to do with the
/// hash that steers packets, which everybody may know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher([u64; 5]);

/// A key's hash in one table, so that it is computed once and used several times. Used with a table
/// of another region it is computed anew: a wrong hash would make a key seem absent.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash {
    pub(crate) hash: u64,
    /// Which hash function; see [`Hasher::id`].
    pub(crate) hasher: u64,
    /// Where the key probably lies; no more than a hint.
    pub(crate) cell: u32,
}

impl KeyHash {
    /// No hash: whoever gets it computes its own.
    pub const UNKNOWN: Self = Self { hash: 0, hasher: 0, cell: u32::MAX };
}

impl Hasher {
    pub(crate) fn new(hash_key: u64) -> Self {
        let mut state = hash_key;
        Self(core::array::from_fn(|_| {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }))
    }

    /// Tells this function from those of other hash keys; never 0.
    #[inline]
    pub(crate) const fn id(&self) -> u64 {
        self.0[0] | 1
    }

    #[inline]
    pub(crate) const fn hash(&self, key: &Key) -> u64 {
        let ([a, b, c, d, e], secret) = (key.0, &self.0);
        let first = fold(a ^ secret[0], b ^ secret[1]);
        let second = fold(c ^ secret[2], d ^ secret[3]);
        // Both factors depend on all words. With a constant factor, keys that differ in one byte
        // (the ports of a host) would lie on a line, and for some secrets in a few heaps.
        let mixed = first ^ e;
        fold(mixed ^ secret[4], mixed.rotate_left(29) ^ second ^ secret[0].rotate_left(32))
    }
}

#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let wide = a as u128 * b as u128;
    wide as u64 ^ (wide >> 64) as u64
}

/// The home of a hash among so many.
#[inline]
pub(crate) const fn home_of(hash: u64, homes: u32) -> u32 {
    ((hash as u128 * homes as u128) >> 64) as u32
}

/// The tag of a hash: never 0, from bits that the home hardly depends on.
#[inline]
pub(crate) const fn tag(hash: u64) -> u8 {
    (1 + (((hash as u32 & 0xffff) * 255) >> 16)) as u8
}

/// The high bit of each byte of `word` that equals `byte`; exact.
#[inline]
pub(crate) const fn bytes_equal(word: u64, byte: u8) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let differ = word ^ (byte as u64 * 0x0101_0101_0101_0101);
    !(((differ & LOW) + LOW) | differ | LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_layout_follow_each_other_without_overlap() {
        for capacity in [1, 2, 7, 8, 9, 63, 64, 1000, 1 << 20, 10_000_000, CAPACITY_MAX] {
            let layout = Layout::new(capacity).unwrap();
            assert!(u64::from(layout.homes) * 4 >= u64::from(capacity) * 5);
            assert!(layout.overflow_first.is_multiple_of(8));
            assert!(
                Layout::tag_word(layout.homes - 1) + 1 < Layout::tag_word(layout.overflow_first)
            );
            assert!(Layout::tag_word(layout.cells() - 1) < layout.flags_at);
            assert!(layout.flags_at + (layout.homes as usize).div_ceil(64) <= layout.spills_at);
            assert!(layout.spills_at + (layout.buckets as usize).div_ceil(64) <= layout.cells_at);
            assert_eq!(layout.words, layout.cells_at + 16 * layout.cells() as usize);
            assert_eq!(layout.home(0), 0);
            assert_eq!(layout.home(u64::MAX), layout.homes - 1);
            for home in [0, layout.homes / 2, layout.homes - 1] {
                for bucket in layout.buckets_of(home) {
                    assert!(bucket >= layout.overflow_first && bucket + 8 <= layout.cells());
                    assert!(layout.bucket_number(bucket) < layout.buckets);
                }
            }
        }
        assert!(Layout::new(0).is_none() && Layout::new(CAPACITY_MAX + 1).is_none());
    }

    #[test]
    fn equal_bytes_are_found_and_no_others() {
        assert_eq!(bytes_equal(0x0001_0100_ff80_0001, 1), 0x0080_8000_0000_0080);
        assert_eq!(bytes_equal(0x0001_0100_ff80_0001, 0), 0x8000_0080_0000_8000);
        assert_eq!(bytes_equal(0x0001_0100_ff80_0001, 0x80), 0x0000_0000_0080_0000);
    }

    #[test]
    fn every_bit_of_a_key_changes_its_hash_and_the_hash_key_does_too() {
        let hasher = Hasher::new(42);
        let key = Key([1, 2, 3, 4, 5]);
        for word in 0..5 {
            for bit in 0..64 {
                let mut other = key;
                other.0[word] ^= 1 << bit;
                let changed = (hasher.hash(&key) ^ hasher.hash(&other)).count_ones();
                assert!((8..=56).contains(&changed), "word {word} bit {bit}: {changed}");
            }
        }
        assert_ne!(hasher.hash(&key), Hasher::new(43).hash(&key));
        assert!((0..100_000).all(|hash| tag(hash) != 0));
    }
}
