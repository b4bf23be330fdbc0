//! Which node a packet goes to: the owner of its slot, or any living node at random.
//!
//! What it knows of the cluster (who lives, who owns which slot) may be old; a packet that goes to
//! the wrong node is served all the same (promise P4), so old knowledge costs locality only.

use super::random::Random;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::SlotId;

/// A node of this run, counted from 0 in the order in which they started; a replacement is another.
pub(crate) type NodeIndex = usize;

/// How packets are given to nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Steer {
    /// To the node that owns the packet's slot.
    Owner,
    /// To a random node, packet by packet.
    Random,
}

/// The slot of a packet with this tuple that goes in on this side.
pub(crate) type SlotOf = Box<dyn Fn(Side, &FlowTuple) -> SlotId>;

/// See the module's text.
pub(crate) struct Steerer {
    steer: Steer,
    slot_of: SlotOf,
    owners: Vec<Option<NodeIndex>>,
    living: Vec<NodeIndex>,
    random: Random,
}

impl Steerer {
    /// A steerer that knows of no node yet.
    pub(crate) fn new(steer: Steer, slot_of: SlotOf, random: Random) -> Self {
        Self { steer, slot_of, owners: Vec::new(), living: Vec::new(), random }
    }

    /// A node takes packets.
    pub(crate) fn handle_node_up(&mut self, node: NodeIndex) {
        if let Err(place) = self.living.binary_search(&node) {
            self.living.insert(place, node);
        }
    }

    /// A node takes no packets any more.
    pub(crate) fn handle_node_down(&mut self, node: NodeIndex) {
        self.living.retain(|&living| living != node);
    }

    /// Who owns each slot, as far as it is known.
    pub(crate) fn handle_owners(&mut self, owners: Vec<Option<NodeIndex>>) {
        self.owners = owners;
    }

    /// The nodes that take packets, in the order in which they started.
    pub(crate) fn living(&self) -> &[NodeIndex] {
        &self.living
    }

    /// The node for a packet; `None` while no node lives. A malformed packet has no tuple and goes
    /// to a random node.
    pub(crate) fn choose(&mut self, side: Side, tuple: Option<&FlowTuple>) -> Option<NodeIndex> {
        if let (Steer::Owner, Some(tuple)) = (self.steer, tuple) {
            let slot = (self.slot_of)(side, tuple);
            let owner = self.owners.get(usize::from(slot.0)).copied().flatten();
            if let Some(owner) = owner.filter(|owner| self.living.binary_search(owner).is_ok()) {
                return Some(owner);
            }
        }
        if self.living.is_empty() {
            return None;
        }
        Some(self.living[self.random.below(self.living.len() as u64) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_store::Endpoint;

    fn tuple(port: u16) -> FlowTuple {
        FlowTuple {
            protocol: 17,
            source: Endpoint::v4([10, 0, 0, 1], port),
            destination: Endpoint::v4([192, 0, 2, 1], 53),
        }
    }

    fn steerer(steer: Steer) -> Steerer {
        let slot_of: SlotOf = Box::new(|_, tuple| SlotId(tuple.source.port % 4));
        Steerer::new(steer, slot_of, Random::new(1, 0))
    }

    #[test]
    fn a_slot_goes_to_its_owner_while_that_lives() {
        let mut steerer = steerer(Steer::Owner);
        assert_eq!(steerer.choose(Side::Inside, Some(&tuple(1))), None);
        for node in [2, 0, 1, 1] {
            steerer.handle_node_up(node);
        }
        assert_eq!(steerer.living(), [0, 1, 2]);
        steerer.handle_owners(vec![Some(0), Some(2), Some(1), None]);
        for (port, owner) in [(1, 2), (2, 1), (4, 0)] {
            assert_eq!(steerer.choose(Side::Inside, Some(&tuple(port))), Some(owner));
        }
        steerer.handle_node_down(2);
        for _ in 0..50 {
            let chosen = steerer.choose(Side::Inside, Some(&tuple(1))).unwrap();
            assert!(chosen == 0 || chosen == 1, "a dead owner gets nothing");
        }
    }

    #[test]
    fn random_steering_reaches_every_living_node() {
        let mut steerer = steerer(Steer::Random);
        (0..3).for_each(|node| steerer.handle_node_up(node));
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[steerer.choose(Side::Inside, Some(&tuple(1))).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| count > 60), "{seen:?}");
    }
}
