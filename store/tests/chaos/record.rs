//! What a process writes down while it happens, one file a process.
//!
//! A record is eight words, appended by one system call before the process goes on: what a killed
//! process wrote stays in the page cache, and a call that the kill cut short ends on a page's edge,
//! which is also a record's. Times are of the boot clock, which all processes of a host share. This
//! file knows the form of records and nothing of what they prove.

use crate::dice::mix;
use nearstate_store::{
    Endpoint, Key, LogIndex, NodeId, Outcome, ShardId, SlotId, TenantId, Term, Time, Value, Version,
};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Flow shards of the cluster; numbered from 1.
pub(crate) const SHARDS: u16 = 2;
/// Slots of the cluster.
pub(crate) const SLOTS: u32 = 64;
/// Words of a record.
const WORDS: usize = 8;
const BYTES: usize = WORDS * 8;

/// Which key: a number, so that records are short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyNumber(pub(crate) u64);

impl KeyNumber {
    pub(crate) fn key(self) -> Key {
        let [a, b, c, d, e, f, ..] = self.0.to_le_bytes();
        let inside = Endpoint::v4([10, c, b, a], u16::from_le_bytes([d, e]));
        Key::new(3, 17, TenantId(u16::from(f)), (inside, Endpoint::v4([192, 0, 2, 1], 53)))
    }

    pub(crate) fn slot(self) -> SlotId {
        SlotId((self.0 % u64::from(SLOTS)) as u16)
    }

    pub(crate) fn shard(self) -> ShardId {
        shard_of(self.slot())
    }
}

/// Which shard holds a slot, from the first to the last moment.
pub(crate) const fn shard_of(slot: SlotId) -> ShardId {
    ShardId(1 + slot.0 % SHARDS)
}

/// One operation of one client: its client's number and its serial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OpId(pub(crate) u64);

impl OpId {
    pub(crate) const fn new(client: u64, serial: u64) -> Self {
        assert!(client < 1 << 32 && serial < 1 << 32);
        Self(client << 32 | serial)
    }
}

/// The value that an operation writes to a key. Every word follows from both, so that a value which
/// was put together from two is none of them.
pub(crate) fn value_of(op: OpId, key: KeyNumber) -> Value {
    let mut words = [0; 8];
    for (at, word) in words.iter_mut().enumerate().skip(2) {
        *word = mix(op.0 ^ mix(key.0).rotate_left(at as u32));
    }
    (words[0], words[1]) = (op.0, key.0);
    Value(words)
}

/// Who wrote the value of a key; `None` if nobody ever writes such a value.
pub(crate) fn writer_of(value: &Value, key: KeyNumber) -> Option<OpId> {
    let op = OpId(value.0[0]);
    (value_of(op, key) == *value).then_some(op)
}

/// What a client wants to do to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Whatever is there.
    Put,
    /// If there is nothing.
    Create,
    /// If what is there was written by this operation, at this version.
    Swap(OpId, Version),
    /// If there is something.
    Delete,
}

/// Which way a read took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// In place, in the owner's process.
    Local,
    /// One-sided, in another process's memory.
    Mapped,
    /// Asked for over TCP.
    Tcp,
    /// Asked for over a link, in the owner's process.
    Asked,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Local, Self::Mapped, Self::Tcp, Self::Asked];
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    /// Written by whom, and the version that it carried.
    Entry(OpId, Version),
    /// Something that nobody ever writes to that key.
    Nonsense,
}

/// A read that somebody was told the result of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadRecord {
    pub(crate) from: Time,
    /// When its lease was seen to be still good.
    pub(crate) to: Time,
    pub(crate) key: KeyNumber,
    pub(crate) way: Way,
    pub(crate) seen: Seen,
    /// The owner's term, if the way shows it; otherwise 0.
    pub(crate) term: Term,
}

/// One thing that happened. See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A client is about to ask.
    Invoked {
        at: Time,
        op: OpId,
        key: KeyNumber,
        action: Action,
    },
    /// It was answered; without an outcome nothing is known.
    Answered {
        at: Time,
        op: OpId,
        outcome: Option<Outcome>,
    },
    Read(ReadRecord),
    /// A payload is about to be put into this process's log.
    Received {
        at: Time,
        payload: u64,
    },
    /// An entry was applied, from `at` on; its transactions follow.
    Applied {
        at: Time,
        shard: ShardId,
        index: LogIndex,
        term: Term,
        payload: u64,
    },
    /// One transaction of the entry before.
    Decided {
        op: OpId,
        outcome: Outcome,
    },
    /// A node is about to apply an entry: whoever reads what it does there reads it after this.
    Entered {
        at: Time,
        shard: ShardId,
        index: LogIndex,
    },
    /// The state after an entry, as a hash.
    Hashed {
        shard: ShardId,
        index: LogIndex,
        hash: u64,
    },
    /// This process becomes owner.
    Owner {
        at: Time,
        shard: ShardId,
        term: Term,
    },
    /// Who leads, as this process sees it.
    Leader {
        at: Time,
        shard: ShardId,
        term: Term,
        leader: NodeId,
    },
    /// The test is about to ask for this node's vote.
    Promoted {
        at: Time,
        node: NodeId,
    },
    /// At the end: what the table holds.
    Final {
        key: KeyNumber,
        op: OpId,
        version: Version,
    },
    /// After all entries of a shard.
    FinalEnd {
        shard: ShardId,
        applied: LogIndex,
        entries: u64,
    },
}

