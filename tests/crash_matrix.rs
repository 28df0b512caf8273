//! Killed anywhere, and killed again during the recovery: a start that then
//! runs undisturbed ends as if nothing had happened.
//!
//! Debug builds count their durable operations (`src/durable.rs`), so that a
//! start can be made to die right before each of them: the one that could be
//! lost is then lost. What SQLite and redb write into files that are not
//! published yet is not counted; `interruptions.rs` kills there at random.
//!
//! Every first death is tried. Of the second ones, a choice that has each
//! operation after some first death; with `ASPEN_TEST_EXHAUSTIVE=all` every one,
//! which takes the better part of an hour.
#![cfg(debug_assertions)] // release builds have no crash points
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::outcome::Outcome;
use common::scenario::Scenario;
use common::{convert, each, listing, read};

/// A backup whose name the operator chose, by a clock that is behind.
const OPERATORS: &str = "state-machine.redb.backup-20250102-030405";
/// The same by one that is ahead.
const FROM_THE_FUTURE: &str = "state-machine.redb.backup-20991231-235959";

/// Two deaths: before the `first` operation of a start, and before the
/// `second` of the recovery from that.
#[derive(Clone, Debug)]
struct Deaths {
    first: usize,
    second: usize,
    /// What the second one prevents.
    operation: String,
}

/// Kills at every operation, and again during every recovery; answers what an
/// undisturbed start leaves.
fn matrix(scenario: &Scenario) -> Outcome {
    let (expected, operations) = scenario.copy().complete_traced();
    assert!(operations.len() > 4, "{operations:#?}");
    let firsts: Vec<usize> = (1..=operations.len()).collect();
    let seconds = Mutex::new(Vec::new());
    each(
        &firsts,
        |n| format!("died at {n}"),
        |&first| {
            let copy = scenario.copy();
            assert!(copy.dies_at(first));
            let (found, operations) = copy.complete_traced();
            assert_eq!(found, expected, "died at {first}");
            let deaths = operations
                .into_iter()
                .zip(1..)
                .map(|(operation, second)| Deaths {
                    first,
                    second,
                    operation,
                });
            seconds.lock().unwrap().extend(deaths);
        },
    );
    let mut deaths = seconds.into_inner().unwrap();
    if std::env::var("ASPEN_TEST_EXHAUSTIVE").as_deref() != Ok("all") {
        deaths = choice(deaths);
    }
    let died_twice = AtomicUsize::new(0);
    each(
        &deaths,
        |deaths| format!("{deaths:?}"),
        |deaths| {
            let copy = scenario.copy();
            assert!(copy.dies_at(deaths.first));
            let died = copy.dies_at(deaths.second);
            died_twice.fetch_add(usize::from(died), Ordering::Relaxed);
            assert_eq!(copy.complete(), expected, "{deaths:?}");
        },
    );
    let died_twice = died_twice.into_inner();
    println!(
        "{} operations, {died_twice} times two deaths",
        operations.len()
    );
    assert!(died_twice > deaths.len() / 2, "of {}", deaths.len());
    expected
}

/// One for each operation that a recovery can do, after first deaths that are
/// as different as can be.
fn choice(mut deaths: Vec<Deaths>) -> Vec<Deaths> {
    deaths.sort_unstable_by_key(|deaths| (deaths.first, deaths.second));
    let operations: BTreeSet<_> = deaths.iter().map(|d| d.operation.clone()).collect();
    let chosen = operations.iter().enumerate().map(|(n, operation)| {
        let alike: Vec<_> = deaths
            .iter()
            .filter(|d| d.operation == *operation)
            .collect();
        alike[n * 7 % alike.len()].clone()
    });
    chosen.collect()
}

