//! Tables of packets, good and bad; random bytes; real captures.

use super::*;
use crate::packet::PacketBuilder;
use crate::packet::builder::{DESTINATION_MAC, SOURCE_MAC};
use crate::packet::tcp::flags;
use crate::port::capture::CaptureReader;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

const IP: usize = 14;
const L4: usize = 34;

fn ends() -> (Endpoint, Endpoint) {
    (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([192, 0, 2, 1], 80))
}

fn ends_v6() -> (Endpoint, Endpoint) {
    let of = |text: &str, port| Endpoint::new(text.parse().unwrap(), port);
    (of("2001:db8::1", 4000), of("2001:db8::2", 80))
}

fn tcp() -> PacketBuilder {
    PacketBuilder::tcp(ends().0, ends().1)
}

fn udp() -> PacketBuilder {
    PacketBuilder::udp(ends().0, ends().1)
}

/// Changes bytes of a built frame.
fn edited(builder: &PacketBuilder, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = builder.build();
    for (at, value) in edits {
        frame[*at] = *value;
    }
    frame
}

/// Changes bytes of the IPv4 header and makes its checksum right again.
fn header_edited(builder: &PacketBuilder, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = edited(builder, edits);
    Ipv4Packet::new_unchecked(&mut frame[IP..]).fill_checksum();
    frame
}

/// Cuts a frame at its end.
fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

fn check(cases: Vec<(&str, Vec<u8>, Result<Transport, DropReason>)>) {
    for (what, frame, expected) in cases {
        let found = parse(&frame).map(|parsed| parsed.transport);
        assert_eq!(found, expected, "{what}");
    }
}

const UDP: Result<Transport, DropReason> = Ok(Transport::Udp);

#[test]
fn layers_two_and_three() {
    let from = |address| PacketBuilder::udp(Endpoint::v4(address, 1), ends().1).build();
    let to = |address| PacketBuilder::udp(ends().0, Endpoint::v4(address, 1)).build();
    let martian = Err(DropReason::MartianAddress);
    let option = Err(DropReason::BadIpOption);
    check(vec![
        ("zero length", vec![], Err(DropReason::ShortEthernet)),
        ("runt of 13 bytes", vec![0; 13], Err(DropReason::ShortEthernet)),
        ("longer than a buffer", vec![0; FRAME_BYTES + 1], Err(DropReason::FrameTooLong)),
        ("unknown EtherType", edited(&udp(), &[(12, 0x08), (13, 0x06)]), Err(DropReason::NotIp)),
        ("802.3 length", edited(&udp(), &[(12, 0), (13, 40)]), Err(DropReason::NotIp)),
        ("one tag", udp().vlan(7).build(), UDP),
        ("two tags", udp().vlan(7).vlan(8).build(), UDP),
        ("three tags", udp().vlan(7).vlan(8).vlan(9).build(), Err(DropReason::BadVlan)),
        ("version 5", edited(&udp(), &[(IP, 0x55)]), Err(DropReason::BadIpVersion)),
        ("version 6 announced as 4", edited(&udp(), &[(IP, 0x65)]), Err(DropReason::BadIpVersion)),
        ("header length 4", edited(&udp(), &[(IP, 0x44)]), Err(DropReason::BadIpHeader)),
        ("header beyond packet", edited(&udp(), &[(IP, 0x4f)]), Err(DropReason::BadIpHeader)),
        ("total length < header", edited(&udp(), &[(IP + 3, 19)]), Err(DropReason::BadIpLength)),
        ("total length > frame", edited(&udp(), &[(IP + 3, 29)]), Err(DropReason::BadIpLength)),
        ("padding", udp().padding(18).build(), UDP),
        ("bad checksum", edited(&udp(), &[(IP + 10, 0x99)]), Err(DropReason::BadIpChecksum)),
        ("time to live 0", udp().ttl(0).build(), Err(DropReason::TtlExpired)),
        ("time to live 1", udp().ttl(1).build(), UDP),
        ("router alert", udp().ip_options(&[148, 4, 0, 0]).build(), UDP),
        ("record route", udp().ip_options(&[7, 7, 4, 0, 0, 0, 0]).build(), option),
        ("timestamp", udp().ip_options(&[68, 8, 5, 0, 0, 0, 0, 0]).build(), option),
        ("loose source route", udp().ip_options(&[131, 3, 4]).build(), option),
        ("strict source route", udp().ip_options(&[1, 137, 3, 4]).build(), option),
        ("option of length 0", udp().ip_options(&[148, 0]).build(), option),
        ("option of length 1", udp().ip_options(&[148, 1]).build(), option),
        ("option of length 255", udp().ip_options(&[148, 255]).build(), option),
        ("from loopback", from([127, 0, 0, 1]), martian),
        ("from this network", from([0, 1, 2, 3]), martian),
        ("from multicast", from([224, 0, 0, 1]), martian),
        ("from broadcast", from([255; 4]), martian),
        ("to loopback", to([127, 0, 0, 1]), martian),
        ("to nowhere", to([0; 4]), martian),
        ("to the limited broadcast", to([255; 4]), martian),
        ("to multicast", to([224, 0, 0, 251]), UDP),
        ("land", PacketBuilder::tcp(ends().0, ends().0).build(), martian),
        (
            "same address, other port",
            PacketBuilder::udp(ends().0, Endpoint { port: 1, ..ends().0 }).build(),
            UDP,
        ),
        ("more fragments", header_edited(&udp(), &[(20, 0x20)]), Err(DropReason::Fragment)),
        ("offset 1", header_edited(&tcp(), &[(20, 0), (21, 1)]), Err(DropReason::Fragment)),
    ]);
}

