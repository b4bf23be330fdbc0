//! What an ICMP message is called in the other protocol: types, codes, pointers and MTUs
//! (RFC 7915 sections 4.2 and 5.2). Tables and arithmetic; no message is touched here.
//!
//! What has no counterpart is `None`, and its packet is dropped: that is what both sections ask.

use crate::packet::{icmp, icmpv6};

/// Bytes that an IPv6 header has more than one of IPv4.
const HEADERS_DIFFER_BY: u32 = 20;
/// The least MTU of IPv6 (RFC 8200 section 5): no smaller one is ever told (RFC 7915 section 5).
pub(crate) const MTU_MIN: u32 = 1280;
/// Where the next header stands in an IPv6 header.
const NEXT_HEADER_POINTER: u32 = 6;
/// Codes of ICMP unreachable that are more than "no way there".
const PROTOCOL_UNREACHABLE: u8 = 2;
const PORT_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// MTUs that links have (RFC 1191 section 7.1): what a router that tells none may have had.
const PLATEAUS: [u16; 10] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296];
/// The least MTU of IPv4.
const PLATEAU_MIN: u16 = 68;

/// The first eight bytes of a message without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    /// The four bytes that depend on the type.
    pub(crate) rest: u32,
}

impl Head {
    const fn new(kind: u8, code: u8, rest: u32) -> Option<Self> {
        Some(Self { kind, code, rest })
    }
}

/// The type of an echo in the other protocol.
pub(crate) const fn echo_type(kind: u8) -> u8 {
    match kind {
        icmp::ECHO_REQUEST => icmpv6::ECHO_REQUEST,
        icmp::ECHO_REPLY => icmpv6::ECHO_REPLY,
        icmpv6::ECHO_REQUEST => icmp::ECHO_REQUEST,
        _ => icmp::ECHO_REPLY,
    }
}

/// An ICMPv6 error as one of ICMP (RFC 7915 section 5.2).
pub(crate) fn error_to_v4(head: Head) -> Option<Head> {
    let Head { kind, code, rest } = head;
    match (kind, code) {
        // No route, beyond the scope, address unreachable: host unreachable.
        (icmpv6::UNREACHABLE, 0 | 2 | 3) => Head::new(icmp::UNREACHABLE, 1, 0),
        // Prohibited.
        (icmpv6::UNREACHABLE, 1) => Head::new(icmp::UNREACHABLE, 10, 0),
        (icmpv6::UNREACHABLE, 4) => Head::new(icmp::UNREACHABLE, PORT_UNREACHABLE, 0),
        (icmpv6::TOO_BIG, _) => {
            let mtu = rest.saturating_sub(HEADERS_DIFFER_BY).min(u16::MAX.into());
            Head::new(icmp::UNREACHABLE, FRAGMENTATION_NEEDED, mtu)
        }
        (icmpv6::TIME_EXCEEDED, code) => Head::new(icmp::TIME_EXCEEDED, code, 0),
        (icmpv6::PARAMETER_PROBLEM, 0) => {
            let pointer = pointer_to_v4(rest)?;
            Head::new(icmp::PARAMETER_PROBLEM, 0, u32::from(pointer) << 24)
        }
        // An unknown next header: protocol unreachable.
        (icmpv6::PARAMETER_PROBLEM, 1) => Head::new(icmp::UNREACHABLE, PROTOCOL_UNREACHABLE, 0),
        _ => None,
    }
}

