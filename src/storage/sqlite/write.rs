//! The one connection that writes.
//!
//! `synchronous = NORMAL`: a commit does not wait for the disk. The Raft log
//! is durable before an entry is applied, so what a power cut takes from the
//! end of the write-ahead log is applied again; frames are checksummed and
//! valid only up to a commit, so that nothing is torn.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _};

use super::pulse::Pulse;
use crate::format::entry::{Entry, Outcome};
use crate::format::sqlite::{self, Access, OpenError};
use crate::storage::apply::{self, Rows};

/// Page cache of the writer: random keys find the inner pages and many of the
/// leaves here. The largest part of a node's budget of 256 MiB.
const CACHE_KIB: i64 = 48 * 1024;
/// What the write-ahead log's file is cut down to after it had to grow.
const LOG_KEPT_BYTES: i64 = 64 << 20;

/// The connection, and the database's file beside it, for syncing.
pub(super) struct Writer {
    pub(super) connection: Connection,
    /// Closed after every connection of this process: closing any descriptor of
    /// the file drops the locks that they hold on it.
    pub(super) database: Arc<File>,
}

impl Writer {
    pub(super) fn open(path: &Path, pulse: &Arc<Pulse>) -> Result<Self, OpenError> {
        let connection = sqlite::open(path, Access::Write)?;
        let opened = (|| {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            connection.pragma_update(None, "journal_size_limit", LOG_KEPT_BYTES)?;
            connection.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0))
        })();
        let page_bytes = opened.map_err(|source| OpenError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
        let database = File::open(path).map_err(|source| OpenError::File {
            path: path.to_owned(),
            source,
        })?;
        let mut writer = Self {
            connection,
            database: Arc::new(database),
        };
        let (pulse, listener) = (Arc::clone(pulse), Arc::clone(pulse));
        pulse.opened(page_bytes.into());
        // In place of SQLite's own automatic checkpoint, which makes the writer do it.
        writer
            .connection
            .wal_hook(Some(move |_: &mut _, pages: std::ffi::c_int| {
                listener.committed(u64::try_from(pages).unwrap_or(0));
                Ok(())
            }))
            .map_err(|source| OpenError::Sqlite {
                path: path.to_owned(),
                source,
            })?;
        Ok(writer)
    }

    /// Applies entries and sets metadata records, in one transaction. After an
    /// error nothing of it was done and the connection can be used again.
    pub(super) fn apply(
        &self,
        entries: &[Entry],
        records: &[(&'static str, Vec<u8>)],
    ) -> rusqlite::Result<Vec<Outcome>> {
        let run = |sql| self.connection.prepare_cached(sql)?.execute([]);
        run("BEGIN IMMEDIATE")?;
        let applied = (|| {
            let outcomes = apply::apply(&mut Statements::prepare(&self.connection)?, entries)?;
            let mut set = self.connection.prepare_cached(
                "INSERT INTO state_machine_meta VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?;
            for record in records {
                set.execute((record.0, &record.1))?;
            }
            run("COMMIT")?;
            Ok(outcomes)
        })();
        if applied.is_err() && !self.connection.is_autocommit() {
            // SQLite has rolled back by itself after some errors; after others this
            // is what does, and it needs no disk space.
            run("ROLLBACK")?;
        }
        applied
    }
}

struct Statements<'a> {
    get: CachedStatement<'a>,
    set: CachedStatement<'a>,
    delete: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(connection: &'a Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            get: connection.prepare_cached(super::GET)?,
            set: connection.prepare_cached(
                "INSERT INTO state_machine_kv(key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?,
            delete: connection.prepare_cached("DELETE FROM state_machine_kv WHERE key = ?1")?,
        })
    }
}

impl Rows for Statements<'_> {
    type Error = rusqlite::Error;

    fn get(&mut self, key: &str) -> rusqlite::Result<Option<String>> {
        self.get.query_row([key], |row| row.get(0)).optional()
    }

    fn set(&mut self, key: &str, value: &str) -> rusqlite::Result<()> {
        self.set.execute((key, value)).map(|_| ())
    }

    fn delete(&mut self, key: &str) -> rusqlite::Result<bool> {
        self.delete.execute([key]).map(|rows| rows > 0)
    }
}
