//! What a node answers to the control messages of peers, tools and newcomers.

use super::control::group_status;
use super::replicas::ReplicaView;
use super::system_view::SystemView;
use crate::chain::Chain;
use crate::counters::Counters;
use crate::state_access::Access;
use crate::trace::{Found, TraceRecord, trace_packet};
use nearstate_placement::api::{Request, Response, ShardRole, ShardStatus, StatusReport};
use nearstate_placement::system::{SystemCommand, SystemReply};
use nearstate_placement::{Side, Steering};
use nearstate_store::clock::boot_now;
use nearstate_store::driver::{AppHandler, Store};
use nearstate_store::{Epoch, LogIndex, NodeId, Reply, ShardId, TableReader, Time};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

/// How long a newcomer's map may take to come to this node.
const JOINED_MAP_WAIT_MS: u32 = 2_000;

/// Everything that answers come from.
pub(super) struct Answers {
    /// This node's id.
    pub(super) node: NodeId,
    /// Its name.
    pub(super) name: String,
    /// When it started.
    pub(super) started: Time,
    /// The newest map.
    pub(super) view: SystemView,
    /// The store; set once it has started, since the store needs its handler first.
    pub(super) store: OnceLock<Arc<Store>>,
    /// What the pipe counts; set once there is a pipe.
    pub(super) counters: OnceLock<Arc<Counters>>,
    /// Tables by shard number.
    pub(super) replicas: Vec<Option<ReplicaView>>,
    /// The functions.
    pub(super) chain: Arc<Chain>,
    /// What a newcomer must have set as well.
    pub(super) settings: u64,
    /// What decides a packet's slot.
    pub(super) steering: Steering,
}

/// [`AppHandler`] of a node.
#[derive(Clone)]
pub(super) struct Handler(pub(super) Arc<Answers>);

