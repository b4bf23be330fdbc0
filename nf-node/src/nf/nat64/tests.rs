//! NAT64: what is its business and what is not, tables of packets, and the model beside it.

use crate::chain::Chain;
use crate::chain_config::ChainConfig;
use crate::nf::mapping_life::Life;
use crate::nf::nat_model;
use crate::nf::nat44::{Mapping, Remote};
use crate::nf::state_key;
use crate::nf::test_store::{ACK, FIN, RST, SYN, TestStore, echo, end, error, parsed, tcp, udp};
use crate::packet::parsed::Parsed;
use crate::verdict::DropReason;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Endpoint, TenantId};
use proptest::prelude::*;

const SLOTS: u32 = 16;
const IN: Side = Side::Outside;
const OUT: Side = Side::Inside;
/// An inside host, and whom it talks to as it and as the world sees them.
const H: &str = "[2001:db8::1]:1000";
const P: &str = "[2001:db8::1]:77";
const WEB: &str = "192.0.2.1:80";
const WEB6: &str = "[2001:db8:64::192.0.2.1]:80";

/// A NAT64 whose prefix may stand for all addresses here.
fn with(extra: &str) -> Chain {
    let text = format!(
        "functions = [\"nat64\"]\n[nat64]\nprefix = \"2001:db8:64::/96\"\n\
         addresses = [\"198.19.0.0/24\"]\n{extra}"
    );
    Chain::new(&toml::from_str(&text).unwrap(), SLOTS).unwrap()
}

/// A store in which the host has a mapping of each protocol; where to.
fn mapped(chain: &Chain) -> (TestStore, [Endpoint; 3]) {
    let mut store = TestStore::new(chain);
    let packets = [tcp(SYN, H, WEB6), udp(H, WEB6), echo(true, P, "[2001:db8:64::192.0.2.1]:77")];
    let external = packets.map(|packet| store.send(chain, OUT, &packet).0.unwrap().source);
    (store, external)
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp(u8),
    Udp,
    Query,
    Reply,
    Error(u8),
}

/// A packet's kind, its ends, and the protocol and ends with which it leaves, or why it does not.
/// X, Y and Z are the external endpoints of the mappings of TCP, UDP and echo, `:Z` the port of Z.
type Row = (
    &'static str,
    Side,
    (Kind, &'static str, &'static str),
    Result<(u8, &'static str, &'static str), DropReason>,
);

fn check(chain: &Chain, rows: &[Row]) {
    for (what, side, (kind, from, to), expected) in rows {
        let (mut store, external) = mapped(chain);
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
        let (sent, changes) = store.send(chain, *side, &packet);
        let expected = expected.map(|(protocol, source, destination)| FlowTuple {
            protocol,
            source: end(&fill(source)),
            destination: end(&fill(destination)),
        });
        assert_eq!(sent, expected, "{what}");
        assert!(changes.is_empty(), "{what}: asked for changes");
        assert_eq!(store.entries, before, "{what}: changed the store");
    }
}

/// R6146-3.5.1, R6146-3.5.2, R6146-3.5.4: VPP's NAT64 cases dynamic and prefix.
#[test]
fn tcp_and_udp_at_a_nat64_that_has_mappings() {
    use DropReason::{NoMapping, TcpMidstream};
    use Kind::{Tcp, Udp};
    let (other, other6) = ("198.51.100.9:443", "[2001:db8:64::198.51.100.9]:443");
    let free = "[2001:db8::1]:1001";
    check(
        &with(""),
        &[
            ("another destination, the same mapping", OUT, (Udp, H, other6), Ok((17, "Y", other))),
            ("an answer comes back", IN, (Tcp(0x12), WEB, "X"), Ok((6, WEB6, H))),
            ("a stranger reaches a mapping", IN, (Udp, other, "Y"), Ok((17, other6, H))),
            ("no mapping, no way in", IN, (Udp, WEB, "198.19.0.200:60000"), Err(NoMapping)),
            ("ports are not given out below 1024", IN, (Udp, WEB, "198.19.0.1:22"), Err(NoMapping)),
            (
                "a SYN from outside to nobody",
                IN,
                (Tcp(SYN), WEB, "198.19.0.9:4000"),
                Err(NoMapping),
            ),
            ("a reset makes no mapping", OUT, (Tcp(RST), free, WEB6), Err(TcpMidstream)),
            ("nor does what is in the middle", OUT, (Tcp(ACK), free, WEB6), Err(TcpMidstream)),
            ("a reset of a connection", OUT, (Tcp(RST), H, WEB6), Ok((6, "X", WEB))),
        ],
    );
}

