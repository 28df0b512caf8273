//! Where a migration's progress goes: the service manager's status and
//! timeout, `/health`, and the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::http::{self, Shared};
use crate::layout::DataDir;
use crate::migration::Prepared;
use crate::migration::plan::Decision;
use crate::migration::progress::{Event, Observer, Phase, Unit};
use crate::migration::raft_log::LogTakenOver;
use crate::notify::Notify;
use crate::telemetry::{Chain, events};

/// How often progress is told.
const INTERVAL: Duration = Duration::from_secs(1);
/// How much longer the start may take after each progress: longer than the
/// slowest single step, a sync of what is left in memory, on a slow disk.
pub(super) const EXTENSION: Duration = Duration::from_secs(120);

/// The share that each phase has of what is done to its file, from measured
/// runs; in percent.
fn share(phase: Phase) -> f64 {
    match phase {
        Phase::Check => 30.0,
        Phase::Backup | Phase::LogBackup => 20.0,
        Phase::Copy => 35.0,
        Phase::Verify | Phase::LogRead | Phase::LogVerify => 15.0,
        Phase::LogCheck | Phase::LogCopy => 25.0,
    }
}

#[derive(Clone, Copy)]
struct Work {
    done: u64,
    total: u64,
    since: Instant,
    finished: bool,
}

#[derive(Default)]
struct State {
    work: BTreeMap<Phase, Work>,
    told: Option<Instant>,
    /// Bytes of the files that are worked on; 0 for one that is not.
    redb_bytes: u64,
    log_bytes: u64,
}

impl State {
    /// How far all of it is, in percent, each file weighted by its size.
    fn percent(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // a percentage needs no more
        let of_log = self.log_bytes as f64 / (self.log_bytes + self.redb_bytes).max(1) as f64;
        let done = self.work.iter().map(|(phase, work)| {
            let weight = match phase.of_log() {
                true => of_log,
                false => 1.0 - of_log,
            };
            weight * share(*phase) * fraction(work)
        });
        done.sum()
    }
}

/// Listens to one start.
pub(super) struct Reporter {
    notify: Notify,
    shared: Shared,
    redb: PathBuf,
    sqlite: PathBuf,
    log: PathBuf,
    began: Instant,
    state: Mutex<State>,
}

impl Reporter {
    pub(super) fn new(notify: Notify, shared: Shared, dir: &DataDir) -> Self {
        Self {
            notify,
            shared,
            redb: dir.redb(),
            sqlite: dir.sqlite(),
            log: dir.raft_log(),
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn data_dir(&self) -> Option<String> {
        let dir = self.redb.parent();
        dir.map(|dir| dir.display().to_string())
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The phase that a migration is in: the earliest that is not finished.
    pub(super) fn phase(&self) -> &'static str {
        let state = self.state();
        let unfinished = state.work.iter().find(|(_, work)| !work.finished);
        match unfinished {
            Some((phase, _)) => phase.name(),
            None if state.work.is_empty() => "inspect",
            None => "publish",
        }
    }

    /// The migration was told to stop.
    pub(super) fn interrupted(&self) {
        let source = match self.state().redb_bytes {
            0 => &self.log,
            _ => &self.redb,
        };
        tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::MIGRATION_INTERRUPTED,
            ASPEN_SOURCE = %source.display(),
            ASPEN_PHASE = self.phase(),
            "The migration of {} was stopped; the data is as it was, and the next start begins again",
            source.display()
        );
    }

    /// Storage may be opened.
    pub(super) fn completed(&self, prepared: &Prepared) {
        let Some(record) = prepared.record.as_ref().filter(|_| prepared.migrated_now) else {
            return;
        };
        let milliseconds = self.milliseconds();
        let backup = record
            .backup
            .as_ref()
            .map(|path| path.display().to_string());
        tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::MIGRATION_COMPLETED,
            ASPEN_SOURCE = %self.redb.display(),
            ASPEN_TARGET = %self.sqlite.display(),
            ASPEN_BACKUP = backup,
            ASPEN_KEYS = record.keys,
            ASPEN_CHECKSUM = record.checksum,
            ASPEN_DURATION_MS = milliseconds,
            "Migrated {} keys from redb to SQLite in {milliseconds} ms, verified ({}); the backup is {}",
            record.keys,
            record.checksum,
            backup.as_deref().unwrap_or("gone"),
        );
    }

