//! Who a node is in the cluster, and how it comes to be that: by its own memory, by forming a
//! cluster, or by being let into one.
//!
//! The shape of the cluster is found first and the id last: what can go wrong between the two costs
//! nobody an id.

use super::NodeError;
use super::durable::Home;
use super::formation::{self, Origin};
use super::life::Life;
use super::past::Past;
use super::port_names;
use super::seeds::{Newcomer, Seeds};
use crate::node_config::{NodeConfig, Start};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::NodeId;
use nearstate_store::disk::Durability;
use std::net::SocketAddr;

/// What a cluster is like for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClusterShape {
    pub(super) slots: u32,
    /// Flow shards.
    pub(super) shards: u16,
}

impl ClusterShape {
    /// As a map of a formed cluster says; shard 0 is the system's.
    pub(super) fn of(map: &Map) -> Self {
        Self { slots: map.slots, shards: (map.shards.len() as u16).saturating_sub(1) }
    }
}

/// The id and what came with it.
pub(super) struct Identity {
    pub(super) life: Life,
    pub(super) map: Map,
    /// Where a durable node keeps its memory.
    pub(super) home: Option<Home>,
}

impl Identity {
    pub(super) fn durability(&self) -> Durability {
        match &self.home {
            None => Durability::Memory,
            Some(home) => Durability::Disk(home.logs(self.life.starts > 1)),
        }
    }

    /// For the transactions of this process: their serials begin anew, so it must not be one of
    /// another process, of this life or of another one.
    pub(super) fn client(&self) -> u64 {
        self.life.node.0 << 32 | u64::from(self.life.starts as u16) << 16
    }

    /// Keeps who this node is. Before the founder has formed the cluster, and before anything that
    /// must not happen twice in a life.
    pub(super) fn save(&self) -> Result<(), NodeError> {
        self.home.as_ref().map_or(Ok(()), |home| home.save(&self.life))
    }

    /// The same, and with which configuration.
    pub(super) fn save_with(&self, config: &NodeConfig) -> Result<(), NodeError> {
        self.save()?;
        self.home.as_ref().map_or(Ok(()), |home| home.save_config(config))
    }

    /// The node as a member of the map.
    pub(super) fn member(&self, config: &NodeConfig) -> Member {
        Member {
            id: self.life.node,
            name: config.name.clone(),
            address: self.life.listen,
            ports: self.life.ports.clone(),
            state: MemberState::Alive,
        }
    }
}

/// Whom to ask to be let in; nobody if the node is to form the cluster. A node whose earlier life
/// is over never forms one: it asks those whom it knew.
fn whom_to_ask(config: &NodeConfig, past: &Past) -> Vec<SocketAddr> {
    let mut seeds = past.seeds.clone();
    if let Start::Join { seeds: named } = &config.start {
        seeds.extend(named);
    }
    seeds
}

/// The shape of the cluster that this node is in, or is to form, or to join: the members are asked
/// for that one, and do not hear of the node by it.
pub(super) async fn find_shape(
    config: &NodeConfig,
    past: &Past,
    address: SocketAddr,
) -> Result<ClusterShape, NodeError> {
    if let Some((life, _)) = &past.life {
        return Ok(ClusterShape { slots: life.slots, shards: life.shards });
    }
    let seeds = whom_to_ask(config, past);
    match &config.start {
        Start::Form { slots, shards, .. } if seeds.is_empty() => {
            Ok(ClusterShape { slots: *slots, shards: *shards })
        }
        _ => {
            let asker = Seeds::new(config.cluster_id(), &origin(config), &seeds, address)?;
            Ok(ClusterShape::of(&asker.find_map().await?))
        }
    }
}

/// Gets the node an id: the one that it had, if that life goes on; else the first of a new cluster,
/// or a fresh one of an existing cluster.
pub(super) async fn identify(
    config: &NodeConfig,
    past: Past,
    (address, nonce): (SocketAddr, u64),
    shape: ClusterShape,
) -> Result<Identity, NodeError> {
    let seeds = whom_to_ask(config, &past);
    let Past { home, life, .. } = past;
    if let Some((life, map)) = life {
        tracing::info!(node = %life.node, starts = life.starts, "comes back with its memory");
        return Ok(Identity { life, map, home });
    }
    let (ports, origin) = (port_names(config), origin(config));
    let life = |node, lineage, forming| Life {
        node,
        nonce,
        lineage,
        listen: address,
        ports: ports.clone(),
        slots: shape.slots,
        shards: shape.shards,
        starts: 1,
        forming,
    };
    if matches!(config.start, Start::Form { .. }) && seeds.is_empty() {
        let lineage = formation::draw_nonce().map_err(NodeError::Random)?;
        origin.mark_as_former(lineage)?;
        return Ok(Identity { life: life(NodeId(1), lineage, true), map: Map::unformed(), home });
    }
    let newcomer = Newcomer {
        name: config.name.clone(),
        address,
        ports: ports.clone(),
        nonce,
        settings: config.shared_settings(),
    };
    let asker = Seeds::new(config.cluster_id(), &origin, &seeds, address)?;
    let (node, map) = asker.join(newcomer).await?;
    if ClusterShape::of(&map) != shape {
        return Err(NodeError::NotLetIn(
            "the seeds are of two clusters of this name: name seeds of one".to_owned(),
        ));
    }
    origin.mark_as_member(map.lineage)?;
    Ok(Identity { life: life(node, map.lineage, false), map, home })
}

fn origin(config: &NodeConfig) -> Origin<'_> {
    let directory = config.lasting_directory();
    Origin { directory, cluster: &config.cluster, name: &config.name }
}
