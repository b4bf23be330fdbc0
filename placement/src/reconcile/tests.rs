//! Runs the decisions to a fixed point against a tiny model of a group.

use super::*;
use crate::map::tests::sample;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A group as the leader sees it. Each tick every running replica comes 100 entries nearer.
struct Model {
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    matched: BTreeMap<NodeId, u64>,
    down: BTreeSet<NodeId>,
    leader: NodeId,
    last: u64,
}

impl Model {
    fn new(voters: &[u64], down: &[u64]) -> Self {
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
        let voters = set(voters);
        let matched = voters.iter().map(|id| (*id, 1_000)).collect();
        let down = set(down);
        let leader = *voters.difference(&down).next().unwrap();
        Self { voters, learners: BTreeSet::new(), matched, down, leader, last: 1_000 }
    }

    fn status(&self, me: NodeId) -> GroupStatus {
        let leads = me == self.leader;
        let matched = self.matched.iter().map(|(id, at)| (*id, LogIndex(*at)));
        GroupStatus {
            shard: ShardId(1),
            me,
            term: Term(1),
            leader: Some(self.leader),
            is_owner: leads,
            voters: self.voters.iter().copied().collect(),
            learners: self.learners.iter().copied().collect(),
            matched: if leads { matched.collect() } else { Vec::new() },
            last: LogIndex(self.last),
            is_changing: false,
        }
    }

    fn tick(&mut self) {
        self.last += 1;
        for (node, matched) in &mut self.matched {
            if !self.down.contains(node) {
                *matched = (*matched + 100).min(self.last);
            }
        }
    }

    fn lag(&self, node: NodeId) -> u64 {
        self.last - self.matched.get(&node).copied().unwrap_or(0)
    }

    /// Does what was decided, and holds it to what a real group would demand.
    fn act(&mut self, action: GroupAction) {
        match action {
            GroupAction::AddLearner(node) => {
                assert!(!self.voters.contains(&node), "{node} votes already");
                assert!(self.learners.insert(node), "{node} learns already");
                self.matched.insert(node, 0);
            }
            GroupAction::ChangeVoters(voters) => {
                let voters: BTreeSet<NodeId> = voters.into_iter().collect();
                assert!(voters.contains(&self.leader), "a leader does not vote itself out");
                for node in voters.difference(&self.voters) {
                    assert!(self.learners.remove(node), "{node} never learned");
                    assert!(self.lag(*node) <= VOTER_LAG_MAX, "{node} votes too early");
                }
                let up = voters.iter().filter(|node| !self.down.contains(node)).count();
                assert!(up * 2 > voters.len(), "the new voters {voters:?} would have no quorum");
                self.voters = voters;
            }
            GroupAction::TransferLeader(node) => {
                assert!(self.voters.contains(&node) && !self.down.contains(&node));
                assert!(self.lag(node) <= OWNER_LAG_MAX, "{node} leads too early");
                self.leader = node;
            }
            GroupAction::RemoveLearner(node) => assert!(self.learners.remove(&node)),
            GroupAction::Nothing(_) => {}
        }
    }

    /// Ticks until nothing is done any more, and says what was done.
    fn settle(&mut self, map: &Map) -> (Vec<GroupAction>, Waiting) {
        let mut done = Vec::new();
        let mut quiet = 0;
        loop {
            assert!(done.len() < 40, "it goes round in circles: {done:?}");
            self.tick();
            match next_action(map, &self.status(self.leader)) {
                GroupAction::Nothing(waiting) if quiet > 40 => return (done, waiting),
                GroupAction::Nothing(_) => quiet += 1,
                action => {
                    quiet = 0;
                    done.push(action.clone());
                    self.act(action);
                }
            }
        }
    }
}

/// A map with shard 1 on these replicas; `dead` of its members are dead.
fn map(replicas: &[u64], preferred: u64, dead: &[u64]) -> Map {
    let mut map = sample();
    let template = map.members[0].clone();
    map.members = (1..8)
        .map(|id| {
            let gone = dead.contains(&id);
            let state = if gone { MemberState::Dead } else { MemberState::Alive };
            crate::Member { id: NodeId(id), state, ..template.clone() }
        })
        .collect();
    map.shards[1].replicas = replicas.iter().map(|id| NodeId(*id)).collect();
    map.shards[1].preferred = NodeId(preferred);
    map
}

fn change(voters: &[u64]) -> GroupAction {
    GroupAction::ChangeVoters(voters.iter().map(|id| NodeId(*id)).collect())
}

#[test]
fn a_lone_replica_grows_to_three_in_one_change_once_both_have_caught_up() {
    let (done, waiting) = Model::new(&[1], &[]).settle(&map(&[1, 2, 3], 1, &[]));
    let learner = |id| GroupAction::AddLearner(NodeId(id));
    assert_eq!(done, [learner(2), learner(3), change(&[1, 2, 3])]);
    assert_eq!(waiting, Waiting::Settled);
}

