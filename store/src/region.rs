//! A memory mapping seen as words: the one place of the crate that touches raw memory.
//!
//! A region is anonymous memory or a named file that several processes map. Either gets huge pages
//! if the system has some set aside (a file: if it lies on a hugetlbfs), else transparent ones
//! where the kernel allows them, else ordinary ones; the log says which, once a region. On a tmpfs
//! such as /dev/shm transparent ones are off unless `transparent_hugepage/shmem_enabled` or the
//! mount's `huge=` says otherwise, so a file there has ordinary pages on most systems. All access
//! goes through atomics, so a process that writes at the same moment, even a hostile one, can make
//! values wrong but not behaviour undefined; what values mean, and whether they may be believed, is
//! the caller's matter.
//!
//! A region never grows, and its space is reserved when it is made: too little memory is an error
//! at start, not a signal later. A file must not be cut short while it is mapped; files are made
//! with mode 0600, so only the same user could.

#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, FlockOperation};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The most bytes a region may have: 1 TiB.
pub const REGION_BYTES_MAX: usize = 1 << 40;
/// Size of the huge pages that are tried, as a power of two: 2 MiB.
const HUGE_PAGE_BITS: u8 = 21;
const HUGE_PAGE_BYTES: usize = 1 << HUGE_PAGE_BITS;
/// What `statfs` says of a hugetlbfs.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// What kind of memory a region got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Huge pages that the administrator had set aside.
    HugePages,
    /// Ordinary pages that the kernel was asked to join into huge ones.
    Transparent,
    /// Ordinary pages.
    Ordinary,
    /// A file that other processes can map, on ordinary pages.
    SharedFile,
    /// Such a file on huge pages that the administrator had set aside: it lies on a hugetlbfs.
    SharedHugePages,
    /// Such a file whose pages the kernel joins into huge ones.
    SharedTransparent,
}

impl core::fmt::Display for Backing {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::HugePages => "huge pages",
            Self::Transparent => "transparent huge pages",
            Self::Ordinary => "ordinary pages",
            Self::SharedFile => "shared file on ordinary pages",
            Self::SharedHugePages => "shared file on huge pages",
            Self::SharedTransparent => "shared file on transparent huge pages",
        })
    }
}

/// Why a region could not be made or opened.
#[derive(Debug, Error)]
pub enum RegionError {
    /// No bytes, not whole words, or more than [`REGION_BYTES_MAX`].
    #[error(
        "a region of {0} bytes cannot be: it needs a multiple of 8 between 8 and {REGION_BYTES_MAX}"
    )]
    Size(u64),
    /// The machine has not that much memory to give.
    #[error(
        "no memory for a region of {wanted} bytes, {available} are available: \
         lower the table's capacity or give the machine more memory"
    )]
    TooLittleMemory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that the kernel says could be had.
        available: u64,
    },
    /// The file system of a shared region has no room for it.
    #[error(
        "no room for {wanted} bytes in {path}: lower the table's capacity, \
         free some space there, or choose another directory"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes asked for.
        wanted: u64,
    },
    /// The file exists already.
    #[error("{0} exists and a running process uses it: name another file, or stop that process")]
    Exists(PathBuf),
    /// The file is not there (yet).
    #[error("{0} does not exist: its owner has not started or has ended")]
    Missing(PathBuf),
    /// The system refused something else.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file, or a name for anonymous memory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Mapped memory. See the module's text.
#[derive(Debug)]
pub struct Region {
    map: MmapRaw,
    backing: Backing,
    writable: bool,
    path: Option<PathBuf>,
    /// The locked file, at the end that made it and removes it when dropped.
    lock: Option<File>,
}

impl Region {
    /// Zeroed memory of this process alone.
    ///
    /// # Errors
    /// If the size is impossible or the memory is not there.
    pub fn anonymous(bytes: usize) -> Result<Self, RegionError> {
        check_size(bytes as u64)?;
        let io_error = |source| RegionError::Io {
            action: "map",
            path: PathBuf::from("anonymous memory"),
            source,
        };
        let huge = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        // Below one huge page nothing is gained.
        if bytes >= HUGE_PAGE_BYTES
            && let Ok(map) = MmapOptions::new().len(huge).huge(Some(HUGE_PAGE_BITS)).map_anon()
        {
            return Ok(Self::made(MmapRaw::from(map), Backing::HugePages));
        }
        require_memory(bytes as u64)?;
        let map = MmapRaw::from(MmapOptions::new().len(bytes).map_anon().map_err(io_error)?);
        let joined = ask_for_joined_pages(&map);
        let backing = if joined { Backing::Transparent } else { Backing::Ordinary };
        Ok(Self::made(map, backing))
    }

