//! The steps after the commit point. Each is done again at every start until
//! it has nothing left to do, and none of them stops a node whose data is
//! already safe: what fails is reported, loudly, and tried again next time.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::MigrationError;
use super::backup;
use super::progress::{Control, Event};
use super::record::{self, Record};
use super::source::identify;
use crate::config::rewrite::{Migrated, Outcome, record_migration};
use crate::config::settings::Backend;
use crate::durable;
use crate::format::sqlite::{self, Access};
use crate::layout::DataDir;

use super::Options;

/// Retires a source whose copy an earlier run, or `aspen-migrate`, published,
/// and answers the record with the backup in it.
///
/// The backup is recorded before the source goes: afterwards nothing tells an
/// identical copy from one that is damaged in the middle.
///
/// # Errors
/// When another process holds the source, it cannot be moved, or `control`
/// says to stop.
pub(super) fn retire_source(
    dir: &DataDir,
    mut record: Record,
    control: &Control<'_>,
) -> Result<Record, MigrationError> {
    let redb = dir.redb();
    let (file, _) = identify(&redb)?;
    super::source::hold(&redb, &file)?;
    // Whoever renamed the copy may have died before that was durable.
    durable::fsync_parent(&redb)?;
    let found = backup::find(&redb, &file, control, &|| control.stopped())?;
    let path = match &found {
        Some(backup) => backup.path.clone(),
        None => backup::name_for(&redb, record.backup.as_deref(), OffsetDateTime::now_utc()),
    };
    if record.backup.as_ref() != Some(&path) {
        record.backup = Some(path.clone());
        update(&dir.sqlite(), &record, control);
    }
    backup::retire(&redb, found.is_none().then_some(path.as_path()))?;
    control.observer.event(&Event::BackedUp {
        source: &redb,
        backup: &path,
    });
    Ok(record)
}

/// Completes the record, the history, the retention and the configuration.
pub(super) fn finish(
    dir: &DataDir,
    database: &Path,
    record: Record,
    options: &Options,
    control: &Control<'_>,
) -> Record {
    let observer = control.observer;
    let record = with_backup(dir, database, record, control);
    match record::append_once(&dir.history(), &record) {
        Ok(true) => observer.event(&Event::Recorded(&record)),
        Ok(false) => {}
        Err(error) => observer.event(&Event::HistoryFailed(&error)),
    }
    let current = record.backup.clone().unwrap_or_default();
    prune_backups(&dir.redb(), &current, options, control);
    if let Some(file) = &options.config_file {
        match record_migration(file, &migrated(&record)) {
            Ok(Outcome::Unchanged) => {}
            Ok(Outcome::Written) => observer.event(&Event::ConfigRewritten(file)),
            Err(error) => observer.event(&Event::ConfigFailed(&error)),
        }
    }
    record
}

/// Removes the backups of `source` beyond those to keep; `current` stays.
pub(super) fn prune_backups(
    source: &Path,
    current: &Path,
    options: &Options,
    control: &Control<'_>,
) {
    let now = OffsetDateTime::now_utc();
    match backup::prune(source, options.keep_backups, current, now) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => control.observer.event(&Event::BackupsRemoved(&removed)),
        Err(error) => control.observer.event(&Event::PruneFailed(&error)),
    }
}

/// A record that could not be completed when the source was retired, on a full
/// disk perhaps, is completed as soon as it can be.
fn with_backup(
    dir: &DataDir,
    database: &Path,
    mut record: Record,
    control: &Control<'_>,
) -> Record {
    if record.backup.is_none()
        && let Some(path) = backup_of(&dir.redb(), &record)
    {
        record.backup = Some(path);
        update(database, &record, control);
    }
    record
}

fn update(database: &Path, record: &Record, control: &Control<'_>) {
    let updated = sqlite::open(database, Access::Write)
        .map_err(MigrationError::from)
        .and_then(|connection| {
            record::update(&connection, record)
                .map_err(|source| MigrationError::record(database, source))
        });
    if let Err(error) = updated {
        control.observer.event(&Event::RecordFailed(&error));
    }
}

fn backup_of(redb: &Path, record: &Record) -> Option<PathBuf> {
    let backups = backup::list(redb).ok()?;
    backups.into_iter().map(|(_, path)| path).find(|path| {
        identify(path).is_ok_and(|(_, found)| found.fingerprint == record.source_fingerprint)
    })
}

fn migrated(record: &Record) -> Migrated {
    let program = record.program.rsplit(' ').next().unwrap_or_default();
    Migrated {
        from: match record.from.as_str() {
            "redb" => Backend::Redb,
            _ => Backend::Sqlite,
        },
        to: Backend::Sqlite,
        at: record.completed_at.clone(),
        fingerprint: record.source_fingerprint.clone(),
        keys: record.keys,
        last_applied: record.last_applied.map(|id| id.index),
        backup: record.backup.clone().unwrap_or_default(),
        version: program.to_owned(),
    }
}
