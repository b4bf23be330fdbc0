//! Every message between nodes, and between nodes and clients, as archives that are validated
//! before they are believed.
//!
//! The archive's own validation bounds every length by the frame it came in; [`Request::check`] and
//! [`Response::check`] then bound what the numbers may say. Payloads stay opaque here: the shard's
//! machine checks them. Nothing here opens a socket or names the consensus library.

use crate::Entry;
use crate::consensus::{GROUP_NODES_MAX, PAYLOAD_BYTES_MAX, SNAPSHOT_BYTES_MAX};
use crate::frame::FRAME_BODY_MAX;
pub use crate::hello::{Hello, Refused, Welcome};
use crate::key::{Key, Value};
use crate::limits::SEEN_NOTES_MAX;
use crate::machine::Reply;
use crate::transaction::{Outcome, SeenNote, Transaction};
use crate::types::{ShardId, SlotId, Version};
use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

/// Entries of one append.
pub const ENTRIES_MAX: usize = 256;
/// Bytes of payloads after which an append is closed; one more payload still fits into a frame.
pub const APPEND_BYTES: usize = 512 << 10;
/// Transactions of one message; entries hold those of several messages.
pub const TRANSACTIONS_MAX: usize = 64;
/// Outcomes of one entry.
pub const OUTCOMES_MAX: usize = 4096;
/// Keys of one batch of reads.
pub const KEYS_MAX: usize = 512;
/// Bytes of one piece of a snapshot.
pub const CHUNK_BYTES: usize = 512 << 10;
/// Bytes of a message of the layers above.
pub const APP_BYTES_MAX: usize = FRAME_BODY_MAX - 1024;
/// Length of a region's path.
pub const PATH_BYTES_MAX: usize = 4096;

const _: () = assert!(APPEND_BYTES + PAYLOAD_BYTES_MAX + (64 << 10) < FRAME_BODY_MAX);
const _: () = assert!(CHUNK_BYTES + (64 << 10) < FRAME_BODY_MAX);

/// A term and who it is for.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// The term.
    pub term: u64,
    /// The candidate or leader.
    pub node: u64,
    /// Whether a quorum granted it: then it is a leader's.
    pub committed: bool,
}

/// A place in the log.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// The index, from 0.
    pub index: u64,
}

/// Who votes and who only listens.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
pub struct Members {
    /// One list of voters, or two while the group changes.
    pub configs: Vec<Vec<u64>>,
    /// All members.
    pub nodes: Vec<u64>,
}

/// What an entry holds.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// Nothing: the first entry of a leader.
    Blank,
    /// A payload for the machine.
    Payload(Vec<u8>),
    /// A new group.
    Members(Members),
}

/// An entry of a log.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where it stands.
    pub at: Position,
    /// What it holds.
    pub body: EntryBody,
}

/// Asks for a vote.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskVote {
    /// For whom.
    pub ballot: Ballot,
    /// How far the candidate's log goes.
    pub last_log: Option<Position>,
    /// The leader asked for the election.
    pub transfer: bool,
    /// Only asks whether the vote would be given.
    pub pre: bool,
    /// The leader of the term before is gone: its connections broke. Who votes sees to it that its
    /// lease is over.
    pub orphaned: bool,
}

/// Appends entries, or none: then it is a heartbeat.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The leader's.
    pub ballot: Ballot,
    /// What stands before the first entry.
    pub prev: Option<Position>,
    /// The entries, without gaps.
    pub entries: Vec<LogEntry>,
    /// How far the leader knows a quorum to have.
    pub commit: Option<Position>,
}

/// One piece of a snapshot.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// The leader's.
    pub ballot: Ballot,
    /// Tells two sendings apart.
    pub transfer: u64,
    /// The last entry that is in it.
    pub last_log: Option<Position>,
    /// Where the group was last changed.
    pub members_at: Option<Position>,
    /// The group.
    pub members: Members,
    /// Bytes of the whole.
    pub total: u64,
    /// Checksum of the whole.
    pub crc: u32,
    /// Where this piece begins.
    pub offset: u64,
    /// The piece.
    pub bytes: Vec<u8>,
}

/// Asks a caught-up follower to become leader now.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The leader's.
    pub ballot: Ballot,
    /// The node meant.
    pub to: u64,
    /// How far its log must go.
    pub last_log: Option<Position>,
}