#[test]
fn tcp_segments() {
    let header = Err(DropReason::BadTcpHeader);
    let illegal = Err(DropReason::BadTcpFlags);
    let port = |a, b| {
        let (source, destination) = ends();
        PacketBuilder::tcp(Endpoint { port: a, ..source }, Endpoint { port: b, ..destination })
            .build()
    };
    check(vec![
        ("syn", tcp().flags(flags::SYN).build(), Ok(Transport::Tcp { flags: flags::SYN })),
        ("null", tcp().flags(0).build(), illegal),
        ("xmas", tcp().flags(flags::FIN | flags::PSH | flags::URG).build(), illegal),
        ("syn and fin", tcp().flags(flags::SYN | flags::FIN).build(), illegal),
        ("syn and rst", tcp().flags(flags::SYN | flags::RST).build(), illegal),
        ("all flags", tcp().flags(0xff).build(), illegal),
        ("data offset 4", edited(&tcp(), &[(L4 + 12, 0x40)]), header),
        ("data offset beyond", edited(&tcp(), &[(L4 + 12, 0x60)]), header),
        ("option of length 0", tcp().tcp_options(&[2, 0, 5, 0xb4]).build(), header),
        ("option of length 1", tcp().tcp_options(&[2, 1, 5, 0xb4]).build(), header),
        ("option past the end", tcp().tcp_options(&[2, 9, 5, 0xb4]).build(), header),
        ("bad checksum", edited(&tcp(), &[(L4 + 16, 0x99)]), Err(DropReason::BadChecksum)),
        ("bad payload", edited(&tcp().payload(b"hey"), &[(56, 1)]), Err(DropReason::BadChecksum)),
        ("source port 0", port(0, 80), Err(DropReason::PortZero)),
        ("destination port 0", port(80, 0), Err(DropReason::PortZero)),
        ("too short", header_edited(&tcp(), &[(IP + 3, 39)]), header),
    ]);
}

#[test]
fn udp_datagrams() {
    let header = Err(DropReason::BadUdpHeader);
    let (a, b) = ends_v6();
    check(vec![
        ("plain", udp().payload(b"odd").build(), UDP),
        ("length 0", edited(&udp(), &[(L4 + 5, 0)]), header),
        ("length 7", edited(&udp(), &[(L4 + 5, 7)]), header),
        ("length beyond the packet", edited(&udp(), &[(L4 + 5, 9)]), header),
        ("too short", header_edited(&udp(), &[(IP + 3, 27)]), header),
        ("no checksum", udp().no_checksum().payload(b"abc").build(), UDP),
        ("wrong checksum", edited(&udp(), &[(L4 + 6, 0x99)]), Err(DropReason::BadChecksum)),
        ("IPv6", PacketBuilder::udp(a, b).build(), UDP),
        (
            "no checksum over IPv6",
            PacketBuilder::udp(a, b).no_checksum().build(),
            Err(DropReason::BadChecksum),
        ),
    ]);
    // A datagram shorter than the IP payload: the checksum ends where the datagram does.
    let mut frame = udp().payload(b"abcd").padding(2).build();
    frame[IP + 3] += 2;
    Ipv4Packet::new_unchecked(&mut frame[IP..]).fill_checksum();
    assert_eq!(parse(&frame).map(|parsed| parsed.transport), UDP);
}

