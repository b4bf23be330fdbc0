//! The thread under a pipe: it receives, calls the pipe, sends, and sleeps when there is nothing to
//! do.
//!
//! Run to completion: one thread takes a packet from its port to its port. While there is work it
//! never sleeps; after some rounds without any it waits on a doorbell, which the other end of the
//! port rings, and the store when it has an answer, for no longer than until the pipe's next
//! deadline. So idle nodes cost next to nothing, and several share a processor.
//!
//! This is an edge: it reads the clock and decides nothing about packets, except that one whose
//! port stays full, or stays full until its lease is over, is given back to the pipe.

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
        let is_room = pipe.places() - pipe.parked() >= BURST_MAX;
        let received = if is_room || !port.can_wait() { port.receive(pool, burst) } else { 0 };
        let mut exit = Exit::new(&mut **port, pool);
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
    /// Time has passed since the pipe looked at the clock.
    waited: bool,
}

impl<'a> Exit<'a> {
    fn new(port: &'a mut dyn Port, pool: &'a mut FramePool) -> Self {
        Self { port, pool, sent: false, is_full: false, waited: false }
    }

    /// Offers a frame to the port, unless it has become too late for it (P2): the pipe has looked
    /// at the clock, but since then the port may have let others wait.
    fn offer(&mut self, frame: Frame, valid_until: Time) -> Result<(), (Frame, DropReason)> {
        if self.waited && clock::boot_now() > valid_until {
            return Err((frame, DropReason::LeaseOver));
        }
        self.port.send(frame, self.pool).map_err(|frame| (frame, DropReason::OutputFull))
    }
}

