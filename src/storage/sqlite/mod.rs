//! The state machine in SQLite: one connection that writes, a pool that reads,
//! one that checkpoints, and one for each snapshot being made.
//!
//! Invariants:
//!
//! - Rows and metadata change in one transaction; `applied` in memory follows
//!   after the commit, so that it never says more than a read would find.
//! - The file's locks are POSIX locks, which closing *any* descriptor of the
//!   file in this process drops. Nothing here opens the database but SQLite and
//!   [`Writer`](write::Writer), whose descriptor outlives the connections.
//! - Whoever takes several locks takes them in this order: `snapshots`,
//!   `checkpointer`, `writer`, the pool's.
//! - What [`persist`](StateMachine::persist) answers is durable: it is in the
//!   write-ahead log, which is then synced, or a checkpoint has moved it into
//!   the database, which SQLite syncs before the log begins anew.

mod checkpoint;
mod digest;
mod frames;
mod pool;
mod pulse;
mod snapshot;
mod turn;
mod vfs;
mod write;

use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};

use self::checkpoint::Checkpointer;
use self::pool::Pool;
use self::pulse::Pulse;
use self::turn::Turn;
use self::write::Writer;
use super::apply::Advance;
use super::page::Collector;
use super::{Applied, Checkpoint, Contents, Page, Range, Sizes, StateMachine, StorageError};
use crate::format::entry::{Entry, Outcome};
use crate::format::record::{self, LogId, RecordError};
use crate::format::sqlite;
use crate::telemetry::events;
use crate::{durable, layout};

const GET: &str = "SELECT value FROM state_machine_kv WHERE key = ?1";

/// How many times the length at which it is checkpointed the write-ahead log may
/// have before applying slows down for a copy (192 MiB). At twice that it is
/// slowest, so that the log stays below what counts as unhealthy.
const PACED: u64 = 6;
/// The longest pause before a batch: some 10 MB a second of write-ahead log.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An open database.
pub(super) struct Sqlite {
    shared: Arc<Shared>,
    checkpoints: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    path: PathBuf,
    /// `None` once closed.
    writer: Turn<Option<Writer>>,
    checkpointer: Mutex<Option<Checkpointer>>,
    pool: Pool,
    applied: RwLock<Applied>,
    /// Read while a snapshot is made, written while the file is exchanged.
    snapshots: RwLock<()>,
    /// Copies that are being made: while there are any the write-ahead log only grows.
    copying: AtomicU64,
    pulse: Arc<Pulse>,
    /// Length of the log at which a checkpoint begins.
    threshold: u64,
    /// Ends what takes long when the node stops.
    stop: Arc<AtomicBool>,
}

impl Sqlite {
    pub(super) fn open(path: &Path, pool_size: u32) -> Result<Self, StorageError> {
        Self::with_threshold(path, pool_size, checkpoint::THRESHOLD_BYTES)
    }

    fn with_threshold(path: &Path, pool_size: u32, threshold: u64) -> Result<Self, StorageError> {
        let pulse = Arc::new(Pulse::new(threshold));
        let writer = Writer::open(path, &pulse)?;
        let checkpointer = Checkpointer::open(path, Arc::clone(&writer.database))?;
        let pool = Pool::new(path, pool_size)?;
        let applied = pool.read(read_applied)??;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            writer: Turn::new(Some(writer)),
            checkpointer: Mutex::new(Some(checkpointer)),
            pool,
            applied: RwLock::new(applied),
            snapshots: RwLock::new(()),
            copying: AtomicU64::new(0),
            pulse,
            threshold,
            stop: Arc::default(),
        });
        let keeper = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || keeper.keep_short())
            .map_err(|source| StorageError::File {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            shared,
            checkpoints: Mutex::new(Some(thread)),
        })
    }
}

impl Shared {
    fn failed(&self, operation: &'static str, source: rusqlite::Error) -> StorageError {
        StorageError::Sqlite {
            operation,
            path: self.path.clone(),
            source,
        }
    }

    /// By name: opening them would cost locks.
    fn sizes(&self) -> Sizes {
        let bytes = |path: &Path| path.metadata().map_or(0, |about| about.len());
        let [log, _] = layout::sqlite_companions(&self.path);
        Sizes {
            database: bytes(&self.path),
            wal: Some(bytes(&log)),
        }
    }

