//! Fragments on their way through a pipe: the second half of a first one, and all that is done with
//! later ones.
//!
//! A fragment never leaves from a burst; it is parked at once and goes on by itself. The first of a
//! datagram passes the chain like any packet (its first half), keeps what it has claimed there, and
//! then *joins* the record of its datagram ([`crate::nf::fragments`]), in the record's own slot and
//! under leases of its own; it leaves when that is committed. A later one only joins. While the
//! first has not passed, here or anywhere, it waits: it claims nothing and makes no state, and
//! looks again, soon at first and then seldom; a first one that passes here wakes it.
//!
//! **Invariant.** No more than a quarter of the parking place is taken by those that wait so, and
//! no more than half of it by fragments.
//! **Invariant.** Who holds a claim of a record waits for the store only, so that a first fragment
//! may wait for it while it holds claims of its flow.

use crate::counters::Event;
use crate::frame::Frame;
use crate::nf::fragments::{self, DatagramName, Decision, Departs, Joining, List, Opening};
use crate::packet::fragment::{Datagram, Fragment, Piece};
use crate::packet::parse_fragment;
use crate::packet::parsed::Parsed;
use crate::pipe::parking::{Answer, Arrived, Parked, Phase};
use crate::pipe::walk::{Counted, Stop, Way};
use crate::pipe::{COMMIT_GIVE_UP_NS, End, Output, Pipe, Stages};
use crate::rewrite;
use crate::state_access::{ReadAnswer, StateAccess};
use crate::verdict::DropReason;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Condition, Entry, Fill, Key, KeyHash, Time, Value, Write};
use std::collections::VecDeque;

/// Of all places, those in which later fragments may wait for their first ones: one in so many.
pub const EARLY_SHARE: usize = 4;
/// Of all places, those that fragments may take, whatever they wait for: one in so many. Each of
/// them waits for commits that whole packets of a known flow do not need (RFC 4787 REQ-14a).
pub const FRAGMENT_SHARE: usize = 2;
/// The wait before a look that comes soon.
const SOON_LOOK_NS: u64 = 2_000_000;
/// Looks that come soon.
const SOON_LOOKS: u16 = 10;
/// The wait before a look that comes later.
const LATE_LOOK_NS: u64 = 50_000_000;
/// Looks that a later fragment takes before it is dropped: together 4 s, longer than its first one
/// may wait for the store. One that the store does not answer does not count.
pub const LOOKS_MAX: u16 = SOON_LOOKS + LATE_LOOKS;
const LATE_LOOKS: u16 = 80;
const _: () = assert!(LATE_LOOKS as u64 * LATE_LOOK_NS > COMMIT_GIVE_UP_NS);
/// Transactions that are sent for one fragment to join its record before it is dropped as
/// contended: the fragments of a datagram come together, and each changes the record.
const JOINS_MAX: u8 = 64;

/// What is left of a packet's way. What more there is to know of a fragment lies beside
/// ([`Pipe::joins`]): most parked packets are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The chain, and then it leaves.
    Whole,
    /// The chain; then it joins the record of its datagram.
    First,
    /// It joins the record; then it leaves.
    Join,
}

impl Part {
    /// Transactions that may be sent for it.
    pub(super) const fn transactions_max(self) -> u8 {
        match self {
            Self::Join => JOINS_MAX,
            Self::Whole | Self::First => super::TRANSACTIONS_MAX,
        }
    }
}

/// A fragment, as it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// The side that it came in on.
    side: Side,
    name: DatagramName,
    datagram: Datagram,
    piece: Piece,
    /// Of the first one.
    ports: (u16, u16),
}

/// A fragment on its way into the record of its datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    pub(super) member: Member,
    /// What it brings, if it is the first.
    opening: Option<Opening>,
    /// As what it leaves once the transaction that is under way has taken effect.
    asked: Option<Departs>,
    /// As what it leaves, since it is part of the record.
    joined: Option<Departs>,
    /// As what it leaves by what was read last.
    leaves: Option<Departs>,
    /// Looks at the record that have not shown its first fragment; not 0: it is counted as early.
    looks: u16,
}