/// What one end asks of the other.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// For a vote.
    Vote(ShardId, AskVote),
    /// Entries.
    Append(ShardId, Append),
    /// A piece of a snapshot.
    Snapshot(ShardId, SnapshotChunk),
    /// Leadership.
    HandOver(ShardId, HandOver),
    /// Puts a payload into the owner's log.
    Propose(ShardId, Vec<u8>),
    /// Puts transactions into the owner's log, together with those of others.
    Transactions(ShardId, Vec<Transaction>),
    /// A read lease.
    ReadLease(ShardId),
    /// Reads of the owner's table, with the slot that each key belongs to.
    Reads(ShardId, Vec<(SlotId, Key)>),
    /// A message of the layers above.
    App(Vec<u8>),
    /// Entries that the asker's packets have seen.
    Seen(ShardId, Vec<SeenNote>),
    /// Whether the node would lead the shard now.
    CanLead(ShardId),
}

/// The answer to [`Append`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All of it.
    Success,
    /// Only up to here.
    Partial(Option<Position>),
    /// What stands before it is not there.
    Conflict,
    /// There is a newer leader or candidate.
    Newer(Ballot),
}

/// The answer to [`AskVote`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voted {
    /// The voter's ballot afterwards.
    pub ballot: Ballot,
    /// Whether the vote was given.
    pub granted: bool,
    /// How far the voter's log goes.
    pub last_log: Option<Position>,
}

/// An owner's permission to read its region one-sided.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where the region lies on the owner's host.
    pub path: String,
    /// The owner's term; the region carries it as well.
    pub generation: u64,
    /// How long it is worth, from the moment the question was sent.
    pub left_ns: u64,
}

/// An entry as it is found by a read.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its value.
    pub value: Value,
    /// Its version.
    pub version: Version,
    /// Its slot.
    pub slot: SlotId,
}

/// The answer for one key.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// There is no such entry.
    Absent,
    /// The entry.
    Found(Found),
    /// The shard does not hold the slot, so it knows nothing of the key; the shard that it goes to
    /// if it is just moving.
    NotHere(Option<ShardId>),
}

impl From<Option<Entry>> for Reading {
    fn from(entry: Option<Entry>) -> Self {
        entry.map_or(Self::Absent, |entry| Self::Found(entry.into()))
    }
}

/// What was found, and how long it may be used.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    /// In the order of the keys.
    pub found: Vec<Reading>,
    /// Nanoseconds, from the moment the question was sent.
    pub left_ns: u64,
}

impl From<Entry> for Found {
    fn from(Entry { value, version, slot }: Entry) -> Self {
        Self { value, version, slot }
    }
}

impl From<Found> for Entry {
    fn from(Found { value, version, slot }: Found) -> Self {
        Self { value, version, slot }
    }
}

/// A [`Reply`] on the wire.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum WireReply {
    /// Nothing to say.
    None,
    /// One outcome a transaction.
    Outcomes(Vec<Outcome>),
    /// The system machine's answer.
    System(Vec<u8>),
}

impl From<Reply> for WireReply {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::None => Self::None,
            Reply::Outcomes(outcomes) => Self::Outcomes(outcomes.into_vec()),
            Reply::System(bytes) => Self::System(bytes.into_vec()),
        }
    }
}

impl From<WireReply> for Reply {
    fn from(reply: WireReply) -> Self {
        match reply {
            WireReply::None => Self::None,
            WireReply::Outcomes(outcomes) => Self::Outcomes(outcomes.into()),
            WireReply::System(bytes) => Self::System(bytes.into()),
        }
    }
}

/// Why a request was not served.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotServed {
    /// Not the owner; nothing was done. The owner, if known (0 if not).
    #[error("not the owner (node-{0} may be)")]
    NotOwner(u64),
    /// Too much under way; nothing was done.
    #[error("too busy")]
    Busy,
    /// It was taken on, but what became of it is unknown.
    #[error("its outcome is unknown")]
    Unknown,
    /// No such shard here.
    #[error("no such shard")]
    NoSuchShard,
    /// A request that makes no sense, or that this asker may not make.
    #[error("the request makes no sense")]
    Malformed,
    /// The node or the shard's group has stopped.
    #[error("stopped")]
    Stopped,
    /// There is no room on the node's disk; nothing was done.
    #[error("the node's disk is full: free some space there, it goes on by itself")]
    DiskFull,
}

