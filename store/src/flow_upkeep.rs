//! When the entries of a flow machine expire, and what its owner tells the others of soft state.
//!
//! An entry expires when nobody has seen it for its lifetime. All replicas know roughly when it was
//! last seen (its [`Life`]); the owner knows better, from its marks. It proposes the expiry under a
//! condition that the log decides: not refreshed, not changed, and over in the shard's own time. So
//! a refresh that came first wins, and of any number of proposals one takes effect.
//!
//! *Never early.* To a deadline the owner adds the time within which other nodes tell it what they
//! saw. What an earlier owner saw last it cannot know, so it counts every entry as seen when it
//! became owner itself: then nothing ends before its time, and what nobody sees any more ends one
//! lifetime after the change of owner.
//!
//! *Bounded.* One call looks at so many timers and so many cells, and gives so much work, and no
//! more. It changes no replicated state, and reads no clock.

use crate::flow_machine::FlowMachine;
use crate::lifetimes::Life;
use crate::limits::SEEN_NOTES_MAX;
use crate::pool_check::{PoolLeak, PoolReport, pool_check};
use crate::transaction::{Condition, SeenNote};
use crate::types::{SlotId, Term, Time};
use crate::upkeep::{
    CELLS_AT_ONCE, EXPIRIES_MAX, Ending, EntryRules, EntryTimer, Expiry, PlainRules, SoftTerms,
    TALLY_PASSES, TIMERS_AT_ONCE, Upkeep, UpkeepClock,
};
use crate::{Entry, Key};
use std::sync::Arc;

/// How far the marks have been looked through.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    next_cell: u32,
    /// How many passes there were before this one.
    passes: u32,
    /// When this pass over all cells began; `None` before the first.
    began: Option<Time>,
}

/// What a machine needs for its upkeep; no part of its state.
#[derive(Debug)]
pub(crate) struct Keeping {
    rules: Arc<dyn EntryRules>,
    soft: SoftTerms,
    /// The term in which this node owns the shard, and the shard's time when that began.
    tenure: Option<(Term, u64)>,
    scan: Scan,
    due: Vec<(Key, Entry)>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            rules: Arc::new(PlainRules),
            soft: SoftTerms::default(),
            tenure: None,
            scan: Scan::default(),
            due: Vec::new(),
        }
    }
}

/// What the owner of now knows by.
#[derive(Clone, Copy, Debug)]
struct Knowledge {
    clock: UpkeepClock,
    /// The shard's time when it became owner.
    since_ms: u64,
    soft: SoftTerms,
}

impl Knowledge {
    /// When a mark was left, in the shard's time.
    fn marked_ms(self, mark: Time) -> u64 {
        self.clock.time_ms.saturating_sub(self.age_ms(mark))
    }

    fn age_ms(self, mark: Time) -> u64 {
        self.clock.now.since_ns(mark) / 1_000_000
    }

    /// When an entry is due, as far as is known now.
    fn due_ms(self, life: Life, mark: Option<Time>) -> u64 {
        if life == Life::ENDLESS {
            return u64::MAX;
        }
        let marked_ms = mark.map_or(0, |mark| self.marked_ms(mark));
        let seen = marked_ms.max(life.seen_ms()).max(self.since_ms);
        seen + life.ttl_ms() + self.soft.within_ms
    }
}

impl Keeping {
    /// See [`EntryRules::tally`].
    pub(crate) fn tally_word(&self, key: &Key) -> Option<usize> {
        self.rules.tally(key)
    }
}

impl FlowMachine {
    /// The same machine, whose entries end as these rules say.
    #[must_use]
    pub fn with_rules(mut self, rules: Arc<dyn EntryRules>) -> Self {
        self.keeping.rules = rules;
        self
    }

    /// The same machine with other terms for soft state. All replicas should have the same.
    #[must_use]
    pub fn with_soft_state(mut self, soft: SoftTerms) -> Self {
        self.keeping.soft = soft;
        self
    }