const UNKNOWN: (u64, u64) = (0, 0);

fn outcome_words(outcome: Option<Outcome>) -> (u64, u64) {
    match outcome {
        None => UNKNOWN,
        Some(Outcome::Committed(index)) => (1, index.0),
        Some(Outcome::ConditionFailed(number)) => (2, number.into()),
        // Which refusal does not matter: none is expected, and no slot moves.
        Some(Outcome::Refused(_) | Outcome::Elsewhere(_)) => (3, 0),
    }
}

fn outcome_of(words: (u64, u64)) -> Option<Outcome> {
    match words {
        UNKNOWN => None,
        (1, index) => Some(Outcome::Committed(LogIndex(index))),
        (2, number) => Some(Outcome::ConditionFailed(number as u8)),
        _ => Some(Outcome::Refused(nearstate_store::Refusal::Malformed)),
    }
}

impl Record {
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        match self {
            Self::Invoked { at, op, key, action } => {
                let (kind, expected, version) = match action {
                    Action::Put => (0, 0, 0),
                    Action::Create => (1, 0, 0),
                    Action::Swap(expected, version) => (2, expected.0, version.0),
                    Action::Delete => (3, 0, 0),
                };
                [1, at.0, op.0, key.0, kind, expected, version, 0]
            }
            Self::Answered { at, op, outcome } => {
                let (kind, detail) = outcome_words(outcome);
                [2, at.0, op.0, kind, detail, 0, 0, 0]
            }
            Self::Read(ReadRecord { from, to, key, way, seen, term }) => {
                let (kind, op, version) = match seen {
                    Seen::Nothing => (0, 0, 0),
                    Seen::Entry(op, version) => (1, op.0, version.0),
                    Seen::Nonsense => (2, 0, 0),
                };
                [3 | kind << 8 | (way as u64) << 16, from.0, to.0, key.0, op, version, term.0, 0]
            }
            Self::Received { at, payload } => [4, at.0, payload, 0, 0, 0, 0, 0],
            Self::Applied { at, shard, index, term, payload } => {
                [5, at.0, shard.0.into(), index.0, term.0, payload, 0, 0]
            }
            Self::Decided { op, outcome } => {
                let (kind, detail) = outcome_words(Some(outcome));
                [6, op.0, kind, detail, 0, 0, 0, 0]
            }
            Self::Owner { at, shard, term } => [7, at.0, shard.0.into(), term.0, 0, 0, 0, 0],
            Self::Leader { at, shard, term, leader } => {
                [8, at.0, shard.0.into(), term.0, leader.0, 0, 0, 0]
            }
            Self::Promoted { at, node } => [9, at.0, node.0, 0, 0, 0, 0, 0],
            Self::Final { key, op, version } => [10, key.0, op.0, version.0, 0, 0, 0, 0],
            Self::Entered { at, shard, index } => [13, at.0, shard.0.into(), index.0, 0, 0, 0, 0],
            Self::Hashed { shard, index, hash } => [12, shard.0.into(), index.0, hash, 0, 0, 0, 0],
            Self::FinalEnd { shard, applied, entries } => {
                [11, shard.0.into(), applied.0, entries, 0, 0, 0, 0]
            }
        }
    }

    /// `None`: no record is written like that.
    pub(crate) fn of_words([head, a, b, c, d, e, f, _]: [u64; WORDS]) -> Option<Self> {
        let shard = |word| ShardId(word as u16);
        Some(match head & 0xff {
            1 => {
                let action = match d {
                    0 => Action::Put,
                    1 => Action::Create,
                    2 => Action::Swap(OpId(e), Version(f)),
                    3 => Action::Delete,
                    _ => return None,
                };
                Self::Invoked { at: Time(a), op: OpId(b), key: KeyNumber(c), action }
            }
            2 => Self::Answered { at: Time(a), op: OpId(b), outcome: outcome_of((c, d)) },
            3 => {
                let seen = match head >> 8 & 0xff {
                    0 => Seen::Nothing,
                    1 => Seen::Entry(OpId(d), Version(e)),
                    _ => Seen::Nonsense,
                };
                let way = *Way::ALL.get((head >> 16) as usize)?;
                let (from, to, key, term) = (Time(a), Time(b), KeyNumber(c), Term(f));
                Self::Read(ReadRecord { from, to, key, way, seen, term })
            }
            4 => Self::Received { at: Time(a), payload: b },
            5 => {
                let (index, term) = (LogIndex(c), Term(d));
                Self::Applied { at: Time(a), shard: shard(b), index, term, payload: e }
            }
            6 => Self::Decided { op: OpId(a), outcome: outcome_of((b, c))? },
            7 => Self::Owner { at: Time(a), shard: shard(b), term: Term(c) },
            8 => {
                let leader = NodeId(d);
                Self::Leader { at: Time(a), shard: shard(b), term: Term(c), leader }
            }
            9 => Self::Promoted { at: Time(a), node: NodeId(b) },
            10 => Self::Final { key: KeyNumber(a), op: OpId(b), version: Version(c) },
            11 => Self::FinalEnd { shard: shard(a), applied: LogIndex(b), entries: c },
            13 => Self::Entered { at: Time(a), shard: shard(b), index: LogIndex(c) },
            12 => Self::Hashed { shard: shard(a), index: LogIndex(b), hash: c },
            _ => return None,
        })
    }
}

