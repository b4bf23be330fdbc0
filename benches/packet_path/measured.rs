//! Packets a second: several ways of the same packets, timed in turn.
//!
//! A row is the median of [`CHUNKS`] chunks. What the measuring thread allocates meanwhile is
//! counted too, and how many of its reads took the way that the row is about.

use crate::allocations;
use crate::traffic::Traffic;
use crate::way::{Passed, Push};
use nearstate_nf_node::state_access::Access;
use nearstate_nf_node::{CounterSnapshot, Event};
use std::time::Instant;

/// Timed chunks of a row; the median counts.
pub(crate) const CHUNKS: usize = 7;

/// A row of the table in the making.
pub(crate) struct Contestant<'a> {
    /// How its rows' names end, and what it is.
    row: (&'static str, &'static str),
    way: &'a mut dyn Push,
    traffic: &'a Traffic,
    access: Access,
    /// What had been counted before.
    opened: CounterSnapshot,
    times: [f64; CHUNKS],
    allocations: u64,
    passed: Passed,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) row: (&'static str, &'static str),
    /// Nanoseconds for a packet that comes.
    pub(crate) ns: f64,
    /// Allocations for a packet that comes.
    pub(crate) allocations: f64,
    /// Of the reads, how many took the way that the row is about.
    pub(crate) share: f64,
    /// Of the packets that come, how many leave.
    pub(crate) left: f64,
    /// Bytes that leave, for a packet that comes.
    pub(crate) bytes: f64,
    /// Transactions for a packet that comes.
    pub(crate) commits: f64,
}

impl Measured {
    /// Millions of packets that leave in a second.
    pub(crate) fn mpps(&self) -> f64 {
        self.left * 1e3 / self.ns
    }

    /// Bits of frames that leave in a nanosecond.
    pub(crate) fn gbps(&self) -> f64 {
        self.bytes * 8.0 / self.ns
    }
}

/// Runs the chunks of all in turn, `count` packets each: what disturbs the machine meanwhile
/// disturbs all of them.
pub(crate) fn measure(contestants: &mut [Contestant<'_>], count: usize) -> Vec<Measured> {
    for contestant in &mut *contestants {
        contestant.way.push(contestant.traffic, 0, count);
        contestant.opened = contestant.way.counts();
    }
    for chunk in 0..CHUNKS {
        for contestant in &mut *contestants {
            contestant.run(chunk, count);
        }
    }
    contestants.iter_mut().map(|contestant| contestant.measured(count)).collect()
}

impl<'a> Contestant<'a> {
    pub(crate) fn new(
        row: (&'static str, &'static str),
        way: &'a mut dyn Push,
        traffic: &'a Traffic,
        access: Access,
    ) -> Self {
        let (times, passed) = ([0.0; CHUNKS], Passed::default());
        let opened = way.counts();
        Self { row, way, traffic, access, opened, times, allocations: 0, passed }
    }

    fn run(&mut self, chunk: usize, count: usize) {
        let allocations = allocations::of_this_thread();
        let began = Instant::now();
        let passed = self.way.push(self.traffic, (chunk + 1) * count, count);
        self.times[chunk] = began.elapsed().as_nanos() as f64 / count as f64;
        self.allocations += allocations::of_this_thread() - allocations;
        self.passed.left += passed.left;
        self.passed.bytes += passed.bytes;
        self.passed.dropped = passed.dropped.or(self.passed.dropped);
    }

    fn measured(&mut self, count: usize) -> Measured {
        self.times.sort_by(f64::total_cmp);
        let (opened, now) = (&self.opened, self.way.counts());
        let reads = |counts: &CounterSnapshot| counts.access_counts().map(|(_, n)| n).sum::<u64>();
        let right = now.accesses(self.access) - opened.accesses(self.access);
        let came = (count * CHUNKS) as f64;
        let commits = now.event(Event::Commits) - opened.event(Event::Commits);
        Measured {
            row: self.row,
            ns: self.times[CHUNKS / 2],
            allocations: self.allocations as f64 / came,
            share: right as f64 / (reads(&now) - reads(opened)) as f64,
            left: self.passed.left as f64 / came,
            bytes: self.passed.bytes as f64 / came,
            commits: commits as f64 / came,
        }
    }
}

/// Asserts that every packet has left, and that none had to be committed: all flows were open.
pub(crate) fn assert_open(measured: &[Measured]) {
    for Measured { row: (_, what), left, commits, .. } in measured {
        assert!(*left == 1.0, "{what}: of the packets {left} left");
        assert!(*commits == 0.0, "{what}: of the packets {commits} changed state");
    }
}
