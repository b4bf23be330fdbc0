//! What the pipe's tests share: a store that does as a script says, a chain whose verdicts tell
//! every mistake in order or commit, and the packets for it.

use crate::frame::{Burst, Frame};
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet;
use crate::pipe::{Output, Pipe, PipeSettings, Stages};
use crate::state_access::{Access, Completion, QueueFull, ReadAnswer, StateAccess, Token};
use crate::verdict::{DropReason, Verdict};
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{
    Condition, Endpoint, Entry, Fill, Key, KeyHash, LogIndex, Outcome, Refusal, SlotId, Tally,
    TenantId, Time, Transaction, Value, Version, Write,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

pub(super) const FLOW: u8 = 1;
pub(super) const HOST: u8 = 2;

/// How the world takes a read.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnRead {
    Here { lease_ns: u64 },
    Later { after_ns: u64, lease_ns: u64 },
    LaterFailed { after_ns: u64 },
    NeverAnswered,
    Unavailable,
}

/// How the world takes a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum OnSubmit {
    Decide {
        after_ns: u64,
    },
    /// As if somebody else had been faster.
    Fail {
        after_ns: u64,
    },
    Refuse(Refusal),
    /// No answer, and who knows whether it took effect.
    Unknown {
        applied: bool,
    },
    /// A retry that came too late: the store has forgotten what came of the first try.
    Forgotten {
        applied: bool,
    },
    Full,
    /// Taken, and never heard of again.
    NeverAnswered,
}

/// What the world does next.
pub(super) trait Script {
    fn on_read(&mut self) -> OnRead;
    fn on_submit(&mut self) -> OnSubmit;
    /// How long processing takes, as the clock shows it.
    fn on_clock(&mut self) -> u64;
}

enum Pending {
    Read { token: Token, key: Key, lease_ns: Option<u64> },
    Decide(Token, Box<Transaction>),
    Answer(Token, Option<Outcome>),
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) script: Box<dyn Script>,
    pending: Vec<(Time, Pending)>,
    version: u64,
    serial: u64,
    /// What came of each packet, by tag.
    pub(super) ends: BTreeMap<u64, Result<FlowTuple, DropReason>>,
    /// The tags in the order in which they left.
    pub(super) left: Vec<u64>,
    /// Packets that may leave.
    pub(super) room: usize,
    /// How long each of them takes to leave.
    pub(super) leaves_in_ns: u64,
    /// What was counted at each entry.
    pub(super) counted: BTreeMap<Key, Tally>,
    /// Called for each packet that leaves, with the entry of its flow.
    pub(super) on_leave: fn(&Packet<'_>, Option<&Entry>),
}

impl World {
    pub(super) fn new(script: impl Script + 'static) -> Self {
        Self {
            now: Time(1_000_000_000),
            entries: BTreeMap::new(),
            script: Box::new(script),
            pending: vec![],
            version: 0,
            serial: 0,
            ends: BTreeMap::new(),
            left: vec![],
            room: usize::MAX,
            leaves_in_ns: 0,
            counted: BTreeMap::new(),
            on_leave: |_, _| {},
        }
    }

    fn decide(&mut self, transaction: &Transaction) -> Outcome {
        for (number, condition) in transaction.conditions.iter().enumerate() {
            let holds = match condition {
                Condition::Absent(key) => !self.entries.contains_key(key),
                Condition::Present(key) => self.entries.contains_key(key),
                Condition::Version(key, version) => {
                    self.entries.get(key).is_some_and(|entry| entry.version == *version)
                }
                Condition::Expired(..) => panic!("no packet asks for an expiry"),
            };
            if !holds {
                return Outcome::ConditionFailed(number as u8);
            }
        }
        for write in &transaction.writes {
            let Write::Put { key, value, .. } = write else { panic!("the toys only put") };
            self.version += 1;
            let version = Version(self.version);
            self.entries.insert(*key, Entry { value: *value, version, slot: transaction.slot });
        }
        Outcome::Committed(LogIndex(self.version))
    }

