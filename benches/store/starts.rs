//! A cold start: how long until a replica with nothing has a million entries again.

use crate::replica::{Cluster, SLOTS};
use crate::report::Report;
use nearstate_store::clock;
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::{Machine, Region, RegionIdentity, ShardId, SlotSet, Table};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

const FROM_SNAPSHOT: &str = "start_snapshot_1m_s";
const FROM_PEER: &str = "start_peer_1m_s";
const ENTRIES: u32 = 1_000_000;
/// Four fifths full.
const CAPACITY: u32 = ENTRIES / 4 * 5;

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Box<dyn Error>> {
    if report.wants(FROM_SNAPSHOT) {
        report.row(FROM_SNAPSHOT, from_snapshot()?, "s");
    }
    if report.wants(FROM_PEER) {
        report.row(FROM_PEER, from_peer()?, "s");
    }
    Ok(())
}

fn empty_machine(hash_key: u64) -> Result<FlowMachine, Box<dyn Error>> {
    let region = Arc::new(Region::anonymous(Table::bytes_for(CAPACITY)?)?);
    let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
    let table = Table::format(region, identity, CAPACITY, hash_key)?;
    let slots = SlotSet::all(SLOTS);
    Ok(FlowMachine::new(FlowMachineConfig { table, slots, pools: vec![] }))
}

/// A region is made and a snapshot in memory installed in it.
fn from_snapshot() -> Result<f64, Box<dyn Error>> {
    let mut source = empty_machine(1)?;
    crate::commits::fill(&mut source, u64::from(ENTRIES));
    let snapshot = source.snapshot();
    drop(source);
    let began = Instant::now();
    let mut machine = empty_machine(2)?;
    machine.install(&snapshot)?;
    Ok(began.elapsed().as_secs_f64())
}

/// A process is started and becomes a voter with all entries; nobody writes meanwhile.
fn from_peer() -> Result<f64, Box<dyn Error>> {
    let mut cluster = Cluster::form(CAPACITY)?;
    let owner = cluster.owner()?;
    cluster.replicas[owner].ask(&format!("create {ENTRIES} 1024"))?;
    let dead = (owner + 1) % 3;
    let dead = cluster.replicas.remove(dead);
    let old = dead.id;
    drop(dead);
    let began = clock::boot_now();
    let new = cluster.join()?;
    cluster.introduce()?;
    let mut newcomer = cluster.replicas.pop().ok_or("it was pushed just now")?;
    let owner = cluster.owner()?;
    cluster.replicas[owner].say(&format!("replace {old} {new}"))?;
    newcomer.say(&format!("caught-up {ENTRIES}"))?;
    cluster.replicas[owner].hear()?;
    let ended: u64 = newcomer.hear()?.parse()?;
    Ok((ended - began.0) as f64 / 1e9)
}
