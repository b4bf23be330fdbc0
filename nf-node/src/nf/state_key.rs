//! The kinds of keys that network functions keep state under, and how each is made of a tuple.
//!
//! A key is a kind, a protocol, a tenant and two endpoints; this file says what the two endpoints
//! are for each kind. It never reads or writes an entry.
//!
//! ```text
//! kind             endpoint a            endpoint b
//! 1 nat-out        inside endpoint       unspecified
//! 2 nat-in         external endpoint     unspecified
//! 3 firewall       smaller endpoint      larger endpoint
//! 4 balance        client                virtual endpoint
//! 5 balance-reply  client                backend
//! 6 nat-filter     inside endpoint       remote endpoint; port 0: all of that address
//! ```

use core::fmt;
use nearstate_placement::{FlowKey, FlowTuple};
use nearstate_store::key::{ENDPOINT_V4, KEY_ENDPOINT_A};
use nearstate_store::{Endpoint, Key, TenantId};

/// Where a `nat-in` key takes the IPv4 address and port that its transaction took from the pool.
pub const NAT_IN_FILL: u8 = (KEY_ENDPOINT_A + ENDPOINT_V4) as u8;

/// What stands at the place of an endpoint that a kind does not use, or that is filled in later.
/// It is IPv4-mapped, so that filling its last six bytes makes a right IPv4 endpoint.
const TO_BE_FILLED: Endpoint = Endpoint::v4([0; 4], 0);

/// What an entry is about. The numbers stand in keys and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// From an inside endpoint to its external endpoint.
    NatOut = 1,
    /// From an external endpoint to the inside endpoint that has it.
    NatIn = 2,
    /// A flow that the firewall lets pass.
    Firewall = 3,
    /// The backend of a client's flow to a virtual endpoint.
    Balance = 4,
    /// The virtual endpoint that a backend's answer to a client comes from.
    BalanceReply = 5,
    /// A remote end that may send to an inside endpoint through its mapping.
    NatFilter = 6,
}

impl KeyKind {
    /// All kinds, by number.
    pub const ALL: [Self; 6] = [
        Self::NatOut,
        Self::NatIn,
        Self::Firewall,
        Self::Balance,
        Self::BalanceReply,
        Self::NatFilter,
    ];

    /// The kind of a key, `None` if no network function makes such keys.
    #[must_use]
    pub fn of(key: &Key) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == key.kind())
    }

    /// The name in traces and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NatOut => "nat-out",
            Self::NatIn => "nat-in",
            Self::Firewall => "firewall",
            Self::Balance => "balance",
            Self::BalanceReply => "balance-reply",
            Self::NatFilter => "nat-filter",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an entry is about, in words for people.
#[must_use]
pub fn words(key: &Key) -> String {
    let (a, b) = key.ends();
    let protocol = match key.protocol() {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => format!("protocol {other}"),
    };
    let mut words = match KeyKind::of(key) {
        Some(KeyKind::NatOut) => format!("the mapping of inside endpoint {protocol} {a}"),
        Some(KeyKind::NatIn) if a == TO_BE_FILLED => {
            format!("the holder of the external {protocol} endpoint that is taken")
        }
        Some(KeyKind::NatIn) => format!("the holder of external endpoint {protocol} {a}"),
        Some(KeyKind::Firewall) => format!("the flow {protocol} {a} <-> {b}"),
        Some(KeyKind::Balance) => format!("the backend of {protocol} client {a} at service {b}"),
        Some(KeyKind::BalanceReply) => {
            format!("the service that backend {b} answers {protocol} client {a} for")
        }
        Some(KeyKind::NatFilter) if b.port == 0 => {
            format!("leave for {} to send to inside endpoint {protocol} {a}", b.ip())
        }
        Some(KeyKind::NatFilter) => {
            format!("leave for {b} to send to inside endpoint {protocol} {a}")
        }
        None => format!("an entry of kind {} about {protocol} {a} and {b}", key.kind()),
    };
    if key.tenant() != TenantId(0) {
        words.push_str(&format!(" of tenant {}", key.tenant().0));
    }
    words
}

/// The key of the mapping of an inside endpoint.
#[must_use]
#[inline]
pub fn nat_out(tenant: TenantId, protocol: u8, inside: Endpoint) -> Key {
    Key::new(KeyKind::NatOut as u8, protocol, tenant, (inside, Endpoint::default()))
}

