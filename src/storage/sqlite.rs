//! The state machine in SQLite: one connection that writes and a pool that reads.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _};

use super::{StateMachine, StorageError};
use crate::format::record::{self, LogId};
use crate::format::sqlite::{self, Access};

/// An open database.
pub(super) struct Sqlite {
    path: PathBuf,
    /// Also keeps the write-ahead log open between reads; `None` once closed.
    writer: Mutex<Option<Connection>>,
    pool: Pool,
}

impl Sqlite {
    pub(super) fn open(path: &Path, pool_size: u32) -> Result<Self, StorageError> {
        let writer = sqlite::open(path, Access::Write)?;
        let pool = Pool::new(path, pool_size)?;
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(Some(writer)),
            pool,
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StorageError> {
        let connection = self.pool.take()?;
        let result = work(&connection);
        self.pool.give_back(connection);
        result.map_err(|source| StorageError::Sqlite {
            operation: "read",
            path: self.path.clone(),
            source,
        })
    }
}

impl StateMachine for Sqlite {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        let key = keys[0].as_str();
        self.read(|connection| {
            connection
                .prepare_cached("SELECT value FROM state_machine_kv WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
                .map(|v| vec![v])
        })
    }

    fn applied(&self) -> Result<super::Applied, StorageError> {
        let bytes = self.read(|connection| sqlite::meta(connection, record::LAST_APPLIED))?;
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
        self.pool.close();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(writer) = writer else { return Ok(()) };
        // The last connection to close checkpoints and removes the write-ahead log.
        writer.close().map_err(|(_, source)| StorageError::Sqlite {
            operation: "close",
            path: self.path.clone(),
            source,
        })
    }
}

/// At most `size` read connections, opened as they are needed.
struct Pool {
    path: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    idle: Vec<Connection>,
    /// How many more may be opened.
    unopened: u32,
    closed: bool,
}

impl Pool {
    /// Opens the first connection, so that a file that cannot be read is found at start.
    fn new(path: &Path, size: u32) -> Result<Self, StorageError> {
        let first = sqlite::open(path, Access::Read)?;
        let state = State {
            idle: vec![first],
            unopened: size.saturating_sub(1),
            closed: false,
        };
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(state),
            returned: Condvar::new(),
        })
    }

    /// A connection for one read; waits while all are in use.
    fn take(&self) -> Result<Connection, StorageError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.closed {
                return Err(StorageError::Closed);
            }
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.unopened > 0 {
                state.unopened -= 1;
                drop(state);
                return sqlite::open(&self.path, Access::Read).map_err(|error| {
                    self.state
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .unopened += 1;
                    self.returned.notify_one();
                    error.into()
                });
            }
            state = self
                .returned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, connection: Connection) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropped when closed: what is in use finishes, nothing new begins.
        if !state.closed {
            state.idle.push(connection);
        }
        drop(state);
        self.returned.notify_one();
    }

    fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.idle.clear();
        drop(state);
        self.returned.notify_all();
    }
}
