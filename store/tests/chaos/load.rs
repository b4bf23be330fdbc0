//! Clients of a node: threads that write and read keys by the ways that a packet thread has, and
//! record each operation before it is asked for and after it is answered.
//!
//! A client has one operation under way. Keys change with the time: each is in use for a moment of
//! its own, by all clients of all processes at once, so that there are many keys with few
//! operations each, and all that are in use are contended. A read counts only if its lease is still
//! good once the value is in hand, as with a packet that leaves; otherwise nobody hears of it.

#![expect(clippy::disallowed_methods, reason = "clients rest")]

use crate::dice::Dice;
use crate::record::{
    Action, KeyNumber, OpId, ReadRecord, Record, Recorder, SHARDS, Seen, Way, value_of, writer_of,
};
use arrayvec::ArrayVec;
use nearstate_store::clock::boot_now;
use nearstate_store::link::{LinkCompletion, PipeLink, ReadGrant};
use nearstate_store::remote_read::{MappedReads, MappedTable, RemoteReads as _};
use nearstate_store::{
    Condition, Doorbell, Entry, Fill, LeaseCell, LogIndex, Outcome, Region, RegionIdentity,
    ShardId, TableReader, Term, Time, Transaction, TransactionId, Write,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// The cluster of the test.
pub(crate) const CLUSTER: u64 = 0xca05;
/// Clients of a process. Of three processes: not more than eight that share a key.
pub(crate) const CLIENTS: u64 = 2;
/// How long a key is in use.
pub(crate) const WINDOW_NS: u64 = 2_000_000_000;
/// Keys that are in use at a time.
pub(crate) const WINDOW_KEYS: u64 = 12;
/// Longest rest between two operations: the histories stay short enough to be checked.
const REST_US: u64 = 4_000;
/// Local reads in a row: most of what a woken process does before it hears anything.
const BURST: usize = 6;
/// A rest that took so much longer was more than a rest.
const NAP_NS: u64 = 20_000_000;
/// How long a client that was stopped does nothing but read in place.
const WAKING_NS: u64 = 5_000_000;
/// How long a write is tried.
const WRITE_PATIENCE_MS: u64 = 10_000;
/// How long a read is tried; one that fails is left out.
const READ_PATIENCE_MS: u64 = 1_000;
/// Longer than any wait for the bell.
const PATIENCE: Duration = Duration::from_secs(30);

/// This node's replica of a shard, as its pipes see it.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) reader: TableReader,
    pub(crate) lease: Arc<LeaseCell>,
}

/// What all clients of a process share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// By shard, from shard 1.
    pub(crate) replicas: Arc<[Replica]>,
    pub(crate) recorder: Recorder,
    /// When the first key came into use.
    pub(crate) origin: Time,
    pub(crate) stop: Arc<AtomicBool>,
    /// Operations that were answered.
    pub(crate) done: Arc<AtomicU64>,
}

impl Shared {
    /// The key in use at this moment, one of several; now and then one of the moment before.
    fn draw_key(&self, dice: &mut Dice) -> KeyNumber {
        let window = boot_now().since_ns(self.origin) / WINDOW_NS;
        let window = window.saturating_sub(u64::from(dice.below(8) == 0));
        KeyNumber(window * WINDOW_KEYS + dice.below(WINDOW_KEYS))
    }
}

/// One client. See the module's text.
pub(crate) struct Client {
    link: PipeLink,
    bell: Arc<Doorbell>,
    shared: Shared,
    number: u64,
    serial: u64,
    /// Regions of other processes, by shard.
    mapped: Vec<Option<(Arc<ReadGrant>, MappedReads)>>,
    dice: Dice,
}

fn place(shard: ShardId) -> usize {
    usize::from(shard.0) - 1
}

fn seen(key: KeyNumber, entry: Option<Entry>) -> Seen {
    let Some(Entry { value, version, slot }) = entry else { return Seen::Nothing };
    match writer_of(&value, key) {
        Some(op) if slot == key.slot() => Seen::Entry(op, version),
        _ => Seen::Nonsense,
    }
}

impl Client {
    pub(crate) fn new(
        shared: Shared,
        number: u64,
        (link, bell): (PipeLink, Arc<Doorbell>),
    ) -> Self {
        let mapped = (0..SHARDS).map(|_| None).collect();
        Self { link, bell, shared, number, serial: 0, mapped, dice: Dice::new(number) }
    }

