//! Generated traffic: conversations of inside hosts with the world, from one seed.
//!
//! Flow sizes are heavy-tailed (a bounded Pareto distribution): most flows are a few packets, a few
//! flows are most packets. TCP with handshake, data both ways under right sequence numbers, and an
//! end by FIN or RST; UDP questions and answers; pings; now and then an ICMP error that quotes its
//! flow. Flows begin and end all the time, hosts have several at once, and popular destinations are
//! shared. No packet here is malformed: captures have those.

use super::frames::Frames;
use super::random::Random;
use super::talk::{self, Talk, Transport};
use nearstate_store::Endpoint;
use std::collections::BTreeSet;

/// Flows that can be generated.
pub(crate) const FLOWS_MAX: u32 = 1_000_000;
/// Packets that can be generated.
pub(crate) const PACKETS_MAX: u32 = 10_000_000;
/// Packets of the largest flow, at most.
const FLOW_PACKETS_MAX: f64 = 2_500.0;
/// Exponent of the flow sizes: the smaller, the heavier the tail.
const SIZE_ALPHA: f64 = 1.1;
/// Flows begin within this time.
const BEGIN_WITHIN_US: u64 = 30_000_000;
/// A flow lasts at most this long.
const LAST_MAX_US: u64 = 30_000_000;
/// Flows of an inside host, on average.
const FLOWS_PER_HOST: u32 = 20;
/// Servers that the hosts talk to.
const SERVERS: u64 = 600;

/// How much traffic is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrafficSpec {
    /// Conversations.
    pub(crate) flows: u32,
    /// Packets, about.
    pub(crate) packets: u32,
    /// Everything else follows from it.
    pub(crate) seed: u64,
}

/// Frames as a capture at the cluster's place would hold them, in order of time.
pub(crate) fn generate(spec: &TrafficSpec) -> Frames {
    let mut random = Random::new(spec.seed, 1);
    let sizes = flow_sizes(spec, &mut random);
    let mut people = People::new(spec.flows);
    let mut plan: Vec<(u64, u32, u32)> = Vec::with_capacity(spec.packets as usize);
    let mut talks = Vec::with_capacity(sizes.len());
    for (flow, &size) in (0u32..).zip(&sizes) {
        let talk = talk::converse(people.introduce(&mut random), size, &mut random);
        let turns = talk.turns.len() as u32;
        let begin = random.below(BEGIN_WITHIN_US);
        let longest = LAST_MAX_US.min(u64::from(turns) * 400_000);
        let gap = random.below(longest) / u64::from(turns);
        plan.extend((0..turns).map(|turn| (begin + u64::from(turn) * gap, flow, turn)));
        talks.push(talk);
    }
    plan.sort_unstable();
    let mut frames = Frames::default();
    for (at_us, flow, turn) in plan {
        let frame = talk::frame(&talks[flow as usize], turn as usize);
        frames.push(&frame, frame.len() as u32, at_us);
    }
    frames
}

/// Packets of each flow, together about as many as wanted.
fn flow_sizes(spec: &TrafficSpec, random: &mut Random) -> Vec<u32> {
    let tail = FLOW_PACKETS_MAX.powf(-SIZE_ALPHA);
    let raw: Vec<f64> = (0..spec.flows)
        .map(|_| (1.0 - random.unit() * (1.0 - tail)).powf(-1.0 / SIZE_ALPHA))
        .collect();
    let factor = f64::from(spec.packets) / raw.iter().sum::<f64>();
    raw.iter().map(|size| (size * factor).round().clamp(1.0, FLOW_PACKETS_MAX) as u32).collect()
}

/// Who talks to whom.
struct People {
    hosts: u64,
    /// Each host's next port.
    ports: Vec<u16>,
    /// Pairs that talk already, so that flows stay apart.
    known: BTreeSet<(u8, Endpoint, Endpoint)>,
}

impl People {
    fn new(flows: u32) -> Self {
        let hosts = (flows / FLOWS_PER_HOST).clamp(1, 60_000);
        Self { hosts: hosts.into(), ports: vec![20_000; hosts as usize], known: BTreeSet::new() }
    }

