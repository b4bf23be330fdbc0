//! Two flow machines and a slot that moves between them, against a model that knows of no shards:
//! whatever steps come, come twice, come late or never come, nothing is lost and nothing happens
//! twice.

use super::*;
use crate::flow_machine::FlowMachineConfig;
use crate::machine::Machine;
use crate::pool_spec::PoolSpec;
use crate::table_reader::RegionIdentity;
use crate::transaction::{Condition, Fill, Refusal, Take, Write};
use crate::types::{LogIndex, TenantId};
use crate::{Endpoint, PoolId, Region, SlotSet, Table, Value};
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use proptest::prelude::*;
use std::sync::Arc;

const CAPACITY: u32 = 60;
const SLOTS: u32 = 504;
/// The slot that moves, and one that stays at the source.
const MOVING: SlotId = SlotId(1);
const STAYS: SlotId = SlotId(2);
/// Of one shard each.
const SOURCE: usize = 0;
const TARGET: usize = 1;

fn machine(slots: &[u16], hash_key: u64) -> FlowMachine {
    let region = Arc::new(Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap());
    let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
    let table = Table::format(region, identity, CAPACITY, hash_key).unwrap();
    let mut held = SlotSet::none(SLOTS);
    slots.iter().for_each(|slot| held.insert(SlotId(*slot)));
    let addresses = vec![Ipv4Addr::new(198, 19, 0, 1)];
    let pools = vec![PoolSpec::new(PoolId(4), addresses, SLOTS, 1).unwrap()];
    FlowMachine::new(FlowMachineConfig { table, slots: held, pools })
}

fn key(slot: SlotId, number: u16) -> Key {
    let end = Endpoint::v4([10, 0, slot.0 as u8, 1], number);
    Key::new(1, 17, TenantId(0), (end, Endpoint::default()))
}

/// Both machines, what should be in the moving slot, and who drives the move.
struct World {
    machines: [FlowMachine; 2],
    index: u64,
    time_ms: u64,
    /// Values of the moving slot's keys, and the version seen last, which stays when a key goes.
    model: BTreeMap<u16, (Option<u64>, u64)>,
    /// Decided transactions of the moving slot.
    done: Vec<(Transaction, Outcome)>,
    /// Not decided yet.
    open: Vec<Transaction>,
    /// Ports that were ever given out: none is free again within the test's time.
    ports: BTreeSet<[u8; 6]>,
    live: u64,
    serial: u64,
    driver: Driver,
    /// Steps that are still on the way somewhere.
    late: Vec<(usize, MoveEntry)>,
    number: u64,
    attempts: u64,
    /// Pieces that the driver has sent in this attempt. It never asks the target: what that has
    /// may be of a step that came late.
    sent: u32,
}

/// What the driver of the move does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Watch,
    Begin,
    Copy,
    Seal,
    Rest,
    Adopt,
    Drop,
    Dropping,
    /// Gives up: the target first.
    GiveUp,
    Unseal,
    Over,
}

impl World {
    fn new() -> Self {
        Self {
            machines: [machine(&[MOVING.0, STAYS.0], 1), machine(&[3], 2)],
            index: 0,
            time_ms: 1_000,
            model: BTreeMap::new(),
            done: vec![],
            open: vec![],
            ports: BTreeSet::new(),
            live: 0,
            serial: 0,
            driver: Driver::Watch,
            late: vec![],
            number: 1,
            attempts: 1,
            sent: 0,
        }
    }

    fn transaction(&mut self, slot: SlotId, choice: u8) -> Transaction {
        self.serial += 1;
        let key = key(slot, u16::from(choice % 7));
        let value = Value([self.serial; 8]);
        let mut writes = ArrayVec::new();
        let mut put = Write::Put { key, value, fill: Fill::default(), ttl_s: 30 };
        match choice / 7 % 4 {
            0 => writes.push(Write::Delete(key)),
            1 => {
                let fill = Fill { key_at: None, value_at: Some(8) };
                put = Write::Put { key, value, fill, ttl_s: 0 };
                let (protocol, holder) = (17, [choice % 3; 16]);
                let take =
                    Take { pool: PoolId(4), protocol, holder, like_port: self.serial as u16 };
                writes.extend([Write::Take(take), put]);
            }
            _ => writes.push(put),
        }
        // Serials of a client are spread over shards; those of the slot are a part of them.
        let id = TransactionId { client: u64::from(choice % 2), serial: self.serial };
        Transaction { id, slot, conditions: ArrayVec::new(), writes }
    }