    /// Asks and is answered until told to stop.
    pub(crate) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let key = self.shared.draw_key(&mut self.dice);
            match self.dice.below(10) {
                0..5 => drop(self.read(key)),
                5..7 => drop(self.write(key, Action::Put)),
                7 => drop(self.write(key, Action::Create)),
                8 => self.swap(key),
                _ => drop(self.write(key, Action::Delete)),
            }
            let rest = self.dice.below(REST_US) * 1000;
            let begun = boot_now();
            std::thread::sleep(Duration::from_nanos(rest));
            if boot_now().since_ns(begun) > rest + NAP_NS {
                self.wake_up();
            }
        }
    }

    /// This process was stopped, or the host is busy: before anything else, and before the store
    /// has heard much, reads in place whatever it still may.
    fn wake_up(&mut self) {
        let woken = boot_now();
        while boot_now().since_ns(woken) < WAKING_NS {
            let key = self.shared.draw_key(&mut self.dice);
            if self.read_local(key).is_none() {
                std::thread::yield_now();
            }
        }
    }

    /// One more write, when nobody else writes: where it stands in the log.
    pub(crate) fn last_word(&mut self, key: KeyNumber) -> Option<LogIndex> {
        // Its window is long over: nobody else writes it.
        match self.write(key, Action::Put) {
            Some(Outcome::Committed(index)) => Some(index),
            _ => None,
        }
    }

    fn completion(&mut self) -> LinkCompletion {
        loop {
            let seen = self.bell.count();
            match self.link.poll() {
                Some(completion) => return completion,
                None => drop(self.bell.wait(seen, PATIENCE)),
            }
        }
    }

    fn write(&mut self, key: KeyNumber, action: Action) -> Option<Outcome> {
        self.serial += 1;
        let op = OpId::new(self.number, self.serial);
        let transaction =
            transaction(TransactionId { client: self.number, serial: self.serial }, key, action);
        let at = boot_now();
        self.shared.recorder.write(&[Record::Invoked { at, op, key, action }]);
        let deadline = at.plus_ms(WRITE_PATIENCE_MS);
        let token = self.serial;
        self.link.submit(token, key.shard(), &transaction, deadline).expect("one is under way");
        match self.completion() {
            LinkCompletion::Transaction { token: answered, outcome } if answered == token => {
                let at = boot_now();
                self.shared.recorder.write(&[Record::Answered { at, op, outcome }]);
                self.shared.done.fetch_add(1, Ordering::Relaxed);
                outcome
            }
            other => panic!("{other:?} answers transaction {token}"),
        }
    }

    /// Compares and swaps with what a read has just shown.
    fn swap(&mut self, key: KeyNumber) {
        if let Some(Seen::Entry(op, version)) = self.read(key) {
            self.write(key, Action::Swap(op, version));
        }
    }

    fn told(&self, read: ReadRecord) -> Seen {
        self.shared.recorder.write(&[Record::Read(read)]);
        self.shared.done.fetch_add(1, Ordering::Relaxed);
        read.seen
    }

    /// One read, or several in a row, by a way that is open now; the last one's result.
    fn read(&mut self, key: KeyNumber) -> Option<Seen> {
        let owns = boot_now() < self.shared.replicas[place(key.shard())].lease.until();
        match (owns, self.dice.below(4)) {
            (_, 0) => self.ask(key, owns),
            (true, _) => {
                let mut last = None;
                for _ in 0..BURST {
                    last = self.read_local(key).or(last);
                }
                last
            }
            (false, _) => self.read_mapped(key),
        }
    }

    /// As a pipe at the owner reads: the lease is looked at again before anything leaves.
    fn read_local(&mut self, key: KeyNumber) -> Option<Seen> {
        let replica = &self.shared.replicas[place(key.shard())];
        let from = boot_now();
        let valid_until = replica.lease.until();
        let entry = replica.reader.get(&key.key());
        let term = Term(replica.reader.generation());
        let to = boot_now();
        if to >= valid_until {
            return None;
        }
        let (way, seen) = (Way::Local, seen(key, entry));
        Some(self.told(ReadRecord { from, to, key, way, seen, term }))
    }

    /// The region that the owner's grant names, mapped when the grant is new.
    fn map(&mut self, shard: ShardId) -> Option<&mut (Arc<ReadGrant>, MappedReads)> {
        let grant = self.link.grant(shard)?;
        let place = &mut self.mapped[place(shard)];
        if !place.as_ref().is_some_and(|(old, _)| Arc::ptr_eq(old, &grant)) {
            let identity = RegionIdentity { cluster: CLUSTER, shard };
            // It may be gone with its owner.
            let region = Region::open_read_only(&grant.path).ok()?;
            let reader = TableReader::open(Arc::new(region), identity).ok()?;
            let table = MappedTable::new(reader, grant.clone());
            *place = Some((grant, MappedReads::new(table, 64)));
        }
        place.as_mut()
    }

    fn read_mapped(&mut self, key: KeyNumber) -> Option<Seen> {
        let (grant, reads) = self.map(key.shard())?;
        let term = Term(grant.generation);
        let from = boot_now();
        let (of, deadline) = ((key.slot(), &key.key()), from.plus_ms(READ_PATIENCE_MS));
        reads.post(0, of, deadline).expect("one is under way");
        reads.flush(from);
        let answer = reads.poll().expect("what is flushed is answered");
        let (entry, valid_until) = answer.found.ok()?;
        let to = boot_now();
        if to >= valid_until {
            return None;
        }
        let (way, seen) = (Way::Mapped, seen(key, entry));
        Some(self.told(ReadRecord { from, to, key, way, seen, term }))
    }

    fn ask(&mut self, key: KeyNumber, owns: bool) -> Option<Seen> {
        let from = boot_now();
        let deadline = from.plus_ms(READ_PATIENCE_MS);
        let place = (key.shard(), key.slot());
        self.link.post_read(0, place, &key.key(), deadline).expect("one is under way");
        let LinkCompletion::Read { answer, .. } = self.completion() else {
            panic!("a transaction answers a read");
        };
        let (entry, valid_until) = answer?;
        let to = boot_now();
        if to >= valid_until {
            return None;
        }
        let way = if owns { Way::Asked } else { Way::Tcp };
        let (seen, term) = (seen(key, entry), Term(0));
        Some(self.told(ReadRecord { from, to, key, way, seen, term }))
    }
}

fn transaction(id: TransactionId, number: KeyNumber, action: Action) -> Transaction {
    let key = number.key();
    let value = value_of(OpId::new(id.client, id.serial), number);
    let put = Write::Put { key, value, fill: Fill::default(), ttl_s: 0 };
    let (condition, write) = match action {
        Action::Put => (None, put),
        Action::Create => (Some(Condition::Absent(key)), put),
        Action::Swap(_, version) => (Some(Condition::Version(key, version)), put),
        Action::Delete => (Some(Condition::Present(key)), Write::Delete(key)),
    };
    Transaction {
        id,
        slot: number.slot(),
        conditions: ArrayVec::from_iter(condition),
        writes: ArrayVec::from_iter([write]),
    }
}
