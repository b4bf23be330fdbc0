//! The demo: a cluster of real node processes, packets through it, a kill, and a check of every
//! packet against one node that sees them all.

pub(crate) mod baseline;
pub(crate) mod capture;
pub(crate) mod cluster;
pub(crate) mod compare;
pub(crate) mod control;
pub(crate) mod datagrams;
pub(crate) mod driver;
pub(crate) mod frames;
pub(crate) mod measure;
mod moves;
pub(crate) mod outcome;
pub(crate) mod ports;
pub(crate) mod random;
pub(crate) mod replay;
pub(crate) mod report;
pub(crate) mod roster;
pub(crate) mod run;
pub(crate) mod rundir;
pub(crate) mod script;
pub(crate) mod settle;
pub(crate) mod steerer;
pub(crate) mod story;
pub(crate) mod talk;
#[cfg(test)]
mod toy;
pub(crate) mod traffic;

mod error;

pub(crate) use error::DemoError;

use frames::Frames;
use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::chain_config::{ChainConfig, FunctionName};
use nearstate_nf_node::nat64_prefix::Nat64Prefix;
use nearstate_placement::Side;
use nearstate_store::Endpoint;
use outcome::Outcomes;
use report::{Counts, Report};
use run::ClusterRun;
use script::{Scene, Script, Six};
use std::io::Write;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use steerer::Steer;
use story::Story;
use traffic::TrafficSpec;

/// Slots of the demo's cluster.
pub(crate) const SLOTS: u32 = 1024;

/// Nodes that the others can lose one of and still agree.
pub(crate) const NODES_FOR_KILL: u8 = 3;

/// Where the packets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A capture file.
    Capture(PathBuf),
    /// The generator.
    Generated(TrafficSpec),
}

/// Where the report goes as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JsonTo {
    /// Standard output, which then has nothing else.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// What the demo is to do.
#[derive(Clone, Debug)]
pub(crate) struct DemoPlan {
    /// The packets.
    pub(crate) source: Source,
    /// How many nodes.
    pub(crate) nodes: u8,
    /// What they do.
    pub(crate) chain: ChainConfig,
    /// Which node a packet goes to.
    pub(crate) steer: Steer,
    /// When a node is killed, in percent of the packets.
    pub(crate) kill_percent: Option<u8>,
    /// How many slots move while packets flow.
    pub(crate) moves: Option<u32>,
    /// Of all that is random.
    pub(crate) seed: u64,
    /// A directory for what left and the report.
    pub(crate) out: Option<PathBuf>,
    /// The report as JSON.
    pub(crate) json: Option<JsonTo>,
}

/// Runs a demo; true if every packet is accounted for and as it should be.
pub(crate) fn run(plan: &DemoPlan) -> Result<bool, DemoError> {
    // What can be wrong with the plan is found before anything is started.
    let chain = Chain::new(&plan.chain, SLOTS)?;
    if let Some(directory) = &plan.out {
        capture::make_directory(directory)?;
    }
    if let Some(JsonTo::File(path)) = &plan.json {
        capture::check_writable(path)?;
    }
    let mut story = Story::begin(plan.json == Some(JsonTo::Stdout));
    let script = Script::new(packets(plan, &story)?, &scene(&plan.chain));
    story.tell(&format!("{} packets of {} flows", script.len(), script.flow_count()));
    if plan.nodes < NODES_FOR_KILL {
        let nodes = plan.nodes;
        story.tell(&format!("nothing is killed: of {nodes}, none may be lost"));
    }
    let capacity = cluster::table_capacity(script.flows().len());
    let run = cluster::run(plan, &script, &chain, &mut story)?;
    story.tell("the same packets go through one node that sees them all");
    let alone = baseline::run(&script, chain, cluster::steer_seed(plan), capacity)?;
    let report = judge(plan, &script, &run, &alone, &story);
    hand_out(plan, &script, &run.outcomes, &report)?;
    story.print(&report.table());
    let faults = report.faults();
    match faults.as_slice() {
        [] => story.print("every packet is accounted for and as it should be"),
        faults => faults.iter().for_each(|fault| story.print(&format!("FAULT: {fault}"))),
    }
    Ok(faults.is_empty())
}

