//! A doorbell: wakes a thread, of this process or another, that waits for work in shared memory.
//!
//! Two 32-bit words: a count that each ring raises, and the number of waiters. Ringing costs a
//! system call only while somebody waits; an awake consumer that polls its queue costs its producer
//! one atomic increment.
//!
//! No ring is lost: the waiter announces itself, then looks at the count; the ringer raises the
//! count, then looks for waiters (both sequentially consistent), so one of the two sees the other,
//! and the kernel compares the count once more before it puts the waiter to sleep. A waiter that
//! was killed leaves its announcement behind; that costs ringers a system call each, and nothing
//! else.
//!
//! A doorbell carries no data and orders none: queues publish their own words first.

use crate::region::{Region, RegionError};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use rustix::thread::futex;
use rustix::time::Timespec;
use std::sync::Arc;

/// Halves of a region that a doorbell takes.
pub const DOORBELL_HALVES: usize = 2;

/// See the module's text. A clone is the same bell.
#[derive(Clone, Debug)]
pub struct Doorbell {
    region: Arc<Region>,
    /// The half that counts rings; the next one counts waiters.
    at: usize,
}

impl Doorbell {
    /// A bell for the threads of this process.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new() -> Result<Self, RegionError> {
        Ok(Self::in_region(Arc::new(Region::anonymous(DOORBELL_HALVES * 4)?), 0))
    }

    /// The bell at half `half_index` and the next one of a region, for all who map it.
    ///
    /// # Panics
    /// If the region has no such halves or is read-only.
    #[must_use]
    pub fn in_region(region: Arc<Region>, half_index: usize) -> Self {
        assert!(region.is_writable(), "a waiter announces itself in the region");
        assert!(
            half_index
                .checked_add(DOORBELL_HALVES)
                .is_some_and(|end| end <= region.len_bytes() / 4),
            "a doorbell at half {half_index} lies outside the region"
        );
        Self { region, at: half_index }
    }

    fn rings(&self) -> &AtomicU32 {
        self.region.half(self.at)
    }

    fn waiters(&self) -> &AtomicU32 {
        self.region.half(self.at + 1)
    }

    /// How often it has rung (wraps). Read it before looking for work, give it to
    /// [`Doorbell::wait`] if there was none.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.rings().load(Ordering::SeqCst)
    }

    /// Wakes everybody who waits.
    pub fn ring(&self) {
        self.rings().fetch_add(1, Ordering::SeqCst);
        if self.waiters().load(Ordering::SeqCst) != 0 {
            // Not private: the waiter may be another process. It cannot fail on a mapped word.
            let _ = futex::wake(self.rings(), futex::Flags::empty(), i32::MAX as u32);
        }
    }

    /// Sleeps until it rings, `timeout` is over, or a signal comes; returns at once if it has rung
    /// since `seen` was read. Gives the count; callers look for work whatever it is.
    pub fn wait(&self, seen: u32, timeout: Duration) -> u32 {
        if self.count() != seen || timeout.is_zero() {
            return self.count();
        }
        self.waiters().fetch_add(1, Ordering::SeqCst);
        if self.count() == seen {
            let timeout = Timespec::try_from(timeout).ok();
            // Woken, rung already, timed out, interrupted: the caller looks again in each case.
            let _ = futex::wait(self.rings(), futex::Flags::empty(), seen, timeout.as_ref());
        }
        self.waiters().fetch_sub(1, Ordering::SeqCst);
        self.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_ring_since_the_count_was_read_is_not_slept_through() {
        let bell = Doorbell::new().unwrap();
        let seen = bell.count();
        bell.ring();
        assert_eq!(bell.wait(seen, LONG), seen + 1);
        assert_eq!(bell.waiters().load(Ordering::SeqCst), 0);
    }

    #[test]
    fn waiting_ends_with_its_timeout() {
        let bell = Doorbell::new().unwrap();
        assert_eq!(bell.wait(bell.count(), Duration::from_millis(1)), 0);
        assert_eq!(bell.waiters().load(Ordering::SeqCst), 0);
    }

    #[test]
    fn two_ends_of_a_shared_file_hand_over_work_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bells");
        let ours = Arc::new(Region::create_shared(&path, 16).unwrap());
        let theirs = Arc::new(Region::open_shared(&path).unwrap());
        let (ping, pong) = (Doorbell::in_region(ours.clone(), 0), Doorbell::in_region(ours, 2));
        let (their_ping, their_pong) =
            (Doorbell::in_region(theirs.clone(), 0), Doorbell::in_region(theirs, 2));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for turn in 0..2000 {
                    while their_ping.wait(turn, LONG) == turn {}
                    their_pong.ring();
                }
            });
            for turn in 0..2000 {
                ping.ring();
                while pong.wait(turn, LONG) == turn {}
            }
        });
        assert_eq!((ping.count(), pong.count()), (2000, 2000));
    }
}
