//! Reads in place and from another process, and the memory that a flow takes.
//!
//! Keys are drawn uniformly, in bursts of 32, with the cost of drawing them counted in; every read
//! is checked to find its entry. One core. A row's value is the median of its rounds. Beside them,
//! with the same keys, values and bursts: a hash map behind one lock, which is taken once a burst,
//! and hash maps behind 64 locks, of which one is taken for each key.

use crate::report::Report;
use hashbrown::HashMap;
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::table_reader::READ_BURST;
use nearstate_store::{
    Endpoint, Entry, Key, ReadError, Region, RegionIdentity, ShardId, SlotId, SlotSet, Table,
    TableReader, Tally, TenantId, Time, Value, Version,
};
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The first argument of a process that is to own a table which others map.
pub(crate) const OWNER_ARGUMENT: &str = "--table-owner";

const IDENTITY: RegionIdentity = RegionIdentity { cluster: 0xbe, shard: ShardId(1) };
const MILLION: u64 = 1_000_000;
const ROUNDS: usize = 9;
/// Locks of the sharded map, a power of two.
const LOCKS: usize = 64;

const SHM: &str = "shm_read_1m_mops";
const BYTES: &str = "bytes_per_flow";

type Failure = Box<dyn Error>;
/// Reads so many entries so often and gives millions a second.
type Body = fn(u64, usize) -> Result<f64, Failure>;

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    if report.wants(BYTES) {
        let bytes = bytes_per_flow(MILLION)?;
        report.row(BYTES, bytes, "bytes");
    }
    for (entries, rows) in [
        (MILLION, ["local_read_1m_mops", "mutex_read_1m_mops", "sharded_read_1m_mops"]),
        (10 * MILLION, ["local_read_10m_mops", "mutex_read_10m_mops", "sharded_read_10m_mops"]),
    ] {
        let bodies: [Body; 3] = [local, one_lock, many_locks];
        for (row, body) in rows.into_iter().zip(bodies) {
            if report.wants(row) {
                let mops = body(entries, reads_a_round(report))?;
                report.row(row, mops, "Mops");
            }
        }
    }
    if report.wants(SHM) {
        shared(report)?;
    }
    Ok(())
}

fn reads_a_round(report: &Report) -> usize {
    if report.quick() { 500_000 } else { 4_000_000 }
}

/// The keys of a benchmark: hosts of one network, each with one flow.
#[derive(Clone, Copy)]
struct Keys {
    template: Key,
    entries: u64,
    state: u64,
}

impl Keys {
    fn new(entries: u64) -> Self {
        let outside = Endpoint::v4([192, 0, 2, 1], 53);
        let template = Key::new(3, 17, TenantId(0), (Endpoint::v4([0; 4], 1024), outside));
        Self { template, entries, state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn key(&self, number: u64) -> Key {
        let mut key = self.template;
        // The inside host's address: the low half of the third word.
        key.0[2] |= number;
        key
    }

    #[inline]
    fn draw(&mut self) -> Key {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.key(((u128::from(self.state) * u128::from(self.entries)) >> 64) as u64)
    }

    fn burst(&mut self) -> [Key; READ_BURST] {
        core::array::from_fn(|_| self.draw())
    }
}

fn entry(number: u64) -> Entry {
    let value = Value(core::array::from_fn(|i| number.wrapping_mul(i as u64 + 1)));
    Entry { value, version: Version(number), slot: SlotId(number as u16 & 1023) }
}

/// Millions of reads a second of a body that reads a burst and gives how many it found.
fn measure(entries: u64, reads: usize, mut body: impl FnMut(&[Key]) -> usize) -> f64 {
    let mut keys = Keys::new(entries);
    let bursts = reads / READ_BURST;
    let mut rounds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let found: usize = (0..bursts).map(|_| body(&keys.burst())).sum();
            let seconds = began.elapsed().as_secs_f64();
            assert_eq!(found, bursts * READ_BURST, "every key is there");
            found as f64 / seconds / 1e6
        })
        // The first one warms up.
        .skip(1)
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// Filled to 80 % of its capacity.
fn capacity(entries: u64) -> u32 {
    (entries / 4 * 5) as u32
}

fn fill(region: Region, entries: u64) -> Result<Table, Failure> {
    let mut table = Table::format(Arc::new(region), IDENTITY, capacity(entries), 0x5eed)?;
    let keys = Keys::new(entries);
    for number in 0..entries {
        let Entry { value, version, slot } = entry(number);
        table.put(&keys.key(number), &value, version, slot)?;
    }
    Ok(table)
}

fn local(entries: u64, reads: usize) -> Result<f64, Failure> {
    let region = Region::anonymous(Table::bytes_for(capacity(entries))?)?;
    println!("  table of {entries}: {} bytes, {}", region.len_bytes(), region.backing());
    let table = fill(region, entries)?;
    let reader = table.reader();
    let mut found = [None; READ_BURST];
    Ok(measure(entries, reads, |keys| {
        reader.get_many(keys, &mut found);
        found.iter().filter(|found| is_whole(found)).count()
    }))
}

/// Looks at the value, so that reading it cannot be left out.
fn is_whole(found: &Option<Entry>) -> bool {
    found.is_some_and(|entry| entry.value.0[0].wrapping_mul(8) == entry.value.0[7])
}

/// The folded multiplication of the table's own hash, for the maps beside it.
#[derive(Clone, Copy, Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.as_chunks::<8>().0 {
            self.write_u64(u64::from_ne_bytes(*chunk));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ 0x2d35_8dcc_aa6c_78a5) * 0x8bb8_4b93_962e_acc9;
        self.0 = wide as u64 ^ (wide >> 64) as u64;
    }

    fn write_usize(&mut self, _: usize) {
        // A length that is the same for all keys.
    }
}

