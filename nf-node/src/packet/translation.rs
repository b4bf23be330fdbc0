//! A frame of IPv6 becomes one of IPv4, or the other way (RFC 7915): headers, checksums, and what
//! an ICMP error quotes.
//!
//! In place, in the frame's buffer: an IPv6 header is at least 20 bytes longer, so the rest of the
//! packet moves. What is behind the packet (padding) is cut off. As [`crate::rewrite`] does it,
//! checksums of TCP, UDP and echoes follow by difference, so that what came in damaged goes out
//! damaged. Two are computed anew: of a UDP datagram that came without one from IPv4 (section 4.5;
//! IPv6 needs one), and of ICMP errors, whose length changes with what they quote.
//!
//! *Fields.* Hop limit and time to live are copied, not lowered: to both sides a node is a wire,
//! not a router, as with NAT44. Traffic class and type of service are each other. A flow label is
//! lost, and 0 comes from IPv4; so are IPv4 options, and extension headers of IPv6 that parsing has
//! let through. An IPv4 packet of up to 1260 bytes may be fragmented on its way, a longer one may
//! not (section 5.1): a host of IPv6 is told of MTUs from 1280 on. *Identification* is a hash of
//! the beginning of the transport, its checksum included: any node gives a packet the same one
//! (P4), and nobody can tell it in advance who does not know the packet. An atomic fragment (RFC
//! 6946) keeps its own.
//!
//! *ICMP errors* have types and codes of the other protocol (`icmp_translation`), and what
//! they quote is translated alike. The error's own source goes behind the prefix, whatever it is
//! (section 4.1: routers use strange addresses); from inside it becomes the NAT's (RFC 5508
//! REQ-5c). Extensions (RFC 4884) are cut off, and an ICMPv6 error is cut to 1280 bytes (RFC 4443
//! section 2.4 (c)).
//!
//! What it never does: decide where a packet goes; send anything of its own, such as "packet too
//! big" (sections 4.4 and 5.4); make fragments. What has no counterpart, or no room in the buffer,
//! is refused.

#[cfg(test)]
mod tests;

use crate::frame::FRAME_BYTES;
use crate::nat64_prefix::Nat64Prefix;
use crate::packet::checksum::{Sum, pseudo_header, pseudo_tail, update_at};
use crate::packet::icmp_translation::{
    Head, MTU_MIN, echo_type, error_to_v4, error_to_v6, quoted_before_extension,
};
use crate::packet::ipv4::{self, Ipv4Packet};
use crate::packet::ipv6::{self, Extension, Extensions, Ipv6Packet};
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::packet::word::{get_array, get_u16, get_u32, set_u16, set_u32};
use crate::packet::{ethernet, icmp_message, tcp, udp};
use crate::verdict::DropReason;
use core::net::{Ipv4Addr, Ipv6Addr};
use nearstate_placement::{FlowTuple, steer_hash};
use nearstate_store::Endpoint;

/// The longest IPv4 packet that may be fragmented: a longer one is more than the least MTU of IPv6.
const FRAGMENTABLE_BYTES: usize = MTU_MIN as usize - ipv6::HEADER_BYTES + ipv4::HEADER_BYTES;
/// Bytes of a transport that its identification is made of: all of a TCP header.
const IDENT_BYTES: usize = 20;
/// Bytes of a quoted transport that parsing has seen.
const QUOTED_TRANSPORT_MIN: usize = 8;
/// What an ICMPv6 error may quote.
const QUOTE_MAX: usize = MTU_MIN as usize - ipv6::HEADER_BYTES - icmp_message::HEADER_BYTES;
/// Bytes of a fragment header.
const FRAGMENT_BYTES: usize = 8;

/// Whether this flow, which a packet is to leave as, is of the other IP version than it came.
#[must_use]
#[inline]
pub fn is_needed(parsed: &Parsed, tuple: &FlowTuple) -> bool {
    (parsed.version == IpVersion::V4) != tuple.source.ipv4().is_some()
}

