//! Logs that are cut, flipped, crashed and filled: what was acknowledged is there, or the damage
//! is.

mod crashes;
pub(crate) mod model_disk;

use super::format::{Body, Entry, Header, LogState, Record, decode};
use super::recovery::{RecoveryError, segment_name};
use super::snapshot_file::{SnapshotHead, SnapshotWriter};
use super::verify::{Verdict, verify_files};
use super::writer::{Recovered, WriteFailure, Writer};
use super::{Damage, DiskError, Identity};
use crate::types::{NodeId, ShardId};
use crate::wire::{Ballot, Members, Position};
use model_disk::{ModelDisk, Random};
use proptest::prelude::*;
use rkyv::util::AlignedVec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) const WHO: Identity =
    Identity { cluster: 7, lineage: 99, life: 5, node: NodeId(3), shard: ShardId(1) };

pub(crate) fn at(term: u64, index: u64) -> Position {
    Position { term, index }
}

pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Record {
    let mut payload = AlignedVec::new();
    payload.resize(bytes, (index * 31 + term) as u8);
    Record::Entry(Entry { at: at(term, index), body: Body::Payload(Arc::new(payload)) })
}

/// What a log is, kept the simple way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Model {
    state: LogState,
    entries: BTreeMap<u64, Entry>,
}

impl Model {
    pub(crate) fn after<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut model = Self::default();
        records.into_iter().for_each(|record| model.apply(record));
        model
    }

    pub(crate) fn apply(&mut self, record: &Record) {
        self.state.apply(record).unwrap();
        if let Record::Entry(entry) = record {
            self.entries.split_off(&entry.at.index);
            self.entries.insert(entry.at.index, entry.clone());
        }
        self.entries.split_off(&self.state.next());
        self.entries = self.entries.split_off(&self.state.first);
    }

    pub(crate) fn is(&self, found: &Recovered) -> bool {
        self.state == found.state && self.entries.values().eq(&found.entries)
    }
}

fn open(disk: &ModelDisk, segment: u64) -> Result<(Writer<ModelDisk>, Recovered), DiskError> {
    Writer::open(disk.clone(), WHO, segment)
}

/// Records of all kinds, with entries 0 to `entries - 1`.
fn sample(entries: u64) -> Vec<Record> {
    let vote = |term| Record::Vote(Ballot { term, node: 3, committed: term % 2 == 0 });
    let members = Members { configs: vec![vec![1, 2], vec![1, 2, 3]], nodes: vec![1, 2, 3] };
    let mut records = vec![vote(1)];
    for index in 0..entries {
        records.push(match index % 7 {
            0 => Record::Entry(Entry { at: at(1, index), body: Body::Blank }),
            3 => {
                let body = Body::Members(members.clone());
                Record::Entry(Entry { at: at(1, index), body })
            }
            _ => entry(1, index, (index * 37 % 200) as usize),
        });
        if index % 5 == 4 {
            records.push(Record::Committed(Some(at(1, index - 1))));
        }
    }
    records.push(vote(2));
    records.push(Record::Truncate(Some(at(1, entries - 3))));
    records.push(entry(2, entries - 2, 50));
    records
}

/// Writes records, each with a sync of its own.
fn written(records: &[Record], segment: u64) -> ModelDisk {
    let disk = ModelDisk::new(1);
    let (mut writer, found) = open(&disk, segment).unwrap();
    assert!(found.fresh);
    for record in records {
        writer.write(&mut VecDeque::from([record.clone()])).unwrap();
        writer.sync().unwrap();
    }
    disk
}

/// Where each record of a segment begins, and where the last one ends.
fn offsets(bytes: &[u8]) -> Vec<usize> {
    let seed = Header::decode(bytes).unwrap().seed();
    let mut offsets = vec![super::format::HEADER_BYTES];
    while let Ok((_, _, length)) = decode(seed, &bytes[offsets[offsets.len() - 1]..]) {
        offsets.push(offsets[offsets.len() - 1] + length);
    }
    offsets
}

