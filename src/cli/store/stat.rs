//! `nearstate store stat`: tables, logs and machines of one node's replicas.

use super::source::{Place, Source};
use crate::ask::AskError;
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped, percent};
use clap::Args;
use nearstate_placement::store_api::{Counts, StoreRequest, StoreResponse, StoreStat, TableStat};
use nearstate_store::ShardId;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::ExitCode;

/// The options of `nearstate store stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "`from home` says how many entries lie 0, 1, 2, ... cells from where their \
    key belongs; `by probe`, how many entries of the overflow area are found in the first place \
    that is looked at, the second, and so on. `decided` counts transactions since the node's \
    process began (`repeated`: retries that were answered from memory); `refused by this node`, \
    connections, frames, messages and requests by reason, none of which changed any state."
)]
pub(in crate::cli) struct StatArgs {
    #[command(flatten)]
    source: Source,
    /// Only this shard; 0 is the system shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
}

type Seen = (ShardId, StoreStat);

/// Runs it.
pub(super) fn run(args: &StatArgs) -> Ended {
    let wanted = |shard: &ShardId| args.shard.is_none_or(|number| number == shard.0);
    let (seen, refusals) = match args.source.place()? {
        Place::Running(asked) => {
            let (address, map) = asked.map()?;
            let shards = map.shards.iter().map(|placement| placement.shard).filter(wanted);
            let seen = ask_all(&asked, address, shards)?;
            if seen.is_empty() {
                return Err(none_of(args.shard, address).into());
            }
            (seen, Some(ask_refusals(&asked, address)?))
        }
        Place::Stopped(node) => {
            let shards: Vec<_> = match args.shard {
                Some(number) => vec![ShardId(number)],
                None => node.shards().collect(),
            };
            let stat = |shard| node.stat(shard).map(|stat| (shard, stat));
            (shards.into_iter().map(stat).collect::<Result<_, _>>()?, None)
        }
    };
    if args.source.json {
        let shards = seen.iter().map(as_json).collect::<Vec<_>>();
        let refusals = refusals.as_ref().map(counts_json);
        println!("{:#}", json!({ "shards": shards, "refusals": refusals }));
    } else {
        print!("{}", as_table(&seen).render(screen_width()));
        if let Some(refusals) = refusals {
            println!("refused by this node: {}", counts_words(&refusals));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask_all(
    asked: &Asked,
    address: SocketAddr,
    shards: impl Iterator<Item = ShardId>,
) -> Result<Vec<Seen>, AskError> {
    let mut seen = Vec::new();
    for shard in shards {
        match asked.ask_at(address, &StoreRequest::Stat(shard))? {
            StoreResponse::Stat(stat) => seen.extend(stat.map(|stat| (shard, *stat))),
            _ => return Err(AskError::Unexpected { address }),
        }
    }
    Ok(seen)
}

fn ask_refusals(asked: &Asked, address: SocketAddr) -> Result<Counts, AskError> {
    match asked.ask_at(address, &StoreRequest::Refusals)? {
        StoreResponse::Refusals(counts) => Ok(counts),
        _ => Err(AskError::Unexpected { address }),
    }
}

fn none_of(shard: Option<u16>, address: SocketAddr) -> String {
    let of = shard.map_or("any shard".to_owned(), |number| format!("shard-{number}"));
    format!("the node at {address} has no replica of {of}; `nearstate status` says who has")
}

fn counts_json(counts: &Counts) -> Value {
    counts.iter().map(|(name, count)| (name.clone(), Value::from(*count))).collect()
}

/// Those that are not 0.
fn counts_words(counts: &Counts) -> String {
    let some = counts.iter().filter(|(_, count)| *count > 0);
    let words: Vec<_> = some.map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

fn as_table(seen: &[Seen]) -> TextTable {
    let mut table = TextTable::new(&[
        ("shard", Align::Left),
        ("entries", Align::Right),
        ("of", Align::Right),
        ("load", Align::Right),
        ("overflow", Align::Right),
        ("log to", Align::Right),
        ("applied", Align::Right),
        ("outcomes", Align::Right),
        ("lease", Align::Right),
    ]);
    for (shard, stat) in seen {
        let counts = match &stat.table {
            Some(table) => [
                grouped(table.entries.into()),
                grouped(table.capacity.into()),
                percent(table.entries.into(), table.capacity.into()),
                grouped(table.overflow.into()),
            ],
            None => ["-"; 4].map(str::to_owned),
        };
        let lease = if stat.lease_left_ms == 0 {
            "-".to_owned()
        } else {
            format!("{} ms", stat.lease_left_ms)
        };
        let mut cells = vec![shard.to_string()];
        cells.extend(counts);
        cells.extend([
            grouped(stat.last_log.0),
            grouped(stat.applied.0),
            grouped(stat.outcomes_remembered),
            lease,
        ]);
        table.row(cells, Some(note(stat)));
    }
    table
}

fn note(stat: &StoreStat) -> String {
    let mut words = match &stat.table {
        Some(table) => table_note(table),
        None => "no table; ".to_owned(),
    };
    words.push_str(match (stat.is_durable, stat.disk_is_full) {
        (false, _) => "log in memory",
        (true, false) => "log on disk",
        (true, true) => "log on disk, which is FULL: writes are refused",
    });
    if !stat.decisions.is_empty() {
        words.push_str(&format!("; decided: {}", counts_words(&stat.decisions)));
    }
    words
}

fn table_note(table: &TableStat) -> String {
    let counts = |counts: &[u32]| {
        let used = counts.iter().rposition(|count| *count > 0).map_or(1, |last| last + 1);
        let counts = counts.iter().take(used).map(|count| grouped((*count).into()));
        counts.collect::<Vec<_>>().join(" ")
    };
    let mut words = format!(
        "{} MiB, {}; from home: {}; ",
        table.bytes.div_ceil(1 << 20),
        table.memory,
        counts(&table.distances)
    );
    if table.overflow > 0 {
        words.push_str(&format!("by probe: {}; ", counts(&table.probes)));
    }
    if table.unreadable + table.misplaced > 0 {
        words.push_str(&format!(
            "{} cells unreadable, {} entries misplaced: ask again, and if they stay the memory is \
             damaged; ",
            table.unreadable, table.misplaced
        ));
    }
    words
}

fn as_json((shard, stat): &Seen) -> Value {
    let table = stat.table.as_ref().map(|table| {
        json!({
            "entries": table.entries,
            "capacity": table.capacity,
            "overflow": table.overflow,
            "overflow_places": table.overflow_places,
            "displacements": table.displacements,
            "distances": table.distances,
            "probes": table.probes,
            "bytes": table.bytes,
            "memory": table.memory,
            "unreadable": table.unreadable,
            "misplaced": table.misplaced,
        })
    });
    json!({
        "shard": shard.0,
        "last_log": stat.last_log.0,
        "applied": stat.applied.0,
        "decisions": counts_json(&stat.decisions),
        "outcomes_remembered": stat.outcomes_remembered,
        "lease_left_ms": stat.lease_left_ms,
        "is_durable": stat.is_durable,
        "disk_is_full": stat.disk_is_full,
        "table": table,
    })
}
