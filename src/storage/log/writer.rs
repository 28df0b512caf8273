//! The thread that makes things durable.
//!
//! It takes all that waits and tells everybody who waited once it is durable: while
//! one fdatasync is under way, the next group gathers. Entries are written to the
//! journal, and filed when a segment of it is full. Everything else goes into the
//! file in one transaction, with what is not filed before it and behind it.
//!
//! A long purge is cut into pieces that travel with whatever else is filed,
//! each with its own record, so that nobody waits behind it. What was asked for
//! after it may become durable before it is complete, which changes nothing:
//! a purge removes at the other end. Only the purge of everything, behind which
//! the log goes on with a gap, is done at its place in the order.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::disk::Disk;
use super::helper::{Batch, Ended, Helper, Job};
use super::journal::Journal;
use super::queue::{Change, Group, Operation, Shared};
use super::{Done, LogError};
use crate::durable;
use crate::format::record::LogId;
use crate::layout;
use crate::telemetry::{Chain, count};

/// How long the log goes on without a journal that could not be made.
const WITHOUT: Duration = Duration::from_secs(60);

/// What there is of a journal.
enum Stage {
    /// None, and none is to be made before then.
    Without(Option<Instant>),
    Making,
    /// Its mark is not yet in the file.
    Made(Journal),
    /// Entries are written to it.
    Used(Journal),
}