/// The key of the mapping that holds an external endpoint.
#[must_use]
#[inline]
pub fn nat_in(tenant: TenantId, protocol: u8, external: Endpoint) -> Key {
    Key::new(KeyKind::NatIn as u8, protocol, tenant, (external, Endpoint::default()))
}

/// A `nat-in` key whose external endpoint is not known yet: at [`NAT_IN_FILL`] the six bytes of the
/// endpoint that the transaction takes go in.
#[must_use]
pub fn nat_in_unfilled(tenant: TenantId, protocol: u8) -> Key {
    nat_in(tenant, protocol, TO_BE_FILLED)
}

/// The key of a remote end's leave to send to an inside endpoint. Port 0 stands for all ports of
/// the remote address.
#[must_use]
#[inline]
pub fn nat_filter(tenant: TenantId, protocol: u8, inside: Endpoint, remote: Endpoint) -> Key {
    Key::new(KeyKind::NatFilter as u8, protocol, tenant, (inside, remote))
}

/// The key of a flow that a firewall sees: the same for both directions.
#[must_use]
#[inline]
pub fn firewall(tenant: TenantId, tuple: &FlowTuple) -> Key {
    let flow = FlowKey::canonical(tenant, tuple);
    Key::new(KeyKind::Firewall as u8, flow.protocol, tenant, (flow.low, flow.high))
}

/// The key of the backend that a client's flow to a virtual endpoint goes to.
#[must_use]
pub fn balance(tenant: TenantId, protocol: u8, client: Endpoint, service: Endpoint) -> Key {
    Key::new(KeyKind::Balance as u8, protocol, tenant, (client, service))
}

/// The key of the virtual endpoint that a backend answers a client from.
#[must_use]
pub fn balance_reply(tenant: TenantId, protocol: u8, client: Endpoint, backend: Endpoint) -> Key {
    Key::new(KeyKind::BalanceReply as u8, protocol, tenant, (client, backend))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const TENANT: TenantId = TenantId(7);

    #[test]
    fn every_kind_is_told_from_its_key_and_no_two_share_a_name() {
        let a = Endpoint::v4([10, 0, 0, 1], 1000);
        let b = Endpoint::v4([192, 0, 2, 1], 80);
        let tuple = FlowTuple { protocol: 6, source: a, destination: b };
        let keys = [
            (KeyKind::NatOut, nat_out(TENANT, 6, a)),
            (KeyKind::NatIn, nat_in(TENANT, 6, a)),
            (KeyKind::Firewall, firewall(TENANT, &tuple)),
            (KeyKind::Balance, balance(TENANT, 6, a, b)),
            (KeyKind::BalanceReply, balance_reply(TENANT, 6, a, b)),
        ];
        for (at, (kind, key)) in keys.iter().enumerate() {
            assert_eq!(KeyKind::of(key), Some(*kind));
            assert_eq!(key.kind(), at as u8 + 1, "{kind}: numbers never change");
            assert_eq!((key.protocol(), key.tenant()), (6, TENANT));
            let words = words(key);
            assert!(words.contains("tcp") && words.contains("10.0.0.1:1000"), "{words}");
            assert!(words.ends_with("of tenant 7"), "{words}");
            assert!(keys[..at].iter().all(|(other, _)| other.name() != kind.name()));
        }
        assert_eq!(KeyKind::of(&Key::new(200, 6, TENANT, (a, b))), None);
    }

    #[test]
    fn filling_a_nat_in_key_gives_the_key_of_the_filled_endpoint() {
        let external = Endpoint::v4([198, 19, 0, 5], 0x1234);
        let mut bytes = nat_in_unfilled(TENANT, 17).to_bytes();
        let at = usize::from(NAT_IN_FILL);
        bytes[at..at + 6].copy_from_slice(&[198, 19, 0, 5, 0x12, 0x34]);
        let key = Key::from_bytes(&bytes);
        assert_eq!(key, nat_in(TENANT, 17, external));
        assert_eq!(key.ends().0.ipv4(), Some(Ipv4Addr::new(198, 19, 0, 5)));
    }

    #[test]
    fn a_firewall_key_is_the_same_for_both_directions() {
        let tuple = FlowTuple {
            protocol: 17,
            source: Endpoint::v4([10, 0, 0, 1], 5000),
            destination: Endpoint::v4([192, 0, 2, 1], 53),
        };
        assert_eq!(firewall(TENANT, &tuple), firewall(TENANT, &tuple.reversed()));
    }
}
