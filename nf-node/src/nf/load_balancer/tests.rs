//! The balancer: tables of packets, changes of backends, and a model on random packets.

use super::*;
use crate::chain::Chain;
use crate::chain_config::{
    BackendConfig, ChainConfig, LoadBalancerConfig, ServiceConfig, ServiceProtocol,
};
use crate::nf::test_store::{ACK, RST, SYN, SYN_ACK, TestStore, echo, end, error, tcp, udp};
use crate::packet::parsed::Parsed;
use nearstate_placement::FlowTuple;
use nearstate_store::TenantId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const VIRTUAL: &str = "203.0.113.80:80";
const CLIENT: &str = "192.0.2.1:5000";

/// One TCP service whose backends are 10.0.1.N:8080 with these weights; and its epoch.
fn config(backends: &[(u8, u16)], epoch: u64) -> ChainConfig {
    let backends = backends.iter().map(|(last, weight)| BackendConfig {
        endpoint: ([10, 0, 1, *last], 8080).into(),
        weight: *weight,
    });
    let service = ServiceConfig {
        protocol: ServiceProtocol::Tcp,
        address: VIRTUAL.parse().unwrap(),
        backends: backends.collect(),
    };
    let mut config = ChainConfig::named(&["load-balancer"]).unwrap();
    config.load_balancer =
        Some(LoadBalancerConfig { seed: 11, epoch, table_size: 1009, service: vec![service] });
    config
}

fn chain(backends: &[(u8, u16)], epoch: u64) -> Chain {
    Chain::new(&config(backends, epoch), 16).unwrap()
}

fn send(store: &mut TestStore, chain: &Chain, packet: &Parsed) -> Result<Endpoint, DropReason> {
    store.send(chain, Side::Outside, packet).0.map(|tuple| tuple.destination)
}

#[test]
fn the_first_packet_chooses_and_both_directions_follow() {
    let chain = chain(&[(1, 1), (2, 1), (3, 1)], 4);
    let mut store = TestStore::new(&chain);
    let (sent, changes) = store.send(&chain, Side::Outside, &tcp(SYN, CLIENT, VIRTUAL));
    let backend = sent.unwrap().destination;
    assert_eq!(sent.unwrap().source, end(CLIENT), "the client's address is kept");
    let (there, back) = (
        state_key::balance(TenantId(0), 6, end(CLIENT), end(VIRTUAL)),
        state_key::balance_reply(TenantId(0), 6, end(CLIENT), backend),
    );
    assert_eq!(changes.conditions[..], [Condition::Absent(there)]);
    let put = |key, to| Write::Put {
        key,
        value: Choice { to, epoch: 4 }.encode(),
        fill: Fill::default(),
        ttl_s: 7440,
    };
    assert_eq!(changes.writes[..], [put(there, backend), put(back, end(VIRTUAL))]);

    let later = store.send(&chain, Side::Outside, &tcp(ACK, CLIENT, VIRTUAL));
    assert_eq!(later, (sent, Changes::default()));
    let answer = tcp(SYN_ACK, &backend.to_string(), CLIENT);
    let (sent, changes) = store.send(&chain, Side::Inside, &answer);
    assert_eq!(sent.unwrap(), tcp(SYN, VIRTUAL, CLIENT).tuple);
    assert!(changes.is_empty());
}

