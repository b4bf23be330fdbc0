//! Rules that every map keeps, and rules for going from one map to the next.
//!
//! Written from the meaning of a map alone: it shares no code with the planner, so that a mistake
//! made there is not made here again. Tests run it on every map; the system machine refuses what
//! breaks it.

use crate::map::{Map, Member, MemberState, ShardPlacement};
use crate::moves::{MovePhase, SlotMove};
use nearstate_store::{Epoch, NodeId, ShardId, SlotId};
use std::collections::BTreeSet;
use thiserror::Error;

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A part is beyond its limit, or a lookup leads nowhere.
    #[error("{0}")]
    Malformed(String),
    /// Nothing tells this cluster from another of its name.
    #[error("a cluster has a lineage, drawn when it is formed")]
    NoLineage,
    /// The lineage is fixed when the cluster is made.
    #[error("the map is of lineage {1:016x}, not {0:016x}: another cluster's of the same name")]
    LineageChanged(u64, u64),
    /// Not a power of two.
    #[error("{0} slots are not a power of two")]
    SlotCount(u32),
    /// The system shard has no slots, and a shard must exist to have any.
    #[error("{0} belongs to {1}, which is no flow shard")]
    NoFlowShard(SlotId, ShardId),
    /// Nobody keeps it.
    #[error("{0} has no replica")]
    NoReplica(ShardId),
    /// The same node twice.
    #[error("{0} has {1} twice among its replicas")]
    ReplicaTwice(ShardId, NodeId),
    /// A replica at a node that is not a member, or not any more.
    #[error("{0} has a replica at {1}, which is no member")]
    ReplicaNoMember(ShardId, NodeId),
    /// The wanted owner has no replica.
    #[error("{0} should be owned by {1}, which has no replica of it")]
    PreferredNoReplica(ShardId, NodeId),
    /// The wanted owner is dead although a live replica exists.
    #[error("{0} should be owned by {1}, which is dead, and a live replica exists")]
    PreferredDead(ShardId, NodeId),
    /// The owner is not known.
    #[error("{0} is said to be owned by {1}, which is no member")]
    OwnerNoMember(ShardId, NodeId),
    /// No node is 0.
    #[error("0 is no node's id")]
    IdZero,
    /// Two live members of one name.
    #[error("two live members are called {0}")]
    NameTwice(String),
    /// The epoch must rise.
    #[error("{1} does not come after {0}")]
    EpochNotRising(Epoch, Epoch),
    /// The number of slots is fixed when the cluster is made.
    #[error("the number of slots or shards changed")]
    ShapeChanged,
    /// A slot changed its shard otherwise than by the switch of the move that was under way.
    #[error("{0} changed its shard")]
    SlotMoved(SlotId),
    /// An order to move a slot that makes no sense, or is further than it can be.
    #[error("move {0} contradicts the map or another move")]
    BrokenMove(u64),
    /// A member that is not retired vanished.
    #[error("{0} vanished without being retired")]
    MemberVanished(NodeId),
    /// A member's id has come to mean something else.
    #[error("{0} changed its name, address or ports")]
    MemberChanged(NodeId),
    /// Dead is for good (P6).
    #[error("{0} went from {1} to {2}")]
    Resurrected(NodeId, MemberState, MemberState),
    /// New ids are above all ids before.
    #[error("{0} is new, but not above all ids before")]
    IdReused(NodeId),
    /// More than a minority of a shard's replicas went at once.
    #[error("{0} lost {1} of its {2} replicas in one step")]
    TooManyRemoved(ShardId, usize, usize),
    /// A reported term fell.
    #[error("the reported term of {0} fell")]
    TermFell(ShardId),
}

