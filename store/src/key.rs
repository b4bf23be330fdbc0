//! Keys and values: fixed-size words that a table copies without looking inside.
//!
//! A key is 40 bytes: kind, protocol, tenant and two endpoints of 18 bytes. A value is 64 bytes.
//! The store gives them no meaning beyond "kind 0 is no key"; network functions do.
//!
//! ```text
//! byte  0      1         2..4     4..22              22..40
//!       kind   protocol  tenant   endpoint a         endpoint b
//!                                 address 16, port 2 address 16, port 2   (network order)
//! ```

use crate::types::TenantId;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use rkyv::{Archive, Deserialize, Serialize};

/// Bytes of a key.
pub const KEY_BYTES: usize = 40;
/// Bytes of a value kept in place.
pub const VALUE_BYTES: usize = 64;
/// Where endpoint a begins in a key.
pub const KEY_ENDPOINT_A: usize = 4;
/// Where endpoint b begins in a key.
pub const KEY_ENDPOINT_B: usize = 22;
/// Where, in the 18 bytes of an endpoint, the IPv4 address and port (6 bytes) begin.
pub const ENDPOINT_V4: usize = 12;

/// An address of either family, IPv4 as IPv4-mapped (`::ffff:a.b.c.d`), so that both have one form.
///
/// As two numbers and not as bytes: packets make, copy and compare addresses all the time, and what
/// was written in one piece is read again in one piece.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address {
    high: u64,
    low: u64,
}

/// What an IPv4-mapped address begins with, as its low word has it.
const MAPPED: u64 = 0xffff << 32;

impl Address {
    /// Of IPv4.
    #[inline]
    #[must_use]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self { high: 0, low: MAPPED | u32::from_be_bytes(octets) as u64 }
    }

    /// Of these bytes in network order.
    #[inline]
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(octets);
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    /// As one number, whose first bits are those of a prefix.
    #[inline]
    #[must_use]
    pub const fn bits(&self) -> u128 {
        (self.high as u128) << 64 | self.low as u128
    }

    /// Its bytes in network order.
    #[inline]
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        self.bits().to_be_bytes()
    }

    /// Its bytes as two little-endian words, as keys and values have them.
    #[inline]
    #[must_use]
    pub const fn words(&self) -> [u64; 2] {
        [self.high.swap_bytes(), self.low.swap_bytes()]
    }

    /// Reads back what [`Address::words`] gave.
    #[inline]
    #[must_use]
    pub const fn from_words([high, low]: [u64; 2]) -> Self {
        Self { high: high.swap_bytes(), low: low.swap_bytes() }
    }

    /// The IPv4 address, if it is one.
    #[inline]
    #[must_use]
    pub const fn ipv4(&self) -> Option<Ipv4Addr> {
        if self.high == 0 && self.low >> 32 == MAPPED >> 32 {
            Some(Ipv4Addr::from_bits(self.low as u32))
        } else {
            None
        }
    }

    /// In its own family.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.ip(), f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port (or ICMP identifier).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port or identifier, host order.
    pub port: u16,
}

impl Endpoint {
    /// An IPv4 endpoint.
    #[inline]
    #[must_use]
    pub const fn v4(address: [u8; 4], port: u16) -> Self {
        Self { address: Address::v4(address), port }
    }

