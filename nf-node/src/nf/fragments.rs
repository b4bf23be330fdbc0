//! Fragments at any node: what is known of a datagram that comes in pieces.
//!
//! Only the first fragment shows ports. It goes through the chain as any packet does; when it is to
//! leave, a *record* of its datagram is put: as what it leaves, and which bytes have come. Later
//! fragments, at whatever node, read the record, add their bytes to it and leave the same way. No
//! bytes are kept and none are put together here; whoever the datagram is for does that.
//!
//! **What is let through can be put together in one way only.** A fragment whose bytes came before,
//! cut the same way, is a repetition and passes; one that overlaps others in any other way, reaches
//! beyond the end, or says another end, makes its datagram bad: it, and all later ones, end here
//! (RFC 5722; the practice of Linux for IPv4). To tell these apart a record knows where the first
//! fragment ended and how long the first of the others was: pieces that lie on multiples of that
//! *step*, counted from there, are bits of a mask, so that a datagram that was cut by its sender,
//! or behind a first piece of any length, is known piece by piece. Others are ranges, which grow
//! together when there are too many. What lies inside such a range is dropped, as it cannot be told
//! from a forgery; the datagram goes on.
//!
//! **The number of records is bounded** (RFC 4787 REQ-14a). Each stands in one of its slot's
//! [`LISTS`] lists, which are entries too; a list has [`LISTED_MAX`] places, and a new datagram
//! that finds none takes that of the oldest, whose record ends then.
//!
//! **Identifications.** Two hosts behind one address may use the same one for the same destination
//! at the same time, and their datagrams would be mixed up there (RFC 3022 section 6.3). So when
//! the source is translated the identification is as well, by a mask that hangs on the ends: of one
//! sender they stay apart, of two they are as far apart as random ones.
//!
//! A datagram's name is a keyed hash of its ends and its identification. Whoever could make two of
//! one name could as well send under the other's addresses.
//!
//! ```text
//! record
//! byte  0      4              8             24     25        26     28          30
//!       ident  ports of the   as what it    flags  protocol  first  end, bytes  step
//!       4      first, 2 + 2   leaves, 16    1      1         2      2           2
//!       32              40
//!       mask of pieces  up to 6 ranges of units, 2 + 2 each
//! list
//! byte  0                      56
//!       names of datagrams, 7  the place of the oldest
//! ```
//!
//! All little-endian. For IPv4 "as what" is source and destination; for IPv6 the one address that
//! was changed, if any. Pure, as a function is; the pipe drives it.

#[cfg(test)]
mod tests;

use crate::nf::state_key::{self, KeyKind};
use crate::packet::fragment::{Datagram, Piece, UNIT_BYTES};
use crate::siphash::{HashKey, siphash};
use crate::verdict::DropReason;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::key::VALUE_BYTES;
use nearstate_store::{Address, Endpoint, Entry, Key, SlotId, TenantId, Value};

/// Lists of records in a slot.
pub const LISTS: u16 = 16;
/// Records in a list.
pub const LISTED_MAX: usize = 7;
/// Seconds that a list lives after it was changed: longer than any record that stands in it.
pub const LIST_S: u32 = 300;
/// Seconds that the record of an IPv4 datagram lives after its last fragment: the time of RFC 791.
/// Identifications of 16 bits come round soon, so it is no longer than that.
pub const RECORD_V4_S: u32 = 15;
/// The same for IPv6 (RFC 8200 section 4.5).
pub const RECORD_V6_S: u32 = 60;
/// Pieces that a mask holds.
const REGULAR_MAX: u16 = u64::BITS as u16;
/// Ranges of pieces that no mask holds.
const RANGES_MAX: usize = 6;

const _: () = assert!(LISTED_MAX * 8 < VALUE_BYTES);

/// Names datagrams; the same in all nodes of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct FragmentNames {
    key: HashKey,
}

/// A datagram's name, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramName {
    /// The hash of all that tells it from others.
    pub name: u64,
    /// What its identification is changed by if its source is translated.
    pub mask: u32,
}

impl FragmentNames {
    /// Names in a cluster whose steering has this seed.
    #[must_use]
    pub const fn new(seed: u32) -> Self {
        Self { key: HashKey(seed as u64, 0x6672_6167_6d65_6e74) }
    }

