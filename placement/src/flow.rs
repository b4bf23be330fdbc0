//! The tuple that a packet shows, and its canonical form.

use core::fmt;
use nearstate_store::{Endpoint, TenantId};

/// Which side of the cluster a packet came from. Inside are the hosts that a NAT hides and a
/// firewall protects.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
)]
pub enum Side {
    /// From the protected network, on its way out.
    Inside,
    /// From the rest of the world, on its way in.
    Outside,
}

impl Side {
    /// The side that a packet from here leaves on.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }
}

/// Protocol and endpoints as a packet carries them.
///
/// ICMP echo has its identifier as both ports. An ICMP error has the tuple of the packet that it
/// quotes, turned round: the tuple that an answer to the quoted packet would have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTuple {
    /// IP protocol number.
    pub protocol: u8,
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
}

impl FlowTuple {
    /// The tuple of the answer.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

impl fmt::Display for FlowTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            1 | 58 => f.write_str("icmp")?,
            6 => f.write_str("tcp")?,
            17 => f.write_str("udp")?,
            other => write!(f, "proto {other}")?,
        }
        write!(f, " {} -> {}", self.source, self.destination)
    }
}

impl fmt::Debug for FlowTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tenant, protocol and the two endpoints in sorted order: the same for both directions of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// Whose flow it is.
    pub tenant: TenantId,
    /// IP protocol number.
    pub protocol: u8,
    /// The smaller endpoint.
    pub low: Endpoint,
    /// The larger endpoint.
    pub high: Endpoint,
}

impl FlowKey {
    /// The canonical key of a tuple.
    #[must_use]
    pub fn canonical(tenant: TenantId, tuple: &FlowTuple) -> Self {
        let (low, high) = if tuple.source <= tuple.destination {
            (tuple.source, tuple.destination)
        } else {
            (tuple.destination, tuple.source)
        };
        Self { tenant, protocol: tuple.protocol, low, high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_canonical_key() {
        let tuple = FlowTuple {
            protocol: 6,
            source: Endpoint::v4([10, 0, 0, 1], 1000),
            destination: Endpoint::v4([192, 0, 2, 1], 80),
        };
        assert_ne!(tuple, tuple.reversed());
        assert_eq!(
            FlowKey::canonical(TenantId(1), &tuple),
            FlowKey::canonical(TenantId(1), &tuple.reversed())
        );
    }
}
