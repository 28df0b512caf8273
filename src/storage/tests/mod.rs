//! What every engine promises, one suite for all three.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod digest;
mod idempotency;
mod model;
mod promises;
mod snapshots;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use super::memory::Memory;
use super::redb::Redb;
use super::sqlite::Sqlite;
use super::{Contents, Range, StateMachine};
use crate::durable;
use crate::format::entry::{Entry, Idempotent, Payload, Plain, Request};
use crate::format::record::LogId;
use crate::migration::target;

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Redb,
    Memory,
}

pub(super) const ENGINES: [Engine; 3] = [Engine::Sqlite, Engine::Redb, Engine::Memory];
pub(super) const ON_DISK: [Engine; 2] = [Engine::Sqlite, Engine::Redb];

/// A state machine in a directory of its own, gone when dropped.
pub(super) struct Bed {
    pub(super) engine: Engine,
    pub(super) dir: TempDir,
    pub(super) store: Arc<dyn StateMachine>,
}

impl Bed {
    pub(super) fn new(engine: Engine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make(engine, &file(engine, dir.path()));
        let store = open(engine, dir.path());
        Self { engine, dir, store }
    }

    pub(super) fn all() -> [Self; 3] {
        ENGINES.map(Self::new)
    }

    pub(super) fn on_disk() -> [Self; 2] {
        ON_DISK.map(Self::new)
    }

    /// Closes it and opens it again.
    pub(super) fn reopen(&mut self) {
        self.store.close().unwrap();
        self.store = open(self.engine, self.dir.path());
    }

    /// A name in the directory of the state machine, for a snapshot, with an empty file.
    pub(super) fn empty_file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        durable::create_new(&path).unwrap();
        path
    }

    pub(super) fn get(&self, key: &str) -> Option<String> {
        self.store.get(&[key.to_owned()]).unwrap().remove(0)
    }
}

pub(super) fn file(engine: Engine, dir: &Path) -> PathBuf {
    dir.join(match engine {
        Engine::Sqlite => "state-machine.db",
        Engine::Redb => "state-machine.redb",
        Engine::Memory => "memory-snapshot.db",
    })
}

/// Makes an empty one, as a fresh start does.
pub(super) fn make(engine: Engine, path: &Path) {
    match engine {
        Engine::Sqlite => target::sqlite::create_empty(path).unwrap(),
        Engine::Redb => {
            let file = durable::create_new(path).unwrap();
            target::redb::create_empty(path, &file).unwrap();
        }
        Engine::Memory => {}
    }
}

pub(super) fn open(engine: Engine, dir: &Path) -> Arc<dyn StateMachine> {
    let path = file(engine, dir);
    match engine {
        Engine::Sqlite => Arc::new(Sqlite::open(&path, 3).unwrap()),
        Engine::Redb => Arc::new(Redb::open(&path).unwrap()),
        Engine::Memory => Arc::new(Memory::open(&path).unwrap()),
    }
}

pub(super) fn at(index: u64) -> LogId {
    LogId {
        term: 3,
        node_id: 1,
        index,
    }
}

pub(super) fn entry(index: u64, request: Request) -> Entry {
    Entry {
        log_id: at(index),
        payload: Payload::Normal(request),
    }
}

pub(super) fn set(index: u64, key: &str, value: &str) -> Entry {
    let (key, value) = (key.to_owned(), value.to_owned());
    entry(index, Request::Set { key, value })
}

/// `change`, once under `key`.
pub(super) fn once(index: u64, key: &str, change: Plain) -> Entry {
    let once = Idempotent::new(key.to_owned(), change).unwrap();
    entry(index, Request::Idempotent(Box::new(once)))
}

pub(super) fn digest(store: &dyn StateMachine) -> Contents {
    store.digest(&AtomicBool::new(false)).unwrap()
}

/// All pairs, page by page.
pub(super) fn contents(store: &dyn StateMachine) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut range = Range {
        limit: 100,
        max_bytes: 1 << 20,
        ..Range::default()
    };
    loop {
        let page = store.scan(&range).unwrap();
        range.after = page.pairs.last().map(|(key, _)| key.clone());
        all.extend(page.pairs);
        if !page.more {
            return all;
        }
    }
}
