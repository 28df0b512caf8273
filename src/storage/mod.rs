//! The state machine behind the node: SQLite, legacy redb, or memory.
//!
//! [`open`] takes what [`migration::prepare`](crate::migration::prepare)
//! returned and nothing else, so that data which should have been migrated
//! cannot be opened by mistake. What is here now serves reads; writes arrive
//! through the Raft log, whose state machine takes its place behind the same
//! trait.

mod memory;
mod redb;
mod sqlite;

use std::path::PathBuf;
use std::sync::Arc;

use crate::exit::Exit;
use crate::format::record::{LogId, RecordError};
use crate::format::sqlite::OpenError;
use crate::migration::{Prepared, Storage};

/// A state machine that serves reads, from many threads at once.
pub trait StateMachine: Send + Sync {
    /// The engine's name, as in the configuration.
    fn backend(&self) -> &'static str;

    /// The value of a key.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn get(&self, key: &str) -> Result<Option<String>, StorageError>;

    /// The last applied entry; `None` before the first.
    ///
    /// # Errors
    /// When the file cannot be read or the record is damaged.
    fn last_applied(&self) -> Result<Option<LogId>, StorageError>;

    /// Writes what is only in memory or in a write-ahead log to its place and
    /// closes the file. Reads fail afterwards.
    ///
    /// # Errors
    /// When the file cannot be written; nothing durable is lost by it.
    fn close(&self) -> Result<(), StorageError>;
}

/// Why the state machine cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// SQLite does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite fails.
    #[error("cannot {operation} {}", path.display())]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// redb does not open.
    #[error("Failed to open redb database {}; if it is damaged, restore it from a backup", path.display())]
    OpenRedb {
        /// The database.
        path: PathBuf,
        /// redb's reason.
        source: Box<::redb::Error>,
    },
    /// redb opens and holds something else, or repaired the file to nothing.
    #[error("{} is no Aspen state machine: it has no table {table}; restore it from a backup", path.display())]
    NoTable {
        /// The database.
        path: PathBuf,
        /// The table that is missing.
        table: &'static str,
    },
    /// redb fails.
    #[error("cannot {operation} {}", path.display())]
    Redb {
        /// What was tried.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// redb's reason.
        source: Box<::redb::Error>,
    },
    /// A metadata record is damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The node is stopping.
    #[error("the state machine is closed; the node is stopping")]
    Closed,
}

impl StorageError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Open(error) => error.exit(),
            Self::OpenRedb { source, .. } | Self::Redb { source, .. } => match &**source {
                ::redb::Error::Io(error) => Exit::of_io(error),
                ::redb::Error::DatabaseAlreadyOpen => Exit::Locked,
                _ => Exit::Data,
            },
            Self::Sqlite { .. } => Exit::Io,
            Self::NoTable { .. } | Self::Record(_) => Exit::Data,
            Self::Closed => Exit::Software,
        }
    }
}

/// Opens the state machine. `pool_size` read connections at most are kept on SQLite.
///
/// # Errors
/// When the file cannot be opened or is no state machine.
pub fn open(prepared: &Prepared, pool_size: u32) -> Result<Arc<dyn StateMachine>, StorageError> {
    Ok(match prepared.storage() {
        Storage::Sqlite(path) => Arc::new(sqlite::Sqlite::open(path, pool_size)?),
        Storage::Redb(path) => Arc::new(redb::Redb::open(path)?),
        Storage::Memory => Arc::new(memory::Memory),
    })
}