    /// The name of a datagram that came in on this side.
    #[must_use]
    pub fn name(&self, tenant: TenantId, side: Side, datagram: &Datagram) -> DatagramName {
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&tenant.0.to_le_bytes());
        bytes[2] = (side == Side::Outside).into();
        bytes[3] = datagram.tuple.protocol;
        bytes[8..24].copy_from_slice(&datagram.tuple.source.address.octets());
        bytes[24..40].copy_from_slice(&datagram.tuple.destination.address.octets());
        let ends = siphash(self.key, &bytes[..40]);
        bytes[40..44].copy_from_slice(&datagram.ident.to_le_bytes());
        DatagramName { name: siphash(self.key, &bytes), mask: (ends >> 32) as u32 }
    }
}

/// The key of the record of a datagram of this name.
#[must_use]
pub fn record_key(tenant: TenantId, name: u64) -> Key {
    state_key::fragment(tenant, name)
}

/// The key of the list that a record of this name stands in.
#[must_use]
pub fn list_key(tenant: TenantId, slot: SlotId, name: u64) -> Key {
    state_key::fragment_list(tenant, slot, name as u16 % LISTS)
}

/// A list of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// 0: nobody.
    names: [u64; LISTED_MAX],
    oldest: u8,
}

impl List {
    /// Reads a value of [`List::encode`].
    #[must_use]
    pub fn decode(value: &Value) -> Self {
        let mut names = [0; LISTED_MAX];
        names.copy_from_slice(&value.0[..LISTED_MAX]);
        Self { names, oldest: value.0[LISTED_MAX] as u8 % LISTED_MAX as u8 }
    }

    /// The value of an entry.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut words = [0; VALUE_BYTES / 8];
        words[..LISTED_MAX].copy_from_slice(&self.names);
        words[LISTED_MAX] = self.oldest.into();
        Value(words)
    }

    /// Whether this name stands in it.
    #[must_use]
    pub fn holds(&self, name: u64) -> bool {
        self.names.contains(&name)
    }

    /// The list with this name in it, and the name that had its place.
    #[must_use]
    pub fn with(mut self, name: u64) -> (Self, Option<u64>) {
        let place = &mut self.names[usize::from(self.oldest)];
        let before = core::mem::replace(place, name);
        self.oldest = (self.oldest + 1) % LISTED_MAX as u8;
        (self, (before != 0).then_some(before))
    }
}

/// Seconds that the record of such a datagram lives.
#[must_use]
pub const fn record_s(datagram: &Datagram) -> u32 {
    if datagram.tuple.source.ipv4().is_some() { RECORD_V4_S } else { RECORD_V6_S }
}

/// As what the fragments of a datagram leave. Ports are those of the first, or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departs {
    /// With these ends.
    pub tuple: FlowTuple,
    /// On the side that they came in on (hairpinning).
    pub is_turned: bool,
}

/// What a first fragment brings to its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Its ports, as it came in.
    pub ports: (u16, u16),
    /// As what it is to leave.
    pub departs: Departs,
}

/// What is to be done with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It leaves so.
    Leave(Departs),
    /// The record must be put first. `joins`: the fragment is part of it then, and leaves so.
    Put {
        /// What the record is to say.
        value: Value,
        /// As what the fragment leaves, unless this is what ends it.
        joins: Option<Departs>,
    },
    /// Its first fragment has not passed yet, as far as is known.
    Early,
    /// It ends here.
    Drop(DropReason),
}

const BAD: u8 = 1;
const TURNED: u8 = 2;
const SOURCE: u8 = 4;
const DESTINATION: u8 = 8;
const V6: u8 = 16;

/// Set in a range's first word: pieces have grown together in it.
const GROWN: u16 = 0x8000;

/// Units from the first up to, not including, the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Range {
    from: u16,
    to: u16,
    is_grown: bool,
}

impl Range {
    const fn is_empty(&self) -> bool {
        self.to == 0
    }
}

/// What is known of a datagram. See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    ident: u32,
    ports: (u16, u16),
    to: [u8; 16],
    flags: u8,
    protocol: u8,
    /// Units of the first fragment.
    first: u16,
    /// Bytes of the datagram; 0 if that is not known.
    end: u16,
    /// Units of a piece of the mask; 0 if none has shown them.
    step: u16,
    /// The pieces behind the first.
    mask: u64,
    ranges: [Range; RANGES_MAX],
}