/// The names and modes of what is left, of which `backup` has the source's bits.
fn assert_left(scenario: &Scenario, outcome: &Outcome, files: &[&str], backup: &str) {
    let names: Vec<&str> = outcome
        .files
        .iter()
        .map(|(name, ..)| name.as_str())
        .collect();
    assert_eq!(names, files);
    let (_, _, sha256) = outcome
        .files
        .iter()
        .find(|(name, ..)| name == backup)
        .unwrap();
    assert_eq!(sha256.as_ref(), Some(&scenario.source));
    assert_eq!(
        outcome.rows_sha256.as_ref(),
        Some(&scenario.state.rows_sha256)
    );
    if let Some([log, entries]) = &scenario.log {
        let mut files = outcome.files.iter();
        let (_, _, sha256) = files.find(|(name, ..)| name == NEW_LOG).unwrap();
        assert_eq!(sha256.as_ref(), Some(log));
        assert_eq!(outcome.log_sha256.as_ref(), Some(entries));
    }
    let metadata = scenario.state.metadata().into_iter();
    let metadata = metadata
        .map(|(key, value)| (key.into_bytes(), value))
        .collect();
    assert_eq!(outcome.metadata, metadata);
}

/// The same for a migration whose backup has been made by the node.
fn assert_migrated(scenario: &Scenario, outcome: &Outcome, backup: &str) {
    let files = [
        "aspen.lock",
        "migrations.jsonl",
        "raft-log.redb",
        NEW_LOG,
        "state-machine.db",
        backup,
    ];
    assert_left(scenario, outcome, &files, backup);
    let record = outcome.record.as_ref().unwrap();
    assert_eq!(record["keys"], scenario.state.rows);
    assert!(
        record["backup"].as_str().unwrap().ends_with(backup),
        "{record}"
    );
    let (listing, config) = outcome.config.as_ref().unwrap();
    assert_eq!(listing, &["config.toml"]);
    assert!(
        config.contains("\nstorage_backend = \"sqlite\"  # the old one\n"),
        "{config}"
    );
    assert!(config.contains("\n[cluster.migrated]\n"), "{config}");
}

const NEW: &str = "state-machine.redb.backup-TIME";
const NEW_LOG: &str = "raft-log.redb.backup-TIME";

/// What the guide has the operator do before the node starts.
fn aspen_migrate(dir: &Path) {
    let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
    let run = convert(&source, &target, &["--verify"]);
    assert_eq!(run.code, 0, "{run:?}");
}

fn back_up_to(name: &str) -> impl Fn(&Path) {
    move |dir| {
        std::fs::copy(dir.join("state-machine.redb"), dir.join(name)).unwrap();
    }
}

/// Flips one bit in the middle of the file, where no header tells of it.
fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let (mut byte, middle) = ([0], file.metadata().unwrap().len() / 2);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[test]
fn a_clean_source_is_migrated_once_whatever_kills_the_node() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, NEW);
    let modes = outcome.files.iter().map(|(name, mode, _)| (name, *mode));
    assert!(
        modes.clone().all(|(_, mode)| mode == 0o600),
        "{:?}",
        modes.collect::<Vec<_>>()
    );
}

#[test]
fn a_source_that_was_not_closed_is_migrated_once_whatever_kills_the_node() {
    let scenario = Scenario::new("legacy", "unclean", "sqlite");
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, NEW);
    assert_eq!(outcome.record.unwrap()["source_closed_cleanly"], false);
}

#[test]
fn a_backup_by_link_is_the_source_itself_whatever_kills_the_node() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").with_links();
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, NEW);
    let copy = scenario.copy();
    let inode = copy
        .data()
        .join("state-machine.redb")
        .metadata()
        .unwrap()
        .ino();
    copy.complete();
    let backup = listing(&copy.data()).into_iter().next_back().unwrap();
    let backup = copy.data().join(backup).metadata().unwrap();
    assert_eq!((backup.ino(), backup.nlink()), (inode, 1));
}

#[test]
fn the_operators_own_backup_is_used_and_no_second_one_made() {
    let plain = Scenario::new("legacy", "plain", "sqlite");
    let scenario = plain.after(back_up_to(OPERATORS));
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, OPERATORS);
}

#[test]
fn a_damaged_backup_of_the_operators_is_kept_and_not_taken_for_one() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|dir| {
        back_up_to(FROM_THE_FUTURE)(dir);
        flip(&dir.join(FROM_THE_FUTURE));
    });
    let mut outcome = matrix(&scenario);
    outcome.files.retain(|(name, ..)| name != FROM_THE_FUTURE);
    assert_migrated(&scenario, &outcome, NEW);
}

