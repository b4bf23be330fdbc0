//! How far the TCP connections of a mapping have come, as far as its life goes: the state machine
//! of RFC 6146 section 3.5.2 (RFC 7857 section 2) for a mapping and not for each connection.
//!
//! Nearly every mapping of TCP serves one connection at a time. Its entries name the remote end of
//! that one, and follow it; so a mapping whose connection has closed, or was reset, lives for the
//! transitory time from then on. When a second remote end shows up while the first connection is
//! not over, nobody is followed any more, and the mapping lives for the long time: never too
//! short.
//!
//! ```text
//!              segment from inside,            FIN of one end
//!              not a SYN, not a RST                 |
//!   Opening ---------------------> Established -----+--> FinInside, FinOutside
//!      ^                             |       ^                       | FIN of the other
//!      | SYN from inside         RST |       | segment from inside   v
//!      +---- Closing, Reset <--------+       +------ Reset        Closing
//! ```
//!
//! *Resets.* RFC 7857 section 2 asks that a reset is translated, and that the mapping is kept for
//! four minutes after it. Whether a reset carries just the expected sequence number (RFC 5961)
//! nobody can tell here: numbers change with every segment, and any node may see any segment. So a
//! reset is never final. It starts the four minutes; the next segment from inside shows that the
//! connection lives, and the mapping has its long time again (the state TRANS of RFC 6146). A
//! forged reset costs a silent connection its mapping only if its inside end sends nothing for
//! four minutes, and then no sooner.
//!
//! What it never does: move because of another remote end's segments from outside, which anybody
//! can send; move twice because of one segment.

use crate::nf::tcp_state::Segment;

/// See the module's text. The numbers stand in entries and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Life {
    /// Not of TCP.
    Plain = 0,
    /// A connection has begun.
    Opening = 1,
    /// The inside end has sent something behind its SYN.
    Established = 2,
    /// The inside end has sent its FIN.
    FinInside = 3,
    /// The remote end has sent its FIN.
    FinOutside = 4,
    /// Both have.
    Closing = 5,
    /// One of them has sent a reset.
    Reset = 6,
    /// Several connections have begun, and none is followed.
    ManyOpening = 7,
    /// Several connections, one of which was established at least.
    Many = 8,
}

impl Life {
    /// All of them, by number.
    pub const ALL: [Self; 9] = [
        Self::Plain,
        Self::Opening,
        Self::Established,
        Self::FinInside,
        Self::FinOutside,
        Self::Closing,
        Self::Reset,
        Self::ManyOpening,
        Self::Many,
    ];

    /// The life with this number. Others are never written; the longest is the one that does no
    /// harm.
    #[must_use]
    #[inline]
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Many)
    }

    /// Whether it is the transitory time of TCP that counts. A connection that one end has closed
    /// is still established in this respect, as in RFC 6146.
    #[must_use]
    pub const fn is_transitory(self) -> bool {
        matches!(self, Self::Opening | Self::ManyOpening | Self::Closing | Self::Reset)
    }

    /// The name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "in use",
            Self::Opening => "opening",
            Self::Established => "established",
            Self::FinInside => "closed from inside",
            Self::FinOutside => "closed from outside",
            Self::Closing => "closed",
            Self::Reset => "reset",
            Self::ManyOpening => "opening to several",
            Self::Many => "in use by several",
        }
    }
}

/// What a segment makes of a mapping; `None` of [`from_inside`] and [`from_outside`]: nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The new life.
    pub life: Life,
    /// The remote end of this segment is followed from now on.
    pub is_followed: bool,
}

const fn to(life: Life) -> Option<Turn> {
    Some(Turn { life, is_followed: false })
}

/// A segment from the inside end. `is_followed`: it goes to the remote end that is followed.
#[must_use]
#[inline]
pub const fn from_inside(life: Life, is_followed: bool, segment: Segment) -> Option<Turn> {
    // Nearly all segments: data and acknowledgements of an established connection.
    match (life, segment) {
        (Life::Established, Segment::Other) if is_followed => None,
        (Life::Many | Life::Plain, _) => None,
        _ if is_followed => of_followed(life, segment),
        _ => of_another(life, segment),
    }
}

const fn of_followed(life: Life, segment: Segment) -> Option<Turn> {
    use Segment as S;
    match (life, segment) {
        (Life::Opening, S::Other) | (Life::Reset, S::Other) => to(Life::Established),
        (Life::Opening | Life::Established | Life::Reset, S::Fin) => to(Life::FinInside),
        (Life::FinOutside, S::Fin) => to(Life::Closing),
        (Life::Established | Life::FinInside | Life::FinOutside, S::Reset) => to(Life::Reset),
        (Life::Closing | Life::Reset, S::Syn) => to(Life::Opening),
        (Life::ManyOpening, S::Other | S::Fin) => to(Life::Many),
        _ => None,
    }
}

const fn of_another(life: Life, segment: Segment) -> Option<Turn> {
    use Segment as S;
    match (life, segment) {
        // It refuses a stranger (RFC 7857 section 9).
        (_, S::Reset) => None,
        (Life::Opening, S::Syn | S::SynAck) => to(Life::ManyOpening),
        (Life::ManyOpening, S::Syn | S::SynAck) => None,
        (Life::Closing | Life::Reset, S::Syn | S::SynAck) => {
            Some(Turn { life: Life::Opening, is_followed: true })
        }
        _ => to(Life::Many),
    }
}

