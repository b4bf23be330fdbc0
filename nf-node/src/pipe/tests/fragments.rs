//! Fragments in whole pipes, at one node and at several: every order, repetitions, kills, floods.
//! What leaves is put together here by other code, as whoever gets it would, and compared.

use super::nodes::{Dice, Nodes, SLOTS};
use crate::counters::Event;
use crate::nf::fragments::{LISTED_MAX, LISTS};
use crate::packet::cutter::cut;
use crate::packet::{PacketBuilder, Parsed, Transport, parse, parse_fragment, tcp};
use crate::pipe::{EARLY_SHARE, FRAGMENT_SHARE};
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::{Address, Endpoint};
use std::collections::BTreeMap;

const NAT: &str = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
const BOTH: &str = "functions = [\"firewall\", \"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 53);

fn host(last: u8, port: u16) -> Endpoint {
    Endpoint::v4([10, 0, 0, last], port)
}

fn six(last: u8, port: u16) -> Endpoint {
    let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[15] = last;
    Endpoint { address: Address::from_octets(address), port }
}

/// A datagram in fragments, all but the last of so many units.
fn pieces(whole: &[u8], ident: u32, step: u16) -> Vec<Vec<u8>> {
    let cuts: Vec<u16> = (1..64).map(|number| number * step).collect();
    cut(whole, ident, &cuts)
}

fn question(from: Endpoint, ident: u16) -> Vec<u8> {
    PacketBuilder::udp(from, SERVER).ident(ident).payload(&[ident as u8; 400]).build()
}

/// Where bytes belong, whether they are the last, and what they are.
type Part = (usize, bool, Vec<u8>);

