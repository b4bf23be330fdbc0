//! The narrow words of replication that the rest of the program sees: settings, status, errors.
//!
//! Nothing here names the consensus library; `raft` translates. No clock, no socket.

use crate::machine::PayloadError;
use crate::types::{LogIndex, NodeId, ShardId, Term, Time};
use core::time::Duration;
use thiserror::Error;

/// Nodes that one shard's group may name, voters and learners together.
pub const GROUP_NODES_MAX: usize = 64;
/// Largest payload of one log entry.
pub const PAYLOAD_BYTES_MAX: usize = 256 << 10;
/// Largest snapshot that is sent or taken.
pub const SNAPSHOT_BYTES_MAX: usize = 4 << 30;

/// What an entry of the log weighs beside its payload.
pub(crate) const LOGGED_BYTES: u64 = 128;

/// When the log gives way to a snapshot of the state. A snapshot copies everything, and commits
/// wait while it does: so the log may be as long as the state is large before that is worth it, and
/// what snapshots cost stays in proportion to what is written, however large the state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Entries since the last snapshot, at most, however little they weigh.
    pub entries: u64,
    /// Bytes that were logged since the last snapshot, at most, or as many as that snapshot had if
    /// it was larger. Besides its payload, an entry counts for 128.
    pub bytes: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { entries: 10_000_000, bytes: 32 << 20 }
    }
}

impl Compaction {
    /// A snapshot after so many entries.
    #[must_use]
    pub fn after(entries: u64) -> Self {
        Self { entries, ..Self::default() }
    }

    /// Whether so many bytes since a snapshot of so many are enough for another.
    #[must_use]
    pub fn is_due(&self, logged: u64, snapshot: u64) -> bool {
        logged >= self.bytes.max(snapshot)
    }
}

/// How fast a group notices things. All in milliseconds.
///
/// Two things can happen to an owner, and they have clocks of their own. If its process *dies*, its
/// connections break at once; its followers then wait until its lease is over, `lease_ms` after
/// they heard it last, and elect another. That is what a failover costs, so the lease is short. If
/// it is only *silent* (a busy host, a pause, a cut cable), followers wait for `election_max_ms`
/// and then for a time between `election_min_ms` and `election_max_ms`; that is long, because most
/// silent owners come back. A silent owner answers no reads once its lease is over, so a short
/// lease also asks for a heartbeat every third of it: that is what it costs while nothing happens,
/// some tenths of a percent of a core for each shard and replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of an owner.
    pub heartbeat_ms: u64,
    /// A follower waits at least so long for its leader.
    pub election_min_ms: u64,
    /// And at most so long.
    pub election_max_ms: u64,
    /// How long voters refuse other candidates after they heard the owner, whatever happens: the
    /// length of the owner's lease.
    pub lease_ms: u64,
    /// Taken off the lease, for clocks that run at different rates and for the way from the check
    /// to the wire.
    pub lease_margin_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 12,
            election_min_ms: 250,
            election_max_ms: 400,
            lease_ms: 40,
            lease_margin_ms: 8,
        }
    }
}

/// A [`Timing`] that would not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TimingError {
    /// No heartbeat at all.
    #[error("the heartbeat interval must be at least 1 ms")]
    NoHeartbeat,
    /// Followers would give up on a healthy leader.
    #[error("election_min {min} ms must be at least three heartbeats of {heartbeat} ms")]
    ElectionTooSoon {
        /// The shortest election timeout.
        min: u64,
        /// The heartbeat interval.
        heartbeat: u64,
    },
    /// No room to draw an election timeout from.
    #[error("election_min {min} ms must be less than election_max {max} ms")]
    ElectionRange {
        /// The shortest.
        min: u64,
        /// The longest.
        max: u64,
    },
    /// The lease would end before the next heartbeat can renew it.
    #[error(
        "what is left of the lease after the margin of {margin} ms must be more than two \
         heartbeats"
    )]
    MarginTooLarge {
        /// The margin.
        margin: u64,
    },
    /// Silent owners would be voted out while they answer reads.
    #[error("the lease of {lease} ms must not be longer than election_max of {max} ms")]
    LeaseTooLong {
        /// The lease.
        lease: u64,
        /// The longest election timeout.
        max: u64,
    },
    /// Longer than anybody wants to wait.
    #[error("election_max must be at most 60000 ms, not {max}")]
    TooSlow {
        /// The longest election timeout.
        max: u64,
    },
}

impl Timing {
    /// Whether a group works with it.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn validate(self) -> Result<Self, TimingError> {
        let Self { heartbeat_ms, election_min_ms, election_max_ms, lease_ms, lease_margin_ms } =
            self;
        if heartbeat_ms == 0 {
            return Err(TimingError::NoHeartbeat);
        }
        if election_max_ms > 60_000 {
            return Err(TimingError::TooSlow { max: election_max_ms });
        }
        if election_min_ms >= election_max_ms {
            return Err(TimingError::ElectionRange { min: election_min_ms, max: election_max_ms });
        }
        if heartbeat_ms.saturating_mul(3) > election_min_ms {
            let (min, heartbeat) = (election_min_ms, heartbeat_ms);
            return Err(TimingError::ElectionTooSoon { min, heartbeat });
        }
        if lease_ms > election_max_ms {
            return Err(TimingError::LeaseTooLong { lease: lease_ms, max: election_max_ms });
        }
        if lease_ms.saturating_sub(lease_margin_ms) <= 2 * heartbeat_ms {
            return Err(TimingError::MarginTooLarge { margin: lease_margin_ms });
        }
        Ok(self)
    }

    /// What an owner's lease is worth, counted from the sending of what a quorum answered.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms.saturating_sub(self.lease_margin_ms))
    }
}

