//! The Raft log, in redb: entries, vote, committed and purged position.
//!
//! One thread writes, or in a simulation whoever its `disk` has write. What is asked for is
//! queued in its order (`queue`), and all that waits is made durable with one fdatasync
//! (`writer`): in the `journal`, from where a `helper` files it in redb, or there at once.
//! What was asked for counts at once for everybody who reads: bounds, vote and
//! the newest entries are in memory (`tail`), older entries are read from the
//! file (`file`; `look` tells what it holds when it is opened). A disk that is full
//! is waited for (`patience`); the file's blocks are asked for a piece ahead (`ahead`);
//! `backend` is the file with both.
//!
//! Invariants:
//!
//! - `done` is called once for every operation, with `Ok` only when the operation and all
//!   before it are durable; in their order, but for purges and once the log has failed.
//! - An operation is durable as a whole or not at all, and never before one that
//!   was asked for earlier; only a long purge becomes durable piece by piece,
//!   and each piece carries its own record, so that the file never lacks an
//!   entry that its records say it has.
//! - What is read is a run of entries without a gap, as they stood at one
//!   moment between the call and its return.
//!
//! What may fail, and what then holds:
//!
//! - Killed at any point, or power lost: redb opens at its last commit, which with what
//!   is whole in the journal holds all that was confirmed.
//! - The disk is full: everything waits, nothing fails; [`Log::stalled`] tells.
//!   Entering the log is refused long before, by [`space`](super::space).
//! - Any other error: final. All that waits and comes fails with it, because
//!   what a failed fsync left on the disk is unknown. Reading goes on where it can.
//! - The file is damaged, foreign or of an older format: an error that names it,
//!   never an empty log.

mod ahead;
mod backend;
mod disk;
mod error;
mod file;
mod helper;
mod journal;
mod look;
mod patience;
mod queue;
mod sizes;
mod tail;
#[cfg(test)]
mod tests;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use self::disk::FileSystem;
pub use self::disk::{Disk, Hand, Part};
pub use self::error::LogError;
use self::file::LogFile;
use self::queue::{Change, Shared, State};
use self::tail::{Encoded, Purge, TAIL_BYTES, Tail};
use self::writer::Writer;
use crate::format::entry::{Entry, VOTE, Vote};
use crate::format::record::LogId;

/// Called once, when an operation is durable or has failed for good. It runs on
/// the thread that writes, and must be quick.
pub type Done = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The last entry that was purged.
    pub last_purged: Option<LogId>,
    /// The last entry that is there, or else `last_purged`.
    pub last: Option<LogId>,
}

/// An open log; a cheap handle that may be cloned. Operations are carried out
/// in the order in which they were asked for, many in one transaction.
///
/// The last handle that is dropped closes the log as [`close`](Self::close)
/// does, but tells nobody of an error.
#[derive(Clone)]
pub struct Log(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    writing: Writing,
}

/// Who writes.
enum Writing {
    /// A thread; `None` once closed.
    Thread(Mutex<Option<JoinHandle<Result<(), LogError>>>>),
    /// Whoever the disk has write.
    Hand(Arc<dyn Disk>, Box<Mutex<Writer>>),
}

impl Log {
    /// Opens the log at `path`, or makes an empty one that goes on behind
    /// `begins_after`, from the first moment that the file has its name. A log
    /// that was not closed is repaired first, which reads all of it.
    ///
    /// # Errors
    /// When the file cannot be made or opened, is in an older format, is no log,
    /// or is damaged as far as that shows at its ends and in a sample.
    pub fn open(path: &Path, begins_after: Option<LogId>) -> Result<Self, LogError> {
        Self::open_with(path, begins_after, TAIL_BYTES, Arc::new(FileSystem))
    }

