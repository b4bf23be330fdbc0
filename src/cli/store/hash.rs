//! `nearstate store hash`: whether the replicas of a shard hold the same, and all ports their
//! entries.
//!
//! Hashes can be compared where they are of the same log index. A shard that is being written is at
//! another index at each node, so the nodes are asked several times.

use super::source::{Place, Source};
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped};
use clap::Args;
use nearstate_nf_node::service::stopped::StoppedError;
use nearstate_placement::Member;
use nearstate_placement::store_api::{StateHash, StoreRequest, StoreResponse};
use nearstate_store::{LogIndex, NodeId, ShardId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

/// How often nodes are asked until their answers can be compared.
const ROUNDS: usize = 10;
/// Between two rounds: followers hear of what is committed with the next heartbeat.
const PAUSE: Duration = Duration::from_millis(100);

/// The options of `nearstate store hash`.
#[derive(Debug, Args)]
#[command(after_help = "A replica's hash is of all its entries, pools and remembered outcomes; \
    while it is taken, commits of the shard wait (some 100 ms a million entries). Exit code 1 if \
    two replicas at the same log index differ, or a port of a pool has leaked.")]
pub(in crate::cli) struct HashArgs {
    #[command(flatten)]
    source: Source,
    /// Only this shard; 0 is the system shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
}

/// What came of comparing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// So many replicas hold the same.
    Agree(usize),
    /// Two at this index do not.
    Differ(LogIndex),
    /// Not more than one replica was seen at the same index.
    NotCompared,
}

/// All that was seen of one shard.
#[derive(Debug)]
struct Seen {
    shard: ShardId,
    /// The last answer of each node.
    latest: BTreeMap<NodeId, (String, StateHash)>,
    /// What was seen at each index, by whom.
    by_index: BTreeMap<LogIndex, BTreeSet<(u64, NodeId)>>,
}

impl Seen {
    fn new(shard: ShardId) -> Self {
        Self { shard, latest: BTreeMap::new(), by_index: BTreeMap::new() }
    }

    fn add(&mut self, node: NodeId, label: String, hash: StateHash) {
        self.by_index.entry(hash.applied).or_default().insert((hash.hash, node));
        self.latest.insert(node, (label, hash));
    }

    fn verdict(&self) -> Verdict {
        let differs = |seen: &BTreeSet<(u64, NodeId)>| {
            seen.iter().map(|(hash, _)| hash).collect::<BTreeSet<_>>().len() > 1
        };
        if let Some((index, _)) = self.by_index.iter().find(|(_, seen)| differs(seen)) {
            return Verdict::Differ(*index);
        }
        match self.by_index.values().map(BTreeSet::len).max() {
            Some(nodes @ 2..) => Verdict::Agree(nodes),
            _ => Verdict::NotCompared,
        }
    }

    /// Whether some replica has a port in use for no entry, or an entry without its port.
    fn leaks(&self) -> bool {
        let ports = self.latest.values().filter_map(|(_, hash)| hash.ports);
        ports.into_iter().any(|ports| ports.leaks)
    }

    /// Whether asking again tells nothing more.
    fn is_settled(&self) -> bool {
        match self.verdict() {
            Verdict::Differ(_) => true,
            Verdict::Agree(nodes) => nodes == self.latest.len(),
            Verdict::NotCompared => self.latest.len() < 2,
        }
    }
}

