//! The IPv6 prefix behind which a NAT64 shows IPv4 addresses (RFC 6052): how an address is embedded
//! into it and taken out again, and which addresses must not be.
//!
//! ```text
//! length  bits of the IPv6 address that hold the IPv4 address
//!   32    32..64
//!   40    40..64, 72..80
//!   48    48..64, 72..88
//!   56    56..64, 72..96
//!   64            72..104
//!   96                    96..128
//! ```
//!
//! Bits 64 to 71 are zero (section 2.2), and so is what stands behind the IPv4 address. An address
//! in the prefix with other bits there stands for nobody: an answer would come from another address
//! than the one that was asked. Pure arithmetic; what is done with an address is not decided here.

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use nearstate_store::Address;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Lengths that a prefix may have (RFC 6052 section 2.2).
pub const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The lower half of an IPv6 address, where bits 64 to 71 come first.
const LOWER_HALF: u128 = u64::MAX as u128;
/// Bits 64 to 71.
const RESERVED_BITS: u128 = 0xff << 56;

/// What the well-known prefix must not stand for (RFC 6052 section 3.1): private addresses, those
/// of RFC 5735 section 3, and the shared ones of RFC 6598.
const NOT_GLOBAL: [([u8; 4], u8); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// A prefix that no NAT64 can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("NAT64 prefix '{text}': {why}")]
pub struct Nat64PrefixError {
    text: String,
    why: &'static str,
}

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nat64Prefix {
    bits: u128,
    length: u8,
}

impl Nat64Prefix {
    /// `64:ff9b::/96` (RFC 6052 section 2.1).
    pub const WELL_KNOWN: Self = Self { bits: 0x0064_ff9b << 96, length: 96 };

    /// The prefix of the first `length` bits of this address.
    ///
    /// # Errors
    /// Says why it cannot be.
    pub fn new(address: Ipv6Addr, length: u8) -> Result<Self, Nat64PrefixError> {
        let bits = address.to_bits();
        let wrong = |why| Err(Nat64PrefixError { text: format!("{address}/{length}"), why });
        if !LENGTHS.contains(&length) {
            return wrong("its length must be 32, 40, 48, 56, 64 or 96 (RFC 6052 section 2.2)");
        }
        let prefix = Self { bits, length };
        if bits & !prefix.mask() != 0 {
            return wrong("bits are set behind its length");
        }
        if bits & RESERVED_BITS != 0 {
            return wrong("its bits 64 to 71 must be 0 (RFC 6052 section 2.2)");
        }
        // ::/96 and ::ffff:0:0/96 mean something else (RFC 4291 section 2.5.5).
        let is_special = matches!(bits >> 32, 0 | 0xffff);
        if is_special || address.is_multicast() || address.is_unicast_link_local() {
            return wrong("hosts are never reached by such addresses");
        }
        Ok(prefix)
    }

    const fn mask(&self) -> u128 {
        u128::MAX << (128 - self.length)
    }

    /// Whether an address begins with it.
    #[must_use]
    #[inline]
    pub const fn holds(&self, address: &Address) -> bool {
        address.bits() & self.mask() == self.bits
    }

    /// The address that stands for an IPv4 address.
    #[must_use]
    #[inline]
    pub const fn embed(&self, address: Ipv4Addr) -> Address {
        let address = address.to_bits() as u128;
        let bits = if self.length == 96 {
            address
        } else {
            let straight = address << (96 - self.length);
            (straight & !LOWER_HALF) | ((straight & LOWER_HALF) >> 8)
        };
        Address::from_octets((self.bits | bits).to_be_bytes())
    }

    /// The IPv4 address that an address stands for.
    #[must_use]
    #[inline]
    pub fn extract(&self, address: &Address) -> Option<Ipv4Addr> {
        let bits = address.bits();
        let straight = if self.length == 96 {
            bits
        } else {
            ((bits & !LOWER_HALF) | ((bits << 8) & LOWER_HALF)) >> (96 - self.length)
        };
        let found = Ipv4Addr::from_bits(straight as u32);
        (self.embed(found) == *address).then_some(found)
    }

    /// Whether this prefix may stand for an IPv4 address: the well-known one for global addresses
    /// only, any other for all that a packet may go to.
    #[must_use]
    #[inline]
    pub fn may_stand_for(&self, address: Ipv4Addr) -> bool {
        *self != Self::WELL_KNOWN || is_global(address)
    }
}

fn is_global(address: Ipv4Addr) -> bool {
    !NOT_GLOBAL.iter().any(|(network, length)| {
        let differing = address.to_bits() ^ u32::from_be_bytes(*network);
        differing.leading_zeros() >= u32::from(*length)
    })
}

impl Default for Nat64Prefix {
    fn default() -> Self {
        Self::WELL_KNOWN
    }
}

impl FromStr for Nat64Prefix {
    type Err = Nat64PrefixError;

    fn from_str(text: &str) -> Result<Self, Nat64PrefixError> {
        let wrong = |why| Nat64PrefixError { text: text.to_owned(), why };
        let (address, length) =
            text.split_once('/').ok_or_else(|| wrong("write it as 64:ff9b::/96"))?;
        let address = address.parse().map_err(|_| wrong("it is not an IPv6 address"))?;
        let length = length.parse().map_err(|_| wrong("its length is no number"))?;
        Self::new(address, length)
    }
}

impl TryFrom<String> for Nat64Prefix {
    type Error = Nat64PrefixError;

    fn try_from(text: String) -> Result<Self, Nat64PrefixError> {
        text.parse()
    }
}

impl fmt::Display for Nat64Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.bits), self.length)
    }
}