/// Makes the frame at the beginning of `buffer`, in which `parsed` was found, one of flow `tuple`,
/// which is of the other IP version. Gives its new length. Both ports of an echo are its
/// identifier.
///
/// # Errors
/// [`DropReason::NoTranslation`] for what the other version has no word for,
/// [`DropReason::FrameTooLong`] if it has no room.
pub fn translate(
    buffer: &mut [u8],
    parsed: &Parsed,
    tuple: &FlowTuple,
    prefix: &Nat64Prefix,
) -> Result<usize, DropReason> {
    let outer = Place {
        ip: usize::from(parsed.ip),
        transport: usize::from(parsed.transport_at),
        end: usize::from(parsed.end),
    };
    let quote = match parsed.transport {
        Transport::IcmpError { inner_ip, inner_transport, .. } => {
            Some(Place { ip: inner_ip.into(), transport: inner_transport.into(), end: outer.end })
        }
        Transport::LaterFragment => return Err(DropReason::Fragment),
        Transport::Tcp { .. } | Transport::Udp | Transport::Echo { .. } => None,
    };
    if is_piece(&buffer[outer.ip..outer.transport], parsed.version) {
        return Err(DropReason::Fragment);
    }
    let ports = (tuple.source.port, tuple.destination.port);
    let (place, ether_type) = match (Ends::of(tuple), quote) {
        (Ends::V4(ends), None) => (packet_to_v4(buffer, outer, ends, ports), ethernet::TYPE_IPV4),
        (Ends::V6(ends), None) => {
            let place = packet_to_v6(buffer, outer, ends, ports)?;
            if parsed.transport == Transport::Udp {
                complete_udp(&mut buffer[place.transport..place.end], ends);
            }
            (place, ethernet::TYPE_IPV6)
        }
        (Ends::V4(ends), Some(quote)) => {
            (message_to_v4(buffer, (outer, quote), ends, ports)?, ethernet::TYPE_IPV4)
        }
        (Ends::V6(ends), Some(quote)) => {
            let router = Ipv4Packet::new_unchecked(&buffer[outer.ip..]).source();
            let from = prefix.embed(router).octets().into();
            let place = message_to_v6(buffer, (outer, quote), (ends, from), ports)?;
            (place, ethernet::TYPE_IPV6)
        }
        (Ends::Mixed, _) => {
            debug_assert!(false, "a flow is of one IP version: {tuple}");
            return Err(DropReason::StoreRefused);
        }
    };
    // The type stands before the header, behind whatever tags there are.
    set_u16(buffer, place.ip - 2, ether_type);
    Ok(place.end)
}

/// A copy of a frame that leaves as this flow, of the other IP version; for whoever is not on the
/// packet path.
///
/// # Errors
/// As [`translate`].
pub fn translated(
    frame: &[u8],
    parsed: &Parsed,
    tuple: &FlowTuple,
    prefix: &Nat64Prefix,
) -> Result<Vec<u8>, DropReason> {
    let mut buffer = frame.to_vec();
    buffer.resize(FRAME_BYTES.max(frame.len()), 0);
    let length = translate(&mut buffer, parsed, tuple, prefix)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Whether this header is one of a piece of a datagram: its checksums are those of the whole, whose
/// length ICMPv6 counts, and over IPv6 it would need a header more.
fn is_piece(header: &[u8], version: IpVersion) -> bool {
    match version {
        IpVersion::V4 => Ipv4Packet::new_unchecked(header).is_fragment(),
        IpVersion::V6 => fragment_of(header).is_some_and(|piece| piece.flags_offset != 0),
    }
}

/// Where the headers of a packet are in a buffer, and where it ends.
#[derive(Clone, Copy, Debug)]
struct Place {
    ip: usize,
    transport: usize,
    end: usize,
}

/// Source and destination of a flow.
#[derive(Clone, Copy)]
enum Ends {
    V4((Ipv4Addr, Ipv4Addr)),
    V6((Ipv6Addr, Ipv6Addr)),
    /// Not those of a flow.
    Mixed,
}

impl Ends {
    fn of(tuple: &FlowTuple) -> Self {
        let (source, destination) = (tuple.source, tuple.destination);
        match (source.ipv4(), destination.ipv4()) {
            (Some(source), Some(destination)) => Self::V4((source, destination)),
            (None, None) => {
                let of = |end: Endpoint| Ipv6Addr::from(end.address.octets());
                Self::V6((of(source), of(destination)))
            }
            _ => Self::Mixed,
        }
    }
}

/// What both versions of an IP header say in some way.
struct Fields {
    /// Type of service, traffic class.
    service: u8,
    /// Time to live, hop limit.
    hops: u8,
    /// Protocol of the transport, in the version that was read.
    protocol: u8,
    /// Bytes of the transport, as the header has them: of a quoted packet more than are there.
    payload: usize,
    /// An identification for IPv4: see the module's text.
    ident: u16,
    /// What it says of a piece of a datagram, if it is one (or looks like one: RFC 6946).
    piece: Option<Piece>,
}

/// What a header says of a piece of a datagram, as IPv4 has it; of IPv6 the lower half of the
/// identification (RFC 7915 section 5.1.1).
#[derive(Clone, Copy)]
struct Piece {
    ident: u16,
    flags_offset: u16,
}

impl Fields {
    /// Bytes of the header over IPv6.
    const fn header_v6_bytes(&self) -> usize {
        match self.piece {
            Some(_) => ipv6::HEADER_BYTES + FRAGMENT_BYTES,
            None => ipv6::HEADER_BYTES,
        }
    }
}

fn read_v6(buffer: &[u8], place: Place) -> Fields {
    let header = &buffer[place.ip..place.transport];
    let packet = Ipv6Packet::new_unchecked(header);
    let extensions = place.transport - place.ip - ipv6::HEADER_BYTES;
    Fields {
        service: (get_u32(header, 0) >> 20) as u8,
        hops: packet.hop_limit(),
        protocol: last_header(header),
        payload: packet.payload_len().saturating_sub(extensions),
        ident: identify(&buffer[place.transport..place.end]),
        piece: fragment_of(header),
    }
}

/// The extension headers in these bytes, an IPv6 header and all before the transport, which
/// parsing has checked.
fn extensions(header: &[u8]) -> impl Iterator<Item = Extension<'_>> {
    Extensions::of(header).into_iter().flatten().map_while(Result::ok)
}

