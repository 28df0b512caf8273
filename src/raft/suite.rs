//! openraft's own suite for stores, on our log with each state machine.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tokio::sync::watch;

use super::log::LogStore;
use super::machine::{Condition, Machine};
use super::types::Types;
use crate::config::settings::{Backend, BackupKind, Verify};
use crate::layout::DataDir;
use crate::lock::LockedDir;
use crate::migration::progress::{Control, Event, Observer, Phase};
use crate::migration::{self, Options};
use crate::storage::log::Log;
use crate::storage::{self, StateMachine};

struct Builder(Backend);

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<Types>> {
        let home = tempfile::tempdir().unwrap();
        let dir = DataDir::new(home.path());
        let file = Log::open(&dir.raft_log(), None).unwrap();
        let log = LogStore::new(file.clone());
        let state_machine = fresh(&dir, self.0);
        let machine = Machine {
            state_machine,
            condition: Arc::new(Condition::default()),
            log: file,
            // The suite applies entries that are in no log.
            durable: watch::channel(Some(u64::MAX)).1,
            copy: dir.copy(),
        };
        Ok((home, log, machine))
    }
}

struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event<'_>) {}
    fn work(&self, _phase: Phase, _done: u64, _total: u64) {}
}

pub(super) fn fresh(dir: &DataDir, backend: Backend) -> Arc<dyn StateMachine> {
    let locked = LockedDir::take(dir.clone(), "suite").unwrap();
    let options = Options {
        backend,
        backup: BackupKind::Copy,
        keep_backups: 3,
        verify: Verify::Full,
        config_file: None,
        program: "suite".into(),
    };
    let control = Control {
        observer: &Silent,
        stop: Arc::default(),
    };
    let prepared = migration::prepare(&locked, &options, &control).unwrap();
    storage::open(&prepared, 2).unwrap()
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
