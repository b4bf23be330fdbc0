//! What the leader of a shard's group does next so that the group matches the map: at most one
//! action at a time, the next one decided afresh from what is then seen.
//!
//! Pure. Two gates stand here and nowhere else: nobody votes before it has caught up, and nobody is
//! handed a shard before it has caught up. A dead voter is taken out only together with a set of
//! voters of which a majority has caught up.

use crate::map::{Map, MemberState};
use core::fmt;
use nearstate_store::{LogIndex, NodeId, ShardId, Term, Time};

/// Entries that a learner may be behind and yet become a voter.
pub const VOTER_LAG_MAX: u64 = 128;
/// Entries that a voter may be behind and yet be handed the shard.
pub const OWNER_LAG_MAX: u64 = 64;

/// Longest silence of a node that may be handed a shard. What it has of the log says nothing about
/// whether it still runs, and a handover to a node that does not costs an election.
pub const HANDOVER_SILENCE_MS_MAX: u64 = 200;

/// A shard's group, as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which shard.
    pub shard: ShardId,
    /// The node that looks.
    pub me: NodeId,
    /// The present term.
    pub term: Term,
    /// Who leads, as far as is known.
    pub leader: Option<NodeId>,
    /// Whether this node owns the shard: it leads and holds the lease.
    pub is_owner: bool,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who learns.
    pub learners: Vec<NodeId>,
    /// Up to where each other replica's log is known to match. Only the leader knows.
    pub matched: Vec<(NodeId, LogIndex)>,
    /// End of this node's log.
    pub last: LogIndex,
    /// Whether a change of the group is under way.
    pub is_changing: bool,
}

impl GroupStatus {
    /// Whether this node leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader == Some(self.me)
    }

    /// How many entries a replica is behind; `None` if it was never heard of.
    #[must_use]
    pub fn lag(&self, node: NodeId) -> Option<u64> {
        if node == self.me {
            return Some(0);
        }
        let (_, matched) = self.matched.iter().find(|(id, _)| *id == node)?;
        Some(self.last.0.saturating_sub(matched.0))
    }

    fn within(&self, node: NodeId, lag_max: u64) -> bool {
        self.lag(node).is_some_and(|lag| lag <= lag_max)
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupAction {
    /// Let a node learn.
    AddLearner(NodeId),
    /// Make these the voters.
    ChangeVoters(Vec<NodeId>),
    /// Hand the shard to this voter.
    TransferLeader(NodeId),
    /// Forget a learner that nobody wants.
    RemoveLearner(NodeId),
    /// Nothing; the reason is for the log.
    Nothing(Waiting),
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The group is what the map wants.
    Settled,
    /// Another node leads, or nobody.
    NotLeader,
    /// The map knows no such shard.
    NoSuchShard,
    /// The change before is not through.
    Changing,
    /// This wanted replica is not close enough to the end of the log.
    CatchUp(NodeId),
    /// Of the wanted voters no majority has caught up.
    Majority,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settled => f.write_str("the group is as wanted"),
            Self::NotLeader => f.write_str("another node leads"),
            Self::NoSuchShard => f.write_str("the map does not know the shard"),
            Self::Changing => f.write_str("a change is under way"),
            Self::CatchUp(node) => write!(f, "{node} is catching up"),
            Self::Majority => f.write_str("no majority of the wanted voters has caught up"),
        }
    }
}

/// The next action of this node for this shard.
#[must_use]
pub fn next_action(map: &Map, status: &GroupStatus) -> GroupAction {
    let Some(placement) = map.shard(status.shard) else {
        return GroupAction::Nothing(Waiting::NoSuchShard);
    };
    if !status.is_leader() {
        return GroupAction::Nothing(Waiting::NotLeader);
    }
    if status.is_changing {
        return GroupAction::Nothing(Waiting::Changing);
    }
    let group = Group { map, status, wanted: &placement.replicas, preferred: placement.preferred };
    // The shard is handed over before the group is rebuilt: what is wanted of a node that is
    // suspected must not wait for a newcomer to catch up.
    group
        .transfer()
        .or_else(|| group.add_learner())
        .or_else(|| group.change_voters())
        .or_else(|| group.remove_learner())
        .unwrap_or_else(|| GroupAction::Nothing(group.waits_for()))
}