/// The protocol behind an IPv6 header and its extensions, which fill these bytes.
fn last_header(header: &[u8]) -> u8 {
    let last = extensions(header).last();
    last.map_or(header[ipv6::field::NEXT_HEADER], |extension| extension.head[0])
}

/// What the fragment header there says, if one is.
fn fragment_of(header: &[u8]) -> Option<Piece> {
    let fragment = extensions(header).find(|extension| extension.kind == ipv6::FRAGMENT)?;
    let word = fragment.fragment_word();
    let more = if word & 1 == 1 { ipv4::MORE_FRAGMENTS } else { 0 };
    Some(Piece { ident: get_u16(fragment.head, 6), flags_offset: word >> 3 | more })
}

fn read_v4(buffer: &[u8], place: Place) -> Fields {
    let packet = Ipv4Packet::new_unchecked(&buffer[place.ip..place.transport]);
    Fields {
        service: buffer[place.ip + ipv4::field::SERVICE],
        hops: packet.ttl(),
        protocol: packet.protocol(),
        payload: packet.total_len().saturating_sub(packet.header_len()),
        ident: packet.ident(),
        piece: packet.is_fragment().then(|| Piece {
            ident: packet.ident(),
            flags_offset: packet.flags_offset() & !ipv4::DONT_FRAGMENT,
        }),
    }
}

/// The IPv4 header of a packet (RFC 7915 section 5.1).
fn write_v4(buffer: &mut [u8], ip: usize, fields: &Fields, ends: (Ipv4Addr, Ipv4Addr)) {
    let total = ipv4::HEADER_BYTES + fields.payload;
    let flags = if total > FRAGMENTABLE_BYTES { ipv4::DONT_FRAGMENT } else { 0 };
    let whole = Piece { ident: fields.ident, flags_offset: flags };
    let Piece { ident, flags_offset } = fields.piece.unwrap_or(whole);
    let mut packet = Ipv4Packet::new_unchecked(&mut buffer[ip..ip + ipv4::HEADER_BYTES]);
    packet.set_header_len(ipv4::HEADER_BYTES);
    packet.set_service(fields.service);
    // Only what is quoted can say that it was longer than any.
    packet.set_total_len(u16::try_from(total).unwrap_or(u16::MAX));
    packet.set_ident(ident);
    packet.set_flags_offset(flags_offset);
    packet.set_ttl(fields.hops);
    packet.set_protocol(fields.protocol);
    packet.set_source(ends.0);
    packet.set_destination(ends.1);
    packet.fill_checksum();
}