/// What whoever gets the fragments puts together, in an order that does not matter. A datagram of
/// which two fragments share bytes, and are not the same, is no datagram (RFC 5722).
#[derive(Default)]
struct Receiver {
    /// By ends, protocol and identification.
    datagrams: BTreeMap<Vec<u8>, Vec<Part>>,
    /// What comes before the payload in their first fragments.
    heads: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Receiver {
    /// Takes an untagged frame; gives the whole packet if this completes it.
    fn take(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let is_v4 = frame[12] == 8;
        let (name, offset, is_last, bytes, head) = if is_v4 {
            let header = usize::from(frame[14] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let word = u16::from_be_bytes([frame[20], frame[21]]);
            let name = [&frame[18..20], &frame[23..24], &frame[26..34]].concat();
            let offset = usize::from(word & 0x1fff) * 8;
            let bytes = frame[14 + header..14 + total].to_vec();
            (name, offset, word & 0x2000 == 0, bytes, frame[..14 + header].to_vec())
        } else {
            assert_eq!(frame[20], 44, "a fragment header");
            let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            let word = u16::from_be_bytes([frame[56], frame[57]]);
            let name = [&frame[22..54], &frame[58..62]].concat();
            let mut head = frame[..54].to_vec();
            head[20] = frame[54];
            (name, usize::from(word & 0xfff8), word & 1 == 0, frame[62..54 + length].to_vec(), head)
        };
        if offset == 0 {
            self.heads.insert(name.clone(), head);
        }
        let parts = self.datagrams.entry(name.clone()).or_default();
        let part = (offset, is_last, bytes);
        if !parts.contains(&part) {
            parts.push(part);
        }
        parts.sort();
        let mut payload = vec![];
        let mut ended = false;
        for (offset, is_last, bytes) in parts {
            if *offset != payload.len() || ended {
                return None;
            }
            payload.extend_from_slice(bytes);
            ended = *is_last;
        }
        if !ended {
            return None;
        }
        let mut whole = self.heads.get(&name)?.clone();
        let length = payload.len() as u16;
        if is_v4 {
            let total = (whole.len() - 14) as u16 + length;
            let mut packet = crate::packet::ipv4::Ipv4Packet::new_unchecked(&mut whole[14..]);
            packet.set_total_len(total);
            packet.set_flags_offset(0);
            packet.fill_checksum();
        } else {
            whole[18..20].copy_from_slice(&length.to_be_bytes());
        }
        whole.extend_from_slice(&payload);
        self.datagrams.remove(&name);
        Some(whole)
    }
}

/// All that left, put together: by tag of the fragment that completed it.
fn received(nodes: &Nodes) -> BTreeMap<u64, (Side, Vec<u8>)> {
    let mut receiver = Receiver::default();
    let mut wholes = BTreeMap::new();
    for tag in &nodes.ends.order {
        let (side, frame) = &nodes.ends.left[tag];
        if let Some(whole) = receiver.take(frame) {
            wholes.insert(*tag, (*side, whole));
        }
    }
    wholes
}

/// The one datagram that was received; its checksums are right.
fn received_one(nodes: &Nodes) -> (Side, Parsed, Vec<u8>) {
    let wholes = received(nodes);
    assert_eq!(wholes.len(), 1, "{:?}", nodes.ends.dropped);
    let (side, whole) = wholes.into_values().next().unwrap();
    let parsed = parse(&whole).expect("what was put together is right, its checksum too");
    (side, parsed, whole[usize::from(parsed.transport_at) + 8..].to_vec())
}

/// VPP's frag_in_order and frag_out_of_order, as every permutation at one node and at three.
/// R4787-14.
#[test]
fn fragments_pass_in_every_order_at_one_node_and_at_three() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (count, late) in [(1, 0), (3, 0), (3, 50)] {
        for order in orders {
            for from in [host(1, 1000), six(1, 1000)] {
                let to = if from.ipv4().is_some() { SERVER } else { six(9, 53) };
                let whole = PacketBuilder::udp(from, to).ident(5).payload(&[7; 400]).build();
                let parts = pieces(&whole, 5, 20);
                assert_eq!(parts.len(), 3);
                let mut nodes = Nodes::new(count, NAT, late, 64);
                for (at, number) in order.into_iter().enumerate() {
                    nodes.send(at % count, number as u64, (Side::Inside, &parts[number]));
                }
                let what = format!("{order:?} at {count} nodes");
                if count == 1 {
                    assert_eq!(nodes.parked(), 0, "{what}: nobody waits longer than it has to");
                }
                nodes.run_dry();
                let (side, parsed, payload) = received_one(&nodes);
                assert_eq!((side, parsed.tuple.destination), (Side::Outside, to), "{what}");
                assert_eq!(payload, [7; 400], "{what}");
                assert_eq!(parsed.tuple.source == from, from.ipv4().is_none(), "{what}");
                let early = order.iter().take_while(|number| **number != 0).count();
                assert_eq!(nodes.counters().event(Event::FragmentsEarly), early as u64, "{what}");
            }
        }
    }
}

/// VPP's frag_forwarding, and answers through a mapping: from outside to a static mapping and to a
/// dynamic one.
#[test]
fn fragments_from_outside_find_their_host() {
    let text = format!("{NAT}\n[[nat.static]]\nexternal = \"203.0.113.9\"\ninside = \"10.0.0.1\"");
    let mut nodes = Nodes::new(2, &text, 30, 64);
    nodes.send(0, 0, (Side::Inside, &question(host(2, 2000), 1)));
    nodes.run_dry();
    let external = parse(&nodes.ends.left[&0].1).unwrap().tuple.source;
    let service = Endpoint::v4([203, 0, 113, 9], 80);
    for (at, (to, behind)) in [(external, host(2, 2000)), (service, host(1, 80))].iter().enumerate()
    {
        let whole = PacketBuilder::udp(SERVER, *to).ident(9).payload(&[3; 300]).build();
        let mut parts = pieces(&whole, 0, 10);
        parts.reverse();
        let first = 10 + 10 * at as u64;
        for (tag, part) in (first..).zip(&parts) {
            nodes.push(tag as usize % 2, tag, (Side::Outside, part));
        }
        nodes.run_dry();
        let mut receiver = Receiver::default();
        let wholes: Vec<_> = (first..first + parts.len() as u64)
            .filter_map(|tag| receiver.take(&nodes.ends.left[&tag].1))
            .collect();
        let [whole] = &wholes[..] else { panic!("one datagram") };
        assert_eq!(parse(whole).unwrap().tuple.destination, *behind);
        assert!((first..first + 4).all(|tag| nodes.ends.left[&tag].0 == Side::Inside));
    }
}

/// VPP's reass_hairpinning. R4787-9.
#[test]
fn fragments_between_two_hosts_behind_the_nat_go_round() {
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut nodes = Nodes::new(2, NAT, 30, 64);
        nodes.send(0, 100, (Side::Inside, &question(host(1, 1000), 1)));
        nodes.run_dry();
        let external = parse(&nodes.ends.left[&100].1).unwrap().tuple.source;
        nodes.ends.order.clear();
        let whole = PacketBuilder::udp(host(2, 2000), external).ident(3).payload(&[4; 400]).build();
        let parts = pieces(&whole, 0, 20);
        for number in order {
            nodes.push(number % 2, number as u64, (Side::Inside, &parts[number]));
        }
        nodes.run_dry();
        let (side, parsed, payload) = received_one(&nodes);
        assert_eq!((side, parsed.tuple.destination), (Side::Inside, host(1, 1000)));
        let source = parsed.tuple.source.ipv4().unwrap().octets();
        assert_eq!(source[..2], [198, 19], "R4787-9a");
        assert_eq!(payload, [4; 400]);
    }
}

