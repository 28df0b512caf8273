//! The disk below a log, and who writes to it when: the file system and the log's own
//! threads, or in tests something simulated.

use std::fmt::Debug;
use std::sync::Weak;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::Handle;

/// What a log is written to, and when.
pub trait Disk: Debug + Send + Sync {
    /// What is read and written in place of `file`, which only this log has open.
    fn attach(&self, part: Part, file: FileBackend) -> Box<dyn StorageBackend>;

    /// Something waits to be written: `hand` is to write until nothing does, at a
    /// moment of this disk's choice. Not from within this call.
    fn asked(&self, hand: Hand);

    /// Bytes of a segment of the journal: what is filed at once, and up to twice that by a start
    /// after a kill. Little, where there is little time to fill one.
    fn segment(&self) -> u64 {
        64 << 10
    }

    /// How often something is written before there is a journal.
    fn groups_without_journal(&self) -> u64 {
        0
    }
}

/// The files of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The log itself. Attached when the log is opened, before all else.
    Log,
    /// Its journal.
    Journal,
}

/// The file system, and threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileSystem;

impl Disk for FileSystem {
    fn attach(&self, _: Part, file: FileBackend) -> Box<dyn StorageBackend> {
        Box::new(file)
    }

    fn asked(&self, _: Hand) {}

    fn segment(&self) -> u64 {
        4 << 20
    }

    /// A node that writes little needs none.
    fn groups_without_journal(&self) -> u64 {
        64
    }
}

/// What writes to a log.
#[derive(Clone)]
pub struct Hand(pub(super) Weak<Handle>);

impl Hand {
    /// Writes what waits, or as much of it as one transaction holds, and tells those who
    /// wait for it; whether there was any.
    #[must_use]
    pub fn write(&self) -> bool {
        self.0.upgrade().is_some_and(|log| log.write_group())
    }
}