impl BuildHasher for Fold {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

type Map = HashMap<Key, Entry, Fold>;

fn one_lock(entries: u64, reads: usize) -> Result<f64, Failure> {
    let keys = Keys::new(entries);
    let mut map = Map::with_capacity_and_hasher(entries as usize, Fold::default());
    map.extend((0..entries).map(|number| (keys.key(number), entry(number))));
    let map = Mutex::new(map);
    Ok(measure(entries, reads, |keys| {
        let map = map.lock().expect("nobody panics with it");
        keys.iter().filter(|key| is_whole(&map.get(*key).copied())).count()
    }))
}

fn many_locks(entries: u64, reads: usize) -> Result<f64, Failure> {
    let keys = Keys::new(entries);
    let room = entries as usize / LOCKS;
    let mut maps: Vec<Map> =
        (0..LOCKS).map(|_| Map::with_capacity_and_hasher(room, Fold::default())).collect();
    // Other bits than those by which a map finds its place.
    let shard = |key: &Key| (Fold::default().hash_one(key) >> 24) as usize % LOCKS;
    for number in 0..entries {
        let key = keys.key(number);
        maps[shard(&key)].insert(key, entry(number));
    }
    let maps: Vec<Mutex<Map>> = maps.into_iter().map(Mutex::new).collect();
    Ok(measure(entries, reads, |keys| {
        let look = |key: &&Key| {
            let map = maps[shard(key)].lock().expect("nobody panics with it");
            is_whole(&map.get(*key).copied())
        };
        keys.iter().filter(look).count()
    }))
}

/// A process that owns a table, until this is dropped.
struct Owner(Child);

impl Owner {
    fn start(path: &Path, entries: u64) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(OWNER_ARGUMENT)
            .arg(path)
            .arg(entries.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output of the table's owner")?;
        let owner = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.trim() != "ready" {
            return Err("the table's owner ended before its table was ready".into());
        }
        Ok(owner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The life of a process that owns a table: fills it, says so, and stays until its input ends.
pub(crate) fn own(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let path = arguments.next().ok_or("the path of the region is missing")?;
    let entries = arguments.next().ok_or("the number of entries is missing")?.parse()?;
    let bytes = Table::bytes_for(capacity(entries))?;
    let table = fill(Region::create_shared(Path::new(&path), bytes)?, entries)?;
    table.set_generation(1);
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One-sided, through a read-only mapping of another process's table.
fn shared(report: &mut Report) -> Result<(), Failure> {
    let place = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { Path::new(".") };
    let directory = tempfile::tempdir_in(place)?;
    let path = directory.path().join("table");
    let _owner = Owner::start(&path, MILLION)?;
    let region = Region::open_read_only(&path)?;
    println!("  table of another process: {} bytes, {}", region.len_bytes(), region.backing());
    let reader = TableReader::open(Arc::new(region), IDENTITY)?;
    let reads = reads_a_round(report);
    let mut found = [Err(ReadError::Busy); READ_BURST];
    let mops = measure(MILLION, reads, |keys| {
        reader.try_get_many(keys, &mut found);
        assert_eq!(reader.generation(), 1, "its owner is the same");
        found.iter().filter(|found| is_whole(&found.unwrap_or(None))).count()
    });
    report.row(SHM, mops, "Mops");
    Ok(())
}

/// What a replica grows by, for each flow, when its cells are filled to 80 %, which is its
/// capacity, and a packet of each flow has been counted: its region and all that its machine keeps
/// beside it.
fn bytes_per_flow(entries: u64) -> Result<f64, Failure> {
    let before = resident_bytes()?;
    let region = Region::anonymous(Table::bytes_for(entries as u32)?)?;
    let table = Table::format(Arc::new(region), IDENTITY, entries as u32, 0x5eed)?;
    let slots = SlotSet::all(crate::replica::SLOTS);
    let mut machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] });
    crate::commits::fill(&mut machine, entries);
    let (reader, seen) = (machine.reader(), (Time(1), Tally::packet(64)));
    let mut entry = Entry::BLANK;
    for serial in 1..=entries {
        let key = crate::commits::flow_key(1, serial);
        if !reader.get_seen(&key, reader.hash(&key), seen, &mut entry) {
            return Err(format!("flow {serial} is not there").into());
        }
    }
    let after = resident_bytes()?;
    let table = machine.table_stats();
    println!("  {table:?}");
    Ok((after - before) as f64 / entries as f64)
}

fn resident_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kilobytes.ok_or("the kernel does not say what is resident")?.trim().parse::<u64>()? * 1024)
}
