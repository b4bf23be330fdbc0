//! Filtering in front of the NAT: who is let in, and for how long.

use super::*;
use crate::chain::Chain;
use crate::chain_config::ChainConfig;
use crate::nf::nat44::Nat44;
use crate::nf::test_store::{ACK, FIN, RST, SYN, SYN_ACK, TestStore, echo, end, error, tcp, udp};
use crate::packet::parsed::Parsed;
use nearstate_placement::Side;
use nearstate_store::{SlotId, TenantId, Version};

const IN: Side = Side::Outside;
const OUT: Side = Side::Inside;
const H: &str = "10.0.0.1:1000";
const WEB: &str = "192.0.2.1:80";
const SAME_HOST: &str = "192.0.2.1:81";
const STRANGER: &str = "203.0.113.9:80";

const ALL: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];

fn chain(functions: &[&str], filtering: Filtering) -> Chain {
    let mut config = ChainConfig::named(functions).unwrap();
    config.nat.as_mut().unwrap().filtering = filtering;
    Chain::new(&config, 16).unwrap()
}

/// R4787-8, R5382-3, R5382-3a, R6888-7, N7.
#[test]
fn who_is_let_in_is_a_matter_of_choice() {
    // The sender, and whether each kind of filtering lets it in.
    let rows = [
        (WEB, [true, true, true]),
        (SAME_HOST, [true, true, false]),
        (STRANGER, [true, false, false]),
    ];
    for (at, filtering) in ALL.into_iter().enumerate() {
        let chain = chain(&["nat"], filtering);
        for (protocol, request) in [(6, tcp(SYN, H, WEB)), (17, udp(H, WEB))] {
            let mut store = TestStore::new(&chain);
            let (sent, changes) = store.send(&chain, OUT, &request);
            let external = sent.unwrap().source.to_string();
            let is_filtering = filtering != Filtering::EndpointIndependent;
            assert_eq!(changes.writes.len(), if is_filtering { 4 } else { 3 }, "one transaction");
            let before = store.entries.clone();
            for (sender, is_let_in) in rows {
                let what = format!("{filtering:?}: {sender}");
                let answer = match protocol {
                    6 => tcp(SYN_ACK, sender, &external),
                    _ => udp(sender, &external),
                };
                let (received, changes) = store.send(&chain, IN, &answer);
                let expected = if is_let_in[at] { Ok(end(H)) } else { Err(DropReason::Filtered) };
                assert_eq!(received.map(|tuple| tuple.destination), expected, "{what}");
                assert!(changes.is_empty(), "{what}");
                // An error counts by the flow that it is about (R4787-12a).
                let about = error(protocol, sender, &external);
                let received = store.send(&chain, IN, &about).0.map(|tuple| tuple.destination);
                let expected =
                    if is_let_in[at] { Ok(end(H)) } else { Err(DropReason::IcmpUnrelated) };
                assert_eq!(received, expected, "{what}");
            }
            assert_eq!(store.entries, before, "nothing from outside makes state");
            // The mapping stays endpoint-independent, and sending is what gives leave.
            let other = match protocol {
                6 => tcp(SYN, H, STRANGER),
                _ => udp(H, STRANGER),
            };
            assert_eq!(store.send(&chain, OUT, &other).0.unwrap().source.to_string(), external);
            let answer = match protocol {
                6 => tcp(SYN_ACK, STRANGER, &external),
                _ => udp(STRANGER, &external),
            };
            assert_eq!(store.send(&chain, IN, &answer).0.unwrap().destination, end(H));
        }
    }
}

/// R7857-7: leave for one protocol is none for another.
#[test]
fn filters_of_protocols_are_apart_and_echoes_have_theirs() {
    for filtering in &ALL[1..] {
        let chain = chain(&["nat"], *filtering);
        let mut store = TestStore::new(&chain);
        let external = store.send(&chain, OUT, &udp(H, WEB)).0.unwrap().source;
        let other = store.send(&chain, OUT, &tcp(SYN, H, STRANGER)).0.unwrap().source.to_string();
        let refused = store.send(&chain, IN, &tcp(SYN, WEB, &other)).0;
        assert_eq!(refused, Err(DropReason::Filtered), "{external}");
        let ping = echo(true, "10.0.0.1:77", "192.0.2.1:77");
        let sent = store.send(&chain, OUT, &ping).0.unwrap();
        let reply = echo(false, &sent.destination.to_string(), &sent.source.to_string());
        assert_eq!(store.send(&chain, IN, &reply).0, Ok(ping.tuple.reversed()));
        let stranger = format!("203.0.113.9:{}", sent.source.port);
        let reply = echo(false, &stranger, &sent.source.to_string());
        assert_eq!(store.send(&chain, IN, &reply).0, Err(DropReason::Filtered));
    }
}

