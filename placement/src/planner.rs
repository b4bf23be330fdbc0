//! From the map, what is thought of the members and what is known of each shard's group, to the
//! next map, with a report that says what each step did or what it waits for.
//!
//! Pure, and a fixed point: planning again from its own result with the same facts changes nothing.
//! It never acts, never looks at a clock, and never gives a shard to a node that has not caught up.
//!
//! Steps, in the order in which they run:
//! 1. `own-nothing`: suspected and dead nodes own nothing;
//! 2. `adopt`: who has won an election keeps the shard, if ownership is as even that way;
//! 3. `spread`: ownership is spread evenly over nodes that have caught up, with few moves;
//! 4. `replace-dead`: replicas of a dead node go to its successor of the same name;
//! 5. `fill-up`: shards with too few replicas get more, on the least loaded nodes;
//! 6. `level`: when all groups are settled, one replica moves from a node that keeps many to one
//!    that keeps few;
//! 7. `retire`: the dead that no group knows any more are retired; who has left has departed.

use crate::map::{Map, Member, MemberState, ShardPlacement};
use core::fmt;
use nearstate_store::{NodeId, ShardId};

/// What is known of a shard's group. Possibly old: a plan may be late, never wrong, because each
/// step is taken by the group's own leader, which looks again ([`crate::reconcile`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFact {
    /// Which shard.
    pub shard: ShardId,
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Whether the leader itself said so; a follower may not know yet that the leader is gone.
    pub said_by_leader: bool,
    /// How many entries each replica is behind, as far as the leader has said.
    pub lag: Vec<(NodeId, u64)>,
}

/// What is wanted beyond what the map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanPolicy {
    /// A replica that is more entries behind has not caught up.
    pub owner_lag_max: u64,
}

impl Default for PlanPolicy {
    fn default() -> Self {
        Self { owner_lag_max: 64 }
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportLine {
    /// The step.
    pub step: &'static str,
    /// What it did or waits for.
    pub text: String,
}

impl fmt::Display for ReportLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.text)
    }
}

/// A map to propose, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPlan {
    /// The next map; `None` if the present one is as it should be, or as near as can be for now.
    pub next: Option<Map>,
    /// What each step did or waits for.
    pub report: Vec<ReportLine>,
}

/// Plans the next map.
#[must_use]
pub fn plan(map: &Map, facts: &[ShardFact], policy: &PlanPolicy) -> MapPlan {
    let mut planner = Planner { map: map.clone(), facts, policy, report: Vec::new() };
    if map.is_formed() {
        planner.plan_own_nothing();
        // Neither makes ownership less even, and a move of `spread` makes it more so.
        while planner.plan_adopt() || planner.plan_spread() {}
        planner.plan_replace_dead();
        planner.plan_fill_up();
        planner.plan_level();
        planner.plan_retire();
    }
    let Planner { map: mut next, report, .. } = planner;
    if next == *map {
        return MapPlan { next: None, report };
    }
    next.epoch.0 += 1;
    MapPlan { next: Some(next), report }
}

struct Planner<'a> {
    map: Map,
    facts: &'a [ShardFact],
    policy: &'a PlanPolicy,
    report: Vec<ReportLine>,
}

