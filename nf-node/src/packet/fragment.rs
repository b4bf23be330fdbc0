//! Fragments: which datagram one is of, which of its bytes it brings, and, of the first, which flow
//! it belongs to.
//!
//! What [`parse`](crate::packet::parse) sets aside comes here; whole packets never do. A first
//! fragment is checked as a whole packet is, but for the checksum over bytes that are elsewhere; it
//! must hold the whole transport header (RFC 1858, RFC 7112). A later one has no ports, so its
//! tuple has ports 0.
//!
//! Never looks at state, never changes a frame, never puts bytes together.

use crate::frame::FRAME_BYTES;
use crate::packet::icmp::{self, IcmpMessage};
use crate::packet::icmpv6::{self, Icmpv6Message};
use crate::packet::parse::{checked_ipv4, checked_ipv6};
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::packet::tcp::{self, TcpSegment};
use crate::packet::udp::{self, UdpDatagram};
use crate::packet::{ethernet, icmp_message, ipv4, ipv6};
use crate::verdict::DropReason;
use nearstate_placement::FlowTuple;
use nearstate_store::Endpoint;

/// Bytes in which fragment offsets count.
pub const UNIT_BYTES: usize = 8;
/// Bytes that a datagram can have.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A datagram in the words of its fragments (RFC 791 section 2.3, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its ends with ports 0. The protocol is that of the payload for IPv4, and
    /// [`ipv6::FRAGMENT`] for IPv6, where later fragments need not say it.
    pub tuple: FlowTuple,
    /// Its identification.
    pub ident: u32,
}

/// Which bytes of its datagram a fragment brings. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin, in units of [`UNIT_BYTES`].
    pub from: u16,
    /// How many they are.
    pub bytes: u16,
    /// Whether none follow.
    pub is_last: bool,
}

impl Piece {
    /// A piece whose IP header, and whatever else is not cut up, has so many bytes.
    fn new(
        from: u16,
        bytes: usize,
        is_last: bool,
        header_bytes: usize,
    ) -> Result<Self, DropReason> {
        let is_whole = is_last || bytes.is_multiple_of(UNIT_BYTES);
        let end = header_bytes + usize::from(from) * UNIT_BYTES + bytes;
        if bytes == 0 || !is_whole || end > DATAGRAM_BYTES_MAX {
            return Err(DropReason::FragmentLength);
        }
        Ok(Self { from, bytes: bytes as u16, is_last })
    }

    /// The byte behind its last one.
    #[must_use]
    pub const fn end_bytes(&self) -> u16 {
        // At most 65,535: the constructor has seen to it.
        self.from * UNIT_BYTES as u16 + self.bytes
    }

    /// The unit behind its last one.
    #[must_use]
    pub const fn to(&self) -> u16 {
        self.from + self.bytes.div_ceil(UNIT_BYTES as u16)
    }

    /// Whether it is the first of its datagram.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.from == 0
    }
}

/// A well-formed fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where things are in the frame. Of a later fragment the transport is
    /// [`Transport::LaterFragment`].
    pub parsed: Parsed,
    /// Its datagram.
    pub datagram: Datagram,
    /// Its bytes.
    pub piece: Piece,
}

/// What the IP header said, and where things are.
struct Header {
    version: IpVersion,
    ip: usize,
    transport_at: usize,
    end: usize,
    protocol: u8,
    /// Ends with port 0.
    ends: (Endpoint, Endpoint),
    ident: u32,
}

/// Looks at a frame that holds a fragment.
///
/// # Errors
/// The reason to drop it; [`DropReason::Fragment`] if it is none.
#[cold]
pub fn parse_fragment(frame: &[u8]) -> Result<Fragment, DropReason> {
    if frame.len() > FRAME_BYTES {
        return Err(DropReason::FrameTooLong);
    }
    let (ether_type, ip) = ethernet::network_header(frame)?;
    let (header, piece) = match ether_type {
        ethernet::TYPE_IPV4 => header_v4(frame, ip)?,
        ethernet::TYPE_IPV6 => header_v6(frame, ip)?,
        _ => return Err(DropReason::NotIp),
    };
    if piece.is_first() { first(frame, &header, piece) } else { later(&header, piece) }
}

fn header_v4(frame: &[u8], ip: usize) -> Result<(Header, Piece), DropReason> {
    let packet = checked_ipv4(&frame[ip..])?;
    let header_len = packet.header_len();
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    if !packet.is_fragment() {
        return Err(DropReason::Fragment);
    }
    let word = packet.flags_offset();
    let (from, is_last) = (word & ipv4::OFFSET_MASK, word & ipv4::MORE_FRAGMENTS == 0);
    let piece = Piece::new(from, packet.total_len() - header_len, is_last, header_len)?;
    let header = Header {
        version: IpVersion::V4,
        ip,
        transport_at: ip + header_len,
        end: ip + packet.total_len(),
        protocol: packet.protocol(),
        ends: (Endpoint::v4(source, 0), Endpoint::v4(destination, 0)),
        ident: packet.ident().into(),
    };
    Ok((header, piece))
}

fn header_v6(frame: &[u8], ip: usize) -> Result<(Header, Piece), DropReason> {
    let packet = checked_ipv6(&frame[ip..])?;
    let end = ip + packet.total_len();
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    let fragment = ipv6::fragment_header(&frame[ip..end])?;
    let (at, unfragmented) = (ip + fragment.end(), fragment.at - ipv6::HEADER_BYTES);
    let piece = Piece::new(fragment.offset, end - at, !fragment.more, unfragmented)?;
    let (transport_at, protocol) = if piece.is_first() {
        let upper = ipv6::skip_extensions(&frame[ip..end])?;
        (ip + upper.at, upper.protocol)
    } else {
        (at, fragment.next)
    };
    let header = Header {
        version: IpVersion::V6,
        ip,
        transport_at,
        end,
        protocol,
        ends: (Endpoint::new(source.into(), 0), Endpoint::new(destination.into(), 0)),
        ident: fragment.ident,
    };
    Ok((header, piece))
}

