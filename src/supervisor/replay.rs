//! What a crash took from the state machine is applied again from the log; the
//! service manager is told so, from the progress alone.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::report::EXTENSION;
use crate::notify::Notify;
use crate::storage::StateMachine;

/// How often to look.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Looks whether entries of the log are being applied.
pub(super) struct Replay {
    notify: Notify,
    state_machine: Arc<dyn StateMachine>,
    seen: Cell<Option<u64>>,
}

impl Replay {
    pub(super) fn new(notify: Notify, state_machine: Arc<dyn StateMachine>) -> Self {
        let seen = Cell::new(applied(state_machine.as_ref()));
        Self {
            notify,
            state_machine,
            seen,
        }
    }

    /// Called every [`INTERVAL`].
    pub(super) fn look(&self) {
        let now = applied(self.state_machine.as_ref());
        if let Some(index) = now
            && self.seen.replace(now) != now
        {
            self.notify
                .status(&format!("Applying the Raft log: at entry {index}"));
            self.notify.extend_timeout(EXTENSION);
        }
    }
}

fn applied(state_machine: &dyn StateMachine) -> Option<u64> {
    let applied = state_machine.applied().ok()?;
    applied.last_applied.map(|id| id.index)
}
