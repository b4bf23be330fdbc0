//! The newest map that a node knows, and who waits for news of it. The edge: waits for a time.
#![expect(clippy::disallowed_methods, reason = "the edge: a wait has an end")]

use nearstate_placement::Map;
use nearstate_placement::service::Wake;
use nearstate_store::Epoch;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Shared by everything in a node that follows the map.
#[derive(Clone)]
pub(super) struct SystemView {
    map: watch::Sender<Arc<Map>>,
    /// Counts what else wakes the placement loops: changes of groups.
    nudges: watch::Sender<u64>,
    stop: watch::Sender<bool>,
}

impl SystemView {
    /// A view that begins with this map.
    pub(super) fn new(map: Map) -> Self {
        Self {
            map: watch::Sender::new(Arc::new(map)),
            nudges: watch::Sender::new(0),
            stop: watch::Sender::new(false),
        }
    }

    /// The newest map.
    pub(super) fn map(&self) -> Arc<Map> {
        self.map.borrow().clone()
    }

    /// Takes over a map if it is newer than what is known, and of the same cluster.
    pub(super) fn publish(&self, map: Arc<Map>) {
        self.map.send_if_modified(|known| {
            let same = !known.is_formed() || map.lineage == known.lineage;
            let newer = same && map.epoch > known.epoch;
            if newer {
                *known = map;
            }
            newer
        });
    }

    /// News of maps.
    pub(super) fn follow(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// Something that the placement loops should look at has changed.
    pub(super) fn nudge(&self) {
        self.nudges.send_modify(|count| *count = count.wrapping_add(1));
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

    /// Waits for a change, at most so long.
    pub(super) async fn wait(&self, at_most_ms: u64) -> Wake {
        let (mut maps, mut nudges) = (self.map.subscribe(), self.nudges.subscribe());
        tokio::select! {
            biased;
            () = self.stopped() => Wake::Stop,
            _ = maps.changed() => Wake::Changed,
            _ = nudges.changed() => Wake::Changed,
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
