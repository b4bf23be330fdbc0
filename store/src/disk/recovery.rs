//! From the bytes of the segments to the log they hold, or to where and how they are damaged.
//!
//! Segments are read in order, one at a time. Each begins where the one before it ended, so only
//! the last one may end in the middle of a record. There a bad record is either a **torn tail**,
//! which a crash leaves of what nobody was told was safe, and which is cut; or **damage**, if a
//! later record knows that the bad one had been on the disk. Damage is never repaired here: the
//! replica must not be started with it (promise P6).
//!
//! Pure. Memory is bounded by the bytes given.

use super::format::{
    ALIGNMENT, BODY_BYTES_MAX, BadHeader, BadRecord, Entry, FORMAT_VERSION, Header, Identity,
    LogState, RECORD_HEAD, Record, check, decode,
};
use core::fmt;
use std::collections::VecDeque;
use thiserror::Error;

/// What is wrong with files that cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Damage {
    /// A record in the middle of the log.
    #[error("{file}, byte {at}: {what}; it was on the disk and is damaged now")]
    Record {
        /// Which file.
        file: String,
        /// Where in it.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A file as a whole.
    #[error("{file}: {what}")]
    File {
        /// Which file.
        file: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Something that must be there is not.
    #[error("{0} is missing")]
    Missing(String),
}

/// Why files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecoveryError {
    /// They are damaged.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// They were written by another version of this program.
    #[error(
        "{file} has format version {found}, this program reads {FORMAT_VERSION}: start the version \
         that wrote it"
    )]
    Version {
        /// Which file.
        file: String,
        /// What it says.
        found: u32,
    },
    /// They belong to another node, cluster, shard or life.
    #[error(
        "{file} belongs to {} and {} of cluster {:#x} in another life (it says {:#x}): give this \
         node the directory that is its own, or an empty one",
        found.node, found.shard, found.cluster, found.life
    )]
    Foreign {
        /// Which file.
        file: String,
        /// Whose it is.
        found: Identity,
    },
}

/// A segment that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Its file.
    pub file: String,
    /// Its number.
    pub number: u64,
    /// Its bytes, without a torn tail.
    pub bytes: u64,
    /// Whole records in it.
    pub records: u64,
    /// The largest index of an entry that was written to it.
    pub last_index: Option<u64>,
    /// Bytes of a torn tail behind it.
    pub torn: u64,
}

/// Reads segments in order.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Whose files they must be, once known.
    identity: Option<Identity>,
    pub(crate) state: LogState,
    pub(crate) entries: VecDeque<Entry>,
    /// The index of the first of `entries`, or of the one that would come first.
    held_from: u64,
    /// The serial of the next record; `None` before the first segment.
    pub(crate) serial: Option<u64>,
    pub(crate) segments: Vec<SegmentFacts>,
}

/// The file of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("log-{number:016x}.segment")
}

/// The number of a segment's file, if it is one.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".segment")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// The segments that count, in order: the longest run without a gap up to the last one. Older ones
/// are left over from a removal that a crash has undone in part.
pub(crate) fn latest_run(names: &[String]) -> Vec<u64> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let gap = numbers.windows(2).rposition(|pair| pair[1] - pair[0] != 1);
    numbers.split_off(gap.map_or(0, |at| at + 1))
}

impl Replay {
    /// A replay that has read nothing. Without an identity it takes the first file's.
    pub(crate) fn new(identity: Option<Identity>) -> Self {
        Self {
            identity,
            state: LogState::default(),
            entries: VecDeque::new(),
            held_from: 0,
            serial: None,
            segments: Vec::new(),
        }
    }

    pub(crate) const fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Reads the next segment. `last`: no other one follows, so its tail may be torn.
    pub(crate) fn segment(
        &mut self,
        number: u64,
        bytes: &[u8],
        last: bool,
    ) -> Result<(), RecoveryError> {
        let file = segment_name(number);
        let header = self.header(number, bytes)?;
        let seed = header.seed();
        let mut at = super::format::HEADER_BYTES;
        let mut facts =
            SegmentFacts { file, number, bytes: 0, records: 0, last_index: None, torn: 0 };
        let mut serial = header.first_serial;
        while at < bytes.len() {
            let damage = |what| Damage::Record { file: facts.file.clone(), at: at as u64, what };
            let (place, record, length) = match decode(seed, &bytes[at..]) {
                Ok(read) => read,
                Err(BadRecord::Content(what)) => return Err(damage(what).into()),
                Err(BadRecord::Cut | BadRecord::Checksum) if !last => {
                    return Err(damage("it is no whole record, and newer segments follow").into());
                }
                Err(BadRecord::Cut | BadRecord::Checksum) => {
                    if known_durable(seed, &bytes[at..], serial) {
                        return Err(damage("it is no whole record, and newer ones follow").into());
                    }
                    facts.torn = (bytes.len() - at) as u64;
                    break;
                }
            };
            if place.serial != serial {
                return Err(damage("a record out of turn").into());
            }
            if let Record::Entry(entry) = &record {
                facts.last_index = facts.last_index.max(Some(entry.at.index));
            }
            self.take(record, facts.records == 0).map_err(damage)?;
            (at, serial, facts.records) = (at + length, serial + 1, facts.records + 1);
        }
        if facts.records == 0 {
            let what = "its first record is missing";
            return Err(Damage::File { file: facts.file, what }.into());
        }
        facts.bytes = at as u64;
        self.serial = Some(serial);
        self.segments.push(facts);
        Ok(())
    }