    fn began_migrating(&self) {
        let bytes = self.redb.metadata().map_or(0, |about| about.len());
        self.state().redb_bytes = bytes;
        tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::MIGRATION_STARTED,
            ASPEN_SOURCE = %self.redb.display(),
            ASPEN_TARGET = %self.sqlite.display(),
            ASPEN_BYTES = bytes,
            "Migrating {} ({bytes} bytes)",
            self.redb.display()
        );
        self.looking();
    }

    fn found_log(&self, bytes: u64) {
        self.state().log_bytes = bytes;
        tracing::info!(
            target: "aspen::migration",
            "Taking over the Raft log {} ({bytes} bytes)",
            self.log.display()
        );
        if self.state().redb_bytes == 0 {
            self.looking();
        }
    }

    fn looking(&self) {
        self.shared
            .set(http::Phase::Migrating(http::Progress::default()));
        self.notify.status("Migrating: looking at the data");
        self.notify.extend_timeout(EXTENSION);
    }

    /// Tells everyone how far it is.
    fn tell(&self, state: &State) {
        // The phase that everything waits for is the earliest that is not finished.
        let Some((&phase, work)) = state
            .work
            .iter()
            .find(|(_, work)| !work.finished)
            .or_else(|| state.work.iter().next_back())
        else {
            return;
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // 0 to 99 after the clamp
        let percent = state.percent().clamp(0.0, 99.0) as u8;
        self.shared.set(http::Phase::Migrating(http::Progress {
            phase: phase.name(),
            percent,
            done: work.done,
            total: work.total,
        }));
        self.notify
            .status(&format!("Migrating {percent} %: {}", describe(phase, work)));
        self.notify.extend_timeout(EXTENSION);
    }

    fn finished(&self, phase: Phase, work: &Work) {
        let milliseconds = u64::try_from(work.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (keys, bytes, amount) = match phase.unit() {
            Unit::Keys => (Some(work.total), None, format!("{} keys", work.total)),
            Unit::Entries => (None, None, format!("{} entries", work.total)),
            Unit::Bytes => (None, Some(work.done), format!("{} bytes", work.done)),
        };
        tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::MIGRATION_PHASE,
            ASPEN_PHASE = phase.name(),
            ASPEN_KEYS = keys,
            ASPEN_BYTES = bytes,
            ASPEN_DURATION_MS = milliseconds,
            "Migration phase {} finished: {amount} in {milliseconds} ms",
            phase.name()
        );
    }
}

fn fraction(work: &Work) -> f64 {
    match (work.finished, work.total) {
        (true, _) => 1.0,
        (_, 0) => 0.0,
        #[allow(clippy::cast_precision_loss)] // a fraction needs no more
        (_, total) => (work.done as f64 / total as f64).min(1.0),
    }
}

/// `copy, 1234567 of 4000000 keys, 1900000 keys/s`.
fn describe(phase: Phase, work: &Work) -> String {
    let seconds = work.since.elapsed().as_secs_f64().max(0.001);
    #[allow(clippy::cast_precision_loss)] // a rate needs no more
    let rate = work.done as f64 / seconds;
    let counted = match phase.unit() {
        Unit::Keys => "keys",
        Unit::Entries => "entries",
        Unit::Bytes => {
            let mib = |bytes: u64| bytes >> 20;
            let rate = rate / f64::from(1 << 20);
            return format!(
                "{}, {} of {} MiB, {rate:.0} MiB/s",
                phase.name(),
                mib(work.done),
                mib(work.total)
            );
        }
    };
    format!(
        "{}, {} of {} {counted}, {rate:.0} {counted}/s",
        phase.name(),
        work.done,
        work.total
    )
}

