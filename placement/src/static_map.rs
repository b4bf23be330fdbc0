//! Mappings of a NAT that always are: external IPv4 addresses or endpoints, each for one inside
//! address or endpoint of either family.
//!
//! They are configuration and no state, the same on all nodes. Here, and not with the NAT, because
//! steering must know them as well: a packet from outside to such an end belongs to the slot of the
//! inside host that has it, where the answers' state is.
//!
//! Never gives two inside ends one external end, nor two external ends to one inside end.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use nearstate_store::{Address, Endpoint};
use thiserror::Error;

/// Static mappings that a NAT may have.
pub const STATIC_MAPPINGS_MAX: usize = 1024;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticMapping {
    /// What the world sees.
    pub external: Ipv4Addr,
    /// Who has it.
    pub inside: IpAddr,
    /// Protocol, external and inside port; `None`: the whole address, whatever runs over it.
    pub port: Option<(u8, u16, u16)>,
}

/// Static mappings that cannot be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StaticMapError {
    /// Too many.
    #[error("a NAT has at most {STATIC_MAPPINGS_MAX} static mappings, this one has {0}")]
    TooMany(usize),
    /// Two of them have one external end.
    #[error("the static mappings of {0} overlap: an external end can have one inside end only")]
    External(Ipv4Addr),
    /// Two of them have one inside end.
    #[error("the static mappings of inside {0} overlap: it can have one external end only")]
    Inside(IpAddr),
}

/// What one end is looked up by: address (IPv4-mapped), protocol and port; 0 and 0 are a whole
/// address.
type End = (u128, u8, u16);

fn address_bits(address: IpAddr) -> u128 {
    Address::from(address).bits()
}

/// Static mappings, to be looked up from either end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaticMap {
    /// External to inside end, sorted.
    inwards: Vec<(End, End)>,
    /// Inside to external end, sorted.
    outwards: Vec<(End, End)>,
}

impl StaticMap {
    /// A map of these mappings.
    ///
    /// # Errors
    /// If they are too many, or two overlap.
    pub fn new(mappings: &[StaticMapping]) -> Result<Self, StaticMapError> {
        if mappings.len() > STATIC_MAPPINGS_MAX {
            return Err(StaticMapError::TooMany(mappings.len()));
        }
        let ends = mappings.iter().map(|mapping| {
            let (protocol, external, inside) = mapping.port.unwrap_or_default();
            let end = |address, port| (address_bits(address), protocol, port);
            (end(mapping.external.into(), external), end(mapping.inside, inside))
        });
        let mut inwards: Vec<(End, End)> = ends.collect();
        let mut outwards: Vec<(End, End)> = inwards.iter().map(|(a, b)| (*b, *a)).collect();
        inwards.sort_unstable();
        outwards.sort_unstable();
        if let Some(address) = overlap(&inwards) {
            // Of the 128 bits the last 32 are the address.
            return Err(StaticMapError::External(Ipv4Addr::from_bits(address as u32)));
        }
        if let Some(address) = overlap(&outwards) {
            let address = Ipv6Addr::from_bits(address).to_canonical();
            return Err(StaticMapError::Inside(address));
        }
        Ok(Self { inwards, outwards })
    }

    /// Whether there are none: all that most packets ask.
    #[must_use]
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.inwards.is_empty()
    }

    /// The inside end of an external one.
    #[must_use]
    pub fn inside_of(&self, protocol: u8, external: &Endpoint) -> Option<Endpoint> {
        find(&self.inwards, protocol, external)
    }

    /// The external end of an inside one.
    #[must_use]
    pub fn external_of(&self, protocol: u8, inside: &Endpoint) -> Option<Endpoint> {
        find(&self.outwards, protocol, inside)
    }

    /// The mappings.
    pub fn mappings(&self) -> impl Iterator<Item = StaticMapping> + '_ {
        self.inwards.iter().map(|((external, protocol, outer), (inside, _, inner))| StaticMapping {
            external: Ipv4Addr::from_bits(*external as u32),
            inside: Ipv6Addr::from_bits(*inside).to_canonical(),
            port: (*protocol != 0).then_some((*protocol, *outer, *inner)),
        })
    }
}

/// An address of which two ends are the same, or that is mapped both whole and by its ports.
fn overlap(ends: &[(End, End)]) -> Option<u128> {
    let clash = ends.windows(2).find(|pair| {
        let ((a, a_protocol, _), (b, ..)) = (pair[0].0, pair[1].0);
        // A whole address stands before its ends.
        pair[0].0 == pair[1].0 || (a == b && a_protocol == 0)
    });
    clash.map(|pair| pair[0].0.0)
}