impl From<Nat64Prefix> for String {
    fn from(prefix: Nat64Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Nat64Prefix {
        text.parse().unwrap()
    }

    fn six(text: &str) -> Address {
        Address::from_octets(text.parse::<Ipv6Addr>().unwrap().octets())
    }

    /// RFC 6052 section 2.4, tables 2 and 3: all of them stand for 192.0.2.33.
    const VECTORS: [(&str, &str); 7] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn the_vectors_of_rfc_6052_section_2_4() {
        let host = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix_text, address) in VECTORS {
            let prefix = prefix(prefix_text);
            assert_eq!(prefix.embed(host), six(address), "{prefix_text}");
            assert_eq!(prefix.extract(&six(address)), Some(host), "{prefix_text}");
            assert_eq!(prefix.to_string(), prefix_text);
        }
        assert_eq!(prefix("64:ff9b::/96"), Nat64Prefix::WELL_KNOWN);
    }

    #[test]
    fn other_bits_behind_a_prefix_stand_for_nobody() {
        let rows = [
            ("2001:db8::/32", "2001:db8:c000:221:0100::", "bits 64 to 71"),
            ("2001:db8::/32", "2001:db8:c000:221::1", "the suffix"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:1c0:2:2100::", "bits 64 to 71"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:1", "the suffix"),
            ("2001:db8:122:344::/96", "2001:db8:122:345::192.0.2.33", "another prefix"),
            ("64:ff9b::/96", "64:ff9b:1::192.0.2.33", "another prefix"),
        ];
        for (prefix_text, address, what) in rows {
            assert_eq!(prefix(prefix_text).extract(&six(address)), None, "{prefix_text}, {what}");
            let is_inside = what != "another prefix";
            assert_eq!(prefix(prefix_text).holds(&six(address)), is_inside, "{prefix_text}");
        }
    }

    #[test]
    fn prefixes_that_cannot_be_are_refused() {
        let rows = [
            ("64:ff9b::", "write it as"),
            ("64:ff9b::/x", "no number"),
            ("192.0.2.0/24", "not an IPv6 address"),
            ("2001:db8::/33", "32, 40, 48, 56, 64 or 96"),
            ("2001:db8::/128", "32, 40, 48, 56, 64 or 96"),
            ("2001:db8::1/32", "behind its length"),
            ("2001:db8:122:344:100::/96", "bits 64 to 71"),
            ("::/96", "never reached"),
            ("::ffff:0.0.0.0/96", "never reached"),
            ("ff0e::/32", "never reached"),
            ("fe80::/64", "never reached"),
        ];
        for (text, said) in rows {
            let error = text.parse::<Nat64Prefix>().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn the_well_known_prefix_stands_for_global_addresses_only() {
        let (known, own) = (Nat64Prefix::WELL_KNOWN, prefix("2001:db8:64::/96"));
        let not_global = [
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.127.0.1",
            "169.254.1.1",
            "127.0.0.1",
            "0.0.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.19.255.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.88.99.1",
        ];
        for text in not_global {
            let address = text.parse().unwrap();
            assert!(!known.may_stand_for(address), "{text}");
            assert!(own.may_stand_for(address), "{text}");
        }
        for text in ["8.8.8.8", "172.32.0.1", "192.0.1.1", "100.128.0.1", "198.20.0.1", "1.1.1.1"] {
            assert!(known.may_stand_for(text.parse().unwrap()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_embedded_is_taken_out_again(which in 0..LENGTHS.len(), address in any::<u32>()) {
            let length = LENGTHS[which];
            let network = Ipv6Addr::new(0x2001, 0xdb8, 0x122, 0x344, 0, 0, 0, 0).to_bits();
            let mask = u128::MAX << (128 - length);
            let prefix = Nat64Prefix::new(Ipv6Addr::from_bits(network & mask), length).unwrap();
            let address = Ipv4Addr::from_bits(address);
            let six = prefix.embed(address);
            prop_assert_eq!(six.octets()[8], 0, "bits 64 to 71");
            prop_assert!(prefix.holds(&six));
            prop_assert_eq!(prefix.extract(&six), Some(address));
        }
    }
}
