//! Stateful firewall: rules decide on the first packet of a flow, state decides on the rest.
//!
//! In a chain with a NAT the firewall always sees inside addresses: it comes before the NAT on the
//! way out and behind it on the way in. One entry a flow, under the canonical tuple, is all that
//! any node needs to decide on either direction. Without a rule about it, a flow may be opened from
//! inside and not from outside. UDP and echo flows are written once; that an answer was seen is no
//! hard state. A TCP connection is written when it moves on ([`crate::nf::tcp_state`]).
//!
//! What it never does: let a TCP segment in the middle of an unknown connection make state; let an
//! ICMP error through that is about no known flow, or be moved by one (RFC 5508 REQ-4 to REQ-6);
//! make state for a packet that it drops. IPv6 is handled like IPv4. Sequence numbers are not
//! looked at yet: see [`crate::nf::tcp_state`] for what that means.
//!
//! ```text
//! byte  0       1          2      3      8             16
//!       state   opened by  side   zero   rule epoch    zero
//!       1       1          1      5      8, LE         48
//!
//! state      1 to 7: TCP, numbers of TcpState; 16: UDP or echo
//! opened by  0: the key's endpoint a (the smaller), 1: endpoint b
//! side       0: opened from inside, 1: from outside
//! ```

#[cfg(test)]
mod tests;

use crate::nf::rules::{Action, RuleSet};
use crate::nf::state_key;
use crate::nf::tcp_state::{Segment, Step, TcpState, step};
use crate::nf::timeouts::Timeouts;
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet::parsed::Transport;
use crate::verdict::{DropReason, Verdict};
use nearstate_placement::Side;
use nearstate_store::{Condition, Entry, Fill, Key, Time, Value, Write};

/// The state number of flows that have no states: UDP and echo.
const OPEN: u8 = 16;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// A TCP connection.
    Tcp(TcpState),
    /// UDP or echo: it is known, that is all.
    Open,
}

/// What the entry of a flow says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// How far it has come.
    pub state: FlowState,
    /// Whether the larger endpoint of the key opened it, else the smaller one did.
    pub opened_by_high: bool,
    /// The side that the packet that opened it came from.
    pub opened_from: Side,
    /// Epoch of the rules that allowed it.
    pub rule_epoch: u64,
}

impl Flow {
    /// The value of an entry.
    #[must_use]
    pub fn encode(self) -> Value {
        let state = match self.state {
            FlowState::Tcp(state) => state as u8,
            FlowState::Open => OPEN,
        };
        let side = match self.opened_from {
            Side::Inside => 0,
            Side::Outside => 1,
        };
        let mut value = Value::ZERO;
        let head = [state, u8::from(self.opened_by_high), side, 0, 0, 0, 0, 0];
        value.0[0] = u64::from_le_bytes(head);
        value.0[1] = self.rule_epoch;
        value
    }

    /// Reads a value of [`Flow::encode`]; `None` if it is none.
    #[must_use]
    pub fn decode(value: &Value) -> Option<Self> {
        let [state, opened_by, side, ..] = value.0[0].to_le_bytes();
        let state = match state {
            OPEN => FlowState::Open,
            number => FlowState::Tcp(TcpState::from_number(number)?),
        };
        let opened_from = match side {
            0 => Side::Inside,
            1 => Side::Outside,
            _ => return None,
        };
        let opened_by_high = match opened_by {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self { state, opened_by_high, opened_from, rule_epoch: value.0[1] })
    }

    /// Whether this packet comes from the end that opened the flow.
    fn is_from_initiator(&self, packet: &Packet<'_>) -> bool {
        is_from_high(packet) == self.opened_by_high
    }
}

/// The firewall.
#[derive(Clone, Debug)]
pub struct Firewall {
    rules: RuleSet,
    rule_epoch: u64,
    timeouts: Timeouts,
}

impl Firewall {
    /// Most conditions that one packet asks for.
    pub const CONDITIONS_MAX: usize = 1;
    /// Most writes that one packet asks for.
    pub const WRITES_MAX: usize = 1;

    /// A firewall with these rules. `rule_epoch` rises with every change of them and is kept with
    /// the flows that they allowed.
    #[must_use]
    pub fn new(rules: RuleSet, rule_epoch: u64) -> Self {
        Self { rules, rule_epoch, timeouts: Timeouts::default() }
    }

    /// The same firewall with other times.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Seconds that a flow lives. A connection that opens or closes lives shortly (RFC 5382 REQ-5);
    /// one that was reset as long as that (RFC 7857 section 2).
    const fn ttl_s(&self, state: FlowState, protocol: u8) -> u32 {
        match state {
            FlowState::Tcp(TcpState::Established) => self.timeouts.tcp_established_s,
            FlowState::Tcp(_) => self.timeouts.tcp_transitory_s,
            FlowState::Open => self.timeouts.of_protocol(protocol),
        }
    }

