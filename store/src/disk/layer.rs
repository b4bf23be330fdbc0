//! The few things that the log asks of a directory, so that recovery and writing run on real files,
//! and in tests on a model that forgets at a crash what was not synced.

use std::io;

/// One directory with files in it, to be looked at. Names are plain names.
pub(crate) trait Look {
    /// All names, in no order.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// A whole file. More than `most` bytes is an error.
    fn read(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>>;
}

/// One directory with files in it, to be changed.
pub(crate) trait Files: Look + Send + 'static {
    /// Makes an empty file (over an old one), with room for so many bytes set aside.
    fn create(&mut self, name: &str, room: u64) -> io::Result<()>;

    /// Sets room aside in a file that is there.
    fn reserve(&mut self, name: &str, room: u64) -> io::Result<()>;

    /// Writes all of these bytes at this place. What an error leaves of them is unknown.
    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to this length.
    fn cut(&mut self, name: &str, length: u64) -> io::Result<()>;

    /// What was written to the file is on the disk when this returns. After an error nobody knows
    /// what is, and asking again does not tell.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of one that may have it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; one that is not there is no error.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Names that were given or taken are so on the disk when this returns.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// Whether an error says that there is no room, which passes, and not that something is broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