/// Bad input 24.
#[test]
fn one_identification_of_two_subscribers_behind_one_address_becomes_two() {
    let text = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.1/32\"]";
    let mut nodes = Nodes::new(2, text, 0, 64);
    let hosts = [host(1, 1000), host(2, 1000)];
    let parts = hosts.map(|from| pieces(&question(from, 77), 0, 20));
    // As badly mixed as can be.
    let mut tag = 0;
    for number in [2, 0, 1] {
        for parts in &parts {
            nodes.push(tag as usize % 2, tag, (Side::Inside, &parts[number]));
            tag += 1;
        }
    }
    nodes.run_dry();
    let wholes = received(&nodes);
    assert_eq!(wholes.len(), 2, "{:?}", nodes.ends.dropped);
    let idents: Vec<&[u8]> = wholes.values().map(|(_, whole)| &whole[18..20]).collect();
    assert_ne!(idents[0], idents[1]);
    for (_, whole) in wholes.values() {
        let tuple = parse(whole).expect("bytes of one host only").tuple;
        assert_eq!(tuple.source.ipv4().unwrap().octets(), [198, 19, 0, 1]);
    }
}

/// Bad input 21: it makes no state, and waits no longer than it may.
#[test]
fn a_fragment_whose_first_never_comes_ends_after_its_time_and_leaves_nothing() {
    let mut nodes = Nodes::new(1, NAT, 0, 64);
    let parts = pieces(&question(host(1, 1000), 1), 0, 20);
    nodes.send(0, 0, (Side::Inside, &parts[2]));
    let began = nodes.now();
    assert_eq!((nodes.parked(), nodes.entries()), (1, 0));
    nodes.run_dry();
    assert_eq!(nodes.ends.dropped[&0], DropReason::FragmentNoFirst);
    let waited_ms = nodes.now().since_ns(began) / 1_000_000;
    assert!((3000..=4500).contains(&waited_ms), "{waited_ms} ms");
    assert_eq!(nodes.entries(), 0);
    // A first one that the chain refuses opens the way for nobody.
    let syn_ack = PacketBuilder::tcp(host(1, 1), SERVER).payload(&[1; 400]).build();
    for (tag, part) in (1..).zip(pieces(&syn_ack, 0, 20)) {
        nodes.send(0, tag, (Side::Inside, &part));
    }
    nodes.run_dry();
    assert_eq!(nodes.ends.dropped[&1], DropReason::TcpMidstream);
    assert_eq!(nodes.ends.dropped[&2], DropReason::FragmentNoFirst);
    assert_eq!(nodes.entries(), 0);
}

/// Bad input 23, R4787-14a: the places for those that wait are used up, and unfragmented packets,
/// and fragments in order, never notice.
#[test]
fn r4787_14a_a_flood_of_fragments_takes_no_more_than_its_share() {
    let places = 64;
    let mut nodes = Nodes::new(1, BOTH, 0, places);
    let attacker = host(66, 1000);
    let (mut tag, mut refused) = (0, 0);
    let mut send = |nodes: &mut Nodes, frame: &[u8]| {
        tag += 1;
        nodes.send(0, tag, (Side::Inside, frame));
        tag
    };
    for ident in 0..=u16::MAX {
        let later = &pieces(&question(attacker, ident), 0, 20)[1];
        let flood = send(&mut nodes, later);
        refused += u64::from(nodes.ends.dropped.get(&flood) == Some(&DropReason::FragmentsWaiting));
        assert!(nodes.parked() <= places / EARLY_SHARE);
        if ident % 4096 == 0 {
            let plain = PacketBuilder::udp(host(1, 1000), SERVER).build();
            let plain = send(&mut nodes, &plain);
            assert!(nodes.ends.left.contains_key(&plain), "{:?}", nodes.ends.dropped.get(&plain));
            for part in pieces(&question(host(1, 1000), ident), 0, 20) {
                let part = send(&mut nodes, &part);
                assert!(nodes.ends.left.contains_key(&part), "{:?}", nodes.ends.dropped.get(&part));
            }
        }
    }
    assert_eq!(refused, 65_536 - (places / EARLY_SHARE) as u64);
    // First ones that may pass make records: so many, whatever they say.
    let before = nodes.entries();
    for ident in 0..10_000 {
        let first = &pieces(&question(attacker, ident), 0, 20)[0];
        let first = send(&mut nodes, first);
        assert!(nodes.ends.left.contains_key(&first));
    }
    let records = nodes.entries() - before;
    let records_max = u64::from(LISTS) * (LISTED_MAX as u64 + 1);
    assert!(records <= records_max + 3, "{records}, its flow and mapping among them");
    assert!(u64::from(SLOTS) * records_max < 20_000, "all slots' fit into the table");
}

