//! Why a source cannot be read.

use std::io;
use std::path::{Path, PathBuf};

use super::redb::EngineError;
use super::sqlite::SqliteError;
use crate::exit::Exit;
use crate::format::header::HeaderError;
use crate::format::record::RecordError;
use crate::format::sqlite::OpenError;

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there.
    #[error("Source database does not exist: {}; check the path (ls -l)", .0.display())]
    Missing(PathBuf),
    /// It is there and cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The source.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("{} is in use by another process; stop the node that has it open, then try again", .0.display())]
    InUse(PathBuf),
    /// It is of no kind that Aspen knows.
    #[error("{} is neither a redb nor a SQLite database ({found}); restore it from a backup", path.display())]
    NotADatabase {
        /// The source.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// Its header is damaged.
    #[error("{} is damaged; restore it from a backup", path.display())]
    Header {
        /// The source.
        path: PathBuf,
        /// What is wrong.
        source: HeaderError,
    },
    /// Its content is damaged.
    #[error("{} is damaged and was left as it is; restore it from a backup", path.display())]
    Damaged {
        /// The source.
        path: PathBuf,
        /// What redb found.
        source: EngineError,
    },
    /// Its newest commit is damaged and redb would fall back to the one before.
    #[error(
        "{} is damaged: its last commit (transaction {transaction}) fails its checksum, and going on \
         would silently lose that commit; the file was left as it is: restore it from a backup, or, \
         if the power failed while the legacy node wrote, start and stop that node once: it goes \
         back by that commit",
        path.display()
    )]
    LastCommitDamaged {
        /// The source.
        path: PathBuf,
        /// The commit that would be lost.
        transaction: u64,
    },
    /// SQLite's integrity check complains.
    #[error("{} is damaged: {complaint}; restore it from a backup", path.display())]
    SqliteDamaged {
        /// The source.
        path: PathBuf,
        /// The first complaint.
        complaint: String,
    },
    /// A database, but of something else.
    #[error("{} is no Aspen {wanted}: {why}", path.display())]
    WrongContent {
        /// The source.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
        /// What is missing or too much.
        why: String,
    },
    /// A metadata record is damaged.
    #[error("{} is damaged", path.display())]
    Record {
        /// The source.
        path: PathBuf,
        /// The record.
        source: RecordError,
    },
    /// A SQLite source cannot be opened.
    #[error(transparent)]
    SqliteOpen(#[from] OpenError),
    /// A SQLite source cannot be read.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// Told to stop.
    #[error("stopped")]
    Stopped,
}

impl SourceError {
    /// The file that it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Missing(path)
            | Self::InUse(path)
            | Self::Read { path, .. }
            | Self::NotADatabase { path, .. }
            | Self::Header { path, .. }
            | Self::Damaged { path, .. }
            | Self::LastCommitDamaged { path, .. }
            | Self::SqliteDamaged { path, .. }
            | Self::WrongContent { path, .. }
            | Self::Record { path, .. } => Some(path),
            Self::SqliteOpen(_) | Self::Sqlite(_) | Self::Stopped => None,
        }
    }

    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Missing(_) => Exit::NoInput,
            Self::Read { source, .. }
            | Self::Header {
                source: HeaderError::Read(source),
                ..
            } => Exit::of_io(source),
            Self::InUse(_) => Exit::Locked,
            Self::SqliteOpen(error) => error.exit(),
            Self::Stopped => Exit::Ok,
            _ => Exit::Data,
        }
    }
}
