//! The firewall: tables of packets, and a model beside it on random ones.

use super::*;
use crate::chain::Chain;
use crate::chain_config::{ChainConfig, FirewallConfig};
use crate::nf::test_store::{
    ACK, FIN, RST, SYN, SYN_ACK, TestStore, echo, end, error, parsed, tcp, udp,
};
use crate::packet::parsed::Parsed;
use nearstate_placement::{FlowKey, FlowTuple};
use nearstate_store::{Endpoint, SlotId, TenantId, Version};
use proptest::prelude::*;
use std::collections::BTreeMap;

const IN: Side = Side::Outside;
const OUT: Side = Side::Inside;
/// An inside host and one outside.
const H: &str = "10.0.0.1:1000";
const R: &str = "192.0.2.1:80";

fn chain(rules: &[&str]) -> Chain {
    let mut config = ChainConfig::named(&["firewall"]).unwrap();
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    config.firewall = Some(FirewallConfig { rules, rule_epoch: 5 });
    Chain::new(&config, 16).unwrap()
}

fn out(flags: u8) -> (Side, Parsed) {
    (OUT, tcp(flags, H, R))
}

fn back(flags: u8) -> (Side, Parsed) {
    (IN, tcp(flags, R, H))
}

fn state_of(store: &TestStore, tuple: &FlowTuple) -> Option<FlowState> {
    let entry = store.entries.get(&state_key::firewall(TenantId(0), tuple))?;
    Some(Flow::decode(&entry.value).unwrap().state)
}

/// A packet, what comes of it, and the state of its flow afterwards.
type Step3 = ((Side, Parsed), Result<(), DropReason>, Option<FlowState>);

fn check(what: &str, rules: &[&str], steps: &[Step3]) {
    let chain = chain(rules);
    let mut store = TestStore::new(&chain);
    for (at, ((side, packet), expected, state)) in steps.iter().enumerate() {
        let before = store.entries.clone();
        let (sent, changes) = store.send(&chain, *side, packet);
        assert_eq!(sent, expected.map(|()| packet.tuple), "{what}, packet {at}");
        assert_eq!(state_of(&store, &packet.tuple), *state, "{what}, packet {at}");
        let is_changed = before != store.entries;
        assert_eq!(changes.writes.len(), usize::from(is_changed), "{what}, packet {at}");
    }
}

#[test]
fn a_flow_lives_as_long_as_its_state_deserves() {
    let chain = chain(&[]);
    let mut store = TestStore::new(&chain);
    let mut send = |(side, packet): (Side, Parsed)| {
        store.send(&chain, side, &packet).0.unwrap();
        store.lifetimes[&state_key::firewall(TenantId(0), &packet.tuple)]
    };
    let open = [out(SYN), back(SYN_ACK), out(ACK), back(ACK)].map(&mut send);
    assert_eq!(open, [240, 240, 7440, 7440]);
    assert_eq!([out(FIN), back(FIN), out(SYN)].map(&mut send), [240, 240, 240]);
    assert_eq!([back(SYN_ACK), out(ACK), back(RST)].map(&mut send), [240, 7440, 240]);
    assert_eq!(send((OUT, udp(H, R))), 300);
    assert_eq!(send((OUT, echo(true, "10.0.0.1:7", "192.0.2.1:7"))), 60);
}