impl Planner<'_> {
    fn say(&mut self, step: &'static str, text: String) {
        self.report.push(ReportLine { step, text });
    }

    fn fact(&self, shard: ShardId) -> Option<&ShardFact> {
        self.facts.iter().find(|fact| fact.shard == shard)
    }

    fn is_alive(&self, node: NodeId) -> bool {
        self.map.state_of(node) == MemberState::Alive
    }

    /// Whether a node may own a shard, as far as is known: it votes and is not far behind.
    fn has_caught_up(&self, shard: ShardId, node: NodeId) -> bool {
        self.fact(shard).is_some_and(|fact| {
            let behind = fact.lag.iter().find(|(id, _)| *id == node).map_or(0, |(_, lag)| *lag);
            fact.voters.contains(&node) && behind <= self.policy.owner_lag_max
        })
    }

    /// Whether a shard's group is what the map wants, the dead aside. Before that its replicas are
    /// not changed again.
    fn is_settled(&self, shard: &ShardPlacement) -> bool {
        let dead = |node: &NodeId| self.map.state_of(*node).is_gone();
        self.fact(shard.shard).is_some_and(|fact| {
            shard.replicas.iter().all(|node| dead(node) || fact.voters.contains(node))
                && fact.voters.iter().all(|node| shard.replicas.contains(node))
        })
    }

    /// Flow shards that a node should own, and replicas that it keeps.
    fn load(&self, node: NodeId) -> (usize, usize) {
        let flow = self.map.shards.iter().filter(|shard| shard.shard != ShardId::SYSTEM);
        let owned = flow.filter(|shard| shard.preferred == node).count();
        let kept = self.map.shards.iter().filter(|shard| shard.replicas.contains(&node)).count();
        (owned, kept)
    }

    fn plan_own_nothing(&mut self) {
        const STEP: &str = "own-nothing";
        for at in 0..self.map.shards.len() {
            let (shard, from) = (self.map.shards[at].shard, self.map.shards[at].preferred);
            let state = self.map.state_of(from);
            if state == MemberState::Alive {
                continue;
            }
            if state == MemberState::Suspected && self.elects(&self.map.shards[at]) {
                // Whoever wins is the best choice: any other would cost a second change of owner.
                self.say(STEP, format!("{shard} waits for the election after {from}"));
                continue;
            }
            match self.successor(&self.map.shards[at], state) {
                Some(to) => {
                    self.map.shards[at].preferred = to;
                    self.say(STEP, format!("{shard} from {from} ({state}) to {to}"));
                }
                None => self
                    .say(STEP, format!("{shard} waits for a caught-up replica: {from} is {state}")),
            }
        }
    }

    /// Whether the group is about to choose a leader by itself: no leader has spoken, and none but
    /// the wanted owner is known.
    fn elects(&self, shard: &ShardPlacement) -> bool {
        self.fact(shard.shard).is_some_and(|fact| {
            !fact.said_by_leader && fact.leader.is_none_or(|leader| leader == shard.preferred)
        })
    }

    /// Who takes over a shard whose wanted owner is not alive: its leader if it can, else the
    /// replica that owns least. If the owner is dead, any live replica is better than it.
    fn successor(&self, shard: &ShardPlacement, state: MemberState) -> Option<NodeId> {
        let leader = self.fact(shard.shard).and_then(|fact| fact.leader);
        let alive = || shard.replicas.iter().copied().filter(|node| self.is_alive(*node));
        let ready = alive()
            .filter(|node| self.has_caught_up(shard.shard, *node))
            .min_by_key(|node| (Some(*node) != leader, self.load(*node).0, *node));
        let live = || {
            let live = shard.replicas.iter().copied();
            live.filter(|node| self.map.state_of(*node).is_live())
        };
        match state {
            state if state.is_live() => ready,
            _ => ready.or_else(|| alive().min()).or_else(|| live().min()),
        }
    }

    /// A shard whose wanted owner was only a guess stays where its group has put it: each change
    /// of owner costs locality. False if there is none.
    fn plan_adopt(&mut self) -> bool {
        let found = self.map.shards.iter().enumerate().find_map(|(at, placement)| {
            let ShardPlacement { shard, preferred, replicas, .. } = placement;
            let leader = self.fact(*shard).filter(|fact| fact.said_by_leader)?.leader?;
            let is_able = replicas.contains(&leader)
                && self.is_alive(leader)
                && self.has_caught_up(*shard, leader);
            (is_able && self.load(leader).0 < self.load(*preferred).0).then_some((at, leader))
        });
        let Some((at, leader)) = found else { return false };
        let ShardPlacement { shard, preferred, .. } = self.map.shards[at];
        self.map.shards[at].preferred = leader;
        self.say("adopt", format!("{shard} stays with {leader}, not {preferred}"));
        true
    }

    fn plan_replace_dead(&mut self) {
        const STEP: &str = "replace-dead";
        for at in 0..self.map.shards.len() {
            let placement = self.map.shards[at].clone();
            let shard = placement.shard;
            let dead = placement.replicas.iter().filter_map(|node| self.map.member(*node));
            let dead: Vec<Member> = dead.filter(|member| member.state.is_gone()).cloned().collect();
            let Some(first) = dead.first() else { continue };
            if dead.len() == placement.replicas.len() {
                self.say(STEP, format!("{shard} is lost: all its replicas are dead"));
                continue;
            }
            let found = dead.iter().find_map(|old| Some((old.id, self.namesake(old, &placement)?)));
            match found {
                None => self.say(
                    STEP,
                    format!("{shard} waits for a new {} in place of {}", first.name, first.id),
                ),
                Some((old, new)) if !self.is_settled(&placement) => {
                    let text = format!("{shard} waits to settle before {old} becomes {new}");
                    self.say(STEP, text);
                }
                Some((old, new)) => {
                    self.swap_replica(at, old, new, STEP);
                }
            }
        }
    }

    /// The living member with a dead one's name that has no replica of the shard yet.
    fn namesake(&self, dead: &Member, shard: &ShardPlacement) -> Option<NodeId> {
        let member = self.map.live_member_named(&dead.name)?;
        let fits = member.state == MemberState::Alive && !shard.replicas.contains(&member.id);
        fits.then_some(member.id)
    }

    /// Puts a new node into a dead one's place. False if the dead one must stay for now.
    fn swap_replica(&mut self, at: usize, old: NodeId, new: NodeId, step: &'static str) -> bool {
        let placement = &mut self.map.shards[at];
        if placement.replicas.len() < 3 || placement.preferred == old {
            // With one of two dead the group has no majority that could agree to a change; and a
            // wanted owner that is dead has no live replica beside it that could feed a new one.
            let text = format!("{} keeps {old}: its group cannot change", placement.shard);
            self.say(step, text);
            return false;
        }
        placement.replicas.retain(|node| *node != old);
        placement.replicas.push(new);
        placement.replicas.sort_unstable();
        let text = format!("{} replica {old} becomes {new}", placement.shard);
        self.say(step, text);
        true
    }

    fn plan_fill_up(&mut self) {
        const STEP: &str = "fill-up";
        for at in 0..self.map.shards.len() {
            let before = self.map.shards[at].clone();
            let wanted = usize::from(self.map.replicas_wanted);
            let live = |planner: &Self| {
                let replicas = planner.map.shards[at].replicas.iter();
                replicas.filter(|node| planner.map.state_of(**node).is_live()).count()
            };
            if live(self) >= wanted || live(self) == 0 {
                // Of a shard without a live replica there is nothing to copy.
                continue;
            }
            let shard = before.shard;
            if !self.is_settled(&before) {
                self.say(STEP, format!("{shard} waits to settle: {} of {wanted}", live(self)));
                continue;
            }
            while live(self) < wanted && self.add_replica(at, wanted, STEP) {}
            if live(self) < wanted {
                let text = format!("{shard} has {} of {wanted} live replicas", live(self));
                self.say(STEP, format!("{text}; no other node is alive"));
            }
        }
    }

    /// Gives a shard one more replica, in place of a dead one if it has as many as wanted. Only one
    /// dead replica a plan makes room. False if there is no node, or no room.
    fn add_replica(&mut self, at: usize, wanted: usize, step: &'static str) -> bool {
        let placement = &self.map.shards[at];
        let spare = self.map.alive().map(|member| member.id);
        let spare = spare.filter(|id| !placement.replicas.contains(id));
        let Some(new) = spare.min_by_key(|id| (self.load(*id).1, *id)) else { return false };
        if placement.replicas.len() < wanted {
            let placement = &mut self.map.shards[at];
            placement.replicas.push(new);
            placement.replicas.sort_unstable();
            let text = format!("{} gets a replica on {new}", placement.shard);
            self.say(step, text);
            return true;
        }
        let voters = self.fact(placement.shard).map_or(&[][..], |fact| &fact.voters);
        let dead = |node: &&NodeId| self.map.state_of(**node).is_gone();
        // One that was gone before it could vote is no newcomer: it never will vote.
        let mut living = placement.replicas.iter().filter(|node| !dead(node));
        let newcomer = living.any(|node| !voters.contains(node));
        match placement.replicas.iter().find(dead).copied() {
            Some(old) if !newcomer => self.swap_replica(at, old, new, step),
            _ => false,
        }
    }

    /// Moves one flow shard's replica, when nothing else is under way: each move copies a table.
    fn plan_level(&mut self) {
        if !self.map.shards.iter().all(|shard| self.is_settled(shard) && self.is_whole(shard)) {
            return;
        }
        let Some((at, from, to)) = self.best_replica_move() else { return };
        let placement = &mut self.map.shards[at];
        placement.replicas.retain(|node| *node != from);
        placement.replicas.push(to);
        placement.replicas.sort_unstable();
        let text = format!("{} replica {from} becomes {to}", placement.shard);
        self.say("level", text);
    }

    /// Whether all replicas that are wanted are alive.
    fn is_whole(&self, shard: &ShardPlacement) -> bool {
        shard.replicas.len() >= usize::from(self.map.replicas_wanted)
            && shard.replicas.iter().all(|node| self.is_alive(*node))
    }

    /// From a node that keeps at least two replicas of flow shards more than the other, but never
    /// from the one that owns the shard or is to own it. A group of one or two cannot lose a voter
    /// that is alive.
    fn best_replica_move(&self) -> Option<(usize, NodeId, NodeId)> {
        let shards = self.map.shards.iter().enumerate();
        let flow = shards.filter(|(_, shard)| shard.shard != ShardId::SYSTEM);
        flow.filter(|(_, shard)| shard.replicas.len() >= 3)
            .flat_map(|(at, shard)| shard.replicas.iter().map(move |from| (at, shard, *from)))
            .filter(|(_, shard, from)| {
                let leader = self.fact(shard.shard).and_then(|fact| fact.leader);
                *from != shard.preferred && Some(*from) != leader
            })
            .flat_map(|(at, shard, from)| self.map.alive().map(move |to| (at, shard, from, to.id)))
            .filter(|(_, shard, _, to)| !shard.replicas.contains(to))
            .filter_map(|(at, shard, from, to)| {
                let gain = self.kept(from).checked_sub(self.kept(to))?;
                (gain >= 2).then_some((gain, shard.shard, from, to, at))
            })
            .max_by_key(|(gain, shard, from, to, _)| {
                (*gain, core::cmp::Reverse((*shard, *from, *to)))
            })
            .map(|(_, _, from, to, at)| (at, from, to))
    }

    /// Replicas of flow shards that a node keeps.
    fn kept(&self, node: NodeId) -> usize {
        let flow = self.map.shards.iter().filter(|shard| shard.shard != ShardId::SYSTEM);
        flow.filter(|shard| shard.replicas.contains(&node)).count()
    }

    /// False if ownership is as even as can be.
    fn plan_spread(&mut self) -> bool {
        let Some((at, to)) = self.best_move() else { return false };
        let placement = &mut self.map.shards[at];
        let text = format!("{} from {} to {to}", placement.shard, placement.preferred);
        placement.preferred = to;
        self.say("spread", text);
        true
    }

    /// The move of a flow shard that evens ownership out most: from a node that owns at least two
    /// more than the other, to one that has caught up; a move that has happened already comes
    /// first.
    fn best_move(&self) -> Option<(usize, NodeId)> {
        let shards = self.map.shards.iter().enumerate();
        let flow = shards.filter(|(_, shard)| shard.shard != ShardId::SYSTEM);
        flow.filter(|(_, shard)| self.is_alive(shard.preferred))
            .flat_map(|(at, shard)| shard.replicas.iter().map(move |to| (at, shard, *to)))
            .filter(|(_, shard, to)| self.is_alive(*to) && self.has_caught_up(shard.shard, *to))
            .filter_map(|(at, shard, to)| {
                let gain = self.load(shard.preferred).0.checked_sub(self.load(to).0)?;
                let leader = self.fact(shard.shard).and_then(|fact| fact.leader);
                (gain >= 2).then_some((gain, leader == Some(to), shard.shard, at, to))
            })
            .max_by_key(|(gain, leads, shard, _, to)| {
                (*gain, *leads, core::cmp::Reverse((*shard, *to)))
            })
            .map(|(_, _, _, at, to)| (at, to))
    }

    fn plan_retire(&mut self) {
        let in_use = |planner: &Self, id: NodeId| {
            let placed = planner.map.shards.iter().any(|shard| {
                shard.replicas.contains(&id) || shard.owner.is_some_and(|(owner, _)| owner == id)
            });
            placed
                || planner.map.shards.iter().any(|shard| {
                    // A group that nothing is known of may still count on it.
                    planner.fact(shard.shard).is_none_or(|fact| fact.voters.contains(&id))
                })
        };
        for at in 0..self.map.members.len() {
            let member = &self.map.members[at];
            if member.state.is_gone() && !in_use(self, member.id) {
                let text = format!("{} ({})", member.id, member.name);
                self.map.members[at].state = member.state.retired();
                self.say("retire", text);
            }
        }
    }
}

#[cfg(test)]
mod tests;
