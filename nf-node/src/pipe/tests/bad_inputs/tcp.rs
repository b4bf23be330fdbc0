//! Bad inputs 29 to 45, as far as they are for a NAT and a firewall: TCP.

use super::super::nat::send_at;
use super::*;
use crate::frame::{FRAME_BYTES, Frame};
use crate::packet::tcp::flags::{FIN, PSH, RST, URG};
use nearstate_store::Time;

/// What is wrong with a segment of the connection, whoever sends it.
fn segments(rig: &Rig) -> Vec<Row> {
    use DropReason as R;
    let all = |number: u8, what, end, spoil: &dyn Fn(PacketBuilder) -> Vec<u8>| {
        [OUT, IN].map(|side| (number, what, side, spoil(rig.segment(side)), end))
    };
    let flags = |what, flags| all(29, what, Drop(R::BadTcpFlags), &|s| s.flags(flags).build());
    let options = |what, options: &'static [u8]| {
        all(31, what, Drop(R::BadTcpHeader), &|s| s.tcp_options(options).build())
    };
    let offset = |what, bits| {
        all(30, what, Drop(R::BadTcpHeader), &|s| edited(s.build(), &[(L4 + 12, bits)]))
    };
    let harmless = |what, options: &'static [u8]| {
        all(31, what, Pass, &|s| s.flags(SYN).tcp_options(options).build())
    };
    let beyond = 1 << 30;
    [
        flags("no flag", 0),
        flags("FIN, PSH and URG", FIN | PSH | URG),
        flags("SYN and FIN", SYN | FIN),
        flags("SYN and RST", SYN | RST),
        flags("all flags", 0x3f),
        flags("all flags and those of ECN", 0xff),
        offset("a header of 16 bytes", 0x40),
        offset("a header beyond the segment", 0x60),
        options("an option of length 0", &[2, 0, 5, 0xb4]),
        options("an option of length 1", &[2, 1, 5, 0xb4]),
        options("an option past the end", &[2, 9, 5, 0xb4]),
        // RFC 7323 section 2.3: whoever gets it takes it for 14.
        harmless("a window scale of 15", &[3, 3, 15]),
        harmless("a segment size twice", &[2, 4, 5, 0xb4, 2, 4, 2, 0x18]),
        all(33, "a wrong checksum", Drop(R::BadChecksum), &|s| {
            edited(s.payload(b"data").build(), &[(L4 + 20, b'D')])
        }),
        // RFC 5961 section 4.2: the end answers it with a challenge ACK; here nothing changes.
        all(35, "a SYN in the middle", Pass, &|s| s.flags(SYN).seq(77).build()),
        all(35, "a SYN-ACK in the middle", Pass, &|s| s.flags(SYN | ACK).seq(77).build()),
        // RFC 5961 section 5.2: the end refuses it.
        all(36, "an ACK of what was never sent", Pass, &|s| s.ack(beyond).build()),
        all(36, "an ACK of long ago", Pass, &|s| s.ack(1_000_u32.wrapping_sub(beyond)).build()),
        all(41, "before the wrap", Pass, &|s| s.seq(u32::MAX).ack(u32::MAX).payload(b"ab").build()),
        all(41, "behind the wrap", Pass, &|s| s.seq(1).ack(1).payload(b"cd").build()),
    ]
    .concat()
}

fn ports(rig: &Rig) -> Vec<Row> {
    let zero = |end| Endpoint { port: 0, ..end };
    let ends = [(OUT, (zero(HOST), WEB)), (OUT, (HOST, zero(WEB)))];
    let ends = ends.into_iter().chain([(IN, (zero(WEB), rig.tcp)), (IN, (WEB, zero(rig.tcp)))]);
    let rows = ends.flat_map(|(side, ends)| {
        [PacketBuilder::tcp, PacketBuilder::udp]
            .map(|builder| (32, "port 0", side, from(builder, ends), Drop(DropReason::PortZero)))
    });
    rows.collect()
}

