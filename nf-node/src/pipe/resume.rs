//! Parked packets: taken in, taken up again when an answer or a deadline has come, let go.
//!
//! A parked packet is processed from the start each time, with the reads that are in hand. What it
//! waits for is its [`Phase`]; when it is done, those that waited behind it are processed in order.

use crate::counters::Event;
use crate::frame::Frame;
use crate::nf::{NetworkFunction, Packet};
use crate::packet::{self, Verify};
use crate::pipe::claims::FIRST_KEYS;
use crate::pipe::fragments::{self, Member, Part};
use crate::pipe::parking::{Answer, Arrived, Parked, Phase};
use crate::pipe::walk::{Counted, Stop, Way, walk};
use crate::pipe::{
    End, GIVE_UP_NS, LEASES_OVER_MAX, Output, Pipe, QUICK_TRIES, QUICK_TRY_NS, SLOW_TRY_NS,
    SWEEP_NS, Stages,
};
use crate::state_access::{Access, QueueFull, ReadAnswer, StateAccess, Token};
use crate::verdict::DropReason;
use arrayvec::ArrayVec;
use nearstate_placement::FlowTuple;
use nearstate_store::{
    Entry, Key, KeyHash, Outcome, Refusal, Time, Transaction, TransactionId, Write,
};

impl<S: StateAccess, C: Stages> Pipe<S, C> {
    /// Parks a packet that a burst could not decide. If it is known how far it came, with what
    /// first key, it goes on from there.
    pub(super) fn admit(
        &mut self,
        now: Time,
        arrived: Arrived,
        came: Option<(Way, Option<Key>)>,
        out: &mut impl Output,
    ) {
        let first_key = came.as_ref().and_then(|(_, first_key)| *first_key);
        let Some(place) = self.take_place(now, arrived, first_key, out) else { return };
        match came {
            None => self.resume(now, place, out),
            Some((way, _)) => {
                if let Some(end) = self.settle(now, place, way) {
                    self.finish(place, end, out);
                    self.run_ready(now, out);
                }
            }
        }
    }

    /// The place of a packet that is parked; `None` if there was none and it was dropped.
    pub(super) fn take_place(
        &mut self,
        now: Time,
        arrived: Arrived,
        first_key: Option<Key>,
        out: &mut impl Output,
    ) -> Option<u32> {
        if self.parking.is_full() {
            self.hand_over(arrived.frame, Err(DropReason::ParkingFull), out);
            return None;
        }
        if self.parking.is_empty() {
            self.sweep_at = Some(now.plus_ns(SWEEP_NS));
        }
        let asked = self.parking.numbered();
        let parked = Parked {
            arrived,
            first_key,
            since: now,
            number: 0,
            phase: Phase::Waiting,
            transactions: 0,
            tries: 0,
            asked,
            answers: ArrayVec::new(),
        };
        let place = self.parking.insert(parked);
        self.counters.note_parked(self.parking.len());
        Some(place)
    }

    /// Takes in a packet whose first half is done. It is checked again, as what comes from outside
    /// is; its checksums were.
    fn turn_round(
        &mut self,
        now: Time,
        (frame, member): (Frame, Option<Member>),
        out: &mut impl Output,
    ) {
        self.counters.add(Event::Hairpins, 1);
        let parsed = match member {
            None => packet::parse_with(frame.as_slice(), Verify::Headers),
            Some(_) => packet::parse_fragment(frame.as_slice()).map(|fragment| fragment.parsed),
        };
        match parsed {
            Ok(parsed) => {
                let slot = self.chain.slot(frame.side, &parsed.tuple);
                // It has been counted on its way out; the way in has entries of its own.
                let part = if member.is_some() { Part::First } else { Part::Whole };
                let arrived = Arrived { frame, parsed, slot, counted: Counted::default(), part };
                let place = match member {
                    None => self.take_place(now, arrived, None, out),
                    Some(member) => self.take_member(now, arrived, member, out),
                };
                self.ready.extend(place);
            }
            Err(reason) => self.hand_over(frame, Err(reason), out),
        }
    }

