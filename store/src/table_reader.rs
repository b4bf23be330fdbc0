//! Reads a shard's table in place, beside its writer: from any thread, and from any process that
//! maps the region, read-only included. Never locks, never stores, never allocates.
//!
//! A lookup reads the eight tags of the key's neighbourhood (two adjacent words), then only cells
//! whose tag fits: one cache miss for tags, one for the cell. Why a key that is there all the time
//! is never missed, though the writer moves entries about:
//!
//! - Entries move only forward, and a copy is published before the original goes. The lower word of
//!   tags is read first, so one of the two words shows the tag: no tag means absent.
//! - A tag that fits while the cell holds another key is a coincidence or a key that has just moved
//!   on. Then the neighbourhood is read once more while no entry is being displaced (the writer
//!   counts displacements, odd while one is under way).
//! - In the overflow area nothing moves.
//!
//! The geometry comes from the capacity alone, checked against the region's size, so a hostile
//! header or cell can give wrong answers but never an access outside.

use crate::Entry;
use crate::cell::{self, CELL_WORDS, Cell, Content, Torn};
use crate::key::Key;
use crate::layout::{Hasher, LAYOUT_VERSION, Layout, MAGIC, bytes_equal, header, tag};
use crate::limits::{CAPACITY_MAX, READ_ATTEMPTS};
use crate::region::Region;
use crate::types::ShardId;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::Arc;
use thiserror::Error;

/// Keys that [`TableReader::get_many`] looks up side by side.
pub const READ_BURST: usize = 32;
/// Fruitless attempts after which a reader lets other threads run: the writer may wait for this
/// core.
const SPINS_BEFORE_YIELD: u32 = 64;

/// Whose table a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionIdentity {
    /// The cluster.
    pub cluster: u64,
    /// The shard.
    pub shard: ShardId,
}

/// Why a region cannot be used as a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// No such table can be made.
    #[error("a table cannot have a capacity of {0}: choose 1 to {CAPACITY_MAX}")]
    Capacity(u32),
    /// The region is smaller than the table.
    #[error("a table of this capacity needs {needed} bytes, the region has {found}")]
    TooSmall {
        /// Bytes that the capacity asks for.
        needed: u64,
        /// Bytes of the region.
        found: u64,
    },
    /// The region is mapped read-only and cannot be formatted.
    #[error("a table is formatted in a writable region; this one is mapped read-only")]
    ReadOnly,
    /// The region holds something already.
    #[error("the region is not fresh: a table is formatted once, in zeroed memory")]
    NotFresh,
    /// The magic number is missing.
    #[error("the region holds no table (yet)")]
    NotATable,
    /// Made by another version of this program.
    #[error("the region has table layout {found}, this program {LAYOUT_VERSION}: run one version")]
    LayoutVersion {
        /// What the header says.
        found: u64,
    },
    /// Another cluster's.
    #[error("the region belongs to cluster {found:016x}, not to {expected:016x}")]
    WrongCluster {
        /// What the header says.
        found: u64,
        /// What was asked for.
        expected: u64,
    },
    /// Another shard's.
    #[error("the region belongs to shard {found}, not to {expected}")]
    WrongShard {
        /// What the header says.
        found: u64,
        /// What was asked for.
        expected: ShardId,
    },
}

/// Why another process's table gave no answer. The caller asks the owner instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// No stable view after [`READ_ATTEMPTS`] attempts: the writer may have died in a write.
    #[error("the table is being written and does not settle: its writer may have died")]
    Busy,
    /// Stable, but a checksum does not fit.
    #[error("a cell of the table does not fit its checksum")]
    Checksum,
}

/// Reads one table. See the module's text.
#[derive(Clone, Debug)]
pub struct TableReader {
    region: Arc<Region>,
    layout: Layout,
    hasher: Hasher,
}