#[test]
fn old_backups_go_and_young_ones_stay_whatever_kills_the_node() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|dir| {
        for year in 2020..2025 {
            let name = format!("state-machine.redb.backup-{year}0102-030405");
            std::fs::write(dir.join(name), "an older state").unwrap();
        }
    });
    let mut outcome = matrix(&scenario);
    let (kept, others) = outcome
        .files
        .into_iter()
        .partition(|(name, ..)| scenario.known.contains(name) && name.contains(".backup-"));
    outcome.files = others;
    assert_migrated(&scenario, &outcome, NEW);
    let kept: Vec<(String, u32, Option<String>)> = kept;
    let kept: Vec<&str> = kept.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        kept,
        [
            "state-machine.redb.backup-20230102-030405",
            "state-machine.redb.backup-20240102-030405"
        ]
    );
}

#[test]
fn what_aspen_migrate_began_is_finished_whatever_kills_the_node() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(aspen_migrate);
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, NEW);
    let program = &outcome.record.unwrap()["program"];
    assert!(
        program.as_str().unwrap().starts_with("aspen-migrate "),
        "{program}"
    );
}

#[test]
fn after_the_guide_to_the_letter_the_operators_backup_is_the_only_one() {
    let scenario = Scenario::new("legacy", "unclean", "sqlite").after(|dir| {
        back_up_to(OPERATORS)(dir);
        aspen_migrate(dir);
    });
    let outcome = matrix(&scenario);
    assert_migrated(&scenario, &outcome, OPERATORS);
}

#[test]
fn after_the_guide_with_a_damaged_backup_the_source_itself_becomes_the_backup() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|dir| {
        back_up_to(FROM_THE_FUTURE)(dir);
        flip(&dir.join(FROM_THE_FUTURE));
        aspen_migrate(dir);
    });
    let mut outcome = matrix(&scenario);
    outcome.files.retain(|(name, ..)| name != FROM_THE_FUTURE);
    assert_migrated(&scenario, &outcome, NEW);
}

#[test]
fn a_redb_file_of_version_2_is_upgraded_once_whatever_kills_the_node() {
    let clean = Scenario::new("legacy", "plain", "redb").with_links();
    let unclean = Scenario::new("legacy", "unclean", "redb");
    for scenario in [clean, unclean] {
        let outcome = matrix(&scenario);
        let files = [
            "aspen.lock",
            "raft-log.redb",
            NEW_LOG,
            "state-machine.redb",
            NEW,
        ];
        assert_left(&scenario, &outcome, &files, NEW);
        let config = std::fs::read_to_string(scenario.copy().config()).unwrap();
        let (listing, text) = outcome.config.unwrap();
        assert_eq!(
            (listing, text + "\n"),
            (vec!["config.toml".to_owned()], config)
        );
    }
}

#[test]
fn a_redb_file_that_shares_its_blocks_with_a_backup_is_parted_whatever_kills_the_node() {
    let scenario = Scenario::new("golden", "ordinary-redb-4.6-unclean", "redb").after(|dir| {
        std::fs::hard_link(dir.join("state-machine.redb"), dir.join(OPERATORS)).unwrap();
    });
    let outcome = matrix(&scenario);
    let files = [
        "aspen.lock",
        "raft-log.redb",
        "state-machine.redb",
        OPERATORS,
    ];
    assert_left(&scenario, &outcome, &files, OPERATORS);
}

fn without_state_machine(dir: &Path) {
    std::fs::remove_file(dir.join("state-machine.redb")).unwrap();
}

#[test]
fn a_log_alone_is_taken_over_once_whatever_kills_the_node() {
    let migrated = Scenario::new("legacy", "unclean", "sqlite").after(aspen_migrate);
    // The state machine has been dealt with: only the log is left.
    let scenario = migrated.after(without_state_machine);
    let outcome = matrix(&scenario);
    let names = outcome.files.iter().map(|(name, ..)| name.as_str());
    assert!(names.clone().any(|name| name == NEW_LOG), "{outcome:?}");
    let [_, entries] = scenario.log.as_ref().unwrap();
    assert_eq!(outcome.log_sha256.as_ref(), Some(entries));
}

#[test]
fn a_log_beside_a_state_machine_in_memory_is_taken_over_once_by_link_whatever_kills_the_node() {
    let plain = Scenario::new("legacy", "plain", "memory").with_links();
    let scenario = plain.after(without_state_machine);
    let outcome = matrix(&scenario);
    let names: Vec<&str> = outcome
        .files
        .iter()
        .map(|(name, ..)| name.as_str())
        .collect();
    assert_eq!(names, ["aspen.lock", "raft-log.redb", NEW_LOG]);
    let [log, entries] = scenario.log.as_ref().unwrap();
    assert_eq!(outcome.files[2].2.as_ref(), Some(log));
    assert_eq!(outcome.log_sha256.as_ref(), Some(entries));
}

