//! Bad inputs 1 to 16: frames, IP headers, addresses.

use super::*;
use crate::frame::{FRAME_BYTES, Frame, FrameTooLong};
use nearstate_store::Address;

/// Both directions of one thing that is wrong.
fn both(
    rig: &Rig,
    number: u8,
    what: &'static str,
    end: End,
    spoil: impl Fn(PacketBuilder) -> Vec<u8>,
) -> [Row; 2] {
    [OUT, IN].map(|side| (number, what, side, spoil(rig.datagram(side)), end))
}

fn frames_and_headers(rig: &Rig) -> Vec<Row> {
    use DropReason as R;
    let edit = |number, what, reason, edits: &'static [(usize, u8)]| {
        both(rig, number, what, Drop(reason), move |datagram| edited(datagram.build(), edits))
    };
    let options = |what, end, options: &'static [u8]| {
        both(rig, 11, what, end, move |datagram| datagram.ip_options(options).build())
    };
    let refused = Drop(R::BadIpOption);
    let length = |frame: &[u8]| (frame[IP + 3], frame.len());
    let longer = |datagram: PacketBuilder| {
        let frame = datagram.build();
        let (total, _) = length(&frame);
        header_edited(frame, &[(IP + 3, total + 1)])
    };
    [
        both(rig, 1, "no byte at all", Drop(R::ShortEthernet), |_| vec![]),
        both(rig, 2, "a runt of 13 bytes", Drop(R::ShortEthernet), |d| d.build()[..13].to_vec()),
        edit(4, "a header length of 16 bytes", R::BadIpHeader, &[(IP, 0x44)]),
        edit(5, "a header beyond the packet", R::BadIpHeader, &[(IP, 0x4f)]),
        edit(6, "a total length within the header", R::BadIpLength, &[(IP + 2, 0), (IP + 3, 19)]),
        both(rig, 7, "a total length beyond the frame", Drop(R::BadIpLength), longer),
        both(rig, 7, "padding behind the packet", Pass, |d| d.padding(18).build()),
        edit(8, "version 5", R::BadIpVersion, &[(IP, 0x55)]),
        edit(9, "a wrong checksum of the header", R::BadIpChecksum, &[(IP + 10, 0x99)]),
        both(rig, 10, "time to live 0", Drop(R::TtlExpired), |d| d.ttl(0).build()),
        // No router, so nobody's time ends here.
        both(rig, 10, "time to live 1", Pass, |d| d.ttl(1).build()),
        options("loose source route", refused, &[131, 7, 4, 192, 0, 2, 9]),
        options("strict source route", refused, &[1, 137, 7, 4, 192, 0, 2, 9]),
        options("record route", refused, &[7, 7, 4, 0, 0, 0, 0]),
        options("timestamp", refused, &[68, 8, 5, 0, 0, 0, 0, 0]),
        options("an option of length 0", refused, &[148, 0]),
        options("an option of length 1", refused, &[148, 1]),
        options("an option of length 255", refused, &[148, 255]),
        options("router alert, which is none of these", Pass, &[148, 4, 0, 0]),
        both(rig, 15, "three VLAN tags", Drop(R::BadVlan), |d| d.vlan(1).vlan(2).vlan(3).build()),
        both(rig, 15, "two VLAN tags", Pass, |d| d.vlan(1).vlan(2).build()),
        edit(15, "an unknown EtherType", R::NotIp, &[(12, 0x88), (13, 0xb5)]),
    ]
    .concat()
}

fn addresses(_: &Rig) -> Vec<Row> {
    let martian = Drop(DropReason::MartianAddress);
    let sources: [(&str, [u8; 4]); 5] = [
        ("from this network", [0, 1, 2, 3]),
        ("from loopback", [127, 0, 0, 1]),
        ("from multicast", [224, 0, 0, 1]),
        ("from reserved addresses", [240, 0, 0, 1]),
        ("from the limited broadcast", [255; 4]),
    ];
    let mut rows = vec![];
    for (what, source) in sources {
        let source = Endpoint::v4(source, 1000);
        rows.push((12, what, OUT, from(PacketBuilder::udp, (source, DNS)), martian));
        let syn = PacketBuilder::tcp(source, WEB).flags(SYN).build();
        rows.push((12, what, OUT, syn, martian));
    }
    rows
}

