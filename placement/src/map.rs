//! The map: slot -> shard -> owner and replicas, with an epoch that only rises, and the members.
//!
//! A map is a value: it is never changed in place where somebody else can see it; each version is
//! published whole. Nothing here decides what a map should be. Decoding looks at limits and at what
//! would make a lookup go wrong; the rules of a good map are in [`crate::check`].

use crate::archive::{self, DecodeError, limit};
use crate::limits;
use crate::moves::SlotMove;
use core::fmt;
use nearstate_store::{Epoch, NodeId, ShardId, SlotId, Term};
use rkyv::{Archive, Deserialize, Serialize};
use std::net::SocketAddr;

/// What is thought of a member.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum MemberState {
    /// Heard of lately.
    Alive,
    /// Not heard of for a while: nothing is steered to it, nothing is taken from it. Undone when it
    /// is heard of again.
    Suspected,
    /// Given up, for good: this id never comes back (P6); its successor has another.
    Dead,
    /// Dead, and no group knows it any more.
    Retired,
    /// It ends in good order: it still votes and serves, and hands over what it owns.
    Leaving,
    /// It has handed over what it owned and has ended, for good as [`MemberState::Dead`] is.
    Left,
    /// It has left, and no group knows it any more.
    Departed,
}

impl MemberState {
    /// Whether its process may still run and take part.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Alive | Self::Suspected | Self::Leaving)
    }

    /// Whether it is over with this life of the node, while groups may still count on it.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        matches!(self, Self::Dead | Self::Left)
    }

    /// Whether nothing counts on it any more: it is kept for people to look at.
    #[must_use]
    pub const fn is_past(self) -> bool {
        matches!(self, Self::Retired | Self::Departed)
    }

    /// What it becomes when no group knows it any more.
    #[must_use]
    pub const fn retired(self) -> Self {
        match self {
            Self::Left | Self::Departed => Self::Departed,
            _ => Self::Retired,
        }
    }

    /// Its own word for each.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspected => "suspected",
            Self::Dead => "dead",
            Self::Retired => "retired",
            Self::Leaving => "leaving",
            Self::Left => "left",
            Self::Departed => "departed",
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One life of one node.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// This life's id.
    pub id: NodeId,
    /// The node's name: stays over its lives.
    pub name: String,
    /// Where peers and clients connect.
    pub address: SocketAddr,
    /// How packets reach it: paths of its shared-memory ports.
    pub ports: Vec<String>,
    /// What is thought of it.
    pub state: MemberState,
}

impl Member {
    /// The member in words for people: `n1 (id 3)`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{} (id {})", self.name, self.id.0)
    }
}

/// Where one shard lives.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ShardPlacement {
    /// Which shard; equal to its place in [`Map::shards`].
    pub shard: ShardId,
    /// The wanted members of its Raft group, ascending.
    pub replicas: Vec<NodeId>,
    /// The wanted owner, one of the replicas.
    pub preferred: NodeId,
    /// The owner that was reported last, and the term in which it leads. May be out of date.
    pub owner: Option<(NodeId, Term)>,
}

/// One version of the map.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its version; 0 only before the cluster is formed.
    pub epoch: Epoch,
    /// Drawn at random when the cluster was formed: tells it from another of the same name. Never
    /// changes; 0 only before the cluster is formed.
    pub lineage: u64,
    /// Slots of the cluster, a power of two; 0 only before the cluster is formed.
    pub slots: u32,
    /// Replicas that each shard should have.
    pub replicas_wanted: u16,
    /// The shard of each slot, by slot.
    pub slot_to_shard: Vec<u16>,
    /// All shards, by number; the first is the system shard, which has no slots.
    pub shards: Vec<ShardPlacement>,
    /// All members, by ascending id.
    pub members: Vec<Member>,
    /// Slots that are to move, in the order of the orders; the first is under way.
    pub moves: Vec<SlotMove>,
}

impl Map {
    /// The map of a cluster that is not formed yet.
    #[must_use]
    pub const fn unformed() -> Self {
        Self {
            epoch: Epoch(0),
            lineage: 0,
            slots: 0,
            replicas_wanted: 0,
            slot_to_shard: Vec::new(),
            shards: Vec::new(),
            members: Vec::new(),
            moves: Vec::new(),
        }
    }