impl AppHandler for Handler {
    fn handle(
        &self,
        _from: Option<NodeId>,
        request: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send>> {
        let answers = self.0.clone();
        Box::pin(async move {
            match Request::decode(&request) {
                Ok(request) => answers.answer(request).await,
                Err(error) => refused(format!("the request cannot be read: {error}"), false),
            }
            .encode()
        })
    }
}

fn refused(reason: String, retry: bool) -> Response {
    Response::Refused { reason, retry }
}

impl Answers {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Join { settings, .. } if settings != self.settings => refused(
                "its chain, table-capacity, durability or steer-seed is not that of the cluster: \
                 all nodes need the same, or a packet would fare differently at this one"
                    .to_owned(),
                false,
            ),
            Request::Join { name, address, ports, nonce, .. } => {
                self.let_in(SystemCommand::Join { name, address, ports, nonce }).await
            }
            Request::GetMap { newer_than, wait_ms } => {
                match self.view.newer_than(newer_than, wait_ms).await {
                    Some(map) => Response::Map((*map).clone()),
                    None => Response::NoNewerMap,
                }
            }
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Trace { side, frame, .. } => Response::Trace(self.trace(side, &frame)),
            Request::Shutdown => {
                self.view.stop();
                Response::ShuttingDown
            }
        }
    }

    async fn let_in(&self, join: SystemCommand) -> Response {
        let Some(store) = self.store.get() else {
            return refused("this node is only starting; try again".to_owned(), true);
        };
        let reply = match store.propose(ShardId::SYSTEM, join.encode()).await {
            Ok(Reply::System(bytes)) => SystemReply::decode(&bytes),
            Ok(_) => return refused("the system shard gave no answer".to_owned(), true),
            Err(error) => return refused(error.to_string(), true),
        };
        match reply {
            Ok(SystemReply::Joined(id, epoch)) => {
                let before = Epoch(epoch.0.saturating_sub(1));
                match self.view.newer_than(before, JOINED_MAP_WAIT_MS).await {
                    Some(map) => Response::Joined { id, map: (*map).clone() },
                    None => refused("this node is behind; ask another one".to_owned(), true),
                }
            }
            Ok(SystemReply::Refused(refusal)) => refused(refusal.to_string(), true),
            Ok(SystemReply::Done(_)) => refused("the system shard was confused".to_owned(), true),
            Err(error) => refused(error.to_string(), true),
        }
    }

    fn status(&self) -> StatusReport {
        let map = self.view.map();
        let now = boot_now();
        let shards =
            (0..self.replicas.len()).filter_map(|number| self.shard_status(now, number)).collect();
        let mut counters = self.counters.get().map(|c| c.snapshot().named()).unwrap_or_default();
        let disk = self.store.get().map(|store| store.disk_counts().named());
        let disk = disk.into_iter().flatten().filter(|(_, count)| *count > 0);
        counters.extend(disk.map(|(name, count)| (name.to_owned(), count)));
        StatusReport {
            node: self.node,
            name: self.name.clone(),
            incarnation: self.node.0,
            uptime_ms: now.since_ns(self.started) / 1_000_000,
            map_epoch: map.epoch,
            shards,
            counters,
        }
    }

    fn shard_status(&self, now: Time, number: usize) -> Option<ShardStatus> {
        let shard = ShardId(number as u16);
        let status = self.store.get()?.status(shard)?;
        let applied = status.applied.unwrap_or(LogIndex(0));
        let lease_left_ms = (status.lease_until.since_ns(now) / 1_000_000) as u32;
        let group = group_status(self.node, now, status);
        let role = if group.is_owner {
            ShardRole::Owner
        } else if group.is_leader() {
            ShardRole::Leader
        } else if group.voters.contains(&self.node) {
            ShardRole::Follower
        } else if group.learners.contains(&self.node) {
            ShardRole::Learner
        } else {
            ShardRole::None
        };
        let reader = self.replicas[number].as_ref().map(|view| &view.reader);
        let others = group.voters.iter().chain(&group.learners).filter(|id| **id != self.node);
        let lag = if group.is_leader() {
            others.map(|id| (*id, group.lag(*id).unwrap_or(u64::MAX))).collect()
        } else {
            Vec::new()
        };
        Some(ShardStatus {
            shard,
            role,
            term: group.term,
            leader: group.leader,
            applied,
            lease_left_ms,
            entries: reader.map_or(0, TableReader::entries),
            capacity: reader.map_or(0, |reader| u64::from(reader.capacity())),
            voters: group.voters,
            lag,
        })
    }

    /// One packet's way, read from this node's replicas: they may be a moment behind their owners.
    fn trace(&self, side: Side, frame: &[u8]) -> Vec<String> {
        let map = self.view.map();
        let mut lines = Vec::new();
        let mut read = |slot, key: &_| {
            let shard = map.shard_of(slot)?;
            let reader = &self.replicas.get(usize::from(shard.0))?.as_ref()?.reader;
            Some(Found { entry: reader.get(key), shard, access: Access::Local })
        };
        let way = (side, frame);
        for record in trace_packet(&self.chain, &self.steering, boot_now(), way, &mut read) {
            lines.push(record.to_string());
            if let TraceRecord::Steered { slot } = record {
                lines.push(place_in_words(&map, slot, self.node));
            }
        }
        lines
    }
}

fn place_in_words(
    map: &nearstate_placement::Map,
    slot: nearstate_store::SlotId,
    me: NodeId,
) -> String {
    let Some(placement) = map.shard_of(slot).and_then(|shard| map.shard(shard)) else {
        return format!("{slot} is in no shard of this map ({})", map.epoch);
    };
    let name = |id: NodeId| map.member(id).map_or_else(|| id.to_string(), |m| m.name.clone());
    let replicas: Vec<String> = placement.replicas.iter().map(|id| name(*id)).collect();
    match placement.owner {
        Some((owner, term)) if owner == me => {
            format!("{} is owned here ({term}); replicas {}", placement.shard, replicas.join(", "))
        }
        Some((owner, term)) => format!(
            "{} is owned by {} ({term}); replicas {}",
            placement.shard,
            name(owner),
            replicas.join(", ")
        ),
        None => format!("{} has no owner yet", placement.shard),
    }
}
