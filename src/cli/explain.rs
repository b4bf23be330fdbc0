//! `nearstate explain`: everything about one flow. Which entries there are, who holds them, how
//! long they live; and what would become of its next packet, and of the answer to that, and why.
//!
//! The packets are made up here and traced ([`super::trace`]); nothing is changed.

use super::Ended;
use super::asked::Asked;
use super::named_flow::{Holding, NamedFlow, endpoint, holdings};
use super::store::{entry_json, value_words};
use super::trace::trace_at;
use clap::Args;
use nearstate_nf_node::nf::entry_rules;
use nearstate_nf_node::nf::nat44::Mapping;
use nearstate_nf_node::nf::state_key::{self, KeyKind};
use nearstate_nf_node::packet::PacketBuilder;
use nearstate_nf_node::packet::tcp::flags::{ACK, SYN};
use nearstate_placement::store_api::{HeldEntry, HeldTimer};
use nearstate_placement::{Map, Side};
use nearstate_store::{Endpoint, Key};
use serde_json::{Value, json};
use std::process::ExitCode;

/// The options of `nearstate explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Give the inside end first: the packet that is traced goes from it to the other \
    end, and the answer to where that came from. Behind a NAT64 with a prefix of 96 bits the other \
    end is the address behind it, and answers from the IPv4 address there. With one end only its \
    entries are shown. Exit code 1 if no owner holds an entry of the flow."
)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    flow: NamedFlow,
}

/// A packet of the flow, and the lines of its trace.
struct Traced {
    title: String,
    lines: Vec<String>,
}

