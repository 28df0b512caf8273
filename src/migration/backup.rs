//! The source's backup: bit-identical, durable, one for each source.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use super::progress::{Control, Event, Phase};
use super::source::identify;
use crate::config::settings::BackupKind;
use crate::durable::{self, COPY_CHUNK, DurableError};
use crate::exit::Exit;
use crate::layout;

/// The guide's `date +%Y%m%d-%H%M%S`, in UTC.
const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]-[hour][minute][second]");
/// No backup is removed before it is this old (the guide's advice).
pub const KEEP_AT_LEAST: Duration = Duration::days(7);

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file operation failed.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// The directory or an older backup cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Told to stop.
    #[error("stopped")]
    Stopped,
}

impl BackupError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Durable(error) => error.exit(),
            Self::Read { source, .. } => Exit::of_io(source),
            Self::Stopped => Exit::Ok,
        }
    }
}

/// A backup under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Where it is.
    pub path: PathBuf,
    /// Whether this run made it; an earlier one was found otherwise.
    pub new: bool,
}

/// The time stamp in a backup's name; `None` for other files.
fn stamp_of(source: &Path, candidate: &Path) -> Option<OffsetDateTime> {
    let prefix = format!("{}{}", source.file_name()?.to_str()?, layout::BACKUP_INFIX);
    let stamp = candidate.file_name()?.to_str()?.strip_prefix(&prefix)?;
    PrimitiveDateTime::parse(stamp, STAMP)
        .ok()
        .map(PrimitiveDateTime::assume_utc)
}

