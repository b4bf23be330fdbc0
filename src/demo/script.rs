//! What both ends of every flow do: a capture, taken apart into flows.
//!
//! A packet belongs to the flow of its canonical tuple; an ICMP error belongs to the flow that it
//! quotes, and a later fragment to that of its datagram's first one, wherever in the capture that
//! is. The first sender of a flow is its initiator, who sits inside, or outside where a load
//! balancer serves clients: the initiator's packets are then readdressed to the virtual endpoint.
//! Behind a NAT64 the initiator has IPv6: what it sends over IPv4 in the capture it sends over
//! IPv6, to the address behind the NAT64's prefix. Its peers answer over IPv4, as in the capture.
//! A packet that does not parse is a flow of its own and is sent alone. What no node could take
//! (cut short by the capture, longer than a buffer) is refused here, with a counted reason.
//! Never touches the outside, and sends nothing.

use super::datagrams::{Datagrams, is_later};
use super::frames::Frames;
use nearstate_nf_node::nat64_prefix::Nat64Prefix;
use nearstate_nf_node::packet::parsed::Parsed;
use nearstate_nf_node::packet::{parse, parse_fragment, translation};
use nearstate_nf_node::{DropReason, rewrite};
use nearstate_placement::{FlowKey, FlowTuple, Side};
use nearstate_store::{Endpoint, TenantId};
use std::collections::BTreeMap;

/// Bytes of the longest frame that a node takes.
pub(crate) const FRAME_BYTES_MAX: usize = 2048;
/// Whose packets the demo's are.
pub(crate) const DEMO_TENANT: TenantId = TenantId(0);

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Which side begins flows, and what its packets are addressed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    /// Where the first sender of a flow sits.
    pub(crate) initiator: Side,
    /// Virtual endpoints by protocol; empty without a load balancer.
    pub(crate) services: Vec<(u8, Endpoint)>,
    /// How initiators use IPv6, behind a NAT64.
    pub(crate) six: Option<Six>,
}

/// The prefixes by which inside hosts speak IPv6 that have IPv4 addresses in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Six {
    /// Of the hosts.
    pub(crate) hosts: Nat64Prefix,
    /// Of the NAT64: the rest of the world.
    pub(crate) world: Nat64Prefix,
    /// Whether all hosts have IPv6, or those with an even address only.
    pub(crate) is_for_all: bool,
}

impl Six {
    /// The flow of a packet of IPv4 that a host sends, over IPv6.
    fn flow(&self, tuple: &FlowTuple) -> Option<FlowTuple> {
        let behind = |prefix: &Nat64Prefix, end: &Endpoint| {
            Some(Endpoint { address: prefix.embed(end.ipv4()?), port: end.port })
        };
        if !self.is_for_all && tuple.source.ipv4()?.to_bits() % 2 == 1 {
            return None;
        }
        let protocol = if tuple.protocol == ICMP { ICMPV6 } else { tuple.protocol };
        let source = behind(&self.hosts, &tuple.source)?;
        let destination = behind(&self.world, &tuple.destination)?;
        Some(FlowTuple { protocol, source, destination })
    }
}

impl Scene {
    /// Inside hosts call the world.
    pub(crate) const fn inside_calls() -> Self {
        Self { initiator: Side::Inside, services: Vec::new(), six: None }
    }

    fn service_for(&self, tuple: &FlowTuple) -> Option<Endpoint> {
        let is_v4 = tuple.source.ipv4().is_some();
        self.services
            .iter()
            .find(|(protocol, service)| {
                *protocol == tuple.protocol && service.ipv4().is_some() == is_v4
            })
            .map(|&(_, service)| service)
    }
}

/// What is to be done with one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It goes in, in its turn.
    Send {
        /// Its flow, an index into [`Script::flows`].
        flow: u32,
        /// Whether the first sender of the flow sends it.
        from_initiator: bool,
        /// Where its headers are; `None` if it is malformed.
        parsed: Option<Parsed>,
        /// The datagram that it is a piece of, an index into [`Script::datagrams`].
        datagram: Option<u32>,
    },
    /// No node ever sees it.
    Refuse(DropReason),
}

