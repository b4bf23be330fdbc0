//! Control messages between nodes, and between people's tools and nodes.
//!
//! Each is one rkyv archive with a version in front, validated and held to its limits on arrival.
//! What a message means is done elsewhere; nothing here acts.

#![expect(missing_docs, reason = "rkyv's derive makes resolver fields without a text")]

use crate::archive::{self, DecodeError, limit};
use crate::flow::Side;
use crate::limits;
use crate::map::{Map, MemberState, validate_name, validate_ports};
use crate::store_api::{StoreRequest, StoreResponse};
use nearstate_store::{Epoch, LogIndex, NodeId, ShardId, TenantId, Term};
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;

/// Version of the messages, their first byte. Nodes of different versions do not talk.
pub const API_VERSION: u8 = 5;

/// What may be asked of a node.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Let a new node in.
    Join {
        /// Its name.
        name: String,
        /// Where peers and clients connect.
        address: SocketAddr,
        /// How packets reach it.
        ports: Vec<String>,
        /// Drawn once for this life of the node.
        nonce: u64,
        /// Stands for all settings that must be equal on all nodes.
        settings: u64,
    },
    /// The map, once there is a newer one.
    GetMap {
        /// The epoch that is known already.
        newer_than: Epoch,
        /// How long to wait for one; then the answer is [`Response::NoNewerMap`].
        wait_ms: u32,
    },
    /// How the node is.
    Status,
    /// How the node's replica of one shard is.
    Shard(ShardId),
    /// What would be done with a packet, in words.
    Trace {
        /// Where it would come in.
        side: Side,
        /// Whose it would be.
        tenant: TenantId,
        /// The Ethernet frame.
        frame: Vec<u8>,
        /// Whether a node that is not the owner has passed the question on: it is not passed on
        /// again.
        passed_on: bool,
    },
    /// End.
    Shutdown,
    /// Order slots to another shard.
    MoveSlots {
        /// Which.
        slots: Vec<u16>,
        /// Where to.
        to: ShardId,
    },
    /// Take back the moves of slots that can still be taken back.
    CancelMoves,
    /// What the node's replicas hold.
    Store(StoreRequest),
}

/// What a node answers.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The new node is in.
    Joined {
        /// Its id.
        id: NodeId,
        /// The map that has it.
        map: Map,
    },
    /// A map that is newer than what is known.
    Map(Map),
    /// None came in the time that the request allowed.
    NoNewerMap,
    /// How the node is.
    Status(Box<StatusReport>),
    /// How the replica is; nothing if the node has none.
    Shard(Option<ShardStatus>),
    /// What would be done with the packet, a line a step.
    Trace(Vec<String>),
    /// The node ends.
    ShuttingDown,
    /// The order was taken; a map of this epoch or a later one shows it.
    Ordered(Epoch),
    /// What its replicas hold.
    Store(StoreResponse),
    /// Not done.
    Refused {
        /// Why, and what to do.
        reason: String,
        /// Whether the same request may succeed later.
        retry: bool,
    },
}

/// Part of a node in a shard.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardRole {
    /// It has no replica.
    None,
    /// It catches up.
    Learner,
    /// It votes.
    Follower,
    /// It leads, without the lease.
    Leader,
    /// It leads and holds the lease.
    Owner,
}

impl ShardRole {
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Leader => "leader",
            Self::Owner => "owner",
        }
    }
}

/// A shard as one node sees it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which shard.
    pub shard: ShardId,
    /// This node's part in it.
    pub role: ShardRole,
    /// The present term.
    pub term: Term,
    /// Who leads, as far as is known.
    pub leader: Option<NodeId>,
    /// Up to where the log is applied.
    pub applied: LogIndex,
    /// Milliseconds for which the lease still holds.
    pub lease_left_ms: u32,
    /// Entries in the table.
    pub entries: u64,
    /// Room of the table.
    pub capacity: u64,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// How many entries each other replica is behind. Only the leader knows.
    pub lag: Vec<(NodeId, u64)>,
}

/// How a node is.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// Its id: one for each life.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Version of its map.
    pub map_epoch: Epoch,
    /// Its shards.
    pub shards: Vec<ShardStatus>,
    /// Its counters by their stable names.
    pub counters: Vec<(String, u64)>,
    /// Since when the members are what its map says.
    pub members: Vec<MemberAge>,
}

