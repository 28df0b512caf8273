//! The thread that makes things durable, and the queue before it.
//!
//! It takes all that waits, writes it in one transaction, and tells everybody
//! who waited: while one fdatasync is under way, the next group gathers.
//!
//! A long purge is cut into pieces that travel with whatever else is written,
//! each with its own record, so that nobody waits behind it. What was asked for
//! after it may become durable before it is complete, which changes nothing:
//! a purge removes at the other end. Only the purge of everything, behind which
//! the log goes on with a gap, is done at its place in the order.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::ReadableTable as _;
use tokio::time::Instant;

use super::file::{LogFile, Tables, save_position};
use super::tail::{Encoded, Tail};
use super::{Done, LogError};
use crate::format::entry::{COMMITTED, Entry, LAST_PURGED, Vote};
use crate::format::record::LogId;
use crate::telemetry::count;

/// Most entries of a transaction, unless one operation alone has more: some
/// 20 ms of work, so that those who come next do not wait for long.
const MOST_ENTRIES: usize = 4096;
/// Most bytes of a transaction, unless one operation alone has more: redb holds
/// no more than half its cache in memory before it begins to write.
const MOST_BYTES: u64 = 4 << 20;
/// How often the committed position is saved at most. It only spares a restart
/// the wait for its leader, and costs a page in every transaction that has it.
const COMMITTED_EVERY: Duration = Duration::from_millis(100);
/// Entries that are purged in one transaction: under a millisecond of work.
const PURGE_STEP: u64 = 4096;

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

struct Operation {
    change: Change,
    done: Done,
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
    committed_written: Option<LogId>,
    committed_at: Option<Instant>,
    queue: VecDeque<Operation>,
    /// How many operations were asked for, and are durable.
    count: u64,
    durable: u64,
    closing: bool,
    /// Why nothing can be written any more.
    failed: Option<LogError>,
}

