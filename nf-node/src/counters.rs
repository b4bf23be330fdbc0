//! What a pipe counts: one counter for each event, drop reason and way of access.
//!
//! One thread writes, any thread reads: a counter is an atomic word that its one writer raises by a
//! plain load and store, which costs what an ordinary variable costs. A [`CounterSnapshot`] is
//! what others see and add up.
//!
//! Never decides anything, never resets.

use crate::state_access::Access;
use crate::verdict::DropReason;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a pipe counts beside drops and accesses. The names are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Event { $($(#[$doc])* $name,)* }

        impl Event {
            /// All events, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable name, in snake_case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

events! {
    /// Packets that came in.
    PacketsIn = "packets_in",
    /// Packets that left.
    PacketsOut = "packets_out",
    /// Packets from inside to an end of the NAT's own, taken in again as from outside.
    Hairpins = "hairpins",
    /// Fragments that came in.
    Fragments = "fragments",
    /// Later fragments that waited for their first ones.
    FragmentsEarly = "fragments_early",
    /// Transactions that took effect.
    Commits = "commits",
    /// Transactions whose condition did not hold.
    ConditionsFailed = "conditions_failed",
    /// Transactions that the store refused.
    Refusals = "refusals",
    /// Packets that waited behind an earlier packet of their flow.
    WaitsBehind = "waits_behind",
    /// Reads that were answered later.
    WaitsForRead = "waits_for_read",
    /// Reads and transactions that could not be asked for, or failed, and were tried again.
    Retries = "retries",
    /// Packets processed again because the right to use a read had ended before they left.
    LeasesOver = "leases_over",
    /// Completions for packets that had been given up.
    StaleCompletions = "stale_completions",
    /// The most packets that were parked at one time.
    ParkedMost = "parked_most",
}

const ACCESSES: [(Access, &str); 4] = [
    (Access::Local, "local"),
    (Access::RemoteShm, "remote_shm"),
    (Access::RemoteTcp, "remote_tcp"),
    (Access::RemoteRdma, "remote_rdma"),
];

const EVENTS: usize = Event::ALL.len();
const REASONS: usize = DropReason::ALL.len();

/// A pipe's counters. Shared with whoever reports; only the pipe's thread raises them.
#[derive(Debug)]
pub struct Counters {
    events: [AtomicU64; EVENTS],
    drops: [AtomicU64; REASONS],
    accesses: [AtomicU64; ACCESSES.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            events: [const { AtomicU64::new(0) }; EVENTS],
            drops: [const { AtomicU64::new(0) }; REASONS],
            accesses: [const { AtomicU64::new(0) }; ACCESSES.len()],
        }
    }
}

/// Not a read-modify-write: there is one writer, and readers want no order.
fn raise(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl Counters {
    /// Counts events. Only the pipe's thread may.
    pub fn add(&self, event: Event, count: u64) {
        raise(&self.events[event as usize], count);
    }

    /// Raises [`Event::ParkedMost`] to this many, if it is less.
    pub fn note_parked(&self, parked: usize) {
        let most = &self.events[Event::ParkedMost as usize];
        if most.load(Ordering::Relaxed) < parked as u64 {
            most.store(parked as u64, Ordering::Relaxed);
        }
    }

    /// Counts a packet that was dropped. Only the pipe's thread may.
    pub fn add_drop(&self, reason: DropReason) {
        raise(&self.drops[reason as usize], 1);
    }

    /// Counts reads that were answered in one way. Only the pipe's thread may.
    pub fn add_accesses(&self, access: Access, count: u64) {
        raise(&self.accesses[access as usize], count);
    }

    /// The counts of now.
    #[must_use]
    pub fn snapshot(&self) -> CounterSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterSnapshot {
            events: core::array::from_fn(|i| load(&self.events[i])),
            drops: core::array::from_fn(|i| load(&self.drops[i])),
            accesses: core::array::from_fn(|i| load(&self.accesses[i])),
        }
    }
}

/// Counts at one moment: of a pipe, or of several added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterSnapshot {
    events: [u64; EVENTS],
    drops: [u64; REASONS],
    accesses: [u64; ACCESSES.len()],
}

impl Default for CounterSnapshot {
    fn default() -> Self {
        Self { events: [0; EVENTS], drops: [0; REASONS], accesses: [0; ACCESSES.len()] }
    }
}

impl CounterSnapshot {
    /// How often an event happened.
    #[must_use]
    pub const fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// How many packets were dropped for a reason.
    #[must_use]
    pub const fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// How many packets were dropped.
    #[must_use]
    pub fn drops_total(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// The reasons that packets were dropped for, with their counts.
    pub fn drop_reasons(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().zip(self.drops).filter(|(_, n)| *n > 0).map(|(r, n)| (*r, n))
    }

    /// How many reads were answered in a way.
    #[must_use]
    pub const fn accesses(&self, access: Access) -> u64 {
        self.accesses[access as usize]
    }

    /// The ways of access with their stable names and counts.
    pub fn access_counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        ACCESSES.iter().map(|(access, name)| (*name, self.accesses(*access)))
    }

    /// Every count by its stable name; of the reasons for drops those that occurred.
    #[must_use]
    pub fn named(&self) -> Vec<(String, u64)> {
        self.parts().map(|(prefix, name, count)| (format!("{prefix}{name}"), count)).collect()
    }

    fn parts(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        let events = Event::ALL.iter().map(|event| ("", event.name(), self.event(*event)));
        let accesses = self.access_counts().map(|(name, count)| ("access:", name, count));
        let drops = self.drop_reasons().map(|(reason, count)| ("drop:", reason.name(), count));
        events.chain(accesses).chain(drops)
    }

    /// Adds another pipe's counts. The most parked of several pipes is the sum of theirs: an
    /// upper bound.
    pub fn merge(&mut self, other: &Self) {
        let pairs = self.events.iter_mut().zip(other.events);
        let pairs = pairs.chain(self.drops.iter_mut().zip(other.drops));
        for (ours, theirs) in pairs.chain(self.accesses.iter_mut().zip(other.accesses)) {
            *ours = ours.wrapping_add(theirs);
        }
    }
}

impl fmt::Display for CounterSnapshot {
    /// What is not zero, as `name=count`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (prefix, name, count) in self.parts().filter(|part| part.2 > 0) {
            write!(f, "{space}{prefix}{name}={count}")?;
            space = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_counted_for_itself_and_snapshots_add_up() {
        let counters = Counters::default();
        counters.add(Event::PacketsIn, 3);
        counters.add_drop(DropReason::StoreRefused);
        counters.add_accesses(Access::RemoteRdma, 2);
        counters.note_parked(7);
        counters.note_parked(5);
        let mut sum = counters.snapshot();
        let words = "packets_in=3 parked_most=7 access:remote_rdma=2 drop:store-refused=1";
        assert_eq!(sum.to_string(), words);
        sum.merge(&counters.snapshot());
        assert_eq!(sum.event(Event::PacketsIn), 6);
        assert_eq!(sum.drops(DropReason::StoreRefused), 2);
        assert_eq!(sum.drops_total(), 2);
        assert_eq!(sum.accesses(Access::RemoteRdma), 4);
    }

    #[test]
    fn the_access_names_stand_in_the_order_of_the_accesses() {
        for (index, (access, _)) in ACCESSES.iter().enumerate() {
            assert_eq!(*access as usize, index);
        }
    }
}