/// What a node knows of a shard's group at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In no group yet, or catching up: has no vote.
    Learner,
    /// Follows a leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads. The owner is the leader that also holds a lease.
    Leader,
    /// The group's instance on this node has ended.
    Stopped,
}

/// A shard's group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which shard.
    pub shard: ShardId,
    /// This node's part.
    pub role: Role,
    /// Who leads, if known.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: Term,
    /// The last entry of this node's log.
    pub last_log: Option<LogIndex>,
    /// The last entry applied here.
    pub applied: Option<LogIndex>,
    /// Who votes, sorted.
    pub voters: Vec<NodeId>,
    /// Who catches up, sorted.
    pub learners: Vec<NodeId>,
    /// On the leader: how far each replica's log agrees with its own.
    pub matched: Vec<(NodeId, Option<LogIndex>)>,
    /// Whether a change of the group is under way.
    pub changing: bool,
    /// Until when this node's lease lasts; long ago if it has none.
    pub lease_until: Time,
}

impl ShardStatus {
    /// Whether this node leads and its lease is not over.
    #[must_use]
    pub fn owns(&self, now: Time) -> bool {
        self.role == Role::Leader && now < self.lease_until
    }
}

/// Why a proposal has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// This node has no replica of the shard and knows none.
    #[error("this node has no {0}")]
    NoSuchShard(ShardId),
    /// The payload is not what the shard's machine takes.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// Larger than an entry may be.
    #[error("a payload of {0} bytes is larger than the limit of {PAYLOAD_BYTES_MAX}")]
    TooLarge(usize),
    /// Nobody took it before the deadline. It had no effect.
    #[error("no owner took the proposal before its deadline; it had no effect, try again")]
    NoOwner,
    /// It may or may not take effect.
    #[error(
        "whether the proposal takes effect is unknown; propose again only what may happen twice"
    )]
    Unknown,
    /// Too much under way. It had no effect.
    #[error("too many proposals are under way; it had no effect, try again")]
    Busy,
    /// The store is being shut down.
    #[error("the store has been shut down")]
    Stopped,
    /// The owner's disk is full, and nobody else took over before the deadline. It had no effect.
    #[error(
        "the owner's disk is full and the proposal had no effect: free some space there, it goes \
         on by itself"
    )]
    DiskFull,
}

/// Why a call to another node has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// There is no connection to it now.
    #[error("there is no connection to {0}")]
    Unreachable(NodeId),
    /// The connection's queue is full.
    #[error("too much waits to be sent")]
    Busy,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke while the answer was awaited.
    #[error("the connection broke")]
    Broken,
    /// The answer is not what was asked for.
    #[error("the answer makes no sense: {0}")]
    Garbage(String),
    /// The other end refused.
    #[error("refused: {0}")]
    Refused(String),
    /// The request is larger than a message may be.
    #[error("a request of {0} bytes does not fit into a message")]
    TooLarge(usize),
}

/// Why a change of a group was not made, or not seen to be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// This node has no replica of the shard.
    #[error("this node has no {0}")]
    NoSuchShard(ShardId),
    /// Only the leader changes its group.
    #[error("this node does not lead the shard; ask {0:?}")]
    NotLeader(Option<NodeId>),
    /// Another change is not finished, the leader is too new, or it has offered its office to
    /// another node.
    #[error("the group is being changed already; try again")]
    InProgress,
    /// A leader does not remove itself: its lease would outlive its office.
    #[error("transfer the leadership first: a leader does not remove itself")]
    RemovesLeader,
    /// The node is no caught-up member.
    #[error("{0} is not a member that could take this part; add it as a learner first")]
    NotMember(NodeId),
    /// An empty group, or too many nodes.
    #[error("a group has 1 to {GROUP_NODES_MAX} nodes, not {0}")]
    Size(usize),
    /// The node would refuse to lead.
    #[error("{0} cannot take over now: its disk is full")]
    NotReady(NodeId),
    /// It did not happen in time.
    #[error("it did not happen in time; look at the status and try again")]
    Timeout,
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_timing_works_and_broken_ones_say_why() {
        let good = Timing::default();
        assert_eq!(good.validate(), Ok(good));
        assert_eq!(good.lease(), Duration::from_millis(32));
        let cases = [
            (Timing { heartbeat_ms: 0, ..good }, TimingError::NoHeartbeat),
            (
                Timing { heartbeat_ms: 100, ..good },
                TimingError::ElectionTooSoon { min: 250, heartbeat: 100 },
            ),
            (
                Timing { election_min_ms: 400, ..good },
                TimingError::ElectionRange { min: 400, max: 400 },
            ),
            (Timing { lease_margin_ms: 20, ..good }, TimingError::MarginTooLarge { margin: 20 }),
            (Timing { lease_ms: 401, ..good }, TimingError::LeaseTooLong { lease: 401, max: 400 }),
            (Timing { election_max_ms: 70_000, ..good }, TimingError::TooSlow { max: 70_000 }),
        ];
        for (timing, error) in cases {
            assert_eq!(timing.validate(), Err(error));
        }
    }
}
