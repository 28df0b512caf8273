//! The log's file: two tables in redb, format v3.
//!
//! Every transaction is durable when it is committed (redb's default): one
//! fdatasync, no second phase, no allocator state. What that leaves to the
//! start after a kill is a walk over the file, 0.2 to 0.5 s per 300 MB, which is
//! worth less than a second fdatasync in every commit.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase as _, Table, TableDefinition};

use super::LogError;
use super::ahead::{self, Ahead};
use super::backend::Backend;
use super::disk::{Disk, Part};
use super::journal::{self, MARK, Unfiled};
use super::look::{Found, look};
use super::patience::Patience;
use super::tail::Encoded;
use crate::durable;
use crate::format::entry::{COMMITTED, Entry, LAST_PURGED, VOTE, Vote};
use crate::format::record::{self, LogId};
use crate::format::tables;
use crate::layout;
use crate::panics;
use crate::storage::redb::settle;

pub(super) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(tables::RAFT_LOG);
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::RAFT_META);

/// Memory for cached pages: what a large transaction dirties, and the inner
/// pages. Recent entries have a memory of their own; redb would take 1 GiB.
const CACHE_BYTES: usize = 16 << 20;
/// The open file.
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) patience: Arc<Patience>,
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    pub(super) syncs: Arc<AtomicU64>,
}

/// Entries that were read.
#[derive(Default)]
pub(super) struct Run {
    pub(super) entries: Vec<Encoded>,
    pub(super) bytes: u64,
    /// Whether more would have been too many bytes.
    pub(super) full: bool,
}

/// The tables in a transaction that writes.
pub(super) struct Tables<'t> {
    pub(super) entries: Table<'t, u64, &'static [u8]>,
    pub(super) meta: Meta<'t>,
}

impl LogFile {
    /// Opens the file at `path` on `disk`, made if it is missing, and files what its
    /// journal holds.
    pub(super) fn open(
        path: &Path,
        begins_after: Option<LogId>,
        disk: &dyn Disk,
    ) -> Result<(Self, Found), LogError> {
        let existing = OpenOptions::new().read(true).write(true).open(path);
        let file = match existing {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, begins_after)?,
            other => other.map_err(|error| cannot_open(path, error.into()))?,
        };
        // redb would take an empty file for one that it is to make.
        if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(damaged(path, "it is empty".into()));
        }
        let (patience, syncs) = (Arc::<Patience>::default(), Arc::<AtomicU64>::default());
        let written = ahead::written(&file).map_err(|error| cannot_open(path, error.into()))?;
        let database = contained(|| {
            let file = Backend {
                file: disk.attach(Part::Log, FileBackend::new(file)?),
                ahead: Ahead::new(written),
                patience: Arc::clone(&patience),
                syncs: Arc::clone(&syncs),
            };
            Ok(Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(file)?)
        });
        let database = database.map_err(|error| match error {
            redb::Error::UpgradeRequired(version) => LogError::Old {
                path: path.to_owned(),
                version,
            },
            error => cannot_open(path, error),
        })?;
        let mut found = look(path, &database)?;
        if let Some(mark) = found.mark.take() {
            let unfiled = journal::unfiled(path, disk, &mark, found.bounds.last)?;
            let filed = contained(|| file_journal(&database, &unfiled));
            filed.map_err(|error| LogError::of("write to", path, error))?;
            found = look(path, &database)?;
        }
        // Without a mark it is none, whatever is in it.
        let removed = durable::remove_spare(&layout::journal(path));
        removed.map_err(|error| LogError::Create(Arc::new(error)))?;
        contained(|| settle(&database)).map_err(|error| LogError::of("write", path, error))?;
        let file = Self {
            path: path.to_owned(),
            patience,
            database: RwLock::new(Some(database)),
            syncs,
        };
        Ok((file, found))
    }

    /// Does `work` in one transaction, durable when this returns.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let result = work(&mut Tables {
                entries: transaction.open_table(ENTRIES)?,
                meta: transaction.open_table(META)?,
            })?;
            transaction.commit()?;
            Ok(result)
        })
    }

    /// The entries from `from` up to `to`, exclusive, or up to the first that is
    /// missing, as many as `most` bytes hold, and at least one where `forced`.
    pub(super) fn read(
        &self,
        from: u64,
        to: u64,
        most: u64,
        forced: bool,
    ) -> Result<Run, redb::Error> {
        self.with(|database| {
            let entries = database.begin_read()?.open_table(ENTRIES)?;
            let mut run = Run::default();
            for (entry, expected) in entries.range(from..to)?.zip(from..) {
                let (index, bytes) = entry?;
                if index.value() != expected {
                    break;
                }
                let bytes = bytes.value();
                run.full = run.bytes + bytes.len() as u64 > most;
                if run.full && !(forced && run.entries.is_empty()) {
                    break;
                }
                run.bytes += bytes.len() as u64;
                run.entries.push(bytes.into());
            }
            Ok(run)
        })
    }

    /// A record beside the entries.
    pub(super) fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, redb::Error> {
        self.with(|database| {
            // It keeps the transaction, which what is read from it does not: without one,
            // the writer could free the page that is being read.
            let table = database.begin_read()?.open_table(META)?;
            let bytes = table.get(name)?;
            Ok(bytes.map(|bytes| bytes.value().to_vec()))
        })
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        contained(|| work(database))
    }

    /// Closes the file so that the next open has nothing to repair.
    pub(super) fn close(&self) -> Result<(), redb::Error> {
        let database = self.database.write();
        let database = database.unwrap_or_else(PoisonError::into_inner).take();
        contained(|| Ok(database.map_or(Ok(()), Database::close)?))
    }

    /// How often file and journal were made durable since they were opened.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// What it takes on the disk, with its journal.
    pub(super) fn bytes(&self) -> u64 {
        // A file that cannot be looked at is told by whoever writes next.
        let bytes = |path: &Path| path.metadata().map_or(0, |m| m.blocks() * 512);
        bytes(&self.path) + bytes(&layout::journal(&self.path))
    }
}

