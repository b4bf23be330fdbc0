//! Fragments at one record: bad inputs 19, 20, 21 and 27, and random pieces beside a model.

use super::*;
use nearstate_store::{Address, Version};
use proptest::prelude::*;

const HOST: Endpoint = Endpoint::v4([10, 0, 0, 1], 0);
const NAT: Endpoint = Endpoint::v4([198, 19, 0, 1], 0);
const SERVER: Endpoint = Endpoint::v4([192, 0, 2, 1], 0);
const NAMES: FragmentNames = FragmentNames::new(7);
const TENANT: TenantId = TenantId(0);

fn datagram(ident: u32) -> Datagram {
    Datagram { tuple: FlowTuple { protocol: 17, source: HOST, destination: SERVER }, ident }
}

/// Units from here up to there; `last` says whether none follow.
fn piece(from: u16, to: u16, is_last: bool) -> Piece {
    Piece { from, bytes: (to - from) * 8, is_last }
}

/// One place for a record, with whoever commits there.
#[derive(Default)]
struct Place {
    entry: Option<Entry>,
    version: u64,
}

impl Place {
    /// A fragment until it is decided; gives `None` if it has to wait.
    fn send(
        &mut self,
        datagram: &Datagram,
        piece: &Piece,
        ports: (u16, u16),
    ) -> Option<Result<Departs, DropReason>> {
        let tuple = FlowTuple { source: NAT, ..datagram.tuple };
        let opening = Opening { ports, departs: Departs { tuple, is_turned: false } };
        let opening = piece.is_first().then_some(&opening);
        let mut joining = Joining { datagram, piece, opening, joined: None };
        let (value, joins) = match decide(&joining, self.entry.as_ref()) {
            Decision::Leave(departs) => return Some(Ok(departs)),
            Decision::Drop(reason) => return Some(Err(reason)),
            Decision::Early => return None,
            Decision::Put { value, joins } => (value, joins),
        };
        self.version += 1;
        let entry = Entry { value, version: Version(self.version), slot: SlotId(0) };
        assert_eq!(Record::decode(&value).encode(), value, "it is read as it was written");
        self.entry = Some(entry);
        joining.joined = joins.as_ref();
        match decide(&joining, self.entry.as_ref()) {
            Decision::Leave(departs) => Some(Ok(departs)),
            Decision::Drop(reason) => Some(Err(reason)),
            other => panic!("once it is committed nothing more is asked for: {other:?}"),
        }
    }

