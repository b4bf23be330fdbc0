//! ICMPv6 headers (RFC 4443). The message has ICMP's shape, other types, and a checksum that covers
//! a pseudo header.

use crate::packet::icmp::field;
use crate::packet::word::{get_u16, set_u16, set_u32};
use crate::verdict::DropReason;
use core::fmt;

/// Bytes of the header, the four that depend on the type included.
pub const HEADER_BYTES: usize = 8;

/// Error: destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Error: packet too big.
pub const TOO_BIG: u8 = 2;
/// Error: hop limit used up.
pub const TIME_EXCEEDED: u8 = 3;
/// Error: a header field cannot be.
pub const PARAMETER_PROBLEM: u8 = 4;
/// A request to be echoed.
pub const ECHO_REQUEST: u8 = 128;
/// Answer to an echo request.
pub const ECHO_REPLY: u8 = 129;

/// Whether messages of this type quote the packet that they are about.
#[inline]
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// A view of an ICMPv6 message.
#[derive(Clone, Copy, Debug)]
pub struct Icmpv6Message<T>(T);

impl<T: AsRef<[u8]>> Icmpv6Message<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a message whose header lies inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadIcmpHeader`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let fits = bytes.as_ref().len() >= HEADER_BYTES;
        if fits { Ok(Self(bytes)) } else { Err(DropReason::BadIcmpHeader) }
    }

    /// The type.
    #[inline]
    pub fn kind(&self) -> u8 {
        self.0.as_ref()[field::TYPE]
    }

    /// The code.
    pub fn code(&self) -> u8 {
        self.0.as_ref()[field::CODE]
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        get_u16(self.0.as_ref(), field::CHECKSUM)
    }

    /// The identifier of an echo.
    #[inline]
    pub fn ident(&self) -> u16 {
        get_u16(self.0.as_ref(), field::IDENT)
    }

    /// The sequence number of an echo.
    pub fn sequence(&self) -> u16 {
        get_u16(self.0.as_ref(), field::SEQUENCE)
    }

    /// The data of an echo, or what an error quotes.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Icmpv6Message<T> {
    /// Sets type and code.
    pub fn set_kind(&mut self, kind: u8, code: u8) {
        let bytes = self.0.as_mut();
        bytes[field::TYPE] = kind;
        bytes[field::CODE] = code;
    }

    /// Sets the four bytes that depend on the type.
    pub fn set_rest(&mut self, word: u32) {
        set_u32(self.0.as_mut(), field::IDENT, word);
    }

    /// Sets the identifier of an echo.
    pub fn set_ident(&mut self, ident: u16) {
        set_u16(self.0.as_mut(), field::IDENT, ident);
    }

    /// Sets the sequence number of an echo.
    pub fn set_sequence(&mut self, sequence: u16) {
        set_u16(self.0.as_mut(), field::SEQUENCE, sequence);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, checksum: u16) {
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for Icmpv6Message<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.kind(), self.code());
        match kind {
            ECHO_REQUEST | ECHO_REPLY => {
                let what = if kind == ECHO_REQUEST { "request" } else { "reply" };
                write!(f, "ICMP6 echo {what}, id {}, seq {}", self.ident(), self.sequence())?;
            }
            UNREACHABLE => write!(f, "ICMP6 unreachable, code {code}")?,
            TOO_BIG => write!(f, "ICMP6 packet too big")?,
            TIME_EXCEEDED => write!(f, "ICMP6 time exceeded, code {code}")?,
            _ => write!(f, "ICMP6 type {kind}, code {code}")?,
        }
        write!(f, ", length {}", self.0.as_ref().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES: [u8; 12] =
        [0x80, 0x00, 0x19, 0xb3, 0x12, 0x34, 0xab, 0xcd, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn takes_apart() {
        let message = Icmpv6Message::new_checked(&MESSAGE_BYTES).unwrap();
        assert_eq!((message.kind(), message.code()), (ECHO_REQUEST, 0));
        assert_eq!((message.ident(), message.sequence()), (0x1234, 0xabcd));
        assert_eq!((message.checksum(), message.payload().len()), (0x19b3, 4));
        assert_eq!(message.to_string(), "ICMP6 echo request, id 4660, seq 43981, length 12");
    }

    #[test]
    fn builds() {
        let mut bytes = MESSAGE_BYTES;
        bytes[..8].fill(0xee);
        let mut message = Icmpv6Message::new_unchecked(&mut bytes);
        message.set_kind(ECHO_REQUEST, 0);
        message.set_ident(0x1234);
        message.set_sequence(0xabcd);
        message.set_checksum(0x19b3);
        assert_eq!(bytes, MESSAGE_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        for cut in 0..HEADER_BYTES {
            let cut_off = Icmpv6Message::new_checked(&MESSAGE_BYTES[..cut]);
            assert_eq!(cut_off.err(), Some(DropReason::BadIcmpHeader), "cut at {cut}");
        }
    }
}