/// An ICMP error as one of ICMPv6 (RFC 7915 section 4.2). `quoted_len` is the total length that
/// the quoted packet says it had.
pub(crate) fn error_to_v6(head: Head, quoted_len: u16) -> Option<Head> {
    let Head { kind, code, rest } = head;
    match (kind, code) {
        (icmp::UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => Head::new(icmpv6::UNREACHABLE, 0, 0),
        (icmp::UNREACHABLE, PROTOCOL_UNREACHABLE) => {
            Head::new(icmpv6::PARAMETER_PROBLEM, 1, NEXT_HEADER_POINTER)
        }
        (icmp::UNREACHABLE, PORT_UNREACHABLE) => Head::new(icmpv6::UNREACHABLE, 4, 0),
        (icmp::UNREACHABLE, FRAGMENTATION_NEEDED) => {
            let told = rest as u16;
            let mtu = if told == 0 { likely_mtu(quoted_len) } else { told };
            Head::new(icmpv6::TOO_BIG, 0, (u32::from(mtu) + HEADERS_DIFFER_BY).max(MTU_MIN))
        }
        (icmp::UNREACHABLE, 9 | 10 | 13 | 15) => Head::new(icmpv6::UNREACHABLE, 1, 0),
        (icmp::TIME_EXCEEDED, code) => Head::new(icmpv6::TIME_EXCEEDED, code, 0),
        (icmp::PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = pointer_to_v6((rest >> 24) as u8)?;
            Head::new(icmpv6::PARAMETER_PROBLEM, 0, pointer.into())
        }
        _ => None,
    }
}

/// The greatest plateau below the length of a packet that was too big.
fn likely_mtu(quoted_len: u16) -> u16 {
    PLATEAUS.into_iter().find(|plateau| *plateau < quoted_len).unwrap_or(PLATEAU_MIN)
}

/// The field of an IPv4 header that a field of an IPv6 header became (RFC 7915 figure 6).
const fn pointer_to_v4(pointer: u32) -> Option<u8> {
    Some(match pointer {
        0 => 0,
        1 => 1,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => return None,
    })
}

/// The field of an IPv6 header that a field of an IPv4 header became (RFC 7915 figure 3).
const fn pointer_to_v6(pointer: u8) -> Option<u8> {
    Some(match pointer {
        0 => 0,
        1 => 1,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => return None,
    })
}

/// How many bytes an error quotes before an extension (RFC 4884 section 4); `None`: it says nothing
/// of extensions.
pub(crate) const fn quoted_before_extension(is_v4: bool, head: Head) -> Option<usize> {
    let [first, second, ..] = head.rest.to_be_bytes();
    let bytes = match (is_v4, head.kind) {
        (true, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM) => {
            second as usize * 4
        }
        (false, icmpv6::UNREACHABLE | icmpv6::TIME_EXCEEDED) => first as usize * 8,
        _ => 0,
    };
    if bytes == 0 { None } else { Some(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(kind: u8, code: u8, rest: u32) -> Head {
        Head { kind, code, rest }
    }

    /// RFC 7915 section 5.2, type by type.
    #[test]
    fn icmpv6_errors_and_what_they_are_in_icmp() {
        let rows = [
            ("no route", (1, 0, 0), Some((3, 1, 0))),
            ("prohibited", (1, 1, 0), Some((3, 10, 0))),
            ("beyond scope", (1, 2, 0), Some((3, 1, 0))),
            ("address unreachable", (1, 3, 0), Some((3, 1, 0))),
            ("port unreachable", (1, 4, 0), Some((3, 3, 0))),
            ("source failed policy", (1, 5, 0), None),
            ("reject route", (1, 6, 0), None),
            ("too big", (2, 0, 1500), Some((3, 4, 1480))),
            ("too big, the least", (2, 0, 1280), Some((3, 4, 1260))),
            ("too big, jumbo", (2, 0, 1 << 20), Some((3, 4, 65_535))),
            ("too big, nonsense", (2, 0, 7), Some((3, 4, 0))),
            ("hop limit exceeded", (3, 0, 0), Some((11, 0, 0))),
            ("reassembly time exceeded", (3, 1, 0), Some((11, 1, 0))),
            ("version", (4, 0, 0), Some((12, 0, 0))),
            ("traffic class", (4, 0, 1), Some((12, 0, 1 << 24))),
            ("flow label", (4, 0, 2), None),
            ("flow label", (4, 0, 3), None),
            ("payload length", (4, 0, 4), Some((12, 0, 2 << 24))),
            ("payload length", (4, 0, 5), Some((12, 0, 2 << 24))),
            ("next header", (4, 0, 6), Some((12, 0, 9 << 24))),
            ("hop limit", (4, 0, 7), Some((12, 0, 8 << 24))),
            ("source", (4, 0, 8), Some((12, 0, 12 << 24))),
            ("source", (4, 0, 23), Some((12, 0, 12 << 24))),
            ("destination", (4, 0, 24), Some((12, 0, 16 << 24))),
            ("destination", (4, 0, 39), Some((12, 0, 16 << 24))),
            ("behind the header", (4, 0, 40), None),
            ("unknown next header", (4, 1, 6), Some((3, 2, 0))),
            ("unknown option", (4, 2, 40), None),
        ];
        for (what, (kind, code, rest), expected) in rows {
            let expected = expected.map(|(kind, code, rest)| head(kind, code, rest));
            assert_eq!(error_to_v4(head(kind, code, rest)), expected, "{what}");
        }
    }

    /// RFC 7915 section 4.2, type by type.
    #[test]
    fn icmp_errors_and_what_they_are_in_icmpv6() {
        let no_route = Some((1, 0, 0));
        let prohibited = Some((1, 1, 0));
        let rows = [
            ("net unreachable", (3, 0, 0), no_route),
            ("host unreachable", (3, 1, 0), no_route),
            ("protocol unreachable", (3, 2, 0), Some((4, 1, 6))),
            ("port unreachable", (3, 3, 0), Some((1, 4, 0))),
            ("fragmentation needed", (3, 4, 1480), Some((2, 0, 1500))),
            ("fragmentation needed, RFC 4884 length beside", (3, 4, 0x20_05c8), Some((2, 0, 1500))),
            ("fragmentation needed, small", (3, 4, 576), Some((2, 0, 1280))),
            ("fragmentation needed, MTU not told", (3, 4, 0), Some((2, 0, 1512))),
            ("source route failed", (3, 5, 0), no_route),
            ("net unknown", (3, 6, 0), no_route),
            ("host unknown", (3, 7, 0), no_route),
            ("source isolated", (3, 8, 0), no_route),
            ("net prohibited", (3, 9, 0), prohibited),
            ("host prohibited", (3, 10, 0), prohibited),
            ("net unreachable for TOS", (3, 11, 0), no_route),
            ("host unreachable for TOS", (3, 12, 0), no_route),
            ("prohibited", (3, 13, 0), prohibited),
            ("precedence violation", (3, 14, 0), None),
            ("precedence cutoff", (3, 15, 0), prohibited),
            ("unknown code", (3, 16, 0), None),
            ("source quench", (4, 0, 0), None),
            ("redirect", (5, 0, 0), None),
            ("time to live exceeded", (11, 0, 0), Some((3, 0, 0))),
            ("reassembly time exceeded", (11, 1, 0), Some((3, 1, 0))),
            ("version", (12, 0, 0), Some((4, 0, 0))),
            ("type of service", (12, 0, 1 << 24), Some((4, 0, 1))),
            ("total length", (12, 2, 2 << 24), Some((4, 0, 4))),
            ("total length", (12, 0, 3 << 24), Some((4, 0, 4))),
            ("identification", (12, 0, 4 << 24), None),
            ("fragment offset", (12, 0, 7 << 24), None),
            ("time to live", (12, 0, 8 << 24), Some((4, 0, 7))),
            ("protocol", (12, 0, 9 << 24), Some((4, 0, 6))),
            ("checksum", (12, 0, 10 << 24), None),
            ("source", (12, 0, 12 << 24), Some((4, 0, 8))),
            ("destination", (12, 0, 19 << 24), Some((4, 0, 24))),
            ("an option", (12, 0, 20 << 24), None),
            ("a missing option", (12, 1, 0), None),
        ];
        for (what, (kind, code, rest), expected) in rows {
            let expected = expected.map(|(kind, code, rest)| head(kind, code, rest));
            assert_eq!(error_to_v6(head(kind, code, rest), 1500), expected, "{what}");
        }
    }

    #[test]
    fn an_mtu_that_is_not_told_is_the_next_lower_plateau() {
        for (length, plateau) in [(1500, 1492), (1492, 1006), (9000, 8166), (297, 296), (40, 68)] {
            assert_eq!(likely_mtu(length), plateau, "{length}");
        }
    }

    #[test]
    fn an_extension_begins_where_the_message_says() {
        let rows = [
            (true, head(3, 1, 0x0020_0000), Some(128)),
            (true, head(3, 4, 0x0021_05dc), Some(132)),
            (true, head(3, 1, 0), None),
            (false, head(1, 4, 0x1000_0000), Some(128)),
            (false, head(2, 0, 1500), None),
        ];
        for (is_v4, head, expected) in rows {
            assert_eq!(quoted_before_extension(is_v4, head), expected, "{head:?}");
        }
    }

    #[test]
    fn an_echo_is_one_in_both() {
        for (four, six) in [(8, 128), (0, 129)] {
            assert_eq!((echo_type(four), echo_type(six)), (six, four));
        }
    }
}
