//! Keeping the write-ahead log short without making writers wait.
//!
//! SQLite's automatic checkpoint makes the writer do it, and under constant
//! load the log is never reset, because nobody is ever done with all of it. So
//! a thread does it, with a connection of its own:
//!
//! 1. `PASSIVE` passes copy pages into the database, and sync it, while the
//!    writer goes on, until one finds that little was added since the one before.
//! 2. The last bit: with the writer waiting, copy the little that is left, sync
//!    that, and have the log begin anew. This is bounded by the rest, and by
//!    [`READER_WAIT`] for readers that are still in the old part.
//!
//! Meanwhile the log is written to the disk as it grows, so that the sync at the beginning
//! of a checkpoint has little left to do.
//!
//! A checkpoint by hand has the time to write what the first pass has copied piece by piece,
//! with pauses: behind thousands of pages all over the file, given to the disk at
//! once, every sync of the Raft log stands in line for 50 ms.
//!
//! Who reads an old state (a snapshot of ours, somebody's `sqlite3` shell)
//! keeps step 1 from getting to the end; then step 2 is left out, and the log
//! grows until that reader is done. Nobody waits for it but a checkpoint asked
//! for by hand.
//!
//! Safe to die anywhere: SQLite syncs the log before it copies a page out of
//! it, and the database before the log begins anew.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Shared;
use crate::format::sqlite::{self, Access, OpenError};
use crate::storage::{Checkpoint, Sizes, StorageError};
use crate::telemetry::{count, events};
use crate::{durable, layout};

/// The log's length at which a checkpoint begins: long enough that a page that
/// is written again and again is copied once, short enough to be read quickly
/// after a crash.
pub(super) const THRESHOLD_BYTES: u64 = 32 << 20;
/// How little a pass has to find added before the last step is worth it: to
/// copy and sync so much takes some milliseconds.
const REST_BYTES: u64 = 1 << 20;
/// Pieces of the database between which there are pauses: with the pages of a log of
/// [`THRESHOLD_BYTES`] all over it, each takes the disk a fraction of a millisecond.
const PIECES: u64 = 256;
/// What a piece takes at most in which there was nothing to write.
const NOTHING: Duration = Duration::from_micros(50);
/// How long the last step waits for readers, and the writer with it.
const READER_WAIT: Duration = Duration::from_millis(20);
/// How long a checkpoint by hand goes on trying.
const MANUAL_WAIT: Duration = Duration::from_secs(5);
/// Between two such tries.
const MANUAL_PAUSE: Duration = Duration::from_millis(50);
/// After so long without a commit the log is emptied.
const IDLE: Duration = Duration::from_secs(5);
/// How often idleness is looked for, while the log holds anything.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries while a reader holds on to the log: at first, and at most
/// after doubling. A reader that only lost its turn on the processor is soon done.
const PINNED_PAUSES: (Duration, Duration) = (READER_WAIT, Duration::from_millis(640));
/// From this length on a log that cannot be reset is worth a warning.
const PINNED_BYTES: u64 = 100_000_000;
/// Routine checkpoints are reported at most so often, added up.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The connection that checkpoints, and the file to sync.
pub(super) struct Checkpointer {
    connection: Connection,
    database: Arc<File>,
}

/// What `PRAGMA wal_checkpoint` answers.
struct Pass {
    blocked: bool,
    /// Pages in the log when it began.
    pages: u64,
    /// Pages of it that are in the database.
    copied: u64,
}

impl Checkpointer {
    pub(super) fn open(path: &Path, database: Arc<File>) -> Result<Self, OpenError> {
        let connection = sqlite::open(path, Access::Write)?;
        connection
            .busy_timeout(READER_WAIT)
            .map_err(|source| OpenError::Sqlite {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            connection,
            database,
        })
    }

    fn pass(&self, mode: &'static str) -> rusqlite::Result<Pass> {
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        self.connection.prepare_cached(mode)?.query_row([], |row| {
            Ok(Pass {
                blocked: row.get(0)?,
                pages: number(row.get(1)?),
                copied: number(row.get(2)?),
            })
        })
    }
}

