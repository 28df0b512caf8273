//! Another disk for a log than the one its file lies on, and another clock than the
//! writer's own thread: a simulated one, in tests.

use std::fmt::Debug;
use std::sync::Weak;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::Handle;

/// What a log is written to, and when.
pub trait Disk: Debug + Send + Sync {
    /// What is read and written in place of `file`, which only this log has open.
    fn attach(&self, file: FileBackend) -> Box<dyn StorageBackend>;

    /// Something waits to be written: `hand` is to write until nothing does, at a
    /// moment of this disk's choice. Not from within this call.
    fn asked(&self, hand: Hand);
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
