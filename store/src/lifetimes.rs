//! How long the entries of a table live, and when they were last seen: beside the table, by cell.
//!
//! Four arrays, and nothing in the cells themselves. *Lives* (a lifetime and the replicated time
//! at which the entry was last seen) are hard state: the log alone changes them, snapshots and
//! state hashes hold them. *Marks* are soft: whoever reads an entry in place, on behalf of a packet
//! that keeps it alive, leaves the time there with one store; between two ticks of [`MARK_NS`] not
//! even that. The *wheel* has a timer for each entry with a lifetime, is armed by the lives and
//! looks at the marks only when a timer comes up ([`crate::timer_wheel`]). *Tallies* are soft too:
//! what packets were counted at an entry since the owner last told the others.
//!
//! An entry that is moved takes all three along. A mark that is left at that very moment is not
//! lost: the reader leaves it, then looks whether anything of its home has moved since it looked
//! the entry up, and if so begins again; the writer counts the move, then takes the mark along.
//! Between the two steps of each stands a full fence, so one of them sees the other. (A packet that
//! is counted at that very moment may count for nobody, or for what comes to lie there next.)
//!
//! It reads no clock and decides nothing about expiry (`flow_upkeep` does).

use crate::region::{Region, RegionError};
use crate::tally::Tally;
use crate::timer_wheel::{TimerWheel, Turned};
use crate::types::Time;
use crate::word_array::WordArray;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::Arc;

/// How fine marks are, and timers: 2^26 ns, about 67 ms.
pub const MARK_NS: u64 = 1 << MARK_BITS;
const MARK_BITS: u32 = 26;
/// The longest lifetime: a little over twelve days.
pub const TTL_MAX_S: u32 = (1 << TTL_BITS) - 1;
const TTL_BITS: u32 = 20;
const SEEN_MS_MAX: u64 = (1 << (u64::BITS - TTL_BITS)) - 1;
/// Width of a tick of the wheel.
const TICK_MS: u64 = 64;
/// When a timer that was due comes up again if its entry is still there: its expiry was proposed,
/// and what came of it is unknown.
const AGAIN_TICKS: u64 = 2_000 / TICK_MS;

/// Marks that are looked at together.
const MARKS_AT_ONCE: usize = 16;

/// An entry's lifetime, and when it was last seen as far as all replicas know, in the shard's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life(u64);

impl Life {
    /// Lives until it is deleted.
    pub const ENDLESS: Self = Self(0);

    /// A life of `ttl_s` seconds from when the entry was last seen; 0 is without end.
    ///
    /// # Panics
    /// If it is longer than [`TTL_MAX_S`]: the caller checks.
    #[must_use]
    pub fn new(ttl_s: u32, seen_ms: u64) -> Self {
        assert!(ttl_s <= TTL_MAX_S, "a lifetime of {ttl_s} s");
        if ttl_s == 0 {
            return Self::ENDLESS;
        }
        Self(seen_ms.min(SEEN_MS_MAX) << TTL_BITS | u64::from(ttl_s))
    }

    /// Seconds that it lives after it was last seen; 0 is without end.
    #[must_use]
    pub const fn ttl_s(self) -> u32 {
        (self.0 & TTL_MAX_S as u64) as u32
    }

    /// The same in milliseconds.
    #[must_use]
    pub const fn ttl_ms(self) -> u64 {
        self.ttl_s() as u64 * 1000
    }

    /// When it was last seen.
    #[must_use]
    pub const fn seen_ms(self) -> u64 {
        self.0 >> TTL_BITS
    }

    /// Whether it has ended, as far as all replicas know.
    #[must_use]
    pub const fn is_over(self, now_ms: u64) -> bool {
        self.0 != 0 && now_ms >= self.seen_ms() + self.ttl_ms()
    }

    /// It was seen then, if it was not seen later.
    #[must_use]
    pub fn seen_at(self, seen_ms: u64) -> Self {
        Self::new(self.ttl_s(), self.seen_ms().max(seen_ms))
    }

    /// As it stands in snapshots.
    #[must_use]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// Reads back a word of [`Life::to_word`]; `None` if it is none.
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word != 0 && word & TTL_MAX_S as u64 == 0 { None } else { Some(Self(word)) }
    }
}

/// When the entries of a table were last seen on this node, and by how many packets, by cell.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    /// Half a word each.
    seen: Arc<Region>,
    /// A word each.
    tallies: Arc<Region>,
}