#[test]
fn what_was_written_is_read_in_one_segment_or_many() {
    let records = sample(100);
    let model = Model::after(&records);
    for segment in [1 << 20, 4096, 512, 100] {
        let disk = written(&records, segment);
        let (writer, found) = open(&disk, segment).unwrap();
        assert!(model.is(&found), "segments of {segment}: {:?}", found.state);
        assert_eq!((found.fresh, found.torn), (false, 0));
        drop(writer);
        let report = verify_files("shard-1", &disk.files());
        assert_eq!(report.verdict, Verdict::Whole);
        assert_eq!(report.identity, Some(WHO));
        let records: u64 = report.segments.iter().map(|facts| facts.records).sum();
        assert_eq!(records, 124 + report.segments.len() as u64);
    }
}

#[test]
fn a_log_goes_on_after_each_start() {
    let disk = ModelDisk::new(1);
    let mut all = Vec::new();
    for (life, record) in sample(60).into_iter().enumerate() {
        let (mut writer, found) = open(&disk, 700).unwrap();
        assert!(Model::after(&all).is(&found), "life {life}");
        writer.write(&mut VecDeque::from([record.clone()])).unwrap();
        writer.sync().unwrap();
        all.push(record);
    }
}

#[test]
fn cut_anywhere_in_its_last_4_kib_a_log_is_the_prefix_of_whole_records() {
    let records = sample(100);
    let disk = written(&records, 1 << 20);
    let name = segment_name(1);
    let files = disk.files();
    let bytes = &files[&name];
    let offsets = offsets(bytes);
    assert_eq!(offsets.len(), records.len() + 2);
    assert!(bytes.len() > 4096 + 1000);
    for cut in bytes.len() - 4096..=bytes.len() {
        let disk = ModelDisk::with(&BTreeMap::from([(name.clone(), bytes[..cut].to_vec())]));
        let (_, found) = open(&disk, 1 << 20).unwrap();
        // The first record is the segment's own.
        let whole = offsets.iter().filter(|end| **end <= cut).count() - 2;
        assert!(Model::after(&records[..whole]).is(&found), "cut at {cut}");
        let torn = cut - offsets[whole + 1];
        assert_eq!(found.torn, torn as u64);
        assert_eq!(disk.files()[&name].len(), cut - torn, "the tail is cut");
    }
}

#[test]
fn a_flipped_byte_in_any_of_the_last_64_records_is_found() {
    let records = sample(100);
    let disk = written(&records, 1 << 20);
    let name = segment_name(1);
    let files = disk.files();
    let good = &files[&name];
    let offsets = offsets(good);
    let last = offsets[offsets.len() - 2];
    let without_last = Model::after(&records[..records.len() - 1]);
    let mut random = Random(5);
    for place in offsets[offsets.len() - 65]..good.len() {
        for flip in [1 << random.below(8), 0xff] {
            let mut bytes = good.clone();
            bytes[place] ^= flip;
            let disk = ModelDisk::with(&BTreeMap::from([(name.clone(), bytes)]));
            match open(&disk, 1 << 20) {
                Err(DiskError::Recovery(RecoveryError::Damaged(Damage::Record { .. }))) => {
                    assert!(place < last, "byte {place}");
                    assert_eq!(disk.files()[&name][place], good[place] ^ flip, "left alone");
                }
                Ok((_, found)) => {
                    // The last one cannot be told from one that a crash has torn.
                    assert!(place >= last && without_last.is(&found), "byte {place}");
                }
                Err(other) => panic!("byte {place}: {other}"),
            }
        }
    }
}