    /// A read was answered.
    pub(super) fn on_read(
        &mut self,
        now: Time,
        token: Token,
        answer: Option<(Option<Entry>, Access, Time)>,
        out: &mut impl Output,
    ) {
        let Some(place) = self.parking.find(token) else {
            return self.counters.add(Event::StaleCompletions, 1);
        };
        let parked = self.parking.get_mut(place);
        let Phase::Reading(key) = parked.phase else {
            return self.counters.add(Event::StaleCompletions, 1);
        };
        match answer {
            Some((entry, access, valid_until)) => {
                let answer = Answer { key, entry, valid_until, asked: parked.asked };
                answer.keep_in(&mut parked.answers);
                self.counters.add_accesses(access, 1);
                self.resume(now, place, out);
            }
            None => self.retry_or_end(now, place, out),
        }
    }

    /// A transaction was decided.
    pub(super) fn on_transaction(
        &mut self,
        now: Time,
        token: Token,
        outcome: Option<Outcome>,
        out: &mut impl Output,
    ) {
        let place = self.parking.find(token);
        let is_committing = |phase| matches!(phase, Phase::Committing { .. });
        let Some(place) = place.filter(|at| is_committing(self.parking.get_mut(*at).phase)) else {
            return self.counters.add(Event::StaleCompletions, 1);
        };
        let parked = self.parking.get_mut(place);
        // What was read before is old, whatever came of it.
        parked.answers.clear();
        let part = parked.arrived.part;
        let contended = parked.transactions >= part.transactions_max();
        if part == Part::Join {
            self.note_outcome(place, matches!(outcome, Some(Outcome::Committed(_))));
        }
        match outcome {
            Some(Outcome::Committed(_)) => {
                self.counters.add(Event::Commits, 1);
                self.resume(now, place, out);
            }
            Some(Outcome::ConditionFailed(_)) => {
                self.counters.add(Event::ConditionsFailed, 1);
                if contended {
                    self.end(now, place, DropReason::Contention, out);
                } else {
                    self.resume(now, place, out);
                }
            }
            Some(Outcome::Refused(refusal)) => {
                self.counters.add(Event::Refusals, 1);
                match reason_of(refusal) {
                    Some(reason) => self.end(now, place, reason, out),
                    None => self.retry_or_end(now, place, out),
                }
            }
            // Links go after a slot by themselves; whatever comes here all the same is tried again.
            Some(Outcome::Elsewhere(_)) => self.retry_or_end(now, place, out),
            None => self.end(now, place, DropReason::StoreUnavailable, out),
        }
    }

    /// Processes a parked packet, and then those for whom that made the way free.
    pub(super) fn resume(&mut self, now: Time, place: u32, out: &mut impl Output) {
        debug_assert!(self.ready.is_empty(), "nobody is left over from the last time");
        self.ready.push_back(place);
        self.run_ready(now, out);
    }

    /// Processes what is ready, and what turns round, until nothing is.
    pub(super) fn run_ready(&mut self, now: Time, out: &mut impl Output) {
        loop {
            if let Some(place) = self.ready.pop_front() {
                if let Some(end) = self.process(now, place, out) {
                    self.finish(place, end, out);
                }
            } else if let Some(turned) = self.turned.pop_front() {
                self.turn_round(now, turned, out);
            } else {
                return;
            }
        }
    }

    fn retry_or_end(&mut self, now: Time, place: u32, out: &mut impl Output) {
        if let Some(end) = self.retry_later(now, place) {
            self.finish(place, end, out);
            self.run_ready(now, out);
        }
    }

    fn end(&mut self, now: Time, place: u32, reason: DropReason, out: &mut impl Output) {
        self.finish(place, End::Drop(reason), out);
        self.run_ready(now, out);
    }

    /// Sends a parked packet through the chain once more. `None`: it stays.
    fn process(&mut self, mut now: Time, place: u32, out: &mut impl Output) -> Option<End> {
        for _ in 0..LEASES_OVER_MAX {
            let (way, tuple) = self.walk_parked(now, place);
            let Way::Decided { verdict, valid_until } = way else {
                return self.settle(now, place, way);
            };
            let after = out.clock();
            if after <= valid_until {
                if verdict.is_ok() && self.begins_to_join(place, &tuple) {
                    return self.process(after, place, out);
                }
                return Some(match verdict {
                    Ok(()) => End::Leave(tuple, valid_until),
                    Err(reason) => End::Drop(reason),
                });
            }
            self.counters.add(Event::LeasesOver, 1);
            self.parking.get_mut(place).answers.clear();
            now = after;
        }
        self.retry_later(now, place)
    }