fn find(ends: &[(End, End)], protocol: u8, end: &Endpoint) -> Option<Endpoint> {
    if ends.is_empty() {
        return None;
    }
    let address = end.address.bits();
    let at = |wanted: End| {
        let place = ends.binary_search_by_key(&wanted, |(end, _)| *end).ok()?;
        Some(ends[place].1)
    };
    let (address, port) = match at((address, protocol, end.port)) {
        Some((address, _, port)) => (address, port),
        None => (at((address, 0, 0))?.0, end.port),
    };
    Some(Endpoint { address: Address::from_octets(address.to_be_bytes()), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(external: u8, inside: u8) -> StaticMapping {
        StaticMapping {
            external: Ipv4Addr::new(203, 0, 113, external),
            inside: [10, 0, 0, inside].into(),
            port: None,
        }
    }

    fn port(external: (u8, u16), inside: (u8, u16), protocol: u8) -> StaticMapping {
        StaticMapping {
            port: Some((protocol, external.1, inside.1)),
            ..whole(external.0, inside.0)
        }
    }

    fn outer(last: u8, port: u16) -> Endpoint {
        Endpoint::v4([203, 0, 113, last], port)
    }

    fn inner(last: u8, port: u16) -> Endpoint {
        Endpoint::v4([10, 0, 0, last], port)
    }

    #[test]
    fn ends_are_found_from_both_sides() {
        let mappings = [
            whole(1, 1),
            port((2, 443), (2, 8443), 6),
            port((2, 443), (3, 443), 17),
            port((2, 80), (3, 8080), 6),
        ];
        let map = StaticMap::new(&mappings).unwrap();
        let rows = [
            (6, outer(1, 7), Some(inner(1, 7))),
            (1, outer(1, 9), Some(inner(1, 9))),
            (6, outer(2, 443), Some(inner(2, 8443))),
            (17, outer(2, 443), Some(inner(3, 443))),
            (6, outer(2, 80), Some(inner(3, 8080))),
            (17, outer(2, 80), None),
            (6, outer(3, 443), None),
        ];
        for (protocol, external, inside) in rows {
            assert_eq!(map.inside_of(protocol, &external), inside, "{protocol} {external}");
            if let Some(inside) = inside {
                assert_eq!(map.external_of(protocol, &inside), Some(external));
            }
        }
        assert_eq!(map.external_of(6, &inner(2, 443)), None);
        assert_eq!(
            map.inside_of(6, &Endpoint { address: Address::from_octets([0x20; 16]), port: 443 }),
            None
        );
        assert_eq!(map.mappings().count(), mappings.len());
        assert!(map.mappings().all(|mapping| mappings.contains(&mapping)));
        assert!(StaticMap::default().is_empty() && !map.is_empty());
        assert_eq!(StaticMap::default().inside_of(6, &outer(1, 7)), None);
    }

    #[test]
    fn an_inside_end_may_be_of_ipv6() {
        let host: IpAddr = "2001:db8::5".parse().unwrap();
        let mappings = [
            StaticMapping { inside: host, ..port((1, 443), (0, 8443), 6) },
            whole(2, 2),
            StaticMapping { inside: "2001:db8::6".parse().unwrap(), ..whole(3, 0) },
        ];
        let map = StaticMap::new(&mappings).unwrap();
        let inside = Endpoint::new(host, 8443);
        assert_eq!(map.inside_of(6, &outer(1, 443)), Some(inside));
        assert_eq!(map.external_of(6, &inside), Some(outer(1, 443)));
        assert_eq!(map.inside_of(17, &outer(2, 9)), Some(inner(2, 9)));
        assert!(map.mappings().all(|mapping| mappings.contains(&mapping)));
        let twice =
            [mappings[0], StaticMapping { external: [203, 0, 113, 7].into(), ..mappings[0] }];
        assert_eq!(StaticMap::new(&twice), Err(StaticMapError::Inside(host)));
    }

    #[test]
    fn what_overlaps_is_refused() {
        let external = StaticMapError::External(Ipv4Addr::new(203, 0, 113, 1));
        let inside = StaticMapError::Inside([10, 0, 0, 1].into());
        let rows = [
            (vec![whole(1, 1), whole(1, 2)], external),
            (vec![port((1, 80), (2, 80), 6), whole(1, 1)], external),
            (vec![port((1, 80), (2, 80), 6), port((1, 80), (3, 80), 6)], external),
            (vec![whole(1, 1), whole(2, 1)], inside),
            (vec![port((1, 80), (1, 80), 6), port((1, 81), (1, 80), 6)], inside),
            (vec![whole(1, 1); 1025], StaticMapError::TooMany(1025)),
        ];
        for (mappings, error) in rows {
            assert_eq!(StaticMap::new(&mappings), Err(error));
        }
    }
}