#[test]
fn tcp_connections() {
    use DropReason::{NoState, RuleDenied, TcpMidstream};
    use TcpState::{Closing, Established, FinInitiator, FinResponder, SynReceived, SynSent};
    let tcp = |state| Some(FlowState::Tcp(state));
    check(
        "opened from inside, closed by both",
        &[],
        &[
            (out(SYN), Ok(()), tcp(SynSent)),
            (out(SYN), Ok(()), tcp(SynSent)),
            (back(SYN_ACK), Ok(()), tcp(SynReceived)),
            (out(ACK), Ok(()), tcp(Established)),
            (back(ACK), Ok(()), tcp(Established)),
            (out(SYN), Ok(()), tcp(Established)),
            (back(FIN), Ok(()), tcp(FinResponder)),
            (out(ACK), Ok(()), tcp(FinResponder)),
            (out(FIN), Ok(()), tcp(Closing)),
            (back(ACK), Ok(()), tcp(Closing)),
            (back(FIN), Ok(()), tcp(Closing)),
            (out(SYN), Ok(()), tcp(SynSent)),
            (back(SYN_ACK), Ok(()), tcp(SynReceived)),
        ],
    );
    check(
        "from outside without a rule",
        &[],
        &[
            (back(SYN), Err(NoState), None),
            (back(ACK), Err(TcpMidstream), None),
            (back(SYN_ACK), Err(TcpMidstream), None),
            (back(RST), Err(TcpMidstream), None),
        ],
    );
    check(
        "from outside with a rule",
        &["allow in tcp to 10.0.0.0/8 port 1000"],
        &[
            (back(SYN), Ok(()), tcp(SynSent)),
            (out(SYN_ACK), Ok(()), tcp(SynReceived)),
            (back(FIN), Ok(()), tcp(FinInitiator)),
        ],
    );
    check(
        "a rule lets no connection be picked up in the middle",
        &["allow in tcp", "allow out tcp"],
        &[
            (out(ACK), Err(TcpMidstream), None),
            (back(FIN), Err(TcpMidstream), None),
            (out(RST), Err(TcpMidstream), None),
        ],
    );
    check("denied on the way out", &["deny out tcp"], &[(out(SYN), Err(RuleDenied), None)]);
    check(
        "simultaneous open needs no rule: the inside SYN went first (5382-2a)",
        &[],
        &[
            (out(SYN), Ok(()), tcp(SynSent)),
            (back(SYN), Ok(()), tcp(SynReceived)),
            (out(SYN_ACK), Ok(()), tcp(Established)),
            (back(SYN_ACK), Ok(()), tcp(Established)),
        ],
    );
}

#[test]
fn tcp_connections_that_do_not_open_or_end_in_a_reset() {
    use DropReason::{NoState, TcpState as BadState};
    use TcpState::{Established, Reset, SynReceived, SynSent};
    let tcp = |state| Some(FlowState::Tcp(state));
    check(
        "what no TCP sends before the handshake",
        &[],
        &[
            (out(SYN), Ok(()), tcp(SynSent)),
            (out(ACK), Err(BadState), tcp(SynSent)),
            (back(FIN), Err(BadState), tcp(SynSent)),
        ],
    );
    check(
        "a reset connection is kept, may be reopened from inside, and not from outside",
        &[],
        &[
            (out(SYN), Ok(()), tcp(SynSent)),
            (back(SYN_ACK), Ok(()), tcp(SynReceived)),
            (out(ACK), Ok(()), tcp(Established)),
            (back(RST), Ok(()), tcp(Reset)),
            (out(ACK), Ok(()), tcp(Reset)),
            (back(SYN), Err(NoState), tcp(Reset)),
            (out(SYN), Ok(()), tcp(SynSent)),
        ],
    );
}

#[test]
fn udp_echo_and_errors() {
    use DropReason::{IcmpUnrelated, NoState, RuleDenied};
    let open = Some(FlowState::Open);
    let (there, answer) = ((OUT, udp(H, R)), (IN, udp(R, H)));
    check(
        "UDP: one write a flow",
        &[],
        &[
            (answer, Err(NoState), None),
            (there, Ok(()), open),
            (answer, Ok(()), open),
            (there, Ok(()), open),
            ((IN, udp("192.0.2.1:81", H)), Err(NoState), None),
        ],
    );
    let (a, b) = ("10.0.0.1:7", "192.0.2.1:7");
    check(
        "echo: a request opens, its reply passes, a request the other way is no reply",
        &[],
        &[
            ((IN, echo(false, b, a)), Err(NoState), None),
            ((OUT, echo(false, a, b)), Err(NoState), None),
            ((OUT, echo(true, a, b)), Ok(()), open),
            ((IN, echo(false, b, a)), Ok(()), open),
            ((IN, echo(true, b, a)), Err(NoState), open),
        ],
    );
    check(
        "echo from outside by a rule, also the other way on one identifier",
        &["allow in icmp"],
        &[
            ((OUT, echo(true, a, b)), Ok(()), open),
            ((IN, echo(true, b, a)), Ok(()), open),
            ((OUT, echo(false, a, b)), Ok(()), open),
        ],
    );
    check(
        "errors pass with the flow that they are about and move nothing (5508-4 to 6)",
        &["allow in icmp"],
        &[
            ((IN, error(17, R, H)), Err(IcmpUnrelated), None),
            ((OUT, error(17, H, R)), Err(IcmpUnrelated), None),
            (there, Ok(()), open),
            ((IN, error(17, R, H)), Ok(()), open),
            ((OUT, error(17, H, R)), Ok(()), open),
            ((IN, error(6, R, H)), Err(IcmpUnrelated), None),
        ],
    );
    check(
        "a rule against it, then state from the other side",
        &["deny in udp from 192.0.2.0/24"],
        &[(answer, Err(RuleDenied), None), (there, Ok(()), open), (answer, Ok(()), open)],
    );
    let (six, back) = ("[2001:db8::1]:5", "[2001:db8:f::2]:53");
    check(
        "IPv6 like IPv4",
        &[],
        &[
            ((IN, udp(back, six)), Err(NoState), None),
            ((OUT, udp(six, back)), Ok(()), open),
            ((IN, udp(back, six)), Ok(()), open),
        ],
    );
}