impl Join {
    const fn new(member: Member) -> Self {
        Self { member, opening: None, asked: None, joined: None, leaves: None, looks: 0 }
    }
}

/// The parked fragments, by place.
#[derive(Debug)]
pub(super) struct Joins {
    joins: Box<[Option<Join>]>,
    count: usize,
    count_max: usize,
}

impl Joins {
    pub(super) fn new(places: usize) -> Self {
        let joins = vec![None; places].into_boxed_slice();
        Self { joins, count: 0, count_max: places.div_ceil(FRAGMENT_SHARE) }
    }

    const fn is_full(&self) -> bool {
        self.count == self.count_max
    }

    fn put(&mut self, place: u32, join: Join) {
        let before = self.joins[place as usize].replace(join);
        assert!(before.is_none(), "a place has one fragment");
        self.count += 1;
    }

    pub(super) fn take(&mut self, place: u32) -> Option<Join> {
        let taken = self.joins[place as usize].take();
        self.count -= usize::from(taken.is_some());
        taken
    }

    fn get_mut(&mut self, place: u32) -> &mut Join {
        match &mut self.joins[place as usize] {
            Some(join) => join,
            None => unreachable!("what is known of a parked fragment lies at its place"),
        }
    }
}

/// Later fragments that wait for their first ones, in the order of their next look.
#[derive(Debug)]
pub(super) struct Early {
    /// Soon and late; the wait is the same for all of a queue. With place and name.
    looks: [VecDeque<(Time, u32, u64)>; 2],
    count: usize,
    count_max: usize,
}

impl Early {
    pub(super) fn new(places: usize) -> Self {
        let count_max = places.div_ceil(EARLY_SHARE);
        let queue = || VecDeque::with_capacity(count_max);
        Self { looks: [queue(), queue()], count: 0, count_max }
    }

    /// When the next one is to look.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.looks.iter().filter_map(|queue| queue.front().map(|(at, ..)| *at)).min()
    }

    /// The place of one that is to look by now.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<u32> {
        let mut queues = self.looks.iter_mut();
        queues
            .find_map(|queue| queue.pop_front_if(|(at, ..)| *at <= now))
            .map(|(_, place, _)| place)
    }

    /// Takes out those of a datagram.
    fn wake(&mut self, name: u64, ready: &mut VecDeque<u32>) {
        for queue in &mut self.looks {
            queue.retain(|(_, place, waits_for)| {
                let wakes = *waits_for == name;
                if wakes {
                    ready.push_back(*place);
                }
                !wakes
            });
        }
    }
}

impl<S: StateAccess, C: Stages> Pipe<S, C> {
    /// Takes in a fragment of a burst.
    #[cold]
    pub(super) fn take_fragment(&mut self, now: Time, frame: Frame, out: &mut impl Output) {
        self.counters.add(Event::Fragments, 1);
        let Fragment { parsed, datagram, piece } = match parse_fragment(frame.as_slice()) {
            Ok(fragment) => fragment,
            Err(reason) => return self.hand_over(frame, Err(reason), out),
        };
        let side = frame.side;
        if let Some(reason) = self.chain.refuses_source(side, frame.as_slice(), &parsed) {
            return self.hand_over(frame, Err(reason), out);
        }
        if self.chain.ends_fragment(side, &parsed.tuple) {
            return self.hand_over(frame, Err(DropReason::Fragment), out);
        }
        let name = self.chain.fragment_names().name(self.chain.tenant(), side, &datagram);
        let ports = (parsed.tuple.source.port, parsed.tuple.destination.port);
        let member = Member { side, name, datagram, piece, ports };
        let part = if piece.is_first() { Part::First } else { Part::Join };
        let slot = self.chain.slot(side, &parsed.tuple);
        let arrived = Arrived { frame, parsed, slot, counted: Counted::default(), part };
        if let Some(place) = self.take_member(now, arrived, member, out) {
            self.resume(now, place, out);
        }
    }

