//! Making the copy, in a temporary file, and verifying it.

pub(crate) mod raft_log;
pub(crate) mod redb;
pub(crate) mod sqlite;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::source::SourceError;
use crate::durable::DurableError;
use crate::exit::Exit;
use crate::format::sqlite::OpenError;

/// Why the copy could not be made or does not agree.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A file operation failed.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// SQLite failed.
    #[error("cannot {operation} {}", path.display())]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// The temporary file.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// redb failed.
    #[error("cannot {operation} {}", path.display())]
    Redb {
        /// What was tried.
        operation: &'static str,
        /// The temporary file.
        path: PathBuf,
        /// redb's reason.
        source: Box<::redb::Error>,
    },
    /// The copy does not open as the node would open it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// SQLite's or redb's own check of the copy fails.
    #[error("the copy {} is damaged: {complaint}; check the disk, then try again", path.display())]
    Damaged {
        /// The temporary file.
        path: PathBuf,
        /// The first complaint.
        complaint: String,
    },
    /// The copy has more or fewer rows.
    #[error(
        "Key count mismatch: the source has {wanted} keys, the copy {found}; check disk space (df -h) and the disk, then try again"
    )]
    Count {
        /// Rows of the source.
        wanted: u64,
        /// Rows of the copy.
        found: u64,
    },
    /// A row of the copy differs.
    #[error("Value mismatch for key number {number} in key order; check the disk, then try again")]
    Value {
        /// Its position, from 1.
        number: u64,
        /// The key; not part of the message, since logs must not hold keys.
        key: String,
    },
    /// The digests differ although every row compared equal.
    #[error(
        "Checksum mismatch: the source has {wanted}, the copy {found}; check memory and disk, then try again"
    )]
    Digest {
        /// The source's.
        wanted: String,
        /// The copy's.
        found: String,
    },
    /// The metadata of the copy differs.
    #[error(
        "Metadata mismatch: the record {record:?} of the copy differs; check the disk, then try again"
    )]
    Metadata {
        /// The record's name.
        record: String,
    },
    /// What is remembered of idempotent writes differs.
    #[error(
        "Idempotent writes mismatch: the source's have the checksum {wanted}, the copy's {found}; \
         check memory and disk, then try again"
    )]
    Idempotency {
        /// The source's.
        wanted: String,
        /// The copy's.
        found: String,
    },
    /// Told to stop.
    #[error("stopped")]
    Stopped,
}

impl TargetError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Durable(error) => error.exit(),
            Self::Source(error) => error.exit(),
            Self::Open(error) => error.exit(),
            Self::Stopped => Exit::Ok,
            Self::Sqlite { .. } | Self::Redb { .. } => Exit::Io,
            _ => Exit::Data,
        }
    }
}
