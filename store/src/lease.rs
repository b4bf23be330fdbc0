//! A shard's lease as one atomic word that the packet path can look at.

use crate::types::Time;
use core::sync::atomic::{AtomicU64, Ordering};

/// Until when this node owns a shard; see DESIGN, promise P2. One writer, any number of readers.
#[derive(Debug, Default)]
pub struct LeaseCell(AtomicU64);

impl LeaseCell {
    /// A lease that is over.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// When it ends; long ago if there is none.
    #[must_use]
    pub fn until(&self) -> Time {
        Time(self.0.load(Ordering::SeqCst))
    }

    /// Makes it last until then.
    pub fn set(&self, until: Time) {
        self.0.store(until.0, Ordering::SeqCst);
    }

    /// Ends it.
    pub fn clear(&self) {
        self.set(Time(0));
    }
}
