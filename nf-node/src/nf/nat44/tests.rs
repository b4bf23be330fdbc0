//! The NAT: tables of packets, and a model beside it on random ones.

use super::*;
use crate::chain::Chain;
use crate::chain_config::ChainConfig;
use crate::nf::nat_model;
use crate::nf::test_store::{ACK, FIN, RST, SYN, TestStore, echo, end, error, parsed, tcp, udp};
use crate::packet::parsed::Parsed;
use nearstate_placement::FlowTuple;
use nearstate_store::{SlotId, TenantId, Version};
use proptest::prelude::*;

mod exceptions;
mod lives;

const SLOTS: u32 = 16;

fn chain() -> Chain {
    Chain::new(&ChainConfig::named(&["nat"]).unwrap(), SLOTS).unwrap()
}

/// A store in which 10.0.0.1 has a mapping of each protocol; where to.
fn mapped(chain: &Chain) -> (TestStore, [Endpoint; 3]) {
    let mut store = TestStore::new(chain);
    let packets = [
        tcp(SYN, "10.0.0.1:1000", "192.0.2.1:80"),
        udp("10.0.0.1:1000", "192.0.2.1:53"),
        echo(true, "10.0.0.1:77", "192.0.2.1:77"),
    ];
    let external = packets.map(|packet| {
        let (sent, _) = store.send(chain, Side::Inside, &packet);
        sent.unwrap().source
    });
    (store, external)
}