/// What comes back.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To [`Request::Vote`].
    Vote(Voted),
    /// To [`Request::Append`].
    Append(Appended),
    /// To [`Request::Snapshot`]: the piece is there (`None`), or the whole was taken or refused,
    /// and this is the receiver's ballot.
    Snapshot(Option<Ballot>),
    /// To [`Request::HandOver`]: whether it will stand for election.
    HandOver(bool),
    /// To [`Request::Propose`].
    Proposed(WireReply),
    /// To [`Request::Transactions`], in order.
    Outcomes(Vec<Outcome>),
    /// To [`Request::ReadLease`].
    ReadLease(Grant),
    /// To [`Request::Reads`].
    Reads(Readings),
    /// To [`Request::App`].
    App(Vec<u8>),
    /// To anything.
    NotServed(NotServed),
    /// To [`Request::Seen`].
    Noted,
    /// To [`Request::CanLead`].
    CanLead(bool),
}

/// A message that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Not a valid archive.
    #[error("not a valid archive: {0}")]
    Archive(String),
    /// Valid, but a number in it is out of bounds.
    #[error("{0} out of bounds")]
    Bounds(&'static str),
}

fn archive_error(error: &rancor::Error) -> WireError {
    WireError::Archive(error.to_string())
}

fn bound(holds: bool, what: &'static str) -> Result<(), WireError> {
    if holds { Ok(()) } else { Err(WireError::Bounds(what)) }
}

impl Ballot {
    fn check(&self) -> Result<(), WireError> {
        // The largest term could never be followed by another election.
        bound(self.term < u64::MAX && self.node != 0, "ballot")
    }
}

fn check_position(position: Option<Position>) -> Result<(), WireError> {
    bound(position.is_none_or(|at| at.term < u64::MAX && at.index < u64::MAX - 1), "log position")
}

impl Members {
    /// Whether it can be a group at all.
    fn check(&self) -> Result<(), WireError> {
        let sizes = self.configs.len() <= 2
            && self.nodes.len() <= GROUP_NODES_MAX
            && self.configs.iter().all(|config| {
                !config.is_empty()
                    && config.len() <= GROUP_NODES_MAX
                    && config.iter().all(|node| self.nodes.contains(node))
            });
        bound(sizes && self.nodes.iter().all(|node| *node != 0), "group")
    }
}

impl Append {
    fn check(&self) -> Result<(), WireError> {
        self.ballot.check()?;
        check_position(self.prev)?;
        check_position(self.commit)?;
        bound(self.ballot.committed, "leader's ballot")?;
        bound(self.entries.len() <= ENTRIES_MAX, "number of entries")?;
        let mut next = self.prev.map_or(0, |prev| prev.index + 1);
        let mut term = self.prev.map_or(0, |prev| prev.term);
        for entry in &self.entries {
            check_position(Some(entry.at))?;
            bound(entry.at.index == next, "entry index")?;
            bound(entry.at.term >= term && entry.at.term <= self.ballot.term, "entry term")?;
            (next, term) = (next + 1, entry.at.term);
            match &entry.body {
                EntryBody::Blank => {}
                EntryBody::Payload(bytes) => bound(bytes.len() <= PAYLOAD_BYTES_MAX, "payload")?,
                EntryBody::Members(members) => {
                    bound(!members.configs.is_empty(), "group")?;
                    members.check()?;
                }
            }
        }
        Ok(())
    }
}

impl SnapshotChunk {
    fn check(&self) -> Result<(), WireError> {
        self.ballot.check()?;
        bound(self.ballot.committed, "leader's ballot")?;
        check_position(self.last_log)?;
        check_position(self.members_at)?;
        self.members.check()?;
        bound(self.total <= SNAPSHOT_BYTES_MAX as u64, "snapshot size")?;
        bound(self.bytes.len() <= CHUNK_BYTES, "piece of a snapshot")?;
        let end = self.offset.checked_add(self.bytes.len() as u64);
        bound(end.is_some_and(|end| end <= self.total), "piece of a snapshot")
    }
}

