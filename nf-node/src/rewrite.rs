//! Writes a translation into a frame: the difference between the tuple that was parsed and the
//! tuple that the functions made of it.
//!
//! All checksums are updated by difference (RFC 1624 equation 3), never computed anew: a packet
//! that came in damaged behind what was verified goes out as damaged as it came. A UDP checksum of
//! 0 means "none" and stays; one that comes out as 0 is sent as all ones (RFC 768).
//!
//! **ICMP errors.** `tuple` speaks of an answer to the quoted packet, so it goes into the quote
//! turned round: quoted source <- `tuple.destination`, quoted destination <- `tuple.source`
//! (RFC 5508 REQ-4a, REQ-5a); type and code stay (4b, 5b). The quote's IP checksum and, as far as
//! it is quoted, its transport checksum follow, and the error's own checksum follows all of them.
//! The outer destination becomes `tuple.destination` (4c). The outer source may be a router on the
//! way, not an end of the flow: when `tuple.source` was changed, the error leaves from behind the
//! translation, and its outer source becomes the translated address, whoever sent it (5c: "in all
//! other cases the NAT's own public address"); otherwise it stays.
//!
//! **Fragments.** A first fragment has the transport checksum of the whole datagram, which is
//! updated like any other; in a later one only the addresses change.
//!
//! On the packet path: no allocation, no check that parsing has done already.

use crate::packet::checksum::{Sum, update_at};
use crate::packet::icmp_message;
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::packet::word::{get_array, get_u16, set_u16, set_u32};
use crate::packet::{ipv4, ipv6, tcp, udp};
use nearstate_placement::FlowTuple;
use nearstate_store::{Address, Endpoint};

/// Makes the frame that `parsed` was found in one of flow `tuple`. Protocol and address family of
/// the two are the same; of another family [`crate::packet::translation`] makes it. For echo the
/// identifier is written from the end that changed.
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
        Transport::Tcp { .. } if parsed.version == IpVersion::V4 => {
            write_ipv4_flow(frame, parsed, tcp::field::CHECKSUM, tuple);
        }
        Transport::Udp if parsed.version == IpVersion::V4 => {
            write_ipv4_flow(frame, parsed, udp::field::CHECKSUM, tuple);
        }
        Transport::Tcp { .. } | Transport::Udp | Transport::Echo { .. } => {
            let headers = Headers {
                ip: usize::from(parsed.ip),
                transport: usize::from(parsed.transport_at),
                protocol: tuple.protocol,
            };
            write_flow(frame, parsed, &headers, tuple);
        }
        Transport::IcmpError { inner_ip, inner_transport, inner_protocol } => {
            let quote = Headers {
                ip: usize::from(inner_ip),
                transport: usize::from(inner_transport),
                protocol: inner_protocol,
            };
            apply_to_error(frame, parsed, &quote, tuple);
        }
        // The ports, and what sums them up, are in the first fragment.
        Transport::LaterFragment => {
            let ends = (&tuple.source, &tuple.destination);
            write_addresses(frame, parsed.version, usize::from(parsed.ip), ends);
        }
    }
}

/// Changes the identification of a fragment by this mask; the same mask changes it back.
pub fn mask_ident(frame: &mut [u8], parsed: &Parsed, mask: u32) {
    let (ip, end) = (usize::from(parsed.ip), usize::from(parsed.end));
    match parsed.version {
        IpVersion::V4 => {
            let at = ip + ipv4::field::IDENT;
            let old = get_u16(frame, at);
            let new = old ^ mask as u16;
            set_u16(frame, at, new);
            update_at(frame, ip + ipv4::field::CHECKSUM, Sum::ZERO.change_word(old, new));
        }
        IpVersion::V6 => {
            let Ok(header) = ipv6::fragment_header(&frame[ip..end]) else {
                debug_assert!(false, "only fragments have such an identification");
                return;
            };
            set_u32(frame, ip + header.ident_at(), header.ident ^ mask);
        }
    }
}

/// [`write_flow`] of nearly all packets, TCP or UDP over IPv4: both addresses are one word of the
/// frame, and both ports are.
#[inline]
fn write_ipv4_flow(frame: &mut [u8], parsed: &Parsed, checksum_at: usize, tuple: &FlowTuple) {
    let FlowTuple { source, destination, .. } = tuple;
    let addresses_at = usize::from(parsed.ip) + ipv4::field::SOURCE.start;
    let [_, from] = source.address.words();
    let [_, to] = destination.address.words();
    let new = (from >> 32 | to >> 32 << 32).to_le_bytes();
    let old: [u8; 8] = get_array(frame, addresses_at);
    frame[addresses_at..addresses_at + 8].copy_from_slice(&new);
    let addresses = Sum::ZERO.change(&old, &new);
    update_at(frame, usize::from(parsed.ip) + ipv4::field::CHECKSUM, addresses);

    let at = usize::from(parsed.transport_at);
    let ports = u32::from(source.port) << 16 | u32::from(destination.port);
    let (old, new): ([u8; 4], _) = (get_array(frame, at), ports.to_be_bytes());
    frame[at..at + 4].copy_from_slice(&new);
    let difference = addresses.change(&old, &new);
    match parsed.transport {
        Transport::Udp => update_udp(frame, at + checksum_at, difference),
        _ => update_at(frame, at + checksum_at, difference),
    }
}

