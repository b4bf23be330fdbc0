//! IPv4 headers (RFC 791).

use crate::packet::checksum::Sum;
use crate::packet::word::{get_array, get_u16, set_u16};
use crate::verdict::DropReason;
use core::fmt;
use core::net::Ipv4Addr;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;

/// Where the fields are in a header.
pub(crate) mod field {
    use core::ops::Range;
    pub(crate) const VERSION_LENGTH: usize = 0;
    pub(crate) const SERVICE: usize = 1;
    pub(crate) const TOTAL_LENGTH: usize = 2;
    pub(crate) const IDENT: usize = 4;
    pub(crate) const FLAGS_OFFSET: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
    pub(crate) const SOURCE: Range<usize> = 12..16;
    pub(crate) const DESTINATION: Range<usize> = 16..20;
}

/// The bit that asks not to fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The bit that says that more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The bits that hold the fragment offset.
pub const OFFSET_MASK: u16 = 0x1fff;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_RECORD_ROUTE: u8 = 7;
const OPTION_TIMESTAMP: u8 = 68;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// Checks the options of a header: each length must be possible, and some are refused: source
/// routes (RFC 7126 sections 4.3 and 4.4: they lead packets past what the route would allow), and
/// routes and times that are to be recorded (sections 4.5 and 4.7: they would carry the addresses
/// of what lies inside past a NAT).
///
/// # Errors
/// [`DropReason::BadIpOption`].
pub fn check_options(options: &[u8]) -> Result<(), DropReason> {
    let mut rest = options;
    while let [kind, behind @ ..] = rest {
        match *kind {
            OPTION_END => return Ok(()),
            OPTION_NOP => {
                rest = behind;
                continue;
            }
            OPTION_LOOSE_SOURCE_ROUTE
            | OPTION_STRICT_SOURCE_ROUTE
            | OPTION_RECORD_ROUTE
            | OPTION_TIMESTAMP => return Err(DropReason::BadIpOption),
            _ => {}
        }
        let length = behind.first().copied().unwrap_or(0);
        if length < 2 {
            return Err(DropReason::BadIpOption);
        }
        rest = rest.get(usize::from(length)..).ok_or(DropReason::BadIpOption)?;
    }
    Ok(())
}

/// A view of an IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Packet<T>(T);

