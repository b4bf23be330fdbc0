//! The packet loop of one core, as pure code: packets and answers go in, packets come out.
//!
//! A burst is done in passes (`burst`): all packets are parsed and their entries drawn near, then
//! each goes through the chain, then, once the clock says that every right to read still held, they
//! leave. A packet that needs more than a read in hand (a change of state, a far entry, an earlier
//! packet of its flow) leaves the burst and is *parked* (`parking`); answers and deadlines take
//! it up again (`resume`). Packets of one flow never overtake each other (`claims`).
//!
//! A packet from inside to one of the NAT's own ends has two halves (hairpinning): when the first,
//! outward one is done, the packet is taken in once more, as from outside. Each half is decided
//! under leases of its own, as if a router outside had sent it back. A fragment has a half of its
//! own as well: it joins what is known of its datagram (`fragments`).
//!
//! **Invariant.** Every packet that comes in leaves once or is dropped once, with a counted reason.
//! **Invariant.** No packet leaves before every change that its way asked for is committed, nor
//! after the right to use what was read for it has ended.
//!
//! After it was made it allocates nothing, takes no lock and makes no system call. It reads no
//! clock: the driver ([`crate::pipe_driver`]) gives it the time.

mod burst;
mod claims;
mod fragments;
mod parking;
mod resume;
#[cfg(test)]
mod tests;
mod walk;

pub use fragments::{EARLY_SHARE, FRAGMENT_SHARE, LOOKS_MAX};

use crate::chain::{Chain, Function};
use crate::chain_config::FunctionName;
use crate::cluster_access::STORE_PATIENCE_MS;
use crate::counters::{Counters, Event};
use crate::frame::{BURST_MAX, Frame};
use crate::nf::fragments::FragmentNames;
use crate::nf::{Changes, NetworkFunction};
use crate::packet::parsed::Parsed;
use crate::pipe::burst::Lanes;
use crate::pipe::claims::Claims;
use crate::pipe::fragments::{Early, Joins, Member};
use crate::pipe::parking::Parking;
use crate::rewrite;
use crate::state_access::{Completion, StateAccess};
use crate::verdict::DropReason;
use nearstate_placement::{FlowTuple, Side, Steering};
use nearstate_store::{SlotId, TenantId, Time};
use std::collections::VecDeque;
use std::sync::Arc;

/// Stages that a packet passes at most: each function stands once in a chain, and a NAT (two, with
/// NAT64) may have a filter.
pub const STAGES_MAX: usize = 6;
/// Packets that a pipe parks unless told otherwise.
pub const PARKED_MAX: usize = 4096;
/// Transactions that are sent for one packet before it is dropped as contended.
pub const TRANSACTIONS_MAX: u8 = 8;
const _: () = assert!(FunctionName::ALL.len() + 2 <= STAGES_MAX, "all of them, and two filters");
/// Times that one packet is processed again at once because a lease ended under it.
pub const LEASES_OVER_MAX: u8 = 4;
/// Tries that come after a short wait; later ones come after a long one.
pub const QUICK_TRIES: u16 = 10;
/// The wait before a quick try.
pub const QUICK_TRY_NS: u64 = 300_000;
/// The wait before a slow try: an owner that does not come back at once is being replaced.
pub const SLOW_TRY_NS: u64 = 3_000_000;
/// How long a packet waits for a store that does not answer.
pub const GIVE_UP_NS: u64 = 2_000_000_000;
/// How long a packet waits for its transaction. Longer than the store's own patience
/// ([`crate::cluster_access::STORE_PATIENCE_MS`]), whose answer says more than none.
pub const COMMIT_GIVE_UP_NS: u64 = 3_000_000_000;
const _: () = assert!(COMMIT_GIVE_UP_NS > STORE_PATIENCE_MS * 1_000_000);
/// How often the parking place is looked through for what was never answered.
pub const SWEEP_NS: u64 = 250_000_000;
/// Completions that are taken in one go, so that packets are not kept waiting.
pub const COMPLETIONS_AT_ONCE: usize = 256;

/// What a pipe sends its packets through: a chain, as far as the pipe must know it.
pub trait Stages {
    /// The functions of the chain.
    type Function: NetworkFunction;

    /// The how-many-th function that a packet from this side passes.
    fn function(&self, side: Side, stage: usize) -> Option<&Self::Function>;

    /// Whose packets these are.
    fn tenant(&self) -> TenantId;

