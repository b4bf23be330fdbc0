//! Bad inputs 46 to 52: UDP, ICMP and other protocols.

use super::*;
use crate::packet::udp::UdpDatagram;

fn datagrams(rig: &Rig) -> Vec<Row> {
    use DropReason as R;
    let both = |number: u8, what, end, spoil: &dyn Fn(PacketBuilder) -> Vec<u8>| {
        [OUT, IN].map(|side| (number, what, side, spoil(rig.datagram(side)), end))
    };
    let length = |what, length| {
        both(46, what, Drop(R::BadUdpHeader), &|d| {
            edited(d.build(), &[(L4 + 4, 0), (L4 + 5, length)])
        })
    };
    [
        length("a length of 0", 0),
        length("a length of 7", 7),
        length("a length beyond the packet", 200),
        both(47, "a wrong checksum", Drop(R::BadChecksum), &|d| {
            edited(d.build(), &[(L4 + 8, b'A')])
        }),
        both(47, "no checksum", Pass, &|d| d.no_checksum().build()),
    ]
    .concat()
}

/// What left the NAT to `DNS`, and what its host has got from there: what errors quote.
fn quoted(rig: &Rig, side: Side) -> Vec<u8> {
    match side {
        IN => from(PacketBuilder::udp, (rig.udp, DNS)),
        OUT => from(PacketBuilder::udp, (DNS, HOST)),
    }
}

fn errors(rig: &Rig) -> Vec<Row> {
    use DropReason as R;
    let mut rows = vec![];
    for (side, router) in [(IN, ROUTER), (OUT, HOST)] {
        let known = quoted(rig, side);
        let error = |frame: &[u8]| PacketBuilder::icmp_error(router, (3, 3), frame);
        let unknown = match side {
            IN => from(PacketBuilder::udp, (NOBODY, DNS)),
            OUT => from(PacketBuilder::udp, (DNS, Endpoint { port: 9, ..HOST })),
        };
        let (a, b) = if side == IN { (rig.udp, DNS) } else { (DNS, HOST) };
        let optional = PacketBuilder::udp(a, b).ip_options(&[148, 4, 0, 0]).build();
        let of_error = error(&error(&known).build()).build();
        let outer = edited(error(&known).build(), &[(L4 + 2, 0x99)]);
        let inner = error(&edited(known.clone(), &[(IP + 10, 0x99)])).build();
        let bad = Drop(R::BadIcmpHeader);
        let cases = [
            ("nothing quoted", error(&known).quote_limit(0).build(), bad),
            ("7 bytes quoted", error(&known).quote_limit(7).build(), bad),
            ("7 bytes of its transport", error(&known).quote_limit(27).build(), bad),
            ("about no flow", error(&unknown).build(), Drop(R::IcmpUnrelated)),
            ("about an error", of_error, bad),
            ("about a packet with options", error(&optional).build(), Pass),
            ("a wrong checksum", outer, Drop(R::BadChecksum)),
            ("a wrong checksum in the quoted header", inner, Drop(R::BadIpChecksum)),
            ("8 bytes of its transport", error(&known).quote_limit(28).build(), Pass),
        ];
        rows.extend(cases.map(|(what, frame, end)| (48, what, side, frame, end)));
        // ReDAN: what a path can carry is kept by hosts, not here; so nothing is to be poisoned.
        for (what, mtu) in [("MTU 0", 0), ("MTU 67", 67), ("MTU 65535", 65_535)] {
            let too_big = |frame: &[u8]| {
                let to = parse(frame).unwrap().tuple.source;
                PacketBuilder::icmp(router, to, (3, 4, mtu)).payload(&frame[IP..]).build()
            };
            rows.push((49, what, side, too_big(&unknown), Drop(R::IcmpUnrelated)));
            rows.push((49, what, side, too_big(&known), Pass));
        }
    }
    rows
}

fn messages(rig: &Rig) -> Vec<Row> {
    use DropReason as R;
    let ends = |side| if side == OUT { (HOST, WEB) } else { (WEB, rig.udp) };
    let mut rows = vec![];
    for side in [OUT, IN] {
        let (a, b) = ends(side);
        let redirect = PacketBuilder::icmp(a, b, (5, 1, 0xc000_0209));
        let redirect = redirect.payload(&quoted(rig, side)[IP..]).build();
        let quench = PacketBuilder::icmp(a, b, (4, 0, 0)).payload(&quoted(rig, side)[IP..]).build();
        let timestamp = PacketBuilder::icmp(a, b, (13, 0, 7)).payload(&[0; 12]).build();
        for (what, frame) in
            [("redirect", redirect), ("source quench", quench), ("timestamp", timestamp)]
        {
            rows.push((50, what, side, frame, Drop(R::IcmpType)));
        }
        for (what, protocol) in [("GRE", 47), ("ESP", 50), ("SCTP", 132), ("protocol 255", 255)] {
            let frame = PacketBuilder::other(a, b, protocol).payload(&[0; 24]).build();
            rows.push((52, what, side, frame, Drop(R::UnknownProtocol)));
        }
    }
    rows
}

/// Bad inputs 46 to 50 and 52, at a NAT and behind a firewall.
#[test]
fn bad_inputs_46_to_52_udp_icmp_and_other_protocols() {
    let numbers = [46, 47, 48, 49, 50, 52];
    for chain in [NAT, FIREWALL] {
        check(numbers, &[(chain, datagrams), (chain, errors), (chain, messages)]);
    }
}

/// Bad input 47: none stays none (RFC 4787 asks for nothing else; it is legal in IPv4).
#[test]
fn bad_input_47_no_checksum_stays_none() {
    let mut rig = Rig::new(NAT);
    for side in [OUT, IN] {
        let ends = rig.send(side, rig.datagram(side).no_checksum().build());
        let datagram = UdpDatagram::new_checked(&ends.frames[0][L4..]).unwrap();
        assert_eq!(datagram.checksum(), 0, "{side:?}");
    }
}

/// Bad input 51: all identifiers that there are, from one host and from outside.
#[test]
fn bad_input_51_a_flood_of_echoes_is_held_by_the_quota() {
    let mut rig = Rig::new(&format!("{NAT}\nport_blocks_per_subscriber = 1"));
    let echo = |number: u16| Endpoint { port: number, ..HOST };
    let before = rig.counts();
    let (mut left, mut refused) = (0, 0);
    for number in 100..=u16::MAX {
        let frame = PacketBuilder::echo_request(echo(number), WEB).build();
        let ends = rig.send(OUT, frame);
        left += ends.left.len();
        refused += ends.dropped.len() as u64;
    }
    // A block of 64, of which one was in use.
    assert_eq!(left, 63);
    assert_eq!(rig.counts().drops(DropReason::QuotaReached), refused);
    rig.goes_on();
    let picture = rig.picture();
    for number in 0..=u16::MAX {
        let to = Endpoint { port: number, ..rig.echo };
        let frame = PacketBuilder::echo_request(Endpoint { port: number, ..STRANGER }, to).build();
        assert_eq!(rig.send(IN, frame).dropped, [(0, DropReason::NoMapping)]);
    }
    assert_eq!(rig.picture(), picture);
    let counts = rig.counts();
    assert_eq!(counts.drops(DropReason::NoMapping) - before.drops(DropReason::NoMapping), 65_536);
    rig.goes_on();
}
