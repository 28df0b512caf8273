//! A legacy Raft log is taken over: every entry, byte for byte, and all that
//! stands beside them; and a log that is damaged stops a start that has
//! changed nothing.
//!
//! The logs are written by the redb that legacy nodes use, in encodings by hand.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aspen::config::settings::{Backend, BackupKind, Verify};
use aspen::exit::Exit;
use aspen::layout::DataDir;
use aspen::lock::{LockError, LockedDir};
use aspen::migration::progress::{Control, Event, Observer, Phase};
use aspen::migration::{MigrationError, Options, Prepared, prepare};
use common::fixture::{self, Scratch, scratch};
use common::{contents, each, listing, read};

const LOG: &str = "raft-log.redb";

/// Nobody listens.
struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event<'_>) {}
    fn work(&self, _: Phase, _: u64, _: u64) {}
}

fn start_with(
    dir: &Path,
    backend: Backend,
    backup: BackupKind,
) -> Result<Prepared, MigrationError> {
    let options = Options {
        backend,
        backup,
        keep_backups: 1,
        verify: Verify::Full,
        config_file: None,
        program: "aspen-node 0.1.0".to_owned(),
    };
    let control = Control {
        observer: &Silent,
        stop: Default::default(),
    };
    prepare(&locked(dir), &options, &control)
}

fn start(dir: &Path) -> Result<Prepared, MigrationError> {
    start_with(dir, Backend::Memory, BackupKind::Copy)
}

