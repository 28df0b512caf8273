//! A snapshot of any engine installs into any other, whole or not at all.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Bed, ENGINES, Engine, ON_DISK, at, contents, digest, once, set};
use crate::format::entry::{Entry, Outcome, Payload, Plain};
use crate::format::record::Membership;
use crate::layout;
use crate::storage::StateMachine;

fn membership(index: u64) -> Entry {
    Entry {
        log_id: at(index),
        payload: Payload::Membership(Membership {
            configs: vec![[1, 2].into()],
            ..Membership::default()
        }),
    }
}

/// Writes rows of several sizes, from entry `from` on.
fn fill(store: &dyn StateMachine, from: u64, rows: u64) {
    let entries: Vec<_> = (from..from + rows)
        .map(|n| {
            let value = "v".repeat(usize::try_from(n % 7 * 300).unwrap());
            set(n, &format!("key/{:03}\u{e9}", n % 500), &value)
        })
        .collect();
    store.apply(&entries).unwrap();
}

/// A write under an idempotency key.
fn remembered(index: u64, key: &str) -> Entry {
    let change = Plain::Set {
        key: key.to_owned(),
        value: "once".to_owned(),
    };
    once(index, key, change)
}

#[test]
fn a_snapshot_of_any_engine_installs_into_any_engine() {
    for from in ENGINES {
        for to in ENGINES {
            let (old, mut new) = (Bed::new(from), Bed::new(to));
            old.store.apply(&[membership(0)]).unwrap();
            fill(&*old.store, 1, 700);
            old.store
                .apply(&[remembered(701, "first"), remembered(702, "second")])
                .unwrap();
            new.store
                .apply(&[set(1, "only here", "x"), remembered(2, "only here")])
                .unwrap();
            let snapshot = new.empty_file("snapshot");
            let covered = old.store.write_snapshot(&snapshot).unwrap();
            assert_eq!(covered, old.store.applied().unwrap());
            for beside in layout::sqlite_companions(&snapshot) {
                assert!(!beside.exists(), "{from:?} to {to:?}");
            }
            let installed = new.store.install_snapshot(&snapshot).unwrap();
            assert_eq!(installed, covered, "{from:?} to {to:?}");
            assert!(!snapshot.exists());
            let wanted = contents(&*old.store);
            assert_eq!(wanted.len(), 502);
            assert_eq!(contents(&*new.store), wanted, "{from:?} to {to:?}");
            assert_eq!(new.store.applied().unwrap(), covered);
            let digests = (digest(&*old.store), digest(&*new.store));
            assert_eq!(digests.0, digests.1, "{from:?} to {to:?}");
            assert_eq!(digests.0.idempotency.rows, 2);
            new.store.apply(&[set(703, "after", "y")]).unwrap();
            assert_eq!(new.get("after").as_deref(), Some("y"));
            if to != Engine::Memory {
                new.reopen();
                assert_eq!(contents(&*new.store).len(), 503);
                assert_eq!(new.store.applied().unwrap().last_applied, Some(at(703)));
                assert_eq!(new.store.applied().unwrap().membership, covered.membership);
            }
            // What had happened there is not done again here; what had happened only
            // here, and was taken back with all the rest, is.
            let outcomes = new.store.apply(&[
                remembered(704, "first"),
                remembered(705, "second"),
                remembered(706, "only here"),
            ]);
            let replayed = |index| Outcome::ReplayedDone { index, deleted: 0 };
            let wanted = [replayed(701), replayed(702), Outcome::Done { deleted: 0 }];
            assert_eq!(outcomes.unwrap(), wanted, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_state_machine_in_memory_begins_with_the_snapshot_that_it_got_last() {
    let (old, mut new) = (Bed::new(Engine::Sqlite), Bed::new(Engine::Memory));
    for round in 0..2 {
        fill(&*old.store, 1 + 100 * round, 100);
        let snapshot = new.empty_file("snapshot");
        let covered = old.store.write_snapshot(&snapshot).unwrap();
        new.store.install_snapshot(&snapshot).unwrap();
        new.store.apply(&[set(900, "late", "x")]).unwrap();
        new.reopen();
        assert_eq!(new.store.applied().unwrap(), covered);
        assert_eq!(contents(&*new.store), contents(&*old.store));
    }
    // A damaged one is an error, and never an empty state machine.
    let kept = super::file(Engine::Memory, new.dir.path());
    std::fs::write(kept, [7; 8192]).unwrap();
    assert!(
        crate::storage::memory::Memory::open(&super::file(Engine::Memory, new.dir.path())).is_err()
    );
}

#[test]
fn an_empty_state_machine_has_a_snapshot_too() {
    for bed in Bed::all() {
        let snapshot = bed.empty_file("snapshot");
        let covered = bed.store.write_snapshot(&snapshot).unwrap();
        bed.store.apply(&[set(1, "a", "1")]).unwrap();
        assert_eq!(bed.store.install_snapshot(&snapshot).unwrap(), covered);
        assert_eq!(contents(&*bed.store).len(), 0);
        assert_eq!(bed.store.applied().unwrap(), covered);
    }
}

#[test]
fn a_snapshot_can_be_read_where_nothing_may_be_written() {
    for bed in Bed::all() {
        fill(&*bed.store, 1, 100);
        let snapshot = bed.empty_file("snapshot");
        bed.store.write_snapshot(&snapshot).unwrap();
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let reader = rusqlite::Connection::open_with_flags(&snapshot, flags).unwrap();
        let mode: String = reader
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "delete");
        let rows = "SELECT count(*) FROM state_machine_kv";
        let rows: i64 = reader.query_row(rows, [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 100);
    }
}

/// Each entry sets all of these keys to its index, so that any mixture of two
/// states, or of rows and position, shows.
#[test]
fn a_snapshot_made_while_entries_are_applied_is_of_one_moment() {
    const KEYS: usize = 300;
    for bed in Bed::all() {
        let (bed, stop) = (&bed, &AtomicBool::new(false));
        let all_equal = |index: u64| {
            let value = format!("{index:0500}");
            let pairs = (0..KEYS).map(|n| (format!("k{n}"), value.clone()));
            let pairs = pairs.collect();
            super::entry(index, super::Request::SetMulti { pairs })
        };
        bed.store.apply(&[all_equal(1)]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut index = 1;
                while !stop.load(Ordering::Relaxed) {
                    index += 1;
                    bed.store.apply(&[all_equal(index)]).unwrap();
                }
            });
            let other = Bed::new(Engine::Memory);
            for n in 0..10 {
                let snapshot = bed.empty_file(&format!("snapshot-{n}"));
                let covered = bed.store.write_snapshot(&snapshot).unwrap();
                assert_eq!(other.store.install_snapshot(&snapshot).unwrap(), covered);
                let index = covered.last_applied.unwrap().index;
                let found = contents(&*other.store);
                assert_eq!(found.len(), KEYS);
                let wanted = format!("{index:0500}");
                assert!(
                    found.values().all(|value| *value == wanted),
                    "{:?}",
                    bed.engine
                );
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
    }
}

#[test]
fn what_is_no_snapshot_is_refused_and_the_old_content_stays() {
    for bed in Bed::all() {
        fill(&*bed.store, 1, 300);
        let (wanted, applied) = (contents(&*bed.store), bed.store.applied().unwrap());
        let sound = bed.empty_file("sound");
        bed.store.write_snapshot(&sound).unwrap();
        let bytes = std::fs::read(&sound).unwrap();
        let mut damaged = bytes.clone();
        let middle = damaged.len() / 2;
        damaged[middle..].fill(0x55);
        let other = bed.dir.path().join("other");
        let connection = rusqlite::Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        drop(connection);
        let other = std::fs::read(other).unwrap();
        for (n, content) in [&b""[..], b"text", &damaged, &bytes[..middle], &other]
            .into_iter()
            .enumerate()
        {
            let snapshot = bed.dir.path().join(format!("snapshot-{n}"));
            std::fs::write(&snapshot, content).unwrap();
            let refused = bed.store.install_snapshot(&snapshot);
            assert!(refused.is_err(), "{:?}: {n}", bed.engine);
        }
        let missing = bed.dir.path().join("missing");
        assert!(bed.store.install_snapshot(&missing).is_err());
        assert_eq!(contents(&*bed.store), wanted);
        assert_eq!(bed.store.applied().unwrap(), applied);
        bed.store.apply(&[set(301, "after", "y")]).unwrap();
        assert_eq!(bed.get("after").as_deref(), Some("y"));
    }
}

/// A record that a node could not read would end it with the next idempotent write.
#[test]
fn a_snapshot_whose_idempotent_writes_are_damaged_is_refused() {
    for bed in Bed::all() {
        bed.store.apply(&[remembered(1, "k")]).unwrap();
        let snapshot = bed.empty_file("snapshot");
        bed.store.write_snapshot(&snapshot).unwrap();
        let connection = rusqlite::Connection::open(&snapshot).unwrap();
        let changed = connection.execute("UPDATE aspen_idempotency SET record = x'00'", []);
        assert_eq!(changed.unwrap(), 1);
        connection.close().unwrap();
        assert!(
            bed.store.install_snapshot(&snapshot).is_err(),
            "{:?}",
            bed.engine
        );
        let again = bed.store.apply(&[remembered(2, "k")]).unwrap();
        assert_eq!(
            again,
            [Outcome::ReplayedDone {
                index: 1,
                deleted: 0
            }]
        );
    }
}

#[test]
fn reads_during_an_installation_see_the_old_or_the_new_state() {
    for bed in Bed::all() {
        bed.store
            .apply(&[set(1, "a", "0"), set(2, "b", "0")])
            .unwrap();
        let (bed, stop) = (&bed, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    let keys = ["a".to_owned(), "b".to_owned()];
                    while !stop.load(Ordering::Relaxed) {
                        let values = bed.store.get(&keys).unwrap();
                        assert_eq!(values[0], values[1]);
                        assert!(values[0].is_some());
                    }
                });
            }
            for n in 1..10_u64 {
                let other = Bed::new(Engine::Memory);
                let value = n.to_string();
                let entries = [set(10 * n, "a", &value), set(10 * n + 1, "b", &value)];
                other.store.apply(&entries).unwrap();
                let snapshot = bed.empty_file(&format!("snapshot-{n}"));
                other.store.write_snapshot(&snapshot).unwrap();
                bed.store.install_snapshot(&snapshot).unwrap();
                assert_eq!(bed.get("a"), Some(value));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// What the child process of the test below does.
#[test]
#[ignore = "runs in a process of its own, which dies"]
fn install_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os("ASPEN_TEST_INSTALL_DIR") else {
        return;
    };
    let (dir, engine) = (Path::new(&dir), std::env::var("ASPEN_TEST_ENGINE"));
    let engine = match engine.unwrap().as_str() {
        "Sqlite" => Engine::Sqlite,
        _ => Engine::Redb,
    };
    let store = super::open(engine, dir);
    // Stays in the write-ahead log.
    store.apply(&[set(2, "a", "old")]).unwrap();
    store.install_snapshot(&dir.join("snapshot")).unwrap();
    store.close().unwrap();
}

#[test]
#[cfg(debug_assertions)]
fn a_crash_during_an_installation_leaves_the_old_state_or_the_new_one() {
    use std::os::unix::process::ExitStatusExt as _;
    for engine in ON_DISK {
        let mut died = 0_u64;
        let mut new_state = false;
        for crash_at in 1.. {
            let bed = Bed::new(engine);
            bed.store
                .apply(&[set(1, "a", "old"), set(2, "b", "old")])
                .unwrap();
            bed.store.close().unwrap();
            let other = Bed::new(Engine::Memory);
            fill(&*other.store, 1, 50);
            other
                .store
                .apply(&[set(51, "a", "new"), set(52, "b", "new")])
                .unwrap();
            let snapshot = bed.empty_file("snapshot");
            other.store.write_snapshot(&snapshot).unwrap();
            let name = "storage::tests::snapshots::install_in_a_process_of_its_own";
            let child = Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--ignored", "--nocapture"])
                .env("ASPEN_TEST_INSTALL_DIR", bed.dir.path())
                .env("ASPEN_TEST_ENGINE", format!("{engine:?}"))
                .env("ASPEN_TEST_CRASH_AT", crash_at.to_string())
                .output()
                .unwrap();
            let killed = child.status.signal().is_some();
            assert!(killed || child.status.success(), "{child:?}");
            let store = super::open(engine, bed.dir.path());
            let keys = ["a".to_owned(), "b".to_owned()];
            let found = store.get(&keys).unwrap();
            let index = store.applied().unwrap().last_applied.unwrap().index;
            match found[0].as_deref() {
                Some("old") => assert!(index == 2 && !new_state, "{engine:?} at {crash_at}"),
                _ => {
                    assert_eq!((found[0].as_deref(), index), (Some("new"), 52));
                    assert_eq!(contents(&*store).len(), 52);
                    new_state = true;
                }
            }
            assert_eq!(found[0], found[1]);
            if !killed {
                break;
            }
            died += 1;
        }
        assert!(new_state && died > 3, "{engine:?} died {died} times");
    }
}
