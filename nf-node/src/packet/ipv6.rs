//! IPv6 headers and the extension headers behind them (RFC 8200).

use crate::packet::word::{get_array, get_u16, get_u32, set_u16, set_u32};
use crate::verdict::DropReason;
use core::fmt;
use core::net::Ipv6Addr;

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;
/// Extension headers that are skipped before a packet is refused.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// Protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// Protocol number of the fragment header.
pub const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Bytes of a fragment header; also the least that any extension header has.
const FRAGMENT_BYTES: usize = 8;
/// Where the identification is in a fragment header.
const FRAGMENT_IDENT: usize = 4;
/// Offset and "more" bit of a fragment header's third and fourth byte.
const FRAGMENT_MASK: u16 = 0xfff9;
/// The offset alone.
const OFFSET_MASK: u16 = 0xfff8;

pub(crate) mod field {
    use core::ops::Range;
    pub(crate) const VERSION: usize = 0;
    pub(crate) const PAYLOAD_LENGTH: usize = 4;
    pub(crate) const NEXT_HEADER: usize = 6;
    pub(crate) const HOP_LIMIT: usize = 7;
    pub(crate) const SOURCE: Range<usize> = 8..24;
    pub(crate) const DESTINATION: Range<usize> = 24..40;
}

/// What lies behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer {
    /// Its protocol.
    pub protocol: u8,
    /// Where it begins, counted from the start of the bytes that were given.
    pub at: usize,
    /// Whether a fragment header with an offset of 0 that announces more fragments was skipped.
    pub first_fragment: bool,
}

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Where it begins, counted from the start of the bytes that were given.
    pub at: usize,
    /// What follows in the first fragment.
    pub next: u8,
    /// Where the fragment's bytes belong, in units of eight.
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// The datagram's identification.
    pub ident: u32,
}

impl FragmentHeader {
    /// Where the fragment's bytes begin, counted as `at` is.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.at + FRAGMENT_BYTES
    }

    /// Where the identification is.
    #[must_use]
    pub const fn ident_at(&self) -> usize {
        self.at + FRAGMENT_IDENT
    }
}

/// An extension header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extension<'a> {
    pub(crate) kind: u8,
    /// Counted from the IPv6 header's beginning.
    pub(crate) at: usize,
    /// Its first eight bytes; the first says what comes next.
    pub(crate) head: &'a [u8],
}

impl Extension<'_> {
    /// What a fragment header says of offset and more fragments; 0 in an atomic fragment, which is
    /// a whole packet (RFC 6946), and in all other headers.
    pub(crate) fn fragment_word(&self) -> u16 {
        if self.kind == FRAGMENT { get_u16(self.head, 2) & FRAGMENT_MASK } else { 0 }
    }
}

/// Walks over extension headers, up to the first that is wrong.
pub(crate) struct Extensions<'a> {
    packet: &'a [u8],
    /// What comes next, and where: behind the last, the upper layer.
    next: u8,
    at: usize,
    seen: usize,
}

impl<'a> Extensions<'a> {
    /// `packet` begins with an IPv6 header.
    pub(crate) fn of(packet: &'a [u8]) -> Result<Self, DropReason> {
        let next = *packet.get(field::NEXT_HEADER).ok_or(DropReason::BadIpHeader)?;
        Ok(Self { packet, next, at: HEADER_BYTES, seen: 0 })
    }

    /// The next header, if that is one of the extensions that may be there.
    fn step(&mut self) -> Result<Option<Extension<'a>>, DropReason> {
        if !matches!(self.next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            return Ok(None);
        }
        let (kind, at) = (self.next, self.at);
        let wrong = DropReason::BadExtensionHeader;
        let head = self.packet.get(at..at + FRAGMENT_BYTES).ok_or(wrong)?;
        let length = match kind {
            _ if self.seen == EXTENSION_HEADERS_MAX => return Err(wrong),
            FRAGMENT => FRAGMENT_BYTES,
            // RFC 8200 section 4.1: only immediately behind the IPv6 header.
            HOP_BY_HOP if self.seen > 0 => return Err(wrong),
            ROUTING if head[2] == 0 || head[3] != 0 => return Err(wrong),
            _ => (usize::from(head[1]) + 1) * 8,
        };
        if at + length > self.packet.len() {
            return Err(wrong);
        }
        (self.next, self.at, self.seen) = (head[0], at + length, self.seen + 1);
        Ok(Some(Extension { kind, at, head }))
    }
}

