//! The offline tool, `aspen-migrate`: one conversion, either way, by hand.
//!
//! The direction is told from the source's first bytes. No backup is made: the
//! source stays where it is, untouched, and the guide has its user copy it.

mod output;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use self::output::{Output, Shown};
use crate::durable;
use crate::exit::Exit;
use crate::format::Kind;
use crate::layout::{self, DataDir};
use crate::lock::{LockError, LockedDir};
use crate::migration::MigrationError;
use crate::migration::convert::{Request, convert, survey};
use crate::migration::progress::Control;
use crate::migration::record::{Begun, Record, Verified};
use crate::migration::source::identify;

/// Convert an Aspen state machine between redb and SQLite, offline.
///
/// Stop the node first. The source is only ever read; the target appears under
/// its name once it is complete (and verified, with --verify), or not at all.
/// The direction is told from the source: redb becomes SQLite, SQLite becomes redb.
#[derive(Debug, Parser)]
#[command(name = "aspen-migrate", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Path to the source database
    #[arg(long, value_name = "PATH")]
    pub source: PathBuf,
    /// Path to the target database, which must not exist
    #[arg(long, value_name = "PATH")]
    pub target: PathBuf,
    /// Verify the copy: counts, metadata, and a sample of the keys
    #[arg(long)]
    pub verify: bool,
    /// Verify every key and compare checksums of all data (implies --verify)
    #[arg(long)]
    pub full_verify: bool,
    /// Check the source and the disk space, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  Migrate a stopped node to SQLite, verifying everything:
    aspen-migrate --source /var/lib/aspen/state-machine.redb \\
                  --target /var/lib/aspen/state-machine.db --full-verify

  See whether it would work:
    aspen-migrate --source state-machine.redb --target state-machine.db --dry-run

  Go back to redb, keeping what was written since:
    aspen-migrate --source state-machine.db --target state-machine.redb --full-verify

Exit status:
  0 done, 64 usage, 65 wrong data, 66 no source, 73 target exists,
  74 I/O error or disk full, 75 locked (try again), 77 not permitted";

/// Why the tool failed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// A node or another tool is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The conversion failed.
    #[error(transparent)]
    Migration(#[from] MigrationError),
}

impl OfflineError {
    /// The exit code that fits. A tool that was interrupted did not do its work.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Lock(error) => error.exit(),
            Self::Migration(MigrationError::Stopped) => Exit::Locked,
            Self::Migration(error) => error.exit(),
        }
    }
}

/// Converts as told, and reports on standard output and standard error.
#[must_use]
pub fn run(arguments: &Arguments, stop: Arc<AtomicBool>) -> Exit {
    let shown = match (arguments.json, arguments.quiet) {
        (true, _) => Shown::Json,
        (_, true) => Shown::Nothing,
        _ => Shown::Text,
    };
    let output = Output::new(shown, &arguments.source, &arguments.target);
    match convert_files(arguments, &output, stop) {
        Ok(record) => {
            output.summary(&record, arguments.dry_run);
            Exit::Ok
        }
        Err(error) => {
            output.failure(&error);
            error.exit()
        }
    }
}

fn convert_files(
    arguments: &Arguments,
    output: &Output,
    stop: Arc<AtomicBool>,
) -> Result<Record, OfflineError> {
    let (source, target) = (arguments.source.as_path(), arguments.target.as_path());
    let (_, identity) = identify(source).map_err(MigrationError::from)?;
    let target_kind = match identity.kind {
        Kind::Sqlite => Kind::Redb,
        _ => Kind::Sqlite,
    };
    if target.symlink_metadata().is_ok() {
        return Err(MigrationError::TargetExists(target.to_owned()).into());
    }
    output.begin(target_kind);
    let control = Control {
        observer: output,
        stop,
    };
    let begun = Begun::now(concat!("aspen-migrate ", env!("CARGO_PKG_VERSION")));
    let request = Request {
        source,
        target,
        target_kind,
        backup: None,
        besides: 0,
        verify: match (arguments.full_verify, arguments.verify) {
            (true, _) => Verified::Full,
            (_, true) => Verified::Sample,
            _ => Verified::None,
        },
        begun: &begun,
    };
    if arguments.dry_run {
        return Ok(survey(&request, &control)?);
    }
    let _locks = lock_data_directories(source, target)?;
    let converted = convert(&request, &control)?;
    let published = converted.publish(target, false, &control);
    let (_, record, _) = published.map_err(|error| match target.symlink_metadata() {
        Ok(_) => MigrationError::TargetExists(target.to_owned()),
        Err(_) => error,
    })?;
    Ok(record)
}

/// Takes the node's lock in every data directory that is touched. A directory
/// of which this user may only read the source needs none: no node of this
/// user runs there, and the lock on the source keeps the others off.
fn lock_data_directories(source: &Path, target: &Path) -> Result<Vec<LockedDir>, OfflineError> {
    // The file that is read, and its directory, may be behind a symbolic link.
    let file = source.canonicalize();
    let source = file.as_deref().unwrap_or(source);
    let mut dirs: Vec<PathBuf> = [source, target]
        .into_iter()
        .filter(|path| is_in_data_directory(path))
        .filter_map(|path| durable::parent(path).canonicalize().ok())
        .collect();
    dirs.sort_unstable();
    dirs.dedup();
    let mut locks = Vec::new();
    for dir in dirs {
        let readonly = nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK).is_err();
        let dir = DataDir::new(dir);
        if !(readonly && dir.lock().symlink_metadata().is_err()) {
            locks.push(LockedDir::take(dir, "aspen-migrate")?);
        }
    }
    Ok(locks)
}

fn is_in_data_directory(path: &Path) -> bool {
    let known = [layout::STATE_MACHINE_REDB, layout::STATE_MACHINE_SQLITE];
    let dir = durable::parent(path);
    path.file_name()
        .is_some_and(|name| known.iter().any(|known| name == *known))
        || [layout::LOCK, layout::RAFT_LOG]
            .iter()
            .chain(&known)
            .any(|name| dir.join(name).exists())
}
