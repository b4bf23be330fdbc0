//! What is wanted: how many nodes, called what, and how much patience there is with them.

use thiserror::Error;

/// Nodes that one orchestrator may be asked for.
pub const NODES_MAX: u16 = 64;

/// A policy that no plan can follow.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// None, or too many.
    #[error("{0} nodes are wanted; it must be 1 to {NODES_MAX}")]
    Nodes(u16),
    /// Names would not be names.
    #[error("node names begin with `{0}`; it must be 1 to 16 letters, digits or dashes")]
    Prefix(String),
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How many nodes.
    pub nodes: u16,
    /// What their names begin with; a number from 1 follows.
    pub name_prefix: String,
    /// How long a node may take from its start until it is ready.
    pub ready_timeout_ms: u64,
    /// How long a node that is asked to end may take before it is killed.
    pub stop_timeout_ms: u64,
    /// How often in a row a node may fail to get ready before it is given up.
    pub failed_starts_max: u32,
    /// How long to wait after a failed start, times the failures so far.
    pub retry_after_ms: u64,
}

impl Policy {
    /// So many nodes, called n1, n2, ...
    ///
    /// # Errors
    /// If they are none or too many.
    pub fn of_nodes(nodes: u16) -> Result<Self, PolicyError> {
        let policy = Self {
            nodes,
            name_prefix: "n".to_owned(),
            ready_timeout_ms: 20_000,
            stop_timeout_ms: 6_000,
            failed_starts_max: 3,
            retry_after_ms: 200,
        };
        policy.check()?;
        Ok(policy)
    }

    /// Whether a plan can follow it.
    ///
    /// # Errors
    /// Says what cannot be.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return Err(PolicyError::Nodes(self.nodes));
        }
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        let prefix = &self.name_prefix;
        if prefix.is_empty() || prefix.len() > 16 || !prefix.bytes().all(plain) {
            return Err(PolicyError::Prefix(prefix.clone()));
        }
        Ok(())
    }

    /// The name of the node with this number, from 1.
    #[must_use]
    pub fn name(&self, number: u16) -> String {
        format!("{}{number}", self.name_prefix)
    }

    /// All names that are wanted.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.nodes).map(|number| self.name(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_cannot_be_followed_are_refused() {
        assert_eq!(Policy::of_nodes(0), Err(PolicyError::Nodes(0)));
        assert_eq!(Policy::of_nodes(65), Err(PolicyError::Nodes(65)));
        let mut policy = Policy::of_nodes(3).unwrap();
        assert_eq!(policy.names().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
        policy.name_prefix = "../n".to_owned();
        assert!(policy.check().is_err());
    }
}
