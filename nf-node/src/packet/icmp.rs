//! ICMP headers (RFC 792).

use crate::packet::checksum::Sum;
use crate::packet::word::{get_u16, set_u16, set_u32};
use crate::verdict::DropReason;
use core::fmt;

/// Bytes of the header, the four that depend on the type included.
pub const HEADER_BYTES: usize = 8;

/// Answer to an echo request.
pub const ECHO_REPLY: u8 = 0;
/// Error: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// A request to be echoed.
pub const ECHO_REQUEST: u8 = 8;
/// Error: time to live used up.
pub const TIME_EXCEEDED: u8 = 11;
/// Error: a header field cannot be.
pub const PARAMETER_PROBLEM: u8 = 12;

pub(crate) mod field {
    pub(crate) const TYPE: usize = 0;
    pub(crate) const CODE: usize = 1;
    pub(crate) const CHECKSUM: usize = 2;
    pub(crate) const IDENT: usize = 4;
    pub(crate) const SEQUENCE: usize = 6;
}

/// Whether messages of this type quote the packet that they are about. Source quench (4, RFC 6633)
/// and redirect (5: not for hosts behind a router) are not let through.
#[inline]
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// A view of an ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct IcmpMessage<T>(T);

impl<T: AsRef<[u8]>> IcmpMessage<T> {
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

    /// Whether the checksum over the whole message is right.
    pub fn verify_checksum(&self) -> bool {
        Sum::of(self.0.as_ref()).is_valid()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> IcmpMessage<T> {
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

    /// Computes the checksum anew.
    pub fn fill_checksum(&mut self) {
        set_u16(self.0.as_mut(), field::CHECKSUM, 0);
        let checksum = Sum::of(self.0.as_ref()).checksum();
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for IcmpMessage<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.kind(), self.code());
        match kind {
            ECHO_REQUEST | ECHO_REPLY => {
                let what = if kind == ECHO_REQUEST { "request" } else { "reply" };
                write!(f, "ICMP echo {what}, id {}, seq {}", self.ident(), self.sequence())?;
            }
            UNREACHABLE => write!(f, "ICMP unreachable, code {code}")?,
            TIME_EXCEEDED => write!(f, "ICMP time exceeded, code {code}")?,
            _ => write!(f, "ICMP type {kind}, code {code}")?,
        }
        write!(f, ", length {}", self.0.as_ref().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE_BYTES: [u8; 12] =
        [0x08, 0x00, 0x8e, 0xfe, 0x12, 0x34, 0xab, 0xcd, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn takes_apart() {
        let message = IcmpMessage::new_checked(&MESSAGE_BYTES).unwrap();
        assert_eq!((message.kind(), message.code()), (ECHO_REQUEST, 0));
        assert_eq!((message.ident(), message.sequence()), (0x1234, 0xabcd));
        assert_eq!((message.checksum(), message.payload().len()), (0x8efe, 4));
        assert!(message.verify_checksum());
        assert_eq!(message.to_string(), "ICMP echo request, id 4660, seq 43981, length 12");
    }

    #[test]
    fn builds() {
        let mut bytes = MESSAGE_BYTES;
        bytes[..8].fill(0xee);
        let mut message = IcmpMessage::new_unchecked(&mut bytes);
        message.set_kind(ECHO_REQUEST, 0);
        message.set_ident(0x1234);
        message.set_sequence(0xabcd);
        message.fill_checksum();
        assert_eq!(bytes, MESSAGE_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        for cut in 0..HEADER_BYTES {
            let cut_off = IcmpMessage::new_checked(&MESSAGE_BYTES[..cut]);
            assert_eq!(cut_off.err(), Some(DropReason::BadIcmpHeader), "cut at {cut}");
        }
    }
}
