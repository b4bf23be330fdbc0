//! Two runs of one script, packet by packet: the cluster's, and that of one node that saw it all.
//!
//! Every verdict and every byte that left must be equal (promise P4), up to the one free choice:
//! which external endpoint a NAT picked. The cluster's endpoints and the baseline's must then
//! rename into each other one to one, protocol by protocol; a packet is compared after its source
//! has been renamed. A later fragment shows no port; its address must be that of its datagram's
//! first one, in either run. Never repairs anything, and knows nothing of how the runs were made.

use super::datagrams::{is_later, parse_either};
use super::outcome::{Outcome, Outcomes};
use super::script::{Script, Step};
use nearstate_nf_node::packet::parsed::Parsed;
use nearstate_nf_node::{DropReason, rewrite};
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::Endpoint;
use std::collections::{BTreeMap, BTreeSet};

/// Mismatches that are told in words.
const TOLD_MAX: usize = 10;

/// What the comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Packets whose verdict or bytes differ.
    pub(crate) mismatches: u64,
    /// The first of them, in words.
    pub(crate) told: Vec<String>,
    /// Flows that the cluster forgot: it dropped for want of state what the baseline forwarded, or
    /// translated one flow in two ways.
    pub(crate) state_lost: u64,
}

/// Compares the cluster's run with the baseline's. `may_rename` if a NAT is in the chain.
pub(crate) fn compare(
    script: &Script,
    cluster: &Outcomes,
    baseline: &Outcomes,
    may_rename: bool,
) -> Comparison {
    assert_eq!(cluster.len(), script.len(), "one outcome a packet");
    assert_eq!(baseline.len(), script.len(), "one outcome a packet");
    let firsts = [cluster, baseline].map(|outcomes| sources_of_firsts(script, outcomes));
    let mut renaming = Renaming { allowed: may_rename, ..Renaming::default() };
    let mut found = Comparison::default();
    let mut lost = BTreeSet::new();
    let mut translations = BTreeMap::new();
    for number in 0..script.len() as u32 {
        let (ours, theirs) = (cluster.get(number), baseline.get(number));
        let firsts = match script.step(number) {
            Step::Send { datagram: Some(datagram), .. } => {
                firsts.each_ref().map(|sources| sources[datagram as usize])
            }
            _ => [None; 2],
        };
        if let Err(difference) = renaming.check(ours, theirs, firsts) {
            found.mismatches += 1;
            if found.told.len() < TOLD_MAX {
                found.told.push(format!("packet {}: {difference}", number + 1));
            }
        }
        let Step::Send { flow, from_initiator, .. } = script.step(number) else { continue };
        let forgotten = is_forgotten(ours, theirs);
        let moved =
            from_initiator && has_moved(translations.entry(flow).or_default(), ours, theirs);
        if forgotten || moved {
            lost.insert(flow);
        }
    }
    found.state_lost = lost.len() as u64;
    found
}

/// The source that the first fragment of each datagram left with, if it left.
fn sources_of_firsts(script: &Script, outcomes: &Outcomes) -> Vec<Option<Endpoint>> {
    let mut sources = vec![None; script.datagrams().len()];
    for number in 0..script.len() as u32 {
        if let Step::Send { datagram: Some(datagram), .. } = script.step(number)
            && let Outcome::Left { frame, .. } = outcomes.get(number)
            && let Some(parsed) = parse_either(frame)
            && !is_later(parsed.transport)
        {
            sources[datagram as usize] = Some(parsed.tuple.source);
        }
    }
    sources
}

/// Whether the cluster dropped for want of state what the baseline forwarded.
fn is_forgotten(ours: Outcome<'_>, theirs: Outcome<'_>) -> bool {
    let Outcome::Dropped(reason) = ours else { return false };
    let wants_state = matches!(
        reason,
        DropReason::NoState
            | DropReason::NoMapping
            | DropReason::Filtered
            | DropReason::TcpMidstream
            | DropReason::TcpState
            | DropReason::IcmpUnrelated
            | DropReason::FragmentNoFirst
    );
    wants_state && matches!(theirs, Outcome::Left { .. })
}

/// The tuples under which a flow's initiator was last seen to leave, the cluster's and the
/// baseline's.
type Translation = (Option<FlowTuple>, Option<FlowTuple>);

