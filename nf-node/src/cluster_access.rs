//! State of a cluster as one pipe reaches it: this node's tables in place, other tables of the same
//! host through a read-only mapping, everything else by asking the owner.
//!
//! A read is answered locally only under the owner's lease, and one-sided only under a read lease,
//! and either only if the shard holds the slot once the value is in hand;
//! both ends go with the answer as `valid_until`, and the pipe lets nothing leave later than that.
//! An owner that gives up its lease on purpose waits until the ends it has shown are over, so a
//! `valid_until` once seen stays true. Nothing here blocks; memory is mapped and allocated only
//! when an owner has changed.

use crate::state_access::{Access, Completion, QueueFull, ReadAnswer, StateAccess, Token};
use nearstate_store::lease::LeaseCell;
use nearstate_store::link::{LinkCompletion, PipeLink, ReadGrant};
use nearstate_store::region::Region;
use nearstate_store::remote_read::MappedTable;
use nearstate_store::{Entry, Key, KeyHash, ShardId, SlotId, SlotMap, Tally, Time, Transaction};
use nearstate_store::{RegionIdentity, TableReader};
use std::sync::Arc;

/// How long a read or a transaction is tried before the packet is given up.
pub const STORE_PATIENCE_MS: u64 = 2_000;

/// This node's replica of a shard.
pub struct LocalShard {
    /// Its table.
    pub reader: TableReader,
    /// Until when this node owns it.
    pub lease: Arc<LeaseCell>,
}

/// A table of another process, mapped read-only.
enum RemoteTable {
    Mapped(MappedTable),
    /// What this grant names cannot be mapped, or is not what it says.
    Unusable(Arc<ReadGrant>),
}

impl RemoteTable {
    fn open(cluster: u64, shard: ShardId, grant: Arc<ReadGrant>) -> Self {
        let identity = RegionIdentity { cluster, shard };
        let reader = Region::open_read_only(&grant.path)
            .ok()
            .and_then(|region| TableReader::open(Arc::new(region), identity).ok());
        match reader {
            Some(reader) => Self::Mapped(MappedTable::new(reader, grant)),
            None => Self::Unusable(grant),
        }
    }
}

/// A renewal is the same grant; another one may still name the same region.
fn names_same_region(old: &Arc<ReadGrant>, grant: &Arc<ReadGrant>) -> bool {
    Arc::ptr_eq(old, grant) || (old.generation == grant.generation && old.path == grant.path)
}

/// [`StateAccess`] of a node in a cluster.
pub struct ClusterAccess {
    cluster: u64,
    slots: SlotMap,
    /// By shard number; the system shard has none.
    local: Vec<Option<LocalShard>>,
    remote: Vec<Option<RemoteTable>>,
    link: PipeLink,
    shared_memory_reads: bool,
}

impl ClusterAccess {
    /// Access for one pipe.
    #[must_use]
    pub fn new(
        cluster: u64,
        slots: SlotMap,
        local: Vec<Option<LocalShard>>,
        link: PipeLink,
        shared_memory_reads: bool,
    ) -> Self {
        let remote = local.iter().map(|_| None).collect();
        Self { cluster, slots, local, remote, link, shared_memory_reads }
    }

    fn shard_of(&self, slot: SlotId) -> ShardId {
        self.slots.shard_of(slot)
    }

    /// This node's table of a slot's shard, if its keys are most probably read there: only
    /// prefetches go by it.
    #[inline]
    fn nearest(&self, shard: ShardId) -> Option<&TableReader> {
        let local = self.local.get(usize::from(shard.0))?.as_ref()?;
        (local.lease.until() > Time(0)).then_some(&local.reader)
    }

    /// The table of a shard's owner, if it was mapped.
    #[inline]
    fn mapped(&self, shard: ShardId) -> Option<&MappedTable> {
        match self.remote.get(usize::from(shard.0))? {
            Some(RemoteTable::Mapped(table)) => Some(table),
            _ => None,
        }
    }

    /// The table that the current grant for `shard` names, mapped when the grant is new.
    fn remote_table(&mut self, shard: ShardId) -> Option<&mut MappedTable> {
        let grant = self.link.grant(shard)?;
        let place = self.remote.get_mut(usize::from(shard.0))?;
        match place {
            Some(RemoteTable::Mapped(table)) if names_same_region(table.grant(), &grant) => {
                table.renew(grant);
            }
            Some(RemoteTable::Unusable(old)) if names_same_region(old, &grant) => {}
            _ => *place = Some(RemoteTable::open(self.cluster, shard, grant)),
        }
        match place {
            Some(RemoteTable::Mapped(table)) => Some(table),
            _ => None,
        }
    }

