//! The directory of one run: rings, regions and configurations of its nodes, gone with it.
//!
//! A demo that is killed cannot clean up, so the next one does: each run holds a lock on a file in
//! its directory for as long as it lives, and a directory whose file nobody holds is an orphan.
//! What has no such file is not touched.

use rustix::fs::{FlockOperation, flock};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::{Builder, TempDir};

/// Shared memory, where rings need no disk.
const SHARED_MEMORY: &str = "/dev/shm";
/// How the names of all run directories begin.
const PREFIX: &str = "nearstate-demo-";
/// The file that is locked while the run lives.
const LOCK: &str = "lock";
/// Times that another demo may take a directory for an orphan before it is locked.
const TRIES: u32 = 3;

/// A run's directory. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    directory: TempDir,
    _lock: File,
}

impl RunDirectory {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Removes it.
    pub(crate) fn close(self) -> io::Result<()> {
        self.directory.close()
    }
}

/// Makes a directory that only this user can enter, in shared memory if there is some. Those of
/// dead demos are removed first.
pub(crate) fn make() -> io::Result<RunDirectory> {
    let shared = Path::new(SHARED_MEMORY);
    let ordinary = std::env::temp_dir();
    for parent in [shared, &ordinary] {
        remove_orphans(parent);
    }
    if shared.is_dir()
        && let Ok(directory) = make_in(shared)
    {
        return Ok(directory);
    }
    make_in(&ordinary)
}

fn make_in(parent: &Path) -> io::Result<RunDirectory> {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    for _ in 0..TRIES {
        let mut builder = Builder::new();
        builder.prefix(&prefix).permissions(Permissions::from_mode(0o700));
        let directory = builder.tempdir_in(parent)?;
        if let Some(lock) = lock_new(&directory.path().join(LOCK)) {
            return Ok(RunDirectory { directory, _lock: lock });
        }
    }
    Err(io::Error::other("other demos take the directory away again and again"))
}

/// Makes and locks the file; `None` if another demo has seen it unlocked in between, and taken it
/// for an orphan's.
fn lock_new(path: &Path) -> Option<File> {
    let file = File::create_new(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (mine, there) = (file.metadata().ok()?, std::fs::metadata(path).ok()?);
    (mine.ino() == there.ino()).then_some(file)
}

/// Removes the run directories whose runs are dead.
fn remove_orphans(parent: &Path) {
    for directory in run_directories(parent) {
        let Ok(file) = File::open(directory.join(LOCK)) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Somebody else may have been faster, and another user's cannot be removed.
            let _ = std::fs::remove_dir_all(&directory);
        }
    }
}

fn run_directories(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let is_run = |entry: &std::fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    entries.flatten().filter(is_run).map(|entry| entry.path()).collect()
}

/// Copies the log of each life of each node to where the user looks.
pub(crate) fn keep_logs(directory: &Path, out: &Path) -> std::io::Result<()> {
    for life in std::fs::read_dir(directory)? {
        let life = life?;
        let log = life.path().join("log");
        if log.is_file() {
            let name = format!("{}.log", life.file_name().to_string_lossy());
            std::fs::copy(log, out.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_each_life_is_kept_under_its_name() {
        let (run, out) = (make().unwrap(), make().unwrap());
        for life in ["n1.1", "n1.2"] {
            std::fs::create_dir(run.path().join(life)).unwrap();
            std::fs::write(run.path().join(life).join("log"), life).unwrap();
        }
        keep_logs(run.path(), out.path()).unwrap();
        assert_eq!(std::fs::read(out.path().join("n1.2.log")).unwrap(), b"n1.2");
        let kept = std::fs::read_dir(out.path()).unwrap().flatten();
        let kept = kept.filter(|file| file.path().extension().is_some_and(|end| end == "log"));
        assert_eq!(kept.count(), 2);
    }

    #[test]
    fn only_this_user_can_enter_and_it_goes_away() {
        let directory = make().unwrap();
        let path = directory.path().to_owned();
        std::fs::write(path.join("ring"), b"x").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn what_dead_demos_left_goes_and_what_is_alive_or_strange_stays() {
        let parent = tempfile::tempdir().unwrap();
        let living = make_in(parent.path()).unwrap();
        let dead = parent.path().join(format!("{PREFIX}1-dead"));
        let strange = parent.path().join(format!("{PREFIX}2-without-a-lock"));
        for directory in [&dead, &strange] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("n1.toml"), b"x").unwrap();
        }
        std::fs::write(dead.join(LOCK), b"").unwrap();
        remove_orphans(parent.path());
        assert!(!dead.exists() && strange.exists());
        assert!(living.path().exists(), "its lock is held");
    }
}
