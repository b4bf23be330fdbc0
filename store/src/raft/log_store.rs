//! The log, with the vote beside it: in memory, and behind it on disk if the replica is durable.
//!
//! Raft wants both to be on disk before they count, because a node that forgets its vote may vote
//! twice in one term, and a node that forgets entries may break a quorum that was counted on.
//! Without a disk memory is enough because of promise P6: a process that lost its memory never
//! speaks under its old [`NodeId`](crate::types::NodeId) again. It comes back with a new id, as a
//! learner, so the old id's votes and acknowledgements are gone together with the voter; what is
//! left is an ordinary loss of a minority. Peers refuse an id whose process nonce changed.
//!
//! With a disk ([`crate::disk`]) every change is handed to it in the order in which it is made
//! here, and nothing is acknowledged before the disk has it; reads are served from memory all the
//! same.
//!
//! Entries are purged once a snapshot holds them; a purge never leaves a gap.

use super::{PayloadCheck, Types, convert};
use crate::disk::{DiskLog, LogState as DiskState, Record};
use crate::transport::lock;
use crate::wire::{APPEND_BYTES, Position};
use core::fmt::Debug;
use core::ops::{Bound, RangeBounds};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

/// See the module's text. A clone is the same log.
#[derive(Clone, Default)]
pub(crate) struct LogStore {
    inner: Arc<Mutex<Inner>>,
    disk: Option<DiskLog>,
}

#[derive(Default)]
struct Inner {
    purged: Option<LogIdOf<Types>>,
    /// Without gaps.
    entries: VecDeque<EntryOf<Types>>,
    /// The index of the first of them, or of the one that comes first.
    first: u64,
    vote: Option<VoteOf<Types>>,
    committed: Option<LogIdOf<Types>>,
}

impl Inner {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn last(&self) -> Option<LogIdOf<Types>> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    /// The part of a range of indexes that is here, as a range of places.
    fn places(&self, range: &impl RangeBounds<u64>) -> core::ops::Range<usize> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let (first, last) = (self.first, self.end());
        let start = start.clamp(first, last);
        let end = end.clamp(start, last);
        (start - first) as usize..(end - first) as usize
    }
}

impl LogStore {
    /// A log that goes on where a disk's ends. `Err`: what is wrong with an entry of it.
    pub(crate) fn on_disk(
        disk: DiskLog,
        state: &DiskState,
        entries: VecDeque<crate::disk::Entry>,
        check: PayloadCheck,
    ) -> Result<Self, String> {
        let mut kept = VecDeque::with_capacity(entries.len());
        for entry in entries {
            let at = entry.at.index;
            let entry = convert::entry_from_disk(entry)
                .ok_or_else(|| format!("the group of entry {at} is none"))?;
            if let EntryPayload::Normal(payload) = &entry.payload {
                check(&payload.0).map_err(|error| format!("entry {at}: {error}"))?;
            }
            kept.push_back(entry);
        }
        let end = state.last;
        let reached = |at: &Position| end.is_some_and(|end| at.index <= end.index);
        let inner = Inner {
            purged: state.purged.map(convert::log_id),
            entries: kept,
            first: state.first,
            vote: state.vote.as_ref().map(convert::vote),
            // What a torn tail took with it was not acknowledged, and cannot be applied.
            committed: state.committed.filter(reached).map(convert::log_id),
        };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), disk: Some(disk) })
    }

    /// Tells the disk of a change that nobody waits for.
    fn note(&self, record: impl FnOnce() -> Record) {
        if let Some(disk) = &self.disk {
            disk.put(vec![record()], None);
        }
    }
}

fn payload_bytes(entry: &EntryOf<Types>) -> usize {
    match &entry.payload {
        EntryPayload::Normal(payload) => payload.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let inner = lock(&self.inner);
        Ok(inner.entries.range(inner.places(&range)).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(lock(&self.inner).vote)
    }

    /// As many as fit into one message, and at least one.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<Types>>, io::Error> {
        let inner = lock(&self.inner);
        let mut bytes = 0;
        let fits = |entry: &&EntryOf<Types>| {
            let before = bytes;
            bytes += payload_bytes(entry);
            before == 0 || bytes <= APPEND_BYTES
        };
        let places = inner.places(&(start..end));
        Ok(inner.entries.range(places).take_while(fits).cloned().collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let inner = lock(&self.inner);
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        lock(&self.inner).vote = Some(*vote);
        match &self.disk {
            Some(disk) => disk.put_and_wait(vec![Record::Vote(convert::ballot(vote))]).await,
            None => Ok(()),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        lock(&self.inner).committed = committed;
        self.note(|| Record::Committed(committed.as_ref().map(convert::position)));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<Types>>, io::Error> {
        Ok(lock(&self.inner).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        if let Some(disk) = &self.disk {
            disk.room().await?;
        }
        {
            let mut inner = lock(&self.inner);
            for entry in entries {
                let at = entry.log_id.index;
                if inner.entries.is_empty() && at > inner.first {
                    // An empty log may begin behind a snapshot.
                    inner.first = at;
                }
                if at < inner.end() {
                    // An entry that is there already is written over by an equal one.
                    let place = inner.places(&(at..=at)).start;
                    inner.entries.truncate(place);
                }
                if at != inner.end() {
                    return Err(io::Error::other(format!("entry {at} would leave a gap")));
                }
                if self.disk.is_some() {
                    records.push(Record::Entry(convert::entry_to_disk(&entry)));
                }
                inner.entries.push_back(entry);
            }
        }
        match &self.disk {
            Some(disk) => disk.put(records, Some(Box::new(|done| callback.io_completed(done)))),
            None => callback.io_completed(Ok(())),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        {
            let mut inner = lock(&self.inner);
            let keep = last.map_or(0, |last| last.index + 1);
            let place = inner.places(&(..keep)).end;
            inner.entries.truncate(place);
        }
        self.note(|| Record::Truncate(last.as_ref().map(convert::position)));
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<Types>) -> Result<(), io::Error> {
        {
            let mut inner = lock(&self.inner);
            if inner.purged.is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            let place = inner.places(&(..=upto.index)).end;
            inner.entries.drain(..place);
            inner.first = upto.index + 1;
            inner.purged = Some(upto);
        }
        if let Some(disk) = &self.disk {
            // Synced, though nobody waits: old segments go only after that.
            let record = Record::Purge(convert::position(&upto));
            disk.put(vec![record], Some(Box::new(drop)));
        }
        Ok(())
    }
}
