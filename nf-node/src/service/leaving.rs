//! How a node ends in good order: it says that it leaves, waits until others own what it owned, and
//! says farewell.
//!
//! Nothing here hands anything over. Once the system shard calls this node `leaving`, the planner
//! wants other owners and this node's own loops transfer its groups to caught-up replicas, by the
//! same code as ever; this file only waits for that, and for no longer than [`HANDOVER_MS_MAX`].
//! When nobody could take over, it does not wait at all: the last node of a cluster just ends.

use super::system_view::SystemView;
use nearstate_placement::reconcile::HANDOVER_SILENCE_MS_MAX;
use nearstate_placement::system::SystemCommand;
use nearstate_placement::{Map, MemberState};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Role;
use nearstate_store::driver::Store;
use nearstate_store::{NodeId, ShardId};
use std::time::Duration;
use tokio::time::timeout;

/// The longest that a node which is told to end takes to hand over what it owns.
const HANDOVER_MS_MAX: u64 = 4_000;
/// The longest that its farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longest time between two looks at what it still owns.
const LOOK_AGAIN_MS: u64 = 20;

/// Resolves when this node owns nothing any more, when nobody could take over what it leads, or
/// when the time is over. Gives how many shards others have taken over.
pub(super) async fn hand_over(store: &Store, view: &SystemView, me: NodeId) -> usize {
    let before = waits_for(store, &view.map(), me);
    if before.is_empty() {
        return 0;
    }
    let all = async {
        let leaving = SystemCommand::SetMember { id: me, state: MemberState::Leaving };
        // If it is not done, nobody takes over, and the loop below ends with the time.
        if let Err(error) = store.propose(ShardId::SYSTEM, leaving.encode()).await {
            tracing::warn!(%error, "the cluster was not told that this node leaves");
        }
        while !waits_for(store, &view.map(), me).is_empty() {
            view.wait(view.changes(), LOOK_AGAIN_MS).await;
        }
    };
    let in_time = timeout(Duration::from_millis(HANDOVER_MS_MAX), all).await.is_ok();
    let kept: Vec<ShardId> = led(store).collect();
    if !in_time {
        tracing::warn!(?kept, "not everything was handed over in time");
    }
    before.iter().filter(|shard| !kept.contains(shard)).count()
}

/// Tells the system shard that this node is no more, so that nobody has to find out by its silence.
/// Its packets have been served: it takes none any more. `handed_over` shards have other owners.
pub(super) async fn say_farewell(store: &Store, view: &SystemView, me: NodeId, handed_over: usize) {
    let map = view.map();
    if !map.is_formed() || !map.state_of(me).is_live() || !has_company(store, &map, me) {
        tracing::info!(node = %me, "ends; no other node runs that it could hand over to");
        return;
    }
    store.expect_refusals();
    let left = SystemCommand::SetMember { id: me, state: MemberState::Left };
    // The others end their connections to this node as soon as they know, so the answer may be
    // lost: what counts is that it was said.
    let told = store.propose_within(ShardId::SYSTEM, left.encode(), FAREWELL).await;
    tracing::debug!(?told, "said farewell");
    tracing::info!(node = %me, shards = handed_over, "handed over what it owned, left the cluster");
}

fn led(store: &Store) -> impl Iterator<Item = ShardId> + '_ {
    let statuses = (0..).map(ShardId).map_while(|shard| store.status(shard));
    statuses.filter(|status| status.role == Role::Leader).map(|status| status.shard)
}

/// The shards that this node leads, or that packets are still steered to it for, and that somebody
/// else could lead.
fn waits_for(store: &Store, map: &Map, me: NodeId) -> Vec<ShardId> {
    let heard = heard_of(store);
    let can_take = |node: &NodeId| {
        *node != me && map.state_of(*node) == MemberState::Alive && heard.contains(node)
    };
    let taken = |shard: &ShardId| {
        map.shard(*shard).is_some_and(|placement| placement.replicas.iter().any(can_take))
    };
    let mut shards: Vec<ShardId> = led(store).collect();
    let owned = map.shards.iter().filter(|s| s.owner.is_some_and(|(owner, _)| owner == me));
    shards.extend(owned.map(|placement| placement.shard));
    shards.sort_unstable();
    shards.dedup();
    shards.retain(taken);
    shards
}

/// Whether another member runs that would want to know: not if all others leave as well.
fn has_company(store: &Store, map: &Map, me: NodeId) -> bool {
    let heard = heard_of(store);
    map.alive().any(|member| member.id != me && heard.contains(&member.id))
}

/// Nodes that were heard of just now.
fn heard_of(store: &Store) -> Vec<NodeId> {
    let now = boot_now();
    let contacts = store.peer_contacts().into_iter();
    let fresh = contacts.filter(|(_, at)| now <= at.plus_ms(HANDOVER_SILENCE_MS_MAX));
    fresh.map(|(node, _)| node).collect()
}
