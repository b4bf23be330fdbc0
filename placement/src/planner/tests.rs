//! Any legal map and any facts: the plan keeps the rules, and planning again changes nothing. (What
//! plans look like is in `tests/golden`.)

use super::*;
use crate::check::{Violation, check_map, check_step};
use nearstate_store::{Epoch, Term};
use proptest::prelude::*;

const MEMBERS: u64 = 7;

fn any_member(id: u64) -> impl Strategy<Value = Member> {
    use MemberState::{Alive, Dead, Retired, Suspected};
    let states = vec![Alive, Alive, Alive, Alive, Suspected, Dead, Dead, Retired];
    (proptest::sample::select(states), 0..4_u8).prop_map(move |(state, name)| Member {
        id: NodeId(id),
        name: format!("n{name}"),
        address: ([127, 0, 0, 1], 1).into(),
        ports: vec![],
        state,
    })
}

fn any_nodes(most: usize) -> impl Strategy<Value = Vec<NodeId>> {
    let all: Vec<NodeId> = (1..=MEMBERS).map(NodeId).collect();
    proptest::sample::subsequence(all, 1..=most)
}

fn any_shard(number: u16) -> impl Strategy<Value = (ShardPlacement, Option<ShardFact>)> {
    let shard = ShardId(number);
    let owner = proptest::option::of((1..=MEMBERS).prop_map(|id| (NodeId(id), Term(1))));
    let placement = (any_nodes(5), any::<proptest::sample::Index>(), owner).prop_map(
        move |(replicas, preferred, owner)| {
            let preferred = *preferred.get(&replicas);
            ShardPlacement { shard, replicas, preferred, owner }
        },
    );
    let lag = proptest::collection::vec((1..=MEMBERS, 0_u64..130), 0..4);
    (placement, any_nodes(5), lag, 0..4_u8).prop_map(move |(placement, odd, lag, kind)| {
        // Mostly groups that are as the map wants; sometimes others, sometimes nothing is known.
        let voters = if kind == 0 { odd } else { placement.replicas.clone() };
        let lag = lag.into_iter().map(|(id, lag)| (NodeId(id), lag)).collect();
        let (leader, said_by_leader) = (voters.first().copied(), kind != 1);
        let fact = ShardFact { shard, leader, said_by_leader, voters, lag };
        (placement, (kind != 3).then_some(fact))
    })
}

fn any_world() -> impl Strategy<Value = (Map, Vec<ShardFact>)> {
    let members: Vec<_> = (1..=MEMBERS).map(any_member).collect();
    let shards: Vec<_> = (0..5_u16).map(any_shard).collect();
    (members, shards, 1_u16..5).prop_map(|(members, shards, replicas_wanted)| {
        let (shards, facts): (Vec<_>, Vec<_>) = shards.into_iter().unzip();
        let map = Map {
            epoch: Epoch(9),
            lineage: 1,
            slots: 4,
            replicas_wanted,
            slot_to_shard: vec![1, 2, 3, 4],
            moves: vec![],
            shards,
            members,
        };
        (map, facts.into_iter().flatten().collect())
    })
}

/// Makes a random map one that can be: the retired and the doubly named become dead.
fn legal(mut map: Map) -> Map {
    let mut names = std::collections::BTreeSet::new();
    for member in &mut map.members {
        let twice = member.state.is_live() && !names.insert(member.name.clone());
        if twice || member.state == MemberState::Retired {
            member.state = MemberState::Dead;
        }
    }
    map
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn plans_keep_the_rules_and_planning_again_changes_nothing((map, facts) in any_world()) {
        let map = legal(map);
        let late = |v: &Violation| matches!(v, Violation::PreferredDead(..));
        prop_assert!(check_map(&map).iter().all(late));
        let policy = PlanPolicy::default();
        let Some(next) = plan(&map, &facts, &policy).next else { return Ok(()) };
        prop_assert_eq!(check_step(&map, &next), vec![]);
        prop_assert_eq!(plan(&next, &facts, &policy).next, None);
        for (before, after) in map.shards.iter().zip(&next.shards) {
            let to = after.preferred;
            let moved = before.preferred != to;
            let forced = map.state_of(before.preferred) == MemberState::Dead;
            let fact = facts.iter().find(|fact| fact.shard == after.shard);
            let ready = fact.is_some_and(|fact| {
                let behind = fact.lag.iter().find(|(node, _)| *node == to);
                fact.voters.contains(&to) && behind.is_none_or(|(_, lag)| *lag <= 64)
            });
            prop_assert!(!moved || forced || ready, "{} goes to {} too early", after.shard, to);
        }
    }
}