    fn write(
        &self,
        packet: &Packet<'_>,
        flow: Flow,
        condition: Condition,
        changes: &mut Changes,
    ) -> Verdict {
        changes.conditions.push(condition);
        changes.writes.push(Write::Put {
            key: key_of(packet),
            value: flow.encode(),
            fill: Fill::default(),
            ttl_s: self.ttl_s(flow.state, packet.tuple().protocol),
        });
        Verdict::Forward
    }

    /// Why this packet may not open a flow, if it may not.
    fn refusal(&self, packet: &Packet<'_>) -> Option<DropReason> {
        match (self.rules.decide(packet.side, packet.tuple()), packet.side) {
            (Some(Action::Allow), _) | (None, Side::Inside) => None,
            (Some(Action::Deny), _) => Some(DropReason::RuleDenied),
            (None, Side::Outside) => Some(DropReason::NoState),
        }
    }

    /// The flow that this packet opens, if it may.
    fn open(
        &self,
        packet: &Packet<'_>,
        state: FlowState,
        condition: Condition,
        changes: &mut Changes,
    ) -> Verdict {
        if let Some(reason) = self.refusal(packet) {
            return Verdict::Drop(reason);
        }
        let flow = Flow {
            state,
            opened_by_high: is_from_high(packet),
            opened_from: packet.side,
            rule_epoch: self.rule_epoch,
        };
        self.write(packet, flow, condition, changes)
    }

    /// A packet of a flow that is not known.
    fn process_new(&self, packet: &Packet<'_>, changes: &mut Changes) -> Verdict {
        let state = match packet.parsed.transport {
            Transport::IcmpError { .. } => return Verdict::Drop(DropReason::IcmpUnrelated),
            // Not before the rules: no rule lets a connection be picked up in the middle.
            Transport::Tcp { flags } if Segment::of(flags) != Segment::Syn => {
                return Verdict::Drop(DropReason::TcpMidstream);
            }
            // A reply to nothing.
            Transport::Echo { request: false } => return Verdict::Drop(DropReason::NoState),
            Transport::Tcp { .. } => FlowState::Tcp(TcpState::SynSent),
            Transport::Udp | Transport::Echo { request: true } => FlowState::Open,
        };
        self.open(packet, state, Condition::Absent(key_of(packet)), changes)
    }

    fn process_tcp(
        &self,
        packet: &Packet<'_>,
        (flow, state): (Flow, TcpState),
        (entry, segment): (&Entry, Segment),
        changes: &mut Changes,
    ) -> Verdict {
        let unchanged = Condition::Version(key_of(packet), entry.version);
        match step(state, flow.is_from_initiator(packet), segment) {
            Step::Stay => Verdict::Forward,
            Step::To(next) => {
                let flow = Flow { state: FlowState::Tcp(next), ..flow };
                self.write(packet, flow, unchanged, changes)
            }
            // A new connection, which the rules must allow as they must any other.
            Step::Reopen => {
                self.open(packet, FlowState::Tcp(TcpState::SynSent), unchanged, changes)
            }
            Step::Refuse => Verdict::Drop(DropReason::TcpState),
        }
    }
}

impl NetworkFunction for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        Some(key_of(packet))
    }

    fn process(
        &self,
        _now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        let Some(entry) = state else {
            return self.process_new(packet, changes);
        };
        let Some(flow) = Flow::decode(&entry.value) else {
            debug_assert!(false, "not a flow: {:?}", entry.value);
            return Verdict::Drop(DropReason::NoState);
        };
        match (packet.parsed.transport, flow.state) {
            // Whatever it is about is a flow that was allowed. The flow is not moved by it.
            (Transport::IcmpError { .. }, _) => Verdict::Forward,
            (Transport::Tcp { flags }, FlowState::Tcp(state)) => {
                self.process_tcp(packet, (flow, state), (entry, Segment::of(flags)), changes)
            }
            // A query the other way is no answer. Rules decide, and the answers to it find this
            // state.
            (Transport::Echo { request: true }, _) if !flow.is_from_initiator(packet) => {
                self.refusal(packet).map_or(Verdict::Forward, Verdict::Drop)
            }
            _ => Verdict::Forward,
        }
    }

    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String {
        let (low, high) = key.ends();
        match entry.map(|entry| Flow::decode(&entry.value)) {
            None => format!("no flow between {low} and {high} is known"),
            Some(None) => format!("the entry of {low} and {high} is not one of the firewall"),
            Some(Some(flow)) => {
                let (opener, other) = if flow.opened_by_high { (high, low) } else { (low, high) };
                let from = match flow.opened_from {
                    Side::Inside => "inside",
                    Side::Outside => "outside",
                };
                let state = match flow.state {
                    FlowState::Tcp(state) => state.name(),
                    FlowState::Open => "open",
                };
                let epoch = flow.rule_epoch;
                format!("{opener} opened it to {other} from {from} by rules {epoch}; it is {state}")
            }
        }
    }
}

fn key_of(packet: &Packet<'_>) -> Key {
    state_key::firewall(packet.tenant, packet.tuple())
}

/// Whether the packet's source is the larger endpoint of its key.
fn is_from_high(packet: &Packet<'_>) -> bool {
    packet.tuple().source > packet.tuple().destination
}