#[test]
fn packets_at_a_balancer_with_one_flow() {
    use DropReason::{IcmpUnrelated, TcpMidstream};
    let (inside, outside) = (Side::Inside, Side::Outside);
    // B is the flow's backend.
    type Row = (&'static str, Side, Parsed, Result<(&'static str, &'static str), DropReason>);
    let chain = chain(&[(1, 1)], 0);
    let backend = "10.0.1.1:8080";
    let (other, plain) = ("192.0.2.9:1", "203.0.113.80:81");
    let rows: [Row; 12] = [
        ("a reset of the flow", outside, tcp(RST, CLIENT, VIRTUAL), Ok((CLIENT, backend))),
        ("a reset of no flow", outside, tcp(RST, other, VIRTUAL), Err(TcpMidstream)),
        ("an error about an answer", outside, error(6, CLIENT, VIRTUAL), Ok((CLIENT, backend))),
        ("an error about nothing", outside, error(6, other, VIRTUAL), Err(IcmpUnrelated)),
        ("another port is no service", outside, tcp(SYN, CLIENT, plain), Ok((CLIENT, plain))),
        ("another protocol is no service", outside, udp(CLIENT, VIRTUAL), Ok((CLIENT, VIRTUAL))),
        (
            "an echo to the virtual address",
            outside,
            echo(true, "192.0.2.1:3", "203.0.113.80:3"),
            Ok(("192.0.2.1:3", "203.0.113.80:3")),
        ),
        ("an answer", inside, tcp(ACK, backend, CLIENT), Ok((VIRTUAL, CLIENT))),
        ("an error from the backend", inside, error(6, backend, CLIENT), Ok((VIRTUAL, CLIENT))),
        ("the backend to others", inside, tcp(SYN, backend, other), Ok((backend, other))),
        ("no backend", inside, tcp(SYN, "10.0.9.9:1", CLIENT), Ok(("10.0.9.9:1", CLIENT))),
        ("UDP of a backend", inside, udp(backend, CLIENT), Ok((backend, CLIENT))),
    ];
    for (what, side, packet, expected) in rows {
        let mut store = TestStore::new(&chain);
        assert!(send(&mut store, &chain, &tcp(SYN, CLIENT, VIRTUAL)).is_ok());
        let before = store.entries.clone();
        let (sent, changes) = store.send(&chain, side, &packet);
        let expected = expected.map(|(source, destination)| FlowTuple {
            protocol: packet.tuple.protocol,
            source: end(source),
            destination: end(destination),
        });
        assert_eq!(sent, expected, "{what}");
        assert!(changes.is_empty() && before == store.entries, "{what}: changed the store");
    }
}

#[test]
fn a_segment_from_the_middle_chooses_as_a_syn_would() {
    let chain = chain(&[(1, 1), (2, 1), (3, 1), (4, 1)], 0);
    for port in 1..50 {
        let client = format!("192.0.2.1:{port}");
        let (mut one, mut other) = (TestStore::new(&chain), TestStore::new(&chain));
        assert_eq!(
            send(&mut one, &chain, &tcp(SYN, &client, VIRTUAL)),
            send(&mut other, &chain, &tcp(ACK, &client, VIRTUAL)),
        );
    }
}

#[test]
fn without_backends_nothing_passes_but_what_has_one() {
    let (all, drained, none) = (chain(&[(1, 1)], 0), chain(&[(1, 0)], 1), chain(&[], 2));
    let mut store = TestStore::new(&all);
    let packet = tcp(SYN, CLIENT, VIRTUAL);
    assert_eq!(send(&mut store, &none, &packet), Err(DropReason::NoBackend));
    assert_eq!(send(&mut store, &drained, &packet), Err(DropReason::NoBackend));
    assert!(store.entries.is_empty());
    let backend = send(&mut store, &all, &packet).unwrap();
    assert_eq!(send(&mut store, &drained, &packet), Ok(backend), "drained keeps its flows");
    assert_eq!(send(&mut store, &none, &packet), Err(DropReason::NoBackend));
}

#[test]
fn when_a_backend_is_removed_its_flows_choose_anew_and_an_older_node_believes_them() {
    let (old, new) = (chain(&[(1, 1), (2, 1)], 1), chain(&[(3, 1), (2, 1)], 2));
    let mut store = TestStore::new(&old);
    let mut moved = 0;
    for port in 1..200 {
        let packet = tcp(SYN, &format!("192.0.2.1:{port}"), VIRTUAL);
        let before = send(&mut store, &old, &packet).unwrap();
        let stale = tcp(RST, &format!("192.0.2.1:{port}"), VIRTUAL);
        let is_removed = before == end("10.0.1.1:8080");
        if is_removed {
            assert_eq!(send(&mut store, &new, &stale), Err(DropReason::TcpMidstream));
        }
        let after = send(&mut store, &new, &packet).unwrap();
        assert_ne!(after, end("10.0.1.1:8080"));
        assert_eq!(before != after, is_removed, "L2: only its own flows move");
        assert_eq!(send(&mut store, &old, &packet), Ok(after), "L3: the newer choice stands");
        assert_eq!(store.entries.len(), 2 * port, "the old answer's entry is gone");
        moved += usize::from(is_removed);
    }
    assert!((50..150).contains(&moved), "{moved} of 199 flows were at the removed backend");
}

#[test]
fn a_new_choice_holds_only_on_the_version_of_the_old_one() {
    let (old, new) = (chain(&[(1, 1)], 1), chain(&[(2, 1)], 2));
    let mut store = TestStore::new(&old);
    let packet = tcp(ACK, CLIENT, VIRTUAL);
    send(&mut store, &old, &packet).unwrap();
    let key = state_key::balance(TenantId(0), 6, end(CLIENT), end(VIRTUAL));
    let version = store.entries[&key].version;
    let (_, changes) = store.send(&new, Side::Outside, &packet);
    assert_eq!(changes.conditions[..], [Condition::Version(key, version)]);
    let reply = state_key::balance_reply(TenantId(0), 6, end(CLIENT), end("10.0.1.1:8080"));
    assert_eq!(changes.writes[0], Write::Delete(reply));
}

#[test]
fn services_that_cannot_be_are_refused() {
    let share = |endpoint: &str| Share { endpoint: end(endpoint), weight: 1 };
    let service = |address: &str, backends: &[&str]| Service {
        protocol: 6,
        address: end(address),
        backends: backends.iter().map(|backend| share(backend)).collect(),
    };
    let new = |services, table_size| {
        let balancing = Balancing { table_size, ..Balancing::default() };
        LoadBalancer::new(services, balancing).map(|_| ()).map_err(|error| error.to_string())
    };
    let (v1, v2, b1, b2) = (VIRTUAL, "203.0.113.81:80", "10.0.1.1:8080", "10.0.1.2:8080");
    let rows = [
        (vec![service(v1, &[b1]), service(v2, &[b2])], 1009, Ok(())),
        (vec![service(v1, &[b1])], 1010, Err("a table cannot have 1010 places")),
        (vec![service(v1, &[b1]), service(v1, &[b2])], 1009, Err("two services have the address")),
        (vec![service(v1, &[b1]), service(v2, &[b1])], 1009, Err("backend 10.0.1.1:8080 stands")),
        (vec![service(v1, &[b1, b1])], 1009, Err("backend 10.0.1.1:8080 stands twice")),
        (vec![service(v1, &["[2001:db8::1]:1"])], 1009, Err("are not of one IP version")),
        (vec![service(v1, &[v2]), service(v2, &[b1])], 1009, Err("is a service's address")),
    ];
    for (services, size, expected) in rows {
        match (new(services, size), expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }
    let many = (0..=SERVICES_MAX as u16)
        .map(|port| service(&format!("203.0.113.1:{}", port + 1), &[]))
        .collect();
    assert!(new(many, 1009).unwrap_err().contains("at most 256 services"));
    let mut crowded = service(v1, &[]);
    crowded.backends = (0..=BACKENDS_MAX as u16)
        .map(|port| Share { endpoint: Endpoint::v4([10, 0, 0, 1], port), weight: 1 })
        .collect();
    assert!(new(vec![crowded], 1009).unwrap_err().contains("has 1025 backends"));
}

#[test]
fn a_choice_is_read_back_and_explained() {
    let choice = Choice { to: end("10.0.1.1:8080"), epoch: 0x0102_0304 };
    assert_eq!(Choice::decode(&choice.encode()), choice);
    let bytes = choice.encode().to_bytes();
    assert_eq!(bytes[10..18], [0xff, 0xff, 10, 0, 1, 1, 0x1f, 0x90]);
    assert_eq!(bytes[24..30], [4, 3, 2, 1, 0, 0]);
    let balancer = LoadBalancer::new(vec![], Balancing::default()).unwrap();
    let version = nearstate_store::Version(1);
    let entry = Entry { value: choice.encode(), version, slot: nearstate_store::SlotId(0) };
    let key = state_key::balance(TenantId(0), 6, end(CLIENT), end(VIRTUAL));
    let said = balancer.describe(&key, Some(&entry));
    assert!(said.starts_with("client 192.0.2.1:5000 of 203.0.113.80:80 goes to backend 10.0.1.1"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// L1 and L2 while the set of backends changes: a flow leaves its backend only when that one
    /// is gone from the configuration.
    #[test]
    fn a_flow_keeps_its_backend_until_it_is_removed(
        events in proptest::collection::vec((any::<bool>(), 0..40u16, 1..=6u8, 0..3u16), 1..80)
    ) {
        let mut weights: BTreeMap<u8, u16> = BTreeMap::from([(1, 1), (2, 1)]);
        let mut epoch = 0;
        let listed = |weights: &BTreeMap<u8, u16>| -> Vec<(u8, u16)> {
            weights.iter().map(|(last, weight)| (*last, *weight)).collect()
        };
        let mut chain = chain(&listed(&weights), epoch);
        let mut store = TestStore::new(&chain);
        let mut flows: BTreeMap<u16, Endpoint> = BTreeMap::new();
        for (is_packet, port, backend, weight) in events {
            if !is_packet {
                // Weight 2 stands for removal here.
                if weight == 2 {
                    weights.remove(&backend);
                } else {
                    weights.insert(backend, weight);
                }
                epoch += 1;
                chain = self::chain(&listed(&weights), epoch);
                continue;
            }
            let packet = tcp(ACK, &format!("192.0.2.1:{}", port + 1), VIRTUAL);
            let sent = send(&mut store, &chain, &packet);
            let known: BTreeSet<Endpoint> =
                weights.keys().map(|last| Endpoint::v4([10, 0, 1, *last], 8080)).collect();
            match (flows.get(&port).filter(|backend| known.contains(backend)), sent) {
                (Some(kept), sent) => prop_assert_eq!(sent, Ok(*kept), "L1"),
                (None, Ok(chosen)) => {
                    let [.., last] = chosen.ipv4().unwrap().octets();
                    prop_assert!(weights[&last] > 0, "L2: no new flow goes to a drained backend");
                    flows.insert(port, chosen);
                }
                (None, Err(reason)) => {
                    prop_assert_eq!(reason, DropReason::NoBackend);
                    prop_assert!(weights.values().all(|weight| *weight == 0));
                }
            }
        }
    }
}
