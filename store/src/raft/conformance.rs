//! The library's own conformance suite against our log and state machine, in memory and on disk.

use super::{LogStore, StateMachine, Types};
use crate::disk::{self, DiskConfig, Identity};
use crate::machine::{Machine, PayloadError, Reply, SnapshotError};
use crate::types::{LogIndex, NodeId, ShardId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;

/// Counts what it is given.
struct Count(u64);

impl Machine for Count {
    fn check(_: &[u8]) -> Result<(), PayloadError> {
        Ok(())
    }

    fn apply(&mut self, _: LogIndex, _: &[u8]) -> Reply {
        self.0 += 1;
        Reply::None
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let bytes = snapshot.try_into().map_err(|_| SnapshotError::Damaged("not a number"))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        self.0
    }
}

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine> for Builder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<Types>> {
        let machine = StateMachine::new(Box::new(Count(0)), Arc::default());
        Ok(((), LogStore::default(), machine))
    }
}

/// On disk, with a directory that goes with the test.
struct DiskBuilder;

impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for DiskBuilder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let config = DiskConfig {
            segment_bytes: disk::SEGMENT_BYTES_MIN,
            ..DiskConfig::new(directory.path().to_owned())
        };
        let identity =
            Identity { cluster: 1, lineage: 1, life: 1, node: NodeId(1), shard: ShardId(1) };
        let opened = disk::open(&config, identity, &disk::Counts::default()).unwrap();
        let disk::Opened { log, snapshots, recovered } = opened;
        let check = Count::check;
        let log = LogStore::on_disk(log, &recovered.state, recovered.entries, check).unwrap();
        let machine =
            StateMachine::on_disk(Box::new(Count(0)), Arc::default(), snapshots, None).unwrap();
        Ok((directory, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_on_disk_passes_the_suite() {
    Suite::test_all(DiskBuilder).await.unwrap();
}

#[tokio::test]
async fn log_and_state_machine_pass_the_suite() {
    Suite::test_all(Builder).await.unwrap();
}
