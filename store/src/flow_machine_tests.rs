//! The flow machine against a model, against its own copies, and with damaged input.

use super::*;
use crate::batch::encode_batch;
use crate::limits::{BATCH_BYTES_MAX, BATCH_TRANSACTIONS_MAX};
use crate::table_reader::RegionIdentity;
use crate::transaction::{Batch, Fill, SeenNote, Take, TransactionId, WRITES_MAX, Write};
use crate::types::{ShardId, TenantId};
use crate::{Endpoint, Region};
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use proptest::prelude::*;
use std::sync::Arc;

const CAPACITY: u32 = 12;

/// Machines differ in their hash key as replicas do.
fn machine(hash_key: u64) -> FlowMachine {
    let region = Arc::new(Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap());
    let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
    let table = Table::format(region, identity, CAPACITY, hash_key).unwrap();
    let mut slots = SlotSet::none(504);
    (0..3).for_each(|slot| slots.insert(SlotId(slot)));
    let addresses = vec![Ipv4Addr::new(198, 19, 0, 1)];
    let pools = vec![PoolSpec::new(PoolId(4), addresses, 504, 1).unwrap()];
    FlowMachine::new(FlowMachineConfig { table, slots, pools })
}

fn key(number: u16) -> Key {
    Key::new(1, 17, TenantId(0), (Endpoint::v4([10, 0, 0, 1], number), Endpoint::default()))
}

fn value(number: u64) -> Value {
    Value([number; 8])
}

fn put(number: u16, content: u64) -> Write {
    put_for(number, content, 0)
}

fn put_for(number: u16, content: u64, ttl_s: u32) -> Write {
    Write::Put { key: key(number), value: value(content), fill: Fill::default(), ttl_s }
}

fn take(holder: u8) -> Write {
    Write::Take(Take { pool: PoolId(4), protocol: 17, holder: [holder; 16], like_port: 7 })
}

fn transaction(serial: u64, conditions: &[Condition], writes: &[Write]) -> Transaction {
    Transaction {
        id: TransactionId { client: 5, serial },
        slot: SlotId(1),
        conditions: conditions.iter().copied().collect(),
        writes: writes.iter().copied().collect(),
    }
}

fn apply(machine: &mut FlowMachine, index: u64, batch: &Batch) -> Vec<Outcome> {
    let payload = encode_batch(batch);
    FlowMachine::check(&payload).unwrap();
    match machine.apply(LogIndex(index), &payload) {
        Reply::Outcomes(outcomes) => outcomes.into_vec(),
        other => panic!("{other:?}"),
    }
}

fn apply_one(machine: &mut FlowMachine, index: u64, transaction: Transaction) -> Outcome {
    apply(
        machine,
        index,
        &Batch { time_ms: index, transactions: vec![transaction], ..Batch::default() },
    )[0]
}

const DONE: fn(u64) -> Outcome = |index| Outcome::Committed(LogIndex(index));

#[test]
fn conditions_are_checked_and_the_first_that_fails_is_named() {
    let mut machine = machine(1);
    let absent = [Condition::Absent(key(1))];
    assert_eq!(apply_one(&mut machine, 1, transaction(1, &absent, &[put(1, 10)])), DONE(1));
    let failed = Outcome::ConditionFailed(0);
    assert_eq!(apply_one(&mut machine, 2, transaction(2, &absent, &[put(1, 11)])), failed);
    let entry = machine.reader().get(&key(1)).unwrap();
    assert_eq!((entry.value, entry.version, entry.slot), (value(10), Version(1), SlotId(1)));
    let stale = [Condition::Present(key(1)), Condition::Version(key(1), Version(9))];
    let failed = Outcome::ConditionFailed(1);
    assert_eq!(apply_one(&mut machine, 3, transaction(3, &stale, &[put(1, 11)])), failed);
    let good = [Condition::Version(key(1), Version(1))];
    let writes = [Write::Touch(key(1)), Write::Add { key: key(1), at: 56, amount: -3 }];
    assert_eq!(apply_one(&mut machine, 4, transaction(4, &good, &writes)), DONE(4));
    let entry = machine.reader().get(&key(1)).unwrap();
    assert_eq!((entry.value.0[7], entry.value.0[0], entry.version), (7, 10, Version(2)));
    let delete = [Write::Delete(key(1)), Write::Delete(key(2))];
    assert_eq!(apply_one(&mut machine, 5, transaction(5, &[], &delete)), DONE(5));
    assert_eq!(machine.reader().get(&key(1)), None);
}

