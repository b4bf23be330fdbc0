//! The system shard's machine: the map, the members and who gets which id, changed by nothing but
//! the shard's log.
//!
//! It decides no placement: it keeps order (compare-and-set by epoch), gives out ids that are never
//! used twice, and refuses maps that break the rules of [`crate::check`]. Each change raises the
//! epoch by one and is published whole to whoever watches on this node.

#![expect(missing_docs, reason = "rkyv's derive makes resolver fields without a text")]

use crate::archive::{self, DecodeError, limit};
use crate::check;
use crate::limits;
use crate::map::{Map, Member, MemberState, ShardPlacement, validate_name, validate_ports};
use crate::moves::MovePhase;
use nearstate_store::machine::{PayloadError, SnapshotError};
use nearstate_store::{Epoch, LogIndex, Machine, NodeId, Reply, ShardId, SlotId, Term};
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

/// Version of the form of commands and of replies, their first byte. Commands stand in logs on
/// disks.
const FORMAT: u8 = 1;

/// What may be asked of the system shard.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum SystemCommand {
    /// Makes the cluster. Its first member gets the first id and holds all shards alone.
    Form {
        /// Founders, normally one. Ids are given in order, from 1; what they say is ignored.
        members: Vec<Member>,
        /// Slots, a power of two.
        slots: u32,
        /// Flow shards.
        shards: u16,
        /// Replicas that each shard should have.
        replicas: u16,
        /// Drawn at random by the founder, not 0: see [`Map::lineage`].
        lineage: u64,
    },
    /// Lets a node in under a fresh id.
    Join {
        /// Its name.
        name: String,
        /// Where peers and clients connect.
        address: SocketAddr,
        /// How packets reach it.
        ports: Vec<String>,
        /// Drawn once for this life of the node: a retry has the same, and gets the same id.
        nonce: u64,
    },
    /// A node says that it owns a shard.
    ReportOwner {
        /// Which shard.
        shard: ShardId,
        /// Who.
        node: NodeId,
        /// The term in which it leads.
        term: Term,
    },
    /// What is thought of a member has changed.
    SetMember {
        /// Whom.
        id: NodeId,
        /// What.
        state: MemberState,
    },
    /// Replaces the map, if nothing has changed since it was planned.
    SetMap {
        /// The epoch that the plan was made from.
        expected: Epoch,
        /// The new map. Its epoch is `expected + 1`.
        map: Map,
    },
    /// Orders slots to another shard.
    MoveSlots {
        /// Which.
        slots: Vec<u16>,
        /// Where to.
        to: ShardId,
    },
    /// The move that is under way has come further.
    AdvanceMove {
        /// Which move.
        number: u64,
        /// The phase that it was in.
        from: MovePhase,
        /// The next one; `None`: it is over.
        to: Option<MovePhase>,
    },
    /// Takes back the orders to move slots that have not begun to switch.
    CancelMoves,
}

impl SystemCommand {
    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        archive::encode_as(FORMAT, self)
    }

    /// A command from the wire.
    ///
    /// # Errors
    /// If it is none, of another version, or beyond the limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let command: Self = archive::decode_as(FORMAT, bytes, limits::COMMAND_BYTES_MAX)?;
        match &command {
            Self::Form { members, slots, shards, replicas, .. } => {
                limit("founders", members.len(), limits::REPLICAS_MAX)?;
                limit("slots", *slots as usize, limits::SLOTS_MAX)?;
                limit("flow shards", usize::from(*shards), limits::SHARDS_MAX - 1)?;
                limit("replicas", usize::from(*replicas), limits::REPLICAS_MAX)?;
                members.iter().try_for_each(crate::map::validate_member)?;
            }
            Self::Join { name, ports, .. } => {
                validate_name(name)?;
                validate_ports(ports)?;
            }
            Self::SetMap { map, .. } => map.validate()?,
            Self::MoveSlots { slots, .. } => {
                limit("slots to move", slots.len(), limits::MOVES_MAX)?;
            }
            Self::ReportOwner { .. }
            | Self::SetMember { .. }
            | Self::AdvanceMove { .. }
            | Self::CancelMoves => {}
        }
        Ok(command)
    }
}

