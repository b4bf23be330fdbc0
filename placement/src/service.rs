//! The loops that act: on every node, make this node's groups match the map and report what it
//! owns, and move the slots that leave its shards; on the owner of the system shard, judge the
//! members, plan the next map and propose it.
//!
//! All decisions are taken by the pure files, from scratch at each turn: a turn has no memory but
//! the judge's, so the rare path after a failure and the common path are the same code. What the
//! loops touch is behind [`ClusterControl`], so they run in a simulation as they are. They never
//! touch a packet, a clock or a socket.

use crate::check;
use crate::map::Map;
use crate::membership::{Membership, Thresholds};
use crate::mover::{SlotMover, mover_turn};
use crate::planner::{PlanPolicy, ShardFact, plan};
use crate::reconcile::{GroupAction, GroupStatus, may_act, next_action};
use crate::system::{SystemCommand, SystemReply};
use core::future::Future;
use core::pin::Pin;
use futures::future::{join_all, join3};
use nearstate_store::{NodeId, Reply, ShardId, Time};
use std::collections::BTreeSet;
use std::sync::Arc;
use thiserror::Error;

/// A future of the control side.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that was asked of the cluster was not done; it is tried again at the next turn.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ControlError(pub String);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The map or the status of a group has changed.
    Changed,
    /// The time is over.
    Tick,
    /// The node ends.
    Stop,
}

/// What the loops need of a node. Every call ends within a bounded time, with an error if need be.
pub trait ClusterControl: Send + Sync {
    /// This node.
    fn me(&self) -> NodeId;

    /// The moment.
    fn now(&self) -> Time;

    /// The newest map that this node knows.
    fn map(&self) -> Arc<Map>;

    /// A shard's group as this node sees it; `None` if it has no replica.
    fn status(&self, shard: ShardId) -> Option<GroupStatus>;

    /// What the owner of a shard says of its group, for shards without replica here. The default
    /// knows nothing; then such shards keep their replicas and owners unless a node dies.
    fn ask_status(&self, shard: ShardId) -> BoxFuture<'_, Option<GroupStatus>> {
        let _ = shard;
        Box::pin(core::future::ready(None))
    }

    /// When each peer was last heard of.
    fn peer_contacts(&self) -> Vec<(NodeId, Time)>;

    /// Gets a payload into a shard's log, wherever its leader is.
    fn propose(
        &self,
        shard: ShardId,
        payload: Vec<u8>,
    ) -> BoxFuture<'_, Result<Reply, ControlError>>;

    /// Lets a node learn. Does not wait until it has caught up.
    fn add_learner(&self, shard: ShardId, node: NodeId) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Makes these the voters.
    fn change_voters(
        &self,
        shard: ShardId,
        voters: Vec<NodeId>,
    ) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Forgets a learner.
    fn remove_learner(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Hands a shard over: read leases run out first.
    fn transfer_leader(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>>;

    /// What moves slots; a node without it leaves moves to others.
    fn mover(&self) -> Option<&dyn SlotMover> {
        None
    }

    /// How many changes there have been: of the map, of a group's members, of an owner. (Entries
    /// that are applied are no change here.)
    fn changes(&self) -> u64;

    /// Waits until there have been more than `seen` changes, at most so long. Every loop that waits
    /// is woken; a change that came while a loop was busy is not missed.
    fn wait(&self, seen: u64, at_most_ms: u64) -> BoxFuture<'_, Wake>;
}

/// How the loops behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Longest time between two turns.
    pub tick_ms: u64,
    /// What silence means.
    pub thresholds: Thresholds,
    /// How to plan.
    pub policy: PlanPolicy,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self { tick_ms: 50, thresholds: Thresholds::default(), policy: PlanPolicy::default() }
    }
}

/// Runs all loops of a node until [`Wake::Stop`]. Each shard has a loop of its own, so that a group
/// that hangs without quorum holds up no other.
pub async fn run(control: &dyn ClusterControl, config: ServiceConfig) {
    loop {
        let seen = control.changes();
        if control.map().is_formed() {
            break;
        }
        if control.wait(seen, config.tick_ms).await == Wake::Stop {
            return;
        }
    }
    // The number of shards is fixed when the cluster is made.
    let shards = control.map().shards.len() as u16;
    let groups = (0..shards).map(|shard| run_group(control, ShardId(shard), config));
    join3(join_all(groups), run_planner(control, config), run_mover(control, config)).await;
}

/// Makes this node's replica of one shard do its part, again and again.
async fn run_group(control: &dyn ClusterControl, shard: ShardId, config: ServiceConfig) {
    loop {
        let seen = control.changes();
        group_turn(control, shard).await;
        if control.wait(seen, config.tick_ms).await == Wake::Stop {
            return;
        }
    }
}