#[test]
fn a_taken_port_is_filled_into_key_and_value_and_comes_back_by_return() {
    let mut machine = machine(1);
    let fill = Fill { key_at: Some(16), value_at: Some(3) };
    let writes = [take(1), Write::Put { key: key(1), value: value(0), fill, ttl_s: 0 }, put(2, 0)];
    assert_eq!(apply_one(&mut machine, 1, transaction(1, &[], &writes)), DONE(1));
    let entries: Vec<_> = machine.table.iter().filter(|(k, _)| *k != key(2)).collect();
    let (found, entry) = entries[0];
    let (place, bytes) = (&found.to_bytes()[16..22], entry.value.to_bytes());
    let endpoint = [place[0], place[1], place[2], place[3], place[4], place[5]];
    assert_eq!(bytes[3..9], endpoint);
    assert_eq!(endpoint[..4], [198, 19, 0, 1]);
    assert_eq!(endpoint[5] % 2, 1, "the parity of the port inside");
    let counts = |machine: &FlowMachine| {
        let counts = machine.pool_counts()[&(PoolId(4), SlotId(1))];
        (counts.blocks_held, counts.live, counts.resting)
    };
    assert_eq!(counts(&machine), (1, 1, 0));
    let back = [Write::Return { pool: PoolId(4), protocol: 17, endpoint }];
    assert_eq!(apply_one(&mut machine, 2, transaction(2, &[], &back)), DONE(2));
    assert_eq!(counts(&machine), (1, 0, 1));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut machine = machine(1);
    let filled = |key_at, value_at| Write::Put {
        key: key(1),
        value: value(1),
        fill: Fill { key_at, value_at },
        ttl_s: 0,
    };
    let elsewhere =
        Write::Return { pool: PoolId(4), protocol: 17, endpoint: [198, 19, 0, 1, 255, 0] };
    let unknown_pool = Write::Return { pool: PoolId(0), protocol: 17, endpoint: [0; 6] };
    let kind_0 = Write::Put { key: Key([0; 5]), value: value(0), fill: Fill::default(), ttl_s: 0 };
    let cases: [&[Write]; 9] = [
        &[filled(Some(4), None)],
        &[take(1), filled(Some(35), None)],
        &[take(1), filled(None, Some(59))],
        &[take(1), put(1, 1), kind_0],
        &[put(1, 1), elsewhere],
        &[take(1), unknown_pool],
        &[put(1, 1), Write::Add { key: key(1), at: 4, amount: 1 }],
        &[put(1, 1), Write::Add { key: key(1), at: 64, amount: 1 }],
        &[
            take(1),
            Write::Take(Take { pool: PoolId(4), protocol: 47, holder: [1; 16], like_port: 1 }),
        ],
    ];
    for (serial, writes) in (1..).zip(cases) {
        let outcome = apply_one(&mut machine, serial, transaction(serial, &[], writes));
        assert_eq!(outcome, Outcome::Refused(Refusal::Malformed), "{writes:?}");
        assert_eq!(machine.table.len(), 0);
        assert!(machine.pool_counts().values().all(|c| c.live == 0 && c.blocks_held == 0));
    }
    let mut other_slot = transaction(50, &[], &[put(1, 1)]);
    other_slot.slot = SlotId(3);
    let refused = Outcome::Refused(Refusal::NotThisSlot);
    assert_eq!(apply_one(&mut machine, 50, other_slot), refused);
    let no_serial = transaction(0, &[], &[put(1, 1)]);
    assert_eq!(apply_one(&mut machine, 51, no_serial), Outcome::Refused(Refusal::Malformed));
}

#[test]
fn a_full_table_refuses_all_of_a_transaction_on_every_replica() {
    let mut machines = [machine(1), machine(2)];
    for machine in &mut machines {
        for number in 1..=11 {
            apply_one(machine, number, transaction(number, &[], &[put(number as u16, 0)]));
        }
        let two = transaction(20, &[], &[take(1), put(50, 0), put(51, 0)]);
        assert_eq!(apply_one(machine, 20, two), Outcome::Refused(Refusal::TableFull));
        let swap = transaction(21, &[], &[put(50, 0), put(51, 0), Write::Delete(key(3))]);
        assert_eq!(apply_one(machine, 21, swap), DONE(21));
        assert_eq!(machine.table.len(), 12);
        assert_eq!(machine.pool_counts().values().map(|counts| counts.live).sum::<u64>(), 0);
    }
    assert_eq!(machines[0].state_hash(), machines[1].state_hash());
}

