//! A node starts only on data that is its own and whole: who it is, and
//! whether log and state machine belong together, is checked before it serves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{copy, remove_file, rename};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use common::client::{Client, last_applied, put, until, value};
use common::fixture::{self, Scratch, scratch};
use common::node::{Ended, Launch, get, node_on};
use common::{contents, listing};
use serde_json::Value;

const LOG: &str = "raft-log.redb";
/// The backends that keep anything, and their files.
const BACKENDS: [(&str, &str); 2] = [
    ("sqlite", "state-machine.db"),
    ("redb", "state-machine.redb"),
];

fn on(dir: &Path, backend: &str) -> Launch {
    node_on(dir).env("ASPEN_STORAGE_BACKEND", backend)
}

/// Starts, sets `keys`, and stops; the last entry that was applied.
fn writes(dir: &Path, backend: &str, keys: &[&str]) -> u64 {
    let mut node = on(dir, backend).start();
    let address = node.ready();
    for key in keys {
        put(address, key, "a value");
    }
    let last = last_applied(address);
    node.stop().with(0);
    last
}

/// A directory in which a node has been.
fn used(backend: &str, keys: &[&str]) -> Scratch {
    let dir = scratch();
    writes(&dir, backend, keys);
    dir
}

/// A start that must fail with `code`, naming all of `named`, and change nothing.
fn refused(dir: &Path, launch: Launch, code: i32, named: &[&str]) -> Ended {
    let before = contents(dir);
    let mut node = launch.start();
    assert!(!node.says("READY=1"), "it started");
    let ended = node.end().with(code);
    let last = ended.said.last().unwrap();
    for text in [&ended.log, last] {
        for name in named {
            assert!(text.contains(name), "no {name:?}: {ended:?}");
        }
    }
    assert_eq!(listing(dir), before.into_keys().collect::<Vec<_>>());
    ended
}

/// The indexes that a message names, in their order.
fn indexes(text: &str) -> Vec<u64> {
    let after = text.split("index=").skip(1);
    let digits = after.map(|text| text.split(|c: char| !c.is_ascii_digit()).next().unwrap());
    digits.map(|digits| digits.parse().unwrap()).collect()
}

/// A start that finds log and state machine at odds; the positions it names.
fn inconsistent(dir: &Path, backend: &str, named: &[&str]) -> Vec<u64> {
    let named = [&["State machine corruption detected"], named].concat();
    let ended = refused(dir, on(dir, backend), 65, &named);
    indexes(ended.said.last().unwrap())
}

#[test]
fn a_directory_stays_the_node_s_that_first_used_it() {
    for backend in ["sqlite", "redb", "memory"] {
        let dir = used(backend, &["a"]);
        let other = on(&dir, backend).arguments(["--node-id", "2"]);
        let named = ["node.id is 2", "belongs to node 1 of cluster"];
        refused(&dir, other, 78, &named);
        // And nothing has been adopted meanwhile.
        assert!(writes(&dir, backend, &["b"]) > 2);
    }
}

#[test]
fn legacy_data_whose_members_are_others_is_not_adopted() {
    let fixture = fixture::one("golden", "alone-redb-2.6-clean");
    let dir = fixture.unpack();
    let launch = on(&dir, "sqlite").arguments(["--node-id", "7"]);
    let mut node = launch.start();
    assert!(!node.says("READY=1"), "it started");
    let ended = node.end().with(78);
    let told = ended.said.last().unwrap();
    assert!(
        told.contains("node.id is 7") && told.contains("the nodes 1"),
        "{told}"
    );
    // The right one then starts.
    on(&dir, "sqlite").start().ready_then_stop();
}

