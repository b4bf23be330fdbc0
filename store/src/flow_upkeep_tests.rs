//! Expiry in virtual time: against the deadlines of a model, under changes of owner, with ports,
//! and with a million timers.

use super::*;
use crate::batch::encode_batch;
use crate::block_journal::BLOCK_RECORDS_AT_ONCE;
use crate::flow_machine::FlowMachineConfig;
use crate::key::{ENDPOINT_V4, KEY_ENDPOINT_A, Value};
use crate::layout::KeyHash;
use crate::machine::{Machine, Reply};
use crate::table::Table;
use crate::table_reader::RegionIdentity;
use crate::transaction::{Batch, Fill, Outcome, Take, Transaction, TransactionId, Write};
use crate::types::{LogIndex, PoolId, ShardId, SlotId, TenantId};
use crate::upkeep::PoolPort;
use crate::{Endpoint, PoolSpec, Region, SlotSet, Tally};
use core::net::Ipv4Addr;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[path = "flow_upkeep_block_tests.rs"]
mod blocks;

const SOFT: SoftTerms = SoftTerms { within_ms: 500 };
const POOL: PoolId = PoolId(4);
/// Kinds of keys: alone; with a partner; its partner; with a port; what names the port.
const ALONE: u8 = 1;
const LEFT: u8 = 2;
const RIGHT: u8 = 3;
const OUT: u8 = 4;
const IN: u8 = 5;

fn key(kind: u8, number: u16) -> Key {
    Key::new(kind, 17, TenantId(0), (Endpoint::v4([10, 0, 0, 1], number), Endpoint::default()))
}

fn in_key(endpoint: [u8; 6]) -> Key {
    let mut bytes = key(IN, 0).to_bytes();
    let at = KEY_ENDPOINT_A + ENDPOINT_V4;
    bytes[at..at + 6].copy_from_slice(&endpoint);
    Key::from_bytes(&bytes)
}

