//! The words of a slot's move from one shard to another, and how they stand in the shards' logs.
//!
//! A move has a number; numbers rise, and of all moves of a cluster one is under way at a time.
//! Each step is an entry in the log of one of the two shards, decided there in order with
//! everything else, and answered; a step that is done already says so and changes nothing:
//!
//! ```text
//! target  Begin    an import begins, and any earlier attempt at it is forgotten
//! target  Piece    entries and outcomes, in order; nobody is served them
//! source  Seal     no transaction of the slot takes effect any more, and nothing of it is read
//! target  Adopt    the last piece, and the slot is held: reads and transactions are served
//! source  Drop     what is left of the slot goes
//!
//! source  Unseal   the move is given up: the slot is served as before
//! target  GiveUp   the move is given up: what was imported goes
//! ```
//!
//! Reads and writes of the slot rest from the seal to the adoption, and for nothing else.
//!
//! As bytes: format 1, time 8, number 8, kind 1, and what the kind needs; little-endian. Decoding
//! is total and bounded: a step, or an error.

use crate::Entry;
use crate::batch::{self, STAMP_AT};
use crate::consensus::PAYLOAD_BYTES_MAX;
use crate::key::{KEY_BYTES, Key, VALUE_BYTES, Value};
use crate::lifetimes::TTL_MAX_S;
use crate::machine::{PayloadError, SnapshotError};
use crate::snapshot::{Source, read_outcome, write_outcome};
use crate::transaction::{Outcome, TransactionId};
use crate::types::{ShardId, SlotId, Version};

/// Entries of one piece, and keys of one step.
pub const PIECE_KEYS_MAX: usize = 512;
/// Outcomes of one piece.
pub const PIECE_OUTCOMES_MAX: usize = 2048;
/// Bytes of pools of one piece.
pub const PIECE_POOL_BYTES_MAX: usize = 64 << 10;
/// Bytes that the pools of one slot may take.
pub const POOLS_BYTES_MAX: usize = 64 << 20;
/// Entries that a target drops in one step.
pub const GIVE_UP_MAX: usize = 1024;

/// The first byte: batches have another.
pub(crate) const FORMAT: u8 = 4;
const _: () = assert!(FORMAT != batch::FORMAT);
const HEAD_BYTES: usize = 18;
const ENTRY_BYTES: usize = KEY_BYTES + VALUE_BYTES + 12;
const OUTCOME_BYTES: usize = 25;

const _: () = assert!(
    PIECE_KEYS_MAX * (ENTRY_BYTES + KEY_BYTES)
        + PIECE_OUTCOMES_MAX * OUTCOME_BYTES
        + PIECE_POOL_BYTES_MAX
        + 256
        <= PAYLOAD_BYTES_MAX
);

/// An entry on its way. Its life begins again where it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedEntry {
    /// Its key.
    pub key: Key,
    /// What it holds.
    pub value: Value,
    /// The version that it has, and keeps.
    pub version: Version,
    /// Seconds that it lives after it was last seen; 0 is without end.
    pub ttl_s: u32,
}

/// A part of what a slot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The source's count of mutations: no entry has a higher version.
    pub mutations: u64,
    /// Entries that are new or have changed.
    pub entries: Vec<MovedEntry>,
    /// Keys whose entries are gone.
    pub removed: Vec<Key>,
    /// What came of transactions of the slot: a retry is recognised at the target.
    pub outcomes: Vec<(TransactionId, Outcome)>,
    /// The next bytes of the slot's pools.
    pub pools: Vec<u8>,
}

impl Piece {
    /// Entries, keys and outcomes in it.
    #[must_use]
    pub fn items(&self) -> usize {
        self.entries.len() + self.removed.len() + self.outcomes.len()
    }
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// At the target. Another attempt at the same move begins anew.
    Begin {
        /// Drawn by who drives the move: its pieces belong together.
        attempt: u64,
        /// Which slot comes.
        slot: SlotId,
    },
    /// At the target.
    Piece {
        /// The attempt that it belongs to.
        attempt: u64,
        /// The how-many-th it is, from 0: none counts twice, none is left out.
        place: u32,
        /// The content.
        piece: Piece,
    },
    /// At the target.
    Adopt {
        /// The attempt that was imported.
        attempt: u64,
        /// Pieces of it that came before.
        pieces: u32,
        /// What the seal left to be sent.
        last: Piece,
    },
    /// At the target: as many imported entries go as one step may take.
    GiveUp {
        /// Which slot would have come.
        slot: SlotId,
    },
    /// At the source.
    Seal {
        /// Which slot goes.
        slot: SlotId,
        /// Where to.
        to: ShardId,
    },
    /// At the source.
    Unseal {
        /// Which slot stays.
        slot: SlotId,
    },
    /// At the source, once sealed.
    Drop {
        /// Entries that go.
        keys: Vec<Key>,
        /// Whether none is left then. Not so if the shard knows of more.
        is_last: bool,
    },
}

