//! Answers what other nodes and clients ask.
//!
//! Runs on the connections' tasks, in the order of arrival, and never waits there: what has to
//! wait goes on in a task of its own. An append is handed to its group before the next request of
//! the connection is looked at, so that appends keep their order.

#![expect(clippy::disallowed_methods, reason = "starts the tasks that answer")]

use crate::committer::{Ask, Route};
use crate::connection::{Answer, Caller, Serve};
use crate::driver::AppHandler;
use crate::raft::{Payload, WriteError};
use crate::refusal_counts::RefusalReason;
use crate::shard::Shard;
use crate::types::{NodeId, ShardId};
use crate::wire::{Appended, Ballot, NotServed, Request, Response};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;

type Answering = Pin<Box<dyn Future<Output = Result<Response, NotServed>> + Send>>;

/// See the module's text.
pub(crate) struct Server {
    pub(crate) shards: Arc<BTreeMap<ShardId, Arc<Shard>>>,
    pub(crate) app: Arc<dyn AppHandler>,
}

impl Serve for Server {
    fn serve(&self, from: Caller, request: Request, answer: Answer) {
        if let Request::App(bytes) = request {
            let node = match from {
                Caller::Node(node) => Some(node),
                Caller::Client => None,
            };
            let handled = self.app.handle(node, bytes);
            tokio::spawn(async move { answer.send(&Response::App(handled.await)) });
            return;
        }
        let Caller::Node(from) = from else {
            answer.refuse(RefusalReason::ClientMayNot);
            return;
        };
        let ballot = ballot_of(&request).copied();
        if ballot.is_some_and(|ballot| ballot.node != from.0) {
            tracing::warn!(%from, shard = ?shard_of(&request), "speaks for another node");
            answer.refuse(RefusalReason::ForeignVoice);
            return;
        }
        match self.shard_request(from, request, answer) {
            Err((reason, answer)) => answer.send(&Response::NotServed(reason)),
            Ok(None) => {}
            Ok(Some((answering, answer))) => proceed(answering, answer, ballot),
        }
    }
}

/// Polls once now, which keeps the order, and goes on in a task if that was not enough.
fn proceed(mut answering: Answering, answer: Answer, ballot: Option<Ballot>) {
    let respond = move |answer: Answer, result: Result<Response, NotServed>| {
        let response = result.unwrap_or_else(Response::NotServed);
        if ballot.is_some_and(|ballot| is_stale(ballot, &response)) {
            answer.count(RefusalReason::StaleTerm);
        }
        answer.send(&response);
    };
    match answering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => respond(answer, result),
        Poll::Pending => {
            tokio::spawn(async move { respond(answer, answering.await) });
        }
    }
}

/// Whether the answer says that the asker's term is over.
fn is_stale(asked: Ballot, response: &Response) -> bool {
    match response {
        Response::Append(Appended::Newer(ballot)) | Response::Snapshot(Some(ballot)) => {
            ballot.term > asked.term
        }
        Response::Vote(voted) => voted.ballot.term > asked.term,
        _ => false,
    }
}

type Accepted = Result<Option<(Answering, Answer)>, (NotServed, Answer)>;

impl Server {
    fn shard_request(&self, from: NodeId, request: Request, answer: Answer) -> Accepted {
        let Some(shard) = shard_of(&request).and_then(|id| self.shards.get(&id)).cloned() else {
            return Err((NotServed::NoSuchShard, answer));
        };
        let answering: Answering = match request {
            Request::Append(_, append) => {
                Box::pin(async move { shard.replica.append(append).await.map(Response::Append) })
            }
            Request::Vote(_, ask) => {
                Box::pin(async move { shard.replica.vote(ask).await.map(Response::Vote) })
            }
            Request::Snapshot(_, chunk) => Box::pin(async move {
                shard.replica.snapshot(from, chunk).await.map(Response::Snapshot)
            }),
            Request::HandOver(_, ask) => {
                // Its answer does not say why.
                if ask.ballot.term < shard.status().term.0 {
                    answer.count(RefusalReason::StaleTerm);
                }
                Box::pin(async move { shard.replica.hand_over(ask).await.map(Response::HandOver) })
            }
            Request::Propose(_, payload) => Box::pin(propose(shard, payload)),
            Request::Transactions(_, transactions) => {
                let ask = Ask::new(transactions.iter(), Route::Remote(answer));
                let wait = shard.held_up(transactions.iter().map(|asked| asked.slot));
                after(wait, shard, |shard| shard.ask(ask));
                return Ok(None);
            }
            Request::ReadLease(_) => {
                answer.send(&shard.grant());
                return Ok(None);
            }
            Request::Reads(_, keys) => {
                let wait = shard.held_up(keys.iter().map(|(slot, _)| *slot));
                after(wait, shard, move |shard| answer.send(&shard.read_for_others(&keys)));
                return Ok(None);
            }
            Request::Seen(_, notes) => {
                answer.send(&shard.note_seen(&notes));
                return Ok(None);
            }
            Request::CanLead(_) => {
                answer.send(&Response::CanLead(!shard.replica.disk_is_full()));
                return Ok(None);
            }
            Request::App(_) => return Err((NotServed::Malformed, answer)),
        };
        Ok(Some((answering, answer)))
    }
}

/// Does something now, or once what it waits for is over.
fn after(
    wait: Option<BoxFuture<'static, ()>>,
    shard: Arc<Shard>,
    act: impl FnOnce(&Shard) + Send + 'static,
) {
    match wait {
        None => act(&shard),
        Some(wait) => {
            tokio::spawn(async move {
                wait.await;
                act(&shard);
            });
        }
    }
}

async fn propose(shard: Arc<Shard>, payload: Vec<u8>) -> Result<Response, NotServed> {
    let payload = Payload::copy_of(&payload);
    shard.replica.check(&payload).map_err(|_| NotServed::Malformed)?;
    match shard.replica.write(shard.stamped(payload)).await {
        Ok(reply) => Ok(Response::Proposed(reply.into())),
        Err(WriteError::NotLeader(leader)) => {
            Err(NotServed::NotOwner(leader.map_or(0, |leader| leader.0)))
        }
        Err(WriteError::Unknown) => Err(NotServed::Unknown),
        Err(WriteError::Malformed) => Err(NotServed::Malformed),
        Err(WriteError::Stopped) => Err(NotServed::Stopped),
        Err(WriteError::DiskFull) => Err(NotServed::DiskFull),
    }
}

fn shard_of(request: &Request) -> Option<ShardId> {
    match request {
        Request::Vote(shard, _)
        | Request::Append(shard, _)
        | Request::Snapshot(shard, _)
        | Request::HandOver(shard, _)
        | Request::Propose(shard, _)
        | Request::Transactions(shard, _)
        | Request::ReadLease(shard)
        | Request::Seen(shard, _)
        | Request::CanLead(shard)
        | Request::Reads(shard, _) => Some(*shard),
        Request::App(_) => None,
    }
}

fn ballot_of(request: &Request) -> Option<&Ballot> {
    match request {
        Request::Vote(_, ask) => Some(&ask.ballot),
        Request::Append(_, append) => Some(&append.ballot),
        Request::Snapshot(_, chunk) => Some(&chunk.ballot),
        Request::HandOver(_, ask) => Some(&ask.ballot),
        _ => None,
    }
}
