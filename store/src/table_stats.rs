//! How a table is filled: counts for whoever watches a shard, in its own process or in another.
//!
//! The writer counts from what it keeps beside the table ([`Table::stats`](crate::Table::stats)). A
//! process that only maps the region scans its cells ([`RegionStats::scan`]) and works out each
//! entry's distance from its key; while the writer goes on, such a scan is not of one moment, so
//! its sums need not agree with the header's count. Nothing here is needed to read an entry.

use crate::Key;
use crate::cell::{self, Content};
use crate::layout::{BUCKET_PROBES, Layout, NEIGHBOURHOOD, header};
use crate::lookup::View;
use crate::region::{Backing, Region};
use crate::table_reader::TableReader;
use crate::table_writer::Writer;
use crate::words::Words;
use core::sync::atomic::Ordering;

/// Times a scan looks at a cell that is being written before it counts it as unreadable.
const SCAN_ATTEMPTS: usize = 64;

/// How a table is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableStats {
    /// Entries it holds.
    pub entries: u32,
    /// Entries it was made for.
    pub capacity: u32,
    /// Cells that can be a home; capacity is 80 % of it.
    pub homes: u32,
    /// Entries in the overflow area.
    pub overflow: u32,
    /// Places of the overflow area.
    pub overflow_places: u32,
    /// Entries that were moved since the table was made.
    pub displacements: u64,
    /// How many entries lie how many cells from their home.
    pub distances: [u32; NEIGHBOURHOOD as usize],
    /// How many entries of the overflow area are found in the first bucket that is looked at, how
    /// many in the second, and so on.
    pub probes: [u32; BUCKET_PROBES as usize],
    /// Bytes of the region that the table uses.
    pub bytes: u64,
}

impl TableStats {
    pub(crate) fn of_writer<M: Words>(writer: &Writer<M>) -> Self {
        let view = &writer.view;
        let mut stats = Self::empty(&view.layout);
        stats.entries = writer.entries;
        stats.overflow = writer.overflow;
        stats.displacements = writer.displacements;
        for cell in (0..view.layout.overflow_first).filter(|cell| writer.tag(*cell) != 0) {
            stats.distances[usize::from(writer.distances[cell as usize])] += 1;
        }
        for cell in view.layout.overflow_first..view.layout.cells() {
            if let Some(content) = writer.content(cell) {
                stats.count_probe(view, cell, &content.key);
            }
        }
        stats
    }

    fn empty(layout: &Layout) -> Self {
        Self {
            entries: 0,
            capacity: layout.capacity,
            homes: layout.homes,
            overflow: 0,
            overflow_places: layout.cells() - layout.overflow_first,
            displacements: 0,
            distances: [0; NEIGHBOURHOOD as usize],
            probes: [0; BUCKET_PROBES as usize],
            bytes: layout.words as u64 * 8,
        }
    }

    /// Counts an entry of the overflow area; gives whether it lies where it can be found.
    fn count_probe<M: Words>(&mut self, view: &View<M>, cell: u32, key: &Key) -> bool {
        let home = view.layout.home(view.hash(key));
        let bucket = cell - (cell - view.layout.overflow_first) % 8;
        let probe = view.layout.buckets_of(home).position(|first| first == bucket);
        if let Some(probe) = probe {
            self.probes[probe] += 1;
        }
        probe.is_some()
    }

    /// Bytes of the region for each entry that it holds at the moment.
    #[must_use]
    pub fn bytes_per_entry(&self) -> f64 {
        self.bytes as f64 / f64::from(self.entries.max(1))
    }
}

/// What a process that maps a region can tell about the table in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionStats {
    /// As counted cell by cell.
    pub table: TableStats,
    /// Entries that the writer says there are.
    pub entries_counted: u64,
    /// Cells that were being written whenever they were looked at, or do not fit their checksums.
    pub unreadable: u32,
    /// Entries that lie where no lookup finds them: always 0, unless the region is damaged or the
    /// entry was moved under the scan.
    pub misplaced: u32,
    /// Whose the content is; see [`TableReader::generation`].
    pub generation: u64,
    /// The kind of memory that this mapping has.
    pub backing: Backing,
}

impl RegionStats {
    /// Scans a table beside its writer. Reads every tag and every cell that is not empty: some
    /// 20 ms a million entries. A damaged region gives wrong counts and nothing worse.
    #[must_use]
    pub fn scan(reader: &TableReader) -> Self {
        let (view, region) = (reader.view(), reader.region());
        let mut stats = Self {
            table: TableStats::empty(&view.layout),
            entries_counted: reader.entries(),
            unreadable: 0,
            misplaced: 0,
            generation: reader.generation(),
            backing: region.backing(),
        };
        stats.table.displacements = reader.word(header::DISPLACEMENTS).load(Ordering::Relaxed);
        for first in (0..view.layout.cells()).step_by(8) {
            let tags = view.word(Layout::tag_word(first)).load(Ordering::Acquire);
            for place in (0..8).filter(|place| (tags >> (place * 8)) as u8 != 0) {
                stats.count(view, first + place);
            }
        }
        stats
    }

    fn count(&mut self, view: &View<Region>, cell: u32) {
        let content = (0..SCAN_ATTEMPTS).find_map(|_| cell::read_verified(view.cell(cell)).ok());
        let Some(Content { key, .. }) = content else {
            self.unreadable += 1;
            return;
        };
        if key.kind() == 0 {
            // It went between the look at its tag and the look at its cell.
            return;
        }
        self.table.entries += 1;
        if cell >= view.layout.overflow_first {
            self.table.overflow += 1;
            self.misplaced += u32::from(!self.table.count_probe(view, cell, &key));
            return;
        }
        let distance = cell.wrapping_sub(view.layout.home(view.hash(&key)));
        match self.table.distances.get_mut(distance as usize) {
            Some(count) => *count += 1,
            None => self.misplaced += 1,
        }
    }
}