    /// A region of our own, and the line in the log that says what it lies on.
    fn made(map: MmapRaw, backing: Backing) -> Self {
        if let Err(error) = populate(&map) {
            // The space is there; that the pages are not mapped yet only costs time later.
            tracing::debug!(%error, "the pages of a region are not mapped in advance");
        }
        let region = Self::new(map, backing, true);
        tracing::info!(bytes = region.len_bytes(), %backing, "memory for a region");
        region
    }

    /// A new file of zeroes, mode 0600, that other processes of this user can map. It is locked as
    /// long as the region lives, and removed when the region is dropped; a file whose maker was
    /// killed is no longer locked, and replaced.
    ///
    /// # Errors
    /// If the size is impossible, the file is somebody's, or its space cannot be had.
    pub fn create_shared(path: &Path, bytes: usize) -> Result<Self, RegionError> {
        check_size(bytes as u64)?;
        require_memory(bytes as u64)?;
        let file = match create_locked(path) {
            Err(RegionError::Exists(_)) if Self::remove_orphan(path) => create_locked(path),
            other => other,
        }?;
        let on_huge_pages = is_on_huge_pages(&file);
        let bytes = if on_huge_pages { bytes.next_multiple_of(HUGE_PAGE_BYTES) } else { bytes };
        let reserved = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)
            .map_err(|errno| match errno {
                rustix::io::Errno::NOSPC | rustix::io::Errno::FBIG => {
                    RegionError::NoSpace { path: path.to_owned(), wanted: bytes as u64 }
                }
                other => io_error("reserve space for", path, other.into()),
            });
        let mapped = reserved.and_then(|()| map_file(&file, path, bytes, true));
        match mapped {
            Ok(map) => {
                let backing = shared_backing(&map, on_huge_pages);
                let mut region = Self::made(map, backing);
                region.path = Some(path.to_owned());
                region.lock = Some(file);
                Ok(region)
            }
            Err(error) => {
                // The error to report is the first one.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Maps another process's region to read and write it.
    ///
    /// # Errors
    /// If it is not there, not permitted, or of an impossible size.
    pub fn open_shared(path: &Path) -> Result<Self, RegionError> {
        Self::open(path, true)
    }

    /// Maps another process's region to read it. Only loads are possible: a store would end the
    /// process.
    ///
    /// # Errors
    /// If it is not there, not permitted, or of an impossible size.
    pub fn open_read_only(path: &Path) -> Result<Self, RegionError> {
        Self::open(path, false)
    }

    fn open(path: &Path, writable: bool) -> Result<Self, RegionError> {
        let file =
            OpenOptions::new().read(true).write(writable).open(path).map_err(
                |source| match source.kind() {
                    io::ErrorKind::NotFound => RegionError::Missing(path.to_owned()),
                    _ => io_error("open", path, source),
                },
            )?;
        let bytes = file.metadata().map_err(|source| io_error("look at", path, source))?.len();
        check_size(bytes)?;
        let map = map_file(&file, path, bytes as usize, writable)?;
        let backing = shared_backing(&map, is_on_huge_pages(&file));
        let mut region = Self::new(map, backing, writable);
        region.path = Some(path.to_owned());
        Ok(region)
    }

    /// Removes a file that nobody holds locked: whoever made it is dead. Gives whether it is gone.
    pub fn remove_orphan(path: &Path) -> bool {
        let is_orphan = File::open(path).is_ok_and(|file| {
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        is_orphan && std::fs::remove_file(path).is_ok()
    }

    fn new(map: MmapRaw, backing: Backing, writable: bool) -> Self {
        assert!(map.len() >= 8 && map.as_ptr().cast::<u64>().is_aligned());
        Self { map, backing, writable, path: None, lock: None }
    }

    /// The whole region as words. On a read-only region only `load` with relaxed or acquire
    /// ordering may be used.
    #[must_use]
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is live as long as `self`, aligned to a page (checked in `new`),
        // holds this many whole words, and is reached only through atomics, here and in other
        // processes.
        unsafe { core::slice::from_raw_parts(self.map.as_ptr().cast(), self.map.len() / 8) }
    }

    /// The region as 32-bit words: number `index` lies at byte `4 * index`. A place is used either
    /// as words or as halves, not as both.
    ///
    /// # Panics
    /// If `index` is outside.
    #[must_use]
    #[inline]
    pub fn half(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.map.len() / 4, "half {index} lies outside the region");
        // SAFETY: as in `words`; the index is inside.
        unsafe { &*self.map.as_ptr().cast::<AtomicU32>().add(index) }
    }

    fn octet(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.map.len(), "byte {at} lies outside the region");
        // SAFETY: as in `words`; a byte has no alignment, and the index is inside.
        unsafe { &*self.map.as_ptr().cast::<AtomicU8>().add(at) }
    }

    /// Copies bytes in at byte offset `at`. The copy itself has no order towards other threads and
    /// processes: callers publish it with a release store of another word. Fastest where `at` is a
    /// multiple of 8.
    ///
    /// # Panics
    /// If it does not fit or the region is read-only.
    pub fn copy_in(&self, at: usize, from: &[u8]) {
        assert!(self.writable, "a read-only region is not written");
        self.check_range(at, from.len());
        let head = at.next_multiple_of(8).wrapping_sub(at).min(from.len());
        let (first, rest) = from.split_at(head);
        let (chunks, last) = rest.as_chunks::<8>();
        for (i, byte) in first.iter().enumerate() {
            self.octet(at + i).store(*byte, Ordering::Relaxed);
        }
        let word = (at + head) / 8;
        for (to, chunk) in self.words()[word.min(self.words().len())..].iter().zip(chunks) {
            to.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        let tail = at + head + chunks.len() * 8;
        for (i, byte) in last.iter().enumerate() {
            self.octet(tail + i).store(*byte, Ordering::Relaxed);
        }
    }

    /// Copies bytes out from byte offset `at`. Callers order it after an acquire load of the word
    /// that published them. Fastest where `at` is a multiple of 8.
    ///
    /// # Panics
    /// If the region has not that many bytes there.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) {
        self.check_range(at, to.len());
        let head = at.next_multiple_of(8).wrapping_sub(at).min(to.len());
        let (first, rest) = to.split_at_mut(head);
        for (i, byte) in first.iter_mut().enumerate() {
            *byte = self.octet(at + i).load(Ordering::Relaxed);
        }
        let word = (at + head) / 8;
        let (chunks, last) = rest.as_chunks_mut::<8>();
        for (from, chunk) in self.words()[word.min(self.words().len())..].iter().zip(&mut *chunks) {
            *chunk = from.load(Ordering::Relaxed).to_ne_bytes();
        }
        let tail = at + head + chunks.len() * 8;
        for (i, byte) in last.iter_mut().enumerate() {
            *byte = self.octet(tail + i).load(Ordering::Relaxed);
        }
    }

    fn check_range(&self, at: usize, len: usize) {
        let end = at.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.map.len()),
            "{len} bytes at {at} do not lie inside a region of {} bytes",
            self.map.len()
        );
    }

    /// Asks the processor to bring the cache line of word `word` near. Outside: nothing happens.
    #[inline]
    pub fn prefetch(&self, word: usize) {
        fetch(self.map.as_ptr().wrapping_add(word.wrapping_mul(8)));
    }

    /// Bytes mapped; at least what was asked for.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.map.len()
    }

    /// What kind of memory it got.
    #[must_use]
    pub const fn backing(&self) -> Backing {
        self.backing
    }

    /// Whether this mapping may be stored to.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.writable
    }

    /// The file, if it is a shared one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Some(path) = &self.path
        {
            // Somebody else may have removed it; there is nothing left to do either way.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn create_locked(path: &Path) -> Result<File, RegionError> {
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(
            |source| match source.kind() {
                io::ErrorKind::AlreadyExists => RegionError::Exists(path.to_owned()),
                _ => io_error("create", path, source),
            },
        )?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|errno| io_error("lock", path, errno.into()))?;
    Ok(file)
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> RegionError {
    RegionError::Io { action, path: path.to_owned(), source }
}

