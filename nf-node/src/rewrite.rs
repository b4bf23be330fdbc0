//! Writes a translation into a frame: the difference between the tuple that was parsed and the tuple
//! that the functions made of it.
//!
//! All checksums are updated by difference (RFC 1624 equation 3), never computed anew: a packet that
//! came in damaged behind what was verified goes out as damaged as it came. A UDP checksum of 0 means
//! "none" and stays; one that comes out as 0 is sent as all ones (RFC 768).
//!
//! **ICMP errors.** `tuple` speaks of an answer to the quoted packet, so it goes into the quote
//! turned round: quoted source <- `tuple.destination`, quoted destination <- `tuple.source`
//! (RFC 5508 REQ-4a, REQ-5a); type and code stay (4b, 5b). The quote's IP checksum and, as far as it
//! is quoted, its transport checksum follow, and the error's own checksum follows all of them. The
//! outer destination becomes `tuple.destination` (4c). The outer source may be a router on the way,
//! not an end of the flow: when `tuple.source` was changed, the error leaves from behind the
//! translation, and its outer source becomes the translated address, whoever sent it (5c: "in all
//! other cases the NAT's own public address"); otherwise it stays.
//!
//! On the packet path: no allocation, no check that parsing has done already.

use crate::packet::checksum::{Sum, update_at};
use crate::packet::icmp;
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::packet::word::{get_u16, set_u16};
use crate::packet::{ipv4, ipv6, tcp, udp};
use nearstate_placement::FlowTuple;
use nearstate_store::Endpoint;

/// Makes the frame that `parsed` was found in one of flow `tuple`. Protocol and address family of
/// the two are the same. For echo the identifier is written from the end that changed.
pub fn apply(frame: &mut [u8], parsed: &Parsed, tuple: &FlowTuple) {
    if parsed.tuple == *tuple {
        return;
    }
    debug_assert_eq!(parsed.tuple.protocol, tuple.protocol, "protocols are never translated");
    debug_assert_eq!(
        (parsed.tuple.source.ipv4().is_some(), parsed.tuple.destination.ipv4().is_some()),
        (tuple.source.ipv4().is_some(), tuple.destination.ipv4().is_some()),
        "families are never translated"
    );
    match parsed.transport {
        Transport::Tcp { .. } | Transport::Udp | Transport::Echo { .. } => {
            apply_to_flow(frame, parsed, tuple);
        }
        Transport::IcmpError { inner_ip, inner_transport, inner_protocol } => {
            let quote = Quote {
                ip: usize::from(inner_ip),
                transport: usize::from(inner_transport),
                protocol: inner_protocol,
            };
            apply_to_error(frame, parsed, &quote, tuple);
        }
    }
}

/// Where a quoted packet is.
struct Quote {
    ip: usize,
    transport: usize,
    protocol: u8,
}

/// The address bytes of an endpoint as the IP version has them.
#[inline]
fn address_bytes(version: IpVersion, endpoint: &Endpoint) -> &[u8] {
    match version {
        IpVersion::V4 => &endpoint.address[12..],
        IpVersion::V6 => &endpoint.address,
    }
}

/// Writes `new` over the address at `at`; the difference it makes to a sum.
#[inline]
fn write_address(frame: &mut [u8], at: usize, new: &[u8]) -> Sum {
    let field = &mut frame[at..at + new.len()];
    if field == new {
        return Sum::ZERO;
    }
    let difference = Sum::ZERO.change(field, new);
    field.copy_from_slice(new);
    difference
}

/// Writes both addresses into the IP header at `ip`, and its checksum; the difference they make to
/// sums over pseudo headers.
#[inline]
fn write_addresses(
    frame: &mut [u8],
    version: IpVersion,
    ip: usize,
    ends: (&Endpoint, &Endpoint),
) -> Sum {
    let (source_at, destination_at) = match version {
        IpVersion::V4 => (ipv4::field::SOURCE.start, ipv4::field::DESTINATION.start),
        IpVersion::V6 => (ipv6::field::SOURCE.start, ipv6::field::DESTINATION.start),
    };
    let difference = write_address(frame, ip + source_at, address_bytes(version, ends.0))
        .plus(write_address(frame, ip + destination_at, address_bytes(version, ends.1)));
    if version == IpVersion::V4 && difference != Sum::ZERO {
        update_at(frame, ip + ipv4::field::CHECKSUM, difference);
    }
    difference
}

/// Writes a port; the difference it makes.
#[inline]
fn write_port(frame: &mut [u8], at: usize, new: u16) -> Sum {
    let old = get_u16(frame, at);
    if old == new {
        return Sum::ZERO;
    }
    set_u16(frame, at, new);
    Sum::ZERO.change_word(old, new)
}

/// The identifier of an echo: of the two ports, which both stand for it, the one that was changed.
#[inline]
fn echo_ident(old: &FlowTuple, new: &FlowTuple) -> u16 {
    if new.source.port == old.source.port { new.destination.port } else { new.source.port }
}

