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

#[cfg(test)]
mod tests {
    use super::*;

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
