//! Panics of libraries that trust a file more than it deserves, as errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, and returns what it said if it panicked: on standard error it
/// says nothing, because the caller tells it better. What `work` has left
/// half-done is for the caller to distrust.
///
/// # Errors
/// When `work` panicked.
pub fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                loud(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        said.unwrap_or("no reason given").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_what_it_said() {
        assert_eq!(contained(|| 5), Ok(5));
        let said = |result: Result<(), String>| result.err();
        assert_eq!(said(contained(|| panic!("text"))).as_deref(), Some("text"));
        let formatted = said(contained(|| panic!("page {}", 7)));
        assert_eq!(formatted.as_deref(), Some("page 7"));
        let inner = contained(|| said(contained(|| panic!("inner"))));
        assert_eq!(inner, Ok(Some("inner".to_owned())));
    }
}
