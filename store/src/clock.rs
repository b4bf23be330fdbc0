//! The two clocks that the drivers read. The core never does: it is given the time.

#![expect(clippy::disallowed_methods, reason = "the drivers' clocks are read here and only here")]

use crate::types::Time;
use rustix::time::{ClockId, clock_gettime};

/// Now, by a clock that goes on while the host is suspended (`CLOCK_BOOTTIME`): a lease must not
/// survive a nap. Comparable between processes of one host, not between hosts.
#[must_use]
pub fn boot_now() -> Time {
    Time(nanoseconds(ClockId::Boottime))
}

/// Milliseconds since 1970 by the wall clock. It may jump: nothing that must be right hangs on it.
#[must_use]
pub fn wall_ms() -> u64 {
    nanoseconds(ClockId::Realtime) / 1_000_000
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_tell_a_time_and_the_first_never_falls() {
        let first = boot_now();
        assert!(first > Time(0) && boot_now() >= first);
        // 2025-01-01: a unit mix-up would be off by a factor of a thousand.
        assert!((1_735_689_600_000..100 * 1_735_689_600_000).contains(&wall_ms()));
    }
}
