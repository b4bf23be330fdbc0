//! Group commit: many proposals share one log entry.
//!
//! When nothing is in flight, what has come goes out at once: a lone proposal never waits. While
//! an entry is in flight, proposals collect; they go out when it is done, or, as the second entry
//! in flight, when the open batch is full or its oldest proposal has waited long enough. Two
//! entries in flight at most: on a local network deeper pipelining costs more than it brings. Time
//! is looked at whenever something happens, and at [`GroupCommit::ripe_at`] if nothing does.
//!
//! Pure: it takes the time, and gives batches back; who sends them is not known here.

use crate::types::Time;
use std::collections::VecDeque;

/// When a batch is closed, and how much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Units (transactions) of one batch.
    pub units: usize,
    /// Bytes of one batch.
    pub bytes: usize,
    /// How long the oldest proposal waits before a second entry is sent beside the one in flight.
    pub linger_ns: u64,
    /// Entries in flight.
    pub in_flight: usize,
    /// Units that may wait.
    pub waiting: usize,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self { units: 1024, bytes: 192 << 10, linger_ns: 200_000, in_flight: 2, waiting: 16_384 }
    }
}

/// How much of a batch a proposal takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Units.
    pub units: usize,
    /// Bytes.
    pub bytes: usize,
}

/// Collects proposals of type `P` into batches.
#[derive(Debug)]
pub struct GroupCommit<P> {
    limits: GroupLimits,
    waiting: VecDeque<(Time, Weight, P)>,
    waiting_units: usize,
    in_flight: usize,
}

impl<P> GroupCommit<P> {
    /// Nothing waits, nothing is in flight.
    ///
    /// # Panics
    /// If a limit is zero.
    #[must_use]
    pub fn new(limits: GroupLimits) -> Self {
        assert!(limits.units > 0 && limits.bytes > 0 && limits.in_flight > 0, "{limits:?}");
        Self { limits, waiting: VecDeque::new(), waiting_units: 0, in_flight: 0 }
    }

    /// Takes a proposal.
    ///
    /// # Errors
    /// Gives it back if too much waits already, or if it is larger than a batch may be.
    pub fn offer(&mut self, now: Time, weight: Weight, proposal: P) -> Result<(), P> {
        let fits = weight.units <= self.limits.units && weight.bytes <= self.limits.bytes;
        if !fits || self.waiting_units + weight.units > self.limits.waiting {
            return Err(proposal);
        }
        self.waiting_units += weight.units;
        self.waiting.push_back((now, weight, proposal));
        Ok(())
    }

    /// The next batch, if one is to be sent now. It counts as in flight until
    /// [`GroupCommit::done`].
    pub fn take(&mut self, now: Time) -> Option<Vec<P>> {
        let (oldest, _, _) = self.waiting.front()?;
        let ready = match self.in_flight {
            0 => true,
            n if n >= self.limits.in_flight => false,
            _ => now.since_ns(*oldest) >= self.limits.linger_ns || self.is_full(),
        };
        if !ready {
            return None;
        }
        let mut batch = Vec::new();
        let (mut units, mut bytes) = (0, 0);
        while let Some((_, weight, _)) = self.waiting.front() {
            (units, bytes) = (units + weight.units, bytes + weight.bytes);
            if units > self.limits.units || bytes > self.limits.bytes {
                break;
            }
            self.waiting_units -= weight.units;
            batch.extend(self.waiting.pop_front().map(|(_, _, proposal)| proposal));
        }
        debug_assert!(!batch.is_empty(), "a proposal that was taken fits into a batch");
        self.in_flight += 1;
        Some(batch)
    }

    /// When what waits goes out by its age alone, if nothing happens before; `None` if only
    /// something that happens can send it.
    #[must_use]
    pub fn ripe_at(&self) -> Option<Time> {
        let (oldest, _, _) = self.waiting.front()?;
        let may_fly = self.in_flight > 0 && self.in_flight < self.limits.in_flight;
        may_fly.then(|| oldest.plus_ns(self.limits.linger_ns))
    }

    /// A batch is no longer in flight, whatever became of it.
    ///
    /// # Panics
    /// If none was.
    pub fn done(&mut self) {
        assert!(self.in_flight > 0, "no batch is in flight");
        self.in_flight -= 1;
    }

    /// Units that wait.
    #[must_use]
    pub const fn waiting_units(&self) -> usize {
        self.waiting_units
    }