const PASSIVE: &str = "PRAGMA wal_checkpoint(PASSIVE)";
/// The log begins anew and keeps its blocks, so that writing it again changes
/// no metadata of the file system: under load.
pub(super) const RESTART: &str = "PRAGMA wal_checkpoint(RESTART)";
/// The log becomes empty: when idle, or by hand.
pub(super) const TRUNCATE: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// What one checkpoint did.
struct Done {
    complete: bool,
    pages: u64,
    copied: u64,
    before: Sizes,
    after: Sizes,
    took: Duration,
    /// How long writers were kept waiting.
    held: Duration,
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Done {
    fn count(&self) {
        // An empty log is emptied in no time, which says nothing.
        if self.complete && self.pages > 0 {
            count::CHECKPOINTS.observe(self.took);
        }
    }
}

impl Shared {
    fn run(
        &self,
        files: &Checkpointer,
        last: &'static str,
        gently: bool,
    ) -> Result<Done, StorageError> {
        let failed = |source| self.failed("checkpoint", source);
        let (began, before) = (Instant::now(), self.sizes());
        let rest_pages = REST_BYTES / self.pulse.page_bytes().max(1);
        // Syncs the database as well, which SQLite leaves to the last step.
        let round = |gently| {
            let pass = files.pass(PASSIVE).map_err(failed)?;
            if gently {
                self.write_gently(&files.database);
            }
            durable::fsync(&files.database, &self.path)?;
            Ok::<_, StorageError>(pass)
        };
        let mut pass = round(gently)?;
        let (mut left, mut paused) = (pass.pages, gently);
        while left > rest_pages {
            let next = round(false)?;
            let added = next.pages.saturating_sub(pass.copied);
            pass = next;
            // What was added during pauses does not say that the writer is too fast.
            if added > left / 2 && !std::mem::take(&mut paused) {
                break;
            }
            left = added;
        }
        let (mut complete, mut held, mut after) = (false, Duration::ZERO, None);
        // A writer that is faster than the disk, so that the passes gain nothing on
        // it, is slowed down here; a reader of an old state is not waited for.
        if pass.pages.saturating_sub(pass.copied) <= rest_pages {
            // A snapshot holds on to the log for long, no use to wait for it.
            if let Ok(_no_snapshot) = self.snapshots.try_write() {
                let writer = self.writer.lock();
                let holding = Instant::now();
                let end = files.pass(last).map_err(failed)?;
                complete = !end.blocked;
                if complete {
                    self.pulse.restarted();
                    pass.copied = pass.pages;
                }
                held = holding.elapsed();
                // Before the next commit makes them larger again.
                after = Some(self.sizes());
                drop(writer);
            }
        }
        Ok(Done {
            complete,
            pages: pass.pages,
            copied: pass.copied,
            before,
            after: after.unwrap_or_else(|| self.sizes()),
            took: began.elapsed(),
            held,
        })
    }

    /// A checkpoint by hand.
    pub(super) fn checkpoint(&self) -> Result<Checkpoint, StorageError> {
        let files = self.checkpointer.lock();
        let files = files.unwrap_or_else(PoisonError::into_inner);
        let files = files.as_ref().ok_or(StorageError::Closed)?;
        let (began, before) = (Instant::now(), self.sizes());
        let mut done = self.complete(files, RESTART, true, began)?;
        // Giving the log's blocks back takes tens of milliseconds: writers wait for that alone.
        let emptied = self.complete(files, TRUNCATE, false, began)?;
        done.after = emptied.after;
        done.took += emptied.took;
        done.count();
        let told = Checkpoint {
            wal_bytes_before: before.wal.unwrap_or(0),
            wal_bytes_after: done.after.wal.unwrap_or(0),
            wal_pages: done.pages,
            checkpointed_pages: done.copied,
            database_bytes_before: before.database,
            database_bytes_after: done.after.database,
        };
        tracing::info!(
            target: "aspen::storage",
            MESSAGE_ID = events::WAL_CHECKPOINT,
            ASPEN_PAGES = told.checkpointed_pages,
            ASPEN_WAL_BYTES = told.wal_bytes_after,
            ASPEN_DURATION_MS = milliseconds(began.elapsed()),
            "WAL checkpoint: {} pages in {} ms, write-ahead log {} -> {} bytes, database {} -> {} bytes",
            told.checkpointed_pages,
            began.elapsed().as_millis(),
            told.wal_bytes_before,
            told.wal_bytes_after,
            told.database_bytes_before,
            told.database_bytes_after,
        );
        Ok(told)
    }

    /// Tries again until it is complete, or it is [`MANUAL_WAIT`] after `began`.
    fn complete(
        &self,
        files: &Checkpointer,
        last: &'static str,
        gently: bool,
        began: Instant,
    ) -> Result<Done, StorageError> {
        loop {
            let done = self.run(files, last, gently)?;
            if done.complete {
                return Ok(done);
            }
            if self.pulse.stopped() {
                return Err(StorageError::Closed);
            }
            if began.elapsed() >= MANUAL_WAIT {
                return Err(StorageError::Pinned {
                    path: self.path.clone(),
                });
            }
            std::thread::sleep(MANUAL_PAUSE);
        }
    }

    /// Has the log written to the disk from `from` on, as far as it is, while it grows. Else the
    /// sync with which a checkpoint begins would write all of it at once, and for as long as
    /// that takes every sync of the Raft log would stand in line behind it.
    fn write_back(&self, from: u64) -> u64 {
        let bytes = self.pulse.bytes();
        // It has begun anew.
        let from = if from > bytes { 0 } else { from };
        let [log, _] = layout::sqlite_companions(&self.path);
        if bytes > from
            && let Ok(log) = File::open(log)
        {
            durable::start_writeback(&log, from, bytes - from);
        }
        bytes
    }

