//! What the placement service needs of a node, answered by the store driver.

use super::system_view::SystemView;
use nearstate_placement::Map;
use nearstate_placement::reconcile::GroupStatus;
use nearstate_placement::service::{BoxFuture, ClusterControl, ControlError, Wake};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::ShardStatus;
use nearstate_store::driver::Store;
use nearstate_store::{LogIndex, NodeId, Reply, ShardId, Time};
use std::sync::Arc;

/// A node as the placement service sees it.
pub(super) struct Control {
    /// This node.
    pub(super) me: NodeId,
    /// Its shards.
    pub(super) store: Arc<Store>,
    /// The newest map, and news of it.
    pub(super) view: SystemView,
}

/// The store's words for a group in placement's.
pub(super) fn group_status(me: NodeId, now: Time, status: ShardStatus) -> GroupStatus {
    let is_owner = status.owns(now);
    let matched = status.matched.iter().filter_map(|(node, at)| Some((*node, (*at)?))).collect();
    GroupStatus {
        shard: status.shard,
        me,
        term: status.term,
        leader: status.leader,
        is_owner,
        voters: status.voters,
        learners: status.learners,
        matched,
        last: status.last_log.unwrap_or(LogIndex(0)),
        is_changing: status.changing,
    }
}

impl ClusterControl for Control {
    fn me(&self) -> NodeId {
        self.me
    }

    fn now(&self) -> Time {
        boot_now()
    }

    fn map(&self) -> Arc<Map> {
        self.view.map()
    }

    fn status(&self, shard: ShardId) -> Option<GroupStatus> {
        let status = self.store.status(shard)?;
        let is_member = status.voters.contains(&self.me) || status.learners.contains(&self.me);
        is_member.then(|| group_status(self.me, boot_now(), status))
    }

    fn peer_contacts(&self) -> Vec<(NodeId, Time)> {
        self.store.peer_contacts()
    }

    fn propose(
        &self,
        shard: ShardId,
        payload: Vec<u8>,
    ) -> BoxFuture<'_, Result<Reply, ControlError>> {
        Box::pin(async move { self.store.propose(shard, payload).await.map_err(in_words) })
    }

    fn add_learner(&self, shard: ShardId, node: NodeId) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move { self.store.add_learner(shard, node).await.map_err(in_words) })
    }

    fn change_voters(
        &self,
        shard: ShardId,
        voters: Vec<NodeId>,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move { self.store.change_voters(shard, voters).await.map_err(in_words) })
    }

    fn remove_learner(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move { self.store.remove_learner(shard, node).await.map_err(in_words) })
    }

    fn transfer_leader(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        Box::pin(async move { self.store.transfer_leader(shard, node).await.map_err(in_words) })
    }

    fn changes(&self) -> u64 {
        self.view.changes()
    }

    fn wait(&self, seen: u64, at_most_ms: u64) -> BoxFuture<'_, Wake> {
        Box::pin(self.view.wait(seen, at_most_ms))
    }
}

fn in_words(error: impl ToString) -> ControlError {
    ControlError(error.to_string())
}
