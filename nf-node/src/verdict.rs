//! What may come of a packet: closed lists, one counter each.

use core::fmt;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)*) => {
        /// Why a packet did not leave. Each has a counter; the names are stable, they are the keys
        /// of the JSON report.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The stable name, in kebab-case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, in a sentence for people.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)* }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header.
    ShortEthernet = "short-ethernet",
    /// The frame is longer than a node's buffers.
    FrameTooLong = "frame-too-long",
    /// The capture holds less of the frame than was on the wire.
    CutShort = "cut-short",
    /// More VLAN tags than are looked through, or a tag that is cut off.
    BadVlan = "bad-vlan",
    /// Neither IPv4 nor IPv6.
    NotIp = "not-ip",
    /// The version field does not fit the EtherType.
    BadIpVersion = "bad-ip-version",
    /// The IP header does not fit into the frame, or its length field is impossible.
    BadIpHeader = "bad-ip-header",
    /// The IP total (payload) length goes beyond the frame or is smaller than the header.
    BadIpLength = "bad-ip-length",
    /// The IPv4 header checksum is wrong.
    BadIpChecksum = "bad-ip-checksum",
    /// An IP option that is refused (source routes, recorded routes and times) or whose length is
    /// impossible.
    BadIpOption = "bad-ip-option",
    /// A source or destination that must not be on a wire: loopback, unspecified, multicast source,
    /// broadcast, or both ends equal.
    MartianAddress = "martian-address",
    /// Time to live (hop limit) is used up.
    TtlExpired = "ttl-expired",
    /// Too many or impossible IPv6 extension headers.
    BadExtensionHeader = "bad-extension-header",
    /// A fragment, where only whole packets can be looked at.
    Fragment = "fragment",
    /// A fragment that is empty, that is no multiple of eight bytes although more follow, or that
    /// reaches beyond what a datagram can hold.
    FragmentLength = "fragment-length",
    /// A first fragment that does not hold the whole transport header.
    FragmentTiny = "fragment-tiny",
    /// A TCP fragment that would lie over the end of the header in the first one.
    FragmentTcpOffset = "fragment-tcp-offset",
    /// An ICMP error in fragments: what it quotes cannot be followed.
    FragmentIcmpError = "fragment-icmp-error",
    /// A fragment that overlaps or contradicts others of its datagram, or whose datagram has had
    /// such a one.
    FragmentOverlap = "fragment-overlap",
    /// A fragment whose bytes have all come before, cut in another way.
    FragmentRepeated = "fragment-repeated",
    /// A fragment of a datagram whose pieces are cut and come too irregularly to be told apart.
    FragmentScattered = "fragment-scattered",
    /// A later fragment whose first one did not pass in time.
    FragmentNoFirst = "fragment-no-first",
    /// Too many later fragments wait for their first ones already.
    FragmentsWaiting = "fragments-waiting",
    /// A first fragment whose translation its later ones could not follow.
    FragmentTranslation = "fragment-translation",
    /// The TCP header does not fit, or its data offset is impossible.
    BadTcpHeader = "bad-tcp-header",
    /// Flags that no TCP sends: none, SYN with FIN or RST, and the like.
    BadTcpFlags = "bad-tcp-flags",
    /// The UDP header does not fit, or its length field is impossible.
    BadUdpHeader = "bad-udp-header",
    /// The ICMP header, or the packet that an error quotes, does not fit.
    BadIcmpHeader = "bad-icmp-header",
    /// The TCP, UDP or ICMP checksum is wrong.
    BadChecksum = "bad-checksum",
    /// Source or destination port 0.
    PortZero = "port-zero",
    /// A protocol that no function of the chain can follow.
    UnknownProtocol = "unknown-protocol",
    /// An ICMP message that is neither echo nor an error about a flow.
    IcmpType = "icmp-type",
    /// A rule says so.
    RuleDenied = "rule-denied",
    /// From outside, and no state allows it.
    NoState = "no-state",
    /// A TCP segment of a connection whose beginning was not seen.
    TcpMidstream = "tcp-midstream",
    /// A TCP segment that its connection's state does not allow.
    TcpState = "tcp-state",
    /// An ICMP error about a flow that is not known.
    IcmpUnrelated = "icmp-unrelated",
    /// From outside to a NAT address, and no mapping there.
    NoMapping = "no-mapping",
    /// From outside to a mapping whose inside end has sent nothing there, so it is not let in.
    Filtered = "filtered",
    /// Its source is one of the chain's own external ends: a forgery or a loop.
    NatSource = "nat-source",
    /// Its source belongs on the other side: a forgery, or a route that is wrong.
    SpoofedSource = "spoofed-source",
    /// Of a kind that the other IP version has no word for (RFC 7915).
    NoTranslation = "no-translation",
    /// No port is left for this flow.
    PortsExhausted = "ports-exhausted",
    /// The subscriber has all the ports it may have.
    QuotaReached = "quota-reached",
    /// No backend is left for this service.
    NoBackend = "no-backend",
    /// The shard's table is full.
    TableFull = "table-full",
    /// Too many packets wait already.
    ParkingFull = "parking-full",
    /// The store did not answer in time.
    StoreUnavailable = "store-unavailable",
    /// The state changed under the packet more often than it is tried again.
    Contention = "contention",
    /// The outgoing port has no room.
    OutputFull = "output-full",
    /// The outgoing port had no room before the right to use the state had ended that the packet
    /// was decided on.
    LeaseOver = "lease-over",
    /// A transaction was refused for a reason that is a fault of ours; see the log.
    StoreRefused = "store-refused",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a network function says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on: to the next function, or out.
    Forward,
    /// Not decided: the changes must be committed first, then the packet is processed again.
    /// Only together with at least one change.
    Commit,
    /// It does not leave; changes that were asked for on its way are forgotten.
    Drop(DropReason),
}
