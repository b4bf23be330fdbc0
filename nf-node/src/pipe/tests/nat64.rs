//! NAT64 in a whole pipe, frame by frame: what goes in over IPv6 leaves over IPv4, and back.

use super::nat::{pipe_of, send};
use crate::counters::Event;
use crate::packet::tcp::flags::{ACK, SYN};
use crate::packet::{IpVersion, PacketBuilder, parse};
use crate::pipe::tests::nat::Ends;
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::Endpoint;

const NAT64: &str = "functions = [\"firewall\", \"nat64\"]\n[nat64]\n\
                     prefix = \"2001:db8:64::/96\"\naddresses = [\"198.19.1.0/28\"]";

fn end(text: &str) -> Endpoint {
    let socket: core::net::SocketAddr = text.parse().unwrap();
    Endpoint::new(socket.ip(), socket.port())
}

/// What left, if that is one packet.
fn only(ends: &Ends) -> (Side, Vec<u8>) {
    assert_eq!((ends.left.len(), &ends.dropped[..]), (1, &[][..]));
    (ends.left[0].1, ends.frames[0].clone())
}

/// VPP's NAT64 cases dynamic, one_armed and icmp_error in bytes: what comes back is what a peer of
/// IPv6 would have sent.
#[test]
fn frames_of_every_kind_leave_over_ipv4_and_their_answers_come_back_over_ipv6() {
    let (host, web6, web) =
        (end("[2001:db8::5]:4000"), end("[2001:db8:64::192.0.2.1]:80"), end("192.0.2.1:80"));
    let pinged6 = Endpoint { port: 4000, ..web6 };
    let requests = [
        PacketBuilder::tcp(host, web6).flags(SYN).seq(5),
        PacketBuilder::udp(host, web6).payload(b"question"),
        PacketBuilder::echo_request(host, pinged6).payload(b"ping"),
    ];
    for request in requests {
        let mut pipe = pipe_of(NAT64, 16);
        let (side, out) = only(&send(&mut pipe, &[(Side::Inside, request.build())]));
        let parsed = parse(&out).unwrap();
        assert_eq!((side, parsed.version), (Side::Outside, IpVersion::V4));
        let external = parsed.tuple.source;
        assert_eq!(external.ipv4().unwrap().octets()[..3], [198, 19, 1]);
        assert_eq!(parsed.tuple.destination.address, web.address);
        // The same again finds the mapping, and is the same to the last bit (P4).
        assert_eq!(only(&send(&mut pipe, &[(Side::Inside, request.build())])), (side, out.clone()));

        let pinged = Endpoint { port: external.port, ..web };
        let (answer, seen) = match parsed.tuple.protocol {
            6 => (
                PacketBuilder::tcp(web, external).flags(SYN | ACK).ack(6),
                PacketBuilder::tcp(web6, host).flags(SYN | ACK).ack(6),
            ),
            17 => (
                PacketBuilder::udp(web, external).no_checksum().payload(b"answer"),
                PacketBuilder::udp(web6, host).payload(b"answer"),
            ),
            _ => (
                PacketBuilder::echo_reply(pinged, external).payload(b"ping"),
                PacketBuilder::echo_reply(pinged6, host).payload(b"ping"),
            ),
        };
        let answered = only(&send(&mut pipe, &[(Side::Outside, answer.build())]));
        assert_eq!(answered, (Side::Inside, seen.build()));

        let router = end("10.1.1.1:1");
        let error = PacketBuilder::icmp_error(router, (11, 0), &out).build();
        let (_, told) = only(&send(&mut pipe, &[(Side::Outside, error)]));
        let router6 = end("[2001:db8:64::10.1.1.1]:1");
        let expected = PacketBuilder::icmp_error(router6, (3, 0), &request.build()).build();
        assert_eq!(told, expected);
        let counts = pipe.counters().snapshot();
        assert_eq!((counts.event(Event::PacketsIn), counts.event(Event::PacketsOut)), (4, 4));
    }
}