#[test]
fn icmp_messages_and_other_protocols() {
    let (a, b) = ends();
    let (a6, b6) = ends_v6();
    let icmp = |kind, code| PacketBuilder::icmp(a, b, (kind, code, 0)).payload(&[0; 28]).build();
    let kind = Err(DropReason::IcmpType);
    let unknown = Err(DropReason::UnknownProtocol);
    let echo = |request| Ok(Transport::Echo { request });
    check(vec![
        ("echo request", PacketBuilder::echo_request(a, b).build(), echo(true)),
        ("echo reply", PacketBuilder::echo_reply(a, b).build(), echo(false)),
        ("echo request v6", PacketBuilder::echo_request(a6, b6).build(), echo(true)),
        ("echo reply v6", PacketBuilder::echo_reply(a6, b6).build(), echo(false)),
        ("source quench", icmp(4, 0), kind),
        ("redirect", icmp(5, 0), kind),
        ("timestamp", icmp(13, 0), kind),
        ("neighbour solicitation", PacketBuilder::icmp(a6, b6, (135, 0, 0)).build(), kind),
        (
            "wrong checksum",
            edited(&PacketBuilder::echo_request(a, b), &[(L4 + 2, 0x99)]),
            Err(DropReason::BadChecksum),
        ),
        (
            "wrong checksum v6",
            edited(&PacketBuilder::echo_request(a6, b6), &[(56, 0x99)]),
            Err(DropReason::BadChecksum),
        ),
        (
            "too short",
            header_edited(&PacketBuilder::echo_request(a, b), &[(IP + 3, 27)]),
            Err(DropReason::BadIcmpHeader),
        ),
        ("GRE", PacketBuilder::other(a, b, 47).payload(&[0; 20]).build(), unknown),
        ("ESP", PacketBuilder::other(a, b, 50).payload(&[0; 20]).build(), unknown),
        ("SCTP", PacketBuilder::other(a, b, 132).payload(&[0; 20]).build(), unknown),
        ("protocol 255", PacketBuilder::other(a, b, 255).build(), unknown),
        ("ICMPv6 over IPv4", PacketBuilder::other(a, b, 58).payload(&[0; 8]).build(), unknown),
        ("ICMP over IPv6", PacketBuilder::other(a6, b6, 1).payload(&[0; 8]).build(), unknown),
    ]);
}

