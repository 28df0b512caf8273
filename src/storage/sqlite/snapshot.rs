//! Copying the database while it is in use, and exchanging it for a copy.
//!
//! A copy is made by SQLite's backup interface from a connection that holds a
//! read transaction from the first page to the last: all pages are of one
//! commit, and the interface begins again only when it has to open a
//! transaction of its own. Writers are not held up; the write-ahead log cannot
//! be reset meanwhile and grows by what is written; from some length on applying
//! slows down, since the copy has an end.
//!
//! Exchanging, in this order:
//!
//! 1. Check the new file, carry over the record of the migration, sync it.
//!    Nothing that serves has been touched.
//! 2. Wait for snapshots of the old one; stop checkpoints, writer and readers.
//! 3. Empty the write-ahead log into the old database: **a log left beside the
//!    new one would be played into it**. Close, and remove log and index, which
//!    another process (a `sqlite3` shell) may have kept from going.
//! 4. Rename, sync the directory. **The commit point.**
//! 5. Open what now has the name, and let everybody go on.
//!
//! Safe to die at any point: before 4 the old database is whole without a log,
//! after 4 the new one is. A process that has the old one open goes on with
//! that alone: SQLite notices that its file has moved and deletes no log.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::checkpoint::{Checkpointer, TRUNCATE};
use super::write::Writer;
use super::{Shared, read_applied};
use crate::format::sqlite::{self, Access};
use crate::storage::{Applied, StorageError, copy};
use crate::{durable, layout};

/// Bytes copied between two looks at whether to stop, and two requests to the
/// kernel to write: a final sync then has little left to do.
const STEP_BYTES: u64 = 2 << 20;

impl Shared {
    /// Writes a copy into the empty file `to`.
    pub(super) fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError> {
        let _installing = self
            .snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if self.pulse.stopped() {
            return Err(StorageError::Closed);
        }
        let _copying = Copying::begin(&self.copying);
        let source = sqlite::open(&self.path, Access::Read)?;
        let failed = |source| self.failed("copy", source);
        source.execute_batch("BEGIN").map_err(failed)?;
        // The first read takes the state; from here on it is that of one commit.
        let applied = read_applied(&source).map_err(failed)??;
        let written = File::open(to).ok();
        let target = copy::alone(to).and_then(|target| {
            target.pragma_update(None, "journal_mode", "OFF")?;
            Ok(target)
        });
        let mut target = target.map_err(failed)?;
        self.copy_pages(&source, &mut target, written.as_ref())?;
        target.close().map_err(|(_, error)| failed(error))?;
        copy::without_log(to)?;
        Ok(applied)
    }

    fn copy_pages(
        &self,
        source: &Connection,
        target: &mut Connection,
        written: Option<&File>,
    ) -> Result<(), StorageError> {
        let failed = |source| self.failed("copy", source);
        let pages = STEP_BYTES / self.pulse.page_bytes().max(512);
        let pages = i32::try_from(pages).unwrap_or(1).max(1);
        let backup = Backup::new(source, target).map_err(failed)?;
        loop {
            match backup.step(pages).map_err(failed)? {
                StepResult::Done => return Ok(()),
                // Only its own connections could make it busy, and they do not write.
                StepResult::More | StepResult::Busy | StepResult::Locked => {}
                _ => {}
            }
            if self.pulse.stopped() {
                return Err(StorageError::Closed);
            }
            if let Some(file) = written {
                durable::start_writeback(file, 0, 0);
            }
        }
    }

