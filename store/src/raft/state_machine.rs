//! Drives the shard's machine by the committed log, and makes and installs its snapshots.
//!
//! The library calls `apply` from one task, so entries are applied in order by one writer. A
//! snapshot is taken or installed by the same task between two entries, so it is the machine's
//! state at one index; the work is done on another thread while the task waits, because it may take
//! a second and the group's heartbeats must go on.
//! A durable replica's snapshot is on the disk before anybody hears of it; if there is no room for
//! one, it is put off.
//! A machine that panics has a bug, and its state is worth nothing: its replica stops, and says so.

use super::convert::{self, StoredGroup};
use super::{SnapshotBytes, Types};
use crate::clock::boot_now;
use crate::consensus::{Compaction, LOGGED_BYTES};
use crate::disk::{DiskSnapshots, SnapshotHead};
use crate::machine::{Machine, Reply};
use crate::shard_time::ShardTime;
use crate::slot_move::{TakeOut, TakenOut};
use crate::transport::lock;
use crate::types::{LogIndex, Term};
use crate::upkeep::{Upkeep, UpkeepClock};
use futures::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use tokio::task::spawn_blocking;

/// Lets a machine apply an entry, and makes a panic of it an error: the library would not notice
/// that its task is gone, and the replica would seem to live.
fn apply(
    machine: &mut dyn Machine,
    (index, term): (LogIndex, Term),
    payload: &[u8],
) -> Result<Reply, io::Error> {
    let applied = catch_unwind(AssertUnwindSafe(|| {
        machine.enter(index, term);
        machine.apply(index, payload)
    }));
    applied.map_err(|_| io::Error::other(format!("the shard's machine stopped at {index}")))
}

struct Applied {
    machine: Box<dyn Machine>,
    last: Option<LogIdOf<Types>>,
    group: StoredGroup,
    /// Bytes that were logged since the last snapshot was asked for.
    logged: u64,
    /// Bytes of the last snapshot.
    snapshot: u64,
}

/// See the module's text.
pub(crate) struct StateMachine {
    // Taken by this task, or for it while it waits. The upkeep takes it for small pieces of work in
    // between and never waits for it.
    applied: Arc<Mutex<Applied>>,
    // Taken before `applied` by whoever has it for long, so that this task never blocks its thread.
    turn: Turn,
    current: Current,
    disk: Option<DiskSnapshots>,
    time: Arc<ShardTime>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The newest snapshot.
type Current = Arc<Mutex<Option<SnapshotOf<Types, SnapshotBytes>>>>;

impl StateMachine {
    pub(crate) fn new(machine: Box<dyn Machine>, time: Arc<ShardTime>) -> Self {
        let group = StoredGroup::default();
        let applied = Applied { machine, last: None, group, logged: 0, snapshot: 0 };
        let applied = Arc::new(Mutex::new(applied));
        Self { applied, turn: Turn::default(), current: Arc::default(), disk: None, time }
    }

    /// Access to the machine for its upkeep.
    pub(crate) fn handle(&self) -> MachineHandle {
        MachineHandle { applied: self.applied.clone(), turn: self.turn.clone() }
    }

    /// A machine whose snapshots are kept on disk, and the newest one of them.
    /// `None`: the snapshot's group is none.
    pub(crate) fn on_disk(
        machine: Box<dyn Machine>,
        time: Arc<ShardTime>,
        disk: DiskSnapshots,
        newest: Option<(SnapshotHead, Vec<u8>)>,
    ) -> Option<Self> {
        let newest = match newest {
            None => None,
            Some((head, bytes)) => {
                let group = convert::group(&head.members)?;
                let meta = SnapshotMetaOf::<Types> {
                    last_log_id: head.last_log.map(convert::log_id),
                    last_membership: StoredGroup::new(head.members_at.map(convert::log_id), group),
                };
                Some(SnapshotOf::<Types, _> { meta, snapshot: Arc::new(bytes) })
            }
        };
        let current = Arc::new(Mutex::new(newest));
        Some(Self { current, disk: Some(disk), ..Self::new(machine, time) })
    }
}

/// Asks a machine between two entries.
pub(crate) struct MachineHandle {
    applied: Arc<Mutex<Applied>>,
    turn: Turn,
}

impl MachineHandle {
    /// See [`Machine::upkeep`]. Whether the machine was free.
    pub(crate) fn upkeep(&self, clock: &UpkeepClock, work: &mut Upkeep) -> bool {
        match self.applied.try_lock() {
            Ok(mut applied) => applied.machine.upkeep(clock, work),
            // Whoever panicked in it has said so, and the group ends.
            Err(_) => return false,
        }
        true
    }

    /// Whether it is time for a snapshot; if so, the log is counted from here on.
    pub(crate) fn take_due(&self, compaction: &Compaction) -> bool {
        let Ok(mut applied) = self.applied.try_lock() else { return false };
        let is_due = compaction.is_due(applied.logged, applied.snapshot);
        if is_due {
            applied.logged = 0;
        }
        is_due
    }

