//! The legacy state machine in redb, format v3.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Builder, Database, ReadableDatabase as _, TableDefinition, TableHandle as _};

use super::{StateMachine, StorageError};
use crate::format::record::{self, LogId};
use crate::format::tables;

const KV: TableDefinition<'_, &str, &str> = TableDefinition::new(tables::KV);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::META);

/// Memory for cached pages; redb would take 1 GiB.
const CACHE_BYTES: usize = 64 << 20;

/// An open database; empty once closed.
pub(super) struct Redb {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Redb {
    /// Opens an existing file; one that was not closed is repaired in place.
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        let failed = |source: redb::Error| StorageError::OpenRedb {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .open(path)
            .map_err(|error| failed(error.into()))?;
        let tables = database
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|read| {
                let tables = read.list_tables()?;
                Ok(tables
                    .map(|table| table.name().to_owned())
                    .collect::<Vec<_>>())
            })
            .map_err(failed)?;
        // A damaged file can repair to an empty one, which is no empty store.
        match [tables::KV, tables::META]
            .into_iter()
            .find(|t| !tables.iter().any(|name| name == t))
        {
            Some(table) => Err(StorageError::NoTable {
                path: path.to_owned(),
                table,
            }),
            None => Ok(Self {
                path: path.to_owned(),
                database: RwLock::new(Some(database)),
            }),
        }
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StorageError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(StorageError::Closed)?;
        work(database).map_err(|source| StorageError::Redb {
            operation: "read",
            path: self.path.clone(),
            source: Box::new(source),
        })
    }
}

impl StateMachine for Redb {
    fn backend(&self) -> &'static str {
        "redb"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        let key = keys[0].as_str();
        self.read(|database| {
            let value = database.begin_read()?.open_table(KV)?.get(key)?;
            Ok(vec![value.map(|value| value.value().to_owned())])
        })
    }

    fn applied(&self) -> Result<super::Applied, StorageError> {
        let bytes = self.read(|database| {
            let bytes = database
                .begin_read()?
                .open_table(META)?
                .get(record::LAST_APPLIED)?;
            Ok(bytes.map(|bytes| bytes.value().to_vec()))
        })?;
        Ok(super::Applied {
            last_applied: bytes.map_or(Ok(None), |bytes| record::last_applied(&bytes))?,
            ..Default::default()
        })
    }

    fn scan(&self, _range: &super::Range) -> Result<super::Page, StorageError> {
        todo!()
    }
    fn apply(
        &self,
        _entries: &[crate::format::entry::Entry],
    ) -> Result<Vec<crate::format::entry::Outcome>, StorageError> {
        todo!()
    }
    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        todo!()
    }
    fn write_snapshot(&self, _to: &std::path::Path) -> Result<super::Applied, StorageError> {
        todo!()
    }
    fn install_snapshot(&self, _from: &std::path::Path) -> Result<super::Applied, StorageError> {
        todo!()
    }
    fn checkpoint(&self) -> Result<Option<super::Checkpoint>, StorageError> {
        todo!()
    }
    fn sizes(&self) -> super::Sizes {
        todo!()
    }

    fn close(&self) -> Result<(), StorageError> {
        // Closing writes what the next open needs; redb reports no error from it.
        drop(
            self.database
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        Ok(())
    }
}