#[test]
fn a_transition_holds_only_on_the_version_that_was_read() {
    let chain = chain(&[]);
    let flow = Flow {
        state: FlowState::Tcp(TcpState::SynSent),
        opened_by_high: false,
        opened_from: OUT,
        rule_epoch: 0,
    };
    let entry = Entry { value: flow.encode(), version: Version(42), slot: SlotId(0) };
    let (side, parsed) = back(SYN_ACK);
    let mut translated = None;
    let packet = chain.packet(side, &[], &parsed, &mut translated);
    let mut changes = Changes::default();
    let (verdict, _) = chain.run(Time(0), packet, &mut |_| Some(entry), &mut changes);
    assert_eq!(verdict, Verdict::Commit);
    let key = state_key::firewall(TenantId(0), &parsed.tuple);
    assert_eq!(changes.conditions[..], [Condition::Version(key, Version(42))]);
}

#[test]
fn a_flow_is_read_back_as_it_was_written() {
    let states = TcpState::ALL.into_iter().map(FlowState::Tcp).chain([FlowState::Open]);
    for state in states {
        for (opened_by_high, opened_from) in [(false, IN), (true, IN), (false, OUT), (true, OUT)] {
            let flow = Flow { state, opened_by_high, opened_from, rule_epoch: 0x0102_0304_0506 };
            assert_eq!(Flow::decode(&flow.encode()), Some(flow));
        }
    }
    let flow =
        Flow { state: FlowState::Open, opened_by_high: true, opened_from: IN, rule_epoch: 0x0102 };
    let bytes = flow.encode().to_bytes();
    assert_eq!(bytes[..10], [16, 1, 1, 0, 0, 0, 0, 0, 2, 1]);
    for (at, wrong) in [(0, 0), (0, 8), (0, 17), (1, 2), (2, 2)] {
        let mut bytes = bytes;
        bytes[at] = wrong;
        assert_eq!(Flow::decode(&Value::from_bytes(&bytes)), None, "byte {at} = {wrong}");
    }
}

#[test]
fn it_says_what_its_entries_mean() {
    let firewall = Firewall::new(RuleSet::default(), 5);
    let key = state_key::firewall(TenantId(0), &tcp(SYN, H, R).tuple);
    let flow = Flow {
        state: FlowState::Tcp(TcpState::Established),
        opened_by_high: false,
        opened_from: OUT,
        rule_epoch: 5,
    };
    let entry = Entry { value: flow.encode(), version: Version(1), slot: SlotId(0) };
    assert_eq!(
        firewall.describe(&key, Some(&entry)),
        "10.0.0.1:1000 opened it to 192.0.2.1:80 from inside by rules 5; it is established"
    );
    assert_eq!(
        firewall.describe(&key, None),
        "no flow between 10.0.0.1:1000 and 192.0.2.1:80 is known"
    );
}

