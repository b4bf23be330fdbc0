//! The writer's half of a table: hopscotch hashing that keeps entries near their homes at 80 %
//! fill, however many come and go.
//!
//! A new key takes a free cell of its neighbourhood. When there is none, entries are moved until
//! there is one: forward towards a hole behind the neighbourhood, or backward towards a hole before
//! it. When that cannot be done either, the key goes to the overflow area and its home is flagged.
//! Whenever a cell becomes free, an entry that lies in the overflow area and has its home around
//! there is brought back. Without the last two steps 6 % of the entries would lie in the overflow
//! area in the long run; with them it is about 0.8 %.
//!
//! One thread writes. Every move follows the protocol that [`crate::lookup`] relies on: the home's
//! counter odd, copy, original away, counter even.

use crate::Entry;
use crate::cell::{self, Content};
use crate::key::Key;
use crate::layout::{Layout, NEIGHBOURHOOD, bytes_equal, header, tag};
use crate::lifetimes::Lifetimes;
use crate::lookup::View;
use crate::region::draw_bytes_near;
use crate::table::TableFull;
use crate::types::SlotId;
use crate::words::{Word, Words};
use arrayvec::ArrayVec;
use core::ops::RangeInclusive;
use core::sync::atomic::Ordering;
use std::collections::BTreeMap;

/// How far from a neighbourhood a hole is looked for, to be brought near by moving entries.
const HOLE_DISTANCE_MAX: u32 = 128;
/// How far from a cell that became free the homes may lie whose overflow entries are brought back.
const REPAIR_DISTANCE: u32 = 64;
/// Homes that are tried for one cell that became free.
const REPAIR_ATTEMPTS: usize = 4;

/// Moves (from, to) that bring a hole into a neighbourhood, in their order: each step brings it at
/// least one cell nearer.
type Moves = ArrayVec<(u32, u32), { HOLE_DISTANCE_MAX as usize + NEIGHBOURHOOD as usize }>;

/// A scan over the entries of a slot, cell by cell, while entries come, go and are moved.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) slot: SlotId,
    /// The cells before this one have been looked at.
    pub(crate) next: u32,
    /// Keys of the slot that were moved from there on to before it.
    pub(crate) displaced: Vec<Key>,
}

/// Writes a table in some memory. There is one at a time.
#[derive(Debug)]
pub(crate) struct Writer<M> {
    pub(crate) view: View<M>,
    /// Of each cell that is no overflow cell: how far its entry lies from its home.
    pub(crate) distances: Box<[u8]>,
    /// Homes that have keys in the overflow area, and how many.
    overflowed: BTreeMap<u32, u32>,
    pub(crate) entries: u32,
    pub(crate) overflow: u32,
    pub(crate) displacements: u64,
    /// Goes along with whatever is moved or ends.
    pub(crate) lives: Lifetimes,
    pub(crate) scan: Option<Scan>,
    /// Entries of each slot; as long as the highest slot that ever had one.
    pub(crate) of_slot: Vec<u32>,
}

impl<M: Words> Writer<M> {
    /// The writer of an empty table.
    pub(crate) fn new(view: View<M>) -> Self {
        let distances = vec![0; view.layout.overflow_first as usize].into_boxed_slice();
        let overflowed = BTreeMap::new();
        let lives = Lifetimes::default();
        Self {
            view,
            distances,
            overflowed,
            entries: 0,
            overflow: 0,
            displacements: 0,
            lives,
            scan: None,
            of_slot: Vec::new(),
        }
    }

    pub(crate) fn find(&self, key: &Key) -> Option<(u32, Entry)> {
        self.find_hashed(key, self.view.hash(key))
    }

    fn find_hashed(&self, key: &Key, hash: u64) -> Option<(u32, Entry)> {
        // Nobody else writes, so the first attempt is stable.
        self.view.look(key, hash, false).expect("only this thread writes")
    }