impl Observer for Reporter {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Decided(Decision::Migrate | Decision::UpgradeRedb) => self.began_migrating(),
            Event::LogFound { bytes, .. } => self.found_log(*bytes),
            Event::Finished(phase) => {
                let mut state = self.state();
                if let Some(work) = state.work.get_mut(phase) {
                    work.finished = true;
                    let work = *work;
                    self.finished(*phase, &work);
                    // As a rule the log is small, and its phases follow each other at once.
                    let just_told = state.told.is_some_and(|told| told.elapsed() < INTERVAL);
                    if !(phase.of_log() && just_told) {
                        self.tell(&state);
                    }
                }
            }
            event => log(event, self),
        }
    }

    fn work(&self, phase: Phase, done: u64, total: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let work = state.work.entry(phase).or_insert(Work {
            done: 0,
            total,
            since: now,
            finished: false,
        });
        // Only what moves is progress: a hang must not look alive.
        let moved = done > work.done;
        (work.done, work.total) = (work.done.max(done), total);
        if moved && state.told.is_none_or(|told| now - told >= INTERVAL) {
            state.told = Some(now);
            self.tell(&state);
        }
    }
}

/// What has no number.
fn log(event: &Event<'_>, reporter: &Reporter) {
    match event {
        Event::LeftoversRemoved(paths) => tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::LEFTOVERS_REMOVED,
            ASPEN_DATA_DIR = reporter.data_dir(),
            ASPEN_COUNT = paths.len(),
            "Removed {} half-made files of an interrupted migration",
            paths.len()
        ),
        Event::BackedUp { source, backup } => tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::MIGRATION_BACKUP,
            ASPEN_SOURCE = %source.display(),
            ASPEN_BACKUP = %backup.display(),
            ASPEN_BYTES = backup.metadata().map_or(0, |about| about.len()),
            "The backup is {}",
            backup.display()
        ),
        Event::LogTakenOver(done) => taken_over(done),
        Event::BookkeepingRebuilt(path) => tracing::warn!(
            target: "aspen::migration",
            MESSAGE_ID = events::SOURCE_REBUILT,
            ASPEN_SOURCE = %path.display(),
            "{} has a damaged allocator state, which was rebuilt in memory; every row passes its checksum",
            path.display()
        ),
        Event::HistoryFailed(error) => {
            tracing::warn!(
                target: "aspen::migration",
                MESSAGE_ID = events::RECORD_NOT_WRITTEN,
                ASPEN_DATA_DIR = reporter.data_dir(),
                "The history of migrations was not written: {}",
                Chain(*error)
            );
        }
        Event::RecordFailed(error) => {
            tracing::warn!(
                target: "aspen::migration",
                MESSAGE_ID = events::RECORD_NOT_WRITTEN,
                ASPEN_DATA_DIR = reporter.data_dir(),
                "{}",
                Chain(*error)
            );
        }
        Event::BackupsRemoved(paths) => tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::BACKUPS_REMOVED,
            ASPEN_DATA_DIR = reporter.data_dir(),
            ASPEN_COUNT = paths.len(),
            "Removed {} old backups beyond those to keep",
            paths.len()
        ),
        Event::PruneFailed(error) => {
            tracing::warn!(
                target: "aspen::migration",
                MESSAGE_ID = events::BACKUPS_NOT_REMOVED,
                ASPEN_DATA_DIR = reporter.data_dir(),
                "Old backups were not removed: {}",
                Chain(*error)
            );
        }
        Event::ConfigRewritten(path) => tracing::info!(
            target: "aspen::migration",
            MESSAGE_ID = events::CONFIG_REWRITTEN,
            ASPEN_CONFIG = %path.display(),
            "{} now says storage_backend = \"sqlite\" and what was migrated",
            path.display()
        ),
        Event::ConfigFailed(error) => tracing::warn!(
            target: "aspen::migration",
            MESSAGE_ID = events::CONFIG_NOT_REWRITTEN,
            ASPEN_CONFIG = %error.path.display(),
            // Last, so that nothing but TOML is copied.
            "{}. Write this into it by hand:\n\n{}",
            Chain(*error), error.by_hand
        ),
        _ => {}
    }
}

fn taken_over(done: &LogTakenOver) {
    let milliseconds = u64::try_from(done.took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        target: "aspen::migration",
        MESSAGE_ID = events::RAFT_LOG_TAKEN_OVER,
        ASPEN_SOURCE = %done.path.display(),
        ASPEN_BACKUP = %done.backup.display(),
        ASPEN_FORMAT_FROM = 2_u8,
        ASPEN_FORMAT_TO = 3_u8,
        ASPEN_ENTRIES = done.entries,
        ASPEN_DURATION_MS = milliseconds,
        "Took over {} entries of the Raft log from redb format v2 to v3 in {milliseconds} ms; the backup is {}",
        done.entries,
        done.backup.display()
    );
}