/// Whether an action may be taken now, given when each peer was last heard of: a shard is handed
/// only to a node that was heard of just now.
#[must_use]
pub fn may_act(action: &GroupAction, now: Time, contacts: &[(NodeId, Time)]) -> bool {
    let GroupAction::TransferLeader(to) = action else { return true };
    let heard = contacts.iter().find(|(node, _)| node == to);
    heard.is_some_and(|(_, at)| now <= at.plus_ms(HANDOVER_SILENCE_MS_MAX))
}

struct Group<'a> {
    map: &'a Map,
    status: &'a GroupStatus,
    wanted: &'a [NodeId],
    preferred: NodeId,
}

impl Group<'_> {
    fn is_alive(&self, node: NodeId) -> bool {
        self.map.state_of(node) == MemberState::Alive
    }

    fn is_voter(&self, node: NodeId) -> bool {
        self.status.voters.contains(&node)
    }

    fn transfer(&self) -> Option<GroupAction> {
        let to = self.preferred;
        let ready = to != self.status.me
            && self.is_voter(to)
            && self.is_alive(to)
            && self.status.within(to, OWNER_LAG_MAX);
        ready.then_some(GroupAction::TransferLeader(to))
    }

    fn add_learner(&self) -> Option<GroupAction> {
        let known = |node: &NodeId| self.is_voter(*node) || self.status.learners.contains(node);
        let missing = self.wanted.iter().find(|node| !known(node) && self.is_alive(**node));
        missing.map(|node| GroupAction::AddLearner(*node))
    }

    /// The voters that can be had now: wanted ones that vote already or have caught up, and this
    /// node while it leads. `None` while a wanted node that is alive is still catching up: one
    /// change takes them all in, so that a group does not live through sizes nobody asked for.
    fn target(&self) -> Option<Vec<NodeId>> {
        let mut target = Vec::new();
        for &node in self.wanted {
            if self.is_voter(node) || self.status.within(node, VOTER_LAG_MAX) {
                target.push(node);
            } else if self.is_alive(node) {
                return None;
            }
        }
        if !target.contains(&self.status.me) {
            target.push(self.status.me);
        }
        target.sort_unstable();
        Some(target)
    }

    fn change_voters(&self) -> Option<GroupAction> {
        let target = self.target()?;
        let mut voters = self.status.voters.clone();
        voters.sort_unstable();
        (target != voters && self.has_majority(&target))
            .then_some(GroupAction::ChangeVoters(target))
    }

    fn has_majority(&self, target: &[NodeId]) -> bool {
        let ready = target.iter().filter(|node| self.status.within(**node, VOTER_LAG_MAX));
        ready.count() * 2 > target.len()
    }

    fn remove_learner(&self) -> Option<GroupAction> {
        let surplus = self.status.learners.iter().find(|node| !self.wanted.contains(node));
        surplus.map(|node| GroupAction::RemoveLearner(*node))
    }

    fn waits_for(&self) -> Waiting {
        let late = |node: &NodeId| !self.is_voter(*node) && self.is_alive(*node);
        if let Some(node) = self.wanted.iter().copied().find(late) {
            return Waiting::CatchUp(node);
        }
        let mut wanted = self.wanted.to_vec();
        let mut voters = self.status.voters.clone();
        wanted.sort_unstable();
        voters.sort_unstable();
        if self.preferred != self.status.me && self.is_alive(self.preferred) {
            Waiting::CatchUp(self.preferred)
        } else if voters == wanted {
            Waiting::Settled
        } else {
            Waiting::Majority
        }
    }
}

#[cfg(test)]
mod tests;
