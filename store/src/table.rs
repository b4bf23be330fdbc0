//! A shard's table, seen by its one writer, in a region that others read meanwhile.
//!
//! A table made for `capacity` entries takes just so many, whatever the hash key: fullness is the
//! same on all replicas. How a region is laid out stands in [`crate::layout`], how places are found
//! for entries in [`crate::table_writer`], how readers stay right in [`crate::lookup`], how a cell
//! is written in [`crate::cell`]. Nothing but applied, committed values is ever put here.

use crate::Entry;
use crate::cell::Content;
use crate::key::{Key, Value};
use crate::layout::{LAYOUT_VERSION, Layout, MAGIC, header};
use crate::region::Region;
use crate::table_reader::{RegionIdentity, TableError, TableReader};
use crate::table_stats::TableStats;
use crate::table_writer::Writer;
use crate::types::{SlotId, Version};
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
        let reader = TableReader::open(region, identity)?;
        let writer = Writer::new(reader.view().clone());
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

    /// The same for whoever decides about ownership, while the machine has the table.
    #[must_use]
    pub fn generation_cell(&self) -> GenerationCell {
        GenerationCell(self.reader.clone())
    }

    /// The entry of a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.writer.find(key).map(|(_, entry)| entry)
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
        let entry = Entry { value: *value, version, slot };
        self.writer.put(Content { key: *key, entry })
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

    /// How it is filled. Scans the tags.
    #[must_use]
    pub fn stats(&self) -> TableStats {
        TableStats::of_writer(&self.writer)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
