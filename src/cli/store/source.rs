//! Where a command about a store looks: at running nodes, or at the files of a stopped one.

use crate::ask::{ClusterName, NODE_ADDRESS, NodeAddress};
use crate::cli::asked::Asked;
use clap::{Args, ValueHint};
use nearstate_nf_node::service::stopped::{StoppedError, StoppedNode};
use std::io;
use std::path::{Path, PathBuf};

/// How the directory of a durable node's logs ends.
const HOME_EXTENSION: &str = "disk";

/// Which node is looked at, and how what is found is shown.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Where a node listens
    #[arg(long, value_name = NODE_ADDRESS, required_unless_present = "directory")]
    node: Option<NodeAddress>,
    /// Look at the files of a stopped durable node instead: its `CLUSTER.NAME.disk`, or a directory
    /// that has just that one. They are only read, and not while a node has them
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    #[arg(conflicts_with_all = ["node", "cluster"])]
    directory: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterName,
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

/// Where a command looks.
pub(super) enum Place {
    /// At running nodes.
    Running(Asked),
    /// At what one has left.
    Stopped(Box<StoppedNode>),
}

impl Source {
    /// Where it is.
    pub(super) fn place(&self) -> Result<Place, Box<dyn std::error::Error>> {
        if let Some(directory) = &self.directory {
            return Ok(Place::Stopped(Box::new(open(directory)?)));
        }
        // The command line has one of the two.
        let node = self.node.clone().ok_or("give --node or --directory")?;
        Ok(Place::Running(Asked { node, cluster: self.cluster.clone(), json: self.json }))
    }
}

fn open(directory: &Path) -> Result<StoppedNode, Box<dyn std::error::Error>> {
    let failed = |source| StoppedError::File { path: directory.to_owned(), source };
    let homes = homes(directory).map_err(failed)?;
    match &homes[..] {
        [home] => Ok(StoppedNode::open(home)?),
        several => {
            let names: Vec<_> = several.iter().map(|home| home.display().to_string()).collect();
            Err(format!("several nodes were here; give one of {}", names.join(", ")).into())
        }
    }
}

/// The directories of nodes in a directory, or that directory.
pub(super) fn homes(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut homes = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && path.extension().is_some_and(|ending| ending == HOME_EXTENSION) {
            homes.push(path);
        }
    }
    homes.sort();
    Ok(if homes.is_empty() { vec![directory.to_owned()] } else { homes })
}