/// Packets, and the flows that they make.
#[derive(Debug)]
pub(crate) struct Script {
    frames: Frames,
    steps: Vec<Step>,
    flows: Vec<Vec<u32>>,
    lines: Lines,
    datagrams: Datagrams,
    initiator: Side,
}

impl Script {
    /// Takes a capture apart.
    pub(crate) fn new(mut frames: Frames, scene: &Scene) -> Self {
        let mut sorter = Sorter { datagrams: Datagrams::find(&frames), ..Sorter::default() };
        let mut steps = Vec::with_capacity(frames.len());
        let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
        for number in 0..count {
            steps.push(sorter.step(number, &mut frames, scene));
        }
        let Sorter { flows, line_of, datagrams, .. } = sorter;
        let lines = Lines::new(line_of, &steps);
        Self { frames, steps, flows, lines, datagrams, initiator: scene.initiator }
    }

    /// How many packets there are.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Packet numbers by flow, in the order in which they are sent.
    pub(crate) fn flows(&self) -> &[Vec<u32>] {
        &self.flows
    }

    /// Which packets keep their order.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    /// The datagrams that come in fragments.
    pub(crate) fn datagrams(&self) -> &Datagrams {
        &self.datagrams
    }

    /// How many flows there are; a malformed packet belongs to none.
    pub(crate) fn flow_count(&self) -> u64 {
        let parses =
            |flow: &&Vec<u32>| !matches!(self.step(flow[0]), Step::Send { parsed: None, .. });
        self.flows.iter().filter(parses).count() as u64
    }

    /// What is to be done with a packet.
    pub(crate) fn step(&self, number: u32) -> Step {
        self.steps[number as usize]
    }

    /// The bytes of a packet as its sender sends it.
    pub(crate) fn frame(&self, number: u32) -> &[u8] {
        self.frames.frame(number)
    }

    /// When a packet was captured, in microseconds.
    pub(crate) fn at_us(&self, number: u32) -> u64 {
        self.frames.at_us(number)
    }

    /// The side that a packet goes in on.
    pub(crate) fn side(&self, number: u32) -> Side {
        match self.step(number) {
            Step::Send { from_initiator: false, .. } => self.initiator.opposite(),
            Step::Send { .. } | Step::Refuse(_) => self.initiator,
        }
    }
}

/// The packets of all flows that one end has begun, in order: such flows share a mapping (RFC 4787
/// REQ-1), so what becomes of one's packet may hang on another's. A line has the number of the
/// first of its flows; the others' are empty.
#[derive(Debug)]
pub(crate) struct Lines {
    packets: Vec<Vec<u32>>,
    /// By flow.
    line_of: Vec<u32>,
}

impl Lines {
    fn new(line_of: Vec<u32>, steps: &[Step]) -> Self {
        let mut packets = vec![Vec::new(); line_of.len()];
        for (number, step) in (0u32..).zip(steps) {
            if let Step::Send { flow, .. } = step {
                packets[line_of[*flow as usize] as usize].push(number);
            }
        }
        Self { packets, line_of }
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }

    /// The line of a flow.
    pub(crate) fn of_flow(&self, flow: u32) -> usize {
        self.line_of[flow as usize] as usize
    }

    /// The how-many-th packet of a line.
    pub(crate) fn packet(&self, line: usize, at: u32) -> Option<u32> {
        self.packets[line].get(at as usize).copied()
    }
}

/// Finds the flow of each packet.
#[derive(Default)]
struct Sorter {
    flows: Vec<Vec<u32>>,
    /// The line of each flow.
    line_of: Vec<u32>,
    /// The line of each end that has begun a flow.
    by_end: BTreeMap<(u8, Endpoint), u32>,
    /// Flow and initiator of each canonical key.
    by_key: BTreeMap<FlowKey, (u32, Endpoint)>,
    /// Flows of clients of a service: whatever a client called, it now calls the service.
    by_client: BTreeMap<(u8, Endpoint), u32>,
    datagrams: Datagrams,
    /// Flows of datagrams whose first fragment is not there.
    orphans: BTreeMap<u32, u32>,
}

