//! Translation: rows of bytes from a program that shares nothing with this one, and what must hold
//! for any packet there and back.

use super::*;
use crate::packet::{PacketBuilder, parse};
use proptest::prelude::*;

fn prefix() -> Nat64Prefix {
    "2001:db8:64::/96".parse().unwrap()
}

fn end(text: &str, port: u16) -> Endpoint {
    Endpoint::new(text.parse().unwrap(), port)
}

/// An inside host, its external endpoint, and whom it talks to, by both addresses.
fn host(port: u16) -> Endpoint {
    end("2001:db8::5", port)
}

fn external(port: u16) -> Endpoint {
    end("198.51.100.7", port)
}

fn server(port: u16) -> Endpoint {
    end("192.0.2.33", port)
}

fn server_six(port: u16) -> Endpoint {
    end("2001:db8:64::192.0.2.33", port)
}

fn is_echo(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// The flow of a packet from the host as it leaves, from this external port.
fn outwards(tuple: &FlowTuple, port: u16) -> FlowTuple {
    assert_eq!(tuple.destination.address, server_six(0).address);
    let protocol = if tuple.protocol == 58 { 1 } else { tuple.protocol };
    let to = if is_echo(protocol) { port } else { tuple.destination.port };
    FlowTuple { protocol, source: external(port), destination: server(to) }
}

/// The flow of a packet to the external endpoint as it goes in, to this port of the host.
fn inwards(tuple: &FlowTuple, port: u16) -> FlowTuple {
    assert_eq!(tuple.destination.address, external(0).address);
    let protocol = if tuple.protocol == 1 { 58 } else { tuple.protocol };
    let from = if is_echo(protocol) { port } else { tuple.source.port };
    let source = Endpoint { address: prefix().embed(tuple.source.ipv4().unwrap()), port: from };
    FlowTuple { protocol, source, destination: host(port) }
}

/// Takes a frame to the other side, host port 4000 being external port 2048; what comes out parses,
/// its checksums included, as the flow that it was to be.
fn cross(frame: &[u8]) -> Result<Vec<u8>, DropReason> {
    let parsed = parse(frame).unwrap_or_else(|reason| panic!("{reason}: {frame:02x?}"));
    let tuple = match parsed.version {
        IpVersion::V6 => outwards(&parsed.tuple, 2048),
        IpVersion::V4 => inwards(&parsed.tuple, 4000),
    };
    assert!(is_needed(&parsed, &tuple) && !is_needed(&parsed, &parsed.tuple));
    let crossed = translated(frame, &parsed, &tuple, &prefix())?;
    let parsed_again = parse(&crossed).unwrap_or_else(|reason| panic!("{reason}: {crossed:02x?}"));
    assert_eq!(parsed_again.tuple, tuple);
    assert_ne!(parsed_again.version, parsed.version);
    assert_eq!(usize::from(parsed_again.end), crossed.len(), "padding is cut off");
    Ok(crossed)
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

/// What it is, the frame that comes in, and the one that leaves.
const ROWS: [(&str, &str, &str); 11] = [
    (
        "udp out",
        "02000000000202000000000186dd6b800000000b113f20010db800000000000000000000\
         000520010db80064000000000000c00002210fa00035000b489d686921",
        "020000000002020000000001080045b8001ff57600003f119943c6336407c00002210800\
         0035000b81dd686921",
    ),
    (
        "tcp out",
        "02000000000202000000000186dd600000000017064020010db800000000000000000000\
         000520010db80064000000000000c00002210fa0005000000007000000095018ffffe687\
         0000474554",
        "02000000000202000000000108004500002b6cd500004006219cc6336407c00002210800\
         005000000007000000095018ffff1fc80000474554",
    ),
    (
        "echo out",
        "02000000000202000000000186dd60000000000c3a4020010db800000000000000000000\
         000520010db80064000000000000c00002218000734a0fa0000170696e67",
        "020000000002020000000001080045000020bff800004001ce88c6336407c00002210800\
         112e0800000170696e67",
    ),
    (
        "udp in without checksum",
        "02000000000202000000000108004504001f000040000911856ec0000221c63364070035\
         0800000b0000796573",
        "02000000000202000000000186dd60400000000b110920010db80064000000000000c000\
         022120010db800000000000000000000000500350fa0000be5a0796573",
    ),
    (
        "tcp in",
        "0200000000020200000000010800450000280000000040068e74c0000221c63364070050\
         080000000001000000025012ffffbb230000",
        "02000000000202000000000186dd600000000014064020010db80064000000000000c000\
         022120010db800000000000000000000000500500fa000000001000000025012ffff81e3\
         0000",
    ),
    (
        "echo in",
        "0200000000020200000000010800450000200000000040018e81c0000221c63364070000\
         192e0800000170696e67",
        "02000000000202000000000186dd60000000000c3a4020010db80064000000000000c000\
         022120010db80000000000000000000000058100724a0fa0000170696e67",
    ),
    (
        "fragmentation needed in",
        "0200000000020200000000010800450000380000000040013e7b0a090807c63364070304\
         ef2c000005784500002b004d40003c065224c6336407c00002210800005000000007",
        "02000000000202000000000186dd6000000000383a4020010db800640000000000000a09\
         080720010db80000000000000000000000050200f5ce0000058c600000000017063c2001\
         0db800000000000000000000000520010db80064000000000000c00002210fa000500000\
         0007",
    ),
    (
        "time exceeded in",
        "02000000000202000000000108004500003b0000000040013e780a090807c63364070b00\
         e178000000004500001f000000000111cd72c6336407c000022108000035000b81dd6869\
         21",
        "02000000000202000000000186dd60000000003b3a4020010db800640000000000000a09\
         080720010db800000000000000000000000503001daf0000000060000000000b11012001\
         0db800000000000000000000000520010db80064000000000000c00002210fa00035000b\
         489d686921",
    ),
    (
        "unreachable about an echo in",
        "02000000000202000000000108004500003c0000000040013e770a090807c63364070301\
         fcfe0000000045000020000000000101cd81c6336407c00002210800112e080000017069\
         6e67",
        "02000000000202000000000186dd60000000003c3a4020010db800640000000000000a09\
         080720010db80000000000000000000000050100f6d60000000060000000000c3a012001\
         0db800000000000000000000000520010db80064000000000000c00002218000734a0fa0\
         000170696e67",
    ),
    (
        "port unreachable out",
        "02000000000202000000000186dd60000000003b3a4020010db800000000000000000000\
         000520010db80064000000000000c000022101046f950000000060000000000b11052001\
         0db80064000000000000c000022120010db800000000000000000000000500350fa0000b\
         e5a0796573",
        "02000000000202000000000108004500003b0358000040018b0ec6336407c00002210303\
         e975000000004500001f68730000051160ffc0000221c633640700350800000b1ee17965\
         73",
    ),
    (
        "packet too big out",
        "02000000000202000000000186dd60000000003b3a4020010db800000000000000000000\
         000120010db80064000000000000c00002210200699d0000050060000000000b11052001\
         0db80064000000000000c000022120010db800000000000000000000000500350fa0000b\
         e5a0796573",
        "02000000000202000000000108004500003b86fe000040010768c6336407c00002210304\
         e488000004ec4500001f68730000051160ffc0000221c633640700350800000b1ee17965\
         73",
    ),
];

/// RFC 7915 sections 4.1 to 4.3, 4.5, 5.1 to 5.3 and 5.5, byte by byte.
#[test]
fn packets_and_errors_cross_byte_by_byte() {
    for (what, frame, expected) in ROWS {
        let crossed = cross(&bytes(frame)).unwrap();
        assert_eq!(crossed, bytes(expected), "{what}\n{crossed:02x?}");
    }
}

/// The IPv4 header of a frame without tags.
fn header_v4(frame: &[u8]) -> Ipv4Packet<&[u8]> {
    Ipv4Packet::new_checked(&frame[14..]).unwrap()
}

/// RFC 7915 section 5.1: 1260 bytes are the most that may be fragmented.
#[test]
fn what_may_be_fragmented_is_what_ipv6_could_always_carry() {
    for (payload, flags) in [(0, 0), (1232, 0), (1233, ipv4::DONT_FRAGMENT), (1900, 0x4000)] {
        let frame =
            PacketBuilder::udp(host(4000), server_six(53)).payload(&vec![7; payload]).build();
        let crossed = cross(&frame).unwrap();
        let packet = header_v4(&crossed);
        assert_eq!(packet.flags_offset(), flags, "{payload}: {} bytes", packet.total_len());
    }
}

/// P4: any node gives a packet the same identification, whichever port it has.
#[test]
fn identifications_tell_packets_apart_and_do_not_depend_on_the_external_port() {
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..200u32 {
        let packet = PacketBuilder::tcp(host(4000), server_six(80)).seq(number * 1000);
        let frame = packet.payload(b"same").build();
        let parsed = parse(&frame).unwrap();
        let [one, other] = [2048, 2049].map(|port| {
            let tuple = outwards(&parsed.tuple, port);
            let crossed = translated(&frame, &parsed, &tuple, &prefix()).unwrap();
            header_v4(&crossed).ident()
        });
        assert_eq!(one, other);
        seen.insert(one);
    }
    assert!(seen.len() > 195, "{}", seen.len());
    let answer = PacketBuilder::udp(server_six(53), host(4000)).build();
    let frame = PacketBuilder::icmp_error(host(0), (1, 4), &answer).build();
    let parsed = parse(&frame).unwrap();
    let idents = [2048, 2049].map(|port| {
        let tuple = outwards(&parsed.tuple, port);
        let crossed = translated(&frame, &parsed, &tuple, &prefix()).unwrap();
        (header_v4(&crossed).ident(), Ipv4Packet::new_unchecked(&crossed[42..]).ident())
    });
    assert_eq!(idents[0], idents[1], "of an error, and of what it quotes");
}

/// Puts extension headers into a frame of IPv6: pairs of their type and bytes.
fn extended(frame: &[u8], headers: &[(u8, [u8; 8])]) -> Vec<u8> {
    let mut out = frame[..54].to_vec();
    let mut next = frame[20];
    for (kind, header) in headers.iter().rev() {
        let mut header = *header;
        header[0] = next;
        next = *kind;
        out.splice(54..54, header);
    }
    out[20] = next;
    out.extend_from_slice(&frame[54..]);
    let payload = get_u16(&out, 18) + 8 * headers.len() as u16;
    set_u16(&mut out, 18, payload);
    out
}

/// RFC 7915 section 5.1: extension headers are left out, but a fragment header is read (5.1.1).
#[test]
fn extension_headers_and_options_are_left_out_and_an_atomic_fragment_keeps_its_identification() {
    let plain = PacketBuilder::udp(host(4000), server_six(53)).payload(b"data").build();
    let wanted = cross(&plain).unwrap();
    let (hop, destination) = ((0, [0, 0, 1, 4, 0, 0, 0, 0]), (60, [0, 0, 1, 4, 0, 0, 0, 0]));
    for headers in [&[hop][..], &[destination], &[hop, destination]] {
        assert_eq!(cross(&extended(&plain, headers)).unwrap(), wanted);
    }
    let atomic = (44, [0, 0, 0, 0, 0x12, 0x34, 0xab, 0xcd]);
    for headers in [&[atomic][..], &[hop, atomic]] {
        let crossed = cross(&extended(&plain, headers)).unwrap();
        let packet = header_v4(&crossed);
        assert_eq!((packet.ident(), packet.flags_offset(), packet.protocol()), (0xabcd, 0, 17));
        assert_eq!(crossed[34..], wanted[34..]);
    }
    let long = PacketBuilder::udp(host(4000), server_six(53)).payload(&[0; 1400]).build();
    let crossed = cross(&extended(&long, &[atomic])).unwrap();
    assert_eq!(header_v4(&crossed).flags_offset(), 0, "it may be fragmented further");
    let with_options = PacketBuilder::udp(server(53), external(2048)).ip_options(&[1; 8]);
    let without = PacketBuilder::udp(server(53), external(2048));
    assert_eq!(cross(&with_options.build()), cross(&without.build()));
}

#[test]
fn tags_stay_and_the_padding_of_short_frames_goes() {
    let plain = PacketBuilder::udp(host(4000), server_six(53));
    let tagged = cross(&plain.clone().vlan(7).vlan(9).padding(5).build()).unwrap();
    let expected = cross(&plain.build()).unwrap();
    assert_eq!(tagged[..12], expected[..12]);
    assert_eq!(tagged[12..22], [0x81, 0, 0, 7, 0x81, 0, 0, 9, 8, 0]);
    assert_eq!(tagged[22..], expected[14..]);
    let four = PacketBuilder::udp(server(53), external(2048)).vlan(7).padding(18);
    let six = cross(&four.build()).unwrap();
    assert_eq!((&six[12..18], six.len()), (&[0x81, 0, 0, 7, 0x86, 0xdd][..], 18 + 40 + 8));
}

#[test]
fn what_gets_too_long_is_refused_and_nothing_longer_than_a_buffer_comes_out() {
    for (payload, expected) in [(1986, Ok(FRAME_BYTES)), (1987, Err(DropReason::FrameTooLong))] {
        let frame =
            PacketBuilder::udp(server(53), external(2048)).payload(&vec![1; payload]).build();
        assert_eq!(cross(&frame).map(|crossed| crossed.len()), expected, "{payload}");
    }
}

#[test]
fn a_damaged_payload_stays_damaged() {
    let packets = [
        PacketBuilder::tcp(host(4000), server_six(80)).payload(b"data"),
        PacketBuilder::echo_request(host(4000), server_six(4000)).payload(b"data"),
        PacketBuilder::udp(server(53), external(2048)).payload(b"data"),
        PacketBuilder::echo_reply(server(2048), external(2048)).payload(b"data"),
    ];
    for packet in packets {
        let mut frame = packet.build();
        let parsed = parse(&frame).unwrap();
        *frame.last_mut().unwrap() ^= 0x55;
        let tuple = match parsed.version {
            IpVersion::V6 => outwards(&parsed.tuple, 2048),
            IpVersion::V4 => inwards(&parsed.tuple, 4000),
        };
        let crossed = translated(&frame, &parsed, &tuple, &prefix()).unwrap();
        assert_eq!(parse(&crossed), Err(DropReason::BadChecksum), "{packet:?}");
    }
}

/// RFC 4443 section 2.4 (c), RFC 4884, RFC 7915 sections 4.1 to 4.3.
#[test]
fn errors_to_ipv6_are_cut_to_what_every_link_carries_and_lose_extensions() {
    let sent = PacketBuilder::udp(external(2048), server(53)).payload(&[9; 1472]).build();
    // A private address, as many routers have.
    let frame = PacketBuilder::icmp_error(end("10.9.9.9", 0), (3, 4), &sent).build();
    let crossed = cross(&frame).unwrap();
    assert_eq!(crossed.len(), 14 + 1280);
    let outer = Ipv6Packet::new_checked(&crossed[14..]).unwrap();
    assert_eq!(outer.source(), "2001:db8:64::10.9.9.9".parse::<Ipv6Addr>().unwrap());
    let quoted = Ipv6Packet::new_unchecked(&crossed[62..]);
    assert_eq!(quoted.payload_len(), 1480, "as long as it was");
    assert_eq!(get_u32(&crossed, 58), 1492 + 20, "RFC 1191: the plateau below 1500");

    let sent = PacketBuilder::udp(external(2048), server(53)).payload(&[9; 200]).build();
    let extension = [0x20, 0, 0x12, 0x34, 0, 8, 1, 1, 1, 2, 3, 4];
    let mut message = sent[14..14 + 128].to_vec();
    message.extend_from_slice(&extension);
    let with = PacketBuilder::icmp(server(0), external(0), (3, 3, 32 << 16)).payload(&message);
    let without = PacketBuilder::icmp_error(server(0), (3, 3), &sent).quote_limit(128);
    assert_eq!(cross(&with.build()), cross(&without.build()));
}

#[test]
fn what_has_no_word_in_the_other_version_is_refused() {
    let left = PacketBuilder::udp(external(2048), server(53)).build();
    let came = PacketBuilder::udp(server_six(53), host(4000)).build();
    let rows = [
        (server(0), &left, (3, 14)),
        (server(0), &left, (3, 77)),
        (server(0), &left, (12, 1)),
        (host(0), &came, (1, 5)),
        (host(0), &came, (4, 2)),
        (host(0), &came, (4, 9)),
    ];
    for (teller, about, kind) in rows {
        let frame = PacketBuilder::icmp_error(teller, kind, about).build();
        assert_eq!(cross(&frame), Err(DropReason::NoTranslation), "{kind:?}");
    }
}

/// Parsing lets no piece of a datagram come here; whoever does so otherwise is told.
#[test]
fn pieces_of_datagrams_are_refused() {
    let mut four = PacketBuilder::udp(server(53), external(2048)).payload(b"piece").build();
    let parsed = parse(&four).unwrap();
    let mut header = Ipv4Packet::new_unchecked(&mut four[14..34]);
    header.set_flags_offset(ipv4::MORE_FRAGMENTS);
    header.fill_checksum();
    let crossed = translated(&four, &parsed, &inwards(&parsed.tuple, 4000), &prefix());
    assert_eq!(crossed, Err(DropReason::Fragment));
    let whole = PacketBuilder::udp(host(4000), server_six(53)).payload(b"piece").build();
    let mut six = extended(&whole, &[(44, [0, 0, 0, 0, 0, 0, 0, 7])]);
    let parsed = parse(&six).unwrap();
    six[54 + 3] |= 1;
    let crossed = translated(&six, &parsed, &outwards(&parsed.tuple, 2048), &prefix());
    assert_eq!(crossed, Err(DropReason::Fragment));
}

/// RFC 7915 sections 4.1 and 5.1.1, in what an error quotes.
#[test]
fn an_error_about_a_first_piece_quotes_it_as_one() {
    let mut left = PacketBuilder::udp(external(2048), server(53)).payload(&[3; 64]).build();
    let mut header = Ipv4Packet::new_unchecked(&mut left[14..34]);
    header.set_ident(0xabcd);
    header.set_flags_offset(ipv4::MORE_FRAGMENTS);
    header.fill_checksum();
    let told = cross(&PacketBuilder::icmp_error(server(0), (11, 1), &left).build()).unwrap();
    assert_eq!((told[62 + 6], get_u16(&told, 62 + 4)), (ipv6::FRAGMENT, 72 + 8));
    assert_eq!(told[102..110], [17, 0, 0, 1, 0, 0, 0xab, 0xcd]);
    assert_eq!(told[110..114], [0x0f, 0xa0, 0, 53], "4000 to 53");
    let mut long = PacketBuilder::udp(external(2048), server(53)).payload(&[3; 1472]).build();
    let mut header = Ipv4Packet::new_unchecked(&mut long[14..34]);
    header.set_flags_offset(ipv4::MORE_FRAGMENTS);
    header.fill_checksum();
    let told = cross(&PacketBuilder::icmp_error(server(0), (11, 1), &long).build()).unwrap();
    assert_eq!(told.len(), 14 + 1280);

    let came = PacketBuilder::udp(server_six(53), host(4000)).payload(&[3; 64]).build();
    let came = extended(&came, &[(44, [0, 0, 0, 1, 0x12, 0x34, 0xab, 0xcd])]);
    let said = cross(&PacketBuilder::icmp_error(host(0), (3, 1), &came).build()).unwrap();
    let quoted = Ipv4Packet::new_unchecked(&said[42..]);
    assert_eq!((quoted.ident(), quoted.flags_offset()), (0xabcd, ipv4::MORE_FRAGMENTS));
    assert_eq!((quoted.protocol(), quoted.total_len()), (17, 20 + 72));
}

/// A quoted packet that is whole, with the checksums that its sender gave it.
fn quoted_whole(frame: &[u8], is_v4: bool) -> Vec<u8> {
    let mut whole = frame[..14].to_vec();
    whole.extend_from_slice(&frame[if is_v4 { 42 } else { 62 }..]);
    whole
}

fn any_packet() -> impl Strategy<Value = (u8, Vec<u8>, u8, u16)> {
    (0..4u8, proptest::collection::vec(any::<u8>(), 0..300), any::<u8>(), 1u16..)
}

fn build(kind: u8, (from, to): (Endpoint, Endpoint), payload: &[u8]) -> PacketBuilder {
    let to_echo = Endpoint { port: from.port, ..to };
    match kind {
        0 => PacketBuilder::tcp(from, to).seq(77).ack(99),
        1 => PacketBuilder::udp(from, to),
        2 => PacketBuilder::echo_request(from, to_echo),
        _ => PacketBuilder::echo_reply(from, to_echo),
    }
    .payload(payload)
}

proptest! {
    /// IPv6 to IPv4 and back again is what it was, but for the flow label.
    #[test]
    fn packets_there_and_back((kind, payload, service, port) in any_packet(), ttl in 1u8..) {
        let packet = build(kind, (host(4000), server_six(port)), &payload).ttl(ttl);
        let mut frame = packet.build();
        frame[14] = 0x60 | service >> 4;
        frame[15] = service << 4;
        let four = cross(&frame).unwrap();
        prop_assert_eq!(four.len(), frame.len() - 20);
        prop_assert_eq!(four[15], service);
        // What left, as its host would have sent it over IPv4: all checksums anew.
        let tuple = parse(&four).unwrap().tuple;
        let anew = build(kind, (tuple.source, tuple.destination), &payload).ttl(ttl).build();
        prop_assert_eq!(&anew[34..], &four[34..]);
        // It comes back as it is: the way in must undo the way out.
        let parsed = parse(&four).unwrap();
        let back = parse(&frame).unwrap().tuple;
        let six = translated(&four, &parsed, &back, &prefix()).unwrap();
        prop_assert_eq!(&six, &frame);
    }

    /// An error about what left goes in as one about what the host had sent.
    #[test]
    fn errors_about_what_left_quote_what_was_sent(
        (kind, payload, _, port) in any_packet(),
        // Half of a TCP checksum cannot be put right.
        cut in (0usize..200).prop_filter("half a checksum", |cut| *cut != 9),
        which in 0..5usize,
    ) {
        let sent = build(kind, (host(4000), server_six(port)), &payload).build();
        let left = cross(&sent).unwrap();
        let types = [(3, 1), (3, 3), (3, 4), (11, 0), (3, 13)];
        let error = PacketBuilder::icmp_error(end("10.1.1.1", 0), types[which], &left);
        let told = cross(&error.clone().build()).unwrap();
        prop_assert_eq!(&quoted_whole(&told, false)[14..], &sent[14..]);
        let cut = error.quote_limit(28 + cut).build();
        let told = cross(&cut).unwrap();
        let quoted = quoted_whole(&told, false);
        let differing = (14..quoted.len()).filter(|at| quoted[*at] != sent[*at]);
        prop_assert_eq!(differing.collect::<Vec<_>>(), Vec::<usize>::new());
    }

    /// And one of the host about what came goes out as one about what had been sent to it.
    #[test]
    fn errors_about_what_came_quote_what_was_sent(
        (kind, payload, _, port) in any_packet(),
        which in 0..4usize,
    ) {
        let port = if kind > 1 { 2048 } else { port };
        let sent = build(kind, (server(port), external(2048)), &payload).build();
        let came = cross(&sent).unwrap();
        let types = [(1, 4), (2, 0), (3, 0), (1, 1)];
        let error = PacketBuilder::icmp_error(host(0), types[which], &came).build();
        let told = cross(&error).unwrap();
        let mut quoted = quoted_whole(&told, true);
        // The identification is lost on the way.
        let (ident, flags) = (get_u16(&sent, 18), get_u16(&sent, 20));
        let mut packet = Ipv4Packet::new_unchecked(&mut quoted[14..]);
        packet.set_ident(ident);
        packet.set_flags_offset(flags);
        packet.fill_checksum();
        prop_assert_eq!(&quoted[14..], &sent[14..]);
    }
}
