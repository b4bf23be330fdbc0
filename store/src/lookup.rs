//! Finds a key's cell beside a writer that moves entries about: the reader's half of the protocol.
//!
//! A lookup reads the eight tags of the key's neighbourhood (two adjacent words), then only cells
//! whose tag fits: one cache miss for tags, one for the cell. Why a key that is there all the time
//! is never missed:
//!
//! - A key is found only in a stable cell that holds it, so a find is right at once.
//! - The writer moves an entry (within its neighbourhood, or from the overflow area into it) copy
//!   first, original last, between two counts of its home's counter of moves. A reader that found
//!   nothing believes it only if the counter was even before it looked and is the same afterwards:
//!   then nothing of that home moved while it looked.
//!
//! It never stores, never waits, and never reads outside the table, whatever the words hold.

use crate::Entry;
use crate::cell::{self, CELL_WORDS, Cell, Torn};
use crate::key::Key;
use crate::layout::{Hasher, Layout, bytes_equal, header, home_of, tag};
use crate::words::{Word, Words};
use core::sync::atomic::Ordering;
use std::sync::Arc;

/// A cell that no table has.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// A table in some memory, ready to be looked into.
#[derive(Debug)]
pub(crate) struct View<M> {
    pub(crate) memory: Arc<M>,
    pub(crate) layout: Layout,
    pub(crate) hasher: Hasher,
}

impl<M> Clone for View<M> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), layout: self.layout, hasher: self.hasher }
    }
}

impl<M: Words> View<M> {
    #[inline]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }

    #[inline]
    pub(crate) fn word(&self, at: usize) -> &M::Word {
        &self.memory.words()[at]
    }

    #[inline]
    pub(crate) fn cell(&self, cell: u32) -> &Cell<M::Word> {
        &self.memory.words()[self.layout.cells_at..].as_chunks().0[cell as usize]
    }

    /// Draws the tags of a hash near.
    #[inline]
    pub(crate) fn prefetch_tags(&self, hash: u64) {
        self.memory.prefetch(Layout::tag_word(self.layout.home(hash)));
    }

    /// Draws the cell near that probably holds the key of a hash, and gives it. Reads its tags.
    #[inline]
    pub(crate) fn prefetch_cell(&self, hash: u64) -> u32 {
        let home = self.layout.home(hash);
        let fitting = bytes_equal(self.window(home), tag(hash));
        if fitting == 0 {
            return NOWHERE;
        }
        let cell = home + fitting.trailing_zeros() / 8;
        self.prefetch_lines(cell);
        cell
    }

    /// Draws both lines of a cell near.
    #[inline]
    pub(crate) fn prefetch_lines(&self, cell: u32) {
        let at = self.layout.cells_at + cell as usize * CELL_WORDS;
        self.memory.prefetch(at);
        self.memory.prefetch(at + CELL_WORDS / 2);
    }

    /// The tags of the eight cells of a neighbourhood, the lowest byte that of `home`.
    #[inline]
    pub(crate) fn window(&self, home: u32) -> u64 {
        let at = Layout::tag_word(home);
        let low = self.word(at).load(Ordering::Acquire);
        let high = self.word(at + 1).load(Ordering::Acquire);
        join(low, high, home)
    }

    /// One attempt at finding a key's cell and entry, with the checksums verified or not.
    #[inline]
    pub(crate) fn look(
        &self,
        key: &Key,
        hash: u64,
        verified: bool,
    ) -> Result<Option<(u32, Entry)>, Torn> {
        let (home, tag) = (self.layout.home(hash), tag(hash));
        let counter = self.word(Layout::moves_word(home));
        let moves = counter.load(Ordering::Acquire);
        let fitting = bytes_equal(self.window(home), tag);
        if let Some(found) = self.among(home, fitting, key, verified)? {
            return Ok(Some(found));
        }
        if self.bit(self.layout.flags_at, home)
            && let Some(found) = self.look_in_overflow(home, tag, key, verified)?
        {
            return Ok(Some(found));
        }
        M::Word::fence(Ordering::Acquire);
        if moves & 1 != 0 || counter.load(Ordering::Relaxed) != moves {
            return Err(Torn::BeingWritten);
        }
        Ok(None)
    }

