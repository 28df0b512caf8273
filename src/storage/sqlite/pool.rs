//! At most so many read connections, opened as they are needed.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use crate::format::sqlite::{self, Access, OpenError};
use crate::storage::StorageError;

/// Page cache of one reader: the upper levels of the trees. What is below is in
/// the kernel's cache, once for all readers.
const CACHE_KIB: i64 = 2 * 1024;

/// The connections. A read waits while all are in use, or while the file is
/// being exchanged.
pub(super) struct Pool {
    path: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    idle: Vec<Connection>,
    /// How many are handed out.
    used: u32,
    /// How many there may be.
    size: u32,
    /// The file is being exchanged.
    paused: bool,
    closed: bool,
}

impl Pool {
    /// Opens the first connection, so that a file that cannot be read is found at start.
    pub(super) fn new(path: &Path, size: u32) -> Result<Self, StorageError> {
        let state = State {
            idle: vec![open(path)?],
            used: 0,
            size: size.max(1),
            paused: false,
            closed: false,
        };
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(state),
            returned: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one read with a connection of its own.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StorageError> {
        let connection = self.take()?;
        let result = work(&connection);
        self.give_back(Some(connection));
        result.map_err(|source| StorageError::Sqlite {
            operation: "read",
            path: self.path.clone(),
            source,
        })
    }

    fn take(&self) -> Result<Connection, StorageError> {
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(StorageError::Closed);
            }
            if !state.paused && state.used < state.size {
                state.used += 1;
                if let Some(connection) = state.idle.pop() {
                    return Ok(connection);
                }
                drop(state);
                return open(&self.path).map_err(|error| {
                    self.give_back(None);
                    error.into()
                });
            }
            state = self.wait(state);
        }
    }

    fn give_back(&self, connection: Option<Connection>) {
        let mut state = self.state();
        state.used -= 1;
        if !state.closed && !state.paused {
            // An error can leave a view open, which would hold on to the write-ahead log.
            state
                .idle
                .extend(connection.filter(Connection::is_autocommit));
            drop(state);
            self.returned.notify_one();
        } else {
            // Gone before whoever waits for that is told.
            drop(connection);
            drop(state);
            self.returned.notify_all();
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.returned
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets reads finish and closes all connections; new reads wait for [`resume`](Self::resume).
    pub(super) fn pause(&self) {
        let mut state = self.state();
        state.paused = true;
        while state.used > 0 {
            state = self.wait(state);
        }
        state.idle.clear();
    }

    /// Lets reads go on, on what now has the name.
    pub(super) fn resume(&self) {
        self.state().paused = false;
        self.returned.notify_all();
    }

    /// Lets reads finish and closes all connections; new reads fail.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.returned.notify_all();
        self.pause();
    }
}

fn open(path: &Path) -> Result<Connection, OpenError> {
    let connection = sqlite::open(path, Access::Read)?;
    connection
        .pragma_update(None, "cache_size", -CACHE_KIB)
        .map_err(|source| OpenError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
    Ok(connection)
}