impl Sorter {
    fn step(&mut self, number: u32, frames: &mut Frames, scene: &Scene) -> Step {
        let length = frames.frame(number).len();
        if length < frames.wire_length(number) {
            return Step::Refuse(DropReason::CutShort);
        }
        if length > FRAME_BYTES_MAX {
            return Step::Refuse(DropReason::FrameTooLong);
        }
        if let Some(datagram) = self.datagrams.of(number) {
            return self.step_of_fragment((number, datagram), frames, scene);
        }
        let Ok(parsed) = parse(frames.frame(number)) else {
            let flow = self.begin(number);
            return Step::Send { flow, from_initiator: true, parsed: None, datagram: None };
        };
        let (flow, initiator) = self.flow_of(&parsed.tuple, scene);
        self.flows[flow as usize].push(number);
        let from_initiator = parsed.tuple.source == initiator;
        let parsed = match (from_initiator, scene.six) {
            (true, Some(six)) => over_ipv6(frames, number, parsed, six),
            (true, None) => readdress(frames.frame_mut(number), parsed, scene),
            (false, _) => parsed,
        };
        Step::Send { flow, from_initiator, parsed: Some(parsed), datagram: None }
    }

    fn step_of_fragment(
        &mut self,
        (number, datagram): (u32, u32),
        frames: &mut Frames,
        scene: &Scene,
    ) -> Step {
        let parsed = parse_fragment(frames.frame(number)).expect("its datagram was found").parsed;
        let named = self.datagrams.get(datagram).flow;
        let Some(named) = named else {
            // Nobody knows whose it is: it goes with what it came with, and from there.
            let next = self.flows.len() as u32;
            let flow = *self.orphans.entry(datagram).or_insert(next);
            if flow == next {
                self.flows.push(Vec::new());
                self.line_of.push(next);
            }
            self.flows[flow as usize].push(number);
            let (from_initiator, datagram) = (true, Some(datagram));
            return Step::Send { flow, from_initiator, parsed: Some(parsed), datagram };
        };
        let (flow, initiator) = self.flow_of(&named, scene);
        self.flows[flow as usize].push(number);
        let from_initiator = named.source == initiator;
        let service = if from_initiator { scene.service_for(&named) } else { None };
        let parsed = match service {
            Some(service) => {
                let port = if is_later(parsed.transport) { 0 } else { service.port };
                readdress_to(frames.frame_mut(number), parsed, Endpoint { port, ..service })
            }
            None => parsed,
        };
        Step::Send { flow, from_initiator, parsed: Some(parsed), datagram: Some(datagram) }
    }

    fn begin(&mut self, number: u32) -> u32 {
        self.flows.push(vec![number]);
        let flow = self.flows.len() as u32 - 1;
        self.line_of.push(flow);
        flow
    }

    fn flow_of(&mut self, tuple: &FlowTuple, scene: &Scene) -> (u32, Endpoint) {
        let key = FlowKey::canonical(DEMO_TENANT, tuple);
        if let Some(&known) = self.by_key.get(&key) {
            return known;
        }
        let next = self.flows.len() as u32;
        let flow = match scene.service_for(tuple) {
            Some(_) => *self.by_client.entry((tuple.protocol, tuple.source)).or_insert(next),
            None => next,
        };
        if flow == next {
            self.flows.push(Vec::new());
            let line = *self.by_end.entry((tuple.protocol, tuple.source)).or_insert(next);
            self.line_of.push(line);
        }
        self.by_key.insert(key, (flow, tuple.source));
        (flow, tuple.source)
    }
}

/// Addresses an initiator's packet to the service of its protocol, if there is one.
fn readdress(frame: &mut [u8], parsed: Parsed, scene: &Scene) -> Parsed {
    match scene.service_for(&parsed.tuple) {
        Some(service) => readdress_to(frame, parsed, service),
        None => parsed,
    }
}

