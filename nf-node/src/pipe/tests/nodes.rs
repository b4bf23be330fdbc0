//! Several nodes over one store: a pipe each, with reads and transactions that are answered now or
//! later, and nodes that die with what is parked in them.

use crate::baseline::{Baseline, BaselineConfig};
use crate::chain::Chain;
use crate::counters::CounterSnapshot;
use crate::frame::{Burst, Frame};
use crate::pipe::{Output, Pipe, PipeSettings, SteeredChain};
use crate::state_access::{Access, Completion, QueueFull, ReadAnswer, StateAccess, Token};
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::{Entry, Key, KeyHash, SlotId, Time, Transaction};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

pub(super) const SLOTS: u32 = 64;

/// A small generator: the same numbers each time.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.roll(at as u64 + 1) as usize);
        }
    }
}

/// What all nodes share.
struct Store {
    baseline: Baseline,
    dice: Dice,
    /// Of a hundred requests, so many are answered later.
    late_percent: u64,
    now: Time,
}

enum Asked {
    Read(Token, SlotId, Key),
    Transaction(Token, Box<Transaction>),
    Answered(Completion),
}

/// The store as one node reaches it.
struct Reach {
    store: Rc<RefCell<Store>>,
    asked: VecDeque<Asked>,
}

impl StateAccess for Reach {
    fn prefetch(&self, _: SlotId, _: &Key) -> KeyHash {
        KeyHash::UNKNOWN
    }

    fn prefetch_entry(&self, _: SlotId, hash: KeyHash) -> KeyHash {
        hash
    }

    fn read(
        &mut self,
        now: Time,
        (token, slot): (Token, SlotId),
        (key, _): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        let mut store = self.store.borrow_mut();
        let late = store.late_percent;
        if store.dice.roll(100) < late {
            self.asked.push_back(Asked::Read(token, slot, *key));
            return ReadAnswer::Later;
        }
        store.baseline.read(now, (token, slot), (key, KeyHash::UNKNOWN), into)
    }

    fn submit(
        &mut self,
        now: Time,
        token: Token,
        transaction: &Transaction,
    ) -> Result<(), QueueFull> {
        let mut store = self.store.borrow_mut();
        let late = store.late_percent;
        if store.dice.roll(100) < late {
            let asked = Asked::Transaction(token, Box::new(transaction.clone()));
            self.asked.push_back(asked);
            return Ok(());
        }
        store.baseline.submit(now, token, transaction)?;
        let decided = store.baseline.poll(now).expect("it is decided at once");
        self.asked.push_back(Asked::Answered(decided));
        Ok(())
    }

    fn poll(&mut self, now: Time) -> Option<Completion> {
        let mut store = self.store.borrow_mut();
        let Some(asked) = self.asked.pop_front() else {
            assert!(store.baseline.poll(now).is_none(), "this looks after what expires");
            return None;
        };
        Some(match asked {
            Asked::Answered(decided) => decided,
            Asked::Read(token, slot, key) => {
                let (mut entry, wanted) = (Entry::BLANK, (&key, KeyHash::UNKNOWN));
                let read = store.baseline.read(now, (token, slot), wanted, &mut entry);
                let ReadAnswer::Here { found, valid_until, .. } = read else {
                    panic!("a local table answers at once");
                };
                let entry = found.then_some(entry);
                Completion::Read { token, answer: Some((entry, Access::RemoteTcp, valid_until)) }
            }
            Asked::Transaction(token, transaction) => {
                store.baseline.submit(now, token, &transaction).expect("nothing else is pending");
                store.baseline.poll(now).expect("it is decided at once")
            }
        })
    }
}

/// What became of packets, by tag.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) left: BTreeMap<u64, (Side, Vec<u8>)>,
    pub(super) dropped: BTreeMap<u64, DropReason>,
    /// The tags in the order in which they left.
    pub(super) order: Vec<u64>,
    now: Time,
}

impl Ends {
    fn is_new(&self, tag: u64) -> bool {
        !self.left.contains_key(&tag) && !self.dropped.contains_key(&tag)
    }
}

impl Output for Ends {
    fn clock(&mut self) -> Time {
        self.now
    }

    fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
        assert!(self.is_new(frame.tag), "a packet ends once");
        self.order.push(frame.tag);
        self.left.insert(frame.tag, (frame.side, frame.as_slice().to_vec()));
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        assert!(self.is_new(frame.tag), "a packet ends once");
        self.dropped.insert(frame.tag, reason);
    }
}

/// See the module's text.
pub(super) struct Nodes {
    store: Rc<RefCell<Store>>,
    chain: Arc<Chain>,
    pipes: Vec<Pipe<Reach>>,
    started: u64,
    parked_max: usize,
    pub(super) ends: Ends,
    sent: BTreeMap<u64, (usize, Side, Vec<u8>)>,
}