/// The end of the tick that a moment lies in, so that nothing seems to be older than it is.
const fn mark_of(now: Time) -> u32 {
    ((now.0 >> MARK_BITS) + 1) as u32
}

impl Marks {
    fn new(cells: u32) -> Result<Self, RegionError> {
        let bytes = (cells as usize * size_of::<u32>()).next_multiple_of(size_of::<u64>());
        let seen = Arc::new(Region::anonymous(bytes)?);
        let tallies = Arc::new(Region::anonymous(cells as usize * size_of::<u64>())?);
        Ok(Self { seen, tallies })
    }

    /// Counts a packet, or several, at a cell.
    #[inline]
    pub(crate) fn count(&self, cell: u32, tally: Tally) {
        if !tally.is_zero() {
            self.tallies.words()[cell as usize].fetch_add(tally.to_word(), Ordering::Relaxed);
        }
    }

    /// What was counted at a cell since somebody took it.
    pub(crate) fn tally(&self, cell: u32) -> Tally {
        Tally::from_word(self.tallies.words()[cell as usize].load(Ordering::Relaxed))
    }

    /// Takes what was counted at a cell.
    pub(crate) fn take_tally(&self, cell: u32) -> Tally {
        Tally::from_word(self.tallies.words()[cell as usize].swap(0, Ordering::Relaxed))
    }

    /// Leaves a mark at a cell.
    #[inline]
    pub(crate) fn leave(&self, cell: u32, now: Time) {
        let (place, mark) = (self.seen.half(cell as usize), mark_of(now));
        if place.load(Ordering::Acquire) < mark {
            place.store(mark, Ordering::Relaxed);
            // The look whether the entry has moved comes after the store.
            fence(Ordering::SeqCst);
        }
    }

    /// Draws the marks of a cell and those behind it near.
    #[inline]
    pub(crate) fn prefetch(&self, cell: u32) {
        self.seen.prefetch(cell as usize / 2);
        self.tallies.prefetch(cell as usize);
    }

    /// When the entry of a cell was last seen here; `None` if never.
    pub(crate) fn get(&self, cell: u32) -> Option<Time> {
        match self.seen.half(cell as usize).load(Ordering::Relaxed) {
            0 => None,
            mark => Some(Time(u64::from(mark) << MARK_BITS)),
        }
    }

    /// The first cell from `first` on and before `end` that has a mark; `end` if none has.
    pub(crate) fn first_from(&self, first: u32, end: u32) -> u32 {
        let words = self.seen.words();
        let is_clear = |words: &[AtomicU64]| {
            words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0
        };
        let mut cell = first;
        while cell < end {
            let at = (cell / 2) as usize;
            match words.get(at..at + MARKS_AT_ONCE / 2) {
                Some(words) if cell.is_multiple_of(2) && is_clear(words) => {
                    cell += MARKS_AT_ONCE as u32;
                }
                _ if self.get(cell).is_some() => return cell,
                _ => cell += 1,
            }
        }
        end
    }

    fn forget(&self, cell: u32) {
        self.seen.half(cell as usize).store(0, Ordering::Relaxed);
        if !self.tally(cell).is_zero() {
            self.take_tally(cell);
        }
    }

    fn moved(&self, from: u32, to: u32) {
        // The move was counted before: see the module's text.
        fence(Ordering::SeqCst);
        self.count(to, self.take_tally(from));
        let mark = self.seen.half(from as usize).load(Ordering::Relaxed);
        let place = self.seen.half(to as usize);
        place.store(place.load(Ordering::Relaxed).max(mark), Ordering::Relaxed);
        self.forget(from);
    }
}

/// Bytes that a cell has beside it: life, mark, tally, and the two links of its timer.
pub(crate) const BESIDE_BYTES: usize = 28;

#[derive(Debug)]
struct Kept {
    lives: WordArray,
    marks: Marks,
    wheel: TimerWheel,
    /// Room for the cells whose timers are due.
    due: Vec<u32>,
}

/// See the module's text. Written by the table's writer alone.
#[derive(Debug, Default)]
pub(crate) struct Lifetimes(Option<Kept>);

fn no_memory(source: std::io::Error) -> RegionError {
    RegionError::Io { action: "reserve", path: "anonymous memory".into(), source }
}