/// All rules that one map breaks.
#[must_use]
pub fn check_map(map: &Map) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Err(error) = map.validate() {
        // The other rules presume that lookups lead somewhere.
        return vec![Violation::Malformed(error.to_string())];
    }
    if !map.is_formed() {
        return found;
    }
    if map.lineage == 0 {
        found.push(Violation::NoLineage);
    }
    if !map.slots.is_power_of_two() {
        found.push(Violation::SlotCount(map.slots));
    }
    for (slot, &shard) in map.slot_to_shard.iter().enumerate() {
        if shard == ShardId::SYSTEM.0 {
            found.push(Violation::NoFlowShard(SlotId(slot as u16), ShardId(shard)));
        }
    }
    for shard in &map.shards {
        check_shard(map, shard, &mut found);
    }
    check_members(&map.members, &mut found);
    check_moves(map, &mut found);
    found
}

fn check_moves(map: &Map, found: &mut Vec<Violation>) {
    let mut slots = BTreeSet::new();
    for (place, order) in map.moves.iter().enumerate() {
        let lies_in = map.slot_to_shard[usize::from(order.slot.0)];
        let should = if order.phase == MovePhase::Dropping { order.to } else { order.from };
        let waits = place == 0 || order.phase == MovePhase::Copying;
        let shards = order.from != order.to && order.to != ShardId::SYSTEM;
        let once = slots.insert(order.slot);
        if lies_in != should.0 || !waits || !shards || !once || order.number == 0 {
            found.push(Violation::BrokenMove(order.number));
        }
    }
}

fn check_shard(map: &Map, shard: &ShardPlacement, found: &mut Vec<Violation>) {
    let id = shard.shard;
    let is_member = |node: NodeId| map.members.iter().any(|m| m.id == node && !m.state.is_past());
    let mut seen = BTreeSet::new();
    for &replica in &shard.replicas {
        if !seen.insert(replica) {
            found.push(Violation::ReplicaTwice(id, replica));
        }
        if !is_member(replica) {
            found.push(Violation::ReplicaNoMember(id, replica));
        }
    }
    if seen.is_empty() {
        found.push(Violation::NoReplica(id));
    }
    if !seen.contains(&shard.preferred) {
        found.push(Violation::PreferredNoReplica(id, shard.preferred));
    }
    let dead = |node: &NodeId| {
        let gone = |m: &Member| m.state.is_gone();
        map.members.iter().any(|m| m.id == *node && gone(m))
    };
    if dead(&shard.preferred) && !seen.iter().all(dead) {
        found.push(Violation::PreferredDead(id, shard.preferred));
    }
    if let Some((owner, _)) = shard.owner
        && !is_member(owner)
    {
        found.push(Violation::OwnerNoMember(id, owner));
    }
}

fn check_members(members: &[Member], found: &mut Vec<Violation>) {
    let mut names = BTreeSet::new();
    for member in members {
        if member.id == NodeId(0) {
            found.push(Violation::IdZero);
        }
        let live = matches!(
            member.state,
            MemberState::Alive | MemberState::Suspected | MemberState::Leaving
        );
        if live && !names.insert(&member.name) {
            found.push(Violation::NameTwice(member.name.clone()));
        }
    }
}

/// All rules that going from `old` to `new` breaks, those of `new` alone among them.
#[must_use]
pub fn check_step(old: &Map, new: &Map) -> Vec<Violation> {
    let mut found = check_map(new);
    if new.epoch <= old.epoch {
        found.push(Violation::EpochNotRising(old.epoch, new.epoch));
    }
    if !old.is_formed() {
        return found;
    }
    if old.lineage != new.lineage {
        found.push(Violation::LineageChanged(old.lineage, new.lineage));
    }
    if old.slot_to_shard.len() != new.slot_to_shard.len() || old.shards.len() != new.shards.len() {
        found.push(Violation::ShapeChanged);
        return found;
    }
    let slots = old.slot_to_shard.iter().zip(&new.slot_to_shard).enumerate();
    for (slot, (before, after)) in slots.filter(|(_, (before, after))| before != after) {
        let slot = SlotId(slot as u16);
        let switched = |old: &&SlotMove| {
            let is_this = (old.slot, old.from.0, old.to.0) == (slot, *before, *after);
            is_this && old.phase == MovePhase::Switching
        };
        let switched = old.moves.first().filter(switched);
        let goes_on = |old: &SlotMove| {
            new.moves.first() == Some(&SlotMove { phase: MovePhase::Dropping, ..*old })
        };
        if !switched.is_some_and(goes_on) {
            found.push(Violation::SlotMoved(slot));
        }
    }
    for (before, after) in old.shards.iter().zip(&new.shards) {
        check_shard_step(before, after, &mut found);
    }
    check_member_step(old, new, &mut found);
    found
}

