//! Real traffic: a capture through NAT44, again and again, as it is but for two things.
//!
//! Whoever sent a flow's first packet is inside. What comes back is in a capture addressed to that
//! host, but behind a NAT to the external end that the host was given; so each way sees the capture
//! once before it is measured, packet by packet, and what comes back is addressed to what that way
//! gave ([`learn`]). And fragments are left out: a loop of them says more about waiting than about
//! packets.
//!
//! The capture is no part of the project: `NEARSTATE_TRACES` names its directory, or it lies in
//! `../shared/traces`.

use crate::cluster::Cluster;
use crate::function::NAT44;
use crate::measured::{Contestant, Measured, measure};
use crate::rows::Rows;
use crate::traffic::Traffic;
use crate::uniform::{baseline, shape};
use crate::way::{Push as _, Way};
use nearstate_nf_node::packet::parse;
use nearstate_nf_node::port::pcap::{CaptureReader, SideRule};
use nearstate_nf_node::rewrite;
use nearstate_nf_node::state_access::{Access, StateAccess};
use nearstate_nf_node::{CounterSnapshot, DropReason};
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Endpoint, clock};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

/// Room in the tables, as of the middle row of uniform flows.
const FLOWS: u32 = 1 << 16;
const NAME: &str = "nat44_trace";
const CAPTURE: &str = "enterprise-mix.pcap";

/// Measures it.
pub(crate) fn run(rows: &mut Rows) -> Result<(), Box<dyn Error>> {
    if !rows.report.wants(NAME) {
        return Ok(());
    }
    let path = place();
    if !path.exists() {
        let reason = format!("{} is not here; NEARSTATE_TRACES names a directory", path.display());
        rows.report.skip(format!("{NAME}_mpps"), reason);
        return Ok(());
    }
    let (capture, fragments) = load(&path)?;
    let packets = capture.len();
    println!("    {CAPTURE}: {packets} packets a loop, {fragments} fragments left out");
    let directory = Rows::directory()?;
    let (chain, shape) = NAT44.chain(FLOWS, shape(directory.path().join(NAME)))?;
    let mut baseline = Way::new(&chain, baseline(&shape)?, clock::boot_now);
    let of_baseline = learn(&mut baseline, &capture);
    let cluster = Cluster::start(&shape)?;
    let mut local = Way::new(&chain, cluster.owner_access()?, clock::boot_now);
    let of_local = learn(&mut local, &capture);
    let learnt = local.counts();
    let mut contestants = [
        Contestant::new(("_baseline", "baseline"), &mut baseline, &of_baseline, Access::Local),
        Contestant::new(("", "owner-local"), &mut local, &of_local, Access::Local),
    ];
    let loops = if rows.report.quick() { 1 } else { 8 };
    let measured = measure(&mut contestants, loops * packets);
    rows.goodput(NAME, &measured);
    tell(packets, &measured, &local.counts(), &learnt);
    drop(local);
    cluster.stop();
    Ok(())
}

fn place() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    std::env::var_os("NEARSTATE_TRACES").map_or_else(beside, PathBuf::from).join(CAPTURE)
}

/// The packets of a capture with their sides, and how many fragments are left out.
fn load(path: &Path) -> Result<(Traffic, usize), Box<dyn Error>> {
    let mut rule = SideRule::first_sender();
    let (mut traffic, mut fragments) = (Traffic::default(), 0);
    for packet in CaptureReader::open(path)? {
        let packet = packet?;
        if packet.is_cut_short() {
            return Err("the capture holds packets that it cuts short".into());
        }
        match parse(&packet.bytes) {
            Err(DropReason::Fragment) => fragments += 1,
            _ => traffic.push(rule.side_of(&packet.bytes), &packet.bytes),
        }
    }
    Ok((traffic, fragments))
}

/// Sends a capture through a way, one packet after the other; gives it as it is to be sent from
/// then on, with what comes back addressed to where this way let it come from.
fn learn<S: StateAccess>(way: &mut Way<S>, capture: &Traffic) -> Traffic {
    let mut external: BTreeMap<(u8, Endpoint), Endpoint> = BTreeMap::new();
    let mut traffic = Traffic::default();
    for number in 0..capture.len() {
        let (side, bytes) = capture.frame(number);
        let mut bytes = bytes.to_vec();
        let parsed = parse(&bytes);
        if let (Side::Outside, Ok(parsed)) = (side, &parsed) {
            let inside = (parsed.tuple.protocol, parsed.tuple.destination);
            if let Some(to) = external.get(&inside) {
                let tuple = FlowTuple { destination: *to, ..parsed.tuple };
                rewrite::apply(&mut bytes, parsed, &tuple);
            }
        }
        traffic.push(side, &bytes);
        let passed = way.push(&traffic, number, 1);
        if let (Side::Inside, Ok(parsed), 1) = (side, parsed, passed.left)
            && let Ok(left) = parse(&way.last(bytes.len()))
        {
            external.insert((parsed.tuple.protocol, parsed.tuple.source), left.tuple.source);
        }
    }
    traffic
}

/// Says what became of a loop's packets at the owner.
fn tell(packets: usize, measured: &[Measured], now: &CounterSnapshot, learnt: &CounterSnapshot) {
    let Some(local) = measured.iter().find(|one| one.row.0.is_empty()) else { return };
    let each = |share: f64| share * packets as f64;
    println!(
        "    of {packets} packets a loop {:.0} leave; {:.0} change state that is committed first",
        each(local.left),
        each(local.commits)
    );
    let mut reasons: Vec<_> = now
        .drop_reasons()
        .map(|(reason, count)| (count - learnt.drops(reason), reason.name()))
        .collect();
    reasons.sort_unstable_by(|a, b| b.cmp(a));
    let of_all = reasons.iter().map(|(count, _)| *count).sum::<u64>() as f64;
    let said = reasons.iter().map(|(count, name)| {
        format!("{name} {:.0}", *count as f64 / of_all * each(1.0 - local.left))
    });
    println!("    dropped a loop: {}", said.collect::<Vec<_>>().join(", "));
}