/// What comes from where it cannot come from, at a chain that knows what is inside, or only what
/// its own addresses are.
fn sources(rig: &Rig, is_guarded: bool) -> Vec<Row> {
    let own = Drop(DropReason::NatSource);
    let other = if is_guarded { Drop(DropReason::SpoofedSource) } else { Pass };
    let to_udp = |source| from(PacketBuilder::udp, (source, rig.udp));
    let neighbour = Endpoint::v4([10, 0, 0, 2], 1000);
    let error = |router| {
        let left = PacketBuilder::udp(rig.udp, DNS).payload(b"asks").build();
        PacketBuilder::icmp_error(router, (3, 3), &left).build()
    };
    vec![
        (13, "from the pool, outside", IN, to_udp(Endpoint { port: 9, ..NOBODY }), own),
        (13, "from an address in use, outside", IN, to_udp(Endpoint { port: 9, ..rig.tcp }), own),
        (13, "an error of a router in the pool", IN, error(NOBODY), own),
        (13, "from inside, outside", IN, to_udp(neighbour), other),
        (13, "an error of a router inside, outside", IN, error(neighbour), other),
        (13, "from outside, outside", IN, to_udp(STRANGER), Pass),
        (13, "an error of a router outside", IN, error(ROUTER), Pass),
        (13, "from the pool, inside", OUT, from(PacketBuilder::udp, (NOBODY, DNS)), own),
    ]
}