/// The machine's answer.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum SystemReply {
    /// Done, or it was so already; the epoch after it.
    Done(Epoch),
    /// The node is in; its id, and the epoch after it.
    Joined(NodeId, Epoch),
    /// Nothing was changed.
    Refused(SystemRefusal),
}

impl SystemReply {
    /// The bytes for [`Reply::System`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        archive::encode_as(FORMAT, self)
    }

    /// A reply from the wire.
    ///
    /// # Errors
    /// If it is none, or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        archive::decode_as(FORMAT, bytes, limits::COMMAND_BYTES_MAX)
    }
}

/// Why nothing was changed.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SystemRefusal {
    /// There is a cluster already.
    #[error("the cluster is formed already; join it")]
    AlreadyFormed,
    /// There is no cluster yet.
    #[error("the cluster is not formed yet; try again")]
    NotFormed,
    /// Slots, shards or founders that no cluster can have.
    #[error("a cluster needs a founder, a power of two of slots and at least one flow shard")]
    BadShape,
    /// A member of this name is alive. If that one has died, it will soon be suspected: try again.
    #[error("a member of this name is alive ({0}); use another name, or try again if it has died")]
    NameTaken(NodeId),
    /// No room for another member.
    #[error("the cluster has all the members it may have")]
    TooManyMembers,
    /// The node is not a member, or was given up.
    #[error("{0} is not a live member")]
    UnknownNode(NodeId),
    /// There is no such shard.
    #[error("there is no {0}")]
    UnknownShard(ShardId),
    /// A later owner was reported already.
    #[error("a later owner was reported already, in {0}")]
    OldTerm(Term),
    /// Something has changed since; plan again.
    #[error("the map has moved on to {0}; plan again")]
    EpochMoved(Epoch),
    /// It cannot be ordered there.
    #[error("{0} cannot be moved there: there is no such slot, or it is on its way elsewhere")]
    SlotBusy(SlotId),
    /// Nothing moves to the system shard or to one that there is not.
    #[error("slots cannot be moved to {0}: name a flow shard, 1 to {1}")]
    NoTarget(ShardId, u16),
    /// No room for so many orders.
    #[error("{0} moves are ordered, more than {1}: order fewer, or wait until some are done")]
    TooManyMoves(u32, u32),
    /// Somebody else has brought it further, or it was cancelled.
    #[error("move {0} is not in that phase any more")]
    MoveWentOn(u64),
    /// It breaks a rule.
    #[error("the map breaks a rule: {0}")]
    BadMap(String),
}

/// Called with each new map, in order.
pub type Publish = Arc<dyn Fn(Arc<Map>) + Send + Sync>;

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
struct State {
    map: Map,
    /// The next id that is given out. Only rises (P6).
    next_id: u64,
    /// Joins by nonce, oldest first.
    joins: Vec<(u64, NodeId)>,
    /// The number of the next move of a slot.
    next_move: u64,
}

const SNAPSHOT_MAGIC: [u8; 4] = *b"NSSY";
const SNAPSHOT_VERSION: u32 = 3;
/// Magic, version, checksum of the rest.
const SNAPSHOT_HEADER_BYTES: usize = 12;

/// See the head of the file.
pub struct SystemMachine {
    state: State,
    publish: Publish,
}

impl SystemMachine {
    /// The machine of a cluster that is not formed yet.
    #[must_use]
    pub fn new(publish: Publish) -> Self {
        let state = State { map: Map::unformed(), next_id: 1, joins: Vec::new(), next_move: 1 };
        Self { state, publish }
    }

    /// The map as it is now.
    #[must_use]
    pub const fn map(&self) -> &Map {
        &self.state.map
    }