#[test]
fn a_log_that_ends_before_the_state_machine_is_refused_with_both_positions() {
    for (backend, _) in BACKENDS {
        let dir = scratch();
        let shorter = writes(&dir, backend, &["a", "b"]);
        let saved = dir.join("saved");
        copy(dir.join(LOG), &saved).unwrap();
        let longer = writes(&dir, backend, &["c", "d"]);
        assert!(longer > shorter);
        let whole = dir.join("whole");
        rename(dir.join(LOG), &whole).unwrap();
        rename(saved, dir.join(LOG)).unwrap();
        assert_eq!(inconsistent(&dir, backend, &[]), [longer, shorter]);
        // With its own log it goes on, and nothing is missing.
        rename(whole, dir.join(LOG)).unwrap();
        let mut node = on(&dir, backend).start();
        let address = node.ready();
        for key in ["a", "b", "c", "d"] {
            assert_eq!(value(address, key).as_deref(), Some("a value"));
        }
        node.stop().with(0);
    }
}

#[test]
fn a_log_that_begins_behind_the_state_machine_is_refused_with_both_positions() {
    for (backend, file) in BACKENDS {
        let dir = scratch();
        let early = writes(&dir, backend, &["a"]);
        let saved = dir.join("saved");
        copy(dir.join(file), &saved).unwrap();
        let purged = purges(&dir, backend, early);
        rename(&saved, dir.join(file)).unwrap();
        let found = inconsistent(&dir, backend, &["aspen-migrate --source"]);
        assert_eq!(found[0], early);
        assert!(found[1] >= purged, "{found:?}");
    }
}

/// Writes until the log no longer reaches back to `index`; up to where it is gone.
fn purges(dir: &Path, backend: &str, index: u64) -> u64 {
    let launch = on(dir, backend).env("ASPEN_RAFT__LOG_KEEP", "1MiB");
    let mut node = launch.start();
    let address = node.ready();
    let large = "x".repeat(100_000);
    for n in 0..20 {
        put(address, &format!("large-{n}"), &large);
    }
    let purged = |status: &Value| status["last_purged"].as_u64();
    let status = until(
        || get(address, "/status"),
        |answer| purged(&answer.json()) > Some(index),
    );
    node.stop().with(0);
    purged(&status.json()).unwrap()
}