impl Request {
    /// Whether its numbers are within bounds.
    ///
    /// # Errors
    /// Says what is not.
    pub fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Vote(_, ask) => {
                ask.ballot.check()?;
                bound(!ask.ballot.committed, "candidate's ballot")?;
                check_position(ask.last_log)
            }
            Self::Append(_, append) => append.check(),
            Self::Snapshot(_, chunk) => chunk.check(),
            Self::HandOver(_, hand_over) => {
                hand_over.ballot.check()?;
                bound(hand_over.ballot.committed && hand_over.to != 0, "leader's ballot")?;
                check_position(hand_over.last_log)
            }
            Self::Propose(_, payload) => bound(payload.len() <= PAYLOAD_BYTES_MAX, "payload"),
            Self::Transactions(_, list) => {
                bound((1..=TRANSACTIONS_MAX).contains(&list.len()), "number of transactions")
            }
            Self::ReadLease(_) | Self::CanLead(_) => Ok(()),
            Self::Reads(_, keys) => bound((1..=KEYS_MAX).contains(&keys.len()), "number of keys"),
            Self::App(bytes) => bound(bytes.len() <= APP_BYTES_MAX, "message"),
            Self::Seen(_, notes) => bound(notes.len() <= SEEN_NOTES_MAX, "number of notes"),
        }
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// If it is out of bounds or does not fit into a frame.
    pub fn encode(&self) -> Result<AlignedVec, WireError> {
        self.check()?;
        let bytes = rkyv::to_bytes::<rancor::Error>(self).map_err(|error| archive_error(&error))?;
        bound(bytes.len() <= FRAME_BODY_MAX, "message")?;
        Ok(bytes)
    }

    /// Reads a message from the network.
    ///
    /// # Errors
    /// If it is no valid message.
    pub fn decode(bytes: &AlignedVec) -> Result<Self, WireError> {
        let request = rkyv::from_bytes::<Self, rancor::Error>(bytes)
            .map_err(|error| archive_error(&error))?;
        request.check()?;
        Ok(request)
    }
}

impl Response {
    /// Whether its numbers are within bounds.
    ///
    /// # Errors
    /// Says what is not.
    pub fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Vote(voted) => {
                voted.ballot.check()?;
                check_position(voted.last_log)
            }
            Self::Append(Appended::Partial(at)) => check_position(*at),
            Self::Append(Appended::Newer(ballot)) | Self::Snapshot(Some(ballot)) => ballot.check(),
            Self::Append(Appended::Success | Appended::Conflict) => Ok(()),
            Self::Snapshot(None)
            | Self::HandOver(_)
            | Self::NotServed(_)
            | Self::Noted
            | Self::CanLead(_) => Ok(()),
            Self::Proposed(WireReply::None) => Ok(()),
            Self::Proposed(WireReply::Outcomes(outcomes)) | Self::Outcomes(outcomes) => {
                bound(outcomes.len() <= OUTCOMES_MAX, "number of outcomes")
            }
            Self::Proposed(WireReply::System(bytes)) | Self::App(bytes) => {
                bound(bytes.len() <= APP_BYTES_MAX, "message")
            }
            Self::ReadLease(grant) => bound(grant.path.len() <= PATH_BYTES_MAX, "path"),
            Self::Reads(readings) => bound(readings.found.len() <= KEYS_MAX, "number of entries"),
        }
    }

    /// The message's bytes.
    ///
    /// # Errors
    /// If it is out of bounds or does not fit into a frame.
    pub fn encode(&self) -> Result<AlignedVec, WireError> {
        self.check()?;
        let bytes = rkyv::to_bytes::<rancor::Error>(self).map_err(|error| archive_error(&error))?;
        bound(bytes.len() <= FRAME_BODY_MAX, "message")?;
        Ok(bytes)
    }

    /// Reads a message from the network.
    ///
    /// # Errors
    /// If it is no valid message.
    pub fn decode(bytes: &AlignedVec) -> Result<Self, WireError> {
        let response = rkyv::from_bytes::<Self, rancor::Error>(bytes)
            .map_err(|error| archive_error(&error))?;
        response.check()?;
        Ok(response)
    }
}

macro_rules! greeting {
    ($type:ty) => {
        impl $type {
            /// The message's bytes.
            ///
            /// # Errors
            /// If there is no memory for it.
            pub fn encode(&self) -> Result<AlignedVec, WireError> {
                rkyv::to_bytes::<rancor::Error>(self).map_err(|error| archive_error(&error))
            }

            /// Reads a message from the network.
            ///
            /// # Errors
            /// If it is no valid message.
            pub fn decode(bytes: &AlignedVec) -> Result<Self, WireError> {
                rkyv::from_bytes::<Self, rancor::Error>(bytes)
                    .map_err(|error| archive_error(&error))
            }
        }
    };
}

greeting!(Hello);
greeting!(Welcome);

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
