//! What is done beside the writer, so that who waits for an fdatasync of the journal
//! waits for nothing else: making the journal, and filing what one segment of it holds.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use redb::ReadableTable as _;

use super::LogError;
use super::disk::Disk;
use super::file::{Tables, save_committed, save_position};
use super::journal::{Journal, MARK, Mark};
use super::queue::{Change, Shared};
use crate::format::entry::{Entry, LAST_PURGED};
use crate::format::record::LogId;
use crate::panics;

/// Entries that are purged in one transaction: under a millisecond of work.
const PURGE_STEP: u64 = 4096;

/// What the helper does.
pub(super) enum Helping {
    Idle,
    Busy,
    /// Nobody has looked at the result yet.
    Ended(Ended),
}

/// What can be done beside the writer.
pub(super) enum Job {
    /// Making a journal.
    Make,
    File(Batch),
}

/// How it ended.
pub(super) enum Ended {
    Made(io::Result<Journal>),
    /// Up to where a purge is complete, if it is.
    Filed(Result<Option<LogId>, LogError>),
}

/// What goes into the file in one transaction.
pub(super) struct Batch {
    pub(super) changes: Vec<Change>,
    /// How many operations the file then has.
    pub(super) upto: u64,
    /// The committed position, if it is to be saved.
    pub(super) committed: Option<Option<LogId>>,
    /// How far a purge that is under way is to go.
    pub(super) purge: Option<LogId>,
    /// The mark that the file has afterwards.
    pub(super) mark: Option<Mark>,
}

impl Batch {
    /// Files all of it. Returns up to where a purge is complete, if it is.
    pub(super) fn file(&self, shared: &Shared) -> Result<Option<LogId>, LogError> {
        let written = shared.file.write(|tables| {
            for change in &self.changes {
                apply(tables, change)?;
            }
            if let Some(committed) = self.committed {
                save_committed(&mut tables.meta, committed)?;
            }
            match self.mark {
                Some(mark) => tables.meta.insert(MARK, &*mark.encode())?,
                None => tables.meta.remove(MARK)?,
            };
            match self.purge {
                Some(upto) => Ok(purge_step(tables, upto)?.then_some(upto)),
                None => Ok(None),
            }
        });
        let purged = written.map_err(|error| LogError::of("write to", &shared.file.path, error))?;
        shared.state().filed(self.upto, self.committed);
        Ok(purged)
    }
}

/// Does jobs, one at a time.
pub(super) struct Helper {
    shared: Arc<Shared>,
    pub(super) disk: Arc<dyn Disk>,
    thread: Option<(Sender<Job>, JoinHandle<()>)>,
    /// What waits, where there is no thread.
    job: Option<Job>,
}

impl Helper {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>) -> Self {
        Self {
            shared,
            disk,
            thread: None,
            job: None,
        }
    }

    /// Does jobs in a thread of its own from now on.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let (jobs, taken): (_, Receiver<Job>) = channel();
        let (shared, disk) = (Arc::clone(&self.shared), Arc::clone(&self.disk));
        let work = move || {
            shared.file.patience.begin();
            for job in taken {
                let ended = job.run(&shared, disk.as_ref());
                shared.state().helping = Helping::Ended(ended);
                shared.wake();
            }
        };
        let thread = std::thread::Builder::new().name("raft-log-file".into());
        self.thread = Some((jobs, thread.spawn(work)?));
        Ok(())
    }

    /// Begins a job; the one before has ended.
    pub(super) fn start(&mut self, job: Job) {
        self.shared.state().helping = Helping::Busy;
        self.job = match &self.thread {
            Some((jobs, _)) => jobs.send(job).err().map(|unsent| unsent.0),
            None => Some(job),
        };
    }

    /// Does here what waits to be done; whether there was anything.
    pub(super) fn help(&mut self) -> bool {
        let Some(job) = self.job.take() else {
            return false;
        };
        let ended = job.run(&self.shared, self.disk.as_ref());
        self.shared.state().helping = Helping::Ended(ended);
        true
    }

    /// Ends when the job does that it has.
    pub(super) fn end(&mut self) {
        if let Some((jobs, thread)) = self.thread.take() {
            drop(jobs);
            // It has told its last result, or never will.
            let _ = thread.join();
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.shared.state().helping, Helping::Idle)
    }

    /// How the job has ended that was started last; `None` if there was none.
    pub(super) fn ended(&mut self, wait: bool) -> Option<Ended> {
        if wait {
            self.help();
        }
        let mut state = self.shared.state();
        while wait && matches!(state.helping, Helping::Busy) {
            state = self.shared.wait(state);
        }
        match std::mem::replace(&mut state.helping, Helping::Idle) {
            Helping::Ended(ended) => Some(ended),
            before => {
                state.helping = before;
                None
            }
        }
    }
}

impl Job {
    fn run(self, shared: &Shared, disk: &dyn Disk) -> Ended {
        let path = &shared.file.path;
        panics::contained(|| self.carry_out(shared, disk)).unwrap_or_else(|said| {
            let error = redb::Error::Corrupted(format!("a thread panicked: {said}"));
            Ended::Filed(Err(LogError::of("write to", path, error)))
        })
    }

    fn carry_out(self, shared: &Shared, disk: &dyn Disk) -> Ended {
        match self {
            Self::Make => {
                let syncs = Arc::clone(&shared.file.syncs);
                Ended::Made(Journal::make(&shared.file.path, disk, syncs))
            }
            Self::File(batch) => Ended::Filed(batch.file(shared)),
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