    fn execute(&mut self, command: SystemCommand) -> Result<SystemReply, SystemRefusal> {
        let formed = self.state.map.is_formed();
        match command {
            SystemCommand::Form { members, slots, shards, replicas, lineage } => {
                let wanted = Shape { slots, shards, replicas, lineage };
                self.form(members, wanted)
            }
            _ if !formed => Err(SystemRefusal::NotFormed),
            SystemCommand::Join { name, address, ports, nonce } => {
                let state = MemberState::Alive;
                self.join(Member { id: NodeId(0), name, address, ports, state }, nonce)
            }
            SystemCommand::ReportOwner { shard, node, term } => {
                self.report_owner(shard, node, term)
            }
            SystemCommand::SetMember { id, state } => self.set_member(id, state),
            SystemCommand::SetMap { expected, map } => self.set_map(expected, map),
            SystemCommand::MoveSlots { slots, to } => self.move_slots(&slots, to),
            SystemCommand::AdvanceMove { number, from, to } => self
                .change_moves(|map| map.advance_move(number, from, to))
                .unwrap_or(Err(SystemRefusal::MoveWentOn(number))),
            SystemCommand::CancelMoves => {
                let changed = self.change_moves(Map::cancel_moves);
                changed.unwrap_or_else(|| Ok(self.done_unchanged()))
            }
        }
    }

    fn move_slots(&mut self, slots: &[u16], to: ShardId) -> Result<SystemReply, SystemRefusal> {
        let shards = self.state.map.shards.len() as u16;
        if to == ShardId::SYSTEM || to.0 >= shards {
            return Err(SystemRefusal::NoTarget(to, shards - 1));
        }
        let mut map = self.state.map.clone();
        let next =
            map.order_moves(self.state.next_move, slots, to).map_err(SystemRefusal::SlotBusy)?;
        if map.moves.len() > limits::MOVES_MAX {
            let (count, limit) = (map.moves.len() as u32, limits::MOVES_MAX as u32);
            return Err(SystemRefusal::TooManyMoves(count, limit));
        }
        if next == self.state.next_move {
            return Ok(self.done_unchanged());
        }
        (self.state.map, self.state.next_move) = (map, next);
        self.changed();
        Ok(self.done_unchanged())
    }

    /// Changes the moves if that keeps the rules; `None` if there was nothing to change.
    fn change_moves(
        &mut self,
        change: impl FnOnce(&mut Map) -> bool,
    ) -> Option<Result<SystemReply, SystemRefusal>> {
        let mut map = self.state.map.clone();
        if !change(&mut map) {
            return None;
        }
        map.epoch.0 += 1;
        let is_ours = |broken: &check::Violation| {
            use check::Violation as V;
            matches!(broken, V::SlotMoved(_) | V::BrokenMove(_) | V::Malformed(_))
        };
        if let Some(broken) = check::check_step(&self.state.map, &map).into_iter().find(is_ours) {
            return Some(Err(SystemRefusal::BadMap(broken.to_string())));
        }
        self.state.map = map;
        Some(Ok(self.done()))
    }

    fn form(&mut self, members: Vec<Member>, shape: Shape) -> Result<SystemReply, SystemRefusal> {
        if self.state.map.is_formed() {
            return Err(SystemRefusal::AlreadyFormed);
        }
        if members.is_empty() || shape.shards == 0 || !shape.slots.is_power_of_two() {
            return Err(SystemRefusal::BadShape);
        }
        let ids = self.state.next_id..;
        let members: Vec<Member> = members
            .into_iter()
            .zip(ids)
            .map(|(member, id)| Member { id: NodeId(id), state: MemberState::Alive, ..member })
            .collect();
        let founder = members[0].id;
        let next_id = self.state.next_id + members.len() as u64;
        let shard = |number| ShardPlacement {
            shard: ShardId(number),
            replicas: vec![founder],
            preferred: founder,
            owner: None,
        };
        let map = Map {
            epoch: Epoch(1),
            lineage: shape.lineage,
            slots: shape.slots,
            replicas_wanted: shape.replicas.max(1),
            slot_to_shard: Map::first_slots(shape.slots, shape.shards),
            shards: (0..=shape.shards).map(shard).collect(),
            members,
            moves: Vec::new(),
        };
        if let Some(broken) = check::check_map(&map).first() {
            return Err(SystemRefusal::BadMap(broken.to_string()));
        }
        self.state.map = map;
        self.state.next_id = next_id;
        Ok(self.done())
    }