fn packets(plan: &DemoPlan, story: &Story) -> Result<Frames, DemoError> {
    match &plan.source {
        Source::Capture(path) => capture::load(path, story),
        Source::Generated(spec) => Ok(traffic::generate(spec)),
    }
}

/// The hosts behind a NAT64 have their addresses of the capture behind this prefix.
const SIX_HOSTS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0);

/// Who begins flows: clients outside, if there is a balancer for them; over IPv6, if there is a
/// NAT64: all of them, or every other one if there is a NAT for IPv4 as well.
fn scene(chain: &ChainConfig) -> Scene {
    let hosts = Nat64Prefix::new(SIX_HOSTS, 96).ok();
    let six = chain.nat64.as_ref().zip(hosts).map(|(nat64, hosts)| Six {
        hosts,
        world: nat64.prefix,
        is_for_all: chain.nat.is_none(),
    });
    let Some(balancer) = &chain.load_balancer else {
        return Scene { six, ..Scene::inside_calls() };
    };
    let service = |service: &nearstate_nf_node::chain_config::ServiceConfig| {
        let address = service.address;
        (service.protocol.number(), Endpoint::new(address.ip(), address.port()))
    };
    let services = balancer.service.iter().map(service).collect();
    Scene { initiator: Side::Outside, services, six }
}

/// Compares, counts, and puts all figures together.
fn judge(
    plan: &DemoPlan,
    script: &Script,
    run: &ClusterRun,
    alone: &Outcomes,
    story: &Story,
) -> Report {
    let is_nat = |name: &FunctionName| matches!(name, FunctionName::Nat | FunctionName::Nat64);
    let may_rename = plan.chain.functions.iter().any(is_nat);
    let found = compare::compare(script, &run.outcomes, alone, may_rename);
    found.told.iter().for_each(|difference| story.print(&format!("MISMATCH: {difference}")));
    if run.unexpected > 0 {
        story.tell(&format!("{} answers came that nobody waited for", run.unexpected));
    }
    let counts = Counts::of(&run.outcomes);
    let mut report = Report {
        packets_in: script.len() as u64,
        packets_out: counts.out,
        drops: counts.drops,
        flows: script.flow_count(),
        accesses: report::Accesses::default(),
        locality: 1.0,
        commits: 0,
        retransmitted: run.retransmitted,
        mismatches: found.mismatches,
        state_lost: found.state_lost,
        slots_moved: run.slots_moved,
        outage_ms: run.meter.outage_ms(),
        mpps: 0.0,
        latency_us: run.meter.latency_us(),
        nodes: run.nodes.clone(),
        kills: run.kills.clone(),
    };
    report.sum_up_nodes();
    report.set_speed(run.meter.elapsed_s());
    report
}

/// Writes the report, and what left, to wherever they are wanted.
fn hand_out(
    plan: &DemoPlan,
    script: &Script,
    outcomes: &Outcomes,
    report: &Report,
) -> Result<(), DemoError> {
    let json = format!("{:#}\n", serde_json::to_value(report)?);
    if let Some(directory) = &plan.out {
        capture::save(directory, script, outcomes)?;
        capture::write_text(directory.join("report.json"), &json)?;
    }
    match &plan.json {
        Some(JsonTo::File(path)) => capture::write_text(path.clone(), &json)?,
        Some(JsonTo::Stdout) => {
            let written = std::io::stdout().write_all(json.as_bytes());
            written
                .map_err(|source| DemoError::Write { path: "standard output".into(), source })?;
        }
        None => {}
    }
    Ok(())
}