impl Lifetimes {
    /// For a table of so many cells. (The default keeps nothing: for tables that are only looked
    /// at.)
    pub(crate) fn new(cells: u32) -> Result<Self, RegionError> {
        // Asked for in one piece first: an allocation that fails ends the process.
        let mut all = Vec::<u8>::new();
        all.try_reserve_exact(cells as usize * BESIDE_BYTES)
            .map_err(|_| no_memory(std::io::ErrorKind::OutOfMemory.into()))?;
        drop(all);
        let marks = Marks::new(cells)?;
        let lives = WordArray::zeroed(cells as usize).map_err(no_memory)?;
        let wheel = TimerWheel::new(cells as usize);
        Ok(Self(Some(Kept { lives, marks, wheel, due: Vec::new() })))
    }

    pub(crate) fn marks(&self) -> Option<&Marks> {
        self.0.as_ref().map(|kept| &kept.marks)
    }

    /// The life of the entry of a cell.
    pub(crate) fn life(&self, cell: u32) -> Life {
        self.0.as_ref().map_or(Life::ENDLESS, |kept| Life(kept.lives.get(cell)))
    }

    /// Draws what is known of a cell near.
    #[inline]
    pub(crate) fn prefetch(&self, cell: u32) {
        if let Some(kept) = &self.0 {
            kept.lives.prefetch(cell);
            kept.wheel.prefetch(cell);
        }
    }

    /// The entry of a cell lives like this from now on.
    pub(crate) fn set(&mut self, cell: u32, life: Life) {
        let Some(Kept { lives, wheel, .. }) = &mut self.0 else { return };
        let old = Life(lives.get(cell));
        if old == life && life == Life::ENDLESS {
            return;
        }
        lives.set(cell, life.0);
        if life.ttl_s() == 0 {
            wheel.disarm(cell);
        } else if old.ttl_s() != life.ttl_s() || !wheel.is_armed(cell) {
            // With the lifetime unchanged the timer comes up early enough, and is then armed anew.
            let end = life.seen_ms() + life.ttl_ms();
            wheel.arm(cell, end.div_ceil(TICK_MS), life.seen_ms() / TICK_MS);
        }
    }

    /// An entry was moved: copied, and the original taken away.
    pub(crate) fn moved(&mut self, from: u32, to: u32) {
        let Some(Kept { lives, marks, wheel, .. }) = &mut self.0 else { return };
        lives.set(to, lives.get(from));
        lives.set(from, 0);
        wheel.renumber(from, to);
        marks.moved(from, to);
    }

    /// An entry was taken away.
    pub(crate) fn ended(&mut self, cell: u32) {
        let Some(Kept { lives, marks, wheel, .. }) = &mut self.0 else { return };
        lives.set(cell, 0);
        wheel.disarm(cell);
        marks.forget(cell);
    }

    /// Timers that are armed.
    pub(crate) fn armed(&self) -> u32 {
        self.0.as_ref().map_or(0, |kept| kept.wheel.len())
    }

    /// Brings the timer of a cell up at `at_ms`.
    pub(crate) fn arm(&mut self, cell: u32, at_ms: u64, now_ms: u64) {
        if let Some(kept) = &mut self.0 {
            kept.wheel.arm(cell, at_ms.div_ceil(TICK_MS), now_ms / TICK_MS);
        }
    }