    /// Draws near what a change of this key's entry will touch, if it lies or comes where its tags
    /// say.
    pub(crate) fn prefetch_place(&self, key: &Key) {
        let hash = self.view.hash(key);
        let home = self.view.layout.home(hash);
        let window = self.view.window(home);
        let fitting = match bytes_equal(window, tag(hash)) {
            0 => bytes_equal(window, 0),
            fitting => fitting,
        };
        if fitting != 0 {
            let cell = home + fitting.trailing_zeros() / 8;
            self.view.prefetch_lines(cell);
            self.lives.prefetch(cell);
            if let Some(distance) = self.distances.get(cell as usize..) {
                draw_bytes_near(distance);
            }
        }
    }

    /// Sets the entry of a key; gives its cell.
    pub(crate) fn put(&mut self, content: Content) -> Result<u32, TableFull> {
        assert!(content.key.kind() != 0, "kind 0 marks an empty cell");
        assert!(content.entry.version.0 <= cell::VERSION_MAX, "versions have 48 bits");
        let hash = self.view.hash(&content.key);
        let slot = content.entry.slot;
        if let Some((cell, before)) = self.find_hashed(&content.key, hash) {
            self.write(cell, content);
            self.count_of_slot(before.slot, slot);
            return Ok(cell);
        }
        let capacity = self.view.layout.capacity;
        if self.entries >= capacity {
            return Err(TableFull(capacity));
        }
        let home = self.view.layout.home(hash);
        let cell = match self.make_room(home) {
            Some(cell) => {
                self.occupy(cell, home, tag(hash), content);
                cell
            }
            None => self.put_in_overflow(home, tag(hash), content)?,
        };
        self.count_entries(self.entries + 1);
        *self.place_of_slot(slot) += 1;
        Ok(cell)
    }

    /// An entry of one slot is one of another now.
    fn count_of_slot(&mut self, before: SlotId, now: SlotId) {
        if before != now {
            *self.place_of_slot(before) -= 1;
            *self.place_of_slot(now) += 1;
        }
    }

    fn place_of_slot(&mut self, slot: SlotId) -> &mut u32 {
        let at = usize::from(slot.0);
        if at >= self.of_slot.len() {
            self.of_slot.resize(at + 1, 0);
        }
        &mut self.of_slot[at]
    }