    /// The shard of each slot in a new cluster of `shards` flow shards: slots in turn. Every
    /// replica's table begins with this; what has moved since, its log says.
    #[must_use]
    pub fn first_slots(slots: u32, shards: u16) -> Vec<u16> {
        (0..slots).map(|slot| 1 + (slot % u32::from(shards)) as u16).collect()
    }

    /// Whether there is a cluster.
    #[must_use]
    pub const fn is_formed(&self) -> bool {
        self.epoch.0 > 0
    }

    /// The bytes for the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        archive::encode(self)
    }

    /// A map from the wire.
    ///
    /// # Errors
    /// If the bytes are no map, or one whose parts are beyond their limits or point nowhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let map: Self = archive::decode(bytes, limits::MAP_BYTES_MAX)?;
        map.validate()?;
        Ok(map)
    }

    /// Whether all parts are within their limits and lookups lead somewhere.
    ///
    /// # Errors
    /// Names the part that is not.
    pub fn validate(&self) -> Result<(), DecodeError> {
        limit("slots", self.slots as usize, limits::SLOTS_MAX)?;
        limit("shards", self.shards.len(), limits::SHARDS_MAX)?;
        limit("members", self.members.len(), limits::MEMBERS_MAX)?;
        limit("moves", self.moves.len(), limits::MOVES_MAX)?;
        limit("replicas wanted", self.replicas_wanted.into(), limits::REPLICAS_MAX)?;
        if self.slot_to_shard.len() != self.slots as usize {
            return Err(inconsistent("not every slot has just one shard"));
        }
        if self.slot_to_shard.iter().any(|&shard| usize::from(shard) >= self.shards.len()) {
            return Err(inconsistent("a slot has a shard that there is not"));
        }
        let exists = |shard: ShardId| usize::from(shard.0) < self.shards.len();
        let leads =
            |m: &SlotMove| self.shard_of(m.slot).is_some() && exists(m.from) && exists(m.to);
        if !self.moves.iter().all(leads) || !self.moves.is_sorted_by(|a, b| a.number < b.number) {
            return Err(inconsistent("a move of a slot or a shard that there is not"));
        }
        for (number, placement) in self.shards.iter().enumerate() {
            limit("replicas", placement.replicas.len(), limits::REPLICAS_MAX)?;
            if usize::from(placement.shard.0) != number {
                return Err(inconsistent("shards are out of order"));
            }
        }
        self.members.iter().try_for_each(validate_member)?;
        if !self.members.is_sorted_by(|a, b| a.id < b.id) {
            return Err(inconsistent("members are out of order"));
        }
        Ok(())
    }

    /// The shard of a slot. Constant time, no allocation.
    #[must_use]
    pub fn shard_of(&self, slot: SlotId) -> Option<ShardId> {
        self.slot_to_shard.get(usize::from(slot.0)).map(|&shard| ShardId(shard))
    }

    /// The owner that was reported last for a slot. Constant time, no allocation.
    #[must_use]
    pub fn owner_of(&self, slot: SlotId) -> Option<NodeId> {
        self.shard(self.shard_of(slot)?)?.owner.map(|(node, _)| node)
    }

    /// Where a shard lives.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<&ShardPlacement> {
        self.shards.get(usize::from(shard.0))
    }

    /// What is known of a member.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&id, |member| member.id).ok()?;
        Some(&self.members[at])
    }

    /// A node in words for people, the same everywhere: `n1 (id 3)`.
    #[must_use]
    pub fn label(&self, id: NodeId) -> String {
        self.member(id).map_or_else(|| format!("unknown (id {})", id.0), Member::label)
    }

    /// What is thought of a node; one that nobody knows is retired.
    #[must_use]
    pub fn state_of(&self, id: NodeId) -> MemberState {
        self.member(id).map_or(MemberState::Retired, |member| member.state)
    }

    /// The newest live member of this name.
    #[must_use]
    pub fn live_member_named(&self, name: &str) -> Option<&Member> {
        self.members.iter().rev().find(|member| member.name == name && member.state.is_live())
    }

    /// Members that are alive, by ascending id.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state == MemberState::Alive)
    }
}

