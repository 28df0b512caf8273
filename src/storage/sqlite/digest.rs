//! The digest of one view, read once from end to end by a connection of its own.
//!
//! The write-ahead log cannot begin anew while the view is held, and grows by
//! what is written meanwhile; so nothing else is done in it, and it ends with
//! the last row.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use rusqlite::Connection;

use super::{Shared, read_applied};
use crate::format::sqlite::{self, Access};
use crate::storage::digest::Digesting;
use crate::storage::{Contents, StorageError};

impl Shared {
    pub(super) fn digest(&self, stop: &AtomicBool) -> Result<Contents, StorageError> {
        // The file must not be exchanged, nor its locks be given back, under the connection.
        let _installing = self
            .snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if self.pulse.stopped() {
            return Err(StorageError::Closed);
        }
        let connection = sqlite::open(&self.path, Access::Read)?;
        let failed = |source| self.failed("read", source);
        connection.execute_batch("BEGIN").map_err(failed)?;
        // The first read takes the state; from here on it is that of one commit.
        let applied = read_applied(&connection).map_err(failed)??;
        let mut digesting = Digesting::new([stop, &self.stop]);
        walk(&connection, &mut digesting).map_err(failed)?;
        match digesting.stopped() {
            true => Err(StorageError::Closed),
            false => Ok(digesting.finish(applied.last_applied)),
        }
    }
}

fn walk(connection: &Connection, digesting: &mut Digesting<'_>) -> rusqlite::Result<()> {
    let mut select = connection.prepare("SELECT key, value FROM state_machine_kv ORDER BY key")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (key, value) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        if digesting.pair(key, value).is_err() {
            return Ok(());
        }
    }
    sqlite::scan_idempotency(connection, |index, key, record| {
        digesting.idempotent(index, key, record)
    })
}
