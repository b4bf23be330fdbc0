//! The packet that an ICMP error quotes: which flow the error is about.
//!
//! A quote is often cut short, so its lengths are only held against the quoted bytes, and its
//! transport checksum is not validated (RFC 5508 REQ-3c). At least eight bytes of its transport
//! header must be there: the ports.

use crate::packet::icmp;
use crate::packet::icmp_message;
use crate::packet::icmpv6;
use crate::packet::ipv4::{self, Ipv4Packet, OFFSET_MASK};
use crate::packet::ipv6::{self, Ipv6Packet};
use crate::packet::parse::{Network, is_martian_destination_v4, is_martian_destination_v6};
use crate::packet::parsed::{Parsed, Transport};
use crate::packet::word::get_u16;
use crate::packet::{tcp, udp};
use crate::verdict::DropReason;
use nearstate_placement::FlowTuple;
use nearstate_store::{Address, Endpoint};

/// Bytes of a quoted transport header that must be there.
const TRANSPORT_BYTES_MIN: usize = 8;

/// What a quoted IP header said; positions count from the frame's first byte.
struct Quoted {
    ip: usize,
    transport: usize,
    protocol: u8,
    source: Endpoint,
    destination: Endpoint,
}

/// The error's flow, from a quoted IPv4 packet.
pub(crate) fn parse_v4(
    frame: &[u8],
    network: &Network,
    into: &mut Parsed,
) -> Result<(), DropReason> {
    let ip = network.transport_at + icmp_message::HEADER_BYTES;
    let quote = &frame[ip..network.end];
    if quote.len() < ipv4::HEADER_BYTES {
        return Err(DropReason::BadIcmpHeader);
    }
    let packet = Ipv4Packet::new_unchecked(quote);
    let header_len = packet.header_len();
    let fits = packet.version() == 4
        && header_len >= ipv4::HEADER_BYTES
        && header_len + TRANSPORT_BYTES_MIN <= quote.len()
        && header_len + TRANSPORT_BYTES_MIN <= packet.total_len();
    if !fits {
        return Err(DropReason::BadIcmpHeader);
    }
    // RFC 5508 REQ-3a. Options are skipped by the header's length (REQ-3b).
    if !packet.verify_checksum() {
        return Err(DropReason::BadIpChecksum);
    }
    // A later fragment has no ports.
    if packet.flags_offset() & OFFSET_MASK != 0 {
        return Err(DropReason::BadIcmpHeader);
    }
    if is_martian_destination_v4(packet.destination().octets()) {
        return Err(DropReason::MartianAddress);
    }
    let quoted = Quoted {
        ip,
        transport: ip + header_len,
        protocol: packet.protocol(),
        source: Endpoint::v4(packet.source().octets(), 0),
        destination: Endpoint::v4(packet.destination().octets(), 0),
    };
    finish(frame, network, &quoted, into)
}

/// The error's flow, from a quoted IPv6 packet.
pub(crate) fn parse_v6(
    frame: &[u8],
    network: &Network,
    into: &mut Parsed,
) -> Result<(), DropReason> {
    let ip = network.transport_at + icmp_message::HEADER_BYTES;
    let quote = &frame[ip..network.end];
    if quote.len() < ipv6::HEADER_BYTES {
        return Err(DropReason::BadIcmpHeader);
    }
    let packet = Ipv6Packet::new_unchecked(quote);
    if packet.version() != 6 {
        return Err(DropReason::BadIcmpHeader);
    }
    let end = packet.total_len().min(quote.len());
    let upper = ipv6::skip_extensions(&quote[..end]).map_err(|_| DropReason::BadIcmpHeader)?;
    if upper.at + TRANSPORT_BYTES_MIN > end {
        return Err(DropReason::BadIcmpHeader);
    }
    let (source, destination) = (packet.source().octets(), packet.destination().octets());
    // An IPv4-mapped address would pass for an IPv4 endpoint.
    if is_martian_destination_v6(source) || is_martian_destination_v6(destination) {
        return Err(DropReason::MartianAddress);
    }
    let quoted = Quoted {
        ip,
        transport: ip + upper.at,
        protocol: upper.protocol,
        source: Endpoint { address: Address::from_octets(source), port: 0 },
        destination: Endpoint { address: Address::from_octets(destination), port: 0 },
    };
    finish(frame, network, &quoted, into)
}

/// Takes the ports, and turns the tuple round: an error is an answer.
fn finish(
    frame: &[u8],
    network: &Network,
    quoted: &Quoted,
    into: &mut Parsed,
) -> Result<(), DropReason> {
    // Who sent the quoted packet is who gets the error. Anything else was made up to have us send
    // it on to a host that its sender could not name.
    if quoted.source.address != network.destination().address {
        return Err(DropReason::BadIcmpHeader);
    }
    let header = &frame[quoted.transport..quoted.transport + TRANSPORT_BYTES_MIN];
    let (source_port, destination_port) = match quoted.protocol {
        tcp::PROTOCOL | udp::PROTOCOL => {
            let ports = (get_u16(header, 0), get_u16(header, 2));
            if ports.0 == 0 || ports.1 == 0 {
                return Err(DropReason::PortZero);
            }
            ports
        }
        ipv4::PROTOCOL_ICMP | ipv6::PROTOCOL_ICMPV6 => {
            let ident = echo_ident(quoted.protocol, network, header)?;
            (ident, ident)
        }
        _ => return Err(DropReason::UnknownProtocol),
    };
    let tuple = FlowTuple {
        protocol: quoted.protocol,
        source: Endpoint { port: destination_port, ..quoted.destination },
        destination: Endpoint { port: source_port, ..quoted.source },
    };
    let transport = Transport::IcmpError {
        inner_ip: quoted.ip as u16,
        inner_transport: quoted.transport as u16,
        inner_protocol: quoted.protocol,
    };
    network.with_tuple(tuple, transport, into)
}

/// The identifier of a quoted echo. An error about an error does not exist (RFC 1122 section
/// 3.2.2, RFC 4443 section 2.4 (e)).
fn echo_ident(protocol: u8, network: &Network, header: &[u8]) -> Result<u16, DropReason> {
    let is_v4 = network.source().ipv4().is_some();
    let is_echo = match protocol {
        ipv4::PROTOCOL_ICMP => is_v4 && matches!(header[0], icmp::ECHO_REQUEST | icmp::ECHO_REPLY),
        _ => !is_v4 && matches!(header[0], icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY),
    };
    if is_echo {
        Ok(get_u16(header, icmp_message::field::IDENT))
    } else {
        Err(DropReason::BadIcmpHeader)
    }
}
