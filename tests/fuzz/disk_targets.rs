//! What is found on a disk: log segments and snapshots in files.
//!
//! Their good inputs are what a store leaves that runs for a moment.

use crate::engine::Target;
use crate::seal;
use futures::future::BoxFuture;
use nearstate_store::consensus::Compaction;
use nearstate_store::disk::{DiskConfig, Durability, Verdict, verify_files};
use nearstate_store::driver::{AppHandler, ShardSetup, Store, StoreConfig};
use nearstate_store::{FlowMachine, LeaseCell, Machine, NodeId, encode_batch};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Samples = Vec<(&'static str, Vec<u8>)>;

/// Log entries after which the store makes a snapshot.
const SNAPSHOT_EVERY: u64 = 12;
/// Far longer than that takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where both files say their number.
const NUMBER_AT: usize = 48;

/// A log segment.
pub(crate) const SEGMENTS: Target = Target {
    name: "segments",
    samples: segment_samples,
    is_fresh: true,
    read: read_segment,
    seal: seal::segment,
};

/// A snapshot's file, beside no log: damage, unless it is read as a snapshot at least.
pub(crate) const SNAPSHOT_FILES: Target = Target {
    name: "snapshot-files",
    samples: snapshot_samples,
    is_fresh: true,
    read: read_snapshot_file,
    seal: seal::snapshot_file,
};

fn number(bytes: &[u8]) -> u64 {
    let at = bytes.get(NUMBER_AT..NUMBER_AT + 8);
    at.map_or(0, |eight| u64::from_le_bytes(eight.try_into().expect("eight bytes")))
}

fn read_segment(bytes: &[u8]) -> bool {
    let name = format!("log-{:016x}.segment", number(bytes));
    let report = verify_files("shard-1", &BTreeMap::from([(name, bytes.to_vec())]));
    assert!(report.first <= report.last || report.first.is_none(), "{report:?}");
    matches!(report.verdict, Verdict::Whole | Verdict::TornTail(_))
}

fn read_snapshot_file(bytes: &[u8]) -> bool {
    let name = format!("snapshot-{:016x}", number(bytes));
    let report = verify_files("shard-1", &BTreeMap::from([(name, bytes.to_vec())]));
    let content = report.snapshot.map_or(0, |snapshot| snapshot.bytes);
    assert!(content <= bytes.len() as u64, "{report:?}");
    report.snapshot.is_some()
}

/// There are no layers above.
struct NoApp;

impl AppHandler for NoApp {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        Box::pin(core::future::ready(Vec::new()))
    }
}

/// The files of a store that committed some batches and made a snapshot, or has not yet.
fn files_of_a_store(batches: u64) -> BTreeMap<String, Vec<u8>> {
    let scratch = tempfile::tempdir().unwrap();
    let shard = nearstate_store::ShardId(1);
    let disk = DiskConfig::new(scratch.path().to_owned());
    let directory = disk.shard_directory(shard);
    let runtime = nearstate_store::driver::runtime().unwrap();
    runtime.block_on(async {
        let config = StoreConfig {
            durability: Durability::Disk(disk),
            compaction: Compaction::after(SNAPSHOT_EVERY),
            ..StoreConfig::new(7, NodeId(3), 5)
        };
        let setup = ShardSetup {
            id: shard,
            machine: Box::new(crate::store_targets::machine()),
            check: FlowMachine::check,
            reads: None,
            region: None,
            lease: Arc::new(LeaseCell::none()),
            generation: None,
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let app = Arc::new(NoApp);
        let store = Store::start(config, listener, vec![setup], app);
        let store = store.await.unwrap();
        store.initialize(shard, &[NodeId(3)]).await.unwrap();
        let batch = encode_batch(&crate::store_targets::batch());
        for _ in 0..batches {
            store.propose(shard, batch.clone()).await.unwrap();
        }
        let is_there = || std::fs::read_dir(&directory).unwrap().any(|entry| is_snapshot(&entry));
        let deadline = Instant::now() + PATIENCE;
        while batches > SNAPSHOT_EVERY && !is_there() {
            assert!(Instant::now() < deadline, "no snapshot is made");
            tokio::task::yield_now().await;
        }
        store.shutdown().await;
    });
    let entries = std::fs::read_dir(&directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, std::fs::read(entry.path()).unwrap())
    };
    files.map(read).collect()
}

fn is_snapshot(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
    name.starts_with("snapshot-") && name != "snapshot.tmp"
}

/// A segment that begins the log, without the zeros behind it that are kept for what comes.
fn segment_samples() -> Samples {
    let files = files_of_a_store(SNAPSHOT_EVERY / 2);
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let logs = files.into_iter().filter(|(name, _)| name.ends_with(".segment"));
    let (_, mut bytes) = logs.max_by_key(|(_, bytes)| used(bytes)).unwrap();
    bytes.truncate(used(&bytes).next_multiple_of(8));
    vec![("of-a-store", bytes)]
}

fn snapshot_samples() -> Samples {
    let mut files = files_of_a_store(SNAPSHOT_EVERY + 5).into_iter();
    let (_, bytes) = files.rfind(|(name, _)| name.starts_with("snapshot-")).unwrap();
    vec![("of-a-store", bytes)]
}