/// The IPv6 header of a packet (RFC 7915 section 4.1), with a fragment header if it needs one.
fn write_v6(buffer: &mut [u8], ip: usize, fields: &Fields, ends: (Ipv6Addr, Ipv6Addr)) {
    let behind = fields.header_v6_bytes() - ipv6::HEADER_BYTES;
    set_u32(buffer, ip, 6 << 28 | u32::from(fields.service) << 20);
    let mut packet = Ipv6Packet::new_unchecked(&mut buffer[ip..ip + ipv6::HEADER_BYTES]);
    packet.set_payload_len(u16::try_from(fields.payload + behind).unwrap_or(u16::MAX));
    packet.set_next_header(fields.protocol);
    packet.set_hop_limit(fields.hops);
    packet.set_source(ends.0);
    packet.set_destination(ends.1);
    if let Some(Piece { ident, flags_offset }) = fields.piece {
        packet.set_next_header(ipv6::FRAGMENT);
        let more = u16::from(flags_offset & ipv4::MORE_FRAGMENTS != 0);
        let at = ip + ipv6::HEADER_BYTES;
        set_u16(buffer, at, u16::from(fields.protocol) << 8);
        set_u16(buffer, at + 2, (flags_offset & ipv4::OFFSET_MASK) << 3 | more);
        set_u32(buffer, at + 4, ident.into());
    }
}

/// The identification of a packet that has none, by its transport as it came: what a NAT makes of
/// it does not count, for ports are its free choice.
fn identify(transport: &[u8]) -> u16 {
    let mut words = [0; IDENT_BYTES / 4];
    for (word, bytes) in words.iter_mut().zip(transport.chunks_exact(4)) {
        *word = get_u32(bytes, 0);
    }
    (steer_hash(transport.len() as u32, &words) >> 16) as u16
}

/// Moves the transport of a packet to behind an IP header of another length.
fn make_room(buffer: &mut [u8], place: Place, header: usize) -> Result<Place, DropReason> {
    let transport = place.ip + header;
    let end = transport + (place.end - place.transport);
    if end > buffer.len().min(FRAME_BYTES) {
        return Err(DropReason::FrameTooLong);
    }
    buffer.copy_within(place.transport..place.end, transport);
    Ok(Place { transport, end, ..place })
}

/// Both addresses of an IPv4 header, one behind the other.
fn pair_v4(ends: (Ipv4Addr, Ipv4Addr)) -> [u8; 8] {
    (u64::from(ends.0.to_bits()) << 32 | u64::from(ends.1.to_bits())).to_be_bytes()
}

/// Both addresses of an IPv6 header.
fn pair_v6(ends: (Ipv6Addr, Ipv6Addr)) -> [u8; 32] {
    let mut pair = [0; 32];
    pair[..16].copy_from_slice(&ends.0.octets());
    pair[16..].copy_from_slice(&ends.1.octets());
    pair
}

/// What a sum loses with these bytes: RFC 1624's `~m`.
fn without<const N: usize>(bytes: &[u8; N]) -> Sum {
    Sum::ZERO.change(bytes, &[0; N])
}

/// What checksums lose and gain with the pseudo header of another IP version. TCP and UDP differ by
/// the addresses only; ICMP has one only over IPv6.
struct PseudoHeaders {
    ports: Sum,
    icmp: Sum,
}

impl PseudoHeaders {
    fn to_v4(old: &[u8; 32], new: (Ipv4Addr, Ipv4Addr), payload: usize) -> Self {
        let old = without(old);
        let tail = Sum::ZERO
            .change_word(ipv6::PROTOCOL_ICMPV6.into(), 0)
            .change_word((payload >> 16) as u16, 0)
            .change_word(payload as u16, 0);
        Self { ports: old.bytes(&pair_v4(new)), icmp: old.plus(tail) }
    }

    fn to_v6(old: &[u8; 8], new: (Ipv6Addr, Ipv6Addr), payload: usize) -> Self {
        let new = Sum::of(&pair_v6(new));
        let tail = pseudo_tail(ipv6::PROTOCOL_ICMPV6, payload);
        Self { ports: without(old).plus(new), icmp: new.plus(tail) }
    }
}

