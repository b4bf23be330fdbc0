//! `nearstate slots`: which shard has how many slots, orders to move some of them to another shard
//! while packets flow, and how far that has come.
//!
//! The cluster moves them by itself, one after the other; this command only orders, and then looks
//! at the map until the order is done. Ending it ends nothing.

use super::Ended;
use super::status_table::screen_width;
use super::text_table::{Align, TextTable, grouped};
use crate::ask::{AskError, ClusterName, NODE_ADDRESS, NodeAddress, ask};
use clap::{Args, Subcommand};
use nearstate_placement::api::{Request, Response};
use nearstate_placement::{Map, SlotMove};
use nearstate_store::{Epoch, ShardId};
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;
use std::process::ExitCode;
use std::str::FromStr;
use thiserror::Error;

/// How long one look waits for news of the map.
const LOOK_MS: u32 = 1_000;

/// The options of `nearstate slots`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  nearstate slots --node 127.0.0.1:7001
  nearstate slots move --slots 0..64 --to 2 --node 127.0.0.1:7001
  nearstate slots move --from 1 --count 100 --to 3 --node 127.0.0.1:7001"
)]
pub(super) struct SlotsArgs {
    #[command(subcommand)]
    command: Option<SlotsCommand>,
    /// Where one node of the cluster listens
    #[arg(long, value_name = NODE_ADDRESS, required = true)]
    node: Option<NodeAddress>,
    #[command(flatten)]
    cluster: ClusterName,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum SlotsCommand {
    /// Move slots to another shard; packets are served meanwhile
    Move(MoveArgs),
    /// Take back the moves that have not begun to switch; slots that moved stay where they are
    Cancel(AtNode),
}

#[derive(Debug, Args)]
struct AtNode {
    /// Where one node of the cluster listens
    #[arg(long, value_name = NODE_ADDRESS)]
    node: NodeAddress,
    #[command(flatten)]
    cluster: ClusterName,
    /// Print JSON instead of words
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["slots", "from"]))]
struct MoveArgs {
    /// The shard that gets them
    #[arg(long, value_name = "SHARD", value_parser = clap::value_parser!(u16).range(1..))]
    to: u16,
    /// These slots: one, or from A up to but without B
    #[arg(long, value_name = "A..B")]
    slots: Option<SlotRange>,
    /// Slots of this shard, the lowest first
    #[arg(long, value_name = "SHARD", requires = "count")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    from: Option<u16>,
    /// How many slots of --from
    #[arg(long, value_name = "N", requires = "from")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// Only order it; do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    at: AtNode,
}

/// Slots on the command line: `7` or `0..64`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SlotRange(Range<u16>);

impl FromStr for SlotRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            part.trim().parse::<u16>().map_err(|_| format!("{part:?} is no slot: give 7 or 0..64"))
        };
        let range = match text.split_once("..") {
            Some((from, to)) => number(from)?..number(to)?,
            None => {
                let slot = number(text)?;
                slot..slot.checked_add(1).ok_or("slots end at 65534 here")?
            }
        };
        if range.is_empty() {
            return Err(format!("{text:?} is empty: A..B goes from A up to but without B"));
        }
        Ok(Self(range))
    }
}

/// An order that did not come to its end.
#[derive(Debug, Error)]
enum SlotsError {
    /// There are not so many.
    #[error("{shard} has {has} slots, not {wanted}: give a smaller --count")]
    TooFew {
        /// Which shard.
        shard: ShardId,
        /// How many it has.
        has: usize,
        /// How many were wanted.
        wanted: usize,
    },
    /// Cancelled, by somebody or because the target had no room.
    #[error(
        "{left} of {all} slots did not move: the order was cancelled, or {to} has no room for \
         their entries (`nearstate status` shows its entries); the nodes' logs say which"
    )]
    NotMoved {
        /// How many did not.
        left: usize,
        /// Of how many.
        all: usize,
        /// Where to.
        to: ShardId,
    },
}

/// Runs it.
pub(super) fn run(args: &SlotsArgs) -> Ended {
    match (&args.command, &args.node) {
        (Some(SlotsCommand::Move(args)), _) => order(args),
        (Some(SlotsCommand::Cancel(at)), _) => cancel(at),
        (None, Some(node)) => {
            let map = map_of(&args.cluster, node)?;
            if args.json {
                println!("{:#}", as_json(&map));
            } else {
                print!("{}", as_text(&map, screen_width()));
            }
            Ok(ExitCode::SUCCESS)
        }
        (None, None) => unreachable!("the command line demands a node"),
    }
}

