//! Snapshots in files.
//!
//! ```text
//! head      magic 8, format version 4, shard 2, zero 2, cluster 8, lineage 8, life 8, node 8,
//!           number 8, length of what follows 4: last entry, place of the group, the group
//!           length of the content 8, CRC-32 of all before 4
//! content   as the shard's machine wrote it, then its CRC-32 4
//! ```
//!
//! A snapshot is written under another name, synced, renamed, and its name synced; only then is it
//! there, and only then may the log lose what it holds. The older one goes after that. A damaged
//! newest snapshot is damage of the replica: an older one does not take its place.

use super::format::{FORMAT_VERSION, Identity, Source, put_members, put_option, put_position};
use super::layer::{Files, Look, is_full};
use super::recovery::{Damage, RecoveryError};
use super::{DiskError, SNAPSHOT_FILE_BYTES_MAX};
use crate::types::{NodeId, ShardId};
use crate::wire::{Members, Position};
use std::io;

const MAGIC: [u8; 8] = *b"NSTRSNP\0";
/// Bytes of the head before the part whose length it gives.
const FIXED: usize = 60;
const UNFINISHED: &str = "snapshot.tmp";
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotHead {
    /// The last entry in it.
    pub(crate) last_log: Option<Position>,
    /// Where the group was changed last.
    pub(crate) members_at: Option<Position>,
    /// The group.
    pub(crate) members: Members,
}

/// The file of a snapshot.
fn snapshot_name(number: u64) -> String {
    format!("snapshot-{number:016x}")
}

/// The number of a snapshot's file, if it is one.
fn snapshot_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name.strip_prefix("snapshot-")?, 16).ok()?;
    (snapshot_name(number) == name).then_some(number)
}

fn encode_head(identity: Identity, number: u64, head: &SnapshotHead, content: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    put_option(head.last_log.as_ref(), put_position, &mut meta);
    put_option(head.members_at.as_ref(), put_position, &mut meta);
    put_members(&head.members, &mut meta);
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&identity.shard.0.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    let Identity { cluster, lineage, life, node, .. } = identity;
    for word in [cluster, lineage, life, node.0, number] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&(meta.len() as u32).to_le_bytes());
    assert_eq!(out.len(), FIXED, "the head's form has changed");
    out.extend_from_slice(&meta);
    out.extend_from_slice(&content.to_le_bytes());
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Takes a snapshot's file apart: whose it is, its number, what it is of, and its content.
pub(crate) fn decode<'a>(
    file: &str,
    bytes: &'a [u8],
) -> Result<(Identity, u64, SnapshotHead, &'a [u8]), RecoveryError> {
    let damaged = |what| Damage::File { file: file.to_owned(), what };
    let mut source = Source(bytes);
    if source.array().map_err(damaged)? != MAGIC {
        return Err(damaged("it does not begin like a snapshot").into());
    }
    let found = source.u32().map_err(damaged)?;
    if found != FORMAT_VERSION {
        return Err(RecoveryError::Version { file: file.to_owned(), found });
    }
    let shard = ShardId(u16::from_le_bytes(source.array().map_err(damaged)?));
    source.array::<2>().map_err(damaged)?;
    let mut word = || source.u64().map_err(damaged);
    let (cluster, lineage, life) = (word()?, word()?, word()?);
    let (node, number) = (NodeId(word()?), word()?);
    let meta = source.u32().map_err(damaged)? as usize;
    let meta_bytes = source.slice(meta).map_err(damaged)?;
    let length = source.u64().map_err(damaged)?;
    // The checksum before anything that it covers is believed.
    if crc32fast::hash(&bytes[..FIXED + meta + 8]) != source.u32().map_err(damaged)? {
        return Err(damaged("the checksum of its head does not fit").into());
    }
    let length = usize::try_from(length).map_err(|_| damaged("it is too long"))?;
    let content = source.slice(length).map_err(damaged)?;
    let crc = source.u32().map_err(damaged)?;
    source.end().map_err(damaged)?;
    if crc32fast::hash(content) != crc {
        return Err(damaged("the checksum of its content does not fit").into());
    }
    let mut meta = Source(meta_bytes);
    let head = SnapshotHead {
        last_log: meta.option(Source::position).map_err(damaged)?,
        members_at: meta.option(Source::position).map_err(damaged)?,
        members: meta.members().map_err(damaged)?,
    };
    meta.end().map_err(damaged)?;
    Ok((Identity { cluster, lineage, life, node, shard }, number, head, content))
}