/// R6146-3.5.3, R6146-3.4 and 3.5 of errors: VPP's case icmp_error.
#[test]
fn icmp_at_a_nat64_that_has_mappings_is_icmp_outside_and_icmpv6_inside() {
    use DropReason::{IcmpUnrelated, NoMapping};
    use Kind::{Error, Query, Reply};
    let (far, near) = ("[2001:db8:64::203.0.113.1]:77", "[2001:db8:64::192.0.2.1]:77");
    let (back, free) = ("192.0.2.1:Z", "[2001:db8::1]:1001");
    check(
        &with(""),
        &[
            ("the identifier is mapped", OUT, (Query, P, far), Ok((1, "Z", "203.0.113.1:Z"))),
            ("a reply finds the mapping", IN, (Reply, back, "Z"), Ok((58, near, P))),
            ("a query from outside is for nobody", IN, (Query, back, "Z"), Err(NoMapping)),
            (
                "a reply to nothing",
                OUT,
                (Reply, "[2001:db8::1]:5", "[2001:db8:64::c000:201]:5"),
                Err(NoMapping),
            ),
            ("an error from outside", IN, (Error(17), WEB, "Y"), Ok((17, WEB6, H))),
            ("an error about an echo", IN, (Error(1), back, "Z"), Ok((58, near, P))),
            ("about nothing", IN, (Error(17), WEB, "198.19.0.9:4000"), Err(IcmpUnrelated)),
            ("an error from inside", OUT, (Error(6), H, WEB6), Ok((6, "X", WEB))),
            ("from inside about an echo", OUT, (Error(58), P, near), Ok((1, "Z", back))),
            ("makes no mapping", OUT, (Error(6), free, WEB6), Err(IcmpUnrelated)),
        ],
    );
}

/// R6146-3.5: what is not for it, and what must not be. Bad inputs of addresses, loops among them.
#[test]
fn what_is_no_business_of_the_nat64_passes_and_what_must_not_be_is_refused() {
    use DropReason::{MartianAddress, NatSource, NoMapping};
    use Kind::{Query, Tcp, Udp};
    let (six, six_too, web44) = ("[2001:db8::1]:5", "[2001:db8::2]:6", "10.0.0.1:1000");
    check(
        &with(""),
        &[
            ("IPv6 to IPv6 passes", OUT, (Udp, six, six_too), Ok((17, six, six_too))),
            ("and inwards", IN, (Tcp(SYN), six_too, six), Ok((6, six_too, six))),
            ("IPv4 of an inside host passes", OUT, (Udp, web44, WEB), Ok((17, web44, WEB))),
            ("and to a routed address", IN, (Udp, WEB, web44), Ok((17, WEB, web44))),
            ("a source behind the prefix", OUT, (Udp, WEB6, six), Err(NatSource)),
            ("hairpinning for ever", OUT, (Udp, WEB6, "[2001:db8:64::1.2.3.4]:9"), Err(NatSource)),
            ("forged from outside", IN, (Udp, WEB6, six), Err(NatSource)),
            ("a stranger uses the prefix", IN, (Udp, six, WEB6), Err(NoMapping)),
            ("nobody", OUT, (Udp, H, "[2001:db8:64::0.1.2.3]:9"), Err(MartianAddress)),
            ("loopback", OUT, (Query, P, "[2001:db8:64::127.0.0.1]:77"), Err(MartianAddress)),
            ("multicast", OUT, (Udp, H, "[2001:db8:64::224.0.0.251]:5353"), Err(MartianAddress)),
            ("broadcast", OUT, (Udp, H, "[2001:db8:64::255.255.255.255]:9"), Err(MartianAddress)),
        ],
    );
}

/// R6052-3.1: the well-known prefix, which is the default, and addresses that are not global.
#[test]
fn nothing_private_crosses_behind_the_well_known_prefix() {
    let text = "functions = [\"nat64\"]\n[nat64]\naddresses = [\"192.0.3.0/24\"]";
    let chain = Chain::new(&toml::from_str(text).unwrap(), SLOTS).unwrap();
    let mut store = TestStore::new(&chain);
    for to in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.0.1", "198.18.0.1"] {
        let sent = store.send(&chain, OUT, &udp(H, &format!("[64:ff9b::{to}]:53"))).0;
        assert_eq!(sent, Err(DropReason::MartianAddress), "{to}");
    }
    assert!(store.entries.is_empty());
    let sent = store.send(&chain, OUT, &udp(H, "[64:ff9b::8.8.8.8]:53")).0.unwrap();
    assert_eq!(sent.destination, end("8.8.8.8:53"));
    let external = sent.source.to_string();
    let refused = store.send(&chain, IN, &udp("10.0.0.1:53", &external)).0;
    assert_eq!(refused, Err(DropReason::MartianAddress));
    let answer = store.send(&chain, IN, &udp("8.8.8.8:53", &external)).0.unwrap();
    assert_eq!((answer.source, answer.destination), (end("[64:ff9b::8.8.8.8]:53"), end(H)));
}