    /// When the next answer is due.
    pub(super) fn next_answer(&self) -> Option<Time> {
        self.pending.iter().map(|(at, _)| *at).min()
    }
}

/// The world as the pipe and its driver see it.
#[derive(Clone)]
pub(super) struct Shared(pub(super) Rc<RefCell<World>>);

impl StateAccess for Shared {
    fn prefetch(&self, _: SlotId, _: &Key) -> KeyHash {
        KeyHash::UNKNOWN
    }

    fn prefetch_entry(&self, _: SlotId, hash: KeyHash) -> KeyHash {
        hash
    }

    fn read(
        &mut self,
        now: Time,
        (token, _): (Token, SlotId),
        (key, _): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        let mut world = self.0.borrow_mut();
        let is_same = |pending: &Pending| match pending {
            Pending::Read { token: other, .. }
            | Pending::Decide(other, _)
            | Pending::Answer(other, _) => *other == token,
        };
        // The token of nobody may have several: they belong to packets that found no room.
        let is_busy = token.0 != u64::MAX && world.pending.iter().any(|(_, p)| is_same(p));
        assert!(!is_busy, "a packet has one request under way at a time");
        let (after_ns, lease_ns) = match world.script.on_read() {
            OnRead::Here { lease_ns } => {
                let found = world.entries.get(key).map(|entry| *into = *entry).is_some();
                return ReadAnswer::Here {
                    found,
                    access: Access::Local,
                    valid_until: now.plus_ns(lease_ns),
                };
            }
            OnRead::Unavailable => return ReadAnswer::Unavailable,
            OnRead::NeverAnswered => return ReadAnswer::Later,
            OnRead::Later { after_ns, lease_ns } => (after_ns, Some(lease_ns)),
            OnRead::LaterFailed { after_ns } => (after_ns, None),
        };
        let pending = Pending::Read { token, key: *key, lease_ns };
        world.pending.push((now.plus_ns(after_ns), pending));
        ReadAnswer::Later
    }

    fn read_seen(
        &mut self,
        (now, tally): (Time, Tally),
        (token, slot): (Token, SlotId),
        wanted: (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        let answer = self.read(now, (token, slot), wanted, into);
        if let ReadAnswer::Here { found: true, .. } = answer {
            self.saw((now, tally), slot, wanted.0);
        }
        answer
    }

    fn saw(&mut self, (_, tally): (Time, Tally), _: SlotId, key: &Key) {
        let mut world = self.0.borrow_mut();
        let counted = world.counted.entry(*key).or_default();
        *counted = counted.plus(tally);
    }

    fn submit(
        &mut self,
        now: Time,
        token: Token,
        transaction: &Transaction,
    ) -> Result<(), QueueFull> {
        let mut world = self.0.borrow_mut();
        let (after_ns, pending) = match world.script.on_submit() {
            OnSubmit::Full => return Err(QueueFull),
            OnSubmit::NeverAnswered => {
                world.serial += 1;
                return Ok(());
            }
            OnSubmit::Decide { after_ns } => {
                (after_ns, Pending::Decide(token, Box::new(transaction.clone())))
            }
            OnSubmit::Fail { after_ns } => {
                (after_ns, Pending::Answer(token, Some(Outcome::ConditionFailed(0))))
            }
            OnSubmit::Refuse(refusal) => {
                (0, Pending::Answer(token, Some(Outcome::Refused(refusal))))
            }
            OnSubmit::Forgotten { applied } => {
                if applied {
                    world.decide(transaction);
                }
                (0, Pending::Answer(token, Some(Outcome::Refused(Refusal::IdForgotten))))
            }
            OnSubmit::Unknown { applied } => {
                if applied {
                    world.decide(transaction);
                }
                (0, Pending::Answer(token, None))
            }
        };
        // A packet that asks again does so under another id.
        assert_eq!(transaction.id.serial, world.serial + 1, "serials rise by one");
        assert_eq!(transaction.id.client, CLIENT);
        world.serial += 1;
        world.pending.push((now.plus_ns(after_ns), pending));
        Ok(())
    }

    fn poll(&mut self, now: Time) -> Option<Completion> {
        let mut world = self.0.borrow_mut();
        let due = world.pending.iter().enumerate().filter(|(_, (at, _))| *at <= now);
        let next = due.min_by_key(|(_, (at, _))| *at)?.0;
        Some(match world.pending.remove(next).1 {
            Pending::Read { token, key, lease_ns } => {
                let entry = world.entries.get(&key).copied();
                let answer = lease_ns.map(|ns| (entry, Access::RemoteTcp, now.plus_ns(ns)));
                Completion::Read { token, answer }
            }
            Pending::Decide(token, transaction) => {
                let outcome = Some(world.decide(&transaction));
                Completion::Transaction { token, outcome }
            }
            Pending::Answer(token, outcome) => Completion::Transaction { token, outcome },
        })
    }
}

impl Output for Shared {
    fn clock(&mut self) -> Time {
        let mut world = self.0.borrow_mut();
        let passes = world.script.on_clock();
        world.now = world.now.plus_ns(passes);
        world.now
    }

