//! The table against a model, beside readers that never stop, and with hostile headers.

use super::*;
use crate::Endpoint;
use crate::table_reader::ReadError;
use crate::types::{ShardId, TenantId};
use core::sync::atomic::{AtomicBool, AtomicU64};
use proptest::prelude::*;

const IDENTITY: RegionIdentity = RegionIdentity { cluster: 0xc1, shard: ShardId(3) };

fn table(capacity: u32) -> Table {
    let region = Region::anonymous(Table::bytes_for(capacity).unwrap()).unwrap();
    Table::format(Arc::new(region), IDENTITY, capacity, 99).unwrap()
}

fn key(number: u64) -> Key {
    let end = |x: u64| Endpoint::v4((x as u32).to_be_bytes(), (x >> 32) as u16);
    Key::new(1, 6, TenantId(1), (end(number), end(0)))
}

fn value(number: u64) -> Value {
    Value(core::array::from_fn(|i| number.wrapping_mul(i as u64 * 2 + 1)))
}

fn is_consistent(entry: &Entry) -> bool {
    entry.value == value(entry.value.0[0])
}

fn put(table: &mut Table, number: u64, content: u64) -> Result<(), TableFull> {
    table.put(&key(number), &value(content), Version(content), SlotId(number as u16))
}

#[test]
fn a_full_table_holds_all_of_its_capacity_and_little_of_it_in_the_overflow_area() {
    for (capacity, share) in [(1, 1.0), (2, 1.0), (9, 1.0), (100, 0.06), (200_000, 0.01)] {
        let mut table = table(capacity);
        for number in 0..u64::from(capacity) {
            put(&mut table, number, number).unwrap();
        }
        assert_eq!(put(&mut table, u64::MAX, 0), Err(TableFull(capacity)));
        put(&mut table, 0, 1).unwrap();
        let stats = table.stats();
        println!("{stats:?}");
        assert_eq!((stats.entries, table.iter().count()), (capacity, capacity as usize));
        assert_eq!(stats.distances.iter().sum::<u32>() + stats.overflow, capacity);
        assert!(f64::from(stats.overflow) <= f64::from(capacity) * share, "{stats:?}");
        for number in 1..u64::from(capacity) {
            assert_eq!(table.get(&key(number)).unwrap().value, value(number));
            assert_eq!(table.reader().try_get(&key(number)).unwrap().unwrap().value, value(number));
        }
        assert_eq!(table.get(&key(u64::from(capacity) + 7)), None);
        table.clear();
        assert_eq!((table.len(), table.iter().count(), table.stats().overflow), (0, 0, 0));
        assert_eq!(table.get(&key(0)), None);
        put(&mut table, 5, 6).unwrap();
        assert_eq!(table.get(&key(5)).unwrap().value, value(6));
    }
}

#[test]
fn a_flow_costs_less_than_256_bytes() {
    for capacity in [10_000, 1_000_000, 10_000_000] {
        let bytes = Table::bytes_for(capacity).unwrap() as u64;
        assert!(bytes <= u64::from(capacity) * 256, "{bytes} for {capacity}");
    }
}

#[test]
fn bursts_read_what_single_reads_read() {
    let mut table = table(1000);
    for number in 0..1000 {
        put(&mut table, number, number + 5).unwrap();
    }
    let keys: Vec<Key> = (0..1500).step_by(7).map(key).collect();
    let mut found = vec![None; keys.len()];
    table.reader().get_many(&keys, &mut found);
    for (key, found) in keys.iter().zip(found) {
        table.reader().prefetch(key);
        assert_eq!(found, table.reader().get(key));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u64),
    Remove(u64),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        200 => (0..160_u64, 1..1000_u64).prop_map(|(number, content)| Step::Put(number, content)),
        80 => (0..160_u64).prop_map(Step::Remove),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// At and beyond full load, for many hash keys: the same answers as a map, all the time.
    #[test]
    fn a_table_is_a_map(steps in prop::collection::vec(step(), 1..600), hash_key: u64) {
        let region = Region::anonymous(Table::bytes_for(100).unwrap()).unwrap();
        let mut table = Table::format(Arc::new(region), IDENTITY, 100, hash_key).unwrap();
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(number, content) => {
                    let full = model.len() == 100 && !model.contains_key(&key(number));
                    let answer = put(&mut table, number, content);
                    prop_assert_eq!(answer.is_err(), full);
                    if !full {
                        let (version, slot) = (Version(content), SlotId(number as u16));
                        let entry = Entry { value: value(content), version, slot };
                        model.insert(key(number), entry);
                    }
                }
                Step::Remove(number) => {
                    prop_assert_eq!(table.remove(&key(number)), model.remove(&key(number)));
                }
                Step::Clear => {
                    table.clear();
                    model.clear();
                }
            }
            prop_assert_eq!(table.len() as usize, model.len());
        }
        prop_assert_eq!(table.iter().collect::<BTreeMap<_, _>>(), model.clone());
        for number in 0..160 {
            prop_assert_eq!(table.get(&key(number)), model.get(&key(number)).copied());
            let read = table.reader().try_get(&key(number));
            prop_assert_eq!(read, Ok(model.get(&key(number)).copied()));
        }
    }
}