impl<T: AsRef<[u8]>> Ipv4Packet<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a packet whose header and total length lie inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadIpHeader`], [`DropReason::BadIpVersion`] or [`DropReason::BadIpLength`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let packet = Self(bytes);
        packet.check_lengths()?;
        Ok(packet)
    }

    /// Makes sure that no getter panics, and that the packet is all there.
    #[inline]
    fn check_lengths(&self) -> Result<(), DropReason> {
        let available = self.0.as_ref().len();
        if available < HEADER_BYTES {
            return Err(DropReason::BadIpHeader);
        }
        if self.version() != 4 {
            return Err(DropReason::BadIpVersion);
        }
        if self.header_len() < HEADER_BYTES || self.header_len() > available {
            return Err(DropReason::BadIpHeader);
        }
        if self.total_len() < self.header_len() || self.total_len() > available {
            return Err(DropReason::BadIpLength);
        }
        Ok(())
    }

    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        self.0.as_ref()[field::VERSION_LENGTH] >> 4
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0.as_ref()[field::VERSION_LENGTH] & 0x0f) * 4
    }

    /// Bytes of the packet, header included.
    #[inline]
    pub fn total_len(&self) -> usize {
        usize::from(get_u16(self.0.as_ref(), field::TOTAL_LENGTH))
    }

    /// The identification.
    pub fn ident(&self) -> u16 {
        get_u16(self.0.as_ref(), field::IDENT)
    }

    /// Flags and fragment offset, as they stand.
    #[inline]
    pub fn flags_offset(&self) -> u16 {
        get_u16(self.0.as_ref(), field::FLAGS_OFFSET)
    }

    /// Whether this is a piece of a larger packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_offset() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.0.as_ref()[field::TTL]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0.as_ref()[field::PROTOCOL]
    }

    /// The header checksum.
    pub fn checksum(&self) -> u16 {
        get_u16(self.0.as_ref(), field::CHECKSUM)
    }

    /// Where it comes from.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(get_array::<4>(self.0.as_ref(), field::SOURCE.start))
    }

    /// Where it goes.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(get_array::<4>(self.0.as_ref(), field::DESTINATION.start))
    }

    /// The options, empty if there are none.
    pub fn options(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..self.header_len()]
    }

    /// What it carries, without padding behind the total length.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[self.header_len()..self.total_len()]
    }

    /// Whether the header checksum is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        let header = &self.0.as_ref()[..self.header_len()];
        // Nearly every header has this length, and a sum over a known length has no loop.
        match <&[u8; HEADER_BYTES]>::try_from(header) {
            Ok(plain) => Sum::of(plain).is_valid(),
            Err(_) => Sum::of(header).is_valid(),
        }
    }

    /// The sum of both addresses, for pseudo headers.
    #[inline]
    pub(crate) fn addresses(&self) -> Sum {
        let both: [u8; 8] = get_array(self.0.as_ref(), field::SOURCE.start);
        Sum::of(&both)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv4Packet<T> {
    /// Sets version 4 and the header's length in bytes, a multiple of 4.
    pub fn set_header_len(&mut self, bytes: usize) {
        debug_assert!(bytes.is_multiple_of(4) && (HEADER_BYTES..=60).contains(&bytes));
        self.0.as_mut()[field::VERSION_LENGTH] = 0x40 | (bytes / 4) as u8;
    }

    /// Sets the type of service byte.
    pub fn set_service(&mut self, service: u8) {
        self.0.as_mut()[field::SERVICE] = service;
    }

    /// Sets the packet's length.
    pub fn set_total_len(&mut self, bytes: u16) {
        set_u16(self.0.as_mut(), field::TOTAL_LENGTH, bytes);
    }

    /// Sets the identification.
    pub fn set_ident(&mut self, ident: u16) {
        set_u16(self.0.as_mut(), field::IDENT, ident);
    }

    /// Sets flags and fragment offset.
    pub fn set_flags_offset(&mut self, word: u16) {
        set_u16(self.0.as_mut(), field::FLAGS_OFFSET, word);
    }

    /// Sets the time to live.
    pub fn set_ttl(&mut self, ttl: u8) {
        self.0.as_mut()[field::TTL] = ttl;
    }

    /// Sets the protocol of the payload.
    pub fn set_protocol(&mut self, protocol: u8) {
        self.0.as_mut()[field::PROTOCOL] = protocol;
    }

    /// Sets where it comes from.
    pub fn set_source(&mut self, address: Ipv4Addr) {
        self.0.as_mut()[field::SOURCE].copy_from_slice(&address.octets());
    }

    /// Sets where it goes.
    pub fn set_destination(&mut self, address: Ipv4Addr) {
        self.0.as_mut()[field::DESTINATION].copy_from_slice(&address.octets());
    }

    /// Computes the header checksum anew.
    pub fn fill_checksum(&mut self) {
        set_u16(self.0.as_mut(), field::CHECKSUM, 0);
        let checksum = Sum::of(&self.0.as_ref()[..self.header_len()]).checksum();
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Ipv4Packet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IP {} > {}: proto {}, ttl {}, length {}",
            self.source(),
            self.destination(),
            self.protocol(),
            self.ttl(),
            self.total_len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet with four bytes of rubbish inside.
    const PACKET_BYTES: [u8; 24] = [
        0x45, 0x00, 0x00, 0x18, 0x12, 0x34, 0x40, 0x00, 0x40, 0x11, 0x3c, 0x65, 0xc0, 0x00, 0x02,
        0x01, 0xc6, 0x33, 0x64, 0x07, 0xaa, 0xbb, 0xcc, 0xdd,
    ];

    #[test]
    fn takes_apart() {
        let packet = Ipv4Packet::new_checked(&PACKET_BYTES).unwrap();
        assert_eq!(packet.header_len(), 20);
        assert_eq!(packet.total_len(), 24);
        assert_eq!(packet.ident(), 0x1234);
        assert_eq!(packet.flags_offset(), DONT_FRAGMENT);
        assert!(!packet.is_fragment());
        assert_eq!((packet.ttl(), packet.protocol()), (64, 17));
        assert_eq!(packet.source(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(packet.destination(), Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(packet.payload(), [0xaa, 0xbb, 0xcc, 0xdd]);
        assert_eq!(packet.options(), []);
        assert!(packet.verify_checksum());
        assert_eq!(packet.to_string(), "IP 192.0.2.1 > 198.51.100.7: proto 17, ttl 64, length 24");
    }

    #[test]
    fn builds() {
        let mut bytes = PACKET_BYTES;
        bytes[..20].fill(0xee);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        packet.set_header_len(20);
        packet.set_service(0);
        packet.set_total_len(24);
        packet.set_ident(0x1234);
        packet.set_flags_offset(DONT_FRAGMENT);
        packet.set_ttl(64);
        packet.set_protocol(17);
        packet.set_source(Ipv4Addr::new(192, 0, 2, 1));
        packet.set_destination(Ipv4Addr::new(198, 51, 100, 7));
        packet.fill_checksum();
        assert_eq!(bytes, PACKET_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        let cases: [(&str, usize, u8, DropReason); 6] = [
            ("version 5", 0, 0x55, DropReason::BadIpVersion),
            ("header of 16 bytes", 0, 0x44, DropReason::BadIpHeader),
            ("header beyond the packet", 0, 0x4f, DropReason::BadIpHeader),
            ("total length beyond the packet", 3, 25, DropReason::BadIpLength),
            ("total length below the header", 3, 19, DropReason::BadIpLength),
            ("total length 0", 3, 0, DropReason::BadIpLength),
        ];
        for (what, at, value, reason) in cases {
            let mut bytes = PACKET_BYTES;
            bytes[at] = value;
            assert_eq!(Ipv4Packet::new_checked(&bytes).err(), Some(reason), "{what}");
        }
        for cut in 0..PACKET_BYTES.len() {
            assert!(Ipv4Packet::new_checked(&PACKET_BYTES[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn options_are_checked() {
        let bad = Err(DropReason::BadIpOption);
        let cases: [(&str, &[u8], Result<(), DropReason>); 8] = [
            ("none", &[], Ok(())),
            ("end, then rubbish", &[0, 131, 0, 0], Ok(())),
            ("no operation", &[1, 1, 1, 1], Ok(())),
            ("router alert", &[148, 4, 0, 0], Ok(())),
            ("length 0", &[148, 0, 0, 0], bad),
            ("length 1", &[148, 1, 0, 0], bad),
            ("length 255", &[148, 255, 0, 0], bad),
            ("length cut off", &[1, 1, 1, 148], bad),
        ];
        for (what, options, expected) in cases {
            assert_eq!(check_options(options), expected, "{what}");
        }
        // Source routes; recorded routes and times.
        for route in [131, 137, 7, 68] {
            assert_eq!(check_options(&[route, 7, 4, 10, 0, 0, 1, 0]), bad, "option {route}");
        }
    }
}
