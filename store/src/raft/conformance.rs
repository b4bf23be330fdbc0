//! The library's own conformance suite against our log and state machine.

use super::{LogStore, StateMachine, Types};
use crate::machine::{Machine, PayloadError, Reply, SnapshotError};
use crate::types::LogIndex;
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

#[tokio::test]
async fn log_and_state_machine_pass_the_suite() {
    Suite::test_all(Builder).await.unwrap();
}
