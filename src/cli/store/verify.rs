//! `nearstate store verify`: what a stopped node's files are worth. Changes nothing.

use super::source::homes;
use crate::cli::Ended;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped};
use clap::{Args, ValueHint};
use nearstate_store::LogIndex;
use nearstate_store::disk::{self, Report, ShardReport, Verdict};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// The options of `nearstate store verify`.
#[derive(Debug, Args)]
#[command(after_help = "A torn end of a log is what a crash leaves: nobody was told that it was \
    safe, and the next start cuts it off. A node with damaged files sets them aside and joins \
    anew. Exit code 1 if something is damaged, missing, or of another version.")]
pub(in crate::cli) struct VerifyArgs {
    /// A node's `CLUSTER.NAME.disk`, or the directory (`directory` or `log-directory` of its
    /// configuration) that has such directories
    #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn run(args: &VerifyArgs) -> Ended {
    let failed = |error: &dyn std::error::Error| {
        format!("{} cannot be checked: {error}", args.directory.display())
    };
    let homes = homes(&args.directory).map_err(|error| failed(&error))?;
    let mut reports = Vec::new();
    for home in homes {
        let report = disk::verify(&home).map_err(|error| failed(&error))?;
        if !report.shards.is_empty() {
            reports.push((home, report));
        }
    }
    if reports.is_empty() {
        return Err(format!(
            "{} holds no node's logs; give the directory CLUSTER.NAME.disk of a node whose \
             durability is \"disk\"",
            args.directory.display()
        )
        .into());
    }
    if args.json {
        println!("{:#}", json!({ "nodes": reports.iter().map(as_json).collect::<Vec<_>>() }));
    } else {
        for (home, report) in &reports {
            println!("{}", home.display());
            print!("{}", as_table(report).render(screen_width()));
        }
    }
    let usable = reports.iter().all(|(_, report)| report.is_usable());
    Ok(if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn words(verdict: &Verdict) -> (&'static str, Option<String>) {
    match verdict {
        Verdict::Whole => ("whole", None),
        Verdict::TornTail(bytes) => ("torn", Some(format!("{bytes} bytes at its end are torn"))),
        Verdict::Unusable(error) => ("DAMAGED", Some(error.to_string())),
        Verdict::Empty => ("EMPTY", Some("no log was found".to_owned())),
    }
}

fn as_table(report: &Report) -> TextTable {
    let mut table = TextTable::new(&[
        ("shard", Align::Left),
        ("files are", Align::Left),
        ("log from", Align::Right),
        ("to", Align::Right),
        ("committed", Align::Right),
        ("snapshot to", Align::Right),
        ("segments", Align::Right),
        ("term", Align::Right),
    ]);
    let index = |index: Option<LogIndex>| index.map_or("-".to_owned(), |at| grouped(at.0));
    for shard in &report.shards {
        let (state, note) = words(&shard.verdict);
        let cells = vec![
            shard.name.clone(),
            state.to_owned(),
            index(shard.first),
            index(shard.last),
            index(shard.committed),
            index(shard.snapshot.and_then(|snapshot| snapshot.last)),
            shard.segments.len().to_string(),
            shard.vote.map_or("-".to_owned(), |(term, _)| term.0.to_string()),
        ];
        table.row(cells, note);
    }
    table
}

fn as_json((home, report): &(PathBuf, Report)) -> Value {
    let shards: Vec<_> = report.shards.iter().map(shard_json).collect();
    json!({
        "directory": home.display().to_string(),
        "is_usable": report.is_usable(),
        "shards": shards,
    })
}

fn shard_json(shard: &ShardReport) -> Value {
    let index = |index: Option<LogIndex>| index.map(|at| at.0);
    let segments = shard.segments.iter().map(|segment| {
        json!({
            "file": segment.file,
            "bytes": segment.bytes,
            "records": segment.records,
            "torn_bytes": segment.torn,
        })
    });
    let state = match &shard.verdict {
        Verdict::Whole => "whole",
        Verdict::TornTail(_) => "torn",
        Verdict::Unusable(_) => "damaged",
        Verdict::Empty => "empty",
    };
    json!({
        "shard": shard.name,
        "state": state,
        "why": words(&shard.verdict).1,
        "node": shard.identity.map(|identity| identity.node.0),
        "first": index(shard.first),
        "last": index(shard.last),
        "committed": index(shard.committed),
        "snapshot_last": shard.snapshot.and_then(|snapshot| index(snapshot.last)),
        "snapshot_bytes": shard.snapshot.map(|snapshot| snapshot.bytes),
        "term": shard.vote.map(|(term, _)| term.0),
        "segments": segments.collect::<Vec<_>>(),
    })
}
