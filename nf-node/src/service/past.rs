//! What a durable node's last process has left: whether that life goes on, is over, or never was.
//!
//! What the node's own files say is checked against whoever of the members can be reached: a node
//! that was given up while it was away must not come back under its old id. The edge: connects.

use super::NodeError;
use super::durable::{Found, Home};
use super::life::Life;
use crate::node_config::{Durability, NodeConfig, Start};
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_store::NodeId;
use nearstate_store::client::{Client, Wanted};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a member may take to tell whether there is a newer map.
const NEWS_TIMEOUT: Duration = Duration::from_millis(500);

/// What is left of a durable node's last process.
#[derive(Default)]
pub(super) struct Past {
    /// Where it keeps its files; `None` if its state is in memory only.
    pub(super) home: Option<Home>,
    /// A life that goes on, and the newest map that it knows.
    pub(super) life: Option<(Life, Map)>,
    /// Who may know the cluster, if the life before is over.
    pub(super) seeds: Vec<SocketAddr>,
}

impl Past {
    /// Where this process has to listen.
    ///
    /// # Errors
    /// [`NodeError::Moved`] if the configuration says otherwise than what members know.
    pub(super) fn address(
        &self,
        config: &NodeConfig,
        ports: &[String],
    ) -> Result<SocketAddr, NodeError> {
        let Some((life, _)) = &self.life else { return Ok(config.listen) };
        let moved = |key, was, is| Err(NodeError::Moved { key, was, is });
        if life.ports != ports {
            return moved("port", life.ports.join(", "), ports.join(", "));
        }
        let any_port = config.listen.port() == 0 && config.listen.ip() == life.listen.ip();
        if any_port || config.listen == life.listen {
            return Ok(life.listen);
        }
        moved("listen", life.listen.to_string(), config.listen.to_string())
    }
}

/// Looks whether this node was here before, and whether that life goes on.
pub(super) async fn look_back(config: &NodeConfig) -> Result<Past, NodeError> {
    if config.durability == Durability::Memory {
        return Ok(Past::default());
    }
    let home = Home::of(config);
    let found = match home.look()? {
        Found::Life(life, map) => with_news(config, &home, life, map).await?,
        other => other,
    };
    Ok(match found {
        Found::Nobody => Past { home: Some(home), ..Past::default() },
        Found::Lost(seeds) => Past { home: Some(home), life: None, seeds },
        Found::Life(life, map) => {
            let life = Life { starts: life.starts.saturating_add(1), ..life };
            Past { home: Some(home), life: Some((life, map)), seeds: Vec::new() }
        }
    })
}

/// Asks whoever can be reached whether this life was given up meanwhile.
async fn with_news(
    config: &NodeConfig,
    home: &Home,
    life: Life,
    known: Map,
) -> Result<Found, NodeError> {
    let mut map = known;
    let mut others = others(&map, life.node);
    if let Start::Join { seeds } = &config.start {
        others.extend(seeds);
    }
    for address in others {
        let wanted = Wanted { cluster: config.cluster_id(), lineage: life.lineage };
        if let Some(newer) = newer_map(wanted, &map, address).await {
            map = newer;
            break;
        }
    }
    if map.is_formed() && !map.state_of(life.node).is_live() {
        tracing::warn!(node = %life.node, "the cluster has given this node's last life up");
        home.save_map(&map);
        return home.lose();
    }
    Ok(Found::Life(life, map))
}

/// Where the other live members are.
fn others(map: &Map, me: NodeId) -> Vec<SocketAddr> {
    let others = map.members.iter().filter(|m| m.id != me && m.state.is_live());
    others.map(|member| member.address).collect()
}

/// A newer map from somebody, if there is one.
async fn newer_map(wanted: Wanted, known: &Map, address: SocketAddr) -> Option<Map> {
    let request = Request::GetMap { newer_than: known.epoch, wait_ms: 0 }.encode();
    let client = Client::connect_to(wanted, address, NEWS_TIMEOUT).await.ok()?;
    let answer = client.call(request, NEWS_TIMEOUT).await.ok()?;
    match Response::decode(&answer) {
        Ok(Response::Map(map)) if map.epoch > known.epoch => Some(map),
        _ => None,
    }
}
