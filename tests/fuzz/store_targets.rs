//! What machines and readers are given: batches of transactions, snapshots, and the memory of
//! another process.

use crate::engine::Target;
use crate::seal;
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::transaction::Batch;
use nearstate_store::{
    Condition, Endpoint, Key, LocationCache, LogIndex, Machine, ReadError, Region, RegionIdentity,
    RegionStats, ShardId, SlotId, SlotSet, Table, TableReader, TableScan, TenantId, Transaction,
    TransactionId, Value, Version, Write, decode_batch, encode_batch,
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
    let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
    let table = Table::format(Arc::new(region), IDENTITY, CAPACITY, 7).unwrap();
    FlowMachine::new(FlowMachineConfig { table, slots: SlotSet::all(16), pools: Vec::new() })
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
    let note = nearstate_store::transaction::SeenNote { key: key(1), age_ms: 3 };
    Batch { time_ms: 1000, transactions: transactions.collect(), seen: vec![note] }
}

/// What goes into a log entry, and what a machine then does with it.
pub(crate) const BATCHES: Target = Target {
    name: "batches",
    samples: || vec![("five", encode_batch(&batch())), ("none", encode_batch(&Batch::default()))],
    is_fresh: false,
    read: read_batch,
    seal: seal::nothing,
};

fn read_batch(bytes: &[u8]) -> bool {
    let checked = FlowMachine::check(bytes);
    let decoded = decode_batch(bytes);
    assert_eq!(checked.is_ok(), decoded.is_ok(), "who checks and who reads agree");
    let Ok(batch) = decoded else { return false };
    assert_eq!(decode_batch(&encode_batch(&batch)), Ok(batch));
    let mut machine = machine();
    machine.apply(LogIndex(1), bytes);
    machine.apply(LogIndex(2), bytes);
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
                let again = machine.snapshot();
                machine.install(&again).expect("its own snapshot");
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