    /// Whether every port in use has just one entry that it is in use for, and every such entry its
    /// port. Scans everything.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn pool_check(&self) -> Result<PoolReport, PoolLeak> {
        // What is on its way is another shard's, or will be.
        let held = |slot: SlotId| self.slots.contains(slot);
        let pools = self.pools.iter().filter(|((_, slot), _)| held(*slot));
        let pools = pools.map(|((at, _), pool)| (&self.specs[usize::from(*at)], pool));
        let entries = self.table.iter().filter(|(_, entry)| held(entry.slot));
        pool_check(entries, pools, &*self.keeping.rules)
    }

    /// How long an entry lives, and since when nobody has seen it: by the mark on this node, else
    /// by what the log says.
    pub(crate) fn entry_timer(&self, key: &Key, now: Time) -> Option<EntryTimer> {
        let (_, life, mark) = self.table.seen(key)?;
        let told_ms = crate::machine::Machine::time_ms(self).saturating_sub(life.seen_ms());
        let idle_ms = mark.map_or(told_ms, |mark| told_ms.min(now.since_ns(mark) / 1_000_000));
        Some(EntryTimer { ttl_s: life.ttl_s(), idle_ms })
    }

    /// Entries with a timer.
    #[must_use]
    pub fn timers(&self) -> u32 {
        self.table.timers()
    }

    /// See [`crate::machine::Machine::upkeep`].
    pub(crate) fn keep(&mut self, clock: &UpkeepClock, work: &mut Upkeep) {
        let mut clock = *clock;
        clock.time_ms = clock.time_ms.max(crate::machine::Machine::time_ms(self));
        let since_ms = match self.keeping.tenure {
            Some((term, since_ms)) if term == clock.term => since_ms,
            _ => clock.time_ms,
        };
        self.keeping.tenure = Some((clock.term, since_ms));
        let known = Knowledge { clock, since_ms, soft: self.keeping.soft };
        if let Some(from) = work.tells_all_from {
            return self.tell_all(known, from, work);
        }
        self.end_expired(known, work);
        work.is_more |= self.journal.hand_out((clock.term, since_ms), &mut work.blocks);
        if work.wants_seen {
            self.tell_seen(known, work);
        }
    }

    fn end_expired(&mut self, known: Knowledge, work: &mut Upkeep) {
        let mut due = core::mem::take(&mut self.keeping.due);
        let room = EXPIRIES_MAX.saturating_sub(work.expiries.len()) as u32;
        let turned = self.table.turn_timers(
            known.clock.time_ms,
            // Each timer may be due.
            TIMERS_AT_ONCE.min(room),
            |life, mark| known.due_ms(life, mark),
            |key, entry| due.push((key, entry)),
        );
        work.steps += turned.steps;
        work.is_more |= turned.is_more;
        for (key, entry) in due.drain(..) {
            work.expiries.extend(self.expiry(known, &key, &entry));
        }
        self.keeping.due = due;
    }

    /// The end of an entry that is due; `None` if one of its partners is not.
    fn expiry(&mut self, known: Knowledge, key: &Key, entry: &Entry) -> Option<Expiry> {
        // While its slot is on its way nothing ends; the timer comes up again.
        if self.moving.is_between(entry.slot) || self.is_too_early(known, key, entry.slot) {
            return None;
        }
        let mut ending = Ending::default();
        self.keeping.rules.end(key, entry, &mut ending);
        let Ending { partners, writes } = ending;
        let mut expiry = Expiry { slot: entry.slot, conditions: [].into_iter().collect(), writes };
        expiry.conditions.push(Condition::Expired(*key, entry.version));
        for partner in partners {
            let Some((other, life, mark)) = self.table.seen(&partner) else { continue };
            let due_ms = known.due_ms(life, mark);
            if due_ms > known.clock.time_ms {
                self.table.arm(key, due_ms, known.clock.time_ms);
                return None;
            }
            expiry.conditions.push(Condition::Expired(partner, other.version));
        }
        (!expiry.writes.is_empty()).then_some(expiry)
    }

    /// Whether the slot of an entry that seems due came to this shard less than a lifetime ago: the
    /// shard before may have seen it until then.
    fn is_too_early(&mut self, known: Knowledge, key: &Key, slot: SlotId) -> bool {
        let Some(&adopted_ms) = self.moving.adopted.get(&slot) else { return false };
        let Some((_, life, _)) = self.table.seen(key) else { return false };
        let due_ms = adopted_ms + life.ttl_ms() + known.soft.within_ms;
        let is_early = due_ms > known.clock.time_ms;
        if is_early {
            self.table.arm(key, due_ms, known.clock.time_ms);
        }
        is_early
    }

    /// Looks through the marks: all of them once in [`SoftTerms::within_ms`].
    fn tell_seen(&mut self, known: Knowledge, work: &mut Upkeep) {
        let (cells, now) = (self.table.cells(), known.clock.now);
        let mut scan = self.keeping.scan;
        let within_ns = known.soft.within_ms.max(1).saturating_mul(1_000_000);
        let began = match scan.began {
            Some(began) if scan.next_cell < cells || now.since_ns(began) < within_ns => began,
            _ => {
                (scan.next_cell, scan.passes) = (0, scan.passes.wrapping_add(1));
                now
            }
        };
        scan.began = Some(began);
        // So many should have been looked at by now, and at least a little at every call.
        let share = u128::from(now.since_ns(began).min(within_ns)) * u128::from(cells);
        let wanted = (share / u128::from(within_ns)) as u32;
        let little = CELLS_AT_ONCE.min(cells / 64 + 1);
        let wanted = wanted.max(scan.next_cell.saturating_add(little)).min(cells);
        let end = wanted.min(scan.next_cell.saturating_add(CELLS_AT_ONCE));
        let begin = scan.next_cell;
        // Each pass tells the tallies of some cells: never many at once.
        let tells = |cell: u32| cell.wrapping_add(scan.passes).is_multiple_of(TALLY_PASSES);
        scan.next_cell = self.tell_marked(known, (begin, end), tells, work);
        work.cells += scan.next_cell - begin;
        work.is_more |= scan.next_cell < wanted;
        self.keeping.scan = scan;
    }

    /// Looks through the marks from a cell on, whenever that was done last, and tells all tallies.
    fn tell_all(&mut self, known: Knowledge, from: u32, work: &mut Upkeep) {
        let cells = self.table.cells();
        let end = cells.min(from.saturating_add(CELLS_AT_ONCE));
        let next = self.tell_marked(known, (from, end), |_| true, work);
        work.cells += next - from;
        work.is_more |= next < cells;
        work.tells_all_from = Some(next);
    }

    /// Looks at the marks of some cells, and takes the tallies of those that `tells` names; gives
    /// the first that was not looked at, if there was no more room.
    fn tell_marked(
        &mut self,
        known: Knowledge,
        (mut cell, end): (u32, u32),
        tells: impl Fn(u32) -> bool,
        work: &mut Upkeep,
    ) -> u32 {
        while cell < end && work.seen.len() < SEEN_NOTES_MAX {
            cell = self.table.first_marked(cell, end);
            if cell == end {
                break;
            }
            let worth = |life: Life, mark: Time| {
                let worth_ms = known.soft.worth_ms(life.ttl_ms());
                known.marked_ms(mark) >= life.seen_ms() + worth_ms
            };
            if let Some((key, mark, tally)) = self.table.take_marked(cell, worth, tells(cell)) {
                let age_ms = u32::try_from(known.age_ms(mark)).unwrap_or(u32::MAX);
                work.seen.push(SeenNote { key, age_ms, tally });
            }
            cell += 1;
        }
        cell
    }
}

#[cfg(test)]
#[path = "flow_upkeep_tests.rs"]
mod tests;
