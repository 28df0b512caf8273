//! What can be known to fail is found before a byte is written, and all of it
//! is reported together.

use std::path::{Path, PathBuf};

use nix::unistd::AccessFlags;

use super::backup;
use super::source::{Source, SourceError};
use crate::config::settings::BackupKind;
use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::format::Kind;
use crate::format::sqlite::{MAX_ROW_BYTES, PAGE_BYTES, ROW_OVERHEAD_BYTES};
use crate::layout;

/// Bytes that stay free: the node that starts next has a log to write.
pub const RESERVE_BYTES: u64 = 16 << 20;
/// Fixed part of a copy's size: schema, inner pages of small tables, index of the write-ahead log.
const FIXED_BYTES: u64 = 1 << 20;

/// Problems that must be solved first.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            let separator = if n > 0 { "; " } else { "" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

/// One problem.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not enough free space.
    Space {
        /// Where.
        dir: PathBuf,
        /// Bytes needed, the reserve included.
        needed: u64,
        /// Bytes free.
        found: u64,
    },
    /// This user may not write to the directory.
    NotWritable(PathBuf),
    /// Source and target lie on different file systems, so that no rename joins them.
    OtherFileSystem(PathBuf),
    /// A write-ahead log or its index lies where the copy's would.
    InTheWay(PathBuf),
    /// A row is larger than SQLite takes.
    HugeRow {
        /// Its position in key order, from 1.
        number: u64,
        /// Bytes of key and value.
        bytes: u64,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Space { dir, needed, found } => write!(
                f,
                "not enough disk space in {}: {needed} bytes are needed, {found} are free; free some \
                 (df -h), or set migration.backup = \"link\"",
                dir.display()
            ),
            Self::NotWritable(dir) => write!(
                f,
                "this user may not write to {}; make it the owner (chown)",
                dir.display()
            ),
            Self::OtherFileSystem(path) => write!(
                f,
                "{} lies on another file system than the data directory; move it there",
                path.display()
            ),
            Self::InTheWay(path) => write!(
                f,
                "{} belongs to a database that is not there and would damage the copy; move it away",
                path.display()
            ),
            Self::HugeRow { number, bytes } => write!(
                f,
                "the row of key number {number} in key order has {bytes} bytes, and SQLite takes \
                 {MAX_ROW_BYTES} at most; delete it with the old version, then try again"
            ),
        }
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// The exit code of the first problem.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self.0.first() {
            Some(Problem::Space { .. }) => Exit::Io,
            Some(Problem::NotWritable(_)) => Exit::Permission,
            Some(Problem::OtherFileSystem(_)) => Exit::Config,
            Some(Problem::InTheWay(_) | Problem::HugeRow { .. }) | None => Exit::Data,
        }
    }
}

/// Whether there is room to spare, or every byte counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More than can be needed: backup and integrity check may run side by side.
    Plenty,
    /// Measure the rows first: [`measured`].
    Tight,
}

/// What is going to be written.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The copy's path.
    pub target: &'a Path,
    /// The copy's engine.
    pub kind: Kind,
    /// The backup, when one is made.
    pub backup: Option<BackupKind>,
}

/// Checks permissions and file systems, and whether space needs a closer look.
///
/// # Errors
/// When the file system cannot be asked.
pub fn check(source: &Source, wanted: Wanted<'_>) -> Result<(Room, Vec<Problem>), DurableError> {
    let dir = durable::parent(wanted.target);
    let mut problems = Vec::new();
    if nix::unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        problems.push(Problem::NotWritable(dir.to_owned()));
    }
    let beside = durable::parent(source.path());
    if wanted.backup.is_some() && !durable::same_file_system(beside, dir)? {
        problems.push(Problem::OtherFileSystem(beside.to_owned()));
    }
    if let Some(path) = in_the_way(wanted.target).filter(|_| wanted.kind == Kind::Sqlite) {
        problems.push(Problem::InTheWay(path));
    }
    let most = backup_bytes(source, wanted) + copy_at_most(source.identity().length);
    let room = match durable::free_space(dir)? >= most + RESERVE_BYTES {
        true => Room::Plenty,
        false => Room::Tight,
    };
    Ok((room, problems))
}

