//! Reads a shard's table in place, beside its writer: from any thread, and from any process that
//! maps the region, read-only included. Never locks, never stores, never allocates.
//!
//! Bursts are the fast way: all hashes are computed first, then the tags of all keys are drawn
//! near, then the cells that fit, and only then is anything read, so that the memory works on all
//! of a burst at once. How a key is found beside the writer stands in `lookup`.
//!
//! The geometry comes from the capacity alone, checked against the region's size, so a hostile
//! header or cell can give wrong answers but never an access outside.

use crate::Entry;
use crate::cell::Torn;
use crate::key::Key;
use crate::layout::{Hasher, KeyHash, LAYOUT_VERSION, Layout, MAGIC, header};
use crate::lifetimes::Marks;
use crate::limits::{CAPACITY_MAX, READ_ATTEMPTS};
use crate::location_cache::LocationCache;
use crate::lookup::{NOWHERE, View};
use crate::region::Region;
use crate::tally::Tally;
use crate::types::{ShardId, SlotId, Time};
use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::Arc;
use thiserror::Error;

/// Keys that [`TableReader::get_many`] looks up side by side.
pub const READ_BURST: usize = 32;
/// Keys of one step of a stream of lookups: two lines each is what a processor fetches at a time.
const GROUP: usize = 8;
/// Groups under way, and one to make a power of two.
const GROUPS: usize = 4;
/// Fruitless attempts after which a reader lets other threads run: the writer may wait for this
/// core.
const SPINS_BEFORE_YIELD: u32 = 64;
/// Attempts at leaving a mark while the entry's neighbours are being moved.
const MARK_ATTEMPTS: u32 = 16;

/// Whose table a region holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionIdentity {
    /// The cluster.
    pub cluster: u64,
    /// The shard.
    pub shard: ShardId,
}

/// Why a region cannot be used as a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// No such table can be made.
    #[error("a table cannot have a capacity of {0}: choose 1 to {CAPACITY_MAX}")]
    Capacity(u32),
    /// The region is smaller than the table.
    #[error("a table of this capacity needs {needed} bytes, the region has {found}")]
    TooSmall {
        /// Bytes that the capacity asks for.
        needed: u64,
        /// Bytes of the region.
        found: u64,
    },
    /// Not enough memory for what stands beside a table.
    #[error(
        "a table of this capacity needs {wanted} bytes beside its region, and they are not there"
    )]
    NoMemory {
        /// Bytes that are needed.
        wanted: u64,
    },
    /// The region is mapped read-only and cannot be formatted.
    #[error("a table is formatted in a writable region; this one is mapped read-only")]
    ReadOnly,
    /// The region holds something already.
    #[error("the region is not fresh: a table is formatted once, in zeroed memory")]
    NotFresh,
    /// The magic number is missing.
    #[error("the region holds no table (yet)")]
    NotATable,
    /// Made by another version of this program.
    #[error("the region has table layout {found}, this program {LAYOUT_VERSION}: run one version")]
    LayoutVersion {
        /// What the header says.
        found: u64,
    },
    /// Another cluster's.
    #[error("the region belongs to cluster {found:016x}, not to {expected:016x}")]
    WrongCluster {
        /// What the header says.
        found: u64,
        /// What was asked for.
        expected: u64,
    },
    /// Another shard's.
    #[error("the region belongs to shard {found}, not to {expected}")]
    WrongShard {
        /// What the header says.
        found: u64,
        /// What was asked for.
        expected: ShardId,
    },
}

/// Why another process's table gave no answer. The caller asks the owner instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReadError {
    /// No stable view after [`READ_ATTEMPTS`] attempts: the writer may have died in a write.
    #[error("the table is being written and does not settle: its writer may have died")]
    Busy,
    /// Stable, but a checksum does not fit.
    #[error("a cell of the table does not fit its checksum")]
    Checksum,
}

