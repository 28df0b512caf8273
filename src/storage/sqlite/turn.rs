//! A lock that is given in turn.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mutex that whoever waits for it gets next. The standard one lets a thread
/// that unlocks and locks again at once overtake all that wait, so that a
/// checkpoint would never get between the applies of a busy node.
pub(super) struct Turn<T> {
    /// Held only while waiting for `value`: a second in line stands here.
    next: Mutex<()>,
    value: Mutex<T>,
}

impl<T> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            next: Mutex::new(()),
            value: Mutex::new(value),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
