//! Snapshots as files: checking one before it is installed, and making one
//! from rows where the engine is not SQLite itself. The copying is the
//! migration's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rusqlite::Connection;

use super::{Applied, StorageError};
use crate::migration::copy::{self, Reader};
use crate::migration::progress::{Control, Event, Observer, Phase};
use crate::migration::source::{Holds, Metadata, Source};
use crate::migration::target;

/// A snapshot is made while serving: nobody watches its progress.
struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Event<'_>) {}
    fn work(&self, _: Phase, _: u64, _: u64) {}
}

pub(super) fn unwatched(stop: &Arc<AtomicBool>) -> Control<'static> {
    Control {
        observer: &Nobody,
        stop: Arc::clone(stop),
    }
}

impl From<&Metadata> for Applied {
    fn from(metadata: &Metadata) -> Self {
        Self {
            last_applied: metadata.last_applied,
            membership: metadata.membership.clone().unwrap_or_default(),
        }
    }
}

/// Opens a snapshot for reading and verifies that it is a sound state machine:
/// structure, tables and metadata.
pub(super) fn check(
    from: &Path,
    stop: &Arc<AtomicBool>,
) -> Result<(Source, Metadata), StorageError> {
    let mut source = Source::open(from, Arc::clone(stop))?;
    source.check_integrity(Holds::StateMachine)?;
    let metadata = source.metadata()?;
    // Every record is looked at.
    source.scan_idempotency(&mut |_, _, _| Ok(()))?;
    Ok((source, metadata))
}

/// What a snapshot says of itself.
pub(super) fn inspect(from: &Path) -> Result<Applied, StorageError> {
    let source = Source::open(from, Arc::default())?;
    Ok(Applied::from(&source.metadata()?))
}

/// Makes a snapshot in the empty file `to`; `scan` hands over all rows in key
/// order, then all idempotent writes.
pub(super) fn write(
    to: &Path,
    metadata: &Metadata,
    stop: &Arc<AtomicBool>,
    scan: impl FnOnce(&mut Reader<'_>) -> Result<(), StorageError> + Send,
) -> Result<(), StorageError> {
    copy::stream_rows(scan, 0, &unwatched(stop), |feed| {
        Ok(target::sqlite::build(to, feed, metadata, stop)?)
    })?;
    without_log(to)
}

/// Has a closed database want no write-ahead log, so that it can be read where
/// nothing may be written beside it.
pub(super) fn without_log(path: &Path) -> Result<(), StorageError> {
    journal(path, "DELETE").map_err(|source| StorageError::Sqlite {
        operation: "finish the snapshot",
        path: path.to_owned(),
        source,
    })
}

/// Nobody else knows the file: without locks, shared memory or syncs.
fn journal(path: &Path, mode: &str) -> rusqlite::Result<()> {
    let connection = alone(path)?;
    connection.pragma_update(None, "journal_mode", mode)?;
    connection.close().map_err(|(_, error)| error)
}

/// Opens a file that nobody else knows, and that may be lost in a crash.
pub(super) fn alone(path: &Path) -> rusqlite::Result<Connection> {
    /// Pages are passed on, not kept.
    const CACHE_KIB: i64 = 1024;
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}