/// Where the headers of a packet, or of one that is quoted, are in a frame.
struct Headers {
    ip: usize,
    transport: usize,
    protocol: u8,
}

/// The last bytes of an endpoint's address: of IPv4 all there are.
#[inline]
fn last_bytes<const N: usize>(endpoint: &Endpoint) -> [u8; N] {
    get_array(&endpoint.address.octets(), 16 - N)
}

/// Writes both addresses over those at `at`; the difference they make to a sum.
#[inline]
fn write_both<const N: usize>(frame: &mut [u8], at: usize, ends: (&Endpoint, &Endpoint)) -> Sum {
    let fields = &mut frame[at..at + 2 * N];
    let (old, _) = fields.as_chunks_mut::<N>();
    let new = [last_bytes::<N>(ends.0), last_bytes::<N>(ends.1)];
    let difference = Sum::ZERO.change(&old[0], &new[0]).change(&old[1], &new[1]);
    old.copy_from_slice(&new);
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
    match version {
        IpVersion::V4 => {
            let difference = write_both::<4>(frame, ip + ipv4::field::SOURCE.start, ends);
            update_at(frame, ip + ipv4::field::CHECKSUM, difference);
            difference
        }
        IpVersion::V6 => write_both::<16>(frame, ip + ipv6::field::SOURCE.start, ends),
    }
}

/// Writes a port; the difference it makes.
#[inline]
fn write_port(frame: &mut [u8], at: usize, new: u16) -> Sum {
    let old = get_u16(frame, at);
    set_u16(frame, at, new);
    Sum::ZERO.change_word(old, new)
}

/// The identifier of an echo: of the two ports, which both stand for it, the one that was changed.
#[inline]
fn echo_ident(old: &FlowTuple, new: &FlowTuple) -> u16 {
    if new.source.port == old.source.port { new.destination.port } else { new.source.port }
}

/// Writes a flow into the headers of a packet. Of a quoted packet the end may be missing, and with
/// it TCP's checksum.
#[inline]
fn write_flow(frame: &mut [u8], parsed: &Parsed, headers: &Headers, tuple: &FlowTuple) {
    let FlowTuple { source, destination, .. } = tuple;
    let addresses = write_addresses(frame, parsed.version, headers.ip, (source, destination));
    let at = headers.transport;
    match headers.protocol {
        tcp::PROTOCOL | udp::PROTOCOL => {
            let ports = write_port(frame, at + udp::field::SOURCE_PORT, source.port)
                .plus(write_port(frame, at + udp::field::DESTINATION_PORT, destination.port));
            let difference = addresses.plus(ports);
            if headers.protocol == udp::PROTOCOL {
                update_udp(frame, at + udp::field::CHECKSUM, difference);
            } else if at + CHANGED_BYTES <= usize::from(parsed.end) {
                update_at(frame, at + tcp::field::CHECKSUM, difference);
            }
        }
        _ => {
            let ident = echo_ident(&parsed.tuple, tuple);
            let ident = write_port(frame, at + icmp_message::field::IDENT, ident);
            let difference = match parsed.version {
                IpVersion::V4 => ident,
                IpVersion::V6 => ident.plus(addresses),
            };
            update_at(frame, at + icmp_message::field::CHECKSUM, difference);
        }
    }
}

/// The ports of both stand in the same places.
const _: () = assert!(
    tcp::field::SOURCE_PORT == udp::field::SOURCE_PORT
        && tcp::field::DESTINATION_PORT == udp::field::DESTINATION_PORT
);

/// Bytes of a transport header that a translation may change: up to the end of TCP's checksum.
const CHANGED_BYTES: usize = tcp::field::CHECKSUM + 2;

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