    /// The slot of a packet.
    fn slot(&self, side: Side, tuple: &FlowTuple) -> SlotId;

    /// What names datagrams that come in fragments.
    fn fragment_names(&self) -> FragmentNames {
        FragmentNames::new(0)
    }

    /// Why a packet that arrives on this side must not come from where it says, if it must not.
    #[inline]
    fn refuses_source(&self, _side: Side, _frame: &[u8], _parsed: &Parsed) -> Option<DropReason> {
        None
    }

    /// Whether a packet from this side that is this flow behind the chain is to be taken in again,
    /// as from the other side.
    fn turns_round(&self, _side: Side, _tuple: &FlowTuple) -> bool {
        false
    }

    /// Whether a fragment of these ends could never cross the chain.
    fn ends_fragment(&self, _side: Side, _tuple: &FlowTuple) -> bool {
        false
    }

    /// Makes a frame one of the flow that it is behind the chain.
    ///
    /// # Errors
    /// Why it cannot be.
    fn rewrite(
        &self,
        frame: &mut Frame,
        parsed: &Parsed,
        tuple: &FlowTuple,
    ) -> Result<(), DropReason> {
        rewrite::apply(frame.as_mut_slice(), parsed, tuple);
        Ok(())
    }
}

/// A chain with the steering of its packets.
#[derive(Clone, Debug)]
pub struct SteeredChain {
    chain: Arc<Chain>,
    steering: Steering,
}

impl SteeredChain {
    /// The chain in a cluster whose steering has this seed.
    #[must_use]
    pub fn new(chain: Arc<Chain>, seed: u32) -> Self {
        let steering = chain.steering(seed);
        Self { chain, steering }
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The steering.
    #[must_use]
    pub const fn steering(&self) -> &Steering {
        &self.steering
    }
}

impl Stages for SteeredChain {
    type Function = Function;

    #[inline]
    fn function(&self, side: Side, stage: usize) -> Option<&Function> {
        self.chain.function(side, stage)
    }

    fn tenant(&self) -> TenantId {
        self.chain.tenant()
    }

    #[inline]
    fn slot(&self, side: Side, tuple: &FlowTuple) -> SlotId {
        self.steering.slot(self.chain.tenant(), side, tuple)
    }

    fn fragment_names(&self) -> FragmentNames {
        FragmentNames::new(self.steering.seed())
    }

    fn ends_fragment(&self, side: Side, tuple: &FlowTuple) -> bool {
        self.chain.ends_fragment(side, tuple)
    }

    #[inline]
    fn refuses_source(&self, side: Side, frame: &[u8], parsed: &Parsed) -> Option<DropReason> {
        self.chain.refuses_source(side, frame, parsed)
    }

    #[inline]
    fn turns_round(&self, side: Side, tuple: &FlowTuple) -> bool {
        self.chain.turns_round(side, tuple)
    }

    #[inline]
    fn rewrite(
        &self,
        frame: &mut Frame,
        parsed: &Parsed,
        tuple: &FlowTuple,
    ) -> Result<(), DropReason> {
        self.chain.rewrite(frame, parsed, tuple)
    }
}

/// What a pipe needs of the outside, and what it gives to it.
pub trait Output {
    /// The time of now. Asked after packets were processed and before they leave: once a burst, and
    /// once for each parked packet.
    fn clock(&mut self) -> Time;

    /// A packet leaves; its frame names the side that it leaves on. After `valid_until`, the end of
    /// the leases that it was decided under, it must not leave any more (P2): whoever lets time
    /// pass here looks at the clock again.
    ///
    /// # Errors
    /// Gives it back with the reason why it cannot leave: it is then dropped.
    fn leave(&mut self, frame: Frame, valid_until: Time) -> Result<(), (Frame, DropReason)>;

    /// A packet ends here.
    fn dropped(&mut self, frame: Frame, reason: DropReason);
}

/// How a pipe is set up.
#[derive(Clone, Copy, Debug)]
pub struct PipeSettings {
    /// The client of its transactions: unique for one life of one pipe.
    pub client: u64,
    /// Packets it parks at most.
    pub parked_max: usize,
    /// Seeds the table of claimed flows.
    pub seed: u64,
}

/// What has become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As this flow, until then.
    Leave(FlowTuple, Time),
    Drop(DropReason),
}

