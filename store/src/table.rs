//! A shard's table, seen by its one writer, in a region that others read meanwhile.
//!
//! A table made for `capacity` entries takes just so many, whatever the hash key: fullness is the
//! same on all replicas. How a region is laid out stands in [`crate::layout`], how places are found
//! for entries in `table_writer`, how readers stay right in `lookup`, how a cell
//! is written in [`crate::cell`]. Nothing but applied, committed values is ever put here.

use crate::Entry;
use crate::cell::Content;
use crate::key::{Key, Value};
use crate::layout::{LAYOUT_VERSION, Layout, MAGIC, header};
use crate::lifetimes::{BESIDE_BYTES, Life, Lifetimes};
use crate::region::Region;
use crate::slot_set::SlotSet;
use crate::table_reader::{RegionIdentity, TableError, TableReader};
use crate::table_stats::TableStats;
use crate::table_writer::{Scan, Writer};
use crate::tally::Tally;
use crate::timer_wheel::Turned;
use crate::types::{ShardId, SlotId, Time, Version};
use core::sync::atomic::Ordering;
use std::sync::Arc;
use thiserror::Error;

/// The table holds as many entries as it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the table holds all the {0} entries that it was made for")]
pub struct TableFull(pub u32);

/// The writer of a table. There is one at a time.
#[derive(Debug)]
pub struct Table {
    reader: TableReader,
    writer: Writer<Region>,
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
        let lives = Lifetimes::new(layout.cells()).map_err(|_| TableError::NoMemory {
            wanted: u64::from(layout.cells()) * BESIDE_BYTES as u64,
        })?;
        let reader = TableReader::open(region, identity)?.with_marks(lives.marks().cloned());
        let mut writer = Writer::new(reader.view().clone());
        writer.lives = lives;
        Ok(Self { reader, writer })
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
        self.writer.entries
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.writer.entries == 0
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

    /// Says whether the shard holds a slot; see [`TableReader::holds`].
    pub fn set_held(&self, slot: SlotId, holds: bool) {
        let word = self.reader.word(header::HELD + usize::from(slot.0) / 64);
        let others = word.load(Ordering::Relaxed) & !(1 << (slot.0 % 64));
        word.store(others | u64::from(holds) << (slot.0 % 64), Ordering::Release);
    }

    /// Says that the shard holds these slots and no others.
    pub(crate) fn hold_only(&self, slots: &SlotSet) {
        for slot in (0..slots.slot_count()).map(|slot| SlotId(slot as u16)) {
            self.set_held(slot, slots.contains(slot));
        }
    }

    /// Says which slot is on its way, and where to; see [`TableReader::whither`].
    pub(crate) fn set_leaving(&self, leaving: Option<(SlotId, ShardId)>) {
        let word = leaving.map_or(0, |(slot, to)| {
            header::LEAVING_MARK | u64::from(to.0) << 16 | u64::from(slot.0)
        });
        self.reader.word(header::LEAVING).store(word, Ordering::Release);
    }

    /// A scan over the entries of a slot begins; there is one at a time.
    pub(crate) fn begin_scan(&mut self, slot: SlotId) {
        self.writer.scan = Some(Scan { slot, next: 0, displaced: Vec::new() });
    }

    /// Nobody scans any more.
    pub(crate) fn end_scan(&mut self) {
        self.writer.scan = None;
    }

    /// Goes on with the scan: looks at up to `cells` cells and gives up to `entries` entries, and
    /// the keys of those that were moved past the scan meanwhile. Whether it is through.
    pub(crate) fn scan_on(
        &mut self,
        cells: u32,
        entries: usize,
        displaced: &mut Vec<Key>,
        mut give: impl FnMut(Key, Entry, Life),
    ) -> bool {
        let Some(mut scan) = self.writer.scan.take() else { return true };
        displaced.append(&mut scan.displaced);
        let all = self.cells();
        let end = scan.next.saturating_add(cells).min(all);
        let mut given = 0;
        while scan.next < end && given < entries {
            if let Some(content) = self.writer.content(scan.next)
                && content.entry.slot == scan.slot
            {
                give(content.key, content.entry, self.writer.lives.life(scan.next));
                given += 1;
            }
            scan.next += 1;
        }
        let is_through = scan.next == all;
        self.writer.scan = Some(scan);
        is_through
    }

    /// The same for whoever decides about ownership, while the machine has the table.
    #[must_use]
    pub fn generation_cell(&self) -> GenerationCell {
        GenerationCell(self.reader.clone())
    }

    /// First step towards an entry that is to be changed: draws the tags near that tell its place.
    pub fn prefetch_tags(&self, key: &Key) {
        self.writer.view.prefetch_tags(self.writer.view.hash(key));
    }

    /// Second step: draws the place near where the entry is, or where it will probably come.
    pub fn prefetch_place(&self, key: &Key) {
        self.writer.prefetch_place(key);
    }

