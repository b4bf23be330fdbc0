//! Which remote ends may send to a mapping, where that is not everybody (RFC 4787 section 5,
//! RFC 5382 section 4.2): address-dependent, or address-and-port-dependent filtering.
//!
//! The filter stands before the NAT on the way out and behind it on the way in, so it sees inside
//! endpoints, as a firewall does. Whom an inside endpoint sends to gets *leave* to send to it: one
//! entry for each pair of an inside endpoint and a remote address (or endpoint), made in the
//! transaction of the packet that first went there. Mappings stay endpoint-independent. Leave is
//! given to an inside endpoint and not to a port of the pool, so nothing of it is left to the next
//! holder of that port.
//!
//! What it never does: give, lengthen or end leave because of a packet from outside or of an ICMP
//! error; filter an error by who sent it (RFC 4787 REQ-12a): the flow that it is about decides.
//! What the NAT does not translate is not filtered either.
//!
//! Leave lives as long as the inside endpoint sends there. Of TCP it is given by a SYN only, is
//! transitory until a segment from inside shows that a connection was established, and again after
//! a FIN or reset from inside; where it is for all ports of an address other connections may use
//! it, and it stays.
//!
//! ```text
//! byte  0       1
//!       phase   zero
//!       1       63
//! ```

#[cfg(test)]
mod tests;

use crate::nf::nat44::{Inside, Ipv4Inside, Nat, Way};
use crate::nf::state_key;
use crate::nf::tcp_state::Segment;
use crate::nf::timeouts::Timeouts;
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet::parsed::Transport;
use crate::verdict::{DropReason, Verdict};
use nearstate_store::{Condition, Endpoint, Entry, Fill, Key, Time, Value, Write};
use serde::{Deserialize, Serialize};

/// Who may send to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filtering {
    /// Everybody: most transparent, and what is recommended for an operator (RFC 4787 REQ-8,
    /// RFC 6888 REQ-7).
    #[default]
    EndpointIndependent,
    /// Addresses that the inside endpoint has sent to.
    AddressDependent,
    /// Endpoints that the inside endpoint has sent to.
    AddressAndPortDependent,
}

/// How long leave is good for. The numbers stand in entries and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// UDP or echo.
    Open = 0,
    /// A TCP connection has begun.
    Opening = 1,
    /// It was established.
    Established = 2,
    /// The inside has ended it.
    Closing = 3,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Open, Self::Opening, Self::Established, Self::Closing];

    fn decode(value: &Value) -> Self {
        let number = value.0[0] as u8;
        // No other numbers are ever written; the shortest life is the one that does no harm.
        Self::ALL.into_iter().find(|phase| *phase as u8 == number).unwrap_or(Self::Closing)
    }

    fn encode(self) -> Value {
        let mut value = Value::ZERO;
        value.0[0] = self as u64;
        value
    }
}

/// The filter of a NAT.
#[derive(Clone, Debug)]
pub struct NatFilter<I = Ipv4Inside> {
    nat: Nat<I>,
    /// Whether leave is for all ports of an address.
    is_for_all_ports: bool,
    timeouts: Timeouts,
}

impl NatFilter {
    /// Most conditions that one packet asks for.
    pub const CONDITIONS_MAX: usize = 1;
    /// Most writes that one packet asks for.
    pub const WRITES_MAX: usize = 1;
}

impl<I: Inside> NatFilter<I> {
    /// The filter of this NAT; `None` if nothing is to be filtered.
    #[must_use]
    pub fn new(nat: &Nat<I>, filtering: Filtering, timeouts: Timeouts) -> Option<Self> {
        let is_for_all_ports = match filtering {
            Filtering::EndpointIndependent => return None,
            Filtering::AddressDependent => true,
            Filtering::AddressAndPortDependent => false,
        };
        Some(Self { nat: nat.clone(), is_for_all_ports, timeouts })
    }

    const fn ttl_s(&self, phase: Phase, protocol: u8) -> u32 {
        match phase {
            Phase::Opening | Phase::Closing => self.timeouts.tcp_transitory_s,
            Phase::Open | Phase::Established => self.timeouts.of_protocol(protocol),
        }
    }

    /// What a packet from inside makes of the leave of whom it goes to; `None`: nothing new.
    fn next(&self, phase: Option<Phase>, transport: Transport) -> Option<Phase> {
        let Transport::Tcp { flags } = transport else {
            let opens = matches!(transport, Transport::Udp | Transport::Echo { request: true });
            return (phase.is_none() && opens).then_some(Phase::Open);
        };
        match (phase, Segment::of(flags)) {
            (None | Some(Phase::Closing), Segment::Syn) => Some(Phase::Opening),
            (Some(Phase::Opening), Segment::Other) => Some(Phase::Established),
            (Some(Phase::Opening), Segment::Fin) if self.is_for_all_ports => {
                Some(Phase::Established)
            }
            (Some(Phase::Opening), Segment::Fin) => Some(Phase::Closing),
            (Some(Phase::Established), Segment::Fin | Segment::Reset) if !self.is_for_all_ports => {
                Some(Phase::Closing)
            }
            _ => None,
        }
    }

    fn process_outbound(&self, packet: &Packet<'_>, state: Option<&Entry>, changes: &mut Changes) {
        let phase = state.map(|entry| Phase::decode(&entry.value));
        let Some(next) = self.next(phase, packet.parsed.transport) else { return };
        let Some(key) = self.key(packet) else { return };
        changes.conditions.push(match state {
            None => Condition::Absent(key),
            Some(entry) => Condition::Version(key, entry.version),
        });
        changes.writes.push(Write::Put {
            key,
            value: next.encode(),
            fill: Fill::default(),
            ttl_s: self.ttl_s(next, packet.tuple().protocol),
        });
    }
}

impl<I: Inside> NetworkFunction for NatFilter<I> {
    fn name(&self) -> &'static str {
        "nat-filter"
    }

    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        // On the way in the NAT has been here before: the packet as it came says what it was to do.
        let (inside, remote) = match self.nat.way(packet, &packet.parsed.tuple) {
            Way::Out => (packet.tuple().source, packet.tuple().destination),
            Way::In => (packet.tuple().destination, packet.tuple().source),
            Way::OutAs(_) | Way::InTo(_) | Way::Pass | Way::Refused(_) => return None,
        };
        let port = if self.is_for_all_ports { 0 } else { remote.port };
        let remote = Endpoint { port, ..remote };
        Some(state_key::nat_filter(packet.tenant, packet.tuple().protocol, inside, remote))
    }

    fn process(
        &self,
        _now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        match self.nat.way(packet, &packet.parsed.tuple) {
            Way::Out => self.process_outbound(packet, state, changes),
            Way::In if state.is_none() => {
                return Verdict::Drop(match packet.parsed.transport {
                    Transport::IcmpError { .. } => DropReason::IcmpUnrelated,
                    _ => DropReason::Filtered,
                });
            }
            // A static mapping is for everybody.
            Way::In | Way::OutAs(_) | Way::InTo(_) | Way::Pass | Way::Refused(_) => {}
        }
        Verdict::Forward
    }

    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String {
        let (inside, remote) = key.ends();
        let whom = if remote.port == 0 { remote.ip().to_string() } else { remote.to_string() };
        match entry {
            Some(_) => format!("{inside} has sent to {whom}, which may send to it"),
            None => format!("{inside} has not sent to {whom}, which may not send to it"),
        }
    }
}
