//! Drives the shard's machine by the committed log, and makes and installs its snapshots.
//!
//! The library calls `apply` from one task, so entries are applied in order by one writer. A
//! snapshot is taken or installed by the same task between two entries, so it is the machine's
//! state at one index; the work is done on another thread while the task waits, because it may take
//! a second and the group's heartbeats must go on.

use super::convert::StoredGroup;
use super::{SnapshotBytes, Types};
use crate::machine::{Machine, Reply};
use crate::transport::lock;
use crate::types::LogIndex;
use futures::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::sync::{Arc, Mutex};
use tokio::task::spawn_blocking;

struct Applied {
    machine: Box<dyn Machine>,
    last: Option<LogIdOf<Types>>,
    group: StoredGroup,
}

/// See the module's text.
pub(crate) struct StateMachine {
    // The lock is never waited for: only this task takes it, or has it taken while it waits. It
    // makes a machine shareable that need not be.
    applied: Arc<Mutex<Applied>>,
    current: Arc<Mutex<Option<SnapshotOf<Types, SnapshotBytes>>>>,
}

impl StateMachine {
    pub(crate) fn new(machine: Box<dyn Machine>) -> Self {
        let applied = Applied { machine, last: None, group: StoredGroup::default() };
        Self { applied: Arc::new(Mutex::new(applied)), current: Arc::default() }
    }
}

/// Holds a snapshot that was taken already.
pub(crate) struct Builder {
    taken: Result<SnapshotOf<Types, SnapshotBytes>, io::Error>,
    current: Arc<Mutex<Option<SnapshotOf<Types, SnapshotBytes>>>>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotBytes>, io::Error> {
        let taken = self.taken.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        *lock(&self.current) = Some(taken.clone());
        Ok(taken.clone())
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let applied = lock(&self.applied);
        Ok((applied.last, applied.group.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = {
                let mut applied = lock(&self.applied);
                applied.last = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => Reply::None,
                    EntryPayload::Normal(payload) => {
                        applied.machine.apply(LogIndex(entry.log_id.index), &payload.0)
                    }
                    EntryPayload::Membership(group) => {
                        applied.group = StoredGroup::new(Some(entry.log_id), group);
                        Reply::None
                    }
                }
            };
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        let applied = self.applied.clone();
        let taken = spawn_blocking(move || {
            let applied = lock(&applied);
            let meta = SnapshotMetaOf::<Types> {
                last_log_id: applied.last,
                last_membership: applied.group.clone(),
            };
            SnapshotOf::<Types, _> { meta, snapshot: Arc::new(applied.machine.snapshot()) }
        });
        Builder { taken: taken.await.map_err(io::Error::other), current: self.current.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotBytes,
    ) -> Result<(), io::Error> {
        let (applied, meta) = (self.applied.clone(), meta.clone());
        let installed = spawn_blocking(move || {
            let mut applied = lock(&applied);
            applied.machine.install(&snapshot).map_err(io::Error::other)?;
            applied.last = meta.last_log_id;
            applied.group = meta.last_membership.clone();
            Ok::<_, io::Error>(SnapshotOf::<Types, _> { meta, snapshot })
        });
        let snapshot = installed.await.map_err(io::Error::other)??;
        *lock(&self.current) = Some(snapshot);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, SnapshotBytes>>, io::Error> {
        Ok(lock(&self.current).clone())
    }
}