    /// A read in this node's own memory, while it owns the shard and the shard holds the slot.
    #[inline]
    fn read_local(
        &self,
        now: Time,
        (shard, slot): (ShardId, SlotId),
        get: impl FnOnce(&TableReader) -> bool,
    ) -> Option<ReadAnswer> {
        let local = self.local.get(usize::from(shard.0))?.as_ref()?;
        let valid_until = local.lease.until();
        if now >= valid_until {
            return None;
        }
        let found = get(&local.reader);
        // After the value is in hand: another shard may have changed it since the slot left.
        local.reader.holds(slot).then_some(ReadAnswer::Here {
            found,
            access: Access::Local,
            valid_until,
        })
    }

    fn read_elsewhere(
        &mut self,
        now: Time,
        (token, of): (Token, (ShardId, SlotId)),
        wanted: (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        if self.shared_memory_reads
            && let Some(answer) = self.read_mapped(now, of, wanted, into)
        {
            return answer;
        }
        match self.link.post_read(token.0, of, wanted.0, now.plus_ms(STORE_PATIENCE_MS)) {
            Ok(()) => ReadAnswer::Later,
            Err(_) => ReadAnswer::Unavailable,
        }
    }

    fn read_mapped(
        &mut self,
        now: Time,
        (shard, slot): (ShardId, SlotId),
        wanted: (&Key, KeyHash),
        into: &mut Entry,
    ) -> Option<ReadAnswer> {
        let table = self.remote_table(shard)?;
        // Whatever the reason, the owner can be asked.
        let (entry, valid_until) = table.read(now, slot, wanted).ok()?;
        let found = entry.map(|entry| *into = entry).is_some();
        Some(ReadAnswer::Here { found, access: Access::RemoteShm, valid_until })
    }
}

impl StateAccess for ClusterAccess {
    #[inline]
    fn prefetch(&self, slot: SlotId, key: &Key) -> KeyHash {
        let shard = self.shard_of(slot);
        if let Some(reader) = self.nearest(shard) {
            let hash = reader.hash(key);
            reader.prefetch_tags(hash);
            return hash;
        }
        self.mapped(shard).map_or(KeyHash::UNKNOWN, |table| table.prefetch(key))
    }

    #[inline]
    fn prefetch_entry(&self, slot: SlotId, hash: KeyHash) -> KeyHash {
        let shard = self.shard_of(slot);
        if let Some(reader) = self.nearest(shard) {
            return reader.prefetch_cell(hash);
        }
        self.mapped(shard).map_or(hash, |table| table.prefetch_entry(hash))
    }

    #[inline]
    fn read(
        &mut self,
        now: Time,
        (token, slot): (Token, SlotId),
        (key, hash): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        let of = (self.shard_of(slot), slot);
        match self.read_local(now, of, |reader| reader.get_hashed(key, hash, into)) {
            Some(answer) => answer,
            None => self.read_elsewhere(now, (token, of), (key, hash), into),
        }
    }

    #[inline]
    fn read_seen(
        &mut self,
        (now, tally): (Time, Tally),
        (token, slot): (Token, SlotId),
        (key, hash): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        let of = (self.shard_of(slot), slot);
        match self.read_local(now, of, |reader| reader.get_seen(key, hash, (now, tally), into)) {
            Some(answer) => answer,
            None => {
                let answer = self.read_elsewhere(now, (token, of), (key, hash), into);
                if let ReadAnswer::Here { found: true, .. } = answer {
                    self.link.note_seen(of.0, key, (now, tally));
                }
                answer
            }
        }
    }

    fn saw(&mut self, seen: (Time, Tally), slot: SlotId, key: &Key) {
        self.link.note_seen(self.shard_of(slot), key, seen);
    }

    fn submit(
        &mut self,
        now: Time,
        token: Token,
        transaction: &Transaction,
    ) -> Result<(), QueueFull> {
        let shard = self.shard_of(transaction.slot);
        self.link
            .submit(token.0, shard, transaction, now.plus_ms(STORE_PATIENCE_MS))
            .map_err(|_| QueueFull)
    }

    fn poll(&mut self, _now: Time) -> Option<Completion> {
        Some(match self.link.poll()? {
            LinkCompletion::Read { token, answer } => Completion::Read {
                token: Token(token),
                answer: answer.map(|(entry, until)| (entry, Access::RemoteTcp, until)),
            },
            LinkCompletion::Transaction { token, outcome } => {
                Completion::Transaction { token: Token(token), outcome }
            }
        })
    }
}
