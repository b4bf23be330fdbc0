//! What machines and readers are given: batches of transactions, snapshots, and the memory of
//! another process.

use crate::engine::Target;
use crate::seal;
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::slot_move::{MoveEntry, MovedEntry, Piece, Step};
use nearstate_store::transaction::Batch;
use nearstate_store::{
    Condition, Endpoint, Key, LocationCache, LogIndex, Machine, Outcome, ReadError, Region,
    RegionIdentity, RegionStats, ShardId, SlotId, SlotSet, Table, TableReader, TableScan, Tally,
    TenantId, Transaction, TransactionId, Value, Version, Write, decode_batch, encode_batch,
};
use std::cell::OnceCell;
use std::sync::Arc;

type Samples = Vec<(&'static str, Vec<u8>)>;

const CAPACITY: u32 = 64;
const IDENTITY: RegionIdentity = RegionIdentity { cluster: 1, shard: ShardId(1) };

fn key(number: u16) -> Key {
    let ends = (Endpoint::v4([10, 0, 0, 1], number), Endpoint::v4([192, 0, 2, 1], 53));
    Key::new(3, 17, TenantId(0), ends)
}

pub(crate) fn machine() -> FlowMachine {
    machine_of(SlotSet::all(16))
}

fn machine_without(slot: SlotId) -> FlowMachine {
    let mut slots = SlotSet::all(16);
    slots.remove(slot);
    machine_of(slots)
}

fn machine_of(slots: SlotSet) -> FlowMachine {
    let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
    let table = Table::format(Arc::new(region), IDENTITY, CAPACITY, 7).unwrap();
    FlowMachine::new(FlowMachineConfig { table, slots, pools: Vec::new() })
}

pub(crate) fn batch() -> Batch {
    let transactions = (1..=5_u16).map(|number| Transaction {
        id: TransactionId { client: 1 << 16, serial: number.into() },
        slot: SlotId(number),
        conditions: [Condition::Absent(key(number))].into_iter().collect(),
        writes: [
            Write::put(key(number), Value([number.into(); 8])),
            Write::Touch(key(1)),
            Write::Add { key: key(number), at: 8, amount: -1 },
        ]
        .into_iter()
        .collect(),
    });
    let note =
        nearstate_store::transaction::SeenNote { key: key(1), age_ms: 3, tally: Tally::packet(9) };
    Batch { time_ms: 1000, transactions: transactions.collect(), seen: vec![note] }
}

/// What goes into a log entry, batches and steps of moves, and what a machine then does with it.
pub(crate) const BATCHES: Target = Target {
    name: "batches",
    samples: batch_samples,
    is_fresh: false,
    read: read_batch,
    seal: seal::nothing,
};

/// A slot that comes to the machine, and one that goes.
const COMES: SlotId = SlotId(5);
const GOES: SlotId = SlotId(2);

fn batch_samples() -> Samples {
    let moved = MovedEntry { key: key(9), value: Value([9; 8]), version: Version(7), ttl_s: 30 };
    let id = TransactionId { client: 4, serial: 1 };
    let piece = Piece {
        mutations: 8,
        entries: vec![moved],
        removed: vec![key(10)],
        outcomes: vec![(id, Outcome::Committed(LogIndex(5)))],
        pools: Vec::new(),
    };
    let step = |number, step| MoveEntry::new(number, step).encode();
    vec![
        ("five", encode_batch(&batch())),
        ("none", encode_batch(&Batch::default())),
        ("move-begin", step(3, Step::Begin { attempt: 1, slot: COMES })),
        ("move-piece", step(1, Step::Piece { attempt: 1, place: 0, piece })),
        ("move-adopt", step(1, Step::Adopt { attempt: 1, pieces: 0 })),
        ("move-seal", step(2, Step::Seal { slot: GOES, to: ShardId(3) })),
        ("move-release", step(2, Step::Release)),
        ("move-drop", step(2, Step::Drop { keys: vec![key(2)], is_last: true })),
        ("move-unseal", step(2, Step::Unseal { slot: GOES })),
        ("move-give-up", step(1, Step::GiveUp { slot: COMES })),
    ]
}

fn read_batch(bytes: &[u8]) -> bool {
    if FlowMachine::check(bytes).is_err() {
        assert!(decode_batch(bytes).is_err() && MoveEntry::decode(bytes).is_err());
        return false;
    }
    let moves = MoveEntry::decode(bytes);
    if let Ok(entry) = &moves {
        assert_eq!(MoveEntry::decode(&entry.encode()).as_ref(), Ok(entry));
    } else {
        let batch = decode_batch(bytes).expect("who checks and who reads agree");
        assert_eq!(decode_batch(&encode_batch(&batch)), Ok(batch));
    }
    let mut machine = machine_without(COMES);
    let before = [
        encode_batch(&batch()),
        MoveEntry::new(1, Step::Begin { attempt: 1, slot: COMES }).encode(),
        MoveEntry::new(2, Step::Seal { slot: GOES, to: ShardId(3) }).encode(),
    ];
    let entries = before.iter().map(Vec::as_slice).chain([bytes, bytes, &before[0]]);
    for (index, entry) in (1..).map(LogIndex).zip(entries) {
        machine.apply(index, entry);
    }
    // Whatever batches make of a machine, its snapshot makes of another one. Of steps that no mover
    // would ask for (two moves at a time, a drop of half a slot) it is refused.
    let mut other = machine_without(COMES);
    match other.install(&machine.snapshot()) {
        Ok(()) => assert_eq!(other.state_hash(), machine.state_hash()),
        Err(error) => assert!(moves.is_ok(), "its own snapshot: {error}"),
    }
    true
}

/// A machine's snapshot, from another node or from a disk.
pub(crate) const SNAPSHOTS: Target = Target {
    name: "snapshots",
    samples: snapshot_samples,
    is_fresh: false,
    read: read_snapshot,
    seal: seal::snapshot,
};

fn snapshot_samples() -> Samples {
    let mut machine = machine();
    let empty = machine.snapshot();
    machine.apply(LogIndex(1), &encode_batch(&batch()));
    vec![("empty", empty), ("five", machine.snapshot())]
}

fn read_snapshot(bytes: &[u8]) -> bool {
    thread_local! {
        static REFUSES: OnceCell<core::cell::RefCell<FlowMachine>> = const { OnceCell::new() };
    }
    REFUSES.with(|cell| {
        let mut machine = cell.get_or_init(|| machine().into()).borrow_mut();
        let before = machine.state_hash();
        match machine.install(bytes) {
            Ok(()) => {
                // What was installed is a state that goes on like any other.
                let installed = machine.state_hash();
                let again = machine.snapshot();
                machine.install(&again).expect("its own snapshot");
                assert_eq!(machine.state_hash(), installed, "its own snapshot is its state");
                machine.apply(LogIndex(u64::MAX - 2), &encode_batch(&batch()));
                true
            }
            Err(_) => {
                assert_eq!(machine.state_hash(), before, "a refused snapshot changes nothing");
                false
            }
        }
    })
}

/// A region that another process has written.
pub(crate) const REGIONS: Target = Target {
    name: "regions",
    samples: region_samples,
    is_fresh: false,
    read: read_region,
    seal: seal::nothing,
};

fn region_samples() -> Samples {
    let bytes = Table::bytes_for(CAPACITY).unwrap();
    let region = Arc::new(Region::anonymous(bytes).unwrap());
    let mut table = Table::format(region.clone(), IDENTITY, CAPACITY, 7).unwrap();
    for number in 0..40 {
        let version = Version(number.into());
        table.put(&key(number), &Value([5; 8]), version, SlotId(number)).unwrap();
    }
    let mut copy = vec![0; bytes];
    region.copy_out(0, &mut copy);
    vec![("forty", copy)]
}

fn read_region(bytes: &[u8]) -> bool {
    let whole = bytes.len() / 8 * 8;
    let Ok(region) = Region::anonymous(whole) else { return false };
    region.copy_in(0, &bytes[..whole]);
    let Ok(reader) = TableReader::open(Arc::new(region), IDENTITY) else { return false };
    let keys: Vec<Key> = [0, 1, 20, 39, 40, 41].map(key).to_vec();
    let mut found = vec![Err(ReadError::Busy); keys.len()];
    reader.try_get_many(&keys, &mut found);
    let mut cache = LocationCache::new(16);
    for _ in 0..2 {
        reader.try_get_cached(&mut cache, &keys, &mut found);
    }
    for key in &keys {
        let hash = reader.prefetch_cell(reader.hash(key));
        let _ = (reader.try_get(key), reader.try_get_hashed(key, hash));
    }
    let stats = RegionStats::scan(&reader);
    assert!(stats.table.entries <= stats.table.homes + stats.table.overflow_places);
    let scan = TableScan { from: 0, entries_max: 1000, cells_max: u32::MAX, slot: None };
    let (listed, _) = scan.run(&reader);
    assert!(listed.len() <= 1000);
    true
}
