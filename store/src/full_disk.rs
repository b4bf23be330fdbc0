//! A leader whose disk is full gives the shard to somebody who has room.
//!
//! Raft alone would leave it in office: its group commits without its disk. But it takes no new
//! writes, so while it leads nobody can write. Nothing is forced: if nobody else can lead, it
//! stays, and goes on as soon as there is room. An edge: waits for a time.

#![expect(clippy::disallowed_methods, reason = "waits between two tries")]

use crate::link::LinkContext;
use crate::shard::Shard;
use crate::types::{LogIndex, NodeId};
use crate::wire::{Request, Response};
use core::time::Duration;
use std::sync::Arc;
use tokio::time::sleep;

/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);

impl LinkContext {
    /// Whether a node would take a shard over; `None` if it does not answer.
    pub(crate) async fn would_lead(&self, shard: &Shard, node: NodeId) -> Option<bool> {
        let patience = shard.patience();
        match self.transport.call(node, &Request::CanLead(shard.id), patience).await {
            Ok(Response::CanLead(would)) => Some(would),
            _ => None,
        }
    }

    /// The voter that takes the shard over from this node, if one can: the one that has most of it.
    async fn heir(&self, shard: &Shard) -> Option<NodeId> {
        let status = shard.status();
        let mut heirs: Vec<(Option<LogIndex>, NodeId)> = status
            .matched
            .iter()
            .filter(|(node, _)| *node != self.node && status.voters.contains(node))
            .map(|(node, at)| (*at, *node))
            .collect();
        heirs.sort_unstable_by(|one, two| two.cmp(one));
        for (_, node) in heirs {
            if self.would_lead(shard, node).await == Some(true) {
                return Some(node);
            }
        }
        None
    }

    /// Runs until the group ends.
    pub(crate) async fn leave_when_full(self, shard: Arc<Shard>) {
        let Some(mut full) = shard.replica.watch_disk() else { return };
        while full.wait_for(|full| *full).await.is_ok() {
            if shard.replica.leading().is_some()
                && let Some(heir) = self.heir(&shard).await
            {
                match shard.transfer(heir).await {
                    Ok(()) => tracing::warn!(shard = %shard.id, to = %heir,
                        "gave the shard away: the disk is full"),
                    Err(error) => tracing::info!(shard = %shard.id, to = %heir, %error,
                        "the shard was not given away yet"),
                }
            }
            sleep(RETRY).await;
        }
    }
}
