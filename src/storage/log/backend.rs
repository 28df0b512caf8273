//! What redb reads and writes: the log's file, filled ahead of what is written to it, and
//! written again where there was no room.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use redb::{BackendError, StorageBackend};

use super::ahead::Ahead;
use super::patience::Patience;
use crate::telemetry::count;

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) file: Box<dyn StorageBackend>,
    pub(super) ahead: Ahead,
    pub(super) patience: Arc<Patience>,
    /// How often the file was made durable.
    pub(super) syncs: Arc<AtomicU64>,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let file = self.file.as_ref();
        self.patience.insist(|| self.ahead.set_len(file, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let synced = StorageBackend::sync_data(self.file.as_ref());
        count::LOG_SYNCS.observe(began.elapsed());
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let file = self.file.as_ref();
        self.patience
            .insist(|| self.ahead.write(file, offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
