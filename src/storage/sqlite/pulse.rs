//! What the writer tells the checkpointing thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the thread is told on the way to the threshold.
const STEPS: u64 = 8;

/// The length of the write-ahead log as of the last commit.
pub(super) struct Pulse {
    page_bytes: AtomicU64,
    /// Pages in the log, whether or not they are in the database as well.
    pages: AtomicU64,
    /// Commits so far: while it stands still the node is idle.
    commits: AtomicU64,
    stop: Mutex<bool>,
    changed: Condvar,
    threshold_bytes: u64,
}

impl Pulse {
    pub(super) fn new(threshold_bytes: u64) -> Self {
        Self {
            page_bytes: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            stop: Mutex::new(false),
            changed: Condvar::new(),
            threshold_bytes,
        }
    }

    /// A file was opened; what its log holds is not known, so it is taken for something.
    pub(super) fn opened(&self, page_bytes: u64) {
        self.page_bytes.store(page_bytes, Ordering::Relaxed);
        self.committed(1);
    }

    /// A commit; the log now has `pages`.
    pub(super) fn committed(&self, pages: u64) {
        let bytes = |pages| pages * self.page_bytes.load(Ordering::Relaxed);
        let before = self.pages.swap(pages, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
        let (before_bytes, bytes) = (bytes(before), bytes(pages));
        let threshold = self.threshold_bytes;
        let step = (threshold / STEPS).max(1);
        let is_told = match bytes < threshold {
            true => before_bytes / step < bytes / step,
            false => before_bytes < threshold,
        };
        if before == 0 || is_told {
            // Under the lock, or a thread between its look and its wait misses it.
            let _stop = self.lock();
            self.changed.notify_all();
        }
    }

    /// The log was restarted, by whoever keeps commits away meanwhile.
    pub(super) fn restarted(&self) {
        self.pages.store(0, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) * self.page_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn page_bytes(&self) -> u64 {
        self.page_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    pub(super) fn stopped(&self) -> bool {
        *self.lock()
    }

    /// Waits until the log passes a step on the way to the threshold, or for `at_most`;
    /// with an empty log for as long as that takes. False when told to stop.
    pub(super) fn wait(&self, at_most: Duration, pinned: bool) -> bool {
        let stop = self.lock();
        let poisoned = PoisonError::into_inner;
        if *stop {
            return false;
        }
        let full = self.bytes() >= self.threshold_bytes && !pinned;
        let stop = if full {
            stop
        } else if self.bytes() == 0 {
            self.changed.wait(stop).unwrap_or_else(poisoned)
        } else {
            let waited = self.changed.wait_timeout(stop, at_most);
            waited.unwrap_or_else(|p| p.into_inner()).0
        };
        !*stop
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
