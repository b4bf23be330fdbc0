//! Leases: the arithmetic of how long an owner may answer alone, and the atomic that says so.
//!
//! Promise P2: at no moment do two nodes answer reads of a slot as current. A voter that has
//! answered a heartbeat grants no vote for one lease length after it *received* it. So an owner
//! that knows that a quorum answered heartbeats it *sent* at `t` may count on nobody else being
//! elected before `t + length`, by the voters' clocks. Clocks of hosts run at slightly different
//! rates; the margin is taken off for that. Counting from the sending, not from the answer, errs on
//! the safe side by the time that the messages took.
//!
//! A reader of another node gets the *remaining* time, since clocks of different hosts show
//! different times, and counts it from when it asked, which is before the owner computed it: its
//! lease ends before the owner's does, whatever the network did in between.
//!
//! All functions are pure. The lease is checked after a value is in hand and before anything
//! leaves: a process may be paused for any time between two instructions.

use crate::types::Time;
use core::sync::atomic::{AtomicU64, Ordering};

/// The end of a lease, readable by every pipe without a lock. 0 is no lease.
#[derive(Debug, Default)]
pub struct LeaseCell(AtomicU64);

impl LeaseCell {
    /// No lease.
    #[must_use]
    pub const fn none() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Sets the end of the lease; `Time(0)` ends it now.
    pub fn set(&self, until: Time) {
        self.0.store(until.0, Ordering::SeqCst);
    }

    /// When the lease ends.
    #[must_use]
    pub fn until(&self) -> Time {
        Time(self.0.load(Ordering::SeqCst))
    }

    /// Whether the lease holds at `now`. A `now` read before the value of interest proves nothing.
    #[must_use]
    #[inline]
    pub fn is_valid(&self, now: Time) -> bool {
        now.0 < self.0.load(Ordering::Acquire)
    }
}

/// How long leases are, and what is taken off for clocks that drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// How long a voter grants no vote after a heartbeat.
    pub length_ns: u64,
    /// More than two clocks can drift apart within `length_ns`, and less than it.
    pub margin_ns: u64,
}

/// The end of an owner's lease: `acked_sent` is the latest moment such that a quorum (the owner
/// included) has answered messages sent at that moment or later.
#[must_use]
pub const fn owner_lease_end(acked_sent: Time, terms: LeaseTerms) -> Time {
    acked_sent.plus_ns(terms.length_ns.saturating_sub(terms.margin_ns))
}

/// Nanoseconds of read lease that an owner may grant at `now`: what is left of its own, less the
/// margin once more, for the reader's clock.
#[must_use]
pub const fn read_lease_grant_ns(owner_until: Time, now: Time, terms: LeaseTerms) -> u64 {
    owner_until.since_ns(now).saturating_sub(terms.margin_ns)
}

/// The end of a read lease by the reader's clock: `asked` is when the reader sent its request.
#[must_use]
pub const fn read_lease_end(asked: Time, granted_ns: u64) -> Time {
    asked.plus_ns(granted_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: LeaseTerms = LeaseTerms { length_ns: 1000, margin_ns: 50 };

    #[test]
    fn a_lease_holds_until_just_before_its_end() {
        let cell = LeaseCell::none();
        assert!(!cell.is_valid(Time(0)));
        cell.set(owner_lease_end(Time(10_000), TERMS));
        assert_eq!(cell.until(), Time(10_950));
        assert!(cell.is_valid(Time(10_949)) && !cell.is_valid(Time(10_950)));
        cell.set(Time(0));
        assert!(!cell.is_valid(Time(1)));
    }

    #[test]
    fn nothing_is_granted_within_the_margin_or_after_the_end() {
        for (now, granted) in [(10_000, 900), (10_899, 1), (10_900, 0), (10_940, 0), (12_000, 0)] {
            assert_eq!(read_lease_grant_ns(Time(10_950), Time(now), TERMS), granted, "at {now}");
        }
        let silly = LeaseTerms { length_ns: 10, margin_ns: 50 };
        assert_eq!(owner_lease_end(Time(7), silly), Time(7));
    }

    proptest! {
        /// In true time, with clocks that start anywhere and run up to 2 % fast or slow (the margin
        /// is 5 %): reader's end <= owner's end <= the first possible vote.
        #[test]
        fn no_lease_outlasts_the_votes_that_it_stands_on(
            offsets: [u32; 3],
            rates in [980_u64..=1020, 980..=1020, 980..=1020],
            sent in 1_000_000_u64..2_000_000,
            flights in [0_u64..400, 0..400, 0..400],
        ) {
            // A clock's reading at a true time, and the true time of a reading (rounded up).
            let start = |who: usize| u64::from(offsets[who]);
            let reading = |who: usize, t: u64| Time(start(who) + t * rates[who] / 1000);
            let truth = |who: usize, at: Time| {
                ((at.0 - start(who)) * 1000).div_ceil(rates[who])
            };
            let owner_until = owner_lease_end(reading(0, sent), TERMS);
            let received = sent + flights[0];
            let vote = truth(1, reading(1, received).plus_ns(TERMS.length_ns));
            // Readings are whole numbers; that costs two units at most.
            prop_assert!(truth(0, owner_until) <= vote + 2);
            let (asked, granted_at) = (sent + flights[1], sent + flights[1] + flights[2]);
            let grant = read_lease_grant_ns(owner_until, reading(0, granted_at), TERMS);
            if grant > 0 {
                let end = read_lease_end(reading(2, asked), grant);
                prop_assert!(truth(2, end) <= truth(0, owner_until) + 2);
            }
        }
    }
}
