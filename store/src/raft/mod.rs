//! The consensus library behind our own words. Only the files of this directory name it.
//!
//! A [`Replica`] is one shard's group on this node. Messages come and go as [`crate::wire`] has
//! them; what the library's types look like is nobody else's business.

#[cfg(test)]
mod conformance;
mod convert;
mod log_store;
mod network;
mod pipeline;
mod state_machine;
mod voting;
#[cfg(test)]
mod voting_tests;

use crate::clock::boot_now;
use crate::consensus::{ChangeError, Compaction, GROUP_NODES_MAX, Role, ShardStatus, Timing};
use crate::disk::{self, DiskLog, DiskSnapshots};
use crate::machine::{Machine, PayloadError, Reply};
use crate::shard_time::ShardTime;
use crate::slot_move::{TakeOut, TakenOut};
use crate::transport::Transport;
use crate::types::{LogIndex, NodeId, ShardId, Term, Time};
use crate::upkeep::{Upkeep, UpkeepClock};
use crate::wire::{Append, Appended, HandOver, NotServed, SnapshotChunk};
use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;
use network::{Assembly, PeerFactory};
use openraft::alias::{SnapshotMetaOf, SnapshotOf, WatchReceiverOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, ForwardToLeader, InitializeError, RaftError,
};
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft::raft::TransferLeaderRequest;
use openraft::{
    ChangeMembers, Config, EmptyNode, EntryPayload, Instant, Raft, ServerState, SnapshotPolicy,
    StepDownPolicy,
};
use rkyv::util::AlignedVec;
use state_machine::{MachineHandle, StateMachine};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use voting::Voting;

pub(crate) use log_store::LogStore;

/// An entry's payload: bytes that only the machine understands, aligned so that it may read them in
/// place, shared by the log, the network and the machine.
#[derive(Clone)]
pub(crate) struct Payload(pub(crate) Arc<AlignedVec>);

impl Payload {
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut aligned = AlignedVec::with_capacity(bytes.len());
        aligned.extend_from_slice(bytes);
        Self(Arc::new(aligned))
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice() == other.0.as_slice()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

openraft::declare_raft_types!(
    /// The library's types, chosen.
    pub(crate) Types:
        D = Payload,
        R = Reply,
        NodeId = u64,
        Node = EmptyNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

/// A finished snapshot's bytes.
pub(crate) type SnapshotBytes = Arc<Vec<u8>>;

/// Largest number of log entries kept behind a snapshot, for followers that are a little late.
const KEEP_LOGS: u64 = 1_000;

/// What a group is started with.
pub(crate) struct ReplicaSetup {
    pub(crate) shard: ShardId,
    pub(crate) node: NodeId,
    pub(crate) timing: Timing,
    pub(crate) compaction: Compaction,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) check: PayloadCheck,
    /// What the log and the snapshots are kept in, if anything.
    pub(crate) files: Option<disk::Opened>,
}

/// What [`Machine::check`] is for a machine whose type is not known here.
pub(crate) type PayloadCheck = fn(&[u8]) -> Result<(), PayloadError>;

/// Why a payload was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// It had no effect; ask this node, if any.
    NotLeader(Option<NodeId>),
    /// It may or may not take effect.
    Unknown,
    /// The machine does not take it.
    Malformed,
    /// The group has stopped on this node. Whether it takes effect is unknown.
    Stopped,
    /// There is no room for it on this node's disk. It had no effect.
    DiskFull,
}

/// One shard's group on this node.
pub(crate) struct Replica {
    shard: ShardId,
    node: NodeId,
    raft: Raft<Types, StateMachine>,
    check: PayloadCheck,
    assembly: Mutex<Option<Assembly>>,
    files: Option<(DiskLog, DiskSnapshots)>,
    time: Arc<ShardTime>,
    machine: MachineHandle,
    lease_ms: u64,
    compaction: Compaction,
    voting: Voting,
}