/// A test beside this one that starts a program has, between fork and exec,
/// the lock too.
fn locked(dir: &Path) -> LockedDir {
    loop {
        match LockedDir::take(DataDir::new(dir), "a test") {
            Ok(locked) => return locked,
            Err(LockError::Held { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [&numbers(&[text.len() as u64]), text.as_bytes()].concat()
}

/// An entry of term 3 and node 1, with what follows the position.
fn entry(index: u64, kind: u32, payload: &[u8]) -> (u64, Vec<u8>) {
    let parts = [&numbers(&[3, 1, index]), &kind.to_le_bytes()[..], payload];
    (index, parts.concat())
}

/// Every kind that legacy nodes write, from `first` on.
fn every_kind(first: u64) -> Vec<(u64, Vec<u8>)> {
    let set = |value: &str| [&0_u32.to_le_bytes()[..], &text("key"), &text(value)].concat();
    let pairs = [text("a"), text("1"), text("b"), text("")].concat();
    let multi = [&1_u32.to_le_bytes()[..], &numbers(&[2]), &pairs].concat();
    let nodes = [
        numbers(&[2, 1]),
        text("10.0.0.1:7000"),
        numbers(&[2]),
        text("h:7"),
    ]
    .concat();
    // Two configurations: 1, and 1 and 2.
    let joint = [numbers(&[2, 1, 1, 2, 1, 2]), nodes].concat();
    let payloads = [
        (0, vec![]),
        (1, set("värde")),
        (1, multi),
        (2, joint),
        (1, set(&"m".repeat(1 << 20))),
        (1, set("")),
    ];
    let entries = (first..).zip(payloads);
    entries
        .map(|(index, (kind, payload))| entry(index, kind, &payload))
        .collect()
}

/// A log as a legacy node leaves it.
fn legacy(entries: &[(u64, Vec<u8>)], records: &[(&str, Vec<u8>)]) -> Scratch {
    let dir = scratch();
    let database = redb2::Database::create(dir.join(LOG)).unwrap();
    let write = database.begin_write().unwrap();
    let snapshots = redb2::TableDefinition::<&str, &[u8]>::new("snapshots");
    let mut table = write.open_table(snapshots).unwrap();
    table
        .insert("current", b"wrong in every file".as_slice())
        .unwrap();
    drop(table);
    let log = redb2::TableDefinition::<u64, &[u8]>::new("raft_log");
    let mut table = write.open_table(log).unwrap();
    for (index, entry) in entries {
        table.insert(index, entry.as_slice()).unwrap();
    }
    drop(table);
    let meta = redb2::TableDefinition::<&str, &[u8]>::new("raft_meta");
    let mut table = write.open_table(meta).unwrap();
    for (name, record) in records {
        table.insert(*name, record.as_slice()).unwrap();
    }
    drop(table);
    write.commit().unwrap();
    dir
}

/// Entries and metadata of the log of `dir`, in the current format.
fn taken(dir: &Path) -> (read::Table, read::Table) {
    let elsewhere = scratch();
    std::fs::copy(dir.join(LOG), elsewhere.join(LOG)).unwrap();
    read::log_tables(&elsewhere.join(LOG))
}

fn table(rows: &[(&str, Vec<u8>)]) -> read::Table {
    rows.iter()
        .map(|(key, value)| (key.as_bytes().to_vec(), value.clone()))
        .collect()
}

fn entries_table(entries: &[(u64, Vec<u8>)]) -> read::Table {
    let row = |(index, entry): &(u64, Vec<u8>)| (index.to_be_bytes().to_vec(), entry.clone());
    entries.iter().map(row).collect()
}

fn backups(dir: &Path) -> Vec<String> {
    let of_log = |name: &String| name.starts_with("raft-log.redb.backup-");
    listing(dir).into_iter().filter(of_log).collect()
}

#[test]
fn a_log_of_a_legacy_node_is_taken_over_whatever_the_backend_and_only_once() {
    for name in ["plain", "unclean"] {
        for backend in [Backend::Sqlite, Backend::Redb, Backend::Memory] {
            for kind in [BackupKind::Copy, BackupKind::Link] {
                let dir = fixture::one("legacy", name).unpack();
                let sha256 = read::sha256(&dir.join(LOG));
                let copy = scratch();
                std::fs::copy(dir.join(LOG), copy.join(LOG)).unwrap();
                let expected = read::legacy_log_tables(&copy.join(LOG));
                assert!(expected.0.len() > 800);
                assert_eq!(expected.1.len(), 2, "vote and committed");
                start_with(&dir, backend, kind).unwrap();
                assert_eq!(taken(&dir), expected, "{name} {backend:?} {kind:?}");
                let [backup] = &backups(&dir)[..] else {
                    panic!("{:?}", listing(&dir));
                };
                assert_eq!(read::sha256(&dir.join(backup)), sha256);
                let before = contents(&dir);
                start_with(&dir, backend, kind).unwrap();
                assert_eq!(contents(&dir), before);
            }
        }
    }
}

#[test]
fn every_kind_of_entry_keeps_its_bytes_behind_a_purged_prefix_too() {
    let position = numbers(&[3, 1, 41]);
    let vote = [numbers(&[4, 2]), vec![0]].concat();
    let entries = every_kind(42);
    let records = [
        ("vote", vote.clone()),
        // Some legacy releases wrote an option.
        ("committed", [vec![1], numbers(&[3, 1, 45])].concat()),
        ("last_purged_log_id", position.clone()),
        ("of_a_later_release", b"kept".to_vec()),
    ];
    let dir = legacy(&entries, &records);
    start(&dir).unwrap();
    let mut expected = records;
    expected[1].1 = numbers(&[3, 1, 45]);
    assert_eq!(taken(&dir), (entries_table(&entries), table(&expected)));
}

#[test]
fn a_log_without_entries_or_without_a_vote_is_taken_over() {
    let vote = [numbers(&[1, 1]), vec![1]].concat();
    let none = ("last_purged_log_id", vec![0]);
    for (entries, records, kept) in [
        (vec![], vec![], 0),
        (vec![], vec![("vote", vote), none], 1),
        (every_kind(0), vec![], 0),
    ] {
        let dir = legacy(&entries, &records);
        start(&dir).unwrap();
        assert_eq!(
            taken(&dir),
            (entries_table(&entries), table(&records[..kept]))
        );
    }
}

#[test]
fn a_log_in_the_current_format_is_left_alone() {
    let dir = legacy(&every_kind(0), &[]);
    // As a legacy node can do it itself.
    let mut database = redb2::Database::open(dir.join(LOG)).unwrap();
    assert!(database.upgrade().unwrap());
    drop(database);
    let sha256 = read::sha256(&dir.join(LOG));
    start(&dir).unwrap();
    assert_eq!(read::sha256(&dir.join(LOG)), sha256);
    assert_eq!(listing(&dir), ["aspen.lock", LOG]);
}

/// A start that refuses the log, naming it, and changes nothing.
fn refused(dir: &Path, backend: Backend) -> String {
    drop(locked(dir));
    let before = contents(dir);
    let error = start_with(dir, backend, BackupKind::Copy).unwrap_err();
    assert_eq!(error.exit(), Exit::Data, "{error}");
    assert!(
        error.to_string().contains(dir.join(LOG).to_str().unwrap()),
        "{error}"
    );
    assert_eq!(contents(dir), before, "{error}");
    error.to_string()
}

#[test]
fn a_damaged_entry_is_named_and_nothing_is_changed() {
    let changed = |change: fn(&mut Vec<(u64, Vec<u8>)>)| {
        let mut entries = every_kind(7);
        change(&mut entries);
        legacy(&entries, &[])
    };
    let short = changed(|entries| entries[2].1.truncate(30));
    let long = changed(|entries| entries[3].1.push(0));
    let misplaced = changed(|entries| entries[1].1[16] = 99);
    let gap = changed(|entries| {
        entries.remove(4);
    });
    // Voters 2 and 1 instead of 1 and 2: decodes, and would encode otherwise.
    let foreign = changed(|entries| entries[3].1[60..76].rotate_left(8));
    for (dir, said) in [
        (short, "entry 9 of the Raft log"),
        (long, "entry 10 of the Raft log"),
        (misplaced, "says that it is entry 99"),
        (gap, "from entry 10 to entry 12"),
        (foreign, "encoded as no node does it"),
    ] {
        let message = refused(&dir, Backend::Memory);
        assert!(message.contains(said), "{message}");
        assert!(message.contains("restore it from a backup"), "{message}");
    }
}

#[test]
fn damaged_metadata_or_data_of_others_is_refused() {
    for name in ["vote", "committed", "last_purged_log_id"] {
        let dir = legacy(&every_kind(0), &[(name, vec![1; 23])]);
        assert!(refused(&dir, Backend::Memory).contains("metadata"));
    }
    let dir = legacy(&[], &[]);
    let database = redb2::Database::open(dir.join(LOG)).unwrap();
    let write = database.begin_write().unwrap();
    let theirs = redb2::TableDefinition::<&str, u64>::new("theirs");
    write.open_table(theirs).unwrap().insert("a", 1).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(refused(&dir, Backend::Memory).contains("its table theirs has 1 rows"));
    for foreign in [
        b"".as_slice(),
        b"no database",
        b"SQLite format 3\0 and more",
    ] {
        let dir = scratch();
        std::fs::write(dir.join(LOG), foreign).unwrap();
        refused(&dir, Backend::Memory);
    }
}

#[test]
fn a_damaged_log_stops_a_migration_that_has_changed_nothing() {
    for backend in [Backend::Sqlite, Backend::Redb] {
        let dir = fixture::one("legacy", "plain").unpack();
        let broken = legacy(&[entry(0, 9, &[])], &[]);
        std::fs::copy(broken.join(LOG), dir.join(LOG)).unwrap();
        refused(&dir, backend);
    }
}

#[test]
fn a_log_that_a_legacy_node_has_open_is_left_to_it() {
    let dir = legacy(&every_kind(0), &[]);
    let theirs = redb2::Database::open(dir.join(LOG)).unwrap();
    let error = start(&dir).unwrap_err();
    assert_eq!(error.exit(), Exit::Locked, "{error}");
    assert_eq!(listing(&dir), ["aspen.lock", LOG]);
    drop(theirs);
    start(&dir).unwrap();
}

#[test]
fn flipped_bits_and_cut_files_are_refused_or_change_nothing() {
    let mut seed = 11_u64;
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % limit
    };
    let (mut damaged, mut intact) = (Vec::new(), Vec::new());
    for name in ["plain", "unclean"] {
        let dir = fixture::one("legacy", name).unpack();
        let original = std::fs::read(dir.join(LOG)).unwrap();
        let used: Vec<usize> = (0..original.len())
            .filter(|&at| original[at] != 0)
            .collect();
        intact.push((name, read::legacy_log_tables(&dir.join(LOG))));
        for round in 0..80 {
            let mut bytes = original.clone();
            let what = match round % 5 {
                0 => {
                    bytes.truncate(below(original.len()));
                    format!("{name} cut to {}", bytes.len())
                }
                kind => {
                    // The header; a byte that holds something; any.
                    let at = match kind {
                        1 => below(320),
                        2 | 3 => used[below(used.len())],
                        _ => below(original.len()),
                    };
                    let bit = below(8);
                    bytes[at] ^= 1 << bit;
                    format!("{name} bit {bit} of byte {at}")
                }
            };
            damaged.push((name, what, bytes));
        }
    }
    let refusals = AtomicUsize::new(0);
    each(
        &damaged,
        |(_, what, _)| what.clone(),
        |(name, _, bytes)| {
            let dir = scratch();
            std::fs::write(dir.join(LOG), bytes).unwrap();
            drop(locked(&dir));
            let before = contents(&dir);
            match start(&dir) {
                Ok(_) if backups(&dir).is_empty() => {
                    // The bit that makes it a file of the current format, which
                    // is for whoever opens it.
                    assert_eq!(contents(&dir), before);
                }
                Ok(_) => {
                    let intact = intact.iter().find(|(of, _)| of == name).unwrap();
                    assert_eq!(taken(&dir), intact.1);
                }
                Err(error) => {
                    assert_eq!(error.exit(), Exit::Data, "{error}");
                    assert_eq!(contents(&dir), before, "{error}");
                    refusals.fetch_add(1, Ordering::Relaxed);
                }
            }
        },
    );
    let refusals = refusals.into_inner();
    assert!(
        refusals > damaged.len() / 4,
        "{refusals} of {}",
        damaged.len()
    );
}
