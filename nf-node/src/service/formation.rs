//! How a node gets its id: it forms a cluster once, or it joins one.
//!
//! An id is one life of one process (promise P6). A node that forms leaves a mark in its directory
//! before it votes for the first time, and refuses to form again: its memory is gone, so it must
//! come back as somebody else. A node that joins gets an id that the system shard never gives
//! twice. A durable node that comes back has its id already ([`super::durable`]). The edge: reads
//! and writes the mark, and connects to the seeds.
#![expect(clippy::disallowed_methods, reason = "the edge: waits between two tries to join")]

use super::NodeError;
use super::durable::{Found, Home, Life};
use crate::node_config::{Durability, NodeConfig, Start};
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_store::NodeId;
use nearstate_store::client::Client;
use nearstate_store::clock::boot_now;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a node tries to be let in.
pub(super) const JOIN_PATIENCE_MS: u64 = 10_000;
/// How long one seed may take to answer.
const SEED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a member may take to tell whether there is a newer map.
const NEWS_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two rounds over the seeds.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// A number that no other life of any node draws.
pub(super) fn draw_nonce() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// The file that says that a node of this name has formed this cluster.
fn mark_path(directory: &Path, cluster: &str, name: &str) -> PathBuf {
    directory.join(format!("{cluster}.{name}.formed"))
}

/// Leaves the mark, durably, before anything is voted on.
///
/// # Errors
/// [`NodeError::FormedBefore`] if it is there already.
pub(super) fn mark_as_former(
    directory: &Path,
    cluster: &str,
    name: &str,
    nonce: u64,
) -> Result<(), NodeError> {
    let path = mark_path(directory, cluster, name);
    let failed = |source| NodeError::File { path: path.clone(), source };
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(NodeError::FormedBefore(path));
        }
        other => other.map_err(failed)?,
    };
    writeln!(file, "{nonce:016x}").map_err(failed)?;
    file.sync_all().map_err(failed)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

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
        if let Some(newer) = newer_map(config.cluster_id(), &map, address).await {
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
pub(super) fn others(map: &Map, me: NodeId) -> Vec<SocketAddr> {
    let others = map.members.iter().filter(|m| m.id != me && m.state.is_live());
    others.map(|member| member.address).collect()
}

/// A newer map from somebody, asked as a client: who was given up is not spoken to as a node any
/// more, and learns of it in this way only.
pub(super) async fn newer_map(cluster: u64, known: &Map, address: SocketAddr) -> Option<Map> {
    let request = Request::GetMap { newer_than: known.epoch, wait_ms: 0 }.encode();
    let answer = tokio::time::timeout(NEWS_TIMEOUT, ask(cluster, address, &request)).await;
    match answer {
        Ok(Ok(Response::Map(map))) if map.epoch > known.epoch => Some(map),
        _ => None,
    }
}

/// What a node says of itself when it joins.
pub(super) struct Newcomer {
    /// The cluster's number.
    pub(super) cluster: u64,
    /// Its name.
    pub(super) name: String,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// How packets reach it.
    pub(super) ports: Vec<String>,
    /// Of this life.
    pub(super) nonce: u64,
    /// [`crate::node_config::NodeConfig::shared_settings`].
    pub(super) settings: u64,
}

/// Asks the seeds, one after the other and again, until one lets the node in.
pub(super) async fn join(
    newcomer: &Newcomer,
    seeds: &[SocketAddr],
) -> Result<(NodeId, Map), NodeError> {
    let request = Request::Join {
        name: newcomer.name.clone(),
        address: newcomer.address,
        ports: newcomer.ports.clone(),
        nonce: newcomer.nonce,
        settings: newcomer.settings,
    }
    .encode();
    let give_up = boot_now().plus_ms(JOIN_PATIENCE_MS);
    let mut last = "no seed answered".to_owned();
    while boot_now() < give_up {
        for seed in seeds {
            match ask(newcomer.cluster, *seed, &request).await {
                Ok(Response::Joined { id, map }) if map.state_of(id).is_live() => {
                    return Ok((id, map));
                }
                Ok(Response::Joined { .. }) => return Err(NodeError::GivenUp),
                Ok(Response::Refused { reason, retry: false }) => {
                    return Err(NodeError::NotLetIn(reason));
                }
                Ok(Response::Refused { reason, .. }) => last = reason,
                Ok(_) => last = format!("{seed} answered something else"),
                Err(error) => last = format!("{seed}: {error}"),
            }
        }
        tracing::debug!(%last, "not let in yet");
        tokio::time::sleep(ROUND_PAUSE).await;
    }
    Err(NodeError::NotLetIn(format!(
        "{last}. Start a member first. If all members were down at once and `durability` is \
         `memory`, the cluster's state is lost: form it anew, then join it"
    )))
}

async fn ask(cluster: u64, seed: SocketAddr, request: &[u8]) -> Result<Response, String> {
    let client = Client::connect(cluster, seed, SEED_TIMEOUT).await.map_err(|e| e.to_string())?;
    let answer = client.call(request.to_vec(), SEED_TIMEOUT).await.map_err(|e| e.to_string())?;
    Response::decode(&answer).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_forms_once() {
        let directory = tempfile::tempdir().unwrap();
        mark_as_former(directory.path(), "c", "n1", 7).unwrap();
        let again = mark_as_former(directory.path(), "c", "n1", 8);
        assert!(matches!(again, Err(NodeError::FormedBefore(_))), "{again:?}");
        mark_as_former(directory.path(), "c", "n2", 9).unwrap();
    }

    #[test]
    fn two_nonces_differ() {
        assert_ne!(draw_nonce().unwrap(), draw_nonce().unwrap());
    }
}
