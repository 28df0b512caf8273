//! Chance that repeats itself.
//!
//! The standard library, tokio and every crate that draws numbers draw the first of them
//! from the system, by way of `getrandom`. Here that is ours, and gives the same numbers
//! for the same seed, to the simulation's own thread. Others, which checkpoint, begin to draw
//! when the system has them run; what they draw changes nothing.

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    static DICE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Has everything that this thread draws from now on follow from `seed`. To be called first
/// of all, on a thread that has drawn nothing.
pub(crate) fn follow(seed: u64) {
    DICE.set(Some(StdRng::seed_from_u64(seed)));
}

/// The C library's function of that name, for this program.
///
/// # Safety
/// `to` has room for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(to: *mut u8, length: usize, flags: u32) -> isize {
    let is_drawn = DICE.with_borrow_mut(|dice| {
        dice.as_mut().is_some_and(|dice| {
            // SAFETY: the caller's promise.
            dice.fill_bytes(unsafe { std::slice::from_raw_parts_mut(to, length) });
            true
        })
    });
    if is_drawn {
        return isize::try_from(length).unwrap_or(isize::MAX);
    }
    // SAFETY: the caller's promise; the arguments are those of the system call.
    let drawn = unsafe { nix::libc::syscall(nix::libc::SYS_getrandom, to, length, flags) };
    isize::try_from(drawn).unwrap_or(-1)
}
