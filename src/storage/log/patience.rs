//! A full disk is a slow disk: what the log's writer cannot write for want of
//! space it writes again until there is some.
//!
//! This happens below redb, which refuses everything after one failed write
//! and would have to be closed and repaired, on a disk that has no room for
//! that. Here it notices nothing: no operation fails, none is done twice, and
//! reads go on (but for those of the file while a quota keeps it from growing,
//! where redb lets nobody in).
//!
//! Only the threads that write wait, and only in writing and growing. Whatever else fails,
//! fsync above all, fails for good: after a failed fsync nobody knows what is
//! on the disk, and a second one may succeed without having written it.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::durable;
use crate::telemetry::events;

/// Between two tries on a full disk: nobody who frees space waits for this.
const PAUSE: Duration = Duration::from_millis(200);

/// What the waiting thread and those who ask about it share.
#[derive(Debug, Default)]
pub(super) struct Patience {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The threads that wait; for all others errors are errors.
    writers: Vec<ThreadId>,
    /// Nobody waits any more.
    over: bool,
    /// Why it waits at the moment.
    reason: Option<String>,
}

impl Patience {
    /// Lets the thread that calls this wait from now on.
    pub(super) fn begin(&self) {
        self.lock().writers.push(std::thread::current().id());
    }

    /// Ends all waiting: what cannot be written then fails.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Why the writer waits, if it does.
    pub(super) fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` until it succeeds, or fails for another reason than space.
    pub(super) fn insist(&self, work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut waited = false;
        let result = loop {
            match work() {
                Err(error) if durable::is_full(&error) && self.pause(&error, waited) => {
                    waited = true
                }
                result => break result,
            }
        };
        if waited {
            self.lock().reason = None;
            if result.is_ok() {
                tracing::info!(
                    MESSAGE_ID = events::DISK_RECOVERED,
                    "There is space again: the Raft log goes on writing"
                );
            }
        }
        result
    }

    /// Waits a moment; false if this thread is not to wait.
    fn pause(&self, error: &io::Error, again: bool) -> bool {
        let mut state = self.lock();
        if state.over || !state.writers.contains(&std::thread::current().id()) {
            return false;
        }
        if !again {
            let reason = format!(
                "the disk is full, the Raft log waits for space ({error}); free some (df -h)"
            );
            tracing::error!(
                MESSAGE_ID = events::DISK_FULL,
                "No write is confirmed: {reason}"
            );
            state.reason = Some(reason);
        }
        let waited = self.changed.wait_timeout(state, PAUSE);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        true
    }
}