/// Writes ports (or an echo's type and identifier) into a transport, and its checksum, as far as
/// they are there. A UDP checksum of 0 stays 0. Gives the protocol of the other version.
fn change_transport(
    transport: &mut [u8],
    protocol: u8,
    ports: (u16, u16),
    pseudo: &PseudoHeaders,
) -> u8 {
    match protocol {
        tcp::PROTOCOL | udp::PROTOCOL => {
            let before: [u8; 4] = get_array(transport, 0);
            set_u16(transport, udp::field::SOURCE_PORT, ports.0);
            set_u16(transport, udp::field::DESTINATION_PORT, ports.1);
            let difference = pseudo.ports.change(&before, &get_array(transport, 0));
            if protocol == tcp::PROTOCOL {
                if transport.len() >= tcp::field::CHECKSUM + 2 {
                    update_at(transport, tcp::field::CHECKSUM, difference);
                }
            } else if get_u16(transport, udp::field::CHECKSUM) != 0 {
                update_at(transport, udp::field::CHECKSUM, difference);
                never_missing(transport);
            }
            protocol
        }
        _ => {
            let before = get_u16(transport, icmp_message::field::TYPE);
            transport[icmp_message::field::TYPE] = echo_type(transport[icmp_message::field::TYPE]);
            let old_ident = get_u16(transport, icmp_message::field::IDENT);
            set_u16(transport, icmp_message::field::IDENT, ports.0);
            let difference = pseudo
                .icmp
                .change_word(before, get_u16(transport, icmp_message::field::TYPE))
                .change_word(old_ident, ports.0);
            update_at(transport, icmp_message::field::CHECKSUM, difference);
            if protocol == ipv4::PROTOCOL_ICMP {
                ipv6::PROTOCOL_ICMPV6
            } else {
                ipv4::PROTOCOL_ICMP
            }
        }
    }
}

/// A UDP checksum that comes out as 0 is sent as all ones (RFC 768).
fn never_missing(transport: &mut [u8]) {
    if get_u16(transport, udp::field::CHECKSUM) == 0 {
        set_u16(transport, udp::field::CHECKSUM, u16::MAX);
    }
}

/// A packet of IPv6, or one that is quoted, becomes one of IPv4. It gets shorter, so there is room.
fn packet_to_v4(
    buffer: &mut [u8],
    place: Place,
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
) -> Place {
    let mut fields = read_v6(buffer, place);
    let addresses = get_array(buffer, place.ip + ipv6::field::SOURCE.start);
    let pseudo = PseudoHeaders::to_v4(&addresses, ends, fields.payload);
    let transport = &mut buffer[place.transport..place.end];
    fields.protocol = change_transport(transport, fields.protocol, ports, &pseudo);
    let length = place.end - place.transport;
    let transport = place.ip + ipv4::HEADER_BYTES;
    buffer.copy_within(place.transport..place.end, transport);
    write_v4(buffer, place.ip, &fields, ends);
    Place { ip: place.ip, transport, end: transport + length }
}

/// A packet of IPv4, or one that is quoted, becomes one of IPv6. The old header stays where it is
/// until the new one is written, for a longer one follows it.
fn packet_to_v6(
    buffer: &mut [u8],
    old: Place,
    ends: (Ipv6Addr, Ipv6Addr),
    ports: (u16, u16),
) -> Result<Place, DropReason> {
    let mut fields = read_v4(buffer, old);
    let place = make_room(buffer, old, fields.header_v6_bytes())?;
    let addresses = get_array(buffer, old.ip + ipv4::field::SOURCE.start);
    let pseudo = PseudoHeaders::to_v6(&addresses, ends, fields.payload);
    let transport = &mut buffer[place.transport..place.end];
    fields.protocol = change_transport(transport, fields.protocol, ports, &pseudo);
    write_v6(buffer, place.ip, &fields, ends);
    Ok(place)
}

/// Gives a UDP datagram that came without a checksum one (RFC 7915 section 4.5).
fn complete_udp(transport: &mut [u8], ends: (Ipv6Addr, Ipv6Addr)) {
    if get_u16(transport, udp::field::CHECKSUM) != 0 {
        return;
    }
    let length = usize::from(get_u16(transport, udp::field::LENGTH)).min(transport.len());
    let (source, destination) = (ends.0.octets(), ends.1.octets());
    let pseudo = pseudo_header(&source, &destination, udp::PROTOCOL, length);
    let checksum = pseudo.bytes(&transport[..length]).checksum();
    set_u16(transport, udp::field::CHECKSUM, checksum);
    never_missing(transport);
}

