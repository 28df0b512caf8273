//! What is asked for, in its order, until it is written.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::file::LogFile;
use super::helper::Helping;
use super::tail::{Encoded, Tail};
use super::{Done, LogError};
use crate::format::entry::Vote;
use crate::format::record::LogId;

/// Most entries of a transaction, unless one operation alone has more: some
/// 20 ms of work, so that those who come next do not wait for long.
const MOST_ENTRIES: usize = 4096;
/// Most bytes of a transaction, unless one operation alone has more: redb holds
/// no more than half its cache in memory before it begins to write.
const MOST_BYTES: u64 = 4 << 20;
/// How often the committed position is saved at most where that costs a page. It only
/// spares a restart the wait for its leader.
const COMMITTED_EVERY: Duration = Duration::from_millis(100);

/// What is to be written.
pub(super) enum Change {
    /// Nothing: only what came before is waited for.
    Nothing,
    /// New entries from an index on.
    Append { first: u64, entries: Vec<Encoded> },
    /// No entries from an index on.
    Truncate { from: u64 },
    /// No entries up to a position that the log reaches.
    Purge { upto: LogId },
    /// No entries at all; the log goes on behind this position.
    Clear { upto: LogId },
    /// A record.
    Meta { name: String, value: Vec<u8> },
}

pub(super) struct Operation {
    pub(super) change: Change,
    pub(super) done: Done,
}

/// What handles and the writer share.
pub(super) struct Shared {
    pub(super) file: LogFile,
    state: Mutex<State>,
    asked: Condvar,
}

/// The log after all that was asked for, and what of it is not yet durable.
pub(super) struct State {
    pub(super) tail: Tail,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    /// What the file has of `committed`, and since when.
    committed_filed: Option<LogId>,
    committed_at: Option<Instant>,
    queue: VecDeque<Operation>,
    /// How many operations were asked for.
    count: u64,
    /// What the writer's helper does.
    pub(super) helping: Helping,
    closing: bool,
    /// Why nothing can be written any more.
    pub(super) failed: Option<LogError>,
}

impl Shared {
    pub(super) fn new(
        file: LogFile,
        tail: Tail,
        vote: Option<Vote>,
        committed: Option<LogId>,
    ) -> Self {
        // A majority may have had entries that this log had not yet made durable.
        let next = tail.next().unwrap_or(0);
        let state = State {
            tail,
            vote,
            committed: committed.filter(|id| id.index < next),
            committed_filed: committed,
            committed_at: None,
            queue: VecDeque::new(),
            count: 0,
            helping: Helping::Idle,
            closing: false,
            failed: None,
        };
        Self {
            file,
            state: Mutex::new(state),
            asked: Condvar::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the log is to be, and queues what `change` says is to be
    /// written for it, unless nothing is taken any more.
    pub(super) fn ask(
        &self,
        done: Done,
        change: impl FnOnce(&mut State) -> Result<Change, LogError>,
    ) {
        let mut state = self.state();
        let open = match (&state.failed, state.closing) {
            (Some(error), _) => Err(error.clone()),
            (None, true) => Err(LogError::Closed),
            (None, false) => Ok(()),
        };
        match open.and_then(|()| change(&mut state)) {
            Ok(change) => {
                state.count += 1;
                state.queue.push_back(Operation { change, done });
                drop(state);
                self.asked.notify_one();
            }
            Err(error) => {
                // Whoever is told may ask for something else at once.
                drop(state);
                done(Err(error.into()));
            }
        }
    }

    /// Has the writer finish what was asked for and close the file.
    pub(super) fn begin_closing(&self) {
        self.state().closing = true;
        self.asked.notify_one();
        self.file.patience.end();
    }

    /// Waits until there is something to write; `None` when there never will be.
    pub(super) fn next_group(&self, purging: bool) -> Option<Group> {
        let mut state = self.state();
        loop {
            if state.has_work(purging) {
                return Some(state.take_group());
            }
            if state.closing && !matches!(state.helping, Helping::Busy) {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Something to write, if there is any.
    pub(super) fn group(&self, purging: bool) -> Option<Group> {
        let mut state = self.state();
        state.has_work(purging).then(|| state.take_group())
    }

    /// Waits until something is asked for, or the helper has ended what it did.
    pub(super) fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let woken = self.asked.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the writer look again.
    pub(super) fn wake(&self) {
        self.asked.notify_one();
    }
}

impl State {
    /// The number of the operation that is being asked for.
    pub(super) fn operation(&self) -> u64 {
        self.count + 1
    }

    fn has_work(&self, purging: bool) -> bool {
        let next_step = purging && matches!(self.helping, Helping::Idle);
        next_step || matches!(self.helping, Helping::Ended(_)) || !self.queue.is_empty()
    }

    /// Whether the file lacks the committed position.
    pub(super) fn is_committed_unfiled(&self) -> bool {
        self.committed != self.committed_filed
    }

    /// The file has the first `count` operations, and `committed`.
    pub(super) fn filed(&mut self, count: u64, committed: Option<Option<LogId>>) {
        if let Some(committed) = committed {
            self.committed_filed = committed;
            self.committed_at = Some(Instant::now());
        }
        self.tail.forget(count);
    }

    /// Nothing can be written any more: who waits, and what he is told.
    pub(super) fn fail(&mut self, error: LogError) -> Vec<Done> {
        self.failed.get_or_insert(error);
        // Nothing behind it can become durable either.
        self.queue
            .drain(..)
            .map(|operation| operation.done)
            .collect()
    }

    /// Takes as much of the queue as one transaction may hold.
    pub(super) fn take_group(&mut self) -> Group {
        let saved = |at: Instant| at.elapsed() < COMMITTED_EVERY;
        let due = !self.committed_at.is_some_and(saved);
        let mut group = Group {
            operations: Vec::new(),
            upto: self.count - self.queue.len() as u64,
            committed: self.committed,
            save_committed: due && self.is_committed_unfiled(),
        };
        let (mut entries, mut bytes) = (0, 0);
        while let Some(next) = self.queue.front() {
            let (more_entries, more_bytes) = next.change.size();
            entries += more_entries;
            bytes += more_bytes;
            let fits = entries <= MOST_ENTRIES && bytes <= MOST_BYTES;
            if !fits && !group.operations.is_empty() {
                break;
            }
            group.operations.extend(self.queue.pop_front());
        }
        group.upto += group.operations.len() as u64;
        group
    }
}

impl Change {
    /// The index of the first of these new entries, and all of them; nothing inside if there are
    /// none, nothing at all if anything else is changed.
    pub(super) fn entries(changes: &[Self]) -> Option<Option<(u64, Vec<&Encoded>)>> {
        let mut found: Option<(u64, Vec<&Encoded>)> = None;
        for change in changes {
            match change {
                Self::Append { first, entries } => {
                    let (_, all) = found.get_or_insert_with(|| (*first, Vec::new()));
                    all.extend(entries);
                }
                Self::Nothing => {}
                _ => return None,
            }
        }
        Some(found)
    }

    fn size(&self) -> (usize, u64) {
        match self {
            Self::Append { entries, .. } => {
                let bytes = entries.iter().map(|entry| entry.len() as u64);
                (entries.len(), bytes.sum())
            }
            _ => (0, 0),
        }
    }
}

/// What is written at once.
pub(super) struct Group {
    pub(super) operations: Vec<Operation>,
    /// The number of the last one.
    pub(super) upto: u64,
    pub(super) committed: Option<LogId>,
    pub(super) save_committed: bool,
}
