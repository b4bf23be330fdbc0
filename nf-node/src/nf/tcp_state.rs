//! A TCP connection as seen from the middle: a closed list of states and one pure transition.
//!
//! The two directions of a connection may be seen by different nodes, and a packet may be seen
//! twice because a node died, so the transition only moves forward: a segment that was seen before,
//! or that comes late, is accepted and changes nothing. What goes back to the beginning is only a
//! new SYN on a connection that is over.
//!
//! ```text
//!             SYN/SYN-ACK of             ACK of
//!             the responder              the initiator
//!   SynSent -----------------> SynReceived ----------> Established
//!                                   |                       |
//!                     FIN of one end|                       |
//!                                   v                       v
//!                            FinInitiator or FinResponder <-+
//!                                   |  FIN of the other end
//!                                   v
//!                                Closing             RST, from any state: Reset
//! ```
//!
//! What it never does: look at sequence numbers. Until it does, a reset is believed as far as the
//! state goes, but it ends nothing: segments of a reset connection still pass while its entry lives
//! (RFC 7857 section 2 keeps it for four minutes), so a forged RST cuts no connection.

use crate::packet::tcp::flags::{ACK, FIN, RST, SYN};

/// What a segment means for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// SYN without ACK: wants to open.
    Syn,
    /// SYN with ACK: answers one that wants to open.
    SynAck,
    /// FIN: this end sends no more.
    Fin,
    /// RST: the connection is over, or never was.
    Reset,
    /// Data and acknowledgements.
    Other,
}

impl Segment {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Syn, Self::SynAck, Self::Fin, Self::Reset, Self::Other];

    /// What a flag byte means. Combinations that no TCP sends are dropped by the parser; here the
    /// strongest flag counts.
    #[must_use]
    pub const fn of(flags: u8) -> Self {
        if flags & RST != 0 {
            Self::Reset
        } else if flags & SYN != 0 {
            if flags & ACK != 0 { Self::SynAck } else { Self::Syn }
        } else if flags & FIN != 0 {
            Self::Fin
        } else {
            Self::Other
        }
    }
}

/// How far a connection has come. The numbers stand in entries and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// The initiator's SYN was seen.
    SynSent = 1,
    /// The responder answered it, or sent a SYN of its own (RFC 5382 REQ-2a, simultaneous open).
    SynReceived = 2,
    /// The initiator acknowledged that.
    Established = 3,
    /// The initiator has sent its FIN.
    FinInitiator = 4,
    /// The responder has sent its FIN.
    FinResponder = 5,
    /// Both ends have sent a FIN.
    Closing = 6,
    /// A reset was seen.
    Reset = 7,
}

impl TcpState {
    /// All states, in the order in which a connection may go through them.
    pub const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinInitiator,
        Self::FinResponder,
        Self::Closing,
        Self::Reset,
    ];

    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }

    /// The name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::FinInitiator => "fin-initiator",
            Self::FinResponder => "fin-responder",
            Self::Closing => "closing",
            Self::Reset => "reset",
        }
    }
}

/// What a segment does to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It passes and changes nothing.
    Stay,
    /// It passes, and the connection is now in this state.
    To(TcpState),
    /// The connection was over, and this segment opens a new one between the same ends.
    Reopen,
    /// No TCP sends this in this state.
    Refuse,
}

/// What a segment does to a connection in `state`. `from_initiator`: it comes from the end whose
/// SYN made the entry.
#[must_use]
pub const fn step(state: TcpState, from_initiator: bool, segment: Segment) -> Step {
    match segment {
        Segment::Reset => reset(state),
        Segment::Syn => syn(state, from_initiator),
        Segment::SynAck => syn_ack(state, from_initiator),
        Segment::Fin => fin(state, from_initiator),
        Segment::Other => other(state, from_initiator),
    }
}

const fn reset(state: TcpState) -> Step {
    match state {
        TcpState::Reset => Step::Stay,
        _ => Step::To(TcpState::Reset),
    }
}