#[inline]
fn apply_to_flow(frame: &mut [u8], parsed: &Parsed, tuple: &FlowTuple) {
    let at = usize::from(parsed.transport_at);
    let ends = (&tuple.source, &tuple.destination);
    let addresses = write_addresses(frame, parsed.version, usize::from(parsed.ip), ends);
    match parsed.transport {
        Transport::Tcp { .. } => {
            let ports = write_port(frame, at + tcp::field::SOURCE_PORT, tuple.source.port)
                .plus(write_port(frame, at + tcp::field::DESTINATION_PORT, tuple.destination.port));
            update_at(frame, at + tcp::field::CHECKSUM, addresses.plus(ports));
        }
        Transport::Udp => {
            let ports = write_port(frame, at + udp::field::SOURCE_PORT, tuple.source.port)
                .plus(write_port(frame, at + udp::field::DESTINATION_PORT, tuple.destination.port));
            update_udp(frame, at + udp::field::CHECKSUM, addresses.plus(ports));
        }
        Transport::Echo { .. } => {
            let ident = echo_ident(&parsed.tuple, tuple);
            let ident = write_port(frame, at + icmp::field::IDENT, ident);
            let difference = match parsed.version {
                IpVersion::V4 => ident,
                IpVersion::V6 => ident.plus(addresses),
            };
            update_at(frame, at + icmp::field::CHECKSUM, difference);
        }
        Transport::IcmpError { .. } => debug_assert!(false, "errors take the other way"),
    }
}

/// Adds a difference to a UDP checksum, unless there is none.
#[inline]
fn update_udp(frame: &mut [u8], at: usize, difference: Sum) {
    if get_u16(frame, at) == 0 {
        return;
    }
    update_at(frame, at, difference);
    if get_u16(frame, at) == 0 {
        set_u16(frame, at, 0xffff);
    }
}

fn apply_to_error(frame: &mut [u8], parsed: &Parsed, quote: &Quote, tuple: &FlowTuple) {
    let version = parsed.version;
    let (icmp_at, end) = (usize::from(parsed.transport_at), usize::from(parsed.end));
    // The message before and after: the sum of its first bytes up to the quoted transport checksum
    // is what changes, so the difference of the two sums is the difference of the whole message.
    let changed = quote.ip..end.min(quote.transport + QUOTE_CHANGED_BYTES);
    let before = Sum::of(&frame[changed.clone()]);
    rewrite_quote(frame, parsed, quote, tuple);
    let after = Sum::of(&frame[changed]);
    let inside = Sum::ZERO.change_word(before.fold(), after.fold());

    let outer_source =
        if tuple.source.address == parsed.tuple.source.address { None } else { Some(tuple.source) };
    let outer = write_outer(frame, parsed, outer_source.as_ref(), &tuple.destination);
    let difference = match version {
        IpVersion::V4 => inside,
        IpVersion::V6 => inside.plus(outer),
    };
    update_at(frame, icmp_at + icmp::field::CHECKSUM, difference);
}

/// Bytes of a quoted transport header that a translation may change: up to the end of TCP's checksum.
const QUOTE_CHANGED_BYTES: usize = tcp::field::CHECKSUM + 2;

/// Writes the error's own addresses; the difference they make to its pseudo header.
fn write_outer(
    frame: &mut [u8],
    parsed: &Parsed,
    source: Option<&Endpoint>,
    destination: &Endpoint,
) -> Sum {
    let ip = usize::from(parsed.ip);
    let kept = outer_source(frame, parsed.version, ip);
    write_addresses(frame, parsed.version, ip, (source.unwrap_or(&kept), destination))
}

/// The outer source as it stands.
fn outer_source(frame: &[u8], version: IpVersion, ip: usize) -> Endpoint {
    match version {
        IpVersion::V4 => {
            let packet = ipv4::Ipv4Packet::new_unchecked(&frame[ip..]);
            Endpoint::v4(packet.source().octets(), 0)
        }
        IpVersion::V6 => {
            let packet = ipv6::Ipv6Packet::new_unchecked(&frame[ip..]);
            Endpoint { address: packet.source().octets(), port: 0 }
        }
    }
}

/// Writes the tuple into the quoted packet, turned round.
fn rewrite_quote(frame: &mut [u8], parsed: &Parsed, quote: &Quote, tuple: &FlowTuple) {
    let (source, destination) = (&tuple.destination, &tuple.source);
    let end = usize::from(parsed.end);
    let addresses = write_addresses(frame, parsed.version, quote.ip, (source, destination));
    let at = quote.transport;
    match quote.protocol {
        tcp::PROTOCOL | udp::PROTOCOL => {
            let ports = write_port(frame, at, source.port).plus(write_port(
                frame,
                at + 2,
                destination.port,
            ));
            let difference = addresses.plus(ports);
            if quote.protocol == udp::PROTOCOL {
                update_udp(frame, at + udp::field::CHECKSUM, difference);
            } else if at + QUOTE_CHANGED_BYTES <= end {
                update_at(frame, at + tcp::field::CHECKSUM, difference);
            }
        }
        _ => {
            let ident = echo_ident(&parsed.tuple, tuple);
            let ident = write_port(frame, at + icmp::field::IDENT, ident);
            let difference = match parsed.version {
                IpVersion::V4 => ident,
                IpVersion::V6 => ident.plus(addresses),
            };
            update_at(frame, at + icmp::field::CHECKSUM, difference);
        }
    }
}
