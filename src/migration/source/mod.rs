//! Whatever data is copied from, read and never changed: redb of format 2 or
//! 3, or SQLite.

mod contents;
mod error;
mod idempotency;
mod log;
mod metadata;
pub(crate) mod redb;
pub(crate) mod sqlite;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::contents::Holds;
pub use self::error::SourceError;
pub(crate) use self::idempotency::IdempotentSink;
pub(crate) use self::log::EntrySink;
pub use self::metadata::Metadata;
use self::redb::{EngineError, FormatV2, FormatV3, Redb};
use self::sqlite::SqliteReader;
use super::overlay::Overlay;
use crate::format::header::{HEADER_BYTES, Header, HeaderError};
use crate::format::{Kind, tables};

/// Receives rows in key order; an error ends the scan.
pub(crate) type RowSink<'a> = &'a mut dyn FnMut(&str, &str) -> Result<(), Enough>;

/// What a [`RowSink`] answers when it wants no more rows.
#[derive(Debug)]
pub(crate) struct Enough;

#[derive(Debug)]
enum Engine {
    Redb(Redb),
    Sqlite(SqliteReader),
}

/// What identifies a source and what it says about itself, before it is opened.
#[derive(Clone, Debug)]
pub struct Identity {
    /// redb or SQLite.
    pub kind: Kind,
    /// Identifies the content; see [`Header::fingerprint`].
    pub fingerprint: String,
    /// redb's file format version.
    pub version: Option<u8>,
    /// Whether the last writer closed it.
    pub closed_cleanly: bool,
    /// Length in bytes.
    pub length: u64,
}

impl Identity {
    /// Whether only legacy nodes write to such a file: redb's format v2.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.version == Some(2)
    }
}

/// A source that is held under a shared lock and not opened yet.
#[derive(Debug)]
pub struct LockedSource {
    path: PathBuf,
    identity: Identity,
    file: File,
    overlay: Option<Overlay>,
    stop: Arc<AtomicBool>,
}

impl LockedSource {
    /// Opens the file for reading only, takes a shared lock and looks at its
    /// first bytes. Once `stop` is true, reading ends with [`SourceError::Stopped`].
    ///
    /// # Errors
    /// When it is missing, forbidden, in use, or no database by its header.
    pub fn lock(path: &Path, stop: Arc<AtomicBool>) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let file = open_file(path)?;
        hold(path, &file)?;
        // Only now: its owner may have written until it let go.
        let identity = identity_of(path, &file)?;
        if identity.kind == Kind::Sqlite && sqlite::in_use(&file).map_err(read)? {
            return Err(SourceError::InUse(path.to_owned()));
        }
        let overlay = match identity.kind {
            Kind::Sqlite => None,
            _ => {
                let file = file.try_clone().map_err(read)?;
                Some(Overlay::new(file, Arc::clone(&stop)).map_err(read)?)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            identity,
            file,
            overlay,
            stop,
        })
    }

    /// What redb reads through; watching it shows how far opening is.
    #[must_use]
    pub fn overlay(&self) -> Option<Overlay> {
        self.overlay.clone()
    }

    /// What the source is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The read-only descriptor.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Opens the engine. A redb file that was not closed is recovered, in
    /// memory, which reads all of it.
    ///
    /// # Errors
    /// When it is damaged or told to stop.
    pub fn open(self) -> Result<Source, SourceError> {
        let engine = match &self.overlay {
            None => SqliteReader::open(&self.path).map(Engine::Sqlite)?,
            Some(overlay) => {
                let opened = match self.identity.version {
                    Some(2) => FormatV2::open(overlay.clone()).map(Redb::V2),
                    _ => FormatV3::open(overlay.clone()).map(Redb::V3),
                };
                let engine = opened.map_err(|source| match self.stop.load(Ordering::Relaxed) {
                    true => SourceError::Stopped,
                    false => SourceError::Damaged {
                        path: self.path.clone(),
                        source,
                    },
                })?;
                Engine::Redb(engine)
            }
        };
        let source = Source {
            path: self.path,
            identity: self.identity,
            engine,
            overlay: self.overlay,
            stop: self.stop,
            rebuilt_bookkeeping: false,
            file: self.file,
        };
        source.require_newest_commit()?;
        Ok(source)
    }
}

