//! Packets in one line, for tests, benchmarks and generated traffic.
//!
//! ```
//! use nearstate_nf_node::packet::{PacketBuilder, parse, tcp::flags};
//! use nearstate_store::Endpoint;
//!
//! let (client, server) = (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([192, 0, 2, 1], 80));
//! let frame = PacketBuilder::tcp(client, server).flags(flags::SYN).seq(1).vlan(5).build();
//! assert_eq!(parse(&frame).unwrap().tuple.source, client);
//! ```
//!
//! All lengths and checksums are right; a test that wants them wrong breaks the built bytes. This
//! allocates: it is not for the packet path.

use crate::packet::checksum::pseudo_header;
use crate::packet::ethernet::{self, EthernetFrame, MacAddress};
use crate::packet::icmp::{self, IcmpMessage};
use crate::packet::icmp_message;
use crate::packet::icmpv6::{self, Icmpv6Message};
use crate::packet::ipv4::{self, Ipv4Packet};
use crate::packet::ipv6::{self, Ipv6Packet};
use crate::packet::tcp::{self, TcpSegment};
use crate::packet::udp::{self, UdpDatagram};
use core::net::IpAddr;
use nearstate_store::Endpoint;

/// Hardware address that built frames come from.
pub const SOURCE_MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 1]);
/// Hardware address that built frames go to.
pub const DESTINATION_MAC: MacAddress = MacAddress([0x02, 0, 0, 0, 0, 2]);

#[derive(Clone, Debug)]
enum Kind {
    Tcp { flags: u8, sequence: u32, acknowledgement: u32, window: u16, options: Vec<u8> },
    Udp { with_checksum: bool },
    Icmp { kind: u8, code: u8, rest: u32 },
    Other { protocol: u8 },
}

/// A packet in the making. The family of its source decides between IPv4 and IPv6.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    source: Endpoint,
    destination: Endpoint,
    kind: Kind,
    payload: Vec<u8>,
    vlans: Vec<u16>,
    ttl: u8,
    ident: u16,
    ip_options: Vec<u8>,
    padding: usize,
}

impl PacketBuilder {
    fn new(source: Endpoint, destination: Endpoint, kind: Kind) -> Self {
        assert_eq!(
            source.ipv4().is_some(),
            destination.ipv4().is_some(),
            "both ends are of one family"
        );
        Self {
            source,
            destination,
            kind,
            payload: Vec::new(),
            vlans: Vec::new(),
            ttl: 64,
            ident: 0,
            ip_options: Vec::new(),
            padding: 0,
        }
    }