fn map_of(cluster: &ClusterName, node: &NodeAddress) -> Result<Map, AskError> {
    match ask(cluster, node, &Request::GetMap { newer_than: Epoch(0), wait_ms: 0 })? {
        (_, Response::Map(map)) => Ok(map),
        (address, other) => Err(AskError::unexpected(address, &other)),
    }
}

fn ordered(at: &AtNode, request: &Request) -> Result<Epoch, AskError> {
    match ask(&at.cluster, &at.node, request)? {
        (_, Response::Ordered(epoch)) => Ok(epoch),
        (address, other) => Err(AskError::unexpected(address, &other)),
    }
}

fn cancel(at: &AtNode) -> Ended {
    let epoch = ordered(at, &Request::CancelMoves)?;
    let map = map_since(at, epoch)?;
    let left = map.moves.len();
    if at.json {
        println!("{}", json!({ "still_moving": left }));
    } else if left == 0 {
        println!("no slot is moving");
    } else {
        println!("cancelled; {} is brought to its end", move_words(&map.moves[0]));
    }
    Ok(ExitCode::SUCCESS)
}

/// The slots that an order means.
fn wanted(args: &MoveArgs, map: &Map) -> Result<Vec<u16>, SlotsError> {
    if let Some(SlotRange(range)) = &args.slots {
        return Ok(range.clone().collect());
    }
    let (shard, count) = (args.from.unwrap_or(0), usize::from(args.count.unwrap_or(0)));
    let theirs = (0_u16..).zip(&map.slot_to_shard).filter(|(_, has)| **has == shard);
    let slots: Vec<u16> = theirs.map(|(slot, _)| slot).take(count).collect();
    if slots.len() < count {
        let (has, shard) = (slots.len(), ShardId(shard));
        return Err(SlotsError::TooFew { shard, has, wanted: count });
    }
    Ok(slots)
}

