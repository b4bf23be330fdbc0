//! `nearstate nat mappings`: which inside endpoints have which external ones.

use super::{owners, unexpected, without};
use crate::ask::AskError;
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::store::entry_json;
use clap::Args;
use nearstate_nf_node::nf::entry_rules;
use nearstate_nf_node::nf::nat44::Mapping;
use nearstate_nf_node::nf::state_key::KeyKind;
use nearstate_placement::limits::SCAN_ENTRIES_MAX;
use nearstate_placement::store_api::{HeldEntry, ScanPiece, StoreRequest, StoreResponse};
use nearstate_store::ShardId;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

/// The options of `nearstate nat mappings`.
#[derive(Debug, Args)]
#[command(after_help = "The listing is made beside the packets and is not of one moment: what \
    comes or goes meanwhile may be missed. Exit code 1 if the owner of a shard does not answer.")]
pub(in crate::cli) struct MappingsArgs {
    #[command(flatten)]
    asked: Asked,
    /// Only those of this inside address
    #[arg(long, value_name = "IP")]
    inside: Option<IpAddr>,
    /// Mappings to list at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

impl MappingsArgs {
    fn is_wanted(&self, held: &HeldEntry) -> bool {
        KeyKind::of(&held.key) == Some(KeyKind::NatOut)
            && self.inside.is_none_or(|inside| held.key.ends().0.ip() == inside)
    }
}

/// Runs it.
pub(super) fn run(args: &MappingsArgs) -> Ended {
    let (_, map) = args.asked.map()?;
    let (mut found, mut silent, mut is_all) = (Vec::new(), Vec::new(), true);
    for (shard, address) in owners(&map) {
        match address.map(|address| list(args, (shard, address), &mut found)) {
            Some(Ok(all)) => is_all &= all,
            _ => silent.push(shard),
        }
    }
    found.sort_by_key(|held| held.key.ends().0);
    if args.asked.json {
        let silent: Vec<u16> = silent.iter().map(|shard| shard.0).collect();
        let listed: Vec<Value> = found.iter().map(as_json).collect();
        println!("{:#}", json!({ "mappings": listed, "is_all": is_all, "no_answer": silent }));
    } else {
        found.iter().for_each(|held| println!("{}", as_text(held)));
        let more = if is_all { "" } else { "; there may be more: raise --limit" };
        println!("{} mappings{more}", found.len());
        without(&silent).iter().for_each(|line| println!("{line}"));
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the mappings of a shard up to the limit; whether that was all.
fn list(
    args: &MappingsArgs,
    (shard, address): (ShardId, SocketAddr),
    found: &mut Vec<HeldEntry>,
) -> Result<bool, AskError> {
    let mut from = 0;
    loop {
        if found.len() >= args.limit {
            return Ok(false);
        }
        let entries = SCAN_ENTRIES_MAX as u32;
        let request = StoreRequest::Scan { shard, from, entries, slot: None };
        let StoreResponse::Scan(Some(piece)) = args.asked.ask_at(address, &request)? else {
            return Err(unexpected(address));
        };
        let ScanPiece { entries, next } = piece;
        let room = args.limit - found.len();
        let wanted: Vec<HeldEntry> =
            entries.into_iter().filter(|held| args.is_wanted(held)).collect();
        let is_cut = wanted.len() > room;
        found.extend(wanted.into_iter().take(room));
        match next {
            _ if is_cut => return Ok(false),
            // A node that does not get on would be asked for ever.
            Some(next) if next > from => from = next,
            Some(_) => return Err(unexpected(address)),
            None => return Ok(true),
        }
    }
}

fn as_json(held: &HeldEntry) -> Value {
    let mut entry = entry_json(held);
    entry["inside"] = held.key.ends().0.to_string().into();
    entry["external"] = Mapping::decode(&held.value).to.to_string().into();
    entry
}

fn as_text(held: &HeldEntry) -> String {
    let inside = held.key.ends().0.to_string();
    let external = Mapping::decode(&held.value).to.to_string();
    let protocol = match held.key.protocol() {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => format!("protocol {other}"),
    };
    let counted = entry_rules::counted(&held.key, &held.value);
    let counted = counted
        .map_or(String::new(), |(packets, bytes)| format!("  packets {packets}, bytes {bytes}"));
    format!("{protocol:<5} {inside:<21} -> {external:<21}{counted}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::nf::state_key;
    use nearstate_store::{Endpoint, SlotId, TenantId, Version};

    #[test]
    fn a_mapping_is_one_line() {
        let (inside, external) =
            (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([198, 19, 0, 1], 2050));
        let mut value = nearstate_store::Value::ZERO;
        let mut bytes = value.to_bytes();
        bytes[..18].copy_from_slice(&external.to_bytes());
        value = nearstate_store::Value::from_bytes(&bytes);
        (value.0[6], value.0[7]) = (3, 300);
        let held = HeldEntry {
            shard: ShardId(1),
            is_current: true,
            key: state_key::nat_out(TenantId(0), 17, inside),
            value,
            version: Version(1),
            slot: SlotId(2),
            timer: None,
        };
        let six = Endpoint::new("2001:db8::5".parse().unwrap(), 4000);
        let of_six = HeldEntry { key: state_key::nat_out(TenantId(0), 1, six), ..held };
        assert!(as_text(&of_six).starts_with("icmp  [2001:db8::5]:4000  "), "a NAT64's");
        assert_eq!(as_json(&of_six)["inside"], "[2001:db8::5]:4000");
        let line = as_text(&held);
        let parts: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(parts[..4], ["udp", "10.0.0.1:4000", "->", "198.19.0.1:2050"]);
        assert!(line.ends_with("packets 3, bytes 300"), "{line}");
        assert_eq!(as_json(&held)["external"], "198.19.0.1:2050");
        let asked = |inside: &str| {
            use clap::Parser;
            #[derive(Parser)]
            struct Line {
                #[command(flatten)]
                args: MappingsArgs,
            }
            let line = ["", "--node", "127.0.0.1:7001", "--inside", inside];
            Line::parse_from(line).args.is_wanted(&held)
        };
        assert!(asked("10.0.0.1") && !asked("10.0.0.2"));
    }
}
