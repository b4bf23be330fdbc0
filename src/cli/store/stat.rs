//! `nearstate store stat`: tables, logs and machines of one node's replicas.

use crate::ask::AskError;
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped, percent};
use clap::Args;
use nearstate_placement::store_api::{StoreRequest, StoreResponse, StoreStat, TableStat};
use nearstate_store::ShardId;
use serde_json::{Value, json};
use std::process::ExitCode;

/// The options of `nearstate store stat`.
#[derive(Debug, Args)]
#[command(
    after_help = "`from home` says how many entries lie 0, 1, 2, ... cells from where their \
    key belongs; `by probe`, how many entries of the overflow area are found in the first place \
    that is looked at, the second, and so on."
)]
pub(in crate::cli) struct StatArgs {
    #[command(flatten)]
    asked: Asked,
    /// Only this shard; 0 is the system shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
}

type Seen = (ShardId, StoreStat);

/// Runs it.
pub(super) fn run(args: &StatArgs) -> Ended {
    let (address, map) = args.asked.map()?;
    let wanted = |shard: &ShardId| args.shard.is_none_or(|number| number == shard.0);
    let mut seen = Vec::new();
    for shard in map.shards.iter().map(|placement| placement.shard).filter(wanted) {
        match args.asked.ask_at(address, &StoreRequest::Stat(shard))? {
            StoreResponse::Stat(stat) => seen.extend(stat.map(|stat| (shard, *stat))),
            _ => return Err(AskError::Unexpected { address }.into()),
        }
    }
    if seen.is_empty() {
        let of = args.shard.map_or("any shard".to_owned(), |number| format!("shard-{number}"));
        return Err(format!(
            "the node at {address} has no replica of {of}; `nearstate status` says who has"
        )
        .into());
    }
    if args.asked.json {
        println!("{:#}", json!({ "shards": seen.iter().map(as_json).collect::<Vec<_>>() }));
    } else {
        print!("{}", as_table(&seen).render(screen_width()));
    }
    Ok(ExitCode::SUCCESS)
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
        "outcomes_remembered": stat.outcomes_remembered,
        "lease_left_ms": stat.lease_left_ms,
        "is_durable": stat.is_durable,
        "disk_is_full": stat.disk_is_full,
        "table": table,
    })
}
