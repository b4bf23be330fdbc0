//! ICMPv6 messages (RFC 4443): ICMP's shape, other types, and a checksum that covers a pseudo
//! header as well, so those who know the addresses compute it.

use crate::packet::icmp_message::Message;
use core::fmt;

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

/// ICMPv6, as [`Message`] names it.
#[derive(Clone, Copy, Debug)]
pub enum Icmpv6 {}

/// A view of an ICMPv6 message.
pub type Icmpv6Message<T> = Message<T, Icmpv6>;

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
        write!(f, ", length {}", self.bytes().len())
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
}
