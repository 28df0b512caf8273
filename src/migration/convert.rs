//! Copying one state machine into another engine: what node and tool share.
//!
//! 1. Open the source read-only, under a shared lock.
//! 2. Preflight: space, permissions, file systems, rows too large.
//! 3. Verify the source's own checksums; beside it, unless space is tight,
//!    make the backup.
//! 4. Copy into a temporary file beside the target.
//! 5. Verify the copy.
//! 6. Write the record into it, fsync it.
//! 7. Only once the backup is durable: hand it over as [`Converted`], to be published.
//!
//! Safe to fail at any point: until [`Converted::publish`] renames, every file
//! of this run is temporary or a redundant backup, and is removed on the way out.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::MigrationError;
use super::backup::{self, Backup};
use super::copy;
use super::preflight::{self, Problem, Problems, Room, Wanted};
use super::progress::{Control, Event, Phase};
use super::record::{self, Begun, Copy, Record, Seconds, Verified};
use super::source::{Holds, Metadata, Source, SourceError};
use super::target::{self, TargetError, sqlite::Expected};
use super::temporary::Temporary;
use super::watch;
use crate::config::settings::BackupKind;
use crate::durable;
use crate::format::Kind;
use crate::format::digest::Digest;
use crate::format::sqlite::{self, Access, MAX_ROW_BYTES};

/// What to copy where.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// What is read.
    pub source: &'a Path,
    /// What is made.
    pub target: &'a Path,
    /// Its engine.
    pub target_kind: Kind,
    /// Whether the source is backed up, and how.
    pub backup: Option<BackupKind>,
    /// How the copy is verified.
    pub verify: Verified,
    /// Bytes that are going to be written beside backup and copy.
    pub besides: u64,
    /// Who began, and when.
    pub begun: &'a Begun,
}

/// A complete, verified, durable copy that does not have its name yet.
pub struct Converted {
    /// The source, still locked.
    pub source: Source,
    /// What was done.
    pub record: Record,
    unpublished: Unpublished,
}

impl Converted {
    /// Gives the copy its name: the commit point. With `replace` it takes the
    /// place of what has that name, else nothing may have it.
    ///
    /// # Errors
    /// When the rename fails or `control` says to stop; nothing has changed then.
    pub fn publish(
        self,
        target: &Path,
        replace: bool,
        control: &Control<'_>,
    ) -> Result<(Source, Record, Option<Backup>), MigrationError> {
        let source = self.source.path();
        let backup = self.unpublished.publish(source, target, replace, control)?;
        Ok((self.source, self.record, backup))
    }
}

/// A complete, durable file that does not have its name yet, and the backup of
/// what it was made from.
pub(super) struct Unpublished {
    pub(super) backup: Option<NewBackup>,
    pub(super) temporary: Temporary,
}

impl Unpublished {
    /// See [`Converted::publish`].
    pub(super) fn publish(
        mut self,
        source: &Path,
        target: &Path,
        replace: bool,
        control: &Control<'_>,
    ) -> Result<Option<Backup>, MigrationError> {
        if control.stopped() {
            return Err(MigrationError::Stopped);
        }
        self.temporary.publish(target, replace)?;
        if let Err(error) = durable::fsync_parent(target) {
            if replace {
                // The source may be gone with its name; the backup must stay.
                self.backup.take().map(NewBackup::keep);
            } else {
                // The source is still there: the copy can go again.
                let _ = durable::remove(target);
            }
            return Err(error.into());
        }
        let backup = self.backup.take().map(NewBackup::keep);
        if let Some(Backup { path: backup, .. }) = &backup {
            control.observer.event(&Event::BackedUp { source, backup });
        }
        control.observer.event(&Event::Published(target));
        Ok(backup)
    }
}

/// A backup that is removed again when the migration fails after all: the
/// source is then as it was, and the space may be what was missing.
pub(super) struct NewBackup(pub(super) Option<Backup>);

impl NewBackup {
    fn keep(mut self) -> Backup {
        let kept = self.0.take();
        kept.unwrap_or(Backup {
            path: PathBuf::new(),
            new: false,
        })
    }

    fn path(&self) -> Option<&Path> {
        self.0.as_ref().map(|backup| backup.path.as_path())
    }
}

