//! Parsing: all lengths, all checksums, and every reason not to look further, in one pass.
//!
//! What comes out of here can be trusted by everything behind: headers lie inside the frame, the
//! tuple is one that may stand on a wire. The good case, an Ethernet frame with IPv4 without
//! options and TCP or UDP in it, is kept short; the rest is out of line.
//!
//! Never looks at state, never changes a frame, never allocates.

use crate::frame::FRAME_BYTES;
use crate::packet::checksum::{Sum, pseudo_tail};
use crate::packet::icmp::{self, IcmpMessage};
use crate::packet::icmpv6::{self, Icmpv6Message};
use crate::packet::ipv4::{self, Ipv4Packet};
use crate::packet::ipv6::{self, Ipv6Packet};
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::packet::tcp::{self, TcpSegment};
use crate::packet::udp::{self, UdpDatagram};
use crate::packet::{ethernet, quote};
use crate::verdict::DropReason;
use nearstate_placement::FlowTuple;
use nearstate_store::{Address, Endpoint};

/// Which checksums are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// All of them.
    All,
    /// Only those of IP headers: somebody has verified those of TCP, UDP and ICMP before.
    Headers,
}

/// What the network header said.
pub(crate) struct Network {
    version: IpVersion,
    /// Where the IP header begins.
    ip: usize,
    /// Where the transport header begins.
    pub(crate) transport_at: usize,
    /// Where the packet ends.
    pub(crate) end: usize,
    protocol: u8,
    /// Addresses with port 0.
    source: Endpoint,
    destination: Endpoint,
    /// Sum of both addresses, for pseudo headers.
    addresses: Sum,
    verify: Verify,
}

/// Looks at a frame, all checksums included.
///
/// # Errors
/// The reason to drop it; [`DropReason::Fragment`] if it is to be looked at by
/// [`crate::packet::parse_fragment`].
#[inline]
pub fn parse(frame: &[u8]) -> Result<Parsed, DropReason> {
    parse_with(frame, Verify::All)
}

/// Looks at a frame.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(frame: &[u8], verify: Verify) -> Result<Parsed, DropReason> {
    let mut parsed = Parsed::BLANK;
    parse_into(frame, verify, &mut parsed)?;
    Ok(parsed)
}

/// Looks at a frame, for whoever has room for what is found: it is not copied then.
///
/// # Errors
/// The reason to drop it; what was found is none then.
#[inline(always)]
pub fn parse_into(frame: &[u8], verify: Verify, into: &mut Parsed) -> Result<(), DropReason> {
    if frame.len() > FRAME_BYTES {
        return Err(DropReason::FrameTooLong);
    }
    let (ether_type, ip) = ethernet::network_header(frame)?;
    match ether_type {
        ethernet::TYPE_IPV4 => {
            let network = parse_ipv4(frame, ip, verify)?;
            let bytes = &frame[network.transport_at..network.end];
            match network.protocol {
                tcp::PROTOCOL => parse_tcp(bytes, &network, into),
                udp::PROTOCOL => parse_udp(bytes, &network, into),
                ipv4::PROTOCOL_ICMP => parse_icmp(frame, &network, into),
                _ => Err(DropReason::UnknownProtocol),
            }
        }
        ethernet::TYPE_IPV6 => parse_ipv6_packet(frame, ip, verify, into),
        _ => Err(DropReason::NotIp),
    }
}

#[inline(never)]
fn parse_ipv6_packet(
    frame: &[u8],
    ip: usize,
    verify: Verify,
    into: &mut Parsed,
) -> Result<(), DropReason> {
    let network = parse_ipv6(frame, ip, verify)?;
    let bytes = &frame[network.transport_at..network.end];
    match network.protocol {
        tcp::PROTOCOL => parse_tcp(bytes, &network, into),
        udp::PROTOCOL => parse_udp(bytes, &network, into),
        ipv6::PROTOCOL_ICMPV6 => parse_icmpv6(frame, &network, into),
        _ => Err(DropReason::UnknownProtocol),
    }
}