/// Puts what the journal held into the file, which then is all of the log.
fn file_journal(database: &Database, unfiled: &Unfiled) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let (mut entries, mut meta) = (
        transaction.open_table(ENTRIES)?,
        transaction.open_table(META)?,
    );
    for (index, entry) in &unfiled.entries {
        entries.insert(index, &**entry)?;
    }
    if let Some(committed) = unfiled.committed {
        save_committed(&mut meta, committed)?;
    }
    meta.remove(MARK)?;
    drop((entries, meta));
    Ok(transaction.commit()?)
}

type Meta<'t> = Table<'t, &'static str, &'static [u8]>;

pub(super) fn save_committed(
    meta: &mut Meta<'_>,
    committed: Option<LogId>,
) -> Result<(), redb::Error> {
    match committed {
        Some(position) => save_position(meta, COMMITTED, position),
        None => {
            meta.remove(COMMITTED)?;
            Ok(())
        }
    }
}

pub(super) fn save_position(
    meta: &mut Meta<'_>,
    name: &'static str,
    position: LogId,
) -> Result<(), redb::Error> {
    let bytes = record::encode_position(name, position)
        .map_err(|error| redb::Error::Backend(Box::new(error)))?;
    meta.insert(name, bytes.as_slice())?;
    Ok(())
}

/// Saves the vote that an entry at `position` proves: whoever wrote it led in its term. Without,
/// a new log would begin in term 0, its node would come to lead in an older term than that of
/// what it has applied, and its first entry would stand before that.
fn save_term(meta: &mut Meta<'_>, position: LogId) -> Result<(), redb::Error> {
    // Not committed: a node that is alone would else go on in that term, and give places to new
    // entries that the log which is lost had given already.
    let vote = Vote {
        term: position.term,
        node_id: position.node_id,
        committed: false,
    };
    let bytes = vote
        .encode()
        .map_err(|error| redb::Error::Backend(Box::new(error)))?;
    meta.insert(VOTE, bytes.as_slice())?;
    Ok(())
}

/// Makes an empty log, durable, under its name when it is complete.
fn create(path: &Path, begins_after: Option<LogId>) -> Result<File, LogError> {
    let failed = |error| LogError::Create(Arc::new(error));
    let temporary = layout::temporary(path);
    durable::remove(&temporary).map_err(failed)?;
    let file = durable::create_new(&temporary).map_err(failed)?;
    let made = contained(|| {
        let backend = FileBackend::new(file)?;
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)?;
        let transaction = database.begin_write()?;
        transaction.open_table(ENTRIES)?;
        let mut meta = transaction.open_table(META)?;
        if let Some(position) = begins_after {
            save_position(&mut meta, LAST_PURGED, position)?;
            save_term(&mut meta, position)?;
        }
        drop(meta);
        transaction.commit()?;
        Ok(database.close()?)
    });
    let published = made
        .map_err(|error| LogError::of("make", path, error))
        .and_then(|()| {
            let open = OpenOptions::new().read(true).write(true).open(&temporary);
            let file = open.map_err(|error| cannot_open(path, error.into()))?;
            durable::fsync(&file, &temporary).map_err(failed)?;
            durable::rename_new(&temporary, path).map_err(failed)?;
            durable::fsync_parent(path).map_err(failed)?;
            Ok(file)
        });
    if published.is_err() {
        // The reason of the failure matters more than that of a failed clean-up.
        let _ = durable::remove(&temporary);
    }
    published
}

/// The entry at `index` from its bytes.
pub(super) fn decode(path: &Path, index: u64, bytes: &[u8]) -> Result<Entry, LogError> {
    let entry = Entry::decode(bytes).map_err(|source| LogError::Entry {
        path: path.to_owned(),
        index,
        source: Arc::new(source),
    })?;
    match entry.log_id.index {
        found if found == index => Ok(entry),
        found => Err(damaged(
            path,
            format!("entry {index} says that it is entry {found}"),
        )),
    }
}

pub(super) fn damaged(path: &Path, what: String) -> LogError {
    LogError::Damaged {
        path: path.to_owned(),
        what,
    }
}

/// What lies between the entries that should be there.
pub(super) fn missing(path: &Path, index: u64) -> LogError {
    damaged(path, format!("entry {index} is missing"))
}

pub(super) fn cannot_open(path: &Path, error: redb::Error) -> LogError {
    LogError::Open {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

/// Runs `work`; a panic in redb, which trusts a file that was closed cleanly,
/// becomes an error.
pub(super) fn contained<T>(
    work: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, redb::Error> {
    // Of what `work` leaves half-done redb itself makes nothing durable.
    panics::contained(work)
        .unwrap_or_else(|said| Err(redb::Error::Corrupted(format!("redb panicked: {said}"))))
}