const fn syn(state: TcpState, from_initiator: bool) -> Step {
    match (state, from_initiator) {
        (TcpState::SynSent, false) => Step::To(TcpState::SynReceived),
        (TcpState::Closing | TcpState::Reset, _) => Step::Reopen,
        // A retransmission; or, later, a SYN that the end answers with a challenge ACK: it must
        // not be torn down or reopened because of it (RFC 5961 section 4.2).
        _ => Step::Stay,
    }
}

const fn syn_ack(state: TcpState, from_initiator: bool) -> Step {
    match (state, from_initiator) {
        (TcpState::SynSent, false) => Step::To(TcpState::SynReceived),
        // It answers a SYN that the responder never sent.
        (TcpState::SynSent, true) => Step::Refuse,
        // Simultaneous open: it acknowledges the responder's SYN.
        (TcpState::SynReceived, true) => Step::To(TcpState::Established),
        _ => Step::Stay,
    }
}

const fn fin(state: TcpState, from_initiator: bool) -> Step {
    use TcpState as S;
    match (state, from_initiator) {
        (S::SynSent, _) => Step::Refuse,
        (S::SynReceived | S::Established, true) => Step::To(S::FinInitiator),
        (S::SynReceived | S::Established, false) => Step::To(S::FinResponder),
        (S::FinInitiator, false) | (S::FinResponder, true) => Step::To(S::Closing),
        (S::FinInitiator, true) | (S::FinResponder, false) | (S::Closing | S::Reset, _) => {
            Step::Stay
        }
    }
}