#[test]
fn records_end_after_their_time() {
    let mut nodes = Nodes::new(1, NAT, 0, 64);
    let parts = pieces(&question(host(1, 1000), 1), 0, 20);
    nodes.send(0, 0, (Side::Inside, &parts[0]));
    assert_eq!(nodes.entries(), 4, "a mapping both ways, the record, and its list");
    nodes.wait_ns(14_000_000_000);
    assert_eq!(nodes.entries(), 4);
    nodes.wait_ns(6_000_000_000);
    assert_eq!(nodes.entries(), 3);
    nodes.send(0, 1, (Side::Inside, &parts[1]));
    nodes.run_dry();
    assert_eq!(nodes.ends.dropped[&1], DropReason::FragmentNoFirst);
}

/// What waits for its first fragment does not hold up its flow, and its flow keeps its order.
#[test]
fn packets_of_the_flow_stay_behind_its_first_fragment_and_not_behind_later_ones() {
    let mut nodes = Nodes::new(1, NAT, 0, 64);
    let plain = PacketBuilder::udp(host(1, 1000), SERVER).build();
    let parts = pieces(&question(host(1, 1000), 1), 0, 20);
    nodes.send(0, 0, (Side::Inside, &plain));
    nodes.send(0, 1, (Side::Inside, &parts[1]));
    nodes.send(0, 2, (Side::Inside, &plain));
    assert_eq!(nodes.ends.order, [0, 2]);
    // The first waits for its commit; what comes behind it in its flow for the first.
    nodes.push(0, 3, (Side::Inside, &parts[0]));
    nodes.push(0, 4, (Side::Inside, &plain));
    nodes.push(0, 5, (Side::Inside, &parts[2]));
    assert_eq!(nodes.ends.order, [0, 2]);
    nodes.settle();
    assert_eq!(nodes.ends.order[..4], [0, 2, 3, 4]);
    assert_eq!(nodes.ends.order.len(), 6);
}

/// Bad input 19 in a whole pipe: what was overlapped never becomes whole.
#[test]
fn a_datagram_that_was_overlapped_is_never_complete() {
    for count in [1, 3] {
        for from in [host(1, 1000), six(1, 1000)] {
            let to = if from.ipv4().is_some() { SERVER } else { six(9, 53) };
            let whole = PacketBuilder::udp(from, to).ident(5).payload(&[7; 800]).build();
            let parts = pieces(&whole, 5, 20);
            let forged = PacketBuilder::udp(from, to).ident(5).payload(&[8; 800]).build();
            let forged = cut(&forged, 5, &[30, 50]);
            let mut nodes = Nodes::new(count, BOTH, 0, 64);
            let sent =
                [&parts[0], &parts[1], &parts[2], &forged[1], &parts[3], &parts[4], &parts[5]];
            for (tag, part) in (0u64..).zip(sent) {
                nodes.send(tag as usize % count, tag, (Side::Inside, part));
                nodes.run_dry();
            }
            assert_eq!(nodes.ends.order, [0, 1, 2]);
            assert!(nodes.ends.dropped.values().all(|why| *why == DropReason::FragmentOverlap));
            assert_eq!(nodes.ends.dropped.len(), 4);
            assert!(received(&nodes).is_empty());
        }
    }
}

