//! What the node keeps: the Raft log ([`log`]) and the state machine behind it,
//! which is SQLite, legacy redb, or memory.
//!
//! [`open`] takes what [`migration::prepare`](crate::migration::prepare)
//! returned and nothing else, so that data which should have been migrated
//! cannot be opened by mistake.
//!
//! Who promises what:
//!
//! - The log is durable before an entry counts as appended. The state machine
//!   may lag behind on disk, never tear: rows and `last_applied` change in one
//!   transaction, and what a crash takes back is applied again from the log.
//! - So the log may be purged only up to what [`StateMachine::persist`] has
//!   returned.
//! - Applying cannot fail on what a request says; limits were enforced before
//!   it entered the log. It fails only on the disk, and then nothing of the
//!   batch was applied.

pub mod log;
pub mod space;

mod apply;
mod copy;
mod digest;
mod error;
mod memory;
mod page;
mod redb;
mod sqlite;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use self::error::StorageError;
use crate::format::digest::Digest;
use crate::format::entry::{Entry, Outcome};
use crate::format::record::{LogId, StoredMembership};
use crate::migration::{Prepared, Storage};

/// How far a state machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last applied entry; `None` before the first.
    pub last_applied: Option<LogId>,
    /// The last applied membership.
    pub membership: StoredMembership,
}

/// Which pairs a page shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// What their keys begin with; empty for all.
    pub prefix: String,
    /// The key after which the page begins, exclusive; it need not exist.
    pub after: Option<String>,
    /// The most pairs.
    pub limit: usize,
    /// The most bytes of keys and values together; a page holds at least one pair.
    pub max_bytes: usize,
}

/// What a state machine holds at one moment, in one number for each table:
/// nodes of any engine that have applied the same entries have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last applied entry; `None` before the first.
    pub last_applied: Option<LogId>,
    /// Keys and values.
    pub pairs: Digest,
    /// Idempotent writes that are remembered.
    pub idempotency: Digest,
}

/// Pairs in the byte order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys and values.
    pub pairs: Vec<(String, String)>,
    /// Whether there are more behind the last pair.
    pub more: bool,
}

/// What a checkpoint of a write-ahead log did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bytes of the write-ahead log before.
    pub wal_bytes_before: u64,
    /// Bytes of the write-ahead log after.
    pub wal_bytes_after: u64,
    /// Pages that it held.
    pub wal_pages: u64,
    /// Pages of it that were copied into the database.
    pub checkpointed_pages: u64,
    /// Bytes of the database before.
    pub database_bytes_before: u64,
    /// Bytes of the database after.
    pub database_bytes_after: u64,
}

/// What the files of a state machine take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The database; 0 for memory.
    pub database: u64,
    /// The write-ahead log; `None` for an engine that has none.
    pub wal: Option<u64>,
}

/// A state machine. All methods block on the disk and may be called from many
/// threads at once, but `apply` and `install_snapshot` only from one at a time.
pub trait StateMachine: Send + Sync {
    /// The engine's name, as in the configuration.
    fn backend(&self) -> &'static str;

    /// The values of keys, in one consistent view, in the order of the keys.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError>;

    /// A page of pairs, in one consistent view.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn scan(&self, range: &Range) -> Result<Page, StorageError>;

    /// How far it is.
    ///
    /// # Errors
    /// When the file cannot be read or a record is damaged.
    fn applied(&self) -> Result<Applied, StorageError>;

    /// Applies entries in their order, in one transaction, with the last one's
    /// position inside it. Reads that begin afterwards see them.
    ///
    /// # Errors
    /// When the disk fails or is full ([`StorageError::is_full`]); nothing was applied.
    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StorageError>;

    /// How long to wait before the next [`apply`](Self::apply), so that what only
    /// shrinks later does not grow without bound meanwhile. It asks no disk.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    /// Makes what was applied before the call survive a power cut, and returns
    /// up to where that reaches at least. Applying goes on meanwhile.
    ///
    /// # Errors
    /// When the disk fails or is full.
    fn persist(&self) -> Result<Option<LogId>, StorageError>;

    /// Writes a consistent copy into the empty file at `to`, as a closed SQLite
    /// database, whatever the engine. Reading and applying go on meanwhile.
    /// Not fsynced. Returns how far the copy is.
    ///
    /// # Errors
    /// When the disk fails or is full; the file is then to be removed.
    fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError>;

    /// Computes the digests of one consistent view, in bounded memory, and holds
    /// on to that view no longer than it takes to read all of it once. Reading and
    /// applying go on meanwhile.
    ///
    /// # Errors
    /// When the file cannot be read; [`StorageError::Closed`] once `stop` is true.
    fn digest(&self, stop: &AtomicBool) -> Result<Contents, StorageError>;

    /// Replaces everything by the copy at `from`, which is consumed: afterwards
    /// the file is gone, and its content durable in its new place. A crash
    /// leaves the old content or the new one. The record of the migration stays.
    ///
    /// # Errors
    /// When `from` is no state machine, or the disk fails; the old content stays.
    fn install_snapshot(&self, from: &Path) -> Result<Applied, StorageError>;

    /// Moves the write-ahead log into the database and truncates it; `None` for
    /// an engine that has none.
    ///
    /// # Errors
    /// When the disk fails, or readers hold on to the log for too long.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError>;

    /// What its files take now.
    fn sizes(&self) -> Sizes;

    /// Writes what is only in memory or in a write-ahead log to its place and
    /// closes the file. Reads fail afterwards.
    ///
    /// # Errors
    /// When the file cannot be written; nothing durable is lost by it.
    fn close(&self) -> Result<(), StorageError>;
}

/// Opens the state machine. `pool_size` read connections at most are kept on SQLite.
///
/// # Errors
/// When the file cannot be opened or is no state machine.
pub fn open(prepared: &Prepared, pool_size: u32) -> Result<Arc<dyn StateMachine>, StorageError> {
    Ok(match prepared.storage() {
        Storage::Sqlite(path) => Arc::new(sqlite::Sqlite::open(path, pool_size)?),
        Storage::Redb(path) => Arc::new(redb::Redb::open(path)?),
        Storage::Memory(snapshot) => Arc::new(memory::Memory::open(snapshot)?),
    })
}

/// How far the snapshot at `from` is, as the file itself says; its rows are
/// checked when it is installed.
///
/// # Errors
/// When it is no state machine, or cannot be read.
pub fn inspect_snapshot(from: &Path) -> Result<Applied, StorageError> {
    copy::inspect(from)
}
