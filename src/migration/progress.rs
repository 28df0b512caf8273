//! What the steps report, and how they are told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::MigrationError;
use super::backup::BackupError;
use super::plan::Decision;
use super::raft_log::LogTakenOver;
use super::record::{HistoryError, Record};
use super::source::Metadata;
use crate::config::rewrite::RewriteError;
use crate::format::digest::Digest;

/// A part of the work that takes time. Several may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The legacy Raft log's own checksums are verified; bytes.
    LogCheck,
    /// Every entry of it is read; entries.
    LogRead,
    /// The source's own checksums are verified; bytes.
    Check,
    /// The backup is made; bytes.
    Backup,
    /// Rows are copied; rows.
    Copy,
    /// The copy is verified; rows.
    Verify,
    /// The backup of the legacy Raft log is made; bytes.
    LogBackup,
    /// Its entries are copied; entries.
    LogCopy,
    /// The copy of the log is verified; entries.
    LogVerify,
}

impl Phase {
    /// Its name in logs and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LogCheck => "log-check",
            Self::LogRead => "log-read",
            Self::Check => "check",
            Self::Backup => "backup",
            Self::Copy => "copy",
            Self::Verify => "verify",
            Self::LogBackup => "log-backup",
            Self::LogCopy => "log-copy",
            Self::LogVerify => "log-verify",
        }
    }

    /// What its work is counted in.
    #[must_use]
    pub fn unit(self) -> Unit {
        match self {
            Self::LogCheck | Self::Check | Self::Backup | Self::LogBackup => Unit::Bytes,
            Self::Copy | Self::Verify => Unit::Keys,
            Self::LogRead | Self::LogCopy | Self::LogVerify => Unit::Entries,
        }
    }

    /// Whether it belongs to the Raft log, not to the state machine.
    #[must_use]
    pub fn of_log(self) -> bool {
        self == self.on_log()
    }

    /// The same part of the work, done to the Raft log.
    #[must_use]
    pub fn on_log(self) -> Self {
        match self {
            Self::LogCheck | Self::Check => Self::LogCheck,
            Self::LogRead => Self::LogRead,
            Self::Backup | Self::LogBackup => Self::LogBackup,
            Self::Copy | Self::LogCopy => Self::LogCopy,
            Self::Verify | Self::LogVerify => Self::LogVerify,
        }
    }
}

/// What the work of a phase is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a file.
    Bytes,
    /// Keys of the state machine.
    Keys,
    /// Entries of the Raft log.
    Entries,
}

/// Something that a reader of the output may want to know.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The source is about to be opened.
    Opening,
    /// The source is open, sound, and has this many rows.
    Counted(u64),
    /// Its metadata was read.
    Metadata(&'a Metadata),
    /// The target is about to be made.
    Creating,
    /// Rows are about to be copied.
    Copying,
    /// All rows are in the target, not yet under its name.
    Copied(Digest),
    /// Verification begins, or is left out.
    Verifying(bool),
    /// The counts agree.
    CountVerified(u64),
    /// Rows were compared.
    RowsVerified {
        /// How many of a sample were compared; `None` when all were.
        sampled: Option<u64>,
        /// How many there are.
        of: u64,
    },
    /// The metadata agrees.
    MetadataVerified,
    /// The digests of all rows agree.
    DigestVerified(Digest),
    /// All that was to be verified agrees.
    Verified,
    /// The backup is there to stay.
    BackedUp {
        /// What it is a backup of.
        source: &'a Path,
        /// The backup.
        backup: &'a Path,
    },
    /// A Raft log in a legacy format is about to be taken over.
    LogFound {
        /// The log.
        path: &'a Path,
        /// Its length in bytes.
        bytes: u64,
    },
    /// The Raft log is durable in the current format under its name.
    LogTakenOver(&'a LogTakenOver),
    /// The target is durable under its name: the commit point.
    Published(&'a Path),
    /// The source's file lacks only bookkeeping, which was rebuilt in memory.
    BookkeepingRebuilt(&'a Path),
    /// A phase is done.
    Finished(Phase),
    /// Half-made files of an interrupted run are gone.
    LeftoversRemoved(&'a [PathBuf]),
    /// What is going to be done.
    Decided(&'a Decision),
    /// The history has a new line.
    Recorded(&'a Record),
    /// The history could not be written.
    HistoryFailed(&'a HistoryError),
    /// The record in the database could not be completed.
    RecordFailed(&'a MigrationError),
    /// Old backups were removed.
    BackupsRemoved(&'a [PathBuf]),
    /// Old backups could not be removed.
    PruneFailed(&'a BackupError),
    /// The configuration file says what was done.
    ConfigRewritten(&'a Path),
    /// The configuration file could not be rewritten.
    ConfigFailed(&'a RewriteError),
}

/// Listens to a migration, from several threads.
pub trait Observer: Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
    /// `done` of `total` units of a phase are done; called often.
    fn work(&self, phase: Phase, done: u64, total: u64);
}

/// Has the steps that the Raft log shares with the state machine report as its own.
pub(super) struct OnLog<'a>(pub(super) &'a dyn Observer);

impl Observer for OnLog<'_> {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Finished(phase) => self.0.event(&Event::Finished(phase.on_log())),
            event => self.0.event(event),
        }
    }

    fn work(&self, phase: Phase, done: u64, total: u64) {
        self.0.work(phase.on_log(), done, total);
    }
}

/// The observer and the stop flag, handed to every step.
#[derive(Clone)]
pub struct Control<'a> {
    /// Who listens.
    pub observer: &'a dyn Observer,
    /// Set by whoever wants the migration to end early.
    pub stop: Arc<AtomicBool>,
}

impl Control<'_> {
    /// Whether to stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
