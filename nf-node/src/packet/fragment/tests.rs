//! Fragments, well-formed and not: bad inputs 17, 18, 20, 22, 25 and 28.

use super::*;
use crate::packet::cutter::cut;
use crate::packet::ipv4::Ipv4Packet;
use crate::packet::tcp::flags;
use crate::packet::word::set_u16;
use crate::packet::{PacketBuilder, parse};
use nearstate_store::Address;

fn v4(last: u8, port: u16) -> Endpoint {
    Endpoint::v4([198, 51, 100, last], port)
}

fn v6(last: u8, port: u16) -> Endpoint {
    let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[15] = last;
    Endpoint { address: Address::from_octets(address), port }
}

fn udp(a: Endpoint, b: Endpoint) -> Vec<u8> {
    PacketBuilder::udp(a, b).ident(77).payload(&[5; 100]).build()
}

/// A fragment with another word of flags and offset.
fn with_word(frame: &[u8], word: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
    packet.set_flags_offset(word);
    packet.fill_checksum();
    frame
}

const MORE: u16 = ipv4::MORE_FRAGMENTS;

#[test]
fn the_pieces_of_a_datagram_name_it_and_where_they_belong() {
    for (a, b) in [(v4(1, 1000), v4(2, 53)), (v6(1, 1000), v6(2, 53))] {
        let whole = udp(a, b);
        let parts = cut(&whole, 77, &[2, 5]);
        let found: Vec<Fragment> =
            parts.iter().map(|part| parse_fragment(part).expect("a fragment")).collect();
        let pieces: Vec<_> = found.iter().map(|f| (f.piece.from, f.piece.bytes)).collect();
        assert_eq!(pieces, [(0, 16), (2, 24), (5, 68)]);
        assert_eq!(found.iter().map(|f| f.piece.to()).collect::<Vec<_>>(), [2, 5, 14]);
        assert_eq!((found[2].piece.end_bytes(), found[2].piece.is_last), (108, true));
        assert!(found.iter().all(|f| f.datagram == found[0].datagram && f.datagram.ident == 77));
        assert_eq!(found[0].parsed.tuple, parse(&whole).unwrap().tuple);
        assert_eq!(found[0].parsed.transport, Transport::Udp);
        let portless = |end: Endpoint| Endpoint { port: 0, ..end };
        for later in &found[1..] {
            assert_eq!(later.parsed.transport, Transport::LaterFragment);
            assert_eq!(later.parsed.tuple, later.datagram.tuple);
            let FlowTuple { source, destination, .. } = later.parsed.tuple;
            assert_eq!((source, destination), (portless(a), portless(b)));
        }
        for part in &parts {
            assert_eq!(parse(part), Err(DropReason::Fragment), "a whole packet is wanted there");
        }
        assert_eq!(parse_fragment(&whole), Err(DropReason::Fragment), "and a fragment here");
    }
}

/// Bad input 25: RFC 6946.
#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    let whole = udp(v6(1, 1000), v6(2, 53));
    let [atomic] = &cut(&whole, 9, &[])[..] else { panic!("one piece") };
    assert_eq!(atomic.len(), whole.len() + 8);
    assert_eq!(parse(atomic).unwrap().tuple, parse(&whole).unwrap().tuple);
    assert_eq!(parse_fragment(atomic), Err(DropReason::Fragment));
}

type Row = (&'static str, Vec<u8>, DropReason);

/// Bad inputs 17, 18, 20, 22 and 28.
#[test]
fn fragments_that_must_not_be_are_told_why() {
    let (a, b, c, d) = (v4(1, 1000), v4(2, 53), v6(1, 1000), v6(2, 53));
    let tcp = |a, b| PacketBuilder::tcp(a, b).flags(flags::SYN).payload(&[7; 64]).build();
    let optional = PacketBuilder::tcp(a, b).tcp_options(&[1; 8]).payload(&[7; 64]).build();
    let error = PacketBuilder::icmp_error(b, (3, 1), &udp(a, b)).build();
    let error_v6 = PacketBuilder::icmp_error(d, (1, 1), &udp(c, d)).build();
    let redirect = PacketBuilder::icmp(b, a, (5, 0, 0)).payload(&[7; 64]).build();
    let other = PacketBuilder::other(a, b, 132).payload(&[7; 64]).build();
    let piece = |whole: &[u8], cuts: &[u16], number: usize| cut(whole, 1, cuts)[number].clone();
    let later = piece(&udp(a, b), &[4], 1);
    let header_only = PacketBuilder::other(a, b, 17).build();
    let mut short_udp = udp(a, b);
    set_u16(&mut short_udp, 38, 7);
    let rows: Vec<Row> = vec![
        ("17: 8 bytes of TCP", piece(&tcp(a, b), &[1], 0), DropReason::FragmentTiny),
        ("17: 16 bytes of TCP", piece(&tcp(c, d), &[2], 0), DropReason::FragmentTiny),
        ("17: TCP options cut off", piece(&optional, &[3], 0), DropReason::FragmentTiny),
        ("18: TCP at offset 1", piece(&tcp(a, b), &[1], 1), DropReason::FragmentTcpOffset),
        ("18: the same, IPv6", piece(&tcp(c, d), &[1], 1), DropReason::FragmentTcpOffset),
        ("20: no multiple of 8", with_word(&later, MORE | 4), DropReason::FragmentLength),
        ("20: nothing in it", with_word(&header_only, 3), DropReason::FragmentLength),
        ("22: beyond 65,535", with_word(&later, 8191), DropReason::FragmentLength),
        ("22: one byte beyond", with_word(&later, 8180), DropReason::FragmentLength),
        ("28: an ICMP error", piece(&error, &[4], 0), DropReason::FragmentIcmpError),
        ("28: an ICMPv6 error", piece(&error_v6, &[4], 0), DropReason::FragmentIcmpError),
        ("a redirect", piece(&redirect, &[4], 0), DropReason::IcmpType),
        ("SCTP, first", piece(&other, &[4], 0), DropReason::UnknownProtocol),
        ("SCTP, later", piece(&other, &[4], 1), DropReason::UnknownProtocol),
        ("a UDP length of 7", piece(&short_udp, &[4], 0), DropReason::BadUdpHeader),
        ("to port 0", piece(&udp(a, v4(2, 0)), &[4], 0), DropReason::PortZero),
        ("to itself", piece(&udp(a, v4(1, 9)), &[4], 1), DropReason::MartianAddress),
    ];
    for (what, frame, reason) in rows {
        assert_eq!(parse_fragment(&frame).map(|f| f.piece), Err(reason), "{what}");
    }
    // Header, offset and its 76 bytes end at 65,528: the last place where it fits.
    assert_eq!(parse_fragment(&with_word(&later, 8179)).unwrap().piece.end_bytes(), 65_508);
}

#[test]
fn a_fragment_cut_anywhere_is_refused_and_never_read_beyond_its_end() {
    for (a, b) in [(v4(1, 1000), v4(2, 53)), (v6(1, 1000), v6(2, 53))] {
        for part in cut(&udp(a, b), 1, &[2, 5]) {
            for length in 0..part.len() {
                assert!(parse_fragment(&part[..length]).is_err(), "{length} bytes");
            }
        }
    }
}
