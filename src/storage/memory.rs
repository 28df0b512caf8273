//! A state machine that lives as long as its process.
//!
//! Nothing of it is ever durable, and [`persist`](StateMachine::persist) says
//! so: the log is never purged, and a start applies all of it again.
//!
//! A snapshot takes the whole map as it is, by counting one more reference.
//! The first apply that finds it still being written copies the map: two
//! pointers for each pair, not the pairs, which for a million pairs is about
//! 50 MB and a tenth of a second.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::apply::{Advance, Rows, apply};
use super::page::Collector;
use super::{Applied, Checkpoint, Page, Range, Sizes, StateMachine, StorageError, copy};
use crate::durable;
use crate::format::entry::{Entry, Outcome};
use crate::format::record::{self, LogId};
use crate::migration::source::Metadata;

type Pairs = BTreeMap<Arc<str>, Arc<str>>;

/// Empty until entries are applied.
#[derive(Default)]
pub(super) struct Memory {
    state: RwLock<State>,
    stop: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct State {
    pairs: Arc<Pairs>,
    applied: Applied,
}

impl Memory {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows for Pairs {
    type Error = std::convert::Infallible;

    fn get(&mut self, key: &str) -> Result<Option<String>, Self::Error> {
        Ok(BTreeMap::get(self, key).map(|value| (**value).to_owned()))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Self::Error> {
        self.insert(key.into(), value.into());
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<bool, Self::Error> {
        Ok(self.remove(key).is_some())
    }
}

impl StateMachine for Memory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        let state = self.read();
        let values = keys.iter().map(|key| state.pairs.get(key.as_str()));
        Ok(values
            .map(|value| value.map(|value| (**value).to_owned()))
            .collect())
    }

    fn scan(&self, range: &Range) -> Result<Page, StorageError> {
        let state = self.read();
        let mut page = Collector::new(range);
        let rows = (Collector::start(range), Bound::Unbounded);
        for (key, value) in state.pairs.range::<str, _>(rows) {
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
        let Ok(outcomes) = apply(Arc::make_mut(&mut state.pairs), entries);
        advance.note(&mut state.applied);
        Ok(outcomes)
    }

    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        Ok(None)
    }

    fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError> {
        let State { pairs, applied } = self.read().clone();
        let mut metadata = Metadata::default();
        if applied != Applied::default() {
            let last_applied = record::encode_last_applied(applied.last_applied)?;
            let membership = record::encode_membership(&applied.membership)?;
            metadata.records = BTreeMap::from([
                (record::LAST_APPLIED.to_owned(), last_applied),
                (record::LAST_MEMBERSHIP.to_owned(), membership),
            ]);
        }
        copy::write(to, &metadata, &self.stop, |sink| {
            let mut rows = pairs.iter();
            while let Some((key, value)) = rows.next()
                && sink(key, value).is_ok()
            {}
            Ok(())
        })?;
        Ok(applied)
    }

    fn install_snapshot(&self, from: &Path) -> Result<Applied, StorageError> {
        let (source, metadata) = copy::check(from, &self.stop)?;
        let mut pairs = Pairs::new();
        source.scan(&mut |key, value| {
            pairs.insert(key.into(), value.into());
            Ok(())
        })?;
        drop(source);
        durable::remove(from)?;
        let applied = Applied::from(&metadata);
        *self.write() = State {
            pairs: Arc::new(pairs),
            applied: applied.clone(),
        };
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
