//! What comes in at a port: Ethernet frames.

use crate::engine::Target;
use crate::seal;
use nearstate_nf_node::DropReason;
use nearstate_nf_node::frame::FRAME_BYTES;
use nearstate_nf_node::nat64_prefix::Nat64Prefix;
use nearstate_nf_node::packet::cutter::cut;
use nearstate_nf_node::packet::translation::translated;
use nearstate_nf_node::packet::{
    IpVersion, PacketBuilder, Parsed, Verify, parse, parse_fragment, parse_with, tcp::flags,
};
use nearstate_placement::FlowTuple;
use nearstate_store::Endpoint;

type Samples = Vec<(&'static str, Vec<u8>)>;

/// A frame as it comes in.
pub(crate) const PACKETS: Target =
    Target { name: "packets", samples, is_fresh: false, read: read_packet, seal: seal::ip_headers };

fn samples() -> Samples {
    let a = Endpoint::v4([10, 0, 0, 1], 1234);
    let b = Endpoint::v4([192, 0, 2, 1], 80);
    let six = |text: &str, port| Endpoint::new(text.parse().unwrap(), port);
    let (c, d) = (six("2001:db8::1", 1234), six("2001:db8::2", 80));
    let udp = PacketBuilder::udp(a, b).payload(b"question").build();
    let long = |a, b| PacketBuilder::udp(a, b).ident(7).payload(&[1; 60]).build();
    let (pieces, pieces_6) = (cut(&long(a, b), 7, &[3]), cut(&long(c, d), 7, &[3]));
    let udp_6 = PacketBuilder::udp(c, d).payload(b"question").build();
    vec![
        ("first", pieces[0].clone()),
        ("later", pieces[1].clone()),
        ("first-6", pieces_6[0].clone()),
        ("later-6", pieces_6[1].clone()),
        ("udp", udp.clone()),
        ("udp-vlan-options", PacketBuilder::udp(a, b).vlan(7).ip_options(&[1; 8]).build()),
        ("tcp", PacketBuilder::tcp(a, b).flags(flags::SYN).tcp_options(&[2, 4, 5, 180]).build()),
        ("echo", PacketBuilder::echo_request(a, b).payload(&[7; 20]).build()),
        ("error", PacketBuilder::icmp_error(b, (3, 1), &udp).build()),
        ("too-big", PacketBuilder::icmp_error(b, (3, 4), &udp).quote_limit(28).build()),
        ("error-6", PacketBuilder::icmp_error(d, (4, 0), &udp_6).build()),
        ("udp-6", udp_6),
        ("tcp-6", PacketBuilder::tcp(c, d).payload(&[1; 30]).build()),
        ("echo-6", PacketBuilder::echo_request(c, d).build()),
    ]
}

fn read_packet(bytes: &[u8]) -> bool {
    let lenient = parse_with(bytes, Verify::Headers);
    let strict = parse(bytes);
    let fragment = parse_fragment(bytes);
    if strict == Err(DropReason::Fragment) {
        // What it says of itself lies inside the frame.
        return fragment.is_ok_and(|f| usize::from(f.parsed.end) <= bytes.len());
    }
    assert!(strict.is_err() || fragment == Err(DropReason::Fragment), "one of the two takes it");
    assert!(strict.is_err() || lenient.is_ok(), "whoever verifies more takes less");
    if let Ok(parsed) = &lenient {
        cross(bytes, parsed, strict.is_ok());
    }
    lenient.is_ok()
}

/// A flow of the other IP version, as a NAT64 would have it.
fn other_version(parsed: &Parsed, prefix: &Nat64Prefix) -> FlowTuple {
    let FlowTuple { protocol, source, destination } = parsed.tuple;
    let other = |end: Endpoint, last| match end.ipv4() {
        Some(address) => Endpoint { address: prefix.embed(address), ..end },
        None => Endpoint::v4([198, 18, 0, last], end.port),
    };
    let protocol = match protocol {
        1 => 58,
        58 => 1,
        protocol => protocol,
    };
    FlowTuple { protocol, source: other(source, 1), destination: other(destination, 2) }
}

/// Whatever was let in crosses to the other IP version or is refused; it fits into a buffer, and is
/// well-formed again if all of it was looked at before.
fn cross(bytes: &[u8], parsed: &Parsed, is_verified: bool) {
    let prefix = Nat64Prefix::WELL_KNOWN;
    let tuple = other_version(parsed, &prefix);
    let Ok(crossed) = translated(bytes, parsed, &tuple, &prefix) else { return };
    // Two headers grow by 20, and what is quoted may need a fragment header.
    let more = if parsed.version == IpVersion::V4 { 48 } else { 0 };
    assert!(crossed.len() <= FRAME_BYTES && crossed.len() <= bytes.len() + more);
    let again = parse_with(&crossed, Verify::Headers).expect("what crosses is a packet");
    assert!(again.tuple == tuple && again.version != parsed.version);
    if is_verified {
        parse(&crossed).expect("what crosses has the right checksums");
    }
}
