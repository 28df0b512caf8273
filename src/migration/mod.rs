//! From whatever is on disk to storage that may be opened.
//!
//! Inputs: the data directory, whose lock the caller holds, and the backend
//! that the configuration wants. [`prepare`] does, in this order:
//!
//! 1. [`inspect`]: what is there. Reads only.
//! 2. Remove what an interrupted run left half-made: reserved names only.
//! 3. [`plan`]: decide. Pure.
//! 4. [`raft_log`]: check a legacy Raft log from end to end. Reads only.
//! 5. [`convert`](mod@convert): check, back up, copy, verify, into a temporary file.
//! 6. Take the Raft log over: back up, copy, verify, rename. A commit point of
//!    its own: the same log in the current file format, which fits the state
//!    machine before 7 as well as after it.
//! 7. Publish: rename. **The commit point.** Before it the source is the data,
//!    after it the copy is.
//! 8. Retire the source: the durable backup is what is left of it.
//! 9. Record: a line in the history; old backups go.
//! 10. Rewrite the configuration.
//!
//! Safe to die at any point: before 6 nothing has changed that anybody reads,
//! and the next start begins again; between 6 and 7 it finds a log that needs
//! nothing; after 7 the copy itself says from which source it was made, so that
//! the next start finds 8 to 10 undone and does them. Each of these is a no-op
//! where it was done. There is no journal file that could disagree with the
//! directory: reserved names and the record in the copy are the journal.
//!
//! All that is likely to fail or to take long comes before 6, for log and state
//! machine together, so that a start that fails or is stopped has changed
//! neither; from 6 to 7 nothing stops it.
//!
//! Storage opens only what [`Prepared`] names, so that data that should have
//! been migrated cannot be opened by mistake.

pub mod backup;
pub mod convert;
pub mod copy;
pub mod inspect;
pub mod overlay;
pub mod plan;
pub mod preflight;
pub mod progress;
pub mod raft_log;
pub mod record;
pub mod refusal;
pub mod source;
pub mod target;

mod error;
mod finish;
mod temporary;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::convert::{Converted, Request, convert};
use self::inspect::Inventory;
use self::plan::{Decision, decide};
use self::progress::{Control, Event};
use self::raft_log::Examined;
use self::record::{Begun, Record, Verified};
use self::refusal::Refused;
use self::temporary::Temporary;
use crate::config::settings::{Backend, BackupKind, Verify};
use crate::durable;
use crate::format::Kind;
use crate::layout::DataDir;
use crate::lock::LockedDir;

pub use self::error::MigrationError;

/// Bytes that an empty state machine takes at most: redb makes 1.6 MB of it.
const EMPTY_BYTES: u64 = 4 << 20;

/// What a start wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configured backend.
    pub backend: Backend,
    /// How the source is kept.
    pub backup: BackupKind,
    /// How many backups are kept, at least.
    pub keep_backups: u32,
    /// How the copy is verified.
    pub verify: Verify,
    /// The configuration file to rewrite, if one was read.
    pub config_file: Option<PathBuf>,
    /// Program and version, for the record.
    pub program: String,
}

/// Storage that may be opened.
#[derive(Debug)]
pub struct Prepared {
    storage: Storage,
    /// The migration that made it, in this start or an earlier one.
    pub record: Option<Record>,
    /// Whether it was this start.
    pub migrated_now: bool,
}

/// Where the state machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In this SQLite file.
    Sqlite(PathBuf),
    /// In this redb file.
    Redb(PathBuf),
    /// In memory; it begins with the snapshot in this file, if it is there.
    Memory(PathBuf),
}

