//! An owner's time: how long its lease lasts, what it has promised under it, and when it ends.
//!
//! Everything that may make the lease last longer goes through one lock, and so does everything
//! that ends this. So a hand-over that begins between a look at what a quorum acknowledged and the
//! setting of the lease either comes first, and nothing is made longer, or comes second, and sees
//! the end that was set. Pipes read the end from a [`LeaseCell`] and take no lock.
//!
//! A term whose leadership was offered to another node is over for good here, even if nobody takes
//! it: the offer may still be under way, and whoever gets it is elected without waiting for any
//! lease. Only a later term gives a lease again.
//!
//! No clock is read here: whoever looks reads it, and reads it first.

use crate::lease::{LeaseCell, LeaseTerms, owner_lease_end, read_lease_grant_ns};
use crate::raft::Leading;
use crate::transport::lock;
use crate::types::{Term, Time};
use core::time::Duration;
use std::sync::{Arc, Mutex};

/// Longest read lease that is granted at a time.
const GRANT_MAX_NS: u64 = 1_000_000_000;

/// What a look at the group showed, and when it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Read before the group was looked at: whatever pauses came in between, what is counted from
    /// here ends too early rather than too late.
    before: Time,
    pub(crate) leading: Option<Leading>,
}

impl Look {
    /// Looks: the clock first.
    pub(crate) fn take(
        clock: impl FnOnce() -> Time,
        leading: impl FnOnce() -> Option<Leading>,
    ) -> Self {
        let before = clock();
        Self { before, leading: leading() }
    }

    /// The end of the lease that was earned. `trusted`: how far back the clock that measures
    /// acknowledgements can be believed.
    pub(crate) fn lease_end(&self, trusted: Option<Duration>, terms: LeaseTerms) -> Option<Time> {
        let leading = self.leading.filter(|leading| leading.caught_up)?;
        let acked = if leading.alone { Some(Duration::ZERO) } else { leading.acked_ago };
        let acked = acked.filter(|acked| trusted.is_some_and(|trusted| *acked <= trusted))?;
        let spent = u64::try_from(acked.as_nanos()).unwrap_or(u64::MAX);
        Some(owner_lease_end(Time(self.before.0.saturating_sub(spent)), terms))
    }
}

/// A hand-over is under way, or was in this term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offered;

#[derive(Debug)]
struct Promised {
    /// Held here, so that it is set under the lock only.
    lease: Arc<LeaseCell>,
    /// The latest end of anything granted to others.
    granted: Time,
    /// A hand-over is under way: which term it ends is known only when it has been asked for.
    offering: bool,
    /// The last term whose leadership was offered.
    offered: Option<Term>,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Tenure {
    terms: LeaseTerms,
    promised: Mutex<Promised>,
}

impl Tenure {
    pub(crate) fn new(lease: Arc<LeaseCell>, terms: LeaseTerms) -> Self {
        let promised = Promised { lease, granted: Time(0), offering: false, offered: None };
        Self { terms, promised: Mutex::new(promised) }
    }

    pub(crate) fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// When the lease ends.
    pub(crate) fn until(&self) -> Time {
        lock(&self.promised).lease.until()
    }

    /// Makes the lease of a term last until then, unless it lasts longer or the term was offered.
    pub(crate) fn extend(&self, term: Term, until: Time) {
        let promised = lock(&self.promised);
        let over = promised.offering || promised.offered.is_some_and(|offered| term <= offered);
        if !over && until > promised.lease.until() {
            promised.lease.set(until);
        }
    }

    /// This node leads no more. What was granted stays granted.
    pub(crate) fn end(&self) {
        lock(&self.promised).lease.set(Time(0));
    }

    /// Lets another node rely on the lease for what is returned, if there is one.
    pub(crate) fn grant(&self, clock: impl FnOnce() -> Time) -> Option<u64> {
        let mut promised = lock(&self.promised);
        let now = clock();
        let left = read_lease_grant_ns(promised.lease.until(), now, self.terms).min(GRANT_MAX_NS);
        if left == 0 {
            return None;
        }
        promised.granted = promised.granted.max(now.plus_ns(left));
        Some(left)
    }

    /// From here on nothing is made longer, in any term, until [`Tenure::offered`].
    ///
    /// # Errors
    /// If the term's leadership was offered before, or is being offered.
    pub(crate) fn offer(&self, term: Term) -> Result<(), Offered> {
        let mut promised = lock(&self.promised);
        if promised.offering || promised.offered.is_some_and(|offered| term <= offered) {
            return Err(Offered);
        }
        promised.offering = true;
        Ok(())
    }

    /// The end of everything that was promised: the lease, and what was granted under any.
    pub(crate) fn promised_until(&self) -> Time {
        let promised = lock(&self.promised);
        promised.granted.max(promised.lease.until())
    }