fn check_shard_step(old: &ShardPlacement, new: &ShardPlacement, found: &mut Vec<Violation>) {
    let removed = old.replicas.iter().filter(|node| !new.replicas.contains(node)).count();
    if removed > 0 && removed * 2 >= old.replicas.len() {
        found.push(Violation::TooManyRemoved(new.shard, removed, old.replicas.len()));
    }
    if let (Some((_, before)), Some((_, after))) = (old.owner, new.owner)
        && after < before
    {
        found.push(Violation::TermFell(new.shard));
    }
}

fn check_member_step(old: &Map, new: &Map, found: &mut Vec<Violation>) {
    for before in &old.members {
        let Some(after) = new.members.iter().find(|member| member.id == before.id) else {
            if !before.state.is_past() {
                found.push(Violation::MemberVanished(before.id));
            }
            continue;
        };
        if (&before.name, before.address, &before.ports)
            != (&after.name, after.address, &after.ports)
        {
            found.push(Violation::MemberChanged(before.id));
        }
        // Who leaves does not come back either: it has stopped taking packets.
        let rank = |state| match state {
            MemberState::Alive | MemberState::Suspected => 0,
            MemberState::Leaving => 1,
            MemberState::Dead | MemberState::Left => 2,
            MemberState::Retired | MemberState::Departed => 3,
        };
        // How a life has ended does not change afterwards.
        let is_rewritten = rank(before.state) >= 2
            && after.state != before.state
            && after.state != before.state.retired();
        if rank(after.state) < rank(before.state) || is_rewritten {
            found.push(Violation::Resurrected(before.id, before.state, after.state));
        }
    }
    let highest = old.members.iter().map(|member| member.id).max().unwrap_or_default();
    for after in &new.members {
        let known = old.members.iter().any(|member| member.id == after.id);
        if !known && after.id <= highest {
            found.push(Violation::IdReused(after.id));
        }
    }
}

