//! Requests of a slot that comes wait at its new owner.
//!
//! Between a slot's seal at its source and its adoption at its target nobody serves its writes, and
//! for a part of that time nobody its reads. The source names the target to whoever asks. There
//! they wait, outside the log, for the entry that ends the wait; no timer stands on their path.
//! Only requests that nobody may wait behind are to be held up: those of other slots do not share
//! a message with them (see `link`).

use crate::shard::Shard;
use crate::types::SlotId;
use core::time::Duration;
use futures::future::BoxFuture;

/// The longest that requests wait here: then the shard's log says what it says. Shorter than the
/// patience of whoever asks from another node.
const HOLD_UP_MAX: Duration = Duration::from_millis(400);

impl Shard {
    /// If one of these slots is on its way to this shard: resolves when that is over, one way or
    /// the other.
    pub(crate) fn held_up(
        &self,
        slots: impl Iterator<Item = SlotId>,
    ) -> Option<BoxFuture<'static, ()>> {
        let moves = &self.parts.moves;
        if !moves.is_coming(slots) {
            return None;
        }
        let moves = moves.clone();
        Some(Box::pin(async move {
            let _ = tokio::time::timeout(HOLD_UP_MAX, moves.arrived()).await;
        }))
    }
}
