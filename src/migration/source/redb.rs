//! Reading a redb file of either format through the overlay.
//!
//! Two releases of redb, one code: a macro, because their types are unrelated
//! although their methods agree. Panics inside redb on damaged files become
//! errors; the database in which one happened is leaked, since its state can
//! no longer be trusted to be dropped.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use super::{EntrySink, IdempotentSink, RowSink};
use crate::migration::overlay::Overlay;
use crate::panics;

/// Memory that redb may use to cache pages. Each page is visited once in key
/// order, so that a larger cache finds nothing again; and it costs, since pages
/// that come and go within the processor's own cache are read nearly twice as
/// fast (`docs/benchmarks.md`). The inner pages of one path fit.
const CACHE_BYTES: usize = 512 << 10;

/// What redb said, whichever release.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An error that redb returned.
    #[error("redb: {0}")]
    Redb(Box<dyn std::error::Error + Send + Sync>),
    /// A panic inside redb, which damaged files can cause.
    #[error("redb gave up on it: {0}")]
    Panic(String),
    /// The receiver of the rows had enough.
    #[error("the rows were no longer wanted")]
    Stopped,
}

/// One table of a redb file.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) rows: u64,
}

macro_rules! engine {
    ($name:ident, $redb:ident, $($traits:ident),*) => {
        #[derive(Debug)]
        pub(super) struct $name {
            database: ManuallyDrop<$redb::Database>,
            panicked: Cell<bool>,
            /// Opening verified every checksum, as redb does before it rebuilds what
            /// a process that died did not write. It need not: a commit may have left
            /// all that an open needs.
            recovered: bool,
        }

        impl $name {
            /// Opens over `overlay`, recovering in memory when the file was not closed.
            pub(super) fn open(overlay: Overlay) -> Result<Self, EngineError> {
                let recovered = Rc::new(Cell::new(false));
                let recovers = Rc::clone(&recovered);
                let database = contained(|| {
                    $redb::Builder::new()
                        .set_cache_size(CACHE_BYTES)
                        .set_repair_callback(move |_| recovers.set(true))
                        .create_with_backend(overlay)
                        .map_err(redb_error)
                })?;
                Ok(Self {
                    database: ManuallyDrop::new(database),
                    panicked: Cell::new(false),
                    recovered: recovered.get(),
                })
            }

            pub(super) fn recovered(&self) -> bool {
                self.recovered
            }

            fn contained<T>(
                &self,
                work: impl FnOnce(&$redb::Database) -> Result<T, EngineError>,
            ) -> Result<T, EngineError> {
                let result = contained(|| work(&self.database));
                let panicked = matches!(result, Err(EngineError::Panic(_)));
                self.panicked.set(self.panicked.get() || panicked);
                result
            }

            /// Verifies every checksum; false when only bookkeeping had to be rebuilt.
            pub(super) fn check_integrity(&mut self) -> Result<bool, EngineError> {
                let database = &mut self.database;
                let result = contained(|| database.check_integrity().map_err(redb_error));
                self.panicked.set(matches!(result, Err(EngineError::Panic(_))));
                result
            }

            /// Every table of the file, by name.
            pub(super) fn tables(&self) -> Result<Vec<Table>, EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTableMetadata as _, TableHandle as _, MultimapTableHandle as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let mut tables = Vec::new();
                    for handle in read.list_tables().map_err(redb_error)? {
                        let name = handle.name().to_owned();
                        let table = read.open_untyped_table(handle).map_err(redb_error)?;
                        tables.push(Table { name, rows: table.len().map_err(redb_error)? });
                    }
                    for handle in read.list_multimap_tables().map_err(redb_error)? {
                        let name = handle.name().to_owned();
                        let table = read.open_untyped_multimap_table(handle).map_err(redb_error)?;
                        tables.push(Table { name, rows: table.len().map_err(redb_error)? });
                    }
                    Ok(tables)
                })
            }

            /// All of a `&str` to `&[u8]` table, which is small.
            pub(super) fn read_meta(&self, table: &str) -> Result<BTreeMap<String, Vec<u8>>, EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTable as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let definition = $redb::TableDefinition::<&str, &[u8]>::new(table);
                    let table = read.open_table(definition).map_err(redb_error)?;
                    let mut rows = BTreeMap::new();
                    for row in table.iter().map_err(redb_error)? {
                        let (key, value) = row.map_err(redb_error)?;
                        rows.insert(key.value().to_owned(), value.value().to_vec());
                    }
                    Ok(rows)
                })
            }

            /// Hands every row of a `&str` to `&str` table to `sink`, in key order.
            pub(super) fn scan(&self, table: &str, sink: RowSink<'_>) -> Result<(), EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTable as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let definition = $redb::TableDefinition::<&str, &str>::new(table);
                    let table = read.open_table(definition).map_err(redb_error)?;
                    for row in table.iter().map_err(redb_error)? {
                        let (key, value) = row.map_err(redb_error)?;
                        sink(key.value(), value.value()).map_err(|_| EngineError::Stopped)?;
                    }
                    Ok(())
                })
            }

            /// Hands every row of a `u64` to `&[u8]` table to `sink`, in key order.
            pub(super) fn scan_entries(&self, table: &str, sink: EntrySink<'_>) -> Result<(), EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTable as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let definition = $redb::TableDefinition::<u64, &[u8]>::new(table);
                    let table = read.open_table(definition).map_err(redb_error)?;
                    for row in table.iter().map_err(redb_error)? {
                        let (key, value) = row.map_err(redb_error)?;
                        sink(key.value(), value.value()).map_err(|_| EngineError::Stopped)?;
                    }
                    Ok(())
                })
            }

            /// Hands every row of a `u64` to `(&str, &[u8])` table to `sink`, in key order.
            pub(super) fn scan_idempotency(&self, table: &str, sink: IdempotentSink<'_>) -> Result<(), EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTable as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let definition = $redb::TableDefinition::<u64, (&str, &[u8])>::new(table);
                    let table = read.open_table(definition).map_err(redb_error)?;
                    for row in table.iter().map_err(redb_error)? {
                        let (index, value) = row.map_err(redb_error)?;
                        let (key, record) = value.value();
                        sink(index.value(), key, record).map_err(|_| EngineError::Stopped)?;
                    }
                    Ok(())
                })
            }

            /// The value of one key.
            pub(super) fn get(&self, table: &str, key: &str) -> Result<Option<String>, EngineError> {
                #[allow(unused_imports)]
                use $redb::{$($traits,)* ReadableTable as _};
                self.contained(|db| {
                    let read = db.begin_read().map_err(redb_error)?;
                    let definition = $redb::TableDefinition::<&str, &str>::new(table);
                    let table = read.open_table(definition).map_err(redb_error)?;
                    let value = table.get(key).map_err(redb_error)?;
                    Ok(value.map(|value| value.value().to_owned()))
                })
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if self.panicked.get() {
                    return;
                }
                // SAFETY: taken once, here, and never used afterwards.
                let database = unsafe { ManuallyDrop::take(&mut self.database) };
                // Closing writes to the overlay only; whether that works changes nothing.
                let _ = contained(move || {
                    drop(database);
                    Ok(())
                });
            }
        }
    };
}