/// Segments that nothing was opened for: of nobody, and to a mapping whose host has sent them
/// nothing. `to_mapping` is what the chain says to the latter.
fn unexpected(rig: &Rig, to_mapping: End) -> Vec<Row> {
    let new = Endpoint { port: 1001, ..HOST };
    let segment = |flags, ends: (Endpoint, Endpoint)| {
        PacketBuilder::tcp(ends.0, ends.1).flags(flags).seq(1).ack(1).build()
    };
    let (midstream, no_mapping) = (Drop(DropReason::TcpMidstream), Drop(DropReason::NoMapping));
    let kinds = [
        (37, "an ACK of no connection", ACK),
        (37, "data of no connection", ACK | PSH),
        (37, "a FIN of no connection", FIN | ACK),
        (37, "a RST of no connection", RST),
        (38, "a SYN-ACK of no connection", SYN | ACK),
        (43, "a FIN before its SYN", FIN | ACK | PSH),
    ];
    let rows = kinds.into_iter().flat_map(|(number, what, flags)| {
        [
            (number, what, OUT, segment(flags, (new, WEB)), midstream),
            (number, what, IN, segment(flags, (STRANGER, NOBODY)), no_mapping),
            (number, what, IN, segment(flags, (STRANGER, rig.tcp)), to_mapping),
        ]
    });
    rows.collect()
}

/// Bad inputs 29 to 33, 35, 36 and 41, at a NAT and behind a firewall: bad segments of a
/// connection.
#[test]
fn bad_inputs_29_to_41_segments_of_a_connection() {
    let numbers = [29, 30, 31, 32, 33, 35, 36, 41];
    check(numbers, &[(NAT, segments), (NAT, ports)]);
    check(numbers, &[(FIREWALL, segments), (FIREWALL, ports)]);
    check(numbers, &[(STRICT, segments), (STRICT, ports)]);
}

/// Bad inputs 37, 38 and 43. A NAT alone lets in whoever knows a mapping (RFC 4787 REQ-8).
#[test]
fn bad_inputs_37_38_and_43_segments_of_no_connection() {
    use DropReason as R;
    check([37, 38, 43], &[(NAT, |rig| unexpected(rig, Pass))]);
    check([37, 38, 43], &[(STRICT, |rig| unexpected(rig, Drop(R::Filtered)))]);
    check([37, 38, 43], &[(FIREWALL, |rig| unexpected(rig, Drop(R::TcpMidstream)))]);
}

/// Bad input 43: the FIN that overtook its SYN leaves nothing that is in the SYN's way.
#[test]
fn bad_input_43_a_connection_opens_behind_its_own_fin() {
    let mut rig = Rig::new(FIREWALL);
    let new = Endpoint { port: 1001, ..HOST };
    let segment = |flags| PacketBuilder::tcp(new, WEB).flags(flags).seq(5).build();
    assert_eq!(rig.send(OUT, segment(FIN | ACK)).dropped, [(0, DropReason::TcpMidstream)]);
    let ends = rig.send(OUT, segment(SYN));
    let external = ends.left[0].2.tuple.source;
    let answer = PacketBuilder::tcp(WEB, external).flags(SYN | ACK).seq(9).ack(6).build();
    assert_eq!(rig.send(IN, answer).left.len(), 1);
    assert_eq!(rig.send(OUT, segment(ACK)).left.len(), 1);
    assert_eq!(rig.send(OUT, segment(FIN | ACK)).left.len(), 1);
    rig.goes_on();
}

/// Bad input 33: what is dropped keeps nothing alive.
#[test]
fn bad_input_33_a_bad_checksum_refreshes_nothing() {
    let after = |s: u64| Time(NOW.0 + s * 1_000_000_000);
    for spoils in [false, true] {
        let mut rig = Rig::new(FIREWALL);
        let question = rig.datagram(OUT).build();
        let frame = if spoils { edited(question, &[(L4 + 8, b'A')]) } else { question };
        let ends = send_at(&mut rig.pipe, after(200), &[(OUT, frame)]);
        assert_eq!(ends.dropped.is_empty(), !spoils, "{:?}", ends.dropped);
        rig.pipe.on_completions(after(310), &mut Ends::default());
        // From then on it is only alive if it was refreshed.
        let answer = rig.datagram(IN).build();
        let ends = send_at(&mut rig.pipe, after(310), &[(IN, answer)]);
        let expected = if spoils { vec![(0, DropReason::NoMapping)] } else { vec![] };
        assert_eq!(ends.dropped, expected, "spoils: {spoils}");
    }
}