#[test]
fn files_of_others_other_versions_and_missing_ones_are_named() {
    let records = sample(60);
    let disk = written(&records, 512);
    let files = disk.files();
    let names: Vec<String> = files.keys().cloned().collect();
    assert!(names.len() > 8, "{names:?}");
    let opened = |files: &BTreeMap<String, Vec<u8>>, who| {
        Writer::open(ModelDisk::with(files), who, 512).err().map(|error| error.to_string())
    };
    for who in [
        Identity { cluster: 8, ..WHO },
        Identity { lineage: 1, ..WHO },
        Identity { life: 6, ..WHO },
        Identity { node: NodeId(4), ..WHO },
        Identity { shard: ShardId(2), ..WHO },
    ] {
        let said = opened(&files, who).unwrap();
        assert!(said.contains("belongs to node-3 and shard-1 of cluster 0x7"), "{said}");
    }
    let mut newer = files.clone();
    newer.get_mut(&names[2]).unwrap()[8] = 9;
    let said = opened(&newer, WHO).unwrap();
    assert!(said.contains("has format version 9, this program reads 1"), "{said}");
    for missing in &names[..names.len() - 1] {
        let mut fewer = files.clone();
        fewer.remove(missing);
        let said = opened(&fewer, WHO).unwrap();
        assert!(said.contains("is missing"), "{said}");
    }
    // Two segments that have changed places.
    let mut mixed = files.clone();
    mixed.insert(names[1].clone(), files[&names[2]].clone());
    mixed.insert(names[2].clone(), files[&names[1]].clone());
    let said = opened(&mixed, WHO).unwrap();
    assert!(said.contains("another segment under this name"), "{said}");
    // A sealed segment that was cut at the end of a record.
    let mut cut = files.clone();
    let ends = offsets(&files[&names[3]]);
    cut.get_mut(&names[3]).unwrap().truncate(ends[ends.len() - 2]);
    let said = opened(&cut, WHO).unwrap();
    assert!(said.contains("does not begin where the one before it ends"), "{said}");
}

fn snapshot_of(index: u64) -> (SnapshotHead, Vec<u8>) {
    let members = Members { configs: vec![vec![1, 2, 3]], nodes: vec![1, 2, 3] };
    let head = SnapshotHead { last_log: Some(at(1, index)), members_at: Some(at(1, 0)), members };
    (head, index.to_le_bytes().repeat(200))
}

/// A log of several segments whose first part is in a snapshot.
fn compacted() -> (Vec<Record>, ModelDisk) {
    let mut records = sample(80);
    let disk = written(&records, 512);
    let (mut writer, found) = open(&disk, 512).unwrap();
    let before = disk.files().len();
    let mut snapshots = SnapshotWriter::new(disk.clone(), WHO, found.snapshot_number);
    for index in [20, 50] {
        let (head, content) = snapshot_of(index);
        snapshots.save(&head, &content).unwrap();
    }
    let purge = Record::Purge(at(1, 50));
    writer.write(&mut VecDeque::from([purge.clone()])).unwrap();
    assert_eq!(writer.remove_old().unwrap(), 0, "not before the disk knows");
    writer.sync().unwrap();
    assert!(writer.remove_old().unwrap() > 3);
    assert!(disk.files().len() < before - 2);
    records.push(purge);
    (records, disk)
}

#[test]
fn a_snapshot_takes_the_place_of_old_segments() {
    let (records, disk) = compacted();
    let (_, found) = open(&disk, 512).unwrap();
    assert!(Model::after(&records).is(&found), "{:?}", found.state);
    assert_eq!(found.snapshot, Some(snapshot_of(50)));
    let snapshots = disk.files().keys().filter(|name| name.starts_with("snapshot")).count();
    assert_eq!(snapshots, 1, "the older one is gone");
    let report = verify_files("shard-1", &disk.files());
    assert_eq!(report.verdict, Verdict::Whole);
    assert_eq!(report.first.map(|first| first.0), Some(51));
    assert_eq!(report.snapshot.and_then(|s| s.last).map(|last| last.0), Some(50));
}

#[test]
fn a_snapshot_that_is_missing_or_damaged_anywhere_is_found() {
    let (_, disk) = compacted();
    let files = disk.files();
    let name = files.keys().find(|name| name.starts_with("snapshot")).unwrap().clone();
    let mut fewer = files.clone();
    fewer.remove(&name);
    let error = open(&ModelDisk::with(&fewer), 512).err().unwrap();
    assert!(error.is_loss(), "{error}");
    let length = files[&name].len();
    for place in 0..length {
        let mut bad = files.clone();
        bad.get_mut(&name).unwrap()[place] ^= 0x10;
        let error = open(&ModelDisk::with(&bad), 512).err();
        assert!(error.is_some(), "byte {place}");
        let mut cut = files.clone();
        cut.get_mut(&name).unwrap().truncate(place);
        let error = open(&ModelDisk::with(&cut), 512).err().expect("a cut snapshot");
        assert!(error.is_loss(), "cut at {place}: {error}");
    }
}

