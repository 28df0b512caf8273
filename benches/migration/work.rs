//! The measurements, each run in a process of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use aspen::config::settings::{Backend, BackupKind, Verify};
use aspen::format::Kind;
use aspen::layout::DataDir;
use aspen::lock::LockedDir;
use aspen::migration::convert::{Request, convert};
use aspen::migration::overlay::Overlay;
use aspen::migration::progress::{Control, Event, Observer, Phase};
use aspen::migration::record::{Begun, Verified};
use aspen::migration::{Options, prepare};
use serde::{Deserialize, Serialize};

use crate::common::Result;

const PROGRAM: &str = "bench 0";

/// What is measured, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// Sequential writing with fsync at the end: what the disk does today.
    Disk,
    /// Copying and fsyncing the source's bytes: the floor of a backup.
    Backup,
    /// Reading all rows with redb 2.6.4: the floor of a copy.
    Scan,
    /// The guide's algorithm: the peer.
    Plain,
    /// Our copy until it is durable.
    Copy,
    /// Our copy, completely verified, until it is durable.
    Verified,
    /// The whole start-up path of a node that finds legacy data.
    Start,
    /// The start-up path when there is nothing to do.
    Decide,
    /// The same beside little data.
    DecideSmall,
}

/// One run of one measurement.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Wall clock.
    pub(crate) seconds: f64,
    /// Processor time of all threads, the kernel's part included.
    pub(crate) cpu_seconds: f64,
    /// `VmHWM` of the process.
    pub(crate) peak_mib: f64,
    /// What else is worth knowing.
    pub(crate) parts: BTreeMap<String, f64>,
}

impl Work {
    /// All, in the order of a round.
    pub(crate) const ALL: [Self; 9] = [
        Self::Disk,
        Self::Backup,
        Self::Scan,
        Self::Plain,
        Self::Copy,
        Self::Verified,
        Self::Start,
        Self::Decide,
        Self::DecideSmall,
    ];

