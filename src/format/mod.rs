//! What is inside the files: their kinds, tables, record encodings and digests.
//!
//! Nothing here decides or changes anything on disk.

pub mod digest;
pub mod entry;
pub mod header;
pub mod idempotency;
pub mod peer;
pub mod record;
pub mod sqlite;
pub mod tables;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// The first bytes of every SQLite database (<https://sqlite.org/fileformat2.html#the_database_header>).
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// What a file is, told from its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A redb database of any format version.
    Redb,
    /// A SQLite database.
    Sqlite,
    /// No bytes at all.
    Empty,
    /// Anything else.
    Unknown,
}

impl Kind {
    /// Reads the first bytes of `file`; its position does not move.
    ///
    /// # Errors
    /// When reading fails.
    pub fn of(file: &File) -> io::Result<Self> {
        let mut start = [0; 16];
        let mut filled = 0;
        while filled < start.len() {
            match file.read_at(&mut start[filled..], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(match &start[..filled] {
            [] => Self::Empty,
            bytes if bytes.starts_with(&header::MAGIC) => Self::Redb,
            bytes if bytes == SQLITE_MAGIC => Self::Sqlite,
            _ => Self::Unknown,
        })
    }
}