#[test]
fn what_is_not_translated_is_not_filtered_and_the_next_holder_of_a_port_owes_nothing() {
    let chain = chain(&["nat"], Filtering::AddressDependent);
    let mut store = TestStore::new(&chain);
    let routed = udp(STRANGER, H);
    assert_eq!(store.send(&chain, IN, &routed).0, Ok(routed.tuple));
    let external = store.send(&chain, OUT, &udp(H, WEB)).0.unwrap().source.to_string();
    // The mapping ends, its leave lives on, and another host gets the port.
    let next = end("10.0.0.1:2000");
    let key = state_key::nat_in(TenantId(0), 17, end(&external));
    let entry = store.entries[&key];
    let mut value = entry.value.to_bytes();
    value[..18].copy_from_slice(&next.to_bytes());
    store.entries.insert(key, Entry { value: Value::from_bytes(&value), ..entry });
    assert_eq!(store.send(&chain, IN, &udp(WEB, &external)).0, Err(DropReason::Filtered));
}

/// R5382-5, R7857-2: seconds that leave lives after each segment; 0 if there is none.
#[test]
fn leave_of_tcp_is_transitory_until_established_and_after_the_end() {
    let steps = [
        (OUT, ACK, [0, 0]),
        (OUT, RST, [0, 0]),
        (OUT, FIN, [0, 0]),
        (OUT, SYN, [240, 240]),
        (IN, SYN_ACK, [240, 240]),
        (OUT, RST, [240, 240]),
        (OUT, ACK, [7440, 7440]),
        (IN, FIN, [7440, 7440]),
        (IN, RST, [7440, 7440]),
        (OUT, FIN, [7440, 240]),
        (OUT, ACK, [7440, 240]),
        (OUT, SYN, [7440, 240]),
        (OUT, ACK, [7440, 7440]),
        (OUT, RST, [7440, 240]),
    ];
    for (at, filtering) in ALL[1..].iter().enumerate() {
        let chain = chain(&["nat"], *filtering);
        let mut store = TestStore::new(&chain);
        // A mapping is there, so that segments from the middle pass.
        let external = store.send(&chain, OUT, &tcp(SYN, H, STRANGER)).0.unwrap().source;
        let remote = Endpoint { port: if at == 0 { 0 } else { 80 }, ..end(WEB) };
        let key = state_key::nat_filter(TenantId(0), 6, end(H), remote);
        for (number, (side, flags, ttls)) in steps.iter().enumerate() {
            let packet: Parsed = match side {
                Side::Inside => tcp(*flags, H, WEB),
                Side::Outside => tcp(*flags, WEB, &external.to_string()),
            };
            store.send(&chain, *side, &packet).0.unwrap();
            let ttl_s = store.lifetimes.get(&key).copied().unwrap_or(0);
            assert_eq!(ttl_s, ttls[at], "{filtering:?}, step {number}");
        }
    }
    let chain = chain(&["nat"], Filtering::AddressDependent);
    let mut store = TestStore::new(&chain);
    store.send(&chain, OUT, &udp(H, WEB)).0.unwrap();
    store.send(&chain, OUT, &echo(true, "10.0.0.1:7", "192.0.2.1:7")).0.unwrap();
    let of = |protocol, inside: &str| {
        let remote = Endpoint { port: 0, ..end(WEB) };
        store.lifetimes[&state_key::nat_filter(TenantId(0), protocol, end(inside), remote)]
    };
    assert_eq!((of(17, H), of(1, "10.0.0.1:7")), (300, 60));
}

#[test]
fn a_firewall_before_it_asks_in_the_same_transaction() {
    let chain = chain(&["firewall", "nat"], Filtering::AddressAndPortDependent);
    assert_eq!(chain.len(), 3);
    let mut store = TestStore::new(&chain);
    let (sent, changes) = store.send(&chain, OUT, &tcp(SYN, H, WEB));
    let external = sent.unwrap().source.to_string();
    assert_eq!((changes.conditions.len(), changes.writes.len()), (3, 5));
    store.send(&chain, IN, &tcp(SYN_ACK, WEB, &external)).0.unwrap();
    let (sent, changes) = store.send(&chain, OUT, &tcp(ACK, H, WEB));
    assert!(sent.is_ok() && changes.conditions.len() == 3, "{changes:?}");
}

#[test]
fn it_says_what_its_entries_mean() {
    let nat = Nat44::new(chain(&["nat"], Filtering::default()).pools()[0].clone());
    let filter = NatFilter::new(&nat, Filtering::AddressDependent, Timeouts::default()).unwrap();
    let key = state_key::nat_filter(TenantId(0), 6, end(H), end("192.0.2.1:0"));
    let entry = Entry { value: Phase::Opening.encode(), version: Version(1), slot: SlotId(0) };
    let said = filter.describe(&key, Some(&entry));
    assert_eq!(said, "10.0.0.1:1000 has sent to 192.0.2.1, which may send to it");
    let said = filter.describe(&key, None);
    assert_eq!(said, "10.0.0.1:1000 has not sent to 192.0.2.1, which may not send to it");
    for phase in Phase::ALL {
        assert_eq!(Phase::decode(&phase.encode()), phase);
    }
}
