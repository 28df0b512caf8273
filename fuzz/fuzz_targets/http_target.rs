//! Whatever a path or a query holds, it is refused or becomes a key or a page.
#![no_main]

use aspen::http::{input, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = input::key(&format!("/api/kv/{text}"));
    let _ = (input::consistency(Some(text)), input::verbose(Some(text)));
    if let Ok((range, _)) = input::range(Some(text)) {
        assert!((1..=limits::MAX_PAGE).contains(&range.limit));
    }
});
