//! What a packet costs: each function, over a plain table, over a leased table, and over a table
//! that another process owns, for 1 K, 64 K and 1 M flows.
//!
//! 64-byte UDP packets of uniformly random flows go from memory through [`Pipe`], the loop that a
//! node runs, and back to a frame pool: copy in, parse, steer, read, process, check the clock,
//! rewrite. One core. Before that every flow is opened through the same pipe, which is measured
//! too.
//!
//! `cargo bench --bench packet_path [-- --quick] [--only nat44_64k] [--json FILE]`

#![expect(unsafe_code, reason = "an allocator that counts can only be written so")]

mod report;

use nearstate_nf_node::baseline::{Baseline, BaselineConfig};
use nearstate_nf_node::frame::{BURST_MAX, Burst, Frame, FramePool};
use nearstate_nf_node::packet::PacketBuilder;
use nearstate_nf_node::pipe::{Output, PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use nearstate_nf_node::state_access::{
    Access, Completion, QueueFull, ReadAnswer, StateAccess, Token,
};
use nearstate_nf_node::{Chain, ChainConfig, DropReason, Event};
use nearstate_placement::Side;
use nearstate_store::{
    Endpoint, Key, LeaseCell, Region, RegionIdentity, ShardId, SlotId, Table, TableReader, Time,
    Transaction, clock,
};
use report::{Options, Report};
use std::alloc::{GlobalAlloc, Layout, System};
use std::error::Error;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes of a packet on the wire without its checksum: the smallest Ethernet frame is 64 with it,
/// but benchmarks of others count 64 in memory.
const PACKET_BYTES: usize = 64;
const SLOTS: u32 = 1024;
/// Flows of one inside host: their ports fit into one block.
const FLOWS_PER_HOST: u32 = 50;
/// Timed chunks of a row; the median counts.
const CHUNKS: usize = 7;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// This node's table under its own lease.
struct Leased {
    reader: TableReader,
    lease: Arc<LeaseCell>,
}

/// A table that another process owns, mapped read-only, under a read lease.
struct Mapped {
    reader: TableReader,
    lease: Arc<LeaseCell>,
    generation: u64,
}

impl StateAccess for Leased {
    fn prefetch(&self, _: SlotId, key: &Key) {
        self.reader.prefetch(key);
    }

    fn read(&mut self, now: Time, _: Token, _: SlotId, key: &Key) -> ReadAnswer {
        let valid_until = self.lease.until();
        if now > valid_until {
            return ReadAnswer::Unavailable;
        }
        ReadAnswer::Here { entry: self.reader.get(key), access: Access::Local, valid_until }
    }

    fn submit(&mut self, _: Time, _: Token, _: &Transaction) -> Result<(), QueueFull> {
        Err(QueueFull)
    }

    fn poll(&mut self, _: Time) -> Option<Completion> {
        None
    }
}

impl StateAccess for Mapped {
    fn prefetch(&self, _: SlotId, key: &Key) {
        self.reader.prefetch(key);
    }

    fn read(&mut self, now: Time, _: Token, _: SlotId, key: &Key) -> ReadAnswer {
        let valid_until = self.lease.until();
        if now > valid_until {
            return ReadAnswer::Unavailable;
        }
        match self.reader.try_get(key) {
            Ok(entry) if self.reader.generation() == self.generation => {
                ReadAnswer::Here { entry, access: Access::RemoteShm, valid_until }
            }
            Ok(_) | Err(_) => ReadAnswer::Unavailable,
        }
    }

    fn submit(&mut self, _: Time, _: Token, _: &Transaction) -> Result<(), QueueFull> {
        Err(QueueFull)
    }

    fn poll(&mut self, _: Time) -> Option<Completion> {
        None
    }
}

/// Takes frames back to where they came from.
struct Sink {
    pool: FramePool,
    left: u64,
    dropped: Option<DropReason>,
}

impl Output for Sink {
    fn clock(&mut self) -> Time {
        clock::boot_now()
    }

    fn leave(&mut self, frame: Frame) -> Result<(), Frame> {
        self.left += 1;
        self.pool.give(frame);
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.dropped = Some(reason);
        self.pool.give(frame);
    }
}

type Packet64 = [u8; PACKET_BYTES];

struct Function {
    name: &'static str,
    chain: &'static str,
    side: Side,
    /// Entries that a flow has.
    entries: u32,
}

const FUNCTIONS: [Function; 3] = [
    Function {
        name: "nat44",
        chain: "functions = [\"nat\"]\n[nat]\naddresses = [\"198.18.0.0/25\"]",
        side: Side::Inside,
        entries: 2,
    },
    Function {
        name: "firewall",
        chain: "functions = [\"firewall\"]\n[firewall]",
        side: Side::Inside,
        entries: 1,
    },
    Function {
        name: "lb",
        chain: "functions = [\"load-balancer\"]\n[load_balancer]\n\
                [[load_balancer.service]]\nprotocol = \"udp\"\naddress = \"203.0.113.80:53\"\n\
                backends = [{ endpoint = \"10.9.0.1:53\" }, { endpoint = \"10.9.0.2:53\" }]",
        side: Side::Outside,
        entries: 2,
    },
];

const SIZES: [(&str, u32); 3] = [("1k", 1 << 10), ("64k", 1 << 16), ("1m", 1 << 20)];

/// The packets of all flows in random order.
fn packets(function: &Function, flows: u32) -> Vec<Packet64> {
    let mut packets: Vec<Packet64> = (0..flows).map(|flow| packet(function, flow)).collect();
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..packets.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        packets.swap(at, (dice % (at as u64 + 1)) as usize);
    }
    packets
}