    /// A TCP segment: an ACK without data unless told otherwise.
    ///
    /// # Panics
    /// As all constructors: if the two ends are of different families.
    #[must_use]
    pub fn tcp(source: Endpoint, destination: Endpoint) -> Self {
        let kind = Kind::Tcp {
            flags: tcp::flags::ACK,
            sequence: 0,
            acknowledgement: 0,
            window: 65_535,
            options: Vec::new(),
        };
        Self::new(source, destination, kind)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(source: Endpoint, destination: Endpoint) -> Self {
        Self::new(source, destination, Kind::Udp { with_checksum: true })
    }

    /// An echo request. The identifier is the source's port.
    #[must_use]
    pub fn echo_request(source: Endpoint, destination: Endpoint) -> Self {
        let kind = if source.ipv4().is_some() { icmp::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
        Self::icmp(source, destination, (kind, 0, u32::from(source.port) << 16))
    }

    /// An echo reply. The identifier is the source's port.
    #[must_use]
    pub fn echo_reply(source: Endpoint, destination: Endpoint) -> Self {
        let kind = if source.ipv4().is_some() { icmp::ECHO_REPLY } else { icmpv6::ECHO_REPLY };
        Self::icmp(source, destination, (kind, 0, u32::from(source.port) << 16))
    }

    /// An ICMP (ICMPv6) message of any type: type, code, and the four bytes that depend on them.
    /// Ports of the endpoints do not matter.
    #[must_use]
    pub fn icmp(source: Endpoint, destination: Endpoint, header: (u8, u8, u32)) -> Self {
        let (kind, code, rest) = header;
        Self::new(source, destination, Kind::Icmp { kind, code, rest })
    }

    /// An ICMP error that `source` sends to whoever sent the packet in `frame`, quoting the whole
    /// of it; [`PacketBuilder::quote_limit`] cuts the quote.
    ///
    /// # Panics
    /// If the frame holds no IP packet.
    #[must_use]
    pub fn icmp_error(source: Endpoint, kind: (u8, u8), frame: &[u8]) -> Self {
        let (ether_type, ip) = ethernet::network_header(frame).expect("an Ethernet frame");
        let packet = &frame[ip..];
        let (destination, len) = if ether_type == ethernet::TYPE_IPV4 {
            let quoted = Ipv4Packet::new_unchecked(packet);
            (IpAddr::V4(quoted.source()), quoted.total_len())
        } else {
            let quoted = Ipv6Packet::new_unchecked(packet);
            (IpAddr::V6(quoted.source()), quoted.total_len())
        };
        Self::icmp(source, Endpoint::new(destination, 0), (kind.0, kind.1, 0))
            .payload(&packet[..len.min(packet.len())])
    }

    /// A packet of any other protocol.
    #[must_use]
    pub fn other(source: Endpoint, destination: Endpoint, protocol: u8) -> Self {
        Self::new(source, destination, Kind::Other { protocol })
    }

    /// TCP flags.
    ///
    /// # Panics
    /// As all TCP settings: if this is no TCP segment.
    #[must_use]
    pub fn flags(mut self, new: u8) -> Self {
        let Kind::Tcp { flags, .. } = &mut self.kind else { panic!("flags are TCP's") };
        *flags = new;
        self
    }

    /// TCP sequence number.
    #[must_use]
    pub fn seq(mut self, new: u32) -> Self {
        let Kind::Tcp { sequence, .. } = &mut self.kind else { panic!("seq is TCP's") };
        *sequence = new;
        self
    }

    /// TCP acknowledgement number.
    #[must_use]
    pub fn ack(mut self, new: u32) -> Self {
        let Kind::Tcp { acknowledgement, .. } = &mut self.kind else { panic!("ack is TCP's") };
        *acknowledgement = new;
        self
    }

    /// TCP window.
    #[must_use]
    pub fn window(mut self, new: u16) -> Self {
        let Kind::Tcp { window, .. } = &mut self.kind else { panic!("window is TCP's") };
        *window = new;
        self
    }

    /// TCP options, padded with "end of options" to a multiple of 4.
    #[must_use]
    pub fn tcp_options(mut self, new: &[u8]) -> Self {
        let Kind::Tcp { options, .. } = &mut self.kind else { panic!("options are TCP's") };
        *options = padded(new);
        self
    }

    /// A UDP datagram without a checksum.
    ///
    /// # Panics
    /// If this is no UDP datagram.
    #[must_use]
    pub fn no_checksum(mut self) -> Self {
        let Kind::Udp { with_checksum } = &mut self.kind else { panic!("only UDP may go without") };
        *with_checksum = false;
        self
    }

    /// Sequence number of an echo.
    ///
    /// # Panics
    /// If this is no ICMP message.
    #[must_use]
    pub fn echo_seq(mut self, sequence: u16) -> Self {
        let Kind::Icmp { rest, .. } = &mut self.kind else { panic!("echo_seq is ICMP's") };
        *rest = (*rest & 0xffff_0000) | u32::from(sequence);
        self
    }

    /// What the packet carries.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Cuts the quote of an ICMP error.
    #[must_use]
    pub fn quote_limit(mut self, bytes: usize) -> Self {
        self.payload.truncate(bytes);
        self
    }

    /// Adds a VLAN tag inside the ones added before.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push(id);
        self
    }

    /// Time to live (hop limit); 64 unless told otherwise.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 identification.
    #[must_use]
    pub fn ident(mut self, ident: u16) -> Self {
        self.ident = ident;
        self
    }

    /// IPv4 options, padded with "end of options" to a multiple of 4.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = padded(options);
        self
    }