/// The firewall as one would explain it: what was let through of each flow, in order, and nothing
/// else. It knows no states.
#[derive(Default)]
struct Model {
    flows: BTreeMap<FlowKey, History>,
}

struct History {
    opener: Endpoint,
    opened_from: Side,
    /// Whether the opener sent it, and what it was; since the flow was last opened.
    passed: Vec<(bool, Segment)>,
}

impl History {
    fn has(&self, opener: bool, segment: Segment) -> bool {
        self.passed.contains(&(opener, segment))
    }

    fn is_over(&self) -> bool {
        let is_reset = self.passed.iter().any(|(_, segment)| *segment == Segment::Reset);
        is_reset || (self.has(true, Segment::Fin) && self.has(false, Segment::Fin))
    }

    fn is_answered(&self) -> bool {
        self.has(false, Segment::Syn) || self.has(false, Segment::SynAck)
    }
}

/// From outside only to this port, from inside to everything.
const OPEN_PORT: u16 = 1000;

fn may_open(side: Side, tuple: &FlowTuple) -> bool {
    side == OUT || tuple.destination.port == OPEN_PORT
}

impl Model {
    /// Whether the packet passes.
    fn passes(&mut self, side: Side, packet: &Parsed) -> bool {
        let tuple = &packet.tuple;
        let key = FlowKey::canonical(TenantId(0), tuple);
        let segment = match packet.transport {
            Transport::IcmpError { .. } => return self.flows.contains_key(&key),
            Transport::Tcp { flags } => Segment::of(flags),
            _ => Segment::Syn,
        };
        let is_tcp = tuple.protocol == 6;
        let open = self.flows.get_mut(&key);
        let is_new = open.as_ref().is_none_or(|flow| is_tcp && flow.is_over());
        if is_new && segment == Segment::Syn {
            if may_open(side, tuple) {
                let passed = vec![(true, Segment::Syn)];
                let flow = History { opener: tuple.source, opened_from: side, passed };
                self.flows.insert(key, flow);
                return true;
            }
            return false;
        }
        let Some(flow) = open else { return false };
        let from_opener = tuple.source == flow.opener;
        let is_early = is_tcp && !flow.is_answered() && !flow.is_over();
        let is_impossible = match segment {
            Segment::Fin => true,
            Segment::Other | Segment::SynAck => from_opener,
            Segment::Syn | Segment::Reset => false,
        };
        if is_early && is_impossible {
            return false;
        }
        flow.passed.push((from_opener, segment));
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_firewall_agrees_with_the_model(
        events in proptest::collection::vec(
            (0..3u8, any::<bool>(), 0..2u16, prop_oneof![
                4 => Just(SYN), 4 => Just(SYN_ACK), 6 => Just(ACK), 3 => Just(FIN), 1 => Just(RST)
            ]), 1..80)
    ) {
        let chain = chain(&["allow in tcp port 1000", "allow in udp port 1000"]);
        let mut store = TestStore::new(&chain);
        let mut model = Model::default();
        for (kind, outbound, port, flags) in events {
            let (host, remote) = (Endpoint::v4([10, 0, 0, 1], OPEN_PORT + port), end(R));
            let (side, source, destination) =
                if outbound { (OUT, host, remote) } else { (IN, remote, host) };
            let (protocol, transport) = match kind {
                0 => (17, Transport::Udp),
                1 => (6, Transport::IcmpError {
                    inner_ip: 42, inner_transport: 62, inner_protocol: 6,
                }),
                _ => (6, Transport::Tcp { flags }),
            };
            let packet = parsed(transport, FlowTuple { protocol, source, destination });
            let (sent, _) = store.send(&chain, side, &packet);
            let passes = model.passes(side, &packet);
            prop_assert_eq!(sent.is_ok(), passes, "{:?} {} {:?}", side, packet.tuple, transport);
            if side == IN && sent.is_ok() {
                // W1: a live flow from inside, or a rule.
                let flow = &model.flows[&FlowKey::canonical(TenantId(0), &packet.tuple)];
                let has_rule = destination.port == OPEN_PORT;
                prop_assert!(flow.opened_from == OUT || has_rule, "W1: {}", packet.tuple);
            }
            prop_assert_eq!(store.entries.len(), model.flows.len());
        }
    }
}