fn packet(function: &Function, flow: u32) -> Packet64 {
    let (host, number) = (flow / FLOWS_PER_HOST, flow % FLOWS_PER_HOST);
    let [_, b, c, d] = host.to_be_bytes();
    let port = 2000 + number as u16;
    let (source, destination) = match function.side {
        Side::Inside => (Endpoint::v4([10, b, c, d], port), Endpoint::v4([192, 0, 2, 1], 53)),
        Side::Outside => (Endpoint::v4([100, b, c, d], port), Endpoint::v4([203, 0, 113, 80], 53)),
    };
    let payload = [0; PACKET_BYTES - 42];
    let bytes = PacketBuilder::udp(source, destination).payload(&payload).build();
    bytes.try_into().expect("a UDP packet of 64 bytes")
}

/// Pushes the packets with these numbers through a pipe, until all have come out.
fn push<S: StateAccess>(
    pipe: &mut Pipe<S>,
    sink: &mut Sink,
    side: Side,
    packets: impl Iterator<Item = Packet64>,
) {
    let mut packets = packets.fuse();
    let mut burst = Burst::new();
    loop {
        while burst.len() < BURST_MAX {
            let Some(bytes) = packets.next() else { break };
            let mut frame = sink.pool.take().expect("frames come back");
            frame.bytes[..PACKET_BYTES].copy_from_slice(&bytes);
            (frame.len, frame.side) = (PACKET_BYTES as u16, side);
            burst.push(frame);
        }
        if burst.is_empty() {
            break;
        }
        let now = clock::boot_now();
        pipe.on_burst(now, &mut burst, sink);
        while pipe.on_completions(now, sink) > 0 {}
    }
    assert_eq!(pipe.parked(), 0, "everything is decided at once here");
}

struct Measured {
    ns: f64,
    allocations: f64,
}

