//! Both ends of every flow, as a machine that does no input or output.
//!
//! The next packet of a flow goes in when the one before it has come out or was dropped, as real
//! ends would. Flows that one end has begun are one line and keep their order among each other
//! ([`super::script::Lines`]); lines do not wait for each other, packets go in as they stand in the
//! capture, with a bounded number inside each node. An answer is addressed to what its flow was
//! translated to. Packets that were inside a node that died are sent again elsewhere.
//!
//! A later fragment whose first one has not left is not waited for: its node keeps it until the
//! first one passes, wherever that is. If fragments of a datagram contradict each other, what
//! passes hangs on their order, so they go one by one like everything else.
//!
//! **Invariant.** Of every line at most one packet is under way (waiting, deferred or inside a
//! node), not counting those that are not waited for.

use super::datagrams::{is_later, parse_either};
use super::outcome::Outcomes;
use super::script::{Script, Step};
use super::steerer::{NodeIndex, Steerer};
use nearstate_nf_node::packet::Parsed;
use nearstate_nf_node::{DropReason, rewrite};
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Endpoint, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Packets that wait for room in the node they were steered to, for each packet that may be inside
/// a node; when there are more, nothing new is steered.
const DEFERRED_PER_WINDOW: usize = 4;

/// A packet to be pushed into a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Push<'a> {
    /// Which node.
    pub(crate) node: NodeIndex,
    /// The side that it goes in on.
    pub(crate) side: Side,
    /// The packet's number.
    pub(crate) tag: u32,
    /// Its bytes.
    pub(crate) frame: &'a [u8],
}

/// What a node said of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// It left on a side, with these bytes.
    Left(Side, &'a [u8]),
    /// It was dropped.
    Dropped(DropReason),
}

/// What an answer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The first answer for this packet, so many nanoseconds after it first went in.
    First {
        /// From push to answer, the time in nodes that died included.
        latency_ns: u64,
    },
    /// Nobody waits for it: the packet has its outcome already, or is not inside that node.
    Unexpected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Inside { node: NodeIndex, since: Time },
    Done,
}

#[derive(Clone, Debug, Default)]
struct NodeState {
    inside: usize,
    /// It refused a packet; nothing is pushed until it answers.
    full: bool,
    deferred: VecDeque<u32>,
    answered: u64,
}

#[derive(Clone, Debug, Default)]
struct LineState {
    /// How many of its packets have set out.
    begun: u32,
    /// Those of them that have no outcome.
    under_way: Vec<u32>,
}

/// See the module's text.
pub(crate) struct Replay<'a> {
    script: &'a Script,
    steerer: Steerer,
    window: usize,
    ready: BinaryHeap<Reverse<u32>>,
    states: Vec<State>,
    lines: Vec<LineState>,
    /// The tuple under which the last packet of each flow's initiator left.
    translated: Vec<Option<FlowTuple>>,
    /// Whether the first fragment of each datagram has left, or was dropped.
    firsts: Vec<Option<bool>>,
    nodes: Vec<NodeState>,
    deferred: usize,
    outcomes: Outcomes,
    retransmitted: u64,
    /// When packets that are sent again first went in: their senders have waited since then.
    resent: BTreeMap<u32, Time>,
    unexpected: u64,
    scratch: Vec<u8>,
}

impl<'a> Replay<'a> {
    /// All of the script's packets before the cluster; at most `window` inside a node.
    pub(crate) fn new(script: &'a Script, steerer: Steerer, window: usize) -> Self {
        assert!(window > 0, "no packet could ever go in");
        let mut outcomes = Outcomes::new(script.len());
        let mut states = vec![State::Waiting; script.len()];
        for (number, state) in (0u32..).zip(&mut states) {
            if let Step::Refuse(reason) = script.step(number) {
                outcomes.dropped(number, reason);
                *state = State::Done;
            }
        }
        let lines = script.lines().len();
        let mut replay = Self {
            script,
            steerer,
            window,
            ready: BinaryHeap::new(),
            states,
            lines: vec![LineState::default(); lines],
            translated: vec![None; script.flows().len()],
            firsts: vec![None; script.datagrams().len()],
            nodes: Vec::new(),
            deferred: 0,
            outcomes,
            retransmitted: 0,
            resent: BTreeMap::new(),
            unexpected: 0,
            scratch: Vec::new(),
        };
        (0..lines).for_each(|line| replay.set_out(line));
        replay
    }

