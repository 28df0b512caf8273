//! The log's file: two tables in redb, format v3.
//!
//! Every transaction is durable when it is committed (redb's default): one
//! fdatasync, no second phase, no allocator state. What that leaves to the
//! start after a kill is a walk over the file, 0.2 to 0.5 s per 300 MB, which is
//! worth less than a second fdatasync in every commit.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    StorageBackend, Table, TableDefinition, TableHandle as _,
};

use super::ahead::{self, Ahead};
use super::backend::Backend;
use super::patience::Patience;
use super::tail::{ENTRY_OVERHEAD, Encoded};
use super::{Bounds, LogError};
use crate::durable;
use crate::format::entry::{COMMITTED, Entry, LAST_PURGED, VOTE, Vote};
use crate::format::record::{self, LogId, RecordError};
use crate::format::tables;
use crate::layout;
use crate::panics;
use crate::storage::redb::settle;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(tables::RAFT_LOG);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::RAFT_META);

/// Memory for cached pages: what a large transaction dirties, and the inner
/// pages. Recent entries have a memory of their own; redb would take 1 GiB.
const CACHE_BYTES: usize = 16 << 20;
/// Entries looked at when the log is opened, to tell how large they are: a power of two.
const SAMPLE: u64 = 64;
/// Once they take so many bytes, no more of them are looked at than [`FEWEST`]: a
/// start beside large entries takes no longer than one beside small ones.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Fewer would say too little of entries that differ.
const FEWEST: u64 = 8;

/// The open file.
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) patience: Arc<Patience>,
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    syncs: Arc<AtomicU64>,
}

/// What an opened file holds.
pub(super) struct Found {
    pub(super) bounds: Bounds,
    /// The index of the first entry, or of the one to come.
    pub(super) begin: u64,
    /// Bytes of all entries, about.
    pub(super) bytes: u64,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
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
    pub(super) meta: Table<'t, &'static str, &'static [u8]>,
}

impl LogFile {
    /// Opens the file at `path`, made if it is missing. `wrap` may put
    /// something between redb and the file.
    pub(super) fn open(
        path: &Path,
        begins_after: Option<LogId>,
        wrap: impl Fn(FileBackend) -> Box<dyn StorageBackend>,
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
                file: wrap(FileBackend::new(file)?),
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
        let found = look(path, &database)?;
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

    /// How often the file was made durable since it was opened.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// What it takes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        // A file that cannot be looked at is told by whoever writes next.
        self.path.metadata().map_or(0, |m| m.blocks() * 512)
    }
}