/// Asks the processor to bring the cache line of a word near.
#[inline]
pub(crate) fn draw_near(word: &AtomicU64) {
    fetch(word.as_ptr().cast());
}

/// Asks the processor to bring the first of these bytes near.
#[inline]
pub(crate) fn draw_bytes_near(bytes: &[u8]) {
    fetch(bytes.as_ptr());
}

#[inline]
fn fetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it neither faults nor changes anything, whatever the
        // address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

fn check_size(bytes: u64) -> Result<(), RegionError> {
    if bytes < 8 || !bytes.is_multiple_of(8) || bytes > REGION_BYTES_MAX as u64 {
        return Err(RegionError::Size(bytes));
    }
    Ok(())
}

/// Whether a file lies on a hugetlbfs, where all pages are huge ones.
fn is_on_huge_pages(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type as u64 == HUGETLBFS_MAGIC)
}

fn shared_backing(map: &MmapRaw, on_huge_pages: bool) -> Backing {
    match on_huge_pages {
        true => Backing::SharedHugePages,
        false if ask_for_joined_pages(map) => Backing::SharedTransparent,
        false => Backing::SharedFile,
    }
}

/// Asks the kernel to join the pages of a mapping into huge ones, and gives whether it may do so.
/// The call itself succeeds also where the system's settings forbid it.
fn ask_for_joined_pages(map: &MmapRaw) -> bool {
    if map.len() < HUGE_PAGE_BYTES || map.advise(Advice::HugePage).is_err() {
        return false;
    }
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    is_eligible_for_joining(&text, map.as_ptr() as u64)
}