    fn join(&mut self, member: Member, nonce: u64) -> Result<SystemReply, SystemRefusal> {
        if let Some(&(_, id)) = self.state.joins.iter().find(|(known, _)| *known == nonce) {
            return Ok(SystemReply::Joined(id, self.state.map.epoch));
        }
        let namesake = self.state.map.live_member_named(&member.name).map(|m| (m.id, m.state));
        if let Some((id, MemberState::Alive | MemberState::Leaving)) = namesake {
            return Err(SystemRefusal::NameTaken(id));
        }
        let members = &self.state.map.members;
        let kept = members.iter().filter(|m| !m.state.is_past()).count();
        if kept + limits::RETIRED_KEPT_MAX >= limits::MEMBERS_MAX {
            return Err(SystemRefusal::TooManyMembers);
        }
        self.forget_retired();
        if let Some((id, _)) = namesake {
            // Silent, and somebody else has its name: that life of the node is over.
            self.edit_member(id, MemberState::Dead);
        }
        let id = NodeId(self.state.next_id);
        self.state.next_id += 1;
        self.state.map.members.push(Member { id, ..member });
        if self.state.joins.len() == limits::JOINS_KEPT_MAX {
            self.state.joins.remove(0);
        }
        self.state.joins.push((nonce, id));
        self.changed();
        Ok(SystemReply::Joined(id, self.state.map.epoch))
    }

    fn forget_retired(&mut self) {
        let members = &mut self.state.map.members;
        let retired = members.iter().filter(|m| m.state.is_past()).count();
        let mut excess = retired.saturating_sub(limits::RETIRED_KEPT_MAX);
        members.retain(|member| {
            let goes = excess > 0 && member.state.is_past();
            excess -= usize::from(goes);
            !goes
        });
    }

    fn report_owner(
        &mut self,
        shard: ShardId,
        node: NodeId,
        term: Term,
    ) -> Result<SystemReply, SystemRefusal> {
        if !self.state.map.state_of(node).is_live() {
            return Err(SystemRefusal::UnknownNode(node));
        }
        let placement = self
            .state
            .map
            .shards
            .get_mut(usize::from(shard.0))
            .ok_or(SystemRefusal::UnknownShard(shard))?;
        match placement.owner {
            Some(known) if known == (node, term) => return Ok(self.done_unchanged()),
            // One term has one leader, so an equal term with another node is old news as well.
            Some((_, known)) if known >= term => return Err(SystemRefusal::OldTerm(known)),
            _ => placement.owner = Some((node, term)),
        }
        self.changed();
        Ok(self.done_unchanged())
    }

    fn set_member(&mut self, id: NodeId, to: MemberState) -> Result<SystemReply, SystemRefusal> {
        let known = self.state.map.member(id).ok_or(SystemRefusal::UnknownNode(id))?;
        if known.state == to {
            return Ok(self.done_unchanged());
        }
        let before = self.state.clone();
        self.edit_member(id, to);
        self.state.map.epoch.0 += 1;
        // Only what a step of a map may do to a member; the wanted owner may be a dead one for as
        // long as it takes the planner to see it.
        let broken = check::check_step(&before.map, &self.state.map)
            .into_iter()
            .find(|broken| !matches!(broken, check::Violation::PreferredDead(..)));
        if let Some(broken) = broken {
            self.state = before;
            return Err(SystemRefusal::BadMap(broken.to_string()));
        }
        self.publish_map();
        Ok(self.done_unchanged())
    }

    fn edit_member(&mut self, id: NodeId, to: MemberState) {
        let member = self.state.map.members.iter_mut().find(|member| member.id == id);
        member.expect("the caller has looked").state = to;
    }