engine!(FormatV2, redb2,);
engine!(FormatV3, redb, ReadableDatabase);

/// An open database of either format.
#[derive(Debug)]
pub(super) enum Redb {
    V2(FormatV2),
    V3(FormatV3),
}

macro_rules! delegate {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Redb::V2(engine) => engine.$method($($argument),*),
            Redb::V3(engine) => engine.$method($($argument),*),
        }
    };
}

impl Redb {
    /// Whether opening verified every checksum.
    pub(super) fn recovered(&self) -> bool {
        delegate!(self.recovered())
    }

    pub(super) fn check_integrity(&mut self) -> Result<bool, EngineError> {
        delegate!(self.check_integrity())
    }

    pub(super) fn tables(&self) -> Result<Vec<Table>, EngineError> {
        delegate!(self.tables())
    }

    pub(super) fn read_meta(&self, table: &str) -> Result<BTreeMap<String, Vec<u8>>, EngineError> {
        delegate!(self.read_meta(table))
    }

    pub(super) fn scan(&self, table: &str, sink: RowSink<'_>) -> Result<(), EngineError> {
        delegate!(self.scan(table, sink))
    }

    pub(super) fn scan_entries(&self, table: &str, sink: EntrySink<'_>) -> Result<(), EngineError> {
        delegate!(self.scan_entries(table, sink))
    }

    pub(super) fn scan_idempotency(
        &self,
        table: &str,
        sink: IdempotentSink<'_>,
    ) -> Result<(), EngineError> {
        delegate!(self.scan_idempotency(table, sink))
    }

    pub(super) fn get(&self, table: &str, key: &str) -> Result<Option<String>, EngineError> {
        delegate!(self.get(table, key))
    }
}

fn redb_error(error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::Redb(Box::new(error))
}

/// Runs `work`; a panic in it becomes an error and prints nothing.
fn contained<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What `work` leaves half-done is either overlay memory or leaked by the caller.
    panics::contained(work).unwrap_or_else(|said| Err(EngineError::Panic(said)))
}