impl Nodes {
    pub(super) fn new(count: usize, chain: &str, late_percent: u64, parked_max: usize) -> Self {
        let chain = Arc::new(Chain::new(&toml::from_str(chain).unwrap(), SLOTS).unwrap());
        let baseline = Baseline::new(BaselineConfig {
            capacity: 20_000,
            slots: SLOTS,
            pools: chain.pools().to_vec(),
            hash_key: 5,
            pending_max: 1,
        });
        let now = Time(1_000_000_000);
        let store = Store { baseline: baseline.unwrap(), dice: Dice::new(1), late_percent, now };
        let mut nodes = Self {
            store: Rc::new(RefCell::new(store)),
            chain,
            pipes: vec![],
            started: 0,
            parked_max,
            ends: Ends { now, ..Ends::default() },
            sent: BTreeMap::new(),
        };
        for _ in 0..count {
            let pipe = nodes.start();
            nodes.pipes.push(pipe);
        }
        nodes
    }

    fn start(&mut self) -> Pipe<Reach> {
        self.started += 1;
        let reach = Reach { store: self.store.clone(), asked: VecDeque::new() };
        let settings =
            PipeSettings { client: self.started, parked_max: self.parked_max, seed: self.started };
        Pipe::new(SteeredChain::new(self.chain.clone(), 9), reach, settings)
    }

    /// Gives a packet to a node, and no time to the node beyond that.
    pub(super) fn push(&mut self, node: usize, tag: u64, (side, bytes): (Side, &[u8])) {
        self.push_burst(node, &[(tag, side, bytes)]);
    }

    /// Gives a node several packets at once.
    pub(super) fn push_burst(&mut self, node: usize, packets: &[(u64, Side, &[u8])]) {
        let mut burst = Burst::new();
        for (tag, side, bytes) in packets {
            self.sent.insert(*tag, (node, *side, bytes.to_vec()));
            let mut frame = Frame::new();
            (frame.side, frame.tag) = (*side, *tag);
            frame.copy_from(bytes).unwrap();
            burst.push(frame);
        }
        let now = self.now();
        self.pipes[node].on_burst(now, &mut burst, &mut self.ends);
    }

    /// From now on so many of a hundred requests are answered later.
    pub(super) fn set_late(&self, percent: u64) {
        self.store.borrow_mut().late_percent = percent;
    }

    /// Of what a node has asked for, only the first so many are ever answered.
    pub(super) fn answer_only(&mut self, node: usize, count: usize) {
        self.pipes[node].access_mut().asked.truncate(count);
    }

    pub(super) fn now(&self) -> Time {
        self.store.borrow().now
    }

    /// Answers come, one at a time and at each node in turn, until there are none.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        while self.pipes.iter_mut().any(|pipe| pipe.on_completions(now, &mut self.ends) > 0) {}
    }

    /// Time passes for all.
    pub(super) fn wait_ns(&mut self, ns: u64) {
        let now = self.now().plus_ns(ns);
        self.store.borrow_mut().now = now;
        self.ends.now = now;
        for pipe in &mut self.pipes {
            pipe.on_deadline(now, &mut self.ends);
        }
        self.settle();
    }

    /// A packet that is given all the time it needs, but no time to wait for others.
    pub(super) fn send(&mut self, node: usize, tag: u64, packet: (Side, &[u8])) {
        self.push(node, tag, packet);
        self.settle();
    }

    /// Time passes until nothing is parked.
    pub(super) fn run_dry(&mut self) {
        self.settle();
        for _ in 0..10_000 {
            if self.parked() == 0 {
                return;
            }
            let next = self.pipes.iter().filter_map(Pipe::next_deadline).min();
            let next = next.expect("who is parked is looked after");
            self.wait_ns(next.since_ns(self.now()));
        }
        panic!("packets stay parked for ever");
    }

    /// A node dies with what is parked in it, and another takes its place; what was in it is sent
    /// again there.
    pub(super) fn kill(&mut self, node: usize) {
        self.pipes[node] = self.start();
        let lost: Vec<u64> = self
            .sent
            .iter()
            .filter(|(tag, (at, ..))| *at == node && self.ends.is_new(**tag))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in lost {
            let (_, side, bytes) = self.sent[&tag].clone();
            self.push(node, tag, (side, &bytes));
        }
    }

    pub(super) fn parked(&self) -> usize {
        self.pipes.iter().map(Pipe::parked).sum()
    }

    /// Entries in the store.
    pub(super) fn entries(&self) -> u64 {
        let store = self.store.borrow();
        store.baseline.machine().reader().entries()
    }

    pub(super) fn counters(&self) -> CounterSnapshot {
        let mut sum = CounterSnapshot::default();
        self.pipes.iter().for_each(|pipe| sum.merge(&pipe.counters().snapshot()));
        sum
    }
}
