//! How a replica votes and stands for election: as the library does, and sooner when an owner's
//! process is gone and its lease is over (see [`crate::succession`]).

use super::{Replica, convert};
use crate::clock::boot_now;
use crate::types::{NodeId, Term, Time};
use crate::wire::{AskVote, Ballot, NotServed, Position, Voted};
use core::sync::atomic::{AtomicU64, Ordering};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use std::sync::Arc;

/// What this node does not promise to its leader any more when it votes for another although the
/// library would still refuse to (see [`crate::succession`]).
///
/// Neither word guards the other by a lock. Who takes in an append first notes that the leader was
/// heard and then looks at the fence; who votes first puts up the fence and then looks when the
/// leader was heard. So one of the two sees the other: what was acknowledged was heard a lease
/// before the vote.
#[derive(Default)]
pub(super) struct Voting {
    /// When a leader was heard last.
    pub(super) heard: AtomicU64,
    /// Nothing is taken from leaders of this term and older ones.
    pub(super) fence: AtomicU64,
    /// The last term whose leader was gone when this node stood for election.
    pub(super) orphan_term: Arc<AtomicU64>,
    /// One decision at a time: each takes the fence down again.
    turn: tokio::sync::Mutex<()>,
}

impl Replica {
    pub(crate) async fn vote(&self, ask: AskVote) -> Result<Voted, NotServed> {
        if !ask.orphaned {
            return self.vote_as_ever(ask).await;
        }
        let _turn = self.voting.turn.lock().await;
        self.fence(ask.ballot.term.saturating_sub(1));
        let granted = match self.leads() || !self.is_quiet() {
            true => Ok(self.refusal()),
            false if ask.pre => Ok(Voted {
                granted: ask.last_log.map(|at| at.index) >= self.last_log().map(|at| at.index),
                ..self.refusal()
            }),
            false => self.vote_as_ever(ask).await,
        };
        self.fence(0);
        granted
    }

    fn refusal(&self) -> Voted {
        let metrics = self.raft.server_metrics();
        let ballot = convert::ballot(&metrics.borrow_watched().vote);
        Voted { ballot, granted: false, last_log: None }
    }

    /// Nothing more is taken from leaders of this term; 0 ends that.
    pub(super) fn fence(&self, term: u64) {
        self.voting.fence.store(term, Ordering::SeqCst);
    }

    /// Notes that a leader was heard; whether what it says may be taken in.
    pub(super) fn hear(&self, term: u64) -> Result<(), NotServed> {
        self.voting.heard.fetch_max(boot_now().0, Ordering::SeqCst);
        if self.voting.fence.load(Ordering::SeqCst) >= term {
            return Err(NotServed::Busy);
        }
        Ok(())
    }

    /// When the lease of the leader that was heard last is over.
    pub(crate) fn quiet_from(&self) -> Time {
        Time(self.voting.heard.load(Ordering::SeqCst)).plus_ms(self.lease_ms)
    }

    fn is_quiet(&self) -> bool {
        boot_now() >= self.quiet_from()
    }

    fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// The end of this node's log.
    pub(crate) fn last_log(&self) -> Option<Position> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let at = |index| Position { term: metrics.current_term, index };
        metrics.last_log_index.map(at)
    }

    /// Stands for election in the place of a leader that is gone, if its lease is over.
    pub(crate) async fn succeed(&self, term: Term, leader: NodeId) {
        let _turn = self.voting.turn.lock().await;
        self.fence(term.0);
        if self.is_quiet() {
            self.voting.orphan_term.store(term.0, Ordering::SeqCst);
            let gone = Ballot { term: term.0, node: leader.0, committed: true };
            let ask = TransferLeaderRequest::new(convert::vote(&gone), self.node.0, None);
            // Refused: another leader was heard meanwhile, or the group has stopped.
            let _ = self.raft.handle_transfer_leader(ask).await;
        }
        self.fence(0);
    }

    /// Tries an election again that nobody won, as the library's own timer does: it asks first
    /// whether it would win, and not at all while this node follows a leader.
    #[expect(clippy::disallowed_methods, reason = "not forced: with a round of pre-votes")]
    pub(crate) async fn elect(&self) {
        // An error: the group has stopped.
        let _ = self.raft.trigger().elect(true).await;
    }

    async fn vote_as_ever(&self, ask: AskVote) -> Result<Voted, NotServed> {
        let (request, pre) = (convert::vote_request(&ask), ask.pre);
        let answer =
            if pre { self.raft.pre_vote(request).await } else { self.raft.vote(request).await };
        answer.map(|answer| convert::voted(&answer)).map_err(|_| NotServed::Stopped)
    }
}
