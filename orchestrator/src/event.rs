//! What happened, for whoever wants to tell it: the demo prints these.

use crate::inventory::{Exit, ReadyNode};
use core::fmt;
use nearstate_store::NodeId;

/// Something that happened to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A plan was made; its difference to the one before, a line each.
    Planned(u64, Vec<String>),
    /// A process was started.
    Launched {
        /// Of which name.
        name: String,
        /// Which process of that name.
        generation: u64,
        /// Its process id.
        pid: u32,
    },
    /// A node serves.
    Ready {
        /// Which one.
        name: String,
        /// Which process of that name.
        generation: u64,
        /// What it says of itself.
        node: ReadyNode,
    },
    /// A process that should run has ended.
    Died {
        /// Of which name.
        name: String,
        /// Which process of that name.
        generation: u64,
        /// How.
        exit: Exit,
        /// The node that it was, if it was ready.
        node: Option<NodeId>,
    },
    /// A node that died has a successor that serves.
    Replaced {
        /// Of which name.
        name: String,
        /// The node that died.
        old: NodeId,
        /// The one that serves now.
        new: NodeId,
    },
    /// A process ended before it was ready.
    StartFailed {
        /// Of which name.
        name: String,
        /// How it ended.
        exit: Exit,
        /// The end of what it wrote.
        log_tail: String,
    },
    /// A process that was asked to end has.
    Stopped {
        /// Of which name.
        name: String,
        /// How.
        exit: Exit,
    },
    /// A name is not tried again.
    GivenUp {
        /// Which name.
        name: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned(number, lines) => write!(f, "plan {number}: {}", lines.join("; ")),
            Self::Launched { name, generation, pid } => {
                write!(f, "{name} launched (generation {generation}, pid {pid})")
            }
            Self::Ready { name, node, .. } => {
                write!(f, "{name} (id {}) is ready at {}", node.node.0, node.listen)
            }
            Self::Died { name, exit, .. } => write!(f, "{name} died: {exit}"),
            Self::Replaced { name, old, new } => {
                write!(f, "{name} (id {}) replaces {name} (id {})", new.0, old.0)
            }
            Self::StartFailed { name, exit, log_tail } => {
                write!(f, "{name} failed to start ({exit}): {}", log_tail.trim_end())
            }
            Self::Stopped { name, exit } => write!(f, "{name} stopped: {exit}"),
            Self::GivenUp { name } => write!(f, "{name} is given up"),
        }
    }
}
