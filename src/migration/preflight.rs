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
    /// Bytes that are written beside both.
    pub besides: u64,
}

/// Checks permissions and file systems, and whether space needs a closer look.
///
/// # Errors
/// When the file system cannot be asked.
pub fn check(source: &Source, wanted: Wanted<'_>) -> Result<(Room, Vec<Problem>), DurableError> {
    let dir = durable::parent(wanted.target);
    let mut problems: Vec<_> = not_writable(dir).into_iter().collect();
    let beside = durable::parent(source.path());
    if wanted.backup.is_some() && !durable::same_file_system(beside, dir)? {
        problems.push(Problem::OtherFileSystem(beside.to_owned()));
    }
    if let Some(path) = in_the_way(wanted.target).filter(|_| wanted.kind == Kind::Sqlite) {
        problems.push(Problem::InTheWay(path));
    }
    // Not proven yet: where the count is wrong, the check will say so.
    let rows = source.rows().unwrap_or(0);
    let most = backup_bytes(source, wanted.backup)
        + wanted.besides
        + copy_at_most(source.identity().length, rows);
    let room = match durable::free_space(dir)? >= most.saturating_add(RESERVE_BYTES) {
        true => Room::Plenty,
        false => Room::Tight,
    };
    Ok((room, problems))
}

/// Twice the source bounds the copy, since SQLite keeps keys twice, but for
/// what a row takes beside them: eight bytes more than in redb at most.
fn copy_at_most(source_bytes: u64, rows: u64) -> u64 {
    (2 * source_bytes + FIXED_BYTES).saturating_add(rows.saturating_mul(8))
}

/// Most bytes that backup and copy of `source` can take.
#[must_use]
pub fn upper_bound(source: &Path, backup: Option<BackupKind>) -> u64 {
    source.metadata().map_or(0, |about| {
        let backup = backup.filter(|kind| *kind == BackupKind::Copy);
        backup.map_or(0, |_| backup::bytes_needed(&about)) + copy_at_most(about.len(), 0)
    })
}

/// Bytes that the backup of `source` will take, if it has none yet.
pub(super) fn backup_bytes(source: &Source, backup: Option<BackupKind>) -> u64 {
    let exists = backup::list(source.path()).is_ok_and(|backups| {
        backups.iter().any(|(_, path)| {
            super::source::identify(path)
                .is_ok_and(|(_, found)| found.fingerprint == source.identity().fingerprint)
        })
    });
    match (backup, source.file().metadata()) {
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
    let mut remembered = 0;
    source.scan_idempotency(&mut |_, key, record| {
        // The key stands in an index too; pages may be half full, and the file grow by doubling.
        remembered += 4 * (2 * key.len() + record.len() + 32) as u64;
        Ok(())
    })?;
    let dir = durable::parent(wanted.target);
    let copy = match wanted.kind {
        Kind::Sqlite => size.sqlite(),
        _ => redb_at_most(size.rows, size.content),
    };
    let needed = backup_bytes(source, wanted.backup)
        + wanted.besides
        + copy
        + remembered
        + FIXED_BYTES
        + RESERVE_BYTES;
    problems.splice(0..0, no_room(dir, needed)?);
    Ok(problems)
}

/// Whether `dir` takes a redb file of `bytes` at most, and its backup.
///
/// # Errors
/// When the file system cannot be asked.
pub(super) fn room_in(dir: &Path, bytes: u64) -> Result<Vec<Problem>, DurableError> {
    let no_room = no_room(dir, bytes + RESERVE_BYTES)?;
    Ok(not_writable(dir).into_iter().chain(no_room).collect())
}

fn not_writable(dir: &Path) -> Option<Problem> {
    let may = nix::unistd::access(dir, AccessFlags::W_OK | AccessFlags::X_OK);
    may.is_err().then(|| Problem::NotWritable(dir.to_owned()))
}

fn no_room(dir: &Path, needed: u64) -> Result<Option<Problem>, DurableError> {
    let found = durable::free_space(dir)?;
    Ok((found < needed).then(|| Problem::Space {
        dir: dir.to_owned(),
        needed,
        found,
    }))
}

/// Most bytes that a redb file of so many rows takes, which hold `content`
/// bytes. Pages filled in key order end up half full; the file grows by doubling.
pub(super) fn redb_at_most(rows: u64, content: u64) -> u64 {
    /// Offsets of key and value, and their share of the page's own bytes.
    const ROW: u64 = 18;
    4 * (content + ROW * rows)
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

/// Bytes of a page of the copy.
const PAGE: u64 = PAGE_BYTES as u64;
/// Most bytes of a row, and of an index entry, that stay in a page of their
/// tree, and fewest, when the rest goes to pages of its own
/// (<https://sqlite.org/fileformat2.html#b_tree_pages>).
const MOST_IN_TABLE: u64 = PAGE - 35;
const MOST_IN_INDEX: u64 = (PAGE - 12) * 64 / 255 - 23;
const FEWEST: u64 = (PAGE - 12) * 32 / 255 - 23;

/// Estimates the copy's size by filling pages as SQLite fills them.
#[derive(Debug, Default)]
struct CopySize {
    rows: u64,
    content: u64,
    pages: u64,
    used_in_page: u64,
    index_bytes: u64,
}

impl CopySize {
    fn add(&mut self, key: u64, row: u64) {
        self.rows += 1;
        self.content += row;
        let text = |bytes: u64| varint(2 * bytes + 13);
        let columns = 1 + text(key) + text(row - key) + row;
        let cell = self.place(columns, MOST_IN_TABLE) + varint(self.rows);
        if self.pages == 0 || self.used_in_page + cell > PAGE - 8 {
            self.pages += 1;
            self.used_in_page = 0;
        }
        self.used_in_page += cell;
        let columns = 2 + text(key) + key + varint(self.rows);
        self.index_bytes += self.place(columns, MOST_IN_INDEX);
    }

    /// Counts the pages that what is too long continues on; the bytes that stay.
    fn place(&mut self, payload: u64, most: u64) -> u64 {
        /// Place in the page, first of the other pages.
        const POINTERS: u64 = 2 + 4;
        let fitting = FEWEST + payload.saturating_sub(FEWEST) % (PAGE - 4);
        let local = match payload {
            all if all <= most => all,
            _ if fitting <= most => fitting,
            _ => FEWEST,
        };
        self.pages += (payload - local).div_ceil(PAGE - 4);
        local + varint(payload) + POINTERS
    }

    /// In key order pages of the table end up full, those of the index by six
    /// sevenths; inner pages add a hundredth at most.
    fn sqlite(&self) -> u64 {
        let bytes = self.pages * PAGE + self.index_bytes * 7 / 6;
        bytes + bytes / 100
    }
}

/// Bytes of a number as SQLite writes them, seven bits in each.
fn varint(number: u64) -> u64 {
    u64::from((64 - (number | 1).leading_zeros()).div_ceil(7))
}

/// The sidecar files that must not lie where a SQLite copy goes.
fn in_the_way(target: &Path) -> Option<PathBuf> {
    layout::sqlite_companions(target)
        .into_iter()
        .find(|path| path.symlink_metadata().is_ok())
}