    /// The place of a fragment that is parked; `None` if there was none and it was dropped.
    pub(super) fn take_member(
        &mut self,
        now: Time,
        arrived: Arrived,
        member: Member,
        out: &mut impl Output,
    ) -> Option<u32> {
        if self.joins.is_full() {
            self.hand_over(arrived.frame, Err(DropReason::FragmentsWaiting), out);
            return None;
        }
        let place = self.take_place(now, arrived, None, out)?;
        self.joins.put(place, Join::new(member));
        Some(place)
    }

    /// A fragment's transaction has taken effect, or not.
    pub(super) fn note_outcome(&mut self, place: u32, is_committed: bool) {
        let join = self.join_mut(place);
        let asked = join.asked.take();
        if is_committed {
            join.joined = asked;
        }
    }

    /// Whether a packet that the chain lets leave as this flow is to join a record first; if so it
    /// is ready for that.
    pub(super) fn begins_to_join(&mut self, place: u32, tuple: &FlowTuple) -> bool {
        let arrived = &self.parking.get_mut(place).arrived;
        let (part, side) = (arrived.part, arrived.frame.side);
        // What turns round goes through the chain once more first, as from outside.
        if part != Part::First || self.chain.turns_round(side, tuple) {
            return false;
        }
        let join = self.join_mut(place);
        let member = join.member;
        let departs = Departs { tuple: *tuple, is_turned: side != member.side };
        join.opening = Some(Opening { ports: member.ports, departs });
        let slot = self.chain.slot(member.side, &member.datagram.tuple);
        let parked = self.parking.get_mut(place);
        (parked.arrived.part, parked.arrived.slot) = (Part::Join, slot);
        parked.transactions = 0;
        parked.answers.clear();
        // Later packets of its flow stay behind it.
        if let Some(key) = parked.first_key.take() {
            self.claims.claim(&key, place);
        }
        true
    }

    /// A fragment at its record: how far it comes, and as what it leaves.
    pub(super) fn join(&mut self, now: Time, place: u32) -> (Way, FlowTuple) {
        let join = *self.join_mut(place);
        let tuple = self.parking.get_mut(place).arrived.parsed.tuple;
        let Member { name, datagram, piece, .. } = &join.member;
        let key = fragments::record_key(self.chain.tenant(), name.name);
        let (entry, valid_until) = match self.read_record(now, place, &key) {
            Ok(read) => read,
            Err(stop) => return (Way::Stopped(stop), tuple),
        };
        let (opening, joined) = (join.opening.as_ref(), join.joined.as_ref());
        let joining = Joining { datagram, piece, opening, joined };
        let (value, joins) = match fragments::decide(&joining, entry.as_ref()) {
            Decision::Leave(departs) => {
                self.join_mut(place).leaves = Some(departs);
                return (Way::Decided { verdict: Ok(()), valid_until }, departs.tuple);
            }
            Decision::Drop(reason) => {
                return (Way::Decided { verdict: Err(reason), valid_until }, tuple);
            }
            Decision::Early => return (Way::Stopped(Stop::Early), tuple),
            Decision::Put { value, joins } => (value, joins),
        };
        self.join_mut(place).asked = joins;
        self.changes.clear();
        // A record that lives long outlives a list that nobody has written since.
        if let Err(stop) = self.enlist(now, place, name.name) {
            return (Way::Stopped(stop), tuple);
        }
        self.put_if_unchanged(key, entry.as_ref(), value, fragments::record_s(datagram));
        (Way::Changes, tuple)
    }

    /// Asks for a place in a list for a record that has none.
    fn enlist(&mut self, now: Time, place: u32, name: u64) -> Result<(), Stop> {
        let (tenant, slot) = (self.chain.tenant(), self.parking.get_mut(place).arrived.slot);
        let key = fragments::list_key(tenant, slot, name);
        let (entry, _) = self.read_record(now, place, &key)?;
        let list = entry.map_or_else(List::default, |entry| List::decode(&entry.value));
        if !list.holds(name) {
            let (list, before) = list.with(name);
            self.put_if_unchanged(key, entry.as_ref(), list.encode(), fragments::LIST_S);
            let before = before.map(|name| Write::Delete(fragments::record_key(tenant, name)));
            self.changes.writes.extend(before);
        }
        Ok(())
    }

