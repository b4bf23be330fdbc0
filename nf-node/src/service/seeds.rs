//! The members that a newcomer turns to: it asks them for the shape of their cluster, then to be
//! let in, one after the other and again.
//!
//! Ends early when no further try can help: a member says never, or nobody there is of this
//! cluster. When one is of another cluster of the name and the others are silent for as long as is
//! waited, the node's own mark is what keeps it out, and it says so. The edge: connects, and waits
//! between two rounds. It takes nothing from a seed but the answer to its question.
#![expect(clippy::disallowed_methods, reason = "the edge: waits between two tries to join")]

use super::NodeError;
use super::formation::Origin;
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_store::NodeId;
use nearstate_store::client::{Client, ConnectError, Wanted};
use nearstate_store::clock::boot_now;
use nearstate_store::wire::Refused;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a node tries to be let in.
const JOIN_PATIENCE_MS: u64 = 10_000;
/// How long one seed may take to answer.
const SEED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a seed waits for the first map of a cluster that is just being formed.
const MAP_WAIT_MS: u32 = 500;
/// Between the first two rounds over the seeds; each pause after that is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// But no longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a node says of itself when it joins.
pub(super) struct Newcomer {
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
    /// No, and no other seed will say otherwise.
    Never(NodeError),
    /// Another try may help.
    NotYet(String),
    /// Nobody there, or no answer in time.
    Silent(String),
    /// This seed never will: it is of another cluster, or no node at all.
    NotThisOne(String),
    /// This seed belongs to another cluster of the same name.
    OtherLineage(String),
}

/// What the seeds of one round were.
#[derive(Clone, Copy, Default)]
struct Round {
    asked: u32,
    /// Of another cluster of this name.
    elsewhere: u32,
    /// Of this cluster, as far as they can tell, and perhaps of use later.
    of_ours: u32,
    /// Not to be reached; they may be of this cluster.
    silent: u32,
}

impl Round {
    fn count<T>(&mut self, said: &Said<T>) {
        self.asked += 1;
        self.elsewhere += u32::from(matches!(said, Said::OtherLineage(_)));
        self.of_ours += u32::from(matches!(said, Said::NotYet(_)));
        self.silent += u32::from(matches!(said, Said::Silent(_)));
    }

    /// Whether no seed would say otherwise later.
    const fn is_hopeless(self) -> bool {
        self.of_ours == 0 && self.silent == 0
    }

    const fn are_all_elsewhere(self) -> bool {
        self.elsewhere == self.asked
    }
}

/// See the module's text.
pub(super) struct Seeds {
    wanted: Wanted,
    addresses: Vec<SocketAddr>,
    /// The file that says which cluster the node belonged to. It joins no other of that name.
    mark: Option<PathBuf>,
    /// How long it tries.
    pub(super) patience_ms: u64,
}

impl Seeds {
    /// The seeds of a cluster, without the node's `own` address: nodes may all have the same list,
    /// and one that is not in yet cannot let itself in.
    ///
    /// # Errors
    /// If nobody is left to ask, or the node's mark cannot be read.
    pub(super) fn new(
        cluster: u64,
        origin: &Origin<'_>,
        seeds: &[SocketAddr],
        own: SocketAddr,
    ) -> Result<Self, NodeError> {
        let addresses: Vec<_> = seeds.iter().copied().filter(|seed| *seed != own).collect();
        if addresses.is_empty() {
            return Err(NodeError::OnlySeed(own));
        }
        let (lineage, mark) = origin.lineage()?.unzip();
        let wanted = Wanted { cluster, lineage: lineage.unwrap_or(0) };
        Ok(Self { wanted, addresses, mark, patience_ms: JOIN_PATIENCE_MS })
    }

    /// The map of their cluster.
    pub(super) async fn find_map(&self) -> Result<Map, NodeError> {
        let request = Request::GetMap { newer_than: Map::unformed().epoch, wait_ms: MAP_WAIT_MS };
        self.ask_all(&request, |answer| match answer {
            Response::Map(map) if map.is_formed() => Said::Yes(map),
            Response::Refused { reason, .. } => Said::NotYet(reason),
            _ => Said::NotYet("the cluster has no map yet".to_owned()),
        })
        .await
    }

    /// An id in their cluster, and the map that has it.
    pub(super) async fn join(&self, newcomer: Newcomer) -> Result<(NodeId, Map), NodeError> {
        let Newcomer { name, address, ports, nonce, settings } = newcomer;
        let request = Request::Join { name, address, ports, nonce, settings };
        self.ask_all(&request, |answer| match answer {
            Response::Joined { id, map } if map.state_of(id).is_live() => Said::Yes((id, map)),
            Response::Joined { .. } => Said::Never(NodeError::GivenUp),
            Response::Refused { reason, retry: false } => Said::Never(NodeError::NotLetIn(reason)),
            Response::Refused { reason, .. } => Said::NotYet(reason),
            _ => Said::NotYet("it answered something else".to_owned()),
        })
        .await
    }

    async fn ask_all<T>(
        &self,
        request: &Request,
        judge: impl Fn(Response) -> Said<T>,
    ) -> Result<T, NodeError> {
        let request = request.encode();
        let give_up = boot_now().plus_ms(self.patience_ms);
        let mut pause = PAUSE_MIN;
        loop {
            let mut told = Vec::new();
            let mut round = Round::default();
            for seed in &self.addresses {
                let said = self.ask(*seed, &request, &judge).await;
                round.count(&said);
                match said {
                    Said::Yes(what) => return Ok(what),
                    Said::Never(error) => return Err(error),
                    Said::NotThisOne(why) | Said::OtherLineage(why) => told.push(why),
                    Said::NotYet(why) | Said::Silent(why) => told.push(format!("{seed}: {why}")),
                }
            }
            let told = told.join("; ");
            if round.is_hopeless() || boot_now() >= give_up {
                return Err(self.why_not(round, told));
            }
            tracing::debug!(told, "not let in yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Why the node gives up after a round.
    fn why_not(&self, round: Round, told: String) -> NodeError {
        match &self.mark {
            Some(mark) if round.are_all_elsewhere() => NodeError::OtherLineage(mark.clone()),
            Some(mark) if round.elsewhere > 0 && round.of_ours == 0 => {
                NodeError::OwnLineageSilent { mark: mark.clone(), told }
            }
            _ => NodeError::NoSeed(told),
        }
    }

    async fn ask<T>(
        &self,
        seed: SocketAddr,
        request: &[u8],
        judge: impl Fn(Response) -> Said<T>,
    ) -> Said<T> {
        let client = match Client::connect_to(self.wanted, seed, SEED_TIMEOUT).await {
            Ok(client) => client,
            Err(error @ ConnectError::Refused { reason: Refused::Lineage(_), .. }) => {
                return Said::OtherLineage(error.to_string());
            }
            Err(error) if error.is_stranger() => return Said::NotThisOne(error.to_string()),
            Err(error) => return Said::Silent(error.to_string()),
        };
        let answer = client.call(request.to_vec(), SEED_TIMEOUT).await.map_err(|e| e.to_string());
        match answer.and_then(|bytes| Response::decode(&bytes).map_err(|e| e.to_string())) {
            Ok(response) => judge(response),
            Err(why) => Said::Silent(why),
        }
    }
}
