//! What can go wrong with the log.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::format::record::RecordError;

/// Why the log cannot be opened, read or written. Cheap to clone: everybody who
/// waits is told the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be made.
    #[error(transparent)]
    Create(Arc<DurableError>),
    /// redb does not open it.
    #[error(
        "cannot open the Raft log {}; if it is damaged, restore the data directory from a backup, or, \
         in a cluster, empty it and let this node join anew",
        path.display()
    )]
    Open {
        /// The log.
        path: PathBuf,
        /// redb's reason.
        source: Arc<redb::Error>,
    },
    /// It is in a file format that redb no longer writes.
    #[error(
        "the Raft log {} is in the older redb file format v{version}, which a start converts beside a \
         kept backup; start aspen-node on its data directory",
        path.display()
    )]
    Old {
        /// The log.
        path: PathBuf,
        /// The format.
        version: u8,
    },
    /// redb opens it and holds something else, or repaired it to nothing.
    #[error(
        "{} is no Raft log: it has no table {table}; restore the data directory from a backup",
        path.display()
    )]
    NoTable {
        /// The file.
        path: PathBuf,
        /// The table that is missing.
        table: &'static str,
    },
    /// What is in it contradicts itself.
    #[error(
        "the Raft log {} is damaged: {what}; restore the data directory from a backup, or, in a \
         cluster, empty it and let this node join anew",
        path.display()
    )]
    Damaged {
        /// The log.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// An entry cannot be decoded.
    #[error("entry {index} of the Raft log {} is damaged; restore the data directory from a backup", path.display())]
    Entry {
        /// The log.
        path: PathBuf,
        /// Which entry.
        index: u64,
        /// What is wrong with it.
        source: Arc<RecordError>,
    },
    /// A record beside the entries cannot be decoded or encoded.
    #[error("a record of the Raft log {} is damaged; restore the data directory from a backup", path.display())]
    Record {
        /// The log.
        path: PathBuf,
        /// What is wrong with it.
        source: Arc<RecordError>,
    },
    /// redb fails.
    #[error(
        "cannot {operation} the Raft log {}; see the kernel's log (dmesg) about its disk, and start the \
         node again",
        path.display()
    )]
    Redb {
        /// What was tried.
        operation: &'static str,
        /// The log.
        path: PathBuf,
        /// redb's reason.
        source: Arc<redb::Error>,
    },
    /// The node was stopped while the disk was full.
    #[error(
        "cannot {operation} the Raft log {} before the node stops; free space (df -h) and start it again",
        path.display()
    )]
    Full {
        /// What was tried.
        operation: &'static str,
        /// The log.
        path: PathBuf,
        /// redb's reason.
        source: Arc<redb::Error>,
    },
    /// Entries that would leave a gap, or stand on others: a defect of the caller.
    #[error("the Raft log {} goes on at index {expected}, not at {found}", path.display())]
    Order {
        /// The log.
        path: PathBuf,
        /// The index that the next entry must have.
        expected: u64,
        /// The index that it has.
        found: u64,
    },
    /// The node is stopping.
    #[error("the Raft log is closed; the node is stopping")]
    Closed,
}

impl LogError {
    /// What became of an operation of redb.
    pub(super) fn of(operation: &'static str, path: &std::path::Path, source: redb::Error) -> Self {
        let (path, full) = (path.to_owned(), is_full(&source));
        let source = Arc::new(source);
        match full {
            true => Self::Full {
                operation,
                path,
                source,
            },
            false => Self::Redb {
                operation,
                path,
                source,
            },
        }
    }

    /// Whether it is only that there was no space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Create(error) => durable::is_full(error.io()),
            Self::Open { source, .. } => is_full(source),
            Self::Full { .. } => true,
            _ => false,
        }
    }

    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Create(error) => error.exit(),
            Self::Open { source, .. } | Self::Redb { source, .. } => match &**source {
                // Of a file that is none of redb's, or too short, redb tells as of I/O errors.
                redb::Error::Io(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    Exit::Data
                }
                redb::Error::Io(error) => Exit::of_io(error),
                redb::Error::DatabaseAlreadyOpen => Exit::Locked,
                redb::Error::PreviousIo => Exit::Io,
                _ => Exit::Data,
            },
            Self::Full { .. } => Exit::Io,
            Self::Old { .. }
            | Self::NoTable { .. }
            | Self::Damaged { .. }
            | Self::Entry { .. }
            | Self::Record { .. } => Exit::Data,
            Self::Order { .. } | Self::Closed => Exit::Software,
        }
    }
}

fn is_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error) if durable::is_full(error))
}

/// For those to whom an operation's end is told as an I/O error.
impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Create(source) => source.io().kind(),
            LogError::Open { source, .. }
            | LogError::Redb { source, .. }
            | LogError::Full { source, .. } => match &**source {
                redb::Error::Io(source) => source.kind(),
                _ => io::ErrorKind::Other,
            },
            LogError::Order { .. } => io::ErrorKind::InvalidInput,
            LogError::Closed => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
