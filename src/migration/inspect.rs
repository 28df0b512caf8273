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
    /// The Raft log, whatever the backend.
    pub log: Option<Identity>,
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
    /// The legacy state machine or the Raft log is unreadable.
    #[error(transparent)]
    Redb(#[from] SourceError),
    /// The SQLite state machine is unreadable.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its migration record is unreadable.
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    /// A file that has to be replaced is not a regular one of its own in the directory.
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
/// When a file is there and cannot be read: missing is not corrupt.
pub fn inspect(dir: &DataDir, backend: Backend) -> Result<Inventory, InspectError> {
    let mut inventory = Inventory {
        log: log(&dir.raft_log())?,
        ..Inventory::default()
    };
    if backend == Backend::Memory {
        inventory.leftovers = present(dir.possible_leftovers_beside_memory())?;
        return Ok(inventory);
    }
    inventory.leftovers = present(dir.possible_leftovers())?;
    if let Some(about) = regular(&dir.redb())? {
        inventory.redb = Some(RedbFile {
            identity: redb(&dir.redb())?,
            linked: about.nlink() > 1,
        });
    }
    if regular(&dir.sqlite())?.is_some() {
        inventory.sqlite = Some(SqliteFile {
            record: record(&dir.sqlite())?,
        });
    } else {
        inventory.orphans = present(layout::sqlite_companions(&dir.sqlite()))?;
    }
    Ok(inventory)
}

/// A log in the current format may lie elsewhere, behind a symbolic link: it
/// stays as it is.
fn log(path: &Path) -> Result<Option<Identity>, InspectError> {
    let Some(about) = look(path)? else {
        return Ok(None);
    };
    let identity = redb(path)?;
    match about.is_file() || !identity.is_legacy() {
        true => Ok(Some(identity)),
        false => Err(InspectError::NotRegular(path.to_owned())),
    }
}

fn redb(path: &Path) -> Result<Identity, InspectError> {
    let (_, identity) = identify(path)?;
    match identity.kind {
        Kind::Redb => Ok(identity),
        _ => Err(InspectError::Redb(SourceError::NotADatabase {
            path: path.to_owned(),
            found: "it is a SQLite database",
        })),
    }
}

/// Those of `paths` that are there.
fn present(paths: impl IntoIterator<Item = PathBuf>) -> Result<Vec<PathBuf>, InspectError> {
    let mut found = Vec::new();
    for path in paths {
        if look(&path)?.is_some() {
            found.push(path);
        }
    }
    Ok(found)
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