    fn walk_parked(&mut self, now: Time, place: u32) -> (Way, FlowTuple) {
        if self.parking.get_mut(place).arrived.part == Part::Join {
            return self.join(now, place);
        }
        let Self { access, chain, counters, changes, parking, claims, .. } = self;
        let (token, numbered) = (parking.token_of(place), parking.numbered());
        let parked = parking.get_mut(place);
        let Parked { arrived, first_key, answers, asked, .. } = parked;
        let Arrived { frame, parsed, slot, counted, .. } = arrived;
        let (slot, side) = (*slot, frame.side);
        let (bytes, tenant, translated) = (frame.as_slice(), chain.tenant(), &mut None);
        let mut packet = Packet { frame: bytes, parsed, tenant, side, translated };
        let first = chain.function(side, 0).and_then(|function| function.key(&packet));
        let way = walk(chain, now, (&mut packet, first.as_ref()), changes, |key, used, into| {
            if first_key.is_none() {
                *first_key = Some(*key);
                if claims.is_held(key) {
                    return Err(Stop::Behind(*key));
                }
            }
            let seen = (now, counted.tally(used, frame.as_slice()));
            if let Some(answer) = Answer::find(answers, now, key) {
                if used.keeps_alive && answer.entry.is_some() && !seen.1.is_zero() {
                    access.saw(seen, slot, key);
                    counted.note(used);
                }
                let found = answer.entry.map(|entry| *into = entry).is_some();
                return Ok((found, answer.valid_until));
            }
            let wanted = (key, KeyHash::UNKNOWN);
            let answer = if used.keeps_alive {
                access.read_seen(seen, (token, slot), wanted, into)
            } else {
                access.read(now, (token, slot), wanted, into)
            };
            match answer {
                ReadAnswer::Here { found, access, valid_until } => {
                    counters.add_accesses(access, 1);
                    if found {
                        counted.note(used);
                    }
                    let entry = found.then_some(*into);
                    Answer { key: *key, entry, valid_until, asked: numbered }.keep_in(answers);
                    Ok((found, valid_until))
                }
                ReadAnswer::Later => {
                    *asked = numbered;
                    Err(Stop::Asked(*key))
                }
                ReadAnswer::Unavailable => Err(Stop::Unavailable),
            }
        });
        (way, *packet.tuple())
    }

    /// Does what a packet that cannot be decided wants. `None`: it stays.
    fn settle(&mut self, now: Time, place: u32, way: Way) -> Option<End> {
        match way {
            Way::Decided { .. } => unreachable!("only what is not decided is settled"),
            Way::Stopped(Stop::Behind(key)) => {
                self.counters.add(Event::WaitsBehind, 1);
                self.claims.wait(&key, place);
                // A first fragment was answered before it came here: it waits for the one in front
                // now, who is looked after, and must stay until that one names it.
                self.parking.get_mut(place).phase = Phase::Waiting;
                None
            }
            Way::Stopped(Stop::Asked(key)) => {
                self.counters.add(Event::WaitsForRead, 1);
                self.parking.get_mut(place).phase = Phase::Reading(key);
                self.claim_first_key(place);
                None
            }
            Way::Stopped(Stop::Unavailable) => self.retry_later(now, place),
            Way::Stopped(Stop::Early) => self.wait_for_first(now, place),
            Way::Stopped(Stop::Fragment) => unreachable!("it stops a burst only"),
            Way::Changes => self.commit(now, place),
        }
    }

    /// Sends what a packet asked for as a transaction. `None`: it stays.
    fn commit(&mut self, now: Time, place: u32) -> Option<End> {
        let token = self.parking.token_of(place);
        let parked = self.parking.get_mut(place);
        if parked.transactions >= parked.arrived.part.transactions_max() {
            return Some(End::Drop(DropReason::Contention));
        }
        let transaction = Transaction {
            id: TransactionId { client: self.client, serial: self.serial + 1 },
            slot: parked.arrived.slot,
            conditions: core::mem::take(&mut self.changes.conditions),
            writes: core::mem::take(&mut self.changes.writes),
        };
        match self.access.submit(now, token, &transaction) {
            Ok(()) => {
                self.serial += 1;
                parked.transactions += 1;
                parked.phase = Phase::Committing { since: now };
                self.claim_first_key(place);
                self.claim_written(place, &transaction.writes);
                None
            }
            Err(QueueFull) => {
                parked.answers.clear();
                self.retry_later(now, place)
            }
        }
    }