    fn set_map(&mut self, expected: Epoch, map: Map) -> Result<SystemReply, SystemRefusal> {
        let now = self.state.map.epoch;
        if now != expected {
            return Err(SystemRefusal::EpochMoved(now));
        }
        if map.epoch.0 != now.0 + 1 {
            return Err(SystemRefusal::BadMap("its epoch is not the next one".to_owned()));
        }
        if map.members.len() != self.state.map.members.len() {
            return Err(SystemRefusal::BadMap("members come by joining only".to_owned()));
        }
        let known = &self.state.map;
        if (&map.moves, &map.slot_to_shard) != (&known.moves, &known.slot_to_shard) {
            return Err(SystemRefusal::BadMap("slots move by orders only".to_owned()));
        }
        if let Some(broken) = check::check_step(&self.state.map, &map).first() {
            return Err(SystemRefusal::BadMap(broken.to_string()));
        }
        self.state.map = map;
        Ok(self.done())
    }

    fn changed(&mut self) {
        self.state.map.epoch.0 += 1;
        self.publish_map();
    }

    fn done(&self) -> SystemReply {
        self.publish_map();
        self.done_unchanged()
    }

    const fn done_unchanged(&self) -> SystemReply {
        SystemReply::Done(self.state.map.epoch)
    }

    fn publish_map(&self) {
        (self.publish)(Arc::new(self.state.map.clone()));
    }
}

/// What a cluster is made of.
struct Shape {
    slots: u32,
    shards: u16,
    replicas: u16,
    lineage: u64,
}

impl Machine for SystemMachine {
    fn check(payload: &[u8]) -> Result<(), PayloadError> {
        SystemCommand::decode(payload).map(drop).map_err(|error| match error {
            DecodeError::Limit { count, limit, .. } => PayloadError::TooMany { count, limit },
            DecodeError::Version { found, expected } => PayloadError::Version { found, expected },
            other => PayloadError::Archive(other.to_string()),
        })
    }

    fn apply(&mut self, _index: LogIndex, payload: &[u8]) -> Reply {
        let command = SystemCommand::decode(payload).expect("payloads are checked before the log");
        let before = self.state.map.epoch;
        let reply = self.execute(command).unwrap_or_else(SystemReply::Refused);
        assert!(self.state.map.epoch >= before, "the epoch never falls");
        Reply::System(reply.encode().into_boxed_slice())
    }

    fn snapshot(&self) -> Vec<u8> {
        let body = archive::encode(&self.state);
        let mut out = Vec::with_capacity(SNAPSHOT_HEADER_BYTES + body.len());
        out.extend_from_slice(&SNAPSHOT_MAGIC);
        out.extend_from_slice(&SNAPSHOT_VERSION.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.state = decode_snapshot(snapshot)?;
        self.publish_map();
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        archive::encode(&self.state).iter().fold(0xcbf2_9ce4_8422_2325, fnv)
    }
}

fn decode_snapshot(snapshot: &[u8]) -> Result<State, SnapshotError> {
    let (header, body) = snapshot
        .split_first_chunk::<SNAPSHOT_HEADER_BYTES>()
        .ok_or(SnapshotError::Damaged("it is shorter than its header"))?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i]));
    if header[..4] != SNAPSHOT_MAGIC {
        return Err(SnapshotError::Damaged("it is not one of a system shard"));
    }
    if word(4) != SNAPSHOT_VERSION {
        return Err(SnapshotError::Version { found: word(4), expected: SNAPSHOT_VERSION });
    }
    if word(8) != crc32fast::hash(body) {
        return Err(SnapshotError::Damaged("its checksum does not fit"));
    }
    let state: State = archive::decode(body, limits::SNAPSHOT_BYTES_MAX)
        .map_err(|_| SnapshotError::Damaged("its archive is not valid"))?;
    if state.joins.len() > limits::JOINS_KEPT_MAX || state.map.validate().is_err() {
        return Err(SnapshotError::Damaged("its map is not valid"));
    }
    let highest = state.map.members.last().map_or(0, |member| member.id.0);
    if state.map.moves.last().is_some_and(|last| last.number >= state.next_move) {
        return Err(SnapshotError::Damaged("it would number two moves alike"));
    }
    if state.next_id <= highest {
        return Err(SnapshotError::Damaged("it would give out an id twice"));
    }
    if state.next_id.max(state.next_move).max(state.map.epoch.0) > limits::COUNTED_MAX {
        return Err(SnapshotError::Damaged("it has counted more than any cluster does"));
    }
    Ok(state)
}

#[cfg(test)]
mod tests;
