//! Read leases that owners have granted to this node, where packet threads look for them.

use crate::transport::lock;
use crate::types::{NodeId, Time};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// An owner's permission to read its table one-sided. Renewals only move its end.
#[derive(Debug)]
pub struct ReadGrant {
    /// The file to map.
    pub path: PathBuf,
    /// The owner's term. The region carries it as well: a reader compares the two.
    pub generation: u64,
    /// Who granted it.
    pub owner: NodeId,
    until: AtomicU64,
}

impl ReadGrant {
    pub(crate) const fn new(path: PathBuf, generation: u64, owner: NodeId, until: Time) -> Self {
        Self { path, generation, owner, until: AtomicU64::new(until.0) }
    }

    /// When the right to read ends: to be checked after the value is in hand.
    #[must_use]
    pub fn valid_until(&self) -> Time {
        Time(self.until.load(Ordering::SeqCst))
    }
}

/// Where the current grant of a shard hangs.
#[derive(Debug, Default)]
pub(crate) struct GrantBoard {
    /// Rises with each new grant; a renewal leaves it.
    pub(crate) version: AtomicU64,
    pub(crate) current: Mutex<Option<Arc<ReadGrant>>>,
    /// Somebody looked since the last renewal. Grants are short: nobody asks for one that is not
    /// used.
    used: AtomicBool,
    wanted: Notify,
}

impl GrantBoard {
    /// Hangs up a grant, or makes the current one last longer if it is the same.
    pub(crate) fn put(&self, path: PathBuf, generation: u64, owner: NodeId, until: Time) {
        let mut current = lock(&self.current);
        if let Some(grant) = current.as_ref()
            && grant.generation == generation
            && grant.owner == owner
            && grant.path == path
        {
            grant.until.fetch_max(until.0, Ordering::SeqCst);
            return;
        }
        *current = Some(Arc::new(ReadGrant::new(path, generation, owner, until)));
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Says that a grant is used; wakes who renews it if it has not been.
    pub(crate) fn want(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::SeqCst);
            self.wanted.notify_one();
        }
    }

    /// Waits until somebody has used a grant since this was called last.
    pub(crate) async fn until_wanted(&self) {
        while !self.used.swap(false, Ordering::SeqCst) {
            self.wanted.notified().await;
        }
    }

    pub(crate) fn knows(&self, path: &std::path::Path) -> bool {
        lock(&self.current).as_ref().is_some_and(|grant| grant.path == path)
    }
}
