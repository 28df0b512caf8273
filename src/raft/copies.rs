//! Consistent copies of the state machine, for backups and for peers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::blocking::{Aside, blocking};
use crate::durable;
use crate::storage::{Applied, StateMachine, StorageError};

/// A copy, as a file without a name: it is gone when this is dropped.
pub(super) struct Copy {
    /// The SQLite database, at its beginning.
    pub(super) file: Aside<File>,
    /// How far it is.
    pub(super) applied: Applied,
}

/// Makes copies, one at a time: they share a name while they are made.
pub(super) struct Copies {
    state_machine: Arc<dyn StateMachine>,
    path: Arc<Mutex<PathBuf>>,
}

impl Copies {
    pub(super) fn new(state_machine: &Arc<dyn StateMachine>, path: PathBuf) -> Self {
        Self {
            state_machine: Arc::clone(state_machine),
            path: Arc::new(Mutex::new(path)),
        }
    }

    /// Makes a copy while serving.
    pub(super) async fn make(&self) -> Result<Copy, StorageError> {
        let path = Arc::clone(&self.path).lock_owned().await;
        let machine = Arc::clone(&self.state_machine);
        // The thread holds the name, whoever waits for it.
        let making = blocking(move || copy(machine.as_ref(), &path));
        making.await.unwrap_or(Err(StorageError::Closed))
    }
}

fn copy(machine: &dyn StateMachine, path: &Path) -> Result<Copy, StorageError> {
    let file = Aside::new(durable::create_new(path)?);
    let copied = machine.write_snapshot(path);
    // Without a name, it is gone when the last handle to it is closed.
    durable::remove(path)?;
    Ok(Copy {
        file,
        applied: copied?,
    })
}