    fn claim_first_key(&mut self, place: u32) {
        if let Some(key) = &self.parking.get_mut(place).first_key {
            self.claims.claim(key, place);
        }
    }

    /// Claims the keys that are about to change, as far as room can be spared: first keys have
    /// precedence, for order hangs on them. Without a claim, a condition fails instead.
    fn claim_written(&mut self, place: u32, writes: &[Write]) {
        for write in writes {
            let key = match write {
                Write::Put { key, fill, .. } if fill.key_at.is_none() => key,
                Write::Delete(key) | Write::Touch(key) | Write::Add { key, .. } => key,
                Write::Put { .. } | Write::Take(_) | Write::Return { .. } => continue,
            };
            if self.claims.room() > FIRST_KEYS * self.parking.places() {
                self.claims.claim(key, place);
            }
        }
    }

    /// Puts a packet back for another try; its time may be over. `None`: it stays.
    fn retry_later(&mut self, now: Time, place: u32) -> Option<End> {
        let parked = self.parking.get_mut(place);
        if now.since_ns(parked.since) >= GIVE_UP_NS {
            return Some(End::Drop(DropReason::StoreUnavailable));
        }
        let is_slow = parked.tries >= QUICK_TRIES;
        parked.tries = parked.tries.saturating_add(1);
        parked.phase = Phase::Retrying;
        let wait = if is_slow { SLOW_TRY_NS } else { QUICK_TRY_NS };
        self.retries[usize::from(is_slow)].push_back((now.plus_ns(wait), place));
        self.counters.add(Event::Retries, 1);
        self.claim_first_key(place);
        None
    }

    /// A packet ends its stay; whoever calls this runs what is ready then. Those who waited behind
    /// it become ready, with the reads that were asked for after they had come: nothing older may
    /// be shown to them.
    fn finish(&mut self, place: u32, end: End, out: &mut impl Output) {
        let Parked { arrived, answers, .. } = self.parking.remove(place);
        let Arrived { mut frame, parsed, part, .. } = arrived;
        let Self { claims, parking, ready, .. } = self;
        claims.release(place, |heir| {
            parking.get_mut(heir).inherit(&answers);
            ready.push_back(heir);
        });
        if self.parking.is_empty() {
            self.sweep_at = None;
        }
        let join = if part == Part::Whole { None } else { self.joins.take(place) };
        if let Some(join) = &join {
            self.end_join(join, matches!(end, End::Leave(..)));
        }
        let end = match end {
            End::Leave(tuple, valid_until) => {
                match (self.send_on(&mut frame, &parsed, Some(&tuple)), &join) {
                    (Err(reason), _) => Err(reason),
                    (Ok(_), Some(join)) if part == Part::Join => {
                        fragments::finish(&mut frame, &parsed, join);
                        Ok(valid_until)
                    }
                    (Ok(true), _) => {
                        return self.turned.push_back((frame, join.map(|join| join.member)));
                    }
                    (Ok(false), _) => Ok(valid_until),
                }
            }
            End::Drop(reason) => Err(reason),
        };
        self.hand_over(frame, end, out);
    }

    /// Gives up the packets whose reads or transactions were never answered. Such a transaction may
    /// have taken effect; its packet has not left, so nobody has relied on it.
    pub(super) fn sweep(&mut self, now: Time, out: &mut impl Output) {
        let mut from = 0;
        while let Some(place) = self.parking.next_forgotten(from, now) {
            self.end(now, place, DropReason::StoreUnavailable, out);
            from = place + 1;
        }
        self.sweep_at = (!self.parking.is_empty()).then_some(now.plus_ns(SWEEP_NS));
    }
}

/// The reason for which a packet is dropped when its transaction is refused; `None` if it is worth
/// another try.
const fn reason_of(refusal: Refusal) -> Option<DropReason> {
    match refusal {
        Refusal::TableFull => Some(DropReason::TableFull),
        Refusal::PoolEmpty => Some(DropReason::PortsExhausted),
        Refusal::QuotaReached => Some(DropReason::QuotaReached),
        // Forgotten: it has taken effect or not. Processing is a fixed point, so a look at the
        // state tells.
        Refusal::NotThisSlot | Refusal::IdForgotten => None,
        Refusal::Malformed | Refusal::VersionsUsedUp => Some(DropReason::StoreRefused),
    }
}