/// Since when a member has been in a state, as one node saw it.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberAge {
    /// Which member.
    pub node: NodeId,
    /// The state.
    pub state: MemberState,
    /// Milliseconds for which this node has known it to be in it.
    pub for_ms: u64,
    /// Whether the node saw it change; else it may have been so for longer.
    pub is_exact: bool,
}

impl Request {
    /// The bytes for the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        with_version(&archive::encode(self))
    }

    /// A request from the wire.
    ///
    /// # Errors
    /// If it is none, of another version, or beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let request = archive::decode(without_version(bytes)?, limits::MESSAGE_BYTES_MAX)?;
        match &request {
            Self::Join { name, ports, .. } => {
                validate_name(name)?;
                validate_ports(ports)?;
            }
            Self::GetMap { wait_ms, .. } => {
                limit("wait_ms", *wait_ms as usize, limits::MAP_WAIT_MS_MAX as usize)?;
            }
            Self::Trace { frame, .. } => {
                limit("bytes of a frame", frame.len(), limits::TRACE_FRAME_BYTES_MAX)?;
            }
            Self::Store(request) => request.validate()?,
            Self::MoveSlots { slots, .. } => {
                limit("slots to move", slots.len(), limits::MOVES_MAX)?;
            }
            Self::Status | Self::Shard(_) | Self::Shutdown | Self::CancelMoves => {}
        }
        Ok(request)
    }
}

impl Response {
    /// The bytes for the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        with_version(&archive::encode(self))
    }

    /// A response from the wire.
    ///
    /// # Errors
    /// If it is none, of another version, or beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let response = archive::decode(without_version(bytes)?, limits::MESSAGE_BYTES_MAX)?;
        match &response {
            Self::Joined { map, .. } | Self::Map(map) => map.validate()?,
            Self::Status(report) => report.validate()?,
            Self::Shard(status) => status.iter().try_for_each(ShardStatus::validate)?,
            Self::Trace(lines) => {
                limit("lines of a trace", lines.len(), limits::TRACE_LINES_MAX)?;
                lines.iter().try_for_each(|line| limit_text(line))?;
            }
            Self::Refused { reason, .. } => limit_text(reason)?,
            Self::Store(response) => response.validate()?,
            Self::NoNewerMap | Self::ShuttingDown | Self::Ordered(_) => {}
        }
        Ok(response)
    }
}

impl ShardStatus {
    fn validate(&self) -> Result<(), DecodeError> {
        limit("voters", self.voters.len(), limits::MEMBERS_MAX)?;
        limit("replicas", self.lag.len(), limits::MEMBERS_MAX)
    }
}

impl StatusReport {
    fn validate(&self) -> Result<(), DecodeError> {
        validate_name(&self.name)?;
        limit("shards", self.shards.len(), limits::SHARDS_MAX)?;
        self.shards.iter().try_for_each(ShardStatus::validate)?;
        limit("members", self.members.len(), limits::MEMBERS_MAX)?;
        limit("counters", self.counters.len(), limits::COUNTERS_MAX)?;
        self.counters.iter().try_for_each(|(name, _)| limit_text(name))
    }
}

fn limit_text(text: &str) -> Result<(), DecodeError> {
    limit("bytes of a line", text.len(), limits::TEXT_BYTES_MAX)
}

fn with_version(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + body.len());
    out.push(API_VERSION);
    out.extend_from_slice(body);
    out
}

