//! Crashes at any moment: what was acknowledged is there afterwards, in its order, and nothing is
//! there that was never written.

use super::model_disk::{ModelDisk, Random};
use super::{Model, WHO, at, entry};
use crate::disk::DiskError;
use crate::disk::format::Record;
use crate::disk::snapshot_file::{SnapshotHead, SnapshotWriter};
use crate::disk::writer::{Recovered, Writer};
use crate::wire::{Ballot, Members};
use std::collections::VecDeque;

const SEEDS: u64 = 1_000;
const SEGMENT: u64 = 3_000;

/// What was asked of the disk, and how much of it was acknowledged.
struct World {
    random: Random,
    disk: ModelDisk,
    before: Model,
    /// Since `before`.
    records: Vec<Record>,
    acknowledged: usize,
    /// The last index of the newest snapshot: acknowledged, and perhaps one more.
    snapshots: (Option<u64>, Option<u64>),
    term: u64,
}

#[derive(Default, Debug)]
struct Seen {
    lost_unacknowledged: u32,
    torn: u32,
    snapshots: u32,
    failed_syncs: u32,
    lives: u32,
    removed: u32,
}

impl World {
    fn now(&self) -> Model {
        let mut model = self.before.clone();
        self.records.iter().for_each(|record| model.apply(record));
        model
    }

    /// What recovery has found must be something between what was acknowledged and all.
    fn check(&mut self, found: &Recovered, seen: &mut Seen) {
        let mut model = self.before.clone();
        let mut fits = None;
        for count in 0..=self.records.len() {
            if count >= self.acknowledged && model.is(found) {
                fits = Some((count, model.clone()));
            }
            if let Some(record) = self.records.get(count) {
                model.apply(record);
            }
        }
        let (count, model) = fits.unwrap_or_else(|| {
            panic!(
                "{} of {} acknowledged: {:?}",
                self.acknowledged,
                self.records.len(),
                found.state
            )
        });
        seen.lost_unacknowledged += u32::from(count < self.records.len());
        seen.torn += u32::from(found.torn > 0);
        let snapshot = found.snapshot.as_ref().map(|(head, content)| {
            let index = head.last_log.unwrap().index;
            assert_eq!(*content, index.to_le_bytes().repeat(100));
            index
        });
        let (sure, perhaps) = self.snapshots;
        assert!(snapshot == sure || snapshot == perhaps, "{snapshot:?} is not {sure:?}");
        self.snapshots = (snapshot, snapshot);
        (self.before, self.records, self.acknowledged) = (model, Vec::new(), 0);
    }

    fn batch(&mut self) -> Vec<Record> {
        let mut model = self.now();
        let mut batch = Vec::new();
        for _ in 0..=self.random.below(4) {
            let state = model.state;
            let next = state.next();
            let record = match self.random.below(10) {
                0 => {
                    self.term += 1;
                    Record::Vote(Ballot { term: self.term, node: 3, committed: false })
                }
                1 => Record::Committed(state.last),
                2 if next > state.first + 2 => {
                    let keep = next - 1 - self.random.below(2);
                    let keep = model.entries.get(&(keep - 1)).map(|entry| entry.at);
                    Record::Truncate(keep.or(state.purged))
                }
                _ => entry(self.term, next, self.random.below(400) as usize),
            };
            model.apply(&record);
            batch.push(record);
        }
        batch
    }

    /// Writes until something fails.
    fn live(
        &mut self,
        mut writer: Writer<ModelDisk>,
        number: u64,
        seen: &mut Seen,
    ) -> std::io::Result<()> {
        let mut snapshots = SnapshotWriter::new(self.disk.clone(), WHO, number);
        loop {
            let batch = self.batch();
            self.records.extend(batch.iter().cloned());
            self.write(&mut writer, batch)?;
            if self.random.percent(80) {
                writer.sync()?;
                self.acknowledged = self.records.len();
            }
            if self.random.percent(50) {
                writer.make_spare()?;
            }
            if self.random.percent(10) {
                seen.removed += self.compact(&mut writer, &mut snapshots)?;
                seen.snapshots += 1;
            }
        }
    }

    fn write(&self, writer: &mut Writer<ModelDisk>, batch: Vec<Record>) -> std::io::Result<()> {
        let mut batch = VecDeque::from(batch);
        writer.write(&mut batch).map_err(|failure| std::io::Error::other(format!("{failure:?}")))
    }

    fn compact(
        &mut self,
        writer: &mut Writer<ModelDisk>,
        snapshots: &mut SnapshotWriter<ModelDisk>,
    ) -> std::io::Result<u32> {
        let Some((&index, last)) = self.now().entries.iter().next_back().map(|(i, e)| (i, e.at))
        else {
            return Ok(0);
        };
        let members = Members { configs: vec![vec![3]], nodes: vec![3] };
        let head = SnapshotHead { last_log: Some(last), members_at: None, members };
        self.snapshots.1 = Some(index);
        snapshots.save(&head, &index.to_le_bytes().repeat(100))?;
        self.snapshots.0 = Some(index);
        let purge = Record::Purge(at(last.term, index));
        self.records.push(purge.clone());
        self.write(writer, vec![purge])?;
        writer.sync()?;
        self.acknowledged = self.records.len();
        writer.remove_old().map(|removed| removed as u32)
    }
}

fn run(seed: u64, lies: bool, seen: &mut Seen) {
    let mut random = Random(seed);
    let disk = ModelDisk::new(random.next());
    disk.lock().lies = lies;
    disk.lock().sync_failures = if random.percent(30) { 3 } else { 0 };
    let before = Model::default();
    let mut world = World {
        random,
        disk,
        before,
        records: Vec::new(),
        acknowledged: 0,
        snapshots: (None, None),
        term: 1,
    };
    for _ in 0..8 {
        seen.lives += 1;
        let budget = world.random.below(150);
        world.disk.lock().budget = Some(budget);
        match Writer::open(world.disk.clone(), WHO, SEGMENT) {
            Ok((writer, found)) => {
                world.check(&found, seen);
                let ended = world.live(writer, found.snapshot_number, seen).unwrap_err();
                seen.failed_syncs += u32::from(ended.to_string().contains("sync"));
            }
            Err(DiskError::Io(_)) => {}
            Err(other) => panic!("no crash does that: {other}"),
        }
        if world.random.percent(80) {
            world.disk.crash();
        } else {
            world.disk.restart();
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_thousand_seeds_of_crashes() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let caught = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
            run(seed, false, &mut seen);
        }));
        assert!(caught.is_ok(), "seed {seed}");
    }
    // The model does what it is for.
    let Seen { lost_unacknowledged, torn, snapshots, failed_syncs, lives, removed } = seen;
    for (what, times) in [
        ("unacknowledged records were lost", lost_unacknowledged),
        ("tails were torn", torn),
        ("snapshots were made", snapshots),
        ("segments were removed", removed),
        ("syncs failed", failed_syncs),
        ("lives", lives),
    ] {
        assert!(times >= 50, "{what}: {times} times only");
    }
}

#[test]
fn a_disk_that_lies_about_its_syncs_is_found_out_by_the_model() {
    let found_out = (0..50).filter(|seed| {
        let lives = || run(*seed, true, &mut Seen::default());
        std::panic::catch_unwind(core::panic::AssertUnwindSafe(lives)).is_err()
    });
    assert!(found_out.count() > 25, "the model forgives what it must not");
}
