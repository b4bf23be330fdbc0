//! `nearstate node`: reads a configuration and runs one node until it is told to end.
//!
//! It ends by SIGINT, SIGTERM or a shutdown message, and, if its configuration says so, when
//! standard input closes: that is how a launcher's children never outlive it.

use super::Ended;
use clap::{Args, ValueHint};
use nearstate_nf_node::node_config::{NodeConfig, NodeConfigError};
use nearstate_nf_node::service;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The options of `nearstate node`.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The node's configuration (TOML)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
}

/// A node that did not start.
#[derive(Debug, Error)]
enum NodeError {
    /// No file.
    #[error("the configuration {} cannot be read; give a readable TOML file", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a configuration.
    #[error("the configuration {} cannot be used", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: NodeConfigError,
    },
}

/// Runs it.
pub(super) fn run(args: &NodeArgs) -> Ended {
    let path = &args.config;
    let text = std::fs::read_to_string(path)
        .map_err(|source| NodeError::Unreadable { path: path.clone(), source })?;
    let config = NodeConfig::parse(&text)
        .map_err(|source| NodeError::Unusable { path: path.clone(), source })?;
    let runtime = nearstate_store::driver::runtime()?;
    let end_with_stdin = config.end_with_stdin;
    runtime.block_on(async {
        // Before the node is ready: from then on a signal is to end it in good order.
        let signals = Signals::install()?;
        let stop = async move {
            tokio::select! {
                () = signals.told_to_end(end_with_stdin) => {}
                () = stdin_closed(), if end_with_stdin => {}
            }
        };
        service::run(config, tell_ready, stop).await.map_err(Box::<dyn std::error::Error>::from)
    })?;
    // A read of standard input that is under way cannot be called back.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// The line that a launcher waits for.
fn tell_ready(ready: &service::Ready) {
    let mut stdout = std::io::stdout();
    // Nobody listening is no reason not to serve.
    let _ = writeln!(stdout, "{ready}").and_then(|()| stdout.flush());
}

/// The signals that end a node.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// A launched node leaves Ctrl-C, which reaches all processes of a terminal, to its launcher.
    async fn told_to_end(mut self, is_launched: bool) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => if !is_launched { return },
                _ = self.terminate.recv() => return,
            }
        }
    }
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 256];
    while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
}