    fn header(&mut self, number: u64, bytes: &[u8]) -> Result<Header, RecoveryError> {
        let file = segment_name(number);
        let header = match Header::decode(bytes) {
            Ok(header) => header,
            Err(BadHeader::Version(found)) => return Err(RecoveryError::Version { file, found }),
            Err(BadHeader::Damaged(what)) => return Err(Damage::File { file, what }.into()),
        };
        if *self.identity.get_or_insert(header.identity) != header.identity {
            return Err(RecoveryError::Foreign { file, found: header.identity });
        }
        if header.number != number {
            let what = "it is another segment under this name";
            return Err(Damage::File { file, what }.into());
        }
        // Also finds a segment that was cut at the end of a record.
        if self.serial.is_some_and(|serial| serial != header.first_serial) {
            let what = "it does not begin where the one before it ends";
            return Err(Damage::File { file, what }.into());
        }
        Ok(header)
    }

    fn take(&mut self, record: Record, opens: bool) -> Result<(), &'static str> {
        if opens != matches!(record, Record::Base(_)) {
            return Err("a segment begins with what was known before it, and nothing else does");
        }
        if let Record::Base(base) = &record {
            if self.serial.is_some() && *base != self.state {
                return Err("it contradicts the segment before it");
            }
            if self.serial.is_none() {
                self.held_from = base.next();
            }
        }
        self.state.apply(&record)?;
        match record {
            Record::Entry(entry) => {
                let index = entry.at.index;
                if index < self.held_from || self.entries.is_empty() {
                    self.entries.clear();
                    self.held_from = index;
                }
                self.entries.truncate((index - self.held_from) as usize);
                self.entries.push_back(entry);
            }
            Record::Truncate(_) => {
                let next = self.state.next();
                self.entries.truncate(next.saturating_sub(self.held_from) as usize);
                self.held_from = self.held_from.min(next);
            }
            Record::Purge(_) => self.drop_purged(),
            Record::Base(_) | Record::Vote(_) | Record::Committed(_) | Record::Closed => {}
        }
        Ok(())
    }

    fn drop_purged(&mut self) {
        let first = self.state.first;
        let gone = first.saturating_sub(self.held_from).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.held_from = self.held_from.max(first);
    }

    /// Whether every entry that must be there is.
    pub(crate) fn finish(&mut self) -> Result<(), Damage> {
        self.drop_purged();
        let (first, next) = (self.state.first, self.state.next());
        let held = self.entries.len() as u64;
        if self.serial.is_none() {
            return Err(Damage::Missing("the first segment".to_owned()));
        }
        if held != next - first || (held > 0 && self.held_from != first) {
            return Err(Damage::Missing(format!("a segment with entries from {first} on")));
        }
        Ok(())
    }
}

/// Whether a whole record follows somewhere that knows `serial` to have been on the disk. Records
/// of the batch that a crash has torn know nothing of each other.
fn known_durable(seed: u32, bytes: &[u8], serial: u64) -> bool {
    let smallest = RECORD_HEAD.next_multiple_of(ALIGNMENT);
    let most = serial.saturating_add((bytes.len() / smallest) as u64);
    let mut at = ALIGNMENT;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= smallest) {
        let word = |from: usize| rest[from..].first_chunk().map(|word| u64::from_le_bytes(*word));
        let plausible = word(8).is_some_and(|found| (serial..=most).contains(&found))
            && u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize <= BODY_BYTES_MAX;
        match plausible.then(|| check(seed, rest)) {
            Some(Ok((place, _))) if place.durable > serial => return true,
            Some(Ok((_, length))) => at += length,
            _ => at += ALIGNMENT,
        }
    }
    false
}

impl fmt::Display for SegmentFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, bytes, records, torn, .. } = self;
        write!(f, "{file}: {records} records in {bytes} bytes")?;
        if *torn > 0 {
            write!(f, ", {torn} bytes of a torn tail")?;
        }
        Ok(())
    }
}