const fn other(state: TcpState, from_initiator: bool) -> Step {
    match (state, from_initiator) {
        // The initiator has nothing yet that it could acknowledge. From the responder it may be a
        // challenge ACK of an older connection: SYN, challenge ACK, RST, SYN must pass (RFC 5961).
        (TcpState::SynSent, true) => Step::Refuse,
        (TcpState::SynReceived, true) => Step::To(TcpState::Established),
        _ => Step::Stay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const I: bool = true;
    const R: bool = false;

    fn run(segments: &[(bool, Segment)]) -> Vec<Step> {
        let mut state = TcpState::SynSent;
        let mut steps = vec![];
        for (from_initiator, segment) in segments {
            let step = step(state, *from_initiator, *segment);
            match step {
                Step::To(next) => state = next,
                Step::Reopen => state = TcpState::SynSent,
                Step::Stay | Step::Refuse => {}
            }
            steps.push(step);
        }
        steps
    }

    #[test]
    fn whole_connections() {
        use Segment::{Fin, Other, Reset, Syn, SynAck};
        use Step::{Refuse, Reopen, Stay, To};
        use TcpState as S;
        type Row = (&'static str, &'static [(bool, Segment)], &'static [Step]);
        let rows: &[Row] = &[
            (
                "open, data, close by the initiator",
                &[(R, SynAck), (I, Other), (R, Other), (I, Fin), (R, Fin), (I, Other)],
                &[
                    To(S::SynReceived),
                    To(S::Established),
                    Stay,
                    To(S::FinInitiator),
                    To(S::Closing),
                    Stay,
                ],
            ),
            (
                "half-closed by the responder: data still flows",
                &[(R, SynAck), (I, Other), (R, Fin), (I, Other), (R, Other), (I, Fin)],
                &[
                    To(S::SynReceived),
                    To(S::Established),
                    To(S::FinResponder),
                    Stay,
                    Stay,
                    To(S::Closing),
                ],
            ),
            (
                "simultaneous open (RFC 5382 REQ-2a)",
                &[(R, Syn), (R, SynAck), (I, SynAck), (I, Other)],
                &[To(S::SynReceived), Stay, To(S::Established), Stay],
            ),
            (
                "refused: RST answers the SYN, and a new SYN opens again",
                &[(R, Reset), (I, Syn), (R, SynAck)],
                &[To(S::Reset), Reopen, To(S::SynReceived)],
            ),
            (
                "conntrack_syn_challenge_ack: SYN, challenge ACK, RST, SYN, SYN-ACK",
                &[(R, SynAck), (I, Other), (I, Syn), (R, Other), (I, Reset), (I, Syn), (R, SynAck)],
                &[
                    To(S::SynReceived),
                    To(S::Established),
                    Stay,
                    Stay,
                    To(S::Reset),
                    Reopen,
                    To(S::SynReceived),
                ],
            ),
            (
                "data and FIN before the handshake",
                &[(I, Other), (I, Fin), (R, Fin), (I, SynAck), (R, Other)],
                &[Refuse, Refuse, Refuse, Refuse, Stay],
            ),
            (
                "closed from both ends: the responder may open anew",
                &[(R, SynAck), (I, Fin), (R, Fin), (R, Syn)],
                &[To(S::SynReceived), To(S::FinInitiator), To(S::Closing), Reopen],
            ),
        ];
        for (what, segments, steps) in rows {
            assert_eq!(run(segments), *steps, "{what}");
        }
    }

    #[test]
    fn no_segment_moves_a_connection_back_and_the_same_segment_again_changes_nothing() {
        // Linearised: the two half-closed states are equally far.
        let rank = |state: TcpState| match state {
            TcpState::FinResponder => TcpState::FinInitiator as u8,
            other => other as u8,
        };
        for state in TcpState::ALL {
            for segment in Segment::ALL {
                for from in [I, R] {
                    let Step::To(next) = step(state, from, segment) else { continue };
                    assert!(rank(next) > rank(state), "{state:?} {segment:?} {from}");
                    assert_eq!(step(next, from, segment), Step::Stay, "{state:?} {segment:?}");
                }
            }
        }
    }

    #[test]
    fn what_passed_once_passes_again_in_every_later_state() {
        // Every way through the states up to five segments long, then each segment of it again.
        fn walk(path: &mut Vec<(bool, Segment)>, state: TcpState) {
            for (from, segment) in path.iter() {
                let again = step(state, *from, *segment);
                let is_old = matches!(again, Step::Stay)
                    // Only sequence numbers tell an old SYN from one that opens anew.
                    || again == Step::Reopen && *segment == Segment::Syn;
                assert!(is_old, "{path:?} then {segment:?} again: {again:?}");
            }
            if path.len() == 5 {
                return;
            }
            for segment in Segment::ALL {
                for from in [I, R] {
                    if let Step::To(next) = step(state, from, segment) {
                        path.push((from, segment));
                        walk(path, next);
                        path.pop();
                    }
                }
            }
        }
        walk(&mut vec![(I, Segment::Syn)], TcpState::SynSent);
    }

    #[test]
    fn a_syn_after_the_handshake_changes_nothing_until_the_connection_is_over() {
        for state in &TcpState::ALL[1..5] {
            for from in [I, R] {
                assert_eq!(step(*state, from, Segment::Syn), Step::Stay, "{state:?}");
            }
        }
    }

    #[test]
    fn flags_mean_their_strongest_bit() {
        let rows = [
            (0x02, Segment::Syn),
            (0xc2, Segment::Syn),
            (0x12, Segment::SynAck),
            (0x11, Segment::Fin),
            (0x19, Segment::Fin),
            (0x04, Segment::Reset),
            (0x14, Segment::Reset),
            (0x10, Segment::Other),
            (0x18, Segment::Other),
        ];
        for (flags, segment) in rows {
            assert_eq!(Segment::of(flags), segment, "flags {flags:#x}");
        }
    }

    #[test]
    fn states_have_lasting_numbers() {
        for (at, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!(state as u8, at as u8 + 1);
            assert_eq!(TcpState::from_number(at as u8 + 1), Some(state));
        }
        assert_eq!(TcpState::from_number(0), None);
        assert_eq!(TcpState::from_number(8), None);
    }
}
