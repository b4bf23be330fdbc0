//! One packet's way, told by the node that owns its state.
//!
//! What decides about a packet is the owner's copy: a follower's may be a moment behind. So a node
//! that does not own the packet's slot passes the question on to the owner, once. Only if the owner
//! does not answer does it tell what its own copy says, and says so. Nothing is changed by it.

use super::answers::Answers;
use crate::packet;
use crate::state_access::Access;
use crate::trace::{Found, TraceRecord, trace_packet};
use crate::verdict::DropReason;
use nearstate_placement::api::{Request, Response};
use nearstate_placement::{Map, Side};
use nearstate_store::clock::boot_now;
use nearstate_store::{NodeId, ShardId, SlotId, TenantId, Time};
use std::time::Duration;

/// How long the owner may take.
const OWNER_PATIENCE: Duration = Duration::from_secs(1);

impl Answers {
    /// Answers [`Request::Trace`].
    pub(super) async fn trace(&self, side: Side, frame: Vec<u8>, passed_on: bool) -> Vec<String> {
        let map = self.view.map();
        let place = self.place(side, &frame, &map);
        let owner = place.and_then(|(_, shard)| self.owner(&map, shard));
        match owner {
            Some(owner) if owner != self.node && !passed_on => {
                match self.ask_owner(owner, side, frame.clone()).await {
                    Some(lines) => lines,
                    None => self.tell(side, &frame, &map, Some(owner)),
                }
            }
            _ => self.tell(side, &frame, &map, owner),
        }
    }

    /// Slot and shard of a frame that can be followed.
    fn place(&self, side: Side, frame: &[u8], map: &Map) -> Option<(SlotId, ShardId)> {
        let parsed = match packet::parse(frame) {
            Err(DropReason::Fragment) => packet::parse_fragment(frame).ok()?.parsed,
            parsed => parsed.ok()?,
        };
        let slot = self.steering.slot(self.chain.tenant(), side, &parsed.tuple);
        Some((slot, map.shard_of(slot)?))
    }

    /// Who owns a shard: as its group says here, else as the map says.
    fn owner(&self, map: &Map, shard: ShardId) -> Option<NodeId> {
        let leader = self.store.get().and_then(|store| store.status(shard)?.leader);
        leader.or_else(|| Some(map.shard(shard)?.owner?.0))
    }

    async fn ask_owner(&self, owner: NodeId, side: Side, frame: Vec<u8>) -> Option<Vec<String>> {
        let tenant = TenantId(self.chain.tenant().0);
        let request = Request::Trace { side, tenant, frame, passed_on: true };
        let answer = self.store.get()?.call(owner, request.encode(), OWNER_PATIENCE).await.ok()?;
        match Response::decode(&answer) {
            Ok(Response::Trace(lines)) => Some(lines),
            _ => None,
        }
    }

    /// The way, read from this node's copy.
    fn tell(&self, side: Side, frame: &[u8], map: &Map, owner: Option<NodeId>) -> Vec<String> {
        let mut read = |slot, key: &_| {
            let shard = map.shard_of(slot)?;
            let view = self.replicas.get(usize::from(shard.0))?.as_ref()?;
            Some(Found { entry: view.reader.get(key), shard, access: Some(Access::Local) })
        };
        let way = (side, frame);
        let records = trace_packet(&self.chain, &self.steering, boot_now(), way, &mut read);
        // After the reads: only then does the lease say that they were the owner's.
        let now = boot_now();
        let mut lines = Vec::new();
        for record in &records {
            lines.extend(record.to_string().lines().map(str::to_owned));
            if let TraceRecord::Steered { slot } = record {
                lines.extend(self.whose_copy(now, map, *slot, owner));
            }
        }
        lines
    }

    /// Where the slot lives, and whose copy is told.
    fn whose_copy(&self, now: Time, map: &Map, slot: SlotId, owner: Option<NodeId>) -> Vec<String> {
        let Some(placement) = map.shard_of(slot).and_then(|shard| map.shard(shard)) else {
            return vec![format!("          in no shard of this map ({})", map.epoch)];
        };
        let shard = placement.shard;
        let replicas: Vec<String> = placement.replicas.iter().map(|id| map.label(*id)).collect();
        let view = self.replicas.get(usize::from(shard.0)).and_then(Option::as_ref);
        let holds_lease = view.is_some_and(|view| now < view.lease.until());
        let me = map.label(self.node);
        let read = match owner {
            _ if holds_lease => format!("at {me}, the owner, under its lease: what packets see"),
            Some(owner) if owner == self.node => {
                format!("at {me}, the owner, which has no lease at the moment: packets wait")
            }
            Some(owner) => format!(
                "at {me}, not the owner: {} does not answer, and this copy may be behind",
                map.label(owner)
            ),
            None => format!("at {me}: {shard} has no owner yet, and this copy may be behind"),
        };
        let owner = owner.map_or_else(|| "nobody".to_owned(), |owner| map.label(owner));
        vec![
            format!("          of {shard}, owned by {owner}"),
            format!("          replicas: {}", replicas.join(", ")),
            format!("read      {read}"),
        ]
    }
}
