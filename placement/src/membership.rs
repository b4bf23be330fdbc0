//! Alive, suspected, dead: judged from when each member was last heard of.
//!
//! Suspicion comes early and is undone as soon as the member is heard of again: any node can serve
//! any packet, so steering away from one that is merely slow costs nothing. Death comes late and is
//! for good. The judge sees contacts only while it owns the system shard, so silence counts from
//! when it began to listen: a new judge suspects nobody for what it has not heard.

use crate::map::{Map, MemberState};
use nearstate_store::{NodeId, Time};
use std::collections::BTreeMap;

/// How long a silence means what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Then a member is suspected.
    pub suspect_after_ms: u64,
    /// Then it is dead.
    pub dead_after_ms: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { suspect_after_ms: 300, dead_after_ms: 3_000 }
    }
}

/// A judgement that differs from the map's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// Of whom.
    pub id: NodeId,
    /// What is thought of it now.
    pub state: MemberState,
    /// How long it has been silent.
    pub silent_ms: u64,
}

/// The judge: remembers since when it has been listening for whom.
#[derive(Debug)]
pub struct Membership {
    thresholds: Thresholds,
    heard: BTreeMap<NodeId, Time>,
}

impl Membership {
    /// A judge that begins to listen.
    ///
    /// # Panics
    /// If death would come before suspicion: thresholds are ours to set.
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        assert!(thresholds.suspect_after_ms < thresholds.dead_after_ms, "suspicion comes first");
        Self { thresholds, heard: BTreeMap::new() }
    }

    /// What has changed, given when each peer was last heard of. `me` is alive: it asks.
    pub fn observe(
        &mut self,
        now: Time,
        me: NodeId,
        map: &Map,
        contacts: &[(NodeId, Time)],
    ) -> Vec<MemberChange> {
        let live = |id: &NodeId| map.state_of(*id).is_live();
        self.heard.retain(|id, _| live(id));
        for member in map.members.iter().filter(|member| member.state.is_live()) {
            self.heard.entry(member.id).or_insert(now);
        }
        for (id, at) in contacts.iter().copied().chain([(me, now)]) {
            if let Some(heard) = self.heard.get_mut(&id) {
                *heard = (*heard).max(at.min(now));
            }
        }
        self.heard
            .iter()
            .map(|(&id, &heard)| (id, now.since_ns(heard) / 1_000_000))
            .map(|(id, silent_ms)| MemberChange { id, state: self.judge(silent_ms), silent_ms })
            .filter(|change| match map.state_of(change.id) {
                // It has said so itself. Only its death is news, if it does not get that far.
                MemberState::Leaving => change.state == MemberState::Dead,
                known => change.state != known,
            })
            .collect()
    }

    const fn judge(&self, silent_ms: u64) -> MemberState {
        if silent_ms >= self.thresholds.dead_after_ms {
            MemberState::Dead
        } else if silent_ms >= self.thresholds.suspect_after_ms {
            MemberState::Suspected
        } else {
            MemberState::Alive
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::tests::sample;

    const ME: NodeId = NodeId(1);

    fn judge() -> Membership {
        Membership::new(Thresholds { suspect_after_ms: 300, dead_after_ms: 3_000 })
    }

    fn states(changes: &[MemberChange]) -> Vec<(u64, MemberState)> {
        changes.iter().map(|change| (change.id.0, change.state)).collect()
    }

    #[test]
    fn silence_is_suspected_then_undone_or_death() {
        let (mut judge, mut map) = (judge(), sample());
        let heard = |id, ms| (NodeId(id), Time::from_ms(ms));
        let start = [heard(2, 10_000), heard(3, 10_000)];
        assert_eq!(judge.observe(Time::from_ms(10_000), ME, &map, &start), vec![]);
        let now = Time::from_ms(10_300);
        let changes = judge.observe(now, ME, &map, &[heard(2, 10_200), heard(3, 10_000)]);
        assert_eq!(states(&changes), [(3, MemberState::Suspected)]);
        map.members[2].state = MemberState::Suspected;
        let now = Time::from_ms(10_400);
        let changes = judge.observe(now, ME, &map, &[heard(2, 10_400), heard(3, 10_350)]);
        assert_eq!(states(&changes), [(3, MemberState::Alive)], "undone");
        let changes = judge.observe(Time::from_ms(13_350), ME, &map, &[heard(2, 13_300)]);
        assert_eq!(states(&changes), [(3, MemberState::Dead)]);
        map.members[2].state = MemberState::Dead;
        let changes = judge.observe(Time::from_ms(13_400), ME, &map, &[heard(3, 13_400)]);
        assert_eq!(states(&changes), [], "the dead are not looked at again");
    }

    #[test]
    fn one_that_leaves_is_not_called_alive_again_but_may_die() {
        let (mut judge, mut map) = (judge(), sample());
        map.members[2].state = MemberState::Leaving;
        let heard = |ms| [(NodeId(2), Time::from_ms(ms)), (NodeId(3), Time::from_ms(1_000))];
        assert_eq!(judge.observe(Time::from_ms(1_000), ME, &map, &heard(1_000)), vec![]);
        assert_eq!(judge.observe(Time::from_ms(1_500), ME, &map, &heard(1_500)), vec![]);
        let changes = judge.observe(Time::from_ms(4_000), ME, &map, &heard(4_000));
        assert_eq!(states(&changes), [(3, MemberState::Dead)]);
    }

    #[test]
    fn a_new_judge_suspects_nobody_for_what_it_has_not_heard() {
        let (mut judge, map) = (judge(), sample());
        let old = [(NodeId(2), Time::from_ms(5)), (NodeId(3), Time::from_ms(5))];
        assert_eq!(judge.observe(Time::from_ms(60_000), ME, &map, &old), vec![]);
        let changes = judge.observe(Time::from_ms(60_300), ME, &map, &old);
        let suspected = MemberState::Suspected;
        assert_eq!(states(&changes), [(2, suspected), (3, suspected)]);
    }

    #[test]
    fn a_contact_from_the_future_does_not_hide_a_death() {
        let (mut judge, map) = (judge(), sample());
        let future = [(NodeId(2), Time::from_ms(99_000)), (NodeId(3), Time(0))];
        let _ = judge.observe(Time::from_ms(1_000), ME, &map, &future);
        let changes = judge.observe(Time::from_ms(4_000), ME, &map, &[]);
        assert_eq!(states(&changes), [(2, MemberState::Dead), (3, MemberState::Dead)]);
    }
}
