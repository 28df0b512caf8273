//! Taking over a legacy Raft log: a file of redb's format v2 becomes one of v3
//! that holds the same entries, byte for byte, and the same metadata.
//!
//! 1. `examine`: lock the log and open it read-only; verify its own
//!    checksums; read every entry and every record. Writes nothing, and is done
//!    before anything else is written, so that a log that cannot be taken over
//!    stops a start that has changed nothing.
//! 2. `Examined::take_over`: back the log up, copy it into a temporary file,
//!    read that back and compare it.
//! 3. Publish: rename over the log, sync the directory.
//!
//! Safe to die at any point: until the rename the log is as it was, and what a
//! killed run leaves has reserved names or is a backup that the next run finds;
//! after it the log is in the current format, which the next start leaves
//! alone. A failure or a stop before the rename removes what this run made.
//!
//! Invariants: the legacy file is never written to, so that a backup that is a
//! hard link stays what it was; an entry is only ever copied as the bytes that
//! it had, and only if they mean exactly one entry, at that index, right after
//! the one before. Where the log begins, and whether it fits the state machine,
//! is for whoever opens both.
//!
//! Not carried over: the table of snapshots, which is derived data and wrong in
//! every legacy file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::MigrationError;
use super::backup;
use super::convert::{NewBackup, Unpublished, refuse};
use super::preflight;
use super::progress::{Control, Event, OnLog, Phase};
use super::source::{Enough, Holds, Source};
use super::target::TargetError;
use super::target::raft_log::{self, LogContents, LogWriter};
use super::temporary::Temporary;
use super::watch;
use crate::config::settings::BackupKind;
use crate::durable;
use crate::exit::Exit;
use crate::format::digest::Digester;
use crate::format::entry::{COMMITTED, Entry, LAST_PURGED, VOTE, Vote};
use crate::format::record::{self, LogId, RecordError};

/// Fixed part of a log's size: redb makes 1.6 MB of an empty one.
const FIXED_BYTES: u64 = 2 << 20;
/// Entries between two looks at a request to stop, and two progress reports.
const ENTRIES_PER_REPORT: u64 = 1_000;

/// Why a legacy Raft log is not taken over. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RaftLogError {
    /// An entry does not decode.
    #[error("entry {index} of the Raft log {} is damaged; {WAY_OUT}", path.display())]
    Entry {
        /// The log.
        path: PathBuf,
        /// The entry.
        index: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// An entry decodes, but not from the bytes that it would be encoded to.
    #[error("entry {index} of the Raft log {} is encoded as no node does it; {WAY_OUT}", path.display())]
    Foreign {
        /// The log.
        path: PathBuf,
        /// The entry.
        index: u64,
    },
    /// An entry says that it stands somewhere else.
    #[error("entry {index} of the Raft log {} says that it is entry {says}; {WAY_OUT}", path.display())]
    Misplaced {
        /// The log.
        path: PathBuf,
        /// The entry.
        index: u64,
        /// The index that it names.
        says: u64,
    },
    /// Entries are missing between others.
    #[error("the Raft log {} goes from entry {last} to entry {next}: those between are missing; {WAY_OUT}", path.display())]
    Gap {
        /// The log.
        path: PathBuf,
        /// The last entry before the gap.
        last: u64,
        /// The first entry behind it.
        next: u64,
    },
    /// A record of the metadata does not decode.
    #[error("the metadata of the Raft log {} is damaged; {WAY_OUT}", path.display())]
    Record {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        source: RecordError,
    },
}

/// What an operator can do about a damaged log.
const WAY_OUT: &str = "it was left as it is: restore it from a backup, or, in a cluster, remove \
                       this node and add it again with an empty data directory";

impl RaftLogError {
    /// The log.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Entry { path, .. }
            | Self::Foreign { path, .. }
            | Self::Misplaced { path, .. }
            | Self::Gap { path, .. }
            | Self::Record { path, .. } => path,
        }
    }

    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        Exit::Data
    }
}

/// What was done to a log.
#[derive(Debug)]
pub struct LogTakenOver {
    /// The log.
    pub path: PathBuf,
    /// The legacy file.
    pub backup: PathBuf,
    /// How many entries it has.
    pub entries: u64,
    /// From opening it to its name, without what was done to the state machine between.
    pub took: Duration,
}