/// Who writes.
pub(super) struct Writer {
    shared: Arc<Shared>,
    helper: Helper,
    stage: Stage,
    /// What is in the journal and nobody files yet.
    unfiled: Vec<Change>,
    /// The number of the last operation that is in the journal or in the file.
    upto: u64,
    /// The committed position when it was asked for.
    committed: Option<LogId>,
    /// How many groups were written.
    groups: u64,
    /// How far a purge that is under way is to go, and who waits for it.
    purging: Option<LogId>,
    purgers: Vec<Done>,
    closed: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Arc<dyn Disk>) -> Self {
        Self {
            helper: Helper::new(Arc::clone(&shared), disk),
            shared,
            stage: Stage::Without(None),
            unfiled: Vec::new(),
            upto: 0,
            committed: None,
            groups: 0,
            purging: None,
            purgers: Vec::new(),
            closed: false,
        }
    }

    /// Writes until the log is closed.
    pub(super) fn run(mut self) -> Result<(), LogError> {
        self.shared.file.patience.begin();
        if let Err(error) = self.helper.begin() {
            let path = &self.shared.file.path;
            let error = LogError::of("start a thread for", path, error.into());
            self.fail(error, Vec::new());
        }
        while let Some(group) = self.shared.next_group(self.purging.is_some()) {
            self.carry_out(group);
        }
        self.close()
    }

    /// Writes a group of what waits, if there is any.
    pub(super) fn write_group(&mut self) -> bool {
        match self.shared.group(self.purging.is_some()) {
            Some(group) => self.carry_out(group),
            None => return self.helper.help(),
        }
        true
    }

    /// Files all that is not, and closes the file.
    pub(super) fn close(&mut self) -> Result<(), LogError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        self.attend(true);
        self.helper.end();
        let filed = self.failed().and_then(|()| self.file_the_rest());
        let file = &self.shared.file;
        let closed = file.close();
        let closed = closed.map_err(|error| LogError::of("close", &file.path, error));
        if filed.is_ok() {
            // Without a mark it means nothing: the next start removes what is left.
            let _ = durable::remove_spare(&layout::journal(&file.path));
        }
        filed.and(closed)
    }

    fn file_the_rest(&mut self) -> Result<(), LogError> {
        let committed = self.unfiled_committed();
        let stage = std::mem::replace(&mut self.stage, Stage::Without(None));
        if committed.is_some() || matches!(stage, Stage::Used(_)) {
            let upto = self.upto;
            self.file(Vec::new(), upto, committed)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, group: Group) {
        self.attend(false);
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        let (mut purge, mut purgers) = (None, Vec::new());
        for Operation { change, done } in group.operations {
            match change {
                Change::Purge { upto } => {
                    purge = Some(upto);
                    purgers.push(done);
                    continue;
                }
                Change::Clear { .. } => {
                    (self.purging, purge) = (None, None);
                    waiting.append(&mut self.purgers);
                    waiting.append(&mut purgers);
                }
                _ => {}
            }
            changes.push(change);
            waiting.push(done);
        }
        let began = Instant::now();
        let entered = self
            .failed()
            .and_then(|()| self.enter(changes, group.committed));
        // Not while only older entries are filed: these may be the ones to be purged.
        self.purging = purge.or(self.purging);
        self.purgers.append(&mut purgers);
        let written = entered.and_then(|rest| match rest {
            Some(changes) => {
                let committed = group.save_committed.then_some(group.committed);
                self.file(changes, group.upto, committed)
            }
            None => Ok(()),
        });
        if !waiting.is_empty() {
            count::LOG_WRITES.observe(began.elapsed());
        }
        match written {
            Ok(()) => {
                (self.upto, self.committed) = (group.upto, group.committed);
                self.groups += 1;
                for done in waiting {
                    done(Ok(()));
                }
                self.occupy_helper();
            }
            Err(error) => self.fail(error, waiting),
        }
    }

    /// Enters new entries in the journal. Gives back what has to go into the file at once.
    fn enter(
        &mut self,
        changes: Vec<Change>,
        committed: Option<LogId>,
    ) -> Result<Option<Vec<Change>>, LogError> {
        let Stage::Used(journal) = &mut self.stage else {
            return Ok(Some(changes));
        };
        let Some(entries) = Change::entries(&changes) else {
            return Ok(Some(changes));
        };
        let Some((first, entries)) = entries else {
            return Ok(None);
        };
        if !journal.takes(&entries) {
            return Ok(Some(changes));
        }
        if !journal.has_room(&entries) {
            self.turn()?;
        }
        let Stage::Used(journal) = &mut self.stage else {
            return Ok(Some(changes));
        };
        match journal.write(first, &entries, committed) {
            Ok(true) => {
                self.unfiled.extend(changes);
                Ok(None)
            }
            // The file waits for space.
            Ok(false) => Ok(Some(changes)),
            Err(error) => {
                let path = &self.shared.file.path;
                Err(LogError::of("write the journal of", path, error.into()))
            }
        }
    }

    /// Puts all that is not filed into the file, and these changes behind it.
    fn file(
        &mut self,
        changes: Vec<Change>,
        upto: u64,
        committed: Option<Option<LogId>>,
    ) -> Result<(), LogError> {
        if matches!(self.stage, Stage::Used(_)) {
            self.attend(true);
            self.failed()?;
        }
        let mark = match &self.stage {
            Stage::Made(journal) => Some(journal.mark()),
            Stage::Used(journal) => Some(journal.next_mark()),
            Stage::Without(_) | Stage::Making => None,
        };
        let mut all = std::mem::take(&mut self.unfiled);
        all.extend(changes);
        let batch = Batch {
            changes: all,
            upto,
            committed,
            purge: self.purging,
            mark,
        };
        let purged = batch.file(&self.shared)?;
        self.stage = match std::mem::replace(&mut self.stage, Stage::Making) {
            Stage::Made(journal) => Stage::Used(journal),
            Stage::Used(mut journal) => {
                journal.turn();
                Stage::Used(journal)
            }
            stage => stage,
        };
        self.purged(purged);
        Ok(())
    }

    /// Has what is in the journal filed, which goes on in its other segment.
    fn turn(&mut self) -> Result<(), LogError> {
        self.attend(true);
        self.failed()?;
        if let Stage::Used(journal) = &mut self.stage {
            let batch = Batch {
                changes: std::mem::take(&mut self.unfiled),
                upto: self.upto,
                // Not that of now: the file would tell of more than it holds.
                committed: Some(self.committed),
                purge: self.purging,
                mark: Some(journal.next_mark()),
            };
            journal.turn();
            self.helper.start(Job::File(batch));
        }
        Ok(())
    }

    /// Gives the helper something to do, if there is something.
    fn occupy_helper(&mut self) {
        match &self.stage {
            Stage::Without(until)
                if self.groups >= self.helper.disk.groups_without_journal()
                    && until.is_none_or(|until| until <= Instant::now()) =>
            {
                self.stage = Stage::Making;
                self.helper.start(Job::Make);
            }
            Stage::Used(_) if self.purging.is_some() && self.helper.is_idle() => {
                if let Err(error) = self.turn() {
                    self.fail(error, Vec::new());
                }
            }
            _ => {}
        }
    }

    /// Takes what the helper has done, and waits for it if it is to.
    fn attend(&mut self, wait: bool) {
        match self.helper.ended(wait) {
            None => {}
            Some(Ended::Made(Ok(journal))) => self.stage = Stage::Made(journal),
            Some(Ended::Made(Err(error))) => {
                tracing::debug!(
                    "The Raft log {} goes on without a journal, which it has to be fast: {}",
                    self.shared.file.path.display(),
                    Chain(&error)
                );
                self.stage = Stage::Without(Some(Instant::now() + WITHOUT));
            }
            Some(Ended::Filed(Ok(purged))) => self.purged(purged),
            Some(Ended::Filed(Err(error))) => self.fail(error, Vec::new()),
        }
    }

    /// All up to there is purged.
    fn purged(&mut self, upto: Option<LogId>) {
        if upto.is_some() && upto == self.purging {
            self.purging = None;
            for done in self.purgers.drain(..) {
                done(Ok(()));
            }
        }
    }

    /// The committed position, if the file lacks it.
    fn unfiled_committed(&self) -> Option<Option<LogId>> {
        let state = self.shared.state();
        state.is_committed_unfiled().then_some(state.committed)
    }

    fn failed(&self) -> Result<(), LogError> {
        let failed = self.shared.state().failed.clone();
        failed.map_or(Ok(()), Err)
    }

    /// Ends the log: these and all who wait are told, as are those who come.
    fn fail(&mut self, error: LogError, mut waiting: Vec<Done>) {
        self.purging = None;
        waiting.append(&mut self.purgers);
        waiting.extend(self.shared.state().fail(error.clone()));
        for done in waiting {
            done(Err(error.clone().into()));
        }
    }
}