#[test]
fn payloads_that_are_no_batches_are_refused_and_alignment_does_not_matter() {
    let batch = Batch {
        time_ms: 1,
        transactions: vec![transaction(1, &[], &[put(1, 1)])],
        ..Batch::default()
    };
    let good = encode_batch(&batch);
    for shift in 0..16 {
        let shifted = [&vec![0; shift][..], &good].concat();
        FlowMachine::check(&shifted[shift..]).unwrap();
        let reply = machine(1).apply(LogIndex(1), &shifted[shift..]);
        assert_eq!(reply, Reply::Outcomes(Box::new([DONE(1)])));
    }
    for cut in 0..good.len() {
        assert!(FlowMachine::check(&good[..cut]).is_err(), "{cut} bytes");
    }
    // Whatever a changed byte makes of it: an error, or a batch that can be applied.
    for at in 0..good.len() {
        for change in [1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= change;
            if FlowMachine::check(&bad).is_ok() {
                machine(1).apply(LogIndex(1), &bad);
            }
        }
    }
    let many = Batch {
        time_ms: 1,
        transactions: vec![transaction(1, &[], &[]); 4097],
        ..Batch::default()
    };
    let too_many = PayloadError::TooMany { count: 4097, limit: BATCH_TRANSACTIONS_MAX };
    assert_eq!(FlowMachine::check(&encode_batch(&many)), Err(too_many));
    assert!(FlowMachine::check(&vec![0; BATCH_BYTES_MAX + 1]).is_err());
}

fn condition() -> impl Strategy<Value = Condition> {
    (0..4_u8, 0..16_u16, 0..40_u64).prop_map(|(what, number, version)| match what {
        0 => Condition::Absent(key(number)),
        1 => Condition::Present(key(number)),
        2 => Condition::Version(key(number), Version(version)),
        _ => Condition::Expired(key(number), Version(version)),
    })
}

fn write() -> impl Strategy<Value = Write> {
    (0..10_u8, 0..16_u16, any::<u64>()).prop_map(|(what, number, x)| match what {
        0..5 => put_for(number, x, [0, 1, 60, 300][x as usize % 4]),
        5..7 => Write::Delete(key(number)),
        7 => Write::Touch(key(number)),
        8 => Write::Add { key: key(number), at: 8, amount: x as i64 },
        _ => take(x as u8 % 3),
    })
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let one = (
        1..60_u64,
        prop::collection::vec(condition(), 0..2),
        prop::collection::vec(write(), 0..=WRITES_MAX),
    );
    let transactions = prop::collection::vec(one, 0..5).prop_map(|list| {
        list.iter().map(|(serial, c, w)| transaction(*serial, c, w)).collect::<Vec<_>>()
    });
    let batch = (0..500_000_u64, transactions).prop_map(|(time_ms, transactions)| Batch {
        time_ms,
        transactions,
        seen: vec![],
    });
    prop::collection::vec(batch, 1..40)
}

/// What the machine should do, said as plainly as possible.
#[derive(Clone, Default)]
struct Model {
    time_ms: u64,
    /// Value, version, lifetime and when last seen.
    entries: BTreeMap<Key, (Value, u64, u32, u64)>,
    decided: BTreeMap<u64, Outcome>,
    mutations: u64,
}

impl Model {
    fn begin(&mut self, batch: &Batch) {
        self.time_ms = self.time_ms.max(batch.time_ms);
        for SeenNote { key, age_ms, .. } in &batch.seen {
            if let Some((_, _, 1.., seen)) = self.entries.get_mut(key) {
                *seen = (*seen).max(self.time_ms.saturating_sub(u64::from(*age_ms)));
            }
        }
    }