/// What the lease is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leading {
    pub(crate) term: Term,
    /// How long ago that was sent which a quorum has answered; `None` before the first answer.
    pub(crate) acked_ago: Option<Duration>,
    /// This node alone is a quorum.
    pub(crate) alone: bool,
    /// An entry of this term is applied, so the table holds all that was ever acknowledged.
    pub(crate) caught_up: bool,
}

/// Receives news of the group.
pub(crate) struct Watch {
    server: WatchReceiverOf<Types, RaftServerMetrics<Types>>,
    data: WatchReceiverOf<Types, RaftDataMetrics<Types>>,
}

impl Watch {
    /// Role, leader, term or group changed. `false`: the group has ended.
    pub(crate) async fn role_changed(&mut self) -> bool {
        self.server.changed().await.is_ok()
    }

    /// Anything changed. `false`: the group has ended.
    pub(crate) async fn anything_changed(&mut self) -> bool {
        tokio::select! {
            changed = self.server.changed() => changed.is_ok(),
            changed = self.data.changed() => changed.is_ok(),
        }
    }
}

fn config(setup: &ReplicaSetup) -> Result<Config, openraft::ConfigError> {
    let Timing { heartbeat_ms, election_min_ms, election_max_ms, .. } = setup.timing;
    Config {
        cluster_name: setup.shard.to_string(),
        heartbeat_interval: heartbeat_ms,
        election_timeout_min: election_min_ms,
        election_timeout_max: election_max_ms,
        install_snapshot_timeout: 10_000,
        max_payload_entries: crate::wire::ENTRIES_MAX as u64,
        replication_lag_threshold: setup.compaction.entries.saturating_mul(2).max(KEEP_LOGS),
        // And by bytes, which the library does not count: `Replica::compact`.
        snapshot_policy: SnapshotPolicy::LogsSinceLast(setup.compaction.entries),
        max_in_snapshot_log_to_keep: KEEP_LOGS.min(setup.compaction.entries),
        purge_batch_size: 64,
        api_channel_size: Some(4096),
        enable_pre_vote: Some(true),
        broadcast_submitted_on_append: Some(true),
        // A leader that comes back must not go on in its old term: entries of it that followers
        // have may not have reached its own disk, and it would write others in their places.
        enable_leader_restore: Some(false),
        // A leader that is removed would hand over by itself, past the lease. It is never removed
        // while it leads: `change_voters` refuses.
        removed_leader_step_down: StepDownPolicy::Never,
        backoff: "20ms".to_string(),
        ..Config::default()
    }
    .validate()
}

impl Replica {
    /// Starts the group's instance on this node: with what its files hold, else empty and member of
    /// nothing.
    pub(crate) async fn start(
        setup: ReplicaSetup,
        transport: Arc<Transport>,
    ) -> Result<Self, String> {
        let config = config(&setup).map_err(|error| error.to_string())?;
        let ReplicaSetup { shard, node, timing, compaction, machine, check, files } = setup;
        let voting = Voting::default();
        // In its last process, if its log tells of one, it may have promised something until now.
        voting.heard.store(boot_now().0, Ordering::SeqCst);
        let orphan_term = voting.orphan_term.clone();
        let network = PeerFactory { transport, shard, node, timing, orphan_term };
        let time = Arc::new(ShardTime::default());
        let (log, machine, files) = match files {
            None => (LogStore::default(), StateMachine::new(machine, time.clone()), None),
            Some(disk::Opened { log, snapshots, recovered }) => {
                let disk::Recovered { state, entries, snapshot, .. } = recovered;
                let store = LogStore::on_disk(log.clone(), &state, entries, check)?;
                let machine =
                    StateMachine::on_disk(machine, time.clone(), snapshots.clone(), snapshot)
                        .ok_or("the group of the newest snapshot is none")?;
                (store, machine, Some((log, snapshots)))
            }
        };
        let handle = machine.handle();
        let raft = Raft::new(node.0, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self {
            shard,
            node,
            raft,
            check,
            assembly: Mutex::new(None),
            files,
            time,
            machine: handle,
            lease_ms: timing.lease_ms,
            compaction,
            voting,
        })
    }