#[test]
fn the_log_of_another_life_is_refused() {
    // Entry 1234 is of term 5 there, and of term 1 in a log that was begun anew.
    let fixture = fixture::one("golden", "alone-redb-2.6-clean");
    let other = scratch();
    let mut node = on(&other, "sqlite").start();
    let mut client = Client::new(node.ready());
    let body = serde_json::json!({ "value": "v" });
    for _ in 0..1300 {
        let answer = client.ask("PUT", "/api/kv/a", Some(&body)).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    node.stop().with(0);
    for (backend, _) in BACKENDS {
        let dir = fixture.unpack();
        let last = writes(&dir, backend, &[]);
        copy(other.join(LOG), dir.join(LOG)).unwrap();
        let named = ["the two are of different nodes or times"];
        assert_eq!(inconsistent(&dir, backend, &named), [last, last]);
    }
}

#[test]
fn the_log_of_another_node_is_refused_with_both_ids() {
    let dir = used("sqlite", &["a", "b"]);
    let other = scratch();
    on(&other, "sqlite")
        .arguments(["--node-id", "2"])
        .start()
        .ready_then_stop();
    copy(other.join(LOG), dir.join(LOG)).unwrap();
    let named = ["node.id is 1", "belongs to node 2"];
    refused(&dir, on(&dir, "sqlite"), 78, &named);
}

#[test]
fn a_log_that_is_missing_is_told_and_begins_behind_what_was_applied() {
    for (backend, _) in BACKENDS {
        let dir = scratch();
        let before = writes(&dir, backend, &["a", "b", "c"]);
        remove_file(dir.join(LOG)).unwrap();
        let mut node = on(&dir, backend).start();
        let address = node.ready();
        assert_eq!(value(address, "b").as_deref(), Some("a value"));
        assert!(put(address, "d", "another") > before);
        let ended = node.stop().with(0);
        let warned = format!("There is no Raft log {}", dir.join(LOG).display());
        assert!(ended.log.contains(&warned), "{ended:?}");
        assert!(ended.log.contains(&format!("index={before}")), "{ended:?}");
        // From then on it is a log like any other.
        let ended = on(&dir, backend).start().ready_then_stop();
        assert!(!ended.log.contains("There is no Raft log"), "{ended:?}");
        assert!(writes(&dir, backend, &["e"]) > before + 1);
    }
}

/// An operator brings the state machine of a legacy node alone: the new log begins in the term of
/// what was applied, not in the first, in which the next entry would stand before that.
#[test]
fn a_log_that_is_missing_behind_legacy_data_begins_in_its_term() {
    let (legacy, term) = (1234, 5);
    for (backend, _) in BACKENDS {
        let dir = fixture::one("golden", "alone-redb-2.6-clean").unpack();
        remove_file(dir.join(LOG)).unwrap();
        let mut node = on(&dir, backend).start();
        let address = node.ready();
        assert!(put(address, "d", "another") > legacy);
        let status = get(address, "/status").json();
        assert!(status["term"].as_u64().unwrap() > term, "{status}");
        node.stop().with(0);
        let last = writes(&dir, backend, &["e"]);
        assert!(last > legacy + 1);
        assert_eq!(writes(&dir, backend, &[]), last);
    }
}

/// A log in which `change` was done to something, which must be refused as it is.
fn refused_log(change: impl Fn(&Path)) {
    let dir = used("sqlite", &["a", "b", "c"]);
    let log = dir.join(LOG);
    change(&log);
    let before = contents(&dir);
    let named = log.display().to_string();
    refused(&dir, on(&dir, "sqlite"), 65, &[&named]);
    assert_eq!(contents(&dir), before);
}

#[test]
fn a_file_that_is_no_log_is_refused_and_left_as_it_is() {
    refused_log(|log| std::fs::write(log, "").unwrap());
    refused_log(|log| std::fs::write(log, "no log at all\n").unwrap());
    refused_log(|log| std::fs::write(log, vec![0; 1 << 20]).unwrap());
    refused_log(|log| {
        let database = log.with_file_name("state-machine.db");
        copy(database, log).unwrap();
    });
}

#[test]
fn a_redb_file_that_is_no_log_is_refused() {
    let dir = used("sqlite", &["a"]);
    let other = used("redb", &["a"]);
    copy(other.join("state-machine.redb"), dir.join(LOG)).unwrap();
    let named = dir.join(LOG).display().to_string();
    refused(&dir, on(&dir, "sqlite"), 65, &[&named]);
    // It may have been opened, and is what it was.
    rename(dir.join(LOG), other.join("state-machine.redb")).unwrap();
    on(&other, "redb").start().ready_then_stop();
}

#[test]
fn a_damaged_log_is_refused_and_left_as_it_is() {
    // Cut off, and its pages overwritten.
    refused_log(|log| {
        let file = std::fs::File::options().write(true).open(log).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
    refused_log(|log| {
        let file = std::fs::File::options().write(true).open(log).unwrap();
        let length = file.metadata().unwrap().len();
        // All but the header, which says where everything is.
        for offset in (4096..length).step_by(512) {
            file.write_all_at(&[0xA5; 64], offset).unwrap();
        }
    });
}

#[test]
fn the_second_node_on_a_directory_that_is_served_is_told_to_try_again() {
    let dir = scratch();
    let mut node = on(&dir, "sqlite").start();
    let address = node.ready();
    put(address, "a", "before");
    for _ in 0..3 {
        let ended = on(&dir, "sqlite").start().end().with(75);
        let pid = node.pid().to_string();
        assert!(ended.log.contains(&pid), "{ended:?}");
    }
    put(address, "a", "after");
    assert_eq!(value(address, "a").as_deref(), Some("after"));
    node.stop().with(0);
}

/// What a start that is refused has opened, it leaves as a start finds it.
#[test]
fn a_start_that_is_refused_can_be_repeated() {
    let dir = used("sqlite", &["a", "b"]);
    let saved: PathBuf = dir.join("saved");
    rename(dir.join(LOG), &saved).unwrap();
    let other = used("sqlite", &[]);
    copy(other.join(LOG), dir.join(LOG)).unwrap();
    let first = inconsistent(&dir, "sqlite", &[]);
    assert_eq!(inconsistent(&dir, "sqlite", &[]), first);
    rename(saved, dir.join(LOG)).unwrap();
    assert!(writes(&dir, "sqlite", &["c"]) > first[0]);
}