    fn decide(&mut self, index: u64, t: &Transaction, real: Outcome) -> Outcome {
        if let Some(outcome) = self.decided.get(&t.id.serial) {
            return *outcome;
        }
        let held = |c: &Condition| match c {
            Condition::Absent(key) => !self.entries.contains_key(key),
            Condition::Present(key) => self.entries.contains_key(key),
            Condition::Version(key, v) => self.entries.get(key).is_some_and(|e| e.1 == v.0),
            Condition::Expired(key, v) => {
                self.entries.get(key).is_some_and(|(_, version, ttl, seen)| {
                    *version == v.0 && *ttl > 0 && self.time_ms >= seen + u64::from(*ttl) * 1000
                })
            }
        };
        let outcome = match t.conditions.iter().position(|c| !held(c)) {
            Some(number) => Outcome::ConditionFailed(number as u8),
            None => self.write(index, t, real),
        };
        self.decided.insert(t.id.serial, outcome);
        outcome
    }

    fn write(&mut self, index: u64, t: &Transaction, real: Outcome) -> Outcome {
        // Which ports there are is the pool's own model's business.
        if matches!(real, Outcome::Refused(Refusal::QuotaReached | Refusal::PoolEmpty)) {
            return real;
        }
        let mut entries = self.entries.clone();
        let mut changed = Vec::new();
        for write in &t.writes {
            let (key, add) = match write {
                Write::Put { key, value, ttl_s, .. } => {
                    entries.insert(*key, (*value, 0, *ttl_s, 0));
                    (key, 0)
                }
                Write::Delete(key) => {
                    entries.remove(key);
                    (key, 0)
                }
                Write::Touch(key) => (key, 0),
                Write::Add { key, amount, .. } => (key, *amount),
                _ => continue,
            };
            if let Some((value, ..)) = entries.get_mut(key) {
                value.0[1] = value.0[1].wrapping_add_signed(add);
            } else if !matches!(write, Write::Delete(_)) {
                continue;
            }
            if !changed.contains(key) {
                changed.push(*key);
            }
        }
        if entries.len() > CAPACITY as usize {
            return Outcome::Refused(Refusal::TableFull);
        }
        // Removals count first, then what is set, in the order in which it was first named.
        let removed = changed.iter().filter(|key| !entries.contains_key(key));
        self.mutations += removed.filter(|key| self.entries.contains_key(key)).count() as u64;
        for key in &changed {
            if let Some((_, version, ttl, seen)) = entries.get_mut(key) {
                self.mutations += 1;
                *version = self.mutations;
                *seen = if *ttl == 0 { 0 } else { self.time_ms };
            }
        }
        self.entries = entries;
        DONE(index)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_machine_does_what_the_model_says_and_replicas_agree(
        batches in batches(),
        cut in 0..40_usize,
    ) {
        let (mut one, mut two) = (machine(11), machine(22));
        let mut model = Model::default();
        for (index, batch) in (1..).zip(&batches) {
            if index as usize == cut {
                let mut fresh = machine(33);
                fresh.install(&two.snapshot()).unwrap();
                prop_assert_eq!(fresh.state_hash(), two.state_hash());
                two = fresh;
            }
            model.begin(batch);
            let outcomes = apply(&mut one, index, batch);
            prop_assert_eq!(&outcomes, &apply(&mut two, index, batch));
            for (transaction, outcome) in batch.transactions.iter().zip(outcomes) {
                prop_assert_eq!(model.decide(index, transaction, outcome), outcome);
            }
            let lives = one.table.iter_living().map(|(k, entry, life)| {
                (k, (entry.value, entry.version.0, life.ttl_s(), life.seen_ms()))
            });
            let found: BTreeMap<_, _> = lives.collect();
            prop_assert_eq!(&found, &model.entries);
            prop_assert_eq!(one.state_hash(), two.state_hash());
        }
        prop_assert_eq!(one.pool_counts(), two.pool_counts());
    }
}

#[test]
fn the_state_hash_tells_states_apart() {
    let (mut one, mut two) = (machine(1), machine(1));
    let mut hashes = vec![one.state_hash()];
    for (index, writes) in [(1, vec![put(1, 1)]), (2, vec![put(2, 1)]), (3, vec![take(1)])] {
        apply_one(&mut one, index, transaction(index, &[], &writes));
        hashes.push(one.state_hash());
    }
    apply_one(&mut two, 1, transaction(1, &[], &[put(1, 2)]));
    hashes.push(two.state_hash());
    for ttl_s in [300, 301] {
        let mut living = machine(1);
        apply_one(&mut living, 1, transaction(1, &[], &[put_for(1, 1, ttl_s)]));
        hashes.push(living.state_hash());
    }
    hashes.sort_unstable();
    assert!(hashes.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_shard_whose_versions_are_used_up_says_so_and_goes_on() {
    let mut machine = machine(1);
    machine.mutations = VERSION_MAX - 1;
    let two = [put(1, 1), put(2, 2)];
    let refused = Outcome::Refused(Refusal::VersionsUsedUp);
    assert_eq!(apply_one(&mut machine, 1, transaction(1, &[], &two)), refused);
    assert_eq!(apply_one(&mut machine, 2, transaction(2, &[], &two[..1])), DONE(2));
    assert_eq!(apply_one(&mut machine, 3, transaction(3, &[], &two[1..])), refused);
    assert_eq!(machine.table.get(&key(1)).unwrap().version, Version(VERSION_MAX));
    // Its snapshot, with the refusal, is a good one.
    let mut copy = self::machine(2);
    copy.install(&machine.snapshot()).unwrap();
    assert_eq!(copy.state_hash(), machine.state_hash());
}

/// Found by fuzzing: such a snapshot was installed, and its replica forgot in another order.
#[test]
fn outcomes_in_an_order_that_no_memory_has_are_refused() {
    let mut good = machine(1);
    for (index, (client, serial)) in (1..).zip([(7, 1), (8, 1), (7, 2)]) {
        let id = TransactionId { client, serial };
        apply_one(&mut good, index, Transaction { id, ..transaction(1, &[], &[]) });
    }
    let bytes = good.snapshot();
    let mut sections = snapshot::take_apart(&bytes).unwrap().map(|section| section.0.to_vec());
    let written = sections[3].clone();
    // The least recently active client stands first, the serials of each rise: 8/1, 7/1, 7/2.
    for (one, other, is_good) in [(0, 0, true), (0, 1, false), (1, 2, false)] {
        let mut outcomes: Vec<&[u8]> = written[8..].chunks(27).collect();
        assert_eq!(outcomes.len(), 3);
        outcomes.swap(one, other);
        sections[3] = [&written[..8], &outcomes.concat()].concat();
        let installed = machine(2).install(&snapshot::assemble(sections.clone()));
        assert_eq!(installed.is_ok(), is_good, "{one} and {other} swapped: {installed:?}");
    }
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_state_stays() {
    let mut source = machine(1);
    let writes: ArrayVec<Write, 3> = [take(1), put(1, 1), put(2, 2)].into();
    apply_one(&mut source, 1, transaction(1, &[], &writes));
    let good = source.snapshot();
    let mut target = machine(2);
    apply_one(&mut target, 1, transaction(9, &[], &[put(7, 7)]));
    let before = target.state_hash();
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= change;
            assert!(target.install(&bad).is_err(), "byte {at}");
        }
        assert!(target.install(&good[..at]).is_err(), "{at} bytes");
    }
    let long = [&good[..], &[0]].concat();
    assert_eq!(target.install(&long), Err(SnapshotError::Damaged("it is too long")));
    assert_eq!(target.state_hash(), before);
    target.install(&good).unwrap();
    assert_eq!(target.state_hash(), source.state_hash());
}

/// A retry that comes too late changes nothing, whether its first try took effect or never came.
#[test]
fn a_forgotten_id_is_refused_and_takes_no_effect() {
    let mut machine = machine(1);
    let remembered = crate::limits::OUTCOMES_PER_CLIENT as u64;
    let add = |serial, n| transaction(serial, &[], &[put(n, serial)]);
    // The first took effect, the second was lost on its way.
    assert_eq!(apply_one(&mut machine, 1, add(1, 1)), DONE(1));
    for serial in 3..=2 + remembered {
        assert_eq!(apply_one(&mut machine, serial, add(serial, 3)), DONE(serial));
    }
    let before = machine.state_hash();
    for serial in [1, 2] {
        let late = apply_one(&mut machine, remembered + 2, add(serial, 9));
        assert_eq!(late, Outcome::Refused(Refusal::IdForgotten), "serial {serial}");
    }
    assert_eq!(machine.state_hash(), before);
    assert_eq!(machine.reader().get(&key(9)), None);
}