/// What `/proc/self/smaps` says of the mapping that an address lies in.
fn is_eligible_for_joining(smaps: &str, address: u64) -> bool {
    let holds_address = |line: &str| {
        let range = line.split_once(' ')?.0.split_once('-')?;
        let first = u64::from_str_radix(range.0, 16).ok()?;
        Some(first <= address && address < u64::from_str_radix(range.1, 16).ok()?)
    };
    let mut lines = smaps.lines().skip_while(|line| holds_address(line) != Some(true));
    let eligible = lines.find_map(|line| line.strip_prefix("THPeligible:"));
    eligible.is_some_and(|eligible| eligible.trim() == "1")
}

/// Makes all pages of a mapping be there now. Otherwise the first write to each would zero it: with
/// huge pages a tenth of a millisecond, in the middle of a commit.
fn populate(map: &MmapRaw) -> io::Result<()> {
    match map.advise(Advice::PopulateWrite) {
        // Before Linux 5.14; pages then come as they are touched.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

fn map_file(
    file: &File,
    path: &Path,
    bytes: usize,
    writable: bool,
) -> Result<MmapRaw, RegionError> {
    let mut options = MmapOptions::new();
    options.len(bytes);
    let map = if writable { options.map_raw(file) } else { options.map_raw_read_only(file) };
    map.map_err(|source| io_error("map", path, source))
}

/// Refuses what the kernel says it cannot give. Without this an overcommitting kernel maps anything
/// and kills the process when it fills the memory. Who makes several regions asks for all of them
/// at once first: each alone might fit.
///
/// # Errors
/// If that much is not available.
pub fn require_memory(wanted: u64) -> Result<(), RegionError> {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return Ok(()) };
    let Some(available) = memory_available(&text) else { return Ok(()) };
    if wanted > available {
        return Err(RegionError::TooLittleMemory { wanted, available });
    }
    Ok(())
}

fn memory_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_zero_and_holds_what_is_written() {
        let region = Region::anonymous(4096).unwrap();
        assert!(region.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        region.words()[511].store(7, Ordering::Relaxed);
        assert_eq!(
            region.half(1022).load(Ordering::Relaxed),
            if cfg!(target_endian = "little") { 7 } else { 0 }
        );
        assert_eq!(region.words().len(), 512);
    }

    #[test]
    fn copies_fit_at_any_offset_and_length() {
        let region = Region::anonymous(64).unwrap();
        for at in 0..64 {
            for len in 0..=64 - at {
                region.copy_in(0, &[0xee; 64]);
                let bytes: Vec<u8> = (1..=len as u8).collect();
                region.copy_in(at, &bytes);
                let mut all = [0; 64];
                region.copy_out(0, &mut all);
                let mut expected = [0xee; 64];
                expected[at..at + len].copy_from_slice(&bytes);
                assert_eq!(all, expected, "{len} bytes in at {at}");
                let mut back = vec![0; len];
                region.copy_out(at, &mut back);
                assert_eq!(back, bytes, "{len} bytes out at {at}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "do not lie inside")]
    fn a_copy_beyond_the_end_is_our_bug() {
        Region::anonymous(64).unwrap().copy_in(60, &[0; 5]);
    }

    #[test]
    fn a_shared_region_is_seen_by_who_maps_it_and_goes_with_its_creator() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("region");
        let made = Region::create_shared(&path, 8192).unwrap();
        assert!(matches!(Region::create_shared(&path, 8192), Err(RegionError::Exists(_))));
        let orphan = path.with_extension("orphan");
        std::fs::write(&orphan, "of a maker that was killed").unwrap();
        assert_eq!(Region::create_shared(&orphan, 8192).unwrap().len_bytes(), 8192);
        let reader = Region::open_read_only(&path).unwrap();
        let writer = Region::open_shared(&path).unwrap();
        made.words()[3].store(33, Ordering::Release);
        writer.copy_in(100, b"abc");
        assert_eq!(reader.words()[3].load(Ordering::Acquire), 33);
        let mut bytes = [0; 3];
        reader.copy_out(100, &mut bytes);
        assert_eq!(&bytes, b"abc");
        assert_eq!((reader.backing(), reader.len_bytes()), (Backing::SharedFile, 8192));
        drop(writer);
        assert!(path.exists(), "only the creator removes the file");
        drop(made);
        assert!(!path.exists());
        assert!(matches!(Region::open_shared(&path), Err(RegionError::Missing(_))));
    }

    #[test]
    fn impossible_sizes_and_too_little_memory_are_errors_at_start() {
        for bytes in [0, 7, 12, REGION_BYTES_MAX + 8] {
            assert!(matches!(Region::anonymous(bytes), Err(RegionError::Size(_))), "{bytes}");
        }
        let too_much = Region::anonymous(REGION_BYTES_MAX);
        assert!(matches!(too_much, Err(RegionError::TooLittleMemory { .. })), "{too_much:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd");
        std::fs::write(&path, [0; 12]).unwrap();
        assert!(matches!(Region::open_read_only(&path), Err(RegionError::Size(12))));
        let path = dir.path().join("large");
        assert!(Region::create_shared(&path, REGION_BYTES_MAX).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn joined_pages_are_claimed_only_where_the_kernel_says_so() {
        let smaps = "7f00-7f10 rw-p 00000000 00:00 0\nTHPeligible:           0\n\
                     8000-9000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nTHPeligible:    1\n";
        assert!(is_eligible_for_joining(smaps, 0x8000) && is_eligible_for_joining(smaps, 0x8fff));
        assert!(!is_eligible_for_joining(smaps, 0x7f08));
        assert!(!is_eligible_for_joining(smaps, 0x9000));
        assert!(!is_eligible_for_joining("", 0x8000));
        let region = Region::anonymous(4096).unwrap();
        assert_eq!(region.backing(), Backing::Ordinary, "less than a huge page");
        let region = Region::anonymous(3 * HUGE_PAGE_BYTES).unwrap();
        assert!(matches!(
            region.backing(),
            Backing::HugePages | Backing::Transparent | Backing::Ordinary
        ));
        assert!(region.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn available_memory_is_read_from_the_kernels_text() {
        let text = "MemTotal:  100 kB\nMemAvailable:     64 kB\n";
        assert_eq!(memory_available(text), Some(65_536));
        assert_eq!(memory_available("MemTotal: 1 kB"), None);
    }
}