impl Prepared {
    /// Where the state machine is.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Does what the data directory needs before its storage may be opened.
///
/// # Errors
/// When a step fails, the decision is to refuse, or `control` says to stop.
/// Before the commit point everything is then as it was found.
pub fn prepare(
    locked: &LockedDir,
    options: &Options,
    control: &Control<'_>,
) -> Result<Prepared, MigrationError> {
    let dir = locked.dir();
    let inventory = inspect::inspect(dir, options.backend)?;
    for path in &inventory.leftovers {
        durable::remove(path)?;
    }
    if let Some(path) = inventory.leftovers.first() {
        durable::fsync_parent(path)?;
        control
            .observer
            .event(&Event::LeftoversRemoved(&inventory.leftovers));
    }
    let decision = decide(options.backend, &inventory);
    if let Decision::Refuse(refusal) = decision {
        return Err(Refused::explain(refusal, dir, &inventory).into());
    }
    control.observer.event(&Event::Decided(&decision));
    let legacy_log = inventory.log.as_ref().filter(|log| log.is_legacy());
    let log = legacy_log.map(|identity| {
        let (path, bytes) = (&dir.raft_log(), identity.length);
        control.observer.event(&Event::LogFound { path, bytes });
        raft_log::examine(path, options.backup, control)
    });
    let mut prepared = carry_out(
        decision,
        dir,
        &inventory,
        log.transpose()?,
        options,
        control,
    )?;
    if let (Storage::Sqlite(path), Some(record)) = (&prepared.storage, prepared.record.take()) {
        prepared.record = Some(finish::finish(dir, path, record, options, control));
    }
    Ok(prepared)
}

/// Does steps 5 to 8, or what was decided instead. A log whose state machine is
/// not converted now is taken over once all else has succeeded.
fn carry_out(
    decision: Decision,
    dir: &DataDir,
    inventory: &Inventory,
    log: Option<Examined>,
    options: &Options,
    control: &Control<'_>,
) -> Result<Prepared, MigrationError> {
    let (redb, sqlite) = (dir.redb(), dir.sqlite());
    let begun = Begun::now(&options.program);
    let (log, log_alone) = match decision {
        Decision::Migrate | Decision::UpgradeRedb => (log, None),
        _ => (None, log),
    };
    log_alone.as_ref().map_or(Ok(()), Examined::require_room)?;
    let earlier = inventory
        .sqlite
        .as_ref()
        .and_then(|file| file.record.clone());
    let mut prepared = Prepared {
        storage: match options.backend {
            Backend::Sqlite => Storage::Sqlite(sqlite.clone()),
            Backend::Redb => Storage::Redb(redb.clone()),
            Backend::Memory => Storage::Memory(dir.memory_snapshot()),
        },
        record: None,
        migrated_now: false,
    };
    match decision {
        Decision::Memory
        | Decision::Refuse(_)
        | Decision::OpenRedb {
            unlink_first: false,
        } => {}
        Decision::FreshRedb => fresh(&redb, Kind::Redb)?,
        Decision::OpenRedb { unlink_first: true } => unlink(&redb, control)?,
        Decision::UpgradeRedb => upgrade(&redb, log, &begun, options, control)?,
        Decision::FreshSqlite => fresh(&sqlite, Kind::Sqlite)?,
        Decision::OpenSqlite => prepared.record = earlier,
        Decision::Migrate => {
            let record = migrate(&redb, &sqlite, log, &begun, options, control)?;
            prepared.record = Some(record);
            prepared.migrated_now = true;
        }
        Decision::FinishRetiring => {
            let record = earlier.map(|record| finish::retire_source(dir, record, control));
            prepared.record = record.transpose()?;
        }
    }
    if let Some(log) = log_alone {
        take_over(log, &begun, options, control)?;
    }
    Ok(prepared)
}

/// Copies `redb` into `sqlite` and retires it.
fn migrate(
    redb: &Path,
    sqlite: &Path,
    log: Option<Examined>,
    begun: &Begun,
    options: &Options,
    control: &Control<'_>,
) -> Result<Record, MigrationError> {
    let request = Request {
        source: redb,
        target: sqlite,
        target_kind: Kind::Sqlite,
        backup: Some(options.backup),
        verify: verified(options.verify),
        besides: log.as_ref().map_or(0, Examined::needed),
        begun,
    };
    let (converted, control) = convert_beside(&request, log, options, control)?;
    let (source, record, backup) = converted.publish(sqlite, false, &control)?;
    let becomes = backup
        .is_none()
        .then(|| backup::name_for(redb, None, begun.at()));
    backup::retire(redb, becomes.as_deref())?;
    drop(source);
    Ok(record)
}

/// Replaces a redb file of format v2 by one of v3 with the same rows.
fn upgrade(
    redb: &Path,
    log: Option<Examined>,
    begun: &Begun,
    options: &Options,
    control: &Control<'_>,
) -> Result<(), MigrationError> {
    let request = Request {
        source: redb,
        target: redb,
        target_kind: Kind::Redb,
        backup: Some(options.backup),
        verify: verified(options.verify),
        besides: log.as_ref().map_or(0, Examined::needed),
        begun,
    };
    let (converted, control) = convert_beside(&request, log, options, control)?;
    converted.publish(redb, true, &control)?;
    Ok(())
}

/// Converts the state machine, then takes `log` over: all that is left is to
/// publish, with a control that no longer stops once the log has changed.
fn convert_beside<'a>(
    request: &Request<'_>,
    log: Option<Examined>,
    options: &Options,
    control: &Control<'a>,
) -> Result<(Converted, Control<'a>), MigrationError> {
    let converted = convert(request, control)?;
    let mut control = control.clone();
    if let Some(log) = log {
        take_over(log, request.begun, options, &control)?;
        control.stop = Arc::default();
    }
    Ok((converted, control))
}