/// Where a process writes. A clone writes to the same file.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(Arc<File>);

impl Recorder {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    /// Writes records down, together.
    ///
    /// # Panics
    /// If the file takes no more: a history with holes proves nothing.
    pub(crate) fn write(&self, records: &[Record]) {
        let mut bytes = Vec::with_capacity(records.len() * BYTES);
        for record in records {
            for word in record.to_words() {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        (&*self.0).write_all(&bytes).expect("there is room for records");
    }
}

/// The file of a node's records; node 0 is the test itself.
pub(crate) fn path_of(directory: &Path, node: NodeId) -> PathBuf {
    directory.join(format!("{}.records", node.0))
}

/// All records of a file, in the order in which they were written.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Record>> {
    let bytes = std::fs::read(path)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{path:?}: no record"));
    let (records, _cut_short) = bytes.as_chunks::<BYTES>();
    records
        .iter()
        .map(|bytes| {
            let mut words = [0; WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            Record::of_words(words).ok_or_else(invalid)
        })
        .collect()
}

/// A payload's name in the records.
pub(crate) fn payload_name(payload: &[u8]) -> u64 {
    let (words, rest) = payload.as_chunks::<8>();
    let fold = |name: u64, word: u64| mix(name ^ word).wrapping_add(1);
    let name = words.iter().fold(payload.len() as u64, |n, w| fold(n, u64::from_le_bytes(*w)));
    rest.iter().fold(name, |name, byte| fold(name, u64::from(*byte)))
}

#[test]
fn records_are_read_as_they_were_written_and_a_cut_one_is_left_out() {
    let (at, op, key, term) = (Time(5), OpId::new(7, 9), KeyNumber(77), Term(3));
    let (shard, index, version) = (ShardId(2), LogIndex(11), Version(6));
    let mut all = vec![
        Record::Received { at, payload: u64::MAX },
        Record::Applied { at, shard, index, term, payload: 4 },
        Record::Entered { at, shard, index },
        Record::Hashed { shard, index, hash: 12 },
        Record::Owner { at, shard, term },
        Record::Leader { at, shard, term, leader: NodeId(8) },
        Record::Promoted { at, node: NodeId(8) },
        Record::Final { key, op, version },
        Record::FinalEnd { shard, applied: index, entries: 1 },
        Record::Answered { at, op, outcome: None },
    ];
    for outcome in [Outcome::Committed(index), Outcome::ConditionFailed(1)] {
        all.push(Record::Answered { at, op, outcome: Some(outcome) });
        all.push(Record::Decided { op, outcome });
    }
    for action in [Action::Put, Action::Create, Action::Swap(op, version), Action::Delete] {
        all.push(Record::Invoked { at, op, key, action });
    }
    for way in Way::ALL {
        for seen in [Seen::Nothing, Seen::Entry(op, version), Seen::Nonsense] {
            all.push(Record::Read(ReadRecord { from: at, to: Time(6), key, way, seen, term }));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = path_of(directory.path(), NodeId(1));
    Recorder::create(&path).unwrap().write(&all);
    assert_eq!(read(&path).unwrap(), all);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(read(&path).unwrap(), all[..all.len() - 1]);
}

#[test]
fn a_value_put_together_from_two_is_nobodys() {
    let (key, one, two) = (KeyNumber(3), OpId::new(1, 1), OpId::new(1, 2));
    let (first, second) = (value_of(one, key), value_of(two, key));
    assert_eq!((writer_of(&first, key), writer_of(&second, key)), (Some(one), Some(two)));
    assert_eq!(writer_of(&first, KeyNumber(4)), None, "another key's");
    for cut in 1..8 {
        let mut mixed = first;
        mixed.0[cut..].copy_from_slice(&second.0[cut..]);
        // The second word is the key's and the same in both.
        assert_eq!(writer_of(&mixed, key), None, "cut at {cut}");
    }
}