/// VPP's NAT64 case hairpinning, in bytes.
#[test]
fn frames_between_two_hosts_behind_a_nat64_go_round() {
    let mut pipe = pipe_of(NAT64, 16);
    let (host, guest) = (end("[2001:db8::5]:4000"), end("[2001:db8::6]:5000"));
    let web6 = end("[2001:db8:64::192.0.2.1]:80");
    let udp = |from, to| (Side::Inside, PacketBuilder::udp(from, to).payload(b"hello").build());
    let external = send(&mut pipe, &[udp(host, web6)]).left[0].2.tuple.source;
    let behind = |end: Endpoint| {
        let text = format!("[2001:db8:64::{}]:{}", end.ip(), end.port);
        text.parse::<core::net::SocketAddr>()
            .map(|end| Endpoint::new(end.ip(), end.port()))
            .unwrap()
    };
    // The firewall lets the host be called only by whom it has called.
    let strange = send(&mut pipe, &[udp(guest, behind(external))]);
    assert_eq!(strange.dropped, [(0, DropReason::NoState)]);
    let guest_external = send(&mut pipe, &[udp(guest, web6)]).left[0].2.tuple.source;
    send(&mut pipe, &[udp(host, behind(guest_external))]);
    let ends = send(&mut pipe, &[udp(guest, behind(external)), udp(guest, behind(external))]);
    assert_eq!((ends.left.len(), ends.dropped.len()), (2, 0));
    for ((_, side, _), frame) in ends.left.iter().zip(&ends.frames) {
        assert_eq!(*side, Side::Inside);
        let seen = PacketBuilder::udp(behind(guest_external), host).payload(b"hello").build();
        assert_eq!(*frame, seen);
    }
}

/// IPv4 and IPv6 inside, one outside: each by its own NAT, and to each other.
#[test]
fn hosts_of_both_families_share_a_chain() {
    let both = format!(
        "functions = [\"nat\", \"nat64\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]\n{}",
        NAT64.split_once('\n').unwrap().1
    );
    for order in [both.clone(), both.replace("[\"nat\", \"nat64\"]", "[\"nat64\", \"nat\"]")] {
        let mut pipe = pipe_of(&order, 16);
        let (four, six) = (end("10.0.0.1:1000"), end("[2001:db8::5]:4000"));
        let (web, web6) = (end("192.0.2.1:80"), end("[2001:db8:64::192.0.2.1]:80"));
        let udp = |from, to| (Side::Inside, PacketBuilder::udp(from, to).build());
        let ends = send(&mut pipe, &[udp(four, web), udp(six, web6)]);
        assert!(ends.dropped.is_empty(), "{:?}", ends.dropped);
        let external = |tag| {
            let (.., parsed) = ends.left.iter().find(|(at, ..)| *at == tag).unwrap();
            assert_eq!((parsed.version, parsed.tuple.destination), (IpVersion::V4, web));
            parsed.tuple.source
        };
        let (of_four, of_six) = (external(0), external(1));
        assert_eq!(of_four.ipv4().unwrap().octets()[..3], [198, 19, 0]);
        assert_eq!(of_six.ipv4().unwrap().octets()[..3], [198, 19, 1]);
        let back = |to| (Side::Outside, PacketBuilder::udp(web, to).build());
        let ends = send(&mut pipe, &[back(of_four), back(of_six), udp(four, of_six)]);
        let to: Vec<_> = ends.left.iter().map(|(.., parsed)| parsed.tuple.destination).collect();
        assert_eq!((to, &ends.dropped[..]), (vec![four, six, six], &[][..]));
        let caller = ends.left[2].2.tuple.source;
        let ends = send(&mut pipe, &[udp(six, caller)]);
        assert_eq!(ends.left[0].2.tuple.destination, four);
    }
}

/// RFC 7915 sections 4 and 5: what cannot be said or carried over the other version ends with a
/// reason, and nothing is sent in its place.
#[test]
fn frames_that_cannot_cross_are_dropped_with_a_reason() {
    let mut pipe = pipe_of(&NAT64.replace("\"firewall\", ", ""), 16);
    let (host, web6) = (end("[2001:db8::5]:4000"), end("[2001:db8:64::192.0.2.1]:80"));
    let web = end("192.0.2.1:80");
    let request = PacketBuilder::udp(host, web6).build();
    let (_, out) = only(&send(&mut pipe, &[(Side::Inside, request)]));
    let external = parse(&out).unwrap().tuple.source;
    let rows = [
        (
            Side::Outside,
            PacketBuilder::udp(web, external).payload(&[0; 1990]).build(),
            DropReason::FrameTooLong,
        ),
        (
            Side::Outside,
            PacketBuilder::icmp_error(web, (3, 14), &out).build(),
            DropReason::NoTranslation,
        ),
        (
            Side::Inside,
            PacketBuilder::icmp_error(host, (4, 2), &PacketBuilder::udp(web6, host).build())
                .build(),
            DropReason::NoTranslation,
        ),
        (
            Side::Inside,
            PacketBuilder::other(host, web6, 132).payload(&[0; 20]).build(),
            DropReason::UnknownProtocol,
        ),
    ];
    for (side, frame, reason) in rows {
        let ends = send(&mut pipe, &[(side, frame)]);
        assert_eq!((ends.left.len(), &ends.dropped[..]), (0, &[(0, reason)][..]));
    }
}
