//! The bounded parking place: packets that wait for the store.
//!
//! A slab of places. A packet keeps its place, and with it its [`Token`], until it leaves or is
//! dropped; a token carries the place's generation, so an answer that comes after that finds
//! nobody.
//!
//! Never allocates after it was made, never decides what becomes of a packet.

use crate::frame::Frame;
use crate::packet::parsed::Parsed;
use crate::pipe::fragments::Part;
use crate::pipe::walk::Counted;
use crate::pipe::{COMMIT_GIVE_UP_NS, GIVE_UP_NS, STAGES_MAX};
use crate::state_access::Token;
use arrayvec::ArrayVec;
use nearstate_store::{Entry, Key, SlotId, Time};

/// What a packet is parked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Behind an earlier packet of its flow, or about to be processed.
    Waiting,
    /// For the answer to a read of this key.
    Reading(Key),
    /// For its transaction.
    Committing {
        /// When it was sent.
        since: Time,
    },
    /// For another try.
    Retrying,
    /// A later fragment: for the first one of its datagram.
    Early,
}

/// A read that has been answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) key: Key,
    pub(super) entry: Option<Entry>,
    pub(super) valid_until: Time,
    /// How many packets had been parked when it was asked for.
    pub(super) asked: u64,
}

/// A packet as it came in, and what is known of it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) frame: Frame,
    pub(super) parsed: Parsed,
    pub(super) slot: SlotId,
    pub(super) counted: Counted,
    pub(super) part: Part,
}

/// A parked packet.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) arrived: Arrived,
    /// The first key of its way, once it is known.
    pub(super) first_key: Option<Key>,
    /// When it was parked.
    pub(super) since: Time,
    /// The how-many-th packet it was that was parked.
    pub(super) number: u64,
    pub(super) phase: Phase,
    /// Transactions sent for it.
    pub(super) transactions: u8,
    /// Times that it was put back for another try.
    pub(super) tries: u16,
    /// How many packets had been parked when the read that it waits for was asked for.
    pub(super) asked: u64,
    /// Reads in hand, so that a later one need not wait for them again.
    pub(super) answers: Answers,
}

impl Parked {
    /// Takes what one in front of it was told after it had come: nothing older may be shown to it.
    pub(super) fn inherit(&mut self, answers: &[Answer]) {
        for answer in answers.iter().filter(|answer| answer.asked >= self.number) {
            answer.keep_in(&mut self.answers);
        }
    }
}

/// Reads in hand.
pub(super) type Answers = ArrayVec<Answer, STAGES_MAX>;

impl Answer {
    /// Joins the reads in hand; the oldest makes room.
    pub(super) fn keep_in(&self, answers: &mut Answers) {
        answers.retain(|kept| kept.key != self.key);
        if answers.is_full() {
            answers.remove(0);
        }
        answers.push(*self);
    }

    /// The read of this key that may still be used.
    pub(super) fn find<'a>(answers: &'a Answers, now: Time, key: &Key) -> Option<&'a Self> {
        answers.iter().find(|kept| kept.key == *key && kept.valid_until >= now)
    }
}

#[derive(Debug)]
struct Place {
    generation: u32,
    parked: Option<Parked>,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Parking {
    places: Box<[Place]>,
    free: Vec<u32>,
    /// Packets ever parked.
    numbered: u64,
}

/// The token that no place has: its answers find nobody.
pub(super) const NOBODY: Token = Token(u64::MAX);

impl Parking {
    pub(super) fn new(places: usize) -> Self {
        assert!(places < u32::MAX as usize, "places are numbered by 32 bits");
        let place = |_| Place { generation: 0, parked: None };
        Self {
            places: (0..places).map(place).collect(),
            free: (0..places as u32).rev().collect(),
            numbered: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) const fn places(&self) -> usize {
        self.places.len()
    }

    /// Packets ever parked: what [`Answer::asked`] counts.
    pub(super) const fn numbered(&self) -> u64 {
        self.numbered
    }

    fn token(&self, place: u32) -> Token {
        Token(u64::from(self.places[place as usize].generation) << 32 | u64::from(place))
    }

    /// The token that the next packet to be parked will have; [`NOBODY`] if there is no room.
    pub(super) fn next_token(&self) -> Token {
        self.free.last().map_or(NOBODY, |place| self.token(*place))
    }

    /// The token that the next packet would have had names nobody any more.
    pub(super) fn spoil_next_token(&mut self) {
        if let Some(place) = self.free.last() {
            let generation = &mut self.places[*place as usize].generation;
            *generation = generation.wrapping_add(1);
        }
    }

    /// The token of the packet in a place.
    pub(super) fn token_of(&self, place: u32) -> Token {
        debug_assert!(self.places[place as usize].parked.is_some());
        self.token(place)
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Parks a packet and gives its place. The caller has seen that there is room.
    pub(super) fn insert(&mut self, mut parked: Parked) -> u32 {
        let place = self.free.pop().expect("a parking place with room");
        self.numbered += 1;
        parked.number = self.numbered;
        self.places[place as usize].parked = Some(parked);
        place
    }

    /// Takes a packet out. Its token names nobody from now on.
    pub(super) fn remove(&mut self, place: u32) -> Parked {
        let slot = &mut self.places[place as usize];
        let parked = slot.parked.take().expect("only a parked packet is taken out");
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place);
        parked
    }

    /// The packet in a place.
    pub(super) fn get_mut(&mut self, place: u32) -> &mut Parked {
        self.places[place as usize].parked.as_mut().expect("a place that is in use")
    }

    /// The place of the packet that this token names, if it is still parked.
    pub(super) fn find(&self, token: Token) -> Option<u32> {
        let place = token.0 as u32;
        let found = self.places.get(place as usize)?;
        let same = found.parked.is_some() && u64::from(found.generation) == token.0 >> 32;
        same.then_some(place)
    }

    /// The first place from `from` on whose packet has waited too long for an answer.
    pub(super) fn next_forgotten(&self, from: u32, now: Time) -> Option<u32> {
        let is_forgotten = |parked: &Parked| match parked.phase {
            Phase::Reading(_) => now.since_ns(parked.since) >= GIVE_UP_NS,
            Phase::Committing { since } => now.since_ns(since) >= COMMIT_GIVE_UP_NS,
            // Those behind others wait for them, and retries have a time of their own.
            Phase::Waiting | Phase::Retrying | Phase::Early => false,
        };
        let mut places = self.places.iter().skip(from as usize);
        let found = places.position(|place| place.parked.as_ref().is_some_and(is_forgotten))?;
        Some(from + found as u32)
    }
}
