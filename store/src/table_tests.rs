//! The table against a model, beside readers that never stop, and with hostile headers.

use super::*;
use crate::Endpoint;
use crate::Tally;
use crate::layout::{Hasher, KeyHash, home_of};
use crate::location_cache::LocationCache;
use crate::table_reader::ReadError;
use crate::table_stats::RegionStats;
use crate::types::{ShardId, TenantId};
use core::sync::atomic::{AtomicBool, AtomicU64};
use proptest::prelude::*;
use std::collections::BTreeMap;

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
    for (capacity, share) in [(1, 1.0), (2, 1.0), (9, 1.0), (100, 0.06), (200_000, 0.008)] {
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

/// Bad input 45: keys that somebody chose to lie together in a table whose hash is known lie as far
/// apart as any in a table with another key, and every region has its own.
#[test]
fn bad_input_45_keys_that_collide_in_one_table_do_not_in_another() {
    const CAPACITY: u32 = 4096;
    const KNOWN: u64 = 1;
    let homes = Layout::new(CAPACITY).unwrap().homes;
    let hasher = Hasher::new(KNOWN);
    let lie_together = |number: &u64| home_of(hasher.hash(&key(*number)), homes) < homes / 200;
    let chosen: Vec<u64> = (0..400_000).filter(lie_together).collect();
    assert!((1500..2500).contains(&chosen.len()), "{}", chosen.len());
    let fill = |hash_key| {
        let region = Region::anonymous(Table::bytes_for(CAPACITY).unwrap()).unwrap();
        let mut table = Table::format(Arc::new(region), IDENTITY, CAPACITY, hash_key).unwrap();
        let refused = chosen.iter().filter(|number| put(&mut table, **number, 1).is_err()).count();
        (refused, table.stats())
    };
    let (refused, stats) = fill(KNOWN);
    assert!(refused + stats.overflow as usize > chosen.len() / 2, "they do collide: {stats:?}");
    for hash_key in 2..12 {
        let (refused, stats) = fill(hash_key);
        assert_eq!(refused, 0);
        assert!((stats.overflow as usize) < chosen.len() / 50, "{stats:?}");
    }
}

#[test]
fn a_flow_costs_less_than_256_bytes_at_80_percent_load() {
    for capacity in [10_000, 1_000_000, 10_000_000] {
        let bytes = Table::bytes_for(capacity).unwrap() as f64;
        // What the writer keeps beside the region: a byte a cell.
        let beside = f64::from(capacity) * 1.25;
        let a_flow = (bytes + beside) / (f64::from(capacity) * 0.8);
        assert!(a_flow <= 220.0, "{a_flow} for {capacity}");
    }
}

#[test]
fn bursts_and_hashes_at_hand_read_what_single_reads_read() {
    let (mut table, other) = (table(1000), {
        let region = Region::anonymous(Table::bytes_for(1000).unwrap()).unwrap();
        Table::format(Arc::new(region), IDENTITY, 1000, 100).unwrap()
    });
    for number in 0..1000 {
        put(&mut table, number, number + 5).unwrap();
    }
    let keys: Vec<Key> = (0..1500).step_by(7).map(key).collect();
    let mut found = vec![None; keys.len()];
    let mut remote = vec![Err(ReadError::Busy); keys.len()];
    let reader = table.reader();
    reader.get_many(&keys, &mut found);
    reader.try_get_many(&keys, &mut remote);
    for ((key, found), remote) in keys.iter().zip(found).zip(remote) {
        let hash = reader.hash(key);
        reader.prefetch(key);
        reader.prefetch_tags(hash);
        let aimed = reader.prefetch_cell(hash);
        assert_eq!(found, reader.get(key));
        assert_eq!(Ok(found), remote);
        // A hash from another region's table, or none, must not make a key seem absent.
        for hash in [hash, aimed, other.reader().hash(key), KeyHash::UNKNOWN] {
            let mut entry = Entry::BLANK;
            let is_there = reader.get_hashed(key, hash, &mut entry);
            assert_eq!(found, is_there.then_some(entry));
            assert_eq!(Ok(found), reader.try_get_hashed(key, hash));
        }
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

/// What a reader of another process finds, asked again while the writer is held up in a write.
fn settled(reader: &TableReader, number: u64) -> Option<Entry> {
    loop {
        match reader.try_get(&key(number)) {
            Ok(found) => return found,
            Err(ReadError::Busy) => std::thread::yield_now(),
            Err(ReadError::Checksum) => panic!("a cell does not fit its checksum"),
        }
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
            let entry = settled(reader, number).expect("always present");
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

/// Where the reader process finds its region.
const REGION_OF_PARENT: &str = "NEARSTATE_TEST_REGION";
/// Rounds of a reader process over all keys.
const ROUNDS_OF_CHILD: u64 = 2_000;

/// Not a test of its own: the process that the next test starts.
#[test]
#[ignore = "the next test starts it in a process of its own"]
fn a_reader_process() {
    let path = std::env::var(REGION_OF_PARENT).expect("set by whoever starts this process");
    let region = Arc::new(Region::open_read_only(std::path::Path::new(&path)).unwrap());
    let reader = TableReader::open(region, IDENTITY).unwrap();
    let mut cache = LocationCache::new(64);
    let keys: Vec<Key> = (0..64).chain(1000..1400).map(key).collect();
    let mut found = vec![Err(ReadError::Busy); keys.len()];
    let mut newest = [0; 64];
    for round in 0..ROUNDS_OF_CHILD {
        if round % 2 == 0 {
            reader.try_get_cached(&mut cache, &keys, &mut found);
        } else {
            reader.try_get_many(&keys, &mut found);
        }
        for (place, found) in found.iter().enumerate() {
            let entry = match found {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    assert!(place >= 64, "key {place} is always there and was missed");
                    continue;
                }
                Err(ReadError::Busy) => continue,
                Err(ReadError::Checksum) => panic!("a cell does not fit its checksum"),
            };
            assert!(is_consistent(entry), "torn: {entry:?}");
            if let Some(newest) = newest.get_mut(place) {
                assert!(entry.version.0 >= *newest, "time went backwards");
                *newest = entry.version.0;
            }
        }
    }
    assert!(newest.iter().all(|version| *version > 0), "the writer wrote meanwhile");
}

#[test]
fn processes_that_map_the_region_read_beside_a_writer_that_never_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("region");
    let region = Region::create_shared(&path, Table::bytes_for(460).unwrap()).unwrap();
    let mut table = Table::format(Arc::new(region), IDENTITY, 460, 5).unwrap();
    churn(&mut table, 1..10_000);
    let mut readers: Vec<_> = (0..2)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "table::tests::a_reader_process"])
                .env(REGION_OF_PARENT, &path)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut round = 10_000;
    for reader in &mut readers {
        let ended = loop {
            churn(&mut table, round..round + 1000);
            round += 1000;
            if let Some(ended) = reader.try_wait().unwrap() {
                break ended;
            }
        };
        assert!(ended.success(), "a reader process found something wrong: {ended}");
    }
    let stats = table.stats();
    assert!(stats.displacements > 0, "{stats:?}");
    assert_eq!(RegionStats::scan(&table.reader()).misplaced, 0);
}

#[test]
fn a_remembered_place_is_left_when_the_key_has() {
    let mut table = table(460);
    let reader = table.reader();
    let mut cache = LocationCache::new(1000);
    let mut found = [Err(ReadError::Busy); 64];
    let keys: Vec<Key> = (0..64).map(key).collect();
    for round in 0..200 {
        churn(&mut table, round * 50 + 1..round * 50 + 51);
        if round % 3 == 0 {
            table.remove(&keys[7]);
        }
        reader.try_get_cached(&mut cache, &keys, &mut found);
        for (key, found) in keys.iter().zip(found) {
            assert_eq!(found, Ok(table.get(key)));
        }
    }
    // Every key lies where it is remembered now: a look at one cell is enough.
    let hits = keys.iter().filter(|key| {
        let hash = reader.view().hash(key);
        reader.view().entry_at(cache.recall(hash), key, true).is_some()
    });
    assert!(hits.count() >= 48, "of 64 keys in 1,024 places few can be in each other's way");
}

proptest! {
    /// Another process's region file, whatever stands in its header and however short it is: a
    /// reader or an error, and a reader that reads without harm.
    #[test]
    fn any_region_file_is_opened_or_refused(
        changes in prop::collection::vec((0..40_usize, any::<u64>(), 0..3_u8), 0..6),
        words in prop_oneof![0..1024_usize, Just(usize::MAX)],
        capacity in prop_oneof![Just(64_u64), 0..200_u64, any::<u64>()],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region");
        let mut sound = table(64);
        for number in 0..64 {
            put(&mut sound, number, number).unwrap();
        }
        let sound: Vec<u64> = {
            let region = sound.reader().region().clone();
            region.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        let mut file = sound.clone();
        file[header::CAPACITY] = capacity;
        for (at, word, kind) in changes {
            file[at] = match kind {
                0 => word,
                1 => file[at] ^ 1 << (word % 64),
                _ => file[at].wrapping_add(word % 3).wrapping_sub(1),
            };
        }
        file.truncate(words);
        let bytes: Vec<u8> = file.iter().flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        let Ok(region) = Region::open_read_only(&path) else {
            prop_assert!(file.is_empty(), "only an empty file cannot be mapped");
            return Ok(());
        };
        let Ok(reader) = TableReader::open(Arc::new(region), IDENTITY) else { return Ok(()) };
        prop_assert!(Table::bytes_for(reader.capacity()).unwrap() <= file.len() * 8);
        let stats = RegionStats::scan(&reader);
        prop_assert!(stats.table.entries <= 64);
        let intact = file[..header::WORDS] == sound[..header::WORDS];
        prop_assert!(!intact || (stats.table.entries, stats.misplaced) == (64, 0));
        for number in 0..70 {
            if let Ok(Some(entry)) = reader.try_get(&key(number)) {
                prop_assert!(is_consistent(&entry), "{entry:?}");
            }
        }
    }
}

#[test]
fn a_table_whose_writer_died_in_a_write_is_busy_and_a_damaged_one_is_not_believed() {
    let mut table = table(10);
    put(&mut table, 1, 1).unwrap();
    let reader = table.reader();
    let (cell, _) = table.writer.find(&key(1)).unwrap();
    let words = reader.view().cell(cell);
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
        (header::LAYOUT, 1, TableError::LayoutVersion { found: 1 }),
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
fn a_table_at_full_load_takes_what_comes_for_what_goes_and_keeps_99_percent_at_home() {
    for (capacity, turnovers) in [(100, 200), (1000, 60), (20_000, 12), (100_000, 6)] {
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
        let (stats, scan) = (table.stats(), RegionStats::scan(&table.reader()));
        println!("{stats:?}");
        assert!(f64::from(capacity) / f64::from(stats.homes) >= 0.79, "filled to 80 %");
        let share = if capacity < 20_000 { 0.03 } else { 0.01 };
        assert!(f64::from(stats.overflow) <= f64::from(capacity) * share, "{stats:?}");
        assert_eq!(stats.probes.iter().sum::<u32>(), stats.overflow);
        // A stranger who only maps the region sees the same.
        assert_eq!(scan.table, stats);
        assert_eq!((scan.unreadable, scan.misplaced), (0, 0));
        assert_eq!(scan.entries_counted, u64::from(capacity));
        for number in &oldest {
            assert!(table.get(&key(*number)).is_some(), "{number} is lost");
        }
    }
}

/// A reader marks keys while the writer moves them about: a mark that was left is there afterwards,
/// wherever the entry has gone.
#[test]
fn a_mark_is_not_lost_when_its_entry_is_moved() {
    use crate::lifetimes::MARK_NS;
    const KEYS: u64 = 64;
    const MARKS: u64 = 200_000;
    let mut table = table(220);
    for number in 0..KEYS {
        let entry = Entry { value: value(number), version: Version(1), slot: SlotId(0) };
        table.put_living(&key(number), entry, Some(300), 1).unwrap();
    }
    let reader = table.reader();
    let left: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut hints = [KeyHash::UNKNOWN; KEYS as usize];
            for at in 1..=MARKS {
                let number = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
                let now = Time(at * MARK_NS);
                // A hint of where it lay, mostly an old one.
                let hint = &mut hints[number as usize];
                if at % 16 == 0 {
                    *hint = reader.prefetch_cell(reader.hash(&key(number)));
                }
                let mut entry = Entry::BLANK;
                assert!(reader.get_seen(&key(number), *hint, (now, Tally::ZERO), &mut entry));
                left[number as usize].store(now.0, Ordering::Release);
                count.store(at, Ordering::Release);
            }
        });
        let mut round = 1;
        while count.load(Ordering::Acquire) < MARKS && !thread.is_finished() {
            for number in (round..round + 64).map(|number| KEYS + number * 7 % 1000) {
                if table.remove(&key(number)).is_none() {
                    // Full is an answer as well.
                    let _ = put(&mut table, number, round);
                }
            }
            round += 64;
            for (number, left) in (0..).zip(&left) {
                let told = left.load(Ordering::Acquire);
                let mark = table.seen(&key(number)).expect("never removed").2;
                assert!(told == 0 || mark.is_some_and(|mark| mark.0 > told), "{number} at {told}");
            }
        }
    });
    assert!(table.stats().displacements > 0);
    assert!(count.into_inner() == MARKS);
    assert_eq!(table.timers(), KEYS as u32, "timers went along");
}