fn readdress_to(frame: &mut [u8], parsed: Parsed, destination: Endpoint) -> Parsed {
    let tuple = FlowTuple { destination, ..parsed.tuple };
    rewrite::apply(frame, &parsed, &tuple);
    Parsed { tuple, ..parsed }
}

/// Makes an initiator's packet one of IPv6. What has no form in IPv6, or is IPv6 already, stays.
fn over_ipv6(frames: &mut Frames, number: u32, parsed: Parsed, six: Six) -> Parsed {
    let Some(tuple) = six.flow(&parsed.tuple) else { return parsed };
    let Ok(frame) = translation::translated(frames.frame(number), &parsed, &tuple, &six.hosts)
    else {
        return parsed;
    };
    let Ok(parsed_again) = parse(&frame) else { return parsed };
    frames.replace(number, &frame);
    parsed_again
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::packet::PacketBuilder;

    const CLIENT: Endpoint = Endpoint::v4([10, 0, 0, 1], 4000);
    const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 80);
    const OTHER: Endpoint = Endpoint::v4([192, 0, 2, 2], 80);
    const SERVICE: Endpoint = Endpoint::v4([203, 0, 113, 80], 80);

    fn script(frames: &[Vec<u8>], scene: &Scene) -> Script {
        let mut all = Frames::default();
        for frame in frames {
            all.push(frame, frame.len() as u32, 0);
        }
        Script::new(all, scene)
    }

    fn flow_and_direction(script: &Script, number: u32) -> (u32, bool) {
        match script.step(number) {
            Step::Send { flow, from_initiator, .. } => (flow, from_initiator),
            Step::Refuse(reason) => panic!("packet {number} is refused: {reason}"),
        }
    }

    #[test]
    fn both_directions_and_errors_about_them_are_one_flow_begun_by_its_first_sender() {
        let out = PacketBuilder::tcp(CLIENT, SERVER).build();
        let back = PacketBuilder::tcp(SERVER, CLIENT).build();
        let other = PacketBuilder::tcp(OTHER, CLIENT).build();
        let error = PacketBuilder::icmp_error(OTHER, (3, 4), &out).build();
        let script = script(&[back, out, error, other], &Scene::inside_calls());
        assert_eq!(script.flows(), [vec![0, 1, 2], vec![3]]);
        let directions: Vec<_> = (0..4).map(|n| flow_and_direction(&script, n)).collect();
        assert_eq!(directions, [(0, true), (0, false), (0, true), (1, true)]);
        assert_eq!(script.side(0), Side::Inside, "the server spoke first here");
        assert_eq!(script.side(1), Side::Outside);
    }

    #[test]
    fn what_does_not_parse_goes_alone_and_what_no_node_takes_is_refused() {
        let whole = PacketBuilder::udp(CLIENT, SERVER).payload(&[0; 100]).build();
        let mut frames = Frames::default();
        frames.push(&whole, whole.len() as u32, 0);
        frames.push(&whole[..40], whole.len() as u32, 1);
        frames.push(&whole[..20], 20, 2);
        frames.push(&whole[..20], 20, 3);
        frames.push(&[0; FRAME_BYTES_MAX + 1], FRAME_BYTES_MAX as u32 + 1, 4);
        let script = Script::new(frames, &Scene::inside_calls());
        assert_eq!(script.flows(), [vec![0], vec![2], vec![3]]);
        assert_eq!(script.step(1), Step::Refuse(DropReason::CutShort));
        assert_eq!(script.step(4), Step::Refuse(DropReason::FrameTooLong));
        let alone = Step::Send { flow: 2, from_initiator: true, parsed: None, datagram: None };
        assert_eq!(script.step(3), alone);
        assert_eq!((script.side(3), script.at_us(3)), (Side::Inside, 3));
    }

    #[test]
    fn flows_that_one_end_has_begun_are_one_line() {
        let frames = [
            PacketBuilder::tcp(CLIENT, SERVER).build(),
            PacketBuilder::tcp(CLIENT, OTHER).build(),
            PacketBuilder::udp(CLIENT, SERVER).build(),
            PacketBuilder::tcp(SERVER, CLIENT).build(),
            PacketBuilder::tcp(OTHER, SERVER).build(),
            PacketBuilder::tcp(CLIENT, OTHER).build(),
        ];
        let script = script(&frames, &Scene::inside_calls());
        assert_eq!(script.flows(), [vec![0, 3], vec![1, 5], vec![2], vec![4]]);
        let lines = script.lines();
        let of_flows: Vec<_> = (0..4).map(|flow| lines.of_flow(flow)).collect();
        assert_eq!(of_flows, [0, 0, 2, 3], "one mapping is for one protocol and one inside end");
        let packets = |line| (0..).map_while(move |at| lines.packet(line, at)).collect::<Vec<_>>();
        let all: Vec<_> = (0..lines.len()).map(packets).collect();
        assert_eq!(all, [vec![0, 1, 3, 5], vec![], vec![2], vec![4]]);
    }

    #[test]
    fn clients_of_a_balancer_call_the_service_from_outside() {
        let scene = Scene { initiator: Side::Outside, services: vec![(6, SERVICE)], six: None };
        let frames = [
            PacketBuilder::tcp(CLIENT, SERVER).build(),
            PacketBuilder::tcp(CLIENT, OTHER).build(),
            PacketBuilder::tcp(OTHER, CLIENT).build(),
            PacketBuilder::udp(CLIENT, SERVER).build(),
        ];
        let script = script(&frames, &scene);
        assert_eq!(script.flows(), [vec![0, 1, 2], vec![3]], "one client, one service");
        for (number, to, side) in
            [(0, SERVICE, Side::Outside), (1, SERVICE, Side::Outside), (2, CLIENT, Side::Inside)]
        {
            let parsed = parse(script.frame(number)).unwrap();
            assert_eq!((parsed.tuple.destination, script.side(number)), (to, side));
        }
        assert_eq!(parse(script.frame(3)).unwrap().tuple.destination, SERVER, "no UDP service");
    }

    #[test]
    fn behind_a_nat64_initiators_speak_ipv6_and_their_peers_ipv4() {
        let prefix = |text: &str| text.parse::<Nat64Prefix>().unwrap();
        let (hosts, world) = (prefix("2001:db8:a::/96"), prefix("2001:db8:64::/96"));
        let six = Six { hosts, world, is_for_all: true };
        let scene = Scene { six: Some(six), ..Scene::inside_calls() };
        let end = |text: &str, port| Endpoint::new(text.parse().unwrap(), port);
        let (host, world) = (end("2001:db8:a::a00:1", 4000), end("2001:db8:64::c000:201", 80));
        let question = PacketBuilder::udp(CLIENT, SERVER).payload(b"question").build();
        let answer = PacketBuilder::udp(SERVER, CLIENT).payload(b"answer").build();
        let refusal = PacketBuilder::icmp_error(CLIENT, (3, 3), &answer).build();
        let already = PacketBuilder::udp(host, world).build();
        let odd = Scene { six: Some(Six { is_for_all: false, ..six }), ..scene.clone() };
        assert_eq!(
            script(core::slice::from_ref(&question), &odd).frame(0),
            &question[..],
            "10.0.0.1 is odd"
        );
        let script = script(&[question, answer.clone(), refusal, already.clone()], &scene);
        assert_eq!(script.flows(), [vec![0, 1, 2], vec![3]]);
        for number in [0, 2] {
            let tuple = parse(script.frame(number)).unwrap().tuple;
            assert_eq!((tuple.source, tuple.destination, tuple.protocol), (host, world, 17));
            let Step::Send { parsed: Some(parsed), .. } = script.step(number) else { panic!() };
            assert_eq!(parsed.tuple, tuple);
        }
        assert_eq!((script.frame(1), script.frame(3)), (&answer[..], &already[..]));
    }
}
