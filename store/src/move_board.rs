//! What a machine lets the tasks around it see of slots that move: who waits for a move is woken by
//! the entry that it waits for, not by a timer.
//!
//! Written by the thread that applies the shard's log, after the table shows the same. It is news
//! of this replica, so it may be late; what it says only makes somebody wait or not, and the log
//! decides all the same.

use crate::types::SlotId;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::sync::Notify;

/// See the module's text.
#[derive(Debug, Default)]
pub struct MoveBoard {
    /// The slot that comes, and 1; 0 if none does.
    coming: AtomicU32,
    /// The move whose slot is sealed here; 0 if none is.
    sealed: AtomicU64,
    changed: Notify,
}

impl MoveBoard {
    /// Says which slot comes and which move has sealed a slot, and wakes who waits for a change.
    pub(crate) fn show(&self, coming: Option<SlotId>, sealed: Option<u64>) {
        let coming = coming.map_or(0, |slot| u32::from(slot.0) + 1);
        let sealed = sealed.unwrap_or(0);
        let before = (
            self.coming.swap(coming, Ordering::SeqCst),
            self.sealed.swap(sealed, Ordering::SeqCst),
        );
        if before != (coming, sealed) {
            self.changed.notify_waiters();
        }
    }

    /// Whether one of these slots is on its way to this shard: it is soon held, or soon not
    /// expected any more.
    pub(crate) fn is_coming(&self, mut slots: impl Iterator<Item = SlotId>) -> bool {
        let coming = self.coming.load(Ordering::SeqCst);
        coming != 0 && slots.any(|slot| u32::from(slot.0) + 1 == coming)
    }

    /// Resolves when another slot comes than now, or none.
    pub(crate) async fn arrived(&self) {
        let now = self.coming.load(Ordering::SeqCst);
        self.until(|board| now == 0 || board.coming.load(Ordering::SeqCst) != now).await;
    }

    /// Resolves when this move has sealed its slot here.
    pub(crate) async fn sealed(&self, number: u64) {
        self.until(|board| board.sealed.load(Ordering::SeqCst) == number).await;
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if is_so(self) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn who_waits_for_a_slot_is_woken_when_it_has_come_or_is_not_expected_any_more() {
        let board = MoveBoard::default();
        assert!(!board.is_coming([SlotId(0)].into_iter()));
        assert!(board.arrived().now_or_never().is_some(), "nothing to wait for");
        board.show(Some(SlotId(0)), None);
        assert!(board.is_coming([SlotId(3), SlotId(0)].into_iter()));
        assert!(!board.is_coming([SlotId(3)].into_iter()));
        let mut waits = Box::pin(board.arrived());
        assert!((&mut waits).now_or_never().is_none());
        board.show(Some(SlotId(0)), Some(7));
        assert!((&mut waits).now_or_never().is_none(), "that was another change");
        board.show(None, Some(7));
        assert!(waits.now_or_never().is_some());
    }

    #[test]
    fn who_waits_for_a_seal_is_woken_by_it() {
        let board = MoveBoard::default();
        let mut waits = Box::pin(board.sealed(7));
        assert!((&mut waits).now_or_never().is_none());
        board.show(None, Some(6));
        assert!((&mut waits).now_or_never().is_none());
        board.show(None, Some(7));
        assert!(waits.now_or_never().is_some());
        assert!(board.sealed(7).now_or_never().is_some());
    }
}
