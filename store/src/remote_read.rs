//! Reads of a shard that another node owns, whatever way they take: one trait, so that whoever
//! reads need not know whether the owner's memory is mapped here, or is asked for over TCP (or, one
//! day, is fetched by a network card).
//!
//! Reads are posted, go out together, and come back one by one. A posted read is answered once:
//! with the entry or its absence and the end of the right to use that, or with a reason to ask some
//! other way. Whether that right is still good when something is made of it is the caller's matter.

use crate::Entry;
use crate::key::Key;
use crate::layout::KeyHash;
use crate::link::{LinkCompletion, PipeLink, ReadGrant};
use crate::location_cache::LocationCache;
use crate::table_reader::{READ_BURST, ReadError, TableReader};
use crate::types::{ShardId, SlotId, Time};
use arrayvec::ArrayVec;
use std::sync::Arc;
use thiserror::Error;

/// As many reads are under way as there may be. Take answers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("as many reads are under way as there may be: take answers first")]
pub struct RemoteFull;

/// Why a posted read has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RemoteError {
    /// The memory gave no stable, intact view.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// The read lease was over, or the region is another owner's by now.
    #[error("the right to read this region is over: ask for a new read lease")]
    Revoked,
    /// The shard does not hold the slot any more, or not yet.
    #[error("the shard does not hold the slot: look where it is now")]
    SlotMoved,
    /// The owner did not answer before the deadline.
    #[error("the owner did not answer before the deadline")]
    NoAnswer,
}

/// The answer to a posted read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAnswer {
    /// Who asked.
    pub token: u64,
    /// What was found, and until when it may be used.
    pub found: Result<(Option<Entry>, Time), RemoteError>,
}

/// Reads of one shard at its owner. See the module's text.
pub trait RemoteReads {
    /// Asks for an entry of a slot; the answer carries the token.
    ///
    /// # Errors
    /// If too many are under way; then nothing follows.
    fn post(&mut self, token: u64, of: (SlotId, &Key), deadline: Time) -> Result<(), RemoteFull>;

    /// Sends off together what was posted.
    fn flush(&mut self, now: Time);

    /// The next answer, if one has come.
    fn poll(&mut self) -> Option<RemoteAnswer>;
}

/// A region of another owner that is mapped here, and the right to read it.
#[derive(Debug)]
pub struct MappedTable {
    reader: TableReader,
    grant: Arc<ReadGrant>,
}

impl MappedTable {
    /// The table, read under a grant.
    #[must_use]
    pub const fn new(reader: TableReader, grant: Arc<ReadGrant>) -> Self {
        Self { reader, grant }
    }

    /// The grant that the region is read under.
    #[must_use]
    pub const fn grant(&self) -> &Arc<ReadGrant> {
        &self.grant
    }

    /// Goes on under a later grant for the same region of the same owner.
    pub fn renew(&mut self, grant: Arc<ReadGrant>) {
        self.grant = grant;
    }

    /// First step for the keys of a burst: draws near what says where the entry lies.
    #[inline]
    #[must_use]
    pub fn prefetch(&self, key: &Key) -> KeyHash {
        let hash = self.reader.hash(key);
        self.reader.prefetch_tags(hash);
        hash
    }

    /// Second step: draws the entry near.
    #[inline]
    #[must_use]
    pub fn prefetch_entry(&self, hash: KeyHash) -> KeyHash {
        self.reader.prefetch_cell(hash)
    }

    /// Reads an entry of a slot now. With the key comes its hash.
    ///
    /// # Errors
    /// As [`RemoteAnswer::found`].
    #[inline]
    pub fn read(
        &self,
        now: Time,
        slot: SlotId,
        (key, hash): (&Key, KeyHash),
    ) -> Result<(Option<Entry>, Time), RemoteError> {
        let right = self.right(now);
        let found = self.reader.try_get_hashed(key, hash);
        self.under(right, slot, found)
    }

    /// The right to read at this moment; looked at before the values are.
    fn right(&self, now: Time) -> Option<Time> {
        Some(self.grant.valid_until()).filter(|until| *until > now)
    }

    /// What was found, if it counts. Looked at once the value is in hand: a region whose owner
    /// changed meanwhile says so, and one whose shard does not hold the slot.
    #[inline]
    fn under(
        &self,
        right: Option<Time>,
        slot: SlotId,
        found: Result<Option<Entry>, ReadError>,
    ) -> Result<(Option<Entry>, Time), RemoteError> {
        let entry = found?;
        match right {
            Some(_) if self.reader.generation() != self.grant.generation => {
                Err(RemoteError::Revoked)
            }
            Some(_) if !self.reader.holds(slot) => Err(RemoteError::SlotMoved),
            Some(valid_until) => Ok((entry, valid_until)),
            None => Err(RemoteError::Revoked),
        }
    }
}

