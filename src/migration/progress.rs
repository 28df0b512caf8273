//! What the steps report, and how they are told to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::MigrationError;
use super::backup::BackupError;
use super::plan::Decision;
use super::record::{HistoryError, Record};
use super::source::Metadata;
use crate::config::rewrite::RewriteError;
use crate::format::digest::Digest;

/// A part of the work that takes time. Several may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The source's own checksums are verified; work is counted in bytes.
    Check,
    /// The backup is made; bytes.
    Backup,
    /// Rows are copied; rows.
    Copy,
    /// The copy is verified; rows.
    Verify,
}

impl Phase {
    /// All, in the order in which they begin.
    pub const ALL: [Self; 4] = [Self::Check, Self::Backup, Self::Copy, Self::Verify];

    /// One word for logs and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Backup => "backup",
            Self::Copy => "copy",
            Self::Verify => "verify",
        }
    }

    /// Whether its work is counted in rows rather than bytes.
    #[must_use]
    pub fn counts_rows(self) -> bool {
        matches!(self, Self::Copy | Self::Verify)
    }
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
    BackedUp(&'a Path),
    /// The target is durable under its name: the commit point.
    Published(&'a Path),
    /// The source's file lacks only bookkeeping, which was rebuilt in memory.
    BookkeepingRebuilt,
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