impl Header {
    fn fragment(
        &self,
        piece: Piece,
        (source_port, destination_port): (u16, u16),
        transport: Transport,
    ) -> Result<Fragment, DropReason> {
        let (source, destination) = self.ends;
        let name = match self.version {
            IpVersion::V4 => self.protocol,
            IpVersion::V6 => ipv6::FRAGMENT,
        };
        let protocol = if transport == Transport::LaterFragment { name } else { self.protocol };
        let tuple = FlowTuple {
            protocol,
            source: Endpoint { port: source_port, ..source },
            destination: Endpoint { port: destination_port, ..destination },
        };
        if tuple.source == tuple.destination {
            return Err(DropReason::MartianAddress);
        }
        let parsed = Parsed {
            version: self.version,
            ip: self.ip as u16,
            transport_at: self.transport_at as u16,
            end: self.end as u16,
            transport,
            tuple,
        };
        let tuple = FlowTuple { protocol: name, source, destination };
        Ok(Fragment { parsed, datagram: Datagram { tuple, ident: self.ident }, piece })
    }
}

fn later(header: &Header, piece: Piece) -> Result<Fragment, DropReason> {
    // RFC 1858 section 3.2.2: nothing may be written over the flags that a filter has seen.
    if header.protocol == tcp::PROTOCOL && piece.from == 1 {
        return Err(DropReason::FragmentTcpOffset);
    }
    // An IPv6 host does not look at what later fragments say that they are (RFC 8200 section 4.5).
    let can_follow = header.version == IpVersion::V6
        || matches!(header.protocol, tcp::PROTOCOL | udp::PROTOCOL | ipv4::PROTOCOL_ICMP);
    if !can_follow {
        return Err(DropReason::UnknownProtocol);
    }
    header.fragment(piece, (0, 0), Transport::LaterFragment)
}

fn first(frame: &[u8], header: &Header, piece: Piece) -> Result<Fragment, DropReason> {
    let bytes = &frame[header.transport_at..header.end];
    let (ports, transport) = match (header.version, header.protocol) {
        (_, tcp::PROTOCOL) => first_of_tcp(bytes)?,
        (version, udp::PROTOCOL) => first_of_udp(bytes, version)?,
        (IpVersion::V4, ipv4::PROTOCOL_ICMP) | (IpVersion::V6, ipv6::PROTOCOL_ICMPV6) => {
            first_of_icmp(bytes, header.version)?
        }
        _ => return Err(DropReason::UnknownProtocol),
    };
    header.fragment(piece, ports, transport)
}

type Found = ((u16, u16), Transport);

fn ports_of(ports: (u16, u16), transport: Transport) -> Result<Found, DropReason> {
    if ports.0 == 0 || ports.1 == 0 {
        return Err(DropReason::PortZero);
    }
    Ok((ports, transport))
}

fn first_of_tcp(bytes: &[u8]) -> Result<Found, DropReason> {
    if bytes.len() < tcp::HEADER_BYTES {
        return Err(DropReason::FragmentTiny);
    }
    let header_len = TcpSegment::new_unchecked(bytes).header_len();
    if header_len > bytes.len() {
        return Err(DropReason::FragmentTiny);
    }
    let segment = TcpSegment::new_checked(bytes)?;
    tcp::check_options(segment.options())?;
    let flags = segment.flags();
    if !tcp::flags_are_legal(flags) {
        return Err(DropReason::BadTcpFlags);
    }
    ports_of((segment.source_port(), segment.destination_port()), Transport::Tcp { flags })
}

fn first_of_udp(bytes: &[u8], version: IpVersion) -> Result<Found, DropReason> {
    if bytes.len() < udp::HEADER_BYTES {
        return Err(DropReason::FragmentTiny);
    }
    let datagram = UdpDatagram::new_unchecked(bytes);
    if datagram.length() < udp::HEADER_BYTES {
        return Err(DropReason::BadUdpHeader);
    }
    if datagram.checksum() == 0 && version == IpVersion::V6 {
        return Err(DropReason::BadChecksum);
    }
    ports_of((datagram.source_port(), datagram.destination_port()), Transport::Udp)
}

fn first_of_icmp(bytes: &[u8], version: IpVersion) -> Result<Found, DropReason> {
    if bytes.len() < icmp_message::HEADER_BYTES {
        return Err(DropReason::FragmentTiny);
    }
    let (kind, ident, is_error, request) = match version {
        IpVersion::V4 => {
            let message = IcmpMessage::new_checked(bytes)?;
            let kind = message.kind();
            (kind, message.ident(), icmp::is_error(kind), icmp::ECHO_REQUEST)
        }
        IpVersion::V6 => {
            let message = Icmpv6Message::new_checked(bytes)?;
            let kind = message.kind();
            (kind, message.ident(), icmpv6::is_error(kind), icmpv6::ECHO_REQUEST)
        }
    };
    let reply = match version {
        IpVersion::V4 => icmp::ECHO_REPLY,
        IpVersion::V6 => icmpv6::ECHO_REPLY,
    };
    if kind == request || kind == reply {
        return Ok(((ident, ident), Transport::Echo { request: kind == request }));
    }
    Err(if is_error { DropReason::FragmentIcmpError } else { DropReason::IcmpType })
}

#[cfg(test)]
mod tests;