fn endpoint_of(value: &Value) -> [u8; 6] {
    let bytes = value.to_bytes();
    [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
}

/// The rules of the test's kinds.
#[derive(Debug)]
struct Rules;

impl EntryRules for Rules {
    fn end(&self, key: &Key, entry: &Entry, ending: &mut Ending) {
        let number = key.ends().0.port;
        ending.writes.push(Write::Delete(*key));
        match key.kind() {
            LEFT | RIGHT => {
                let other = super::tests::key(LEFT + RIGHT - key.kind(), number);
                ending.partners.push(other);
                ending.writes.push(Write::Delete(other));
            }
            OUT => {
                let endpoint = endpoint_of(&entry.value);
                ending.writes.push(Write::Delete(in_key(endpoint)));
                ending.writes.push(Write::Return { pool: POOL, protocol: 17, endpoint });
            }
            _ => {}
        }
    }

    fn tally(&self, key: &Key) -> Option<usize> {
        (key.kind() != IN).then_some(6)
    }

    fn port(&self, key: &Key, _: &Entry) -> Option<PoolPort> {
        let bytes = key.to_bytes();
        let at = KEY_ENDPOINT_A + ENDPOINT_V4;
        let endpoint = core::array::from_fn(|i| bytes[at + i]);
        (key.kind() == IN).then_some(PoolPort { pool: POOL, protocol: 17, endpoint })
    }
}

fn machine(hash_key: u64, capacity: u32) -> FlowMachine {
    let region = Arc::new(Region::anonymous(Table::bytes_for(capacity).unwrap()).unwrap());
    let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
    let table = Table::format(region, identity, capacity, hash_key).unwrap();
    let addresses = vec![Ipv4Addr::new(198, 19, 0, 1)];
    let pools = vec![PoolSpec::new(POOL, addresses, 4, 8).unwrap()];
    let config = FlowMachineConfig { table, slots: SlotSet::all(4), pools };
    FlowMachine::new(config).with_rules(Arc::new(Rules)).with_soft_state(SOFT)
}

fn put(key: Key, ttl_s: u32) -> Write {
    Write::Put { key, value: Value::ZERO, fill: Fill::default(), ttl_s }
}

fn take(number: u16) -> [Write; 3] {
    let take = Take { pool: POOL, protocol: 17, holder: [number as u8 % 5; 16], like_port: number };
    let fill = |key_at, value_at| Fill { key_at, value_at };
    let at = (KEY_ENDPOINT_A + ENDPOINT_V4) as u8;
    let put = |key, fill, ttl_s| Write::Put { key, value: Value::ZERO, fill, ttl_s };
    [
        Write::Take(take),
        put(key(OUT, number), fill(None, Some(0)), 20),
        put(key(IN, 0), fill(Some(at), None), 0),
    ]
}

/// Replicas and the log that drives them, in virtual time. Each node has a clock of its own.
struct Shard {
    replicas: Vec<FlowMachine>,
    owner: usize,
    term: u64,
    time_ms: u64,
    index: u64,
    serial: u64,
}

impl Shard {
    fn new(replicas: u64, capacity: u32) -> Self {
        let replicas = (0..replicas).map(|number| machine(number + 1, capacity)).collect();
        let mut shard =
            Self { replicas, owner: 0, term: 1, time_ms: 1_000_000, index: 0, serial: 0 };
        shard.upkeep();
        shard
    }

    /// The clock of a node.
    fn now(&self, node: usize) -> Time {
        Time::from_ms(self.time_ms + 77_000 * (node as u64 + 1))
    }

    fn apply(&mut self, transactions: Vec<Transaction>, seen: Vec<SeenNote>) -> Vec<Outcome> {
        self.index += 1;
        let payload = encode_batch(&Batch { time_ms: self.time_ms, transactions, seen });
        FlowMachine::check(&payload).unwrap();
        let index = LogIndex(self.index);
        let replies = self.replicas.iter_mut().map(|machine| machine.apply(index, &payload));
        let mut replies: Vec<Reply> = replies.collect();
        assert!(replies.windows(2).all(|pair| pair[0] == pair[1]), "replicas disagree");
        match replies.remove(0) {
            Reply::Outcomes(outcomes) => outcomes.into_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, writes: &[Write]) -> Outcome {
        self.serial += 1;
        let transaction = Transaction {
            id: TransactionId { client: 1, serial: self.serial },
            slot: SlotId(1),
            conditions: [].into_iter().collect(),
            writes: writes.iter().copied().collect(),
        };
        self.apply(vec![transaction], vec![])[0]
    }

    /// A packet at the owner, which keeps an entry alive. Whether there was one.
    fn packet(&mut self, key: &Key) -> bool {
        self.counted_packet(key, Tally::ZERO)
    }

    /// One that is counted.
    fn counted_packet(&mut self, key: &Key, tally: Tally) -> bool {
        let seen = (self.now(self.owner), tally);
        let mut entry = Entry::BLANK;
        let reader = self.replicas[self.owner].reader();
        reader.get_seen(key, KeyHash::UNKNOWN, seen, &mut entry)
    }

    /// What the owner has to propose now.
    fn work(&mut self, wants_seen: bool) -> Upkeep {
        let clock =
            UpkeepClock { time_ms: self.time_ms, now: self.now(self.owner), term: Term(self.term) };
        let mut all = Upkeep { wants_seen, ..Upkeep::new() };
        let mut work = Upkeep { wants_seen, ..Upkeep::new() };
        loop {
            work.clear();
            self.replicas[self.owner].upkeep(&clock, &mut work);
            assert!(work.expiries.len() <= EXPIRIES_MAX && work.seen.len() <= SEEN_NOTES_MAX);
            assert!(work.steps <= TIMERS_AT_ONCE && work.cells <= CELLS_AT_ONCE);
            all.expiries.append(&mut work.expiries);
            all.seen.append(&mut work.seen);
            assert!(work.blocks.len() <= BLOCK_RECORDS_AT_ONCE);
            all.blocks.append(&mut work.blocks);
            if !work.is_more {
                return all;
            }
        }
    }

    /// Proposes expiries; gives the keys that expired.
    fn propose(&mut self, work: Upkeep) -> Vec<Key> {
        let keys: Vec<Key> = work
            .expiries
            .iter()
            .map(|expiry| match expiry.conditions[0] {
                Condition::Expired(key, _) => key,
                other => panic!("{other:?}"),
            })
            .collect();
        let transactions = work.expiries.into_iter().map(|expiry| {
            self.serial += 1;
            expiry.into_transaction(TransactionId { client: 2, serial: self.serial })
        });
        let transactions = transactions.collect();
        let outcomes = self.apply(transactions, work.seen);
        let done = |(_, outcome): &(Key, Outcome)| matches!(outcome, Outcome::Committed(_));
        keys.into_iter().zip(outcomes).filter(done).map(|(key, _)| key).collect()
    }

    fn upkeep(&mut self) -> Vec<Key> {
        let work = self.work(true);
        self.propose(work)
    }

    /// The owner is gone with all that it alone knew; another goes on.
    fn change_owner(&mut self, owner: usize) {
        if owner != self.owner {
            let capacity = self.replicas[0].table.capacity();
            let mut fresh = machine(99 + self.index, capacity);
            fresh.install(&self.replicas[owner].snapshot()).unwrap();
            self.replicas[self.owner] = fresh;
        }
        (self.owner, self.term) = (owner, self.term + 1);
    }

    fn len(&self) -> u32 {
        self.replicas[self.owner].table.len()
    }
}

#[test]
fn an_entry_expires_once_and_not_before_its_time_and_a_refresh_that_came_first_wins() {
    let mut shard = Shard::new(2, 100);
    for number in 0..3 {
        shard.write(&[put(key(ALONE, number), 10)]);
    }
    shard.write(&[put(key(ALONE, 9), 0)]);
    shard.time_ms += 9_990;
    assert!(shard.upkeep().is_empty());
    assert!(shard.packet(&key(ALONE, 1)), "one is seen just in time");
    shard.time_ms += 700;
    let work = shard.work(false);
    assert_eq!(work.expiries.len(), 2, "{work:?}");
    // A refresh is faster than the expiry that is under way.
    shard.write(&[Write::Touch(key(ALONE, 2))]);
    let (late, again) = (work.clone(), work);
    assert_eq!(shard.propose(late), [key(ALONE, 0)]);
    assert_eq!(shard.propose(again), [], "the same proposal twice");
    assert_eq!(shard.replicas[1].stats().expired, 1);
    shard.time_ms += 12_000;
    assert_eq!(shard.upkeep().len(), 2);
    assert_eq!((shard.len(), shard.replicas[0].timers()), (1, 0), "the endless one stays");
}

#[test]
fn a_note_from_the_network_counts_as_if_it_was_seen_here() {
    let mut shard = Shard::new(2, 100);
    shard.write(&[put(key(ALONE, 1), 10)]);
    shard.time_ms += 9_000;
    shard.apply(vec![], vec![SeenNote { key: key(ALONE, 1), age_ms: 200, tally: Tally::ZERO }]);
    shard.apply(vec![], vec![SeenNote { key: key(ALONE, 2), age_ms: 0, tally: Tally::ZERO }]);
    shard.time_ms += 9_800;
    let stale = shard.work(false);
    assert!(stale.expiries.is_empty(), "{stale:?}");
    shard.time_ms += 600;
    assert_eq!(shard.upkeep(), [key(ALONE, 1)]);
}

#[test]
fn a_pair_lives_as_long_as_one_of_its_two_is_seen() {
    let mut shard = Shard::new(2, 100);
    shard.write(&[put(key(LEFT, 7), 10), put(key(RIGHT, 7), 10)]);
    for _ in 0..5 {
        shard.time_ms += 6_000;
        assert!(shard.packet(&key(RIGHT, 7)));
        assert!(shard.upkeep().is_empty());
    }
    shard.time_ms += 9_900;
    assert!(shard.upkeep().is_empty());
    shard.time_ms += 800;
    // Both timers may be due; the pair ends once.
    assert_eq!(shard.upkeep().len(), 1);
    assert_eq!(shard.len(), 0);
}

#[test]
fn what_was_seen_is_told_within_its_time_if_it_is_worth_it_and_not_twice() {
    let mut shard = Shard::new(2, 100);
    shard.write(&[put(key(ALONE, 1), 8), put(key(ALONE, 2), 800)]);
    shard.time_ms += 3_000;
    assert!(shard.packet(&key(ALONE, 1)) && shard.packet(&key(ALONE, 2)));
    let mut told = vec![];
    for _ in 0..20 {
        shard.time_ms += SOFT.within_ms / 10;
        let work = shard.work(true);
        told.extend(work.seen.iter().map(|note| note.key));
        shard.propose(work);
    }
    assert_eq!(told, [key(ALONE, 1)], "3 s of 800 s are no news, and 3 s of 8 s are news once");
    assert_eq!(shard.replicas[1].stats().seen_notes, 1);
    let lives: Vec<_> = [0, 1].map(|at| shard.replicas[at].table.get_living(&key(ALONE, 1))).into();
    assert_eq!(lives[0], lives[1]);
    assert!(lives[0].unwrap().1.seen_ms() >= 1_003_000);
}

#[test]
fn a_busy_group_is_told_nothing_and_later_all_of_it() {
    let mut shard = Shard::new(1, 100);
    shard.write(&[put(key(ALONE, 1), 8)]);
    for _ in 0..30 {
        shard.time_ms += 100;
        assert!(shard.packet(&key(ALONE, 1)));
        assert!(shard.work(false).seen.is_empty());
    }
    shard.time_ms += SOFT.within_ms;
    let told: usize = (0..12)
        .map(|_| {
            shard.time_ms += 50;
            shard.work(true).seen.len()
        })
        .sum();
    assert!(told >= 1);
}

#[test]
fn ports_come_back_with_their_mapping_and_rest() {
    let mut shard = Shard::new(2, 200);
    let mut numbers = 0..60;
    for number in numbers.by_ref() {
        assert!(matches!(shard.write(&take(number)), Outcome::Committed(_)));
    }
    let live = |shard: &Shard| {
        let report = shard.replicas[shard.owner].pool_check().unwrap();
        (report.live, report.resting)
    };
    assert_eq!(live(&shard), (60, 0));
    shard.time_ms += 15_000;
    (0..20).for_each(|number| assert!(shard.packet(&key(OUT, number))));
    shard.time_ms += 6_000;
    assert_eq!(shard.upkeep().len(), 40);
    assert_eq!(live(&shard), (20, 40));
    shard.time_ms += 30_000;
    assert_eq!(shard.upkeep().len(), 20);
    assert_eq!((live(&shard), shard.len()), ((0, 60), 0));
    // After the hold-down everything is as it was in the beginning.
    shard.time_ms += 120_000;
    shard.apply(vec![], vec![]);
    let report = shard.replicas[0].pool_check().unwrap();
    assert_eq!(report, PoolReport::default());
    assert_eq!(shard.replicas[0].pool_counts(), BTreeMap::new());
}

#[test]
fn a_leak_of_either_kind_is_found() {
    let mut shard = Shard::new(1, 100);
    shard.write(&take(1));
    let endpoint = endpoint_of(&shard.replicas[0].table.get(&key(OUT, 1)).unwrap().value);
    shard.write(&[Write::Delete(in_key(endpoint))]);
    let leak = shard.replicas[0].pool_check();
    assert_eq!(leak, Err(PoolLeak::NoEntry(POOL, endpoint, 1)));
    shard.write(&[put(in_key(endpoint), 0)]);
    assert_eq!(shard.replicas[0].pool_check().unwrap().live, 1);
    shard.write(&[Write::Return { pool: POOL, protocol: 17, endpoint }]);
    let port = PoolPort { pool: POOL, protocol: 17, endpoint };
    assert_eq!(shard.replicas[0].pool_check(), Err(PoolLeak::NoPort(port, in_key(endpoint))));
    let mut other = in_key(endpoint).to_bytes();
    other[39] = 1;
    let other = Key::from_bytes(&other);
    shard.write(&[put(other, 0)]);
    let found = shard.replicas[0].pool_check();
    assert!(matches!(found, Err(PoolLeak::TwoEntries(p, _, _)) if p == port), "{found:?}");
}

#[test]
fn a_snapshot_has_the_deadlines() {
    let mut shard = Shard::new(1, 100);
    shard.write(&[put(key(ALONE, 1), 10), put(key(ALONE, 2), 1_000)]);
    let mut copy = machine(9, 100);
    copy.install(&shard.replicas[0].snapshot()).unwrap();
    assert_eq!((copy.timers(), copy.state_hash()), (2, shard.replicas[0].state_hash()));
    shard.replicas.push(copy);
    shard.change_owner(1);
    // The new owner does not know what the other saw in the end.
    shard.time_ms += 9_000;
    assert!(shard.upkeep().is_empty());
    shard.time_ms += 9_900;
    assert!(shard.upkeep().is_empty());
    shard.time_ms += 700;
    assert_eq!(shard.upkeep(), [key(ALONE, 1)]);
}

#[test]
fn a_million_timers_are_bounded_work_at_each_call() {
    const MANY: u32 = 1_000_000;
    let mut shard = Shard::new(1, MANY);
    for first in (0..MANY).step_by(6) {
        let writes: Vec<Write> = (first..MANY.min(first + 6))
            .map(|number| {
                let end = Endpoint::v4(number.to_be_bytes(), 1);
                put(Key::new(ALONE, 17, TenantId(0), (end, Endpoint::default())), 300)
            })
            .collect();
        // Without a log: what is measured here are the timers.
        shard.serial += 1;
        let transaction = Transaction {
            id: TransactionId { client: 1, serial: shard.serial },
            slot: SlotId(1),
            conditions: [].into_iter().collect(),
            writes: writes.into_iter().collect(),
        };
        let outcome = shard.replicas[0].apply_one(LogIndex(1), shard.time_ms, &transaction);
        assert!(matches!(outcome, Outcome::Committed(_)));
    }
    assert_eq!(shard.replicas[0].timers(), MANY);
    shard.time_ms += 301_000;
    let (mut expired, mut steps, mut calls) = (0, 0_u64, 0_u64);
    let mut work = Upkeep { wants_seen: true, ..Upkeep::new() };
    while expired < MANY {
        work.clear();
        let clock = UpkeepClock { time_ms: shard.time_ms, now: shard.now(0), term: Term(1) };
        shard.replicas[0].upkeep(&clock, &mut work);
        assert!(work.steps <= TIMERS_AT_ONCE && work.expiries.len() <= EXPIRIES_MAX);
        assert!(work.cells <= CELLS_AT_ONCE && work.seen.len() <= SEEN_NOTES_MAX);
        (steps, calls) = (steps + u64::from(work.steps), calls + 1);
        assert!(calls < 20_000, "{expired} of {MANY} after {calls} calls");
        for expiry in work.expiries.drain(..) {
            shard.serial += 1;
            let id = TransactionId { client: 2, serial: shard.serial };
            let transaction = expiry.into_transaction(id);
            let outcome = shard.replicas[0].apply_one(LogIndex(2), shard.time_ms, &transaction);
            assert!(matches!(outcome, Outcome::Committed(_)));
            expired += 1;
        }
    }
    assert_eq!((shard.len(), shard.replicas[0].timers()), (0, 0));
    assert!(steps <= 5 * u64::from(MANY), "{steps} steps for {MANY} timers");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u16, u32),
    PutPair(u16, u32),
    Take(u16),
    Packet(u8, u16),
    Pass(u64),
    Upkeep,
    /// Work is fetched, time passes, and only then it is proposed.
    SlowUpkeep(u64),
    ChangeOwner(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..12_u16;
    prop_oneof![
        2 => (number.clone(), 1..40_u32).prop_map(|(number, ttl)| Step::Put(number, ttl)),
        1 => (number.clone(), 1..40_u32).prop_map(|(number, ttl)| Step::PutPair(number, ttl)),
        1 => number.clone().prop_map(Step::Take),
        6 => (ALONE..=OUT, number).prop_map(|(kind, number)| Step::Packet(kind, number)),
        5 => prop_oneof![1..70_u64, 1..3_000_u64, 1..40_000_u64].prop_map(Step::Pass),
        6 => Just(Step::Upkeep),
        1 => (1..5_000_u64).prop_map(Step::SlowUpkeep),
        1 => (0..3_usize).prop_map(Step::ChangeOwner),
    ]
}

/// When each entry was really last seen, in the shard's time, and how long it lives.
#[derive(Default)]
struct Truth {
    seen: BTreeMap<Key, (u64, u64)>,
    /// Times that something took effect on a key that made it a new object.
    born: u64,
    ended: u64,
}

impl Truth {
    /// An object ends: never before it, or its partner, has not been seen for its lifetime.
    fn end(&mut self, shard: &Shard, key: &Key, proposed_ms: u64) {
        let partner = match key.kind() {
            LEFT | RIGHT => Some(super::tests::key(LEFT + RIGHT - key.kind(), key.ends().0.port)),
            _ => None,
        };
        for key in core::iter::once(*key).chain(partner) {
            let (seen, ttl) = self.seen.remove(&key).expect("what expires was there");
            assert!(
                proposed_ms >= seen + ttl,
                "{key:?} expired {} ms early",
                seen + ttl - proposed_ms
            );
            self.ended += 1;
            assert!(shard.replicas[0].table.get(&key).is_none());
        }
    }
}

/// Replicas agree, and each port in use is in use for an entry that is there.
fn check_replicas(shard: &Shard, truth: &Truth) {
    let hashes: Vec<u64> = shard.replicas.iter().map(Machine::state_hash).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]));
    let report = shard.replicas[shard.owner].pool_check().unwrap();
    let ports = truth.seen.keys().filter(|key| key.kind() == OUT).count();
    assert_eq!(report.live, ports as u64);
}

