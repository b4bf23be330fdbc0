//! The NAT in a whole pipe, frame by frame: packets from inside to ends of its own, and ports that
//! are used up.

use super::nodes::Nodes;
use crate::baseline::{Baseline, BaselineConfig};
use crate::chain::Chain;
use crate::counters::Event;
use crate::frame::{Burst, Frame};
use crate::packet::{self, PacketBuilder, Parsed};
use crate::pipe::{Output, Pipe, PipeSettings, SteeredChain};
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::{Endpoint, Time};
use std::sync::Arc;

pub(super) const NOW: Time = Time(1_000_000_000);
const HOST: Endpoint = Endpoint::v4([10, 0, 0, 1], 1000);
const GUEST: Endpoint = Endpoint::v4([10, 0, 0, 2], 2000);
const WEB: Endpoint = Endpoint::v4([192, 0, 2, 1], 53);

#[derive(Default)]
pub(super) struct Ends {
    pub(super) left: Vec<(u64, Side, Parsed)>,
    /// The same, byte by byte.
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) dropped: Vec<(u64, DropReason)>,
}

impl Output for Ends {
    fn clock(&mut self) -> Time {
        NOW
    }

    fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
        // Parsing verifies all checksums.
        let parsed = packet::parse(frame.as_slice()).expect("what leaves is well-formed");
        self.left.push((frame.tag, frame.side, parsed));
        self.frames.push(frame.as_slice().to_vec());
        Ok(())
    }

    fn dropped(&mut self, frame: Frame, reason: DropReason) {
        self.dropped.push((frame.tag, reason));
    }
}

fn pipe(extra: &str, parked_max: usize) -> Pipe<Baseline> {
    let nat = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
    pipe_of(&format!("{nat}\n{extra}"), parked_max)
}

/// A pipe of this chain over a plain table.
pub(super) fn pipe_of(chain: &str, parked_max: usize) -> Pipe<Baseline> {
    pipe_in(chain, (64, 1000), parked_max)
}

/// The same with this many slots, and room for this many entries.
pub(super) fn pipe_in(
    chain: &str,
    (slots, capacity): (u32, u32),
    parked_max: usize,
) -> Pipe<Baseline> {
    let chain = Chain::new(&toml::from_str(chain).unwrap(), slots).unwrap();
    let baseline = Baseline::new(BaselineConfig {
        capacity,
        slots,
        pools: chain.pools().to_vec(),
        hash_key: 5,
        // A burst of new flows at once.
        pending_max: parked_max.max(16),
    });
    let settings = PipeSettings { client: 1, parked_max, seed: 1 };
    Pipe::new(SteeredChain::new(Arc::new(chain), 9), baseline.unwrap(), settings)
}

pub(super) fn send(pipe: &mut Pipe<Baseline>, packets: &[(Side, Vec<u8>)]) -> Ends {
    send_at(pipe, NOW, packets)
}

pub(super) fn send_at(pipe: &mut Pipe<Baseline>, now: Time, packets: &[(Side, Vec<u8>)]) -> Ends {
    let mut burst = Burst::new();
    for (tag, (side, bytes)) in packets.iter().enumerate() {
        let mut frame = Frame::new();
        (frame.side, frame.tag) = (*side, tag as u64);
        frame.copy_from(bytes).unwrap();
        burst.push(frame);
    }
    let mut ends = Ends::default();
    pipe.on_burst(now, &mut burst, &mut ends);
    while pipe.on_completions(now, &mut ends) > 0 {}
    assert_eq!(pipe.parked(), 0);
    ends
}

fn udp(from: Endpoint, to: Endpoint) -> (Side, Vec<u8>) {
    (Side::Inside, PacketBuilder::udp(from, to).payload(b"hello").build())
}

/// R4787-9, R4787-9a, R5382-8, N8, and every packet ends once.
#[test]
fn frames_between_two_hosts_behind_the_nat_go_round_in_order() {
    let mut pipe = pipe("", 16);
    let external = send(&mut pipe, &[udp(HOST, WEB)]).left[0].2.tuple.source;
    // The first needs a mapping and waits for it, the others wait behind it, then none does.
    for _ in 0..2 {
        let packets: Vec<_> = (0..5)
            .map(|number| if number == 3 { udp(HOST, WEB) } else { udp(GUEST, external) })
            .collect();
        let ends = send(&mut pipe, &packets);
        let round: Vec<_> = ends.left.iter().filter(|(tag, ..)| *tag != 3).collect();
        assert_eq!(round.iter().map(|(tag, ..)| *tag).collect::<Vec<_>>(), [0, 1, 2, 4]);
        for (_, side, parsed) in round {
            assert_eq!((*side, parsed.tuple.destination), (Side::Inside, HOST));
            assert_eq!(parsed.tuple.source.ipv4().unwrap().octets()[..2], [198, 19]);
        }
        assert!(ends.dropped.is_empty(), "{:?}", ends.dropped);
    }
    let counts = pipe.counters().snapshot();
    let count = |event| counts.event(event);
    assert_eq!((count(Event::PacketsIn), count(Event::PacketsOut)), (11, 11));
    assert_eq!(count(Event::Hairpins), 8);
}