fn head_of(buffer: &[u8], icmp: usize) -> Head {
    Head { kind: buffer[icmp], code: buffer[icmp + 1], rest: get_u32(buffer, icmp + 4) }
}

/// Writes the first eight bytes of a message, and a checksum of 0.
fn write_head(message: &mut [u8], head: Head) {
    message[icmp_message::field::TYPE] = head.kind;
    message[icmp_message::field::CODE] = head.code;
    set_u16(message, icmp_message::field::CHECKSUM, 0);
    set_u32(message, icmp_message::field::IDENT, head.rest);
}

/// The quote without what an extension behind it says, if there is one that can be.
fn without_extension(quote: Place, is_v4: bool, head: Head) -> Place {
    let least = quote.transport + QUOTED_TRANSPORT_MIN;
    let end = quoted_before_extension(is_v4, head).map_or(quote.end, |bytes| quote.ip + bytes);
    Place { end: if end < least { quote.end } else { end.min(quote.end) }, ..quote }
}

/// An ICMPv6 error becomes one of ICMP (RFC 7915 sections 5.2 and 5.3). `ends` and `ports` are
/// those of the error's flow: what it quotes went the other way.
fn message_to_v4(
    buffer: &mut [u8],
    (outer, quote): (Place, Place),
    ends: (Ipv4Addr, Ipv4Addr),
    ports: (u16, u16),
) -> Result<Place, DropReason> {
    let head = head_of(buffer, outer.transport);
    let new_head = error_to_v4(head).ok_or(DropReason::NoTranslation)?;
    let mut fields = read_v6(buffer, outer);
    let quote = without_extension(quote, false, head);
    let quote = packet_to_v4(buffer, quote, (ends.1, ends.0), (ports.1, ports.0));
    let place = make_room(buffer, Place { end: quote.end, ..outer }, ipv4::HEADER_BYTES)?;
    let message = &mut buffer[place.transport..place.end];
    write_head(message, new_head);
    let checksum = Sum::of(message).checksum();
    set_u16(message, icmp_message::field::CHECKSUM, checksum);
    (fields.protocol, fields.payload) = (ipv4::PROTOCOL_ICMP, message.len());
    write_v4(buffer, place.ip, &fields, ends);
    Ok(place)
}

/// An ICMP error becomes one of ICMPv6 (RFC 7915 sections 4.2 and 4.3), which `from` sends.
fn message_to_v6(
    buffer: &mut [u8],
    (outer, quote): (Place, Place),
    (ends, from): ((Ipv6Addr, Ipv6Addr), Ipv6Addr),
    ports: (u16, u16),
) -> Result<Place, DropReason> {
    let head = head_of(buffer, outer.transport);
    let quoted_len = get_u16(buffer, quote.ip + ipv4::field::TOTAL_LENGTH);
    let new_head = error_to_v6(head, quoted_len).ok_or(DropReason::NoTranslation)?;
    let mut fields = read_v4(buffer, outer);
    let quote = without_extension(quote, true, head);
    let most = QUOTE_MAX - read_v4(buffer, quote).header_v6_bytes();
    let quote = Place { end: quote.end.min(quote.transport + most), ..quote };
    let quote = packet_to_v6(buffer, quote, (ends.1, ends.0), (ports.1, ports.0))?;
    let place = make_room(buffer, Place { end: quote.end, ..outer }, ipv6::HEADER_BYTES)?;
    let message = &mut buffer[place.transport..place.end];
    write_head(message, new_head);
    let (source, destination) = (from.octets(), ends.1.octets());
    let pseudo = pseudo_header(&source, &destination, ipv6::PROTOCOL_ICMPV6, message.len());
    let checksum = pseudo.bytes(message).checksum();
    set_u16(message, icmp_message::field::CHECKSUM, checksum);
    (fields.protocol, fields.payload) = (ipv6::PROTOCOL_ICMPV6, message.len());
    write_v6(buffer, place.ip, &fields, (from, ends.1));
    Ok(place)
}