#[test]
fn a_first_packet_asks_for_the_port_and_both_entries_in_one_transaction() {
    let chain = chain();
    let mut changes = Changes::default();
    let parsed = udp("10.0.0.1:1000", "192.0.2.1:53");
    let mut translated = None;
    let packet = chain.packet(Side::Inside, &[], &parsed, &mut translated);
    let (verdict, tuple) = chain.run(Time(0), packet, &mut |_| None, &mut changes);
    assert_eq!(verdict, Verdict::Commit);
    assert_eq!(tuple, parsed.tuple, "not translated before the port is known");
    let out = state_key::nat_out(TenantId(0), 17, end("10.0.0.1:1000"));
    assert_eq!(changes.conditions[..], [Condition::Absent(out)]);
    let take = Take {
        pool: PoolId(0),
        protocol: 17,
        holder: end("10.0.0.1:1000").address.octets(),
        like_port: 1000,
    };
    assert_eq!(changes.writes[0], Write::Take(take));
    let keys: Vec<_> = changes.writes[1..]
        .iter()
        .map(|write| match write {
            Write::Put { key, fill, .. } => (key.kind(), fill.key_at, fill.value_at),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(keys, [(1, None, Some(12)), (2, Some(16), None)]);
}

/// A packet's kind, its ends, and the ends with which it leaves or why it does not. X, Y and Z are
/// the external endpoints of the mappings of TCP, UDP and echo, `:Z` the port of Z.
type Row = (
    &'static str,
    Side,
    (Kind, &'static str, &'static str),
    Result<(&'static str, &'static str), DropReason>,
);

#[derive(Clone, Copy)]
enum Kind {
    Tcp(u8),
    Udp,
    Query,
    Reply,
    Error(u8),
}

const IN: Side = Side::Outside;
const OUT: Side = Side::Inside;
/// The inside end of the mappings of TCP and UDP, that of the echo, and whom they talk to.
const H: &str = "10.0.0.1:1000";
const P: &str = "10.0.0.1:77";
const WEB: &str = "192.0.2.1:80";

fn check(rows: &[Row]) {
    for (what, side, (kind, from, to), expected) in rows {
        let chain = chain();
        let (mut store, external) = mapped(&chain);
        let before = store.entries.clone();
        let fill = |text: &str| match text {
            "X" => external[0].to_string(),
            "Y" => external[1].to_string(),
            "Z" => external[2].to_string(),
            text => text.replace(":Z", &format!(":{}", external[2].port)),
        };
        let (from, to) = (fill(from), fill(to));
        let packet = match *kind {
            Kind::Tcp(flags) => tcp(flags, &from, &to),
            Kind::Udp => udp(&from, &to),
            Kind::Query => echo(true, &from, &to),
            Kind::Reply => echo(false, &from, &to),
            Kind::Error(protocol) => error(protocol, &from, &to),
        };
        let (sent, changes) = store.send(&chain, *side, &packet);
        let expected = expected.map(|(source, destination)| FlowTuple {
            protocol: packet.tuple.protocol,
            source: end(&fill(source)),
            destination: end(&fill(destination)),
        });
        assert_eq!(sent, expected, "{what}");
        assert!(changes.is_empty(), "{what}: asked for changes");
        assert_eq!(store.entries, before, "{what}: changed the store");
    }
}

#[test]
fn tcp_and_udp_at_a_nat_that_has_mappings() {
    use DropReason::{NatSource, NoMapping, TcpMidstream};
    use Kind::{Tcp, Udp};
    let (other, free) = ("198.51.100.9:443", "10.0.0.1:1001");
    let (six, six_too) = ("[2001:db8::1]:5", "[2001:db8::2]:6");
    check(&[
        ("another destination, the same mapping (4787-1)", OUT, (Udp, H, other), Ok(("Y", other))),
        ("an answer comes back to the inside", IN, (Tcp(0x12), WEB, "X"), Ok((WEB, H))),
        ("a stranger reaches a mapping (4787-8)", IN, (Udp, other, "Y"), Ok((other, H))),
        ("no mapping, no way in", IN, (Udp, WEB, "198.19.0.200:60000"), Err(NoMapping)),
        ("well-known ports are not given out", IN, (Udp, WEB, "198.19.0.1:22"), Err(NoMapping)),
        ("a reset makes no mapping", OUT, (Tcp(RST), free, WEB), Err(TcpMidstream)),
        ("a reset of a connection (7857-3)", OUT, (Tcp(RST), H, WEB), Ok(("X", WEB))),
        ("a reset from outside (7857-3)", IN, (Tcp(RST), WEB, "X"), Ok((WEB, H))),
        ("a NAT address inside", OUT, (Udp, "198.19.0.3:5", WEB), Err(NatSource)),
        ("from outside to a routed address", IN, (Udp, WEB, H), Ok((WEB, H))),
        ("IPv6 passes", OUT, (Udp, six, six_too), Ok((six, six_too))),
        ("IPv6 passes inwards", IN, (Tcp(SYN), six, six_too), Ok((six, six_too))),
    ]);
}

#[test]
fn icmp_at_a_nat_that_has_mappings() {
    use DropReason::{IcmpUnrelated, NoMapping};
    use Kind::{Error, Query, Reply};
    let (far, near, back) = ("203.0.113.1:77", "192.0.2.1:77", "192.0.2.1:Z");
    let free = "10.0.0.1:1001";
    check(&[
        (
            "both ports are the identifier (5508-1)",
            OUT,
            (Query, P, far),
            Ok(("Z", "203.0.113.1:Z")),
        ),
        ("a reply finds the mapping", IN, (Reply, back, "Z"), Ok((near, P))),
        ("a query from outside is for nobody", IN, (Query, back, "Z"), Err(NoMapping)),
        ("a reply to nothing", OUT, (Reply, "10.0.0.1:5", "192.0.2.1:5"), Err(NoMapping)),
        ("an error from outside (5508-4)", IN, (Error(17), WEB, "Y"), Ok((WEB, H))),
        ("an error about an echo", IN, (Error(1), back, "Z"), Ok((near, P))),
        ("about nothing (5508-4)", IN, (Error(17), WEB, "198.19.0.9:4000"), Err(IcmpUnrelated)),
        ("an error from inside (5508-5)", OUT, (Error(6), H, WEB), Ok(("X", WEB))),
        ("makes no mapping (5508-5)", OUT, (Error(6), free, WEB), Err(IcmpUnrelated)),
    ]);
}

/// R5382-1: whatever goes where, from one inside endpoint.
#[test]
fn one_mapping_of_tcp_for_all_destinations() {
    let chain = chain();
    let (mut store, external) = mapped(&chain);
    for remote in ["198.51.100.9:443", "198.51.100.9:444", WEB, "203.0.113.1:1"] {
        for flags in [SYN, ACK, FIN] {
            let (sent, changes) = store.send(&chain, OUT, &tcp(flags, H, remote));
            assert_eq!(sent.unwrap().source, external[0], "{remote}");
            assert!(!takes(&changes));
        }
    }
}

fn takes(changes: &Changes) -> bool {
    changes.writes.iter().any(|write| matches!(write, Write::Take(_)))
}

/// What must make no state makes none: N7, RFC 6146 section 3.5.2.2 (CLOSED), bad inputs 37 and 38.
#[test]
fn only_a_syn_from_inside_makes_a_mapping_of_tcp() {
    let rows = [(SYN, true), (0xc2, true), (ACK, false), (0x12, false), (FIN, false), (RST, false)];
    for (flags, is_mapped) in rows.into_iter().chain([(0x14, false), (0x18, false)]) {
        let chain = chain();
        let mut store = TestStore::new(&chain);
        let packet = tcp(flags, H, WEB);
        let (sent, changes) = store.send(&chain, OUT, &packet);
        let expected = if is_mapped { Ok(()) } else { Err(DropReason::TcpMidstream) };
        assert_eq!(sent.map(|_| ()), expected, "flags {flags:#x}");
        assert_eq!(changes.is_empty(), !is_mapped);
        assert_eq!(store.entries.len(), if is_mapped { 2 } else { 0 });
        let inwards = tcp(flags, WEB, "198.19.0.9:4000");
        assert!(store.send(&chain, IN, &inwards).0.is_err());
        assert_eq!(store.entries.len(), if is_mapped { 2 } else { 0 });
    }
}

/// R4787-5, R5508-2.
#[test]
fn mappings_of_udp_and_echo_live_for_their_times_and_the_way_in_for_none_of_its_own() {
    let chain = chain();
    let (store, _) = mapped(&chain);
    let key = |protocol, inside: &str| state_key::nat_out(TenantId(0), protocol, end(inside));
    assert_eq!((store.lifetimes[&key(17, H)], store.lifetimes[&key(1, P)]), (300, 60));
    let inwards = store.lifetimes.iter().filter(|(key, _)| key.kind() == KeyKind::NatIn as u8);
    assert!(inwards.clone().count() == 3 && inwards.clone().all(|(_, ttl_s)| *ttl_s == 0));
}

#[test]
fn a_mapping_is_read_back_as_it_was_written() {
    let remote = Remote::of(&end("192.0.2.1:80"));
    let (to, pool) = (end("198.19.0.7:4321"), PoolId(9));
    let mapping = Mapping { to, pool, life: Life::Opening, remote };
    assert_eq!(Mapping::decode(&mapping.encode()), mapping);
    let bytes = mapping.encode().to_bytes();
    assert_eq!(bytes[10..19], [0xff, 0xff, 198, 19, 0, 7, 0x10, 0xe1, 9]);
    assert_eq!(bytes[19..24], [1, 0, 0, 0, 0]);
    assert_eq!(bytes[24..30], [192, 0, 2, 1, 0, 80]);
    assert!(bytes[30..].iter().all(|byte| *byte == 0));
    // What the store fills in is what is read.
    let mut bytes = Mapping { to: Endpoint::v4([0; 4], 0), ..mapping }.encode().to_bytes();
    let at = usize::from(VALUE_FILL);
    bytes[at..at + 6].copy_from_slice(&[198, 19, 0, 7, 0x10, 0xe1]);
    assert_eq!(Mapping::decode(&Value::from_bytes(&bytes)), mapping);
}

#[test]
fn it_says_what_its_entries_mean() {
    let nat = Nat44::new(chain().pools()[0].clone());
    let (to, pool, remote) = (end("198.19.0.7:4321"), PoolId(0), Remote::default());
    let value = Mapping { to, pool, life: Life::Established, remote }.encode();
    let entry = Entry { value, version: Version(1), slot: SlotId(0) };
    let out = state_key::nat_out(TenantId(0), 6, end("10.0.0.1:99"));
    assert_eq!(
        nat.describe(&out, Some(&entry)),
        "inside endpoint 10.0.0.1:99 is mapped to 198.19.0.7:4321 of pool-0; established"
    );
    assert_eq!(nat.describe(&out, None), "inside endpoint 10.0.0.1:99 has no mapping");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_nat_agrees_with_the_model(events in nat_model::any_events()) {
        nat_model::run(&chain(), &nat_model::Net { prefix: None }, &events);
    }
}