    /// Bytes of padding behind the packet, as short frames have.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The frame.
    ///
    /// # Panics
    /// If the packet is longer than IP allows.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = self.link_header();
        match self.addresses() {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_len = ipv4::HEADER_BYTES + self.ip_options.len();
                let at = frame.len();
                frame.resize(at + ipv4::HEADER_BYTES, 0);
                frame.extend_from_slice(&self.ip_options);
                let total = u16::try_from(header_len + transport.len()).expect("at most 65,535");
                let mut packet = Ipv4Packet::new_unchecked(&mut frame[at..]);
                packet.set_header_len(header_len);
                packet.set_total_len(total);
                packet.set_ident(self.ident);
                packet.set_flags_offset(ipv4::DONT_FRAGMENT);
                packet.set_ttl(self.ttl);
                packet.set_protocol(self.protocol());
                packet.set_source(source);
                packet.set_destination(destination);
                packet.fill_checksum();
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let at = frame.len();
                frame.resize(at + ipv6::HEADER_BYTES, 0);
                let mut packet = Ipv6Packet::new_unchecked(&mut frame[at..]);
                packet.set_version();
                packet.set_payload_len(u16::try_from(transport.len()).expect("at most 65,535"));
                packet.set_next_header(self.protocol());
                packet.set_hop_limit(self.ttl);
                packet.set_source(source);
                packet.set_destination(destination);
            }
            _ => unreachable!("the constructor has seen that both ends are of one family"),
        }
        frame.extend_from_slice(&transport);
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    fn addresses(&self) -> (IpAddr, IpAddr) {
        (self.source.ip(), self.destination.ip())
    }

    fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp { .. } => tcp::PROTOCOL,
            Kind::Udp { .. } => udp::PROTOCOL,
            Kind::Icmp { .. } if self.source.ipv4().is_some() => ipv4::PROTOCOL_ICMP,
            Kind::Icmp { .. } => ipv6::PROTOCOL_ICMPV6,
            Kind::Other { protocol } => protocol,
        }
    }

    fn link_header(&self) -> Vec<u8> {
        let network = match self.source.ip() {
            IpAddr::V4(_) => ethernet::TYPE_IPV4,
            IpAddr::V6(_) => ethernet::TYPE_IPV6,
        };
        let mut frame = vec![0; ethernet::HEADER_BYTES];
        let mut header = EthernetFrame::new_unchecked(&mut frame);
        header.set_destination(DESTINATION_MAC);
        header.set_source(SOURCE_MAC);
        header.set_ether_type(if self.vlans.is_empty() { network } else { ethernet::TYPE_VLAN });
        for (index, vlan) in self.vlans.iter().enumerate() {
            let last = index + 1 == self.vlans.len();
            let inner = if last { network } else { ethernet::TYPE_VLAN };
            frame.extend_from_slice(&vlan.to_be_bytes());
            frame.extend_from_slice(&inner.to_be_bytes());
        }
        frame
    }

    /// The transport header and payload, checksum included.
    fn transport(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Tcp { .. } => self.tcp_bytes(),
            Kind::Udp { with_checksum } => {
                let mut bytes = self.behind_header(udp::HEADER_BYTES, &[]);
                let length = u16::try_from(bytes.len()).expect("at most 65,535 bytes");
                let mut datagram = UdpDatagram::new_unchecked(&mut bytes);
                datagram.set_source_port(self.source.port);
                datagram.set_destination_port(self.destination.port);
                datagram.set_length(length);
                if *with_checksum {
                    // RFC 768: a computed 0 is sent as all ones.
                    let checksum = self.checksum(&bytes);
                    let sent = if checksum == 0 { 0xffff } else { checksum };
                    UdpDatagram::new_unchecked(&mut bytes).set_checksum(sent);
                }
                bytes
            }
            Kind::Icmp { kind, code, rest } => {
                let mut bytes = self.behind_header(icmp_message::HEADER_BYTES, &[]);
                if self.source.ipv4().is_some() {
                    let mut message = IcmpMessage::new_unchecked(&mut bytes);
                    message.set_kind(*kind, *code);
                    message.set_rest(*rest);
                    message.fill_checksum();
                } else {
                    let mut message = Icmpv6Message::new_unchecked(&mut bytes);
                    message.set_kind(*kind, *code);
                    message.set_rest(*rest);
                    let checksum = self.checksum(&bytes);
                    Icmpv6Message::new_unchecked(&mut bytes).set_checksum(checksum);
                }
                bytes
            }
            Kind::Other { .. } => self.payload.clone(),
        }
    }

    fn tcp_bytes(&self) -> Vec<u8> {
        let Kind::Tcp { flags, sequence, acknowledgement, window, options } = &self.kind else {
            unreachable!("only called for TCP");
        };
        let mut bytes = self.behind_header(tcp::HEADER_BYTES, options);
        let mut segment = TcpSegment::new_unchecked(&mut bytes);
        segment.set_source_port(self.source.port);
        segment.set_destination_port(self.destination.port);
        segment.set_sequence(*sequence);
        segment.set_acknowledgement(*acknowledgement);
        segment.set_header_len(tcp::HEADER_BYTES + options.len());
        segment.set_flags(*flags);
        segment.set_window(*window);
        let checksum = self.checksum(&bytes);
        TcpSegment::new_unchecked(&mut bytes).set_checksum(checksum);
        bytes
    }

    /// An empty header, options and the payload.
    fn behind_header(&self, header_bytes: usize, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; header_bytes];
        bytes.extend_from_slice(options);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn checksum(&self, bytes: &[u8]) -> u16 {
        let (protocol, len) = (self.protocol(), bytes.len());
        let pseudo = match self.addresses() {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                pseudo_header(&source.octets(), &destination.octets(), protocol, len)
            }
            _ => {
                let (source, destination) = (self.source.address, self.destination.address);
                pseudo_header(&source.octets(), &destination.octets(), protocol, len)
            }
        };
        pseudo.bytes(bytes).checksum()
    }
}