/// A step of a move, as it stands in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveEntry {
    /// The shard's time; its owner sets it.
    pub time_ms: u64,
    /// Which move, from 1.
    pub number: u64,
    /// What is done.
    pub step: Step,
}

/// What a shard answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReply {
    /// It is so now.
    Done,
    /// A part is done: ask again.
    More,
    /// The move, or a later one, is over in this shard; whether it holds the slot now.
    Over {
        /// Whether it does.
        holds: bool,
    },
    /// Another attempt has begun meanwhile, or a piece is missing: begin again.
    OtherAttempt,
    /// Nothing was changed, and nothing will be by asking again: the move cannot be.
    Impossible(Obstacle),
    /// A step that does not fit the state of the shard.
    OutOfTurn,
}

/// Why a move cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The target's table has no room.
    #[error("the target's table has no room for the slot's entries: raise `table-capacity`")]
    TableFull,
    /// A key of the slot lies in the target under another slot.
    #[error("the target has an entry of the same key in another slot")]
    KeyElsewhere,
    /// The source does not hold the slot.
    #[error("the source does not hold the slot")]
    NotHeld,
    /// The parts contradict each other.
    #[error("what was sent contradicts itself")]
    Contradiction,
}

impl MoveReply {
    /// As a machine answers.
    #[must_use]
    pub fn encode(self) -> Box<[u8]> {
        let (kind, detail) = match self {
            Self::Done => (0, 0),
            Self::More => (1, 0),
            Self::Over { holds } => (2, u8::from(holds)),
            Self::OtherAttempt => (3, 0),
            Self::Impossible(obstacle) => (4, obstacle as u8),
            Self::OutOfTurn => (5, 0),
        };
        Box::new([kind, detail])
    }

    /// Reads an answer back; `None` if it is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Some(match *bytes {
            [0, 0] => Self::Done,
            [1, 0] => Self::More,
            [2, holds @ 0..=1] => Self::Over { holds: holds == 1 },
            [3, 0] => Self::OtherAttempt,
            [4, 0] => Self::Impossible(Obstacle::TableFull),
            [4, 1] => Self::Impossible(Obstacle::KeyElsewhere),
            [4, 2] => Self::Impossible(Obstacle::NotHeld),
            [4, 3] => Self::Impossible(Obstacle::Contradiction),
            [5, 0] => Self::OutOfTurn,
            _ => return None,
        })
    }
}

/// Whether a payload is a step of a move.
pub(crate) fn is_move(payload: &[u8]) -> bool {
    payload.first() == Some(&FORMAT) && payload.len() >= HEAD_BYTES
}

impl MoveEntry {
    /// A step whose time its shard's owner will set.
    #[must_use]
    pub const fn new(number: u64, step: Step) -> Self {
        Self { time_ms: 0, number, step }
    }

    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        debug_assert_eq!(out.len(), STAMP_AT);
        put_u64(&mut out, self.time_ms);
        put_u64(&mut out, self.number);
        match &self.step {
            Step::Begin { attempt, slot } => {
                out.push(0);
                put_u64(&mut out, *attempt);
                out.extend_from_slice(&slot.0.to_le_bytes());
            }
            Step::Piece { attempt, place, piece } => {
                out.push(1);
                put_u64(&mut out, *attempt);
                put_u32(&mut out, *place);
                write_piece(&mut out, piece);
            }
            Step::Adopt { attempt, pieces, last } => {
                out.push(2);
                put_u64(&mut out, *attempt);
                put_u32(&mut out, *pieces);
                write_piece(&mut out, last);
            }
            Step::GiveUp { slot } => put_slot(&mut out, 3, *slot),
            Step::Seal { slot, to } => {
                put_slot(&mut out, 4, *slot);
                out.extend_from_slice(&to.0.to_le_bytes());
            }
            Step::Unseal { slot } => put_slot(&mut out, 5, *slot),
            Step::Drop { keys, is_last } => {
                out.extend_from_slice(&[6, u8::from(*is_last)]);
                put_keys(&mut out, keys);
            }
        }
        out
    }

    /// Reads a step.
    ///
    /// # Errors
    /// If the bytes are none, or it has more than a step may have.
    pub fn decode(payload: &[u8]) -> Result<Self, PayloadError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            let (count, limit) = (payload.len(), PAYLOAD_BYTES_MAX);
            return Err(PayloadError::TooMany { count, limit });
        }
        let short = |_: SnapshotError| PayloadError::Batch("a step of a move is cut short");
        let mut source = Source(payload);
        if source.bytes::<1>().map_err(short)? != [FORMAT] {
            return Err(PayloadError::Batch("it is no step of a move"));
        }
        let (time_ms, number) = (source.u64().map_err(short)?, source.u64().map_err(short)?);
        let [kind] = source.bytes().map_err(short)?;
        let step = read_step(&mut source, kind)?;
        source.end().map_err(|_| PayloadError::Batch("bytes follow a step of a move"))?;
        if number == 0 {
            return Err(PayloadError::Batch("moves are counted from 1"));
        }
        Ok(Self { time_ms, number, step })
    }
}