fn guarded(rig: &Rig) -> Vec<Row> {
    let spoofed = Drop(DropReason::SpoofedSource);
    let fixed = Endpoint::v4([203, 0, 113, 9], 7);
    let six = |a: u8, last: u8| {
        let mut octets = [0x20, a, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        octets[4] = a;
        Endpoint { address: Address::from_octets(octets), port: 7 }
    };
    let udp = |a, b| from(PacketBuilder::udp, (a, b));
    let mut rows = sources(rig, true);
    rows.extend([
        (13, "from a static end, outside", IN, udp(fixed, rig.udp), Drop(DropReason::NatSource)),
        (13, "from elsewhere, inside", OUT, udp(STRANGER, DNS), spoofed),
        (13, "IPv6 from elsewhere, inside", OUT, udp(six(9, 1), six(1, 1)), spoofed),
        (13, "IPv6 from inside, outside", IN, udp(six(1, 1), six(1, 2)), spoofed),
        (13, "IPv6 from inside", OUT, udp(six(1, 1), six(9, 2)), Pass),
    ]);
    rows
}

fn lands(rig: &Rig) -> Vec<Row> {
    let martian = Drop(DropReason::MartianAddress);
    let syn = |end| PacketBuilder::tcp(end, end).flags(SYN).build();
    vec![
        (14, "source is destination", OUT, syn(HOST), martian),
        (14, "and both are the mapping", IN, syn(rig.tcp), martian),
        (14, "and both are nobody", IN, syn(NOBODY), martian),
        (14, "of UDP", IN, from(PacketBuilder::udp, (rig.udp, rig.udp)), martian),
        // The end that it would show outside is the one that it goes to.
        (14, "to its own mapping", OUT, from(PacketBuilder::udp, (HOST, rig.udp)), martian),
    ]
}

/// An IPv6 datagram behind so many headers of a kind.
fn headers(kind: u8, count: usize) -> Vec<u8> {
    let end = |last| {
        let octets = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        Endpoint { address: Address::from_octets(octets), port: 7 }
    };
    let mut frame = PacketBuilder::udp(end(1), end(2)).payload(b"x").build();
    let upper = frame[IP + 6];
    frame[IP + 6] = kind;
    let mut chain = vec![];
    for number in 1..=count {
        let next = if number == count { upper } else { kind };
        // Padding, as options; as a routing header type 0 with an address left.
        chain.extend_from_slice(&[next, 0, if kind == 43 { 0 } else { 1 }, 4, 0, 0, 0, 0]);
    }
    let length = frame.len() - IP - 40 + chain.len();
    frame[IP + 4..IP + 6].copy_from_slice(&(length as u16).to_be_bytes());
    frame.splice(IP + 40..IP + 40, chain);
    frame
}

fn ipv6(_: &Rig) -> Vec<Row> {
    use DropReason as R;
    let plain = || headers(17, 0);
    let bad = Drop(R::BadExtensionHeader);
    let rows = [
        ("hop-by-hop headers, a hundred", headers(0, 100), bad),
        ("destination options, a hundred", headers(60, 100), bad),
        ("a routing header of type 0", headers(43, 1), bad),
        ("routing headers of type 0, repeated", headers(43, 3), bad),
        ("an unknown next header", edited(plain(), &[(IP + 6, 200)]), Drop(R::UnknownProtocol)),
        ("no next header", edited(plain(), &[(IP + 6, 59)]), Drop(R::UnknownProtocol)),
        ("a payload length of 0", edited(plain(), &[(IP + 5, 0)]), Drop(R::BadUdpHeader)),
        (
            "a jumbogram: hop-by-hop and no length",
            edited(headers(0, 1), &[(IP + 4, 0), (IP + 5, 0)]),
            bad,
        ),
        ("one hop-by-hop header", headers(0, 1), Pass),
    ];
    let rows = rows
        .into_iter()
        .flat_map(|(what, frame, end)| [OUT, IN].map(|side| (16, what, side, frame.clone(), end)));
    rows.collect()
}

/// Bad inputs 1, 2, 4 to 12, 14 to 16.
#[test]
fn bad_inputs_1_to_16_frames_and_headers_at_a_nat() {
    let numbers = (1..=16).filter(|number| ![3, 13].contains(number));
    check(numbers, &[(NAT, frames_and_headers), (NAT, addresses), (NAT, lands), (NAT, ipv6)]);
}

/// Bad input 3, with the header's length as it was and as the cut frame has it.
#[test]
fn bad_input_3_packets_cut_at_every_byte() {
    let mut rig = Rig::new(FIREWALL);
    let bad = [
        DropReason::ShortEthernet,
        DropReason::BadIpHeader,
        DropReason::BadIpLength,
        DropReason::BadTcpHeader,
        DropReason::BadUdpHeader,
        DropReason::BadChecksum,
    ];
    for side in [OUT, IN] {
        for whole in [rig.segment(side).payload(b"data").build(), rig.datagram(side).build()] {
            for len in 0..whole.len() {
                let cut = whole[..len].to_vec();
                let mut frames = vec![cut.clone()];
                if len >= L4 {
                    frames.push(header_edited(cut, &[(IP + 3, (len - IP) as u8)]));
                }
                for frame in frames {
                    let reason = parse(&frame).expect_err("it is cut");
                    assert!(bad.contains(&reason), "{reason} at {len}");
                    rig.check(&[(3, "cut", side, frame, Drop(reason))]);
                }
            }
        }
    }
}

/// Bad input 7: what is behind the packet is not taken for a part of it.
#[test]
fn bad_input_7_padding_is_no_data() {
    let mut rig = Rig::new(NAT);
    for side in [OUT, IN] {
        let mut padded = rig.datagram(side).padding(18).build();
        let len = padded.len();
        padded[len - 18..].fill(0xee);
        let ends = rig.send(side, padded);
        let frame = &ends.frames[0];
        let packet = Ipv4Packet::new_unchecked(&frame[IP..]);
        assert_eq!(packet.total_len(), len - IP - 18, "{side:?}");
        // What a host takes out of it has a right checksum, which parsing has seen to.
        let parsed = parse(frame).unwrap();
        assert_eq!(usize::from(parsed.end), len - 18);
    }
}

/// Bad input 13.
#[test]
fn bad_input_13_sources_on_the_wrong_side() {
    check([13], &[(NAT, |rig| sources(rig, false)), (GUARDED, guarded)]);
    // A static end as a source from inside, where nobody has said what is inside.
    let chain =
        format!("{NAT}\nstatic = [{{ external = \"203.0.113.9\", inside = \"10.0.0.9\" }}]");
    check(
        [13],
        &[(&chain, |_| {
            let fixed = Endpoint::v4([203, 0, 113, 9], 7);
            let frame = from(PacketBuilder::udp, (fixed, DNS));
            vec![(13, "from a static end, inside", OUT, frame, Drop(DropReason::NatSource))]
        })],
    );
}

/// Bad input 13 in pieces: the first one and the later ones.
#[test]
fn bad_input_13_forged_sources_in_fragments() {
    let mut rig = Rig::new(NAT);
    let [.., last] = rig.udp.ipv4().unwrap().octets();
    let forged = Endpoint::v4([198, 19, 0, last ^ 1], 9);
    let forged = PacketBuilder::udp(forged, rig.udp).ident(7).payload(&[1; 64]).build();
    let pieces = crate::packet::cutter::cut(&forged, 7, &[4]);
    assert_eq!(pieces.len(), 2);
    for piece in pieces {
        rig.check(&[(13, "a piece", IN, piece, Drop(DropReason::NatSource))]);
    }
}

/// Bad input 15: a jumbo frame has no room in a buffer, and is no packet if it had.
#[test]
fn bad_input_15_jumbo_frames() {
    let jumbo = PacketBuilder::udp(HOST, DNS).payload(&[1; 8900]).build();
    assert_eq!(parse(&jumbo), Err(DropReason::FrameTooLong));
    assert_eq!(Frame::new().copy_from(&jumbo), Err(FrameTooLong(jumbo.len())));
    let longest = FRAME_BYTES - L4 - 8;
    for (payload, is_carried) in [(longest, true), (longest + 1, false)] {
        let frame = PacketBuilder::udp(HOST, DNS).payload(&vec![1; payload]).build();
        assert_eq!(Frame::new().copy_from(&frame).is_ok(), is_carried);
    }
}
