//! Whatever a body holds, it is refused or becomes a write within the limits.
#![no_main]

use aspen::format::entry::Request;
use aspen::http::{input, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let fits = |key: &str, value: &str| {
        !key.is_empty()
            && key.len() <= limits::MAX_KEY_BYTES
            && value.len() <= limits::MAX_VALUE_BYTES
    };
    match input::set("k".to_owned(), bytes) {
        Ok(Request::Set { key, value } | Request::CompareAndSet { key, value, .. }) => {
            assert!(fits(&key, &value));
        }
        Ok(other) => panic!("{other}"),
        Err(_) => {}
    }
    match input::batch(bytes) {
        Ok(Request::Batch { set, delete }) => {
            assert!(set.iter().all(|(key, value)| fits(key, value)));
            assert!(set.len() + delete.len() <= limits::MAX_BATCH_KEYS);
        }
        Ok(other) => panic!("{other}"),
        Err(_) => {}
    }
});
