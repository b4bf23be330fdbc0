//! Whether somebody leads the shards that this node has replicas of, as far as it can know.
//!
//! A group that has lost its majority does nothing, and says nothing either. So the node says it:
//! once in the log when that has lasted for a while, once when it is over, and at once to a
//! newcomer that asks to be let in. Nothing is done about it here.

use super::system_view::SystemView;
use nearstate_placement::Map;
use nearstate_placement::service::Wake;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::{Role, ShardStatus};
use nearstate_store::driver::Store;
use nearstate_store::{NodeId, ShardId, Time};
use std::collections::BTreeMap;

/// How long a shard is without a leader before that is worth a warning: far longer than an
/// election.
const SILENCE_TOLD_MS: u64 = 3_000;
/// A peer that was not heard of for this long does not answer.
const HEARD_WITHIN_MS: u64 = 1_000;
/// Longest time between two looks.
const LOOK_AGAIN_MS: u64 = 500;
/// What can be done, for the log and for newcomers.
const REMEDY: &str = "start the others again; with durability \"disk\" they come back with their \
    memory, with \"memory\" theirs is gone: end all nodes then, remove their marks, and form the \
    cluster anew";

/// Who of a shard's voters answers.
struct Quorum {
    voters: Vec<NodeId>,
    answering: Vec<NodeId>,
}

impl Quorum {
    /// The voters of a shard, and those of them that this node has heard of just now.
    fn of(status: &ShardStatus, me: NodeId, now: Time, contacts: &[(NodeId, Time)]) -> Self {
        let is_heard = |id: NodeId| {
            let fresh = |at: Time| now <= at.plus_ms(HEARD_WITHIN_MS);
            id == me || contacts.iter().any(|(peer, at)| *peer == id && fresh(*at))
        };
        let answering = status.voters.iter().copied().filter(|id| is_heard(*id)).collect();
        Self { voters: status.voters.clone(), answering }
    }

    fn is_majority(&self) -> bool {
        self.answering.len() * 2 > self.voters.len()
    }

    fn words(&self, map: &Map) -> String {
        let names = |ids: &[NodeId]| ids.iter().map(|id| map.label(*id)).collect::<Vec<_>>();
        let (of, heard) = (names(&self.voters).join(", "), names(&self.answering).join(", "));
        if self.is_majority() {
            return format!("of {of} a majority answers ({heard}), and elects nobody");
        }
        format!("of {of} only {heard} answers")
    }
}

/// Whether this node should know who leads: a replica that was taken out of its group is told
/// nothing more, not even that.
fn is_watched(status: &ShardStatus, map: &Map, me: NodeId) -> bool {
    let is_wanted = map.shard(status.shard).is_some_and(|shard| shard.replicas.contains(&me));
    is_wanted && status.voters.contains(&me) && status.role != Role::Stopped
}

/// Whether the shard is led by this node with its lease, or by another one that is heard of.
fn is_led(status: &ShardStatus, me: NodeId, now: Time, contacts: &[(NodeId, Time)]) -> bool {
    match status.leader {
        Some(leader) if leader == me => status.owns(now),
        Some(leader) => {
            contacts.iter().any(|(peer, at)| *peer == leader && now <= at.plus_ms(HEARD_WITHIN_MS))
        }
        None => false,
    }
}

/// Why nobody can be let in for now: the system shard has no majority, as this node sees it.
pub(super) fn no_majority(store: &Store, map: &Map, me: NodeId) -> Option<String> {
    let (status, now, contacts) =
        (store.status(ShardId::SYSTEM)?, boot_now(), store.peer_contacts());
    let quorum = Quorum::of(&status, me, now, &contacts);
    let is_lost = is_watched(&status, map, me)
        && !is_led(&status, me, now, &contacts)
        && !quorum.is_majority();
    is_lost.then(|| {
        let words = quorum.words(map);
        format!("this node runs, but its cluster has no majority: {words}; {REMEDY}")
    })
}

/// What has changed since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notices {
    /// Shards that have been without a leader for too long.
    lost: Vec<ShardId>,
    /// Shards that were told of and are led again.
    back: Vec<ShardId>,
}

/// Since when which shard has been without a leader, and whether that was told.
#[derive(Default)]
struct Vigil {
    silent: BTreeMap<ShardId, (Time, bool)>,
}

impl Vigil {
    /// The shards that this node should know of, and whether each is led. Others are forgotten.
    fn observe(&mut self, now: Time, shards: &[(ShardId, bool)]) -> Notices {
        let mut notices = Notices::default();
        self.silent.retain(|known, _| shards.iter().any(|(shard, _)| shard == known));
        for &(shard, is_led) in shards {
            if is_led {
                if let Some((_, true)) = self.silent.remove(&shard) {
                    notices.back.push(shard);
                }
                continue;
            }
            let (since, told) = self.silent.entry(shard).or_insert((now, false));
            if !*told && now >= since.plus_ms(SILENCE_TOLD_MS) {
                *told = true;
                notices.lost.push(shard);
            }
        }
        notices
    }
}