impl Shared {
    pub(super) fn new(
        file: LogFile,
        tail: Tail,
        vote: Option<Vote>,
        committed: Option<LogId>,
    ) -> Self {
        let state = State {
            tail,
            vote,
            committed,
            committed_written: committed,
            committed_at: None,
            queue: VecDeque::new(),
            count: 0,
            durable: 0,
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
    fn next_group(&self, purging: bool) -> Option<Group> {
        let mut state = self.state();
        loop {
            if state.has_work(purging) {
                return Some(state.take_group());
            }
            if state.closing {
                return None;
            }
            let woken = self.asked.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// The number of the operation that is being asked for.
    pub(super) fn operation(&self) -> u64 {
        self.count + 1
    }

    fn has_work(&self, purging: bool) -> bool {
        let unsaved = self.committed != self.committed_written;
        let ending = self.closing && unsaved && self.failed.is_none();
        purging || ending || !self.queue.is_empty()
    }

    /// Takes as much of the queue as one transaction may hold.
    fn take_group(&mut self) -> Group {
        let saved = |at: Instant| at.elapsed() < COMMITTED_EVERY;
        let due = self.closing || !self.committed_at.is_some_and(saved);
        let mut group = Group {
            operations: Vec::new(),
            committed: self.committed,
            save_committed: due && self.committed != self.committed_written,
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
        group
    }
}

impl Change {
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

/// What is written in one transaction.
struct Group {
    operations: Vec<Operation>,
    committed: Option<LogId>,
    save_committed: bool,
}

/// The writer, in its thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// How far a purge that is under way is to go, and who waits for it.
    purging: Option<LogId>,
    purgers: Vec<Done>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            purging: None,
            purgers: Vec::new(),
        }
    }

    /// Writes until the log is closed.
    pub(super) fn run(mut self) -> Result<(), LogError> {
        self.shared.file.patience.begin();
        while let Some(group) = self.shared.next_group(self.purging.is_some()) {
            self.carry_out(group);
        }
        self.close()
    }

    /// Writes a group of what waits, if there is any.
    pub(super) fn write_group(&mut self) -> bool {
        let group = {
            let mut state = self.shared.state();
            let purging = self.purging.is_some();
            state.has_work(purging).then(|| state.take_group())
        };
        let there = group.is_some();
        if let Some(group) = group {
            self.carry_out(group);
        }
        there
    }

    pub(super) fn close(&self) -> Result<(), LogError> {
        let file = &self.shared.file;
        let closed = file.close();
        closed.map_err(|error| LogError::of("close", &file.path, error))
    }

    fn carry_out(&mut self, group: Group) {
        let operations = group.operations.len() as u64;
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for Operation { change, done } in group.operations {
            match change {
                Change::Purge { upto } => {
                    self.purging = Some(upto);
                    self.purgers.push(done);
                    continue;
                }
                Change::Clear { .. } => {
                    self.purging = None;
                    waiting.append(&mut self.purgers);
                }
                _ => {}
            }
            changes.push(change);
            waiting.push(done);
        }
        let began = Instant::now();
        let written = self.shared.file.write(|tables| {
            for change in &changes {
                apply(tables, change)?;
            }
            if group.save_committed {
                save_committed(tables, group.committed)?;
            }
            self.purging
                .map_or(Ok(true), |upto| purge_step(tables, upto))
        });
        count::LOG_WRITES.observe(began.elapsed());
        let mut state = self.shared.state();
        let result = match written {
            Ok(purged) => {
                state.durable += operations;
                if group.save_committed {
                    state.committed_written = group.committed;
                    state.committed_at = Some(Instant::now());
                }
                let durable = state.durable;
                state.tail.forget(durable);
                if purged {
                    self.purging = None;
                    waiting.append(&mut self.purgers);
                }
                Ok(())
            }
            Err(error) => {
                let error = LogError::of("write to", &self.shared.file.path, error);
                self.purging = None;
                waiting.append(&mut self.purgers);
                // Nothing behind it can become durable either.
                waiting.extend(state.queue.drain(..).map(|operation| operation.done));
                state.failed = Some(error.clone());
                Err(error)
            }
        };
        drop(state);
        for done in waiting {
            done(result.clone().map_err(Into::into));
        }
    }
}

fn apply(tables: &mut Tables<'_>, change: &Change) -> Result<(), redb::Error> {
    match change {
        Change::Nothing | Change::Purge { .. } => {}
        Change::Append { first, entries } => {
            for (index, entry) in (*first..).zip(entries) {
                tables.entries.insert(index, &**entry)?;
            }
        }
        Change::Truncate { from } => tables.entries.retain_in(*from.., |_, _| false)?,
        Change::Clear { upto } => {
            tables.entries.retain(|_, _| false)?;
            save_position(&mut tables.meta, LAST_PURGED, *upto)?;
        }
        Change::Meta { name, value } => {
            tables.meta.insert(name.as_str(), value.as_slice())?;
        }
    }
    Ok(())
}

/// Removes some of the entries up to `upto` and records how far that goes; true
/// when none is left.
fn purge_step(tables: &mut Tables<'_>, upto: LogId) -> Result<bool, redb::Error> {
    let first = tables.entries.first()?.map(|(index, _)| index.value());
    let last = first.map(|first| first.saturating_add(PURGE_STEP - 1));
    // Where the entry at the end of the piece cannot be read, the piece is all.
    let position = match last.filter(|last| *last < upto.index) {
        Some(last) => match tables.entries.get(last)? {
            Some(bytes) => match Entry::decode(bytes.value()) {
                Ok(entry) if entry.log_id.index == last => entry.log_id,
                _ => upto,
            },
            None => upto,
        },
        None => upto,
    };
    tables.entries.retain_in(..=position.index, |_, _| false)?;
    save_position(&mut tables.meta, LAST_PURGED, position)?;
    Ok(position.index >= upto.index)
}

fn save_committed(tables: &mut Tables<'_>, committed: Option<LogId>) -> Result<(), redb::Error> {
    match committed {
        Some(position) => save_position(&mut tables.meta, COMMITTED, position),
        None => {
            tables.meta.remove(COMMITTED)?;
            Ok(())
        }
    }
}