impl TableReader {
    /// A reader of the table that a region holds.
    ///
    /// # Errors
    /// If it holds none, or another cluster's, shard's or version's.
    pub fn open(region: Arc<Region>, identity: RegionIdentity) -> Result<Self, TableError> {
        let words = region.words();
        if words.len() < header::WORDS {
            let needed = (header::WORDS * 8) as u64;
            return Err(TableError::TooSmall { needed, found: region.len_bytes() as u64 });
        }
        // The writer stores the magic number last.
        if words[header::MAGIC].load(Ordering::Acquire) != MAGIC {
            return Err(TableError::NotATable);
        }
        let word = |at: usize| words[at].load(Ordering::Relaxed);
        if word(header::LAYOUT) != LAYOUT_VERSION {
            return Err(TableError::LayoutVersion { found: word(header::LAYOUT) });
        }
        if word(header::CLUSTER) != identity.cluster {
            let (found, expected) = (word(header::CLUSTER), identity.cluster);
            return Err(TableError::WrongCluster { found, expected });
        }
        if word(header::SHARD) != u64::from(identity.shard.0) {
            let (found, expected) = (word(header::SHARD), identity.shard);
            return Err(TableError::WrongShard { found, expected });
        }
        let capacity = u32::try_from(word(header::CAPACITY)).unwrap_or(u32::MAX);
        let layout = Layout::new(capacity).ok_or(TableError::Capacity(capacity))?;
        if layout.words > words.len() {
            let needed = layout.words as u64 * 8;
            return Err(TableError::TooSmall { needed, found: region.len_bytes() as u64 });
        }
        let hasher = Hasher::new(word(header::HASH_KEY));
        Ok(Self { region, layout, hasher })
    }

    /// The hash of a key in this table: what [`TableReader::prefetch`] and the lookups go by.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }

