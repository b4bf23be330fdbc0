//! What is measured while packets go through: latencies, and the longest of them around a kill.
//! Takes the time as an argument.

use hdrhistogram::Histogram;
use nearstate_store::Time;

/// A packet that goes in later than this after a kill does not wait because of it.
const AFTER_KILL_MS: u64 = 10_000;
/// Latencies above this are counted as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Latencies of one run.
#[derive(Debug)]
pub(crate) struct Meter {
    latencies: Histogram<u64>,
    began: Option<Time>,
    ended: Option<Time>,
    killed: Option<Time>,
    outage_ns: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct LatencyUs {
    /// Half of the packets were faster.
    pub(crate) p50: f64,
    /// Ninety-nine of a hundred packets were faster.
    pub(crate) p99: f64,
    /// The slowest packet.
    pub(crate) max: f64,
}

impl Meter {
    /// Nothing measured yet.
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
            .expect("1 to a minute with three digits is a histogram");
        Self { latencies, began: None, ended: None, killed: None, outage_ns: 0 }
    }

    /// The first packet goes in.
    pub(crate) fn handle_start(&mut self, now: Time) {
        self.began.get_or_insert(now);
    }

    /// A packet has been answered after `latency_ns`; it left, or was dropped.
    pub(crate) fn handle_answer(&mut self, now: Time, latency_ns: u64) {
        self.latencies.saturating_record(latency_ns.max(1));
        self.ended = Some(now);
        if let Some(killed) = self.killed
            && now.since_ns(killed.plus_ms(AFTER_KILL_MS)) <= latency_ns
        {
            self.outage_ns = self.outage_ns.max(latency_ns);
        }
    }

    /// A node is killed now.
    pub(crate) fn handle_kill(&mut self, now: Time) {
        self.killed = Some(now);
    }

    /// The longest that any packet waited for its answer around a kill, milliseconds; 0 without a
    /// kill. That is what the ends of its flow see: no other packet of the flow goes in meanwhile.
    pub(crate) fn outage_ms(&self) -> f64 {
        round3(self.outage_ns as f64 / 1e6)
    }

    /// From the first packet in to the last answer, seconds.
    pub(crate) fn elapsed_s(&self) -> f64 {
        match (self.began, self.ended) {
            (Some(began), Some(ended)) => ended.since_ns(began) as f64 / 1e9,
            _ => 0.0,
        }
    }

    /// The latencies of all packets.
    pub(crate) fn latency_us(&self) -> LatencyUs {
        let us = |ns: u64| round3(ns as f64 / 1e3);
        LatencyUs {
            p50: us(self.latencies.value_at_quantile(0.5)),
            p99: us(self.latencies.value_at_quantile(0.99)),
            max: us(self.latencies.max()),
        }
    }
}

/// A figure with three digits behind the point.
pub(crate) fn round3(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_around_a_kill_is_the_outage() {
        let mut meter = Meter::new();
        meter.handle_start(Time::from_ms(0));
        let mut answer = |ms, waited_ms: u64| {
            meter.handle_answer(Time::from_ms(ms), waited_ms * 1_000_000);
            meter.outage_ms()
        };
        assert_eq!(answer(500, 499), 0.0, "a wait before the kill");
        meter.handle_kill(Time::from_ms(510));
        let mut answer = |ms, waited_ms: u64| {
            meter.handle_answer(Time::from_ms(ms), waited_ms * 1_000_000);
            meter.outage_ms()
        };
        assert_eq!(answer(600, 300), 300.0, "it went in before the kill");
        assert_eq!(answer(810, 5), 300.0);
        assert_eq!(answer(10_900, 400), 400.0, "it went in just before the end of the window");
        assert_eq!(answer(30_000, 9_000), 400.0, "it went in long after the kill");
        assert_eq!(meter.elapsed_s(), 30.0);
    }

    #[test]
    fn latencies_are_told_in_microseconds() {
        let mut meter = Meter::new();
        for us in 1..=100 {
            meter.handle_answer(Time(0), us * 1_000);
        }
        let latency = meter.latency_us();
        assert!((49.9..=50.1).contains(&latency.p50), "{latency:?}");
        assert!((98.9..=99.1).contains(&latency.p99), "{latency:?}");
        assert!((99.9..=100.1).contains(&latency.max), "{latency:?}");
    }
}
