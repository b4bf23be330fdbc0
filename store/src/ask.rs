//! Transactions on their way into a log entry, and the way back for what came of them.
//!
//! They are encoded where they come in, so that the group commit only puts bytes together.

use crate::batch::encode_transaction;
use crate::connection::Answer;
use crate::group_commit::Weight;
use crate::transaction::{Outcome, Transaction};
use crate::wire::{NotServed, Response};
use tokio::sync::oneshot;

/// Transactions that want to be in an entry, and who wants to know.
pub(crate) struct Ask {
    /// As they stand in a batch.
    pub(crate) encoded: Vec<u8>,
    pub(crate) count: usize,
    pub(crate) route: Route,
}

/// Where outcomes go.
pub(crate) enum Route {
    Local(oneshot::Sender<Result<Vec<Outcome>, NotServed>>),
    Remote(Answer),
}

impl Route {
    pub(crate) fn answer(self, result: Result<Vec<Outcome>, NotServed>) {
        match self {
            // Who asked may have given up.
            Self::Local(sender) => drop(sender.send(result)),
            Self::Remote(answer) => answer.send(&match result {
                Ok(outcomes) => Response::Outcomes(outcomes),
                Err(reason) => Response::NotServed(reason),
            }),
        }
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

    pub(crate) fn weight(&self) -> Weight {
        Weight { units: self.count, bytes: self.encoded.len() }
    }
}