/// How a piece fits to those that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// It has come before.
    Known,
    /// It is new; the record with it.
    New(Record),
    /// Its bytes have come before, but who knows whether cut so.
    Inside,
    /// It contradicts them.
    Overlap,
    /// There is no room for it.
    Scattered,
}

impl Record {
    /// The record of a datagram of which only the first fragment has come. `None` if later ones
    /// could not leave so.
    fn open(datagram: &Datagram, piece: &Piece, opening: &Opening) -> Option<Self> {
        let Departs { tuple, is_turned } = opening.departs;
        let FlowTuple { protocol, source, destination } = datagram.tuple;
        let is_same_family = |a: &Endpoint, b: &Endpoint| a.ipv4().is_some() == b.ipv4().is_some();
        if !is_same_family(&source, &tuple.source) || !is_same_family(&source, &tuple.destination) {
            return None;
        }
        let mut to = [0; 16];
        let mut flags = if is_turned { TURNED } else { 0 };
        if source.ipv4().is_some() {
            to[..4].copy_from_slice(&tuple.source.address.octets()[12..]);
            to[4..8].copy_from_slice(&tuple.destination.address.octets()[12..]);
        } else {
            flags |= V6;
            if source.address != tuple.source.address {
                flags |= SOURCE;
                to = tuple.source.address.octets();
            }
            if destination.address != tuple.destination.address {
                flags |= DESTINATION;
                to = tuple.destination.address.octets();
            }
            if flags & SOURCE != 0 && flags & DESTINATION != 0 {
                return None;
            }
        }
        Some(Self {
            ident: datagram.ident,
            ports: opening.ports,
            to,
            flags,
            protocol,
            first: piece.to(),
            end: 0,
            step: 0,
            mask: 0,
            ranges: [Range::default(); RANGES_MAX],
        })
    }

    /// The value of an entry.
    #[must_use]
    pub fn encode(&self) -> Value {
        let mut bytes = [0; VALUE_BYTES];
        bytes[..4].copy_from_slice(&self.ident.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.ports.0.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.ports.1.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.to);
        (bytes[24], bytes[25]) = (self.flags, self.protocol);
        bytes[26..28].copy_from_slice(&self.first.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.end.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.step.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.mask.to_le_bytes());
        for (chunk, range) in bytes[40..].as_chunks_mut::<4>().0.iter_mut().zip(&self.ranges) {
            let from = range.from | if range.is_grown { GROWN } else { 0 };
            chunk[..2].copy_from_slice(&from.to_le_bytes());
            chunk[2..].copy_from_slice(&range.to.to_le_bytes());
        }
        Value::from_bytes(&bytes)
    }

    /// Reads a value of [`Record::encode`].
    #[must_use]
    pub fn decode(value: &Value) -> Self {
        let bytes = value.to_bytes();
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let mut to = [0; 16];
        to.copy_from_slice(&bytes[8..24]);
        let ranges = core::array::from_fn(|number| {
            let (from, to) = (word(40 + number * 4), word(42 + number * 4));
            Range { from: from & !GROWN, to, is_grown: from & GROWN != 0 }
        });
        Self {
            ident: value.0[0] as u32,
            ports: (word(4), word(6)),
            to,
            flags: bytes[24],
            protocol: bytes[25],
            first: word(26),
            end: word(28),
            step: word(30),
            mask: value.0[4],
            ranges,
        }
    }

    const fn is_bad(&self) -> bool {
        self.flags & BAD != 0
    }

    const fn with_bad(mut self) -> Self {
        self.flags |= BAD;
        self
    }

    /// As what a fragment of this datagram leaves that came in with these ends.
    fn departs(&self, came: &FlowTuple) -> Departs {
        let mut tuple = *came;
        if self.flags & V6 == 0 {
            let [a, b, c, d, e, f, g, h, ..] = self.to;
            tuple.source = Endpoint::v4([a, b, c, d], came.source.port);
            tuple.destination = Endpoint::v4([e, f, g, h], came.destination.port);
        } else if self.flags & SOURCE != 0 {
            tuple.source.address = Address::from_octets(self.to);
        } else if self.flags & DESTINATION != 0 {
            tuple.destination.address = Address::from_octets(self.to);
        }
        Departs { tuple, is_turned: self.flags & TURNED != 0 }
    }

    /// The datagram's units, if its end is known.
    const fn end_units(&self) -> Option<u16> {
        if self.end == 0 { None } else { Some(self.end.div_ceil(UNIT_BYTES as u16)) }
    }