#[test]
fn icmp_errors_and_what_they_quote() {
    let (a, b) = ends();
    let router = Endpoint::v4([203, 0, 113, 9], 0);
    let bad = Err(DropReason::BadIcmpHeader);
    let error = |frame: &[u8]| PacketBuilder::icmp_error(router, (3, 3), frame);
    let found = |header: u16, protocol| {
        Ok(Transport::IcmpError {
            inner_ip: 42,
            inner_transport: 42 + header,
            inner_protocol: protocol,
        })
    };
    let quoted = udp().payload(b"data").build();
    let later_fragment = header_edited(&udp(), &[(20, 0), (21, 1)]);
    let first_fragment = header_edited(&udp(), &[(20, 0x20)]);
    let broken = edited(&udp(), &[(IP + 10, 0x99)]);
    let wrong_transport = edited(&udp(), &[(L4 + 6, 0x99)]);
    let with_options = udp().ip_options(&[131, 3, 4]).build();
    let echo = PacketBuilder::echo_request(a, b).build();
    let sctp = PacketBuilder::other(a, b, 132).payload(&[0; 20]).build();
    let version_6 = edited(&udp(), &[(IP, 0x65)]);
    let elsewhere = Endpoint::v4([10, 9, 9, 9], 0);
    check(vec![
        ("UDP", error(&quoted).build(), found(20, 17)),
        ("TCP, eight bytes of it", error(&tcp().build()).quote_limit(28).build(), found(20, 6)),
        ("echo", error(&echo).build(), found(20, 1)),
        ("nothing", error(&quoted).quote_limit(0).build(), bad),
        ("seven bytes", error(&quoted).quote_limit(7).build(), bad),
        ("half a header", error(&quoted).quote_limit(19).build(), bad),
        ("seven bytes of transport", error(&quoted).quote_limit(27).build(), bad),
        ("an error", error(&error(&quoted).build()).build(), bad),
        ("IP options (R5508-3b)", error(&with_options).build(), found(24, 17)),
        ("bad IP checksum (R5508-3a)", error(&broken).build(), Err(DropReason::BadIpChecksum)),
        ("bad UDP checksum (R5508-3c)", error(&wrong_transport).build(), found(20, 17)),
        ("a later fragment", error(&later_fragment).build(), bad),
        ("a first fragment", error(&first_fragment).build(), found(20, 17)),
        ("another protocol", error(&sctp).build(), Err(DropReason::UnknownProtocol)),
        ("another version", error(&version_6).build(), bad),
        (
            "a packet of somebody else",
            PacketBuilder::icmp(router, elsewhere, (3, 3, 0)).payload(&quoted[IP..]).build(),
            bad,
        ),
        (
            "bad outer checksum (R5508-3)",
            edited(&error(&quoted), &[(L4 + 2, 0x99)]),
            Err(DropReason::BadChecksum),
        ),
    ]);
    for kind in [11, 12] {
        let frame = PacketBuilder::icmp_error(router, (kind, 0), &quoted).build();
        let parsed = parse(&frame).unwrap();
        assert_eq!((parsed.tuple.source, parsed.tuple.destination), (b, a));
        assert_eq!(parsed.tuple.protocol, 17);
    }
}

#[test]
fn icmpv6_errors_and_what_they_quote() {
    let (a, b) = ends_v6();
    let router = Endpoint::new("2001:db8:9::9".parse().unwrap(), 0);
    let quoted = PacketBuilder::tcp(a, b).build();
    for kind in 1..=4 {
        let frame = PacketBuilder::icmp_error(router, (kind, 0), &quoted).build();
        let parsed = parse(&frame).unwrap();
        assert_eq!((parsed.tuple.source, parsed.tuple.destination), (b, a), "type {kind}");
    }
    let error = PacketBuilder::icmp_error(router, (1, 4), &quoted);
    let bad = Err(DropReason::BadIcmpHeader);
    let mapped = {
        let mut inner = quoted.clone();
        inner[IP + 24..IP + 40].copy_from_slice(&ends().1.address.octets());
        PacketBuilder::icmp_error(router, (1, 4), &inner).build()
    };
    check(vec![
        ("47 bytes", error.clone().quote_limit(47).build(), bad),
        ("39 bytes", error.clone().quote_limit(39).build(), bad),
        ("an error", PacketBuilder::icmp_error(router, (1, 4), &error.build()).build(), bad),
        ("a mapped address", mapped, Err(DropReason::MartianAddress)),
    ]);
}

/// An IPv6 frame with extension headers in front of a UDP datagram.
fn extended(kind: u8, header: [u8; 8]) -> Vec<u8> {
    let (a, b) = ends_v6();
    let mut frame = PacketBuilder::udp(a, b).payload(b"x").build();
    let next = frame[IP + 6];
    frame[IP + 6] = kind;
    frame[IP + 5] += 8;
    let mut header = header;
    header[0] = next;
    frame.splice(54..54, header);
    frame
}