/// Where in `operations` the first is that begins and ends so, from `start` on.
fn find(operations: &[String], start: usize, operation: &str, name: &str) -> usize {
    let found = operations[start..]
        .iter()
        .position(|line| line.starts_with(operation) && line.ends_with(name));
    start + found.unwrap_or_else(|| panic!("no {operation} {name}: {operations:#?}"))
}

#[test]
fn nothing_gets_or_loses_its_name_before_what_it_relies_on_is_durable() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let (_, operations) = scenario.copy().complete_traced();
    let after = |start, operation, name| find(&operations, start, operation, name);
    let backup = after(0, "rename ", NEW);
    let content = after(0, "fsync ", "state-machine.redb.backup.aspen-tmp");
    assert!(
        content < backup,
        "the backup's content comes before its name: {operations:#?}"
    );
    let backup_durable = after(backup, "fsync directory ", "ROOT/data");

    let publish = after(0, "rename ", "/state-machine.db");
    let content = after(0, "fsync ", "/state-machine.db.aspen-tmp");
    assert!(
        content < publish,
        "the copy's content comes before its name: {operations:#?}"
    );
    assert!(
        backup_durable < publish,
        "the backup comes first: {operations:#?}"
    );
    let published = after(publish, "fsync directory ", "ROOT/data");

    let log_backup = after(0, "rename ", NEW_LOG);
    let log_backup_durable = after(log_backup, "fsync directory ", "ROOT/data");
    let log_content = after(0, "fsync ", "/raft-log.redb.aspen-tmp");
    let log = after(0, "rename over ", "/raft-log.redb");
    assert!(
        log_backup_durable < log && log_content < log,
        "the log's backup and content come before its name: {operations:#?}"
    );
    assert!(
        after(log, "fsync directory ", "ROOT/data") < publish,
        "the log comes first: {operations:#?}"
    );

    let retire = after(0, "remove ", "/state-machine.redb");
    assert!(
        published < retire,
        "the copy comes before the source goes: {operations:#?}"
    );
    let retired = after(retire, "fsync directory ", "ROOT/data");
    let history = after(0, "append ", "/migrations.jsonl");
    let config = after(0, "rename over ", "/config.toml");
    assert!(retired < history && history < config, "{operations:#?}");
    let content = after(0, "fsync ", "/.config.toml.aspen-tmp");
    assert!(content < config, "{operations:#?}");
    let last = after(config, "fsync directory ", "ROOT/etc");
    assert!(
        operations[last + 1..].iter().all(is_of_serving),
        "{operations:#?}"
    );
}

#[test]
fn a_source_that_becomes_the_backup_does_so_once_its_copy_is_known_to_be_durable() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(aspen_migrate);
    let (outcome, operations) = scenario.copy().complete_traced();
    assert_migrated(&scenario, &outcome, NEW);
    // The tool may have been killed between its rename and the sync of the directory.
    let published = find(&operations, 0, "fsync directory ", "ROOT/data");
    assert!(
        published < find(&operations, 0, "rename ", NEW),
        "{operations:#?}"
    );
}

/// Consensus makes sure of what it finds, which changes nothing.
fn is_of_serving(operation: &String) -> bool {
    operation == "fsync ROOT/data/state-machine.db-wal"
}

#[test]
fn a_second_start_changes_nothing() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy();
    copy.complete();
    // The log marks that it is open, and that it was closed.
    let data = || {
        let mut contents = common::contents(&copy.data());
        contents.remove("raft-log.redb");
        contents
    };
    let found = (data(), common::contents(&copy.root.join("etc")));
    let (_, operations) = copy.complete_traced();
    assert!(operations.iter().all(is_of_serving), "{operations:#?}");
    assert_eq!((data(), common::contents(&copy.root.join("etc"))), found);
    assert_eq!(
        read::query(
            &copy.data().join("state-machine.db"),
            "PRAGMA integrity_check"
        ),
        [["ok"]]
    );
}