    /// Two ends that have not talked yet.
    fn introduce(&mut self, random: &mut Random) -> Talk {
        loop {
            let host = random.below(self.hosts);
            let transport = match random.below(100) {
                0..74 => Transport::Tcp,
                74..95 => Transport::Udp,
                _ => Transport::Echo,
            };
            // Some programs ask many servers from one port (RFC 4787 REQ-1 gives them one mapping).
            let again = transport == Transport::Udp && random.percent(15);
            let port = self.port(host as usize, again);
            let inside = Endpoint::v4(host_address(host), port);
            let outside = server(transport, port, random);
            if self.known.insert((transport.protocol(), inside, outside)) {
                return Talk { transport, inside, outside, turns: Vec::new() };
            }
        }
    }

    fn port(&mut self, host: usize, again: bool) -> u16 {
        let next = &mut self.ports[host];
        if !again {
            *next = if *next == u16::MAX { 1_024 } else { *next + 1 };
        }
        *next
    }
}

fn host_address(host: u64) -> [u8; 4] {
    [10, 16 + (host / 62_500) as u8, (host / 250 % 250) as u8, (host % 250) as u8 + 1]
}

/// A server; the first ones are the popular ones.
fn server(transport: Transport, port: u16, random: &mut Random) -> Endpoint {
    let unit = random.unit();
    let number = (unit * unit * unit * SERVERS as f64) as u64;
    let address = [203, 0, 112 + (number / 250) as u8, (number % 250) as u8 + 1];
    let port = match transport {
        Transport::Tcp => [443, 443, 443, 80, 22, 8443][random.below(6) as usize],
        Transport::Udp => [53, 53, 443, 123, 3478][random.below(5) as usize],
        Transport::Echo => port,
    };
    Endpoint::v4(address, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::script::{Scene, Script, Step};
    use nearstate_nf_node::packet::parse;

    const SPEC: TrafficSpec = TrafficSpec { flows: 2_000, packets: 40_000, seed: 3 };

    #[test]
    fn one_seed_gives_one_traffic() {
        let small = |seed| TrafficSpec { flows: 50, packets: 500, seed };
        let all = |frames: &Frames| -> Vec<Vec<u8>> {
            (0..frames.len() as u32).map(|number| frames.frame(number).to_vec()).collect()
        };
        assert_eq!(all(&generate(&small(1))), all(&generate(&small(1))));
        assert_ne!(all(&generate(&small(1))), all(&generate(&small(2))));
    }

    #[test]
    fn there_is_about_as_much_as_was_asked_for_and_all_of_it_parses() {
        let frames = generate(&SPEC);
        assert!((30_000..50_000).contains(&frames.len()), "{}", frames.len());
        for number in 0..frames.len() as u32 {
            parse(frames.frame(number)).unwrap();
            assert!(number == 0 || frames.at_us(number - 1) <= frames.at_us(number));
        }
    }

    #[test]
    fn flows_are_as_many_as_asked_for_begin_inside_and_have_a_heavy_tail() {
        let script = Script::new(generate(&SPEC), &Scene::inside_calls());
        assert_eq!(script.flows().len(), SPEC.flows as usize);
        let mut sizes: Vec<usize> = script.flows().iter().map(Vec::len).collect();
        sizes.sort_unstable();
        let largest: usize = sizes[sizes.len() * 9 / 10..].iter().sum();
        assert!(largest * 2 > script.len(), "a tenth of the flows has half of the packets");
        let mut answers = 0;
        for number in 0..script.len() as u32 {
            let Step::Send { from_initiator, parsed: Some(parsed), .. } = script.step(number)
            else {
                panic!("packet {number} does not go in");
            };
            let [first, ..] = parsed.tuple.source.ip().to_string().into_bytes()[..] else {
                panic!("an address is not empty");
            };
            assert_eq!(from_initiator, first == b'1', "inside hosts are in 10.0.0.0/8");
            answers += usize::from(!from_initiator);
        }
        assert!(answers * 10 > script.len() * 3, "both directions");
    }
}
