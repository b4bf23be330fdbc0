//! Which shard holds each slot, as far as a node has heard: looked at by threads that route
//! requests, kept by whoever follows the map.
//!
//! A wrong entry costs time, never correctness: a shard that does not hold a slot says so, and
//! whoever asked looks here again.

use crate::types::{ShardId, SlotId};
use core::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;
use tokio::sync::Notify;

/// See the module's text. Clones share one map.
#[derive(Clone, Debug)]
pub struct SlotMap {
    shards: Arc<[AtomicU16]>,
    changed: Arc<Notify>,
}

impl SlotMap {
    /// The map of a cluster whose slots lie in these shards.
    #[must_use]
    pub fn new(shards: impl IntoIterator<Item = u16>) -> Self {
        let shards = shards.into_iter().map(AtomicU16::new).collect();
        Self { shards, changed: Arc::default() }
    }

    /// The shard of a slot; the system shard, which has none, for a slot that there is not.
    #[must_use]
    #[inline]
    pub fn shard_of(&self, slot: SlotId) -> ShardId {
        let shard = self.shards.get(usize::from(slot.0));
        ShardId(shard.map_or(0, |shard| shard.load(Ordering::Relaxed)))
    }

    /// Takes over a newer map, and wakes who waits for one.
    pub fn load(&self, shards: &[u16]) {
        let mut changed = false;
        for (place, shard) in self.shards.iter().zip(shards) {
            changed |= place.swap(*shard, Ordering::Relaxed) != *shard;
        }
        if changed {
            self.changed.notify_waiters();
        }
    }

    /// Resolves when a slot has another shard than when this was called.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_says_what_was_loaded_last() {
        let map = SlotMap::new([1, 2, 1]);
        let other = map.clone();
        assert_eq!(map.shard_of(SlotId(1)), ShardId(2));
        other.load(&[1, 1, 3]);
        let shards = [0, 1, 2, 3].map(|slot| map.shard_of(SlotId(slot)).0);
        assert_eq!(shards, [1, 1, 3, 0], "a slot that there is not has no shard");
    }
}
