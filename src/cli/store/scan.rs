//! `nearstate store scan`: the entries that one node holds of a shard, in words.

use super::source::{Place, Source};
use super::{entry_json, value_words};
use crate::ask::AskError;
use crate::cli::Ended;
use crate::cli::asked::Asked;
use clap::Args;
use nearstate_nf_node::nf::state_key;
use nearstate_placement::limits::SCAN_ENTRIES_MAX;
use nearstate_placement::store_api::{HeldEntry, ScanPiece, StoreRequest, StoreResponse};
use nearstate_store::{ShardId, SlotId, TableScan};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;

/// The options of `nearstate store scan`.
#[derive(Debug, Args)]
#[command(after_help = "The listing is made beside the packets and is not of one moment: what \
    comes, goes or is moved meanwhile may be missed. A follower lists what it has applied.")]
pub(in crate::cli) struct ScanArgs {
    #[command(flatten)]
    source: Source,
    /// Which shard
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shard: u16,
    /// Entries to list at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: u32,
    /// Only entries of this slot
    #[arg(long, value_name = "N")]
    slot: Option<u16>,
}

/// Runs it.
pub(super) fn run(args: &ScanArgs) -> Ended {
    let (entries, is_all) = match args.source.place()? {
        Place::Running(asked) => {
            let (address, _) = asked.map()?;
            list(args, &asked, address)?
        }
        Place::Stopped(node) => {
            let (entries_max, slot) = (args.limit as usize, args.slot.map(SlotId));
            let scan = TableScan { from: 0, entries_max, cells_max: u32::MAX, slot };
            let ScanPiece { entries, next } = node.scan(ShardId(args.shard), scan)?;
            (entries, next.is_none())
        }
    };
    if args.source.json {
        let listed: Vec<_> = entries.iter().map(entry_json).collect();
        println!("{:#}", json!({ "entries": listed, "is_all": is_all }));
        return Ok(ExitCode::SUCCESS);
    }
    for held in &entries {
        println!(
            "slot {:<5} version {:<8} {}\n    {}",
            held.slot.0,
            held.version.0,
            state_key::words(&held.key),
            value_words(held)
        );
    }
    let more = if is_all { "" } else { "; there may be more: raise --limit" };
    println!("{} entries{more}", entries.len());
    Ok(ExitCode::SUCCESS)
}

/// The entries up to the limit, and whether that is all.
fn list(
    args: &ScanArgs,
    asked: &Asked,
    address: SocketAddr,
) -> Result<(Vec<HeldEntry>, bool), AskError> {
    let shard = ShardId(args.shard);
    let mut entries = Vec::new();
    let mut from = 0;
    loop {
        let room = (args.limit as usize).saturating_sub(entries.len());
        if room == 0 {
            return Ok((entries, false));
        }
        let piece_max = room.min(SCAN_ENTRIES_MAX) as u32;
        let slot = args.slot.map(SlotId);
        let request = StoreRequest::Scan { shard, from, entries: piece_max, slot };
        let piece = match asked.ask_at(address, &request)? {
            StoreResponse::Scan(Some(piece)) => piece,
            StoreResponse::Scan(None) => {
                let reason = format!(
                    "it has no replica of {shard}; `nearstate status` says which nodes have"
                );
                return Err(AskError::Refused { address, reason });
            }
            _ => return Err(AskError::Unexpected { address }),
        };
        let ScanPiece { entries: found, next } = piece;
        entries.extend(found.into_iter().take(room));
        match next {
            // A node that does not get on would be asked for ever.
            Some(next) if next > from => from = next,
            Some(_) => return Err(AskError::Unexpected { address }),
            None => return Ok((entries, true)),
        }
    }
}
