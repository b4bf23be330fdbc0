//! Chains: order, affinity, configuration errors, and real frames there and back.

use super::*;
use crate::nf::nat_filter::Filtering;
use crate::nf::test_store::{
    ACK, FIN, RST, SYN, SYN_ACK, TestStore, echo, end, error, tcp, tuple, udp,
};
use crate::packet::parsed::Transport;
use crate::packet::{PacketBuilder, parse};
use crate::rewrite;
use crate::static_config::StaticConfig;
use crate::verdict::DropReason;
use proptest::prelude::*;

fn chain(functions: &[&str]) -> Chain {
    Chain::new(&ChainConfig::named(functions).unwrap(), 64).unwrap()
}

#[test]
fn functions_are_passed_in_order_from_inside_and_in_reverse_from_outside() {
    let chain = chain(&["firewall", "nat"]);
    let names = |side| {
        let stages = (0..4).map_while(|stage| chain.function(side, stage));
        stages.map(NetworkFunction::name).collect::<Vec<_>>()
    };
    assert_eq!(names(Side::Inside), ["firewall", "nat"]);
    assert_eq!(names(Side::Outside), ["nat", "firewall"]);
    assert_eq!((chain.len(), chain.is_empty()), (2, false));
}

#[test]
fn affinity_is_what_the_functions_need() {
    let rows: [(&[&str], Affinity); 7] = [
        (&["firewall"], Affinity::FiveTuple),
        (&["nat"], Affinity::InsideHost),
        (&["firewall", "nat"], Affinity::InsideHost),
        (&["nat64"], Affinity::InsideHost),
        (&["firewall", "nat", "nat64"], Affinity::InsideHost),
        (&["load-balancer"], Affinity::OutsideEndpoint),
        (&["firewall", "load-balancer"], Affinity::OutsideEndpoint),
    ];
    for (functions, affinity) in rows {
        let chain = chain(functions);
        assert_eq!(chain.affinity(), affinity, "{functions:?}");
        let nats = functions.iter().filter(|name| name.starts_with("nat")).count();
        assert_eq!(chain.pools().len(), nats);
        assert_eq!((chain.steering(1).slots(), chain.slots()), (64, 64));
    }
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let base = |functions: &[&str]| ChainConfig::named(functions).unwrap();
    let change = |mut config: ChainConfig, change: &dyn Fn(&mut ChainConfig)| {
        change(&mut config);
        config
    };
    let rows = [
        (base(&[]), 64, "a chain needs at least one function"),
        (base(&["nat", "nat"]), 64, "nat stands twice in the chain"),
        (base(&["nat", "load-balancer"]), 64, "nat and load-balancer cannot be in one chain"),
        (base(&["nat", "firewall"]), 64, "write functions = [\"firewall\", \"nat\"]"),
        (change(base(&["nat"]), &|c| c.nat = None), 64, "needs a section [chain.nat]"),
        (
            change(base(&["load-balancer"]), &|c| c.load_balancer = None),
            64,
            "needs a section [chain.load_balancer]",
        ),
        (
            change(base(&["nat"]), &|c| c.firewall = Some(FirewallConfig::default())),
            64,
            "there is a section [chain.firewall], but functions does not list firewall",
        ),
        (base(&["nat"]), 63, "a power of two of slots up to 65536, not 63"),
        (base(&["nat"]), 131_072, "not 131072"),
        (base(&["nat"]), 0, "not 0"),
        (
            change(base(&["nat"]), &|c| {
                c.nat.as_mut().unwrap().addresses = vec!["198.19.0.1".parse().unwrap()];
            }),
            1024,
            "1024 slots cannot share 1008 port blocks; give the pool more addresses",
        ),
        (
            change(base(&["nat"]), &|c| c.nat.as_mut().unwrap().addresses.clear()),
            64,
            "the NAT's pool: a pool needs 1 to 4096 addresses, this one has 0",
        ),
        (
            change(base(&["nat"]), &|c| {
                let ranges = ["10.0.0.0/20", "10.1.0.0/20", "10.2.0.0/20"];
                c.nat.as_mut().unwrap().addresses = ranges.map(|r| r.parse().unwrap()).to_vec();
            }),
            64,
            "a pool needs 1 to 4096 addresses, this one has 4097",
        ),
        (
            change(base(&["nat"]), &|c| c.nat.as_mut().unwrap().port_blocks_per_subscriber = 0),
            64,
            "port_blocks_per_subscriber is 0",
        ),
        (
            change(base(&["firewall"]), &|c| {
                c.firewall.as_mut().unwrap().rules.push("allow everything".to_owned());
            }),
            64,
            "firewall rule 1 ('allow everything'): word 2, 'everything', is wrong",
        ),
        (
            change(base(&["load-balancer"]), &|c| c.load_balancer.as_mut().unwrap().table_size = 8),
            64,
            "the load balancer: a table cannot have 8 places",
        ),
    ];
    for (config, slots, message) in rows {
        let error = Chain::new(&config, slots).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn chains_with_a_nat64_that_cannot_be_are_refused() {
    let base = |functions: &[&str]| ChainConfig::named(functions).unwrap();
    let without_section = ChainConfig { nat64: None, ..base(&["nat64"]) };
    let mut overlapping = base(&["nat", "nat64"]);
    overlapping.nat64.as_mut().unwrap().addresses = vec!["198.19.0.128/25".parse().unwrap()];
    let rows = [
        (base(&["nat64", "load-balancer"]), "nat64 and load-balancer cannot be in one chain"),
        (base(&["nat64", "firewall"]), "write functions = [\"firewall\", \"nat64\"]"),
        (without_section, "needs a section [chain.nat64]"),
        (overlapping, "address 198.19.0.128 is in the pools of both nat and nat64"),
    ];
    for (config, message) in rows {
        let error = Chain::new(&config, 64).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn exceptions_of_a_nat_that_cannot_be_are_refused() {
    let refusal = |change: &dyn Fn(&mut NatConfig)| {
        let mut config = ChainConfig::named(&["nat"]).unwrap();
        change(config.nat.as_mut().unwrap());
        Chain::new(&config, 64).unwrap_err().to_string()
    };
    let said = refusal(&|nat| nat.untranslated = vec!["10.0.0.0/8".parse().unwrap(); 65]);
    assert!(said.contains("untranslated has 65 prefixes; at most 64 are looked through"), "{said}");
    let mapping = StaticConfig {
        external: "203.0.113.9".parse().unwrap(),
        inside: "10.0.0.9".parse().unwrap(),
        protocol: None,
    };
    let said = refusal(&|nat| nat.static_mappings = vec![mapping; 2]);
    assert!(said.contains("the static mappings of 203.0.113.9 overlap"), "{said}");
    let mut config = ChainConfig::named(&["nat", "nat64"]).unwrap();
    config.nat.as_mut().unwrap().static_mappings = vec![mapping];
    let six = |inside: &str| StaticConfig { inside: inside.parse().unwrap(), ..mapping };
    config.nat64.as_mut().unwrap().static_mappings = vec![six("2001:db8::9")];
    let said = Chain::new(&config, 64).unwrap_err().to_string();
    assert!(said.contains("the static mappings of 203.0.113.9 overlap"), "of both: {said}");
    config.nat.as_mut().unwrap().static_mappings.clear();
    assert!(Chain::new(&config, 64).is_ok());
    config.nat64.as_mut().unwrap().static_mappings = vec![six("2001:db8:64::9")];
    let said = Chain::new(&config, 64).unwrap_err().to_string();
    assert!(said.contains("lies behind the prefix 2001:db8:64::/96"), "{said}");
}

#[test]
fn firewall_and_nat_ask_for_one_transaction_and_agree_on_the_inside_addresses() {
    let chain = chain(&["firewall", "nat"]);
    let mut store = TestStore::new(&chain);
    let (host, remote) = ("10.0.0.1:1000", "192.0.2.1:80");
    let (sent, changes) = store.send(&chain, Side::Inside, &tcp(SYN, host, remote));
    let external = sent.unwrap().source;
    assert_eq!((changes.conditions.len(), changes.writes.len()), (2, 4));
    assert_eq!(store.entries.len(), 3);

    let external = external.to_string();
    let answer = tcp(SYN_ACK, remote, &external);
    let (sent, changes) = store.send(&chain, Side::Outside, &answer);
    assert_eq!(sent, Ok(tuple(6, remote, host)));
    assert_eq!(changes.writes.len(), 1, "the connection moves on");
    let about = error(6, remote, &external);
    assert_eq!(store.send(&chain, Side::Outside, &about).0, Ok(tuple(6, remote, host)));
    // A stranger at the mapping: the NAT would let it in, the firewall does not.
    let stranger = tcp(SYN, "203.0.113.9:80", &external);
    assert_eq!(store.send(&chain, Side::Outside, &stranger).0, Err(DropReason::NoState));
    let routed = udp(remote, "10.0.0.7:53");
    assert_eq!(store.send(&chain, Side::Outside, &routed).0, Err(DropReason::NoState));
    // What the firewall drops makes no mapping, and what the NAT drops makes no flow.
    let before = store.entries.clone();
    let midstream = tcp(ACK, "10.0.0.2:1", remote);
    assert_eq!(store.send(&chain, Side::Inside, &midstream).0, Err(DropReason::TcpMidstream));
    assert_eq!(store.entries, before);
}

#[test]
fn an_echo_goes_through_firewall_and_nat_and_back() {
    let chain = chain(&["firewall", "nat"]);
    let mut store = TestStore::new(&chain);
    let request = echo(true, "10.0.0.1:77", "192.0.2.1:77");
    let sent = store.send(&chain, Side::Inside, &request).0.unwrap();
    assert_eq!(sent.source.port, sent.destination.port, "one identifier");
    let reply = echo(false, &sent.destination.to_string(), &sent.source.to_string());
    let (sent, changes) = store.send(&chain, Side::Outside, &reply);
    assert_eq!(sent, Ok(request.tuple.reversed()));
    assert!(changes.is_empty());
}

#[test]
fn firewall_and_balancer_agree_on_the_backend() {
    for order in [["firewall", "load-balancer"], ["load-balancer", "firewall"]] {
        check_firewall_and_balancer(&chain(&order));
    }
}

fn check_firewall_and_balancer(chain: &Chain) {
    let mut store = TestStore::new(chain);
    let (client, service) = ("192.0.2.1:5000", "203.0.113.80:80");
    let (sent, changes) = store.send(chain, Side::Outside, &tcp(SYN, client, service));
    let backend = sent.unwrap().destination;
    assert_eq!((changes.conditions.len(), changes.writes.len()), (2, 3));
    let answer = tcp(SYN_ACK, &backend.to_string(), client);
    assert_eq!(
        store.send(chain, Side::Inside, &answer).0,
        Ok(FlowTuple { protocol: 6, source: end(service), destination: end(client) })
    );
    // A segment from the middle: the balancer would choose, the firewall does not let it.
    let before = store.entries.clone();
    let midstream = tcp(ACK, "192.0.2.1:5001", service);
    assert_eq!(store.send(chain, Side::Outside, &midstream).0, Err(DropReason::TcpMidstream));
    assert_eq!(store.entries, before);
}

/// A frame through parser, chain and rewriting, as a pipe takes it.
fn send_frame(
    store: &mut TestStore,
    chain: &Chain,
    side: Side,
    frame: &[u8],
) -> Result<Vec<u8>, DropReason> {
    let parsed = parse(frame)?;
    let tuple = store.send(chain, side, &parsed).0?;
    let mut sent = frame.to_vec();
    rewrite::apply(&mut sent, &parsed, &tuple);
    // Parsing verifies every checksum (N8).
    assert_eq!(parse(&sent).unwrap().tuple, tuple, "what leaves is what the chain decided");
    assert_eq!(sent.len(), frame.len());
    Ok(sent)
}

#[test]
fn real_frames_of_every_kind_go_through_firewall_and_nat_and_come_back() {
    let chain = chain(&["firewall", "nat"]);
    let (host, remote) = (end("10.0.0.1:1000"), end("192.0.2.1:80"));
    let (pinger, pinged) = (end("10.0.0.1:77"), end("192.0.2.1:77"));
    let router = end("203.0.113.1:1");
    let requests = [
        PacketBuilder::tcp(host, remote).flags(SYN).build(),
        PacketBuilder::udp(host, remote).payload(b"question").build(),
        PacketBuilder::udp(host, remote).no_checksum().vlan(7).build(),
        PacketBuilder::echo_request(pinger, pinged).payload(b"ping").build(),
    ];
    for request in requests {
        let mut store = TestStore::new(&chain);
        let sent = send_frame(&mut store, &chain, Side::Inside, &request).unwrap();
        let outer = parse(&sent).unwrap();
        assert!(chain.pools()[0].holds(outer.tuple.source.ipv4().unwrap()));

        let (from, to) = (outer.tuple.destination, outer.tuple.source);
        let answer = match outer.transport {
            Transport::Tcp { .. } => PacketBuilder::tcp(from, to).flags(SYN_ACK).build(),
            Transport::Udp => PacketBuilder::udp(from, to).payload(b"answer").build(),
            _ => PacketBuilder::echo_reply(from, to).payload(b"ping").build(),
        };
        let received = send_frame(&mut store, &chain, Side::Outside, &answer).unwrap();
        let inner = parse(&request).unwrap().tuple;
        assert_eq!(parse(&received).unwrap().tuple, inner.reversed());

        // A router outside has something to say about what left, the host about what it got.
        let unreachable = PacketBuilder::icmp_error(router, (3, 1), &sent).build();
        let told = send_frame(&mut store, &chain, Side::Outside, &unreachable).unwrap();
        assert_eq!(parse(&told).unwrap().tuple, inner.reversed());
        let refused = PacketBuilder::icmp_error(host, (3, 3), &received).build();
        let said = send_frame(&mut store, &chain, Side::Inside, &refused).unwrap();
        assert_eq!(parse(&said).unwrap().tuple, outer.tuple);

        // The same errors where nothing is known.
        let mut empty = TestStore::new(&chain);
        for (side, frame) in [(Side::Outside, &unreachable), (Side::Inside, &refused)] {
            let sent = send_frame(&mut empty, &chain, side, frame);
            assert_eq!(sent, Err(DropReason::IcmpUnrelated));
        }
    }
}

#[test]
fn real_frames_go_to_a_backend_and_its_answers_come_from_the_service() {
    let chain = chain(&["load-balancer"]);
    let mut store = TestStore::new(&chain);
    let (client, service) = (end("192.0.2.1:5000"), end("203.0.113.80:80"));
    let request = PacketBuilder::tcp(client, service).flags(SYN).build();
    let sent = send_frame(&mut store, &chain, Side::Outside, &request).unwrap();
    let backend = parse(&sent).unwrap().tuple.destination;
    assert_ne!(backend, service);
    let answer = PacketBuilder::tcp(backend, client).flags(SYN_ACK).build();
    let received = send_frame(&mut store, &chain, Side::Inside, &answer).unwrap();
    assert_eq!(parse(&received).unwrap().tuple.source, service);
    let unreachable = PacketBuilder::icmp_error(end("203.0.113.1:1"), (3, 1), &received).build();
    let told = send_frame(&mut store, &chain, Side::Outside, &unreachable).unwrap();
    assert_eq!(parse(&told).unwrap().tuple.destination, backend);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever comes in, in whatever order: every packet is decided after at most one commit,
    /// again in the same way, and all state it reads lies in its own slot. The store checks it.
    #[test]
    fn any_packets_through_every_chain(
        which in 0..12usize,
        packets in proptest::collection::vec(
            (any::<bool>(), 0..5u8, 0..4u8, 0..3u16, any::<bool>(), 0..5usize), 1..60)
    ) {
        use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
        let chains: [(&[&str], Filtering); 12] = [
            (&["firewall"], EndpointIndependent),
            (&["nat"], EndpointIndependent),
            (&["nat"], AddressDependent),
            (&["nat"], AddressAndPortDependent),
            (&["firewall", "nat"], EndpointIndependent),
            (&["firewall", "nat"], AddressDependent),
            (&["load-balancer"], EndpointIndependent),
            (&["firewall", "load-balancer"], EndpointIndependent),
            (&["nat64"], EndpointIndependent),
            (&["nat64"], AddressAndPortDependent),
            (&["firewall", "nat64"], AddressDependent),
            (&["firewall", "nat", "nat64"], EndpointIndependent),
        ];
        let (functions, filtering) = chains[which];
        let mut config = ChainConfig::named(functions).unwrap();
        config.nat.iter_mut().for_each(|nat| nat.filtering = filtering);
        config.nat64.iter_mut().for_each(|nat| nat.filtering = filtering);
        let chain = Chain::new(&config, 64).unwrap();
        let mut store = TestStore::new(&chain);
        for (outbound, kind, host, port, six, flags) in packets {
            let near = if six {
                format!("[2001:db8::{host}]:{}", 1000 + port)
            } else if outbound || host < 2 {
                format!("10.0.1.{host}:8080")
            } else if host == 2 {
                "203.0.113.80:80".to_owned()
            } else {
                format!("198.19.{}.{host}:{}", flags % 2, 1024 + port)
            };
            let far = match (six, outbound && flags > 0) {
                (true, true) => "[2001:db8:64::192.0.2.1]:8080",
                (true, false) => "[2001:db8:f::1]:8080",
                (false, _) => "192.0.2.1:8080",
            };
            let far = far.to_owned();
            let (side, from, to) =
                if outbound { (Side::Inside, near, far) } else { (Side::Outside, far, near) };
            let identifier = |text: &str| {
                format!("{}:{}", text.rsplit_once(':').unwrap().0, 7 + port)
            };
            let packet = match kind {
                0 => udp(&from, &to),
                1 => echo(flags % 2 == 0, &identifier(&from), &identifier(&to)),
                2 => error(6, &from, &to),
                _ => tcp([SYN, SYN_ACK, ACK, FIN, RST][flags], &from, &to),
            };
            let (sent, _) = store.send(&chain, side, &packet);
            if let Ok(sent) = sent {
                prop_assert_eq!(sent.source.ipv4().is_some(), sent.destination.ipv4().is_some());
                let crossed =
                    sent.source.ipv4().is_some() != packet.tuple.source.ipv4().is_some();
                prop_assert!(!crossed || functions.contains(&"nat64"));
                let protocol = match packet.tuple.protocol {
                    1 if crossed => 58,
                    58 if crossed => 1,
                    protocol => protocol,
                };
                prop_assert_eq!(sent.protocol, protocol);
            }
        }
    }
}

/// RFC 4787 REQ-3: whichever NAT gives out the port, it has one holder.
#[test]
fn a_static_end_lies_in_no_pool_of_the_chain() {
    let chain = |external: &str, port: u16| {
        let text = format!(
            "functions = [\"nat\", \"nat64\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]\n\
             [[nat.static]]\nexternal = \"{external}:{port}\"\ninside = \"10.0.0.1:22\"\n\
             protocol = \"tcp\"\n[nat64]\naddresses = [\"198.19.1.0/28\"]"
        );
        Chain::new(&toml::from_str(&text).unwrap(), 64)
    };
    let said = chain("198.19.1.3", 5000).unwrap_err().to_string();
    assert!(said.contains("198.19.1.3") && said.contains("the other NAT"), "{said}");
    chain("198.19.1.3", 22).unwrap();
    chain("198.19.2.3", 5000).unwrap();
}
