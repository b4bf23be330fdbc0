//! A shard's second task: what is asked of it becomes entries of the log, many questions an entry.
//!
//! The edge of [`crate::group_commit`], which decides when: it takes questions in, writes entries,
//! and answers everybody who has a part in one.

#![expect(clippy::disallowed_methods, reason = "stamps entries, and waits")]

use crate::batch::{batch_header, encode_transaction};
use crate::clock::{boot_now, wall_ms};
use crate::connection::Answer;
use crate::group_commit::{GroupCommit, GroupLimits, Weight};
use crate::machine::Reply;
use crate::raft::{Payload, WriteError};
use crate::refusal_counts::RefusalCounts;
use crate::shard::Shard;
use crate::transaction::{Outcome, Transaction};
use crate::types::Term;
use crate::wire::{NotServed, Response};
use core::sync::atomic::Ordering;
use core::time::Duration;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rkyv::util::AlignedVec;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// Questions that may wait for the group commit of a shard.
pub(crate) const ASKS_MAX: usize = 4096;

/// Transactions that want to be in an entry, and who wants to know.
pub(crate) struct Ask {
    /// As they stand in a batch.
    encoded: Vec<u8>,
    count: usize,
    route: Route,
}

/// Where outcomes go.
pub(crate) enum Route {
    Local(oneshot::Sender<Result<Vec<Outcome>, NotServed>>),
    Remote(Answer),
}

impl Route {
    fn answer(self, result: Result<Vec<Outcome>, NotServed>) {
        match self {
            // Who asked may have given up.
            Self::Local(sender) => drop(sender.send(result)),
            Self::Remote(answer) => answer.send(&match result {
                Ok(outcomes) => Response::Outcomes(outcomes),
                Err(reason) => Response::NotServed(reason),
            }),
        }
    }

    /// Says no. What goes to another node is counted where it is sent.
    fn refuse(self, reason: NotServed, counts: &RefusalCounts) {
        if matches!(self, Self::Local(_)) {
            counts.count(reason);
        }
        self.answer(Err(reason));
    }
}

impl Ask {
    pub(crate) fn new<'a>(
        transactions: impl Iterator<Item = &'a Transaction>,
        route: Route,
    ) -> Self {
        let (mut encoded, mut count) = (Vec::new(), 0);
        for transaction in transactions {
            encode_transaction(transaction, &mut encoded);
            count += 1;
        }
        Self { encoded, count, route }
    }

    /// Says why it will not be in an entry.
    pub(crate) fn refuse(self, reason: NotServed, counts: &RefusalCounts) {
        self.route.refuse(reason, counts);
    }

    fn weight(&self) -> Weight {
        Weight { units: self.count, bytes: self.encoded.len() }
    }
}

impl Shard {
    /// The second task: group commit.
    pub(crate) async fn commit_loop(self: Arc<Self>, mut asked: mpsc::Receiver<Ask>) {
        let mut group = GroupCommit::new(GroupLimits::default());
        let mut flying = FuturesUnordered::new();
        let mut news = Vec::new();
        loop {
            let linger = group.ripe_at().map(|at| Duration::from_nanos(at.since_ns(boot_now())));
            tokio::select! {
                biased;
                Some(()) = flying.next(), if !flying.is_empty() => group.done(),
                count = asked.recv_many(&mut news, ASKS_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
                () = sleep(linger.unwrap_or_default()), if linger.is_some() => {}
            }
            let now = boot_now();
            for ask in news.drain(..) {
                let weight = ask.weight();
                if let Err(ask) = group.offer(now, weight, ask) {
                    ask.refuse(NotServed::Busy, &self.parts.refusals);
                }
            }
            while let Some(batch) = group.take(now) {
                flying.push(self.commit(batch));
            }
            self.backlog.store(group.waiting_units(), Ordering::Relaxed);
        }
    }

    /// Writes one entry and tells everybody who has a part in it.
    async fn commit(&self, asks: Vec<Ask>) {
        let count = asks.iter().map(|ask| ask.count).sum();
        let term = self.replica.leading().map_or(Term(0), |leading| leading.term);
        let time_ms = self.replica.time().stamp(term, boot_now(), wall_ms());
        let header = batch_header(time_ms, 0, count);
        let bytes = asks.iter().map(|ask| ask.encoded.len()).sum::<usize>();
        let mut payload = AlignedVec::with_capacity(header.len() + bytes);
        payload.extend_from_slice(&header);
        let mut routes = Vec::with_capacity(asks.len());
        for Ask { encoded, count, route } in asks {
            payload.extend_from_slice(&encoded);
            routes.push((count, route));
        }
        let payload = Payload(Arc::new(payload));
        // Followers would refuse what the machine does not take, and wait for ever.
        let result = match self.replica.check(&payload) {
            Ok(()) => self.replica.write(payload).await,
            Err(error) => {
                tracing::error!(shard = %self.id, %error, "a batch is not acceptable");
                Err(WriteError::Malformed)
            }
        };
        let refusal = match result {
            Ok(Reply::Outcomes(outcomes)) if outcomes.len() == count => {
                let mut outcomes = outcomes.into_iter();
                for (count, route) in routes {
                    route.answer(Ok(outcomes.by_ref().take(count).collect()));
                }
                return;
            }
            Ok(_) => NotServed::Malformed,
            Err(WriteError::NotLeader(leader)) => {
                NotServed::NotOwner(leader.map_or(0, |leader| leader.0))
            }
            Err(WriteError::Unknown) => NotServed::Unknown,
            Err(WriteError::Malformed) => NotServed::Malformed,
            Err(WriteError::Stopped) => NotServed::Stopped,
            Err(WriteError::DiskFull) => NotServed::DiskFull,
        };
        for (_, route) in routes {
            route.refuse(refusal, &self.parts.refusals);
        }
    }
}
