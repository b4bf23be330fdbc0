//! An owner's fourth task: every now and then it asks its machine what is to be done because time
//! has passed, and proposes that.
//!
//! The edge: it sleeps and reads clocks, and decides nothing; when an entry has expired is the
//! machine's business ([`crate::flow_upkeep`]). The machine is asked for small pieces of work, and
//! other tasks run in between. Expiries go the way of all transactions. Notes of what was seen go
//! in entries of their own, one at a time, and wait when the group has much to do, but no longer
//! than a second ([`WAITS_MAX`]). Records of port blocks go to the log of the process.

#![expect(clippy::disallowed_methods, reason = "looks every now and then")]

use crate::batch::encode_batch;
use crate::clock::{boot_now, wall_ms};
use crate::committer::{Ask, Route};
use crate::raft::Payload;
use crate::shard::Shard;
use crate::transaction::{Batch, Outcome, SeenNote, TransactionId};
use crate::types::{NodeId, Term};
use crate::upkeep::{Expiry, Upkeep, UpkeepClock};
use crate::wire::{NotServed, TRANSACTIONS_MAX};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use futures::future::join_all;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// Between two looks: a tick of the machine's timers.
const EVERY: Duration = Duration::from_millis(64);
/// How long what was proposed is waited for. Whatever came of it then, the timers come up again.
const PATIENCE: Duration = Duration::from_secs(1);
/// What records of blocks are logged as; see [`crate::block_journal`].
const BLOCK_LOG: &str = "nearstate::blocks";
/// The number of this task among the askers of its node.
const CLIENT: u64 = 0xffff;

/// What an owner did for a shard beside answering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpkeepCounts {
    /// Expiries that took effect.
    pub expired: u64,
    /// Expiries that did not, because a refresh or another proposal was faster.
    pub outrun: u64,
    /// Expiries of which nothing is known, or that were refused; they are proposed again.
    pub undecided: u64,
    /// Notes of what was seen that all replicas have.
    pub told: u64,
    /// Rounds in which notes had to wait because the group was busy.
    pub waited: u64,
}

/// The same, while they rise.
#[derive(Debug, Default)]
pub(crate) struct UpkeepCounters {
    expired: AtomicU64,
    outrun: AtomicU64,
    undecided: AtomicU64,
    told: AtomicU64,
    waited: AtomicU64,
}

impl UpkeepCounters {
    pub(crate) fn read(&self) -> UpkeepCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UpkeepCounts {
            expired: load(&self.expired),
            outrun: load(&self.outrun),
            undecided: load(&self.undecided),
            told: load(&self.told),
            waited: load(&self.waited),
        }
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// Looks in a row, about a second of them, in which notes may wait for a busy group.
const WAITS_MAX: u32 = 15;
/// Bits of a serial that count within a term.
const SERIAL_BITS: u32 = 40;

/// Ids for the proposals of one owner. A node with a memory comes back under its old name, and what
/// it proposed before is remembered: so serials go on from term to term, of which each life of a
/// node that owns a shard has one of its own.
struct Ids {
    client: u64,
    term: Term,
    serial: u64,
}

impl Ids {
    fn of(node: NodeId) -> Self {
        Self { client: node.0 << 16 | CLIENT, term: Term(0), serial: 0 }
    }

    /// To be called before the first id in a term.
    fn enter(&mut self, term: Term) {
        if term > self.term {
            (self.term, self.serial) = (term, term.0 << SERIAL_BITS);
        }
    }

    fn next(&mut self) -> TransactionId {
        self.serial += 1;
        TransactionId { client: self.client, serial: self.serial }
    }
}

/// Whether notes are told or wait: packets come first, but not for ever.
#[derive(Debug, Default)]
struct Notes {
    /// Looks in a row in which they have waited.
    waited: u32,
}

impl Notes {
    fn are_told(&mut self, is_busy: bool) -> bool {
        let told = !is_busy || self.waited == WAITS_MAX;
        self.waited = if told { 0 } else { self.waited + 1 };
        told
    }
}

impl Shard {
    /// The fourth task; see the module's text.
    pub(crate) async fn keep_loop(self: Arc<Self>) {
        let (mut ids, mut notes) = (Ids::of(self.node), Notes::default());
        let mut work = Upkeep::new();
        loop {
            sleep(EVERY).await;
            if let Some(term) = self.owned_term() {
                work.wants_seen = notes.are_told(self.is_busy());
                if !work.wants_seen {
                    count(&self.upkeep.waited, 1);
                }
                ids.enter(term);
                self.keep(term, &mut ids, &mut work).await;
            }
        }
    }

    /// The term in which this node owns the shard now.
    fn owned_term(&self) -> Option<Term> {
        let leading = self.replica.leading().filter(|leading| leading.caught_up)?;
        (boot_now() < self.lease_until()).then_some(leading.term)
    }