/// Whether the flow's translation changed in the cluster and not in the baseline.
fn has_moved(last: &mut Translation, ours: Outcome<'_>, theirs: Outcome<'_>) -> bool {
    let moved = |last: &mut Option<FlowTuple>, outcome| {
        let Outcome::Left { frame, .. } = outcome else { return false };
        let Some(parsed) = parse_either(frame).filter(|found| !is_later(found.transport)) else {
            return false;
        };
        last.replace(parsed.tuple).is_some_and(|before| before != parsed.tuple)
    };
    let (ours, theirs) = (moved(&mut last.0, ours), moved(&mut last.1, theirs));
    ours && !theirs
}

/// Which of the baseline's external endpoints each of the cluster's stands for.
#[derive(Default)]
struct Renaming {
    allowed: bool,
    to_baseline: BTreeMap<(u8, Endpoint), Endpoint>,
    to_cluster: BTreeMap<(u8, Endpoint), Endpoint>,
    scratch: Vec<u8>,
}

impl Renaming {
    /// Whether two outcomes of a packet are the same; if not, the difference in words.
    /// Of a fragment `firsts` are the sources that its datagram's first one left with.
    fn check(
        &mut self,
        ours: Outcome<'_>,
        theirs: Outcome<'_>,
        firsts: [Option<Endpoint>; 2],
    ) -> Result<(), String> {
        let ((our_side, our_frame), (their_side, their_frame)) = match (ours, theirs) {
            (Outcome::Left { side: a, frame: x }, Outcome::Left { side: b, frame: y }) => {
                ((a, x), (b, y))
            }
            _ if ours == theirs => return Ok(()),
            _ => return Err(differ(ours, theirs)),
        };
        if our_side != their_side {
            return Err(differ(ours, theirs));
        }
        match (parse_either(our_frame), parse_either(their_frame)) {
            (Some(our_parsed), Some(their_parsed)) if self.allowed && our_side == Side::Outside => {
                self.scratch.clear();
                self.scratch.extend_from_slice(our_frame);
                if is_later(our_parsed.transport) {
                    self.follow([&our_parsed, &their_parsed], firsts)?;
                } else {
                    self.rename(&our_parsed, &their_parsed)?;
                }
                equal(&self.scratch, their_frame)
            }
            _ => equal(our_frame, their_frame),
        }
    }

    /// Rewrites the later fragment in `scratch` as the baseline would have sent it, if in either
    /// run it has left as its first one has.
    fn follow(
        &mut self,
        [ours, theirs]: [&Parsed; 2],
        firsts: [Option<Endpoint>; 2],
    ) -> Result<(), String> {
        for (parsed, first) in [ours, theirs].into_iter().zip(firsts) {
            let source = parsed.tuple.source;
            if first.is_none_or(|first| first.address != source.address) {
                return Err(format!("a later fragment left from {source}, its first one did not"));
            }
        }
        let tuple = FlowTuple { source: theirs.tuple.source, ..ours.tuple };
        rewrite::apply(&mut self.scratch, ours, &tuple);
        Ok(())
    }

    /// Rewrites the frame in `scratch` as the baseline would have sent it, if its source may be
    /// renamed so.
    fn rename(&mut self, ours: &Parsed, theirs: &Parsed) -> Result<(), String> {
        let protocol = ours.tuple.protocol;
        let (our_end, their_end) = (ours.tuple.source, theirs.tuple.source);
        let known = *self.to_baseline.entry((protocol, our_end)).or_insert(their_end);
        let back = *self.to_cluster.entry((protocol, their_end)).or_insert(our_end);
        if known != their_end {
            return Err(format!(
                "{our_end} of the cluster stands for both {known} and {their_end} of the baseline"
            ));
        }
        if back != our_end {
            return Err(format!(
                "{back} and {our_end} of the cluster both stand for {their_end} of the baseline"
            ));
        }
        let mut tuple = FlowTuple { source: their_end, ..ours.tuple };
        if protocol == 1 || protocol == 58 {
            // The identifier of an echo stands for both ports.
            tuple.destination.port = their_end.port;
        }
        rewrite::apply(&mut self.scratch, ours, &tuple);
        Ok(())
    }
}

fn equal(ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    Err(format!(
        "the packets that left differ from byte {at} on; lengths {} and {} (cluster, baseline)",
        ours.len(),
        theirs.len()
    ))
}

fn differ(ours: Outcome<'_>, theirs: Outcome<'_>) -> String {
    format!("the cluster: {}; the baseline: {}", in_words(ours), in_words(theirs))
}