/// One random datagram and the fragments that are sent of it.
struct Sent {
    from: Endpoint,
    to: Endpoint,
    payload: Vec<u8>,
    parts: Vec<Vec<u8>>,
    is_tcp: bool,
}

fn random_datagram(number: u32, dice: &mut Dice) -> Sent {
    let (is_v6, is_tcp, port) = (dice.roll(4) == 0, dice.roll(4) == 0, 1000 + number as u16);
    let from =
        if is_v6 { six(1 + dice.roll(5) as u8, port) } else { host(1 + dice.roll(5) as u8, port) };
    let to = if is_v6 { six(99, 53) } else { SERVER };
    let length = 100 + dice.roll(1300);
    let payload: Vec<u8> = (0..length).map(|_| dice.roll(256) as u8).collect();
    let builder = if is_tcp {
        PacketBuilder::tcp(from, to).flags(tcp::flags::SYN)
    } else {
        PacketBuilder::udp(from, to)
    };
    let whole = builder.ident(number as u16).payload(&payload).build();
    let parts = if dice.roll(2) == 0 {
        pieces(&whole, number, 3 + dice.roll(40) as u16)
    } else {
        // As many irregular pieces as a record holds, and the first.
        let mut cuts: Vec<u16> = (0..6).map(|_| 3 + dice.roll(length / 8) as u16).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cut(&whole, number, &cuts)
    };
    Sent { from, to, payload, parts, is_tcp }
}

/// P4, R4787-14, bad input 26: random datagrams, cut anywhere, mixed, repeated, at random nodes of
/// which some die with what is in them: each comes out whole, as its flow is translated.
#[test]
fn random_datagrams_in_pieces_come_out_whole_whatever_happens() {
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let count = 1 + dice.roll(3) as usize;
        let mut nodes = Nodes::new(count, BOTH, [0, 30, 70][seed as usize % 3], 512);
        let sent: Vec<Sent> = (0..20).map(|number| random_datagram(number, &mut dice)).collect();
        let mut packets: Vec<(usize, Vec<u8>)> = vec![];
        for (number, datagram) in sent.iter().enumerate() {
            for part in datagram.parts.iter().filter(|part| parse_fragment(part).is_ok()) {
                for _ in 0..1 + dice.roll(8) / 7 {
                    packets.push((number, part.clone()));
                }
            }
        }
        if dice.roll(3) > 0 {
            dice.shuffle(&mut packets);
        }
        for (tag, (_, part)) in (0u64..).zip(&packets) {
            nodes.push(dice.roll(count as u64) as usize, tag, (Side::Inside, part));
            match dice.roll(30) {
                0 => nodes.kill(dice.roll(count as u64) as usize),
                1..=9 => nodes.settle(),
                10 => nodes.wait_ns(3_000_000),
                _ => {}
            }
        }
        nodes.run_dry();
        let mut mappings = BTreeMap::new();
        let wholes: Vec<(usize, Parsed, Vec<u8>)> = received(&nodes)
            .into_iter()
            .map(|(tag, (side, whole))| {
                assert_eq!(side, Side::Outside);
                let parsed = parse(&whole).expect("it is right, its checksum too");
                (packets[tag as usize].0, parsed, whole)
            })
            .collect();
        for (number, datagram) in sent.iter().enumerate() {
            if datagram.parts.len() < 2 {
                continue;
            }
            let mut found = wholes.iter().filter(|(of, ..)| *of == number);
            let (_, parsed, whole) = found.next().unwrap_or_else(|| {
                panic!("seed {seed}: {number} is not whole: {:?}", nodes.ends.dropped)
            });
            assert_eq!(parsed.tuple.destination, datagram.to);
            let header = if datagram.is_tcp { 20 } else { 8 };
            assert_eq!(whole[usize::from(parsed.transport_at) + header..], datagram.payload);
            assert_eq!(matches!(parsed.transport, Transport::Tcp { .. }), datagram.is_tcp);
            if datagram.from.ipv4().is_some() {
                let external = (parsed.tuple.protocol, parsed.tuple.source);
                assert_eq!(*mappings.entry(external).or_insert(datagram.from), datagram.from);
                assert_ne!(parsed.tuple.source, datagram.from);
            } else {
                assert_eq!(parsed.tuple.source, datagram.from);
            }
        }
        assert!(nodes.ends.dropped.is_empty(), "seed {seed}: {:?}", nodes.ends.dropped);
    }
}