    fn open_with(
        path: &Path,
        begins_after: Option<LogId>,
        tail_bytes: u64,
        disk: Arc<dyn Disk>,
    ) -> Result<Self, LogError> {
        let (file, found) = LogFile::open(path, begins_after, disk.as_ref())?;
        let tail = Tail::new(found.bounds, found.begin, found.bytes, tail_bytes);
        let shared = Arc::new(Shared::new(file, tail, found.vote, found.committed));
        let writer = Writer::new(Arc::clone(&shared), disk);
        let thread = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run())
            .map_err(|error| LogError::of("start the writer of", path, error.into()))?;
        Ok(Self(Arc::new(Handle {
            shared,
            writing: Writing::Thread(Mutex::new(Some(thread))),
        })))
    }

    /// As [`Self::open`], but `disk` decides what is written to and when.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        begins_after: Option<LogId>,
    ) -> Result<Self, LogError> {
        let (file, found) = LogFile::open(path, begins_after, disk.as_ref())?;
        let tail = Tail::new(found.bounds, found.begin, found.bytes, TAIL_BYTES);
        let shared = Arc::new(Shared::new(file, tail, found.vote, found.committed));
        let writer = Writer::new(Arc::clone(&shared), Arc::clone(&disk));
        let writer = Box::new(Mutex::new(writer));
        Ok(Self(Arc::new(Handle {
            shared,
            writing: Writing::Hand(disk, writer),
        })))
    }

    /// See [`Shared::ask`].
    fn ask(&self, done: Done, change: impl FnOnce(&mut State) -> Result<Change, LogError>) {
        self.shared().ask(done, change);
        if let Writing::Hand(disk, _) = &self.0.writing {
            disk.asked(Hand(Arc::downgrade(&self.0)));
        }
    }

    /// Where it begins and ends, with all that was asked for.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.shared().state().tail.bounds
    }

    /// The last vote that was asked to be saved.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.shared().state().vote
    }

    /// The last committed position that was asked to be saved.
    #[must_use]
    pub fn committed(&self) -> Option<LogId> {
        self.shared().state().committed
    }

    /// Saves the vote; `done` when it is durable.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        let encoded = vote.encode().map_err(|source| self.record(source));
        self.ask(done, |state| {
            let value = encoded?;
            state.vote = Some(vote);
            let name = VOTE.to_owned();
            Ok(Change::Meta { name, value })
        });
    }

    /// Saves the committed position together with a durable operation that comes,
    /// the first after a tenth of a second, at the latest when the log is closed.
    pub fn save_committed(&self, committed: Option<LogId>) {
        self.shared().state().committed = committed;
    }

    /// Appends; the entries can be read at once, `done` when they are durable.
    /// They must go on where the log ends; before the first entry ever, any
    /// index will do. Otherwise `done` is told of invalid input, and nothing is
    /// appended.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        let encoded = self.encode(&entries);
        self.ask(done, |state| {
            let encoded = encoded?;
            let Some(first) = entries.first().map(|entry| entry.log_id.index) else {
                return Ok(Change::Nothing);
            };
            let expected = state.tail.next().unwrap_or(first);
            let mut places = entries.iter().zip(expected..);
            if let Some((entry, expected)) = places.find(|(e, at)| e.log_id.index != *at) {
                let path = self.shared().file.path.clone();
                let found = entry.log_id.index;
                return Err(LogError::Order {
                    path,
                    expected,
                    found,
                });
            }
            let operation = state.operation();
            for (entry, bytes) in entries.iter().zip(&encoded) {
                state.tail.push(entry.log_id, Arc::clone(bytes), operation);
            }
            Ok(Change::Append {
                first,
                entries: encoded,
            })
        });
    }

    fn encode(&self, entries: &[Entry]) -> Result<Vec<Encoded>, LogError> {
        let encoded = entries.iter().map(|entry| entry.encode().map(Into::into));
        encoded
            .collect::<Result<_, _>>()
            .map_err(|source| self.record(source))
    }

    /// Removes what lies behind `last`, which is in the log, or else everything.
    pub fn truncate_after(&self, last: Option<LogId>, done: Done) {
        self.ask(done, |state| {
            let from = state.tail.truncate(last);
            Ok(from.map_or(Change::Nothing, |from| Change::Truncate { from }))
        });
    }

    /// Removes what lies up to `upto`, inclusive; the entries need not exist.
    pub fn purge(&self, upto: LogId, done: Done) {
        self.ask(done, |state| {
            Ok(match state.tail.purge(upto) {
                Purge::Nothing => Change::Nothing,
                Purge::Oldest => Change::Purge { upto },
                Purge::Everything => Change::Clear { upto },
            })
        });
    }

    /// The entries in `range` that are there, in their order, without a gap, up to
    /// about `max_bytes`, but at least one if there is one. What was purged is
    /// skipped. Blocks on the disk only for entries that are no longer in memory.
    ///
    /// # Errors
    /// When the file cannot be read or an entry is damaged.
    pub fn read(&self, range: Range<u64>, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let path = &self.shared().file.path;
        let (from, encoded) = self.read_encoded(range, max_bytes)?;
        let entries = encoded.iter().zip(from..);
        entries
            .map(|(bytes, index)| file::decode(path, index, bytes))
            .collect()
    }

    /// Whether reading from `index` on needs no disk.
    #[must_use]
    pub fn in_memory(&self, index: u64) -> bool {
        self.shared().state().tail.first <= index
    }

    /// The index of the first entry and the entries' bytes.
    fn read_encoded(&self, range: Range<u64>, most: u64) -> Result<(u64, Vec<Encoded>), LogError> {
        let file = &self.shared().file;
        'again: loop {
            let (mut run, mut taken) = (Vec::<Encoded>::new(), 0);
            let mut state = self.shared().state();
            let Range { start, end } = state.tail.within(&range);
            let truncations = state.tail.truncations;
            let mut next = start;
            while next < end && taken < most.max(1) {
                let (left, forced) = (most.saturating_sub(taken), run.is_empty());
                let in_file = state.tail.first;
                if next >= in_file {
                    run.extend(state.tail.collect(next..end, left, forced));
                    break;
                }
                // Without the lock: everybody else goes on while the disk is read.
                drop(state);
                let read = file.read(next, end.min(in_file), left, forced);
                state = self.shared().state();
                if state.tail.truncations != truncations || state.tail.begin > start {
                    continue 'again;
                }
                let read = read.map_err(|error| LogError::of("read", &file.path, error))?;
                if read.entries.is_empty() && !read.full {
                    return Err(file::missing(&file.path, next));
                }
                next += read.entries.len() as u64;
                taken += read.bytes;
                run.extend(read.entries);
                if read.full {
                    break;
                }
            }
            return Ok((start, run));
        }
    }

    /// A record of the metadata table beyond Raft's own, such as the node's identity.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        let file = &self.shared().file;
        file.meta(name)
            .map_err(|error| LogError::of("read", &file.path, error))
    }

    /// Sets such a record, durably: blocks until it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_meta(&self, name: &str, value: &[u8]) -> Result<(), LogError> {
        let (told, end) = std::sync::mpsc::channel();
        let done: Done = Box::new(move |result| drop(told.send(result)));
        let (name, value) = (name.to_owned(), value.to_vec());
        self.ask(done, |_| Ok(Change::Meta { name, value }));
        self.0.write_all();
        let result = end.recv().unwrap_or_else(|_| Err(LogError::Closed.into()));
        result.map_err(|error| match error.downcast::<LogError>() {
            Ok(error) => error,
            Err(error) => LogError::of("write to", &self.shared().file.path, error.into()),
        })
    }

    /// Why nothing can be written at the moment, if so: the disk is full, and the log tries again.
    #[must_use]
    pub fn stalled(&self) -> Option<String> {
        self.shared().file.patience.reason()
    }

    /// The lowest index such that the entries from there on take about `bytes` at most.
    #[must_use]
    pub fn index_for_last(&self, bytes: u64) -> u64 {
        self.shared().state().tail.index_for_last(bytes)
    }

    /// What the file takes on the disk, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.shared().file.bytes()
    }

    /// How often the file was made durable since the log was opened: what
    /// writing costs, and how well it is shared.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared().file.syncs()
    }

    /// Finishes what was asked for, saves the committed position and closes the
    /// file; what is asked for afterwards fails. On a full disk nothing is
    /// waited for any more. Again, it does nothing.
    ///
    /// # Errors
    /// When the file cannot be written; nothing durable is lost by it.
    pub fn close(&self) -> Result<(), LogError> {
        self.0.close()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    fn record(&self, source: crate::format::record::RecordError) -> LogError {
        LogError::Record {
            path: self.shared().file.path.clone(),
            source: Arc::new(source),
        }
    }
}

impl Handle {
    fn close(&self) -> Result<(), LogError> {
        self.shared.begin_closing();
        match &self.writing {
            Writing::Thread(thread) => {
                let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                match thread {
                    // A `done` that holds the last handle is dropped by the writer itself.
                    Some(thread) if thread.thread().id() != std::thread::current().id() => {
                        thread.join().unwrap_or(Err(LogError::Closed))
                    }
                    _ => Ok(()),
                }
            }
            Writing::Hand(_, writer) => {
                self.write_all();
                writer
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .close()
            }
        }
    }

    /// Writes all that waits, unless there is a thread for that.
    fn write_all(&self) {
        while self.write_group() {}
    }

    /// Writes some of what waits; whether there was any.
    fn write_group(&self) -> bool {
        match &self.writing {
            Writing::Thread(_) => false,
            Writing::Hand(_, writer) => {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                writer.write_group()
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.close();
    }
}