/// Where the keys of a group probably lie.
#[derive(Clone, Copy, Default)]
struct Group {
    hashes: [u64; GROUP],
    cells: [u32; GROUP],
}

/// Puts what was found where it is wanted; whether something was.
#[inline]
fn put(found: Option<Entry>, into: &mut Entry) -> bool {
    found.map(|entry| *into = entry).is_some()
}

/// Reads one table. See the module's text.
#[derive(Clone, Debug)]
pub struct TableReader {
    view: View<Region>,
    /// Where what is seen is marked, in the process of the writer.
    marks: Option<Marks>,
}

impl TableReader {
    /// A reader of the table that a region holds.
    ///
    /// # Errors
    /// If it holds none, or another cluster's, shard's or version's.
    pub fn open(region: Arc<Region>, identity: RegionIdentity) -> Result<Self, TableError> {
        let words = region.words();
        if words.len() < header::WORDS {
            let needed = (header::WORDS * 8) as u64;
            return Err(TableError::TooSmall { needed, found: region.len_bytes() as u64 });
        }
        // The writer stores the magic number last.
        if words[header::MAGIC].load(Ordering::Acquire) != MAGIC {
            return Err(TableError::NotATable);
        }
        let word = |at: usize| words[at].load(Ordering::Relaxed);
        if word(header::LAYOUT) != LAYOUT_VERSION {
            return Err(TableError::LayoutVersion { found: word(header::LAYOUT) });
        }
        if word(header::CLUSTER) != identity.cluster {
            let (found, expected) = (word(header::CLUSTER), identity.cluster);
            return Err(TableError::WrongCluster { found, expected });
        }
        if word(header::SHARD) != u64::from(identity.shard.0) {
            let (found, expected) = (word(header::SHARD), identity.shard);
            return Err(TableError::WrongShard { found, expected });
        }
        let capacity = u32::try_from(word(header::CAPACITY)).unwrap_or(u32::MAX);
        let layout = Layout::new(capacity).ok_or(TableError::Capacity(capacity))?;
        if layout.words > words.len() {
            let needed = layout.words as u64 * 8;
            return Err(TableError::TooSmall { needed, found: region.len_bytes() as u64 });
        }
        let hasher = Hasher::new(word(header::HASH_KEY));
        Ok(Self { view: View { memory: region, layout, hasher }, marks: None })
    }

    pub(crate) fn with_marks(self, marks: Option<Marks>) -> Self {
        Self { marks, ..self }
    }

    /// The hash of a key in this table, for the calls that take one: it is computed once for a
    /// prefetch and the read that follows.
    #[must_use]
    #[inline]
    pub fn hash(&self, key: &Key) -> KeyHash {
        KeyHash { hash: self.view.hash(key), hasher: self.view.hasher.id(), cell: NOWHERE }
    }

    #[inline]
    fn resolve(&self, key: &Key, hash: KeyHash) -> u64 {
        if hash.hasher == self.view.hasher.id() {
            debug_assert_eq!(hash.hash, self.view.hash(key), "the hash of another key");
            return hash.hash;
        }
        self.view.hash(key)
    }

    /// First step of a burst, for each of its keys: draws the tags near.
    #[inline]
    pub fn prefetch_tags(&self, hash: KeyHash) {
        if hash.hasher == self.view.hasher.id() {
            self.view.prefetch_tags(hash.hash);
        }
    }

    /// Second step of a burst, for each of its keys: draws the cell near that the tags point to.
    /// The hash that it gives knows the cell, so that the read looks nowhere else.
    #[inline]
    pub fn prefetch_cell(&self, mut hash: KeyHash) -> KeyHash {
        if hash.hasher == self.view.hasher.id() {
            hash.cell = self.view.prefetch_cell(hash.hash);
            self.prefetch_marks(hash.hash);
        }
        hash
    }

    /// Both steps at once, for a key that is read alone: the tags, and the cell at its home.
    #[inline]
    pub fn prefetch(&self, key: &Key) {
        let hash = self.view.hash(key);
        self.view.prefetch_tags(hash);
        self.view.prefetch_lines(self.view.layout.home(hash));
        self.prefetch_marks(hash);
    }

