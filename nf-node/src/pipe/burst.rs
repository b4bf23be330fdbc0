//! The passes over a burst: what nearly every packet goes through, and nothing more.
//!
//! Pass 1 parses all and draws their entries near, in two steps whose waits overlap; pass 2 sends
//! each through the chain, up to the first that cannot be decided at once; pass 3 reads the clock
//! once and lets the decided ones go. The one that could not be decided is parked, and the passes
//! go on behind it: so order is kept although some packets of a burst stay.
//!
//! If a lease ended before the clock was read, the packets that hung on it and all behind them are
//! processed one by one.

use crate::counters::Event;
use crate::frame::{BURST_MAX, Burst, Frame};
use crate::nf::{NetworkFunction, Packet};
use crate::packet::parsed::Parsed;
use crate::packet::{self, Verify};
use crate::pipe::fragments::Part;
use crate::pipe::parking::Arrived;
use crate::pipe::walk::{Counted, Stop, Way, walk};
use crate::pipe::{Output, Pipe, Stages};
use crate::state_access::{ReadAnswer, StateAccess};
use crate::verdict::DropReason;
use nearstate_placement::FlowTuple;
use nearstate_store::{Key, KeyHash, SlotId, Time};

/// What is known of one packet of a burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    /// Why it is no packet, if it is none; nothing else is known of it then.
    malformed: Option<DropReason>,
    parsed: Parsed,
    pub(super) slot: SlotId,
    /// The first key of its way.
    pub(super) key: Option<Key>,
    /// The hash of that key.
    hash: KeyHash,
    counted: Counted,
    verdict: Result<(), DropReason>,
    /// The flow as which it is to leave, if not as it came.
    translated: Option<FlowTuple>,
    valid_until: Time,
}

/// Room for what is known of the packets of a burst.
#[derive(Debug)]
pub(super) struct Lanes(Box<[Lane; BURST_MAX]>);

impl Lanes {
    pub(super) fn new() -> Self {
        let empty = Lane {
            malformed: None,
            parsed: Parsed::BLANK,
            slot: SlotId(0),
            key: None,
            hash: KeyHash::UNKNOWN,
            counted: Counted::default(),
            verdict: Err(DropReason::ShortEthernet),
            translated: None,
            valid_until: Time(0),
        };
        Self(Box::new([empty; BURST_MAX]))
    }
}

/// What pass 2 came to.
struct Decided {
    /// So many packets, from the front, are decided.
    count: usize,
    /// When the first right to use one of their reads ends.
    valid_until: Time,
    /// Why the next one is not.
    stopped: Option<Way>,
}

impl<S: StateAccess, C: Stages> Pipe<S, C> {
    /// Takes a burst; when it returns, `frames` is empty.
    pub fn on_burst(&mut self, now: Time, frames: &mut Burst, out: &mut impl Output) {
        self.counters.add(Event::PacketsIn, frames.len() as u64);
        self.prepare(frames);
        let mut done = 0;
        while !frames.is_empty() {
            let Decided { count, valid_until, stopped } = self.decide(now, frames, done);
            let after = out.clock();
            if after > valid_until {
                // Only now is it worth to know which of them are late.
                return self.finish_late(after, (frames, done, count), stopped, out);
            }
            self.let_go((frames, done, count), out);
            done += count;
            if let Some(way) = stopped {
                let frame = frames.remove(0);
                self.park(now, (frame, done), Some(way), out);
                done += 1;
            }
            // Not before: the one that was parked has asked under the token of the next place, and
            // what it wants changed stood beside.
            if !self.turned.is_empty() {
                self.run_ready(now, out);
            }
        }
    }

    /// Pass 1.
    fn prepare(&mut self, frames: &Burst) {
        let tenant = self.chain.tenant();
        for (lane, frame) in self.lanes.0.iter_mut().zip(frames) {
            let (bytes, side) = (frame.as_slice(), frame.side);
            let Lane { parsed, translated, .. } = lane;
            *translated = None;
            lane.counted = Counted::default();
            lane.malformed = match packet::parse_into(bytes, Verify::All, parsed) {
                Ok(()) => self.chain.refuses_source(side, bytes, parsed),
                Err(reason) => Some(reason),
            };
            if lane.malformed.is_some() {
                continue;
            }
            lane.slot = self.chain.slot(side, &parsed.tuple);
            let packet = Packet { frame: bytes, parsed, tenant, side, translated };
            lane.key = self.chain.function(side, 0).and_then(|first| first.key(&packet));
            lane.hash = match &lane.key {
                Some(key) => self.access.prefetch(lane.slot, key),
                None => KeyHash::UNKNOWN,
            };
        }
        // By now what was asked for first has come, or is about to.
        for lane in &mut self.lanes.0[..frames.len()] {
            if lane.malformed.is_none() {
                lane.hash = self.access.prefetch_entry(lane.slot, lane.hash);
            }
        }
    }

