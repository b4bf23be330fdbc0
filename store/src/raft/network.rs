//! How a group's messages reach its members: over the one connection to each node.
//!
//! Appends are pipelined: a connection keeps their order, so two may be under way. Snapshots go in
//! checksummed pieces.

use super::pipeline::pipelined;
use super::{SnapshotBytes, Types, convert, patience};
use crate::consensus::{CallError, Timing};
use crate::transport::Transport;
use crate::types::{NodeId, ShardId};
use crate::wire::{CHUNK_BYTES, HandOver, NotServed, Request, Response, SnapshotChunk};
use core::time::Duration;
use futures::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, VoteOf};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Patience with the last piece of a snapshot, after which the whole is installed.
const INSTALL: Duration = Duration::from_secs(30);

static TRANSFERS: AtomicU64 = AtomicU64::new(1);

/// Makes a [`PeerClient`] for each member.
pub(super) struct PeerFactory {
    pub(super) transport: Arc<Transport>,
    pub(super) shard: ShardId,
    pub(super) node: NodeId,
    pub(super) timing: Timing,
    pub(super) orphan_term: Arc<AtomicU64>,
}

impl RaftNetworkFactory<Types> for PeerFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> PeerClient {
        PeerClient {
            transport: self.transport.clone(),
            shard: self.shard,
            node: self.node,
            target: NodeId(target),
            timing: self.timing,
            orphan_term: self.orphan_term.clone(),
        }
    }
}

/// One member of the group, as seen from here.
#[derive(Clone)]
pub(super) struct PeerClient {
    transport: Arc<Transport>,
    shard: ShardId,
    node: NodeId,
    target: NodeId,
    timing: Timing,
    /// The last term whose leader was gone when this node stood for election.
    orphan_term: Arc<AtomicU64>,
}

fn rpc_error(error: &CallError) -> RPCError<Types> {
    match error {
        CallError::Unreachable(_) | CallError::Broken => {
            RPCError::Unreachable(Unreachable::new(error))
        }
        _ => RPCError::Network(NetworkError::new(error)),
    }
}

fn unexpected(response: &Response) -> RPCError<Types> {
    match response {
        Response::NotServed(
            reason @ (NotServed::Stopped | NotServed::NoSuchShard | NotServed::Malformed),
        ) => RPCError::Unreachable(Unreachable::new(reason)),
        Response::NotServed(reason) => RPCError::Network(NetworkError::new(reason)),
        _ => RPCError::Network(NetworkError::from_string("an answer to another question")),
    }
}

fn append_answer(
    answer: Result<Response, CallError>,
) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
    match answer {
        Ok(Response::Append(appended)) => Ok(convert::append_response(&appended)),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(rpc_error(&error)),
    }
}

type End = Option<LogIdOf<Types>>;
type Appending = (Result<AppendEntriesResponse<Types>, RPCError<Types>>, End);

/// Whether all entries of an append were taken.
fn is_whole((answer, _): &Appending, last: &End) -> bool {
    match answer {
        Ok(AppendEntriesResponse::Success) => true,
        Ok(AppendEntriesResponse::PartialSuccess(at)) => at == last,
        _ => false,
    }
}

impl PeerClient {
    async fn call(&self, request: &Request, ttl: Duration) -> Result<Response, RPCError<Types>> {
        self.transport.call(self.target, request, ttl).await.map_err(|error| rpc_error(&error))
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<Types>,
        pre: bool,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        // If the leader asked for the election as well: voters are only more careful so.
        let orphaned = rpc.leadership_transfer
            && self.orphan_term.load(Ordering::SeqCst) + 1 == rpc.vote.leader_id.term;
        let request = Request::Vote(self.shard, convert::vote_to_wire(&rpc, (pre, orphaned)));
        match self.call(&request, option.hard_ttl()).await? {
            Response::Vote(voted) => Ok(convert::vote_response(&voted)),
            other => Err(unexpected(&other)),
        }
    }

