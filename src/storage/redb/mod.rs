//! The legacy state machine in redb, format v3.
//!
//! - Every batch is one transaction and durable when `apply` returns. redb can
//!   leave the durability out, but then an error (a full disk) takes back
//!   *earlier* batches too, when the database has to be opened again; and it
//!   would have to be asked for a durable commit all the time, because until
//!   then no page is used again. So [`persist`](StateMachine::persist) has
//!   nothing left to do.
//! - After one failed read or write redb refuses everything else
//!   (`PreviousIo`). The database is then opened again by the next operation,
//!   which finds what was committed. A full disk should not get that far:
//!   space is looked for before a transaction begins.
//! - A snapshot is installed as a new file. It is open before it gets the
//!   name, so that nothing can fail behind the rename, which is the commit point.

mod write;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    TableHandle as _,
};

use self::write::Rows;
use super::apply::{self, Advance};
use super::digest::Digesting;
use super::page::Collector;
use super::{
    Applied, Checkpoint, Contents, Page, Range, Sizes, StateMachine, StorageError, copy, space,
};
use crate::format::entry::{Entry, Outcome, Payload};
use crate::format::record::LogId;
use crate::format::tables;
use crate::migration::source::Metadata;
use crate::migration::target;
use crate::{durable, layout};

const KV: TableDefinition<'_, &str, &str> = TableDefinition::new(tables::KV);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::META);
/// The client's key and the record.
type Remembered = (&'static str, &'static [u8]);
const IDEMPOTENCY: TableDefinition<'_, u64, Remembered> = TableDefinition::new(tables::IDEMPOTENCY);
const IDEMPOTENCY_KEYS: TableDefinition<'_, &str, u64> =
    TableDefinition::new(tables::IDEMPOTENCY_KEYS);

/// Memory for cached pages; redb would take 1 GiB.
const CACHE_BYTES: usize = 64 << 20;
/// Space that must be free before a transaction begins: the tree's pages that a
/// batch of small writes changes, and what the file grows by. On a small file
/// system it is half of what is kept free of writes to the log, so that what
/// is in the log can be applied.
const RESERVE_BYTES: u64 = 16 << 20;
/// Space that a row needs, in its own length: its page, written anew.
const GROWTH: u64 = 2;

/// An open database.
pub(super) struct Redb {
    path: PathBuf,
    state: RwLock<State>,
    applied: RwLock<Applied>,
    /// Read while a snapshot is made, written while the file is exchanged.
    snapshots: RwLock<()>,
    stop: Arc<AtomicBool>,
}

enum State {
    Open(Database),
    /// It failed and has to be opened again.
    Failed,
    Closed,
}

impl Redb {
    /// Opens an existing file; one that was not closed is repaired in place.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        let database = open(path)?;
        settle(&database).map_err(|source| StorageError::Redb {
            operation: "write",
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let applied = read_applied(&database, path)?;
        Ok(Self {
            path: path.to_owned(),
            state: RwLock::new(State::Open(database)),
            applied: RwLock::new(applied),
            snapshots: RwLock::new(()),
            stop: Arc::default(),
        })
    }

    /// Does something with the database, which is opened again if it failed before.
    fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StorageError> {
        let mut state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Failed) {
            drop(state);
            self.open_again()?;
            state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        }
        let State::Open(database) = &*state else {
            return Err(StorageError::Closed);
        };
        let result = work(database);
        drop(state);
        result.map_err(|source| {
            if matches!(source, redb::Error::Io(_) | redb::Error::PreviousIo) {
                self.has_failed();
            }
            StorageError::Redb {
                operation,
                path: self.path.clone(),
                source: Box::new(source),
            }
        })
    }

