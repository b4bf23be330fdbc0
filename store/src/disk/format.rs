//! The form of a segment: a header, then records, all checksummed.
//!
//! ```text
//! header    magic 8, format version 4, shard 2, zero 2, cluster 8, lineage 8, life 8, node 8,
//!           segment number 8, serial of the first record 8, zero 4, CRC-32 of all before 4
//! record    length of body 4, CRC-32 of everything else 4, serial 8, durable 8, kind 1, body,
//!           zeroes up to a multiple of 8
//! ```
//!
//! All numbers are little-endian. Records are numbered through the whole log without gaps.
//! `durable` says which records were on the disk when this one was written: all with a smaller
//! serial. That tells a torn tail from damage: a bad record that a later one knows to have been on
//! the disk was not torn by a crash. The checksum of a record begins with the one of its segment's
//! header, so a record of another segment, shard, node or life never fits.
//!
//! Decoding is total: a value or an error, and no more memory than the bytes given.

use crate::consensus::{GROUP_NODES_MAX, PAYLOAD_BYTES_MAX};
use crate::types::{NodeId, ShardId};
use crate::wire::{Ballot, Members, Position};
use rkyv::util::AlignedVec;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"NSTRLOG\0";
/// Rises with every change of the form of segments or snapshot files.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 72;
/// Bytes of a record before its body.
pub(crate) const RECORD_HEAD: usize = 25;
/// Records begin at multiples of it.
pub(crate) const ALIGNMENT: usize = 8;
/// Bytes of a record's body: a payload and its position, or less.
pub(crate) const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 64;

const _: () = assert!(3 * (1 + 8 * GROUP_NODES_MAX) + 32 < BODY_BYTES_MAX);

/// Whose files these are. Stands in every file; a file of somebody else is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u64,
    /// Which forming of the cluster.
    pub lineage: u64,
    /// The life of the node that wrote them: its nonce. A wiped node of the same id has another.
    pub life: u64,
    /// The node.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) number: u64,
    pub(crate) first_serial: u64,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Cut short, another magic, or a checksum that does not fit.
    Damaged(&'static str),
    /// Of another version of the format.
    Version(u32),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.identity.shard.0.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        let Identity { cluster, lineage, life, node, .. } = self.identity;
        for word in [cluster, lineage, life, node.0, self.number, self.first_serial] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&[0; 4]);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(BadHeader::Damaged("its header is cut"))?;
        let mut source = Source(bytes);
        let damaged = |_| BadHeader::Damaged("its header is cut");
        if source.array().map_err(damaged)? != MAGIC {
            return Err(BadHeader::Damaged("it does not begin like a segment"));
        }
        let version = source.u32().map_err(damaged)?;
        if version != FORMAT_VERSION {
            return Err(BadHeader::Version(version));
        }
        let crc = u32::from_le_bytes([bytes[68], bytes[69], bytes[70], bytes[71]]);
        if crc != crc32fast::hash(&bytes[..68]) {
            return Err(BadHeader::Damaged("the checksum of its header does not fit"));
        }
        let shard = ShardId(u16::from_le_bytes(source.array().map_err(damaged)?));
        source.array::<2>().map_err(damaged)?;
        let mut word = || source.u64().map_err(damaged);
        let (cluster, lineage, life, node) = (word()?, word()?, word()?, NodeId(word()?));
        let (number, first_serial) = (word()?, word()?);
        let identity = Identity { cluster, lineage, life, node, shard };
        Ok(Self { identity, number, first_serial })
    }

    /// What the checksums of the segment's records begin with.
    pub(crate) fn seed(&self) -> u32 {
        crc32fast::hash(&self.encode())
    }
}

/// What an entry holds.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Blank,
    Payload(Arc<AlignedVec>),
    Members(Members),
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Blank, Self::Blank) => true,
            (Self::Payload(one), Self::Payload(two)) => one.as_slice() == two.as_slice(),
            (Self::Members(one), Self::Members(two)) => one == two,
            _ => false,
        }
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) at: Position,
    pub(crate) body: Body,
}

/// What was known of the log when a segment was begun, so that older segments may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogState {
    pub(crate) vote: Option<Ballot>,
    pub(crate) committed: Option<Position>,
    pub(crate) purged: Option<Position>,
    /// The last entry, or the last purged one.
    pub(crate) last: Option<Position>,
    /// The index of the first entry that is kept, or of the one that comes first.
    pub(crate) first: u64,
}

