//! Packets cut into fragments as a router on the way would (RFC 791 section 2.3, RFC 8200 section
//! 4.5), for tests, benchmarks and generated traffic. This allocates: it is not for the packet
//! path.

use crate::packet::ethernet;
use crate::packet::fragment::UNIT_BYTES;
use crate::packet::ipv4::{self, Ipv4Packet};
use crate::packet::ipv6::{self, Ipv6Packet};
use crate::packet::word::{set_u16, set_u32};

/// Bytes of an IPv6 fragment header.
const FRAGMENT_HEADER_BYTES: usize = 8;

/// The fragments of the whole packet in a frame, in order. `cuts` are where in its payload later
/// ones begin, in units of eight bytes, rising; those beyond its end are left out. The
/// identification is that of an IPv6 datagram; an IPv4 packet has its own.
///
/// # Panics
/// If the frame holds no whole IP packet without extension headers.
#[must_use]
pub fn cut(frame: &[u8], ident: u32, cuts: &[u16]) -> Vec<Vec<u8>> {
    let (ether_type, ip) = ethernet::network_header(frame).expect("an Ethernet frame");
    let (header_len, end) = if ether_type == ethernet::TYPE_IPV4 {
        let packet = Ipv4Packet::new_checked(&frame[ip..]).expect("an IPv4 packet");
        (packet.header_len(), ip + packet.total_len())
    } else {
        let packet = Ipv6Packet::new_checked(&frame[ip..]).expect("an IPv6 packet");
        (ipv6::HEADER_BYTES, ip + packet.total_len())
    };
    let (head, payload) = (&frame[..ip + header_len], &frame[ip + header_len..end]);
    let inside = cuts.iter().map(|cut| usize::from(*cut) * UNIT_BYTES).filter(|at| {
        assert!(*at > 0, "a fragment has bytes");
        *at < payload.len()
    });
    let starts: Vec<usize> = core::iter::once(0).chain(inside).collect();
    let ends = starts[1..].iter().copied().chain([payload.len()]);
    let pieces = starts.iter().copied().zip(ends);
    let piece = |(from, to): (usize, usize)| {
        assert!(from < to, "cuts rise");
        let (offset, more) = (from / UNIT_BYTES, to < payload.len());
        let word = Word { offset: offset as u16, more };
        if ether_type == ethernet::TYPE_IPV4 {
            piece_v4(head, ip, &payload[from..to], word)
        } else {
            piece_v6(head, ip, &payload[from..to], word, ident)
        }
    };
    pieces.map(piece).collect()
}

/// Where a fragment belongs, and whether more follow.
#[derive(Clone, Copy)]
struct Word {
    offset: u16,
    more: bool,
}

fn piece_v4(head: &[u8], ip: usize, bytes: &[u8], word: Word) -> Vec<u8> {
    let mut frame = head.to_vec();
    let header_len = head.len() - ip;
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[ip..]);
    let total = u16::try_from(header_len + bytes.len()).expect("at most 65,535");
    packet.set_total_len(total);
    packet.set_flags_offset(word.offset | if word.more { ipv4::MORE_FRAGMENTS } else { 0 });
    packet.fill_checksum();
    frame.extend_from_slice(bytes);
    frame
}

fn piece_v6(head: &[u8], ip: usize, bytes: &[u8], word: Word, ident: u32) -> Vec<u8> {
    let mut frame = head.to_vec();
    let mut packet = Ipv6Packet::new_unchecked(&mut frame[ip..]);
    let next = packet.next_header();
    packet.set_next_header(ipv6::FRAGMENT);
    let length = u16::try_from(FRAGMENT_HEADER_BYTES + bytes.len()).expect("at most 65,535");
    packet.set_payload_len(length);
    let mut header = [next, 0, 0, 0, 0, 0, 0, 0];
    set_u16(&mut header, 2, word.offset << 3 | u16::from(word.more));
    set_u32(&mut header, 4, ident);
    frame.extend_from_slice(&header);
    frame.extend_from_slice(bytes);
    frame
}