    /// As many packets of a line set out as may be under way.
    fn set_out(&mut self, line: usize) {
        loop {
            let state = &self.lines[line];
            let Some(next) = self.script.lines().packet(line, state.begun) else { return };
            if state.under_way.iter().any(|&tag| self.is_waited_for(tag)) {
                return;
            }
            let state = &mut self.lines[line];
            state.begun += 1;
            state.under_way.push(next);
            self.ready.push(Reverse(next));
        }
    }

    /// Whether what comes behind a packet waits for its outcome.
    fn is_waited_for(&self, tag: u32) -> bool {
        let Step::Send { parsed: Some(parsed), datagram: Some(datagram), .. } =
            self.script.step(tag)
        else {
            return true;
        };
        let contradicts = self.script.datagrams().get(datagram).contradicts;
        match self.firsts[datagram as usize] {
            _ if !is_later(parsed.transport) => true,
            // It passes now, or is refused for what it is.
            Some(true) => true,
            // It will never pass.
            Some(false) => false,
            None => contradicts,
        }
    }

    /// A node takes packets.
    pub(crate) fn handle_node_up(&mut self, node: NodeIndex) {
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, NodeState::default);
        }
        self.steerer.handle_node_up(node);
    }

    /// A node died, and all that it had put out was handled. What was inside it is sent again
    /// elsewhere; gives how many packets that are.
    pub(crate) fn handle_node_down(&mut self, node: NodeIndex) -> u64 {
        self.steerer.handle_node_down(node);
        let Some(state) = self.nodes.get_mut(node) else { return 0 };
        self.deferred -= state.deferred.len();
        self.ready.extend(state.deferred.drain(..).map(Reverse));
        let mut again = 0;
        for (number, packet) in (0u32..).zip(&mut self.states) {
            if let State::Inside { node: at, since } = *packet
                && at == node
            {
                self.resent.entry(number).or_insert(since);
                *packet = State::Waiting;
                self.ready.push(Reverse(number));
                again += 1;
            }
        }
        state.inside = 0;
        state.full = false;
        self.retransmitted += again;
        again
    }

    /// Who owns each slot.
    pub(crate) fn handle_owners(&mut self, owners: Vec<Option<NodeIndex>>) {
        self.steerer.handle_owners(owners);
    }

    /// The next packet to go in, if there is one and room for it. Unless it is given back with
    /// [`Replay::handle_refused`] it counts as inside the node.
    pub(crate) fn poll_output(&mut self, now: Time) -> Option<Push<'_>> {
        let (node, tag) = self.take_deferred().or_else(|| self.take_ready())?;
        self.states[tag as usize] = State::Inside { node, since: now };
        self.nodes[node].inside += 1;
        let side = self.script.side(tag);
        let frame = if self.readdress(tag) { &self.scratch } else { self.script.frame(tag) };
        Some(Push { node, side, tag, frame })
    }

    /// The node had no room after all.
    pub(crate) fn handle_refused(&mut self, tag: u32) {
        let State::Inside { node, .. } = self.states[tag as usize] else {
            panic!("packet {tag} was not pushed");
        };
        self.states[tag as usize] = State::Waiting;
        let state = &mut self.nodes[node];
        state.inside -= 1;
        state.full = true;
        state.deferred.push_front(tag);
        self.deferred += 1;
    }

    /// A node has said what became of a packet.
    pub(crate) fn handle_answer(
        &mut self,
        now: Time,
        node: NodeIndex,
        tag: u32,
        answer: Answer<'_>,
    ) -> Heard {
        let since = match self.states.get(tag as usize) {
            Some(&State::Inside { node: at, since }) if at == node => since,
            _ => {
                self.unexpected += 1;
                return Heard::Unexpected;
            }
        };
        let since = self.resent.remove(&tag).unwrap_or(since);
        self.states[tag as usize] = State::Done;
        let state = &mut self.nodes[node];
        state.inside -= 1;
        state.full = false;
        state.answered += 1;
        match answer {
            Answer::Left(side, frame) => self.outcomes.left(tag, side, frame),
            Answer::Dropped(reason) => self.outcomes.dropped(tag, reason),
        }
        self.go_on(tag, answer);
        Heard::First { latency_ns: now.since_ns(since) }
    }

    /// The flow of an answered packet learns from the answer and sends its next packet.
    fn go_on(&mut self, tag: u32, answer: Answer<'_>) {
        let Step::Send { flow, from_initiator, parsed, datagram } = self.script.step(tag) else {
            unreachable!("a refused packet is never pushed");
        };
        if let (true, Answer::Left(_, frame)) = (from_initiator, answer)
            && let Some(parsed) = parse_either(frame)
            && !is_later(parsed.transport)
        {
            self.translated[flow as usize] = Some(parsed.tuple);
        }
        let line = self.script.lines().of_flow(flow);
        let state = &mut self.lines[line];
        let at = state.under_way.iter().position(|&other| other == tag);
        state.under_way.swap_remove(at.expect("what was answered was under way"));
        if let (Some(parsed), Some(datagram)) = (parsed, datagram)
            && !is_later(parsed.transport)
        {
            self.firsts[datagram as usize] = Some(matches!(answer, Answer::Left(..)));
        }
        self.set_out(line);
    }

    /// Puts an answer into `scratch` as its sender would address it; false if the packet goes in as
    /// it is in the script.
    fn readdress(&mut self, tag: u32) -> bool {
        let Step::Send { flow, from_initiator: false, parsed: Some(parsed), .. } =
            self.script.step(tag)
        else {
            return false;
        };
        let Some(translated) = self.translated[flow as usize] else { return false };
        self.scratch.clear();
        self.scratch.extend_from_slice(self.script.frame(tag));
        rewrite::apply(&mut self.scratch, &parsed, &answer_to(&translated, &parsed));
        true
    }

    /// The tuple that a packet goes in with.
    fn tuple(&self, tag: u32) -> Option<FlowTuple> {
        let Step::Send { flow, from_initiator, parsed, .. } = self.script.step(tag) else {
            return None;
        };
        let parsed = parsed?;
        let translated = self.translated[flow as usize].filter(|_| !from_initiator);
        Some(translated.map_or(parsed.tuple, |translated| answer_to(&translated, &parsed)))
    }

    fn has_room(&self, node: NodeIndex) -> bool {
        let state = &self.nodes[node];
        !state.full && state.inside < self.window
    }

    fn take_deferred(&mut self) -> Option<(NodeIndex, u32)> {
        if self.deferred == 0 {
            return None;
        }
        let node = *self
            .steerer
            .living()
            .iter()
            .find(|&&node| !self.nodes[node].deferred.is_empty() && self.has_room(node))?;
        let tag = self.nodes[node].deferred.pop_front()?;
        self.deferred -= 1;
        Some((node, tag))
    }

    fn take_ready(&mut self) -> Option<(NodeIndex, u32)> {
        while self.deferred < self.window * DEFERRED_PER_WINDOW {
            let &Reverse(tag) = self.ready.peek()?;
            let tuple = self.tuple(tag);
            let node = self.steerer.choose(self.script.side(tag), tuple.as_ref())?;
            self.ready.pop();
            if self.has_room(node) && self.nodes[node].deferred.is_empty() {
                return Some((node, tag));
            }
            self.nodes[node].deferred.push_back(tag);
            self.deferred += 1;
        }
        None
    }

    /// Whether every packet has its outcome.
    pub(crate) fn is_done(&self) -> bool {
        self.outcomes.pending() == 0
    }

    /// How many packets have their outcome.
    pub(crate) fn done(&self) -> usize {
        self.outcomes.len() - self.outcomes.pending()
    }

    /// How many packets are inside a node.
    pub(crate) fn inside(&self, node: NodeIndex) -> usize {
        self.nodes.get(node).map_or(0, |state| state.inside)
    }

    /// How many packets a node has answered.
    pub(crate) fn answered(&self, node: NodeIndex) -> u64 {
        self.nodes.get(node).map_or(0, |state| state.answered)
    }

    /// The nodes that take packets.
    pub(crate) fn living(&self) -> &[NodeIndex] {
        self.steerer.living()
    }

    /// How many packets were sent again because a node died.
    pub(crate) fn retransmitted(&self) -> u64 {
        self.retransmitted
    }

    /// How many answers nobody waited for.
    pub(crate) fn unexpected(&self) -> u64 {
        self.unexpected
    }

    /// What became of every packet.
    pub(crate) fn into_outcomes(self) -> Outcomes {
        self.outcomes
    }
}