/// Takes `log` over. Older backups of it go at once, if it comes to that: no
/// later start knows any more which one the log was made from.
fn take_over(
    log: Examined,
    begun: &Begun,
    options: &Options,
    control: &Control<'_>,
) -> Result<(), MigrationError> {
    let done = log.take_over(begun.at(), control)?;
    control.observer.event(&Event::LogTakenOver(&done));
    finish::prune_backups(&done.path, &done.backup, options, control);
    Ok(())
}

fn verified(verify: Verify) -> Verified {
    match verify {
        Verify::Full => Verified::Full,
        Verify::Sample => Verified::Sample,
    }
}

/// Makes an empty state machine.
fn fresh(path: &Path, kind: Kind) -> Result<(), MigrationError> {
    make(path, false, EMPTY_BYTES, |temporary| {
        match kind {
            Kind::Sqlite => target::sqlite::create_empty(temporary.path())?,
            _ => target::redb::create_empty(temporary.path(), temporary.file())?,
        }
        Ok(())
    })
}

/// Gives a file that shares its blocks with a backup blocks of its own.
fn unlink(path: &Path, control: &Control<'_>) -> Result<(), MigrationError> {
    let (file, identity) = source::identify(path)?;
    make(path, true, identity.length, |temporary| {
        temporary.give_to_owner_of(&file);
        let (to, name) = (temporary.file(), temporary.path());
        let copied = durable::copy(&file, to, name, &mut |_| match control.stopped() {
            true => Err(std::io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        });
        match copied {
            Err(_) if control.stopped() => Err(MigrationError::Stopped),
            copied => Ok(copied.map(|_| ())?),
        }
    })
}

/// Has `fill` make a file of `bytes` at most, and gives it the name `path`.
fn make(
    path: &Path,
    replace: bool,
    bytes: u64,
    fill: impl FnOnce(&Temporary) -> Result<(), MigrationError>,
) -> Result<(), MigrationError> {
    let made = (|| {
        let mut temporary = Temporary::create(path)?;
        fill(&temporary)?;
        durable::fsync(temporary.file(), temporary.path())?;
        temporary.publish(path, replace)?;
        Ok(durable::fsync_parent(path)?)
    })();
    made.map_err(|error: MigrationError| error.seen_from(path, bytes))
}