    fn leave(&mut self, frame: Frame, valid_until: Time) -> Result<(), (Frame, DropReason)> {
        let mut world = self.0.borrow_mut();
        if world.left.len() == world.room {
            return Err((frame, DropReason::OutputFull));
        }
        assert!(world.now <= valid_until || world.leaves_in_ns > 0, "only a slow port is too late");
        world.now = world.now.plus_ns(world.leaves_in_ns);
        if world.now > valid_until {
            return Err((frame, DropReason::LeaseOver));
        }
        assert_eq!(frame.side, Side::Outside, "what came from inside leaves outside");
        let parsed = packet::parse(frame.as_slice()).expect("what leaves is well-formed");
        let before = world.ends.insert(frame.tag, Ok(parsed.tuple));
        assert_eq!(before, None, "a packet ends once");
        world.left.push(frame.tag);
        let (bytes, side, translated) = (frame.as_slice(), Side::Inside, &mut None);
        let packet = Packet { frame: bytes, parsed: &parsed, tenant: TENANT, side, translated };
        (world.on_leave)(&packet, world.entries.get(&flow_key(&packet)));
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        let before = self.0.borrow_mut().ends.insert(frame.tag, Err(reason));
        assert_eq!(before, None, "a packet ends once");
    }
}

const TENANT: TenantId = TenantId(0);
const CLIENT: u64 = 77;

/// Keeps, for each flow, the number of its last *marking* packet, and shows it as the destination
/// port; or, as another stage, notes once that a host was seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Toy {
    Flow,
    Host,
    /// Has no state.
    Blind,
}

/// The flow of a toy packet: its source; the destination port is translated.
pub(super) fn flow_key(packet: &Packet<'_>) -> Key {
    Key::new(FLOW, 17, packet.tenant, (packet.tuple().source, Endpoint::default()))
}

/// Number and mark of a toy packet.
pub(super) fn number_of(packet: &Packet<'_>) -> (u64, bool) {
    let payload = &packet.frame[42..];
    (u64::from(u16::from_be_bytes([payload[0], payload[1]])), payload[2] == 1)
}

/// The port that packets of a flow leave to whose last mark is this.
pub(super) const fn port_of(mark: u64) -> u16 {
    1000 + mark as u16
}

/// Flows whose last mark is such a number are closed.
pub(super) const fn is_closed_by(mark: u64) -> bool {
    mark % 7 == 3
}