    /// Looks at the machine between two entries, on another thread: it may take long, and commits
    /// wait meanwhile. `None` if the machine has stopped.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn Machine) -> T + Send + 'static,
    ) -> Option<(LogIndex, T)> {
        let (applied, turn) = (self.applied.clone(), self.turn.clone());
        let turn = turn.lock_owned().await;
        let looked = spawn_blocking(move || {
            let _turn = turn;
            let applied = applied.lock().ok()?;
            let index = applied.last.map_or(0, |last| last.index);
            Some((LogIndex(index), look(applied.machine.as_ref())))
        });
        looked.await.ok()?
    }

    /// See [`Machine::take_out`]: so many questions between the same two entries, on another
    /// thread, because a snapshot may just be made. Each is a small piece of work, so the turn is
    /// not taken: entries would wait for that thread to begin. `None` if the machine has stopped.
    pub(crate) async fn take_out<const N: usize>(
        &self,
        asks: [TakeOut; N],
    ) -> Option<[TakenOut; N]> {
        let applied = self.applied.clone();
        let taken = spawn_blocking(move || {
            let mut applied = applied.lock().ok()?;
            Some(asks.map(|ask| applied.machine.take_out(ask)))
        });
        taken.await.ok()?
    }
}

fn head(meta: &SnapshotMetaOf<Types>) -> SnapshotHead {
    SnapshotHead {
        last_log: meta.last_log_id.as_ref().map(convert::position),
        members_at: meta.last_membership.log_id().as_ref().map(convert::position),
        members: convert::members(meta.last_membership.membership()),
    }
}

/// Holds a snapshot that was taken already.
pub(crate) struct Builder {
    taken: Result<SnapshotOf<Types, SnapshotBytes>, io::Error>,
    current: Current,
    disk: Option<DiskSnapshots>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotBytes>, io::Error> {
        let taken = self.taken.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        if let Some(disk) = &self.disk {
            disk.save(head(&taken.meta), taken.snapshot.clone()).await?;
        }
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
                let _turn = self.turn.lock().await;
                let mut applied = lock(&self.applied);
                applied.last = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => Reply::None,
                    EntryPayload::Normal(payload) => {
                        let term = Term(**entry.log_id.committed_leader_id());
                        let at = (LogIndex(entry.log_id.index), term);
                        applied.logged += LOGGED_BYTES + payload.0.len() as u64;
                        let reply = apply(applied.machine.as_mut(), at, &payload.0)?;
                        self.time.applied(applied.machine.time_ms(), boot_now());
                        reply
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
            let mut applied = lock(&applied);
            let meta = SnapshotMetaOf::<Types> {
                last_log_id: applied.last,
                last_membership: applied.group.clone(),
            };
            let snapshot = Arc::new(applied.machine.snapshot());
            (applied.logged, applied.snapshot) = (0, snapshot.len() as u64);
            SnapshotOf::<Types, _> { meta, snapshot }
        });
        Builder {
            taken: taken.await.map_err(io::Error::other),
            current: self.current.clone(),
            disk: self.disk.clone(),
        }
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let builder = self.get_snapshot_builder().await;
        let Some(disk) = self.disk.as_ref().filter(|_| !force) else { return Some(builder) };
        let Ok(taken) = &builder.taken else { return Some(builder) };
        match disk.reserve(taken.snapshot.len()).await {
            Ok(true) => Some(builder),
            Ok(false) => {
                tracing::warn!("a snapshot is put off: there is no room for it on the disk");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a snapshot is put off: its file cannot be made");
                None
            }
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotBytes,
    ) -> Result<(), io::Error> {
        let at_hand = lock(&self.current).as_ref().is_some_and(|at_hand| at_hand.meta == *meta);
        let (applied, time, meta) = (self.applied.clone(), self.time.clone(), meta.clone());
        let installed = spawn_blocking(move || {
            let mut applied = lock(&applied);
            applied.machine.install(&snapshot).map_err(io::Error::other)?;
            (applied.logged, applied.snapshot) = (0, snapshot.len() as u64);
            time.installed(applied.machine.time_ms());
            applied.last = meta.last_log_id;
            applied.group = meta.last_membership.clone();
            Ok::<_, io::Error>(SnapshotOf::<Types, _> { meta, snapshot })
        });
        let installed = installed.await.map_err(io::Error::other)??;
        if let Some(disk) = self.disk.as_ref().filter(|_| !at_hand) {
            disk.save(head(&installed.meta), installed.snapshot.clone()).await?;
        }
        *lock(&self.current) = Some(installed);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, SnapshotBytes>>, io::Error> {
        Ok(lock(&self.current).clone())
    }
}
