//! New flows of NAT44: every packet is the first of its flow, and makes a mapping.
//!
//! Over the baseline, one core; and at the owner of a shard with three replicas, which are
//! processes of their own (`replica`) on this machine's cores: there a packet leaves when its
//! mapping is committed at a majority.

use crate::allocations;
use crate::function::NAT44;
use crate::processes::Replica;
use crate::replica::ARGUMENT;
use crate::rows::Rows;
use crate::uniform::{baseline, shape};
use crate::way::{Way, open};
use nearstate_store::clock;
use std::error::Error;
use std::time::Duration;

const BASELINE: &str = "nat44_new_baseline_mops";
const KOPS: &str = "nat44_new_3r_kops";
const P50: &str = "nat44_new_3r_p50_us";
const P99: &str = "nat44_new_3r_p99_us";
/// Times that the baseline is filled; the median counts.
const FILLS: usize = 5;
/// Flows that warm up the replicas: the first commits grow buffers and touch pages.
const FIRST: usize = 500;

type Failure = Box<dyn Error>;

/// Measures the rows of this file.
pub(crate) fn run(rows: &mut Rows) -> Result<(), Failure> {
    if rows.report.wants(BASELINE) {
        over_baseline(rows)?;
    }
    if rows.report.wants_any(&[KOPS, P50, P99]) {
        replicated(rows)?;
    }
    Ok(())
}

/// Opens flows until the table is four fifths full, anew each time.
fn over_baseline(rows: &mut Rows) -> Result<(), Failure> {
    let flows: u32 = if rows.report.quick() { 1 << 17 } else { 1 << 20 };
    let traffic = NAT44.packets(flows);
    let (mut times, mut allocated) = ([0.0; FILLS], 0);
    for time in &mut times {
        let directory = Rows::directory()?;
        let (chain, shape) = NAT44.chain(flows, shape(directory.path().join("new")))?;
        let mut way = Way::new(&chain, baseline(&shape)?, clock::boot_now);
        let before = allocations::of_this_thread();
        *time = open(&mut way, &traffic, 0, traffic.len());
        allocated += allocations::of_this_thread() - before;
    }
    times.sort_by(f64::total_cmp);
    let ns = times[FILLS / 2];
    let allocated = allocated as f64 / (FILLS * traffic.len()) as f64;
    let beside = format!("{ns:>12.1} {allocated:>9.3} new flows, baseline, its pools included");
    rows.figure(BASELINE, (1e3 / ns, "M flows/s"), &beside);
    rows.report.keep("nat44_new_baseline_allocs", allocated, "1/packet");
    Ok(())
}

/// Opens flows at the owner of three replicas.
fn replicated(rows: &mut Rows) -> Result<(), Failure> {
    let (many, singles) = if rows.report.quick() { (50_000, 2_000) } else { (1_000_000, 20_000) };
    let flows = u32::try_from(FIRST + singles + many / 10 + many)?;
    let mut replicas = form(flows)?;
    let owner = owner(&mut replicas)?;
    let owner = &mut replicas[owner];
    owner.ask(&format!("one-by-one {FIRST}"))?;
    let said = owner.ask(&format!("one-by-one {singles}"))?;
    let [p50, p99] = numbers(&said)?;
    owner.ask(&format!("open {}", many / 10))?;
    let said = owner.ask(&format!("open {many}"))?;
    let [ns, allocated] = numbers(&said)?;
    let beside = format!("{ns:>12.1} {allocated:>9.3} new flows, owner of three replicas");
    rows.figure(KOPS, (1e6 / ns, "k flows/s"), &beside);
    rows.report.keep("nat44_new_3r_allocs", allocated, "1/packet");
    let alone = "from a port to a port, one packet under way";
    rows.figure(P50, (p50 / 1e3, "us"), &format!("{:>22} {alone}", ""));
    rows.figure(P99, (p99 / 1e3, "us"), &format!("{:>22} {alone}", ""));
    Ok(())
}

fn numbers(said: &str) -> Result<[f64; 2], Failure> {
    let (one, other) = said.split_once(' ').ok_or("two numbers are wanted")?;
    Ok([one.parse()?, other.parse()?])
}

/// Three processes of one group, with room for so many flows.
fn form(flows: u32) -> Result<Vec<Replica>, Failure> {
    let start = |id| Replica::start_as(ARGUMENT, id, flows);
    let mut replicas = (1..=3).map(start).collect::<Result<Vec<_>, _>>()?;
    let peers: Vec<String> = replicas.iter().map(Replica::peer).collect();
    for replica in &mut replicas {
        replica.ask(&format!("peers {}", peers.join(" ")))?;
    }
    replicas[0].ask("form 1 2 3")?;
    Ok(replicas)
}

/// Waits until all agree who the owner is, and gives its place.
fn owner(replicas: &mut [Replica]) -> Result<usize, Failure> {
    loop {
        let said = replicas.iter_mut().map(|replica| replica.ask("owner"));
        let said = said.collect::<Result<Vec<_>, _>>()?;
        let id: u64 = said[0].parse()?;
        let place = replicas.iter().position(|replica| replica.id == id);
        if let Some(place) = place.filter(|_| said.iter().all(|other| *other == said[0])) {
            return Ok(place);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
