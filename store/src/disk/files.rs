//! The edge: a real directory. One process at a time has it, by a lock that ends with the process.

use super::layer::{Files, Look};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file whose lock says that the directory is somebody's.
pub(crate) const LOCK: &str = "lock";

/// A directory of this process.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Files that were written: an error of the disk is told to who has the file open.
    open: BTreeMap<String, File>,
    /// Held by all handles of this process; none if the directory is only looked at.
    _lock: Option<Arc<File>>,
}

impl Directory {
    /// The directory, which is made if need be. `Ok(None)`: another process has it.
    pub(crate) fn lock(path: &Path) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(path)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(other) => return Err(other.into()),
        }
        let lock = Some(Arc::new(lock));
        Ok(Some(Self { path: path.to_owned(), open: BTreeMap::new(), _lock: lock }))
    }

    /// The directory, to be read only, while no other process has it. `Ok(None)`: one has. Nothing
    /// is made or written.
    pub(crate) fn lock_to_look(path: &Path) -> io::Result<Option<Self>> {
        let lock = File::open(path.join(LOCK))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _lock: Some(Arc::new(lock)), ..Self::look(path) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    /// The directory, to be read only.
    fn look(path: &Path) -> Self {
        Self { path: path.to_owned(), open: BTreeMap::new(), _lock: None }
    }

    /// Another handle of the same directory.
    pub(crate) fn again(&self) -> Self {
        Self { path: self.path.clone(), open: BTreeMap::new(), _lock: self._lock.clone() }
    }

    fn opened(&mut self, name: &str) -> io::Result<&File> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Sets room aside without making the file longer. Where the file system cannot, a full disk is
/// found at a later write, which is handled as well.
fn reserve(file: &File, room: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, room) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(other) => Err(other.into()),
    }
}

impl Look for Directory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is no text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn read(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.path.join(name))?;
        let length = file.metadata()?.len();
        if length > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Files for Directory {
    fn create(&mut self, name: &str, room: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.join(name))?;
        if room > 0 {
            reserve(&file, room)?;
        }
        self.open.insert(name.to_owned(), file);
        Ok(())
    }

    fn reserve(&mut self, name: &str, room: u64) -> io::Result<()> {
        reserve(self.opened(name)?, room)
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.opened(name)?.write_all_at(bytes, at)
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.opened(name)?.set_len(length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.opened(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        self.open.remove(to);
        if let Some(file) = self.open.remove(from) {
            self.open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}
