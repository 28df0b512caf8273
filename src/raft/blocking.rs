//! Work that waits for the disk.
//!
//! It is done on a thread that may wait, while everybody else goes on. A runtime that has
//! only one thread does it in its place: there is nobody to go on, and what happens there
//! happens in one order, which is what a simulated cluster lives on.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, block_in_place, spawn_blocking};

/// Does `work`, and waits for it; fails only if it panics or the runtime ends.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match has_one_thread() {
        true => Ok(work()),
        false => spawn_blocking(work).await,
    }
}

/// Does `work` here, while others of this thread's tasks go on elsewhere.
pub(super) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match has_one_thread() {
        true => work(),
        false => block_in_place(work),
    }
}

fn has_one_thread() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}