    /// Makes a snapshot if the log has become long enough.
    pub(crate) async fn compact(&self) {
        if self.machine.take_due(&self.compaction) {
            // A group that has stopped says so elsewhere.
            let _ = self.raft.trigger().snapshot().await;
        }
    }

    /// Whether this node's disk has no room for more entries.
    pub(crate) fn disk_is_full(&self) -> bool {
        self.files.as_ref().is_some_and(|(log, _)| log.is_full())
    }

    /// The same, counted as a refusal.
    fn refuses_for_room(&self) -> bool {
        let full = self.disk_is_full();
        if let Some((log, _)) = self.files.as_ref().filter(|_| full) {
            log.count_refused();
        }
        full
    }

    /// News of [`Replica::disk_is_full`]; `None` without a disk.
    pub(crate) fn watch_disk(&self) -> Option<tokio::sync::watch::Receiver<bool>> {
        self.files.as_ref().map(|(log, _)| log.watch_full())
    }

    /// Forms the group, once. Forming it again is no error.
    pub(crate) async fn initialize(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let nodes: BTreeMap<u64, EmptyNode> =
            voters.iter().map(|node| (node.0, EmptyNode::default())).collect();
        if nodes.is_empty() || nodes.len() > GROUP_NODES_MAX {
            return Err(ChangeError::Size(nodes.len()));
        }
        match self.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                Err(ChangeError::NotMember(self.node))
            }
            Err(RaftError::Fatal(error)) => Err(ChangeError::Other(error.to_string())),
        }
    }

    /// Whether the shard's machine takes this payload.
    pub(crate) fn check(&self, payload: &Payload) -> Result<(), PayloadError> {
        (self.check)(&payload.0)
    }

    /// Writes a payload if this node leads; the answer comes once it is applied here.
    pub(crate) async fn write(&self, payload: Payload) -> Result<Reply, WriteError> {
        if self.refuses_for_room() {
            return Err(WriteError::DiskFull);
        }
        match self.raft.client_write(payload).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(WriteError::NotLeader(self.other_leader(&forward)))
            }
            Err(RaftError::APIError(_)) => Err(WriteError::Unknown),
            Err(RaftError::Fatal(_)) => Err(WriteError::Stopped),
        }
    }

    fn other_leader(&self, forward: &ForwardToLeader<Types>) -> Option<NodeId> {
        forward.leader_id.filter(|leader| *leader != self.node.0).map(NodeId)
    }

    /// The request reaches the group when this is first polled: poll in the order of arrival.
    pub(crate) async fn append(&self, append: Append) -> Result<Appended, NotServed> {
        self.hear(append.ballot.term)?;
        if !append.entries.is_empty() && self.refuses_for_room() {
            return Err(NotServed::DiskFull);
        }
        let request = convert::append_request(append).ok_or(NotServed::Malformed)?;
        for entry in &request.entries {
            if let EntryPayload::Normal(payload) = &entry.payload {
                (self.check)(&payload.0).map_err(|error| {
                    tracing::error!(shard = %self.shard, %error, "refused an entry of the leader");
                    NotServed::Malformed
                })?;
            }
        }
        let answer = self.raft.append_entries(request).await.map_err(|_| NotServed::Stopped)?;
        Ok(convert::appended(&answer))
    }

    /// Takes a piece of a snapshot; after the last one the whole is installed, and the answer is
    /// this node's ballot.
    pub(crate) async fn snapshot(
        &self,
        from: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<Option<crate::wire::Ballot>, NotServed> {
        self.hear(chunk.ballot.term)?;
        if self.refuses_for_room() {
            return Err(NotServed::DiskFull);
        }
        let ballot = convert::vote(&chunk.ballot);
        let assembled = {
            let mut assembly = crate::transport::lock(&self.assembly);
            Assembly::add(&mut assembly, from, chunk)?
        };
        let Some((meta, bytes)) = assembled else { return Ok(None) };
        let meta: SnapshotMetaOf<Types> = meta;
        let snapshot = SnapshotOf::<Types, SnapshotBytes> { meta, snapshot: Arc::new(bytes) };
        let answer = self.raft.install_full_snapshot(ballot, snapshot).await;
        answer.map(|answer| Some(convert::ballot(&answer.vote))).map_err(|_| NotServed::Stopped)
    }

    pub(crate) async fn hand_over(&self, ask: HandOver) -> Result<bool, NotServed> {
        if self.refuses_for_room() {
            return Ok(false);
        }
        let HandOver { ballot, to, last_log } = ask;
        let last_log = last_log.map(convert::log_id);
        let request = TransferLeaderRequest::new(convert::vote(&ballot), to, last_log);
        let answer = self.raft.handle_transfer_leader(request).await;
        answer.map(|accepted| accepted.is_ok()).map_err(|_| NotServed::Stopped)
    }

    /// Whether this node asks for votes when it misses a leader.
    pub(crate) fn campaign(&self, may: bool) {
        self.raft.runtime_config().elect(may);
    }

    /// Asks the machine what is to be done because time has passed; whether it was free.
    pub(crate) fn upkeep(&self, clock: &UpkeepClock, work: &mut Upkeep) -> bool {
        self.machine.upkeep(clock, work)
    }

    /// See [`MachineHandle::take_out`].
    pub(crate) async fn take_out<const N: usize>(
        &self,
        asks: [TakeOut; N],
    ) -> Option<[TakenOut; N]> {
        self.machine.take_out(asks).await
    }

    /// See [`MachineHandle::look`].
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Machine) -> T + Send + 'static,
    ) -> Option<(LogIndex, T)> {
        self.machine.look(look).await
    }

    /// What time it is in the shard.
    pub(crate) fn time(&self) -> &ShardTime {
        &self.time
    }

    pub(crate) fn watch(&self) -> Watch {
        Watch { server: self.raft.server_metrics(), data: self.raft.data_metrics() }
    }

    /// What the lease is made of, if this node leads.
    pub(crate) fn leading(&self) -> Option<Leading> {
        let (term, alone) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader || metrics.current_leader != Some(self.node.0) {
                return None;
            }
            let mut voters = metrics.membership_config.voter_ids();
            let alone = voters.next() == Some(self.node.0) && voters.next().is_none();
            (metrics.vote.leader_id.term, alone)
        };
        let data = self.raft.data_metrics();
        let data = data.borrow_watched();
        let acked_ago = data.last_quorum_acked.map(|acked| acked.elapsed());
        let caught_up = data.last_applied.is_some_and(|at| **at.committed_leader_id() == term);
        Some(Leading { term: Term(term), acked_ago, alone, caught_up })
    }

    /// The group as this node sees it.
    pub(crate) fn status(&self, lease_until: Time) -> ShardStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        };
        let group = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        ShardStatus {
            shard: self.shard,
            role,
            leader: metrics.current_leader.map(NodeId),
            term: Term(metrics.current_term),
            last_log: metrics.last_log_index.map(LogIndex),
            applied: metrics.last_applied.map(|at| LogIndex(at.index)),
            voters: group.voter_ids().map(NodeId).collect(),
            learners: group.learner_ids().map(NodeId).collect(),
            matched: matched
                .map(|(node, at)| (NodeId(*node), at.map(|at| LogIndex(at.index))))
                .collect(),
            changing: group.get_joint_config().len() > 1
                || metrics.membership_config.log_id()
                    != metrics.committed_membership_config.log_id(),
            lease_until,
        }
    }

    /// Adds a node that copies the log and has no vote. Does not wait until it has caught up.
    pub(crate) async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let added = self.raft.add_learner(node.0, EmptyNode::default(), false).await;
        added.map(|_| ()).map_err(|error| self.change_error(error))
    }

    /// Sets who votes. Who voted and is not in the list leaves the group.
    pub(crate) async fn change_voters(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let voters: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
        if voters.is_empty() || voters.len() > GROUP_NODES_MAX {
            return Err(ChangeError::Size(voters.len()));
        }
        // Only members may become voters: what they miss would otherwise hold up every commit.
        let status = self.status(Time(0));
        let is_member =
            |id: &u64| status.voters.iter().chain(&status.learners).any(|node| node.0 == *id);
        if let Some(stranger) = voters.iter().find(|id| !is_member(id)) {
            return Err(ChangeError::NotMember(NodeId(*stranger)));
        }
        if self.leading().is_some() && !voters.contains(&self.node.0) {
            return Err(ChangeError::RemovesLeader);
        }
        let changed = self.raft.change_membership(voters, false).await;
        changed.map(|_| ()).map_err(|error| self.change_error(error))
    }

    /// Removes a node that has no vote.
    pub(crate) async fn remove_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let removed = ChangeMembers::RemoveNodes(BTreeSet::from([node.0]));
        let changed = self.raft.change_membership(removed, false).await;
        changed.map(|_| ()).map_err(|error| self.change_error(error))
    }

    /// Offers the leadership to another node. The caller has let all leases run out. Gives a term
    /// such that the offer was made in it or in an earlier one.
    ///
    /// An offer cannot be taken back, and who gets it is elected although the voters have heard of
    /// a leader lately. (So would be whoever is told to stand for election: nobody ever is.)
    pub(crate) async fn transfer(&self, to: NodeId) -> Result<Term, ChangeError> {
        let asked = self.raft.trigger().transfer_leader(to.0).await;
        asked.map_err(|error| ChangeError::Other(error.to_string()))?;
        // Questions to the library's task are answered in order: if this node led, the offer has
        // been made by now. In a term that it does not lead it has made none.
        let me = self.node.0;
        let seen = self.raft.with_raft_state(move |state| {
            let ballot = convert::ballot(state.vote_ref());
            let leads = ballot.committed && ballot.node == me;
            if leads { ballot.term } else { ballot.term.saturating_sub(1) }
        });
        seen.await.map(Term).map_err(|error| ChangeError::Other(error.to_string()))
    }

    fn change_error(&self, error: RaftError<Types, ClientWriteError<Types>>) -> ChangeError {
        let error = match error {
            RaftError::APIError(error) => error,
            RaftError::Fatal(error) => return ChangeError::Other(error.to_string()),
        };
        match error {
            ClientWriteError::ForwardToLeader(forward) => {
                ChangeError::NotLeader(self.other_leader(&forward))
            }
            ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_),
            ) => ChangeError::InProgress,
            ClientWriteError::ChangeMembershipError(ChangeMembershipError::LearnerNotFound(
                missing,
            )) => ChangeError::NotMember(NodeId(missing.node_id)),
            other => ChangeError::Other(other.to_string()),
        }
    }

    pub(crate) async fn stop(&self) {
        if let Some((log, snapshots)) = &self.files {
            snapshots.close();
            if log.is_full() {
                // The group may be waiting for room, and would not end before there is some.
                log.close().await;
            }
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(shard = %self.shard, %error, "a group did not end cleanly");
        }
        if let Some((log, snapshots)) = &self.files {
            log.close().await;
            snapshots.release().await;
        }
    }
}

/// How long a call of the group may take: the library's own patience with a heartbeat is its
/// interval; what carries entries may take longer on a busy host.
pub(crate) fn patience(timing: &Timing, asked: Duration) -> Duration {
    asked.max(Duration::from_millis(timing.election_min_ms))
}
