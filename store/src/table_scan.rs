//! Lists the entries of a table beside its writer, cell by cell, a piece at a time.
//!
//! Each entry that is listed was there, whole, at some moment of the scan; the list as a whole is
//! not of one moment: an entry that is moved meanwhile may be missed or stand in it twice. A
//! damaged region gives wrong or fewer entries and nothing worse. It never waits for the writer.

use crate::Entry;
use crate::cell;
use crate::key::Key;
use crate::layout::Layout;
use crate::table_reader::TableReader;
use crate::types::SlotId;
use core::sync::atomic::Ordering;

/// Times a scan looks at a cell that is being written before it passes it over.
const ATTEMPTS: usize = 64;
/// Cells that one tag word stands for.
const GROUP: u32 = 8;

/// An entry and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedEntry {
    /// Its key.
    pub key: Key,
    /// What it holds.
    pub entry: Entry,
}

/// A piece of a scan: at most so many entries, from so many cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableScan {
    /// The cell to begin at: 0, or where the piece before ended.
    pub from: u32,
    /// Entries to list at most.
    pub entries_max: usize,
    /// Cells to look at, at most (rounded up to the next eight).
    pub cells_max: u32,
    /// Only entries of this slot.
    pub slot: Option<SlotId>,
}

impl TableScan {
    /// Lists entries, and says where the next piece begins; `None` after the last cell.
    #[must_use]
    pub fn run(&self, reader: &TableReader) -> (Vec<ScannedEntry>, Option<u32>) {
        let view = reader.view();
        let cells = view.layout.cells();
        let end = self.from.saturating_add(self.cells_max).min(cells);
        let mut found = Vec::new();
        let mut at = self.from;
        while at < end {
            if found.len() >= self.entries_max {
                return (found, Some(at));
            }
            let first = at - at % GROUP;
            let tags = view.word(Layout::tag_word(first)).load(Ordering::Acquire);
            if tags == 0 {
                at = first + GROUP;
                continue;
            }
            if (tags >> ((at % GROUP) * 8)) as u8 != 0 {
                found.extend(self.wanted(reader, at));
            }
            at += 1;
        }
        (found, (at < cells).then_some(at))
    }

    fn wanted(&self, reader: &TableReader, cell: u32) -> Option<ScannedEntry> {
        let words = reader.view().cell(cell);
        let content = (0..ATTEMPTS).find_map(|_| cell::read_verified(words).ok())?;
        // It may have gone between the look at its tag and the look at its cell.
        let is_wanted =
            content.key.kind() != 0 && self.slot.is_none_or(|slot| slot == content.entry.slot);
        is_wanted.then_some(ScannedEntry { key: content.key, entry: content.entry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Value;
    use crate::region::Region;
    use crate::table::Table;
    use crate::table_reader::RegionIdentity;
    use crate::types::{ShardId, Version};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    const ALL: TableScan = TableScan { from: 0, entries_max: 7, cells_max: 100, slot: None };

    fn keys(reader: &TableReader, mut scan: TableScan) -> (BTreeSet<Key>, usize) {
        let (mut keys, mut listed) = (BTreeSet::new(), 0);
        loop {
            let (found, next) = scan.run(reader);
            assert!(found.len() <= scan.entries_max);
            listed += found.len();
            keys.extend(found.iter().map(|found| found.key));
            match next {
                Some(next) => scan.from = next,
                None => return (keys, listed),
            }
        }
    }

    #[test]
    fn pieces_together_list_every_entry_once() {
        let capacity = 1000;
        let region = Region::anonymous(Table::bytes_for(capacity).unwrap()).unwrap();
        let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
        let mut table = Table::format(Arc::new(region), identity, capacity, 3).unwrap();
        let reader = table.reader();
        assert_eq!(keys(&reader, ALL), (BTreeSet::new(), 0));
        let all: BTreeSet<Key> = (0..900).map(|n| Key([1, n, 0, 0, 0])).collect();
        for (number, key) in (0..).zip(&all) {
            table.put(key, &Value::ZERO, Version(number), SlotId(number as u16 % 4)).unwrap();
        }
        assert_eq!(keys(&reader, ALL), (all, 900));
        let (of_slot, listed) = keys(&reader, TableScan { slot: Some(SlotId(2)), ..ALL });
        assert_eq!((of_slot.len(), listed), (225, 225));
        assert!(of_slot.iter().all(|key| reader.get(key).unwrap().slot == SlotId(2)));
        let beyond = TableScan { from: u32::MAX, ..ALL };
        assert_eq!(beyond.run(&reader), (Vec::new(), None));
    }
}
