//! The demo's cluster: how its nodes are configured and started, and the run through it.

use super::DemoPlan;
use super::control::Control;
use super::error::DemoError;
use super::random::Random;
use super::run::{ClusterRun, Run};
use super::script::{DEMO_TENANT, Script};
use super::steerer::{SlotOf, Steerer};
use super::story::Story;
use super::{SLOTS, rundir};
use crate::ask::CLUSTER_NAME;
use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::node_config::{
    CAPACITY_MAX, Durability, NodeConfig, PortConfig, Start, TimingConfig,
};
use nearstate_orchestrator::executor::{NodeLife, NodeTemplate};
use nearstate_orchestrator::plan;
use nearstate_orchestrator::policy::Policy;
use nearstate_placement::{FlowTuple, Side};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Replicas of each shard, if there are that many nodes.
const REPLICAS: u16 = 3;
/// Frames of a port's ring.
const RING: u32 = 1024;
/// Entries that one flow may have: its own, and both sides of a translation.
const ENTRIES_PER_FLOW: usize = 3;
/// Cells of a table at least.
const CAPACITY_MIN: usize = 1 << 16;

/// Cells of a table that holds this many flows, however they fall on the shards, at half load.
pub(crate) fn table_capacity(flows: usize) -> u32 {
    let cells = (flows * ENTRIES_PER_FLOW * 2).next_power_of_two().max(CAPACITY_MIN);
    u32::try_from(cells).unwrap_or(CAPACITY_MAX).min(CAPACITY_MAX)
}

/// The seed of the steering hash.
pub(crate) fn steer_seed(plan: &DemoPlan) -> u32 {
    Random::new(plan.seed, 3).next() as u32
}

/// Starts the nodes, sends the script through them, ends them.
pub(crate) fn run(
    plan: &DemoPlan,
    script: &Script,
    chain: &Chain,
    story: &mut Story,
) -> Result<ClusterRun, DemoError> {
    // Dropped last: the nodes are gone then, and take no files with them.
    let directory = rundir::make().map_err(DemoError::RunDirectory)?;
    let program = std::env::current_exe().map_err(DemoError::Start)?;
    let settings = settings(plan, table_capacity(script.flows().len()));
    let config = Arc::new(move |life: &NodeLife| configuration(&settings, life));
    let template = NodeTemplate::of_program(program, directory.path().to_owned(), config);
    let policy = Policy::of_nodes(plan.nodes.into())
        .map_err(|error| DemoError::Orchestrator(error.to_string()))?;
    let steering = chain.steering(steer_seed(plan));
    let slot_of: SlotOf =
        Box::new(move |side: Side, tuple: &FlowTuple| steering.slot(DEMO_TENANT, side, tuple));
    let steerer = Steerer::new(plan.steer, slot_of, Random::new(plan.seed, 2));
    let control = Control::start(policy, template).map_err(DemoError::Start)?;
    let run = Run::new(script, steerer, control, story);
    let ended = run.go(plan);
    if let Some(out) = &plan.out {
        rundir::keep_logs(directory.path(), out).map_err(DemoError::RunDirectory)?;
    }
    directory.close().map_err(DemoError::RunDirectory)?;
    ended
}

/// What all nodes have in common.
fn settings(plan: &DemoPlan, table_capacity: u32) -> NodeConfig {
    NodeConfig {
        cluster: CLUSTER_NAME.to_owned(),
        name: String::new(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        directory: "".into(),
        start: Start::Form { slots: SLOTS, shards: plan.nodes.into(), replicas: REPLICAS },
        durability: Durability::Memory,
        log_directory: None,
        port: PortConfig::Shm { path: "".into(), ring: RING },
        table_capacity,
        shared_memory_reads: true,
        end_with_stdin: true,
        steer_seed: steer_seed(plan),
        timing: TimingConfig::default(),
        chain: plan.chain.clone(),
    }
}

/// The configuration of one life of one node.
fn configuration(settings: &NodeConfig, life: &NodeLife) -> String {
    let mut config = NodeConfig {
        name: life.name.clone(),
        directory: life.directory.clone(),
        port: PortConfig::Shm { path: life.directory.join("port"), ring: RING },
        ..settings.clone()
    };
    if let plan::Start::Join(seeds) = &life.start {
        config.start = Start::Join { seeds: seeds.clone() };
    }
    toml::to_string(&config).expect("a configuration of plain values can be written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Source;
    use crate::demo::steerer::Steer;
    use crate::demo::traffic::TrafficSpec;
    use nearstate_nf_node::chain_config::ChainConfig;

    #[test]
    fn every_life_gets_a_configuration_that_its_node_accepts() {
        let plan = DemoPlan {
            source: Source::Generated(TrafficSpec { flows: 1, packets: 1, seed: 1 }),
            nodes: 3,
            chain: ChainConfig::named(&["firewall", "nat"]).unwrap(),
            steer: Steer::Owner,
            kill_percent: None,
            moves: None,
            seed: 1,
            out: None,
            json: None,
        };
        let settings = settings(&plan, table_capacity(10_000));
        let seeds = vec![SocketAddr::from(([127, 0, 0, 1], 4000))];
        for start in [plan::Start::Form, plan::Start::Join(seeds.clone())] {
            let joins = start != plan::Start::Form;
            let life = NodeLife {
                name: "n2".to_owned(),
                generation: 3,
                start,
                directory: "/run/n2.3".into(),
            };
            let config = NodeConfig::parse(&configuration(&settings, &life)).unwrap();
            assert_eq!((config.name.as_str(), config.table_capacity), ("n2", 1 << 16));
            assert!(config.end_with_stdin);
            assert_eq!(config.start == Start::Join { seeds: seeds.clone() }, joins);
        }
    }

    #[test]
    fn tables_have_room_for_all_flows_twice() {
        assert_eq!(table_capacity(1) as usize, CAPACITY_MIN);
        assert_eq!(table_capacity(1_000_000), 1 << 23);
    }
}
