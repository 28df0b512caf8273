//! Whatever a configuration file holds, it loads or its problems are named.
#![no_main]

use std::path::Path;

use aspen::config::Overrides;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.toml");
    std::fs::write(&file, bytes).expect("a file");
    let overrides = Overrides {
        config: Some(file),
        ..Overrides::default()
    };
    match aspen::config::load(&overrides, [], Path::new("/nonexistent")) {
        Ok(loaded) => assert!(!loaded.report().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