/// Twice the source bounds the copy: rows take more only where keys do, which SQLite keeps twice.
fn copy_at_most(source_bytes: u64) -> u64 {
    2 * source_bytes + FIXED_BYTES
}

/// Most bytes that backup and copy of `source` can take.
#[must_use]
pub fn upper_bound(source: &Path, backup: Option<BackupKind>) -> u64 {
    source.metadata().map_or(0, |about| {
        let backup = backup.filter(|kind| *kind == BackupKind::Copy);
        backup.map_or(0, |_| backup::bytes_needed(&about)) + copy_at_most(about.len())
    })
}

fn backup_bytes(source: &Source, wanted: Wanted<'_>) -> u64 {
    let exists = backup::list(source.path()).is_ok_and(|backups| {
        backups.iter().any(|(_, path)| {
            super::source::identify(path)
                .is_ok_and(|(_, found)| found.fingerprint == source.identity().fingerprint)
        })
    });
    match (wanted.backup, source.file().metadata()) {
        (Some(BackupKind::Copy), Ok(about)) if !exists => backup::bytes_needed(&about),
        _ => 0,
    }
}

/// Reads every row of a proven source to find how much space the copy takes
/// and whether SQLite can hold it.
///
/// # Errors
/// When the source or the file system fails.
pub fn measured(source: &Source, wanted: Wanted<'_>) -> Result<Vec<Problem>, MeasureError> {
    let mut problems = Vec::new();
    let mut size = CopySize::default();
    let mut number = 0;
    source.scan(&mut |key, value| {
        number += 1;
        let bytes = (key.len() + value.len()) as u64;
        size.add(key.len() as u64, bytes);
        if wanted.kind == Kind::Sqlite && bytes + ROW_OVERHEAD_BYTES > MAX_ROW_BYTES {
            problems.push(Problem::HugeRow { number, bytes });
        }
        Ok(())
    })?;
    let dir = durable::parent(wanted.target);
    let copy = match wanted.kind {
        Kind::Sqlite => size.sqlite(),
        _ => size.redb(),
    };
    let needed = backup_bytes(source, wanted) + copy + FIXED_BYTES + RESERVE_BYTES;
    let found = durable::free_space(dir)?;
    if found < needed {
        problems.insert(
            0,
            Problem::Space {
                dir: dir.to_owned(),
                needed,
                found,
            },
        );
    }
    Ok(problems)
}

/// Why the rows could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file system could not be asked.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

/// Estimates the copy's size by filling pages as SQLite fills them.
#[derive(Debug, Default)]
struct CopySize {
    content: u64,
    table_pages: u64,
    used_in_page: u64,
    index_bytes: u64,
}

impl CopySize {
    fn add(&mut self, key: u64, row: u64) {
        const PAGE: u64 = PAGE_BYTES as u64;
        /// Row id, lengths and types, the cell's pointer.
        const CELL: u64 = 18;
        self.content += row + CELL;
        let mut cell = row + CELL;
        if cell > PAGE - 35 {
            // The rest goes to pages of its own; what stays is less than a page.
            self.table_pages += cell / (PAGE - 4) + 1;
            cell = cell % (PAGE - 4) + CELL;
        }
        if self.used_in_page + cell > PAGE - 8 {
            self.table_pages += 1;
            self.used_in_page = 0;
        }
        self.used_in_page += cell;
        let entry = key + CELL;
        self.index_bytes += if entry > PAGE / 4 {
            entry.div_ceil(PAGE) * PAGE + PAGE / 4
        } else {
            entry
        };
    }

    /// Index pages end up two thirds full; inner pages add a fiftieth.
    fn sqlite(&self) -> u64 {
        let table = (self.table_pages + 1) * u64::from(PAGE_BYTES);
        table + table / 50 + self.index_bytes * 8 / 5
    }

    /// Pages filled in key order end up half full; the file grows by doubling.
    fn redb(&self) -> u64 {
        4 * self.content
    }
}

/// The sidecar files that must not lie where a SQLite copy goes.
fn in_the_way(target: &Path) -> Option<PathBuf> {
    layout::sqlite_companions(target)
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok())
}
