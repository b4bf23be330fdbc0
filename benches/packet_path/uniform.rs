//! Uniform flows: 64-byte UDP packets of flows that are picked at random, of which there are 1 K to
//! 10 M. Every flow is opened first through the same pipe, by a commit, which is measured too.

use crate::cluster::{Cluster, Shape};
use crate::function::{Function, SLOTS};
use crate::measured::{Contestant, Measured, assert_open, measure};
use crate::memory;
use crate::report::Report;
use crate::rows::Rows;
use crate::traffic::{SHORT, Traffic};
use crate::way::{Way, open};
use nearstate_nf_node::baseline::{Baseline, BaselineConfig};
use nearstate_nf_node::pipe::{PARKED_MAX, SteeredChain};
use nearstate_nf_node::state_access::Access;
use nearstate_store::{Region, Table, clock};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// Numbers of flows, as they stand in names.
pub(crate) const SIZES: [(&str, u32); 3] = [("1k", 1 << 10), ("64k", 1 << 16), ("1m", 1 << 20)];
/// One more, for NAT44 alone: it takes most of a machine's memory.
pub(crate) const LARGEST: (&str, u32) = ("10m", 10 << 20);
/// Fewest and most packets of a chunk, unless it is to be quick; in between each flow has one.
const CHUNK: (usize, usize) = (1 << 21, 1 << 22);
const QUICK_CHUNK: usize = 1 << 18;
const GIB: f64 = (1u64 << 30) as f64;

/// What is to be measured: a chain, room for the state of its flows, and their packets.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) chain: SteeredChain,
    pub(crate) shape: Shape,
    pub(crate) traffic: Traffic,
    /// Packets of a chunk.
    pub(crate) count: usize,
    /// Whether there is no room for the baseline and a store at once.
    pub(crate) apart: bool,
}

/// Measures the uniform flows of a function.
pub(crate) fn run(
    rows: &mut Rows,
    function: &Function,
    (size, flows): (&str, u32),
) -> Result<(), Box<dyn Error>> {
    let name = format!("{}_{size}", function.name);
    if !rows.report.wants(&name) {
        return Ok(());
    }
    let is_largest = size == LARGEST.0;
    let obstacle = if is_largest { obstacle(&rows.report, function, flows)? } else { None };
    if let Some(reason) = obstacle {
        for row in ["_baseline_mpps", "_mpps"] {
            rows.report.skip(format!("{name}{row}"), reason.clone());
        }
        return Ok(());
    }
    let directory = Rows::directory()?;
    let (chain, shape) = function.chain(flows, shape(directory.path().join(&name)))?;
    let traffic = function.packets(flows);
    let count = match rows.report.quick() {
        true => QUICK_CHUNK,
        false => traffic.len().clamp(CHUNK.0, CHUNK.1),
    };
    let case = Case { name, chain, shape, traffic, count, apart: is_largest };
    let measured = ways(rows, &case)?;
    rows.ways(&case.name, &measured);
    if is_largest && let Some(most) = memory::most() {
        println!("    at most {:.1} GiB of memory", most as f64 / GIB);
    }
    Ok(())
}

/// Why so many flows cannot be measured, if they cannot.
fn obstacle(
    report: &Report,
    function: &Function,
    flows: u32,
) -> Result<Option<String>, Box<dyn Error>> {
    if report.quick() {
        return Ok(Some("takes minutes, so it is not part of --quick".to_owned()));
    }
    let (_, shape) = function.chain(flows, shape(PathBuf::new()))?;
    let needed = memory::needed(shape.capacity, flows as usize * SHORT)?;
    Ok(match memory::available() {
        Some(bytes) if bytes >= needed => None,
        Some(bytes) => Some(format!("needs {needed} bytes of memory, {bytes} are available")),
        None => Some(format!("needs {needed} bytes of memory; what is available is not known")),
    })
}

/// Opens all flows each way, and measures all ways of their packets.
pub(crate) fn ways(rows: &mut Rows, case: &Case) -> Result<Vec<Measured>, Box<dyn Error>> {
    let Case { name, chain, shape, traffic, count, apart } = case;
    let (baseline_row, owner_row) = (("_baseline", "baseline"), ("", "owner-local"));
    let mut measured = vec![];
    let mut baseline = Some(Way::new(chain, baseline(shape)?, clock::boot_now));
    if let Some(way) = &mut baseline {
        let ns = open(way, traffic, 0, traffic.len());
        rows.opened(&format!("{name}_new_baseline"), ns, "new flows, baseline");
    }
    if *apart && let Some(mut way) = baseline.take() {
        let contestant = Contestant::new(baseline_row, &mut way, traffic, Access::Local);
        measured.extend(measure(&mut [contestant], *count));
    }
    let cluster = Cluster::start(shape)?;
    let mut local = Way::new(chain, cluster.owner_access()?, clock::boot_now);
    let ns = open(&mut local, traffic, 0, traffic.len());
    rows.opened(&format!("{name}_new"), ns, "new flows, one replica");
    let mut remote = Way::new(chain, cluster.reader_access()?, clock::boot_now);
    let mut contestants = vec![];
    if let Some(way) = &mut baseline {
        contestants.push(Contestant::new(baseline_row, way, traffic, Access::Local));
    }
    contestants.push(Contestant::new(owner_row, &mut local, traffic, Access::Local));
    let shm = ("_shm", "remote-shm");
    contestants.push(Contestant::new(shm, &mut remote, traffic, Access::RemoteShm));
    measured.extend(measure(&mut contestants, *count));
    assert_open(&measured);
    drop(contestants);
    drop((local, remote));
    cluster.stop();
    Ok(measured)
}

/// A store in this place, yet without a size.
pub(crate) fn shape(region: PathBuf) -> Shape {
    Shape { slots: SLOTS, capacity: 0, pools: vec![], region }
}

/// A baseline in memory of the kind that a node's tables have.
pub(crate) fn baseline(shape: &Shape) -> Result<Baseline, Box<dyn Error>> {
    let path = shape.region.with_extension("baseline");
    let region = Region::create_shared(&path, Table::bytes_for(shape.capacity)?)?;
    // Nobody else maps it, and so its memory is free again when it is no longer mapped.
    std::fs::remove_file(&path)?;
    let config = BaselineConfig {
        capacity: shape.capacity,
        slots: shape.slots,
        pools: shape.pools.clone(),
        hash_key: 0x5eed,
        pending_max: PARKED_MAX,
    };
    Ok(Baseline::in_region(Arc::new(region), config)?)
}