/// A legacy log that can be taken over, open and locked.
pub(super) struct Examined {
    source: Source,
    backup: BackupKind,
    contents: LogContents,
    needed: u64,
    took: Duration,
}

/// Does step 1 for the log `path`, which is to be backed up as `backup` says.
///
/// # Errors
/// When the log is in use, damaged or something else, or `control` says to stop.
pub(super) fn examine(
    path: &Path,
    backup: BackupKind,
    control: &Control<'_>,
) -> Result<Examined, MigrationError> {
    let began = Instant::now();
    let on_log = OnLog(control.observer);
    let control = Control {
        observer: &on_log,
        stop: control.stop.clone(),
    };
    let examined = (|| {
        let mut source = watch::open(path, &control)?;
        watch::check(&mut source, Holds::RaftLog, &control)?;
        let (contents, bytes) = read(&source, &control)?;
        let copy = preflight::redb_at_most(contents.entries.rows, bytes) + FIXED_BYTES;
        Ok(Examined {
            needed: copy + preflight::backup_bytes(&source, Some(backup)),
            source,
            backup,
            contents,
            took: began.elapsed(),
        })
    })();
    examined.map_err(|error: MigrationError| error.seen_from(path, 0))
}

/// Everything that is carried over, as it will be written, and how many bytes
/// the entries have.
fn read(source: &Source, control: &Control<'_>) -> Result<(LogContents, u64), MigrationError> {
    let mut records = BTreeMap::new();
    for (name, bytes) in source.log_records()? {
        let record = carried(&name, bytes).map_err(|error| RaftLogError::Record {
            path: source.path().to_owned(),
            source: error,
        })?;
        records.extend(record.map(|bytes| (name, bytes)));
    }
    let (mut digester, mut bytes, mut last) = (Digester::default(), 0, None);
    let total = source.entries()?;
    scan(source, Phase::LogRead, total, control, |index, entry| {
        check(source.path(), last, index, entry)?;
        last = Some(index);
        bytes += (size_of::<u64>() + entry.len()) as u64;
        raft_log::add(&mut digester, index, entry);
        Ok(())
    })?;
    let entries = digester.finish();
    control.observer.event(&Event::Finished(Phase::LogRead));
    Ok((LogContents { entries, records }, bytes))
}

/// A record as it is carried over: a position is bare where there is one, and
/// nothing where a legacy node wrote that there is none.
fn carried(name: &str, bytes: Vec<u8>) -> Result<Option<Vec<u8>>, RecordError> {
    match name {
        VOTE => Vote::decode(&bytes).map(|_| Some(bytes)),
        COMMITTED => position(COMMITTED, &bytes),
        LAST_PURGED => position(LAST_PURGED, &bytes),
        _ => Ok(Some(bytes)),
    }
}

fn position(name: &'static str, bytes: &[u8]) -> Result<Option<Vec<u8>>, RecordError> {
    let id: Option<LogId> = match record::position(name, bytes) {
        Ok(id) => Some(id),
        Err(error) => record::last_applied(bytes).map_err(|_| error)?,
    };
    id.map(|id| record::encode_position(name, id)).transpose()
}

/// Whether `bytes` are the entry at `index`, which follows the one at `last`.
fn check(path: &Path, last: Option<u64>, index: u64, bytes: &[u8]) -> Result<(), RaftLogError> {
    let path = || path.to_owned();
    if let Some(last) = last.filter(|last| last.checked_add(1) != Some(index)) {
        let (path, next) = (path(), index);
        return Err(RaftLogError::Gap { path, last, next });
    }
    let damaged = |source| RaftLogError::Entry {
        path: path(),
        index,
        source,
    };
    let entry = Entry::decode(bytes).map_err(damaged)?;
    let says = entry.log_id.index;
    if says != index {
        let path = path();
        return Err(RaftLogError::Misplaced { path, index, says });
    }
    match entry.encode().map_err(damaged)? == bytes {
        true => Ok(()),
        false => Err(RaftLogError::Foreign {
            path: path(),
            index,
        }),
    }
}

