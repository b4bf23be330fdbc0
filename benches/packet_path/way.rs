//! One way of the packets: from memory through the shipped [`Pipe`] over some access to state, and
//! back to a frame pool; copy in, parse, steer, read, process, check the clock, rewrite.

use crate::traffic::Traffic;
use nearstate_nf_node::frame::{BURST_MAX, Burst, Frame, FramePool};
use nearstate_nf_node::pipe::{Output, PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use nearstate_nf_node::pipe_driver::IDLE_ROUNDS;
use nearstate_nf_node::state_access::StateAccess;
use nearstate_nf_node::{CounterSnapshot, DropReason, Event};
use nearstate_store::link::LINK_CAPACITY;
use nearstate_store::{Doorbell, Time};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest sleep, and so how late a lost ring would be noticed.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What has become of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// How many have left.
    pub(crate) left: u64,
    /// How many bytes those had that left.
    pub(crate) bytes: u64,
    /// Why the one was dropped that was dropped last.
    pub(crate) dropped: Option<DropReason>,
}

/// Takes frames back to where they came from.
struct Sink {
    clock: fn() -> Time,
    pool: FramePool,
    passed: Passed,
}

impl Output for Sink {
    fn clock(&mut self) -> Time {
        (self.clock)()
    }

    fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
        self.passed.left += 1;
        self.passed.bytes += u64::from(frame.len);
        self.pool.give(frame);
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.passed.dropped = Some(reason);
        self.pool.give(frame);
    }
}

/// A pipe over some access to state, and what it lies between.
pub(crate) struct Way<S> {
    pipe: Pipe<S>,
    sink: Sink,
    /// Rung when the store has an answer. Without one the thread never sleeps.
    bell: Option<Arc<Doorbell>>,
}

/// A way, whatever its access.
pub(crate) trait Push {
    /// Pushes so many packets through, from this one on and again from the first, and waits until
    /// nothing of them is left in the pipe.
    fn push(&mut self, traffic: &Traffic, from: usize, count: usize) -> Passed;

    fn counts(&self) -> CounterSnapshot;
}

impl<S: StateAccess> Way<S> {
    pub(crate) fn new(chain: &SteeredChain, access: S, clock: fn() -> Time) -> Self {
        let settings = PipeSettings { client: 1, parked_max: PARKED_MAX, seed: 1 };
        // No more packets are under way than the store takes requests: none finds a queue full.
        let pool = FramePool::new(LINK_CAPACITY);
        let sink = Sink { clock, pool, passed: Passed::default() };
        Self { pipe: Pipe::new(chain.clone(), access, settings), sink, bell: None }
    }

    /// Sleeps at this bell when there is nothing to do, as a node's pipe does.
    pub(crate) fn with_bell(self, bell: Arc<Doorbell>) -> Self {
        Self { bell: Some(bell), ..self }
    }

    /// What the first `len` bytes are of the frame that came back last.
    pub(crate) fn last(&mut self, len: usize) -> Vec<u8> {
        let frame = self.sink.pool.take().expect("all have come back");
        let bytes = frame.bytes[..len].to_vec();
        self.sink.pool.give(frame);
        bytes
    }
}

/// Lets others have the processor, after `idle` rounds without work.
fn rest(bell: Option<&Doorbell>, idle: u32, seen: u32) {
    match bell {
        Some(bell) if idle >= IDLE_ROUNDS => drop(bell.wait(seen, SLEEP_MAX)),
        Some(_) => core::hint::spin_loop(),
        // The store's threads may want this processor.
        None => std::thread::yield_now(),
    }
}

impl<S: StateAccess> Push for Way<S> {
    fn push(&mut self, traffic: &Traffic, from: usize, count: usize) -> Passed {
        let Self { pipe, sink, bell } = self;
        sink.passed = Passed::default();
        let (mut next, mut coming, mut idle) = (from % traffic.len(), count, 0);
        let mut burst = Burst::new();
        loop {
            // Before the work is looked for: a ring in between is not slept through.
            let seen = bell.as_ref().map_or(0, |bell| bell.count());
            while burst.len() < BURST_MAX && coming > 0 {
                let Some(mut frame) = sink.pool.take() else { break };
                traffic.fill(next, &mut frame);
                burst.push(frame);
                coming -= 1;
                next = if next + 1 == traffic.len() { 0 } else { next + 1 };
            }
            if burst.is_empty() && pipe.parked() == 0 {
                return sink.passed;
            }
            let now = (sink.clock)();
            let came = burst.len();
            // Nowhere else, as in a node: with a second caller the compiler makes another thing of
            // it.
            pipe.on_burst(now, &mut burst, sink);
            let answered = pipe.on_completions(now, sink);
            if pipe.next_deadline().is_some_and(|at| at <= now) {
                pipe.on_deadline(now, sink);
            }
            if came + answered > 0 {
                idle = 0;
            } else {
                idle += 1;
                rest(bell.as_deref(), idle, seen);
            }
        }
    }

    fn counts(&self) -> CounterSnapshot {
        self.pipe.counters().snapshot()
    }
}

/// Pushes packets through that all have to leave.
pub(crate) fn push_all(
    way: &mut (impl Push + ?Sized),
    traffic: &Traffic,
    from: usize,
    count: usize,
) -> Passed {
    let passed = way.push(traffic, from, count);
    assert_eq!(passed.dropped, None, "no packet may be dropped");
    assert_eq!(passed.left, count as u64, "every packet leaves");
    passed
}

/// Opens a flow with each packet; nanoseconds a flow.
pub(crate) fn open(way: &mut impl Push, traffic: &Traffic, from: usize, count: usize) -> f64 {
    let before = way.counts().event(Event::Commits);
    let began = Instant::now();
    push_all(way, traffic, from, count);
    let ns = began.elapsed().as_nanos() as f64 / count as f64;
    assert_eq!(way.counts().event(Event::Commits) - before, count as u64, "each packet is new");
    ns
}
