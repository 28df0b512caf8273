//! What tests of files share: fixtures, the tool, and reading a result by
//! means that are not ours.
#![allow(dead_code)] // each file in tests/ is a program of its own and uses its part

pub(crate) mod authority;
pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod disk;
pub(crate) mod fixture;
pub(crate) mod history;
pub(crate) mod linearizable;
pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod operator;
pub(crate) mod outcome;
pub(crate) mod read;
pub(crate) mod retrying;
pub(crate) mod scenario;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const MIGRATE: &str = env!("CARGO_BIN_EXE_aspen-migrate");

/// How `timeout` ends when the program did not.
const HUNG: i32 = 124;
/// Checks that run at once: the machines that tests run on have at least so many cores.
const AT_ONCE: usize = 2;

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Run {
    /// The exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// Runs `aspen-migrate`, which must neither hang nor die of a signal nor panic.
pub(crate) fn migrate<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    let mut command = Command::new("timeout");
    command.args(["60", MIGRATE]).args(arguments);
    finished(&command.output().unwrap())
}

/// The same, converting `source` to `target` and then `options`.
pub(crate) fn convert(source: &Path, target: &Path, options: &[&str]) -> Run {
    let mut arguments: Vec<&OsStr> = vec!["--source".as_ref(), source.as_ref()];
    arguments.extend(["--target".as_ref(), target.as_os_str()]);
    arguments.extend(options.iter().map(OsStr::new));
    migrate(arguments)
}

/// What a program left that ended by itself.
pub(crate) fn finished(output: &Output) -> Run {
    let run = Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    // A shell and `timeout` report a signal as 128 and its number.
    assert!((0..128).contains(&run.code), "died of a signal: {run:?}");
    assert_ne!(run.code, HUNG, "hung: {run:?}");
    for text in [&run.out, &run.err] {
        assert!(!text.contains("panicked at"), "panicked: {run:?}");
    }
    run
}

/// Every entry of a directory with the SHA-256 of what is in it; directories
/// end in a slash. Two of these are equal only if nothing came, went or changed,
/// except for the name of its last owner in the lock file.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            found.insert(format!("{name}/"), String::new());
        } else if name == "aspen.lock" {
            found.insert(name, String::new());
        } else {
            found.insert(name, read::sha256(&entry.path()));
        }
    }
    found
}

/// The names in a directory, in order.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

/// Whether a test that cannot run here must fail instead of being left out.
pub(crate) fn all_tests_required() -> bool {
    std::env::var("ASPEN_REQUIRE_ALL_TESTS").is_ok_and(|value| value == "1")
}

/// Runs `check` on every item, and fails at the end with all that failed.
pub(crate) fn each<T: Sync>(
    items: &[T],
    name: impl Fn(&T) -> String + Sync,
    check: impl Fn(&T) + Sync,
) {
    assert!(!items.is_empty(), "nothing to check");
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if catch_unwind(AssertUnwindSafe(|| check(item))).is_err() {
                        failed.lock().unwrap().push(name(item));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} of {} failed: {failed:#?}",
        failed.len(),
        items.len()
    );
}