#[test]
fn ipv6_headers() {
    let (a, b) = ends_v6();
    let plain = PacketBuilder::udp(a, b);
    let with = |from: &str| {
        let source = Endpoint::new(from.parse().unwrap(), 1);
        let mut frame = plain.build();
        frame[IP + 8..IP + 24].copy_from_slice(&source.address.octets());
        frame
    };
    let martian = Err(DropReason::MartianAddress);
    let bad = Err(DropReason::BadExtensionHeader);
    check(vec![
        ("cut header", cut(plain.build(), 53), Err(DropReason::BadIpHeader)),
        ("payload beyond", edited(&plain, &[(IP + 5, 99)]), Err(DropReason::BadIpLength)),
        ("version 4", edited(&plain, &[(IP, 0x45)]), Err(DropReason::BadIpVersion)),
        ("payload length 0", edited(&plain, &[(IP + 5, 0)]), Err(DropReason::BadUdpHeader)),
        ("hop limit 0", PacketBuilder::udp(a, b).ttl(0).build(), Err(DropReason::TtlExpired)),
        ("no next header", edited(&plain, &[(IP + 6, 59)]), Err(DropReason::UnknownProtocol)),
        ("from nowhere", with("::"), martian),
        ("from loopback", with("::1"), martian),
        ("from multicast", with("ff02::1"), martian),
        ("from a mapped address", with("::ffff:10.0.0.1"), martian),
        ("hop-by-hop", extended(0, [0, 0, 1, 4, 0, 0, 0, 0]), UDP),
        ("destination options", extended(60, [0, 0, 1, 4, 0, 0, 0, 0]), UDP),
        ("routing type 0", extended(43, [0; 8]), bad),
        ("jumbogram without length", edited(&plain, &[(IP + 5, 0), (IP + 6, 0)]), bad),
        ("atomic fragment", extended(44, [0, 0, 0, 0, 1, 2, 3, 4]), UDP),
        ("first fragment", extended(44, [0, 0, 0, 1, 1, 2, 3, 4]), Err(DropReason::Fragment)),
        ("later fragment", extended(44, [0, 0, 1, 0, 1, 2, 3, 4]), Err(DropReason::Fragment)),
    ]);
}

#[test]
fn checksums_of_hardware_are_believed_only_when_asked_to() {
    let broken = edited(&tcp(), &[(L4 + 16, 0x99)]);
    assert_eq!(parse_with(&broken, Verify::All), Err(DropReason::BadChecksum));
    assert!(parse_with(&broken, Verify::Headers).is_ok());
    let header = edited(&tcp(), &[(IP + 10, 0x99)]);
    assert_eq!(parse_with(&header, Verify::Headers), Err(DropReason::BadIpChecksum));
}

/// One good packet of each kind.
fn samples() -> Vec<Vec<u8>> {
    let mut frames = vec![
        extended(60, [0, 0, 1, 4, 0, 0, 0, 0]),
        tcp().tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).payload(b"text").build(),
        udp().ip_options(&[148, 4, 0, 0]).vlan(3).build(),
    ];
    for (a, b) in [ends(), ends_v6()] {
        let error = if a.ipv4().is_some() { 3 } else { 1 };
        let flows = [
            PacketBuilder::tcp(a, b).payload(b"payload"),
            PacketBuilder::udp(a, b).payload(b"payload"),
            PacketBuilder::echo_request(a, b),
        ];
        for flow in flows {
            let frame = flow.build();
            frames.push(PacketBuilder::icmp_error(b, (error, 0), &frame).build());
            frames.push(frame);
        }
    }
    frames
}

#[test]
fn cut_at_every_byte_a_packet_is_refused() {
    for frame in samples() {
        assert!(parse(&frame).is_ok());
        for len in 0..frame.len() {
            assert!(parse(&frame[..len]).is_err(), "{} of {} bytes", len, frame.len());
        }
    }
}

/// What every accepted packet must have.
fn assert_sound(frame: &[u8], parsed: &Parsed) {
    let (ip, at, end) =
        (usize::from(parsed.ip), usize::from(parsed.transport_at), usize::from(parsed.end));
    assert!(ip < at && at + 8 <= end && end <= frame.len());
    assert_ne!(parsed.tuple.source, parsed.tuple.destination);
    let is_v4 = parsed.version == IpVersion::V4;
    assert_eq!(parsed.tuple.source.ipv4().is_some(), is_v4);
    assert_eq!(parsed.tuple.destination.ipv4().is_some(), is_v4);
    if let Transport::IcmpError { inner_ip, inner_transport, inner_protocol } = parsed.transport {
        assert!(at < usize::from(inner_ip) && inner_ip < inner_transport);
        assert!(usize::from(inner_transport) + 8 <= end);
        assert_eq!(parsed.tuple.protocol, inner_protocol);
    }
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(mut frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (ether_type, version) in [([0x08, 0x00], 0x40), ([0x86, 0xdd], 0x60)] {
            if frame.len() > IP {
                frame[12..14].copy_from_slice(&ether_type);
                frame[IP] = frame[IP] & 0x0f | version;
            }
            for verify in [Verify::All, Verify::Headers] {
                if let Ok(parsed) = parse_with(&frame, verify) {
                    assert_sound(&frame, &parsed);
                }
            }
        }
    }

    #[test]
    fn changed_packets_do_no_harm(
        which in 0usize..15,
        edits in proptest::collection::vec((0usize..120, any::<u8>()), 1..4),
        len in 0usize..160,
    ) {
        let mut frame = samples().swap_remove(which);
        for (at, value) in edits {
            let at = at % frame.len();
            frame[at] = value;
        }
        frame.truncate(len.max(1));
        // With the header checksum made right the deeper checks are reached.
        if frame.len() >= L4 && frame[12..14] == [0x08, 0x00] && frame[IP] == 0x45 {
            Ipv4Packet::new_unchecked(&mut frame[IP..]).fill_checksum();
        }
        for verify in [Verify::All, Verify::Headers] {
            if let Ok(parsed) = parse_with(&frame, verify) {
                assert_sound(&frame, &parsed);
            }
        }
    }
}

