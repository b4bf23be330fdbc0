//! Which datagram each fragment of a capture is of, and what is known of it before anything is
//! sent: the flow that its first fragment names, and whether its fragments contradict each other.
//!
//! The same name again more than a minute later is another datagram. Never changes a frame.

use super::frames::Frames;
use nearstate_nf_node::DropReason;
use nearstate_nf_node::packet::fragment::{Datagram, Fragment, Piece};
use nearstate_nf_node::packet::{Parsed, Transport, parse, parse_fragment};
use nearstate_placement::FlowTuple;
use std::collections::BTreeMap;

/// Fragments that are further apart are of two datagrams (RFC 8200 section 4.5).
const APART_US: u64 = 60_000_000;

/// A datagram that comes in fragments.
#[derive(Clone, Debug, Default)]
pub(crate) struct InPieces {
    /// The flow of its first fragment, if that is in the capture.
    pub(crate) flow: Option<FlowTuple>,
    /// Whether two of its fragments cannot be of one datagram.
    pub(crate) contradicts: bool,
    pieces: Vec<(Piece, FlowTuple)>,
    last_us: u64,
}

impl InPieces {
    fn add(&mut self, fragment: &Fragment, at_us: u64) {
        let piece = (fragment.piece, fragment.parsed.tuple);
        self.last_us = at_us;
        if piece.0.is_first() && self.flow.is_none() {
            self.flow = Some(piece.1);
        }
        if !self.pieces.contains(&piece) {
            self.contradicts |= self.pieces.iter().any(|other| contradict(other, &piece));
            self.pieces.push(piece);
        }
    }
}

/// Whether two different pieces cannot be of one datagram.
fn contradict((a, _): &(Piece, FlowTuple), (b, _): &(Piece, FlowTuple)) -> bool {
    let overlap = a.from < b.to() && b.from < a.to();
    let beyond = |last: &Piece, other: &Piece| last.is_last && other.end_bytes() > last.end_bytes();
    overlap || beyond(a, b) || beyond(b, a) || (a.is_last && b.is_last)
}

/// The datagrams of a capture that come in fragments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Datagrams {
    all: Vec<InPieces>,
    /// By packet number: its datagram, an index into `all`.
    of: BTreeMap<u32, u32>,
}

impl Datagrams {
    /// Those of a capture.
    pub(crate) fn find(frames: &Frames) -> Self {
        let mut found = Self::default();
        let mut latest: BTreeMap<([u8; 37], u32), u32> = BTreeMap::new();
        for number in 0..u32::try_from(frames.len()).unwrap_or(u32::MAX) {
            let frame = frames.frame(number);
            if frame.len() < frames.wire_length(number) {
                continue;
            }
            let Ok(fragment) = parse_fragment(frame) else { continue };
            let at_us = frames.at_us(number);
            let next = found.all.len() as u32;
            let index = latest.entry(name(&fragment.datagram)).or_insert(next);
            let is_over = |at: u32| {
                found.all.get(at as usize).is_some_and(|last| at_us > last.last_us + APART_US)
            };
            if is_over(*index) {
                *index = next;
            }
            if *index == next {
                found.all.push(InPieces::default());
            }
            found.all[*index as usize].add(&fragment, at_us);
            found.of.insert(number, *index);
        }
        found
    }

    /// The datagram that a packet is a piece of.
    pub(crate) fn of(&self, number: u32) -> Option<u32> {
        self.of.get(&number).copied()
    }

    /// A datagram by its index.
    pub(crate) fn get(&self, index: u32) -> &InPieces {
        &self.all[index as usize]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

/// What parsing finds in a frame, whole packet or fragment.
pub(crate) fn parse_either(frame: &[u8]) -> Option<Parsed> {
    match parse(frame) {
        Ok(parsed) => Some(parsed),
        Err(DropReason::Fragment) => parse_fragment(frame).ok().map(|fragment| fragment.parsed),
        Err(_) => None,
    }
}

/// Whether a packet shows no ports.
pub(crate) fn is_later(transport: Transport) -> bool {
    transport == Transport::LaterFragment
}

fn name(datagram: &Datagram) -> ([u8; 37], u32) {
    let FlowTuple { protocol, source, destination } = datagram.tuple;
    let mut bytes = [0; 37];
    bytes[0] = protocol;
    bytes[1..19].copy_from_slice(&source.to_bytes());
    bytes[19..].copy_from_slice(&destination.to_bytes());
    (bytes, datagram.ident)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::packet::PacketBuilder;
    use nearstate_nf_node::packet::cutter::cut;
    use nearstate_store::Endpoint;

    const CLIENT: Endpoint = Endpoint::v4([10, 0, 0, 1], 4000);
    const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 53);

    fn pieces(ident: u16, cuts: &[u16]) -> Vec<Vec<u8>> {
        let whole = PacketBuilder::udp(CLIENT, SERVER).ident(ident).payload(&[7; 100]).build();
        cut(&whole, 0, cuts)
    }

    #[test]
    fn fragments_are_told_apart_by_name_and_time_and_contradictions_are_found() {
        let mut frames = Frames::default();
        let mut push = |frame: &[u8], at_s: u64| {
            frames.push(frame, frame.len() as u32, at_s * 1_000_000);
        };
        let (one, other) = (pieces(1, &[4, 8]), pieces(2, &[5]));
        push(&one[2], 0);
        push(&other[0], 0);
        push(&one[0], 1);
        push(&one[2], 2);
        push(&pieces(1, &[4, 7])[1], 3);
        push(&one[1], 100);
        push(&PacketBuilder::udp(CLIENT, SERVER).build(), 100);
        let found = Datagrams::find(&frames);
        let of: Vec<_> = (0..7).map(|number| found.of(number)).collect();
        assert_eq!(of, [Some(0), Some(1), Some(0), Some(0), Some(0), Some(2), None]);
        assert_eq!(found.len(), 3);
        assert_eq!(found.get(0).flow.map(|tuple| tuple.source), Some(CLIENT));
        assert_eq!(found.get(2).flow, None);
        assert!(!found.get(0).contradicts, "a gap is no contradiction");
        frames.push(&pieces(2, &[4])[1], 100, 0);
        frames.push(&pieces(2, &[5])[1][..60], 60, 0);
        let found = Datagrams::find(&frames);
        assert!(found.get(1).contradicts, "two fragments share bytes");
    }
}