    /// Removes the entry of a key and gives it back.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Entry> {
        let hash = self.view.hash(key);
        let (cell, entry) = self.find_hashed(key, hash)?;
        self.vacate(cell);
        self.lives.ended(cell);
        self.count_entries(self.entries - 1);
        *self.place_of_slot(entry.slot) -= 1;
        if cell >= self.view.layout.overflow_first {
            self.leave_overflow(self.view.layout.home(hash));
        } else if self.overflow != 0 {
            self.repair(cell);
        }
        Some(entry)
    }

    /// Removes everything. Readers see entries vanish one after the other.
    pub(crate) fn clear(&mut self) {
        let layout = self.view.layout;
        for cell in (0..layout.cells()).filter(|cell| self.tag(*cell) != 0).collect::<Vec<_>>() {
            self.vacate(cell);
            self.lives.ended(cell);
        }
        for home in core::mem::take(&mut self.overflowed).into_keys() {
            cell::set_overflow(self.view.cell(home), false);
        }
        for word in &self.view.memory.words()[layout.flags_at..layout.cells_at] {
            word.store(0, Ordering::Release);
        }
        self.count_overflow(0);
        self.count_entries(0);
        self.of_slot.clear();
    }

    /// What a cell holds, if it is not empty.
    pub(crate) fn content(&self, cell: u32) -> Option<Content> {
        if self.tag(cell) == 0 {
            return None;
        }
        Some(cell::read(self.view.cell(cell)).expect("only this thread writes"))
    }

    /// A free cell of the neighbourhood of `home`, made free by moving entries if need be.
    fn make_room(&mut self, home: u32) -> Option<u32> {
        if let Some(empty) = self.hole_behind(home, home + NEIGHBOURHOOD - 1) {
            return Some(empty);
        }
        let (moves, room) = self.forward(home).or_else(|| self.backward(home))?;
        for (from, to) in moves {
            self.displace(from, to);
        }
        Some(room)
    }

    /// The moves that bring the next hole behind a full neighbourhood forward into it.
    fn forward(&self, home: u32) -> Option<(Moves, u32)> {
        let last = self.view.layout.homes + NEIGHBOURHOOD - 2;
        let first = home + NEIGHBOURHOOD;
        let mut hole = self.hole_behind(first, last.min(home + HOLE_DISTANCE_MAX))?;
        let mut moves = Moves::new();
        while hole - home >= NEIGHBOURHOOD {
            // All cells from `home` to the hole are taken. The farthest that may move to the hole
            // and stay in its own neighbourhood brings it nearest.
            let mover = (hole + 1 - NEIGHBOURHOOD..hole).find(|cell| {
                u32::from(self.distances[*cell as usize]) + (hole - cell) < NEIGHBOURHOOD
            })?;
            moves.push((mover, hole));
            hole = mover;
        }
        Some((moves, hole))
    }

    /// The moves that bring the next hole before a full neighbourhood back into it.
    fn backward(&self, home: u32) -> Option<(Moves, u32)> {
        let mut hole = self.hole_before(home)?;
        let mut moves = Moves::new();
        while hole < home {
            let mover = (hole + 1..hole + NEIGHBOURHOOD).rev().find(|cell| {
                self.tag(*cell) != 0 && u32::from(self.distances[*cell as usize]) >= cell - hole
            })?;
            moves.push((mover, hole));
            hole = mover;
        }
        Some((moves, hole))
    }

    /// The first empty cell from `first` to `last`.
    fn hole_behind(&self, first: u32, last: u32) -> Option<u32> {
        let mut cell = first;
        while cell <= last {
            let tags = self.view.word(Layout::tag_word(cell)).load(Ordering::Relaxed);
            // Cells before `cell` in this word do not count.
            let empty = bytes_equal(tags, 0) & u64::MAX << (cell % 8 * 8);
            if empty != 0 {
                return Some(cell - cell % 8 + empty.trailing_zeros() / 8).filter(|e| *e <= last);
            }
            cell = cell - cell % 8 + 8;
        }
        None
    }

    /// The last empty cell before `home`.
    fn hole_before(&self, home: u32) -> Option<u32> {
        let mut end = home;
        let first = home.saturating_sub(HOLE_DISTANCE_MAX);
        while end > first {
            let tags = self.view.word(Layout::tag_word(end - 1)).load(Ordering::Relaxed);
            let start = (end - 1) / 8 * 8;
            // Cells from `end` on in this word do not count.
            let empty = bytes_equal(tags, 0) & u64::MAX >> ((8 - (end - start)) * 8);
            if empty != 0 {
                let hole = start + 7 - empty.leading_zeros() / 8;
                return Some(hole).filter(|hole| *hole >= first);
            }
            end = start;
        }
        None
    }

    /// Moves an entry within its neighbourhood.
    fn displace(&mut self, from: u32, to: u32) {
        debug_assert!(from != to && self.tag(to) == 0);
        let distance = u32::from(self.distances[from as usize]);
        self.relocate(from, to, from - distance);
    }

    /// Moves an entry of `home`: copy, publish the copy, then take the original away.
    fn relocate(&mut self, from: u32, to: u32, home: u32) {
        let content = cell::read(self.view.cell(from)).expect("only this thread writes");
        let counter = Layout::moves_word(home);
        let moves = self.view.word(counter).load(Ordering::Relaxed);
        self.view.word(counter).store(moves | 1, Ordering::Relaxed);
        // Whoever sees a part of this move sees an odd or a higher count when it looks again.
        M::Word::fence(Ordering::Release);
        self.occupy(to, home, self.tag(from), content);
        self.vacate(from);
        self.lives.moved(from, to);
        if from >= self.view.layout.overflow_first {
            self.leave_overflow(home);
        }
        self.view.word(counter).store((moves | 1).wrapping_add(1), Ordering::Release);
        if let Some(scan) = self.scan.as_mut().filter(|scan| to < scan.next && scan.next <= from)
            && content.entry.slot == scan.slot
        {
            scan.displaced.push(content.key);
        }
        self.displacements += 1;
        self.view.word(header::DISPLACEMENTS).store(self.displacements, Ordering::Relaxed);
    }

    /// Brings an entry back from the overflow area, now that `hole` is free: first one that may lie
    /// there itself, then one of a home near enough to make room for.
    #[cold]
    fn repair(&mut self, hole: u32) {
        let direct = (hole + 1).saturating_sub(NEIGHBOURHOOD)..=hole;
        let around = hole.saturating_sub(REPAIR_DISTANCE)..=hole + REPAIR_DISTANCE;
        let far = self.flagged(around).filter(|home| !direct.contains(home));
        let found: ArrayVec<u32, REPAIR_ATTEMPTS> =
            self.flagged(direct.clone()).chain(far).take(REPAIR_ATTEMPTS).collect();
        for home in found {
            if let Some(room) = self.make_room(home) {
                let from = self.overflow_cell_of(home).expect("a flagged home has a key there");
                self.relocate(from, room, home);
                return;
            }
        }
    }

    /// The homes of a range that have keys in the overflow area.
    fn flagged(&self, homes: RangeInclusive<u32>) -> impl Iterator<Item = u32> + '_ {
        let last = (*homes.end()).min(self.view.layout.homes - 1);
        (homes.start() / 64..=last / 64).flat_map(move |word| {
            let at = self.view.layout.flags_at + word as usize;
            let mut bits = self.view.word(at).load(Ordering::Relaxed);
            let homes = homes.clone();
            core::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                bits &= bits.checked_sub(1)?;
                Some(word * 64 + bit)
            })
            .filter(move |home| homes.contains(home))
        })
    }

    /// A cell of the overflow area that holds a key of this home.
    fn overflow_cell_of(&self, home: u32) -> Option<u32> {
        let layout = &self.view.layout;
        layout.buckets_of(home).flat_map(|bucket| bucket..bucket + 8).find(|cell| {
            let content = self.content(*cell);
            content.is_some_and(|content| layout.home(self.view.hash(&content.key)) == home)
        })
    }

    fn put_in_overflow(&mut self, home: u32, tag: u8, content: Content) -> Result<u32, TableFull> {
        let layout = self.view.layout;
        let mut place = None;
        for bucket in layout.buckets_of(home) {
            let tags = self.view.word(Layout::tag_word(bucket)).load(Ordering::Relaxed);
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
        cell::set_overflow(self.view.cell(home), true);
        self.count_overflow(self.overflow + 1);
        Ok(cell)
    }

    /// One key of this home is no longer in the overflow area.
    fn leave_overflow(&mut self, home: u32) {
        self.count_overflow(self.overflow - 1);
        let left = self.overflowed.get_mut(&home).expect("the home was counted");
        *left -= 1;
        if *left == 0 {
            self.overflowed.remove(&home);
            self.set_bit(self.view.layout.flags_at, home, false);
            cell::set_overflow(self.view.cell(home), false);
        }
    }

    /// Fills a free cell of a neighbourhood.
    fn occupy(&mut self, cell: u32, home: u32, tag: u8, content: Content) {
        self.distances[cell as usize] = (cell - home) as u8;
        self.write(cell, content);
        self.set_tag(cell, tag);
    }

    fn vacate(&self, cell: u32) {
        self.set_tag(cell, 0);
        self.write(cell, Content::EMPTY);
    }

    pub(crate) fn write(&self, cell: u32, content: Content) {
        cell::write(self.view.cell(cell), content);
    }

    pub(crate) fn tag(&self, cell: u32) -> u8 {
        let word = self.view.word(Layout::tag_word(cell)).load(Ordering::Relaxed);
        (word >> (cell % 8 * 8)) as u8
    }

    fn set_tag(&self, cell: u32, tag: u8) {
        let (word, shift) = (self.view.word(Layout::tag_word(cell)), cell % 8 * 8);
        let others = word.load(Ordering::Relaxed) & !(0xff << shift);
        word.store(others | u64::from(tag) << shift, Ordering::Release);
    }

    fn set_bit(&self, at: usize, index: u32, value: bool) {
        let word = self.view.word(at + (index / 64) as usize);
        let others = word.load(Ordering::Relaxed) & !(1 << (index % 64));
        word.store(others | u64::from(value) << (index % 64), Ordering::Release);
    }

    fn count_entries(&mut self, entries: u32) {
        self.entries = entries;
        self.view.word(header::ENTRIES).store(u64::from(entries), Ordering::Relaxed);
    }

    fn count_overflow(&mut self, overflow: u32) {
        self.overflow = overflow;
        self.view.word(header::OVERFLOW).store(u64::from(overflow), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "table_model.rs"]
mod model;
