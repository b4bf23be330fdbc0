//! What a packet costs: each function, over a plain table, at the owner of its state, and at a node
//! that reads the owner's memory, for 1 K, 64 K and 1 M flows.
//!
//! 64-byte UDP packets of uniformly random flows go from memory through [`Pipe`], the loop that a
//! node runs, and back to a frame pool: copy in, parse, steer, read, process, check the clock,
//! rewrite. One core, while the stores' threads live on another. The last two rows run over the
//! shipped access to a cluster, with its leases and grants (`cluster`). Before that every flow is
//! opened through the same pipe, by a commit, which is measured too.
//!
//! `cargo bench --bench packet_path [-- --quick] [--only nat44_64k] [--json FILE]`; with
//! `--instructions` it counts those of a packet instead, and fails if there are too many
//! (`instructions`).

mod allocations;
mod cluster;
mod instructions;
#[path = "../report/mod.rs"]
mod report;

use cluster::{Cluster, Shape};
use nearstate_nf_node::baseline::{Baseline, BaselineConfig};
use nearstate_nf_node::frame::{BURST_MAX, Burst, Frame, FramePool};
use nearstate_nf_node::packet::PacketBuilder;
use nearstate_nf_node::pipe::{Output, PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use nearstate_nf_node::state_access::{Access, StateAccess};
use nearstate_nf_node::{Chain, ChainConfig, CounterSnapshot, DropReason, Event};
use nearstate_placement::Side;
use nearstate_store::link::LINK_CAPACITY;
use nearstate_store::{Endpoint, Region, Table, Time, clock};
use report::{Options, Report};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a packet on the wire without its checksum: the smallest Ethernet frame is 64 with it,
/// but benchmarks of others count 64 in memory.
const PACKET_BYTES: usize = 64;
const SLOTS: u32 = 1024;
/// Flows of one inside host: their ports fit into one block.
const FLOWS_PER_HOST: u32 = 50;
/// Timed chunks of a row; the median counts.
const CHUNKS: usize = 7;

/// Takes frames back to where they came from.
struct Sink {
    clock: fn() -> Time,
    pool: FramePool,
    left: u64,
    dropped: Option<DropReason>,
}

impl Output for Sink {
    fn clock(&mut self) -> Time {
        (self.clock)()
    }

    fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
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
    /// Instructions that a packet may cost: what it does cost, and a tenth for other compilers.
    instructions_max: f64,
}

impl Function {
    /// Its chain, and the store for so many flows.
    fn chain(&self, flows: u32, shape: Shape) -> Result<(SteeredChain, Shape), Box<dyn Error>> {
        let config: ChainConfig = toml::from_str(self.chain)?;
        let chain = SteeredChain::new(Arc::new(Chain::new(&config, SLOTS)?), 7);
        // Four fifths full.
        let capacity = flows * self.entries / 4 * 5;
        let pools = chain.chain().pools().to_vec();
        Ok((chain, Shape { capacity, pools, ..shape }))
    }
}

const FUNCTIONS: [Function; 3] = [
    Function {
        name: "nat44",
        chain: "functions = [\"nat\"]\n[nat]\naddresses = [\"198.18.0.0/25\"]",
        side: Side::Inside,
        entries: 2,
        instructions_max: 1530.0,
    },
    Function {
        name: "firewall",
        chain: "functions = [\"firewall\"]\n[firewall]",
        side: Side::Inside,
        entries: 1,
        instructions_max: 1400.0,
    },
    Function {
        name: "lb",
        chain: "functions = [\"load-balancer\"]\n[load_balancer]\n\
                [[load_balancer.service]]\nprotocol = \"udp\"\naddress = \"203.0.113.80:53\"\n\
                backends = [{ endpoint = \"10.9.0.1:53\" }, { endpoint = \"10.9.0.2:53\" }]",
        side: Side::Outside,
        entries: 2,
        instructions_max: 1660.0,
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

/// One way of the packets: a pipe over some access to state.
struct Way<S> {
    pipe: Pipe<S>,
    sink: Sink,
    side: Side,
}

/// A way, whatever its access.
trait Push {
    /// Pushes so many packets through, from this one on and again from the first, and waits until
    /// all have come out.
    fn push(&mut self, packets: &[Packet64], from: usize, count: usize);

    fn counts(&self) -> CounterSnapshot;
}

impl<S: StateAccess> Way<S> {
    fn new(chain: &SteeredChain, side: Side, access: S, clock: fn() -> Time) -> Self {
        let settings = PipeSettings { client: 1, parked_max: PARKED_MAX, seed: 1 };
        // No more packets are under way than the store takes requests: none finds a queue full.
        let sink = Sink { clock, pool: FramePool::new(LINK_CAPACITY), left: 0, dropped: None };
        Self { pipe: Pipe::new(chain.clone(), access, settings), sink, side }
    }
}

impl<S: StateAccess> Push for Way<S> {
    fn push(&mut self, packets: &[Packet64], from: usize, count: usize) {
        let Self { pipe, sink, side } = self;
        let before = sink.left;
        let mut coming = packets.iter().cycle().skip(from % packets.len()).take(count);
        let mut burst = Burst::new();
        loop {
            while burst.len() < BURST_MAX && sink.pool.free() > 0 {
                let Some(bytes) = coming.next() else { break };
                let mut frame = sink.pool.take().expect("one is free");
                frame.bytes[..PACKET_BYTES].copy_from_slice(bytes);
                (frame.len, frame.side) = (PACKET_BYTES as u16, *side);
                burst.push(frame);
            }
            if burst.is_empty() && pipe.parked() == 0 {
                break;
            }
            let now = (sink.clock)();
            let came = burst.len();
            pipe.on_burst(now, &mut burst, sink);
            let answered = pipe.on_completions(now, sink);
            if pipe.next_deadline().is_some_and(|at| at <= now) {
                pipe.on_deadline(now, sink);
            }
            if came + answered == 0 {
                // The store's threads may want this processor.
                std::thread::yield_now();
            }
        }
        assert_eq!(sink.dropped, None, "no packet may be dropped");
        assert_eq!(sink.left - before, count as u64, "every packet leaves");
    }

    fn counts(&self) -> CounterSnapshot {
        self.pipe.counters().snapshot()
    }
}

/// Opens every flow; nanoseconds a flow.
fn open(way: &mut impl Push, packets: &[Packet64]) -> f64 {
    let began = Instant::now();
    way.push(packets, 0, packets.len());
    let ns = began.elapsed().as_nanos() as f64 / packets.len() as f64;
    assert_eq!(way.counts().event(Event::Commits), packets.len() as u64);
    ns
}

/// A row of the table in the making.
struct Contestant<'a> {
    /// How its rows' names end.
    row: &'static str,
    what: &'static str,
    way: &'a mut dyn Push,
    access: Access,
    /// What had been counted before.
    opened: CounterSnapshot,
    times: [f64; CHUNKS],
    allocations: u64,
}

struct Measured {
    ns: f64,
    allocations: f64,
    /// Of the reads, how many took the way that the row is about.
    share: f64,
}

/// Runs the chunks of all in turn, `count` packets each: what disturbs the machine meanwhile
/// disturbs all of them.
fn measure(contestants: &mut [Contestant<'_>], packets: &[Packet64], count: usize) {
    for contestant in &mut *contestants {
        contestant.way.push(packets, 0, count);
    }
    for chunk in 0..CHUNKS {
        for contestant in &mut *contestants {
            let allocations = allocations::of_this_thread();
            let began = Instant::now();
            contestant.way.push(packets, (chunk + 1) * count, count);
            contestant.times[chunk] = began.elapsed().as_nanos() as f64 / count as f64;
            contestant.allocations += allocations::of_this_thread() - allocations;
        }
    }
}

impl<'a> Contestant<'a> {
    fn new(row: &'static str, what: &'static str, way: &'a mut dyn Push, access: Access) -> Self {
        let opened = way.counts();
        Self { row, what, way, access, opened, times: [0.0; CHUNKS], allocations: 0 }
    }

    fn measured(&mut self, count: usize) -> Measured {
        self.times.sort_by(f64::total_cmp);
        let (opened, now) = (&self.opened, self.way.counts());
        let reads = |counts: &CounterSnapshot| counts.access_counts().map(|(_, n)| n).sum::<u64>();
        let right = now.accesses(self.access) - opened.accesses(self.access);
        Measured {
            ns: self.times[CHUNKS / 2],
            allocations: self.allocations as f64 / (count * CHUNKS) as f64,
            share: right as f64 / (reads(&now) - reads(opened)) as f64,
        }
    }
}

struct Bench {
    report: Report,
    /// For the regions that are shared; on tmpfs, as in a node.
    dir: tempfile::TempDir,
}

impl Bench {
    fn note_opened(&mut self, (name, what): (String, String), ns: f64) {
        println!("{what:<44} {ns:>9.1} ns {:>9.2} M/s", 1e3 / ns);
        self.report.keep(format!("{name}_mops"), 1e3 / ns, "M flows/s");
    }

    fn note(&mut self, name: &str, what: &str, measured: &Measured) {
        let mpps = 1000.0 / measured.ns;
        println!(
            "{what:<44} {:>9.1} ns {mpps:>9.2} Mpps {:>9.3} allocations",
            measured.ns, measured.allocations
        );
        if measured.share < 1.0 {
            println!("    {:.4} % of its reads took another way", 100.0 * (1.0 - measured.share));
        }
        self.report.keep(format!("{name}_mpps"), mpps, "Mpps");
        self.report.keep(format!("{name}_ns"), measured.ns, "ns/packet");
        self.report.keep(format!("{name}_allocs"), measured.allocations, "1/packet");
    }

    fn run(
        &mut self,
        function: &Function,
        (size, flows): (&str, u32),
    ) -> Result<(), Box<dyn Error>> {
        let (side, packets) = (function.side, packets(function, flows));
        let name = format!("{}_{size}", function.name);
        let (chain, shape) = function.chain(flows, shape(self.dir.path().join(&name)))?;
        let mut baseline = Way::new(&chain, side, baseline(&shape)?, clock::boot_now);
        let ns = open(&mut baseline, &packets);
        self.note_opened(
            (format!("{name}_new_baseline"), format!("{name} new flow, baseline")),
            ns,
        );
        let cluster = Cluster::start(&shape)?;
        let mut local = Way::new(&chain, side, cluster.owner_access()?, clock::boot_now);
        let ns = open(&mut local, &packets);
        self.note_opened((format!("{name}_new"), format!("{name} new flow, one replica")), ns);
        let mut remote = Way::new(&chain, side, cluster.reader_access()?, clock::boot_now);

        let count = if self.report.quick() { 1 << 18 } else { packets.len().max(1 << 21) };
        let mut contestants = [
            Contestant::new("_baseline", "baseline", &mut baseline, Access::Local),
            Contestant::new("", "owner-local", &mut local, Access::Local),
            Contestant::new("_shm", "remote-shm", &mut remote, Access::RemoteShm),
        ];
        measure(&mut contestants, &packets, count);
        for contestant in &mut contestants {
            let measured = contestant.measured(count);
            let (row, what) = (contestant.row, contestant.what);
            self.note(&format!("{name}{row}"), &format!("{name} {what}"), &measured);
        }
        drop((local, remote));
        cluster.stop();
        Ok(())
    }
}

/// A store in this place, yet without a size.
fn shape(region: PathBuf) -> Shape {
    Shape { slots: SLOTS, capacity: 0, pools: vec![], region }
}

/// A baseline in memory of the kind that a node's tables have.
fn baseline(shape: &Shape) -> Result<Baseline, Box<dyn Error>> {
    let path = shape.region.with_extension("baseline");
    let region = Region::create_shared(&path, Table::bytes_for(shape.capacity)?)?;
    let config = BaselineConfig {
        capacity: shape.capacity,
        slots: shape.slots,
        pools: shape.pools.clone(),
        hash_key: 0x5eed,
        pending_max: PARKED_MAX,
    };
    Ok(Baseline::in_region(Arc::new(region), config)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    // On tmpfs, as the regions of nodes are.
    let dir = tempfile::Builder::new().prefix("packet-path").tempdir_in("/dev/shm")?;
    let mut arguments = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some(instructions::PROBE) {
        let asked = (arguments.nth(1), arguments.next().map(|count| count.parse()));
        let (Some(name), Some(Ok(count))) = asked else { return Err("a probe of what?".into()) };
        let function = FUNCTIONS.iter().find(|function| function.name == name);
        let function = function.ok_or("there is no such function")?;
        return instructions::probe(function, shape(dir.path().join("probe")), count);
    }
    let settings = format!(
        "{PACKET_BYTES}-byte UDP packets, uniform flows, bursts of {BURST_MAX}, {SLOTS} slots, \
         tables filled to 80 % of their capacity, one core, median of {CHUNKS} chunks, the three \
         ways of each chunk in turn"
    );
    let options = Options::read("packet_path", &[INSTRUCTIONS], arguments);
    let counts = options.has(INSTRUCTIONS.0);
    let mut report = Report::begin(options, &settings);
    if counts {
        instructions::hold(&mut report, &FUNCTIONS)?;
        return report.finish();
    }
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

/// Asks for instructions instead of times.
const INSTRUCTIONS: (&str, &str) =
    ("--instructions", "count instructions a packet instead, and fail if they are too many");