impl Drop for NewBackup {
    fn drop(&mut self) {
        if let Some(backup) = self.0.take().filter(|backup| backup.new) {
            let _ = durable::remove(&backup.path).and_then(|_| durable::fsync_parent(&backup.path));
        }
    }
}

/// Does steps 1 to 7.
///
/// # Errors
/// When any fails, or `control` says to stop; the source and every file that
/// existed before are then as they were.
pub fn convert(request: &Request<'_>, control: &Control<'_>) -> Result<Converted, MigrationError> {
    run(request, control).map_err(|error| {
        let needed = preflight::upper_bound(request.source, request.backup) + request.besides;
        error.seen_from(request.target, needed)
    })
}

fn run(request: &Request<'_>, control: &Control<'_>) -> Result<Converted, MigrationError> {
    let observer = control.observer;
    observer.event(&Event::Opening);
    let mut source = watch::open(request.source, control)?;
    let wanted = Wanted {
        target: request.target,
        kind: request.target_kind,
        backup: request.backup,
        besides: request.besides,
    };
    let (room, problems) = preflight::check(&source, wanted)?;
    refuse(problems)?;

    let mut seconds = Seconds::default();
    let (backup_file, halt) = (source.file().try_clone(), AtomicBool::new(false));
    let backup_file = backup_file.map_err(|error| SourceError::Read {
        path: request.source.to_owned(),
        source: error,
    })?;
    let make_backup = || match request.backup {
        None => Ok(NewBackup(None)),
        Some(kind) => {
            let at = request.begun.at();
            backup::make(request.source, &backup_file, kind, at, control, &halt)
                .map(|backup| NewBackup(Some(backup)))
        }
    };
    let checked = Instant::now();
    if room == Room::Tight {
        watch::check(&mut source, Holds::StateMachine, control)?;
        refuse(preflight::measured(&source, wanted)?)?;
        seconds.check = checked.elapsed().as_secs_f64();
    }
    std::thread::scope(|scope| {
        let backup = scope.spawn(make_backup);
        let copied = (|| {
            if room == Room::Plenty {
                watch::check(&mut source, Holds::StateMachine, control)?;
                seconds.check = checked.elapsed().as_secs_f64();
                if request.target_kind == Kind::Sqlite && source.may_hold_huge_value(MAX_ROW_BYTES)
                {
                    refuse(preflight::measured(&source, wanted)?)?;
                }
            }
            copy_and_verify(&mut source, request, &mut seconds, control)
        })();
        halt.store(copied.is_err(), Ordering::Relaxed);
        let waiting = Instant::now();
        let backup = backup
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seconds.backup = waiting.elapsed().as_secs_f64();
        let (temporary, made) = copied?;
        let backup = backup?;
        let record = request.begun.record(&Copy {
            source: request.source,
            identity: source.identity(),
            target: request.target,
            target_kind: request.target_kind,
            backup: backup.path(),
            digest: made.digest,
            idempotency: made.idempotency,
            metadata: &made.metadata,
            verified: request.verify,
            seconds,
        });
        if request.target_kind == Kind::Sqlite {
            store_record(temporary.path(), &record)?;
        }
        durable::fsync(temporary.file(), temporary.path())?;
        let backup = backup.0.is_some().then_some(backup);
        Ok((record, Unpublished { backup, temporary }))
    })
    .map(|(record, unpublished)| Converted {
        source,
        record,
        unpublished,
    })
}

/// Does steps 1 to 3 without the backup, measures every row, and writes
/// nothing: what [`convert`] would find before it began.
///
/// # Errors
/// When anything would be in the way.
pub fn survey(request: &Request<'_>, control: &Control<'_>) -> Result<Record, MigrationError> {
    let surveyed = (|| {
        control.observer.event(&Event::Opening);
        let mut source = watch::open(request.source, control)?;
        let wanted = Wanted {
            target: request.target,
            kind: request.target_kind,
            backup: request.backup,
            besides: request.besides,
        };
        let (_, mut problems) = preflight::check(&source, wanted)?;
        watch::check(&mut source, Holds::StateMachine, control)?;
        problems.extend(preflight::measured(&source, wanted)?);
        refuse(problems)?;
        let rows = source.rows()?;
        control.observer.event(&Event::Counted(rows));
        let metadata = source.metadata()?;
        control.observer.event(&Event::Metadata(&metadata));
        Ok(request.begun.record(&Copy {
            source: request.source,
            identity: source.identity(),
            target: request.target,
            target_kind: request.target_kind,
            backup: None,
            digest: Digest { rows, hash: 0 },
            idempotency: Digest::default(),
            metadata: &metadata,
            verified: Verified::None,
            seconds: Seconds::default(),
        }))
    })();
    surveyed.map_err(|error: MigrationError| error.seen_from(request.target, 0))
}

