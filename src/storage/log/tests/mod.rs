//! The log on its own, with faults below redb where a test asks for them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod disk;
mod files;
mod model;
mod order;
mod unfiled;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::format::entry::{Payload, Request};

fn id(term: u64, index: u64) -> LogId {
    LogId {
        term,
        node_id: 1,
        index,
    }
}

/// An entry that tells its term in its value, too.
fn entry(term: u64, index: u64, size: usize) -> Entry {
    let request = Request::Set {
        key: format!("key {index}"),
        value: format!("{term}:{}", "v".repeat(size)),
    };
    Entry {
        log_id: id(term, index),
        payload: Payload::Normal(request),
    }
}

fn entries(term: u64, range: Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index, 100)).collect()
}

/// A `done`, and where it tells its result.
fn promise() -> (Done, Receiver<io::Result<()>>) {
    let (told, result) = channel();
    (Box::new(move |end| told.send(end).unwrap()), result)
}

/// A `done` for what nobody waits for.
fn nobody() -> Done {
    Box::new(|_| ())
}

/// Asks, and waits until it is durable.
fn wait(ask: impl FnOnce(Done)) {
    let (done, result) = promise();
    ask(done);
    result.recv().unwrap().unwrap();
}

/// A directory and the log's path in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raft-log.redb");
    (dir, path)
}

fn open(path: &Path) -> Log {
    Log::open(path, None).unwrap()
}

fn all(log: &Log) -> Vec<Entry> {
    log.read(0..u64::MAX, u64::MAX).unwrap()
}