/// One-sided reads of a region that is mapped here, posted and answered together. Up to
/// [`READ_BURST`] at a time. With a memory of places, the second read of a key looks at its entry
/// and at nothing else; a pipe does without, for its reads are one by one and the tags of a key in
/// mapped memory are no farther than such a memory.
#[derive(Debug)]
pub struct MappedReads {
    table: MappedTable,
    cache: LocationCache,
    posted: ArrayVec<(u64, SlotId, Key), READ_BURST>,
    answers: ArrayVec<RemoteAnswer, READ_BURST>,
}

impl MappedReads {
    /// Reads of a table, with a memory of so many places.
    #[must_use]
    pub fn new(table: MappedTable, places: usize) -> Self {
        let cache = LocationCache::new(places);
        Self { table, cache, posted: ArrayVec::new(), answers: ArrayVec::new() }
    }
}

impl RemoteReads for MappedReads {
    fn post(&mut self, token: u64, (slot, key): (SlotId, &Key), _: Time) -> Result<(), RemoteFull> {
        if self.posted.len() + self.answers.len() >= READ_BURST {
            return Err(RemoteFull);
        }
        self.posted.push((token, slot, *key));
        Ok(())
    }

    fn flush(&mut self, now: Time) {
        let keys: ArrayVec<Key, READ_BURST> = self.posted.iter().map(|(.., key)| *key).collect();
        let right = self.table.right(now);
        let mut found = [Err(ReadError::Busy); READ_BURST];
        let Self { table, cache, .. } = self;
        table.reader.try_get_cached(cache, &keys, &mut found[..keys.len()]);
        for ((token, slot, _), found) in core::mem::take(&mut self.posted).into_iter().zip(found) {
            let found = self.table.under(right, slot, found);
            self.answers.push(RemoteAnswer { token, found });
        }
    }

    fn poll(&mut self) -> Option<RemoteAnswer> {
        self.answers.pop()
    }
}

/// Reads over a link of their own to the store of this node, which asks the owner over TCP: what is
/// posted close together shares a message.
#[derive(Debug)]
pub struct LinkReads {
    link: PipeLink,
    shard: ShardId,
}

impl LinkReads {
    /// Reads of a shard over a link on which nothing else is asked.
    #[must_use]
    pub const fn new(link: PipeLink, shard: ShardId) -> Self {
        Self { link, shard }
    }
}

impl RemoteReads for LinkReads {
    fn post(
        &mut self,
        token: u64,
        (slot, key): (SlotId, &Key),
        deadline: Time,
    ) -> Result<(), RemoteFull> {
        self.link.post_read(token, (self.shard, slot), key, deadline).map_err(|_| RemoteFull)
    }

    fn flush(&mut self, _: Time) {
        // The store takes what is there each time it looks.
    }