/// The writer churns a small, full table so that entries are displaced all the time; some keys are
/// always there.
fn churn(table: &mut Table, rounds: core::ops::Range<u64>) {
    for round in rounds {
        let number = 1000 + round.wrapping_mul(0x9e37_79b9) % 400;
        if table.remove(&key(number)).is_none() {
            // Full is fine here.
            let _ = put(table, number, round);
        }
        put(table, round % 64, round).unwrap();
    }
}

fn check_while(reader: &TableReader, done: &AtomicBool, checked: &AtomicU64) {
    let mut newest = [0; 64];
    while !done.load(Ordering::Relaxed) {
        for number in 0..64 {
            let entry = reader.get(&key(number)).expect("this key is always present");
            assert!(is_consistent(&entry), "torn: {entry:?}");
            assert_eq!(entry.version.0, entry.value.0[0]);
            assert!(entry.version.0 >= newest[number as usize], "time went backwards");
            newest[number as usize] = entry.version.0;
            let entry = reader.try_get(&key(number)).unwrap().expect("always present");
            assert!(is_consistent(&entry), "torn: {entry:?}");
        }
        for number in 1000..1400 {
            if let Some(entry) = reader.get(&key(number)) {
                assert!(is_consistent(&entry), "torn: {entry:?}");
                assert_eq!(entry.slot, SlotId(number as u16));
            }
        }
        checked.fetch_add(464, Ordering::Relaxed);
    }
}

/// What the writer displaces at least while readers read.
const DISPLACEMENTS: u64 = 1_000;
/// Rounds of [`churn`] within which a table of 220 displaces that many entries, for either hash key
/// of the tests: the table and its keys decide it, not the readers.
const ROUNDS: u64 = 200_000;

fn readers_beside_a_writer(mut table: Table, readers: &[TableReader]) {
    for number in 0..64 {
        put(&mut table, number, 0).unwrap();
    }
    let (done, checked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let threads: Vec<_> = readers
            .iter()
            .map(|reader| scope.spawn(|| check_while(reader, &done, &checked)))
            .collect();
        // A reader only ends by itself when it has found something wrong.
        let going = || threads.iter().all(|thread| !thread.is_finished());
        let mut round = 1;
        let enough = |round| round > ROUNDS && checked.load(Ordering::Relaxed) >= 400_000;
        while !enough(round) && going() {
            churn(&mut table, round..round + 1000);
            round += 1000;
        }
        done.store(true, Ordering::Relaxed);
    });
    let stats = table.stats();
    assert!(stats.displacements >= DISPLACEMENTS, "{stats:?}");
}

#[test]
fn readers_miss_nothing_and_see_nothing_torn_beside_a_writer_that_never_stops() {
    let table = table(220);
    let readers = [table.reader(), table.reader()];
    readers_beside_a_writer(table, &readers);
}

#[test]
fn a_reader_of_another_mapping_sees_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard-3");
    let region = Region::create_shared(&path, Table::bytes_for(220).unwrap()).unwrap();
    let table = Table::format(Arc::new(region), IDENTITY, 220, 5).unwrap();
    let mapped = Arc::new(Region::open_read_only(&path).unwrap());
    let readers = [TableReader::open(mapped, IDENTITY).unwrap()];
    table.set_generation(12);
    assert_eq!(readers[0].generation(), 12);
    readers_beside_a_writer(table, &readers);
}

