//! The SQLite state machine: its schema and how it is opened.
//!
//! The three tables are those of legacy nodes, so that old and new files and
//! every query in the `sqlite3` shell go on working. `aspen_migrations` and
//! `aspen_idempotency` are ours; a file that a legacy node made lacks them.
//!
//! Table kind and page size were chosen by measuring bulk load and random
//! single-row writes (`benches/layout.rs`; figures in `docs/benchmarks.md`):
//! ordinary rowid tables, 4 KiB pages. Each page that a write touches goes to
//! the write-ahead log whole and later to the database: a random put writes
//! half as many bytes as with 8 KiB.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::AccessFlags;
use rusqlite::{Connection, OpenFlags};

use crate::exit::Exit;

/// Keys and values.
pub const KV: &str = "state_machine_kv";
/// Raft metadata, as [`record`](super::record) encodes it.
pub const META: &str = "state_machine_meta";
/// One row for each migration that made this file.
pub const MIGRATIONS: &str = "aspen_migrations";
/// One row for each idempotent write that is remembered, by the index of its entry.
pub const IDEMPOTENCY: &str = "aspen_idempotency";

/// Bytes of a page in the files that we make, as in legacy ones.
pub const PAGE_BYTES: u32 = 4096;
/// Most bytes of a row (`SQLITE_MAX_LENGTH` as SQLite ships).
pub const MAX_ROW_BYTES: u64 = 1_000_000_000;
/// Bytes that a row may need beside its key and value.
pub const ROW_OVERHEAD_BYTES: u64 = 32;

/// How long a statement waits for another connection's lock: longer than any
/// checkpoint, shorter than a client's patience.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Page cache of one connection.
const CACHE_KIB: i64 = 8 * 1024;

/// The statements that make a legacy node's tables.
pub const SCHEMA: &str = "\
CREATE TABLE state_machine_kv(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE state_machine_meta(key TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE snapshots(id TEXT PRIMARY KEY, data BLOB NOT NULL);";

/// The statement that makes the table which a legacy node's file lacks.
pub const MIGRATIONS_SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS aspen_migrations(
  id TEXT PRIMARY KEY,
  completed_at TEXT NOT NULL,
  source_fingerprint TEXT NOT NULL,
  record TEXT NOT NULL
);";

/// The statement that makes the table of idempotent writes, when there is the first.
pub const IDEMPOTENCY_SCHEMA: &str = "\
CREATE TABLE IF NOT EXISTS aspen_idempotency(
  log_index INTEGER PRIMARY KEY,
  key TEXT NOT NULL UNIQUE,
  record BLOB NOT NULL
);";

/// A state machine file that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is missing or its permissions forbid.
    #[error("Failed to open SQLite database {}; check that it is there and that this user may read and write it and its directory (ls -l)", path.display())]
    File {
        /// The database.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// SQLite refuses the file.
    #[error("Failed to open SQLite database {}; {}", path.display(), advice(source))]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// A database, but not of a state machine.
    #[error("Failed to open SQLite database {}: it has no table {table}, so it is no Aspen state machine", path.display())]
    NoTable {
        /// The database.
        path: PathBuf,
        /// The table that is missing.
        table: &'static str,
    },
}

/// What to do about a file that SQLite refuses.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly,
        SystemIoFailure,
    };
    match error.sqlite_error_code() {
        Some(PermissionDenied | ReadOnly | CannotOpen) => {
            "check that this user may read and write it and its directory (ls -l)"
        }
        Some(DatabaseBusy | DatabaseLocked) => "another process uses it: stop that, then try again",
        Some(DiskFull | SystemIoFailure) => "check the disk and the space on it (df -h)",
        _ => "the file is damaged or not a database: restore it from a backup",
    }
}

/// Whether it is only that the disk is full.
#[must_use]
pub fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        // The log's index is a file as well, and has its own code for no space.
        error.code == rusqlite::ErrorCode::DiskFull
            || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    })
}

