//! The one connection that writes.
//!
//! `synchronous = NORMAL`: a commit does not wait for the disk. The Raft log
//! is durable before an entry is applied, so what a power cut takes from the
//! end of the write-ahead log is applied again; frames are checksummed and
//! valid only up to a commit, so that nothing is torn. A commit is one write to
//! the log ([`vfs`]).

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row};

use super::pulse::Pulse;
use super::vfs;
use crate::format::entry::{Entry, Outcome};
use crate::format::idempotency::Record;
use crate::format::sqlite::{self, Access, OpenError};
use crate::storage::apply::{self, Remembered, Rows};

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
        vfs::register().map_err(|source| OpenError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
        let connection = sqlite::open_with(path, Access::Write, vfs::NAME)?;
        let opened = (|| {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            connection.pragma_update(None, "journal_size_limit", LOG_KEPT_BYTES)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS);
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
        if applied.is_err() {
            if !self.connection.is_autocommit() {
                // SQLite has rolled back by itself after some errors; after others this
                // is what does, and it needs no disk space.
                run("ROLLBACK")?;
            }
            vfs::forget(&self.connection);
        }
        applied
    }
}

/// Most cached statements of the writer: its own and those of idempotent writes.
const STATEMENTS: usize = 32;

struct Statements<'a> {
    connection: &'a Connection,
    get: CachedStatement<'a>,
    set: CachedStatement<'a>,
    delete: CachedStatement<'a>,
    /// Made for the first idempotent write of a batch: others need none of it.
    idempotent: Option<Idempotent<'a>>,
}

/// Statements on the table of idempotent writes.
struct Idempotent<'a> {
    recall: CachedStatement<'a>,
    oldest: CachedStatement<'a>,
    newest: CachedStatement<'a>,
    remember: CachedStatement<'a>,
    forget: CachedStatement<'a>,
}

impl<'a> Statements<'a> {
    fn prepare(connection: &'a Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            get: connection.prepare_cached(super::GET)?,
            set: connection.prepare_cached(
                "INSERT INTO state_machine_kv(key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            )?,
            delete: connection.prepare_cached("DELETE FROM state_machine_kv WHERE key = ?1")?,
            idempotent: None,
        })
    }

    fn idempotent(&mut self) -> rusqlite::Result<&mut Idempotent<'a>> {
        let ready = match self.idempotent.take() {
            Some(ready) => ready,
            None => Idempotent::prepare(self.connection)?,
        };
        Ok(self.idempotent.insert(ready))
    }
}

impl<'a> Idempotent<'a> {
    fn prepare(connection: &'a Connection) -> rusqlite::Result<Self> {
        // A legacy node's file lacks the table.
        connection
            .prepare_cached(sqlite::IDEMPOTENCY_SCHEMA)?
            .execute([])?;
        let prepare = |sql| connection.prepare_cached(sql);
        Ok(Self {
            recall: prepare("SELECT log_index, record FROM aspen_idempotency WHERE key = ?1")?,
            oldest: prepare(
                "SELECT log_index, record FROM aspen_idempotency ORDER BY log_index LIMIT 1",
            )?,
            newest: prepare(
                "SELECT log_index, record FROM aspen_idempotency ORDER BY log_index DESC LIMIT 1",
            )?,
            remember: prepare("INSERT INTO aspen_idempotency VALUES (?1, ?2, ?3)")?,
            forget: prepare("DELETE FROM aspen_idempotency WHERE log_index = ?1")?,
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

impl Remembered for Statements<'_> {
    fn recall(&mut self, key: &str) -> rusqlite::Result<Option<(u64, Record)>> {
        let select = &mut self.idempotent()?.recall;
        select.query_row([key], remembered).optional()
    }

    fn oldest(&mut self) -> rusqlite::Result<Option<(u64, Record)>> {
        let select = &mut self.idempotent()?.oldest;
        select.query_row([], remembered).optional()
    }

    fn newest(&mut self) -> rusqlite::Result<Option<(u64, Record)>> {
        let select = &mut self.idempotent()?.newest;
        select.query_row([], remembered).optional()
    }

    fn remember(&mut self, index: u64, key: &str, record: Record) -> rusqlite::Result<()> {
        let record = record
            .encode()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let insert = &mut self.idempotent()?.remember;
        insert
            .execute((sqlite::log_index(index), key, record))
            .map(|_| ())
    }

    fn forget(&mut self, index: u64) -> rusqlite::Result<()> {
        let delete = &mut self.idempotent()?.forget;
        delete.execute([sqlite::log_index(index)]).map(|_| ())
    }
}

fn remembered(row: &Row<'_>) -> rusqlite::Result<(u64, Record)> {
    let record = Record::decode(row.get_ref(1)?.as_blob()?);
    let record = record.map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, Box::new(error))
    })?;
    Ok((row.get::<_, i64>(0)?.unsigned_abs(), record))
}
