//! A plan: for each name, which process there is to be. Immutable, complete, and printable as a
//! difference to its parent. Carrying it out leaves no choices.

use core::fmt;
use std::net::SocketAddr;

/// Addresses that a joining node is given.
pub const SEEDS_MAX: usize = 8;

/// How a node gets into a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It makes the cluster.
    Form,
    /// It asks one of these.
    Join(Vec<SocketAddr>),
}

/// What is to be of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It runs, started so.
    Run(Start),
    /// It ends.
    Stop,
}

/// One name's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNode {
    /// The name.
    pub name: String,
    /// Which process of that name, from 1. Each has files of its own.
    pub generation: u64,
    /// What is to be of it.
    pub wanted: Wanted,
}

/// See the head of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its number. Only rises.
    pub number: u64,
    /// The plan that it was made from.
    pub parent: Option<u64>,
    /// The processes, one a name at most. A name that is not here has none, and had its process
    /// end.
    pub nodes: Vec<PlannedNode>,
}

impl Plan {
    /// The plan before the first: nothing runs.
    #[must_use]
    pub const fn empty() -> Self {
        Self { number: 0, parent: None, nodes: Vec::new() }
    }

    /// What is planned for a name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&PlannedNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// What is different from `parent`, a line each.
    #[must_use]
    pub fn difference(&self, parent: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for node in &self.nodes {
            match parent.node(&node.name) {
                Some(before) if before == node => {}
                Some(before) => lines.push(format!("* {before} -> {node}")),
                None => lines.push(format!("+ {node}")),
            }
        }
        let gone = parent.nodes.iter().filter(|before| self.node(&before.name).is_none());
        lines.extend(gone.map(|before| format!("- {before}")));
        lines
    }
}

impl fmt::Display for PlannedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {} ", self.name, self.generation)?;
        match &self.wanted {
            Wanted::Run(Start::Form) => f.write_str("runs (forms)"),
            Wanted::Run(Start::Join(seeds)) => {
                let seeds: Vec<String> = seeds.iter().map(ToString::to_string).collect();
                write!(f, "runs (joins {})", seeds.join(" "))
            }
            Wanted::Stop => f.write_str("stops"),
        }
    }
}