    fn apply(&mut self, shard: usize, transaction: &Transaction) -> Outcome {
        self.index += 1;
        self.time_ms += 1;
        self.machines[shard].apply_one(LogIndex(self.index), self.time_ms, transaction)
    }

    /// Tries an open transaction at one of the shards.
    fn try_open(&mut self, shard: usize, which: usize) {
        if self.open.is_empty() {
            return;
        }
        let transaction = self.open[which % self.open.len()].clone();
        let outcome = self.apply(shard, &transaction);
        match outcome {
            Outcome::Elsewhere(_) | Outcome::Refused(Refusal::NotThisSlot) => return,
            Outcome::Committed(_) => self.committed(shard, &transaction),
            Outcome::ConditionFailed(_) | Outcome::Refused(_) => {}
        }
        self.open.retain(|other| other.id != transaction.id);
        self.done.push((transaction, outcome));
    }

    fn committed(&mut self, shard: usize, transaction: &Transaction) {
        let number = (0..7).find(|n| {
            transaction.writes.iter().any(|write| match write {
                Write::Put { key: other, .. } | Write::Delete(other) => *other == key(MOVING, *n),
                _ => false,
            })
        });
        let number = number.unwrap();
        let entry = self.machines[shard].reader().get(&key(MOVING, number));
        let before = self.model.get(&number).map_or(0, |(_, version)| *version);
        let is_put = transaction.writes.iter().any(|write| matches!(write, Write::Put { .. }));
        assert_eq!(entry.is_some(), is_put);
        if let Some(entry) = entry {
            assert!(entry.version.0 > before, "versions of a key rise");
            if let [Write::Take(_), ..] = transaction.writes[..] {
                let bytes = entry.value.to_bytes();
                let port: [u8; 6] = bytes[8..14].try_into().unwrap();
                assert!(self.ports.insert(port), "a port has one holder, and rests after it");
                self.live += 1;
            }
        }
        let value = entry.map(|entry| entry.value.0[0]);
        self.model.insert(number, (value, entry.map_or(before, |entry| entry.version.0)));
    }

    /// A decided transaction comes again.
    fn repeat(&mut self, shard: usize, which: usize) {
        if self.done.is_empty() {
            return;
        }
        let (transaction, outcome) = self.done[which % self.done.len()].clone();
        match self.apply(shard, &transaction) {
            Outcome::Elsewhere(_) | Outcome::Refused(Refusal::NotThisSlot) => {}
            again => assert_eq!(again, outcome, "a retry is recognised"),
        }
    }

