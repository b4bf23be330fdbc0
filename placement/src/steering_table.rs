//! A map compiled for steerers: slot -> node in one array read.
//!
//! Where a packet is sent is a matter of speed, never of truth: any node serves any packet (P4). So
//! a shard whose reported owner looks gone is steered to the wanted one before that one has
//! answered.

use crate::map::{Map, MemberState, ShardPlacement};
use nearstate_store::{Epoch, NodeId, SlotId};

/// No node is 0.
const NOBODY: NodeId = NodeId(0);

/// Slot -> node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringTable {
    epoch: Epoch,
    nodes: Box<[NodeId]>,
}

impl SteeringTable {
    /// The table of a map.
    #[must_use]
    pub fn compile(map: &Map) -> Self {
        let by_shard: Vec<NodeId> = map.shards.iter().map(|shard| target(map, shard)).collect();
        let node = |shard: &u16| by_shard.get(usize::from(*shard)).copied().unwrap_or(NOBODY);
        Self { epoch: map.epoch, nodes: map.slot_to_shard.iter().map(node).collect() }
    }

    /// Version of the map that it was made from.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The node that a slot's packets are best sent to. Constant time, no allocation.
    #[must_use]
    pub fn owner_of(&self, slot: SlotId) -> Option<NodeId> {
        self.nodes.get(usize::from(slot.0)).copied().filter(|node| *node != NOBODY)
    }
}

fn target(map: &Map, shard: &ShardPlacement) -> NodeId {
    let reported = shard.owner.map(|(node, _)| node);
    let candidates = [reported, Some(shard.preferred)];
    let with = |state| candidates.into_iter().flatten().find(|id| map.state_of(*id) == state);
    let any_alive = || {
        let mut replicas = shard.replicas.iter().copied();
        replicas.find(|id| map.state_of(*id) == MemberState::Alive)
    };
    with(MemberState::Alive)
        .or_else(any_alive)
        .or_else(|| with(MemberState::Suspected))
        .unwrap_or(NOBODY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::tests::sample;

    #[test]
    fn packets_go_to_the_reported_owner_while_it_is_alive() {
        let mut map = sample();
        map.shards[1].preferred = NodeId(3);
        let owner_of = |map: &Map| SteeringTable::compile(map).owner_of(SlotId(0));
        assert_eq!(owner_of(&map), Some(NodeId(2)), "reported, though another is wanted");
        map.members[1].state = MemberState::Suspected;
        assert_eq!(owner_of(&map), Some(NodeId(3)), "suspected: the wanted one");
        map.members[2].state = MemberState::Dead;
        assert_eq!(owner_of(&map), Some(NodeId(1)), "any replica that is alive");
        map.members[0].state = MemberState::Dead;
        assert_eq!(owner_of(&map), Some(NodeId(2)), "better a suspected one than none");
        map.members[1].state = MemberState::Dead;
        assert_eq!(owner_of(&map), None);
        assert_eq!(SteeringTable::compile(&map).owner_of(SlotId(8)), None);
    }
}
