//! What one look at a frame found: where its headers are and which flow it belongs to.

use nearstate_placement::FlowTuple;
use nearstate_store::Endpoint;

/// What the packet is, above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with its flag byte ([`crate::packet::tcp::flags`]).
    Tcp {
        /// The flag byte.
        flags: u8,
    },
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo; the identifier stands for both ports.
    Echo {
        /// A request, else a reply.
        request: bool,
    },
    /// An ICMP or ICMPv6 error that quotes a TCP, UDP or echo packet.
    IcmpError {
        /// Where the quoted IP header begins in the frame.
        inner_ip: u16,
        /// Where the quoted transport header begins in the frame.
        inner_transport: u16,
        /// Transport protocol of the quoted packet (6, 17, 1 or 58).
        inner_protocol: u8,
    },
}

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Where things are in a well-formed frame. Offsets count from the frame's first byte, and all
/// headers they point to are known to lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Which IP.
    pub version: IpVersion,
    /// Where the IP header begins.
    pub ip: u16,
    /// Where the transport header begins.
    pub transport_at: u16,
    /// Where the IP packet ends (what is behind it is padding).
    pub end: u16,
    /// What it carries.
    pub transport: Transport,
    /// Its flow. For an ICMP error: protocol and endpoints of an answer to the quoted packet, so
    /// `source` is the quoted destination and `destination` the quoted source, and `protocol` is
    /// that of the quoted packet (`inner_protocol`), not ICMP's own.
    pub tuple: FlowTuple,
}

impl Parsed {
    /// Room for what parsing is about to find.
    pub const BLANK: Self = Self {
        version: IpVersion::V4,
        ip: 0,
        transport_at: 0,
        end: 0,
        transport: Transport::Udp,
        tuple: FlowTuple { protocol: 0, source: NOBODY, destination: NOBODY },
    };
}

const NOBODY: Endpoint = Endpoint::v4([0; 4], 0);
