//! A shard's table, seen by its one writer: hopscotch hashing in a region that others read
//! meanwhile.
//!
//! A key lies in one of the eight cells from its home on (its *neighbourhood*). When those are
//! full, entries further on are displaced forward until one of the eight is free; when that cannot
//! be done, the key goes to a small overflow area and its home is flagged. How a region is laid out
//! stands in [`crate::layout`], how readers stay right in [`crate::table_reader`], how a cell is
//! written in [`crate::cell`].
//!
//! A table made for `capacity` entries takes just so many, whatever the hash key: fullness is the
//! same on all replicas. Its cells are then filled to two thirds. What comes and goes at full load
//! drives entries into the overflow area: in the long run 1 to 3 % lie there, of 9 % that have
//! room. (At 80 % fill the churn alone would fill the area in the end, at 90 % of the capacity it
//! does not.)

use crate::Entry;
use crate::cell::{self, Content};
use crate::key::{Key, Value};
use crate::layout::{LAYOUT_VERSION, Layout, MAGIC, NEIGHBOURHOOD, bytes_equal, header, tag};
use crate::region::Region;
use crate::table_reader::{RegionIdentity, TableError, TableReader};
use crate::types::{SlotId, Version};
use core::sync::atomic::{Ordering, fence};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// How far from its home an empty cell is looked for, to be brought near by displacement.
const EMPTY_DISTANCE_MAX: u32 = 512;

/// The table holds as many entries as it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the table holds all the {0} entries that it was made for")]
pub struct TableFull(pub u32);

/// How a table is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// Entries it holds.
    pub entries: u32,
    /// Entries it was made for.
    pub capacity: u32,
    /// Cells that can be a home; capacity is two thirds of it.
    pub homes: u32,
    /// Entries in the overflow area.
    pub overflow: u32,
    /// Places of the overflow area.
    pub overflow_places: u32,
    /// Entries that were displaced since the table was made.
    pub displacements: u64,
    /// How many entries lie how many cells from their home.
    pub distances: [u32; NEIGHBOURHOOD as usize],
    /// Bytes of the region that the table uses.
    pub bytes: u64,
}

/// The writer of a table. There is one at a time.
#[derive(Debug)]
pub struct Table {
    reader: TableReader,
    /// Of each cell that is no overflow cell: how far its entry lies from its home.
    distances: Box<[u8]>,
    /// Homes that have keys in the overflow area, and how many.
    overflowed: BTreeMap<u32, u32>,
    entries: u32,
    overflow: u32,
    /// As in the header: two for each displacement, odd while one is under way.
    moves: u64,
}

/// The place in a table's header that says whose the content is.
#[derive(Clone, Debug)]
pub struct GenerationCell(TableReader);

impl GenerationCell {
    /// Says whose the content is from now on; see [`TableReader::generation`].
    pub fn set(&self, generation: u64) {
        self.0.word(header::GENERATION).store(generation, Ordering::Release);
    }
}

impl Table {
    /// Makes an empty table in a fresh region. `hash_key` is random, for each region anew.
    ///
    /// # Errors
    /// If the capacity is impossible, or the region too small, read-only or not fresh.
    pub fn format(
        region: Arc<Region>,
        identity: RegionIdentity,
        capacity: u32,
        hash_key: u64,
    ) -> Result<Self, TableError> {
        let layout = Layout::new(capacity).ok_or(TableError::Capacity(capacity))?;
        let words = region.words();
        if layout.words > words.len() {
            let (needed, found) = (layout.words as u64 * 8, region.len_bytes() as u64);
            return Err(TableError::TooSmall { needed, found });
        }
        if !region.is_writable() {
            return Err(TableError::ReadOnly);
        }
        if words[..header::WORDS].iter().any(|word| word.load(Ordering::Relaxed) != 0) {
            return Err(TableError::NotFresh);
        }
        for (at, value) in [
            (header::LAYOUT, LAYOUT_VERSION),
            (header::CLUSTER, identity.cluster),
            (header::SHARD, u64::from(identity.shard.0)),
            (header::CAPACITY, u64::from(capacity)),
            (header::HASH_KEY, hash_key),
        ] {
            words[at].store(value, Ordering::Relaxed);
        }
        words[header::MAGIC].store(MAGIC, Ordering::Release);
        let reader = TableReader::open(region, identity)?;
        let distances = vec![0; layout.overflow_first as usize].into_boxed_slice();
        let overflowed = BTreeMap::new();
        Ok(Self { reader, distances, overflowed, entries: 0, overflow: 0, moves: 0 })
    }