/// Whether the addresses are martian, said without the parser's own tables. Captures hold loopback
/// traffic, broadcasts and anonymised addresses.
fn is_martian(frame: &[u8]) -> bool {
    let (ether_type, ip) = ethernet::network_header(frame).unwrap();
    if ether_type == ethernet::TYPE_IPV4 {
        let packet = Ipv4Packet::new_unchecked(&frame[ip..]);
        let (source, destination) = (packet.source(), packet.destination());
        let reserved = |first: u8| first == 0 || first >= 240;
        return source == destination
            || source.is_multicast()
            || [source, destination].iter().any(|a| a.is_loopback() || reserved(a.octets()[0]));
    }
    let packet = Ipv6Packet::new_unchecked(&frame[ip..]);
    let (source, destination) = (packet.source(), packet.destination());
    source == destination
        || source.is_multicast()
        || [source, destination]
            .iter()
            .any(|a| a.is_loopback() || a.is_unspecified() || a.to_ipv4().is_some())
}

/// Parses a capture; how many packets passed, and how many were refused for each reason. `None` if
/// the captures are not there.
fn survey(name: &str) -> Option<(u64, BTreeMap<DropReason, u64>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    let (mut passed, mut refused) = (0, BTreeMap::new());
    for packet in CaptureReader::open(&path).unwrap() {
        let packet = packet.unwrap();
        match parse(&packet.bytes) {
            Ok(parsed) => {
                assert_sound(&packet.bytes, &parsed);
                passed += 1;
            }
            Err(reason) => {
                let excused = reason != DropReason::MartianAddress || is_martian(&packet.bytes);
                assert!(excused, "no martian: {:02x?}", packet.bytes);
                *refused.entry(reason).or_insert(0) += 1;
            }
        }
    }
    println!("{name}: {passed} passed, refused {refused:?}");
    Some((passed, refused))
}

#[test]
fn real_traffic_passes() {
    let Some((passed, refused)) = survey("enterprise-mix.pcap") else { return };
    let total = passed + refused.values().sum::<u64>();
    // Martians too, though they are many (a twentieth): the capture is merged from others, and
    // some of those were taken on loopback interfaces. `survey` checks that each really is one.
    let expected = [
        DropReason::Fragment,
        DropReason::IcmpType,
        DropReason::UnknownProtocol,
        DropReason::MartianAddress,
    ];
    let excused: u64 = expected.iter().filter_map(|reason| refused.get(reason)).sum();
    assert!(passed * 100 >= (total - excused) * 99, "{passed} of {total}: {refused:?}");
    // The capture's checksums were all verified when it was made.
    for reason in [DropReason::BadChecksum, DropReason::BadIpChecksum] {
        assert_eq!(refused.get(&reason), None, "{reason}");
    }
}

#[test]
fn odd_traffic_does_no_harm() {
    for name in ["malformed.pcap", "fragments.pcap", "icmp-errors.pcap", "tcp-ooo.pcap"] {
        let Some((passed, refused)) = survey(name) else { return };
        assert!(passed + refused.values().sum::<u64>() > 0);
    }
}

#[test]
fn the_builder_and_the_views_agree_on_the_link_header() {
    let frame = ethernet::EthernetFrame::new_checked(tcp().build()).unwrap();
    assert_eq!((frame.source(), frame.destination()), (SOURCE_MAC, DESTINATION_MAC));
}
