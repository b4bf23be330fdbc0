//! The directory of one run: rings, regions and configurations of its nodes, gone with it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::{Builder, TempDir};

/// Shared memory, where rings need no disk.
const SHARED_MEMORY: &str = "/dev/shm";

/// Makes a directory that only this user can enter, in shared memory if there is some; it is
/// removed when it is dropped.
pub(crate) fn make() -> std::io::Result<TempDir> {
    let mut builder = Builder::new();
    builder.prefix("nearstate-").permissions(std::fs::Permissions::from_mode(0o700));
    if Path::new(SHARED_MEMORY).is_dir()
        && let Ok(directory) = builder.tempdir_in(SHARED_MEMORY)
    {
        return Ok(directory);
    }
    builder.tempdir()
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
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2);
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
}