/// Runs it.
pub(super) fn run(args: &ExplainArgs) -> Ended {
    let (_, map) = args.asked.map()?;
    let mut keys = args.flow.keys();
    let (mut found, silent) = holdings(&args.asked, &map, &keys);
    // The way back: what the mapping's external endpoint leads to.
    let external = external(&found);
    if let Some(external) = external {
        let tenant = nearstate_store::TenantId(args.flow.tenant);
        let back = state_key::nat_in(tenant, args.flow.mapped_protocol(), external);
        if !keys.contains(&back) {
            found.extend(holdings(&args.asked, &map, &[back]).0);
            keys.push(back);
        }
    }
    let is_known = found.iter().any(|(_, held)| held.is_current);
    let traced = traces(args, is_known, external)?;
    if args.asked.json {
        let entries: Vec<Value> = found.iter().map(holding_json).collect();
        let packets = traced.iter().map(|one| json!({ "packet": one.title, "trace": one.lines }));
        let packets: Vec<Value> = packets.collect();
        println!("{:#}", json!({ "entries": entries, "packets": packets, "no_answer": silent }));
    } else {
        print!("{}", as_text(&map, &keys, &found));
        if !silent.is_empty() {
            println!("no answer from {}", silent.join(", "));
        }
        for Traced { title, lines } in &traced {
            println!("\n{title}");
            lines.iter().for_each(|line| println!("    {line}"));
        }
    }
    Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The external endpoint of the flow's mapping, if it has one.
fn external(found: &[Holding]) -> Option<Endpoint> {
    let mappings = found.iter().filter(|(_, held)| KeyKind::of(&held.key) == Some(KeyKind::NatOut));
    let newest = mappings.max_by_key(|(_, held)| (held.is_current, held.version));
    newest.map(|(_, held)| Mapping::decode(&held.value).to)
}

/// What would become of the flow's next packet, and of the answer to it.
fn traces(
    args: &ExplainArgs,
    is_known: bool,
    external: Option<Endpoint>,
) -> Result<Vec<Traced>, Box<dyn std::error::Error>> {
    let Some(other) = args.flow.other else { return Ok(Vec::new()) };
    let (inside, outside) = (endpoint(args.flow.one), endpoint(other));
    let ways = [
        (Side::Inside, "its next packet, from inside", inside, outside),
        answer(inside, outside, external),
    ];
    let mut traced = Vec::new();
    for (side, words, from, to) in ways {
        let Some(frame) = packet(args.flow.protocol, (side, is_known), (from, to)) else { break };
        let lines = trace_at(&args.asked.cluster, &args.asked.node, side, frame)?;
        traced.push(Traced { title: format!("{words}: {from} -> {to}"), lines });
    }
    Ok(traced)
}

/// The answer to a flow's packet: to the external end, if there is one, and then from an address of
/// that family.
fn answer(
    inside: Endpoint,
    outside: Endpoint,
    external: Option<Endpoint>,
) -> (Side, &'static str, Endpoint, Endpoint) {
    let to = external.unwrap_or(inside);
    let from = if to.ipv4().is_some() && outside.ipv4().is_none() {
        let [.., a, b, c, d] = outside.address.octets();
        Endpoint::v4([a, b, c, d], outside.port)
    } else {
        outside
    };
    (Side::Outside, "an answer, from outside", from, to)
}

/// A packet of a flow; `None` if none can be made up of that protocol, or of two families.
fn packet(
    protocol: u8,
    (side, is_known): (Side, bool),
    (from, to): (Endpoint, Endpoint),
) -> Option<Vec<u8>> {
    if from.ipv4().is_some() != to.ipv4().is_some() {
        return None;
    }
    let flags = match side {
        // The first packet of a connection opens it.
        Side::Inside if !is_known => SYN,
        _ => ACK,
    };
    Some(match (protocol, side) {
        (6, _) => PacketBuilder::tcp(from, to).flags(flags).build(),
        (17, _) => PacketBuilder::udp(from, to).build(),
        (1 | 58, Side::Inside) => PacketBuilder::echo_request(from, to).build(),
        // The identifier of an answer is that of the end that it goes to.
        (1 | 58, Side::Outside) => {
            PacketBuilder::echo_reply(Endpoint { port: to.port, ..from }, to).build()
        }
        _ => return None,
    })
}

fn holding_json((node, held): &Holding) -> Value {
    let mut entry = entry_json(held);
    entry["node"] = node.as_str().into();
    entry["ttl_s"] = held.timer.map(|timer| timer.ttl_s).into();
    entry["idle_ms"] = held.timer.map(|timer| timer.idle_ms).into();
    entry
}

fn as_text(map: &Map, keys: &[Key], found: &[Holding]) -> String {
    let mut text = String::new();
    for key in keys {
        let held: Vec<&Holding> = found.iter().filter(|(_, held)| held.key == *key).collect();
        let Some((_, newest)) = held.iter().max_by_key(|(_, one)| (one.is_current, one.version))
        else {
            continue;
        };
        text.push_str(&format!("{}\n", state_key::words(key)));
        text.push_str(&format!("    {}\n", place(map, newest, &held)));
        text.push_str(&format!("    version {}: {}\n", newest.version.0, value_words(newest)));
        if let Some((packets, bytes)) = entry_rules::counted(key, &newest.value) {
            text.push_str(&format!(
                "    packets {packets}, bytes {bytes}: those that kept it alive\n"
            ));
        }
        if let Some(timer) = newest.timer {
            text.push_str(&format!("    {}\n", life(timer)));
        }
    }
    if found.is_empty() {
        text.push_str("no node that answers holds an entry of this flow\n");
    }
    text
}

/// Where an entry lies, who owns it and who has copies of what.
fn place(map: &Map, newest: &HeldEntry, held: &[&Holding]) -> String {
    let names = |is_owner: bool| {
        let those = held.iter().filter(|(_, one)| one.is_current == is_owner);
        let names: Vec<String> = those
            .map(|(node, one)| match one.version == newest.version {
                true => node.clone(),
                false => format!("{node} (version {})", one.version.0),
            })
            .collect();
        if names.is_empty() { "nobody that answers".to_owned() } else { names.join(", ") }
    };
    format!(
        "slot {}, {} in map {}: owned by {}, copies at {}",
        newest.slot.0,
        newest.shard,
        map.epoch.0,
        names(true),
        names(false)
    )
}

/// How long an entry lives.
fn life(HeldTimer { ttl_s, idle_ms }: HeldTimer) -> String {
    if ttl_s == 0 {
        return "lives until it is removed".to_owned();
    }
    let left_ms = (u64::from(ttl_s) * 1000).saturating_sub(idle_ms);
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    format!(
        "seen {} ago, lives {ttl_s} s after that: ends in {} unless it is seen again",
        seconds(idle_ms),
        seconds(left_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_store::{ShardId, SlotId, TenantId, Version};

    #[test]
    fn lives_are_told_in_seconds() {
        let told = life(HeldTimer { ttl_s: 300, idle_ms: 12_345 });
        assert!(told.contains("seen 12.3 s ago") && told.contains("ends in 287.6 s"), "{told}");
        assert!(life(HeldTimer { ttl_s: 1, idle_ms: 5_000 }).contains("ends in 0.0 s"));
        assert!(life(HeldTimer { ttl_s: 0, idle_ms: 9 }).contains("until it is removed"));
    }

    #[test]
    fn packets_are_made_up_of_what_a_chain_knows() {
        let ends = (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([192, 0, 2, 1], 80));
        for protocol in [1, 6, 17] {
            for way in [(Side::Inside, false), (Side::Outside, true)] {
                let frame = packet(protocol, way, ends).unwrap();
                let parsed = nearstate_nf_node::packet::parse(&frame).unwrap();
                assert_eq!(parsed.tuple.protocol, protocol);
            }
        }
        assert_eq!(packet(132, (Side::Inside, true), ends), None);
        let v6 = Endpoint::new("2001:db8::1".parse().unwrap(), 80);
        assert_eq!(packet(6, (Side::Inside, true), (ends.0, v6)), None);
    }

    #[test]
    fn an_answer_behind_a_nat64_comes_over_ipv4() {
        let six = |text: &str| Endpoint::new(text.parse().unwrap(), 80);
        let (inside, outside) = (six("2001:db8::5"), six("64:ff9b::8.8.8.8"));
        let external = Endpoint::v4([198, 51, 100, 7], 2048);
        let (_, _, from, to) = answer(inside, outside, Some(external));
        assert_eq!((from, to), (Endpoint::v4([8, 8, 8, 8], 80), external));
        let (_, _, from, to) = answer(inside, outside, None);
        assert_eq!((from, to), (outside, inside));
        let reply = packet(1, (Side::Outside, true), (Endpoint::v4([8; 4], 7), external)).unwrap();
        let parsed = nearstate_nf_node::packet::parse(&reply).unwrap();
        assert_eq!(parsed.tuple.destination, external);
    }

    #[test]
    fn an_entry_is_told_with_its_owner_its_copies_and_those_that_are_behind() {
        let key = state_key::nat_out(TenantId(0), 17, Endpoint::v4([10, 0, 0, 1], 4000));
        let held = |version, is_current| HeldEntry {
            shard: ShardId(2),
            is_current,
            key,
            value: nearstate_store::Value::ZERO,
            version: Version(version),
            slot: SlotId(5),
            timer: is_current.then_some(HeldTimer { ttl_s: 300, idle_ms: 0 }),
        };
        let found = [
            ("n1".to_owned(), held(7, false)),
            ("n2".to_owned(), held(9, true)),
            ("n3".to_owned(), held(9, false)),
        ];
        let text = as_text(&Map::unformed(), &[key], &found);
        assert!(text.contains("owned by n2, copies at n1 (version 7), n3"), "{text}");
        assert!(text.contains("version 9:") && text.contains("packets 0"), "{text}");
        assert!(as_text(&Map::unformed(), &[key], &[]).contains("no node"));
    }
}