#[test]
fn a_dead_voter_is_replaced_by_one_that_has_caught_up() {
    let (done, waiting) = Model::new(&[1, 2, 3], &[1]).settle(&map(&[2, 3, 4], 3, &[1]));
    assert_eq!(
        done,
        [
            GroupAction::TransferLeader(NodeId(3)),
            GroupAction::AddLearner(NodeId(4)),
            change(&[2, 3, 4]),
        ]
    );
    assert_eq!(waiting, Waiting::Settled);
}

#[test]
fn a_dead_voter_without_replacement_stays_in_the_group() {
    let (done, waiting) = Model::new(&[1, 2, 3], &[3]).settle(&map(&[1, 2, 3], 1, &[3]));
    assert_eq!((done, waiting), (vec![], Waiting::Settled));
}

#[test]
fn a_newcomer_that_stopped_is_waited_for_and_never_votes() {
    let map = map(&[1, 2, 4], 1, &[3]);
    let mut model = Model::new(&[1, 2, 3], &[3, 4]);
    let (done, waiting) = model.settle(&map);
    assert_eq!(done, [GroupAction::AddLearner(NodeId(4))]);
    assert_eq!(waiting, Waiting::CatchUp(NodeId(4)));
    model.down.remove(&NodeId(4));
    assert_eq!(model.settle(&map), (vec![change(&[1, 2, 4])], Waiting::Settled));
}

#[test]
fn a_leader_that_is_not_wanted_hands_over_before_it_is_voted_out() {
    let (done, _) = Model::new(&[1], &[]).settle(&map(&[2], 2, &[]));
    assert_eq!(
        done,
        [
            GroupAction::AddLearner(NodeId(2)),
            change(&[1, 2]),
            GroupAction::TransferLeader(NodeId(2)),
            change(&[2]),
        ]
    );
}

#[test]
fn a_voter_that_is_behind_is_not_handed_the_shard() {
    let map = map(&[1, 2, 3], 2, &[]);
    let mut model = Model::new(&[1, 2, 3], &[]);
    model.matched.insert(NodeId(2), 1_000 - OWNER_LAG_MAX - 1);
    let action = next_action(&map, &model.status(NodeId(1)));
    assert_eq!(action, GroupAction::Nothing(Waiting::CatchUp(NodeId(2))));
    model.matched.insert(NodeId(2), 1_000 - OWNER_LAG_MAX);
    let action = next_action(&map, &model.status(NodeId(1)));
    assert_eq!(action, GroupAction::TransferLeader(NodeId(2)));
}

#[test]
fn a_shard_is_handed_only_to_a_node_that_was_heard_of_just_now() {
    let transfer = GroupAction::TransferLeader(NodeId(2));
    let heard = [(NodeId(2), Time::from_ms(1_000))];
    let last = 1_000 + HANDOVER_SILENCE_MS_MAX;
    assert!(may_act(&transfer, Time::from_ms(last), &heard));
    assert!(!may_act(&transfer, Time::from_ms(last + 1), &heard));
    assert!(!may_act(&transfer, Time::from_ms(1_000), &[]));
    assert!(may_act(&GroupAction::AddLearner(NodeId(2)), Time::from_ms(9_000), &[]));
}

#[test]
fn only_the_leader_acts_and_only_when_no_change_is_under_way() {
    let map = map(&[1, 2, 3, 4], 2, &[]);
    let model = Model::new(&[1, 2, 3], &[]);
    let mut status = model.status(NodeId(1));
    status.is_changing = true;
    assert_eq!(next_action(&map, &status), GroupAction::Nothing(Waiting::Changing));
    let other = model.status(NodeId(2));
    assert_eq!(next_action(&map, &other), GroupAction::Nothing(Waiting::NotLeader));
}

#[test]
fn learners_that_nobody_wants_are_forgotten() {
    let mut model = Model::new(&[1, 2, 3], &[]);
    model.learners.insert(NodeId(5));
    let (done, _) = model.settle(&map(&[1, 2, 3], 1, &[]));
    assert_eq!(done, [GroupAction::RemoveLearner(NodeId(5))]);
}

proptest! {
    #[test]
    fn any_group_reaches_any_wanted_set_of_living_nodes(
        from in proptest::sample::subsequence(vec![1_u64, 2, 3, 4, 5, 6, 7], 1..=5),
        wanted in proptest::sample::subsequence(vec![1_u64, 2, 3, 4, 5, 6, 7], 1..=5),
        prefer in 0_usize..5,
        victim in 0_usize..5,
    ) {
        // One voter is dead if the group survives that; the map does not want it.
        let dead: Vec<u64> = match from.len() {
            0..3 => vec![],
            len => vec![from[victim % len]],
        };
        let wanted: Vec<u64> = wanted.into_iter().filter(|id| !dead.contains(id)).collect();
        prop_assume!(!wanted.is_empty());
        let preferred = wanted[prefer % wanted.len()];
        let mut model = Model::new(&from, &dead);
        let (_, waiting) = model.settle(&map(&wanted, preferred, &dead));
        let voters: Vec<u64> = model.voters.iter().map(|node| node.0).collect();
        prop_assert_eq!(&voters, &wanted);
        prop_assert_eq!((model.leader, waiting), (NodeId(preferred), Waiting::Settled));
    }
}
