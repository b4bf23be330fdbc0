//! What a node answers to the control messages of peers, tools and newcomers.

use super::control::group_status;
use super::replicas::ReplicaView;
use super::system_view::SystemView;
use crate::chain::Chain;
use crate::counters::Counters;
use nearstate_placement::Steering;
use nearstate_placement::api::{Request, Response, ShardRole, ShardStatus, StatusReport};
use nearstate_placement::system::SystemCommand;
use nearstate_store::clock::boot_now;
use nearstate_store::driver::{AppHandler, Store};
use nearstate_store::{LogIndex, NodeId, ShardId, TableReader, Time};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

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

/// Not done.
pub(super) fn refused(reason: String, retry: bool) -> Response {
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
                let join = SystemCommand::Join { name: name.clone(), address, ports, nonce };
                self.admit(&name, join).await
            }
            Request::GetMap { newer_than, wait_ms } => {
                match self.view.newer_than(newer_than, wait_ms).await {
                    Some(map) => Response::Map((*map).clone()),
                    None => Response::NoNewerMap,
                }
            }
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Shard(shard) => Response::Shard(self.shard_status(boot_now(), shard)),
            Request::Trace { side, frame, passed_on, .. } => {
                Response::Trace(self.trace(side, frame, passed_on).await)
            }
            Request::MoveSlots { slots, to } => {
                self.order(&SystemCommand::MoveSlots { slots, to }).await
            }
            Request::CancelMoves => self.order(&SystemCommand::CancelMoves).await,
            Request::Store(request) => Response::Store(self.store_answer(request).await),
            Request::Shutdown => {
                self.view.ask_to_end();
                Response::ShuttingDown
            }
        }
    }

    fn status(&self) -> StatusReport {
        let map = self.view.map();
        let now = boot_now();
        let shards = (0..self.replicas.len() as u16).map(ShardId);
        let shards = shards.filter_map(|shard| self.shard_status(now, shard)).collect();
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
            members: self.view.member_ages(),
        }
    }

    fn shard_status(&self, now: Time, shard: ShardId) -> Option<ShardStatus> {
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
        let reader = self.replicas.get(usize::from(shard.0))?.as_ref().map(|view| &view.reader);
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
}