impl<'a> Iterator for Extensions<'a> {
    type Item = Result<Extension<'a>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// The header that makes a packet a fragment. `packet` as for [`skip_extensions`].
///
/// # Errors
/// [`DropReason::BadExtensionHeader`] as there, [`DropReason::Fragment`] if there is none.
pub fn fragment_header(packet: &[u8]) -> Result<FragmentHeader, DropReason> {
    for extension in Extensions::of(packet)? {
        let extension = extension?;
        let word = extension.fragment_word();
        if word != 0 {
            return Ok(FragmentHeader {
                at: extension.at,
                next: extension.head[0],
                offset: (word & OFFSET_MASK) / 8,
                more: word & !OFFSET_MASK != 0,
                ident: get_u32(extension.head, FRAGMENT_IDENT),
            });
        }
    }
    Err(DropReason::Fragment)
}

/// Skips extension headers. `packet` begins with the IPv6 header and ends where the packet does.
/// A first fragment is skipped too and reported, so that the packet quoted in an ICMP error can be
/// one; a later fragment has no upper-layer header.
///
/// # Errors
/// [`DropReason::BadExtensionHeader`] if one does not fit, there are more than
/// [`EXTENSION_HEADERS_MAX`], hop-by-hop options are not the first, or a routing header is of type
/// 0 (RFC 5095) or has segments left: the packet's destination is not where it goes then.
/// [`DropReason::Fragment`] for a later fragment.
pub fn skip_extensions(packet: &[u8]) -> Result<UpperLayer, DropReason> {
    let mut extensions = Extensions::of(packet)?;
    let mut first_fragment = false;
    while let Some(extension) = extensions.step()? {
        // RFC 8200 section 4.1: there is one at most. An atomic one is none (RFC 6946).
        if extension.kind == FRAGMENT && first_fragment {
            return Err(DropReason::BadExtensionHeader);
        }
        let word = extension.fragment_word();
        if word & OFFSET_MASK != 0 {
            return Err(DropReason::Fragment);
        }
        first_fragment |= word != 0;
    }
    Ok(UpperLayer { protocol: extensions.next, at: extensions.at, first_fragment })
}

/// A view of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Packet<T>(T);

impl<T: AsRef<[u8]>> Ipv6Packet<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a packet whose header and payload length lie inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadIpHeader`], [`DropReason::BadIpVersion`] or [`DropReason::BadIpLength`].
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let packet = Self(bytes);
        let available = packet.0.as_ref().len();
        if available < HEADER_BYTES {
            return Err(DropReason::BadIpHeader);
        }
        if packet.version() != 6 {
            return Err(DropReason::BadIpVersion);
        }
        if packet.total_len() > available {
            return Err(DropReason::BadIpLength);
        }
        Ok(packet)
    }

    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        self.0.as_ref()[field::VERSION] >> 4
    }

    /// Bytes behind the fixed header.
    #[inline]
    pub fn payload_len(&self) -> usize {
        usize::from(get_u16(self.0.as_ref(), field::PAYLOAD_LENGTH))
    }

    /// Bytes of the packet, fixed header included.
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_BYTES + self.payload_len()
    }

    /// What follows the fixed header.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.0.as_ref()[field::NEXT_HEADER]
    }

    /// Hops that are left.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.0.as_ref()[field::HOP_LIMIT]
    }

    /// Where it comes from.
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(get_array::<16>(self.0.as_ref(), field::SOURCE.start))
    }

    /// Where it goes.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(get_array::<16>(self.0.as_ref(), field::DESTINATION.start))
    }

    /// What follows the fixed header, without padding.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..self.total_len()]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv6Packet<T> {
    /// Sets version 6, no traffic class, no flow label.
    pub fn set_version(&mut self) {
        set_u32(self.0.as_mut(), field::VERSION, 6 << 28);
    }

    /// Sets the length of what follows the fixed header.
    pub fn set_payload_len(&mut self, bytes: u16) {
        set_u16(self.0.as_mut(), field::PAYLOAD_LENGTH, bytes);
    }

    /// Sets what follows the fixed header.
    pub fn set_next_header(&mut self, protocol: u8) {
        self.0.as_mut()[field::NEXT_HEADER] = protocol;
    }

    /// Sets the hops that are left.
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.0.as_mut()[field::HOP_LIMIT] = hops;
    }

    /// Sets where it comes from.
    pub fn set_source(&mut self, address: Ipv6Addr) {
        self.0.as_mut()[field::SOURCE].copy_from_slice(&address.octets());
    }

    /// Sets where it goes.
    pub fn set_destination(&mut self, address: Ipv6Addr) {
        self.0.as_mut()[field::DESTINATION].copy_from_slice(&address.octets());
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Ipv6Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IP6 {} > {}: next-header {}, hlim {}, payload length {}",
            self.source(),
            self.destination(),
            self.next_header(),
            self.hop_limit(),
            self.payload_len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET_BYTES: [u8; 44] = [
        0x60, 0, 0, 0, 0, 4, 17, 64, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xaa, 0xbb, 0xcc, 0xdd,
    ];

    #[test]
    fn takes_apart() {
        let packet = Ipv6Packet::new_checked(&PACKET_BYTES).unwrap();
        assert_eq!((packet.payload_len(), packet.total_len()), (4, 44));
        assert_eq!((packet.next_header(), packet.hop_limit()), (17, 64));
        assert_eq!(packet.source().to_string(), "2001:db8::1");
        assert_eq!(packet.destination().to_string(), "2001:db8::2");
        assert_eq!(packet.payload(), [0xaa, 0xbb, 0xcc, 0xdd]);
        assert_eq!(
            packet.to_string(),
            "IP6 2001:db8::1 > 2001:db8::2: next-header 17, hlim 64, payload length 4"
        );
    }

    #[test]
    fn builds() {
        let mut bytes = PACKET_BYTES;
        bytes[..40].fill(0xee);
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
        packet.set_version();
        packet.set_payload_len(4);
        packet.set_next_header(17);
        packet.set_hop_limit(64);
        packet.set_source("2001:db8::1".parse().unwrap());
        packet.set_destination("2001:db8::2".parse().unwrap());
        assert_eq!(bytes, PACKET_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        for cut in 0..PACKET_BYTES.len() {
            assert!(Ipv6Packet::new_checked(&PACKET_BYTES[..cut]).is_err(), "cut at {cut}");
        }
        let mut bytes = PACKET_BYTES;
        bytes[0] = 0x45;
        assert_eq!(Ipv6Packet::new_checked(&bytes).err(), Some(DropReason::BadIpVersion));
    }

    /// An extension header of 8 bytes: its kind, and its bytes 1 to 3.
    type Header = (u8, [u8; 3]);

    /// A fixed header and extension headers.
    fn chain(headers: &[Header], last: u8) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let kinds = headers.iter().map(|header| header.0).chain([last]);
        let mut at = field::NEXT_HEADER;
        for (kind, rest) in kinds.zip(headers.iter().map(|h| h.1).chain([[0; 3]])) {
            bytes[at] = kind;
            at = bytes.len();
            bytes.extend([0, rest[0], rest[1], rest[2], 0, 0, 0, 0]);
        }
        bytes
    }

    #[test]
    fn extension_headers_are_skipped_up_to_the_limit() {
        let options = (DESTINATION_OPTIONS, [0; 3]);
        let bad = Err(DropReason::BadExtensionHeader);
        let found = |at, first_fragment| Ok(UpperLayer { protocol: 6, at, first_fragment });
        let cases: Vec<(&str, Vec<Header>, Result<UpperLayer, DropReason>)> = vec![
            ("none", vec![], found(40, false)),
            ("hop-by-hop, options", vec![(HOP_BY_HOP, [0; 3]), options], found(56, false)),
            ("hop-by-hop second", vec![options, (HOP_BY_HOP, [0; 3])], bad),
            ("as many as allowed", vec![options; EXTENSION_HEADERS_MAX], found(104, false)),
            ("one more", vec![options; EXTENSION_HEADERS_MAX + 1], bad),
            ("a hundred", vec![options; 100], bad),
            ("routing type 0", vec![(ROUTING, [0, 0, 0])], bad),
            ("routing with segments left", vec![(ROUTING, [0, 4, 1])], bad),
            ("routing, arrived", vec![(ROUTING, [0, 4, 0])], found(48, false)),
            ("beyond the packet", vec![(DESTINATION_OPTIONS, [9, 0, 0])], bad),
            ("atomic fragment", vec![(FRAGMENT, [0xff, 0, 0])], found(48, false)),
            ("first fragment", vec![(FRAGMENT, [0, 0, 1])], found(48, true)),
            ("later fragment", vec![(FRAGMENT, [0, 1, 0])], Err(DropReason::Fragment)),
            ("two of them", vec![(FRAGMENT, [0, 0, 1]), (FRAGMENT, [0, 0, 1])], bad),
        ];
        for (what, headers, expected) in cases {
            assert_eq!(skip_extensions(&chain(&headers, 6)), expected, "{what}");
        }
        let cut = chain(&[options], 6);
        assert_eq!(skip_extensions(&cut[..44]), bad);
    }

    #[test]
    fn the_fragment_header_is_found_behind_others_and_atomic_ones_are_none() {
        let options = (DESTINATION_OPTIONS, [0; 3]);
        let found = |at, offset, more| Ok(FragmentHeader { at, next: 6, offset, more, ident: 0 });
        let atomic = (FRAGMENT, [0xff, 0, 0]);
        let cases: Vec<(&str, Vec<Header>, Result<FragmentHeader, DropReason>)> = vec![
            ("none", vec![options], Err(DropReason::Fragment)),
            ("atomic", vec![atomic], Err(DropReason::Fragment)),
            ("first", vec![options, (FRAGMENT, [0, 0, 1])], found(48, 0, true)),
            ("later", vec![(FRAGMENT, [0, 0x12, 0x31])], found(40, 0x1230 / 8, true)),
            ("last", vec![atomic, (FRAGMENT, [0, 0, 8])], found(48, 1, false)),
            ("reserved bits", vec![(FRAGMENT, [0xff, 0, 0xe])], found(40, 1, false)),
            ("too many", vec![options; 10], Err(DropReason::BadExtensionHeader)),
        ];
        for (what, headers, expected) in cases {
            assert_eq!(fragment_header(&chain(&headers, 6)), expected, "{what}");
        }
        let first = chain(&[(FRAGMENT, [0, 0, 1])], 6);
        assert_eq!(fragment_header(&first[..47]), Err(DropReason::BadExtensionHeader));
    }
}