impl OpenError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::File { source, .. } => Exit::of_io(source),
            Self::Sqlite { source, .. } => match source.sqlite_error_code() {
                Some(rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::ReadOnly) => {
                    Exit::Permission
                }
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                    Exit::Locked
                }
                _ => Exit::Io,
            },
            Self::NoTable { .. } => Exit::Data,
        }
    }
}

/// SQLite's own VFS on this system.
pub const VFS: &CStr = c"unix";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The one connection that writes.
    Write,
    /// One of the pool.
    Read,
}

/// Opens a state machine as the node does. It must exist and be one.
///
/// # Errors
/// When the file is missing, empty, forbidden, damaged or something else.
pub fn open(path: &Path, access: Access) -> Result<Connection, OpenError> {
    open_with(path, access, VFS)
}

/// The same through another VFS than SQLite's own (<https://sqlite.org/vfs.html>).
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, access: Access, vfs: &CStr) -> Result<Connection, OpenError> {
    let file = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    // SQLite says only "unable to open"; the operating system says why. And SQLite
    // takes an empty file for an empty database, which here would be lost data.
    // Asked by name: opening and closing the file here would drop every lock that
    // this process's connections hold on it (<https://sqlite.org/howtocorrupt.html>).
    let wanted = match access {
        Access::Write => AccessFlags::R_OK | AccessFlags::W_OK,
        Access::Read => AccessFlags::R_OK,
    };
    let length = path.metadata().map_err(file)?.len();
    nix::unistd::access(path, wanted).map_err(|errno| file(errno.into()))?;
    if length == 0 {
        return Err(file(std::io::Error::other("the file is empty")));
    }
    let mode = match access {
        Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
        Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let sqlite = |source| OpenError::Sqlite {
        path: path.to_owned(),
        source,
    };
    let connection =
        Connection::open_with_flags_and_vfs(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX, vfs)
            .map_err(sqlite)?;
    configure(&connection, access).map_err(sqlite)?;
    require_tables(&connection, path)?;
    Ok(connection)
}

fn configure(connection: &Connection, access: Access) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    if access == Access::Write {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
    }
    Ok(())
}

/// Fails unless the tables of a state machine are there.
///
/// # Errors
/// When one is missing or the schema cannot be read.
pub fn require_tables(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    for table in [KV, META] {
        let found = has_table(connection, table).map_err(|source| OpenError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
        if !found {
            return Err(OpenError::NoTable {
                path: path.to_owned(),
                table,
            });
        }
    }
    Ok(())
}

/// Whether a table exists.
///
/// # Errors
/// When the schema cannot be read.
pub fn has_table(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1")?
        .query_row([table], |row| row.get::<_, i64>(0))
        .map(|n| n > 0)
}

/// The bytes of a metadata record, if it is there.
///
/// # Errors
/// When the table cannot be read.
pub fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    use rusqlite::OptionalExtension as _;
    connection
        .prepare_cached("SELECT value FROM state_machine_meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// Hands every remembered idempotent write to `sink`, in the order of the log:
/// the index of its entry, the client's key, its record. An error ends the walk.
///
/// # Errors
/// When the table cannot be read; that it is not there is none.
pub fn scan_idempotency<E>(
    connection: &Connection,
    mut sink: impl FnMut(u64, &str, &[u8]) -> Result<(), E>,
) -> rusqlite::Result<()> {
    if !has_table(connection, IDEMPOTENCY)? {
        return Ok(());
    }
    let mut select = connection
        .prepare("SELECT log_index, key, record FROM aspen_idempotency ORDER BY log_index")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let index = row.get::<_, i64>(0)?.unsigned_abs();
        let (key, record) = (row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_blob()?);
        if sink(index, key, record).is_err() {
            break;
        }
    }
    Ok(())
}

/// An index of the log as SQLite takes it; the log ends long before the largest.
#[must_use]
pub fn log_index(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}
