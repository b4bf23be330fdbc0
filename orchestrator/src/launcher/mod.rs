//! What starts processes. One body today: children of this process ([`process`]).

pub mod process;
pub mod ready_line;

use crate::inventory::{Exit, ReadyNode};
use core::future::Future;
use core::pin::Pin;
use std::path::PathBuf;
use thiserror::Error;

/// What to launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchSpec {
    /// The node's name: the ready line must have it.
    pub name: String,
    /// What to run.
    pub program: PathBuf,
    /// With which arguments.
    pub arguments: Vec<String>,
    /// Where what it writes goes.
    pub log: PathBuf,
}

/// A launcher's number for a process. Never used twice, unlike a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessNumber(pub u64);

/// A process that was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The launcher's number for it.
    pub process: ProcessNumber,
    /// The system's.
    pub pid: u32,
}

/// What a process did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It printed its ready line.
    Ready(ProcessNumber, ReadyNode),
    /// It is gone.
    Exited(ProcessNumber, Exit),
}

/// A launch that failed.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Its files cannot be made.
    #[error("{path} cannot be written: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The program cannot be started.
    #[error("{program} cannot be started: {source}")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A future of a launcher.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Starts, asks to end, kills, and says what happened. Orders to a process that is gone do nothing.
pub trait Launcher: Send {
    /// Starts a process.
    ///
    /// # Errors
    /// If it cannot be started; then no event follows.
    fn launch(&mut self, spec: &LaunchSpec) -> Result<Launched, LaunchError>;

    /// Asks it to end.
    fn stop(&mut self, process: ProcessNumber);

    /// Ends it (SIGKILL).
    fn kill(&mut self, process: ProcessNumber);

    /// The next thing that happened. Nothing is lost if the future is dropped.
    fn next_event(&mut self) -> BoxFuture<'_, ProcessEvent>;
}