    /// The piece of a bit of the mask.
    fn regular(&self, bit: u16) -> Range {
        let from = self.first.saturating_add(bit.saturating_mul(self.step));
        let to = from.saturating_add(self.step);
        // The last one may be shorter.
        let to = self.end_units().map_or(to, |end| end.min(to));
        Range { from, to, is_grown: false }
    }

    /// The bit of the mask that a piece is, if it is one: of those that lie behind the first
    /// fragment at multiples of the step. `None` as long as there is no step.
    fn regular_bit(&self, piece: &Piece) -> Option<u16> {
        let behind = piece.from.checked_sub(self.first)?;
        let bit = behind.checked_div(self.step)?;
        let units = piece.to() - piece.from;
        let lies_so = behind.is_multiple_of(self.step)
            && bit < REGULAR_MAX
            && (units == self.step || (piece.is_last && units < self.step));
        lies_so.then_some(bit)
    }

    /// All that has come: the first, then bit by bit and range by range.
    fn pieces(&self) -> impl Iterator<Item = Range> + '_ {
        let first = Range { from: 0, to: self.first, is_grown: false };
        let bits = (0..REGULAR_MAX).filter(|bit| self.mask >> bit & 1 == 1);
        let regular = core::iter::once(first).chain(bits.map(|bit| self.regular(bit)));
        regular.chain(self.ranges.iter().filter(|range| !range.is_empty()).copied())
    }

    /// Whether every byte has come.
    fn is_complete(&self) -> bool {
        let Some(end) = self.end_units() else { return false };
        // Pieces do not overlap, so it is enough to count.
        self.pieces().map(|piece| u32::from(piece.to.saturating_sub(piece.from))).sum::<u32>()
            >= u32::from(end)
    }

    fn fit(&self, piece: &Piece) -> Fit {
        let (from, to) = (piece.from, piece.to());
        // Only the last one reaches to the end, and nothing reaches beyond it.
        let contradicts = match (self.end, piece.is_last) {
            (0, false) => false,
            // More was to follow whatever has come.
            (0, true) => self.pieces().any(|other| other.to >= to),
            (end, true) => end != piece.end_bytes(),
            (end, false) => piece.end_bytes() >= end,
        };
        if contradicts {
            return Fit::Overlap;
        }
        if let Some(other) = self.pieces().find(|other| from < other.to && other.from < to) {
            let is_inside = other.from <= from && to <= other.to;
            let is_same = other.from == from && other.to == to && !other.is_grown;
            return match (is_same, is_inside && other.is_grown) {
                (true, _) => Fit::Known,
                (false, true) => Fit::Inside,
                (false, false) => Fit::Overlap,
            };
        }
        let mut with = *self;
        if piece.is_last {
            with.end = piece.end_bytes();
        } else if with.step == 0 {
            // Senders cut all but the last alike. The first one may still be shorter.
            with.step = to - from;
        }
        match with.regular_bit(piece) {
            Some(bit) => with.mask |= 1 << bit,
            None => {
                if !with.add_range(Range { from, to, is_grown: false }) {
                    return Fit::Scattered;
                }
            }
        }
        Fit::New(with)
    }

    /// Adds a range that overlaps none. With no place left, neighbours grow together.
    fn add_range(&mut self, new: Range) -> bool {
        if let Some(place) = self.ranges.iter_mut().find(|range| range.is_empty()) {
            *place = new;
            return true;
        }
        for at in 0..RANGES_MAX {
            let range = &mut self.ranges[at];
            if range.to == new.from || new.to == range.from {
                let (from, to) = (range.from.min(new.from), range.to.max(new.to));
                *range = Range { from, to, is_grown: true };
                return true;
            }
        }
        for (a, b) in (0..RANGES_MAX).flat_map(|a| (0..RANGES_MAX).map(move |b| (a, b))) {
            if a != b && self.ranges[a].to == self.ranges[b].from {
                self.ranges[a] =
                    Range { from: self.ranges[a].from, to: self.ranges[b].to, is_grown: true };
                self.ranges[b] = new;
                return true;
            }
        }
        false
    }

    /// One sentence for people.
    #[must_use]
    pub fn words(&self) -> String {
        let (count, units) = self.pieces().fold((0, 0), |(count, units), piece| {
            (count + 1, units + u32::from(piece.to.saturating_sub(piece.from)))
        });
        let state = if self.is_bad() {
            "bad: fragments of it overlap"
        } else if self.is_complete() {
            "complete"
        } else {
            "not complete"
        };
        let end = if self.end == 0 { "?".to_owned() } else { self.end.to_string() };
        let unspecified = Endpoint::default();
        let tuple =
            FlowTuple { protocol: self.protocol, source: unspecified, destination: unspecified };
        let leaves = self.departs(&tuple);
        let address = |end: Endpoint| end.ip();
        let (source, destination) = (leaves.tuple.source, leaves.tuple.destination);
        let as_what = if self.flags & V6 == 0 {
            format!("from {} to {}", address(source), address(destination))
        } else if self.flags & SOURCE != 0 {
            format!("from {}", address(source))
        } else if self.flags & DESTINATION != 0 {
            format!("to {}", address(destination))
        } else {
            "untranslated".to_owned()
        };
        let turned = if leaves.is_turned { ", back inside" } else { "" };
        format!(
            "datagram {} leaves {as_what}{turned}; {count} pieces, {} of {end} bytes; {state}",
            self.ident,
            units as usize * UNIT_BYTES,
        )
    }
}

