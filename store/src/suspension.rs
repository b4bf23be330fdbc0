//! Whether the host slept: two clocks that drift apart only then.
//!
//! The consensus library counts acknowledgements by the monotonic clock, which stands still while
//! the host sleeps; leases count by the boot-time clock, which does not. What was acknowledged
//! before a sleep is void. The edge: reads both clocks. It decides nothing about leases.

#![expect(clippy::disallowed_methods, reason = "the edge: compares two clocks")]

use crate::clock::boot_now;
use core::time::Duration;
use std::time::Instant;

/// Notices when the host slept: the monotonic clock stops then, the lease's clock does not.
pub(crate) struct Clocks {
    origin: Instant,
    /// Boot-time clock less monotonic clock, when last looked at.
    apart_ns: i128,
    /// What was acknowledged before it is void.
    since: Instant,
}

/// Clocks drift apart by less than this between two looks, unless the host slept.
const APART_NS: i128 = 1_000_000;

impl Clocks {
    pub(crate) fn new() -> Self {
        let origin = Instant::now();
        let mut clocks = Self { origin, apart_ns: 0, since: origin };
        clocks.apart_ns = clocks.apart();
        clocks
    }

    fn apart(&self) -> i128 {
        let mut best = (Duration::MAX, 0);
        // A thread may be put aside between two looks at two clocks: take the closest pair.
        for _ in 0..4 {
            let before = self.origin.elapsed();
            let boot = boot_now();
            let gap = self.origin.elapsed().saturating_sub(before);
            if gap < best.0 {
                best = (gap, i128::from(boot.0) - before.as_nanos() as i128);
            }
            if gap < Duration::from_micros(50) {
                break;
            }
        }
        best.1
    }

    /// How far back the monotonic clock can be trusted; `None` if the host slept just now.
    pub(crate) fn look(&mut self) -> Option<Duration> {
        let apart = self.apart();
        let jumped = (apart - self.apart_ns).abs() > APART_NS;
        self.apart_ns = apart;
        if jumped {
            self.since = Instant::now();
            return None;
        }
        Some(self.since.elapsed())
    }
}