    fn step(&mut self, shard: usize, step: Step) -> MoveReply {
        let entry = MoveEntry { time_ms: self.time_ms, number: self.number, step };
        let payload = entry.encode();
        FlowMachine::check(&payload).unwrap();
        self.index += 1;
        match self.machines[shard].apply(LogIndex(self.index), &payload) {
            crate::Reply::System(bytes) => {
                self.late.push((shard, entry));
                MoveReply::decode(&bytes).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Some step comes once more, however old.
    fn come_late(&mut self, which: usize) {
        if self.late.is_empty() {
            return;
        }
        let (shard, entry) = self.late[which % self.late.len()].clone();
        self.index += 1;
        self.machines[shard].apply(LogIndex(self.index), &entry.encode());
    }

    fn send_piece(&mut self) -> Option<bool> {
        let (piece, is_all) = match self.machines[SOURCE].take_out(TakeOut::Next) {
            TakenOut::Piece(piece, is_all) => (*piece, is_all),
            _ => return None,
        };
        let (attempt, place) = (self.attempts, self.sent);
        match self.step(TARGET, Step::Piece { attempt, place, piece }) {
            MoveReply::Done => {
                self.sent += 1;
                Some(is_all)
            }
            _ => None,
        }
    }

    /// The driver's next step; when something is in its way it begins the stage anew.
    fn drive(&mut self) {
        use Driver as D;
        let (slot, number) = (MOVING, self.number);
        let again = D::Watch;
        self.driver = match self.driver {
            D::Watch => {
                self.machines[SOURCE].take_out(TakeOut::Watch(slot));
                (self.attempts, self.sent) = (self.attempts + 1, 0);
                D::Begin
            }
            D::Begin => match self.step(TARGET, Step::Begin { attempt: self.attempts, slot }) {
                MoveReply::Done => D::Copy,
                MoveReply::Over { holds: true } => D::Drop,
                other => panic!("{other:?}"),
            },
            D::Copy => match self.send_piece() {
                Some(true) => D::Seal,
                Some(false) => D::Copy,
                None => again,
            },
            D::Seal => match self.step(SOURCE, Step::Seal { slot, to: ShardId(2) }) {
                MoveReply::Done => D::Rest,
                other => panic!("{other:?}"),
            },
            D::Rest => {
                let TakenOut::Pools(pools) =
                    self.machines[SOURCE].take_out(TakeOut::Pools { number })
                else {
                    panic!("it is sealed");
                };
                let (attempt, place) = (self.attempts, self.sent);
                let piece = Piece { pools, ..Piece::default() };
                match self.step(TARGET, Step::Piece { attempt, place, piece }) {
                    MoveReply::Done => {
                        self.sent += 1;
                        D::Adopt
                    }
                    _ => again,
                }
            }
            D::Adopt => {
                let (attempt, pieces) = (self.attempts, self.sent);
                match self.machines[SOURCE].take_out(TakeOut::Next) {
                    TakenOut::Piece(last, true) => {
                        match self.step(TARGET, Step::Adopt { attempt, pieces, last: *last }) {
                            MoveReply::Done | MoveReply::Over { .. } => D::Drop,
                            _ => again,
                        }
                    }
                    _ => again,
                }
            }
            D::Drop | D::Dropping | D::GiveUp | D::Unseal | D::Over => self.drive_end(),
        };
    }

    /// The last steps of a move that was switched, and of one that is given up.
    fn drive_end(&mut self) -> Driver {
        use Driver as D;
        let slot = MOVING;
        match self.driver {
            D::Drop => {
                self.machines[SOURCE].take_out(TakeOut::Watch(slot));
                D::Dropping
            }
            D::Dropping => match self.machines[SOURCE].take_out(TakeOut::Next) {
                TakenOut::Piece(piece, is_last) => {
                    let keys = piece.entries.iter().map(|moved| moved.key).collect();
                    match self.step(SOURCE, Step::Drop { keys, is_last }) {
                        MoveReply::Done | MoveReply::Over { .. } => D::Over,
                        MoveReply::More => D::Dropping,
                        other => panic!("{other:?}"),
                    }
                }
                _ => D::Drop,
            },
            D::GiveUp => match self.step(TARGET, Step::GiveUp { slot }) {
                MoveReply::More => D::GiveUp,
                MoveReply::Over { holds: true } => D::Drop,
                _ => D::Unseal,
            },
            D::Unseal => match self.step(SOURCE, Step::Unseal { slot }) {
                MoveReply::Done | MoveReply::Over { .. } => {
                    self.number += 1;
                    D::Watch
                }
                other => panic!("{other:?}"),
            },
            other => other,
        }
    }

    /// The driver dies: another begins the stage anew. Giving up goes on.
    fn driver_dies(&mut self) {
        self.driver = match self.driver {
            Driver::Drop | Driver::Dropping => Driver::Drop,
            end @ (Driver::GiveUp | Driver::Unseal | Driver::Over) => end,
            _ => Driver::Watch,
        };
    }

    fn wants_to_give_up(&mut self) {
        if !matches!(self.driver, Driver::Drop | Driver::Dropping | Driver::Over | Driver::Unseal) {
            self.driver = Driver::GiveUp;
        }
    }

    /// A replica takes the place of a machine, by its snapshot.
    fn replace(&mut self, shard: usize) {
        let snapshot = self.machines[shard].snapshot();
        let mut copy = machine(&[9], 77 + self.index);
        copy.install(&snapshot).unwrap();
        assert_eq!(copy.state_hash(), self.machines[shard].state_hash());
        assert_eq!(copy.snapshot().len(), snapshot.len());
        self.machines[shard] = copy;
    }

    fn check(&self) {
        let holders: Vec<&FlowMachine> =
            self.machines.iter().filter(|machine| machine.reader().holds(MOVING)).collect();
        assert!(holders.len() <= 1, "two shards hold the slot");
        for machine in &self.machines {
            assert_eq!(machine.reader().holds(MOVING), machine.slots.contains(MOVING));
        }
        let Some(holder) = holders.first() else {
            let is_going = self.machines[SOURCE].moving.whither(MOVING);
            assert_eq!(is_going, Some(ShardId(2)), "it is on its way");
            return;
        };
        for (number, (value, version)) in &self.model {
            let entry = holder.reader().get(&key(MOVING, *number));
            assert_eq!(entry.map(|entry| entry.value.0[0]), *value, "key {number}");
            assert!(entry.is_none_or(|entry| entry.version.0 == *version));
        }
        let counts = holder.pool_counts();
        let counts = counts.get(&(PoolId(4), MOVING)).copied().unwrap_or_default();
        assert_eq!(counts.live, self.live, "ports move with their slot");
    }

    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.drive();
            self.check();
            if self.driver == Driver::Over {
                break;
            }
        }
        assert_eq!(self.driver, Driver::Over, "a move comes to an end");
        while !self.open.is_empty() {
            self.try_open(TARGET, 0);
        }
        self.check();
        let at_source = self.machines[SOURCE].table.iter();
        assert!(at_source.filter(|(_, e)| e.slot == MOVING).count() == 0, "nothing is left behind");
        for which in 0..self.done.len() {
            self.repeat(TARGET, which);
        }
        self.check();
        (0..2).for_each(|shard| self.replace(shard));
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_slot_moves_whole_whatever_happens_on_the_way(
        actions in proptest::collection::vec((0_u8..24, any::<u8>()), 0..120),
    ) {
        let mut world = World::new();
        for (action, choice) in actions {
            let (shard, which) = (usize::from(choice) % 2, usize::from(choice) / 2);
            match action {
                0..7 => {
                    let transaction = world.transaction(MOVING, choice);
                    world.open.push(transaction);
                }
                7..13 => world.try_open(shard, which),
                13 | 14 => {
                    // Others move entries about in the table meanwhile.
                    let transaction = world.transaction(STAYS, choice);
                    let outcome = world.apply(SOURCE, &transaction);
                    assert!(!matches!(outcome, Outcome::Elsewhere(_)), "{outcome:?}");
                }
                15 => world.repeat(shard, which),
                16 => world.come_late(which),
                17 => world.driver_dies(),
                18 if choice < 60 => world.wants_to_give_up(),
                19 if choice < 60 => world.replace(shard),
                _ => world.drive(),
            }
            world.check();
        }
        world.finish();
    }
}

fn fill(machine: &mut FlowMachine, slot: SlotId, from: u16, count: u16) {
    for number in from..from + count {
        let put = Write::Put {
            key: key(slot, number),
            value: Value([9; 8]),
            fill: Fill::default(),
            ttl_s: 30,
        };
        let transaction = Transaction {
            id: TransactionId { client: u64::from(slot.0), serial: u64::from(number) + 1 },
            slot,
            conditions: ArrayVec::from_iter([Condition::Absent(key(slot, number))]),
            writes: ArrayVec::from_iter([put]),
        };
        let outcome = machine.apply_one(LogIndex(1), 5_000, &transaction);
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
}

#[test]
fn a_target_without_room_refuses_and_gives_all_back() {
    let mut target = machine(&[3], 1);
    fill(&mut target, SlotId(3), 0, 58);
    let moved = |number| MovedEntry {
        key: key(MOVING, number),
        value: Value([1; 8]),
        version: Version(2),
        ttl_s: 0,
    };
    let piece = |numbers: core::ops::Range<u16>| Piece {
        mutations: 9,
        entries: numbers.map(moved).collect(),
        ..Piece::default()
    };
    let step = |machine: &mut FlowMachine, step| {
        machine.move_step(MoveEntry { time_ms: 0, number: 4, step })
    };
    assert_eq!(step(&mut target, Step::Begin { attempt: 1, slot: MOVING }), MoveReply::Done);
    let send = |place, piece| Step::Piece { attempt: 1, place, piece };
    assert_eq!(step(&mut target, send(0, piece(0..2))), MoveReply::Done);
    let full = MoveReply::Impossible(Obstacle::TableFull);
    assert_eq!(step(&mut target, send(1, piece(1..3))), full);
    assert_eq!(target.table.len(), 60);
    let taken = Piece {
        entries: vec![MovedEntry { key: key(SlotId(3), 5), ..moved(0) }],
        mutations: 9,
        ..Piece::default()
    };
    let elsewhere = MoveReply::Impossible(Obstacle::KeyElsewhere);
    assert_eq!(step(&mut target, send(1, taken)), elsewhere);
    assert_eq!(step(&mut target, Step::GiveUp { slot: MOVING }), MoveReply::Done);
    assert_eq!(target.table.len(), 58);
    let over = MoveReply::Over { holds: false };
    assert_eq!(step(&mut target, Step::Begin { attempt: 2, slot: MOVING }), over);
}

#[test]
fn entries_that_are_moved_about_in_the_table_behind_the_scan_are_not_missed() {
    // Every order of so many cells: a scan of a cell at a time while others come and go.
    let mut source = machine(&[MOVING.0, STAYS.0], 5);
    fill(&mut source, MOVING, 0, 25);
    fill(&mut source, STAYS, 0, 30);
    source.take_out(TakeOut::Watch(MOVING));
    let mut found = BTreeSet::new();
    let mut displaced = Vec::new();
    let mut turn = 0_u16;
    loop {
        let through = source.table.scan_on(1, 8, &mut displaced, |key, _, _| {
            found.insert(key);
        });
        // A hole here, a new entry there.
        source.table.remove(&key(STAYS, turn));
        turn += 1;
        let entry = crate::Entry { value: Value([0; 8]), version: Version(1), slot: STAYS };
        source.table.put_living(&key(STAYS, 30 + turn), entry, None, 0).unwrap();
        if through {
            break;
        }
    }
    found.extend(displaced);
    let all: BTreeSet<Key> = (0..25).map(|number| key(MOVING, number)).collect();
    assert_eq!(found, all);
}

#[test]
fn a_shard_has_a_part_in_one_move_at_a_time() {
    let step = |machine: &mut FlowMachine, number, step| {
        let reply = machine.move_step(MoveEntry { time_ms: 0, number, step });
        let mut copy = self::machine(&[], 9);
        copy.install(&machine.snapshot()).expect("its own snapshot");
        assert_eq!(copy.state_hash(), machine.state_hash());
        reply
    };
    let begin = || Step::Begin { attempt: 1, slot: SlotId(3) };
    let seal = || Step::Seal { slot: MOVING, to: ShardId(2) };
    let (done, early) = (MoveReply::Done, MoveReply::OutOfTurn);
    let mut shard = machine(&[MOVING.0], 1);
    assert_eq!(step(&mut shard, 4, begin()), done);
    assert_eq!(step(&mut shard, 5, seal()), early);
    assert_eq!(step(&mut shard, 3, seal()), early);
    assert_eq!(step(&mut shard, 5, Step::Unseal { slot: MOVING }), early);
    assert!(shard.slots.contains(MOVING), "its slot is served as ever");
    assert_eq!(step(&mut shard, 4, Step::GiveUp { slot: SlotId(3) }), done);
    assert_eq!(step(&mut shard, 5, seal()), done);
    assert_eq!(step(&mut shard, 6, begin()), early);
    assert_eq!(step(&mut shard, 6, Step::GiveUp { slot: SlotId(3) }), early);
    assert_eq!(step(&mut shard, 5, Step::Unseal { slot: MOVING }), done);
    assert_eq!(step(&mut shard, 6, begin()), done);
}

#[test]
fn a_drop_is_not_the_last_one_while_entries_are_left() {
    let mut source = machine(&[MOVING.0, STAYS.0], 1);
    fill(&mut source, MOVING, 0, 5);
    fill(&mut source, STAYS, 0, 5);
    let mut step = |step| {
        let reply = source.move_step(MoveEntry { time_ms: 0, number: 4, step });
        let mut copy = machine(&[], 9);
        copy.install(&source.snapshot()).expect("its own snapshot");
        reply
    };
    let drop = |numbers: core::ops::Range<u16>| {
        let keys = numbers.map(|number| key(MOVING, number)).collect();
        Step::Drop { keys, is_last: true }
    };
    assert_eq!(step(Step::Seal { slot: MOVING, to: ShardId(2) }), MoveReply::Done);
    assert_eq!(step(drop(0..4)), MoveReply::More);
    assert_eq!(step(drop(4..5)), MoveReply::Done);
    assert_eq!((source.table.entries_of(MOVING), source.table.entries_of(STAYS)), (0, 5));
}
