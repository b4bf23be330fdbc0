//! ICMP messages (RFC 792).

use crate::packet::checksum::Sum;
use crate::packet::icmp_message::Message;
use core::fmt;

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

/// Whether messages of this type quote the packet that they are about. Source quench (4, RFC 6633)
/// and redirect (5: not for hosts behind a router) are not let through.
#[inline]
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// ICMP, as [`Message`] names it.
#[derive(Clone, Copy, Debug)]
pub enum Icmp {}

/// A view of an ICMP message.
pub type IcmpMessage<T> = Message<T, Icmp>;

impl<T: AsRef<[u8]>> IcmpMessage<T> {
    /// Whether the checksum over the whole message is right.
    pub fn verify_checksum(&self) -> bool {
        Sum::of(self.bytes()).is_valid()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> IcmpMessage<T> {
    /// Computes the checksum anew.
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        self.set_checksum(Sum::of(self.bytes()).checksum());
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
        write!(f, ", length {}", self.bytes().len())
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
}