    #[inline]
    fn prefetch_marks(&self, hash: u64) {
        if let Some(marks) = &self.marks {
            marks.prefetch(self.view.layout.home(hash));
        }
    }

    /// Reads an entry, in the process of the writer: waits for a write that is under way, and is
    /// never wrong.
    #[must_use]
    #[inline]
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.get_settled(key, self.view.hash(key))
    }

    /// As [`TableReader::get`], with the hash at hand and room for the entry: whether there is one.
    /// `hash` is this key's.
    #[must_use]
    #[inline]
    pub fn get_hashed(&self, key: &Key, hash: KeyHash, into: &mut Entry) -> bool {
        let resolved = self.resolve(key, hash);
        self.view.hand_over((hash.cell, key), false, |entry| *into = entry)
            || put(self.get_settled(key, resolved), into)
    }

    /// As [`TableReader::get_hashed`], for packets that keep the entry alive: leaves a mark that it
    /// was seen now, and counts them. Without a lock; with nothing to count, nothing is written
    /// between two ticks of the marks.
    #[inline]
    pub fn get_seen(
        &self,
        key: &Key,
        hash: KeyHash,
        (now, tally): (Time, Tally),
        into: &mut Entry,
    ) -> bool {
        let Some(marks) = &self.marks else { return self.get_hashed(key, hash, into) };
        let (hint, hash) = (hash.cell, self.resolve(key, hash));
        let counter = self.word(Layout::moves_word(self.view.layout.home(hash)));
        let moves = counter.load(Ordering::Acquire);
        if self.view.hand_over((hint, key), false, |entry| *into = entry) {
            marks.leave(hint, now);
            // An entry that moved meanwhile may have left without the mark.
            if moves & 1 == 0 && counter.load(Ordering::Relaxed) == moves {
                marks.count(hint, tally);
                return true;
            }
        }
        put(self.search_seen(key, hash, (now, tally)), into)
    }

    /// [`TableReader::get_seen`] of a key that does not lie where it was thought to, or moves.
    #[inline(never)]
    fn search_seen(&self, key: &Key, hash: u64, (now, tally): (Time, Tally)) -> Option<Entry> {
        let marks = self.marks.as_ref()?;
        let counter = self.word(Layout::moves_word(self.view.layout.home(hash)));
        let mut spins = 0;
        loop {
            let moves = counter.load(Ordering::Acquire);
            if let Ok(found) = self.view.look(key, hash, false) {
                let (cell, entry) = found?;
                marks.leave(cell, now);
                let is_same = counter.load(Ordering::Relaxed) == moves;
                // A writer that was put aside in the middle of a move must not hold up a packet.
                // The mark lies where the entry was found, and goes along when the move goes on.
                if is_same && (moves & 1 == 0 || spins >= MARK_ATTEMPTS) {
                    marks.count(cell, tally);
                    return Some(entry);
                }
            }
            rest(&mut spins);
        }
    }

    #[inline]
    fn get_settled(&self, key: &Key, hash: u64) -> Option<Entry> {
        match self.view.look(key, hash, false) {
            Ok(found) => found.map(|(_, entry)| entry),
            Err(_) => self.get_unsettled(key, hash),
        }
    }

    #[cold]
    fn get_unsettled(&self, key: &Key, hash: u64) -> Option<Entry> {
        let mut spins = 0;
        loop {
            rest(&mut spins);
            if let Ok(found) = self.view.look(key, hash, false) {
                return found.map(|(_, entry)| entry);
            }
        }
    }

    /// Reads the entries of several keys. Their cache misses overlap, so this is several times
    /// faster than one [`TableReader::get`] after the other once a table outgrows the caches.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn get_many(&self, keys: &[Key], found: &mut [Option<Entry>]) {
        let take = |place: &mut Option<Entry>, entry| *place = Some(entry);
        self.stream(keys, found, (false, take), |key, hash| self.get_settled(key, hash));
    }

    /// Reads the entries of several keys of another process's table: [`TableReader::try_get`] for
    /// each, with their cache misses side by side.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn try_get_many(&self, keys: &[Key], found: &mut [Result<Option<Entry>, ReadError>]) {
        let take = |place: &mut Result<_, _>, entry| *place = Ok(Some(entry));
        self.stream(keys, found, (true, take), |key, hash| {
            self.try_find(key, hash).map(|found| found.map(|(_, entry)| entry))
        });
    }

    /// Looks keys up in groups, three groups at a time: while one is hashed and its tags are drawn
    /// near, the cells of the one before are, and the one before that is read. So there is always
    /// something to compute while memory answers. `take` puts an entry where it is wanted, verified
    /// or not; whatever is not found at once is looked up by `search`.
    ///
    /// # Panics
    /// If the slices differ in length.
    #[inline(always)]
    fn stream<T>(
        &self,
        keys: &[Key],
        found: &mut [T],
        (verified, take): (bool, impl Fn(&mut T, Entry)),
        search: impl Fn(&Key, u64) -> T,
    ) {
        assert_eq!(keys.len(), found.len(), "one place for each key");
        let sight = self.view.sight();
        let mut ring = [Group::default(); GROUPS];
        let (mut hashing, mut finding) = (keys.chunks(GROUP), keys.chunks(GROUP));
        let mut reading = keys.chunks(GROUP).zip(found.chunks_mut(GROUP));
        for step in 0..keys.len().div_ceil(GROUP) + 2 {
            if let Some(keys) = hashing.next() {
                for (hash, key) in ring[step % GROUPS].hashes.iter_mut().zip(keys) {
                    *hash = sight.hash(key);
                    sight.prefetch_tags(*hash);
                }
            }
            if step >= 1
                && let Some(keys) = finding.next()
            {
                let Group { hashes, cells } = &mut ring[(step - 1) % GROUPS];
                for ((cell, hash), _) in cells.iter_mut().zip(hashes).zip(keys) {
                    *cell = sight.prefetch_cell(*hash);
                }
            }
            if step >= 2
                && let Some((keys, found)) = reading.next()
            {
                let Group { hashes, cells } = &ring[(step - 2) % GROUPS];
                for (((key, found), hash), cell) in keys.iter().zip(found).zip(hashes).zip(cells) {
                    if !sight.hand_over((*cell, key), verified, |entry| take(found, entry)) {
                        *found = search(key, *hash);
                    }
                }
            }
        }
    }

    /// Reads an entry of another process's table: a bounded number of attempts, checksums verified.
    /// The caller then makes sure that [`TableReader::generation`] is the one of its grant and that
    /// its lease still holds.
    ///
    /// # Errors
    /// If there is no stable, intact view.
    #[inline]
    pub fn try_get(&self, key: &Key) -> Result<Option<Entry>, ReadError> {
        Ok(self.try_find(key, self.view.hash(key))?.map(|(_, entry)| entry))
    }

    /// As [`TableReader::try_get`], with the hash at hand. `hash` is this key's.
    ///
    /// # Errors
    /// If there is no stable, intact view.
    #[inline]
    pub fn try_get_hashed(&self, key: &Key, hash: KeyHash) -> Result<Option<Entry>, ReadError> {
        let resolved = self.resolve(key, hash);
        match self.view.entry_at(hash.cell, key, true) {
            Some(entry) => Ok(Some(entry)),
            None => Ok(self.try_find(key, resolved)?.map(|(_, entry)| entry)),
        }
    }

    /// As [`TableReader::try_get_many`], with a memory of where keys lay: a key that still lies
    /// there costs a look at its cell, 128 bytes, and at nothing else.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn try_get_cached(
        &self,
        cache: &mut LocationCache,
        keys: &[Key],
        found: &mut [Result<Option<Entry>, ReadError>],
    ) {
        assert_eq!(keys.len(), found.len(), "one place for each key");
        for (keys, found) in keys.chunks(READ_BURST).zip(found.chunks_mut(READ_BURST)) {
            let mut places = [(0, NOWHERE); READ_BURST];
            for ((hash, cell), key) in places.iter_mut().zip(keys) {
                *hash = self.view.hash(key);
                // A cell of another table, or of no table at all, is only a bad hint.
                *cell = cache.recall(*hash);
                match *cell {
                    NOWHERE => self.view.prefetch_tags(*hash),
                    cell => self.view.prefetch_lines(cell),
                }
            }
            let unknown = places[..keys.len()].iter_mut().filter(|(_, cell)| *cell == NOWHERE);
            for (hash, cell) in unknown {
                *cell = self.view.prefetch_cell(*hash);
            }
            for ((key, (hash, cell)), found) in keys.iter().zip(places).zip(found) {
                *found = match self.view.entry_at(cell, key, true) {
                    Some(entry) => Ok(Some((cell, entry))),
                    None => self.try_find(key, hash),
                }
                .map(|found| {
                    found.map(|(cell, entry)| {
                        cache.remember(hash, cell);
                        entry
                    })
                });
            }
        }
    }

    #[inline]
    pub(crate) fn try_find(&self, key: &Key, hash: u64) -> Result<Option<(u32, Entry)>, ReadError> {
        match self.view.look(key, hash, true) {
            Ok(found) => Ok(found),
            Err(_) => self.try_find_unsettled(key, hash),
        }
    }

    #[cold]
    fn try_find_unsettled(&self, key: &Key, hash: u64) -> Result<Option<(u32, Entry)>, ReadError> {
        let mut last = Torn::BeingWritten;
        let mut spins = 0;
        for _ in 1..READ_ATTEMPTS {
            rest(&mut spins);
            match self.view.look(key, hash, true) {
                Ok(found) => return Ok(found),
                Err(torn) => last = torn,
            }
        }
        Err(match last {
            Torn::BeingWritten => ReadError::Busy,
            Torn::Checksum => ReadError::Checksum,
        })
    }

    /// Which owner's the content is: rotates at every change of owner. Ordered after the reads
    /// before it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        fence(Ordering::Acquire);
        self.word(header::GENERATION).load(Ordering::Acquire)
    }

    /// Whether the shard holds a slot: looked at after a read, it says whether what was found, or
    /// that nothing was, counts. Ordered after the reads before it.
    #[must_use]
    #[inline]
    pub fn holds(&self, slot: SlotId) -> bool {
        fence(Ordering::Acquire);
        let word = self.word(header::HELD + usize::from(slot.0) / 64).load(Ordering::Acquire);
        word >> (slot.0 % 64) & 1 == 1
    }

    /// The shard that a slot is on its way to, while it is.
    #[must_use]
    pub fn whither(&self, slot: SlotId) -> Option<ShardId> {
        let word = self.word(header::LEAVING).load(Ordering::Acquire);
        let leaves = word & header::LEAVING_MARK != 0 && word as u16 == slot.0;
        leaves.then_some(ShardId((word >> 16) as u16))
    }

    /// Entries that the table holds at the moment.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.word(header::ENTRIES).load(Ordering::Relaxed)
    }

    /// Entries that the table was made for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.view.layout.capacity
    }

    /// The region that the table lies in.
    #[must_use]
    pub const fn region(&self) -> &Arc<Region> {
        &self.view.memory
    }

    pub(crate) const fn view(&self) -> &View<Region> {
        &self.view
    }

    pub(crate) fn word(&self, at: usize) -> &AtomicU64 {
        self.view.word(at)
    }
}

/// A moment's rest between attempts: short at first, then the processor is given away.
#[cold]
fn rest(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        std::thread::yield_now();
    } else {
        core::hint::spin_loop();
    }
}
