//! Between the library's types and the wire's. Total in both directions: the wire's bounds were
//! checked on arrival.

use super::{Payload, Types};
use crate::disk;
use crate::wire::{
    Append, Appended, AskVote, Ballot, EntryBody, LogEntry, Members, Position, Voted,
};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{EmptyNode, EntryPayload, Membership, StoredMembership};
use std::collections::{BTreeMap, BTreeSet};

pub(super) type Group = Membership<u64, EmptyNode>;
pub(super) type StoredGroup = StoredMembership<CommittedLeaderId<u64>, u64, EmptyNode>;

pub(super) fn log_id(at: Position) -> LogIdOf<Types> {
    LogIdOf::<Types>::new(CommittedLeaderId::new(at.term), at.index)
}

pub(super) fn position(id: &LogIdOf<Types>) -> Position {
    Position { term: **id.committed_leader_id(), index: id.index }
}

pub(super) fn vote(ballot: &Ballot) -> VoteOf<Types> {
    VoteOf::<Types> {
        leader_id: LeaderId { term: ballot.term, voted_for: ballot.node },
        committed: ballot.committed,
    }
}

pub(super) fn ballot(vote: &VoteOf<Types>) -> Ballot {
    let LeaderId { term, voted_for } = vote.leader_id;
    Ballot { term, node: voted_for, committed: vote.committed }
}

pub(super) fn members(group: &Group) -> Members {
    Members {
        configs: group
            .get_joint_config()
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect(),
        nodes: group.nodes().map(|(node, _)| *node).collect(),
    }
}

/// `None` if a voter is no member.
pub(super) fn group(members: &Members) -> Option<Group> {
    let configs: Vec<BTreeSet<u64>> =
        members.configs.iter().map(|config| config.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, EmptyNode> =
        members.nodes.iter().map(|node| (*node, EmptyNode::default())).collect();
    Group::new(configs, nodes).ok()
}

pub(super) fn entry_to_wire(entry: &EntryOf<Types>) -> LogEntry {
    let body = match &entry.payload {
        EntryPayload::Blank => EntryBody::Blank,
        EntryPayload::Normal(payload) => EntryBody::Payload(payload.0.to_vec()),
        EntryPayload::Membership(group) => EntryBody::Members(members(group)),
    };
    LogEntry { at: position(&entry.log_id), body }
}

fn entry_from_wire(entry: LogEntry) -> Option<EntryOf<Types>> {
    let payload = match entry.body {
        EntryBody::Blank => EntryPayload::Blank,
        EntryBody::Payload(bytes) => EntryPayload::Normal(Payload::copy_of(&bytes)),
        EntryBody::Members(members) => EntryPayload::Membership(group(&members)?),
    };
    Some(EntryOf::<Types> { log_id: log_id(entry.at), payload })
}

pub(super) fn entry_to_disk(entry: &EntryOf<Types>) -> disk::Entry {
    let body = match &entry.payload {
        EntryPayload::Blank => disk::Body::Blank,
        EntryPayload::Normal(payload) => disk::Body::Payload(payload.0.clone()),
        EntryPayload::Membership(group) => disk::Body::Members(members(group)),
    };
    disk::Entry { at: position(&entry.log_id), body }
}

/// `None` if a group in it is none.
pub(super) fn entry_from_disk(entry: disk::Entry) -> Option<EntryOf<Types>> {
    let payload = match entry.body {
        disk::Body::Blank => EntryPayload::Blank,
        disk::Body::Payload(bytes) => EntryPayload::Normal(Payload(bytes)),
        disk::Body::Members(members) => EntryPayload::Membership(group(&members)?),
    };
    Some(EntryOf::<Types> { log_id: log_id(entry.at), payload })
}

pub(super) fn append_to_wire(request: &AppendEntriesRequest<Types>) -> Append {
    Append {
        ballot: ballot(&request.vote),
        prev: request.prev_log_id.as_ref().map(position),
        entries: request.entries.iter().map(entry_to_wire).collect(),
        commit: request.leader_commit.as_ref().map(position),
    }
}

/// `None` if a group in it is none.
pub(super) fn append_request(append: Append) -> Option<AppendEntriesRequest<Types>> {
    Some(AppendEntriesRequest {
        vote: vote(&append.ballot),
        prev_log_id: append.prev.map(log_id),
        entries: append.entries.into_iter().map(entry_from_wire).collect::<Option<_>>()?,
        leader_commit: append.commit.map(log_id),
    })
}

pub(super) fn appended(response: &AppendEntriesResponse<Types>) -> Appended {
    match response {
        AppendEntriesResponse::Success => Appended::Success,
        AppendEntriesResponse::PartialSuccess(at) => Appended::Partial(at.as_ref().map(position)),
        AppendEntriesResponse::Conflict => Appended::Conflict,
        AppendEntriesResponse::HigherVote(vote) => Appended::Newer(ballot(vote)),
    }
}

pub(super) fn append_response(appended: &Appended) -> AppendEntriesResponse<Types> {
    match appended {
        Appended::Success => AppendEntriesResponse::Success,
        Appended::Partial(at) => AppendEntriesResponse::PartialSuccess(at.map(log_id)),
        Appended::Conflict => AppendEntriesResponse::Conflict,
        Appended::Newer(ballot) => AppendEntriesResponse::HigherVote(vote(ballot)),
    }
}

pub(super) fn vote_request(ask: &AskVote) -> VoteRequest<Types> {
    let mut request = VoteRequest::new(vote(&ask.ballot), ask.last_log.map(log_id));
    request.leadership_transfer = ask.transfer;
    request
}

pub(super) fn vote_to_wire(request: &VoteRequest<Types>, (pre, orphaned): (bool, bool)) -> AskVote {
    AskVote {
        ballot: ballot(&request.vote),
        last_log: request.last_log_id.as_ref().map(position),
        transfer: request.leadership_transfer,
        pre,
        orphaned,
    }
}

pub(super) fn voted(response: &VoteResponse<Types>) -> Voted {
    Voted {
        ballot: ballot(&response.vote),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(position),
    }
}

pub(super) fn vote_response(voted: &Voted) -> VoteResponse<Types> {
    VoteResponse::new(vote(&voted.ballot), voted.last_log.map(log_id), voted.granted)
}