/// Bad input 34: a reset passes, whatever its number, and ends nothing: what it is about lives for
/// four minutes on (RFC 7857 section 2), and a mapping as long as ever once its inside end sends
/// again. Numbers are not looked at (docs/bad-inputs.md).
#[test]
fn bad_input_34_no_reset_ends_anything_within_four_minutes() {
    let after = |s: u64| Time(NOW.0 + s * 1_000_000_000);
    let upkeep = |rig: &mut Rig, s| {
        while rig.pipe.on_completions(after(s), &mut Ends::default()) > 0 {}
    };
    // 0; in the window; all but exact; exact.
    for sequence in [0, 6000, 4999, 5000] {
        for chain in [NAT, FIREWALL] {
            let mut rig = Rig::new(chain);
            let reset = rig.segment(IN).flags(RST).seq(sequence).build();
            assert_eq!(rig.send(IN, reset).left.len(), 1, "RFC 7857: it is translated");
            upkeep(&mut rig, 50);
            let data = rig.segment(IN).payload(b"data").build();
            let ends = send_at(&mut rig.pipe, after(230), &[(IN, data)]);
            assert_eq!(ends.left.len(), 1, "{sequence}: {:?}", ends.dropped);
            let answer = rig.segment(OUT).build();
            let ends = send_at(&mut rig.pipe, after(230), &[(OUT, answer)]);
            assert_eq!(ends.left[0].2.tuple.source, rig.tcp, "{sequence}");
        }
        // The connection lives, so it was none of its own.
        let mut rig = Rig::new(NAT);
        let reset = rig.segment(IN).flags(RST).seq(sequence).build();
        assert_eq!(rig.send(IN, reset).left.len(), 1);
        assert_eq!(rig.send(OUT, rig.segment(OUT).build()).left.len(), 1);
        (1..15).for_each(|minutes| upkeep(&mut rig, minutes * 60));
        let data = rig.segment(IN).payload(b"data").build();
        let ends = send_at(&mut rig.pipe, after(900), &[(IN, data)]);
        assert_eq!(ends.left.len(), 1, "{sequence}: {:?}", ends.dropped);
    }
}

/// Bad input 39: both ends open at once; and a server that answers a SYN with an ACK and a SYN of
/// its own. Both are TCP (RFC 5382 REQ-2, REQ-2a), and make no more than a connection does.
#[test]
fn bad_input_39_simultaneous_opens_and_split_handshakes() {
    let openings: [(&str, &[(Side, u8)]); 2] = [
        ("simultaneous", &[(OUT, SYN), (IN, SYN), (OUT, SYN | ACK), (IN, SYN | ACK), (OUT, ACK)]),
        ("split", &[(OUT, SYN), (IN, ACK), (IN, SYN), (OUT, SYN | ACK), (IN, ACK), (OUT, ACK)]),
    ];
    for (what, segments) in openings {
        let mut rig = Rig::new(FIREWALL);
        let (entries, live, _) = rig.picture();
        let new = Endpoint { port: 1001, ..HOST };
        let mut external = NOBODY;
        for (side, flags) in segments {
            let (from, to) = if *side == OUT { (new, WEB) } else { (WEB, external) };
            let segment = PacketBuilder::tcp(from, to).flags(*flags).seq(7).ack(8).build();
            let ends = rig.send(*side, segment);
            assert!(ends.dropped.is_empty(), "{what}: {:?}", ends.dropped);
            if *side == OUT {
                external = ends.left[0].2.tuple.source;
            }
        }
        let (entries_now, live_now, _) = rig.picture();
        assert_eq!((entries_now, live_now), (entries + 3, live + 1), "{what}");
        rig.goes_on();
    }
}

/// Bad input 40: a SYN with data opens a connection like any other and is not answered; one that no
/// buffer holds is no packet. In fragments it is a datagram in fragments.
#[test]
fn bad_input_40_syns_with_data() {
    let mut rig = Rig::new(NAT);
    let syn = |port, bytes| {
        let from = Endpoint { port, ..HOST };
        PacketBuilder::tcp(from, WEB).flags(SYN).payload(&vec![1; bytes]).build()
    };
    let (entries, live, _) = rig.picture();
    let ends = rig.send(OUT, syn(1001, 1400));
    assert_eq!((ends.left.len(), ends.left[0].1), (1, IN));
    let (entries_now, live_now, _) = rig.picture();
    assert_eq!((entries_now, live_now), (entries + 2, live + 1));
    let large = syn(1002, 60_000);
    assert_eq!(parse(&large), Err(DropReason::FrameTooLong));
    assert!(large.len() > FRAME_BYTES && Frame::new().copy_from(&large).is_err());
}