/// An open source, locked against other processes until dropped.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    identity: Identity,
    engine: Engine,
    overlay: Option<Overlay>,
    stop: Arc<AtomicBool>,
    rebuilt_bookkeeping: bool,
    /// Keeps the lock. It is dropped last.
    file: File,
}

impl Source {
    /// Locks and opens `path`. Nothing is trusted before
    /// [`check_integrity`](Self::check_integrity).
    ///
    /// # Errors
    /// When it is missing, forbidden, in use, damaged or no database.
    pub fn open(path: &Path, stop: Arc<AtomicBool>) -> Result<Self, SourceError> {
        LockedSource::lock(path, stop)?.open()
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The read-only descriptor.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What redb reads through, if the source is redb.
    #[must_use]
    pub fn overlay(&self) -> Option<Overlay> {
        self.overlay.clone()
    }

    /// Whether a value may be larger than SQLite takes: only then is a scan
    /// for it worth its time. Meaningful after [`check_integrity`](Self::check_integrity).
    #[must_use]
    pub fn may_hold_huge_value(&self, limit: u64) -> bool {
        self.overlay
            .as_ref()
            .is_some_and(|overlay| overlay.largest_read() >= limit)
    }

    /// Whether the integrity check had to rebuild the allocator's bookkeeping,
    /// in memory: the rows are proven, the file has a defect.
    #[must_use]
    pub fn rebuilt_bookkeeping(&self) -> bool {
        self.rebuilt_bookkeeping
    }

    fn damaged(&self, error: EngineError) -> SourceError {
        if self.stop.load(Ordering::Relaxed) {
            return SourceError::Stopped;
        }
        SourceError::Damaged {
            path: self.path.clone(),
            source: error,
        }
    }

    /// Verifies every checksum of the file, then that it is what it should be
    /// and holds nothing that would be left behind.
    ///
    /// # Errors
    /// When anything is damaged, or the file is something else.
    pub fn check_integrity(&mut self, holds: Holds) -> Result<(), SourceError> {
        let clean = self.identity.closed_cleanly;
        let checked = match &mut self.engine {
            Engine::Sqlite(reader) => {
                let complaint = reader.check_integrity()?.into_iter().next();
                return complaint.map_or(Ok(()), |complaint| {
                    Err(SourceError::SqliteDamaged {
                        path: self.path.clone(),
                        complaint,
                    })
                });
            }
            // Opening recovered it, which verified every checksum already.
            Engine::Redb(engine @ Redb::V2(_)) if !clean && engine.recovered() => Ok(true),
            Engine::Redb(engine) => engine.check_integrity(),
        };
        match checked {
            Ok(sound) => self.rebuilt_bookkeeping = clean && !sound,
            Err(error) => return Err(self.damaged(error)),
        }
        self.require_newest_commit()?;
        self.require(holds)
    }

    /// Fails when redb went back to an earlier commit than the header names.
    fn require_newest_commit(&self) -> Result<(), SourceError> {
        let Some(overlay) = &self.overlay else {
            return Ok(());
        };
        let header = |source| SourceError::Header {
            path: self.path.clone(),
            source,
        };
        let wanted = Header::read(&self.file)
            .and_then(|h| h.commit())
            .map_err(header)?;
        let mut bytes = [0; HEADER_BYTES];
        overlay
            .read_at(0, &mut bytes)
            .map_err(|source| SourceError::Read {
                path: self.path.clone(),
                source,
            })?;
        let opened = Header::parse(bytes, overlay.length())
            .and_then(|h| h.commit())
            .map_err(header)?;
        if opened.user_root == wanted.user_root {
            Ok(())
        } else {
            let transaction = wanted.transaction_id;
            Err(SourceError::LastCommitDamaged {
                path: self.path.clone(),
                transaction,
            })
        }
    }

    /// How many rows it holds.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub fn rows(&self) -> Result<u64, SourceError> {
        match &self.engine {
            Engine::Sqlite(reader) => Ok(reader.rows()?),
            Engine::Redb(_) => self.rows_of(tables::KV),
        }
    }

    /// The metadata, byte for byte; the known records must decode.
    ///
    /// # Errors
    /// When it cannot be read or a record is damaged.
    pub fn metadata(&self) -> Result<Metadata, SourceError> {
        let records = match &self.engine {
            Engine::Sqlite(reader) => reader.meta()?,
            Engine::Redb(engine) => engine
                .read_meta(tables::META)
                .map_err(|error| self.damaged(error))?,
        };
        Metadata::new(records).map_err(|source| SourceError::Record {
            path: self.path.clone(),
            source,
        })
    }