    /// The hand-over was asked for in this term or an earlier one (`None`: in none). Later terms
    /// may have leases again.
    pub(crate) fn offered(&self, term: Option<Term>) {
        let mut promised = lock(&self.promised);
        promised.offering = false;
        promised.offered = promised.offered.max(term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use core::sync::atomic::{AtomicBool, Ordering};
    use proptest::prelude::*;

    const TERMS: LeaseTerms = LeaseTerms { length_ns: 1000, margin_ns: 100 };

    fn tenure() -> (Tenure, Arc<LeaseCell>) {
        let lease = Arc::new(LeaseCell::none());
        (Tenure::new(lease.clone(), TERMS), lease)
    }

    fn leading(acked_ago: Option<u64>) -> Leading {
        let acked_ago = acked_ago.map(Duration::from_nanos);
        Leading { term: Term(1), acked_ago, alone: false, caught_up: true }
    }

    proptest! {
        /// Acknowledged was what was sent at `sent`; the thread is put aside before, within and
        /// after the look. The lease never ends later than what was sent allows.
        #[test]
        fn pauses_make_the_lease_shorter_never_longer(
            sent in 5_000_u64..10_000,
            pauses in [0_u64..2_000, 0..2_000, 0..2_000, 0..2_000],
        ) {
            let now = Cell::new(sent + pauses[0]);
            let pause = |ns| now.set(now.get() + ns);
            let clock = || {
                let seen = Time(now.get());
                pause(pauses[1]);
                seen
            };
            let look = Look::take(clock, || {
                let acked_ago = now.get() - sent;
                pause(pauses[2]);
                Some(leading(Some(acked_ago)))
            });
            pause(pauses[3]);
            let end = look.lease_end(Some(Duration::MAX), TERMS).unwrap();
            prop_assert!(end <= owner_lease_end(Time(sent), TERMS));
            prop_assert_eq!(end.plus_ns(pauses[1]), owner_lease_end(Time(sent), TERMS));
        }
    }

    #[test]
    fn a_lease_is_earned_by_acknowledgements_of_a_caught_up_leader_that_slept_not() {
        let trusted = Some(Duration::from_nanos(50));
        let rows = [
            ("acknowledged", Some(leading(Some(50))), trusted, Some(Time(4850))),
            ("not yet", Some(leading(None)), trusted, None),
            ("before the host slept", Some(leading(Some(51))), trusted, None),
            ("the host sleeps", Some(leading(Some(0))), None, None),
            ("not the leader", None, trusted, None),
            ("alone", Some(Leading { alone: true, ..leading(None) }), trusted, Some(Time(4900))),
            ("behind", Some(Leading { caught_up: false, ..leading(Some(0)) }), trusted, None),
        ];
        for (what, leading, trusted, end) in rows {
            let look = Look::take(|| Time(4000), || leading);
            assert_eq!(look.lease_end(trusted, TERMS), end, "{what}");
        }
    }

    #[test]
    fn a_hand_over_waits_for_all_that_was_promised_under_any_lease() {
        let (tenure, lease) = tenure();
        tenure.extend(Term(1), Time(2000));
        assert_eq!(tenure.grant(|| Time(1000)), Some(900));
        assert_eq!(tenure.grant(|| Time(1100)), Some(800));
        // Lost, and won again: the new lease ends before what was granted under the old one.
        tenure.end();
        assert_eq!((lease.until(), tenure.grant(|| Time(1200))), (Time(0), None));
        tenure.extend(Term(3), Time(1500));
        assert_eq!(tenure.offer(Term(3)), Ok(()));
        assert_eq!(tenure.promised_until(), Time(1900));
        // Reads go on until the end; what is granted now ends before the owner's lease does.
        assert_eq!(tenure.grant(|| Time(1300)), Some(100));
        assert_eq!(tenure.promised_until(), Time(1900));
    }

    #[test]
    fn nothing_is_made_longer_in_a_term_that_was_offered() {
        let (tenure, lease) = tenure();
        tenure.extend(Term(3), Time(100));
        assert_eq!(tenure.offer(Term(3)), Ok(()));
        assert_eq!(tenure.offer(Term(3)), Err(Offered), "one at a time");
        // Which term will have been offered is not known yet: none gets anything.
        for term in [3, 4, 9] {
            tenure.extend(Term(term), Time(200));
            assert_eq!(lease.until(), Time(100));
        }
        tenure.offered(Some(Term(4)));
        for term in [3, 4] {
            // Nobody took it, but somebody still may.
            tenure.extend(Term(term), Time(200));
            assert_eq!(lease.until(), Time(100));
            assert_eq!(tenure.offer(Term(term)), Err(Offered));
        }
        tenure.extend(Term(5), Time(200));
        assert_eq!(lease.until(), Time(200));
        // Given up before it was asked for: the term goes on.
        assert_eq!(tenure.offer(Term(5)), Ok(()));
        tenure.offered(None);
        tenure.extend(Term(5), Time(300));
        assert_eq!(lease.until(), Time(300));
    }

    /// Threads that extend all the time beside one that offers: what the lease is right after the
    /// offer, it stays. Without one lock over look and set this finds a longer one soon.
    #[test]
    fn an_offer_between_look_and_set_does_not_let_the_lease_grow() {
        let (tenure, lease) = tenure();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut until = 1;
                while !done.load(Ordering::Relaxed) {
                    tenure.extend(Term(1), Time(until));
                    until += 1;
                }
            });
            let mut grown = 0;
            for _ in 0..20_000 {
                tenure.offer(Term(1)).unwrap();
                let promised = tenure.promised_until();
                for _ in 0..50 {
                    core::hint::spin_loop();
                    grown += u32::from(lease.until() > promised);
                }
                tenure.offered(None);
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(grown, 0, "a lease grew after the offer");
        });
    }
}