/// A segment from the remote end that is followed. Those of others change nothing.
#[must_use]
#[inline]
pub const fn from_outside(life: Life, segment: Segment) -> Option<Turn> {
    match (life, segment) {
        (Life::Established, Segment::Fin) => to(Life::FinOutside),
        (Life::FinInside, Segment::Fin) => to(Life::Closing),
        (Life::Established | Life::FinInside | Life::FinOutside, Segment::Reset) => to(Life::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sends: the inside end to the remote that is followed or to another, or that remote.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Sender {
        Inside,
        InsideToAnother,
        Outside,
    }

    const SENDERS: [Sender; 3] = [Sender::Inside, Sender::InsideToAnother, Sender::Outside];

    fn turn(life: Life, from: Sender, segment: Segment) -> Option<Turn> {
        match from {
            Sender::Inside => from_inside(life, true, segment),
            Sender::InsideToAnother => from_inside(life, false, segment),
            Sender::Outside => from_outside(life, segment),
        }
    }

    use Life as L;
    use Segment::{Fin, Other, Reset, Syn, SynAck};
    use Sender::{Inside as I, InsideToAnother as A, Outside as O};

    /// What it is about, and segments with the life after each.
    type Row = (&'static str, &'static [(Sender, Segment, Life)]);

    const LIVES: &[Row] = &[
        (
            "opened, used, closed by the inside",
            &[
                (O, SynAck, L::Opening),
                (I, Other, L::Established),
                (O, Other, L::Established),
                (I, Fin, L::FinInside),
                (O, Other, L::FinInside),
                (O, Fin, L::Closing),
                (I, Other, L::Closing),
            ],
        ),
        (
            "closed by the remote end; the last acknowledgement is the inside's",
            &[
                (I, Other, L::Established),
                (O, Fin, L::FinOutside),
                (I, Other, L::FinOutside),
                (I, Fin, L::Closing),
                (O, Other, L::Closing),
                (I, Syn, L::Opening),
            ],
        ),
        (
            "a forged reset: the next segment from inside gives the long time back",
            &[
                (I, Other, L::Established),
                (O, Reset, L::Reset),
                (O, Other, L::Reset),
                (I, Other, L::Established),
                (O, Reset, L::Reset),
                (I, Fin, L::FinInside),
            ],
        ),
        ("refused", &[(O, Reset, L::Opening), (I, Syn, L::Opening), (I, Reset, L::Opening)]),
        (
            "reset by the inside, and opened again to another",
            &[(I, Other, L::Established), (I, Reset, L::Reset), (A, Syn, L::Opening)],
        ),
        (
            "simultaneous open",
            &[(O, Syn, L::Opening), (I, SynAck, L::Opening), (I, Other, L::Established)],
        ),
        (
            "several at a time",
            &[
                (A, Syn, L::ManyOpening),
                (A, Syn, L::ManyOpening),
                (I, Other, L::Many),
                (I, Fin, L::Many),
                (O, Fin, L::Many),
                (O, Reset, L::Many),
            ],
        ),
        (
            "a stranger's connection that is answered counts, one that is refused does not",
            &[
                (I, Other, L::Established),
                (A, Reset, L::Established),
                (A, SynAck, L::Many),
                (A, Reset, L::Many),
            ],
        ),
    ];

    /// R7857-1, R7857-2, R7857-3.
    #[test]
    fn whole_lives_of_mappings() {
        for (what, steps) in LIVES {
            let mut life = Life::Opening;
            for (number, (from, segment, expected)) in steps.iter().enumerate() {
                life = turn(life, *from, *segment).map_or(life, |turn| turn.life);
                assert_eq!(life, *expected, "{what}, step {number}: {segment:?} from {from:?}");
            }
        }
    }

    #[test]
    fn the_same_segment_again_changes_nothing() {
        for life in Life::ALL {
            for (segment, from) in
                Segment::ALL.into_iter().flat_map(|segment| SENDERS.map(|from| (segment, from)))
            {
                let Some(next) = turn(life, from, segment) else { continue };
                let again = if next.is_followed { Sender::Inside } else { from };
                let fixed = turn(next.life, again, segment);
                assert_eq!(fixed, None, "{life:?} {segment:?} {from:?}");
                assert_ne!(next.life, life);
            }
        }
    }

    #[test]
    fn what_is_no_connection_is_moved_by_nothing_and_numbers_last() {
        for (number, life) in Life::ALL.into_iter().enumerate() {
            assert_eq!((life as usize, Life::from_number(number as u8)), (number, life));
            let is_short =
                matches!(life, Life::Opening | Life::ManyOpening | Life::Closing | Life::Reset);
            assert_eq!(life.is_transitory(), is_short);
            assert!(Life::ALL[..number].iter().all(|other| other.name() != life.name()));
        }
        assert_eq!(Life::from_number(9), Life::Many);
        for (segment, from) in
            Segment::ALL.into_iter().flat_map(|segment| SENDERS.map(|from| (segment, from)))
        {
            assert_eq!(turn(Life::Plain, from, segment), None);
            assert_eq!(turn(Life::Many, from, segment), None);
        }
    }
}