fn without_version(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    match bytes.split_first() {
        Some((&API_VERSION, body)) => Ok(body),
        Some((other, _)) => Err(DecodeError::Inconsistent(format!(
            "it has message version {other}, this build speaks {API_VERSION}"
        ))),
        None => Err(DecodeError::Inconsistent("it is empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::tests::sample;
    use proptest::prelude::*;

    fn requests() -> Vec<Request> {
        let address = SocketAddr::from(([127, 0, 0, 1], 4000));
        vec![
            Request::Join {
                name: "n1".into(),
                address,
                ports: vec!["p".into()],
                nonce: 3,
                settings: 4,
            },
            Request::GetMap { newer_than: Epoch(4), wait_ms: 1_000 },
            Request::Status,
            Request::Shard(ShardId(3)),
            Request::Trace {
                side: Side::Outside,
                tenant: TenantId(2),
                frame: vec![7; 60],
                passed_on: true,
            },
            Request::Shutdown,
        ]
    }

    fn report() -> StatusReport {
        let shard = ShardStatus {
            shard: ShardId(1),
            role: ShardRole::Owner,
            term: Term(3),
            leader: Some(NodeId(2)),
            applied: LogIndex(99),
            lease_left_ms: 210,
            entries: 12,
            capacity: 1024,
            voters: vec![NodeId(1), NodeId(2)],
            lag: vec![(NodeId(1), 4)],
        };
        StatusReport {
            node: NodeId(2),
            name: "n2".into(),
            incarnation: 2,
            uptime_ms: 12_345,
            map_epoch: Epoch(9),
            shards: vec![shard],
            counters: vec![("packets_in".into(), 5)],
            members: vec![MemberAge {
                node: NodeId(1),
                state: MemberState::Left,
                for_ms: 7,
                is_exact: true,
            }],
        }
    }

    fn responses() -> Vec<Response> {
        vec![
            Response::Joined { id: NodeId(4), map: sample() },
            Response::Map(sample()),
            Response::NoNewerMap,
            Response::Status(Box::new(report())),
            Response::Shard(report().shards.pop()),
            Response::Trace(vec!["one".into(), "two".into()]),
            Response::ShuttingDown,
            Response::Refused { reason: "later".into(), retry: true },
        ]
    }

    #[test]
    fn all_messages_survive_the_wire() {
        for request in requests() {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        for response in responses() {
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
    }

    #[test]
    fn messages_beyond_the_limits_are_refused() {
        let address = SocketAddr::from(([127, 0, 0, 1], 4000));
        let join = |name: &str, ports| Request::Join {
            name: name.into(),
            address,
            ports,
            nonce: 0,
            settings: 0,
        };
        let frame = vec![0; limits::TRACE_FRAME_BYTES_MAX + 1];
        let requests = [
            join("", vec![]),
            join("a b", vec![]),
            join("n1", vec![String::new(); limits::PORTS_MAX + 1]),
            join("n1", vec!["p".repeat(limits::PORT_BYTES_MAX + 1)]),
            Request::GetMap { newer_than: Epoch(0), wait_ms: limits::MAP_WAIT_MS_MAX + 1 },
            Request::Trace { side: Side::Inside, tenant: TenantId(0), frame, passed_on: false },
        ];
        for request in requests {
            assert!(Request::decode(&request.encode()).is_err(), "{request:?}");
        }
        let mut map = sample();
        map.slot_to_shard.pop();
        let mut long = report();
        long.counters = vec![(String::new(), 0); limits::COUNTERS_MAX + 1];
        let mut crowd = report().shards[0].clone();
        crowd.voters = vec![NodeId(1); limits::MEMBERS_MAX + 1];
        let responses = [
            Response::Map(map),
            Response::Shard(Some(crowd)),
            Response::Status(Box::new(long)),
            Response::Trace(vec!["x".repeat(limits::TEXT_BYTES_MAX + 1)]),
            Response::Trace(vec![String::new(); limits::TRACE_LINES_MAX + 1]),
        ];
        for response in responses {
            assert!(Response::decode(&response.encode()).is_err());
        }
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = Request::Status.encode();
        bytes[0] = 9;
        let error = Request::decode(&bytes).unwrap_err().to_string();
        assert!(error.contains("message version 9"), "{error}");
        assert!(Request::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(
            which in 0_usize..14, at in any::<usize>(), bit in 0_u8..8, cut in 0_usize..64,
        ) {
            let all: Vec<Vec<u8>> = requests().iter().map(Request::encode)
                .chain(responses().iter().map(Response::encode)).collect();
            let mut bytes = all[which].clone();
            let (at, end) = (at % bytes.len(), bytes.len().saturating_sub(cut));
            bytes[at] ^= 1 << bit;
            let _ = Request::decode(&bytes[..end]);
            let _ = Response::decode(&bytes[..end]);
        }

        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = with_version(&body);
            let _ = Request::decode(&bytes);
            let _ = Response::decode(&bytes);
        }
    }
}