/// Nanoseconds and allocations a packet, of `count` packets in each chunk.
fn measure<S: StateAccess>(
    pipe: &mut Pipe<S>,
    packets: &[Packet64],
    side: Side,
    count: usize,
) -> Measured {
    let mut sink = new_sink();
    let mut times = [0.0; CHUNKS];
    push(pipe, &mut sink, side, packets.iter().copied().cycle().take(count));
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    for (chunk, time) in times.iter_mut().enumerate() {
        let skip = chunk * count % packets.len();
        let run = packets[skip..].iter().chain(packets.iter().cycle()).copied().take(count);
        let began = Instant::now();
        push(pipe, &mut sink, side, run);
        *time = began.elapsed().as_nanos() as f64 / count as f64;
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
    assert_eq!(sink.dropped, None, "no packet may be dropped");
    assert_eq!(sink.left, (count * (CHUNKS + 1)) as u64, "every packet leaves");
    times.sort_by(f64::total_cmp);
    Measured { ns: times[CHUNKS / 2], allocations: allocations as f64 / (count * CHUNKS) as f64 }
}

fn new_sink() -> Sink {
    Sink { pool: FramePool::new(PARKED_MAX + BURST_MAX), left: 0, dropped: None }
}

fn pipe_over<S: StateAccess>(chain: &SteeredChain, access: S) -> Pipe<S> {
    let settings = PipeSettings { client: 1, parked_max: PARKED_MAX, seed: 1 };
    Pipe::new(chain.clone(), access, settings)
}

struct Bench {
    report: Report,
    /// For the regions that are shared; on tmpfs, as in a node.
    dir: tempfile::TempDir,
}

impl Bench {
    fn note(&mut self, name: String, what: &str, measured: &Measured) {
        let mpps = 1000.0 / measured.ns;
        println!(
            "{what:<44} {:>9.1} ns {mpps:>9.2} Mpps {:>9.3} allocations",
            measured.ns, measured.allocations
        );
        self.report.keep(format!("{name}_mpps"), mpps, "Mpps");
        self.report.keep(format!("{name}_ns"), measured.ns, "ns/packet");
        self.report.keep(format!("{name}_allocs"), measured.allocations, "1/packet");
    }

    fn run(
        &mut self,
        function: &Function,
        (size, flows): (&str, u32),
    ) -> Result<(), Box<dyn Error>> {
        let packets = packets(function, flows);
        let count = if self.report.quick() { 1 << 18 } else { packets.len().max(1 << 21) };
        let config: ChainConfig = toml::from_str(function.chain)?;
        let chain = SteeredChain::new(Arc::new(Chain::new(&config, SLOTS)?), 7);
        let path = self.dir.path().join(format!("{}-{size}", function.name));
        // Four fifths full.
        let capacity = flows * function.entries / 4 * 5;
        let region = Arc::new(Region::create_shared(&path, Table::bytes_for(capacity)?)?);
        let config = BaselineConfig {
            capacity,
            slots: SLOTS,
            pools: chain.chain().pools().to_vec(),
            hash_key: 0x5eed,
            pending_max: PARKED_MAX,
        };
        let mut pipe = pipe_over(&chain, Baseline::in_region(region, config)?);
        let name = format!("{}_{size}", function.name);

        let (mut sink, began) = (new_sink(), Instant::now());
        push(&mut pipe, &mut sink, function.side, packets.iter().copied());
        let ns = began.elapsed().as_nanos() as f64 / f64::from(flows);
        assert_eq!((sink.left, sink.dropped), (u64::from(flows), None), "every flow opens");
        assert_eq!(pipe.counters().snapshot().event(Event::Commits), u64::from(flows));
        println!("{:<44} {ns:>9.1} ns {:>9.2} M/s", format!("{name} new flow, baseline"), 1e3 / ns);
        self.report.keep(format!("{name}_new_baseline_mops"), 1e3 / ns, "M flows/s");

        let measured = measure(&mut pipe, &packets, function.side, count);
        self.note(format!("{name}_baseline"), &format!("{name} baseline"), &measured);
        let lease = Arc::new(LeaseCell::none());
        lease.set(clock::boot_now().plus_ms(3_600_000));
        let reader = pipe.access_mut().machine().reader();
        let access = Leased { reader, lease: lease.clone() };
        let measured = measure(&mut pipe_over(&chain, access), &packets, function.side, count);
        self.note(name.clone(), &format!("{name} owner-local"), &measured);
        let region = Arc::new(Region::open_read_only(&path)?);
        let identity = RegionIdentity { cluster: 0, shard: ShardId(1) };
        let reader = TableReader::open(region, identity)?;
        let generation = reader.generation();
        let access = Mapped { reader, lease, generation };
        let measured = measure(&mut pipe_over(&chain, access), &packets, function.side, count);
        self.note(format!("{name}_shm"), &format!("{name} remote-shm"), &measured);
        fs::remove_file(&path)?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let settings = format!(
        "{PACKET_BYTES}-byte UDP packets, uniform flows, bursts of {BURST_MAX}, {SLOTS} slots, \
         tables filled to 80 % of their capacity, one core, median of {CHUNKS} chunks"
    );
    let report = Report::begin(Options::parse(std::env::args().skip(1))?, &settings);
    let dir = tempfile::Builder::new().prefix("packet-path").tempdir_in("/dev/shm")?;
    let mut bench = Bench { report, dir };
    for function in &FUNCTIONS {
        for size in SIZES {
            if bench.report.wants(&format!("{}_{}", function.name, size.0)) {
                bench.run(function, size)?;
            }
        }
    }
    bench.report.finish()
}