    /// Queues the request when called, not when awaited: that keeps the order.
    fn send_append(
        &self,
        rpc: &AppendEntriesRequest<Types>,
        ttl: Duration,
    ) -> impl Future<Output = Result<AppendEntriesResponse<Types>, RPCError<Types>>> + use<> {
        let request = Request::Append(self.shard, convert::append_to_wire(rpc));
        let begun = self.transport.begin(self.target, &request);
        async move {
            match begun {
                Ok(pending) => append_answer(pending.within(ttl).await),
                Err(error) => Err(rpc_error(&error)),
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotBytes>,
        ttl: Duration,
    ) -> Result<SnapshotResponse<Types>, RPCError<Types>> {
        let bytes = &snapshot.snapshot;
        let mut chunk = SnapshotChunk {
            ballot: convert::ballot(&vote),
            transfer: TRANSFERS.fetch_add(1, Ordering::Relaxed),
            last_log: snapshot.meta.last_log_id.as_ref().map(convert::position),
            members_at: snapshot.meta.last_membership.log_id().as_ref().map(convert::position),
            members: convert::members(snapshot.meta.last_membership.membership()),
            total: bytes.len() as u64,
            crc: crc32fast::hash(bytes),
            offset: 0,
            bytes: Vec::new(),
        };
        loop {
            let start = chunk.offset as usize;
            let end = bytes.len().min(start + CHUNK_BYTES);
            chunk.bytes = bytes[start..end].to_vec();
            let last = end == bytes.len();
            let request = Request::Snapshot(self.shard, chunk);
            let patience = if last { INSTALL } else { ttl };
            match self.call(&request, patience).await? {
                Response::Snapshot(Some(ballot)) => {
                    return Ok(SnapshotResponse::new(convert::vote(&ballot)));
                }
                Response::Snapshot(None) if !last => {}
                other => return Err(unexpected(&other)),
            }
            let Request::Snapshot(_, sent) = request else {
                unreachable!("a snapshot's piece was put in above");
            };
            chunk = sent;
            chunk.offset = end as u64;
        }
    }
}

impl RaftNetworkV2<Types> for PeerClient {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.send_append(&rpc, patience(&self.timing, option.hard_ttl())).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let ttl = patience(&self.timing, option.hard_ttl());
        let client: &'s Self = self;
        let sent = input.map(move |rpc| {
            let prev = rpc.prev_log_id;
            let last = rpc.entries.last().map_or(prev, |entry| Some(entry.log_id));
            let answer = client.send_append(&rpc, ttl);
            (last, async move { (answer.await, prev) })
        });
        let answers = pipelined(sent, is_whole).map(|((answer, prev), last)| match answer {
            Ok(AppendEntriesResponse::Conflict) if prev.is_none() => {
                Err(RPCError::Network(NetworkError::from_string("conflict before the log")))
            }
            Ok(answer) => Ok(answer.into_stream_result(prev, last)),
            Err(error) => Err(error),
        });
        let answers: BoxStream<'s, _> = Box::pin(answers);
        Box::pin(async move { Ok(answers) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, false, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(rpc, true, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotBytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            sent = self.send_snapshot(vote, snapshot, option.hard_ttl()) => Ok(sent?),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let ask = HandOver {
            ballot: convert::ballot(req.from_leader()),
            to: *req.to_node_id(),
            last_log: req.last_log_id().map(convert::position),
        };
        let request = Request::HandOver(self.shard, ask);
        match self.call(&request, patience(&self.timing, option.hard_ttl())).await? {
            Response::HandOver(true) => Ok(Ok(())),
            Response::HandOver(false) => {
                tracing::info!(shard = %self.shard, from = %self.node, to = %self.target,
                    "the leadership was not taken over");
                Err(RPCError::Network(NetworkError::from_string("not taken over")))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A snapshot that comes in pieces.
pub(super) struct Assembly {
    from: NodeId,
    transfer: u64,
    meta: SnapshotMetaOf<Types>,
    total: u64,
    crc: u32,
    bytes: Vec<u8>,
}

type Assembled = (SnapshotMetaOf<Types>, Vec<u8>);

impl Assembly {
    /// Adds a piece; gives the whole after the last one. Pieces out of order end the transfer: the
    /// sender begins anew.
    pub(super) fn add(
        current: &mut Option<Self>,
        from: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<Option<Assembled>, NotServed> {
        if chunk.offset == 0 {
            let group = convert::group(&chunk.members).ok_or(NotServed::Malformed)?;
            let meta = SnapshotMetaOf::<Types> {
                last_log_id: chunk.last_log.map(convert::log_id),
                last_membership: convert::StoredGroup::new(
                    chunk.members_at.map(convert::log_id),
                    group,
                ),
            };
            let (transfer, total, crc) = (chunk.transfer, chunk.total, chunk.crc);
            *current = Some(Self { from, transfer, meta, total, crc, bytes: Vec::new() });
        }
        let Some(assembly) = current.as_mut().filter(|assembly| {
            assembly.from == from
                && assembly.transfer == chunk.transfer
                && assembly.total == chunk.total
                && assembly.bytes.len() as u64 == chunk.offset
                && (chunk.offset + chunk.bytes.len() as u64) <= assembly.total
        }) else {
            *current = None;
            return Err(NotServed::Busy);
        };
        assembly.bytes.extend_from_slice(&chunk.bytes);
        if (assembly.bytes.len() as u64) < assembly.total {
            return Ok(None);
        }
        let Some(Self { meta, crc, bytes, .. }) = current.take() else { return Ok(None) };
        if crc32fast::hash(&bytes) != crc {
            tracing::warn!(%from, "a snapshot's checksum does not fit");
            return Err(NotServed::Malformed);
        }
        Ok(Some((meta, bytes)))
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
