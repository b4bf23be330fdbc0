//! Writes the log: records into the newest segment, then a sync, then the news that they are safe.
//!
//! Room is set aside before it is needed: beside the segment that is written there is always a
//! spare one. When no spare can be had the disk counts as full ([`Writer::is_short`]) while a whole
//! segment is still there for what is under way, for votes and for the end of the trouble.
//!
//! A sync that failed is the end: what is on the disk is then unknown, and a second try would
//! succeed without having written anything. Pure but for what [`Files`] does.

use super::format::{HEADER_BYTES, Header, Identity, LogState, Place, Record, encode};
use super::layer::{Files, Look, is_full};
use super::recovery::{Damage, RecoveryError, Replay, latest_run, segment_name, segment_number};
use super::snapshot_file::{self, SnapshotHead};
use super::{DiskError, SEGMENT_BYTES_MAX};
use std::collections::VecDeque;
use std::io;

/// The spare segment; like all unfinished files it is removed at recovery.
const SPARE: &str = "spare.tmp";
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// A segment that is not written any more.
#[derive(Clone, Copy, Debug)]
struct Sealed {
    number: u64,
    /// The largest index that was ever written to it.
    last_index: Option<u64>,
}

/// What a log held when it was opened.
pub(crate) struct Recovered {
    pub(crate) state: LogState,
    pub(crate) entries: VecDeque<super::format::Entry>,
    /// The newest snapshot.
    pub(crate) snapshot: Option<(SnapshotHead, Vec<u8>)>,
    /// The number of the newest snapshot, 0 if there is none.
    pub(crate) snapshot_number: u64,
    /// Nothing was there.
    pub(crate) fresh: bool,
    /// Bytes of a torn tail that was cut.
    pub(crate) torn: u64,
}

/// Why records were not written. What is not written is still in the queue that was given.
#[derive(Debug)]
pub(crate) enum WriteFailure {
    /// There is no room; try again later.
    Full,
    /// The disk is broken, or nobody knows what is on it.
    Broken(io::Error),
}

/// See the module's text.
pub(crate) struct Writer<F> {
    files: F,
    identity: Identity,
    segment_bytes: u64,
    state: LogState,
    number: u64,
    name: String,
    seed: u32,
    written: u64,
    last_index: Option<u64>,
    sealed: VecDeque<Sealed>,
    /// Of the next record.
    serial: u64,
    /// All records before it are on the disk.
    durable: u64,
    spare: bool,
    /// Syncs and bytes, for whoever counts.
    pub(crate) syncs: u64,
}

impl<F: Files> Writer<F> {
    /// Opens a log: reads it, cuts a torn tail, and syncs what it believes in.
    pub(crate) fn open(
        mut files: F,
        identity: Identity,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), DiskError> {
        let names = files.list()?;
        for name in names.iter().filter(|name| name.ends_with(".tmp")) {
            files.remove(name)?;
        }
        let run = latest_run(&names);
        let mut replay = Replay::new(Some(identity));
        let mut tail = Vec::new();
        for (place, number) in run.iter().enumerate() {
            let last = place + 1 == run.len();
            let bytes = read_segment(&mut files, *number)?;
            replay.segment(*number, &bytes, last)?;
            if last {
                tail = bytes;
            }
        }
        let snapshot = snapshot_file::read_newest(&mut files, &names, Some(identity))?;
        let fresh = run.is_empty() && snapshot.is_none();
        if !fresh {
            replay.finish().map_err(RecoveryError::Damaged)?;
            check_snapshot(&replay.state, snapshot.as_ref().map(|(_, head, _)| head))?;
        }
        let mut writer = Self::new(files, identity, segment_bytes);
        writer.resume(&replay, &tail, &names)?;
        let (snapshot_number, snapshot) = match snapshot {
            Some((number, head, bytes)) => (number, Some((head, bytes))),
            None => (0, None),
        };
        let torn = replay.segments.last().map_or(0, |facts| facts.torn);
        let Replay { state, entries, .. } = replay;
        Ok((writer, Recovered { state, entries, snapshot, snapshot_number, fresh, torn }))
    }