/// What a packet that answers a flow is addressed to. A later fragment shows no ports.
fn answer_to(translated: &FlowTuple, parsed: &Parsed) -> FlowTuple {
    let answer = translated.reversed();
    if !is_later(parsed.transport) {
        return answer;
    }
    let portless = |end: Endpoint| Endpoint { port: 0, ..end };
    let FlowTuple { source, destination, .. } = answer;
    FlowTuple { source: portless(source), destination: portless(destination), ..parsed.tuple }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::Outcome;
    use super::super::random::Random;
    use super::super::script::Scene;
    use super::super::steerer::Steer;
    use super::super::toy;
    use super::super::traffic::{TrafficSpec, generate};
    use super::super::{compare::compare, frames::Frames};
    use super::*;
    use nearstate_nf_node::packet::PacketBuilder;
    use nearstate_nf_node::packet::cutter::cut;
    use nearstate_store::SlotId;

    const CLIENT: Endpoint = Endpoint::v4([10, 0, 0, 1], 4000);
    const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 53);
    const EXTERNAL: Endpoint = Endpoint::v4([198, 19, 0, 1], 7777);

    fn question_answer_twice() -> Script {
        let mut frames = Frames::default();
        for (source, destination) in [(CLIENT, SERVER), (SERVER, CLIENT)].repeat(2) {
            let frame = PacketBuilder::udp(source, destination).build();
            frames.push(&frame, frame.len() as u32, 0);
        }
        Script::new(frames, &Scene::inside_calls())
    }

    fn replay(script: &Script) -> Replay<'_> {
        let slot_of = Box::new(|_: Side, _: &FlowTuple| SlotId(0));
        let mut replay =
            Replay::new(script, Steerer::new(Steer::Owner, slot_of, Random::new(0, 0)), 4);
        replay.handle_node_up(0);
        replay.handle_owners(vec![Some(0)]);
        replay
    }

    #[test]
    fn a_flow_waits_for_its_packet_and_answers_where_it_was_translated_to() {
        let script = question_answer_twice();
        let mut replay = replay(&script);
        let push = replay.poll_output(Time(5)).unwrap();
        assert_eq!((push.tag, push.side, push.node), (0, Side::Inside, 0));
        assert_eq!(replay.poll_output(Time(5)), None, "the question has not come out yet");
        let left = PacketBuilder::udp(EXTERNAL, SERVER).build();
        let heard = replay.handle_answer(Time(9), 0, 0, Answer::Left(Side::Outside, &left));
        assert_eq!(heard, Heard::First { latency_ns: 4 });
        let push = replay.poll_output(Time(9)).unwrap();
        assert_eq!((push.tag, push.side), (1, Side::Outside));
        assert_eq!(push.frame, PacketBuilder::udp(SERVER, EXTERNAL).build());
    }

    #[test]
    fn a_flow_does_not_overtake_the_one_that_opens_its_mapping() {
        const OTHER: Endpoint = Endpoint::v4([192, 0, 2, 2], 53);
        let mut frames = Frames::default();
        for (source, destination) in [(CLIENT, SERVER), (CLIENT, OTHER), (OTHER, SERVER)] {
            let frame = PacketBuilder::udp(source, destination).build();
            frames.push(&frame, frame.len() as u32, 0);
        }
        let script = Script::new(frames, &Scene::inside_calls());
        let mut replay = replay(&script);
        assert_eq!(replay.poll_output(Time(0)).unwrap().tag, 0);
        assert_eq!(replay.poll_output(Time(0)).unwrap().tag, 2, "another end does not wait");
        assert_eq!(replay.poll_output(Time(0)), None);
        replay.handle_answer(Time(1), 0, 0, Answer::Dropped(DropReason::NoState));
        assert_eq!(replay.poll_output(Time(1)).unwrap().tag, 1);
    }

    /// A question in three fragments, the first of them last, then one in one, and an answer to it
    /// in two.
    #[test]
    fn later_fragments_wait_inside_nodes_until_their_first_has_left() {
        let question = |ident: u16| PacketBuilder::udp(CLIENT, SERVER).ident(ident);
        let mut sent = cut(&question(1).payload(&[1; 60]).build(), 0, &[2, 4]);
        sent.rotate_left(1);
        sent.push(question(2).build());
        let answer = PacketBuilder::udp(SERVER, CLIENT).payload(&[2; 60]).build();
        sent.extend(cut(&answer, 0, &[3]));
        let mut frames = Frames::default();
        sent.iter().for_each(|frame| frames.push(frame, frame.len() as u32, 0));
        let script = Script::new(frames, &Scene::inside_calls());
        assert_eq!(script.flows(), [vec![0, 1, 2, 3, 4, 5]]);
        let mut replay = replay(&script);
        let pushed = |replay: &mut Replay<'_>| -> Vec<u32> {
            core::iter::from_fn(|| replay.poll_output(Time(0)).map(|push| push.tag)).collect()
        };
        assert_eq!(pushed(&mut replay), [0, 1, 2], "the first is not kept waiting by the others");
        let as_seen = |frame: &[u8]| {
            let parsed = parse_either(frame).unwrap();
            let mut frame = frame.to_vec();
            let tuple = FlowTuple { source: EXTERNAL, ..parsed.tuple };
            rewrite::apply(&mut frame, &parsed, &tuple);
            frame
        };
        let leave = |replay: &mut Replay<'_>, tag: u32| {
            let frame = as_seen(&sent[tag as usize]);
            replay.handle_answer(Time(1), 0, tag, Answer::Left(Side::Outside, &frame));
        };
        leave(&mut replay, 2);
        assert_eq!(pushed(&mut replay), [0u32; 0], "now the others pass soon");
        leave(&mut replay, 1);
        leave(&mut replay, 0);
        assert_eq!(pushed(&mut replay), [3]);
        leave(&mut replay, 3);
        assert_eq!(pushed(&mut replay), [4]);
        replay.handle_answer(Time(1), 0, 4, Answer::Dropped(DropReason::NoState));
        let push = replay.poll_output(Time(2)).unwrap();
        let parsed = parse_either(push.frame).unwrap();
        assert_eq!(parsed.tuple.destination, Endpoint { port: 0, ..EXTERNAL });
    }

    #[test]
    fn a_flow_that_was_never_translated_is_answered_as_it_stands() {
        let script = question_answer_twice();
        let mut replay = replay(&script);
        replay.poll_output(Time(0)).unwrap();
        replay.handle_answer(Time(0), 0, 0, Answer::Dropped(DropReason::RuleDenied));
        let push = replay.poll_output(Time(0)).unwrap();
        assert_eq!(push.frame, PacketBuilder::udp(SERVER, CLIENT).build());
    }

    #[test]
    fn a_refused_packet_goes_in_later_and_a_dead_nodes_packets_go_elsewhere() {
        let script = question_answer_twice();
        let mut replay = replay(&script);
        replay.poll_output(Time(0)).unwrap();
        replay.handle_refused(0);
        assert_eq!(replay.poll_output(Time(0)), None, "the node is full");
        replay.handle_node_up(1);
        assert_eq!(replay.handle_node_down(0), 0, "it was not inside");
        assert_eq!(replay.poll_output(Time(0)).map(|push| push.node), Some(1));
        replay.handle_node_up(2);
        assert_eq!(replay.handle_node_down(1), 1);
        let push = replay.poll_output(Time(5)).unwrap();
        assert_eq!((push.tag, push.node), (0, 2));
        let late = replay.handle_answer(Time(1), 1, 0, Answer::Dropped(DropReason::NoState));
        assert_eq!(late, Heard::Unexpected, "it is no longer inside node 1");
        assert_eq!(
            replay.handle_answer(Time(1), 2, 99, Answer::Dropped(DropReason::NoState)),
            Heard::Unexpected
        );
        assert_eq!((replay.retransmitted(), replay.unexpected()), (1, 2));
        let heard = replay.handle_answer(Time(9), 2, 0, Answer::Dropped(DropReason::NoState));
        assert_eq!(heard, Heard::First { latency_ns: 9 }, "its sender waits since the first time");
    }

    #[test]
    fn late_answers_in_any_order_and_a_death_change_nothing() {
        let spec = TrafficSpec { flows: 300, packets: 6_000, seed: 11 };
        let script = Script::new(generate(&spec), &Scene::inside_calls());
        let alone = toy::run(&script, 1, 2_000, false);
        let many = toy::run(&script, 3, 3_000, true);
        assert!(many.retransmitted > 0 && many.unexpected > 0);
        let found = compare(&script, &many.outcomes, &alone.outcomes, true);
        assert_eq!((found.mismatches, found.state_lost), (0, 0), "{:?}", found.told);
        let left = (0..script.len() as u32)
            .filter(|&number| matches!(many.outcomes.get(number), Outcome::Left { .. }))
            .count();
        assert!(left * 10 > script.len() * 9, "nearly all packets leave: {left}");
    }
}