/// Runs it.
pub(super) fn run(args: &HashArgs) -> Ended {
    let wanted = |shard: &ShardId| args.shard.is_none_or(|number| number == shard.0);
    let seen: Vec<Seen> = match args.source.place()? {
        Place::Running(asked) => {
            let (_, map) = asked.map()?;
            let members: Vec<_> = map.members.iter().filter(|one| one.state.is_live()).collect();
            let shards = map.shards.iter().map(|of| of.shard).filter(wanted);
            shards.map(|shard| look(&asked, shard, &members)).collect()
        }
        Place::Stopped(node) => {
            let look = |shard| {
                let mut seen = Seen::new(shard);
                seen.add(node.node(), node.label(), node.hash(shard)?);
                Ok(seen)
            };
            node.shards().filter(wanted).map(look).collect::<Result<_, StoppedError>>()?
        }
    };
    if seen.is_empty() {
        return Err("the cluster has no such shard; `nearstate status` lists them".into());
    }
    if args.source.json {
        println!("{:#}", json!({ "shards": seen.iter().map(as_json).collect::<Vec<_>>() }));
    } else {
        print!("{}", as_table(&seen).render(screen_width()));
    }
    let is_fault = |seen: &Seen| matches!(seen.verdict(), Verdict::Differ(_)) || seen.leaks();
    Ok(if seen.iter().any(is_fault) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(asked: &Asked, shard: ShardId, members: &[&Member]) -> Seen {
    let mut seen = Seen::new(shard);
    for round in 0..ROUNDS {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        for member in members {
            let answer = asked.ask_at(member.address, &StoreRequest::Hash(shard));
            if let Ok(StoreResponse::Hash(Some(hash))) = answer {
                seen.add(member.id, member.label(), hash);
            }
        }
        if seen.is_settled() {
            break;
        }
    }
    seen
}

fn words(seen: &Seen) -> String {
    if seen.leaks() {
        return "A PORT HAS LEAKED: this is a fault of the program; the node's log names it".into();
    }
    match seen.verdict() {
        Verdict::Agree(nodes) => format!("{nodes} of {} replicas agree", seen.latest.len()),
        Verdict::Differ(index) => {
            format!("REPLICAS DIFFER at log index {}: this is a fault of the program", index.0)
        }
        Verdict::NotCompared if seen.latest.len() < 2 => {
            format!("{} replicas answer: nothing to compare", seen.latest.len())
        }
        Verdict::NotCompared => {
            "never seen at the same log index: ask when less is written".to_owned()
        }
    }
}

fn as_table(all: &[Seen]) -> TextTable {
    let mut table = TextTable::new(&[
        ("shard", Align::Left),
        ("node", Align::Left),
        ("applied", Align::Right),
        ("hash", Align::Left),
    ]);
    for seen in all {
        for (place, (label, hash)) in seen.latest.values().enumerate() {
            let cells = vec![
                seen.shard.to_string(),
                label.clone(),
                grouped(hash.applied.0),
                format!("{:016x}", hash.hash),
            ];
            table.row(cells, (place + 1 == seen.latest.len()).then(|| words(seen)));
        }
        if seen.latest.is_empty() {
            table.row(vec![seen.shard.to_string()], Some(words(seen)));
        }
    }
    table
}

fn as_json(seen: &Seen) -> Value {
    let replicas = seen.latest.iter().map(|(node, (label, hash))| {
        json!({
            "id": node.0,
            "node": label,
            "applied": hash.applied.0,
            "hash": format!("{:016x}", hash.hash),
            "ports": hash.ports.map(|ports| {
                json!({ "live": ports.live, "resting": ports.resting, "leaks": ports.leaks })
            }),
        })
    });
    let replicas: Vec<_> = replicas.collect();
    let verdict = match seen.verdict() {
        Verdict::Agree(_) => "agree",
        Verdict::Differ(_) => "differ",
        Verdict::NotCompared => "not-compared",
    };
    let compared = match seen.verdict() {
        Verdict::Agree(nodes) => nodes,
        _ => 0,
    };
    json!({
        "shard": seen.shard.0,
        "verdict": verdict,
        "agreeing": compared,
        "replicas": replicas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(answers: &[(u64, u64, u64)]) -> Seen {
        let mut seen = Seen::new(ShardId(1));
        for (node, applied, hash) in answers {
            let hash = StateHash { applied: LogIndex(*applied), hash: *hash, ports: None };
            seen.add(NodeId(*node), format!("n{node}"), hash);
        }
        seen
    }

    #[test]
    fn only_hashes_of_one_index_are_compared() {
        type Answers = &'static [(u64, u64, u64)];
        let cases: [(Answers, Verdict, bool); 6] = [
            (&[], Verdict::NotCompared, true),
            (&[(1, 5, 77)], Verdict::NotCompared, true),
            (&[(1, 5, 77), (2, 6, 78)], Verdict::NotCompared, false),
            (&[(1, 5, 77), (2, 5, 77), (3, 6, 78)], Verdict::Agree(2), false),
            (&[(1, 5, 77), (2, 6, 78), (1, 6, 78)], Verdict::Agree(2), true),
            (&[(1, 5, 77), (2, 5, 76), (3, 5, 77)], Verdict::Differ(LogIndex(5)), true),
        ];
        for (answers, verdict, settled) in cases {
            let seen = seen(answers);
            assert_eq!((seen.verdict(), seen.is_settled()), (verdict, settled), "{answers:?}");
        }
    }
}
