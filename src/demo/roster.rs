//! The nodes of this run by the order in which they came: who lives, who owns what, what they
//! counted.
//!
//! Pure bookkeeping between the cluster's words (node ids, maps, counters) and the driver's.

use super::report::{Accesses, KillReport, NodeReport};
use super::steerer::NodeIndex;
use nearstate_placement::{Map, SteeringTable};
use nearstate_store::{NodeId, SlotId};

/// One life of one node.
#[derive(Clone, Debug)]
struct Seen {
    name: String,
    id: NodeId,
    alive: bool,
    accesses: Accesses,
    commits: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    seen: Vec<Seen>,
    owners: Vec<Option<NodeIndex>>,
    kills: Vec<KillReport>,
}

impl Roster {
    /// A node serves; gives its place.
    pub(crate) fn handle_ready(&mut self, name: &str, id: NodeId) -> NodeIndex {
        assert!(self.index(id).is_none(), "{id} is ready twice; ids are never used again");
        let (accesses, commits) = (Accesses::default(), 0);
        self.seen.push(Seen { name: name.to_owned(), id, alive: true, accesses, commits });
        self.seen.len() - 1
    }

    /// A node is gone.
    pub(crate) fn handle_died(&mut self, id: NodeId) -> Option<NodeIndex> {
        let index = self.index(id)?;
        self.seen[index].alive = false;
        Some(index)
    }

    /// A dead node has a successor.
    pub(crate) fn handle_replaced(&mut self, old: NodeId, new: NodeId) {
        let new = self.index(new).map(|index| format!("{} (id {})", self.seen[index].name, new.0));
        if let Some(kill) = self.kills.iter_mut().find(|kill| kill.id == old.0) {
            kill.replaced_by = new;
        }
    }

    /// A newer map; gives the owner of each slot.
    pub(crate) fn handle_map(&mut self, map: &Map) -> Vec<Option<NodeIndex>> {
        let table = SteeringTable::compile(map);
        let slots = 0..map.slot_to_shard.len() as u32;
        self.owners = slots
            .map(|slot| table.owner_of(SlotId(slot as u16)).and_then(|id| self.index(id)))
            .collect();
        self.owners.clone()
    }

    /// What a node has counted, by the names of its counters.
    pub(crate) fn handle_counters(&mut self, id: NodeId, counters: &[(String, u64)]) {
        let Some(index) = self.index(id) else { return };
        let count = |name: &str| {
            counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, count)| *count)
        };
        let seen = &mut self.seen[index];
        seen.commits = count("commits");
        seen.accesses = Accesses {
            local: count("access:local"),
            remote_shm: count("access:remote_shm"),
            remote_tcp: count("access:remote_tcp"),
            remote_rdma: count("access:remote_rdma"),
        };
    }

    /// A node is to be killed now.
    pub(crate) fn handle_kill(&mut self, node: NodeIndex, at_packet: u64, at_ms: f64) {
        let Seen { name, id, .. } = &self.seen[node];
        self.kills.push(KillReport {
            name: name.clone(),
            id: id.0,
            at_packet,
            at_ms,
            inside: 0,
            replaced_by: None,
        });
    }

    /// So many packets were inside a node that died.
    pub(crate) fn handle_buried(&mut self, node: NodeIndex, inside: u64) {
        let id = self.seen[node].id.0;
        if let Some(kill) = self.kills.iter_mut().find(|kill| kill.id == id) {
            kill.inside += inside;
        }
    }

    /// Of the living nodes that own slots the one with the most packets; without one that owns any,
    /// the living one with the most packets.
    pub(crate) fn busiest(&self, answered: impl Fn(NodeIndex) -> u64) -> Option<NodeIndex> {
        let owns = |node: &NodeIndex| self.owners.contains(&Some(*node));
        let living = || (0..self.seen.len()).filter(|&node| self.seen[node].alive);
        let most = |node: &NodeIndex| (answered(*node), std::cmp::Reverse(*node));
        living().filter(owns).max_by_key(most).or_else(|| living().max_by_key(most))
    }

    /// The node's number in the cluster.
    pub(crate) fn id(&self, node: NodeIndex) -> NodeId {
        self.seen[node].id
    }

    /// The node's name.
    pub(crate) fn name(&self, node: NodeIndex) -> &str {
        &self.seen[node].name
    }

    /// The living nodes and how many slots each owns, by the newest map.
    pub(crate) fn owned(&self) -> Vec<(String, usize)> {
        let slots = |node| self.owners.iter().filter(|owner| **owner == Some(node)).count();
        let living = self.seen.iter().enumerate().filter(|(_, seen)| seen.alive);
        living.map(|(node, seen)| (seen.name.clone(), slots(node))).collect()
    }

    /// Whether every node that was killed has a successor.
    pub(crate) fn is_whole_again(&self) -> bool {
        self.kills.iter().all(|kill| kill.replaced_by.is_some())
    }

    /// All nodes, for the report.
    pub(crate) fn node_reports(&self, answered: impl Fn(NodeIndex) -> u64) -> Vec<NodeReport> {
        let report = |(index, seen): (NodeIndex, &Seen)| NodeReport {
            name: seen.name.clone(),
            id: seen.id.0,
            alive: seen.alive,
            packets: answered(index),
            accesses: seen.accesses,
            commits: seen.commits,
        };
        self.seen.iter().enumerate().map(report).collect()
    }

    /// All kills, for the report.
    pub(crate) fn kill_reports(&self) -> Vec<KillReport> {
        self.kills.clone()
    }

    fn index(&self, id: NodeId) -> Option<NodeIndex> {
        self.seen.iter().position(|seen| seen.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_of_a_node_from_ready_to_replaced() {
        let mut roster = Roster::default();
        for id in 1..=3 {
            roster.handle_ready(&format!("n{id}"), NodeId(id));
        }
        roster.owners = vec![Some(0), Some(2)];
        let answered = |node: NodeIndex| [5, 9, 5][node];
        assert_eq!(roster.busiest(answered), Some(0), "the busiest node owns nothing");
        roster.handle_kill(0, 10, 1.5);
        assert_eq!(roster.handle_died(NodeId(1)), Some(0));
        roster.handle_buried(0, 4);
        assert_eq!(roster.busiest(answered), Some(2));
        assert!(!roster.is_whole_again());
        assert_eq!(roster.handle_ready("n1", NodeId(4)), 3);
        roster.handle_replaced(NodeId(1), NodeId(4));
        assert!(roster.is_whole_again());
        let kill = &roster.kill_reports()[0];
        assert_eq!((kill.inside, kill.replaced_by.as_deref()), (4, Some("n1 (id 4)")));
        let owned = [("n2", 0), ("n3", 1), ("n1", 0)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(roster.owned(), owned);
        assert_eq!(roster.handle_died(NodeId(9)), None);
    }

    #[test]
    fn counters_are_found_by_their_names() {
        let mut roster = Roster::default();
        roster.handle_ready("n1", NodeId(1));
        let counters = [("commits", 3), ("access:remote_shm", 2), ("access:local", 6)]
            .map(|(name, count)| (name.to_owned(), count));
        roster.handle_counters(NodeId(1), &counters);
        let report = &roster.node_reports(|_| 7)[0];
        assert_eq!((report.commits, report.packets, report.accesses.local), (3, 7, 6));
        assert_eq!(report.accesses.locality(), 0.75);
    }
}