    /// An endpoint of either family.
    #[must_use]
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address: address.into(), port }
    }

    /// The IPv4 address, if this is an IPv4 endpoint.
    #[inline]
    #[must_use]
    pub const fn ipv4(&self) -> Option<Ipv4Addr> {
        self.address.ipv4()
    }

    /// The address in its own family.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The 18 bytes that stand in a key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 18] {
        let mut out = [0; 18];
        out[..16].copy_from_slice(&self.address.octets());
        out[16..].copy_from_slice(&self.port.to_be_bytes());
        out
    }

    /// Reads back what [`Endpoint::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 18]) -> Self {
        let mut address = [0; 16];
        address.copy_from_slice(&bytes[..16]);
        let port = u16::from_be_bytes([bytes[16], bytes[17]]);
        Self { address: Address::from_octets(address), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            IpAddr::V4(v4) => write!(f, "{v4}:{}", self.port),
            IpAddr::V6(v6) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What finds an entry. Words are little-endian views of the 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[repr(C)]
pub struct Key(pub [u64; KEY_BYTES / 8]);

impl Key {
    /// A key of the given kind (not 0).
    ///
    /// Every packet makes keys: the words are put together directly, without a detour over bytes.
    #[inline]
    #[must_use]
    pub const fn new(kind: u8, protocol: u8, tenant: TenantId, ends: (Endpoint, Endpoint)) -> Self {
        debug_assert!(kind != 0, "kind 0 marks an empty cell");
        let ([a0, a1], [b0, b1]) = (ends.0.address.words(), ends.1.address.words());
        let (a_port, b_port) = (ends.0.port.swap_bytes() as u64, ends.1.port.swap_bytes() as u64);
        let head = kind as u64 | (protocol as u64) << 8 | (tenant.0.swap_bytes() as u64) << 16;
        Self([
            head | a0 << 32,
            a0 >> 32 | a1 << 32,
            a1 >> 32 | a_port << 32 | b0 << 48,
            b0 >> 16 | b1 << 48,
            b1 >> 16 | b_port << 48,
        ])
    }

    /// The key that these bytes spell.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut words = [0; KEY_BYTES / 8];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Self(words)
    }

    /// The 40 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// The kind; 0 only in an empty cell.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.0[0] as u8
    }

    /// The IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    /// The tenant.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        TenantId(((self.0[0] >> 16) as u16).swap_bytes())
    }

    /// The two endpoints.
    #[must_use]
    pub fn ends(&self) -> (Endpoint, Endpoint) {
        let bytes = self.to_bytes();
        let mut a = [0; 18];
        let mut b = [0; 18];
        a.copy_from_slice(&bytes[KEY_ENDPOINT_A..KEY_ENDPOINT_B]);
        b.copy_from_slice(&bytes[KEY_ENDPOINT_B..]);
        (Endpoint::from_bytes(&a), Endpoint::from_bytes(&b))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = self.ends();
        write!(f, "Key(kind {} proto {} {} {a} {b})", self.kind(), self.protocol(), self.tenant())
    }
}

/// What an entry holds: 64 bytes whose meaning belongs to the key's kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
#[repr(C)]
pub struct Value(pub [u64; VALUE_BYTES / 8]);

impl Value {
    /// All bytes zero.
    pub const ZERO: Self = Self([0; VALUE_BYTES / 8]);

    /// The value that these bytes spell.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; VALUE_BYTES]) -> Self {
        let mut words = [0; VALUE_BYTES / 8];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Self(words)
    }

    /// The 64 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; VALUE_BYTES] {
        let mut bytes = [0; VALUE_BYTES];
        for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(")?;
        for byte in self.to_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_takes_apart_what_it_was_made_of() {
        let a = Endpoint::v4([10, 1, 2, 3], 4321);
        let b = Endpoint::new("2001:db8::7".parse().unwrap(), 53);
        let key = Key::new(3, 17, TenantId(0x1234), (a, b));
        assert_eq!(key.kind(), 3);
        assert_eq!(key.protocol(), 17);
        assert_eq!(key.tenant(), TenantId(0x1234));
        assert_eq!(key.ends(), (a, b));
        assert_eq!(Key::from_bytes(&key.to_bytes()), key);
        let mut bytes = vec![3, 17, 0x12, 0x34];
        bytes.extend_from_slice(&a.to_bytes());
        bytes.extend_from_slice(&b.to_bytes());
        assert_eq!(key.to_bytes()[..], bytes, "the layout of the module's picture");
    }

    #[test]
    fn only_ipv4_mapped_addresses_are_ipv4() {
        let v4 = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(Endpoint::new(v4.into(), 1).ipv4(), Some(v4));
        for v6 in ["::1", "::fffe:c000:201", "1::ffff:c000:201", "::1:ffff:c000:201", "2001:db8::"]
        {
            assert_eq!(Endpoint::new(v6.parse().unwrap(), 1).ipv4(), None, "{v6}");
        }
    }

    #[test]
    fn an_ipv4_endpoint_keeps_address_and_port_in_six_bytes_in_a_row() {
        let bytes = Endpoint::v4([192, 0, 2, 1], 0x0102).to_bytes();
        assert_eq!(&bytes[ENDPOINT_V4..], &[192, 0, 2, 1, 1, 2]);
    }
}
