//! What followers do when their owner's connection breaks.
//!
//! A process that dies takes its connections with it, and its peers notice within a millisecond. A
//! broken connection proves nothing: the owner may live on and answer reads until its lease is
//! over. So a follower waits until then, by its own clock from when it heard the owner last; asks
//! the other voters whether they too have heard nothing for so long; and only then stands for
//! election, with a vote request that says why. Each voter looks at its own clock again before it
//! votes, and takes nothing more from the old owner while it decides ([`crate::raft::Replica`]):
//! whatever a quorum acknowledged to it was sent a lease ago, so its lease is over (promise P2). An
//! owner that is only silent keeps its connections and is not voted out here.
//!
//! Followers stand one after the other, in the order of their ids, so that they do not split the
//! votes; if they do all the same, they try again with growing pauses.

#![expect(clippy::disallowed_methods, reason = "waits")]

use crate::clock::boot_now;
use crate::consensus::{Role, ShardStatus};
use crate::shard::Shard;
use crate::transport::Transport;
use crate::types::{NodeId, Time};
use crate::wire::{AskVote, Ballot, Request, Response};
use core::time::Duration;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use tokio::time::sleep;

/// How much later each follower stands than the one before it.
const STAGGER_MS: u64 = 6;
/// Between two tries, if another voter has heard the owner later than this one.
const RETRY: Duration = Duration::from_millis(2);
/// Until a split vote is tried again the first time.
const SPLIT_RETRY: Duration = Duration::from_millis(15);
const SPLIT_RETRY_MAX: Duration = Duration::from_millis(500);
/// Patience with another voter's opinion.
const PATIENCE: Duration = Duration::from_millis(50);
/// Nothing to do until something happens.
const IDLE: Duration = Duration::from_secs(3600);

/// A follower whose owner's connection is broken.
struct Orphan {
    status: ShardStatus,
    leader: NodeId,
    /// Not before: the owner's lease is over, and it is this follower's turn.
    due: Time,
}

impl Shard {
    /// Runs as long as the shard.
    pub(crate) async fn succession_loop(self: Arc<Self>, transport: Arc<Transport>) {
        let mut links = transport.links();
        let mut split_retry = SPLIT_RETRY;
        loop {
            let moved = self.moved.notified();
            let status = self.status();
            let wait = if is_split(&status) {
                let rank = self.rank(&status, None);
                sleep(split_retry * (rank as u32 + 1)).await;
                split_retry = (split_retry * 2).min(SPLIT_RETRY_MAX);
                if is_split(&self.status()) {
                    self.replica.elect().await;
                }
                RETRY
            } else {
                split_retry = SPLIT_RETRY;
                match self.orphan(&transport, status) {
                    None => IDLE,
                    Some(orphan) => self.succeed(&transport, orphan).await,
                }
            };
            tokio::select! {
                () = moved => {}
                changed = links.changed() => if changed.is_err() { return },
                () = sleep(wait) => {}
            }
        }
    }

    fn orphan(&self, transport: &Transport, status: ShardStatus) -> Option<Orphan> {
        let leader = status.leader.filter(|leader| *leader != self.node)?;
        let follows =
            status.role == Role::Follower && status.voters.contains(&self.node) && !status.changing;
        let may = self.has_part() && !self.replica.disk_is_full();
        if !follows || !may || transport.connection(leader).is_some() {
            return None;
        }
        let turn = STAGGER_MS * self.rank(&status, Some(leader)) as u64;
        let due = self.replica.quiet_from().plus_ms(turn);
        Some(Orphan { status, leader, due })
    }

    /// How many voters stand before this one.
    fn rank(&self, status: &ShardStatus, gone: Option<NodeId>) -> usize {
        status.voters.iter().filter(|id| **id < self.node && Some(**id) != gone).count()
    }

    /// Stands for election if it is time and the others agree; gives when to look again.
    async fn succeed(&self, transport: &Transport, orphan: Orphan) -> Duration {
        let left = orphan.due.since_ns(boot_now());
        if left > 0 {
            return Duration::from_nanos(left);
        }
        if self.others_agree(transport, &orphan).await {
            tracing::info!(shard = %self.id, gone = %orphan.leader, "stands for election");
            self.replica.succeed(orphan.status.term, orphan.leader).await;
            return SPLIT_RETRY;
        }
        RETRY
    }

    /// Whether a quorum, this node included, would vote for this one now.
    async fn others_agree(&self, transport: &Transport, orphan: &Orphan) -> bool {
        let Orphan { status, leader, .. } = orphan;
        let ballot = Ballot { term: status.term.0 + 1, node: self.node.0, committed: false };
        let last_log = self.replica.last_log();
        let ask = AskVote { ballot, last_log, transfer: true, pre: true, orphaned: true };
        let request = Request::Vote(self.id, ask);
        let others = status.voters.iter().filter(|id| **id != self.node && *id != leader);
        let asked = others.map(|id| transport.call(*id, &request, PATIENCE));
        let mut answers: FuturesUnordered<_> = asked.collect();
        let mut agree = 1;
        while agree * 2 <= status.voters.len() {
            match answers.next().await {
                Some(Ok(Response::Vote(voted))) => agree += usize::from(voted.granted),
                Some(_) => {}
                None => return false,
            }
        }
        true
    }
}

/// An election that nobody won.
fn is_split(status: &ShardStatus) -> bool {
    status.role == Role::Candidate && status.leader.is_none() && status.voters.len() > 1
}