/// The newest snapshot of a directory: its number, what it is of, and its content.
pub(crate) fn read_newest(
    files: &mut impl Look,
    names: &[String],
    expected: Option<Identity>,
) -> Result<Option<(u64, SnapshotHead, Vec<u8>)>, DiskError> {
    let Some(newest) = names.iter().filter_map(|name| snapshot_number(name)).max() else {
        return Ok(None);
    };
    let file = snapshot_name(newest);
    let bytes = match files.read(&file, SNAPSHOT_FILE_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            let what = "it is longer than a snapshot can be";
            return Err(RecoveryError::from(Damage::File { file, what }).into());
        }
        other => other?,
    };
    let (found, number, head, content) = decode(&file, &bytes)?;
    if expected.is_some_and(|expected| expected != found) {
        return Err(RecoveryError::Foreign { file, found }.into());
    }
    if number != newest {
        let what = "it is another snapshot under this name";
        return Err(RecoveryError::from(Damage::File { file, what }).into());
    }
    Ok(Some((newest, head, content.to_vec())))
}

/// Writes the snapshots of one replica.
pub(crate) struct SnapshotWriter<F> {
    files: F,
    identity: Identity,
    /// Of the newest one.
    number: u64,
    /// The unfinished file has its room.
    reserved: bool,
}

impl<F: Files> SnapshotWriter<F> {
    /// Goes on after the snapshot of this number.
    pub(crate) const fn new(files: F, identity: Identity, number: u64) -> Self {
        Self { files, identity, number, reserved: false }
    }

    /// Sets room aside for a snapshot of so many bytes. `false`: there is not enough.
    pub(crate) fn reserve(&mut self, content: usize) -> io::Result<bool> {
        match self.files.create(UNFINISHED, content as u64 + (64 << 10)) {
            Ok(()) => {
                self.reserved = true;
                Ok(true)
            }
            Err(error) if is_full(&error) => {
                self.files.remove(UNFINISHED)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a snapshot the newest one. It is on the disk, under its name, when this returns.
    pub(crate) fn save(&mut self, head: &SnapshotHead, content: &[u8]) -> io::Result<()> {
        if !core::mem::take(&mut self.reserved) && !self.reserve(content.len())? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.reserved = false;
        let number = self.number + 1;
        if let Err(error) = self.fill(number, head, content) {
            // The first error is the one to tell.
            let _ = self.files.remove(UNFINISHED);
            return Err(error);
        }
        self.files.rename(UNFINISHED, &snapshot_name(number))?;
        self.files.sync_names()?;
        let old: Vec<String> = self.files.list()?;
        let is_old = |name: &&String| snapshot_number(name).is_some_and(|found| found < number);
        for name in old.iter().filter(is_old) {
            self.files.remove(name)?;
        }
        self.number = number;
        Ok(())
    }

    fn fill(&mut self, number: u64, head: &SnapshotHead, content: &[u8]) -> io::Result<()> {
        let first = encode_head(self.identity, number, head, content.len() as u64);
        self.files.write(UNFINISHED, 0, &first)?;
        let mut at = first.len() as u64;
        let crc = crc32fast::hash(content).to_le_bytes();
        for chunk in content.chunks(CHUNK).chain([&crc[..]]) {
            self.files.write(UNFINISHED, at, chunk)?;
            at += chunk.len() as u64;
        }
        self.files.sync(UNFINISHED)
    }
}
