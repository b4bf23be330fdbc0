//! What was last seen of each node. It may be old: choices must not depend on it being true still.

use nearstate_placement::MemberState;
use nearstate_store::{NodeId, Time};
use std::net::SocketAddr;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was never there: the launch failed.
    NotLaunched,
}

impl core::fmt::Display for Exit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotLaunched => f.write_str("it could not be launched"),
        }
    }
}

/// What a node says of itself once it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyNode {
    /// The id of this life.
    pub node: NodeId,
    /// Where peers and clients connect.
    pub listen: SocketAddr,
    /// How packets reach it.
    pub port: String,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Started, not ready yet.
    Starting {
        /// When it was started.
        since: Time,
    },
    /// It serves.
    Ready(ReadyNode),
    /// It is gone.
    Exited {
        /// How it ended.
        exit: Exit,
        /// When that was seen.
        at: Time,
        /// Whether it had been ready before.
        was_ready: bool,
    },
}

/// One node, by its name: the newest process that was started for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Which process of that name, from 1.
    pub generation: u64,
    /// How the process is.
    pub process: ProcessState,
    /// What the cluster thinks of it, if it was asked.
    pub member: Option<MemberState>,
    /// How many processes of that name in a row ended before they were ready, this one included.
    pub failed_starts: u32,
}

impl NodeSeen {
    /// Whether there is a process, as far as was seen.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        !matches!(self.process, ProcessState::Exited { .. })
    }

    /// What it said when it became ready, while it runs.
    #[must_use]
    pub const fn ready(&self) -> Option<&ReadyNode> {
        match &self.process {
            ProcessState::Ready(ready) => Some(ready),
            _ => None,
        }
    }
}

/// All nodes that were seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// When it was taken.
    pub at: Time,
    /// One entry a name, sorted by name as the executor keeps them.
    pub nodes: Vec<NodeSeen>,
    /// Whether any node was ever ready: then there is, or was, a cluster.
    pub cluster_exists: bool,
}

impl Inventory {
    /// What was seen of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeSeen> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Nodes that serve.
    pub fn ready(&self) -> impl Iterator<Item = (&NodeSeen, &ReadyNode)> {
        self.nodes.iter().filter_map(|node| Some((node, node.ready()?)))
    }
}