    fn has_failed(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Open(_)) {
            *state = State::Failed;
        }
    }

    fn open_again(&self) -> Result<(), StorageError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Failed) {
            let database = open(&self.path)?;
            self.set_applied(read_applied(&database, &self.path)?);
            *state = State::Open(database);
        }
        Ok(())
    }

    fn set_applied(&self, applied: Applied) {
        *self.applied.write().unwrap_or_else(PoisonError::into_inner) = applied;
    }

    fn last_applied(&self) -> Option<LogId> {
        let applied = self.applied.read().unwrap_or_else(PoisonError::into_inner);
        applied.last_applied
    }

    /// Fails when the disk is nearly full, while nothing is broken yet.
    fn require_space(&self, entries: &[Entry]) -> Result<(), StorageError> {
        let Some(found) = space::free(durable::parent(&self.path)) else {
            return Ok(());
        };
        let bytes = |entry: &Entry| match &entry.payload {
            Payload::Normal(request) => request.bytes() as u64,
            Payload::Blank | Payload::Membership(_) => 0,
        };
        let rows = GROWTH * entries.iter().map(bytes).sum::<u64>();
        if found.free >= RESERVE_BYTES.min(found.reserved / 2) + rows {
            return Ok(());
        }
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        Err(StorageError::Redb {
            operation: "write",
            path: self.path.clone(),
            source: Box::new(redb::Error::Io(full)),
        })
    }
}