    /// Writes what a pass has copied into the database to the disk, half of the time.
    fn write_gently(&self, database: &File) {
        let length = database.metadata().map_or(0, |metadata| metadata.len());
        let piece = length.div_ceil(PIECES).next_multiple_of(1 << 16);
        for at in (0..PIECES).map(|n| n * piece).take_while(|at| *at < length) {
            let began = Instant::now();
            durable::write_back(database, at, piece);
            let took = began.elapsed();
            if took > NOTHING && !self.pulse.stopped() {
                std::thread::sleep(took);
            }
        }
    }

    /// What the checkpointing thread does until told to stop.
    pub(super) fn keep_short(&self) {
        let mut report = Report::default();
        let (mut commits, mut quiet_since) = (self.pulse.commits(), Instant::now());
        let (mut pinned, mut written_back) = (None, 0);
        while self.pulse.wait(pinned.unwrap_or(LOOK), pinned.is_some()) {
            if self.pulse.commits() != commits {
                (commits, quiet_since) = (self.pulse.commits(), Instant::now());
            }
            let idle = quiet_since.elapsed() >= IDLE;
            if self.pulse.bytes() < self.threshold && !idle {
                pinned = None;
                written_back = self.write_back(written_back);
                continue;
            }
            let files = self.checkpointer.lock();
            let files = files.unwrap_or_else(PoisonError::into_inner);
            let Some(files) = files.as_ref() else {
                continue;
            };
            let done = self.run(files, if idle { TRUNCATE } else { RESTART }, false);
            let (shortest, longest) = PINNED_PAUSES;
            pinned = match &done {
                Ok(done) if done.complete => None,
                _ => Some(pinned.map_or(shortest, |pause| longest.min(2 * pause))),
            };
            if let Ok(done) = &done {
                done.count();
            }
            report.take(done, &self.path);
        }
    }
}

/// Routine checkpoints, added up between two lines in the log.
#[derive(Default)]
struct Report {
    last_line: Option<Instant>,
    last_failure: Option<Instant>,
    count: u64,
    pages: u64,
    took: Duration,
    held: Duration,
    /// A reader's hold on the log was reported.
    warned: bool,
}

impl Report {
    fn take(&mut self, done: Result<Done, StorageError>, path: &Path) {
        let due = |last: Option<Instant>| last.is_none_or(|at| at.elapsed() >= REPORT_EVERY);
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                if due(self.last_failure) {
                    self.last_failure = Some(Instant::now());
                    tracing::warn!(
                        target: "aspen::storage",
                        MESSAGE_ID = events::WAL_LARGE,
                        ASPEN_PATH = %path.display(),
                        error = &error as &dyn std::error::Error,
                        "The write-ahead log cannot be checkpointed at the moment; it grows until it can"
                    );
                }
                return;
            }
        };
        let bytes = done.after.wal.unwrap_or(0);
        if !done.complete {
            if bytes > PINNED_BYTES && !self.warned {
                self.warned = true;
                tracing::warn!(
                    target: "aspen::storage",
                    MESSAGE_ID = events::WAL_LARGE,
                    ASPEN_PATH = %path.display(),
                    ASPEN_WAL_BYTES = bytes,
                    "The write-ahead log of {} has grown to {bytes} bytes, because something reads an old state: \
                     a snapshot, a backup, or another process (fuser -v FILE names it)",
                    path.display()
                );
            }
            return;
        }
        self.warned = false;
        if done.pages == 0 && done.before.wal == Some(0) {
            return;
        }
        self.count += 1;
        self.pages += done.copied;
        self.took += done.took;
        self.held = self.held.max(done.held);
        tracing::debug!(
            target: "aspen::storage",
            "WAL checkpoint: {} pages in {} ms, write-ahead log {} -> {bytes} bytes, writers waited {} us",
            done.copied,
            done.took.as_millis(),
            done.before.wal.unwrap_or(0),
            done.held.as_micros(),
        );
        if due(self.last_line) {
            tracing::info!(
                target: "aspen::storage",
                MESSAGE_ID = events::WAL_CHECKPOINT,
                ASPEN_PAGES = self.pages,
                ASPEN_WAL_BYTES = bytes,
                ASPEN_DURATION_MS = milliseconds(self.took),
                "WAL checkpoint: {} since the last line, {} pages in {} ms, writers waited {} ms at most, \
                 write-ahead log now {bytes} bytes, database {} bytes",
                self.count,
                self.pages,
                self.took.as_millis(),
                self.held.as_millis(),
                done.after.database,
            );
            *self = Self {
                last_line: Some(Instant::now()),
                last_failure: self.last_failure,
                ..Self::default()
            };
        }
    }
}