    fn poll(&mut self) -> Option<RemoteAnswer> {
        match self.link.poll()? {
            LinkCompletion::Read { token, answer } => {
                Some(RemoteAnswer { token, found: answer.ok_or(RemoteError::NoAnswer) })
            }
            LinkCompletion::Transaction { .. } => {
                unreachable!("nothing but reads is asked over this link: our own bug")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Value;
    use crate::region::Region;
    use crate::table::Table;
    use crate::table_reader::RegionIdentity;
    use crate::types::{NodeId, Version};

    const NOW: Time = Time(1_000);
    const END: Time = Time(2_000);

    fn key(number: u64) -> Key {
        Key([1, number, 0, 0, 0])
    }

    fn table(entries: u64) -> Table {
        let region = Region::anonymous(Table::bytes_for(100).unwrap()).unwrap();
        let identity = RegionIdentity { cluster: 1, shard: ShardId(1) };
        let mut table = Table::format(Arc::new(region), identity, 100, 3).unwrap();
        for number in 0..entries {
            table.put(&key(number), &Value([number; 8]), Version(number), SlotId(0)).unwrap();
        }
        table.set_generation(7);
        table.set_held(SlotId(0), true);
        table
    }

    fn mapped(table: &Table, until: Time) -> MappedTable {
        let grant = ReadGrant::new("/dev/null".into(), 7, NodeId(1), until);
        MappedTable::new(table.reader(), Arc::new(grant))
    }

    fn reads(table: &Table, until: Time) -> MappedReads {
        MappedReads::new(mapped(table, until), 1 << 12)
    }

    fn read(reads: &mut MappedReads, numbers: core::ops::Range<u64>) -> Vec<RemoteAnswer> {
        for number in numbers {
            reads.post(number, (SlotId(0), &key(number)), END).unwrap();
        }
        reads.flush(NOW);
        core::iter::from_fn(|| reads.poll()).collect()
    }

    /// The same reads, one by one, with and without what a burst does before them.
    fn read_now(
        reads: &MappedTable,
        numbers: core::ops::Range<u64>,
    ) -> Vec<Result<(Option<Entry>, Time), RemoteError>> {
        let keys: Vec<Key> = numbers.map(key).collect();
        let near: Vec<KeyHash> = keys.iter().map(|key| reads.prefetch(key)).collect();
        let near: Vec<KeyHash> = near.into_iter().map(|hash| reads.prefetch_entry(hash)).collect();
        let read = |hash: &dyn Fn(usize) -> KeyHash| {
            let each = keys.iter().enumerate();
            each.map(|(at, key)| reads.read(NOW, SlotId(0), (key, hash(at)))).collect::<Vec<_>>()
        };
        let prepared = read(&|at| near[at]);
        assert_eq!(prepared, read(&|_| KeyHash::UNKNOWN));
        prepared
    }

    #[test]
    fn a_read_at_once_finds_what_a_posted_one_finds() {
        let mut table = table(30);
        let reads = mapped(&table, END);
        for _ in 0..2 {
            for (found, number) in read_now(&reads, 10..42).iter().zip(10..) {
                assert_eq!(*found, Ok((table.get(&key(number)), END)), "{number}");
            }
            table.remove(&key(11));
        }
    }

    #[test]
    fn every_posted_read_is_answered_once_the_absent_too() {
        let mut table = table(30);
        let mut reads = reads(&table, END);
        for _ in 0..2 {
            let mut answers = read(&mut reads, 10..42);
            answers.sort_by_key(|answer| answer.token);
            assert_eq!(answers.len(), READ_BURST);
            for (answer, number) in answers.iter().zip(10..) {
                let entry = table.get(&key(number));
                assert_eq!(answer, &RemoteAnswer { token: number, found: Ok((entry, END)) });
            }
            // The second time it is gone already.
            table.remove(&key(11));
        }
        for number in 0..READ_BURST as u64 {
            reads.post(number, (SlotId(0), &key(number)), END).unwrap();
        }
        assert_eq!(reads.post(0, (SlotId(0), &key(0)), END), Err(RemoteFull));
    }

    #[test]
    fn nothing_is_believed_under_a_lease_that_is_over_or_of_another_owners_region() {
        let table = table(30);
        let revoked = |answers: Vec<RemoteAnswer>| {
            answers.len() == 3 && answers.iter().all(|a| a.found == Err(RemoteError::Revoked))
        };
        let all_revoked = |found: Vec<_>| found.iter().all(|f| *f == Err(RemoteError::Revoked));
        assert!(revoked(read(&mut reads(&table, NOW), 0..3)), "over at this moment");
        assert!(all_revoked(read_now(&mapped(&table, NOW), 0..3)), "over at this moment");
        let mut reads = reads(&table, END);
        assert!(!revoked(read(&mut reads, 0..3)));
        table.set_generation(8);
        assert!(revoked(read(&mut reads, 0..3)), "the region is another owner's");
        assert!(all_revoked(read_now(&reads.table, 0..3)), "the region is another owner's");
        let later = ReadGrant::new("/dev/null".into(), 8, NodeId(1), END);
        reads.table.renew(Arc::new(later));
        assert!(read_now(&reads.table, 0..3).iter().all(Result::is_ok), "granted anew");
    }

    #[test]
    fn neither_presence_nor_absence_is_believed_of_a_slot_that_has_moved() {
        let table = table(30);
        let mut reads = reads(&table, END);
        table.set_held(SlotId(0), false);
        let answers = read(&mut reads, 28..32);
        assert_eq!(answers.len(), 4);
        assert!(answers.iter().all(|a| a.found == Err(RemoteError::SlotMoved)), "{answers:?}");
        let found = read_now(&reads.table, 28..32);
        assert!(found.iter().all(|found| *found == Err(RemoteError::SlotMoved)), "{found:?}");
    }
}