/// Hands every entry to `sink`, until it fails or `control` says to stop, and
/// reports this as the work of `phase` on `total` entries.
fn scan(
    source: &Source,
    phase: Phase,
    total: u64,
    control: &Control<'_>,
    mut sink: impl FnMut(u64, &[u8]) -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    control.observer.work(phase, 0, total);
    let (mut failed, mut done) = (None, 0);
    source.scan_entries(&mut |index, entry| {
        done += 1;
        let result = sink(index, entry).and_then(|()| tick(phase, done, total, control));
        result.map_err(|error| {
            failed = Some(error);
            Enough
        })
    })?;
    failed.map_or(Ok(()), Err)
}

/// Reports progress now and then, and fails once `control` says to stop.
fn tick(phase: Phase, done: u64, total: u64, control: &Control<'_>) -> Result<(), MigrationError> {
    if done.is_multiple_of(ENTRIES_PER_REPORT) || done == total {
        control.observer.work(phase, done, total);
        if control.stopped() {
            return Err(MigrationError::Stopped);
        }
    }
    Ok(())
}

impl Examined {
    /// Bytes that backup and copy take at most.
    pub(super) fn needed(&self) -> u64 {
        self.needed
    }

    /// Fails where there is no room for them.
    pub(super) fn require_room(&self) -> Result<(), MigrationError> {
        let dir = durable::parent(self.source.path());
        refuse(preflight::room_in(dir, self.needed)?)
    }

    /// Does steps 2 and 3, with a backup named after the time `at`.
    ///
    /// # Errors
    /// When anything fails or `control` says to stop; nothing has changed then.
    pub(super) fn take_over(
        self,
        at: time::OffsetDateTime,
        control: &Control<'_>,
    ) -> Result<LogTakenOver, MigrationError> {
        let (path, needed) = (self.source.path().to_owned(), self.needed);
        let on_log = OnLog(control.observer);
        let control = Control {
            observer: &on_log,
            stop: control.stop.clone(),
        };
        self.run(at, &control)
            .map_err(|error| error.seen_from(&path, needed))
    }

    fn run(
        self,
        at: time::OffsetDateTime,
        control: &Control<'_>,
    ) -> Result<LogTakenOver, MigrationError> {
        let began = Instant::now();
        let (path, file) = (self.source.path(), self.source.file());
        let unhalted = AtomicBool::new(false);
        let backup = backup::make(path, file, self.backup, at, control, &unhalted)?;
        let done = |took| LogTakenOver {
            path: path.to_owned(),
            backup: backup.path.clone(),
            entries: self.contents.entries.rows,
            took,
        };
        let backup = NewBackup(Some(backup.clone()));
        let temporary = self.copy(control)?;
        self.verify(&temporary, control)?;
        durable::fsync(temporary.file(), temporary.path())?;
        let unpublished = Unpublished {
            backup: Some(backup),
            temporary,
        };
        unpublished.publish(path, path, true, control)?;
        Ok(done(self.took + began.elapsed()))
    }

    fn copy(&self, control: &Control<'_>) -> Result<Temporary, MigrationError> {
        let total = self.contents.entries.rows;
        let temporary = Temporary::create(self.source.path())?;
        temporary.give_to_owner_of(self.source.file());
        let mut writer =
            LogWriter::create(temporary.path(), temporary.file(), &self.contents.records)?;
        let mut copied = 0;
        scan(
            &self.source,
            Phase::LogCopy,
            total,
            control,
            |index, entry| {
                copied += 1;
                #[cfg(debug_assertions)]
                super::copy::dawdle(copied, total, control);
                Ok(writer.push(index, entry)?)
            },
        )?;
        writer.finish()?;
        // redb gave the lock back when it closed the file.
        temporary.lock()?;
        control.observer.event(&Event::Finished(Phase::LogCopy));
        Ok(temporary)
    }

    fn verify(&self, temporary: &Temporary, control: &Control<'_>) -> Result<(), MigrationError> {
        let total = self.contents.entries.rows;
        control.observer.work(Phase::LogVerify, 0, total);
        let tick = |done| match tick(Phase::LogVerify, done, total, control) {
            Ok(()) => Ok(()),
            Err(_) => Err(TargetError::Stopped),
        };
        raft_log::verify(temporary.path(), temporary.file(), &self.contents, &tick)?;
        temporary.lock()?;
        control.observer.event(&Event::Finished(Phase::LogVerify));
        Ok(())
    }
}