    /// Pass 2, over the lanes from `done` on.
    fn decide(&mut self, now: Time, frames: &Burst, done: usize) -> Decided {
        let Self { access, chain, counters, lanes, changes, parking, claims, .. } = self;
        let (tenant, token) = (chain.tenant(), parking.next_token());
        let mut decided = Decided { count: 0, valid_until: Time(u64::MAX), stopped: None };
        for (lane, frame) in lanes.0[done..].iter_mut().zip(frames) {
            if let Some(reason) = lane.malformed {
                if reason == DropReason::Fragment {
                    decided.stopped = Some(Way::Stopped(Stop::Fragment));
                    break;
                }
                (lane.verdict, lane.valid_until) = (Err(reason), Time(u64::MAX));
                decided.count += 1;
                continue;
            }
            let Lane { parsed, translated, slot, key: first, hash, counted, .. } = lane;
            let (bytes, side) = (frame.as_slice(), frame.side);
            let mut packet = Packet { frame: bytes, parsed, tenant, side, translated };
            let (mut is_first, mut found_first) = (true, None);
            let mut hash = Some(*hash);
            let way =
                walk(chain, now, (&mut packet, first.as_ref()), changes, |key, used, into| {
                    if core::mem::take(&mut is_first) {
                        if first.is_none() {
                            found_first = Some(*key);
                        }
                        if claims.is_held(key) {
                            return Err(Stop::Behind(*key));
                        }
                    }
                    let wanted = (key, hash.take().unwrap_or(KeyHash::UNKNOWN));
                    let answer = if used.keeps_alive {
                        let seen = (now, counted.tally(used, bytes));
                        access.read_seen(seen, (token, *slot), wanted, into)
                    } else {
                        access.read(now, (token, *slot), wanted, into)
                    };
                    match answer {
                        ReadAnswer::Here { found, access, valid_until } => {
                            counters.add_accesses(access, 1);
                            if found {
                                counted.note(used);
                            }
                            Ok((found, valid_until))
                        }
                        ReadAnswer::Later => Err(Stop::Asked(*key)),
                        ReadAnswer::Unavailable => Err(Stop::Unavailable),
                    }
                });
            if found_first.is_some() {
                *first = found_first;
            }
            let Way::Decided { verdict: decision, valid_until: until } = way else {
                decided.stopped = Some(way);
                break;
            };
            (lane.verdict, lane.valid_until) = (decision, until);
            decided.valid_until = decided.valid_until.min(until);
            decided.count += 1;
        }
        decided
    }

    /// Pass 3: the first `count` packets go; those that turn round wait to be taken in again.
    fn let_go(&mut self, (frames, done, count): (&mut Burst, usize, usize), out: &mut impl Output) {
        for (lane, mut frame) in self.lanes.0[done..].iter().zip(frames.drain(..count)) {
            let end = match lane.verdict {
                Ok(()) => {
                    let Lane { parsed, translated, .. } = lane;
                    match self.send_on(&mut frame, parsed, translated.as_ref()) {
                        Ok(true) => {
                            self.turned.push_back((frame, None));
                            continue;
                        }
                        Ok(false) => Ok(lane.valid_until),
                        Err(reason) => Err(reason),
                    }
                }
                Err(reason) => Err(reason),
            };
            self.hand_over(frame, end, out);
        }
    }

    /// A lease ended while the burst was processed. Those before the first late packet go; it and
    /// all behind it are processed again, one by one.
    fn finish_late(
        &mut self,
        after: Time,
        (frames, done, count): (&mut Burst, usize, usize),
        stopped: Option<Way>,
        out: &mut impl Output,
    ) {
        if matches!(stopped, Some(Way::Stopped(Stop::Asked(_)))) {
            // It asked under the token of the next place, which another may now get.
            self.parking.spoil_next_token();
        }
        let is_late = |lane: &Lane| after > lane.valid_until;
        let decided = &self.lanes.0[done..done + count];
        let on_time = decided.iter().position(is_late).unwrap_or(count);
        let late = decided.iter().filter(|lane| is_late(lane)).count();
        self.counters.add(Event::LeasesOver, late as u64);
        self.let_go((frames, done, on_time), out);
        self.run_ready(after, out);
        for lane in done + on_time.. {
            let Some(frame) = frames.pop_at(0) else { break };
            self.park(after, (frame, lane), None, out);
        }
    }

    /// Parks the packet of a lane; `way` says how far it came, if that still holds.
    fn park(
        &mut self,
        now: Time,
        (frame, lane): (Frame, usize),
        way: Option<Way>,
        out: &mut impl Output,
    ) {
        let Lane { malformed, parsed, slot, key, counted, .. } = self.lanes.0[lane];
        match malformed {
            None => {
                let arrived = Arrived { frame, parsed, slot, counted, part: Part::Whole };
                self.admit(now, arrived, way.map(|way| (way, key)), out);
            }
            Some(DropReason::Fragment) => self.take_fragment(now, frame, out),
            Some(reason) => self.hand_over(frame, Err(reason), out),
        }
    }
}
