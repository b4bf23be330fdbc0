//! `nearstate node`: reads a configuration and runs one node until it is told to end.
//!
//! It ends by SIGINT, SIGTERM, SIGHUP or a shutdown message, and, if its configuration says so,
//! when standard input closes: that is how a launcher's children never outlive it. It hands over
//! what it owns first; a second signal ends it at once.

use super::Ended;
use clap::{Args, ValueHint};
use nearstate_nf_node::node_config::{NodeConfig, NodeConfigError};
use nearstate_nf_node::service;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// Says what is logged to standard error, as `tracing-subscriber` reads it: `debug`,
/// `info,nearstate_store=trace`.
const LOG_VARIABLE: &str = "NEARSTATE_LOG";
/// What is logged unless the variable says otherwise. What the consensus library has to say is told
/// in our own words, once.
const LOG_DEFAULT: &str = "info,openraft=off";

/// Every key of a configuration with its range and default: the example that operators copy.
const EXAMPLE: &str = include_str!("../../examples/node.toml");

/// How a node ends, and what may be configured.
fn long_help() -> String {
    format!(
        "Ctrl-C, SIGTERM and SIGHUP end a node in good order: it hands over the shards that it \
         owns, which takes up to 4 s, tells the cluster that it leaves, and exits with code 0. A \
         second signal ends it at once.\n\n{LOG_VARIABLE} says what is logged to standard error: a \
         level (error, warn, info, debug, trace), or one a module, as in \
         `info,nearstate_store=debug`; unless it is set, `{LOG_DEFAULT}`.\n\nEvery key of a \
         configuration (examples/node.toml):\n\n{EXAMPLE}"
    )
}

/// The options of `nearstate node`.
#[derive(Debug, Args)]
#[command(after_help = "`nearstate node --help` shows every key of a configuration.")]
#[command(after_long_help = long_help())]
pub(super) struct NodeArgs {
    /// The node's configuration (TOML)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: PathBuf,
}

/// A node that did not start.
#[derive(Debug, Error)]
enum NodeError {
    /// No file.
    #[error(
        "the configuration {} (--config) cannot be read; name a TOML file, for example a copy of \
         examples/node.toml",
        path.display()
    )]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a configuration.
    #[error(
        "the configuration {} (--config) cannot be used; `nearstate node --help` shows every key",
        path.display()
    )]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: NodeConfigError,
    },
    /// Not a filter.
    #[error("{LOG_VARIABLE} is `{wanted}`; give a level (error, warn, info, debug, trace)")]
    LogFilter {
        /// What it says.
        wanted: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Runs it.
pub(super) fn run(args: &NodeArgs) -> Ended {
    begin_log()?;
    let path = &args.config;
    let text = std::fs::read_to_string(path)
        .map_err(|source| NodeError::Unreadable { path: path.clone(), source })?;
    let config = NodeConfig::parse(&text)
        .map_err(|source| NodeError::Unusable { path: path.clone(), source })?;
    let runtime = nearstate_store::driver::runtime()?;
    let is_launched = config.end_with_stdin;
    runtime.block_on(async {
        // Before anything else, so that a node which is only trying to join ends as well.
        let signals = Signals::install()?;
        let (told, asked) = watch::channel(0_u32);
        let mut at_once = asked.clone();
        let mut asked = asked;
        if is_launched {
            let told = told.clone();
            tokio::spawn(async move {
                stdin_closed().await;
                told.send_modify(|count| *count += 1);
            });
        }
        tokio::spawn(signals.count(is_launched, told));
        // The senders live as long as the runtime: the waits end only when somebody tells.
        let stop = service::Stop {
            asked: async move { drop(asked.wait_for(|count| *count >= 1).await) },
            at_once: async move { drop(at_once.wait_for(|count| *count >= 2).await) },
        };
        service::run(config, tell_ready, stop).await.map_err(Box::<dyn std::error::Error>::from)
    })?;
    // A read of standard input that is under way cannot be called back.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Lets the log go to standard error; standard output is the launcher's.
fn begin_log() -> Result<(), NodeError> {
    let wanted = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOG_DEFAULT.to_owned());
    let filter =
        EnvFilter::try_new(&wanted).map_err(|source| NodeError::LogFilter { wanted, source })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Nobody reading the log any more is no reason to fail.
        .log_internal_errors(false)
        .init();
    Ok(())
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
    hangup: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Counts what tells the node to end. A launched node leaves Ctrl-C and hang-ups, which reach
    /// all processes of a terminal, to its launcher.
    async fn count(mut self, is_launched: bool, told: watch::Sender<u32>) {
        loop {
            let counts = tokio::select! {
                _ = self.interrupt.recv() => !is_launched,
                _ = self.hangup.recv() => !is_launched,
                _ = self.terminate.recv() => true,
            };
            if counts {
                told.send_modify(|count| *count += 1);
            }
        }
    }
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 256];
    while stdin.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
}