    /// Bytes of a region for a table of this capacity.
    ///
    /// # Errors
    /// If no such table can be.
    pub fn bytes_for(capacity: u32) -> Result<usize, TableError> {
        Layout::new(capacity).map(|layout| layout.words * 8).ok_or(TableError::Capacity(capacity))
    }

    /// A reader, for any thread of this process.
    #[must_use]
    pub fn reader(&self) -> TableReader {
        self.reader.clone()
    }

    /// Entries it holds.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.entries
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Entries it takes.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.reader.capacity()
    }

    /// Says whose the content is from now on; see [`TableReader::generation`].
    pub fn set_generation(&self, generation: u64) {
        self.generation_cell().set(generation);
    }

    /// The same for whoever decides about ownership, while the machine has the table.
    #[must_use]
    pub fn generation_cell(&self) -> GenerationCell {
        GenerationCell(self.reader.clone())
    }

    /// Brings a key's place near.
    pub fn prefetch(&self, key: &Key) {
        self.reader.prefetch(key);
    }

    /// The entry of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.find(key).map(|(_, entry)| entry)
    }

    fn find(&self, key: &Key) -> Option<(u32, Entry)> {
        let hash = self.reader.hash(key);
        // Nobody else writes, so the first attempt is stable.
        self.reader.look(key, hash, cell::read).expect("only this thread writes the table")
    }

    /// Sets the entry of a key.
    ///
    /// # Errors
    /// If the key is new and the table full.
    ///
    /// # Panics
    /// If the key's kind is 0 or the version does not fit into 48 bits: the caller checks.
    pub fn put(
        &mut self,
        key: &Key,
        value: &Value,
        version: Version,
        slot: SlotId,
    ) -> Result<(), TableFull> {
        assert!(key.kind() != 0, "kind 0 marks an empty cell");
        assert!(version.0 <= cell::VERSION_MAX, "versions have 48 bits");
        let content = Content { key: *key, entry: Entry { value: *value, version, slot } };
        if let Some((cell, _)) = self.find(key) {
            self.write(cell, content);
            return Ok(());
        }
        if self.entries >= self.capacity() {
            return Err(TableFull(self.capacity()));
        }
        let hash = self.reader.hash(key);
        let home = self.reader.layout().home(hash);
        match self.make_room(home) {
            Some(cell) => {
                self.distances[cell as usize] = (cell - home) as u8;
                self.write(cell, content);
                self.set_tag(cell, tag(hash));
            }
            None => self.put_in_overflow(home, tag(hash), content)?,
        }
        self.count_entries(self.entries + 1);
        Ok(())
    }

    /// Removes the entry of a key and gives it back.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        let (cell, entry) = self.find(key)?;
        self.set_tag(cell, 0);
        self.write(cell, Content::EMPTY);
        if cell >= self.reader.layout().overflow_first {
            let home = self.reader.layout().home(self.reader.hash(key));
            self.count_overflow(self.overflow - 1);
            let left = self.overflowed.get_mut(&home).expect("the home was counted");
            *left -= 1;
            if *left == 0 {
                self.overflowed.remove(&home);
                self.set_bit(self.reader.layout().flags_at, home, false);
                cell::set_overflow(self.reader.cell(home), false);
            }
        }
        self.count_entries(self.entries - 1);
        Some(entry)
    }

    /// Removes everything. Readers see entries vanish one after the other.
    pub fn clear(&mut self) {
        let layout = *self.reader.layout();
        for cell in 0..layout.cells() {
            if self.tag(cell) != 0 {
                self.set_tag(cell, 0);
                self.write(cell, Content::EMPTY);
            }
        }
        for home in core::mem::take(&mut self.overflowed).into_keys() {
            cell::set_overflow(self.reader.cell(home), false);
        }
        for word in &self.reader.region().words()[layout.flags_at..layout.cells_at] {
            word.store(0, Ordering::Release);
        }
        self.count_overflow(0);
        self.count_entries(0);
    }

    /// All entries, in the order of their cells.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Entry)> + '_ {
        (0..self.reader.layout().cells()).filter(|cell| self.tag(*cell) != 0).map(|cell| {
            let content = cell::read(self.reader.cell(cell)).expect("only this thread writes");
            (content.key, content.entry)
        })
    }

    /// How it is filled.
    #[must_use]
    pub fn stats(&self) -> TableStats {
        let layout = self.reader.layout();
        let mut distances = [0; NEIGHBOURHOOD as usize];
        for cell in (0..layout.overflow_first).filter(|cell| self.tag(*cell) != 0) {
            distances[usize::from(self.distances[cell as usize])] += 1;
        }
        TableStats {
            entries: self.entries,
            capacity: layout.capacity,
            homes: layout.homes,
            overflow: self.overflow,
            overflow_places: layout.cells() - layout.overflow_first,
            displacements: self.moves / 2,
            distances,
            bytes: layout.words as u64 * 8,
        }
    }

    /// A free cell of the neighbourhood of `home`, made free by displacement if need be.
    fn make_room(&mut self, home: u32) -> Option<u32> {
        let mut empty = self.first_empty(home)?;
        while empty - home >= NEIGHBOURHOOD {
            // All cells from `home` to `empty` are taken. The farthest that may move to `empty`
            // and stay in its own neighbourhood brings the hole nearest.
            let mover = (empty + 1 - NEIGHBOURHOOD..empty).find(|cell| {
                u32::from(self.distances[*cell as usize]) + (empty - cell) < NEIGHBOURHOOD
            })?;
            self.displace(mover, empty);
            empty = mover;
        }
        Some(empty)
    }

    fn first_empty(&self, home: u32) -> Option<u32> {
        let last = self.reader.layout().homes + NEIGHBOURHOOD - 2;
        let last = last.min(home + EMPTY_DISTANCE_MAX);
        let mut cell = home;
        while cell <= last {
            let tags = self.reader.word(Layout::tag_word(cell)).load(Ordering::Relaxed);
            // Cells before `cell` in this word do not count.
            let empty = bytes_equal(tags, 0) & u64::MAX << (cell % 8 * 8);
            if empty != 0 {
                return Some(cell - cell % 8 + empty.trailing_zeros() / 8).filter(|e| *e <= last);
            }
            cell = cell - cell % 8 + 8;
        }
        None
    }

    /// Moves an entry forward: copy, publish the copy, then take the original away.
    fn displace(&mut self, from: u32, to: u32) {
        debug_assert!(from < to && self.tag(to) == 0);
        let moves = self.reader.word(header::MOVES);
        moves.store(self.moves + 1, Ordering::Relaxed);
        // Whoever sees a part of this move sees an odd or a higher count when it looks again.
        fence(Ordering::Release);
        let content = cell::read(self.reader.cell(from)).expect("only this thread writes");
        self.write(to, content);
        self.set_tag(to, self.tag(from));
        self.set_tag(from, 0);
        self.write(from, Content::EMPTY);
        self.distances[to as usize] = self.distances[from as usize] + (to - from) as u8;
        self.moves += 2;
        self.reader.word(header::MOVES).store(self.moves, Ordering::Release);
    }

    fn put_in_overflow(&mut self, home: u32, tag: u8, content: Content) -> Result<(), TableFull> {
        let layout = *self.reader.layout();
        let mut place = None;
        for bucket in layout.buckets_of(home) {
            let tags = self.reader.word(Layout::tag_word(bucket)).load(Ordering::Relaxed);
            let empty = bytes_equal(tags, 0);
            if empty != 0 {
                place = Some(bucket + empty.trailing_zeros() / 8);
                break;
            }
            self.set_bit(layout.spills_at, layout.bucket_number(bucket), true);
        }
        let cell = place.ok_or(TableFull(layout.capacity))?;
        self.write(cell, content);
        self.set_tag(cell, tag);
        *self.overflowed.entry(home).or_default() += 1;
        self.set_bit(layout.flags_at, home, true);
        cell::set_overflow(self.reader.cell(home), true);
        self.count_overflow(self.overflow + 1);
        Ok(())
    }

    fn write(&self, cell: u32, content: Content) {
        cell::write(self.reader.cell(cell), content, self.overflowed.contains_key(&cell));
    }

    fn tag(&self, cell: u32) -> u8 {
        let word = self.reader.word(Layout::tag_word(cell)).load(Ordering::Relaxed);
        (word >> (cell % 8 * 8)) as u8
    }

    fn set_tag(&self, cell: u32, tag: u8) {
        let (word, shift) = (self.reader.word(Layout::tag_word(cell)), cell % 8 * 8);
        let others = word.load(Ordering::Relaxed) & !(0xff << shift);
        word.store(others | u64::from(tag) << shift, Ordering::Release);
    }

    fn set_bit(&self, at: usize, index: u32, value: bool) {
        let word = self.reader.word(at + (index / 64) as usize);
        let others = word.load(Ordering::Relaxed) & !(1 << (index % 64));
        word.store(others | u64::from(value) << (index % 64), Ordering::Release);
    }

    fn count_entries(&mut self, entries: u32) {
        self.entries = entries;
        self.reader.word(header::ENTRIES).store(u64::from(entries), Ordering::Relaxed);
    }

    fn count_overflow(&mut self, overflow: u32) {
        self.overflow = overflow;
        self.reader.word(header::OVERFLOW).store(u64::from(overflow), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