    /// Brings the tags and the most probable cell of a key near.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        let home = self.layout.home(self.hash(key));
        self.region.prefetch(Layout::tag_word(home));
        self.prefetch_cell(home);
    }

    #[inline]
    fn prefetch_cell(&self, cell: u32) {
        let at = self.layout.cells_at + cell as usize * CELL_WORDS;
        self.region.prefetch(at);
        self.region.prefetch(at + CELL_WORDS / 2);
    }

    /// Reads an entry, in the process of the writer: waits for a write that is under way, and is
    /// never wrong.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.get_hashed(key, self.hash(key))
    }

    #[inline]
    fn get_hashed(&self, key: &Key, hash: u64) -> Option<Entry> {
        let mut spins = 0;
        loop {
            match self.look(key, hash, cell::read) {
                Ok(found) => return found.map(|(_, entry)| entry),
                Err(_) => rest(&mut spins),
            }
        }
    }

    /// Reads the entries of several keys. Their cache misses overlap, so this is several times
    /// faster than one [`TableReader::get`] after the other once a table outgrows the caches.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn get_many(&self, keys: &[Key], found: &mut [Option<Entry>]) {
        assert_eq!(keys.len(), found.len(), "one place for each key");
        for (keys, found) in keys.chunks(READ_BURST).zip(found.chunks_mut(READ_BURST)) {
            let mut hashes = [0; READ_BURST];
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = self.hash(key);
                self.region.prefetch(Layout::tag_word(self.layout.home(*hash)));
            }
            for hash in &hashes[..keys.len()] {
                let home = self.layout.home(*hash);
                let fitting = bytes_equal(self.window(home), tag(*hash));
                if fitting != 0 {
                    self.prefetch_cell(home + fitting.trailing_zeros() / 8);
                }
            }
            for ((key, hash), found) in keys.iter().zip(hashes).zip(found) {
                *found = self.get_hashed(key, hash);
            }
        }
    }

    /// Reads an entry of another process's table: a bounded number of attempts, checksums verified.
    /// The caller then makes sure that [`TableReader::generation`] is the one of its grant and that
    /// its lease still holds.
    ///
    /// # Errors
    /// If there is no stable, intact view.
    pub fn try_get(&self, key: &Key) -> Result<Option<Entry>, ReadError> {
        let hash = self.hash(key);
        let mut last = Torn::BeingWritten;
        let mut spins = 0;
        for _ in 0..READ_ATTEMPTS {
            match self.look(key, hash, cell::read_verified) {
                Ok(found) => return Ok(found.map(|(_, entry)| entry)),
                Err(torn) => last = torn,
            }
            rest(&mut spins);
        }
        Err(match last {
            Torn::BeingWritten => ReadError::Busy,
            Torn::Checksum => ReadError::Checksum,
        })
    }

    /// Which owner's the content is: rotates at every change of owner. Ordered after the reads
    /// before it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        fence(Ordering::Acquire);
        self.word(header::GENERATION).load(Ordering::Acquire)
    }

    /// Entries that the table holds at the moment.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.word(header::ENTRIES).load(Ordering::Relaxed)
    }

    /// Entries that the table was made for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.layout.capacity
    }

    /// The region that the table lies in.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    #[inline]
    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        &self.region.words()[at]
    }

    #[inline]
    pub(crate) fn cell(&self, cell: u32) -> &Cell {
        &self.region.words()[self.layout.cells_at..].as_chunks().0[cell as usize]
    }

    /// The tags of the eight cells of a neighbourhood, the lowest byte that of `home`.
    #[inline]
    fn window(&self, home: u32) -> u64 {
        let at = Layout::tag_word(home);
        let low = self.word(at).load(Ordering::Acquire);
        // Ordered after the first: entries move forward. (The shift by 64 is done in two steps.)
        let high = self.word(at + 1).load(Ordering::Acquire);
        let shift = home % 8 * 8;
        low >> shift | (high << 1) << (63 - shift)
    }

    /// One attempt at finding a key's cell and entry.
    #[inline]
    pub(crate) fn look(
        &self,
        key: &Key,
        hash: u64,
        read: impl Fn(&Cell) -> Result<Content, Torn>,
    ) -> Result<Option<(u32, Entry)>, Torn> {
        let (home, tag) = (self.layout.home(hash), tag(hash));
        let fitting = bytes_equal(self.window(home), tag);
        if fitting != 0 {
            if let Some(found) = self.among(home, fitting, key, &read)? {
                return Ok(Some(found));
            }
            let moves = self.word(header::MOVES).load(Ordering::Acquire);
            if moves & 1 != 0 {
                return Err(Torn::BeingWritten);
            }
            let fitting = bytes_equal(self.window(home), tag);
            if let Some(found) = self.among(home, fitting, key, &read)? {
                return Ok(Some(found));
            }
            fence(Ordering::Acquire);
            if self.word(header::MOVES).load(Ordering::Relaxed) != moves {
                return Err(Torn::BeingWritten);
            }
        }
        if !self.bit(self.layout.flags_at, home) {
            return Ok(None);
        }
        for bucket in self.layout.buckets_of(home) {
            let tags = self.word(Layout::tag_word(bucket)).load(Ordering::Acquire);
            if let Some(found) = self.among(bucket, bytes_equal(tags, tag), key, &read)? {
                return Ok(Some(found));
            }
            if !self.bit(self.layout.spills_at, self.layout.bucket_number(bucket)) {
                break;
            }
        }
        Ok(None)
    }

    /// The first of the fitting cells from `first` on that holds the key.
    #[inline]
    fn among(
        &self,
        first: u32,
        mut fitting: u64,
        key: &Key,
        read: impl Fn(&Cell) -> Result<Content, Torn>,
    ) -> Result<Option<(u32, Entry)>, Torn> {
        while fitting != 0 {
            let cell = first + fitting.trailing_zeros() / 8;
            let content = read(self.cell(cell))?;
            if content.key == *key {
                return Ok(Some((cell, content.entry)));
            }
            fitting &= fitting - 1;
        }
        Ok(None)
    }

    /// Bit number `index` of the bit array that begins at word `at`.
    #[inline]
    pub(crate) fn bit(&self, at: usize, index: u32) -> bool {
        self.word(at + (index / 64) as usize).load(Ordering::Acquire) >> (index % 64) & 1 != 0
    }
}

/// A moment's rest between attempts: short at first, then the processor is given away.
#[cold]
fn rest(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        std::thread::yield_now();
    } else {
        core::hint::spin_loop();
    }
}
