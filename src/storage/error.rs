//! Why a state machine cannot be opened, read or written.

use std::io;
use std::path::PathBuf;

use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::format::record::RecordError;
use crate::format::sqlite::{self, OpenError};
use crate::migration::source::SourceError;
use crate::migration::target::TargetError;

/// Why the state machine cannot be opened, read or written.
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
    /// Something reads an old state and keeps the write-ahead log from being emptied.
    #[error(
        "the write-ahead log of {} cannot be emptied while something reads an old state: \
         wait for a snapshot or backup to end, or end the other process (fuser -v FILE names it), then try again",
        path.display()
    )]
    Pinned {
        /// The database.
        path: PathBuf,
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
    /// A file cannot be opened.
    #[error("cannot open {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file operation fails.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// A snapshot that shall be installed is none, or is damaged.
    #[error(transparent)]
    Snapshot(#[from] SourceError),
    /// A snapshot cannot be written.
    #[error(transparent)]
    Copy(#[from] TargetError),
    /// A metadata record is damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The node is stopping.
    #[error("the state machine is closed; the node is stopping")]
    Closed,
}

impl StorageError {
    /// Whether it is only that the disk is full: the same may work later.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Open(OpenError::Sqlite { source, .. })
            | Self::Sqlite { source, .. }
            | Self::Copy(TargetError::Sqlite { source, .. }) => sqlite::is_full(source),
            Self::OpenRedb { source, .. }
            | Self::Redb { source, .. }
            | Self::Copy(TargetError::Redb { source, .. }) => is_full_redb(source),
            Self::Open(OpenError::File { source, .. }) | Self::File { source, .. } => {
                durable::is_full(source)
            }
            Self::Durable(error) | Self::Copy(TargetError::Durable(error)) => {
                durable::is_full(error.io())
            }
            _ => false,
        }
    }

    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Open(error) => error.exit(),
            Self::OpenRedb { source, .. } | Self::Redb { source, .. } => match &**source {
                ::redb::Error::Io(error) => Exit::of_io(error),
                ::redb::Error::PreviousIo => Exit::Io,
                ::redb::Error::DatabaseAlreadyOpen => Exit::Locked,
                _ => Exit::Data,
            },
            Self::Sqlite { .. } => Exit::Io,
            Self::File { source, .. } => Exit::of_io(source),
            Self::Durable(error) => error.exit(),
            Self::Snapshot(error) => error.exit(),
            Self::Copy(error) => error.exit(),
            Self::Pinned { .. } => Exit::Locked,
            Self::NoTable { .. } | Self::Record(_) => Exit::Data,
            Self::Closed => Exit::Software,
        }
    }
}

fn is_full_redb(error: &::redb::Error) -> bool {
    matches!(error, ::redb::Error::Io(error) if durable::is_full(error))
}