fn apply_to_error(frame: &mut [u8], parsed: &Parsed, quote: &Headers, tuple: &FlowTuple) {
    let version = parsed.version;
    let (icmp_at, end) = (usize::from(parsed.transport_at), usize::from(parsed.end));
    // The message before and after: the sum of its first bytes up to the quoted transport checksum
    // is what changes, so the difference of the two sums is the difference of the whole message.
    let changed = quote.ip..end.min(quote.transport + CHANGED_BYTES);
    let before = Sum::of(&frame[changed.clone()]);
    // The error is an answer: what it quotes went the other way.
    write_flow(frame, parsed, quote, &tuple.reversed());
    let after = Sum::of(&frame[changed]);
    let inside = Sum::ZERO.change_word(before.fold(), after.fold());

    let outer_source =
        if tuple.source.address == parsed.tuple.source.address { None } else { Some(tuple.source) };
    let outer = write_outer(frame, parsed, outer_source.as_ref(), &tuple.destination);
    let difference = match version {
        IpVersion::V4 => inside,
        IpVersion::V6 => inside.plus(outer),
    };
    update_at(frame, icmp_at + icmp_message::field::CHECKSUM, difference);
}

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
            Endpoint { address: Address::from_octets(packet.source().octets()), port: 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PacketBuilder, parse};
    use crate::verdict::DropReason;
    use proptest::prelude::*;

    fn v4(last: u8, port: u16) -> Endpoint {
        Endpoint::v4([198, 51, 100, last], port)
    }

    fn v6(last: u8, port: u16) -> Endpoint {
        let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[15] = last;
        Endpoint { address: Address::from_octets(address), port }
    }

    /// A translation of a source, as NAT does to what leaves.
    fn with_source(tuple: &FlowTuple, source: Endpoint) -> FlowTuple {
        let echo = matches!(tuple.protocol, 1 | 58);
        let destination = if echo {
            Endpoint { port: source.port, ..tuple.destination }
        } else {
            tuple.destination
        };
        FlowTuple { source, destination, ..*tuple }
    }

    /// All kinds of packet from `a` to `b`.
    fn packets(a: Endpoint, b: Endpoint, payload: &[u8]) -> Vec<PacketBuilder> {
        vec![
            PacketBuilder::tcp(a, b).payload(payload),
            PacketBuilder::udp(a, b).payload(payload),
            PacketBuilder::echo_request(a, b).payload(payload),
            PacketBuilder::echo_reply(a, b).payload(payload),
        ]
    }

    /// Applies, checks that everything parses to the new tuple, applies back.
    fn there_and_back(frame: &[u8], tuple: impl Fn(&FlowTuple) -> FlowTuple) -> Vec<u8> {
        let parsed = parse(frame).unwrap();
        let new = tuple(&parsed.tuple);
        let mut changed = frame.to_vec();
        apply(&mut changed, &parsed, &new);
        let parsed_again = parse(&changed).unwrap();
        assert_eq!(parsed_again.tuple, new);
        let mut restored = changed.clone();
        apply(&mut restored, &parsed_again, &parsed.tuple);
        assert_eq!(restored, frame);
        changed
    }

    fn endpoints() -> impl Strategy<Value = (Endpoint, Endpoint, Endpoint)> {
        let any_v4 = || (1u8..=254, 1u16..).prop_map(|(last, port)| v4(last, port));
        let any_v6 = || (1u8..=254, 1u16..).prop_map(|(last, port)| v6(last, port));
        prop_oneof![(any_v4(), any_v4(), any_v4()), (any_v6(), any_v6(), any_v6())]
            .prop_filter("three addresses", |(a, b, c)| {
                a.address != b.address && b.address != c.address && c.address != a.address
            })
    }

    proptest! {
        #[test]
        fn packets_there_and_back(
            (a, b, new) in endpoints(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            for builder in packets(a, b, &payload) {
                let frame = builder.padding(3).build();
                let out = there_and_back(&frame, |tuple| with_source(tuple, new));
                // And the other way round: what comes back, to its destination.
                there_and_back(&out, |tuple| with_source(&tuple.reversed(), a).reversed());
            }
        }

        #[test]
        fn errors_there_and_back(
            (a, b, new) in endpoints(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            cut in 0usize..80,
        ) {
            let error = if a.ipv4().is_some() { 3 } else { 1 };
            let header = if a.ipv4().is_some() { 20 } else { 40 };
            for builder in packets(a, b, &payload) {
                let quoted = builder.build();
                // The quoted packet went from a to b; the error comes from b itself.
                let frame = PacketBuilder::icmp_error(b, (error, 1), &quoted)
                    .quote_limit(header + 8 + cut)
                    .build();
                // Towards the quoted source: it gets back the address it had before translation.
                there_and_back(&frame, |tuple| with_source(&tuple.reversed(), new).reversed());
                // From behind a translation: the error's sender is hidden.
                there_and_back(&frame, |tuple| with_source(tuple, new));
            }
        }
    }

    #[test]
    fn nothing_changes_where_nothing_is_new() {
        let mut frame = PacketBuilder::tcp(v4(1, 1), v4(2, 2)).payload(b"x").build();
        let before = frame.clone();
        let parsed = parse(&frame).unwrap();
        apply(&mut frame, &parsed, &parsed.tuple);
        assert_eq!(frame, before);
    }

    #[test]
    fn a_missing_udp_checksum_stays_missing() {
        let frame = PacketBuilder::udp(v4(1, 1), v4(2, 2)).no_checksum().build();
        let changed = there_and_back(&frame, |tuple| with_source(tuple, v4(9, 9)));
        assert_eq!(changed[40..42], [0, 0]);
    }

    #[test]
    fn a_udp_checksum_is_never_computed_to_be_missing() {
        // One of all ports must make the sum all ones: the checksum would be 0.
        let frame = PacketBuilder::udp(v4(1, 1), v4(2, 2)).build();
        let mut ones = 0;
        for port in 2..=u16::MAX {
            let changed = there_and_back(&frame, |tuple| with_source(tuple, v4(1, port)));
            assert_ne!(changed[40..42], [0, 0]);
            ones += u32::from(changed[40..42] == [0xff, 0xff]);
        }
        assert_eq!(ones, 1);
    }

    #[test]
    fn only_what_belongs_to_the_flow_changes() {
        let frame = PacketBuilder::tcp(v4(1, 1), v4(2, 2)).vlan(7).payload(b"data").build();
        let changed = there_and_back(&frame, |tuple| with_source(tuple, v4(9, 9)));
        let differing: Vec<usize> =
            (0..frame.len()).filter(|at| frame[*at] != changed[*at]).collect();
        let (ip, tcp) = (18, 38);
        let allowed = [ip + 10, ip + 11, ip + 15, tcp, tcp + 1, tcp + 16, tcp + 17];
        assert!(differing.iter().all(|at| allowed.contains(at)), "{differing:?}");
    }

    /// The views of an error: outer source and destination, quoted source and destination.
    fn addresses(frame: &[u8]) -> [String; 4] {
        let outer = ipv4::Ipv4Packet::new_unchecked(&frame[14..]);
        let inner = ipv4::Ipv4Packet::new_unchecked(&frame[42..]);
        [outer.source(), outer.destination(), inner.source(), inner.destination()]
            .map(|address| address.to_string())
    }

    #[test]
    fn r5508_4_an_error_of_a_router_outside_keeps_its_source() {
        let (inside, nat, server, router) = (v4(1, 4000), v4(50, 6000), v4(99, 80), v4(77, 0));
        let quoted = PacketBuilder::udp(nat, server).payload(b"request").build();
        let mut frame = PacketBuilder::icmp_error(router, (11, 0), &quoted).build();
        let parsed = parse(&frame).unwrap();
        assert_eq!(parsed.tuple.destination, nat);
        apply(&mut frame, &parsed, &FlowTuple { destination: inside, ..parsed.tuple });
        assert_eq!(
            addresses(&frame),
            ["198.51.100.77", "198.51.100.1", "198.51.100.1", "198.51.100.99"]
        );
        assert_eq!(frame[34..36], [11, 0], "type and code stay (R5508-4b)");
        // The quoted datagram is now what the inside host had sent, its checksum included (4a).
        let sent = PacketBuilder::udp(inside, server).payload(b"request").build();
        assert_eq!(frame[42..], sent[14..]);
        assert!(parse(&frame).is_ok());
    }

    #[test]
    fn r5508_5_an_error_from_inside_hides_its_sender() {
        let (inside, nat, server, router) = (v4(1, 4000), v4(50, 6000), v4(99, 80), v4(7, 0));
        // The server's packet was translated and went in; a router inside could not deliver it.
        let quoted = PacketBuilder::tcp(server, inside).payload(b"answer").build();
        let mut frame = PacketBuilder::icmp_error(router, (3, 1), &quoted).build();
        let parsed = parse(&frame).unwrap();
        assert_eq!(parsed.tuple.source, inside);
        apply(&mut frame, &parsed, &FlowTuple { source: nat, ..parsed.tuple });
        assert_eq!(
            addresses(&frame),
            ["198.51.100.50", "198.51.100.99", "198.51.100.99", "198.51.100.50"]
        );
        let sent = PacketBuilder::tcp(server, nat).payload(b"answer").build();
        assert_eq!(frame[42..], sent[14..]);
        assert!(parse(&frame).is_ok());
    }

    #[test]
    fn a_damaged_payload_stays_damaged() {
        let mut frame = PacketBuilder::tcp(v4(1, 1), v4(2, 2)).payload(b"data").build();
        let parsed = parse(&frame).unwrap();
        *frame.last_mut().unwrap() ^= 0x55;
        apply(&mut frame, &parsed, &with_source(&parsed.tuple, v4(9, 9)));
        assert_eq!(parse(&frame), Err(DropReason::BadChecksum));
    }
}
