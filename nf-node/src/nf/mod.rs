//! The shape of a network function: one pure call a packet.
//!
//! A function never touches the frame. It reads the packet's *current* tuple, may change that tuple
//! (a translation), and may ask for changes of state. When the whole chain has forwarded a packet
//! and nothing was asked for, the difference between the parsed and the current tuple is written
//! into the frame in one go ([`crate::rewrite`]). When something was asked for, all of it becomes
//! one transaction, the packet is parked as it came in, and once the transaction is committed the
//! packet is processed again from the start.
//!
//! **Invariant.** Processing is a fixed point: after the changes of a packet are committed, the
//! same packet asks for no more changes. A retransmission, and a packet that is sent again because
//! a node died, are then harmless.

pub mod entry_rules;
pub mod firewall;
pub mod fragments;
pub mod load_balancer;
pub mod mapping_life;
pub mod nat44;
pub mod nat64;
pub mod nat_filter;
#[cfg(test)]
pub(crate) mod nat_model;
pub mod rules;
pub mod state_key;
pub mod tcp_state;
#[cfg(test)]
pub(crate) mod test_store;
pub mod timeouts;

use crate::nf::state_key::KeyKind;
use crate::packet::parsed::{Parsed, Transport};
use crate::packet::tcp::flags::RST;
use crate::verdict::Verdict;
use arrayvec::ArrayVec;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::transaction::{CONDITIONS_MAX, WRITES_MAX};
use nearstate_store::{Condition, Entry, Key, TenantId, Time, Write};

/// A packet on its way through a chain.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The bytes as they came in.
    pub frame: &'a [u8],
    /// What parsing found.
    pub parsed: &'a Parsed,
    /// Whose packet it is.
    pub tenant: TenantId,
    /// Where it came in.
    pub side: Side,
    /// The flow as the functions so far have translated it, if one has. Where its owner keeps it,
    /// so that a packet that is not translated costs no copy.
    pub translated: &'a mut Option<FlowTuple>,
}

impl Packet<'_> {
    /// The flow as the functions so far have made it.
    #[must_use]
    #[inline]
    pub fn tuple(&self) -> &FlowTuple {
        self.translated.as_ref().unwrap_or(&self.parsed.tuple)
    }

    /// The same, to be translated.
    #[inline]
    pub fn tuple_mut(&mut self) -> &mut FlowTuple {
        self.translated.get_or_insert(self.parsed.tuple)
    }

    /// Whether this packet keeps the entry of a key alive. ICMP errors do not (RFC 4787 REQ-12,
    /// RFC 5508 REQ-6), and neither do resets (RFC 7857 section 9). A mapping lives by its outbound
    /// packets, and so does the leave of a remote end to send to it: what comes in from outside
    /// need not be wanted (RFC 4787 REQ-6).
    #[must_use]
    #[inline]
    pub fn keeps_alive(&self, key: &Key) -> bool {
        let counts = match self.parsed.transport {
            Transport::IcmpError { .. } | Transport::LaterFragment => false,
            Transport::Tcp { flags } => flags & RST == 0,
            Transport::Udp | Transport::Echo { .. } => true,
        };
        counts
            && key.kind() != KeyKind::NatIn as u8
            && (self.side == Side::Inside || key.kind() != KeyKind::NatFilter as u8)
    }
}

/// Conditions and writes that the functions of a chain ask for: one transaction in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What must hold.
    pub conditions: ArrayVec<Condition, CONDITIONS_MAX>,
    /// What is to be done.
    pub writes: ArrayVec<Write, WRITES_MAX>,
}

impl Changes {
    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.conditions.clear();
        self.writes.clear();
    }
}

/// A network function.
pub trait NetworkFunction {
    /// Its name in configurations, counters and traces.
    fn name(&self) -> &'static str;

    /// The one entry that decides on this packet, if any.
    fn key(&self, packet: &Packet<'_>) -> Option<Key>;

    /// Decides on a packet. `state` is the entry of [`NetworkFunction::key`], if there is one.
    ///
    /// Pure: reads no clock, draws no random number, sends nothing. A function that asks for a
    /// change returns [`Verdict::Commit`] when the packet cannot be finished without its outcome
    /// (the port is not known yet), and [`Verdict::Forward`] when the rest of the chain can go on.
    fn process(
        &self,
        now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict;

    /// One sentence on what this entry says, for `nearstate trace`.
    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nf::test_store::{ACK, FIN, RST, SYN, echo, end, error, tcp, udp};

    /// R4787-6, R4787-12, R5508-6, R7857-9.
    #[test]
    fn errors_and_resets_keep_nothing_alive_and_a_mapping_lives_by_what_goes_out() {
        let (a, b) = ("10.0.0.1:1000", "192.0.2.1:80");
        let rows = [
            (udp(a, b), true),
            (tcp(SYN, a, b), true),
            (tcp(ACK, a, b), true),
            (tcp(FIN, a, b), true),
            (tcp(RST, a, b), false),
            (tcp(RST | ACK, a, b), false),
            (echo(true, "10.0.0.1:7", "192.0.2.1:7"), true),
            (echo(false, "10.0.0.1:7", "192.0.2.1:7"), true),
            (error(17, a, b), false),
        ];
        let tenant = TenantId(0);
        for (parsed, expected) in rows {
            let (side, tuple) = (Side::Inside, parsed.tuple);
            let mut translated = None;
            let translated = &mut translated;
            let mut packet = Packet { frame: &[], parsed: &parsed, tenant, side, translated };
            let out = state_key::nat_out(tenant, 17, end(a));
            for key in [out, state_key::firewall(tenant, &tuple)] {
                assert_eq!(packet.keeps_alive(&key), expected, "{parsed:?}");
            }
            assert!(!packet.keeps_alive(&state_key::nat_in(tenant, 17, end(b))));
            let leave = state_key::nat_filter(tenant, 17, end(a), end(b));
            assert_eq!(packet.keeps_alive(&leave), expected, "{parsed:?}");
            packet.side = Side::Outside;
            assert!(!packet.keeps_alive(&leave), "{parsed:?}");
        }
    }
}
