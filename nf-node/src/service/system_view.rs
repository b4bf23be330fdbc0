//! The newest map that a node knows, and who waits for news of it. The edge: waits for a time.
#![expect(clippy::disallowed_methods, reason = "the edge: a wait has an end")]

use nearstate_placement::api::MemberAge;
use nearstate_placement::service::Wake;
use nearstate_placement::{Map, MemberState};
use nearstate_store::clock::boot_now;
use nearstate_store::{Epoch, NodeId, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Shared by everything in a node that follows the map.
#[derive(Clone)]
pub(super) struct SystemView {
    map: watch::Sender<Arc<Map>>,
    /// Counts what wakes the placement loops: changes of the map and of groups.
    changes: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    end: watch::Sender<bool>,
    /// Since when each member has been what it is, as this node saw it.
    ages: Arc<Mutex<MemberAges>>,
}

/// Since when each member has been in the state that the map says.
#[derive(Default)]
struct MemberAges {
    since: BTreeMap<NodeId, (MemberState, Time, bool)>,
    /// Whether a map was seen before: what the first map says may be older than this node.
    has_begun: bool,
}

impl MemberAges {
    fn note(&mut self, now: Time, map: &Map) {
        self.since.retain(|id, _| map.member(*id).is_some());
        for member in &map.members {
            let known = self.since.get(&member.id);
            if known.is_none_or(|(state, ..)| *state != member.state) {
                self.since.insert(member.id, (member.state, now, self.has_begun));
            }
        }
        self.has_begun |= map.is_formed();
    }
}

impl SystemView {
    /// A view that begins with this map.
    pub(super) fn new(map: Map) -> Self {
        let mut ages = MemberAges::default();
        ages.note(boot_now(), &map);
        Self {
            map: watch::Sender::new(Arc::new(map)),
            changes: watch::Sender::new(0),
            stop: watch::Sender::new(false),
            end: watch::Sender::new(false),
            ages: Arc::new(Mutex::new(ages)),
        }
    }

    /// The newest map.
    pub(super) fn map(&self) -> Arc<Map> {
        self.map.borrow().clone()
    }

    /// Takes over a map if it is newer than what is known, and of the same cluster.
    pub(super) fn publish(&self, map: Arc<Map>) {
        let taken = self.map.send_if_modified(|known| {
            let same = !known.is_formed() || map.lineage == known.lineage;
            let newer = same && map.epoch > known.epoch;
            if newer {
                self.ages().note(boot_now(), &map);
                *known = map;
            }
            newer
        });
        if taken {
            self.nudge();
        }
    }

    fn ages(&self) -> MutexGuard<'_, MemberAges> {
        // What the lock guards is whole after every statement.
        self.ages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when each member has been what the map says, as this node saw it.
    pub(super) fn member_ages(&self) -> Vec<MemberAge> {
        let now = boot_now();
        let age = |(id, (state, since, seen)): (&NodeId, &(MemberState, Time, bool))| MemberAge {
            node: *id,
            state: *state,
            for_ms: now.since_ns(*since) / 1_000_000,
            is_exact: *seen,
        };
        self.ages().since.iter().map(age).collect()
    }

    /// News of maps.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// Something that the placement loops should look at has changed.
    pub(super) fn nudge(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// How many changes there have been.
    pub(super) fn changes(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Ends all waits, for good.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Resolves when [`SystemView::stop`] is called.
    pub(super) async fn stopped(&self) {
        // The sender lives in this very view, so this cannot fail before a stop.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Asks this node to end in good order.
    pub(super) fn ask_to_end(&self) {
        self.end.send_replace(true);
    }

    /// Resolves when [`SystemView::ask_to_end`] is called.
    pub(super) async fn asked_to_end(&self) {
        // The sender lives in this very view, so this cannot fail before it is asked.
        let _ = self.end.subscribe().wait_for(|end| *end).await;
    }

    /// Waits until there have been more than `seen` changes, at most so long.
    pub(super) async fn wait(&self, seen: u64, at_most_ms: u64) -> Wake {
        let mut changes = self.changes.subscribe();
        tokio::select! {
            biased;
            () = self.stopped() => Wake::Stop,
            _ = changes.wait_for(|count| *count > seen) => Wake::Changed,
            () = tokio::time::sleep(Duration::from_millis(at_most_ms)) => Wake::Tick,
        }
    }

    /// The first map newer than `known` that comes within the time.
    pub(super) async fn newer_than(&self, known: Epoch, wait_ms: u32) -> Option<Arc<Map>> {
        let mut maps = self.map.subscribe();
        let newer = maps.wait_for(|map| map.epoch > known);
        let patience = Duration::from_millis(u64::from(wait_ms));
        let found = tokio::time::timeout(patience, newer).await.ok()?.ok()?;
        Some(found.clone())
    }
}