impl LogState {
    /// The index of the entry that comes next.
    pub(crate) fn next(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1).max(self.first)
    }

    /// What a record makes of it.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Base(base) => *self = *base,
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(committed) => self.committed = *committed,
            Record::Closed => {}
            Record::Entry(entry) => {
                let at = entry.at;
                if self.next() == self.first && at.index > self.first {
                    // An empty log may begin behind a snapshot.
                    self.first = at.index;
                }
                if at.index > self.next() || at.index < self.first {
                    return Err("an entry would leave a gap");
                }
                self.last = Some(at);
            }
            Record::Truncate(keep) => {
                if keep.map_or(0, |keep| keep.index + 1) < self.next() {
                    self.last = keep.filter(|keep| keep.index >= self.first).or(self.purged);
                }
            }
            Record::Purge(upto) => {
                if self.purged.is_none_or(|purged| purged.index < upto.index) {
                    if upto.index >= self.next() {
                        self.last = Some(*upto);
                    }
                    self.first = upto.index + 1;
                    self.purged = Some(*upto);
                }
            }
        }
        Ok(())
    }
}

/// One thing that happened to the log, in the order in which it happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// The first record of every segment.
    Base(LogState),
    Entry(Entry),
    Vote(Ballot),
    Committed(Option<Position>),
    /// Everything after it is gone.
    Truncate(Option<Position>),
    /// Everything up to it is in a snapshot.
    Purge(Position),
    /// The replica ended in good order.
    Closed,
}

