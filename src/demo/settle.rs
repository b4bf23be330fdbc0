//! Whether a cluster is ready for traffic, and for a kill: every shard has its owner and its
//! replicas.
//!
//! Pure: takes what the members say of themselves.

use nearstate_placement::api::{ShardRole, StatusReport};
use nearstate_placement::{Map, ShardPlacement};
use nearstate_store::NodeId;

/// What a cluster still lacks, in words; `None` if nothing. `strictly`: also that every shard is
/// owned by the node that the map wants to own it, that steerers know it, and that the flow shards
/// are spread evenly.
pub(crate) fn lack(
    map: &Map,
    reports: &[StatusReport],
    nodes: usize,
    strictly: bool,
) -> Option<String> {
    if !map.is_formed() || map.shards.len() < 2 {
        return Some("there is no map with shards yet".to_owned());
    }
    let replicas = usize::from(map.replicas_wanted).min(nodes);
    let lacking = map.shards.iter().find_map(|placement| {
        let shard = placement.shard;
        let owner = reports.iter().find_map(|report| {
            let mut seen = report.shards.iter().filter(|seen| seen.role == ShardRole::Owner);
            Some((report.node, seen.find(|seen| seen.shard == shard)?))
        });
        let Some((owner, seen)) = owner else {
            return Some(format!("{shard} has no owner"));
        };
        if seen.voters.len() < replicas {
            let voters = seen.voters.len();
            return Some(format!("{shard} has {voters} of {replicas} replicas"));
        }
        let wanted = placement.preferred;
        let is_known = placement.owner.is_some_and(|(known, _)| known == wanted);
        (strictly && (owner != wanted || !is_known))
            .then(|| format!("{shard} is to move from {owner} to {wanted}"))
    });
    lacking.or_else(|| (strictly && !is_even(map)).then(|| "shards are not spread yet".to_owned()))
}

/// Whether no living node is to own, or to keep, two flow shards more than another.
fn is_even(map: &Map) -> bool {
    let flow_shards = &map.shards[1..];
    let is_even_in = |counts: &dyn Fn(&ShardPlacement, NodeId) -> bool| {
        let loads =
            map.alive().map(|node| flow_shards.iter().filter(|s| counts(s, node.id)).count());
        let (least, most) = loads.fold((usize::MAX, 0), |(l, m), n| (l.min(n), m.max(n)));
        most <= least.saturating_add(1)
    };
    is_even_in(&|shard, node| shard.preferred == node)
        && is_even_in(&|shard, node| shard.replicas.contains(&node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::api::ShardStatus;
    use nearstate_placement::{Member, MemberState};
    use nearstate_store::{Epoch, LogIndex, ShardId, Term};

    fn map() -> Map {
        let shard = |number| ShardPlacement {
            shard: ShardId(number),
            replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
            preferred: NodeId(u64::from(number) + 1),
            owner: Some((NodeId(u64::from(number) + 1), Term(1))),
        };
        Map {
            epoch: Epoch(2),
            lineage: 1,
            slots: 2,
            replicas_wanted: 3,
            slot_to_shard: vec![1, 1],
            moves: vec![],
            shards: vec![shard(0), shard(1)],
            members: Vec::new(),
        }
    }

    fn report(node: u64, shards: &[(u16, ShardRole, usize)]) -> StatusReport {
        let shard = |&(number, role, voters): &(u16, ShardRole, usize)| ShardStatus {
            shard: ShardId(number),
            role,
            term: Term(1),
            leader: None,
            applied: LogIndex(0),
            lease_left_ms: 0,
            entries: 0,
            capacity: 1,
            voters: (1..=voters as u64).map(NodeId).collect(),
            lag: Vec::new(),
        };
        StatusReport {
            node: NodeId(node),
            name: format!("n{node}"),
            incarnation: 1,
            uptime_ms: 0,
            map_epoch: Epoch(2),
            shards: shards.iter().map(shard).collect(),
            counters: Vec::new(),
            members: Vec::new(),
        }
    }

    #[test]
    fn a_cluster_is_ready_when_every_shard_has_owner_and_replicas() {
        use ShardRole::{Follower, Leader, Owner};
        let system = (0, Owner, 3);
        for (shards, nodes, strictly, lacks) in [
            (vec![system, (1, Owner, 3)], 3, false, None),
            (vec![system, (1, Leader, 3)], 3, false, Some("shard-1 has no owner")),
            (vec![system, (1, Follower, 3)], 3, false, Some("shard-1 has no owner")),
            (vec![system, (1, Owner, 2)], 3, false, Some("shard-1 has 2 of 3 replicas")),
            (vec![system, (1, Owner, 2)], 2, false, None),
            (
                vec![system, (1, Owner, 3)],
                3,
                true,
                Some("shard-1 is to move from node-1 to node-2"),
            ),
        ] {
            let found = lack(&map(), &[report(1, &shards)], nodes, strictly);
            assert_eq!(found.as_deref(), lacks);
        }
        let both = [report(1, &[system]), report(2, &[(1, Owner, 3)])];
        assert_eq!(lack(&map(), &both, 3, true), None);
        assert!(lack(&Map::unformed(), &[], 3, false).is_some());
    }

    #[test]
    fn a_node_that_came_late_gets_its_share_first() {
        let member = |id| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            address: ([127, 0, 0, 1], 1).into(),
            ports: Vec::new(),
            state: MemberState::Alive,
        };
        let mut map = map();
        map.members = (1..=4).map(member).collect();
        assert!(is_even(&map), "one flow shard cannot be everywhere");
        for number in 2..=4 {
            let shard = ShardPlacement { shard: ShardId(number), ..map.shards[1].clone() };
            map.shards.push(shard);
        }
        let preferred = [1, 1, 2, 3, 3].map(NodeId);
        for (shard, preferred) in map.shards.iter_mut().zip(preferred) {
            shard.preferred = preferred;
        }
        assert!(!is_even(&map), "node 4 keeps nothing");
        for number in [1, 2, 3] {
            map.shards[number].replicas[number - 1] = NodeId(4);
        }
        assert!(!is_even(&map), "node 4 owns nothing");
        map.shards[4].preferred = NodeId(3);
        map.shards[3].preferred = NodeId(4);
        assert!(is_even(&map));
    }
}
