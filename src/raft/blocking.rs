//! Work that waits for the disk.
//!
//! It is done on a thread that may wait, while everybody else goes on. A runtime that has
//! only one thread does it in its place: there is nobody to go on, and what happens there
//! happens in one order, which is what a simulated cluster lives on.

use std::ops::Deref;

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
    is_one_thread(&Handle::current())
}

fn is_one_thread(runtime: &Handle) -> bool {
    runtime.runtime_flavor() == RuntimeFlavor::CurrentThread
}

/// What a thread drops that may wait. A file without a name gives its blocks back when it
/// is closed: 0.3 s a gigabyte, in which an event loop would serve nobody.
#[derive(Debug)]
pub struct Aside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Aside<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send + 'static> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        #[allow(clippy::expect_used)] // nothing takes it but drop
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        match Handle::try_current() {
            Ok(runtime) if !is_one_thread(&runtime) => {
                drop(runtime.spawn_blocking(move || drop(value)));
            }
            _ => drop(value),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{ThreadId, current};

    use super::*;

    struct Told(Sender<ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(current().id()).unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_is_put_aside_is_not_dropped_by_the_event_loop() {
        let (told, dropped) = channel();
        let value = Aside::new(Told(told));
        let event_loop = tokio::spawn(async move {
            drop(value);
            current().id()
        });
        assert_ne!(event_loop.await.unwrap(), dropped.recv().unwrap());
    }

    #[test]
    fn what_is_put_aside_is_dropped_where_there_is_no_event_loop() {
        let (told, dropped) = channel();
        drop(Aside::new(Told(told)));
        assert_eq!(dropped.recv().unwrap(), current().id());
    }
}