    /// Hands every row to `sink`, in key order, until it has [`Enough`].
    pub(crate) fn scan(&self, sink: RowSink<'_>) -> Result<(), SourceError> {
        match &self.engine {
            Engine::Sqlite(reader) => Ok(reader.scan(sink)?),
            Engine::Redb(engine) => match engine.scan(tables::KV, sink) {
                Ok(()) | Err(EngineError::Stopped) => Ok(()),
                Err(error) => Err(self.damaged(error)),
            },
        }
    }

    /// The value of one key.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<String>, SourceError> {
        match &self.engine {
            Engine::Sqlite(reader) => Ok(reader.get(key)?),
            Engine::Redb(engine) => engine
                .get(tables::KV, key)
                .map_err(|error| self.damaged(error)),
        }
    }

    /// The newest migration record in a SQLite source.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn newest_record(&self) -> Result<Option<String>, SourceError> {
        match &self.engine {
            Engine::Sqlite(reader) => Ok(reader.newest_record()?),
            _ => Ok(None),
        }
    }

    /// Ends a long SQLite statement from another thread.
    pub(crate) fn interrupter(&self) -> Option<rusqlite::InterruptHandle> {
        match &self.engine {
            Engine::Sqlite(reader) => Some(reader.interrupter()),
            _ => None,
        }
    }
}

/// Opens `path` for reading and tells what it is.
///
/// # Errors
/// When it is missing, forbidden, no database, or its header is damaged.
pub fn identify(path: &Path) -> Result<(File, Identity), SourceError> {
    let file = open_file(path)?;
    let identity = identity_of(path, &file)?;
    Ok((file, identity))
}

fn open_file(path: &Path) -> Result<File, SourceError> {
    // Not blocking, so that a pipe in its place does not hang the start.
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SourceError::Missing(path.to_owned()),
        _ => SourceError::Read {
            path: path.to_owned(),
            source,
        },
    })
}

fn identity_of(path: &Path, file: &File) -> Result<Identity, SourceError> {
    let read = |source| SourceError::Read {
        path: path.to_owned(),
        source,
    };
    let about = file.metadata().map_err(read)?;
    let not = |found| {
        Err(SourceError::NotADatabase {
            path: path.to_owned(),
            found,
        })
    };
    if !about.is_file() {
        return not("not a regular file");
    }
    let kind = Kind::of(file).map_err(read)?;
    let identity = match kind {
        Kind::Empty => return not("it is empty"),
        Kind::Unknown => return not("its first bytes are of neither"),
        Kind::Sqlite => Identity {
            kind,
            fingerprint: sqlite_fingerprint(path, &about),
            version: None,
            closed_cleanly: true,
            length: about.len(),
        },
        Kind::Redb => {
            let header_error = |source| SourceError::Header {
                path: path.to_owned(),
                source,
            };
            let header = Header::read(file).map_err(header_error)?;
            let commit = header.commit().map_err(header_error)?;
            if !matches!(commit.version, 2 | 3) {
                return Err(header_error(HeaderError::Version(commit.version)));
            }
            header.check_length().map_err(header_error)?;
            Identity {
                kind,
                fingerprint: header.fingerprint(),
                version: Some(commit.version),
                closed_cleanly: header.closed_cleanly(),
                length: about.len(),
            }
        }
    };
    Ok(identity)
}

/// SQLite has no checksum of its content; length and time of the last change,
/// of the database and its log, tell one state from another.
fn sqlite_fingerprint(path: &Path, about: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let log = sqlite::log_of(path).metadata().ok();
    let mut identity = Vec::new();
    for about in [Some(about.clone()), log].into_iter().flatten() {
        identity.extend_from_slice(&about.len().to_le_bytes());
        identity.extend_from_slice(&about.mtime().to_le_bytes());
        identity.extend_from_slice(&about.mtime_nsec().to_le_bytes());
    }
    format!("sqlite-{:032x}", xxhash_rust::xxh3::xxh3_128(&identity))
}

/// Takes the lock that a legacy node would need to itself, until `file` is closed.
///
/// # Errors
/// When another process has the source open.
pub fn hold(path: &Path, file: &File) -> Result<(), SourceError> {
    match fs2::FileExt::try_lock_shared(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SourceError::InUse(path.to_owned()))
        }
        Err(source) => Err(SourceError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
