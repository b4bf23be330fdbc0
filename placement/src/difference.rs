//! What changed from one map to the next, in lines for people and for golden files.

use crate::map::{Map, ShardPlacement};
use core::fmt;
use nearstate_store::NodeId;

/// The lines of a difference; none if only the epoch differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDifference(Vec<String>);

impl MapDifference {
    /// What is different in `new`.
    #[must_use]
    pub fn between(old: &Map, new: &Map) -> Self {
        let mut lines = Vec::new();
        for member in &new.members {
            match old.member(member.id) {
                None => lines.push(format!("+ {} ({}) {}", member.id, member.name, member.state)),
                Some(before) if before.state != member.state => lines.push(format!(
                    "* {} ({}) {} -> {}",
                    member.id, member.name, before.state, member.state
                )),
                Some(_) => {}
            }
        }
        let gone = old.members.iter().filter(|member| new.member(member.id).is_none());
        lines.extend(gone.map(|member| format!("- {} ({})", member.id, member.name)));
        for order in &new.moves {
            let before = old.moves.iter().find(|before| before.number == order.number);
            if before.is_none_or(|before| before.phase != order.phase) {
                lines.push(format!("* {} to {} {}", order.slot, order.to, order.phase));
            }
        }
        for shard in &new.shards {
            match old.shard(shard.shard) {
                None => lines.push(format!("+ {}", describe(shard))),
                Some(before) => shard_lines(before, shard, &mut lines),
            }
        }
        Self(lines)
    }

    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn shard_lines(old: &ShardPlacement, new: &ShardPlacement, lines: &mut Vec<String>) {
    if old.replicas != new.replicas {
        let (before, after) = (list(&old.replicas), list(&new.replicas));
        lines.push(format!("* {} replicas {before} -> {after}", new.shard));
    }
    if old.preferred != new.preferred {
        lines.push(format!("* {} preferred {} -> {}", new.shard, old.preferred, new.preferred));
    }
    if old.owner != new.owner {
        let name = |owner: Option<(NodeId, _)>| {
            owner.map_or_else(|| "nobody".to_owned(), |(node, term)| format!("{node} in {term}"))
        };
        lines.push(format!("* {} owner {} -> {}", new.shard, name(old.owner), name(new.owner)));
    }
}

/// One line about a shard.
#[must_use]
pub fn describe(shard: &ShardPlacement) -> String {
    let owner = shard.owner.map_or_else(|| "nobody".to_owned(), |(node, _)| node.to_string());
    let replicas = list(&shard.replicas);
    format!("{} on {replicas} preferred {} owner {owner}", shard.shard, shard.preferred)
}

fn list(nodes: &[NodeId]) -> String {
    let numbers: Vec<String> = nodes.iter().map(|node| node.0.to_string()).collect();
    format!("[{}]", numbers.join(" "))
}

impl fmt::Display for MapDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