/// Nothing is seen any more: all of it ends, in the time that the terms allow.
fn check_all_ends(shard: &mut Shard, truth: &mut Truth) {
    let longest = 40_000;
    let end = shard.time_ms + longest + SOFT.within_ms + 3_000;
    while shard.time_ms < end {
        shard.time_ms += 100;
        for key in shard.upkeep() {
            truth.end(shard, &key, shard.time_ms);
        }
    }
    assert_eq!(truth.seen.len(), 0);
    assert_eq!((truth.born, shard.len()), (truth.ended, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// T1: each object has one expiry at most, none is early whatever owners come and go, and all
    /// that is not seen any more ends. N5: no port leaks.
    #[test]
    fn no_entry_expires_early_or_twice_whoever_owns_the_shard(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut shard = Shard::new(3, 60);
        let mut truth = Truth::default();
        for step in steps {
            let at = shard.time_ms;
            match step {
                Step::Put(number, ttl) => {
                    let key = key(ALONE, number);
                    if matches!(shard.write(&[put(key, ttl)]), Outcome::Committed(_)) {
                        let new = truth.seen.insert(key, (at, u64::from(ttl) * 1000));
                        truth.born += u64::from(new.is_none());
                    }
                }
                Step::PutPair(number, ttl) => {
                    let pair = [key(LEFT, number), key(RIGHT, number)];
                    let writes = pair.map(|key| put(key, ttl));
                    if matches!(shard.write(&writes), Outcome::Committed(_)) {
                        for key in pair {
                            let new = truth.seen.insert(key, (at, u64::from(ttl) * 1000));
                            truth.born += u64::from(new.is_none());
                        }
                    }
                }
                Step::Take(number) => if !truth.seen.contains_key(&key(OUT, number))
                    && matches!(shard.write(&take(number)), Outcome::Committed(_))
                {
                    truth.seen.insert(key(OUT, number), (at, 20_000));
                    truth.born += 1;
                },
                Step::Packet(kind, number) => {
                    let found = shard.packet(&key(kind, number));
                    let known = truth.seen.get_mut(&key(kind, number));
                    prop_assert_eq!(found, known.is_some());
                    if let Some((seen, _)) = known { *seen = at; }
                }
                Step::Pass(ms) => {
                    // The owner does its upkeep all the while, and must, to be believed later.
                    let end = at + ms;
                    while shard.time_ms < end {
                        shard.time_ms = end.min(shard.time_ms + 200);
                        for key in shard.upkeep() { truth.end(&shard, &key, shard.time_ms); }
                    }
                }
                Step::Upkeep => {
                    for key in shard.upkeep() { truth.end(&shard, &key, at); }
                }
                Step::SlowUpkeep(ms) => {
                    let work = shard.work(true);
                    shard.time_ms += ms.min(SOFT.within_ms);
                    for key in shard.propose(work) { truth.end(&shard, &key, at); }
                }
                Step::ChangeOwner(owner) => shard.change_owner(owner),
            }
            check_replicas(&shard, &truth);
        }
        check_all_ends(&mut shard, &mut truth);
    }
}

#[path = "flow_tally_tests.rs"]
mod tallies;