pub(super) fn save_position(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
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
fn save_term(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    position: LogId,
) -> Result<(), redb::Error> {
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

/// Reads the records and checks what costs little: the first and the last entry
/// and some between them are there and are what their keys say, there are as
/// many as should be, and they begin where purging ended.
fn look(path: &Path, database: &Database) -> Result<Found, LogError> {
    let failed = |error| cannot_open(path, error);
    let read = contained(|| {
        let read = database.begin_read()?;
        let there: Vec<_> = read.list_tables()?.map(|t| t.name().to_owned()).collect();
        let missing = [tables::RAFT_LOG, tables::RAFT_META]
            .into_iter()
            .find(|table| !there.iter().any(|name| name == table));
        Ok((read, missing))
    });
    let (read, missing) = read.map_err(failed)?;
    if let Some(table) = missing {
        let path = path.to_owned();
        return Err(LogError::NoTable { path, table });
    }
    let record = |source| LogError::Record {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    let meta = |name| {
        let bytes = contained(|| {
            let bytes = read.open_table(META)?.get(name)?;
            Ok(bytes.map(|bytes| bytes.value().to_vec()))
        });
        bytes.map_err(failed)
    };
    let position_of = |name| match meta(name)? {
        Some(bytes) => position(name, &bytes).map_err(record),
        None => Ok(None),
    };
    let vote = meta(VOTE)?.map(|bytes| Vote::decode(&bytes).map_err(record));
    let last_purged = position_of(LAST_PURGED)?;
    let committed = position_of(COMMITTED)?;

    let sample = contained(|| sample(path, &read.open_table(ENTRIES)?)).map_err(failed)?;
    let behind = last_purged.map_or(0, |purged| purged.index.saturating_add(1));
    let mut found = Found {
        bounds: Bounds {
            last_purged,
            last: last_purged,
        },
        begin: behind,
        bytes: sample.bytes,
        vote: vote.transpose()?,
        committed,
    };
    let ends = sample
        .ids
        .first_key_value()
        .zip(sample.ids.last_key_value());
    let ends = ends.map(|((first, _), (last, _))| (*first, *last));
    for id in sample.ids.into_values() {
        let id = id?;
        // The last one counts, unless all of them are left over from a purge.
        if id.index >= behind {
            found.bounds.last = Some(id);
        }
    }
    if let Some((first, last)) = ends {
        let what = match (last - first).saturating_add(1) {
            _ if last == u64::MAX => Some(format!("no log reaches entry {last}")),
            _ if first > behind => Some(format!(
                "it begins with entry {first} though it was purged only up to entry {behind}, exclusive"
            )),
            count if count != sample.count => Some(format!(
                "it holds {} of the {count} entries from {first} to {last}",
                sample.count
            )),
            _ => None,
        };
        if let Some(what) = what {
            return Err(damaged(path, what));
        }
    }
    Ok(found)
}

/// Some entries of a log.
struct Sample {
    /// How many the table holds.
    count: u64,
    /// The first, the last, and some between them, or what is wrong with them.
    ids: BTreeMap<u64, Result<LogId, LogError>>,
    /// What all take if the others are like these.
    bytes: u64,
}

fn sample(
    path: &Path,
    entries: &redb::ReadOnlyTable<u64, &'static [u8]>,
) -> Result<Sample, redb::Error> {
    let (first, last) = (entries.first()?, entries.last()?);
    let mut sample = Sample {
        count: entries.len()?,
        ids: BTreeMap::new(),
        bytes: 0,
    };
    let (Some((first, _)), Some((last, _))) = (first, last) else {
        return Ok(sample);
    };
    let mut bytes = 0;
    for index in places(first.value(), last.value()) {
        let taken = sample.ids.len() as u64;
        if taken >= FEWEST && bytes >= SAMPLE_BYTES {
            break;
        }
        let Place::Vacant(place) = sample.ids.entry(index) else {
            continue;
        };
        let entry = entries.get(index)?;
        bytes += ENTRY_OVERHEAD + entry.as_ref().map_or(0, |entry| entry.value().len() as u64);
        place.insert(match &entry {
            Some(entry) => decode(path, index, entry.value()).map(|entry| entry.log_id),
            None => Err(missing(path, index)),
        });
    }
    sample.bytes = (bytes / sample.ids.len() as u64).saturating_mul(sample.count);
    Ok(sample)
}

/// The ends, then places between them: however many are taken, they are spread evenly.
fn places(first: u64, last: u64) -> impl Iterator<Item = u64> {
    let between = (1..SAMPLE).map(move |n| {
        // The bits of n in reverse order: 1/2, 1/4, 3/4, 1/8, 5/8, ...
        let part = n.reverse_bits() >> (u64::BITS - SAMPLE.ilog2());
        let offset = u128::from(last - first) * u128::from(part) / u128::from(SAMPLE);
        first + u64::try_from(offset).unwrap_or(0)
    });
    [first, last].into_iter().chain(between)
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

/// A position as legacy nodes wrote it, bare, or else as an option.
fn position(name: &'static str, bytes: &[u8]) -> Result<Option<LogId>, RecordError> {
    let bare = record::position(name, bytes).map(Some);
    bare.or_else(|error| record::last_applied(bytes).map_err(|_| error))
}

fn damaged(path: &Path, what: String) -> LogError {
    LogError::Damaged {
        path: path.to_owned(),
        what,
    }
}

/// What lies between the entries that should be there.
pub(super) fn missing(path: &Path, index: u64) -> LogError {
    damaged(path, format!("entry {index} is missing"))
}

fn cannot_open(path: &Path, error: redb::Error) -> LogError {
    LogError::Open {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

/// Runs `work`; a panic in redb, which trusts a file that was closed cleanly,
/// becomes an error.
fn contained<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    // Of what `work` leaves half-done redb itself makes nothing durable.
    panics::contained(work)
        .unwrap_or_else(|said| Err(redb::Error::Corrupted(format!("redb panicked: {said}"))))
}