/// Whether a member that came from outside is within its limits.
///
/// # Errors
/// Names the part that is not.
pub fn validate_member(member: &Member) -> Result<(), DecodeError> {
    validate_name(&member.name)?;
    validate_ports(&member.ports)
}

/// Whether these may be a node's ports.
///
/// # Errors
/// Names the part that is beyond its limit.
pub fn validate_ports(ports: &[String]) -> Result<(), DecodeError> {
    limit("ports of a node", ports.len(), limits::PORTS_MAX)?;
    ports.iter().try_for_each(|port| limit("bytes of a port", port.len(), limits::PORT_BYTES_MAX))
}

/// Whether this may be a node's name: letters, digits, `-`, `_` and `.`, since names become parts
/// of lines and of file names.
///
/// # Errors
/// If it is empty, too long or has other characters.
pub fn validate_name(name: &str) -> Result<(), DecodeError> {
    limit("bytes of a name", name.len(), limits::NAME_BYTES_MAX)?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(inconsistent(
            "a name has letters, digits, `-`, `_` and `.`, and does not begin with a dot",
        ));
    }
    Ok(())
}

fn inconsistent(what: &str) -> DecodeError {
    DecodeError::Inconsistent(what.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three nodes, two flow shards, eight slots.
    pub(crate) fn sample() -> Map {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            address: SocketAddr::from(([127, 0, 0, 1], 9000 + id as u16)),
            ports: vec![format!("ports/n{id}")],
            state: MemberState::Alive,
        };
        let shard = |number: u16| ShardPlacement {
            shard: ShardId(number),
            replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
            preferred: NodeId(1 + u64::from(number)),
            owner: Some((NodeId(1 + u64::from(number)), Term(1))),
        };
        Map {
            epoch: Epoch(5),
            lineage: 0x1e,
            slots: 8,
            replicas_wanted: 3,
            slot_to_shard: vec![1, 2, 1, 2, 1, 2, 1, 2],
            shards: (0..3).map(shard).collect(),
            members: (1..4).map(member).collect(),
            moves: vec![],
        }
    }

    #[test]
    fn lookups_lead_from_slot_to_owner() {
        let map = sample();
        assert_eq!(map.shard_of(SlotId(3)), Some(ShardId(2)));
        assert_eq!(map.owner_of(SlotId(3)), Some(NodeId(3)));
        assert_eq!(map.owner_of(SlotId(8)), None);
        assert_eq!(map.live_member_named("n2").map(|m| m.id), Some(NodeId(2)));
        assert_eq!(map.state_of(NodeId(77)), MemberState::Retired);
    }

    #[test]
    fn a_map_survives_the_wire_at_any_alignment() {
        let map = sample();
        let mut shifted = vec![0_u8];
        shifted.extend(map.encode());
        assert_eq!(Map::decode(&shifted[1..]), Ok(map));
    }

    #[test]
    fn maps_that_lead_nowhere_are_refused() {
        type Edit = fn(&mut Map);
        let edits: [(&str, Edit); 9] = [
            ("a slot without a shard", |map| map.slot_to_shard.truncate(7)),
            ("a shard that there is not", |map| map.slot_to_shard[0] = 3),
            ("shards out of order", |map| map.shards.swap(0, 1)),
            ("members out of order", |map| map.members.swap(0, 1)),
            ("a member twice", |map| map.members[1].id = NodeId(1)),
            ("a name with a slash", |map| map.members[0].name = "../n1".into()),
            ("a long name", |map| map.members[0].name = "n".repeat(33)),
            ("many replicas", |map| map.shards[1].replicas = vec![NodeId(1); 8]),
            ("many members", |map| {
                let member = map.members[0].clone();
                map.members =
                    (0..257).map(|id| Member { id: NodeId(id), ..member.clone() }).collect();
            }),
        ];
        for (name, edit) in edits {
            let mut map = sample();
            edit(&mut map);
            assert!(Map::decode(&map.encode()).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 0_usize..400, bit in 0_u8..8, cut in 0_usize..400) {
            let mut bytes = sample().encode();
            let end = bytes.len().saturating_sub(cut);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = Map::decode(&bytes[..end]);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Map::decode(&bytes);
        }
    }
}