    /// The entry of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.writer.find(key).map(|(_, entry)| entry)
    }

    /// Sets the entry of a key. If it is new it lives until it is removed.
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
        let entry = Entry { value: *value, version, slot };
        self.writer.put(Content { key: *key, entry }).map(|_| ())
    }

    /// Sets the entry of a key, seen at `seen_ms`; `ttl_s` is its lifetime from now on, `None`
    /// leaves what it has.
    ///
    /// # Errors
    /// If the key is new and the table full.
    pub(crate) fn put_living(
        &mut self,
        key: &Key,
        entry: Entry,
        ttl_s: Option<u32>,
        seen_ms: u64,
    ) -> Result<(), TableFull> {
        let cell = self.writer.put(Content { key: *key, entry })?;
        let ttl_s = ttl_s.unwrap_or_else(|| self.writer.lives.life(cell).ttl_s());
        self.writer.lives.set(cell, Life::new(ttl_s, seen_ms));
        Ok(())
    }

    /// The entry of a key, and how long it lives.
    #[must_use]
    pub fn get_living(&self, key: &Key) -> Option<(Entry, Life)> {
        let (cell, entry) = self.writer.find(key)?;
        Some((entry, self.writer.lives.life(cell)))
    }

    /// An entry was seen then, and `tally` is counted from word `at` of its value on. Nothing
    /// happens if there is none; one that lives for ever is only counted at.
    pub(crate) fn note_seen(&mut self, key: &Key, seen_ms: u64, (tally, at): (Tally, usize)) {
        let Some((cell, mut entry)) = self.writer.find(key) else { return };
        let life = self.writer.lives.life(cell);
        if life != Life::ENDLESS {
            self.writer.lives.set(cell, life.seen_at(seen_ms));
        }
        if tally.is_zero() {
            return;
        }
        if let Some([packets, bytes]) =
            entry.value.0.get_mut(at..).and_then(<[u64]>::first_chunk_mut)
        {
            *packets = packets.saturating_add(tally.packets());
            *bytes = bytes.saturating_add(tally.bytes());
            self.writer.write(cell, Content { key: *key, entry });
        }
    }

    /// Life and last mark of a key's entry.
    pub(crate) fn seen(&self, key: &Key) -> Option<(Entry, Life, Option<Time>)> {
        let (cell, entry) = self.writer.find(key)?;
        let lives = &self.writer.lives;
        Some((entry, lives.life(cell), lives.marks().and_then(|marks| marks.get(cell))))
    }

    /// Brings the timer of a key's entry up at `at_ms`.
    pub(crate) fn arm(&mut self, key: &Key, at_ms: u64, now_ms: u64) {
        if let Some((cell, _)) = self.writer.find(key) {
            self.writer.lives.arm(cell, at_ms, now_ms);
        }
    }

    /// Turns the wheel of timers to `now_ms`, looking at no more than `steps_max` timers. `due_ms`
    /// says when an entry with this life and this mark is due now; those that are, are given to
    /// `due`, and their timers come up again a little later.
    pub(crate) fn turn_timers(
        &mut self,
        now_ms: u64,
        steps_max: u32,
        due_ms: impl Fn(Life, Option<Time>) -> u64,
        mut due: impl FnMut(Key, Entry),
    ) -> Turned {
        let mut lives = core::mem::take(&mut self.writer.lives);
        let turned = lives.turn(now_ms, steps_max, due_ms, |cell| {
            let content = self.writer.content(cell).expect("only a cell with an entry is armed");
            due(content.key, content.entry);
        });
        self.writer.lives = lives;
        turned
    }

    /// Timers that are armed.
    #[must_use]
    pub fn timers(&self) -> u32 {
        self.writer.lives.armed()
    }

    /// Cells, empty ones too.
    pub(crate) fn cells(&self) -> u32 {
        self.writer.view.layout.cells()
    }

    /// The first cell from `first` on and before `end` that has a mark; `end` if none has.
    pub(crate) fn first_marked(&self, first: u32, end: u32) -> u32 {
        self.writer.lives.marks().map_or(end, |marks| marks.first_from(first, end))
    }

    /// The entry of a cell if it has a lifetime and `wanted` says so of its life and mark, or if
    /// something was counted at it and is to be told now, or soon. That is then taken.
    pub(crate) fn take_marked(
        &self,
        cell: u32,
        wanted: impl FnOnce(Life, Time) -> bool,
        tells_tally: bool,
    ) -> Option<(Key, Time, Tally)> {
        let (lives, marks) = (&self.writer.lives, self.writer.lives.marks()?);
        let mark = marks.get(cell)?;
        let (life, tally) = (lives.life(cell), marks.tally(cell));
        let is_due = tally.is_large() || tells_tally && !tally.is_zero();
        if !is_due && (life == Life::ENDLESS || !wanted(life, mark)) {
            return None;
        }
        let content = self.writer.content(cell)?;
        Some((content.key, mark, marks.take_tally(cell)))
    }

    /// Removes the entry of a key and gives it back.
    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        self.writer.remove(key)
    }

    /// Removes everything. Readers see entries vanish one after the other.
    pub fn clear(&mut self) {
        self.writer.clear();
    }

    /// All entries, in the order of their cells.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Entry)> + '_ {
        let contents =
            (0..self.writer.view.layout.cells()).filter_map(|cell| self.writer.content(cell));
        contents.map(|content| (content.key, content.entry))
    }

    /// All entries with their lives, in the order of their cells.
    pub fn iter_living(&self) -> impl Iterator<Item = (Key, Entry, Life)> + '_ {
        (0..self.cells()).filter_map(|cell| {
            let content = self.writer.content(cell)?;
            Some((content.key, content.entry, self.writer.lives.life(cell)))
        })
    }

    /// How it is filled. Scans the tags.
    #[must_use]
    pub fn stats(&self) -> TableStats {
        TableStats::of_writer(&self.writer)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
