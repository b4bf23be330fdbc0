//! TCP headers (RFC 9293).

use crate::packet::word::{get_u16, get_u32, set_u16, set_u32};
use crate::verdict::DropReason;
use core::fmt;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Protocol number.
pub const PROTOCOL: u8 = 6;

/// The bits of the flag byte.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Congestion echo (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

pub(crate) mod field {
    pub(crate) const SOURCE_PORT: usize = 0;
    pub(crate) const DESTINATION_PORT: usize = 2;
    pub(crate) const SEQUENCE: usize = 4;
    pub(crate) const ACKNOWLEDGEMENT: usize = 8;
    pub(crate) const OFFSET: usize = 12;
    pub(crate) const FLAGS: usize = 13;
    pub(crate) const WINDOW: usize = 14;
    pub(crate) const CHECKSUM: usize = 16;
    pub(crate) const URGENT: usize = 18;
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
/// What nearly every segment with options begins with: two NOPs and a timestamp of 10 bytes
/// (RFC 7323 appendix A).
const TIMESTAMP_OPTIONS: [u8; 4] = [OPTION_NOP, OPTION_NOP, 8, 10];

/// Bit `n` says whether FIN, SYN, RST, ACK, URG (bits 0 to 4 of `n`) may stand together. What a TCP
/// sends: SYN alone, with URG or with ACK; RST alone or with ACK; FIN only with ACK; ACK.
const LEGAL_FLAGS: u32 = {
    const FIN: u32 = 1;
    const SYN: u32 = 2;
    const RST: u32 = 4;
    const ACK: u32 = 8;
    const URG: u32 = 16;
    (1 << SYN)
        | (1 << (SYN | URG))
        | (1 << (SYN | ACK))
        | (1 << RST)
        | (1 << (RST | ACK))
        | (1 << (FIN | ACK))
        | (1 << (FIN | ACK | URG))
        | (1 << ACK)
        | (1 << (ACK | URG))
};

/// Whether some TCP may have sent these flags. PSH, ECE and CWR go with anything.
#[inline]
#[must_use]
pub const fn flags_are_legal(flags: u8) -> bool {
    let index = (flags & 0x07) | ((flags >> 1) & 0x18);
    LEGAL_FLAGS >> index & 1 == 1
}

/// Checks that the lengths of all options are possible.
///
/// # Errors
/// [`DropReason::BadTcpHeader`].
#[inline]
pub fn check_options(options: &[u8]) -> Result<(), DropReason> {
    if options.is_empty() || (options.len() == 12 && options[..4] == TIMESTAMP_OPTIONS) {
        return Ok(());
    }
    walk_options(options)
}

fn walk_options(options: &[u8]) -> Result<(), DropReason> {
    let mut rest = options;
    loop {
        rest = match rest {
            [] | [OPTION_END, ..] => return Ok(()),
            [OPTION_NOP, behind @ ..] => behind,
            [_, length @ 2..=u8::MAX, ..] => {
                rest.get(usize::from(*length)..).ok_or(DropReason::BadTcpHeader)?
            }
            _ => return Err(DropReason::BadTcpHeader),
        };
    }
}

/// A view of a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment<T>(T);

impl<T: AsRef<[u8]>> TcpSegment<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a segment whose header lies inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadTcpHeader`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let segment = Self(bytes);
        let available = segment.0.as_ref().len();
        let fits = available >= HEADER_BYTES
            && segment.header_len() >= HEADER_BYTES
            && segment.header_len() <= available;
        if fits { Ok(segment) } else { Err(DropReason::BadTcpHeader) }
    }

    /// The sender's port.
    #[inline]
    pub fn source_port(&self) -> u16 {
        get_u16(self.0.as_ref(), field::SOURCE_PORT)
    }

    /// The receiver's port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        get_u16(self.0.as_ref(), field::DESTINATION_PORT)
    }

    /// The sequence number of the first byte (or of the SYN).
    #[inline]
    pub fn sequence(&self) -> u32 {
        get_u32(self.0.as_ref(), field::SEQUENCE)
    }

    /// The acknowledgement number, whatever the flags say.
    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        get_u32(self.0.as_ref(), field::ACKNOWLEDGEMENT)
    }

    /// Bytes of the header, options included.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0.as_ref()[field::OFFSET] >> 4) * 4
    }

    /// The flag byte, see [`flags`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0.as_ref()[field::FLAGS]
    }

    /// The window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        get_u16(self.0.as_ref(), field::WINDOW)
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        get_u16(self.0.as_ref(), field::CHECKSUM)
    }

    /// The options, empty if there are none.
    #[inline]
    pub fn options(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..self.header_len()]
    }

    /// The data.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[self.header_len()..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> TcpSegment<T> {
    /// Sets the sender's port.
    pub fn set_source_port(&mut self, port: u16) {
        set_u16(self.0.as_mut(), field::SOURCE_PORT, port);
    }

    /// Sets the receiver's port.
    pub fn set_destination_port(&mut self, port: u16) {
        set_u16(self.0.as_mut(), field::DESTINATION_PORT, port);
    }

    /// Sets the sequence number.
    pub fn set_sequence(&mut self, number: u32) {
        set_u32(self.0.as_mut(), field::SEQUENCE, number);
    }

    /// Sets the acknowledgement number.
    pub fn set_acknowledgement(&mut self, number: u32) {
        set_u32(self.0.as_mut(), field::ACKNOWLEDGEMENT, number);
    }

    /// Sets the header's length in bytes, a multiple of 4.
    pub fn set_header_len(&mut self, bytes: usize) {
        debug_assert!(bytes.is_multiple_of(4) && (HEADER_BYTES..=60).contains(&bytes));
        self.0.as_mut()[field::OFFSET] = ((bytes / 4) << 4) as u8;
    }

    /// Sets the flag byte.
    pub fn set_flags(&mut self, flags: u8) {
        self.0.as_mut()[field::FLAGS] = flags;
    }

    /// Sets the window.
    pub fn set_window(&mut self, window: u16) {
        set_u16(self.0.as_mut(), field::WINDOW, window);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, checksum: u16) {
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }

    /// Sets the urgent pointer.
    pub fn set_urgent(&mut self, pointer: u16) {
        set_u16(self.0.as_mut(), field::URGENT, pointer);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for TcpSegment<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}: Flags [", self.source_port(), self.destination_port())?;
        let names = [
            (flags::FIN, 'F'),
            (flags::SYN, 'S'),
            (flags::RST, 'R'),
            (flags::PSH, 'P'),
            (flags::URG, 'U'),
            (flags::ECE, 'E'),
            (flags::CWR, 'W'),
            (flags::ACK, '.'),
        ];
        for (_, name) in names.iter().filter(|(bit, _)| self.flags() & bit != 0) {
            write!(f, "{name}")?;
        }
        write!(f, "], seq {}", self.sequence())?;
        if self.flags() & flags::ACK != 0 {
            write!(f, ", ack {}", self.acknowledgement())?;
        }
        write!(f, ", win {}, length {}", self.window(), self.payload().len())
    }
}

#[cfg(test)]
mod tests {
    use super::flags::*;
    use super::*;

    const SEGMENT_BYTES: [u8; 26] = [
        0x9c, 0x40, 0x00, 0x50, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x60, 0x18, 0x20,
        0x00, 0x12, 0x34, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x68, 0x69,
    ];

    #[test]
    fn takes_apart() {
        let segment = TcpSegment::new_checked(&SEGMENT_BYTES).unwrap();
        assert_eq!((segment.source_port(), segment.destination_port()), (40000, 80));
        assert_eq!(segment.sequence(), 0x0123_4567);
        assert_eq!(segment.acknowledgement(), 0x89ab_cdef);
        assert_eq!(segment.header_len(), 24);
        assert_eq!(segment.flags(), ACK | PSH);
        assert_eq!((segment.window(), segment.checksum()), (8192, 0x1234));
        assert_eq!(segment.options(), [2, 4, 5, 0xb4]);
        assert_eq!(segment.payload(), b"hi");
        assert_eq!(
            segment.to_string(),
            "40000 > 80: Flags [P.], seq 19088743, ack 2309737967, win 8192, length 2"
        );
    }

    #[test]
    fn builds() {
        let mut bytes = SEGMENT_BYTES;
        bytes[..20].fill(0xee);
        let mut segment = TcpSegment::new_unchecked(&mut bytes);
        segment.set_source_port(40000);
        segment.set_destination_port(80);
        segment.set_sequence(0x0123_4567);
        segment.set_acknowledgement(0x89ab_cdef);
        segment.set_header_len(24);
        segment.set_flags(ACK | PSH);
        segment.set_window(8192);
        segment.set_checksum(0x1234);
        segment.set_urgent(0);
        assert_eq!(bytes, SEGMENT_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        for cut in 0..24 {
            let cut_off = TcpSegment::new_checked(&SEGMENT_BYTES[..cut]);
            assert_eq!(cut_off.err(), Some(DropReason::BadTcpHeader), "cut at {cut}");
        }
        for offset in [0x00, 0x40, 0x70] {
            let mut bytes = SEGMENT_BYTES;
            bytes[12] = offset;
            assert!(TcpSegment::new_checked(&bytes).is_err(), "offset {offset:#x}");
        }
    }

    #[test]
    fn only_flags_that_a_tcp_sends_are_legal() {
        let legal = [SYN, SYN | ACK, SYN | ECE | CWR, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK];
        for flags in legal {
            assert!(flags_are_legal(flags), "{flags:#04x}");
        }
        let xmas = FIN | PSH | URG;
        let illegal = [0, PSH, URG, SYN | FIN, SYN | RST, SYN | FIN | ACK, FIN, xmas, 0x3f, 0xff];
        for flags in illegal {
            assert!(!flags_are_legal(flags), "{flags:#04x}");
        }
    }

    #[test]
    fn options_are_checked() {
        let bad = Err(DropReason::BadTcpHeader);
        let cases: [(&str, &[u8], Result<(), DropReason>); 8] = [
            ("none", &[], Ok(())),
            ("timestamp", &[1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0], Ok(())),
            ("maximum segment size, end", &[2, 4, 5, 0xb4, 0, 9, 9, 9], Ok(())),
            ("unknown", &[253, 4, 0, 0], Ok(())),
            ("length 0", &[2, 0, 5, 0xb4], bad),
            ("length 1", &[2, 1, 5, 0xb4], bad),
            ("past the end", &[2, 5, 5, 0xb4], bad),
            ("length cut off", &[1, 1, 1, 2], bad),
        ];
        for (what, options, expected) in cases {
            assert_eq!(check_options(options), expected, "{what}");
        }
    }
}