/// A record's place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) serial: u64,
    pub(crate) durable: u64,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadRecord {
    /// Not all of it is there, or its length cannot be.
    Cut,
    /// The checksum does not fit.
    Checksum,
    /// The checksum fits and it makes no sense all the same: no crash does that.
    Content(&'static str),
}

/// Puts a record behind what is there.
pub(crate) fn encode(seed: u32, place: Place, record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&place.serial.to_le_bytes());
    out.extend_from_slice(&place.durable.to_le_bytes());
    out.push(kind(record));
    encode_body(record, out);
    let body = out.len() - start - RECORD_HEAD;
    assert!(body <= BODY_BYTES_MAX, "a record of {body} bytes was to be written");
    out.resize(start + padded(body), 0);
    out[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
    let crc = checksum(seed, &out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Bytes of a whole record with such a body.
const fn padded(body: usize) -> usize {
    (RECORD_HEAD + body).next_multiple_of(ALIGNMENT)
}

fn checksum(seed: u32, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// The record at the beginning of these bytes, and how many of them it takes.
pub(crate) fn decode(seed: u32, bytes: &[u8]) -> Result<(Place, Record, usize), BadRecord> {
    let (place, length) = check(seed, bytes)?;
    let body = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let content = &bytes[RECORD_HEAD..RECORD_HEAD + body];
    let record = decode_body(bytes[24], Source(content)).map_err(BadRecord::Content)?;
    Ok((place, record, length))
}

/// Whether a whole record begins here; its place and length.
pub(crate) fn check(seed: u32, bytes: &[u8]) -> Result<(Place, usize), BadRecord> {
    let mut source = Source(bytes);
    let cut = |_| BadRecord::Cut;
    let body = source.u32().map_err(cut)? as usize;
    let crc = source.u32().map_err(cut)?;
    let place = Place { serial: source.u64().map_err(cut)?, durable: source.u64().map_err(cut)? };
    if body > BODY_BYTES_MAX {
        return Err(BadRecord::Cut);
    }
    let whole = bytes.get(..padded(body)).ok_or(BadRecord::Cut)?;
    if checksum(seed, whole) != crc {
        return Err(BadRecord::Checksum);
    }
    if place.durable > place.serial {
        return Err(BadRecord::Content("it claims to have been on the disk before it was"));
    }
    Ok((place, whole.len()))
}

const fn kind(record: &Record) -> u8 {
    match record {
        Record::Base(_) => 1,
        Record::Entry(_) => 2,
        Record::Vote(_) => 3,
        Record::Committed(_) => 4,
        Record::Truncate(_) => 5,
        Record::Purge(_) => 6,
        Record::Closed => 7,
    }
}

fn encode_body(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Base(state) => {
            put_option(state.vote.as_ref(), put_ballot, out);
            for position in [state.committed, state.purged, state.last] {
                put_option(position.as_ref(), put_position, out);
            }
            out.extend_from_slice(&state.first.to_le_bytes());
        }
        Record::Entry(Entry { at, body }) => {
            put_position(at, out);
            match body {
                Body::Blank => out.push(0),
                Body::Payload(bytes) => {
                    out.push(1);
                    out.extend_from_slice(bytes);
                }
                Body::Members(members) => {
                    out.push(2);
                    put_members(members, out);
                }
            }
        }
        Record::Vote(ballot) => put_ballot(ballot, out),
        Record::Committed(at) | Record::Truncate(at) => {
            put_option(at.as_ref(), put_position, out);
        }
        Record::Purge(upto) => put_position(upto, out),
        Record::Closed => {}
    }
}

fn decode_body(kind: u8, mut source: Source<'_>) -> Result<Record, &'static str> {
    let record = match kind {
        1 => Record::Base(LogState {
            vote: source.option(Source::ballot)?,
            committed: source.option(Source::position)?,
            purged: source.option(Source::position)?,
            last: source.option(Source::position)?,
            first: source.u64()?,
        }),
        2 => {
            let at = source.position()?;
            let body = match source.array()? {
                [0] => Body::Blank,
                [1] => {
                    let bytes = core::mem::take(&mut source.0);
                    let mut aligned = AlignedVec::with_capacity(bytes.len());
                    aligned.extend_from_slice(bytes);
                    Body::Payload(Arc::new(aligned))
                }
                [2] => Body::Members(source.members()?),
                _ => return Err("an entry of an unknown kind"),
            };
            Record::Entry(Entry { at, body })
        }
        3 => Record::Vote(source.ballot()?),
        4 => Record::Committed(source.option(Source::position)?),
        5 => Record::Truncate(source.option(Source::position)?),
        6 => Record::Purge(source.position()?),
        7 => Record::Closed,
        _ => return Err("a record of an unknown kind"),
    };
    source.end()?;
    Ok(record)
}

pub(crate) fn put_option<T>(value: Option<&T>, put: fn(&T, &mut Vec<u8>), out: &mut Vec<u8>) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(value, out);
    }
}

pub(crate) fn put_position(at: &Position, out: &mut Vec<u8>) {
    out.extend_from_slice(&at.term.to_le_bytes());
    out.extend_from_slice(&at.index.to_le_bytes());
}

fn put_ballot(ballot: &Ballot, out: &mut Vec<u8>) {
    out.extend_from_slice(&ballot.term.to_le_bytes());
    out.extend_from_slice(&ballot.node.to_le_bytes());
    out.push(u8::from(ballot.committed));
}

pub(crate) fn put_members(members: &Members, out: &mut Vec<u8>) {
    // Groups are bounded far below what a byte counts: `GROUP_NODES_MAX`.
    out.push(members.configs.len() as u8);
    for list in members.configs.iter().chain([&members.nodes]) {
        out.push(list.len() as u8);
        for node in list {
            out.extend_from_slice(&node.to_le_bytes());
        }
    }
}

/// Bytes that are read from the front; too few of them is an error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a>(pub(crate) &'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn slice(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (front, rest) = self.0.split_at_checked(length).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(front)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.slice(N)?);
        Ok(bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self) -> Result<bool, &'static str> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err("neither yes nor no"),
        }
    }

    pub(crate) fn option<T>(
        &mut self,
        read: fn(&mut Self) -> Result<T, &'static str>,
    ) -> Result<Option<T>, &'static str> {
        if self.flag()? { read(self).map(Some) } else { Ok(None) }
    }

    pub(crate) fn position(&mut self) -> Result<Position, &'static str> {
        let at = Position { term: self.u64()?, index: self.u64()? };
        if at.term == u64::MAX || at.index >= u64::MAX - 1 {
            return Err("a place in the log that cannot be");
        }
        Ok(at)
    }

    fn ballot(&mut self) -> Result<Ballot, &'static str> {
        let ballot = Ballot { term: self.u64()?, node: self.u64()?, committed: self.flag()? };
        if ballot.term == u64::MAX { Err("a vote that cannot be") } else { Ok(ballot) }
    }

    pub(crate) fn members(&mut self) -> Result<Members, &'static str> {
        let [count] = self.array()?;
        if count > 2 {
            return Err("a group of more than two parts");
        }
        let configs = (0..count).map(|_| self.nodes()).collect::<Result<Vec<_>, _>>()?;
        let nodes = self.nodes()?;
        if configs.iter().flatten().any(|node| !nodes.contains(node)) {
            return Err("a voter that is no member");
        }
        Ok(Members { configs, nodes })
    }

    fn nodes(&mut self) -> Result<Vec<u64>, &'static str> {
        let [count] = self.array()?;
        if usize::from(count) > GROUP_NODES_MAX {
            return Err("a group that is too large");
        }
        (0..count).map(|_| self.u64()).collect()
    }

    /// Nothing may be left.
    pub(crate) const fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("it is too long") }
    }
}
