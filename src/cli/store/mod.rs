//! `nearstate store`: what replicas hold, and what a stopped node's files are worth.
//!
//! Four of the five commands ask running nodes, or read what a stopped one has left; `verify` reads
//! files. None changes anything. Each prints tables for people, or JSON.

mod get;
mod hash;
mod scan;
mod source;
mod stat;
mod verify;

use super::Ended;
use clap::Subcommand;
use nearstate_nf_node::nf::{entry_rules, fragments, state_key};
use nearstate_placement::store_api::HeldEntry;
use serde_json::{Value, json};

/// What may be asked about a store.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Show how tables, logs and machines of a node's shards are
    Stat(stat::StatArgs),
    /// List the entries that a node holds of a shard
    Scan(scan::ScanArgs),
    /// Show the entries of one flow, on every node that holds them
    Get(get::GetArgs),
    /// Compare the state of a shard's replicas by its hash
    Hash(hash::HashArgs),
    /// Check the files of a stopped node whose durability is `disk`
    Verify(verify::VerifyArgs),
}

/// Runs it.
pub(super) fn run(command: &StoreCommand) -> Ended {
    match command {
        StoreCommand::Stat(args) => stat::run(args),
        StoreCommand::Scan(args) => scan::run(args),
        StoreCommand::Get(args) => get::run(args),
        StoreCommand::Hash(args) => hash::run(args),
        StoreCommand::Verify(args) => verify::run(args),
    }
}

/// An entry, as JSON.
pub(super) fn entry_json(held: &HeldEntry) -> Value {
    let (a, b) = held.key.ends();
    let (packets, bytes) = entry_rules::counted(&held.key, &held.value).unzip();
    json!({
        "shard": held.shard.0,
        "slot": held.slot.0,
        "kind": state_key::KeyKind::of(&held.key).map(state_key::KeyKind::name),
        "protocol": held.key.protocol(),
        "tenant": held.key.tenant().0,
        "endpoints": [a.to_string(), b.to_string()],
        "about": state_key::words(&held.key),
        "version": held.version.0,
        "value": value_digits(held),
        "says": fragments::describe(&held.key, &held.value),
        "packets": packets,
        "bytes": bytes,
        "is_current": held.is_current,
    })
}

/// What a value says, if there are words for it, or its digits.
pub(super) fn value_words(held: &HeldEntry) -> String {
    fragments::describe(&held.key, &held.value).unwrap_or_else(|| value_digits(held))
}

/// The bytes of a value as digits, without what is counted in it and the zeros at its end.
fn value_digits(held: &HeldEntry) -> String {
    let value = entry_rules::without_counts(&held.key, held.value);
    let bytes = value.to_bytes();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
    bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_store::{Endpoint, ShardId, SlotId, TenantId, Value, Version};

    #[test]
    fn an_entry_is_told_in_words() {
        let key = state_key::nat_out(TenantId(0), 17, Endpoint::v4([10, 0, 0, 1], 1234));
        let mut value = [0; 64];
        value[..3].copy_from_slice(&[0xab, 0, 1]);
        let held = HeldEntry {
            shard: ShardId(2),
            is_current: true,
            key,
            value: Value::from_bytes(&value),
            version: Version(9),
            slot: SlotId(5),
            timer: None,
        };
        let told = entry_json(&held);
        assert_eq!((&told["kind"], &told["value"]), (&json!("nat-out"), &json!("ab0001")));
        assert_eq!(told["endpoints"][0], "10.0.0.1:1234");
        assert_eq!(told["about"], "the mapping of inside endpoint udp 10.0.0.1:1234");
        assert_eq!((&told["packets"], &told["bytes"]), (&json!(0), &json!(0)));
        let counted = Value([0xab, 0, 0, 0, 0, 0, 12, 3456]);
        let counted = HeldEntry { value: counted, ..held };
        let told = entry_json(&counted);
        assert_eq!((&told["value"], &told["packets"]), (&json!("ab"), &json!(12)));
        assert_eq!(told["bytes"], json!(3456));
        let zero = HeldEntry { value: Value::ZERO, ..held };
        assert_eq!(value_words(&zero), "00");
    }
}
