//! What only SQLite has: a write-ahead log, other processes, a record of the
//! migration.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::format::entry::{Idempotent, Payload, Plain, Request};
use crate::migration::target::sqlite::create_empty;

fn bed(threshold: u64) -> (TempDir, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state-machine.db");
    create_empty(&path).unwrap();
    let store = Sqlite::with_threshold(&path, 3, threshold).unwrap();
    (dir, store)
}

fn entry(index: u64, key: &str, value: &str) -> Entry {
    let log_id = LogId {
        term: 1,
        node_id: 1,
        index,
    };
    let (key, value) = (key.to_owned(), value.to_owned());
    Entry {
        log_id,
        payload: Payload::Normal(Request::Set { key, value }),
    }
}

/// A file that a legacy node on SQLite made has no table of idempotent writes.
#[test]
fn the_table_of_idempotent_writes_comes_with_the_first_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state-machine.db");
    create_empty(&path).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("DROP TABLE aspen_idempotency")
        .unwrap();
    connection.close().unwrap();
    let store = Sqlite::open(&path, 3).unwrap();
    let has_table = || {
        store
            .shared
            .pool
            .read(|c| sqlite::has_table(c, sqlite::IDEMPOTENCY))
    };
    store.apply(&[entry(1, "a", "1")]).unwrap();
    let held = store.digest(&AtomicBool::new(false)).unwrap();
    assert_eq!((held.pairs.rows, held.idempotency.rows), (1, 0));
    assert!(!has_table().unwrap());
    let change = Plain::Delete { key: "a".into() };
    let once = Box::new(Idempotent::new("k".into(), change).unwrap());
    let again = Entry {
        payload: Payload::Normal(Request::Idempotent(once)),
        ..entry(2, "", "")
    };
    let outcomes = store.apply(&[again.clone(), entry(3, "a", "2"), again]);
    let replayed = Outcome::ReplayedDone {
        index: 2,
        deleted: 1,
    };
    assert_eq!(outcomes.unwrap()[2], replayed);
    assert!(has_table().unwrap());
    let held = store.digest(&AtomicBool::new(false)).unwrap();
    assert_eq!((held.pairs.rows, held.idempotency.rows), (1, 1));
}

/// Sets a random-looking key for each index.
fn load(store: &Sqlite, indexes: std::ops::Range<u64>) {
    for index in indexes {
        let key = format!("{:020}", index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        store
            .apply(&[entry(index, &key, &"v".repeat(1000))])
            .unwrap();
    }
}

#[test]
fn a_checkpoint_empties_the_log_and_tells_what_it_moved() {
    let (_dir, store) = bed(checkpoint::THRESHOLD_BYTES);
    load(&store, 1..300);
    let before = store.sizes();
    let told = store.checkpoint().unwrap().unwrap();
    assert_eq!(told.wal_bytes_before, before.wal.unwrap());
    assert!(told.wal_bytes_before > 300 * 1000);
    assert_eq!(told.wal_bytes_after, 0);
    assert_eq!(told.database_bytes_before, before.database);
    assert_eq!(told.database_bytes_after, store.sizes().database);
    assert!(told.database_bytes_after > told.database_bytes_before);
    assert_eq!(told.checkpointed_pages, told.wal_pages);
    let frame = u64::from(sqlite::PAGE_BYTES) + 24;
    assert_eq!(told.wal_bytes_before, 32 + told.wal_pages * frame);
    assert_eq!(store.sizes().wal, Some(0));
    load(&store, 300..310);
    assert_eq!(store.checkpoint().unwrap().unwrap().wal_bytes_after, 0);
}

#[test]
fn the_log_stays_short_under_constant_load_with_readers() {
    const THRESHOLD: u64 = 1 << 20;
    let (_dir, store) = bed(THRESHOLD);
    let (store, stop) = (&store, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                let range = Range {
                    limit: 10,
                    max_bytes: 1 << 20,
                    ..Range::default()
                };
                while !stop.load(Ordering::Relaxed) {
                    store.scan(&range).unwrap();
                }
            });
        }
        let page = u64::from(sqlite::PAGE_BYTES);
        let (mut index, mut written) = (0, 0);
        // Far more than may be in the log at once.
        while written < 300 * THRESHOLD {
            index += 1;
            load(store, index..index + 1);
            written += 2 * page;
        }
        stop.store(true, Ordering::Relaxed);
        // Had it never begun anew, the file would be as long as all that was written.
        let length = store.sizes().wal.unwrap();
        assert!(length > 0 && length < written / 2, "{length} of {written}");
    });
}