    /// Takes the copy at `from` in place of the database.
    pub(super) fn install(&self, from: &Path) -> Result<Applied, StorageError> {
        let (source, metadata) = copy::check(from, &self.stop)?;
        drop(source);
        let applied = Applied::from(&metadata);
        self.adopt(from)?;
        let _snapshots = self
            .snapshots
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let checkpointer = self.checkpointer.lock();
        let mut checkpointer = checkpointer.unwrap_or_else(PoisonError::into_inner);
        let mut writer = self.writer.lock();
        if writer.is_none() {
            return Err(StorageError::Closed);
        }
        self.pool.pause();
        let exchanged = self.exchange(from, &mut checkpointer, &mut writer);
        let reopened = match writer.is_some() {
            true => Ok(()),
            false => self.reopen(&mut checkpointer, &mut writer),
        };
        if exchanged.is_ok() {
            *self.applied.write().unwrap_or_else(PoisonError::into_inner) = applied.clone();
        }
        self.pool.resume();
        exchanged.and(reopened).map(|()| applied)
    }

    /// Makes the copy this node's: its tables, its record of the migration, and
    /// durable.
    fn adopt(&self, from: &Path) -> Result<(), StorageError> {
        let failed = |source| StorageError::Sqlite {
            operation: "prepare the snapshot",
            path: from.to_owned(),
            source,
        };
        let records = self.pool.read(migration_records)?;
        let adopted = (|| {
            let mut connection = copy::alone(from)?;
            // A crash leaves a file that nobody looks at.
            connection.pragma_update(None, "journal_mode", "MEMORY")?;
            let adopting = connection.transaction()?;
            adopting.execute_batch(sqlite::MIGRATIONS_SCHEMA)?;
            adopting.execute("DELETE FROM aspen_migrations", [])?;
            for record in &records {
                let [id, completed_at, fingerprint, text] = record;
                adopting.execute(
                    "INSERT INTO aspen_migrations VALUES (?1, ?2, ?3, ?4)",
                    (id, completed_at, fingerprint, text),
                )?;
            }
            adopting.commit()?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.close().map_err(|(_, error)| error)
        })();
        adopted.map_err(failed)?;
        let file = File::open(from).map_err(|source| StorageError::File {
            path: from.to_owned(),
            source,
        })?;
        Ok(durable::fsync(&file, from)?)
    }

    /// Steps 3 and 4.
    fn exchange(
        &self,
        from: &Path,
        checkpointer: &mut Option<Checkpointer>,
        writer: &mut MutexGuard<'_, Option<Writer>>,
    ) -> Result<(), StorageError> {
        let Some(old) = writer.as_ref() else {
            return Err(StorageError::Closed);
        };
        let blocked = old
            .connection
            .query_row(TRUNCATE, [], |row| row.get::<_, bool>(0));
        if blocked.map_err(|source| self.failed("checkpoint", source))? {
            return Err(StorageError::Pinned {
                path: self.path.clone(),
            });
        }
        *checkpointer = None;
        **writer = None;
        for companion in layout::sqlite_companions(&self.path) {
            durable::remove(&companion)?;
        }
        durable::fsync_parent(&self.path)?;
        durable::rename_over(from, &self.path)?;
        Ok(durable::fsync_parent(&self.path)?)
    }

    fn reopen(
        &self,
        checkpointer: &mut Option<Checkpointer>,
        writer: &mut MutexGuard<'_, Option<Writer>>,
    ) -> Result<(), StorageError> {
        let opened = Writer::open(&self.path, &self.pulse)?;
        *checkpointer = Some(Checkpointer::open(
            &self.path,
            Arc::clone(&opened.database),
        )?);
        **writer = Some(opened);
        Ok(())
    }
}

/// A copy under way; counted until dropped.
pub(super) struct Copying<'a>(&'a AtomicU64);

impl<'a> Copying<'a> {
    pub(super) fn begin(copies: &'a AtomicU64) -> Self {
        copies.fetch_add(1, Ordering::Relaxed);
        Self(copies)
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All rows of the migration's table; none in a file that a legacy node made.
fn migration_records(connection: &Connection) -> rusqlite::Result<Vec<[String; 4]>> {
    if !sqlite::has_table(connection, sqlite::MIGRATIONS)? {
        return Ok(Vec::new());
    }
    let mut select = connection
        .prepare("SELECT id, completed_at, source_fingerprint, record FROM aspen_migrations")?;
    let rows = select.query_map([], |row| {
        Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
    })?;
    rows.collect()
}