    fn put_if_unchanged(&mut self, key: Key, entry: Option<&Entry>, value: Value, ttl_s: u32) {
        self.changes.conditions.push(match entry {
            Some(entry) => Condition::Version(key, entry.version),
            None => Condition::Absent(key),
        });
        self.changes.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s });
    }

    fn join_mut(&mut self, place: u32) -> &mut Join {
        self.joins.get_mut(place)
    }

    /// Reads a record, or a list, for a parked fragment.
    fn read_record(
        &mut self,
        now: Time,
        place: u32,
        key: &Key,
    ) -> Result<(Option<Entry>, Time), Stop> {
        let (token, numbered) = (self.parking.token_of(place), self.parking.numbered());
        let parked = self.parking.get_mut(place);
        let Parked { arrived, first_key, answers, asked, .. } = parked;
        if first_key.is_none() {
            *first_key = Some(*key);
            if self.claims.is_held(key) {
                return Err(Stop::Behind(*key));
            }
        }
        if let Some(answer) = Answer::find(answers, now, key) {
            return Ok((answer.entry, answer.valid_until));
        }
        let mut into = Entry::BLANK;
        match self.access.read(now, (token, arrived.slot), (key, KeyHash::UNKNOWN), &mut into) {
            ReadAnswer::Here { found, access, valid_until } => {
                self.counters.add_accesses(access, 1);
                let entry = found.then_some(into);
                Answer { key: *key, entry, valid_until, asked: numbered }.keep_in(answers);
                Ok((entry, valid_until))
            }
            ReadAnswer::Later => {
                *asked = numbered;
                Err(Stop::Asked(*key))
            }
            ReadAnswer::Unavailable => Err(Stop::Unavailable),
        }
    }

    /// A later fragment has seen nothing of its first one. `None`: it stays.
    pub(super) fn wait_for_first(&mut self, now: Time, place: u32) -> Option<End> {
        let Self { parking, claims, ready, early, counters, joins, .. } = self;
        // It came by itself, or it is what others waited behind: they go on without it, with what
        // it was told after they had come.
        let answers = core::mem::take(&mut parking.get_mut(place).answers);
        claims.release(place, |heir| {
            parking.get_mut(heir).inherit(&answers);
            ready.push_back(heir);
        });
        let parked = parking.get_mut(place);
        let join = joins.get_mut(place);
        if join.looks >= LOOKS_MAX {
            return Some(End::Drop(DropReason::FragmentNoFirst));
        }
        if join.looks == 0 {
            if early.count == early.count_max {
                return Some(End::Drop(DropReason::FragmentsWaiting));
            }
            early.count += 1;
            counters.add(Event::FragmentsEarly, 1);
        }
        let is_late = join.looks >= SOON_LOOKS;
        let wait = if is_late { LATE_LOOK_NS } else { SOON_LOOK_NS };
        join.looks += 1;
        let name = join.member.name.name;
        parked.phase = Phase::Early;
        parked.first_key = None;
        // The store has answered: patience with it begins anew.
        (parked.since, parked.tries) = (now, 0);
        early.looks[usize::from(is_late)].push_back((now.plus_ns(wait), place, name));
        None
    }

    /// A fragment ends its stay; `leaves` if it is not dropped. Those that waited for it are ready.
    pub(super) fn end_join(&mut self, join: &Join, leaves: bool) {
        let Self { early, ready, .. } = self;
        early.count -= usize::from(join.looks > 0);
        if leaves && join.opening.is_some() && early.count > 0 {
            early.wake(join.member.name.name, ready);
        }
    }
}

/// Writes into a fragment that leaves what a whole packet has no need of, once its addresses stand
/// there.
pub(super) fn finish(frame: &mut Frame, parsed: &Parsed, join: &Join) {
    let Some(Departs { tuple, is_turned }) = join.leaves else { return };
    let Member { name, datagram, .. } = &join.member;
    if tuple.source.address != datagram.tuple.source.address {
        rewrite::mask_ident(frame.as_mut_slice(), parsed, name.mask);
    }
    // The first one was turned round as any packet is; the others only follow it.
    if is_turned && join.opening.is_none() {
        frame.side = frame.side.opposite();
    }
}