    fn new(files: F, identity: Identity, segment_bytes: u64) -> Self {
        Self {
            files,
            identity,
            segment_bytes,
            state: LogState::default(),
            number: 0,
            name: String::new(),
            seed: 0,
            written: 0,
            last_index: None,
            sealed: VecDeque::new(),
            serial: 0,
            durable: 0,
            spare: false,
            syncs: 0,
        }
    }

    /// Goes on where the log ends, or begins a new one.
    fn resume(&mut self, replay: &Replay, tail: &[u8], names: &[String]) -> Result<(), DiskError> {
        let Some(newest) = replay.segments.last() else {
            return match self.roll() {
                Ok(()) => Ok(()),
                Err(WriteFailure::Full) => Err(DiskError::NoRoom(self.segment_bytes)),
                Err(WriteFailure::Broken(error)) => Err(error.into()),
            };
        };
        let sealed = replay.segments.iter().rev().skip(1).rev();
        self.sealed =
            sealed.map(|s| Sealed { number: s.number, last_index: s.last_index }).collect();
        self.state = replay.state;
        (self.number, self.name) = (newest.number, newest.file.clone());
        (self.written, self.last_index) = (newest.bytes, newest.last_index);
        self.seed = Header::decode(tail).map_or(0, |header| header.seed());
        self.serial = replay.serial.unwrap_or(0);
        if newest.torn > 0 {
            self.files.cut(&self.name, newest.bytes)?;
        }
        // If the process before ended because a sync had failed, what was just read may be in
        // memory only, and the system believes it written. So it is written once more.
        self.files.write(&self.name, 0, &tail[..newest.bytes as usize])?;
        self.files.sync(&self.name)?;
        self.durable = self.serial;
        // Left over from a removal that a crash has undone.
        let oldest = self.sealed.front().map_or(self.number, |sealed| sealed.number);
        let old = |name: &&String| segment_number(name).is_some_and(|number| number < oldest);
        for name in names.iter().filter(old) {
            self.files.remove(name)?;
        }
        self.files.sync_names()?;
        match self.files.reserve(&self.name, self.segment_bytes) {
            Err(error) if !is_full(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether there is no room for much more than what is under way.
    pub(crate) const fn is_short(&self) -> bool {
        !self.spare
    }

    /// Whether everything that was written is on the disk.
    pub(crate) const fn is_synced(&self) -> bool {
        self.durable == self.serial
    }

    /// Writes records, from the front. They are safe after the next [`Writer::sync`].
    pub(crate) fn write(&mut self, records: &mut VecDeque<Record>) -> Result<(), WriteFailure> {
        while !records.is_empty() {
            let mut bytes = Vec::new();
            let mut state = self.state;
            let mut last_index = self.last_index;
            let mut count = 0;
            for record in records.iter() {
                let start = bytes.len();
                let place = Place { serial: self.serial + count, durable: self.durable };
                encode(self.seed, place, record, &mut bytes);
                // A segment takes at least one record beside its first.
                let room = self.segment_bytes.max(HEADER_BYTES as u64);
                let full = self.written + bytes.len() as u64 > room;
                if full && (count > 0 || self.has_entries()) {
                    bytes.truncate(start);
                    break;
                }
                state.apply(record).expect("the log's own order has no gaps");
                if let Record::Entry(entry) = record {
                    last_index = last_index.max(Some(entry.at.index));
                }
                count += 1;
                if bytes.len() >= CHUNK {
                    break;
                }
            }
            if count == 0 {
                self.roll()?;
                continue;
            }
            self.put(&bytes)?;
            (self.state, self.last_index) = (state, last_index);
            self.written += bytes.len() as u64;
            self.serial += count;
            records.drain(..count as usize);
        }
        Ok(())
    }

    /// Whether the segment holds more than what it began with.
    const fn has_entries(&self) -> bool {
        self.written > (HEADER_BYTES + 256) as u64
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteFailure> {
        match self.files.write(&self.name, self.written, bytes) {
            Ok(()) => Ok(()),
            Err(error) if is_full(&error) => {
                // A part may be there: the next try begins at the same place.
                self.files.cut(&self.name, self.written).map_err(WriteFailure::Broken)?;
                Err(WriteFailure::Full)
            }
            Err(error) => Err(WriteFailure::Broken(error)),
        }
    }

    /// Everything written is on the disk when this returns.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if !self.is_synced() {
            self.files.sync(&self.name)?;
            self.durable = self.serial;
            self.syncs += 1;
        }
        Ok(())
    }

    /// Begins a new segment. Everything before it is on the disk then.
    fn roll(&mut self) -> Result<(), WriteFailure> {
        self.sync().map_err(WriteFailure::Broken)?;
        if !self.spare && !self.make_spare().map_err(WriteFailure::Broken)? {
            return Err(WriteFailure::Full);
        }
        let number = self.number + 1;
        let header = Header { identity: self.identity, number, first_serial: self.serial };
        let mut bytes = header.encode().to_vec();
        let place = Place { serial: self.serial, durable: self.durable };
        encode(header.seed(), place, &Record::Base(self.state), &mut bytes);
        match self.begin(number, &bytes) {
            Err(error) if is_full(&error) => return Err(WriteFailure::Full),
            other => other.map_err(WriteFailure::Broken)?,
        }
        if self.number > 0 {
            let last_index = self.last_index.take();
            self.sealed.push_back(Sealed { number: self.number, last_index });
        }
        (self.number, self.name, self.seed) = (number, segment_name(number), header.seed());
        self.written = bytes.len() as u64;
        self.serial += 1;
        self.durable = self.serial;
        Ok(())
    }

    /// The new segment has its name only when its beginning is on the disk.
    fn begin(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        self.spare = false;
        self.files.write(SPARE, 0, bytes)?;
        self.files.sync(SPARE)?;
        self.files.rename(SPARE, &segment_name(number))?;
        self.files.sync_names()
    }

    /// Tries to have a spare segment. `false`: there is no room for one.
    pub(crate) fn make_spare(&mut self) -> io::Result<bool> {
        if self.spare {
            return Ok(true);
        }
        match self.files.create(SPARE, self.segment_bytes) {
            Ok(()) => self.spare = true,
            Err(error) if is_full(&error) => self.files.remove(SPARE)?,
            Err(error) => return Err(error),
        }
        Ok(self.spare)
    }

    /// Removes segments whose entries are all in a snapshot. Gives their number.
    pub(crate) fn remove_old(&mut self) -> io::Result<usize> {
        let mut removed = 0;
        // What a snapshot holds must be known to the disk before the entries go.
        let Some(purged) = self.state.purged.filter(|_| self.is_synced()) else { return Ok(0) };
        while let Some(oldest) = self.sealed.front()
            && oldest.last_index.is_none_or(|last| last <= purged.index)
        {
            self.files.remove(&segment_name(oldest.number))?;
            self.sealed.pop_front();
            removed += 1;
        }
        if removed > 0 {
            self.files.sync_names()?;
        }
        Ok(removed)
    }
}

fn read_segment(files: &mut impl Look, number: u64) -> Result<Vec<u8>, DiskError> {
    let name = segment_name(number);
    match files.read(&name, SEGMENT_BYTES_MAX) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            let what = "it is longer than a segment can be";
            Err(RecoveryError::from(Damage::File { file: name, what }).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// What the log has no entries for must be in a snapshot.
pub(crate) fn check_snapshot(
    state: &LogState,
    snapshot: Option<&SnapshotHead>,
) -> Result<(), RecoveryError> {
    let reaches = snapshot.and_then(|head| head.last_log).map(|at| at.index);
    match state.purged {
        Some(purged) if reaches.is_none_or(|index| index < purged.index) => {
            Err(Damage::Missing(format!("a snapshot with entry {}", purged.index)).into())
        }
        _ => Ok(()),
    }
}