#[inline(always)]
fn parse_ipv4(frame: &[u8], ip: usize, verify: Verify) -> Result<Network, DropReason> {
    let packet = checked_ipv4(&frame[ip..])?;
    if packet.is_fragment() {
        return Err(DropReason::Fragment);
    }
    Ok(Network {
        version: IpVersion::V4,
        ip,
        transport_at: ip + packet.header_len(),
        end: ip + packet.total_len(),
        protocol: packet.protocol(),
        source: Endpoint::v4(packet.source().octets(), 0),
        destination: Endpoint::v4(packet.destination().octets(), 0),
        addresses: packet.addresses(),
        verify,
    })
}

fn parse_ipv6(frame: &[u8], ip: usize, verify: Verify) -> Result<Network, DropReason> {
    let packet = checked_ipv6(&frame[ip..])?;
    let end = ip + packet.total_len();
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    let upper = ipv6::skip_extensions(&frame[ip..end])?;
    if upper.first_fragment {
        return Err(DropReason::Fragment);
    }
    Ok(Network {
        version: IpVersion::V6,
        ip,
        transport_at: ip + upper.at,
        end,
        protocol: upper.protocol,
        source: Endpoint { address: Address::from_octets(source), port: 0 },
        destination: Endpoint { address: Address::from_octets(destination), port: 0 },
        addresses: Sum::of(&source).bytes(&destination),
        verify,
    })
}

/// An IPv4 packet that may be forwarded as far as its header says, or may be a fragment of one.
#[inline(always)]
pub(crate) fn checked_ipv4(bytes: &[u8]) -> Result<Ipv4Packet<&[u8]>, DropReason> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    if !packet.verify_checksum() {
        return Err(DropReason::BadIpChecksum);
    }
    if packet.header_len() > ipv4::HEADER_BYTES {
        ipv4::check_options(packet.options())?;
    }
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    if is_martian_source_v4(source) || is_martian_destination_v4(destination) {
        return Err(DropReason::MartianAddress);
    }
    if packet.ttl() == 0 {
        return Err(DropReason::TtlExpired);
    }
    Ok(packet)
}

/// As [`checked_ipv4`]; extension headers are not looked at.
#[inline]
pub(crate) fn checked_ipv6(bytes: &[u8]) -> Result<Ipv6Packet<&[u8]>, DropReason> {
    let packet = Ipv6Packet::new_checked(bytes)?;
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    if is_martian_source_v6(source) || is_martian_destination_v6(destination) {
        return Err(DropReason::MartianAddress);
    }
    if packet.hop_limit() == 0 {
        return Err(DropReason::TtlExpired);
    }
    Ok(packet)
}

/// Never a source on a wire: "this network", loopback, multicast, reserved and broadcast
/// (RFC 1122 section 3.2.1.3, RFC 1812 section 5.3.7).
#[inline]
pub(crate) const fn is_martian_source_v4(address: [u8; 4]) -> bool {
    matches!(address[0], 0 | 127 | 224..)
}

/// Never forwarded: "this network", loopback, reserved and the limited broadcast (RFC 1812 section
/// 5.3.5.1). Multicast is.
#[inline]
pub(crate) const fn is_martian_destination_v4(address: [u8; 4]) -> bool {
    matches!(address[0], 0 | 127 | 240..)
}

/// Unspecified, loopback, IPv4-compatible and IPv4-mapped (RFC 4291 sections 2.5.2 to 2.5.5). The
/// last would also look like an IPv4 endpoint to everything behind.
#[inline]
pub(crate) const fn is_martian_destination_v6(address: [u8; 16]) -> bool {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = address;
    let zeros = a | b | c | d | e | f | g | h | i | j == 0;
    zeros && matches!((k, l), (0, 0) | (0xff, 0xff))
}

/// As a destination, or multicast.
#[inline]
pub(crate) const fn is_martian_source_v6(address: [u8; 16]) -> bool {
    address[0] == 0xff || is_martian_destination_v6(address)
}

impl Network {
    /// Whether the checksum of these transport bytes adds up, if it is to be looked at.
    #[inline]
    fn checksum_is_right(&self, bytes: &[u8]) -> bool {
        match self.verify {
            Verify::Headers => true,
            Verify::All => {
                self.addresses.plus(pseudo_tail(self.protocol, bytes.len())).bytes(bytes).is_valid()
            }
        }
    }