/// A fragment at its record.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Its datagram.
    pub datagram: &'a Datagram,
    /// Its bytes.
    pub piece: &'a Piece,
    /// What it brings, if it is the first.
    pub opening: Option<&'a Opening>,
    /// As what it leaves, if it is part of the record already: its transaction took effect.
    pub joined: Option<&'a Departs>,
}

/// Decides on a fragment by what is known of its datagram: `entry` is what lies at [`record_key`].
/// Once what was asked for is committed, the same fragment (`joined`) asks for nothing more. A
/// record that is not there yet needs a place in a [`List`] as well.
#[must_use]
pub fn decide(fragment: &Joining<'_>, entry: Option<&Entry>) -> Decision {
    let record = entry.map(|entry| Record::decode(&entry.value));
    if record.is_some_and(|record| record.is_bad()) {
        return Decision::Drop(DropReason::FragmentOverlap);
    }
    if let Some(departs) = fragment.joined {
        // Whatever has become of the record since then.
        return Decision::Leave(*departs);
    }
    match fragment.opening {
        Some(opening) => decide_first(fragment, opening, record.as_ref()),
        None => decide_later(fragment, record.as_ref()),
    }
}

fn decide_first(fragment: &Joining<'_>, opening: &Opening, record: Option<&Record>) -> Decision {
    let Joining { datagram, piece, .. } = *fragment;
    let Some(fresh) = Record::open(datagram, piece, opening) else {
        return Decision::Drop(DropReason::FragmentTranslation);
    };
    let begin = Decision::Put { value: fresh.encode(), joins: Some(opening.departs) };
    // A datagram that has come as a whole is over: the next one of its name is another.
    let Some(record) = record.filter(|record| !record.is_complete()) else { return begin };
    if record.ports != opening.ports || record.fit(piece) != Fit::Known {
        // Another header where one has passed already.
        return Decision::Put { value: record.with_bad().encode(), joins: None };
    }
    if (record.flags, record.to) == (fresh.flags, fresh.to) {
        Decision::Leave(opening.departs)
    } else {
        // Its flow is translated in another way than before.
        begin
    }
}

fn decide_later(fragment: &Joining<'_>, record: Option<&Record>) -> Decision {
    let Some(record) = record else { return Decision::Early };
    let departs = record.departs(&fragment.datagram.tuple);
    match record.fit(fragment.piece) {
        Fit::Known => Decision::Leave(departs),
        // It is of a datagram that comes after the one that is over.
        _ if record.is_complete() => Decision::Early,
        Fit::New(with) => Decision::Put { value: with.encode(), joins: Some(departs) },
        Fit::Overlap => Decision::Put { value: record.with_bad().encode(), joins: None },
        Fit::Inside => Decision::Drop(DropReason::FragmentRepeated),
        Fit::Scattered => Decision::Drop(DropReason::FragmentScattered),
    }
}

/// What the entry of a record or of a list says, for people.
#[must_use]
pub fn describe(key: &Key, value: &Value) -> Option<String> {
    match KeyKind::of(key)? {
        KeyKind::Fragment => Some(Record::decode(value).words()),
        KeyKind::FragmentList => {
            let count = List::decode(value).names.iter().filter(|name| **name != 0).count();
            Some(format!("{count} datagrams in fragments"))
        }
        _ => None,
    }
}