fn order(args: &MoveArgs) -> Ended {
    let at = &args.at;
    let slots = wanted(args, &map_of(&at.cluster, &at.node)?)?;
    let to = ShardId(args.to);
    let epoch = ordered(at, &Request::MoveSlots { slots: slots.clone(), to })?;
    if args.no_wait {
        let all = slots.len();
        if at.json {
            println!("{}", json!({ "ordered": all, "to": to.0 }));
        } else {
            println!("ordered: {all} slots to {to}; `nearstate slots` shows how far they are");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let left = follow(at, epoch, &slots, to)?;
    let all = slots.len();
    if at.json {
        println!("{}", json!({ "moved": all - left, "not_moved": left, "to": to.0 }));
    }
    if left > 0 {
        return Err(SlotsError::NotMoved { left, all, to }.into());
    }
    if !at.json {
        println!("done: {all} slots are in {to}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A map that has what an order changed.
fn map_since(at: &AtNode, epoch: Epoch) -> Result<Map, AskError> {
    let newer_than = Epoch(epoch.0.saturating_sub(1));
    loop {
        match ask(&at.cluster, &at.node, &Request::GetMap { newer_than, wait_ms: LOOK_MS })? {
            (_, Response::Map(map)) => return Ok(map),
            (_, Response::NoNewerMap) => {}
            (address, other) => return Err(AskError::unexpected(address, &other)),
        }
    }
}

/// Looks until none of the slots is on its way; gives how many are not where they should be.
fn follow(at: &AtNode, from: Epoch, slots: &[u16], to: ShardId) -> Result<usize, AskError> {
    let ordered: BTreeSet<u16> = slots.iter().copied().collect();
    let mut epoch = from;
    let mut told = None;
    loop {
        let map = map_since(at, epoch)?;
        epoch = Epoch(map.epoch.0 + 1);
        let arrived = |slot: &&u16| map.slot_to_shard.get(usize::from(**slot)) == Some(&to.0);
        let there = ordered.iter().filter(arrived).count();
        let ours = |order: &&SlotMove| ordered.contains(&order.slot.0);
        let under_way = map.moves.iter().filter(ours).count();
        // Every tenth part, so that a log of it stays short.
        let tenth = there * 10 / ordered.len().max(1);
        if !at.json && under_way > 0 && told.replace(tenth) != Some(tenth) {
            println!("{there} of {} slots are in {to}", ordered.len());
        }
        if under_way == 0 {
            return Ok(ordered.len() - there);
        }
    }
}

fn move_words(order: &SlotMove) -> String {
    format!("{} from {} to {} ({})", order.slot, order.from, order.to, order.phase)
}

/// What `nearstate status` says of moves, if there are any.
pub(super) fn moves_words(map: &Map) -> Option<String> {
    let first = map.moves.first()?;
    let waits = match map.moves.len() - 1 {
        0 => String::new(),
        waiting => format!("; {} more wait", grouped(waiting as u64)),
    };
    Some(format!("moving: {}{waits}", move_words(first)))
}

fn as_text(map: &Map, width: usize) -> String {
    let mut table = TextTable::new(&[
        ("shard", Align::Left),
        ("slots", Align::Right),
        ("leaving", Align::Right),
        ("coming", Align::Right),
        ("owner", Align::Left),
    ]);
    for (placement, slots) in map.shards.iter().zip(map.slot_counts()).skip(1) {
        let shard = placement.shard;
        let count = |is: &dyn Fn(&SlotMove) -> bool| {
            grouped(map.moves.iter().filter(|order| is(order)).count() as u64)
        };
        let owner = placement.owner.map_or_else(|| "nobody".into(), |(id, _)| map.label(id));
        let cells = vec![
            shard.to_string(),
            grouped(slots.into()),
            count(&|order| order.from == shard),
            count(&|order| order.to == shard),
            owner,
        ];
        table.row(cells, None);
    }
    let mut text = table.render(width);
    text.extend(moves_words(map).map(|words| format!("\n{words}\n")));
    text
}

fn as_json(map: &Map) -> serde_json::Value {
    let shards = map.shards.iter().skip(1).map(|placement| {
        let shard = placement.shard.0;
        let theirs = (0_u16..).zip(&map.slot_to_shard).filter(|(_, has)| **has == shard);
        let slots: Vec<u16> = theirs.map(|(slot, _)| slot).collect();
        let owner = placement.owner.map(|(id, _)| id.0);
        json!({ "shard": shard, "owner": owner, "count": slots.len(), "slots": slots })
    });
    let shards: Vec<_> = shards.collect();
    json!({ "epoch": map.epoch.0, "shards": shards, "moves": moves_json(map) })
}

/// The moves that are ordered, in their order.
pub(super) fn moves_json(map: &Map) -> serde_json::Value {
    let moves = map.moves.iter().map(|order| {
        json!({
            "number": order.number,
            "slot": order.slot.0,
            "from": order.from.0,
            "to": order.to.0,
            "phase": order.phase.name(),
        })
    });
    moves.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::{MovePhase, ShardPlacement};
    use nearstate_store::{NodeId, SlotId};

    fn map() -> Map {
        let shard = |number| ShardPlacement {
            shard: ShardId(number),
            replicas: vec![NodeId(1)],
            preferred: NodeId(1),
            owner: None,
        };
        let order = |number, slot| SlotMove {
            number,
            slot: SlotId(slot),
            from: ShardId(1),
            to: ShardId(2),
            phase: MovePhase::Copying,
        };
        Map {
            epoch: Epoch(3),
            slots: 4,
            slot_to_shard: vec![1, 2, 1, 1],
            shards: (0..3).map(shard).collect(),
            moves: vec![order(5, 0), order(6, 3)],
            ..Map::unformed()
        }
    }

    #[test]
    fn ranges_of_slots_are_read() {
        assert_eq!("0..64".parse(), Ok(SlotRange(0..64)));
        assert_eq!("7".parse(), Ok(SlotRange(7..8)));
        for wrong in ["", "a", "5..5", "9..3", "-1", "0..70000", "1..2..3"] {
            assert!(wrong.parse::<SlotRange>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_says_who_has_what_and_what_is_on_its_way() {
        let text = as_text(&map(), 100);
        let line = text.lines().find(|line| line.starts_with("shard-1")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells, ["shard-1", "3", "2", "0", "nobody"]);
        assert!(text.contains("moving: slot-0 from shard-1 to shard-2 (copying); 1 more wait"));
        assert!(!text.contains("shard-0"), "the system shard has no slots");
        let json = as_json(&map());
        assert_eq!(json["shards"][0]["slots"], json!([0, 2, 3]));
        assert_eq!(json["moves"][1]["number"], 6);
    }
}