#[test]
fn a_full_disk_keeps_what_waits_and_heals() {
    let disk = ModelDisk::new(1);
    disk.lock().room = 3 * 2048;
    let (mut writer, _) = open(&disk, 2048).unwrap();
    assert!(writer.make_spare().unwrap());
    let mut all = Vec::new();
    let mut index = 0;
    let mut waiting = VecDeque::new();
    // Short before it is stuck: a whole segment is left for what is under way.
    while writer.make_spare().unwrap() {
        let record = entry(1, index, 300);
        writer.write(&mut VecDeque::from([record.clone()])).unwrap();
        (index, all) = (index + 1, [all, vec![record]].concat());
        writer.sync().unwrap();
    }
    assert!(writer.is_short() && index > 5);
    let failure = loop {
        let record = entry(1, index, 300);
        waiting.push_back(record.clone());
        (index, all) = (index + 1, [all, vec![record]].concat());
        if let Err(failure) = writer.write(&mut waiting) {
            break failure;
        }
        writer.sync().unwrap();
    };
    assert!(matches!(failure, WriteFailure::Full), "{failure:?}");
    assert_eq!(waiting.len(), 1);
    assert!(matches!(writer.write(&mut waiting), Err(WriteFailure::Full)));
    disk.lock().room = 100_000;
    writer.write(&mut waiting).unwrap();
    writer.sync().unwrap();
    assert!(writer.make_spare().unwrap() && !writer.is_short());
    drop(writer);
    let (_, found) = open(&disk, 2048).unwrap();
    assert!(Model::after(&all).is(&found));
}

#[test]
fn a_write_that_half_fits_leaves_no_trace() {
    let disk = ModelDisk::new(1);
    disk.lock().reserves = false;
    let (mut writer, _) = open(&disk, 1 << 16).unwrap();
    let name = segment_name(1);
    let mut waiting = VecDeque::from([entry(1, 0, 5_000)]);
    let used = disk.files()[&name].len();
    disk.lock().room = used + 1_000;
    let before = disk.files()[&name].clone();
    let failure = writer.write(&mut waiting).unwrap_err();
    assert!(matches!(failure, WriteFailure::Full), "{failure:?}");
    assert_eq!((waiting.len(), &disk.files()[&name]), (1, &before));
    disk.lock().room = usize::MAX;
    writer.write(&mut waiting).unwrap();
    writer.sync().unwrap();
    let (_, found) = open(&disk, 1 << 16).unwrap();
    assert!(Model::after(&[entry(1, 0, 5_000)]).is(&found));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_flips_are_found_or_cost_the_torn_tail_only(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(),
            1_u8..), 1..4),
    ) {
        let (records, disk) = compacted();
        let good = disk.files();
        let mut files = good.clone();
        for (file, place, flip) in flips {
            let name = file.get(&good.keys().collect::<Vec<_>>()).to_string();
            let bytes = files.get_mut(&name).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
        }
        let report = verify_files("shard-1", &files);
        match open(&ModelDisk::with(&files), 512) {
            Ok((_, found)) => {
                let fits = [0, 1].iter().any(|lost| {
                    Model::after(&records[..records.len() - lost]).is(&found)
                });
                prop_assert!(fits, "{:?}", found.state);
                prop_assert!(!matches!(report.verdict, Verdict::Unusable(_) | Verdict::Empty));
            }
            Err(DiskError::Recovery(error)) => {
                // Without knowing whose files they should be, other files are as good.
                let foreign = matches!(error, RecoveryError::Foreign { .. });
                prop_assert!(foreign || report.verdict == Verdict::Unusable(error));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn random_bytes_are_no_log_and_no_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600), good in 0_usize..200,
    ) {
        let (_, disk) = compacted();
        for (name, content) in disk.files() {
            let mut content = content;
            content.truncate(good);
            content.extend_from_slice(&bytes);
            let files = BTreeMap::from([(name, content)]);
            let _ = open(&ModelDisk::with(&files), 512);
            let _ = verify_files("shard-1", &files);
        }
    }
}
