//! Whatever a body holds, it is refused or becomes a write within the limits.
#![no_main]

use aspen::format::entry::Plain;
use aspen::format::idempotency;
use aspen::http::{input, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let fits = |key: &str, value: &str| {
        !key.is_empty()
            && key.len() <= limits::MAX_KEY_BYTES
            && value.len() <= limits::MAX_VALUE_BYTES
    };
    match input::set("k".to_owned(), bytes) {
        Ok(Plain::Set { key, value } | Plain::CompareAndSet { key, value, .. }) => {
            assert!(fits(&key, &value));
        }
        Ok(other) => panic!("{other}"),
        Err(_) => {}
    }
    if let Ok(key) = input::idempotency_key(bytes) {
        assert!(!key.is_empty() && key.len() <= idempotency::MAX_KEY_BYTES);
    }
    match input::batch(bytes) {
        Ok(Plain::Batch { set, delete }) => {
            assert!(set.iter().all(|(key, value)| fits(key, value)));
            assert!(set.len() + delete.len() <= limits::MAX_BATCH_KEYS);
        }
        Ok(other) => panic!("{other}"),
        Err(_) => {}
    }
});
