//! For tests: a NAT as RFC 4787 and RFC 6146 describe it in its simplest form, one map from inside
//! to external endpoints, and random packets that the real one and the model see alike.
//!
//! After every packet the mapping is a bijection, in the store as well, and no port has leaked;
//! when everything has idled out there is nothing left.

use crate::chain::Chain;
use crate::nat64_prefix::Nat64Prefix;
use crate::nf::Changes;
use crate::nf::nat44::Mapping;
use crate::nf::state_key;
use crate::nf::test_store::{ACK, FIN, RST, SYN, TestStore, parsed};
use crate::packet::parsed::{Parsed, Transport};
use crate::verdict::DropReason;
use core::net::Ipv6Addr;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Endpoint, TenantId, Write};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Few hosts, ports and remotes, so that flows meet.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Out { protocol: u8, host: u8, port: u16, remote: u8, flags: u8 },
    In { protocol: u8, which: usize, remote: u8, flags: u8 },
    InToUnknown { protocol: u8, last: u8, port: u16 },
    Error { protocol: u8, which: usize, is_outbound: bool },
}

fn any_event() -> impl Strategy<Value = Event> {
    let protocol = || prop_oneof![Just(1u8), Just(6), Just(17)];
    let flags = || prop_oneof![Just(SYN), Just(ACK), Just(RST), Just(FIN)];
    prop_oneof![
        6 => (protocol(), 0..6u8, 0..5u16, 0..4u8, flags()).prop_map(
            |(protocol, host, port, remote, flags)| Event::Out {
                protocol, host, port: 1000 + port, remote, flags
            }),
        4 => (protocol(), any::<usize>(), 0..4u8, flags()).prop_map(
            |(protocol, which, remote, flags)| Event::In { protocol, which, remote, flags }),
        1 => (protocol(), any::<u8>(), 1..=u16::MAX).prop_map(
            |(protocol, last, port)| Event::InToUnknown { protocol, last, port }),
        1 => (protocol(), any::<usize>(), any::<bool>()).prop_map(
            |(protocol, which, is_outbound)| Event::Error { protocol, which, is_outbound }),
    ]
}

pub(crate) fn any_events() -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec(any_event(), 1..120)
}

/// How inside hosts look and what they see: IPv6 and the world behind a prefix, if there is one.
pub(crate) struct Net {
    pub(crate) prefix: Option<Nat64Prefix>,
}

impl Net {
    fn host(&self, host: u8, port: u16) -> Endpoint {
        match self.prefix {
            None => Endpoint::v4([10, 0, 0, host], port),
            Some(_) => {
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into());
                Endpoint::new(address.into(), port)
            }
        }
    }

    /// A remote end as inside hosts see it.
    fn seen(&self, remote: Endpoint) -> Endpoint {
        match (self.prefix, remote.ipv4()) {
            (Some(prefix), Some(address)) => {
                Endpoint { address: prefix.embed(address), port: remote.port }
            }
            _ => remote,
        }
    }

    /// The protocol number inside of one of IPv4.
    fn protocol_inside(&self, protocol: u8) -> u8 {
        if protocol == 1 && self.prefix.is_some() { 58 } else { protocol }
    }

    fn packet(
        &self,
        (side, protocol): (Side, u8),
        is_query: bool,
        flags: u8,
        (source, to): (Endpoint, Endpoint),
    ) -> Parsed {
        let transport = match protocol {
            1 => Transport::Echo { request: is_query },
            6 => Transport::Tcp { flags },
            _ => Transport::Udp,
        };
        let protocol = if side == Side::Inside { self.protocol_inside(protocol) } else { protocol };
        let mut tuple = FlowTuple { protocol, source, destination: to };
        if matches!(transport, Transport::Echo { .. }) {
            let identifier = if is_query { source.port } else { to.port };
            (tuple.source.port, tuple.destination.port) = (identifier, identifier);
        }
        parsed(transport, tuple)
    }
}

#[derive(Default)]
struct Model {
    /// By the protocol of IPv4.
    mappings: BTreeMap<(u8, Endpoint), Endpoint>,
}

impl Model {
    fn inside_of(&self, protocol: u8, external: Endpoint) -> Option<Endpoint> {
        let mut holders =
            self.mappings.iter().filter(|((p, _), end)| *p == protocol && **end == external);
        let holder = holders.next().map(|((_, inside), _)| *inside);
        assert!(holders.next().is_none(), "N2: two inside endpoints have {external}");
        holder
    }

    fn nth(&self, protocol: u8, which: usize) -> Option<(Endpoint, Endpoint)> {
        let of_protocol = self.mappings.iter().filter(|((p, _), _)| *p == protocol);
        let all: Vec<_> = of_protocol.map(|((_, inside), end)| (*inside, *end)).collect();
        (!all.is_empty()).then(|| all[which % all.len()])
    }
}