fn read_step(source: &mut Source<'_>, kind: u8) -> Result<Step, PayloadError> {
    let short = |_| PayloadError::Batch("a step of a move is cut short");
    let slot = |source: &mut Source<'_>| source.u16().map(SlotId).map_err(short);
    Ok(match kind {
        0 => Step::Begin { attempt: source.u64().map_err(short)?, slot: slot(source)? },
        1 => Step::Piece {
            attempt: source.u64().map_err(short)?,
            place: source.u32().map_err(short)?,
            piece: read_piece(source)?,
        },
        2 => Step::Adopt {
            attempt: source.u64().map_err(short)?,
            pieces: source.u32().map_err(short)?,
            last: read_piece(source)?,
        },
        3 => Step::GiveUp { slot: slot(source)? },
        4 => Step::Seal { slot: slot(source)?, to: ShardId(source.u16().map_err(short)?) },
        5 => Step::Unseal { slot: slot(source)? },
        6 => {
            let [is_last] = source.bytes().map_err(short)?;
            if is_last > 1 {
                return Err(PayloadError::Batch("a mark that is neither 0 nor 1"));
            }
            Step::Drop { keys: read_keys(source)?, is_last: is_last == 1 }
        }
        _ => return Err(PayloadError::Batch("a step of an unknown kind")),
    })
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_slot(out: &mut Vec<u8>, kind: u8, slot: SlotId) {
    out.push(kind);
    out.extend_from_slice(&slot.0.to_le_bytes());
}

fn put_keys(out: &mut Vec<u8>, keys: &[Key]) {
    put_u32(out, keys.len() as u32);
    keys.iter().for_each(|key| out.extend_from_slice(&key.to_bytes()));
}

fn write_piece(out: &mut Vec<u8>, piece: &Piece) {
    put_u64(out, piece.mutations);
    put_u32(out, piece.entries.len() as u32);
    for MovedEntry { key, value, version, ttl_s } in &piece.entries {
        out.extend_from_slice(&key.to_bytes());
        out.extend_from_slice(&value.to_bytes());
        put_u64(out, version.0);
        put_u32(out, *ttl_s);
    }
    put_keys(out, &piece.removed);
    put_u32(out, piece.outcomes.len() as u32);
    piece.outcomes.iter().for_each(|(id, outcome)| write_outcome(out, *id, *outcome));
    put_u32(out, piece.pools.len() as u32);
    out.extend_from_slice(&piece.pools);
}

fn read_piece(source: &mut Source<'_>) -> Result<Piece, PayloadError> {
    let short = |_| PayloadError::Batch("a piece of a slot is cut short");
    let mut piece = Piece { mutations: source.u64().map_err(short)?, ..Piece::default() };
    for _ in 0..count(source, PIECE_KEYS_MAX)? {
        let entry = MovedEntry {
            key: Key::from_bytes(&source.bytes().map_err(short)?),
            value: Value::from_bytes(&source.bytes().map_err(short)?),
            version: Version(source.u64().map_err(short)?),
            ttl_s: source.u32().map_err(short)?,
        };
        if entry.key.kind() == 0 || entry.version.0 > piece.mutations || entry.ttl_s > TTL_MAX_S {
            return Err(PayloadError::Batch("a moved entry that cannot be"));
        }
        piece.entries.push(entry);
    }
    piece.removed = read_keys(source)?;
    for _ in 0..count(source, PIECE_OUTCOMES_MAX)? {
        let outcome =
            read_outcome(source).map_err(|_| PayloadError::Batch("an outcome that cannot be"))?;
        piece.outcomes.push(outcome);
    }
    let length = count(source, PIECE_POOL_BYTES_MAX)?;
    piece.pools = source.slice(length).map_err(short)?.to_vec();
    if piece.mutations > crate::cell::VERSION_MAX {
        return Err(PayloadError::Batch("more mutations than there can be"));
    }
    Ok(piece)
}

fn read_keys(source: &mut Source<'_>) -> Result<Vec<Key>, PayloadError> {
    let short = |_| PayloadError::Batch("a list of keys is cut short");
    let count = count(source, PIECE_KEYS_MAX)?;
    (0..count).map(|_| Ok(Key::from_bytes(&source.bytes().map_err(short)?))).collect()
}

fn count(source: &mut Source<'_>, limit: usize) -> Result<usize, PayloadError> {
    let count = source.u32().map_err(|_| PayloadError::Batch("a count is cut short"))? as usize;
    if count > limit { Err(PayloadError::TooMany { count, limit }) } else { Ok(count) }
}

/// What a node's own replica of the source is asked for, while one of its slots moves. Changes no
/// replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeOut {
    /// From now on what changes in the slot is noted, and [`TakeOut::Next`] begins at its first
    /// entry.
    Watch(SlotId),
    /// The next piece: first the entries that are there, then what has changed meanwhile.
    Next,
    /// The slot's pools, once the move is sealed here: then everything before the seal is here as
    /// well, and what [`TakeOut::Next`] gives after this is the rest.
    Pools {
        /// Which move.
        number: u64,
    },
    /// Nothing is noted any more.
    Forget,
}