pub(super) fn refuse(problems: Vec<Problem>) -> Result<(), MigrationError> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(MigrationError::Preflight(Problems(problems))),
    }
}

struct Made {
    digest: Digest,
    idempotency: Digest,
    metadata: Metadata,
}

fn copy_and_verify(
    source: &mut Source,
    request: &Request<'_>,
    seconds: &mut Seconds,
    control: &Control<'_>,
) -> Result<(Temporary, Made), MigrationError> {
    let observer = control.observer;
    let rows = source.rows()?;
    observer.event(&Event::Counted(rows));
    let metadata = source.metadata()?;
    observer.event(&Event::Metadata(&metadata));
    observer.event(&Event::Creating);
    let temporary = Temporary::create(request.target)?;
    temporary.give_to_owner_of(source.file());
    observer.event(&Event::Copying);
    observer.work(Phase::Copy, 0, rows);
    let copying = Instant::now();
    let path = temporary.path();
    let ((), read) = copy::stream(source, rows, control, |feed| match request.target_kind {
        Kind::Sqlite => target::sqlite::build(path, feed, &metadata, &control.stop),
        _ => target::redb::build(path, temporary.file(), feed, &metadata, &control.stop),
    })?;
    if read.digest.rows != rows {
        return Err(TargetError::Count {
            wanted: rows,
            found: read.digest.rows,
        }
        .into());
    }
    temporary.lock()?;
    // Most of it is on its way already; the rest goes while the copy is verified.
    durable::start_writeback(temporary.file(), 0, 0);
    seconds.copy = copying.elapsed().as_secs_f64();
    observer.event(&Event::Finished(Phase::Copy));
    observer.event(&Event::Copied(read.digest));

    let verifying = Instant::now();
    observer.work(Phase::Verify, 0, rows);
    observer.event(&Event::Verifying(request.verify != Verified::None));
    let expected = Expected {
        digest: read.digest,
        keys: read.keys,
        metadata: &metadata,
        idempotency: read.idempotency,
    };
    let sample = match request.verify {
        Verified::Sample => Some(sample_of(source, &read.sample)?),
        _ => None,
    };
    match (request.target_kind, request.verify, &sample) {
        (_, Verified::None, _) => {}
        (Kind::Sqlite, _, None) => target::sqlite::verify(path, expected, control)?,
        (Kind::Sqlite, _, Some(sample)) => {
            target::sqlite::verify_sample(path, expected, sample, control)?;
        }
        (_, _, sample) => {
            target::redb::verify(path, temporary.file(), expected, sample.as_deref(), control)?;
        }
    }
    if request.verify != Verified::None {
        observer.event(&Event::Finished(Phase::Verify));
        observer.event(&Event::Verified);
    }
    temporary.lock()?;
    seconds.verify = verifying.elapsed().as_secs_f64();
    Ok((
        temporary,
        Made {
            digest: read.digest,
            idempotency: read.idempotency,
            metadata,
        },
    ))
}

/// The sampled keys with the values that the source has for them now.
fn sample_of(
    source: &Source,
    keys: &[String],
) -> Result<Vec<(String, Option<String>)>, SourceError> {
    keys.iter()
        .map(|key| Ok((key.clone(), source.get(key)?)))
        .collect()
}

fn store_record(path: &Path, record: &Record) -> Result<(), MigrationError> {
    let connection = sqlite::open(path, Access::Write).map_err(TargetError::from)?;
    let failed = |source| TargetError::Sqlite {
        operation: "write the record to",
        path: path.to_owned(),
        source,
    };
    record::store(&connection, record).map_err(failed)?;
    connection.close().map_err(|(_, source)| failed(source))?;
    Ok(())
}