impl NetworkFunction for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        let host = Endpoint { port: 0, ..packet.tuple().source };
        match self {
            Self::Flow => Some(flow_key(packet)),
            Self::Host => Some(Key::new(HOST, 0, packet.tenant, (host, Endpoint::default()))),
            Self::Blind => None,
        }
    }

    fn process(
        &self,
        _: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        let Some(key) = self.key(packet) else { return Verdict::Forward };
        let (number, marks) = number_of(packet);
        let last = state.map_or(0, |entry| entry.value.0[0]);
        let wanted = match self {
            Self::Flow if marks && number > last => Some(number),
            Self::Host if state.is_none() => Some(1),
            _ => None,
        };
        if let Some(wanted) = wanted {
            changes.conditions.push(match state {
                Some(entry) => Condition::Version(key, entry.version),
                None => Condition::Absent(key),
            });
            let value = Value([wanted, 0, 0, 0, 0, 0, 0, 0]);
            changes.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s: 0 });
            return if number % 2 == 0 { Verdict::Commit } else { Verdict::Forward };
        }
        if matches!(self, Self::Flow) {
            assert!(last <= number, "number {number} was overtaken by {last}");
            packet.tuple_mut().destination.port = port_of(last);
            if is_closed_by(last) {
                return Verdict::Drop(DropReason::RuleDenied);
            }
        }
        Verdict::Forward
    }

    fn describe(&self, _: &Key, _: Option<&Entry>) -> String {
        String::new()
    }
}

pub(super) struct ToyChain(pub(super) Vec<Toy>);

impl Stages for ToyChain {
    type Function = Toy;

    fn function(&self, _: Side, stage: usize) -> Option<&Toy> {
        self.0.get(stage)
    }

    fn tenant(&self) -> TenantId {
        TENANT
    }

    fn slot(&self, _: Side, tuple: &FlowTuple) -> SlotId {
        SlotId(tuple.source.port)
    }
}

/// A packet of a flow: its number in the flow (from 1), and whether it marks its number.
pub(super) fn toy_frame(tag: u64, flow: u8, number: u16, marks: bool) -> Frame {
    let mut bytes = [0; 64];
    bytes[12] = 8;
    bytes[14..24].copy_from_slice(&[0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17]);
    // Two flows a host.
    bytes[26..34].copy_from_slice(&[10, 1, 0, 1 + flow / 2, 192, 0, 2, 1]);
    let words = bytes[14..34].as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    bytes[24..26].copy_from_slice(&folded.to_be_bytes());
    bytes[34..36].copy_from_slice(&(2000 + u16::from(flow)).to_be_bytes());
    bytes[36..40].copy_from_slice(&[0, 53, 0, 30]);
    bytes[42..44].copy_from_slice(&number.to_be_bytes());
    bytes[44] = u8::from(marks);
    let mut frame = Frame::new();
    frame.copy_from(&bytes).unwrap();
    frame.side = Side::Inside;
    frame.tag = tag;
    frame
}

pub(super) type ToyPipe = Pipe<Shared, ToyChain>;

pub(super) fn toy_pipe(toys: &[Toy], world: World, parked_max: usize) -> (ToyPipe, Shared) {
    let shared = Shared(Rc::new(RefCell::new(world)));
    let settings = PipeSettings { client: CLIENT, parked_max, seed: 3 };
    (Pipe::new(ToyChain(toys.to_vec()), shared.clone(), settings), shared)
}

/// One turn of a driver: a burst, the answers, the deadlines.
pub(super) fn turn(pipe: &mut ToyPipe, shared: &mut Shared, burst: &mut Burst) {
    let now = shared.0.borrow().now;
    pipe.on_burst(now, burst, shared);
    assert!(burst.is_empty());
    let now = shared.0.borrow().now;
    while pipe.on_completions(now, shared) > 0 {}
    let now = shared.0.borrow().now;
    pipe.on_deadline(now, shared);
    assert!(pipe.next_deadline().is_none_or(|at| at > now), "what is due is done");
    assert_eq!(pipe.next_deadline().is_some(), pipe.parked() > 0, "who is parked is looked after");
}

/// Turns, with the clock put to whatever comes next, until nothing is parked.
pub(super) fn run_dry(pipe: &mut ToyPipe, shared: &mut Shared) {
    for _ in 0..1_000_000 {
        if pipe.parked() == 0 {
            return;
        }
        let answer = shared.0.borrow().next_answer();
        let next = pipe.next_deadline().into_iter().chain(answer).min();
        let mut world = shared.0.borrow_mut();
        world.now = world.now.max(next.expect("something must come next"));
        drop(world);
        turn(pipe, shared, &mut Burst::new());
    }
    panic!("packets stay parked for ever");
}