/// What it gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakenOut {
    /// It is noted.
    Watching,
    /// A piece, and whether all that was there and all changes so far have been given.
    Piece(Box<Piece>, bool),
    /// All pools as bytes, for [`Piece::pools`].
    Pools(Vec<u8>),
    /// Not sealed here yet.
    NotYet,
    /// What was noted is lost, because a snapshot was installed or too much changed: watch again.
    Lost,
}

/// A moved entry as the table has it.
pub(crate) const fn entry_of(moved: &MovedEntry, slot: SlotId) -> Entry {
    Entry { value: moved.value, version: moved.version, slot }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;
    use proptest::prelude::*;

    fn steps() -> Vec<Step> {
        let key = Key([1, 2, 3, 4, 5]);
        let entry = MovedEntry { key, value: Value([9; 8]), version: Version(7), ttl_s: 30 };
        let id = |serial| TransactionId { client: 4, serial };
        let piece = Piece {
            mutations: 8,
            entries: vec![entry; 3],
            removed: vec![key],
            outcomes: vec![
                (id(1), Outcome::Committed(LogIndex(5))),
                (id(2), Outcome::ConditionFailed(3)),
            ],
            pools: vec![1, 2, 3],
        };
        vec![
            Step::Begin { attempt: 3, slot: SlotId(9) },
            Step::Piece { attempt: 3, place: 2, piece: piece.clone() },
            Step::Adopt { attempt: 3, pieces: 4, last: piece },
            Step::GiveUp { slot: SlotId(9) },
            Step::Seal { slot: SlotId(9), to: ShardId(2) },
            Step::Unseal { slot: SlotId(9) },
            Step::Drop { keys: vec![key, key], is_last: true },
        ]
    }

    #[test]
    fn steps_and_answers_come_back_as_they_went() {
        for step in steps() {
            let entry = MoveEntry { time_ms: 77, number: 5, step };
            assert_eq!(MoveEntry::decode(&entry.encode()), Ok(entry));
        }
        let obstacles = [
            Obstacle::TableFull,
            Obstacle::KeyElsewhere,
            Obstacle::NotHeld,
            Obstacle::Contradiction,
        ];
        let replies = [
            MoveReply::Done,
            MoveReply::More,
            MoveReply::Over { holds: true },
            MoveReply::Over { holds: false },
            MoveReply::OtherAttempt,
            MoveReply::OutOfTurn,
        ];
        for reply in replies.into_iter().chain(obstacles.map(MoveReply::Impossible)) {
            assert_eq!(MoveReply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(MoveReply::decode(&[9, 9]), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |step: Step| MoveEntry::decode(&MoveEntry::new(1, step).encode()).is_err();
        let key = Key([1; 5]);
        let moved = |version, ttl_s| Step::Piece {
            attempt: 1,
            place: 0,
            piece: Piece {
                mutations: 5,
                entries: vec![MovedEntry {
                    key,
                    value: Value::ZERO,
                    version: Version(version),
                    ttl_s,
                }],
                ..Piece::default()
            },
        };
        assert!(!refused(moved(5, 1)));
        assert!(refused(moved(6, 1)), "a version above the count of mutations");
        assert!(refused(moved(5, TTL_MAX_S + 1)));
        let keys = vec![key; PIECE_KEYS_MAX + 1];
        assert!(refused(Step::Drop { keys, is_last: false }));
        assert!(
            MoveEntry::decode(&MoveEntry::new(0, Step::GiveUp { slot: SlotId(9) }).encode())
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn damaged_steps_never_panic(
            which in 0_usize..7, at in any::<usize>(), bit in 0_u8..8, cut in 0_usize..40,
        ) {
            let mut bytes = MoveEntry::new(2, steps().swap_remove(which)).encode();
            let (at, end) = (at % bytes.len(), bytes.len().saturating_sub(cut));
            bytes[at] ^= 1 << bit;
            let _ = MoveEntry::decode(&bytes[..end]);
        }
    }
}