/// The first fragment has had its answer from the store, and waits behind a later one whose own
/// never comes: it is not given up meanwhile, for it would be named when that one ends.
#[test]
fn a_first_fragment_behind_a_later_one_is_not_given_up_by_the_sweep() {
    let mut nodes = Nodes::new(1, NAT, 0, 64);
    let plain = PacketBuilder::udp(host(1, 1000), SERVER).build();
    nodes.send(0, 100, (Side::Inside, &plain));
    let parts = pieces(&question(host(1, 1000), 1), 0, 20);
    nodes.set_late(100);
    nodes.push(0, 0, (Side::Inside, &parts[0]));
    nodes.push(0, 1, (Side::Inside, &parts[1]));
    nodes.answer_only(0, 1);
    nodes.settle();
    assert_eq!(nodes.parked(), 2, "one for the store, one for the other");
    nodes.run_dry();
    assert_eq!(nodes.ends.dropped[&1], DropReason::StoreUnavailable);
    assert!(nodes.ends.left.contains_key(&0), "{:?}", nodes.ends.dropped);
}

/// R4787-14a: first fragments of one flow wait for each other's commits, and whole packets of
/// others find room all the same.
#[test]
fn r4787_14a_first_fragments_of_one_flow_leave_room_for_others() {
    let places = 64;
    let mut nodes = Nodes::new(1, NAT, 0, places);
    nodes.set_late(100);
    for ident in 0..2 * places as u16 {
        let first = &pieces(&question(host(66, 1000), ident), 0, 20)[0];
        nodes.push(0, u64::from(ident), (Side::Inside, first));
        assert!(nodes.parked() <= places / FRAGMENT_SHARE);
    }
    let reasons: Vec<_> = nodes.ends.dropped.values().collect();
    assert_eq!(reasons, vec![&DropReason::FragmentsWaiting; 2 * places - places / FRAGMENT_SHARE]);
    let plain = PacketBuilder::udp(host(1, 1000), SERVER).build();
    nodes.push(0, 1000, (Side::Inside, &plain));
    nodes.run_dry();
    assert!(nodes.ends.left.contains_key(&1000), "{:?}", nodes.ends.dropped.get(&1000));
    assert_eq!(nodes.ends.left.len(), places / FRAGMENT_SHARE + 1, "and those that had room");
}

#[test]
fn a_record_that_is_kept_alive_stays_in_a_list() {
    let mut nodes = Nodes::new(1, NAT, 0, 64);
    let whole = PacketBuilder::udp(host(1, 1000), SERVER).payload(&[1; 1000]).build();
    let parts = pieces(&whole, 0, 2);
    nodes.send(0, 0, (Side::Inside, &parts[0]));
    // A mapping both ways, the record, and its list; packets keep the mapping.
    let plain = PacketBuilder::udp(host(1, 1000), SERVER).build();
    for (number, part) in parts[1..40].iter().enumerate() {
        nodes.wait_ns(10_000_000_000);
        nodes.send(0, 1000 + number as u64, (Side::Inside, &plain));
        nodes.send(0, 1 + number as u64, (Side::Inside, part));
        assert_eq!(nodes.entries(), 4, "after {} s", 10 * (number + 1));
    }
}

/// Later fragments could not follow through a NAT64: none waits for that, and none makes state.
#[test]
fn fragments_to_a_nat64_end_at_once_and_make_no_state() {
    let text = "functions = [\"nat64\"]\n[nat64]\naddresses = [\"198.19.0.0/28\"]";
    let mut nodes = Nodes::new(1, text, 0, 64);
    let server = Endpoint {
        address: Address::from_octets([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]),
        port: 53,
    };
    let pool = Endpoint::v4([198, 19, 0, 3], 5000);
    let inside = PacketBuilder::udp(six(1, 1000), server).payload(&[1; 400]).build();
    let outside = PacketBuilder::udp(SERVER, pool).payload(&[1; 400]).build();
    let mut tag = 0;
    for (side, whole) in [(Side::Inside, &inside), (Side::Outside, &outside)] {
        for part in pieces(whole, 7, 20) {
            nodes.send(0, tag, (side, &part));
            assert_eq!(nodes.ends.dropped.get(&tag), Some(&DropReason::Fragment), "{side:?} {tag}");
            tag += 1;
        }
    }
    assert_eq!((nodes.parked(), nodes.entries()), (0, 0));
}
