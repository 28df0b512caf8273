//! Another disk for a log than the one its file lies on, and another clock than the
//! writer's own thread: a simulated one, in tests.

use std::fmt::Debug;
use std::io;
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

/// What a disk attached.
#[derive(Debug)]
pub(super) struct Attached(pub(super) Box<dyn StorageBackend>);

/// Locks are not handed on: nobody else has the file open.
impl StorageBackend for Attached {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        StorageBackend::sync_data(self.0.as_ref())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
