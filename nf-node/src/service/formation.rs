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
use nearstate_store::client::{Client, ConnectError, Wanted};
use nearstate_store::clock::boot_now;
use nearstate_store::wire::Refused;
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
/// What stands in a mark before the lineage.
const MARK: &str = "lineage ";
/// Between two rounds over the seeds.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// A number that no other life of any node draws.
pub(super) fn draw_nonce() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes) | 1)
}

/// Where a node's marks are: files that say, after its memory is gone, which cluster it belonged
/// to. A cluster's name alone does not: another may have been formed under it.
#[derive(Clone, Copy)]
pub(super) struct Origin<'a> {
    /// The node's directory.
    pub(super) directory: &'a Path,
    /// The cluster's name.
    pub(super) cluster: &'a str,
    /// The node's name.
    pub(super) name: &'a str,
}

impl Origin<'_> {
    /// The file that says that a node of this name has formed this cluster.
    fn former(&self) -> PathBuf {
        self.directory.join(format!("{}.{}.formed", self.cluster, self.name))
    }

    /// The file that says that it was let in.
    fn member(&self) -> PathBuf {
        self.directory.join(format!("{}.{}.joined", self.cluster, self.name))
    }

    /// Leaves the mark of a founder, durably, before anything is voted on.
    ///
    /// # Errors
    /// [`NodeError::FormedBefore`] or [`NodeError::JoinedBefore`] if there is a mark already.
    pub(super) fn mark_as_former(&self, lineage: u64) -> Result<(), NodeError> {
        let (former, member) = (self.former(), self.member());
        if member.exists() {
            return Err(NodeError::JoinedBefore(member));
        }
        if self.leave(&former, lineage)? { Ok(()) } else { Err(NodeError::FormedBefore(former)) }
    }

    /// Leaves the mark of a member, durably, unless there is one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn mark_as_member(&self, lineage: u64) -> Result<(), NodeError> {
        if self.lineage()?.is_none() {
            self.leave(&self.member(), lineage)?;
        }
        Ok(())
    }

    /// Which cluster the node belonged to, and the file that says so.
    ///
    /// # Errors
    /// If there is a mark that cannot be read.
    pub(super) fn lineage(&self) -> Result<Option<(u64, PathBuf)>, NodeError> {
        for path in [self.former(), self.member()] {
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(source) => return Err(NodeError::File { path, source }),
            };
            let number = text.trim().strip_prefix(MARK).map(|hex| u64::from_str_radix(hex, 16));
            return match number {
                Some(Ok(lineage)) if lineage != 0 => Ok(Some((lineage, path))),
                _ => Err(NodeError::NoMark(path)),
            };
        }
        Ok(None)
    }

    /// Makes a mark; `false` if it was there already.
    fn leave(&self, path: &Path, lineage: u64) -> Result<bool, NodeError> {
        let failed = |source| NodeError::File { path: path.to_owned(), source };
        let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            other => other.map_err(failed)?,
        };
        writeln!(file, "{MARK}{lineage:016x}").map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let directory = File::open(self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(failed).map(|()| true)
    }
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
    let answer = tokio::time::timeout(NEWS_TIMEOUT, ask(wanted, address, &request)).await;
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

/// Asks the seeds, one after the other and again, until one lets the node in. A node that belonged
/// to a cluster joins no other of the same name.
pub(super) async fn join(
    newcomer: &Newcomer,
    origin: &Origin<'_>,
    seeds: &[SocketAddr],
) -> Result<(NodeId, Map), NodeError> {
    let known = origin.lineage()?;
    let lineage = known.as_ref().map_or(0, |(lineage, _)| *lineage);
    let wanted = Wanted { cluster: newcomer.cluster, lineage };
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
        let mut strangers = 0;
        for seed in seeds {
            match ask(wanted, *seed, &request).await {
                Ok(Response::Joined { id, map }) if map.state_of(id).is_live() => {
                    return Ok((id, map));
                }
                Ok(Response::Joined { .. }) => return Err(NodeError::GivenUp),
                Ok(Response::Refused { reason, retry: false }) => {
                    return Err(NodeError::NotLetIn(reason));
                }
                Ok(Response::Refused { reason, .. }) => last = reason,
                Ok(_) => last = format!("{seed} answered something else"),
                Err(AskError::OtherLineage) => strangers += 1,
                Err(AskError::Silent(error)) => last = format!("{seed}: {error}"),
            }
        }
        if let Some((_, mark)) = known.as_ref().filter(|_| strangers == seeds.len()) {
            return Err(NodeError::OtherLineage(mark.clone()));
        }
        tracing::debug!(%last, "not let in yet");
        tokio::time::sleep(ROUND_PAUSE).await;
    }
    Err(NodeError::NotLetIn(format!(
        "{last}. Start a member first. If all members were down at once and `durability` is \
         `memory`, the cluster's state is lost: form it anew, then join it"
    )))
}

/// Why a seed gave no answer.
enum AskError {
    /// It belongs to another cluster of the same name.
    OtherLineage,
    /// Anything else, in words.
    Silent(String),
}

async fn ask(wanted: Wanted, seed: SocketAddr, request: &[u8]) -> Result<Response, AskError> {
    let client = match Client::connect_to(wanted, seed, SEED_TIMEOUT).await {
        Err(ConnectError::Refused { reason: Refused::Lineage(_), .. }) => {
            return Err(AskError::OtherLineage);
        }
        other => other.map_err(in_words)?,
    };
    let answer = client.call(request.to_vec(), SEED_TIMEOUT).await.map_err(in_words)?;
    Response::decode(&answer).map_err(in_words)
}

fn in_words(error: impl ToString) -> AskError {
    AskError::Silent(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_forms_once_and_remembers_which_cluster_it_belongs_to() {
        let directory = tempfile::tempdir().unwrap();
        let node = |name| Origin { directory: directory.path(), cluster: "c", name };
        node("n1").mark_as_former(7).unwrap();
        let again = node("n1").mark_as_former(8);
        assert!(matches!(again, Err(NodeError::FormedBefore(_))), "{again:?}");
        // It comes back as a member: its first mark stays.
        node("n1").mark_as_member(7).unwrap();
        assert_eq!(node("n1").lineage().unwrap(), Some((7, node("n1").former())));
        assert!(!node("n1").member().exists());

        assert_eq!(node("n2").lineage().unwrap(), None);
        node("n2").mark_as_member(7).unwrap();
        node("n2").mark_as_member(7).unwrap();
        assert_eq!(node("n2").lineage().unwrap(), Some((7, node("n2").member())));
        let forms = node("n2").mark_as_former(9);
        assert!(matches!(forms, Err(NodeError::JoinedBefore(_))), "{forms:?}");
    }

    #[test]
    fn a_mark_that_is_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let node = Origin { directory: directory.path(), cluster: "c", name: "n1" };
        for text in ["", "lineage", "lineage 0", "lineage x", "00000000000000ff"] {
            std::fs::write(node.former(), text).unwrap();
            let error = node.lineage().unwrap_err().to_string();
            assert!(error.contains("c.n1.formed is no mark"), "{error}");
        }
    }

    #[test]
    fn two_nonces_differ() {
        assert_ne!(draw_nonce().unwrap(), draw_nonce().unwrap());
    }
}