    #[cold]
    fn look_in_overflow(
        &self,
        home: u32,
        tag: u8,
        key: &Key,
        verified: bool,
    ) -> Result<Option<(u32, Entry)>, Torn> {
        for bucket in self.layout.buckets_of(home) {
            let tags = self.word(Layout::tag_word(bucket)).load(Ordering::Acquire);
            if let Some(found) = self.among(bucket, bytes_equal(tags, tag), key, verified)? {
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
        verified: bool,
    ) -> Result<Option<(u32, Entry)>, Torn> {
        while fitting != 0 {
            let cell = first + fitting.trailing_zeros() / 8;
            if let Some(entry) = cell::read_entry(self.cell(cell), key, verified)? {
                return Ok(Some((cell, entry)));
            }
            fitting &= fitting - 1;
        }
        Ok(None)
    }

    /// The entry of a key, if this cell holds it intact: an answer that needs no other look.
    #[inline]
    pub(crate) fn entry_at(&self, cell: u32, key: &Key, verified: bool) -> Option<Entry> {
        let mut found = None;
        self.hand_over((cell, key), verified, |entry| found = Some(entry));
        found
    }

    /// The same for a reader that has a place for the entry: whether it was there.
    #[inline(always)]
    pub(crate) fn hand_over(
        &self,
        (cell, key): (u32, &Key),
        verified: bool,
        take: impl FnOnce(Entry),
    ) -> bool {
        // What lies behind the last cell holds no key.
        let cells = self.memory.words().get(self.layout.cells_at..);
        let cell = cells.and_then(|words| words.as_chunks().0.get(cell as usize));
        cell.is_some_and(|cell| cell::hand_over(cell, key, verified, take))
    }

    /// What a burst of lookups looks at.
    #[inline]
    pub(crate) fn sight(&self) -> Sight<'_, M> {
        let words = self.memory.words();
        let cells = &words[self.layout.cells_at..].as_chunks().0[..self.layout.cells() as usize];
        let tags = &words[header::WORDS..self.layout.flags_at];
        let (homes, hasher) = (self.layout.homes, self.hasher);
        Sight { tags, cells, homes, hasher }
    }

    /// Bit number `index` of the bit array that begins at word `at`.
    #[inline]
    pub(crate) fn bit(&self, at: usize, index: u32) -> bool {
        self.word(at + (index / 64) as usize).load(Ordering::Acquire) >> (index % 64) & 1 != 0
    }
}

/// The parts of a table that most lookups need, checked once a burst and then at hand in registers.
pub(crate) struct Sight<'a, M: Words> {
    tags: &'a [M::Word],
    cells: &'a [Cell<M::Word>],
    homes: u32,
    hasher: Hasher,
}

impl<M: Words> Sight<'_, M> {
    #[inline(always)]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        self.hasher.hash(key)
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> u32 {
        home_of(hash, self.homes)
    }

    /// As [`View::prefetch_tags`].
    #[inline(always)]
    pub(crate) fn prefetch_tags(&self, hash: u64) {
        if let Some(word) = self.tags.get((self.home(hash) / 8) as usize) {
            M::draw_near(word);
        }
    }

    /// As [`View::prefetch_cell`].
    #[inline(always)]
    pub(crate) fn prefetch_cell(&self, hash: u64) -> u32 {
        let home = self.home(hash);
        let at = (home / 8) as usize;
        let Some([low, high]) = self.tags.get(at..).and_then(|tags| tags.first_chunk()) else {
            return NOWHERE;
        };
        let (low, high) = (low.load(Ordering::Acquire), high.load(Ordering::Acquire));
        let fitting = bytes_equal(join(low, high, home), tag(hash));
        if fitting == 0 {
            return NOWHERE;
        }
        let cell = home + fitting.trailing_zeros() / 8;
        if let Some(cell) = self.cells.get(cell as usize) {
            M::draw_near(&cell[0]);
            M::draw_near(&cell[CELL_WORDS / 2]);
        }
        cell
    }

    /// As [`View::hand_over`].
    #[inline(always)]
    pub(crate) fn hand_over(
        &self,
        (cell, key): (u32, &Key),
        verified: bool,
        take: impl FnOnce(Entry),
    ) -> bool {
        let cell = self.cells.get(cell as usize);
        cell.is_some_and(|cell| cell::hand_over(cell, key, verified, take))
    }
}

/// Eight tags from two words, the lowest byte that of `home`.
#[inline(always)]
fn join(low: u64, high: u64, home: u32) -> u64 {
    // The shift by 64 is done in two steps.
    let shift = home % 8 * 8;
    low >> shift | (high << 1) << (63 - shift)
}