    /// Turns the wheel to `now_ms`. `due_ms` says when an entry with this life and this mark is due
    /// now; the cells of those that are, are given to `due`. Their timers come up again a little
    /// later, if nothing has become of them.
    pub(crate) fn turn(
        &mut self,
        now_ms: u64,
        steps_max: u32,
        due_ms: impl Fn(Life, Option<Time>) -> u64,
        due: impl FnMut(u32),
    ) -> Turned {
        let Some(Kept { lives, marks, wheel, due: cells }) = &mut self.0 else {
            return Turned::default();
        };
        let now = now_ms / TICK_MS;
        cells.clear();
        let due_at = |cell: u32| {
            let life = Life(lives.get(cell));
            due_ms(life, marks.get(cell)).div_ceil(TICK_MS)
        };
        let turned = wheel.turn(now, steps_max, due_at, |cell| cells.push(cell));
        for cell in cells.iter() {
            wheel.arm(*cell, now + AGAIN_TICKS, now);
        }
        cells.iter().copied().for_each(due);
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_its_seconds_after_it_was_last_seen() {
        let life = Life::new(300, 5_000);
        assert_eq!((life.ttl_s(), life.seen_ms()), (300, 5_000));
        assert!(!life.is_over(304_999) && life.is_over(305_000));
        assert_eq!(life.seen_at(4_000), life, "older news is no news");
        assert!(!life.seen_at(6_000).is_over(305_999));
        assert!(!Life::ENDLESS.is_over(u64::MAX));
        assert_eq!(Life::new(0, 77), Life::ENDLESS, "the endless have one form");
        let longest = Life::new(TTL_MAX_S, u64::MAX);
        assert_eq!((longest.ttl_s(), longest.seen_ms()), (TTL_MAX_S, SEEN_MS_MAX));
        for life in [life, longest, Life::ENDLESS] {
            assert_eq!(Life::from_word(life.to_word()), Some(life));
        }
        assert_eq!(Life::from_word(1 << TTL_BITS), None, "seen, but without a lifetime");
    }

    #[test]
    fn a_mark_is_never_older_than_what_was_seen_and_little_newer() {
        let lifetimes = Lifetimes::new(4).unwrap();
        let marks = lifetimes.marks().unwrap();
        assert_eq!(marks.get(1), None);
        for now in [Time(0), Time(MARK_NS - 1), Time(MARK_NS), Time(123 * MARK_NS + 77)] {
            marks.leave(1, now);
            let seen = marks.get(1).unwrap();
            assert!(seen > now && seen.since_ns(now) <= MARK_NS, "{now:?}: {seen:?}");
        }
        marks.leave(1, Time(5));
        assert!(marks.get(1).unwrap() > Time(123 * MARK_NS), "an older mark changes nothing");
        assert_eq!((marks.get(0), marks.get(2)), (None, None), "neighbours are left alone");
    }

    #[test]
    fn life_mark_and_timer_go_with_a_moved_entry_and_end_with_it() {
        let mut lifetimes = Lifetimes::new(8).unwrap();
        lifetimes.set(1, Life::new(10, 1_000));
        lifetimes.marks().unwrap().leave(1, Time::from_ms(900));
        lifetimes.marks().unwrap().leave(6, Time::from_ms(100));
        lifetimes.marks().unwrap().count(1, Tally::packet(70));
        lifetimes.marks().unwrap().count(6, Tally::packet(30));
        lifetimes.moved(1, 6);
        assert_eq!(lifetimes.marks().unwrap().tally(1), Tally::ZERO);
        assert_eq!(lifetimes.marks().unwrap().tally(6), Tally::new(2, 100));
        assert_eq!((lifetimes.life(1), lifetimes.life(6).ttl_s()), (Life::ENDLESS, 10));
        let marks = lifetimes.marks().unwrap();
        assert!(marks.get(1).is_none() && marks.get(6).unwrap() > Time::from_ms(900));
        let mut due = vec![];
        let end = |life: Life, _| life.seen_ms() + life.ttl_ms();
        lifetimes.turn(10_900, 9, end, |cell| due.push(cell));
        assert!(due.is_empty());
        lifetimes.turn(11_064, 9, end, |cell| due.push(cell));
        lifetimes.turn(12_000, 9, end, |cell| due.push(cell));
        assert_eq!(due, [6], "once, and not at once again");
        lifetimes.turn(14_000, 9, end, |cell| due.push(cell));
        assert_eq!(due, [6, 6], "but again if nothing came of it");
        lifetimes.ended(6);
        assert_eq!((lifetimes.armed(), lifetimes.life(6)), (0, Life::ENDLESS));
        assert_eq!(lifetimes.marks().unwrap().get(6), None);
        assert_eq!(lifetimes.marks().unwrap().tally(6), Tally::ZERO);
    }

    #[test]
    fn a_shorter_life_brings_the_timer_forward_and_a_longer_one_is_found_when_it_comes_up() {
        let mut lifetimes = Lifetimes::new(2).unwrap();
        let end = |life: Life, _| life.seen_ms() + life.ttl_ms();
        let mut due = vec![];
        lifetimes.set(0, Life::new(100, 0));
        lifetimes.set(0, Life::new(1, 0));
        lifetimes.set(1, Life::new(1, 0));
        lifetimes.set(1, Life::new(1, 50_000));
        lifetimes.turn(2_000, 9, end, |cell| due.push(cell));
        assert_eq!(due, [0]);
        lifetimes.set(0, Life::ENDLESS);
        lifetimes.turn(51_100, 9, end, |cell| due.push(cell));
        assert_eq!(due, [0, 1]);
    }
}
