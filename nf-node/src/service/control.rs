//! What the placement service needs of a node, answered by the store driver.

use super::system_view::SystemView;
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response, ShardRole, ShardStatus};
use nearstate_placement::mover::SlotMover;
use nearstate_placement::reconcile::GroupStatus;
use nearstate_placement::service::{BoxFuture, ClusterControl, ControlError, Wake};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus;
use nearstate_store::driver::Store;
use nearstate_store::{LogIndex, NodeId, Reply, ShardId, Time};
use std::sync::Arc;
use std::time::Duration;

/// How long another node may take to tell of its replica: plans wait for it.
const REPLICA_PATIENCE: Duration = Duration::from_millis(100);

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
pub(super) fn group_status(me: NodeId, now: Time, status: consensus::ShardStatus) -> GroupStatus {
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

impl Control {
    /// What another node says of its replica.
    async fn ask_replica(&self, node: NodeId, shard: ShardId) -> Option<GroupStatus> {
        let request = Request::Shard(shard).encode();
        let answer = self.store.call(node, request, REPLICA_PATIENCE).await.ok()?;
        match Response::decode(&answer) {
            Ok(Response::Shard(status)) => status.map(|status| told_status(node, status)),
            _ => None,
        }
    }
}

/// What another node tells of its replica, as the placement service sees its own.
fn told_status(me: NodeId, status: ShardStatus) -> GroupStatus {
    let known = |lag: &&(NodeId, u64)| lag.1 < u64::MAX;
    let behind = status.lag.iter().filter(known).map(|(_, lag)| *lag).max().unwrap_or(0);
    let last = status.applied.0.max(behind);
    let matched = status.lag.iter().filter(known).map(|(id, lag)| (*id, LogIndex(last - lag)));
    GroupStatus {
        shard: status.shard,
        me,
        term: status.term,
        leader: status.leader,
        is_owner: status.role == ShardRole::Owner,
        matched: matched.collect(),
        voters: status.voters,
        learners: Vec::new(),
        last: LogIndex(last),
        is_changing: false,
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

    fn ask_status(&self, shard: ShardId) -> BoxFuture<'_, Option<GroupStatus>> {
        Box::pin(async move {
            let map = self.view.map();
            let replicas = map.shard(shard)?.replicas.iter().copied();
            let others = replicas.filter(|node| *node != self.me && map.state_of(*node).is_live());
            let asked = others.map(|node| self.ask_replica(node, shard));
            let answers = futures::future::join_all(asked).await;
            // One that leads knows most; of two that think so, the later one is right.
            answers.into_iter().flatten().max_by_key(|status| (status.is_leader(), status.term))
        })
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

    fn mover(&self) -> Option<&dyn SlotMover> {
        Some(&*self.store)
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

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_store::Term;

    #[test]
    fn what_a_leader_tells_is_what_it_sees() {
        let status = ShardStatus {
            shard: ShardId(2),
            role: ShardRole::Owner,
            term: Term(4),
            leader: Some(NodeId(7)),
            applied: LogIndex(100),
            lease_left_ms: 1,
            entries: 0,
            capacity: 1,
            voters: vec![NodeId(7), NodeId(8), NodeId(9)],
            lag: vec![(NodeId(8), 3), (NodeId(9), u64::MAX)],
        };
        let told = told_status(NodeId(7), status.clone());
        assert!(told.is_leader() && told.is_owner);
        let lags = [7, 8, 9].map(|node| told.lag(NodeId(node)));
        assert_eq!(lags, [Some(0), Some(3), None]);
        let follower = told_status(NodeId(8), ShardStatus { lag: vec![], ..status });
        assert!(!follower.is_leader());
    }
}
