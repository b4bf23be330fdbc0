//! The thread under a pipe: it receives, calls the pipe, sends, and sleeps when there is nothing to do.
//!
//! Run to completion: one thread takes a packet from its port to its port. While there is work it
//! never sleeps; after some rounds without any it waits on a doorbell, which the other end of the port
//! rings, and the store when it has an answer, for no longer than until the pipe's next deadline. So
//! idle nodes cost next to nothing, and several share a processor.
//!
//! This is an edge: it reads the clock and decides nothing about packets, except that one whose port
//! stays full is given back to the pipe.

use crate::counters::Counters;
use crate::frame::{BURST_MAX, Burst, Frame, FramePool};
use crate::pipe::{Output, Pipe, Stages};
use crate::port::Port;
use crate::state_access::StateAccess;
use crate::verdict::DropReason;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use nearstate_store::{Doorbell, Time, clock};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// Rounds without work after which a pipe's thread sleeps.
pub const IDLE_ROUNDS: u32 = 200;
/// The longest sleep: how late a stop without a ring is seen.
pub const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Times that a frame is offered to a full port, other threads being let run in between.
pub const SEND_TRIES: u32 = 500;
/// Frames of a pipe beside those that it may park: on their way in or out.
pub const FRAMES_MOVING: usize = 8 * BURST_MAX;

/// A pipe on its thread.
#[derive(Debug)]
pub struct PipeHandle {
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
}

impl PipeHandle {
    /// What the pipe counts.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether its thread is over: it was stopped, its port is exhausted, or it panicked.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Makes it stop, with all that share its flag; what is parked is lost.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// If its thread panicked.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

/// Starts a pipe's thread. It ends when `stop` is set (ring `bell` then), or when the port is
/// exhausted and nothing is parked. The store must ring `bell` when it has an answer for this pipe;
/// if the port has a bell, this is to be it.
///
/// # Errors
/// If the system gives no thread.
pub fn spawn<S, C>(
    name: &str,
    pipe: Pipe<S, C>,
    port: Box<dyn Port>,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
) -> io::Result<PipeHandle>
where
    S: StateAccess + Send + 'static,
    C: Stages + Send + 'static,
{
    let counters = pipe.counters();
    let mut driver = Driver {
        pool: FramePool::new(pipe.places() + FRAMES_MOVING),
        burst: Burst::new(),
        pipe,
        port,
        bell: bell.clone(),
        stop: stop.clone(),
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || driver.run())?;
    Ok(PipeHandle { thread, counters, bell, stop })
}

struct Driver<S, C> {
    pipe: Pipe<S, C>,
    port: Box<dyn Port>,
    pool: FramePool,
    burst: Burst,
    bell: Arc<Doorbell>,
    stop: Arc<AtomicBool>,
}

impl<S: StateAccess, C: Stages> Driver<S, C> {
    fn run(&mut self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Acquire) {
            // Before the work is looked for: a ring in between is not slept through.
            let seen = self.bell.count();
            if self.round() {
                idle = 0;
                continue;
            }
            if self.port.exhausted() && self.pipe.parked() == 0 {
                break;
            }
            idle += 1;
            if idle < IDLE_ROUNDS {
                core::hint::spin_loop();
            } else {
                self.bell.wait(seen, self.time_to_sleep());
            }
        }
        self.port.flush();
    }

    /// One round; gives whether there was anything to do.
    fn round(&mut self) -> bool {
        let Self { pipe, port, pool, burst, .. } = self;
        let now = clock::boot_now();
        let received = port.receive(pool, burst);
        let mut exit = Exit { port: &mut **port, pool, sent: false, is_full: false };
        if received > 0 {
            pipe.on_burst(now, burst, &mut exit);
        }
        let answered = pipe.on_completions(now, &mut exit);
        let is_due = pipe.next_deadline().is_some_and(|at| at <= now);
        if is_due {
            pipe.on_deadline(now, &mut exit);
        }
        if exit.sent {
            exit.port.flush();
        }
        received > 0 || answered > 0 || is_due
    }

    fn time_to_sleep(&self) -> Duration {
        let until = |at: Time| Duration::from_nanos(at.since_ns(clock::boot_now()));
        self.pipe.next_deadline().map_or(SLEEP_MAX, until).min(SLEEP_MAX)
    }
}

/// A port and a pool, as a pipe sees them for one round.
struct Exit<'a> {
    port: &'a mut dyn Port,
    pool: &'a mut FramePool,
    sent: bool,
    /// The port stayed full: the rest of this round is not kept waiting for it.
    is_full: bool,
}

impl Output for Exit<'_> {
    fn clock(&mut self) -> Time {
        clock::boot_now()
    }

    fn leave(&mut self, frame: Frame) -> Result<(), Frame> {
        self.sent = true;
        let mut frame = match self.port.send(frame, self.pool) {
            Ok(()) => return Ok(()),
            Err(frame) => frame,
        };
        for _ in 0..if self.is_full { 0 } else { SEND_TRIES } {
            // What is queued must be seen before there can be room.
            self.port.flush();
            thread::yield_now();
            frame = match self.port.send(frame, self.pool) {
                Ok(()) => return Ok(()),
                Err(frame) => frame,
            };
        }
        self.is_full = true;
        Err(frame)
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.sent = true;
        self.port.report_drop(frame.tag, reason);
        self.pool.give(frame);
    }
}