fn open(path: &Path) -> Result<Database, StorageError> {
    let failed = |source: redb::Error| StorageError::OpenRedb {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .open(path)
        .map_err(|error| failed(error.into()))?;
    let names = || -> Result<Vec<String>, redb::Error> {
        let read = database.begin_read()?;
        let tables = read.list_tables()?;
        Ok(tables.map(|table| table.name().to_owned()).collect())
    };
    let names = names().map_err(failed)?;
    // A damaged file can repair to an empty one, which is no empty store.
    match [tables::KV, tables::META]
        .into_iter()
        .find(|table| !names.iter().any(|name| name == table))
    {
        Some(table) => Err(StorageError::NoTable {
            path: path.to_owned(),
            table,
        }),
        None => Ok(database),
    }
}

/// Commits nothing, in one phase. Closing or repairing the file was a commit in
/// two phases, after which its header cannot tell a crash in the next commit
/// from a flipped bit ([`Header::commit`](crate::format::header::Header::commit)),
/// unless that one leaves the data as it is.
pub(super) fn settle(database: &Database) -> Result<(), redb::Error> {
    Ok(database.begin_write()?.commit()?)
}

fn read_applied(database: &Database, path: &Path) -> Result<Applied, StorageError> {
    let records = database
        .begin_read()
        .map_err(redb::Error::from)
        .and_then(|read| records(&read));
    let records = records.map_err(|source| StorageError::Redb {
        operation: "read",
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    Ok(Applied::from(&Metadata::new(records)?))
}

fn records(read: &ReadTransaction) -> Result<BTreeMap<String, Vec<u8>>, redb::Error> {
    let mut records = BTreeMap::new();
    for row in read.open_table(META)?.iter()? {
        let (key, value) = row?;
        records.insert(key.value().to_owned(), value.value().to_vec());
    }
    Ok(records)
}

/// The idempotent writes in the order of the log, if there is a table of them.
fn idempotency(
    read: &ReadTransaction,
) -> Result<Option<redb::Range<'static, u64, Remembered>>, redb::Error> {
    match read.open_table(IDEMPOTENCY) {
        Ok(table) => Ok(Some(table.range::<u64>(..)?)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl StateMachine for Redb {
    fn backend(&self) -> &'static str {
        "redb"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        self.with("read", |database| {
            let table = database.begin_read()?.open_table(KV)?;
            let values = keys.iter().map(|key| {
                let value = table.get(key.as_str())?;
                Ok(value.map(|value| value.value().to_owned()))
            });
            values.collect()
        })
    }

    fn scan(&self, range: &Range) -> Result<Page, StorageError> {
        self.with("read", |database| {
            let table = database.begin_read()?.open_table(KV)?;
            let mut page = Collector::new(range);
            let rows = (Collector::start(range), Bound::Unbounded);
            for row in table.range::<&str>(rows)? {
                let (key, value) = row?;
                if !page.offer(key.value(), value.value()) {
                    break;
                }
            }
            Ok(page.finish())
        })
    }

    fn applied(&self) -> Result<Applied, StorageError> {
        let applied = self.applied.read().unwrap_or_else(PoisonError::into_inner);
        Ok(applied.clone())
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StorageError> {
        let Some(advance) = Advance::by(entries) else {
            return Ok(Vec::new());
        };
        let records = advance.records()?;
        self.require_space(entries)?;
        let mut outcomes = Vec::new();
        let written = self.with("write", |database| {
            let write = database.begin_write()?;
            outcomes = apply::apply(&mut Rows::of(&write)?, entries)?;
            let mut meta = write.open_table(META)?;
            for (name, bytes) in &records {
                meta.insert(*name, bytes.as_slice())?;
            }
            drop(meta);
            Ok(write.commit()?)
        });
        if let Err(error) = written {
            // A commit whose sync failed may be there all the same, and must not
            // be applied twice: the file says, once it can be opened again.
            let there = self.open_again().is_ok() && self.last_applied() == Some(advance.last());
            return if there { Ok(outcomes) } else { Err(error) };
        }
        let mut applied = self.applied.write().unwrap_or_else(PoisonError::into_inner);
        advance.note(&mut applied);
        Ok(outcomes)
    }

    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        Ok(self.last_applied())
    }

    fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError> {
        let _installing = self
            .snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let read = self.with("read", |database| Ok(database.begin_read()?))?;
        let failed = |source| StorageError::Redb {
            operation: "read",
            path: self.path.clone(),
            source: Box::new(source),
        };
        let metadata = Metadata::new(records(&read).map_err(failed)?)?;
        let applied = Applied::from(&metadata);
        copy::write(to, &metadata, &self.stop, |reader| {
            let mut scan = || -> Result<(), redb::Error> {
                for row in read.open_table(KV)?.iter()? {
                    let (key, value) = row?;
                    if reader.row(key.value(), value.value()).is_err() {
                        return Ok(());
                    }
                }
                for row in idempotency(&read)?.into_iter().flatten() {
                    let (index, value) = row?;
                    let (key, record) = value.value();
                    if reader.idempotent(index.value(), key, record).is_err() {
                        break;
                    }
                }
                Ok(())
            };
            scan().map_err(failed)
        })?;
        Ok(applied)
    }

    fn digest(&self, stop: &AtomicBool) -> Result<Contents, StorageError> {
        let _installing = self
            .snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let read = self.with("read", |database| Ok(database.begin_read()?))?;
        let failed = |source| StorageError::Redb {
            operation: "read",
            path: self.path.clone(),
            source: Box::new(source),
        };
        let metadata = Metadata::new(records(&read).map_err(failed)?)?;
        let mut digesting = Digesting::new([stop, &self.stop]);
        let mut scan = || -> Result<(), redb::Error> {
            for row in read.open_table(KV)?.iter()? {
                let (key, value) = row?;
                if digesting.pair(key.value(), value.value()).is_err() {
                    return Ok(());
                }
            }
            for row in idempotency(&read)?.into_iter().flatten() {
                let (index, value) = row?;
                let (key, record) = value.value();
                if digesting.idempotent(index.value(), key, record).is_err() {
                    return Ok(());
                }
            }
            Ok(())
        };
        scan().map_err(failed)?;
        match digesting.stopped() {
            true => Err(StorageError::Closed),
            false => Ok(digesting.finish(metadata.last_applied)),
        }
    }

    fn install_snapshot(&self, from: &Path) -> Result<Applied, StorageError> {
        let (mut source, metadata) = copy::check(from, &self.stop)?;
        let temporary = layout::temporary(&self.path);
        durable::remove(&temporary)?;
        let file = durable::create_new(&temporary)?;
        let rows = source.rows()?;
        let control = copy::unwatched(&self.stop);
        let built = crate::migration::copy::stream(&mut source, rows, &control, |feed| {
            target::redb::build(&temporary, &file, feed, &metadata, &self.stop)
        });
        drop(source);
        let installed = built.map_err(StorageError::from).and_then(|_| {
            durable::fsync(&file, &temporary)?;
            let _snapshots = self
                .snapshots
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let new = open(&temporary)?;
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if matches!(*state, State::Closed) {
                return Err(StorageError::Closed);
            }
            durable::rename_over(&temporary, &self.path)?;
            *state = State::Open(new);
            self.set_applied(Applied::from(&metadata));
            Ok(())
        });
        if let Err(error) = installed {
            // The reason of the failure matters more than that of a failed clean-up.
            let _ = durable::remove(&temporary);
            return Err(error);
        }
        durable::remove(from)?;
        durable::fsync_parent(&self.path)?;
        Ok(Applied::from(&metadata))
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        Ok(None)
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            database: self.path.metadata().map_or(0, |about| about.len()),
            wal: None,
        }
    }

    fn close(&self) -> Result<(), StorageError> {
        self.stop.store(true, Ordering::Relaxed);
        // Closing writes what the next open needs; redb reports no error from it.
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = State::Closed;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
