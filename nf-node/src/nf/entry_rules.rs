//! How the entries of all network functions end, and which of them hold ports: what the store must
//! be told of them ([`EntryRules`]).
//!
//! A mapping ends by its `nat-out` entry, which outbound packets keep alive (RFC 4787 REQ-6); its
//! `nat-in` entry goes with it, and the port returns to its pool. A balanced flow is two entries,
//! and either direction keeps both alive. A firewall's flow ends alone, and so do a remote end's
//! leave to send to a mapping and what is known of a datagram in fragments. Pure; what an entry
//! means is read by the function that wrote it.

use crate::nf::load_balancer::Choice;
use crate::nf::nat44::Mapping;
use crate::nf::state_key::{self, KeyKind};
use nearstate_store::key::VALUE_BYTES;
use nearstate_store::upkeep::{Ending, EntryRules, PoolPort};
use nearstate_store::{Endpoint, Entry, Key, Value, Write};

/// The last two words of a value count the packets that kept the entry alive, and their bytes. No
/// function reads or writes them.
const TALLY_WORD: usize = VALUE_BYTES / 8 - 2;

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct FunctionRules;

/// Packets and bytes that were counted at an entry, if that is done.
#[must_use]
pub fn counted(key: &Key, value: &Value) -> Option<(u64, u64)> {
    let at = FunctionRules.tally(key)?;
    Some((value.0[at], value.0[at + 1]))
}

/// A value without them.
#[must_use]
pub fn without_counts(key: &Key, mut value: Value) -> Value {
    if let Some(at) = FunctionRules.tally(key) {
        value.0[at..at + 2].fill(0);
    }
    value
}

/// IPv4 address and port in network order.
fn endpoint_bytes(end: Endpoint) -> [u8; 6] {
    let bytes = end.to_bytes();
    [bytes[12], bytes[13], bytes[14], bytes[15], bytes[16], bytes[17]]
}

impl EntryRules for FunctionRules {
    fn end(&self, key: &Key, entry: &Entry, ending: &mut Ending) {
        let (tenant, protocol, (a, b)) = (key.tenant(), key.protocol(), key.ends());
        match KeyKind::of(key) {
            Some(KeyKind::NatOut) => {
                let Mapping { to, pool, .. } = Mapping::decode(&entry.value);
                ending.writes.push(Write::Delete(*key));
                ending.writes.push(Write::Delete(state_key::nat_in(tenant, protocol, to)));
                let endpoint = endpoint_bytes(to);
                ending.writes.push(Write::Return { pool, protocol, endpoint });
            }
            Some(KeyKind::Balance) => {
                let backend = Choice::decode(&entry.value).to;
                end_pair(key, state_key::balance_reply(tenant, protocol, a, backend), ending);
            }
            Some(KeyKind::BalanceReply) => {
                let service = Choice::decode(&entry.value).to;
                debug_assert!(b != service, "a backend is no service");
                end_pair(key, state_key::balance(tenant, protocol, a, service), ending);
            }
            Some(
                KeyKind::Firewall | KeyKind::NatFilter | KeyKind::Fragment | KeyKind::FragmentList,
            ) => {
                ending.writes.push(Write::Delete(*key));
            }
            // It has no lifetime of its own.
            Some(KeyKind::NatIn) | None => {}
        }
    }

    fn tally(&self, key: &Key) -> Option<usize> {
        match KeyKind::of(key)? {
            KeyKind::Firewall
            | KeyKind::NatOut
            | KeyKind::NatFilter
            | KeyKind::Balance
            | KeyKind::BalanceReply => Some(TALLY_WORD),
            // No packet keeps it alive, so none is counted at it.
            KeyKind::NatIn | KeyKind::Fragment | KeyKind::FragmentList => None,
        }
    }

    fn port(&self, key: &Key, entry: &Entry) -> Option<PoolPort> {
        if KeyKind::of(key) != Some(KeyKind::NatIn) {
            return None;
        }
        let pool = Mapping::decode(&entry.value).pool;
        let endpoint = endpoint_bytes(key.ends().0);
        Some(PoolPort { pool, protocol: key.protocol(), endpoint })
    }
}

fn end_pair(key: &Key, partner: Key, ending: &mut Ending) {
    ending.partners.push(partner);
    ending.writes.push(Write::Delete(*key));
    ending.writes.push(Write::Delete(partner));
}

#[cfg(test)]
#[path = "entry_rules_tests.rs"]
mod tests;