/// Tells the log of shards that nobody leads. Ends when the node does.
pub(super) async fn keep(store: &Store, view: &SystemView, me: NodeId) {
    let mut vigil = Vigil::default();
    loop {
        let (now, contacts) = (boot_now(), store.peer_contacts());
        let here = (0..).map(ShardId).map_while(|shard| store.status(shard));
        let map = view.map();
        let here = here.filter(|status| is_watched(status, &map, me));
        let here: Vec<ShardStatus> = here.collect();
        let led = here.iter().map(|status| (status.shard, is_led(status, me, now, &contacts)));
        let notices = vigil.observe(now, &led.collect::<Vec<_>>());
        let first = here.iter().find(|status| notices.lost.contains(&status.shard));
        if let Some(first) = first {
            let quorum = Quorum::of(first, me, now, &contacts).words(&view.map());
            let shards = names(&notices.lost);
            tracing::warn!(%shards, %quorum, "nobody leads these shards: {REMEDY}");
        }
        if !notices.back.is_empty() {
            tracing::info!(shards = %names(&notices.back), "these shards are led again");
        }
        if view.wait(view.changes(), LOOK_AGAIN_MS).await == Wake::Stop {
            return;
        }
    }
}

fn names(shards: &[ShardId]) -> String {
    shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::map::ShardPlacement;
    use nearstate_store::Term;

    const ME: NodeId = NodeId(1);

    fn status(leader: Option<NodeId>, lease_until: Time) -> ShardStatus {
        ShardStatus {
            shard: ShardId(0),
            role: if leader == Some(ME) { Role::Leader } else { Role::Follower },
            leader,
            term: Term(3),
            last_log: None,
            applied: None,
            voters: vec![ME, NodeId(2), NodeId(3)],
            learners: vec![],
            matched: vec![],
            changing: false,
            lease_until,
        }
    }

    #[test]
    fn a_leader_counts_only_with_its_lease_or_while_it_is_heard_of() {
        let now = Time::from_ms(100_000);
        let heard = [(NodeId(2), Time::from_ms(99_500)), (NodeId(3), Time::from_ms(98_000))];
        for (leader, lease_until, expected) in [
            (Some(ME), Time::from_ms(100_020), true),
            (Some(ME), Time::from_ms(99_999), false),
            (Some(NodeId(2)), Time(0), true),
            (Some(NodeId(3)), Time(0), false),
            (None, Time(0), false),
        ] {
            let status = status(leader, lease_until);
            assert_eq!(is_led(&status, ME, now, &heard), expected, "{leader:?}, {lease_until:?}");
        }
        let quorum = |heard| Quorum::of(&status(None, Time(0)), ME, now, heard).is_majority();
        assert!(quorum(&heard) && !quorum(&heard[1..]));
    }

    #[test]
    fn a_silence_is_told_once_and_its_end_once() {
        let mut vigil = Vigil::default();
        let mut look = |ms, led: bool| {
            let notices = vigil.observe(Time::from_ms(ms), &[(ShardId(2), led)]);
            (notices.lost.len(), notices.back.len())
        };
        assert_eq!([look(0, true), look(100, false), look(600, true)], [(0, 0); 3], "an election");
        assert_eq!([look(1_000, false), look(3_999, false)], [(0, 0); 2]);
        assert_eq!([look(4_000, false), look(60_000, false)], [(1, 0), (0, 0)]);
        assert_eq!([look(60_100, true), look(60_200, true)], [(0, 1), (0, 0)]);
        // The replica goes elsewhere and comes back: its silence begins anew.
        assert_eq!(look(60_300, false), (0, 0));
        assert_eq!(vigil.observe(Time::from_ms(61_000), &[]), Notices::default());
        let notices = vigil.observe(Time::from_ms(70_000), &[(ShardId(2), false)]);
        assert_eq!(notices, Notices::default());
    }

    #[test]
    fn a_replica_that_the_map_has_taken_away_is_not_watched() {
        let mut map = Map::unformed();
        let (shard, preferred) = (ShardId(0), NodeId(2));
        let replicas = vec![ME, NodeId(2), NodeId(3)];
        map.shards = vec![ShardPlacement { shard, replicas, preferred, owner: None }];
        let here = status(None, Time(0));
        assert!(is_watched(&here, &map, ME));
        map.shards[0].replicas.remove(0);
        assert!(!is_watched(&here, &map, ME), "its group tells it nothing any more");
    }
}