    fn applied(&self) -> Applied {
        let applied = self.applied.read();
        applied.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StorageError> {
        let Some(advance) = Advance::by(entries) else {
            return Ok(Vec::new());
        };
        let records = advance.records()?;
        let writer = self.writer.lock();
        let open = writer.as_ref().ok_or(StorageError::Closed)?;
        let outcomes = loop {
            match open.apply(entries, &records) {
                Err(error) if is_busy(&error) && !self.pulse.stopped() => tracing::warn!(
                    target: "aspen::storage",
                    MESSAGE_ID = events::DATABASE_BUSY,
                    ASPEN_PATH = %self.path.display(),
                    "Another process holds the write lock of {}; nothing is applied until it lets go",
                    self.path.display()
                ),
                applied => break applied.map_err(|source| self.failed("write", source))?,
            }
        };
        let mut applied = self.applied.write();
        advance.note(
            applied
                .as_mut()
                .unwrap_or_else(|poisoned| poisoned.get_mut()),
        );
        Ok(outcomes)
    }

    /// A copy ends by itself, so it is worth waiting for; whoever else reads an old
    /// state may do so for days.
    fn pause(&self) -> Duration {
        if self.copying.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        let range = self.threshold.saturating_mul(PACED);
        let over = self.pulse.bytes().saturating_sub(range).min(range);
        LONGEST_PAUSE.mul_f64(over as f64 / range.max(1) as f64)
    }

    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        let last = self.applied().last_applied;
        let [log, _] = layout::sqlite_companions(&self.path);
        match File::open(&log) {
            Ok(file) => durable::fsync(&file, &log)?,
            // Closed, or exchanged for a snapshot: all of it is in the database.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StorageError::File { path: log, source }),
        }
        Ok(last)
    }

    fn close(&self) -> Result<(), StorageError> {
        self.stop.store(true, Ordering::Relaxed);
        self.pulse.stop();
        let _snapshots = self
            .snapshots
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let checkpointer = self.checkpointer.lock();
        *checkpointer.unwrap_or_else(PoisonError::into_inner) = None;
        let mut writer = self.writer.lock();
        self.pool.close();
        let Some(Writer {
            connection,
            database,
        }) = writer.take()
        else {
            return Ok(());
        };
        // The last connection to close checkpoints and removes the write-ahead log.
        let closed = connection
            .close()
            .map_err(|(_, source)| self.failed("close", source));
        drop(database);
        closed
    }
}

impl StateMachine for Sqlite {
    fn backend(&self) -> &'static str {
        "sqlite"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        self.shared.pool.read(|connection| {
            let read = || {
                let mut get = connection.prepare_cached(GET)?;
                keys.iter()
                    .map(|key| get.query_row([key], |row| row.get(0)).optional())
                    .collect()
            };
            match keys.len() {
                // One statement is one view.
                0 | 1 => read(),
                _ => in_one_view(connection, read),
            }
        })
    }

    fn scan(&self, range: &Range) -> Result<Page, StorageError> {
        let (sql, start) = match Collector::start(range) {
            Bound::Excluded(start) => (
                "SELECT key, value FROM state_machine_kv WHERE key > ?1 ORDER BY key",
                start,
            ),
            Bound::Included(start) => (
                "SELECT key, value FROM state_machine_kv WHERE key >= ?1 ORDER BY key",
                start,
            ),
            Bound::Unbounded => return Ok(Page::default()),
        };
        self.shared.pool.read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let mut rows = select.query([start])?;
            let mut page = Collector::new(range);
            while let Some(row) = rows.next()? {
                let (key, value) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
                if !page.offer(key, value) {
                    break;
                }
            }
            Ok(page.finish())
        })
    }

    fn applied(&self) -> Result<Applied, StorageError> {
        Ok(self.shared.applied())
    }

    fn apply(&self, entries: &[Entry]) -> Result<Vec<Outcome>, StorageError> {
        self.shared.apply(entries)
    }

    fn pause(&self) -> Duration {
        self.shared.pause()
    }

    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        self.shared.persist()
    }

    fn write_snapshot(&self, to: &Path) -> Result<Applied, StorageError> {
        self.shared.write_snapshot(to)
    }

    fn digest(&self, stop: &AtomicBool) -> Result<Contents, StorageError> {
        self.shared.digest(stop)
    }

    fn install_snapshot(&self, from: &Path) -> Result<Applied, StorageError> {
        self.shared.install(from)
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StorageError> {
        self.shared.checkpoint().map(Some)
    }

    fn sizes(&self) -> Sizes {
        self.shared.sizes()
    }

    fn close(&self) -> Result<(), StorageError> {
        let closed = self.shared.close();
        let thread = self.checkpoints.lock();
        let thread = thread.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
        closed
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`.
        let _ = self.close();
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(
        error.sqlite_error_code(),
        Some(DatabaseBusy | DatabaseLocked)
    )
}

fn in_one_view<T>(
    connection: &Connection,
    read: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let run = |sql| connection.prepare_cached(sql)?.execute([]);
    run("BEGIN")?;
    let result = read();
    let ended = run("COMMIT");
    result.and_then(|value| ended.map(|_| value))
}

fn read_applied(connection: &Connection) -> rusqlite::Result<Result<Applied, RecordError>> {
    in_view(connection, || {
        let last_applied = sqlite::meta(connection, record::LAST_APPLIED)?;
        let membership = sqlite::meta(connection, record::LAST_MEMBERSHIP)?;
        Ok(Applied::decode(
            last_applied.as_deref(),
            membership.as_deref(),
        ))
    })
}

/// As [`in_one_view`], or in the view that the caller already has.
fn in_view<T>(
    connection: &Connection,
    read: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    match connection.is_autocommit() {
        true => in_one_view(connection, read),
        false => read(),
    }
}

#[cfg(test)]
mod tests;
