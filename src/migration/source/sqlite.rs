//! Reading a SQLite state machine without changing it or the files beside it.
//!
//! A write-ahead log that a killed node left is part of the data, so
//! `immutable=1`, which ignores it, would lose writes. Where there is one,
//! SQLite opens the database read-only, keeps the log's index in memory
//! (exclusive locking mode through the VFS that does not lock) and is told not
//! to checkpoint on close. Where there is none, SQLite would make one even so,
//! and then `immutable=1` is what keeps the directory as it is. The locks that
//! are not taken either way are asked for here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::{IdempotentSink, RowSink};
use crate::format::sqlite::{self, OpenError};
use crate::layout;

/// Where SQLite's locks lie in a database file: the pending, reserved and shared bytes
/// (<https://sqlite.org/c3ref/io_methods.html>, `os.h`).
const LOCK_BYTES: (i64, i64) = (0x4000_0000, 512);

/// A SQLite error with the file that it is about.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct SqliteError {
    path: PathBuf,
    source: rusqlite::Error,
}

/// A state machine opened for reading only.
#[derive(Debug)]
pub(crate) struct SqliteReader {
    path: PathBuf,
    connection: Connection,
}

impl SqliteReader {
    /// Opens `path`, which must be a state machine.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let sqlite = |source| OpenError::Sqlite {
            path: path.to_owned(),
            source,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = if log_of(path).exists() {
            Connection::open_with_flags_and_vfs(path, flags, c"unix-none")
        } else {
            Connection::open_with_flags(immutable(path), flags | OpenFlags::SQLITE_OPEN_URI)
        }
        .map_err(sqlite)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(sqlite)?;
        connection
            .pragma_update(None, "locking_mode", "EXCLUSIVE")
            .map_err(sqlite)?;
        connection
            .pragma_update(None, "trusted_schema", false)
            .map_err(sqlite)?;
        sqlite::require_tables(&connection, path)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    fn context<T>(&self, result: rusqlite::Result<T>) -> Result<T, SqliteError> {
        result.map_err(|source| SqliteError {
            path: self.path.clone(),
            source,
        })
    }

    /// What `PRAGMA integrity_check` complains of; empty when all is well.
    pub(crate) fn check_integrity(&self) -> Result<Vec<String>, SqliteError> {
        let complaints = (|| {
            let mut check = self.connection.prepare("PRAGMA integrity_check")?;
            let rows = check.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })();
        let mut complaints = self.context(complaints)?;
        complaints.retain(|line| line != "ok");
        Ok(complaints)
    }

    pub(crate) fn rows(&self) -> Result<u64, SqliteError> {
        let count = self
            .connection
            .query_row("SELECT count(*) FROM state_machine_kv", [], |row| {
                row.get::<_, i64>(0)
            });
        self.context(count).map(i64::unsigned_abs)
    }

    pub(crate) fn meta(&self) -> Result<BTreeMap<String, Vec<u8>>, SqliteError> {
        self.context((|| {
            let mut select = self
                .connection
                .prepare("SELECT key, value FROM state_machine_meta")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })())
    }

    /// The newest migration record, if this file has one.
    pub(crate) fn newest_record(&self) -> Result<Option<String>, SqliteError> {
        self.context(newest_record(&self.connection))
    }

    pub(crate) fn scan(&self, sink: RowSink<'_>) -> Result<(), SqliteError> {
        self.context((|| {
            let mut select = self
                .connection
                .prepare("SELECT key, value FROM state_machine_kv ORDER BY key")?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let (key, value) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
                if sink(key, value).is_err() {
                    break;
                }
            }
            Ok(())
        })())
    }

    pub(crate) fn scan_idempotency(&self, sink: IdempotentSink<'_>) -> Result<(), SqliteError> {
        self.context(sqlite::scan_idempotency(&self.connection, sink))
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<String>, SqliteError> {
        use rusqlite::OptionalExtension as _;
        let value = self
            .connection
            .query_row(
                "SELECT value FROM state_machine_kv WHERE key = ?1",
                [key],
                |row| row.get(0),
            )
            .optional();
        self.context(value)
    }

    pub(crate) fn interrupter(&self) -> rusqlite::InterruptHandle {
        self.connection.get_interrupt_handle()
    }
}

/// Where the write-ahead log of `path` is, if there is one.
pub(crate) fn log_of(path: &Path) -> PathBuf {
    let [log, _] = layout::sqlite_companions(&resolved(path));
    log
}

/// The path that SQLite uses: it resolves symbolic links before it looks for the log.
fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// `path` as a URI (<https://sqlite.org/uri.html>) that promises that nobody writes.
fn immutable(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = "file:".to_owned();
    for &byte in resolved(path).as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?immutable=1"
}

/// The newest migration record of a database, if it has the table and a row in it.
pub(crate) fn newest_record(connection: &Connection) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension as _;
    if !sqlite::has_table(connection, sqlite::MIGRATIONS)? {
        return Ok(None);
    }
    connection
        .query_row(
            "SELECT record FROM aspen_migrations ORDER BY completed_at DESC, id DESC LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()
}

/// Whether another process has the database open.
pub(crate) fn in_use(file: &File) -> io::Result<bool> {
    let mut lock = nix::libc::flock {
        l_type: i16::try_from(nix::libc::F_WRLCK).map_err(io::Error::other)?,
        l_whence: i16::try_from(nix::libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: LOCK_BYTES.0,
        l_len: LOCK_BYTES.1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != nix::libc::F_UNLCK)
}