/// All backups of `source` by their names, newest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(source: &Path) -> Result<Vec<(OffsetDateTime, PathBuf)>, BackupError> {
    let dir = durable::parent(source);
    let read = |error| BackupError::Read {
        path: dir.to_owned(),
        source: error,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if let Some(at) = stamp_of(source, &path) {
            found.push((at, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A free name for a backup made at `at`.
fn free_name(source: &Path, at: OffsetDateTime) -> PathBuf {
    let mut at = at;
    loop {
        let stamp = at
            .format(STAMP)
            .unwrap_or_else(|_| at.unix_timestamp().to_string());
        let path = layout::with_suffix(source, &format!("{}{stamp}", layout::BACKUP_INFIX));
        if path.symlink_metadata().is_err() {
            return path;
        }
        // Two sources within one second: the names stay unique and sorted.
        at += Duration::SECOND;
    }
}

/// Bytes that a backup of `file` will take on disk, holes not counted.
#[must_use]
pub fn bytes_needed(about: &std::fs::Metadata) -> u64 {
    (about.blocks() * 512).min(about.len())
}

/// Makes the backup of `source`, or finds the one that an earlier run or the
/// operator made, which counts only after a comparison byte by byte.
///
/// `halt` is set when the migration has failed elsewhere.
///
/// # Errors
/// When it cannot be made; nothing half-made is left then.
pub fn make(
    source: &Path,
    file: &File,
    kind: BackupKind,
    at: OffsetDateTime,
    control: &Control<'_>,
    halt: &AtomicBool,
) -> Result<Backup, BackupError> {
    let stopped = || control.stopped() || halt.load(Ordering::Relaxed);
    let length = file.metadata().map_or(0, |about| about.len());
    control.observer.work(Phase::Backup, 0, length);
    let done = (|| {
        if let Some(backup) = find(source, file, control, &stopped)? {
            return Ok(backup);
        }
        let path = free_name(source, at);
        match kind {
            BackupKind::Link => durable::hard_link(source, &path)?,
            BackupKind::Copy => copy(source, file, &path, control, &stopped)?,
        }
        durable::fsync_parent(&path)?;
        Ok(Backup { path, new: true })
    })();
    match done {
        Ok(backup) => {
            control.observer.event(&Event::Finished(Phase::Backup));
            Ok(backup)
        }
        Err(_) if stopped() => Err(BackupError::Stopped),
        Err(error) => Err(error),
    }
}

fn copy(
    source: &Path,
    file: &File,
    path: &Path,
    control: &Control<'_>,
    stopped: &dyn Fn() -> bool,
) -> Result<(), BackupError> {
    let temporary = layout::temporary_backup(source);
    durable::remove(&temporary)?;
    let target = durable::create_new(&temporary)?;
    let total = file.metadata().map_or(0, |about| about.len());
    let mut done = 0;
    let made = durable::copy(file, &target, &temporary, &mut |bytes| {
        done += bytes;
        control.observer.work(Phase::Backup, done, total);
        if stopped() {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    })
    .and_then(|_| durable::fsync(&target, &temporary))
    .and_then(|()| durable::rename_new(&temporary, path));
    if made.is_err() {
        durable::remove(&temporary)?;
    }
    Ok(made?)
}

/// A backup with the same content as `file`, byte for byte, made durable.
///
/// # Errors
/// When a candidate cannot be read, or `stopped` says so.
pub(crate) fn find(
    source: &Path,
    file: &File,
    control: &Control<'_>,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<Backup>, BackupError> {
    let Ok((_, wanted)) = identify(source) else {
        return Ok(None);
    };
    for (_, path) in list(source)? {
        let Ok((candidate, identity)) = identify(&path) else {
            continue;
        };
        if identity.fingerprint == wanted.fingerprint {
            let same = same_bytes(file, &candidate, control, stopped);
            let same = same.map_err(|error| match stopped() {
                true => BackupError::Stopped,
                false => BackupError::Read {
                    path: path.clone(),
                    source: error,
                },
            })?;
            if same {
                // A copy by hand may still be in memory only.
                durable::fsync(&candidate, &path)?;
                return Ok(Some(Backup { path, new: false }));
            }
        }
    }
    Ok(None)
}

fn same_bytes(
    a: &File,
    b: &File,
    control: &Control<'_>,
    stopped: &dyn Fn() -> bool,
) -> io::Result<bool> {
    let (about_a, about_b) = (a.metadata()?, b.metadata()?);
    if (about_a.dev(), about_a.ino()) == (about_b.dev(), about_b.ino()) {
        return Ok(true);
    }
    let length = about_a.len();
    if length != about_b.len() {
        return Ok(false);
    }
    let step = usize::try_from(COPY_CHUNK / 8).map_err(io::Error::other)?;
    let (mut left, mut right) = (vec![0; step], vec![0; step]);
    let mut at = 0;
    while at < length {
        if stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let now = usize::try_from((length - at).min(step as u64)).map_err(io::Error::other)?;
        a.read_exact_at(&mut left[..now], at)?;
        b.read_exact_at(&mut right[..now], at)?;
        if left[..now] != right[..now] {
            return Ok(false);
        }
        at += now as u64;
        control.observer.work(Phase::Backup, at, length);
    }
    Ok(true)
}

/// The name under which `source` itself is to live on: the one that is on
/// record, where an earlier start died before it gave it, else a free one.
pub(super) fn name_for(source: &Path, recorded: Option<&Path>, at: OffsetDateTime) -> PathBuf {
    let recorded = recorded.filter(|path| {
        stamp_of(source, path).is_some()
            && path.parent() == source.parent()
            && path.symlink_metadata().is_err()
    });
    recorded.map_or_else(|| free_name(source, at), Path::to_owned)
}

/// Takes the source out of the way after the copy is published. It `becomes`
/// the backup, or is unlinked where a durable one exists.
///
/// # Errors
/// When the rename or the removal fails; the source is then still there.
pub fn retire(source: &Path, becomes: Option<&Path>) -> Result<(), BackupError> {
    match becomes {
        Some(path) => {
            // What is another user's stays as that user has it.
            let _ = durable::keep_private(source);
            durable::rename_new(source, path)?;
        }
        None => {
            durable::remove(source)?;
        }
    }
    Ok(durable::fsync_parent(source)?)
}

/// Removes all but the `keep` newest backups of `source`, and none that is
/// younger than [`KEEP_AT_LEAST`] at `now` or is `current`.
///
/// # Errors
/// When the directory cannot be read or a file cannot be removed.
pub fn prune(
    source: &Path,
    keep: u32,
    current: &Path,
    now: OffsetDateTime,
) -> Result<Vec<PathBuf>, BackupError> {
    let keep = usize::try_from(keep).unwrap_or(usize::MAX);
    let mut removed = Vec::new();
    for (at, path) in list(source)?.into_iter().skip(keep) {
        if now - at >= KEEP_AT_LEAST && path != current {
            durable::remove(&path)?;
            removed.push(path);
        }
    }
    if !removed.is_empty() {
        durable::fsync_parent(source)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use time::macros::datetime;

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            std::fs::write(dir.join(name), name).unwrap();
        }
    }

    #[test]
    fn pruning_keeps_the_newest_the_young_and_everything_that_is_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("state-machine.redb");
        touch(
            dir.path(),
            &[
                "state-machine.redb.backup-20260101-000000",
                "state-machine.redb.backup-20260201-000000",
                "state-machine.redb.backup-20260301-000000",
                "state-machine.redb.backup-20260310-120000",
                "state-machine.redb.backup-manual",
                "state-machine.redb.backup-20261399-000000",
                "other.redb.backup-20200101-000000",
            ],
        );
        let current = dir.path().join("state-machine.redb.backup-20260310-120000");
        let now = datetime!(2026-03-10 12:00 UTC);
        let removed = prune(&source, 2, &current, now).unwrap();
        assert_eq!(
            removed,
            [
                dir.path().join("state-machine.redb.backup-20260201-000000"),
                dir.path().join("state-machine.redb.backup-20260101-000000"),
            ]
        );
        assert!(
            prune(&source, 1, &current, datetime!(2026-03-05 12:00 UTC))
                .unwrap()
                .is_empty()
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    #[test]
    fn two_backups_in_one_second_get_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("state-machine.redb");
        let at = datetime!(2026-12-31 23:59:59 UTC);
        let first = free_name(&source, at);
        std::fs::write(&first, "").unwrap();
        assert!(first.ends_with("state-machine.redb.backup-20261231-235959"));
        assert!(free_name(&source, at).ends_with("state-machine.redb.backup-20270101-000000"));
    }
}