/// Reports the shard if this node has come to own it, and takes the next step towards the map.
pub async fn group_turn(control: &dyn ClusterControl, shard: ShardId) {
    let Some(status) = control.status(shard) else { return };
    let map = control.map();
    if status.is_owner
        && let Some(placement) = map.shard(shard)
        && placement.owner != Some((status.me, status.term))
    {
        let report = SystemCommand::ReportOwner { shard, node: status.me, term: status.term };
        propose(control, &report).await;
    }
    let action = next_action(&map, &status);
    if !may_act(&action, control.now(), &control.peer_contacts()) {
        tracing::debug!(%shard, ?action, "not now: the node was not heard of lately");
        return;
    }
    let done = match action.clone() {
        GroupAction::AddLearner(node) => control.add_learner(shard, node).await,
        GroupAction::ChangeVoters(voters) => control.change_voters(shard, voters).await,
        GroupAction::TransferLeader(node) => control.transfer_leader(shard, node).await,
        GroupAction::RemoveLearner(node) => control.remove_learner(shard, node).await,
        GroupAction::Nothing(waiting) => {
            tracing::trace!(%shard, %waiting, "nothing to do");
            return;
        }
    };
    match done {
        Ok(()) => tracing::info!(%shard, ?action, "the group was changed"),
        Err(error) => tracing::info!(%shard, ?action, %error, "the group was not changed yet"),
    }
}

/// Drives moves of slots while this node owns the shard that one leaves.
async fn run_mover(control: &dyn ClusterControl, config: ServiceConfig) {
    loop {
        let seen = control.changes();
        mover_turn(control).await;
        if control.wait(seen, config.tick_ms).await == Wake::Stop {
            return;
        }
    }
}

/// Judges and plans while this node owns the system shard.
async fn run_planner(control: &dyn ClusterControl, config: ServiceConfig) {
    let mut planner = PlannerLoop::new(config);
    loop {
        let seen = control.changes();
        planner.turn(control).await;
        if control.wait(seen, config.tick_ms).await == Wake::Stop {
            return;
        }
    }
}

/// The planner's loop, a turn at a time.
pub struct PlannerLoop {
    config: ServiceConfig,
    /// Only while this node owns the system shard; a new owner begins to listen afresh.
    judge: Option<Membership>,
    /// What was reported last, so that a wait is logged once and not at each turn.
    reported: Vec<String>,
}

impl PlannerLoop {
    /// A loop that has seen nothing yet.
    #[must_use]
    pub const fn new(config: ServiceConfig) -> Self {
        Self { config, judge: None, reported: Vec::new() }
    }

    /// One turn: judge, plan, propose. Does nothing on a node that does not own the system shard.
    pub async fn turn(&mut self, control: &dyn ClusterControl) {
        let owns = control.status(ShardId::SYSTEM).is_some_and(|status| status.is_owner);
        if !owns || !control.map().is_formed() {
            self.judge = None;
            return;
        }
        self.judge_members(control).await;
        self.plan_map(control).await;
    }

    async fn judge_members(&mut self, control: &dyn ClusterControl) {
        let thresholds = self.config.thresholds;
        let judge = self.judge.get_or_insert_with(|| Membership::new(thresholds));
        let (map, contacts) = (control.map(), control.peer_contacts());
        for change in judge.observe(control.now(), control.me(), &map, &contacts) {
            let (id, state, silent_ms) = (change.id, change.state, change.silent_ms);
            tracing::info!(node = %id, %state, silent_ms, "a member is judged anew");
            propose(control, &SystemCommand::SetMember { id, state }).await;
        }
    }

    async fn plan_map(&mut self, control: &dyn ClusterControl) {
        let map = control.map();
        let facts = gather(control, &map).await;
        let planned = plan(&map, &facts, &self.config.policy);
        let lines: Vec<String> = planned.report.iter().map(ToString::to_string).collect();
        let known: BTreeSet<&String> = self.reported.iter().collect();
        for line in lines.iter().filter(|line| !known.contains(line)) {
            tracing::info!("{line}");
        }
        self.reported = lines;
        if let Some(next) = planned.next {
            check::assert_step(&map, &next);
            propose(control, &SystemCommand::SetMap { expected: map.epoch, map: next }).await;
        }
    }
}

/// What can be known of every shard's group: from the replica here if it leads or knows who votes,
/// and from the owner otherwise.
async fn gather(control: &dyn ClusterControl, map: &Map) -> Vec<ShardFact> {
    let asked = map.shards.iter().map(|placement| async move {
        let shard = placement.shard;
        let here = control.status(shard);
        let status = match here {
            Some(status) if status.is_leader() => Some(status),
            // The leader knows more: how far behind each replica is.
            other => control.ask_status(shard).await.or(other),
        };
        status.map(|status| fact(&status))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

fn fact(status: &GroupStatus) -> ShardFact {
    // A voter that was never heard of is as far behind as can be.
    let lag = |node: &NodeId| (*node, status.lag(*node).unwrap_or(u64::MAX));
    ShardFact {
        shard: status.shard,
        leader: status.leader,
        said_by_leader: status.is_leader(),
        voters: status.voters.clone(),
        // A follower knows nothing of the others; its own place in the log is not the end of it.
        lag: if status.is_leader() { status.voters.iter().map(lag).collect() } else { vec![] },
    }
}

async fn propose(control: &dyn ClusterControl, command: &SystemCommand) {
    let refused = match control.propose(ShardId::SYSTEM, command.encode()).await {
        Ok(Reply::System(bytes)) => match SystemReply::decode(&bytes) {
            Ok(SystemReply::Refused(refusal)) => refusal.to_string(),
            Ok(SystemReply::Done(_) | SystemReply::Joined(..)) => return,
            Err(error) => error.to_string(),
        },
        Ok(other) => format!("not an answer of the system shard: {other:?}"),
        Err(error) => error.to_string(),
    };
    // Whatever it was, the next turn looks again and decides afresh.
    tracing::debug!(refused, "a command to the system shard was not done");
}

#[cfg(test)]
mod tests;