/// R6052-2.2 to 2.4: all lengths, and what stands behind the address.
#[test]
fn network_specific_prefixes_of_all_lengths_are_served() {
    let rows = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
    ];
    for (prefix, address) in rows {
        let mut config = ChainConfig::named(&["nat64"]).unwrap();
        config.nat64.as_mut().unwrap().prefix = prefix.parse().unwrap();
        let chain = Chain::new(&config, SLOTS).unwrap();
        let mut store = TestStore::new(&chain);
        let (host, six) = ("[2001:dba::1]:1000", format!("[{address}]:53"));
        let sent = store.send(&chain, OUT, &udp(host, &six)).0.unwrap();
        assert_eq!(sent.destination, end("192.0.2.33:53"), "{prefix}");
        let answer = udp("192.0.2.33:53", &sent.source.to_string());
        let answered = store.send(&chain, IN, &answer).0.unwrap();
        assert_eq!((answered.source, answered.destination), (end(&six), end(host)), "{prefix}");
    }
    let chain = with("");
    let odd = udp(H, "[2001:db8:64:0:100::192.0.2.1]:53");
    assert_eq!(TestStore::new(&chain).send(&chain, OUT, &odd).0, Ok(odd.tuple), "not the prefix");
}

/// Through the NAT64, and through it again as from outside if the packet goes to an end of its own.
fn send_round(
    store: &mut TestStore,
    chain: &Chain,
    packet: &Parsed,
) -> (bool, Result<FlowTuple, DropReason>) {
    let sent = match store.send(chain, OUT, packet).0 {
        Ok(sent) if chain.turns_round(OUT, &sent) => sent,
        sent => return (false, sent),
    };
    (true, store.send(chain, IN, &parsed(packet.transport, sent)).0)
}

/// R6146-3.8: VPP's case hairpinning. Two hosts of IPv6, by an external end behind the prefix.
#[test]
fn hosts_behind_a_nat64_reach_each_other_by_external_ends() {
    let chain = with("");
    let (mut store, external) = mapped(&chain);
    let guest = "[2001:db8::2]:5000";
    let behind = |end: Endpoint| format!("[2001:db8:64::{}]:{}", end.ip(), end.port);
    for (protocol, external) in [(6, external[0]), (17, external[1])] {
        let packet = |from: &str, to: &str, flags| match protocol {
            6 => tcp(flags, from, to),
            _ => udp(from, to),
        };
        let (turned, sent) = send_round(&mut store, &chain, &packet(guest, &behind(external), SYN));
        let sent = sent.unwrap();
        assert!(turned && sent.destination == end(H), "{sent}");
        let seen = sent.source.to_string();
        assert!(seen.starts_with("[2001:db8:64::c613:"), "by its external source: {seen}");
        let (turned, answered) = send_round(&mut store, &chain, &packet(H, &seen, 0x12));
        let answered = answered.unwrap();
        assert!(turned);
        assert_eq!((answered.source, answered.destination), (end(&behind(external)), end(guest)));
        let (turned, told) = send_round(&mut store, &chain, &error(protocol, H, &seen));
        let told = told.unwrap();
        assert_eq!(
            (turned, told.source, told.destination),
            (true, end(&behind(external)), end(guest))
        );
    }
    let nobody = udp(guest, "[2001:db8:64::198.19.0.200]:60000");
    assert_eq!(send_round(&mut store, &chain, &nobody), (true, Err(DropReason::NoMapping)));
}

/// R6146-3.5.1.1 (filtering by choice): VPP has none of it.
#[test]
fn who_may_send_to_a_host_behind_a_nat64_is_a_matter_of_choice() {
    let (same, other) = ("192.0.2.1:9", "198.51.100.9:80");
    let rows = [
        ("endpoint-independent", [true, true, true]),
        ("address-dependent", [true, true, false]),
        ("address-and-port-dependent", [true, false, false]),
    ];
    for (filtering, expected) in rows {
        let chain = with(&format!("filtering = \"{filtering}\""));
        let (mut store, external) = mapped(&chain);
        for (from, is_let_in) in [WEB, same, other].into_iter().zip(expected) {
            let sent = store.send(&chain, IN, &udp(from, &external[1].to_string())).0;
            let told = store.send(&chain, IN, &error(17, from, &external[1].to_string())).0;
            assert_eq!((sent.is_ok(), told.is_ok()), (is_let_in, is_let_in), "{filtering} {from}");
        }
    }
}