/// Asserts that a step which our own code proposes breaks no rule.
///
/// # Panics
/// If it does: then the planner has a fault, and stopping is better than spreading it.
pub fn assert_step(old: &Map, new: &Map) {
    let found = check_step(old, new);
    assert!(found.is_empty(), "a map that breaks rules was about to be proposed: {found:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::tests::sample;
    use nearstate_store::Term;

    type Edit = fn(&mut Map);

    #[test]
    fn the_sample_keeps_all_rules() {
        assert_eq!(check_map(&sample()), vec![]);
        assert_eq!(check_map(&Map::unformed()), vec![]);
    }

    #[test]
    fn each_rule_of_a_map_is_found_broken() {
        use Violation as V;
        let (s, n) = (ShardId(1), NodeId(2));
        let cases: Vec<(Edit, Violation)> = vec![
            (|m| m.slot_to_shard[3] = 0, V::NoFlowShard(SlotId(3), ShardId(0))),
            (|m| m.shards[1].replicas = vec![n2(), n2()], V::ReplicaTwice(s, n)),
            (|m| m.shards[1].replicas.push(NodeId(9)), V::ReplicaNoMember(s, NodeId(9))),
            (|m| m.shards[1].preferred = NodeId(9), V::PreferredNoReplica(s, NodeId(9))),
            (|m| m.members[1].state = MemberState::Dead, V::PreferredDead(s, n)),
            (|m| m.members[1].state = MemberState::Retired, V::ReplicaNoMember(s, n)),
            (|m| m.shards[1].owner = Some((NodeId(9), Term(1))), V::OwnerNoMember(s, NodeId(9))),
            (|m| m.moves.push(order(0, 1, 1)), V::BrokenMove(1)),
            (|m| m.moves.push(order(0, 1, 0)), V::BrokenMove(1)),
            (|m| m.moves.push(order(0, 2, 1)), V::BrokenMove(1)),
            (
                |m| m.moves = vec![order(0, 1, 2), SlotMove { number: 2, ..order(0, 1, 2) }],
                V::BrokenMove(2),
            ),
            (|m| m.members[0].id = NodeId(0), V::IdZero),
            (|m| m.members[1].name = "n1".into(), V::NameTwice("n1".into())),
            (
                |m| {
                    m.slots = 7;
                    m.slot_to_shard.pop();
                },
                V::SlotCount(7),
            ),
        ];
        for (edit, expected) in cases {
            let mut map = sample();
            edit(&mut map);
            let found = check_map(&map);
            assert!(found.contains(&expected), "{expected} is not in {found:?}");
        }
    }

    fn order(slot: u16, from: u16, to: u16) -> SlotMove {
        let (from, to) = (ShardId(from), ShardId(to));
        SlotMove { number: 1, slot: SlotId(slot), from, to, phase: MovePhase::Copying }
    }

    fn n2() -> NodeId {
        NodeId(2)
    }

    #[test]
    fn each_rule_of_a_step_is_found_broken() {
        use Violation as V;
        let s = ShardId(1);
        let cases: Vec<(Edit, Violation)> = vec![
            (|m| m.epoch = Epoch(5), V::EpochNotRising(Epoch(5), Epoch(5))),
            (|m| m.slot_to_shard[0] = 2, V::SlotMoved(SlotId(0))),
            (|m| drop(m.shards.pop()), V::Malformed(String::new())),
            (|m| m.members[2].name = "other".into(), V::MemberChanged(NodeId(3))),
            (|m| drop(m.members.remove(2)), V::MemberVanished(NodeId(3))),
            (|m| m.shards[1].replicas = vec![n2()], V::TooManyRemoved(s, 2, 3)),
            (|m| m.shards[1].owner = Some((n2(), Term(0))), V::TermFell(s)),
        ];
        for (edit, expected) in cases {
            let mut map = sample();
            map.epoch = Epoch(6);
            edit(&mut map);
            let found = check_step(&sample(), &map);
            let hit = match &expected {
                V::Malformed(_) => matches!(found[0], V::Malformed(_)),
                other => found.contains(other),
            };
            assert!(hit, "{expected} is not in {found:?}");
        }
    }

    #[test]
    fn who_leaves_does_not_come_back() {
        use MemberState as M;
        let step = |from: M, to: M| {
            let (mut old, mut new) = (sample(), sample());
            new.epoch = Epoch(6);
            old.members[2].state = from;
            new.members[2].state = to;
            let found = check_step(&old, &new);
            found.contains(&Violation::Resurrected(NodeId(3), from, to))
        };
        for (from, to) in [
            (M::Alive, M::Leaving),
            (M::Leaving, M::Left),
            (M::Leaving, M::Dead),
            (M::Left, M::Departed),
            (M::Dead, M::Retired),
        ] {
            assert!(!step(from, to), "{from} may become {to}");
        }
        for (from, to) in [
            (M::Leaving, M::Alive),
            (M::Leaving, M::Suspected),
            (M::Left, M::Leaving),
            (M::Left, M::Alive),
            (M::Left, M::Dead),
            (M::Dead, M::Left),
            (M::Retired, M::Left),
            (M::Departed, M::Left),
            (M::Left, M::Retired),
            (M::Dead, M::Departed),
            (M::Retired, M::Departed),
        ] {
            assert!(step(from, to), "{from} may not become {to}");
        }
    }

    #[test]
    fn the_dead_stay_dead_and_their_ids_are_gone() {
        let mut old = sample();
        old.members[2].state = MemberState::Dead;
        let mut new = sample();
        new.epoch = Epoch(6);
        let (dead, alive) = (MemberState::Dead, MemberState::Alive);
        assert!(check_step(&old, &new).contains(&Violation::Resurrected(NodeId(3), dead, alive)));
        old.members.remove(1);
        assert!(check_step(&old, &new).contains(&Violation::IdReused(NodeId(2))));
    }
}