/// Sends all of them, then lets everything idle out.
pub(crate) fn run(chain: &Chain, net: &Net, events: &[Event]) {
    let mut store = TestStore::new(chain);
    let mut model = Model::default();
    for event in events {
        step(chain, (&mut store, net), &mut model, event);
        check_bijection(&store, &model);
    }
    store.idle_out();
    assert!(store.entries.is_empty(), "left over: {:?}", store.entries);
    assert!(store.taken.is_empty(), "leaked: {:?}", store.taken);
}

fn takes(changes: &Changes) -> bool {
    changes.writes.iter().any(|write| matches!(write, Write::Take(_)))
}

fn step(chain: &Chain, (store, net): (&mut TestStore, &Net), model: &mut Model, event: &Event) {
    match *event {
        Event::Out { protocol, host, port, remote, flags } => {
            let (inside, to) = (net.host(host, port), Endpoint::v4([192, 0, 2, remote], 80));
            let ends = (inside, net.seen(to));
            let packet = net.packet((Side::Inside, protocol), true, flags, ends);
            let (sent, _) = store.send(chain, Side::Inside, &packet);
            match model.mappings.get(&(protocol, inside)) {
                Some(external) => {
                    let sent = sent.unwrap();
                    assert_eq!(sent.source, *external, "N3");
                    assert_eq!(sent.destination.address, to.address);
                }
                None if protocol == 6 && flags != SYN => {
                    assert_eq!(sent, Err(DropReason::TcpMidstream));
                }
                None => {
                    let external = sent.unwrap().source;
                    assert!(chain.pools()[0].holds(external.ipv4().unwrap()));
                    assert_eq!(model.inside_of(protocol, external), None, "N2");
                    model.mappings.insert((protocol, inside), external);
                }
            }
        }
        Event::In { protocol, which, remote, flags } => {
            let Some((inside, external)) = model.nth(protocol, which) else { return };
            let from = Endpoint::v4([192, 0, 2, remote], 80);
            let packet = net.packet((Side::Outside, protocol), false, flags, (from, external));
            let (sent, changes) = store.send(chain, Side::Outside, &packet);
            let sent = sent.unwrap();
            assert_eq!(sent.destination, inside, "N1: the way back");
            assert_eq!(sent.source.address, net.seen(from).address);
            assert_eq!(sent.protocol, net.protocol_inside(protocol));
            assert!(!takes(&changes), "N7: an external packet never allocates");
            assert!(protocol == 6 || changes.is_empty(), "N7");
        }
        Event::InToUnknown { protocol, last, port } => {
            let pool = chain.pools()[0].addresses();
            let external = Endpoint::v4(pool[usize::from(last) % pool.len()].octets(), port);
            let ends = (Endpoint::v4([192, 0, 2, 9], 80), external);
            let packet = net.packet((Side::Outside, protocol), false, SYN, ends);
            let (sent, changes) = store.send(chain, Side::Outside, &packet);
            let expected = model.inside_of(protocol, external).ok_or(DropReason::NoMapping);
            assert_eq!(sent.map(|tuple| tuple.destination), expected);
            assert!(changes.is_empty(), "N7");
        }
        Event::Error { protocol, which, is_outbound } => {
            let Some(ends) = model.nth(protocol, which) else { return };
            step_error(chain, (store, net), (protocol, is_outbound), ends);
        }
    }
}

fn step_error(
    chain: &Chain,
    (store, net): (&mut TestStore, &Net),
    (protocol, is_outbound): (u8, bool),
    (inside, external): (Endpoint, Endpoint),
) {
    let inner = if is_outbound { net.protocol_inside(protocol) } else { protocol };
    let transport =
        Transport::IcmpError { inner_ip: 42, inner_transport: 62, inner_protocol: inner };
    let remote = Endpoint::v4([192, 0, 2, 1], 80);
    let (side, source, destination) = if is_outbound {
        (Side::Inside, inside, net.seen(remote))
    } else {
        (Side::Outside, remote, external)
    };
    let parsed = parsed(transport, FlowTuple { protocol: inner, source, destination });
    let (sent, changes) = store.send(chain, side, &parsed);
    let sent = sent.unwrap();
    assert!(changes.is_empty(), "R5508-6");
    if is_outbound {
        assert_eq!(sent.source, external, "R5508-5");
    } else {
        assert_eq!(sent.destination, inside, "R5508-4");
    }
}

/// N1 in the store itself: both entries of each mapping name each other, and there are no others.
fn check_bijection(store: &TestStore, model: &Model) {
    assert_eq!(store.entries.len(), 2 * model.mappings.len());
    assert_eq!(store.taken.len(), model.mappings.len(), "N5: no port leaks");
    for ((protocol, inside), external) in &model.mappings {
        let out = &store.entries[&state_key::nat_out(TenantId(0), *protocol, *inside)];
        let back = &store.entries[&state_key::nat_in(TenantId(0), *protocol, *external)];
        assert_eq!(Mapping::decode(&out.value).to, *external);
        assert_eq!(Mapping::decode(&back.value).to, *inside);
        assert!(store.taken.contains(&(*protocol, *external)));
    }
}
