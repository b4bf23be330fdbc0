//! `nearstate node`: reads a configuration and runs one node until it is told to end.

use super::Ended;
use clap::{Args, ValueHint};
use nearstate_nf_node::node_config::NodeConfig;
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

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
    #[error("the configuration {path:?} cannot be read; give the path of a readable TOML file")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a configuration.
    #[error("the configuration {path:?} cannot be used")]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: nearstate_nf_node::node_config::NodeConfigError,
    },
}

/// Runs it.
pub(super) fn run(args: &NodeArgs) -> Ended {
    let path = &args.config;
    let text = std::fs::read_to_string(path)
        .map_err(|source| NodeError::Unreadable { path: path.clone(), source })?;
    let config = NodeConfig::parse(&text)
        .map_err(|source| NodeError::Unusable { path: path.clone(), source })?;
    nearstate_nf_node::service::run(config)?;
    Ok(ExitCode::SUCCESS)
}