/// Bad input 55: to its own mapping, to nobody; and a parking place that is full.
#[test]
fn frames_that_turn_round_to_nobody_are_dropped_once_with_a_reason() {
    let mut pipe = pipe("", 1);
    let external = send(&mut pipe, &[udp(HOST, WEB)]).left[0].2.tuple.source;
    let nobody = Endpoint::v4([198, 19, 0, 15], 65_535);
    let ends = send(&mut pipe, &[udp(HOST, external)]);
    assert_eq!(ends.dropped, [(0, DropReason::MartianAddress)], "its source is its destination");
    let ends = send(&mut pipe, &[udp(HOST, nobody), udp(HOST, nobody)]);
    assert_eq!(ends.dropped, [(0, DropReason::NoMapping), (1, DropReason::NoMapping)]);
    assert!(ends.left.is_empty());
    let counts = pipe.counters().snapshot();
    assert_eq!((counts.event(Event::PacketsIn), counts.event(Event::PacketsOut)), (4, 1));
}

#[test]
fn a_service_behind_a_static_mapping_is_reached_from_inside_as_from_outside() {
    let extra = "[[nat.static]]\nexternal = \"203.0.113.9\"\ninside = \"10.0.0.1\"";
    let mut pipe = pipe(extra, 16);
    let service = Endpoint::v4([203, 0, 113, 9], 1000);
    let from_outside = (Side::Outside, PacketBuilder::udp(WEB, service).build());
    let ends = send(&mut pipe, &[from_outside, udp(GUEST, service)]);
    assert_eq!(ends.left.len(), 2, "{:?}", ends.dropped);
    for (_, side, parsed) in &ends.left {
        assert_eq!((*side, parsed.tuple.destination), (Side::Inside, HOST));
    }
    let guest = ends.left[1].2.tuple.source;
    let ends = send(&mut pipe, &[udp(HOST, guest), udp(HOST, WEB)]);
    let tuples: Vec<_> = ends.left.iter().map(|(.., parsed)| parsed.tuple).collect();
    let there = tuples.iter().find(|tuple| tuple.destination == GUEST).unwrap();
    assert_eq!(there.source, service);
    let web = tuples.iter().find(|tuple| tuple.destination == WEB).unwrap();
    assert_eq!(web.source, service);
}

/// R6888-4, R6888-8, R6888-11, R4787-3, bad input 53: what is used up is refused to the new, kept
/// for the old, and free again only after its rest.
#[test]
fn who_has_used_up_its_ports_gets_no_more_and_keeps_what_it_has() {
    let mut pipe = pipe("port_blocks_per_subscriber = 1", 16);
    let flow = |host: Endpoint, port| udp(Endpoint { port, ..host }, WEB);
    let mut external = Vec::new();
    for port in 1000..1064 {
        let ends = send(&mut pipe, &[flow(HOST, port)]);
        external.extend(ends.left.iter().map(|(.., parsed)| parsed.tuple.source));
    }
    assert_eq!(external.len(), 64, "a block");
    let mut apart = external.clone();
    apart.sort_unstable();
    apart.dedup();
    assert_eq!(apart.len(), 64, "R4787-3: each for one");
    assert!(apart.iter().all(|end| end.address == apart[0].address), "R4787-2: one address");
    let refused = [(0, DropReason::QuotaReached)];
    assert_eq!(send(&mut pipe, &[flow(HOST, 2000)]).dropped, refused);
    // The old ones, another protocol and another subscriber go on.
    for (at, port) in (1000..1064).enumerate() {
        let ends = send(&mut pipe, &[flow(HOST, port)]);
        assert_eq!(ends.left[0].2.tuple.source, external[at]);
    }
    let ping = PacketBuilder::echo_request(HOST, Endpoint { port: HOST.port, ..WEB }).build();
    let ends = send(&mut pipe, &[(Side::Inside, ping), flow(GUEST, 1000)]);
    assert_eq!(ends.left.len(), 2, "{:?}", ends.dropped);
    // Expired, but resting; then free.
    let after = |s: u64| NOW.plus_ms(1000 * s);
    let upkeep = |pipe: &mut Pipe<Baseline>, s| {
        pipe.on_completions(after(s), &mut Ends::default());
        pipe.access_mut().machine().pool_check().unwrap()
    };
    let report = upkeep(&mut pipe, 310);
    assert_eq!((report.live, report.resting), (0, 66));
    assert_eq!(send_at(&mut pipe, after(310), &[flow(HOST, 2000)]).dropped, refused);
    assert_eq!(send_at(&mut pipe, after(440), &[flow(HOST, 2000)]).left.len(), 1);
    let report = upkeep(&mut pipe, 440);
    assert_eq!((report.live, report.resting), (1, 0), "N5: all others are free again");
}

/// A packet that turns round is taken in again behind the one that the burst stopped at: that one
/// has asked for its changes already.
#[test]
fn a_packet_that_turns_round_takes_no_changes_of_the_one_behind_it() {
    let text = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
    let mut nodes = Nodes::new(1, text, 0, 64);
    nodes.send(0, 0, (Side::Inside, &PacketBuilder::udp(HOST, WEB).build()));
    let external = packet::parse(&nodes.ends.left[&0].1).unwrap().tuple.source;
    let turns = PacketBuilder::udp(GUEST, external).build();
    nodes.send(0, 1, (Side::Inside, &turns));
    assert_eq!(nodes.counters().event(Event::Hairpins), 1);
    let before = nodes.counters();
    let fresh = PacketBuilder::udp(Endpoint { port: 3000, ..HOST }, WEB).build();
    nodes.push_burst(0, &[(2, Side::Inside, &turns), (3, Side::Inside, &fresh)]);
    nodes.settle();
    let counted = |event| nodes.counters().event(event) - before.event(event);
    assert_eq!(nodes.ends.left[&2].0, Side::Inside);
    assert_eq!(nodes.ends.left[&3].0, Side::Outside);
    assert_eq!((counted(Event::Hairpins), counted(Event::Commits)), (1, 1), "asked once");
}
