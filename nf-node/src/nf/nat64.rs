//! NAT64: hosts of IPv6 inside, behind a pool of external IPv4 addresses (RFC 6146).
//!
//! Whom they talk to has an IPv4 address, which they know behind a prefix ([`Nat64Prefix`]).
//! Mappings and their lives, ports, quotas, static mappings, filters and hairpinning are those of
//! NAT44 ([`crate::nf::nat44`]): the entries of a mapping hold endpoints of either family. What RFC
//! 6146 calls a BIB entry is a mapping; there is no session table, for filtering by endpoints is
//! the business of a [`NatFilter`](crate::nf::nat_filter::NatFilter), and the life of a TCP mapping
//! is followed at the mapping. A subscriber is one IPv6 address.
//!
//! A flow changes its protocol number with its family (ICMPv6, ICMP); a mapping is kept under that
//! of IPv4, as its port is. Here only the tuple changes: [`crate::packet::translation`] makes the
//! frame.
//!
//! What it never does: touch IPv6 that is not for its prefix, or IPv4 of an inside host (they pass,
//! and whether they may is the firewall's business); take part in a loop: a source behind its own
//! prefix is refused (RFC 6146 section 3.5), and so is IPv6 from outside that would use the prefix;
//! stand for addresses that it must not ([`Nat64Prefix::may_stand_for`]) or that nobody has.

#[cfg(test)]
mod tests;

use crate::nat64_prefix::Nat64Prefix;
use crate::nf::Packet;
use crate::nf::nat44::{Inside, Nat, Remote, Way};
use crate::packet::parsed::IpVersion;
use crate::packet::{ipv4, ipv6};
use crate::verdict::DropReason;
use core::net::Ipv4Addr;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::Endpoint;

/// Inside hosts of IPv6, to whom IPv4 addresses show behind a prefix.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Inside {
    /// The prefix.
    pub prefix: Nat64Prefix,
}

/// NAT64.
pub type Nat64 = Nat<Ipv6Inside>;

impl Ipv6Inside {
    /// The IPv4 endpoint that one behind the prefix stands for.
    #[inline]
    fn behind(&self, end: &Endpoint) -> Option<Endpoint> {
        let address = self.prefix.extract(&end.address)?;
        Some(Endpoint::v4(address.octets(), end.port))
    }

    /// Why packets must not go to (or come from) this IPv4 address, if they must not.
    fn refusal(&self, address: Ipv4Addr) -> Option<DropReason> {
        let is_nobody = address.is_multicast() || matches!(address.octets()[0], 0 | 127 | 240..);
        let is_refused = is_nobody || !self.prefix.may_stand_for(address);
        is_refused.then_some(DropReason::MartianAddress)
    }

    fn way_out(nat: &Nat64, tuple: &FlowTuple) -> Way {
        let Self { prefix } = nat.inside();
        // A host that is IPv4's is no host of ours: a forgery, or a packet that comes round again.
        if prefix.holds(&tuple.source.address) {
            return Way::Refused(DropReason::NatSource);
        }
        if !prefix.holds(&tuple.destination.address) {
            return Way::Pass;
        }
        let Some(to) = prefix.extract(&tuple.destination.address) else {
            return Way::Refused(DropReason::MartianAddress);
        };
        nat.inside().refusal(to).map_or_else(|| nat.way_out(tuple), Way::Refused)
    }

    fn way_of_outside_v6(&self, tuple: &FlowTuple) -> Way {
        if self.prefix.holds(&tuple.source.address) {
            Way::Refused(DropReason::NatSource)
        } else if self.prefix.holds(&tuple.destination.address) {
            Way::Refused(DropReason::NoMapping)
        } else {
            Way::Pass
        }
    }
}

impl Inside for Ipv6Inside {
    const NAME: &'static str = "nat64";

    #[inline]
    fn way(nat: &Nat64, packet: &Packet<'_>, tuple: &FlowTuple) -> Way {
        match (packet.side, packet.parsed.version) {
            (Side::Inside, IpVersion::V6) => Self::way_out(nat, tuple),
            (Side::Inside, IpVersion::V4) => Way::Pass,
            (Side::Outside, IpVersion::V6) => nat.inside().way_of_outside_v6(tuple),
            (Side::Outside, IpVersion::V4) => {
                // Another function may have translated it before.
                let (Some(from), Some(to)) = (tuple.source.ipv4(), tuple.destination.ipv4()) else {
                    return Way::Pass;
                };
                match nat.way_in(packet, tuple, to) {
                    Way::Pass => Way::Pass,
                    way => nat.inside().refusal(from).map_or(way, Way::Refused),
                }
            }
        }
    }

    #[inline]
    fn external_protocol(protocol: u8) -> u8 {
        if protocol == ipv6::PROTOCOL_ICMPV6 { ipv4::PROTOCOL_ICMP } else { protocol }
    }

    #[inline]
    fn remote(&self, destination: &Endpoint) -> Remote {
        self.behind(destination).as_ref().map(Remote::of).unwrap_or_default()
    }

    #[inline]
    fn send_out(&self, packet: &mut Packet<'_>, external: Endpoint) {
        let Some(to) = self.behind(&packet.tuple().destination) else {
            return debug_assert!(false, "only what goes behind the prefix is translated");
        };
        let protocol = Self::external_protocol(packet.tuple().protocol);
        let port = if protocol == ipv4::PROTOCOL_ICMP { external.port } else { to.port };
        let destination = Endpoint { port, ..to };
        *packet.tuple_mut() = FlowTuple { protocol, source: external, destination };
    }

    #[inline]
    fn let_in(&self, packet: &mut Packet<'_>, inside: Endpoint) {
        let FlowTuple { protocol, source, .. } = *packet.tuple();
        let Some(from) = source.ipv4() else {
            return debug_assert!(false, "only what comes from IPv4 is translated");
        };
        let is_icmp = protocol == ipv4::PROTOCOL_ICMP;
        let protocol = if is_icmp { ipv6::PROTOCOL_ICMPV6 } else { protocol };
        let port = if is_icmp { inside.port } else { source.port };
        let source = Endpoint { address: self.prefix.embed(from), port };
        *packet.tuple_mut() = FlowTuple { protocol, source, destination: inside };
    }
}
