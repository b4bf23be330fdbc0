//! `nearstate store get`: the entries of one flow, on every node that holds them.

use super::{Asked, entry_json, value_words};
use crate::cli::Ended;
use clap::Args;
use nearstate_nf_node::nf::{entry_rules, state_key};
use nearstate_placement::store_api::{HeldEntry, StoreRequest, StoreResponse};
use nearstate_placement::{FlowTuple, Map};
use nearstate_store::{Endpoint, Key, TenantId};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;

/// The options of `nearstate store get`.
#[derive(Debug, Args)]
#[command(
    after_help = "With one endpoint: the NAT entries of it, as an inside and as an external \
    endpoint. With two: also those of the firewall and of the load balancer. Exit code 1 if no \
    owner holds any. Packets and bytes: those that kept the entry alive, as its owner last told \
    its copies, which it does within eight times `seen_within_ms`."
)]
pub(in crate::cli) struct GetArgs {
    #[command(flatten)]
    asked: Asked,
    /// The protocol: tcp, udp, icmp or its number
    #[arg(value_name = "PROTOCOL", value_parser = protocol)]
    protocol: u8,
    /// One end of the flow; for ICMP the port is the identifier
    #[arg(value_name = "IP:PORT")]
    one: SocketAddr,
    /// The other end
    #[arg(value_name = "IP:PORT")]
    other: Option<SocketAddr>,
    /// Whose flow it is
    #[arg(long, value_name = "N", default_value_t = 0)]
    tenant: u16,
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        number => number.parse().map_err(|_| "give tcp, udp, icmp, icmpv6 or a number".to_owned()),
    }
}

/// An entry, and the node that holds it.
type Holding = (String, HeldEntry);

/// Runs it.
pub(super) fn run(args: &GetArgs) -> Ended {
    let (_, map) = args.asked.map()?;
    let keys = keys(args);
    let (found, silent) = look(args, &map, &keys);
    let is_owned = found.iter().any(|(_, held)| held.is_current);
    if args.asked.json {
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

/// All keys under which network functions may know of the flow.
fn keys(args: &GetArgs) -> Vec<Key> {
    let (tenant, protocol) = (TenantId(args.tenant), args.protocol);
    let end = |address: SocketAddr| Endpoint::new(address.ip(), address.port());
    let (a, b) = (end(args.one), args.other.map(end));
    let mut keys = Vec::new();
    for one in [Some(a), b].into_iter().flatten() {
        keys.push(state_key::nat_out(tenant, protocol, one));
        keys.push(state_key::nat_in(tenant, protocol, one));
    }
    if let Some(b) = b {
        let tuple = FlowTuple { protocol, source: a, destination: b };
        keys.push(state_key::firewall(tenant, &tuple));
        for (client, server) in [(a, b), (b, a)] {
            keys.push(state_key::balance(tenant, protocol, client, server));
            keys.push(state_key::balance_reply(tenant, protocol, client, server));
        }
    }
    keys
}

/// Asks every living member. Gives also who did not answer.
fn look(args: &GetArgs, map: &Map, keys: &[Key]) -> (Vec<Holding>, Vec<String>) {
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    let request = StoreRequest::Get(keys.to_vec());
    for member in map.members.iter().filter(|member| member.state.is_live()) {
        match args.asked.ask_at(member.address, &request) {
            Ok(StoreResponse::Get(held)) => {
                // A node answers with what it was asked for, or is not believed.
                let held = held.into_iter().filter(|held| keys.contains(&held.key));
                found.extend(held.map(|held| (member.label(), held)));
            }
            _ => silent.push(member.label()),
        }
    }
    (found, silent)
}

/// What was counted at an entry; nothing if nothing is.
fn counts(held: &HeldEntry) -> String {
    match entry_rules::counted(&held.key, &held.value) {
        Some((packets, bytes)) => format!("; {packets} packets, {bytes} bytes"),
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