#[test]
fn a_table_whose_writer_died_in_a_write_is_busy_and_a_damaged_one_is_not_believed() {
    let mut table = table(10);
    put(&mut table, 1, 1).unwrap();
    let reader = table.reader();
    let (cell, _) = table.find(&key(1)).unwrap();
    let words = reader.cell(cell);
    words[0].fetch_add(1, Ordering::Relaxed);
    assert_eq!(reader.try_get(&key(1)), Err(ReadError::Busy));
    words[0].fetch_sub(1, Ordering::Relaxed);
    words[12].fetch_xor(4, Ordering::Relaxed);
    assert_eq!(reader.try_get(&key(1)), Err(ReadError::Checksum));
    words[12].fetch_xor(4, Ordering::Relaxed);
    assert_eq!(reader.try_get(&key(1)).unwrap(), table.get(&key(1)));
}

#[test]
fn headers_that_are_not_ours_are_refused() {
    let bytes = Table::bytes_for(64).unwrap();
    let cases: [(usize, u64, TableError); 8] = [
        (header::MAGIC, 0, TableError::NotATable),
        (header::LAYOUT, 2, TableError::LayoutVersion { found: 2 }),
        (header::CLUSTER, 1, TableError::WrongCluster { found: 1, expected: 0xc1 }),
        (header::SHARD, 1 << 32, TableError::WrongShard { found: 1 << 32, expected: ShardId(3) }),
        (header::CAPACITY, 0, TableError::Capacity(0)),
        (header::CAPACITY, u64::MAX, TableError::Capacity(u32::MAX)),
        (header::CAPACITY, 1 << 32, TableError::Capacity(u32::MAX)),
        (
            header::CAPACITY,
            1000,
            TableError::TooSmall {
                needed: Table::bytes_for(1000).unwrap() as u64,
                found: bytes as u64,
            },
        ),
    ];
    for (at, word, error) in cases {
        let table = table(64);
        let region = table.reader().region().clone();
        region.words()[at].store(word, Ordering::Relaxed);
        let found = TableReader::open(region, IDENTITY).map(|reader| reader.capacity());
        assert_eq!(found, Err(error), "word {at}");
    }
    let small = Arc::new(Region::anonymous(64).unwrap());
    let opened = TableReader::open(small.clone(), IDENTITY).map(|_| ());
    assert!(matches!(opened, Err(TableError::TooSmall { .. })));
    let formatted = Table::format(small, IDENTITY, 64, 0).map(|_| ());
    assert!(matches!(formatted, Err(TableError::TooSmall { .. })));
    let used = table(64).reader().region().clone();
    assert_eq!(Table::format(used, IDENTITY, 64, 0).map(|_| ()), Err(TableError::NotFresh));
}

proptest! {
    /// Garbage in a mapped region gives wrong answers or errors, and nothing worse.
    #[test]
    fn a_region_full_of_garbage_is_read_without_harm(seed: u64, hash_key: u64) {
        let table = table(16);
        let region = table.reader().region().clone();
        let mut x = seed | 1;
        for word in &region.words()[header::HASH_KEY..] {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // Even sequences, so that readers look at the rest.
            word.store(x & !1, Ordering::Relaxed);
        }
        region.words()[header::HASH_KEY].store(hash_key, Ordering::Relaxed);
        let reader = TableReader::open(region, IDENTITY).unwrap();
        for number in 0..4 {
            let answer = reader.try_get(&key(number));
            prop_assert!(!matches!(answer, Ok(Some(_))), "a cell of garbage was believed");
        }
    }
}

#[test]
fn a_table_at_full_load_takes_what_comes_for_what_goes() {
    for (capacity, turnovers) in [(100, 200), (1000, 60), (20_000, 12)] {
        let mut table = table(capacity);
        for number in 0..u64::from(capacity) {
            put(&mut table, number, 1).unwrap();
        }
        let mut oldest: Vec<u64> = (0..u64::from(capacity)).collect();
        let mut random = 7_u64;
        for number in (u64::from(capacity)..).take(capacity as usize * turnovers) {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let place = (random >> 33) as usize % oldest.len();
            table.remove(&key(core::mem::replace(&mut oldest[place], number))).unwrap();
            put(&mut table, number, 1).unwrap();
        }
        let overflow = table.stats().overflow;
        assert!(overflow * 20 <= capacity, "{overflow} of {capacity} lie in the overflow area");
    }
}
