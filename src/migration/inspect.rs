//! What is on disk, found out without changing it and in a time that does not
//! depend on how much data there is.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::record::Record;
use super::source::sqlite::{SqliteError, SqliteReader};
use super::source::{Identity, SourceError, identify};
use crate::config::settings::Backend;
use crate::format::Kind;
use crate::format::sqlite::OpenError;
use crate::layout::{self, DataDir};

/// The data directory, as far as a decision needs it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The legacy state machine.
    pub redb: Option<RedbFile>,
    /// The SQLite state machine.
    pub sqlite: Option<SqliteFile>,
    /// Files that an interrupted run of ours left half-made.
    pub leftovers: Vec<PathBuf>,
    /// A write-ahead log or its index whose database is gone.
    pub orphans: Vec<PathBuf>,
}

/// A legacy state machine.
#[derive(Clone, Debug)]
pub struct RedbFile {
    /// What it is.
    pub identity: Identity,
    /// Whether it shares its blocks with another name, as a backup made by
    /// `migration.backup = "link"` does: it must not be written to.
    pub linked: bool,
}

/// A SQLite state machine.
#[derive(Clone, Debug)]
pub struct SqliteFile {
    /// The record of the migration that made it.
    pub record: Option<Record>,
}

/// Why the directory cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The legacy state machine is unreadable.
    #[error(transparent)]
    Redb(#[from] SourceError),
    /// The SQLite state machine is unreadable.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its migration record is unreadable.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// A state machine is not a regular file of its own in the directory.
    #[error("{} is not a regular file; put the file itself into the data directory, since it is replaced by renaming", .0.display())]
    NotRegular(PathBuf),
    /// A file cannot be looked at.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// Looks at the files that `backend` makes relevant.
///
/// # Errors
/// When a state machine is there and cannot be read: missing is not corrupt.
pub fn inspect(dir: &DataDir, backend: Backend) -> Result<Inventory, InspectError> {
    let mut inventory = Inventory::default();
    if backend == Backend::Memory {
        return Ok(inventory);
    }
    for path in dir.possible_leftovers() {
        if look(&path)?.is_some() {
            inventory.leftovers.push(path);
        }
    }
    if let Some(about) = regular(&dir.redb())? {
        let (_, identity) = identify(&dir.redb())?;
        if identity.kind != Kind::Redb {
            return Err(InspectError::Redb(SourceError::NotADatabase {
                path: dir.redb(),
                found: "it is a SQLite database",
            }));
        }
        inventory.redb = Some(RedbFile {
            identity,
            linked: about.nlink() > 1,
        });
    }
    if regular(&dir.sqlite())?.is_some() {
        inventory.sqlite = Some(SqliteFile {
            record: record(&dir.sqlite())?,
        });
    } else {
        for path in layout::sqlite_companions(&dir.sqlite()) {
            if look(&path)?.is_some() {
                inventory.orphans.push(path);
            }
        }
    }
    Ok(inventory)
}

/// A record that does not parse was made by a later release: the data is
/// judged without it, as a file that legacy nodes made.
fn record(path: &Path) -> Result<Option<Record>, InspectError> {
    if std::fs::metadata(path).is_ok_and(|about| about.len() == 0) {
        let empty = std::io::Error::other("the file is empty");
        return Err(OpenError::File {
            path: path.to_owned(),
            source: empty,
        }
        .into());
    }
    let text = SqliteReader::open(path)?.newest_record()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

fn look(path: &Path) -> Result<Option<std::fs::Metadata>, InspectError> {
    match path.symlink_metadata() {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InspectError::Look {
            path: path.to_owned(),
            source,
        }),
    }
}

fn regular(path: &Path) -> Result<Option<std::fs::Metadata>, InspectError> {
    match look(path)? {
        Some(about) if !about.is_file() => Err(InspectError::NotRegular(path.to_owned())),
        about => Ok(about),
    }
}