    /// The result for ports that were found in the transport header.
    #[inline(always)]
    fn with_ports(
        &self,
        ports: (u16, u16),
        transport: Transport,
        into: &mut Parsed,
    ) -> Result<(), DropReason> {
        let tuple = FlowTuple {
            protocol: self.protocol,
            source: Endpoint { port: ports.0, ..self.source },
            destination: Endpoint { port: ports.1, ..self.destination },
        };
        self.with_tuple(tuple, transport, into)
    }

    /// The result. A packet whose two ends are one ("land") is refused here.
    #[inline(always)]
    pub(crate) fn with_tuple(
        &self,
        tuple: FlowTuple,
        transport: Transport,
        into: &mut Parsed,
    ) -> Result<(), DropReason> {
        if tuple.source == tuple.destination {
            return Err(DropReason::MartianAddress);
        }
        *into = Parsed {
            version: self.version,
            ip: self.ip as u16,
            transport_at: self.transport_at as u16,
            end: self.end as u16,
            transport,
            tuple,
        };
        Ok(())
    }

    /// Where it goes, port 0.
    pub(crate) const fn destination(&self) -> Endpoint {
        self.destination
    }

    /// Where it comes from, port 0.
    pub(crate) const fn source(&self) -> Endpoint {
        self.source
    }
}

#[inline(always)]
fn parse_tcp(bytes: &[u8], network: &Network, into: &mut Parsed) -> Result<(), DropReason> {
    let segment = TcpSegment::new_checked(bytes)?;
    tcp::check_options(segment.options())?;
    if !network.checksum_is_right(bytes) {
        return Err(DropReason::BadChecksum);
    }
    let ports = (segment.source_port(), segment.destination_port());
    if ports.0 == 0 || ports.1 == 0 {
        return Err(DropReason::PortZero);
    }
    let flags = segment.flags();
    if !tcp::flags_are_legal(flags) {
        return Err(DropReason::BadTcpFlags);
    }
    network.with_ports(ports, Transport::Tcp { flags }, into)
}

#[inline(always)]
fn parse_udp(bytes: &[u8], network: &Network, into: &mut Parsed) -> Result<(), DropReason> {
    let datagram = UdpDatagram::new_checked(bytes)?;
    if datagram.checksum() == 0 {
        // RFC 768: no checksum was made. RFC 8200 section 8.1: not so over IPv6.
        if network.version == IpVersion::V6 {
            return Err(DropReason::BadChecksum);
        }
    } else if !network.checksum_is_right(&bytes[..datagram.length()]) {
        return Err(DropReason::BadChecksum);
    }
    let ports = (datagram.source_port(), datagram.destination_port());
    if ports.0 == 0 || ports.1 == 0 {
        return Err(DropReason::PortZero);
    }
    network.with_ports(ports, Transport::Udp, into)
}

#[inline(never)]
fn parse_icmp(frame: &[u8], network: &Network, into: &mut Parsed) -> Result<(), DropReason> {
    let message = IcmpMessage::new_checked(&frame[network.transport_at..network.end])?;
    // RFC 5508 REQ-3: an error with a wrong checksum is dropped silently.
    if network.verify == Verify::All && !message.verify_checksum() {
        return Err(DropReason::BadChecksum);
    }
    match message.kind() {
        kind @ (icmp::ECHO_REQUEST | icmp::ECHO_REPLY) => {
            let transport = Transport::Echo { request: kind == icmp::ECHO_REQUEST };
            network.with_ports((message.ident(), message.ident()), transport, into)
        }
        kind if icmp::is_error(kind) => quote::parse_v4(frame, network, into),
        _ => Err(DropReason::IcmpType),
    }
}

#[inline(never)]
fn parse_icmpv6(frame: &[u8], network: &Network, into: &mut Parsed) -> Result<(), DropReason> {
    let bytes = &frame[network.transport_at..network.end];
    let message = Icmpv6Message::new_checked(bytes)?;
    if !network.checksum_is_right(bytes) {
        return Err(DropReason::BadChecksum);
    }
    match message.kind() {
        kind @ (icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY) => {
            let transport = Transport::Echo { request: kind == icmpv6::ECHO_REQUEST };
            network.with_ports((message.ident(), message.ident()), transport, into)
        }
        kind if icmpv6::is_error(kind) => quote::parse_v6(frame, network, into),
        _ => Err(DropReason::IcmpType),
    }
}

#[cfg(test)]
mod tests;
