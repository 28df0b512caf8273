//! openraft's own suite for stores, on our log with each state machine.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::log::LogStore;
use super::machine::{Condition, Machine};
use super::types::Types;
use crate::config::settings::Backend;
use crate::layout::DataDir;
use crate::storage::log::Log;

struct Builder(Backend);

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<Types>> {
        let home = tempfile::tempdir().unwrap();
        let dir = DataDir::new(home.path());
        let log = LogStore(Log::open(&dir.raft_log()).unwrap());
        let state_machine = crate::storage::fresh(&dir, self.0).unwrap();
        let machine = Machine {
            state_machine,
            condition: Arc::new(Condition::default()),
            copy: dir.copy(),
        };
        Ok((home, log, machine))
    }
}

#[test]
fn the_log_and_sqlite_pass_the_suite_of_the_consensus_library() {
    run(Backend::Sqlite);
}

#[test]
fn the_log_and_redb_pass_the_suite_of_the_consensus_library() {
    run(Backend::Redb);
}

#[test]
fn the_log_and_memory_pass_the_suite_of_the_consensus_library() {
    run(Backend::Memory);
}

fn run(backend: Backend) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(Suite::test_all(Builder(backend))).unwrap();
}