    /// Does all that is due, piece by piece.
    async fn keep(&self, term: Term, ids: &mut Ids, work: &mut Upkeep) {
        loop {
            work.clear();
            let now = boot_now();
            let time_ms = self.replica.time().stamp(term, now, wall_ms());
            if !self.replica.upkeep(&UpkeepClock { time_ms, now, term }, work) {
                return;
            }
            for record in work.blocks.drain(..) {
                tracing::debug!(target: BLOCK_LOG, shard = %self.id, "{record}");
            }
            let expiries = self.expire(work.expiries.drain(..), ids);
            let told = self.tell(term, &mut work.seen);
            tokio::join!(expiries, told);
            if !work.is_more || self.owned_term() != Some(term) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Tells everything that was seen and counted here: this node is about to hand the shard over.
    /// As much as there is time for.
    pub(crate) async fn tell_all(&self) {
        let Some(term) = self.owned_term() else { return };
        if self.replica.disk_is_full() {
            // Nothing can be told.
            return;
        }
        let mut work = Upkeep { tells_all_from: Some(0), ..Upkeep::new() };
        let all = async {
            loop {
                work.clear();
                let now = boot_now();
                let time_ms = self.replica.time().stamp(term, now, wall_ms());
                if !self.replica.upkeep(&UpkeepClock { time_ms, now, term }, &mut work) {
                    // The machine is busy for a moment.
                    tokio::task::yield_now().await;
                    continue;
                }
                self.tell(term, &mut work.seen).await;
                if !work.is_more || self.owned_term() != Some(term) {
                    return;
                }
            }
        };
        // What was not told by then is lost, as it would be with a node that dies.
        let _ = timeout(PATIENCE, all).await;
    }

    async fn expire(&self, expiries: impl Iterator<Item = Expiry>, ids: &mut Ids) {
        let mut transactions: Vec<_> =
            expiries.map(|expiry| expiry.into_transaction(ids.next())).collect();
        let mut answers = Vec::new();
        while !transactions.is_empty() {
            let rest = transactions.split_off(transactions.len().min(TRANSACTIONS_MAX));
            let (sender, answer) = oneshot::channel();
            let asked = transactions.len();
            self.ask(Ask::new(transactions.iter(), Route::Local(sender)));
            answers.push(async move { (asked, timeout(PATIENCE, answer).await) });
            transactions = rest;
        }
        for (asked, answer) in join_all(answers).await {
            let outcomes: Result<Vec<Outcome>, NotServed> =
                answer.ok().and_then(Result::ok).unwrap_or(Err(NotServed::Unknown));
            self.count_outcomes(asked, &outcomes.unwrap_or_default());
        }
    }

    fn count_outcomes(&self, asked: usize, outcomes: &[Outcome]) {
        let of = |kind: fn(&Outcome) -> bool| outcomes.iter().filter(|o| kind(o)).count();
        let expired = of(|outcome| matches!(outcome, Outcome::Committed(_)));
        let outrun = of(|outcome| matches!(outcome, Outcome::ConditionFailed(_)));
        count(&self.upkeep.expired, expired);
        count(&self.upkeep.outrun, outrun);
        count(&self.upkeep.undecided, asked - expired - outrun);
    }

    /// Puts notes into the log, in an entry of their own.
    async fn tell(&self, term: Term, seen: &mut Vec<SeenNote>) {
        if seen.is_empty() {
            return;
        }
        let time_ms = self.replica.time().stamp(term, boot_now(), wall_ms());
        let batch = Batch { time_ms, transactions: Vec::new(), seen: core::mem::take(seen) };
        let payload = Payload::copy_of(&encode_batch(&batch));
        let told = batch.seen.len();
        // The memory is used again.
        *seen = batch.seen;
        if self.replica.check(&payload).is_err() {
            tracing::error!(shard = %self.id, told, "notes are not acceptable");
            return;
        }
        if let Ok(Ok(_)) = timeout(PATIENCE, self.replica.write(payload)).await {
            count(&self.upkeep.told, told);
        } else {
            self.take_back(seen);
        }
    }

    /// What was seen is still in the marks, and is told the next time; what was counted is put
    /// back. (If the notes got through all the same it is counted twice.)
    fn take_back(&self, seen: &[SeenNote]) {
        let Some(reads) = &self.parts.reads else { return };
        let now = boot_now();
        for note in seen.iter().filter(|note| !note.tally.is_zero()) {
            reads.note_seen(&note.key, note.seen_at(now), note.tally);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_of_two_terms_or_of_two_lives_of_a_node() {
        let mut ids = Ids::of(NodeId(7));
        ids.enter(Term(3));
        let mut seen = vec![ids.next(), ids.next()];
        ids.enter(Term(3));
        seen.push(ids.next());
        ids.enter(Term(4));
        seen.push(ids.next());
        // The same node, started anew; it owns a shard in a later term, as it kept its vote.
        let mut ids = Ids::of(NodeId(7));
        ids.enter(Term(5));
        seen.push(ids.next());
        assert!(seen.is_sorted_by(|a, b| a.client == b.client && a.serial < b.serial), "{seen:?}");
    }

    #[test]
    fn notes_wait_for_a_busy_group_but_not_for_ever() {
        let mut notes = Notes::default();
        assert!(notes.are_told(false));
        for round in 0..3 {
            let waited = (0..).take_while(|_| !notes.are_told(true)).count();
            assert_eq!(waited, WAITS_MAX as usize, "round {round}");
        }
        assert!(!notes.are_told(true) && notes.are_told(false));
    }
}