/// See the module's text.
#[derive(Debug)]
pub struct Pipe<S, C = SteeredChain> {
    access: S,
    chain: C,
    client: u64,
    /// Transactions sent so far.
    serial: u64,
    counters: Arc<Counters>,
    lanes: Lanes,
    /// What the packet at hand asks for.
    changes: Changes,
    parking: Parking,
    claims: Claims,
    /// Parked packets that are to be processed now.
    ready: VecDeque<u32>,
    /// Packets that have passed the chain and are to be taken in once more, as from outside.
    turned: VecDeque<(Frame, Option<Member>)>,
    /// Parked packets that are tried again: after a short wait, after a long one. In the order of
    /// their time, as the wait is the same for all of a queue.
    retries: [VecDeque<(Time, u32)>; 2],
    early: Early,
    joins: Joins,
    sweep_at: Option<Time>,
}

impl<S: StateAccess, C: Stages> Pipe<S, C> {
    /// A pipe with empty hands. All the memory it will ever use is taken here.
    pub fn new(chain: C, access: S, settings: PipeSettings) -> Self {
        let places = settings.parked_max;
        Self {
            access,
            chain,
            client: settings.client,
            serial: 0,
            counters: Arc::default(),
            lanes: Lanes::new(),
            changes: Changes::default(),
            parking: Parking::new(places),
            claims: Claims::new(places, settings.seed),
            ready: VecDeque::with_capacity(places),
            // A burst's, and those of all that is ready.
            turned: VecDeque::with_capacity(BURST_MAX + places),
            retries: [VecDeque::with_capacity(places), VecDeque::with_capacity(places)],
            early: Early::new(places),
            joins: Joins::new(places),
            sweep_at: None,
        }
    }

    /// Its counters, for whoever reports them.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Packets that are parked now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parking.len()
    }

    /// Packets that may be parked.
    #[must_use]
    pub const fn places(&self) -> usize {
        self.parking.places()
    }

    /// Its way to the state.
    pub const fn access_mut(&mut self) -> &mut S {
        &mut self.access
    }

    /// Takes the answers that have come, at most [`COMPLETIONS_AT_ONCE`]; gives how many there
    /// were.
    pub fn on_completions(&mut self, now: Time, out: &mut impl Output) -> usize {
        for taken in 0..COMPLETIONS_AT_ONCE {
            match self.access.poll(now) {
                None => return taken,
                Some(Completion::Read { token, answer }) => self.on_read(now, token, answer, out),
                Some(Completion::Transaction { token, outcome }) => {
                    self.on_transaction(now, token, outcome, out);
                }
            }
        }
        COMPLETIONS_AT_ONCE
    }

    /// When [`Pipe::on_deadline`] wants to be called; `None` if never.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let retries = self.retries.iter().filter_map(|queue| queue.front().map(|(at, _)| *at));
        retries.chain(self.early.next_deadline()).chain(self.sweep_at).min()
    }

    /// Does what is due.
    pub fn on_deadline(&mut self, now: Time, out: &mut impl Output) {
        for queue in 0..self.retries.len() {
            while let Some((_, place)) = self.retries[queue].pop_front_if(|(at, _)| *at <= now) {
                self.resume(now, place, out);
            }
        }
        while let Some(place) = self.early.pop_due(now) {
            self.resume(now, place, out);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now, out);
        }
    }

    /// Makes a frame what it leaves as, to the other side; whether it comes back from there.
    #[inline]
    fn send_on(
        &self,
        frame: &mut Frame,
        parsed: &Parsed,
        translated: Option<&FlowTuple>,
    ) -> Result<bool, DropReason> {
        if let Some(tuple) = translated {
            self.chain.rewrite(frame, parsed, tuple)?;
        }
        let side = frame.side;
        frame.side = side.opposite();
        Ok(self.chain.turns_round(side, translated.unwrap_or(&parsed.tuple)))
    }

    /// A packet that was not parked, or no longer is, goes out (until when it may) or ends.
    #[inline]
    fn hand_over(&self, frame: Frame, end: Result<Time, DropReason>, out: &mut impl Output) {
        let (frame, reason) = match end {
            Ok(valid_until) => match out.leave(frame, valid_until) {
                Ok(()) => return self.counters.add(Event::PacketsOut, 1),
                Err(returned) => returned,
            },
            Err(reason) => (frame, reason),
        };
        self.counters.add_drop(reason);
        out.dropped(frame, reason);
    }
}