    /// Its name on the child's command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Backup => "backup",
            Self::Scan => "scan",
            Self::Plain => "plain",
            Self::Copy => "copy",
            Self::Verified => "verified",
            Self::Start => "start",
            Self::Decide => "decide",
            Self::DecideSmall => "decide-small",
        }
    }

    /// The work of that name.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|work| work.name() == name);
        found.ok_or_else(|| format!("no measurement is named {name}").into())
    }

    /// Whether it begins with the source in a data directory.
    pub(crate) fn needs_data_dir(self) -> bool {
        matches!(self, Self::Start | Self::DecideSmall)
    }

    /// Does it, in this process.
    pub(crate) fn run(self, source: &Path, dir: &Path) -> Result<Sample> {
        let mut parts = BTreeMap::new();
        let seconds = match self {
            Self::Disk => timed(|| write_sequentially(&dir.join("disk")))?,
            Self::Backup => timed(|| back_up(source, &dir.join("backup")))?,
            Self::Scan => timed(|| scan(source, &mut |_, _| {}))?,
            Self::Plain => plain(source, &dir.join("plain.db"), &mut parts)?,
            Self::Copy => copy(source, &dir.join("copy.db"), Verified::None, &mut parts)?,
            Self::Verified => copy(source, &dir.join("copy.db"), Verified::Full, &mut parts)?,
            Self::Start | Self::Decide | Self::DecideSmall => start(dir, &mut parts)?,
        };
        Ok(Sample {
            seconds,
            cpu_seconds: cpu_seconds()?,
            peak_mib: peak_mib()?,
            parts,
        })
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

fn cpu_seconds() -> Result<f64> {
    /// What the kernel counts user and system time in, for every program.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS_PER_SECOND)
}

fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmHWM")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}

/// Bytes that [`Work::Disk`] writes.
pub(crate) const DISK_BYTES: u64 = 1 << 30;

fn write_sequentially(path: &Path) -> Result<()> {
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let mut file = File::create_new(path)?;
    for _ in 0..DISK_BYTES / block.len() as u64 {
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn back_up(source: &Path, target: &Path) -> Result<()> {
    let (from, to) = (File::open(source)?, File::create_new(target)?);
    aspen::durable::copy(&from, &to, target, &mut |_| Ok(()))?;
    Ok(to.sync_all()?)
}

/// All rows as the legacy release of redb reads them, with its default cache.
/// The overlay keeps it from writing to the source, which it would even when
/// it only reads; reads pass through.
fn scan(source: &Path, each: &mut dyn FnMut(&str, &str)) -> Result<()> {
    use redb2::ReadableTable as _;
    let overlay = Overlay::new(File::open(source)?, Arc::default())?;
    let db = redb2::Builder::new().create_with_backend(overlay)?;
    let read = db.begin_read()?;
    let rows = read.open_table(redb2::TableDefinition::<&str, &str>::new("sm_kv"))?;
    for row in rows.iter()? {
        let (key, value) = row?;
        each(key.value(), value.value());
    }
    Ok(())
}

/// What the guide's tool did: every row into a `Vec`, then one `execute` for
/// each, in one transaction of a database with a write-ahead log.
fn plain(source: &Path, target: &Path, parts: &mut BTreeMap<String, f64>) -> Result<f64> {
    let started = Instant::now();
    let mut rows = Vec::new();
    scan(source, &mut |key, value| {
        rows.push((key.to_owned(), value.to_owned()))
    })?;
    parts.insert("read".to_owned(), started.elapsed().as_secs_f64());
    let mut connection = rusqlite::Connection::open(target)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute(
        "CREATE TABLE state_machine_kv(key TEXT PRIMARY KEY, value TEXT NOT NULL)",
        [],
    )?;
    let transaction = connection.transaction()?;
    for (key, value) in &rows {
        transaction.execute(
            "INSERT INTO state_machine_kv (key, value) VALUES (?1, ?2)",
            (key, value),
        )?;
    }
    transaction.commit()?;
    // Durable, in the write-ahead log. That it goes through all of it once more
    // when it closes is left out, in its favour.
    let seconds = started.elapsed().as_secs_f64();
    std::mem::forget(connection);
    Ok(seconds)
}

/// Our copy, timed from when the source is open and sound, as the peer's
/// source is not checked either.
fn copy(
    source: &Path,
    target: &Path,
    verify: Verified,
    parts: &mut BTreeMap<String, f64>,
) -> Result<f64> {
    let begun = Begun::now(PROGRAM);
    let clock = Clock::default();
    let request = Request {
        source,
        target,
        target_kind: Kind::Sqlite,
        backup: None,
        verify,
        besides: 0,
        begun: &begun,
    };
    let converted = convert(&request, &clock.control())?;
    let done = Instant::now();
    parts.insert("check".to_owned(), converted.record.seconds.check);
    parts.insert("verify".to_owned(), converted.record.seconds.verify);
    converted.publish(target, false, &clock.control())?;
    let creating = clock.creating().ok_or("no copy was begun")?;
    Ok((done - creating).as_secs_f64())
}

fn start(dir: &Path, parts: &mut BTreeMap<String, f64>) -> Result<f64> {
    let clock = Clock::default();
    let options = Options {
        backend: Backend::Sqlite,
        backup: BackupKind::Copy,
        keep_backups: 3,
        verify: Verify::Full,
        config_file: None,
        program: PROGRAM.to_owned(),
    };
    let started = Instant::now();
    let locked = LockedDir::take(DataDir::new(dir), PROGRAM)?;
    let prepared = prepare(&locked, &options, &clock.control())?;
    // What is prepared is opened as the node does, which ends its start-up path.
    let aspen::migration::Storage::Sqlite(path) = prepared.storage() else {
        return Err("not SQLite".into());
    };
    let access = aspen::format::sqlite::Access::Write;
    let connection = aspen::format::sqlite::open(path, access)?;
    let seconds = started.elapsed().as_secs_f64();
    drop(connection);
    if let Some(record) = prepared.record.filter(|_| prepared.migrated_now) {
        for (name, value) in [
            ("check", record.seconds.check),
            ("copy", record.seconds.copy),
            ("verify", record.seconds.verify),
            ("wait for backup", record.seconds.backup),
        ] {
            parts.insert(name.to_owned(), value);
        }
    }
    Ok(seconds)
}

/// Notes when the copy begins.
#[derive(Default)]
struct Clock(Mutex<Option<Instant>>);

impl Clock {
    fn control(&self) -> Control<'_> {
        Control {
            observer: self,
            stop: Arc::default(),
        }
    }

    fn creating(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Clock {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::Creating) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    fn work(&self, _: Phase, _: u64, _: u64) {}
}
