//! How a node gets its id: it forms a cluster once, or it joins one.
//!
//! An id is one life of one process (promise P6). A node that forms leaves a mark in its directory
//! before it votes for the first time, and refuses to form again: its memory is gone, so it must
//! come back as somebody else. A node that joins gets an id that the system shard never gives
//! twice. The edge: reads and writes the mark, and connects to the seeds.
#![expect(clippy::disallowed_methods, reason = "the edge: waits between two tries to join")]

use super::NodeError;
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
/// How long a seed waits for the first map of a cluster that is just being formed.
const MAP_WAIT_MS: u32 = 500;
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

/// What a seed's answer is worth.
enum Said<T> {
    /// What was asked for.
    Yes(T),
    /// No, and asking again is no use.
    No(NodeError),
    /// Not now, for this reason.
    NotNow(String),
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
    };
    ask_seeds(newcomer.cluster, seeds, &request, |answer| match answer {
        Response::Joined { id, map } if map.state_of(id).is_live() => Said::Yes((id, map)),
        Response::Joined { .. } => Said::No(NodeError::GivenUp),
        Response::Refused { reason, retry: false } => Said::No(NodeError::NotLetIn(reason)),
        Response::Refused { reason, .. } => Said::NotNow(reason),
        _ => Said::NotNow("a seed answered something else".to_owned()),
    })
    .await
}

/// Asks the seeds for the map of their cluster.
pub(super) async fn find_map(cluster: u64, seeds: &[SocketAddr]) -> Result<Map, NodeError> {
    let request = Request::GetMap { newer_than: Map::unformed().epoch, wait_ms: MAP_WAIT_MS };
    ask_seeds(cluster, seeds, &request, |answer| match answer {
        Response::Map(map) if map.is_formed() => Said::Yes(map),
        Response::Refused { reason, .. } => Said::NotNow(reason),
        _ => Said::NotNow("the cluster has no map yet".to_owned()),
    })
    .await
}

async fn ask_seeds<T>(
    cluster: u64,
    seeds: &[SocketAddr],
    request: &Request,
    judge: impl Fn(Response) -> Said<T>,
) -> Result<T, NodeError> {
    let request = request.encode();
    let give_up = boot_now().plus_ms(JOIN_PATIENCE_MS);
    let mut last = "no seed answered".to_owned();
    while boot_now() < give_up {
        for seed in seeds {
            match ask(cluster, *seed, &request).await.map(&judge) {
                Ok(Said::Yes(what)) => return Ok(what),
                Ok(Said::No(error)) => return Err(error),
                Ok(Said::NotNow(reason)) => last = reason,
                Err(error) => last = format!("{seed}: {error}"),
            }
        }
        tracing::debug!(%last, "not let in yet");
        tokio::time::sleep(ROUND_PAUSE).await;
    }
    Err(NodeError::NotLetIn(last))
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