fn in_words(outcome: Outcome<'_>) -> String {
    match outcome {
        Outcome::Pending => "no answer".to_owned(),
        Outcome::Dropped(reason) => format!("dropped, {reason}"),
        Outcome::Left { side, frame } => {
            let side = if side == Side::Inside { "inside" } else { "outside" };
            match parse_either(frame) {
                Some(parsed) => format!("left to the {side} as {}", parsed.tuple),
                None => format!("left to the {side}, and does not parse"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::super::script::Scene;
    use super::*;
    use nearstate_nf_node::packet::PacketBuilder;

    const HOSTS: [Endpoint; 2] =
        [Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([10, 0, 0, 2], 4000)];
    const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 53);

    fn external(port: u16) -> Endpoint {
        Endpoint::v4([198, 19, 0, 1], port)
    }

    /// Each host sends two datagrams.
    fn script() -> Script {
        let mut frames = Frames::default();
        for host in [HOSTS[0], HOSTS[1], HOSTS[0], HOSTS[1]] {
            let frame = PacketBuilder::udp(host, SERVER).payload(b"question").build();
            frames.push(&frame, frame.len() as u32, 0);
        }
        Script::new(frames, &Scene::inside_calls())
    }

    /// Four datagrams that left from these external ports.
    fn outcomes(ports: [u16; 4]) -> Outcomes {
        let mut outcomes = Outcomes::new(4);
        for (number, port) in (0..).zip(ports) {
            let frame = PacketBuilder::udp(external(port), SERVER).payload(b"question").build();
            outcomes.left(number, Side::Outside, &frame);
        }
        outcomes
    }

    fn found(ours: [u16; 4], theirs: [u16; 4]) -> Comparison {
        compare(&script(), &outcomes(ours), &outcomes(theirs), true)
    }

    #[test]
    fn other_ports_are_a_free_choice_if_they_rename_one_to_one() {
        assert_eq!(found([7, 8, 7, 8], [1, 2, 1, 2]), Comparison::default());
        let strict = compare(&script(), &outcomes([7, 8, 7, 8]), &outcomes([1, 2, 1, 2]), false);
        assert_eq!(strict.mismatches, 4, "without a NAT nothing may differ");
    }

    #[test]
    fn two_hosts_on_one_port_are_found() {
        let found = found([7, 7, 7, 7], [1, 2, 1, 2]);
        assert_eq!(found.mismatches, 2);
        assert!(found.told[0].starts_with("packet 2: "), "{:?}", found.told);
        assert!(found.told[0].contains("stands for both"), "{:?}", found.told);
    }

    #[test]
    fn a_flow_that_changes_its_port_is_found_and_counted_as_lost_state() {
        let found = found([7, 8, 9, 8], [1, 2, 1, 2]);
        assert_eq!((found.mismatches, found.state_lost), (1, 1));
        assert!(found.told[0].contains("both stand for"), "{:?}", found.told);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let mut ours = Outcomes::new(4);
        for number in 0..4u32 {
            let Outcome::Left { side, frame } = outcomes_ref().get(number) else { panic!() };
            let mut frame = frame.to_vec();
            if number == 2 {
                *frame.last_mut().unwrap() ^= 1;
            }
            ours.left(number, side, &frame);
        }
        let found = compare(&script(), &ours, outcomes_ref(), true);
        assert_eq!((found.mismatches, found.state_lost), (1, 0));
        assert!(found.told[0].starts_with("packet 3: "), "{:?}", found.told);
    }

    fn outcomes_ref() -> &'static Outcomes {
        static OUTCOMES: std::sync::OnceLock<Outcomes> = std::sync::OnceLock::new();
        OUTCOMES.get_or_init(|| outcomes([1, 2, 1, 2]))
    }

    #[test]
    fn other_verdicts_and_other_sides_are_found() {
        let mut ours = Outcomes::new(4);
        let frame = PacketBuilder::udp(external(1), SERVER).payload(b"question").build();
        ours.left(0, Side::Inside, &frame);
        ours.dropped(1, DropReason::NoState);
        ours.dropped(2, DropReason::StoreUnavailable);
        let found = compare(&script(), &ours, outcomes_ref(), true);
        assert_eq!(found.mismatches, 4);
        assert_eq!(found.state_lost, 1, "only what was dropped for want of state");
        assert!(found.told[1].contains("dropped, no-state"), "{:?}", found.told);
        assert!(found.told[3].contains("no answer"), "{:?}", found.told);
        let mut theirs = Outcomes::new(4);
        (0..4).for_each(|number| theirs.dropped(number, DropReason::NoState));
        let mut same = Outcomes::new(4);
        (0..4).for_each(|number| same.dropped(number, DropReason::NoState));
        assert_eq!(compare(&script(), &same, &theirs, true), Comparison::default());
    }
}