/// Sends many frames in bursts.
fn flood(rig: &mut Rig, side: Side, frames: impl Iterator<Item = Vec<u8>>) -> (usize, usize) {
    let (mut left, mut dropped) = (0, 0);
    let mut frames = frames.peekable();
    while frames.peek().is_some() {
        let burst: Vec<_> = frames.by_ref().take(32).map(|frame| (side, frame)).collect();
        let ends = send(&mut rig.pipe, &burst);
        assert_eq!(ends.left.len() + ends.dropped.len(), burst.len(), "each ends once");
        left += ends.left.len();
        dropped += ends.dropped.len();
    }
    (left, dropped)
}

/// The how-many-th of many hosts in a /8.
fn one_of_many(net: u8, number: u32) -> Endpoint {
    let [_, b, c, d] = (number + 256).to_be_bytes();
    Endpoint::v4([net, b, c, d], 2000)
}

/// Bad input 44 from outside: ten times what the table holds, in SYNs and in ACKs, to nobody and to
/// a mapping. None makes state.
#[test]
fn bad_input_44_floods_from_outside_make_no_state() {
    const COUNT: usize = 10_000;
    for (chain, reason) in
        [(NAT, None), (STRICT, Some(DropReason::Filtered)), (FIREWALL, Some(DropReason::NoState))]
    {
        let mut rig = Rig::new(chain);
        let (picture, before) = (rig.picture(), rig.counts());
        let segment = |to, flags| {
            move |number| {
                PacketBuilder::tcp(one_of_many(100, number), to).flags(flags).seq(number).build()
            }
        };
        for flags in [SYN, ACK] {
            let sent = flood(&mut rig, IN, (0..COUNT as u32).map(segment(NOBODY, flags)));
            assert_eq!(sent, (0, COUNT));
        }
        let mapping = rig.tcp;
        let to_mapping = flood(&mut rig, IN, (0..COUNT as u32).map(segment(mapping, SYN)));
        let counts = rig.counts();
        let drops = |reason| counts.drops(reason) - before.drops(reason);
        assert_eq!(drops(DropReason::NoMapping), 2 * COUNT as u64);
        match reason {
            // The host has chosen to be reachable, and answers or not.
            None => assert_eq!(to_mapping, (COUNT, 0)),
            Some(reason) => {
                assert_eq!((to_mapping, drops(reason)), ((0, COUNT), COUNT as u64));
            }
        }
        assert_eq!(rig.picture(), picture, "{chain}");
        rig.goes_on();
    }
}

/// Bad input 44 from inside, in ten times as many names as the table has places: the new are
/// refused once it is full, and the old go on. Where it is known who is inside, none gets that far.
#[test]
fn bad_input_44_a_flood_from_inside_is_refused_when_the_table_is_full() {
    const COUNT: usize = 10_000;
    let syns =
        |number| PacketBuilder::tcp(one_of_many(11, number), WEB).flags(SYN).seq(number).build();
    let mut rig = Rig::new(NAT);
    let (left, dropped) = flood(&mut rig, OUT, (0..COUNT as u32).map(syns));
    assert_eq!(rig.counts().drops(DropReason::TableFull), dropped as u64);
    let (entries, live, _) = rig.picture();
    let capacity = rig.pipe.access_mut().machine().table_stats().capacity;
    assert!(dropped > COUNT * 9 / 10 && entries <= capacity, "{entries} entries, {left} left");
    assert_eq!((entries, live), (2 * live as u32, left as u64 + 3), "nothing of the refused");
    rig.goes_on();
    let mut rig = Rig::new(GUARDED);
    let picture = rig.picture();
    assert_eq!(flood(&mut rig, OUT, (0..COUNT as u32).map(syns)), (0, COUNT));
    assert_eq!(rig.counts().drops(DropReason::SpoofedSource), COUNT as u64);
    assert_eq!(rig.picture(), picture);
    rig.goes_on();
}

/// Bad input 44, a byte at a time: nothing is kept of segments.
#[test]
fn bad_input_44_a_slow_stream_of_single_bytes_keeps_nothing() {
    const COUNT: usize = 100_000;
    let mut rig = Rig::new(FIREWALL);
    let picture = rig.picture();
    let builder = rig.segment(OUT).payload(b"x");
    let bytes = (0..COUNT as u32).map(|number| builder.clone().seq(1000 + number).build());
    assert_eq!(flood(&mut rig, OUT, bytes), (COUNT, 0));
    assert_eq!(rig.picture(), picture);
    assert_eq!(rig.pipe.parked(), 0);
}