    fn words(&self) -> String {
        Record::decode(&self.entry.expect("a record").value).words()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Out,
    Waits,
    Ended(DropReason),
}

fn fares(place: &mut Place, piece: &Piece) -> Came {
    match place.send(&datagram(1), piece, (1000, 53)) {
        None => Came::Waits,
        Some(Ok(_)) => Came::Out,
        Some(Err(reason)) => Came::Ended(reason),
    }
}

type Story = (&'static str, &'static [(u16, u16, bool, Came)]);

use Came::{Ended, Out, Waits};

const BAD: Came = Ended(DropReason::FragmentOverlap);

const STORIES: &[Story] = &[
    ("in order", &[(0, 10, false, Out), (10, 20, false, Out), (20, 23, true, Out)]),
    ("the last first", &[(20, 23, true, Waits), (0, 10, false, Out), (20, 23, true, Out)]),
    ("21: never a first", &[(10, 20, false, Waits), (20, 23, true, Waits)]),
    ("a repetition", &[(0, 10, false, Out), (0, 10, false, Out)]),
    (
        "repetitions of what was cut behind a first piece of any length",
        &[
            (0, 1, false, Out),
            (1, 186, false, Out),
            (556, 741, false, Out),
            (186, 371, false, Out),
            (741, 926, false, Out),
            (926, 1111, false, Out),
            (1111, 1177, true, Out),
            (371, 556, false, Out),
            (371, 556, false, Out),
            (556, 741, false, Out),
            (0, 1, false, Out),
        ],
    ),
    (
        "repetitions",
        &[
            (0, 10, false, Out),
            (10, 15, true, Out),
            (10, 15, true, Out),
            (0, 10, false, Out),
            (10, 15, true, Out),
        ],
    ),
    (
        "19: shifted",
        &[
            (0, 10, false, Out),
            (10, 20, false, Out),
            (15, 25, false, BAD),
            (20, 30, true, BAD),
            (10, 20, false, BAD),
            (0, 10, false, BAD),
        ],
    ),
    ("19: inside another", &[(0, 10, false, Out), (3, 5, false, BAD)]),
    ("19: around another", &[(0, 4, false, Out), (6, 8, false, Out), (5, 9, false, BAD)]),
    ("19: over the first", &[(0, 10, false, Out), (0, 12, false, BAD)]),
    ("20: teardrop", &[(0, 5, false, Out), (3, 4, true, BAD)]),
    ("27: beyond the end", &[(0, 5, false, Out), (5, 7, true, Out), (7, 8, false, Waits)]),
    (
        "27: beyond the end of what is not complete",
        &[(0, 5, false, Out), (10, 12, true, Out), (12, 13, false, BAD)],
    ),
    ("27: two ends", &[(0, 5, false, Out), (10, 12, true, Out), (5, 6, true, BAD)]),
    ("27: the end before what came", &[(0, 5, false, Out), (9, 12, false, Out), (7, 8, true, BAD)]),
    (
        "27: a middle that says it is the end",
        &[(0, 5, false, Out), (5, 10, false, Out), (5, 10, true, BAD)],
    ),
    (
        "27: an end that says more follow",
        &[(0, 5, false, Out), (10, 12, true, Out), (10, 12, false, BAD)],
    ),
    (
        "after it is complete the next of its name begins anew",
        &[
            (0, 5, false, Out),
            (5, 7, true, Out),
            (5, 8, true, Waits),
            (0, 5, false, Out),
            (5, 8, true, Out),
        ],
    ),
];

/// Bad inputs 19, 20, 21 and 27.
#[test]
fn pieces_of_one_datagram_in_every_order_and_against_it() {
    for (what, steps) in STORIES {
        let mut place = Place::default();
        for (number, (from, to, is_last, expected)) in steps.iter().enumerate() {
            let came = fares(&mut place, &piece(*from, *to, *is_last));
            assert_eq!(came, *expected, "{what}, step {}", number + 1);
        }
    }
}

/// Bad input 19: another header in the place of the first.
#[test]
fn a_first_fragment_with_other_ports_ends_its_datagram() {
    let (one, mut place) = (datagram(1), Place::default());
    let first = piece(0, 10, false);
    assert!(matches!(place.send(&one, &first, (1000, 53)), Some(Ok(_))));
    let overlap = Some(Err(DropReason::FragmentOverlap));
    assert_eq!(place.send(&one, &first, (1000, 22)), overlap);
    assert_eq!(place.send(&one, &piece(10, 12, true), (0, 0)), overlap);
    assert_eq!(place.send(&one, &first, (1000, 53)), overlap);
    assert!(place.words().ends_with("bad: fragments of it overlap"), "{}", place.words());
}

#[test]
fn a_full_list_gives_the_place_of_its_oldest() {
    let mut list = List::default();
    for name in 1..=30u64 {
        let (next, before) = list.with(name);
        assert_eq!(before, name.checked_sub(LISTED_MAX as u64).filter(|name| *name > 0));
        assert!(next.holds(name) && before.is_none_or(|before| !next.holds(before)));
        assert_eq!(List::decode(&next.encode()), next);
        list = next;
    }
    assert_eq!(
        List::decode(&Value([u64::MAX; 8])).with(1).1,
        Some(u64::MAX),
        "whatever lies there"
    );
}

#[test]
fn what_is_in_a_name() {
    let of = |side, datagram: &Datagram| NAMES.name(TENANT, side, datagram);
    let one = datagram(1);
    let inside = of(Side::Inside, &one);
    let other = |protocol, source, destination| Datagram {
        tuple: FlowTuple { protocol, source, destination },
        ident: 1,
    };
    let others = [
        of(Side::Outside, &one),
        of(Side::Inside, &datagram(2)),
        of(Side::Inside, &other(6, HOST, SERVER)),
        of(Side::Inside, &other(17, NAT, SERVER)),
        of(Side::Inside, &other(17, HOST, NAT)),
        FragmentNames::new(8).name(TENANT, Side::Inside, &one),
        NAMES.name(TenantId(1), Side::Inside, &one),
    ];
    assert!(others.iter().all(|name| name.name != inside.name));
    assert_eq!(of(Side::Inside, &datagram(2)).mask, inside.mask, "one mask for one sender");
    assert_ne!(others[3].mask, inside.mask);
}

/// What leaves leaves as the first did: IPv4 whatever was translated, IPv6 if at most one end was.
#[test]
fn later_fragments_leave_as_the_first_and_what_they_could_not_follow_is_refused() {
    let six = |last: u8| {
        let mut address = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        address[15] = last;
        Endpoint { address: Address::from_octets(address), port: 0 }
    };
    let with = |end: Endpoint, port| Endpoint { port, ..end };
    // Ends as they came and as they leave; turned round; whether that can be.
    let rows = [
        ((HOST, SERVER), (NAT, SERVER), false, true),
        ((HOST, NAT), (NAT, HOST), true, true),
        ((six(1), six(2)), (six(1), six(2)), false, true),
        ((six(1), six(2)), (six(3), six(2)), false, true),
        ((six(1), six(2)), (six(1), six(3)), true, true),
        ((six(1), six(2)), (six(3), six(4)), false, false),
        ((six(1), six(2)), (NAT, SERVER), false, false),
        ((HOST, SERVER), (six(1), six(2)), false, false),
    ];
    for (came, leaves, is_turned, is_possible) in rows {
        let tuple = FlowTuple { protocol: 44, source: came.0, destination: came.1 };
        let datagram = Datagram { tuple, ident: 9 };
        let as_first = FlowTuple {
            protocol: 17,
            source: with(leaves.0, 1000),
            destination: with(leaves.1, 53),
        };
        let departs = Departs { tuple: as_first, is_turned };
        let opening = Opening { ports: (1000, 53), departs };
        let first = piece(0, 4, false);
        let joining =
            Joining { datagram: &datagram, piece: &first, opening: Some(&opening), joined: None };
        let value = match decide(&joining, None) {
            Decision::Put { value, joins } => {
                assert_eq!(joins, Some(departs));
                value
            }
            refused => {
                assert_eq!(refused, Decision::Drop(DropReason::FragmentTranslation));
                assert!(!is_possible, "{came:?} {leaves:?}");
                continue;
            }
        };
        assert!(is_possible, "{came:?} {leaves:?}");
        let entry = Entry { value, version: Version(1), slot: SlotId(0) };
        let last = piece(4, 5, true);
        let later = Joining { piece: &last, opening: None, ..joining };
        let tuple = FlowTuple { source: leaves.0, destination: leaves.1, ..tuple };
        let Decision::Put { joins, .. } = decide(&later, Some(&entry)) else { panic!("it joins") };
        assert_eq!(joins, Some(Departs { tuple, is_turned }));
    }
}

#[test]
fn ranges_grow_together_when_there_are_too_many_and_then_there_is_no_more_room() {
    let mut place = Place::default();
    let first = piece(0, 100, false);
    assert_eq!(fares(&mut place, &first), Came::Out);
    // This one is the measure; none of the others lies on a multiple of its length.
    assert_eq!(fares(&mut place, &piece(200, 250, false)), Came::Out);
    for from in [101, 105, 109, 113, 121, 125] {
        assert_eq!(fares(&mut place, &piece(from, from + 2, false)), Came::Out);
    }
    let scattered = Came::Ended(DropReason::FragmentScattered);
    assert_eq!(fares(&mut place, &piece(117, 119, false)), scattered);
    assert_eq!(fares(&mut place, &piece(103, 105, false)), Came::Out, "it joins its neighbours");
    assert_eq!(fares(&mut place, &piece(117, 119, false)), Came::Out, "which made room");
    let repeated = Came::Ended(DropReason::FragmentRepeated);
    assert_eq!(fares(&mut place, &piece(101, 103, false)), repeated, "cut so, or otherwise?");
    assert_eq!(fares(&mut place, &piece(113, 115, false)), Came::Out, "this one is known");
    assert_eq!(
        fares(&mut place, &piece(102, 108, false)),
        Came::Ended(DropReason::FragmentOverlap)
    );
}

/// A datagram as a sender cuts it: all pieces but the first and the last of one length.
fn regular() -> impl Strategy<Value = Vec<Piece>> {
    (1u16..200, 1u16..200, 1u16..64, 1u16..1000).prop_map(|(first, step, count, last)| {
        let count = count.min(7900 / step).max(1);
        let starts = (0..count).map(|number| first + number * step);
        let last = 1 + last % (step * 8);
        let others = starts.map(|from| match from == first + (count - 1) * step {
            true => Piece { from, bytes: last, is_last: true },
            false => piece(from, from + step, false),
        });
        core::iter::once(piece(0, first, false)).chain(others).collect()
    })
}

/// Any pieces at all, with one first.
fn any_pieces() -> impl Strategy<Value = Vec<Piece>> {
    let any = (0u16..40, 1u16..100, any::<bool>()).prop_map(|(from, bytes, is_last)| {
        // First and last at once is no fragment.
        let is_last = is_last && from > 0;
        let bytes = if is_last { bytes } else { bytes.next_multiple_of(8) };
        Piece { from, bytes, is_last }
    });
    (1u16..10, proptest::collection::vec(any, 1..30)).prop_map(|(step, mut pieces)| {
        pieces.insert(0, piece(0, step, false));
        pieces
    })
}

proptest! {
    /// R4787-14: whatever the order, a datagram that was cut by its sender passes as a whole, and
    /// passes again.
    #[test]
    fn regular_pieces_pass_in_any_order(
        (pieces, order) in regular().prop_flat_map(|pieces| {
            let order = Just(pieces[1..].to_vec()).prop_shuffle();
            (Just(pieces), order)
        }),
    ) {
        let mut place = Place::default();
        prop_assert_eq!(fares(&mut place, &pieces[0]), Came::Out);
        for piece in order.iter().chain(&order) {
            prop_assert_eq!(fares(&mut place, piece), Came::Out, "{:?}", piece);
        }
        prop_assert!(place.words().ends_with("complete"), "{}", place.words());
        prop_assert!(!place.words().contains("not complete"), "{}", place.words());
    }

    /// The model: a list of what passed. Two different pieces that share bytes never both pass,
    /// nothing passes beyond the end, and after a contradiction nothing does.
    #[test]
    fn what_passed_can_be_put_together_in_one_way_only(pieces in any_pieces()) {
        let mut place = Place::default();
        let (mut passed, mut is_over): (Vec<Piece>, bool) = (vec![], false);
        for piece in &pieces {
            let share = |a: &Piece, b: &Piece| a.from < b.to() && b.from < a.to();
            let beyond = |a: &Piece, b: &Piece| a.is_last && b.end_bytes() > a.end_bytes();
            let clash = passed.iter().any(|other| {
                other != piece
                    && (share(other, piece)
                        || beyond(other, piece)
                        || beyond(piece, other)
                        || (other.is_last && piece.is_last))
            });
            let units: u32 = passed.iter().map(|p| u32::from(p.to() - p.from)).sum();
            let end = passed.iter().find(|p| p.is_last).map(|p| u32::from(p.to()));
            match fares(&mut place, piece) {
                Came::Out if piece.is_first() && end == Some(units) => passed = vec![*piece],
                Came::Out => {
                    prop_assert!(!clash && !is_over, "{:?} after {:?}", piece, passed);
                    if !passed.contains(piece) {
                        passed.push(*piece);
                    }
                }
                Came::Waits => prop_assert_eq!(end, Some(units), "only if it is complete"),
                Came::Ended(DropReason::FragmentOverlap) => {
                    prop_assert!(clash || is_over, "{:?} after {:?}", piece, passed);
                    is_over = true;
                }
                Came::Ended(reason) => {
                    let told = [DropReason::FragmentScattered, DropReason::FragmentRepeated];
                    prop_assert!(told.contains(&reason), "{}", reason);
                    prop_assert!(passed.len() > RANGES_MAX);
                }
            }
        }
    }

    #[test]
    fn any_value_can_be_read(
        words: [u64; 8],
        from in 0u16..8192,
        bytes in 1u16..2000,
        is_last: bool,
    ) {
        let value = Value(words);
        let record = Record::decode(&value);
        prop_assert!(!record.words().is_empty());
        let bytes = if is_last { bytes } else { bytes.next_multiple_of(8) };
        prop_assume!(u32::from(from) * 8 + u32::from(bytes) <= 65_535);
        let _ = record.fit(&Piece { from, bytes, is_last });
    }
}
