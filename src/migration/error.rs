//! Why a migration ended.

use std::path::{Path, PathBuf};

use super::backup::BackupError;
use super::inspect::InspectError;
use super::preflight::{MeasureError, Problems};
use super::raft_log::RaftLogError;
use super::record::HistoryError;
use super::refusal::Refused;
use super::source::SourceError;
use super::target::TargetError;
use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::format::sqlite::{self, OpenError};

/// Why a migration ended. Unless the variant says otherwise, source and
/// configuration are as they were and nothing half-made is left.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// Told to stop; the next start begins again.
    #[error("the migration was stopped; the data is as it was, and the next start begins again")]
    Stopped,
    /// The target exists.
    #[error("Target database already exists: {}; remove it, or choose another path", .0.display())]
    TargetExists(PathBuf),
    /// What is on disk cannot be judged.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A person must decide.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Something would certainly fail.
    #[error("the migration was not begun: {0}")]
    Preflight(Problems),
    /// The disk filled up on the way.
    #[error(
        "the disk that holds {} is full: {needed} bytes were needed at most, {found} are free now; \
         free some (df -h), then try again",
        dir.display()
    )]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// Bytes that backup and copy can have needed.
        needed: u64,
        /// Bytes free after everything half-made was removed.
        found: u64,
        /// What failed.
        source: Box<MigrationError>,
    },
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The copy cannot be made or does not agree.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The legacy Raft log cannot be taken over.
    #[error(transparent)]
    RaftLog(#[from] RaftLogError),
    /// There is no backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A file operation failed.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The history could not be kept.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The database cannot be opened to complete its record.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The record in the database cannot be completed.
    #[error("cannot complete the migration record in {}", path.display())]
    Record {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
}

impl From<MeasureError> for MigrationError {
    fn from(error: MeasureError) -> Self {
        match error {
            MeasureError::Source(error) => Self::Source(error),
            MeasureError::Durable(error) => Self::Durable(error),
        }
    }
}

impl MigrationError {
    pub(super) fn record(path: &Path, source: rusqlite::Error) -> Self {
        Self::Record {
            path: path.to_owned(),
            source,
        }
    }

    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Stopped => Exit::Ok,
            Self::TargetExists(_) => Exit::TargetExists,
            Self::Inspect(error) => match error {
                InspectError::Redb(error) => error.exit(),
                InspectError::Open(error) => error.exit(),
                InspectError::Sqlite(_) => Exit::Io,
                InspectError::NotRegular(_) => Exit::Config,
                InspectError::Look { source, .. } => Exit::of_io(source),
            },
            Self::Refused(error) => error.exit(),
            Self::Preflight(problems) => problems.exit(),
            Self::DiskFull { .. } | Self::History(_) | Self::Record { .. } => Exit::Io,
            Self::Source(error) => error.exit(),
            Self::Target(error) => error.exit(),
            Self::RaftLog(error) => error.exit(),
            Self::Backup(error) => error.exit(),
            Self::Durable(error) => error.exit(),
            Self::Open(error) => error.exit(),
        }
    }

    /// The source's own error, if that is what it ended by.
    #[must_use]
    pub fn source_error(&self) -> Option<&SourceError> {
        match self {
            Self::Source(error)
            | Self::Inspect(InspectError::Redb(error))
            | Self::Target(TargetError::Source(error)) => Some(error),
            _ => None,
        }
    }

    /// The file that cannot be migrated as it is, where it is one that has to
    /// be looked at.
    #[must_use]
    pub fn source_path(&self) -> Option<&Path> {
        match self {
            Self::RaftLog(error) => Some(error.path()),
            error => error.source_error().and_then(SourceError::path),
        }
    }

    /// Whether it ended because it was told to.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Stopped
                | Self::Source(SourceError::Stopped)
                | Self::Target(TargetError::Stopped | TargetError::Source(SourceError::Stopped))
                | Self::Backup(BackupError::Stopped)
        )
    }

    /// The same error, seen from outside: a stop is a stop wherever it was
    /// noticed, and a full disk is told with what was needed for `target`.
    #[must_use]
    pub(crate) fn seen_from(self, target: &Path, needed: u64) -> Self {
        if self.is_stop() {
            return Self::Stopped;
        }
        if !self.is_disk_full() {
            return self;
        }
        let dir = durable::parent(target).to_owned();
        let found = durable::free_space(&dir).unwrap_or(0);
        Self::DiskFull {
            dir,
            needed,
            found,
            source: Box::new(self),
        }
    }

    fn is_disk_full(&self) -> bool {
        use std::error::Error as _;
        let mut next: Option<&(dyn std::error::Error + 'static)> = self.source();
        // `transparent` variants show their inner error's source; start at the inner error itself.
        if let Self::Durable(error) | Self::Backup(BackupError::Durable(error)) = self {
            next = Some(error);
        }
        while let Some(error) = next {
            // redb's errors are boxed and don't name the cause as their source.
            let redb = error.downcast_ref::<Box<redb::Error>>().map(|e| &**e);
            let io = match redb.or_else(|| error.downcast_ref()) {
                Some(redb::Error::Io(error)) => Some(error),
                _ => error.downcast_ref::<std::io::Error>(),
            };
            let failure = error.downcast_ref::<rusqlite::Error>();
            let full = io.is_some_and(durable::is_full) || failure.is_some_and(sqlite::is_full);
            if full {
                return true;
            }
            next = error.source();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    fn seen(code: i32) -> MigrationError {
        let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let path = PathBuf::from("/data/state-machine.db.aspen-tmp");
        let error = TargetError::Open(OpenError::Sqlite { path, source });
        MigrationError::Target(error).seen_from(Path::new("/data/state-machine.db"), 1 << 20)
    }

    #[test]
    fn a_disk_that_is_full_when_the_copy_is_opened_is_told_with_what_was_needed() {
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE] {
            let error = seen(code);
            assert!(matches!(error, MigrationError::DiskFull { .. }), "{error}");
        }
        let error = seen(ffi::SQLITE_IOERR_READ);
        assert!(matches!(error, MigrationError::Target(_)), "{error}");
    }
}
