//! The time as the simulation has it.
//!
//! tokio's clock is turmoil's, but some look at the system's own: h2 remembers for one
//! second of it which streams were reset. To the simulation's own thread that is ours, too.
//! Nobody there waits for it: all that waits does so by tokio's clock.

use std::cell::Cell;
use std::time::Duration;

use nix::libc;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Has it be that long after the beginning, to this thread.
pub(crate) fn set(elapsed: Duration) {
    NOW.set(Some(elapsed));
}

/// The C library's function of that name, for this program.
///
/// # Safety
/// `to` has room for a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, to: *mut libc::timespec) -> libc::c_int {
    if let Some(now) = NOW.get() {
        // SAFETY: the caller's promise.
        unsafe {
            (*to).tv_sec = now.as_secs().cast_signed();
            (*to).tv_nsec = now.subsec_nanos().into();
        }
        return 0;
    }
    // SAFETY: the caller's promise; the arguments are those of the system call.
    let told = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, to) };
    libc::c_int::try_from(told).unwrap_or(-1)
}