impl Output for Exit<'_> {
    fn clock(&mut self) -> Time {
        self.waited = false;
        clock::boot_now()
    }

    fn leave(&mut self, frame: Frame, valid_until: Time) -> Result<(), (Frame, DropReason)> {
        self.sent = true;
        let mut offered = self.offer(frame, valid_until);
        for _ in 0..if self.is_full { 0 } else { SEND_TRIES } {
            let Err((frame, DropReason::OutputFull)) = offered else { return offered };
            // What is queued must be seen before there can be room.
            self.port.flush();
            thread::yield_now();
            self.waited = true;
            offered = self.offer(frame, valid_until);
        }
        self.is_full |= offered.is_err();
        offered
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.sent = true;
        self.port.report_drop(frame.tag, reason);
        self.pool.give(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::{Baseline, BaselineConfig};
    use crate::chain::Chain;
    use crate::chain_config::ChainConfig;
    use crate::counters::Event;
    use crate::packet::PacketBuilder;
    use crate::pipe::{PipeSettings, SteeredChain};
    use nearstate_placement::Side;
    use nearstate_store::Endpoint;
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

    const LONG: Duration = Duration::from_secs(60);

    /// What came of a frame: whether it left, or why not.
    type Ended = (u64, Result<Side, DropReason>);

    /// A port whose other end is a pair of channels.
    struct ChannelPort {
        input: Receiver<(u64, Side, Vec<u8>)>,
        output: Sender<Ended>,
        room: usize,
        exhausted: bool,
    }

    impl Port for ChannelPort {
        fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
            while !burst.is_full() {
                match self.input.try_recv() {
                    Ok((tag, side, bytes)) => {
                        let mut frame = pool.take().expect("a frame for each packet");
                        frame.copy_from(&bytes).unwrap();
                        (frame.tag, frame.side) = (tag, side);
                        burst.push(frame);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.exhausted = true;
                        break;
                    }
                }
            }
            burst.len()
        }

        fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
            if self.room == 0 {
                return Err(frame);
            }
            self.room -= 1;
            self.output.send((frame.tag, Ok(frame.side))).unwrap();
            pool.give(frame);
            Ok(())
        }

        fn flush(&mut self) {}

        fn report_drop(&mut self, tag: u64, reason: DropReason) {
            self.output.send((tag, Err(reason))).unwrap();
        }

        fn bell(&self) -> Option<Arc<Doorbell>> {
            None
        }

        fn exhausted(&self) -> bool {
            self.exhausted
        }
    }

    /// Full for so many tries; the last flush before there is room lasts until the clock shows
    /// `busy_until`, as if this thread had not been let run.
    struct SlowPort {
        full_for: usize,
        busy_until: Time,
        sent: Vec<u64>,
    }

    impl Port for SlowPort {
        fn receive(&mut self, _: &mut FramePool, _: &mut Burst) -> usize {
            0
        }

        fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
            if self.full_for > 0 {
                self.full_for -= 1;
                return Err(frame);
            }
            self.sent.push(frame.tag);
            pool.give(frame);
            Ok(())
        }

        fn flush(&mut self) {
            while self.full_for == 0 && clock::boot_now() <= self.busy_until {
                thread::yield_now();
            }
        }

        fn report_drop(&mut self, _: u64, _: DropReason) {}

        fn bell(&self) -> Option<Arc<Doorbell>> {
            None
        }
    }

    fn tagged(tag: u64) -> Frame {
        Frame { tag, ..Frame::new() }
    }

    #[test]
    fn what_waits_for_room_leaves_while_its_lease_holds() {
        let mut port = SlowPort { full_for: 3, busy_until: Time(0), sent: vec![] };
        let mut pool = FramePool::new(0);
        let mut exit = Exit::new(&mut port, &mut pool);
        let long = exit.clock().plus_ms(3_600_000);
        for tag in 0..2 {
            exit.leave(tagged(tag), long).expect("there is room in the end");
        }
        assert_eq!(port.sent, [0, 1]);
    }

    #[test]
    fn nothing_leaves_after_the_end_of_its_lease_however_long_the_port_was_full() {
        let short = clock::boot_now().plus_ns(1_000_000);
        let mut port = SlowPort { full_for: 3, busy_until: short, sent: vec![] };
        let mut pool = FramePool::new(0);
        let mut exit = Exit::new(&mut port, &mut pool);
        let long = short.plus_ms(3_600_000);
        let reason = |left: Result<(), (Frame, DropReason)>| left.map_err(|(_, reason)| reason);
        assert_eq!(reason(exit.leave(tagged(0), short)), Err(DropReason::LeaseOver));
        // Its burst was looked at before the wait, so those behind it are looked at again.
        assert_eq!(reason(exit.leave(tagged(1), short)), Err(DropReason::LeaseOver));
        assert_eq!(reason(exit.leave(tagged(2), long)), Ok(()));
        assert_eq!(port.sent, [2]);
    }

    struct Running {
        input: Sender<(u64, Side, Vec<u8>)>,
        output: Receiver<Ended>,
        bell: Arc<Doorbell>,
        handle: PipeHandle,
    }

    fn start(room: usize) -> Running {
        let chain = Chain::new(&ChainConfig::named(&["firewall"]).unwrap(), 64).unwrap();
        let baseline = Baseline::new(BaselineConfig {
            capacity: 1000,
            slots: 64,
            pools: vec![],
            hash_key: 5,
            pending_max: 16,
        });
        let settings = PipeSettings { client: 1, parked_max: 16, seed: 1 };
        let chain = SteeredChain::new(Arc::new(chain), 9);
        let pipe = Pipe::new(chain, baseline.unwrap(), settings);
        let (input, frames) = channel();
        let (ended, output) = channel();
        let port = ChannelPort { input: frames, output: ended, room, exhausted: false };
        let bell = Arc::new(Doorbell::new().unwrap());
        let handle = spawn("test", pipe, Box::new(port), bell.clone(), Arc::default()).unwrap();
        Running { input, output, bell, handle }
    }

    fn udp(port: u16) -> Vec<u8> {
        let outside = Endpoint::v4([192, 0, 2, 1], 53);
        PacketBuilder::udp(Endpoint::v4([10, 0, 0, 7], port), outside).build()
    }

    #[test]
    fn packets_come_out_one_by_one_and_a_stop_ends_the_thread() {
        let running = start(usize::MAX);
        for tag in 0..200u16 {
            running.input.send((tag.into(), Side::Inside, udp(4000 + tag % 7))).unwrap();
            running.bell.ring();
            let ended = running.output.recv_timeout(LONG).expect("it comes out");
            assert_eq!(ended, (tag.into(), Ok(Side::Outside)));
        }
        running.input.send((900, Side::Inside, vec![1, 2, 3])).unwrap();
        running.bell.ring();
        let ended = running.output.recv_timeout(LONG).expect("it is reported");
        assert_eq!(ended, (900, Err(DropReason::ShortEthernet)));
        let counters = running.handle.counters().clone();
        running.handle.stop();
        running.handle.join().unwrap();
        let counts = counters.snapshot();
        assert_eq!(counts.event(Event::PacketsIn), 201);
        assert_eq!(counts.event(Event::PacketsOut), 200);
        assert_eq!(counts.event(Event::Commits), 7);
        assert!(running.output.recv().is_err(), "the port is gone");
    }

    #[test]
    fn an_exhausted_port_ends_the_thread_after_its_last_packet_and_full_is_a_drop() {
        let running = start(2);
        for tag in 0..5 {
            running.input.send((tag, Side::Inside, udp(4000))).unwrap();
        }
        drop(running.input);
        running.bell.ring();
        running.handle.join().unwrap();
        let ended: Vec<Ended> = running.output.iter().collect();
        let expected: Vec<Ended> = (0..5)
            .map(|tag| (tag, if tag < 2 { Ok(Side::Outside) } else { Err(DropReason::OutputFull) }))
            .collect();
        assert_eq!(ended, expected);
    }
}