    /// Batches in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn is_full(&self) -> bool {
        let mut bytes = 0;
        self.waiting_units >= self.limits.units
            || self.waiting.iter().any(|(_, weight, _)| {
                bytes += weight.bytes;
                bytes >= self.limits.bytes
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: GroupLimits =
        GroupLimits { units: 4, bytes: 100, linger_ns: 50, in_flight: 2, waiting: 10 };
    const ONE: Weight = Weight { units: 1, bytes: 10 };

    #[test]
    fn a_lone_proposal_goes_at_once_and_the_next_ones_collect() {
        let mut group = GroupCommit::new(LIMITS);
        group.offer(Time(0), ONE, 1).unwrap();
        assert_eq!(group.take(Time(0)), Some(vec![1]));
        group.offer(Time(1), ONE, 2).unwrap();
        group.offer(Time(2), ONE, 3).unwrap();
        assert_eq!(group.take(Time(2)), None);
        group.done();
        assert_eq!(group.take(Time(2)), Some(vec![2, 3]));
        assert_eq!(group.take(Time(2)), None);
    }

    #[test]
    fn a_second_batch_goes_when_full_by_count_by_bytes_or_by_age_and_never_a_third() {
        for (weight, count, now) in
            [(ONE, 4, Time(1)), (Weight { units: 1, bytes: 50 }, 2, Time(1)), (ONE, 1, Time(51))]
        {
            let mut group = GroupCommit::new(LIMITS);
            group.offer(Time(0), ONE, 0).unwrap();
            assert!(group.take(Time(0)).is_some());
            for n in 0..count {
                assert_eq!(group.take(Time(1)), None);
                group.offer(Time(1), weight, n).unwrap();
            }
            assert_eq!(group.take(now).map(|batch| batch.len()), Some(count));
            for n in 0..4 {
                group.offer(Time(1), ONE, n).unwrap();
            }
            assert_eq!(group.take(Time(1000)), None);
            assert_eq!(group.in_flight(), 2);
        }
    }

    #[test]
    fn what_waits_beside_one_in_flight_is_ripe_by_its_age_and_beside_two_never() {
        let mut group = GroupCommit::new(LIMITS);
        assert_eq!(group.ripe_at(), None);
        group.offer(Time(0), ONE, 1).unwrap();
        assert!(group.take(Time(0)).is_some() && group.ripe_at().is_none());
        group.offer(Time(7), ONE, 2).unwrap();
        group.offer(Time(9), ONE, 3).unwrap();
        let ripe = group.ripe_at().unwrap();
        assert_eq!(ripe, Time(57));
        assert_eq!(group.take(Time(56)), None);
        assert_eq!(group.take(ripe), Some(vec![2, 3]));
        group.offer(Time(60), ONE, 4).unwrap();
        assert_eq!(group.ripe_at(), None);
    }

    #[test]
    fn what_does_not_fit_comes_back() {
        let mut group = GroupCommit::new(LIMITS);
        assert_eq!(group.offer(Time(0), Weight { units: 5, bytes: 1 }, 1), Err(1));
        assert_eq!(group.offer(Time(0), Weight { units: 1, bytes: 101 }, 1), Err(1));
        for n in 0..10 {
            group.offer(Time(0), ONE, n).unwrap();
        }
        assert_eq!(group.offer(Time(0), ONE, 11), Err(11));
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_in_order_and_within_the_limits(
            steps in prop::collection::vec((0_u8..3, 1_usize..=4, 1_usize..=100), 1..200)
        ) {
            let mut group = GroupCommit::new(LIMITS);
            let (mut offered, mut taken, mut now) = (Vec::new(), Vec::new(), Time(0));
            for (step, units, bytes) in steps {
                now = Time(now.0 + 20);
                match step {
                    0 => {
                        let weight = Weight { units, bytes };
                        let next = (offered.len(), weight);
                        if group.offer(now, weight, next).is_ok() {
                            offered.push(next);
                        }
                    }
                    1 => if let Some(batch) = group.take(now) {
                        prop_assert!(!batch.is_empty() && group.in_flight() <= 2);
                        prop_assert!(batch.iter().map(|(_, w)| w.units).sum::<usize>() <= 4);
                        prop_assert!(batch.iter().map(|(_, w)| w.bytes).sum::<usize>() <= 100);
                        taken.extend(batch);
                    },
                    _ => if group.in_flight() > 0 {
                        group.done();
                    },
                }
            }
            while group.in_flight() > 0 {
                group.done();
            }
            while let Some(batch) = group.take(now) {
                taken.extend(batch);
                group.done();
            }
            prop_assert_eq!(taken, offered);
        }
    }
}