/// R6146-3.1 (static BIB entries): VPP's cases static_bib and static.
#[test]
fn static_mappings_of_a_nat64_translate_both_ways_without_state() {
    let chain = with(
        "static = [{ external = \"203.0.113.9\", inside = \"2001:db8::9\" }, \
         { external = \"198.19.0.1:443\", inside = \"[2001:db8::5]:8443\", protocol = \"tcp\" }]",
    );
    let mut store = TestStore::new(&chain);
    let rows = [
        (tcp(SYN, WEB, "198.19.0.1:443"), "[2001:db8::5]:8443"),
        (udp(WEB, "203.0.113.9:53"), "[2001:db8::9]:53"),
        (echo(true, "192.0.2.1:7", "203.0.113.9:7"), "[2001:db8::9]:7"),
        (error(17, WEB, "203.0.113.9:53"), "[2001:db8::9]:53"),
        (error(6, WEB, "198.19.0.1:443"), "[2001:db8::5]:8443"),
    ];
    for (packet, inside) in rows {
        let sent = store.send(&chain, IN, &packet).0.unwrap();
        assert_eq!(sent.destination, end(inside), "{packet:?}");
        let answer = parsed(packet.transport, sent.reversed());
        let answered = store.send(&chain, OUT, &answer).0.unwrap();
        assert_eq!(answered, packet.tuple.reversed(), "{packet:?}");
    }
    assert!(store.entries.is_empty(), "they are configuration, not state");
    // Steering goes by the host, wherever the packet comes from.
    let steering = chain.steering(7);
    let inwards = udp(WEB, "203.0.113.9:53").tuple;
    let outwards = udp("[2001:db8::9]:53", WEB6).tuple;
    let slot = |side, tuple| steering.slot(TenantId(0), side, tuple);
    assert_eq!(slot(IN, &inwards), slot(OUT, &outwards));
}

/// R6146-4 (timers): VPP's cases set_timeouts and session_timeout, as far as one mapping goes.
#[test]
fn mappings_of_a_nat64_live_as_long_as_those_of_a_nat44_and_follow_their_connection() {
    let mut config: ChainConfig = toml::from_str(
        "functions = [\"nat64\"]\n[nat64]\nprefix = \"2001:db8:64::/96\"\n\
         addresses = [\"198.19.0.0/24\"]",
    )
    .unwrap();
    for (udp_s, icmp_s) in [(300, 60), (150, 90)] {
        (config.timeouts.udp_s, config.timeouts.icmp_s) = (udp_s, icmp_s);
        let chain = Chain::new(&config, SLOTS).unwrap();
        let (mut store, external) = mapped(&chain);
        let key = |protocol, inside: &str| state_key::nat_out(TenantId(0), protocol, end(inside));
        assert_eq!(store.lifetimes[&key(17, H)], udp_s);
        assert_eq!(store.lifetimes[&key(1, P)], icmp_s, "kept under the number of ICMP");
        let tcp_key = key(6, H);
        let steps = [
            (OUT, ACK, Life::Established, 7440),
            (IN, FIN, Life::FinOutside, 7440),
            (OUT, FIN, Life::Closing, 240),
            (OUT, SYN, Life::Opening, 240),
        ];
        assert_eq!(store.lifetimes[&tcp_key], 240);
        for (side, flags, life, ttl_s) in steps {
            let packet = match side {
                OUT => tcp(flags, H, WEB6),
                IN => tcp(flags, WEB, &external[0].to_string()),
            };
            store.send(&chain, side, &packet).0.unwrap();
            let mapping = Mapping::decode(&store.entries[&tcp_key].value);
            assert_eq!((mapping.life, store.lifetimes[&tcp_key]), (life, ttl_s));
            assert_eq!(mapping.remote, Remote::of(&end(WEB)), "followed by its IPv4 endpoint");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_nat64_agrees_with_the_model(
        events in nat_model::any_events(),
        which in 0..3usize,
    ) {
        let mut config = ChainConfig::named(&["nat64"]).unwrap();
        let prefixes = ["2001:db8:64::/96", "2001:db8:64::/48", "2001:db9::/32"];
        let prefix = prefixes[which].parse().unwrap();
        config.nat64.as_mut().unwrap().prefix = prefix;
        let chain = Chain::new(&config, SLOTS).unwrap();
        nat_model::run(&chain, &nat_model::Net { prefix: Some(prefix) }, &events);
    }
}