#[test]
fn a_reader_of_an_old_state_keeps_the_log_and_no_writer() {
    let (dir, store) = bed(1 << 20);
    load(&store, 1..10);
    let reader = Connection::open(dir.path().join("state-machine.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let count = |reader: &Connection| -> i64 {
        let sql = "SELECT count(*) FROM state_machine_kv";
        reader.query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&reader), 9);
    load(&store, 10..1000);
    assert!(store.sizes().wal.unwrap() > 2 << 20);
    let blocked = store.checkpoint().unwrap_err();
    assert!(matches!(blocked, StorageError::Pinned { .. }), "{blocked}");
    assert_eq!(count(&reader), 9);
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(store.checkpoint().unwrap().unwrap().wal_bytes_after, 0);
    assert_eq!(count(&reader), 999);
}

#[test]
fn applying_slows_down_for_a_copy_and_for_no_other_reader() {
    let (dir, store) = bed(16 << 10);
    let reader = Connection::open(dir.path().join("state-machine.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let count = "SELECT count(*) FROM state_machine_kv";
    let rows: i64 = reader.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 0);
    let copying = snapshot::Copying::begin(&store.shared.copying);
    load(&store, 1..2);
    assert!(store.pause().is_zero(), "the log is short");
    let mut pauses = Vec::new();
    for index in 2..200 {
        load(&store, index..index + 1);
        pauses.push(store.pause());
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(
        pauses
            .iter()
            .any(|pause| !pause.is_zero() && *pause < LONGEST_PAUSE)
    );
    assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    drop(copying);
    assert!(store.pause().is_zero(), "a reader may be there for days");
}

#[test]
fn an_operator_may_checkpoint_and_read_from_outside() {
    let (dir, store) = bed(checkpoint::THRESHOLD_BYTES);
    let path = dir.path().join("state-machine.db");
    let shell = |sql: &str| {
        let output = Command::new("sqlite3").arg(&path).arg(sql).output();
        let Ok(output) = output else {
            println!("left out: there is no sqlite3 shell");
            return None;
        };
        assert!(output.status.success(), "{output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    for round in 0..20 {
        load(&store, 50 * round + 1..50 * round + 51);
        let Some(answer) = shell("PRAGMA wal_checkpoint(TRUNCATE);") else {
            return;
        };
        assert_eq!(answer, "0|0|0\n");
        assert_eq!(store.sizes().wal, Some(0));
        let rows = shell("SELECT count(*) FROM state_machine_kv").unwrap();
        assert_eq!(rows.trim(), (50 * round + 50).to_string());
    }
    // The shell was not the last to close: log and index are still ours.
    load(&store, 2000..2001);
    assert!(store.sizes().wal.unwrap() > 0);
    assert_eq!(store.persist().unwrap().unwrap().index, 2000);
    store.close().unwrap();
    assert_eq!(shell("PRAGMA integrity_check").unwrap(), "ok\n");
    let rows = shell("SELECT count(*) FROM state_machine_kv").unwrap();
    assert_eq!(rows.trim(), "1001");
}

#[test]
fn a_full_disk_undoes_the_batch_and_the_same_batch_succeeds_later() {
    let (_dir, store) = bed(checkpoint::THRESHOLD_BYTES);
    load(&store, 1..20);
    // SQLite's own limit: the same error, at the same places.
    let limit = |pages: i64| {
        let writer = store.shared.writer.lock();
        let connection = &writer.as_ref().unwrap().connection;
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
            .unwrap()
    };
    let pages = limit(1);
    let batch = [
        entry(20, "first", "small"),
        entry(21, "second", &"x".repeat(1 << 20)),
    ];
    for _ in 0..3 {
        let full = store.apply(&batch).unwrap_err();
        assert!(full.is_full(), "{full:?}");
        assert_eq!(store.get(&["first".to_owned()]).unwrap(), [None]);
        assert_eq!(store.applied().unwrap().last_applied.unwrap().index, 19);
    }
    limit(pages + 10_000);
    store.apply(&batch).unwrap();
    let first = store.get(&["first".to_owned()]).unwrap();
    assert_eq!(first, [Some("small".to_owned())]);
    assert_eq!(store.applied().unwrap().last_applied.unwrap().index, 21);
}

/// Also with another process's connection still open on the old file: its log
/// must not be played into the new one, nor its close remove the new log.
#[test]
fn an_installed_snapshot_keeps_the_record_of_the_migration_and_no_old_log() {
    let (dir, store) = bed(checkpoint::THRESHOLD_BYTES);
    let path = dir.path().join("state-machine.db");
    let record = "INSERT INTO aspen_migrations VALUES ('id', 'then', 'fingerprint', '{}')";
    let tool = Connection::open(&path).unwrap();
    tool.execute_batch(record).unwrap();
    let (_other_dir, other) = bed(checkpoint::THRESHOLD_BYTES);
    load(&other, 1..100);
    let snapshot = dir.path().join("snapshot");
    std::fs::File::create(&snapshot).unwrap();
    other.write_snapshot(&snapshot).unwrap();
    load(&store, 500..600);
    store.install_snapshot(&snapshot).unwrap();
    load(&store, 100..110);
    let old: i64 = tool
        .query_row("SELECT count(*) FROM state_machine_kv", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(old, 100);
    drop(tool);
    assert!(store.sizes().wal.unwrap() > 0);
    store.close().unwrap();
    drop(store);
    let reopened = Sqlite::open(&path, 2).unwrap();
    assert_eq!(reopened.applied().unwrap().last_applied.unwrap().index, 109);
    let about = reopened.shared.pool.read(|connection| {
        let records =
            "SELECT id || completed_at || source_fingerprint || record FROM aspen_migrations";
        let record: String = connection.query_row(records, [], |row| row.get(0))?;
        let sql = "SELECT count(*) FROM state_machine_kv";
        Ok((
            record,
            connection.query_row(sql, [], |row| row.get::<_, i64>(0))?,
        ))
    });
    assert_eq!(about.unwrap(), ("idthenfingerprint{}".to_owned(), 109));
}

#[test]
fn a_legacy_file_works_and_takes_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state-machine.db");
    let legacy = Connection::open(&path).unwrap();
    legacy.pragma_update(None, "page_size", 4096).unwrap();
    legacy.pragma_update(None, "journal_mode", "WAL").unwrap();
    legacy.execute_batch(sqlite::SCHEMA).unwrap();
    legacy
        .execute_batch("INSERT INTO state_machine_kv VALUES ('', 'empty'), ('a', 'b')")
        .unwrap();
    drop(legacy);
    let store = Sqlite::open(&path, 2).unwrap();
    assert_eq!(store.applied().unwrap(), Applied::default());
    load(&store, 1..100);
    let snapshot = dir.path().join("snapshot");
    std::fs::File::create(&snapshot).unwrap();
    let covered = store.write_snapshot(&snapshot).unwrap();
    load(&store, 100..120);
    assert_eq!(store.install_snapshot(&snapshot).unwrap(), covered);
    assert_eq!(covered.last_applied.unwrap().index, 99);
    let values = store.get(&[String::new(), "a".to_owned()]).unwrap();
    assert_eq!(values, [Some("empty".to_owned()), Some("b".to_owned())]);
}

#[test]
fn closing_ends_a_snapshot_that_is_being_made() {
    let (dir, store) = bed(checkpoint::THRESHOLD_BYTES);
    load(&store, 1..2000);
    store.shared.stop.store(true, Ordering::Relaxed);
    store.shared.pulse.stop();
    let snapshot = dir.path().join("snapshot");
    std::fs::File::create(&snapshot).unwrap();
    let ended = store.write_snapshot(&snapshot);
    assert!(matches!(ended, Err(StorageError::Closed)));
    store.close().unwrap();
}

/// What a crash would leave of the database and its log, opened again.
fn after_a_crash(dir: &TempDir) -> Connection {
    let copy = dir.path().join("copy");
    std::fs::create_dir_all(&copy).unwrap();
    // By another process: closing the files here would drop the locks on them.
    let files = ["state-machine.db", "state-machine.db-wal"].map(|name| dir.path().join(name));
    let copied = Command::new("cp").args(files).arg(&copy).status();
    assert!(copied.unwrap().success());
    let connection = Connection::open(copy.join("state-machine.db")).unwrap();
    let check = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let checked = connection.query_row("PRAGMA integrity_check", [], check);
    assert_eq!(checked.unwrap(), "ok");
    connection
}

fn rows(connection: &Connection, like: &str) -> usize {
    connection
        .query_row(
            "SELECT count(*) FROM state_machine_kv WHERE key LIKE ?1",
            [like],
            |row| row.get::<_, i64>(0),
        )
        .map(|n| usize::try_from(n).unwrap())
        .unwrap()
}

/// Has the writer give pages to the log in the middle of a transaction.
fn with_a_small_cache(store: &Sqlite) {
    let writer = store.shared.writer.lock();
    let connection = &writer.as_ref().unwrap().connection;
    connection.pragma_update(None, "cache_size", 10).unwrap();
}

#[test]
fn a_transaction_larger_than_the_page_cache_is_whole_in_the_write_ahead_log() {
    let (dir, store) = bed(1 << 30);
    with_a_small_cache(&store);
    let mut index = 0;
    for round in 0..5 {
        // Scattered, so that pages that were given to the log are changed again.
        let value = round.to_string().repeat(100);
        let entries: Vec<_> = (0..1000)
            .map(|n| {
                index += 1;
                entry(index, &format!("k{}", n * 617 % 1000), &value)
            })
            .collect();
        store.apply(&entries).unwrap();
        let left = after_a_crash(&dir);
        assert_eq!(rows(&left, "k%"), 1000);
        let newest = "SELECT min(value) FROM state_machine_kv";
        let newest: String = left.query_row(newest, [], |row| row.get(0)).unwrap();
        assert_eq!(newest, value);
    }
}

#[test]
fn what_was_rolled_back_does_not_get_into_what_another_process_writes() {
    let (dir, store) = bed(1 << 30);
    with_a_small_cache(&store);
    store.apply(&[entry(1, "ours", "1")]).unwrap();
    let at_most = |pages: u32| {
        let writer = store.shared.writer.lock();
        let connection = &writer.as_ref().unwrap().connection;
        connection
            .pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
            .unwrap();
    };
    at_most(100);
    let large = "v".repeat(3000);
    let too_many: Vec<_> = (2..200)
        .map(|index| entry(index, &format!("lost{index}"), &large))
        .collect();
    store.apply(&too_many).unwrap_err();
    let other = Connection::open(dir.path().join("state-machine.db")).unwrap();
    for n in 0..60 {
        let (key, value) = (format!("theirs{n}"), &large);
        other
            .execute("INSERT INTO state_machine_kv VALUES (?1, ?2)", (key, value))
            .unwrap();
    }
    at_most(1 << 20);
    store.apply(&[entry(2, "ours too", "2")]).unwrap();
    let left = after_a_crash(&dir);
    assert_eq!(rows(&left, "theirs%"), 60);
    assert_eq!(rows(&left, "ours%"), 2);
    assert_eq!(rows(&left, "lost%"), 0);
}
