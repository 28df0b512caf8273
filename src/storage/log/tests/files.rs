//! Files that are missing, damaged, foreign, old, or were left by a crash.

use std::os::unix::fs::PermissionsExt as _;

use redb::{Database, TableDefinition};

use super::*;
use crate::exit::Exit;
use crate::format::tables;

const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(tables::RAFT_LOG);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::RAFT_META);

/// Writes entries and records as they are given, whatever they say.
fn written(path: &Path, entries: &[(u64, &[u8])], meta: &[(&str, &[u8])]) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(ENTRIES).unwrap();
        for (index, bytes) in entries {
            table.insert(index, bytes).unwrap();
        }
        let mut table = transaction.open_table(META).unwrap();
        for (name, bytes) in meta {
            table.insert(name, bytes).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[track_caller]
fn refused(path: &Path, exit: Exit, words: &[&str]) {
    let error = Log::open(path, None).err().expect("it opened");
    let text = error.to_string();
    assert_eq!(error.exit(), exit, "{text}");
    for word in words.iter().chain(&["raft-log.redb"]) {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

#[test]
fn a_missing_log_is_made_for_its_owner_alone_and_no_leftover_is_in_its_way() {
    let (dir, path) = place();
    let leftover = crate::layout::temporary(&path);
    std::fs::write(leftover, "half").unwrap();
    let log = open(&path);
    assert_eq!(log.bounds(), Bounds::default());
    assert_eq!(log.vote(), None);
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(log.file_bytes() > 0);
    drop(log);
    let there = std::fs::read_dir(dir.path()).unwrap();
    assert_eq!(there.count(), 1);
    assert_eq!(all(&open(&path)), []);
}

#[test]
fn a_log_that_is_in_use_says_so() {
    let (_dir, path) = place();
    let _log = open(&path);
    refused(&path, Exit::Locked, &[]);
}

#[test]
fn what_is_no_log_is_an_error_and_never_an_empty_log() {
    for content in [b"".as_slice(), b"x", &[0; 8192], b"SQLite format 3\0"] {
        let (_dir, path) = place();
        std::fs::write(&path, content).unwrap();
        refused(&path, Exit::Data, &["restore"]);
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    let (_dir, path) = place();
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(ENTRIES).unwrap();
    transaction.commit().unwrap();
    drop(database);
    refused(&path, Exit::Data, &["raft_meta", "restore"]);
}

#[test]
fn a_file_of_the_older_format_is_not_touched_here() {
    let (_dir, path) = place();
    drop(redb2::Database::create(&path).unwrap());
    refused(&path, Exit::Data, &["v2", "start aspen-node"]);
}

#[test]
fn a_truncated_file_is_an_error() {
    let (_dir, path) = place();
    let log = open(&path);
    wait(|done| log.append(entries(1, 0..20_000), done));
    drop(log);
    let whole = std::fs::read(&path).unwrap();
    for part in [100, 4096, whole.len() / 2] {
        std::fs::write(&path, &whole[..part]).unwrap();
        refused(&path, Exit::Data, &["restore"]);
    }
}

#[test]
fn gaps_and_wrong_entries_are_found_when_the_log_is_opened() {
    let entry = |index| entry(1, index, 10).encode().unwrap();
    let (zero, one, two) = (entry(0), entry(1), entry(2));
    let purged = crate::format::record::encode_position("x", id(1, 0)).unwrap();
    let purged: [(&str, &[u8]); 1] = [("last_purged_log_id", &purged)];
    type Case<'a> = (&'a [(u64, &'a [u8])], &'a [(&'a str, &'a [u8])], &'a str);
    let highest = entry(u64::MAX);
    let almost = crate::format::record::encode_position("x", id(1, u64::MAX - 1)).unwrap();
    let almost: [(&str, &[u8]); 1] = [("last_purged_log_id", &almost)];
    let cases: [Case<'_>; 8] = [
        (&[(0, &zero), (2, &two)], &[], "entry 1 is missing"),
        (&[(1, &one)], &[], "begins with entry 1"),
        (&[(2, &two)], &purged, "begins with entry 2"),
        (&[(0, &zero), (1, &two)], &[], "says that it is entry 2"),
        (&[(0, &zero), (1, b"damaged")], &[], "entry 1"),
        (&[(u64::MAX, &highest)], &almost, "no log reaches"),
        (&[], &[("vote", b"short")], "record"),
        (&[], &[("committed", b"short")], "record"),
    ];
    for (entries, meta, word) in cases {
        let (_dir, path) = place();
        written(&path, entries, meta);
        refused(&path, Exit::Data, &[word, "restore"]);
    }
}

#[test]
fn a_gap_that_no_sample_meets_is_found_by_counting() {
    let (_dir, path) = place();
    let entries: Vec<_> = (0..1000)
        .filter(|index| *index != 501)
        .map(|index| (index, entry(1, index, 10).encode().unwrap()))
        .collect();
    let entries: Vec<_> = entries.iter().map(|(i, bytes)| (*i, &**bytes)).collect();
    written(&path, &entries, &[]);
    refused(&path, Exit::Data, &["999 of the 1000 entries"]);
}

#[test]
fn damage_that_reaches_over_a_sixtieth_of_the_log_is_found_when_it_is_opened() {
    let good: Vec<_> = (0..1000)
        .map(|index| (index, entry(1, index, 10).encode().unwrap()))
        .collect();
    for from in [1, 250, 333, 500, 982] {
        let (_dir, path) = place();
        let mut entries: Vec<_> = good.iter().map(|(i, bytes)| (*i, &**bytes)).collect();
        for entry in &mut entries[from..from + 17] {
            entry.1 = b"damaged";
        }
        written(&path, &entries, &[]);
        refused(&path, Exit::Data, &["entry", "restore"]);
    }
}

#[test]
fn a_damaged_entry_between_others_is_named_when_it_is_read() {
    let (_dir, path) = place();
    let good: Vec<_> = (0..1000)
        .map(|index| (index, entry(1, index, 10).encode().unwrap()))
        .collect();
    let mut entries: Vec<_> = good.iter().map(|(i, bytes)| (*i, &**bytes)).collect();
    entries[501].1 = b"damaged";
    written(&path, &entries, &[]);
    let log = open(&path);
    assert_eq!(log.read(0..501, u64::MAX).unwrap().len(), 501);
    let error = log.read(500..600, u64::MAX).unwrap_err();
    assert_eq!(error.exit(), Exit::Data);
    let text = error.to_string();
    assert!(
        text.contains("entry 501") && text.contains("raft-log.redb"),
        "{text}"
    );
    // Purging is a way past it.
    wait(|done| log.purge(id(1, 501), done));
    assert_eq!(all(&log).len(), 498);
}

#[test]
fn positions_are_read_bare_and_as_options_and_leftovers_of_a_purge_are_passed_over() {
    let bare = crate::format::record::encode_position("x", id(1, 1)).unwrap();
    let option = crate::format::record::encode_last_applied(Some(id(1, 1))).unwrap();
    let encoded: Vec<_> = (0..4).map(|i| entry(1, i, 10).encode().unwrap()).collect();
    let entries: Vec<_> = (0..4).zip(encoded.iter().map(|bytes| &**bytes)).collect();
    for bytes in [&bare, &option] {
        let (_dir, path) = place();
        let meta = [("last_purged_log_id", &**bytes), ("committed", &**bytes)];
        written(&path, &entries, &meta);
        let log = open(&path);
        assert_eq!(log.committed(), Some(id(1, 1)));
        assert_eq!(log.bounds().last_purged, Some(id(1, 1)));
        let read: Vec<_> = all(&log).iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(read, [2, 3]);
        wait(|done| log.purge(id(1, 3), done));
        assert_eq!(all(&log), []);
    }
    let (_dir, path) = place();
    written(&path, &[], &[("committed", &[0])]);
    assert_eq!(open(&path).committed(), None);
}

#[test]
fn the_size_of_the_last_entries_is_known_about_after_opening() {
    let (_dir, path) = place();
    let log = open(&path);
    wait(|done| log.append(entries(1, 0..5000), done));
    drop(log);
    let log = open(&path);
    let each = entry(1, 1000, 100).encode().unwrap().len() as u64;
    let index = log.index_for_last(each * 1000);
    assert!((4000..4600).contains(&index), "{index}");
}