fn padded(options: &[u8]) -> Vec<u8> {
    let mut bytes = options.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use crate::packet::parsed::{IpVersion, Transport};

    #[test]
    fn builds_a_known_datagram() {
        // The checksum was worked out by hand: c000 + 0201 + c633 + 6407 + 0011 + 000c (pseudo)
        // + bf00 + 0035 + 000c + aa00 + 00ff = 0x3_5698 -> 0x569b, complement 0xa964.
        let frame = PacketBuilder::udp(
            Endpoint::v4([192, 0, 2, 1], 48896),
            Endpoint::v4([198, 51, 100, 7], 53),
        )
        .payload(&[0xaa, 0, 0, 0xff])
        .build();
        assert_eq!(frame.len(), 14 + 20 + 12);
        assert_eq!(frame[40..42], [0xa9, 0x64]);
    }

    #[test]
    fn what_is_built_parses() {
        let v4 = (Endpoint::v4([10, 0, 0, 1], 7), Endpoint::v4([192, 0, 2, 1], 7));
        let v6 = (
            Endpoint::new("2001:db8::1".parse().unwrap(), 7),
            Endpoint::new("2001:db8::2".parse().unwrap(), 7),
        );
        for (version, (a, b)) in [(IpVersion::V4, v4), (IpVersion::V6, v6)] {
            let builders = [
                PacketBuilder::tcp(a, b).payload(b"odd").tcp_options(&[2, 4, 5, 0xb4, 1]),
                PacketBuilder::udp(a, b).payload(b"even"),
                PacketBuilder::echo_request(a, b).echo_seq(9),
                PacketBuilder::echo_reply(a, b).payload(&[1; 56]),
            ];
            for builder in builders {
                let frame = builder.clone().vlan(1).vlan(2).padding(5).build();
                let parsed = parse(&frame).unwrap();
                assert_eq!(parsed.version, version);
                assert_eq!((parsed.tuple.source, parsed.tuple.destination), (a, b));
                assert_eq!(usize::from(parsed.end) + 5, frame.len());

                let error = PacketBuilder::icmp_error(
                    b,
                    (if a.ipv4().is_some() { 3 } else { 1 }, 3),
                    &frame,
                );
                let parsed_error = parse(&error.build()).unwrap();
                assert_eq!(parsed_error.tuple, parsed.tuple.reversed());
                assert!(matches!(parsed_error.transport, Transport::IcmpError { .. }));
            }
        }
    }
}
