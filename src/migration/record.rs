//! What a migration leaves on record: in the database itself, and as a line
//! in `migrations.jsonl`.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::source::{Identity, Metadata};
use crate::durable::{self, DurableError};
use crate::format::Kind;
use crate::format::digest::Digest;
use crate::format::record::LogId;

/// Bytes at the end of the history in which a record is looked for before it
/// is written again; far more than the longest line.
const HISTORY_TAIL_BYTES: u64 = 256 << 10;

/// How thoroughly a copy was compared with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verified {
    /// Every row.
    Full,
    /// A sample of rows.
    Sample,
    /// Not at all.
    None,
}

/// Seconds that each part took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Verifying the source's own checksums.
    pub check: f64,
    /// Waiting for the backup after that; most of it runs beside the check.
    pub backup: f64,
    /// Copying.
    pub copy: f64,
    /// Verifying the copy.
    pub verify: f64,
    /// From the first look to the record.
    pub total: f64,
}

/// One finished migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Unique; the same in the database and in the history.
    pub id: String,
    /// Program and version that did it.
    pub program: String,
    /// Numeric user that it ran as.
    pub uid: u32,
    /// Host that it ran on.
    pub host: String,
    /// When it began, RFC 3339, UTC.
    pub started_at: String,
    /// When the copy was complete.
    pub completed_at: String,
    /// Engine of the source: `redb` or `sqlite`.
    pub from: String,
    /// Engine of the target.
    pub to: String,
    /// The source's path as it was given.
    #[serde(serialize_with = "as_text")]
    pub source: PathBuf,
    /// The source's length in bytes.
    pub source_bytes: u64,
    /// Identifies the source's content.
    pub source_fingerprint: String,
    /// Whether the source had been closed, or was recovered.
    pub source_closed_cleanly: bool,
    /// The target's path as it was given.
    #[serde(serialize_with = "as_text")]
    pub target: PathBuf,
    /// Where the source lives on.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_as_text"
    )]
    pub backup: Option<PathBuf>,
    /// Rows copied.
    pub keys: u64,
    /// xxh3-128 of all rows; see [`crate::format::digest`].
    pub checksum: String,
    /// Idempotent writes that are remembered; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_keys: Option<u64>,
    /// How the copy was verified.
    pub verified: Verified,
    /// The last applied entry.
    pub last_applied: Option<LogId>,
    /// How long it took.
    pub seconds: Seconds,
}

/// A path that is not UTF-8 is recorded as far as it is: it must not make the
/// record, and with it the migration, impossible.
fn as_text<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn some_as_text<S: serde::Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    as_text(path.as_deref().unwrap_or(Path::new("")), serializer)
}

/// Who does it and when it began: the part of a [`Record`] that is known beforehand.
#[derive(Clone, Debug)]
pub struct Begun {
    at: OffsetDateTime,
    program: String,
}

/// `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(at.microsecond() * 1000).unwrap_or(at);
    at.format(&Rfc3339)
        .unwrap_or_else(|_| at.unix_timestamp().to_string())
}

impl Begun {
    /// Begins now. `program` is name and version.
    #[must_use]
    pub fn now(program: &str) -> Self {
        Self {
            at: OffsetDateTime::now_utc(),
            program: program.to_owned(),
        }
    }

    /// When it began.
    #[must_use]
    pub fn at(&self) -> OffsetDateTime {
        self.at
    }

    /// The record of the copy of `source` to `target`.
    #[must_use]
    pub fn record(&self, copy: &Copy<'_>) -> Record {
        let now = OffsetDateTime::now_utc();
        let started_at = rfc3339(self.at);
        let fingerprint = &copy.identity.fingerprint;
        let short: String = fingerprint.chars().rev().take(8).collect();
        let host = nix::unistd::gethostname().unwrap_or_default();
        Record {
            id: format!("{started_at}-{short}"),
            program: self.program.clone(),
            uid: nix::unistd::geteuid().as_raw(),
            host: host.to_string_lossy().into_owned(),
            started_at,
            completed_at: rfc3339(now),
            from: engine_name(copy.identity.kind).to_owned(),
            to: engine_name(copy.target_kind).to_owned(),
            source: copy.source.to_owned(),
            source_bytes: copy.identity.length,
            source_fingerprint: fingerprint.clone(),
            source_closed_cleanly: copy.identity.closed_cleanly,
            target: copy.target.to_owned(),
            backup: copy.backup.map(Path::to_owned),
            keys: copy.digest.rows,
            checksum: copy.digest.to_string(),
            idempotency_keys: Some(copy.idempotency.rows).filter(|rows| *rows > 0),
            verified: copy.verified,
            last_applied: copy.metadata.last_applied,
            seconds: Seconds {
                total: (now - self.at).as_seconds_f64(),
                ..copy.seconds
            },
        }
    }
}

/// What a [`Record`] tells of the copy itself.
pub struct Copy<'a> {
    /// The source's path.
    pub source: &'a Path,
    /// What the source is.
    pub identity: &'a Identity,
    /// The target's path.
    pub target: &'a Path,
    /// The target's engine.
    pub target_kind: Kind,
    /// The source's backup.
    pub backup: Option<&'a Path>,
    /// Rows and their checksum.
    pub digest: Digest,
    /// Idempotent writes and their checksum.
    pub idempotency: Digest,
    /// Raft metadata.
    pub metadata: &'a Metadata,
    /// How it was verified.
    pub verified: Verified,
    /// How long its parts took.
    pub seconds: Seconds,
}

/// The engine's name in records, messages and configuration.
#[must_use]
pub fn engine_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqlite => "sqlite",
        _ => "redb",
    }
}

/// Writes the record into the finished copy, before it is published.
pub(crate) fn store(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    let text = json(record)?;
    connection
        .execute(
            "INSERT INTO aspen_migrations VALUES (?1, ?2, ?3, ?4)",
            (
                &record.id,
                &record.completed_at,
                &record.source_fingerprint,
                text,
            ),
        )
        .map(|_| ())
}

/// Replaces the record in a database that is in use already.
pub(crate) fn update(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    let text = json(record)?;
    connection
        .execute(
            "UPDATE aspen_migrations SET record = ?2 WHERE id = ?1",
            (&record.id, text),
        )
        .map(|_| ())
}

fn json(record: &Record) -> rusqlite::Result<String> {
    serde_json::to_string(record)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Appends the record to the history, unless it is there: a start that died
/// in between appends it at the next.
///
/// # Errors
/// When the history cannot be read or written.
pub fn append_once(history: &Path, record: &Record) -> Result<bool, HistoryError> {
    let read = |source| HistoryError::Read {
        path: history.to_owned(),
        source,
    };
    let tail = tail(history).map_err(read)?;
    let known = tail
        .lines()
        .filter_map(|line| serde_json::from_str::<Record>(line).ok())
        .any(|known| known.id == record.id);
    if known {
        return Ok(false);
    }
    let mut line =
        serde_json::to_string(record).map_err(|error| read(std::io::Error::other(error)))?;
    // A line that a crash cut short must not swallow the next one.
    if !tail.is_empty() && !tail.ends_with('\n') {
        line.insert(0, '\n');
    }
    line.push('\n');
    durable::append(history, line.as_bytes())?;
    Ok(true)
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(HISTORY_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(HISTORY_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why the history could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be read.
    #[error("cannot read the history {}", path.display())]
    Read {
        /// The history.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] DurableError),
}
