//! `nearstate store get`: the entries of one flow, on every node that holds them.

use super::source::{Place, Source};
use super::{entry_json, value_words};
use crate::cli::Ended;
use crate::cli::named_flow::{Holding, NamedFlow, holdings};
use clap::Args;
use nearstate_nf_node::nf::{entry_rules, state_key};
use nearstate_placement::store_api::HeldEntry;
use nearstate_store::Key;
use serde_json::json;
use std::process::ExitCode;

/// The options of `nearstate store get`.
#[derive(Debug, Args)]
#[command(
    after_help = "With one endpoint: the NAT entries of it, as an inside and as an external \
    endpoint. With two: also those of the firewall and of the load balancer. Exit code 1 if no \
    owner holds any (or, of a stopped node, if it holds none). Packets and bytes: those that kept \
    the entry alive, as its owner last told its copies, which it does within eight times \
    `seen_within_ms`."
)]
pub(in crate::cli) struct GetArgs {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    flow: NamedFlow,
}

/// Runs it.
pub(super) fn run(args: &GetArgs) -> Ended {
    let keys = args.flow.keys();
    let (found, silent, is_owned) = match args.source.place()? {
        Place::Running(asked) => {
            let (_, map) = asked.map()?;
            let (found, silent) = holdings(&asked, &map, &keys);
            let is_owned = found.iter().any(|(_, held)| held.is_current);
            (found, silent, is_owned)
        }
        Place::Stopped(node) => {
            let held = node.get(&keys)?;
            let found: Vec<Holding> = held.into_iter().map(|held| (node.label(), held)).collect();
            let is_there = !found.is_empty();
            (found, Vec::new(), is_there)
        }
    };
    if args.source.json {
        let entries = found.iter().map(|(node, held)| {
            let mut entry = entry_json(held);
            entry["node"] = node.as_str().into();
            entry
        });
        let entries: Vec<_> = entries.collect();
        println!("{:#}", json!({ "entries": entries, "no_answer": silent }));
    } else {
        print!("{}", as_text(&keys, &found, &silent));
    }
    Ok(if is_owned { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was counted at an entry; nothing if nothing is.
fn counts(held: &HeldEntry) -> String {
    match entry_rules::counted(&held.key, &held.value) {
        Some((packets, bytes)) => format!("; packets {packets}, bytes {bytes}"),
        None => String::new(),
    }
}

fn as_text(keys: &[Key], found: &[Holding], silent: &[String]) -> String {
    let mut text = String::new();
    for key in keys {
        let mut held: Vec<&Holding> = found.iter().filter(|(_, held)| held.key == *key).collect();
        held.sort_by_key(|(_, held)| !held.is_current);
        if held.is_empty() {
            continue;
        }
        text.push_str(&format!("{}\n", state_key::words(key)));
        for (node, held) in held {
            let part = if held.is_current { "owner" } else { "copy" };
            text.push_str(&format!(
                "    {part} at {node}: {}, slot {}, version {}: {}{}\n",
                held.shard,
                held.slot.0,
                held.version.0,
                value_words(held),
                counts(held)
            ));
        }
    }
    if found.is_empty() {
        text.push_str("no node that answers holds an entry of this flow\n");
    }
    if !silent.is_empty() {
        text.push_str(&format!("no answer from {}\n", silent.join(", ")));
    }
    text
}
