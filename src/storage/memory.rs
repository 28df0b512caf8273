//! A state machine that lives as long as its process.
//!
//! What it applies is never durable, and [`persist`](StateMachine::persist) says
//! so: the node never shortens the log, and a start applies all of it again.
//! Behind a snapshot that another node sent the log begins anew, so the file of
//! the snapshot is kept, and a start begins with it.
//!
//! A snapshot takes the whole map as it is, by counting one more reference.
//! The first apply that finds it still being written copies the map: two
//! pointers for each pair, not the pairs, which for a million pairs is about
//! 50 MB and a tenth of a second.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::apply::{Advance, Remembered, Rows, apply};
use super::digest::Digesting;
use super::page::Collector;
use super::{Applied, Checkpoint, Contents, Page, Range, Sizes, StateMachine, StorageError, copy};
use crate::durable;
use crate::format::entry::{Entry, Outcome};
use crate::format::idempotency::Record;
use crate::format::record::{self, LogId};
use crate::migration::source::{Enough, Metadata};

type Pairs = BTreeMap<Arc<str>, Arc<str>>;

/// All that entries change.
#[derive(Clone, Default)]
struct Data {
    pairs: Pairs,
    /// Idempotent writes, by the index of their entries.
    remembered: BTreeMap<u64, (Arc<str>, Record)>,
    /// Where to find them by the client's key.
    by_key: BTreeMap<Arc<str>, u64>,
}

/// Holds what the last snapshot held, or nothing, until entries are applied.
pub(super) struct Memory {
    /// Where the snapshot is that was installed last.
    snapshot: PathBuf,
    state: RwLock<State>,
    stop: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct State {
    data: Arc<Data>,
    applied: Applied,
}

impl Memory {
    /// Begins with the snapshot at `snapshot`, if it is there.
    pub(super) fn open(snapshot: &Path) -> Result<Self, StorageError> {
        let stop = Arc::default();
        let there = snapshot.try_exists().map_err(|source| StorageError::File {
            path: snapshot.to_owned(),
            source,
        })?;
        let state = match there {
            true => load(snapshot, &stop)?,
            false => State::default(),
        };
        Ok(Self {
            snapshot: snapshot.to_owned(),
            state: RwLock::new(state),
            stop,
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows for Data {
    type Error = std::convert::Infallible;

    fn get(&mut self, key: &str) -> Result<Option<String>, Self::Error> {
        Ok(self.pairs.get(key).map(|value| (**value).to_owned()))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Self::Error> {
        self.pairs.insert(key.into(), value.into());
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<bool, Self::Error> {
        Ok(self.pairs.remove(key).is_some())
    }
}

impl Remembered for Data {
    fn recall(&mut self, key: &str) -> Result<Option<(u64, Record)>, Self::Error> {
        let index = self.by_key.get(key);
        let found = index.and_then(|index| self.remembered.get_key_value(index));
        Ok(found.map(of_entry))
    }

    fn oldest(&mut self) -> Result<Option<(u64, Record)>, Self::Error> {
        Ok(self.remembered.first_key_value().map(of_entry))
    }

    fn newest(&mut self) -> Result<Option<(u64, Record)>, Self::Error> {
        Ok(self.remembered.last_key_value().map(of_entry))
    }

    fn remember(&mut self, index: u64, key: &str, record: Record) -> Result<(), Self::Error> {
        let key: Arc<str> = key.into();
        self.by_key.insert(Arc::clone(&key), index);
        self.remembered.insert(index, (key, record));
        Ok(())
    }

    fn forget(&mut self, index: u64) -> Result<(), Self::Error> {
        if let Some((key, _)) = self.remembered.remove(&index) {
            self.by_key.remove(&key);
        }
        Ok(())
    }
}

fn of_entry((index, (_, record)): (&u64, &(Arc<str>, Record))) -> (u64, Record) {
    (*index, record.clone())
}

/// All that the snapshot at `from` holds.
fn load(from: &Path, stop: &Arc<AtomicBool>) -> Result<State, StorageError> {
    let (source, metadata) = copy::check(from, stop)?;
    let mut data = Data::default();
    source.scan(&mut |key, value| {
        data.pairs.insert(key.into(), value.into());
        Ok(())
    })?;
    source.scan_idempotency(&mut |index, key, record| {
        let record = Record::decode(record).map_err(|_| Enough)?;
        let Ok(()) = data.remember(index, key, record);
        Ok(())
    })?;
    Ok(State {
        data: Arc::new(data),
        applied: Applied::from(&metadata),
    })
}

impl StateMachine for Memory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        let state = self.read();
        let values = keys.iter().map(|key| state.data.pairs.get(key.as_str()));
        Ok(values
            .map(|value| value.map(|value| (**value).to_owned()))
            .collect())
    }

    fn scan(&self, range: &Range) -> Result<Page, StorageError> {
        let state = self.read();
        let mut page = Collector::new(range);
        let rows = (Collector::start(range), Bound::Unbounded);
        for (key, value) in state.data.pairs.range::<str, _>(rows) {
            if !page.offer(key, value) {
                break;
            }
        }
        Ok(page.finish())
    }

    fn applied(&self) -> Result<Applied, StorageError> {
        Ok(self.read().applied.clone())
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StorageError> {
        let Some(advance) = Advance::by(entries) else {
            return Ok(Vec::new());
        };
        let mut state = self.write();
        let Ok(outcomes) = apply(Arc::make_mut(&mut state.data), entries);
        advance.note(&mut state.applied);
        Ok(outcomes)
    }

    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        Ok(None)
    }

    fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError> {
        let State { data, applied } = self.read().clone();
        let mut metadata = Metadata::default();
        if applied != Applied::default() {
            let last_applied = record::encode_last_applied(applied.last_applied)?;
            let membership = record::encode_membership(&applied.membership)?;
            metadata.records = BTreeMap::from([
                (record::LAST_APPLIED.to_owned(), last_applied),
                (record::LAST_MEMBERSHIP.to_owned(), membership),
            ]);
        }
        copy::write(to, &metadata, &self.stop, |reader| {
            for (key, value) in &data.pairs {
                if reader.row(key, value).is_err() {
                    return Ok(());
                }
            }
            for (index, (key, record)) in &data.remembered {
                if reader.idempotent(*index, key, &record.encode()?).is_err() {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(applied)
    }

    fn digest(&self, stop: &AtomicBool) -> Result<Contents, StorageError> {
        let State { data, applied } = self.read().clone();
        let mut digesting = Digesting::new([stop, &self.stop]);
        for (key, value) in &data.pairs {
            if digesting.pair(key, value).is_err() {
                return Err(StorageError::Closed);
            }
        }
        for (index, (key, record)) in &data.remembered {
            let record = record.encode()?;
            if digesting.idempotent(*index, key, &record).is_err() {
                return Err(StorageError::Closed);
            }
        }
        Ok(digesting.finish(applied.last_applied))
    }

    /// The rename is the commit point: what is in memory follows it.
    fn install_snapshot(&self, from: &Path) -> Result<Applied, StorageError> {
        let state = load(from, &self.stop)?;
        let file = File::open(from).map_err(|source| StorageError::File {
            path: from.to_owned(),
            source,
        })?;
        durable::fsync(&file, from)?;
        durable::rename_over(from, &self.snapshot)?;
        durable::fsync_parent(&self.snapshot)?;
        let applied = state.applied.clone();
        *self.write() = state;
        Ok(applied)
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        Ok(None)
    }

    fn sizes(&self) -> Sizes {
        Sizes::default()
    }

    fn close(&self) -> Result<(), StorageError> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}
