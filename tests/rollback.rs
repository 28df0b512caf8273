//! The guide's way back to redb, the way forward again, and the backups that
//! all of this leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;

use common::node::{get, node_on};
use common::scenario::{Copy, Scenario};
use common::{contents, convert, listing, read};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

const PREFIX: &str = "state-machine.redb.backup-";
/// As the guide's `date +%Y%m%d-%H%M%S` has it.
const STAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]-[hour][minute][second]");

fn backups(dir: &Path) -> Vec<String> {
    let names = listing(dir).into_iter();
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

/// A backup's name, made so long ago.
fn backup_of(age: Duration) -> String {
    let at = OffsetDateTime::now_utc() - age;
    format!("{PREFIX}{}", at.format(STAMP).unwrap())
}

/// The guide's rollback, steps 2 and 3, by its own commands.
fn roll_back(copy: &Copy<'_>, backup: &str) {
    let dir = copy.data();
    for name in [
        "state-machine.db",
        "state-machine.db-wal",
        "state-machine.db-shm",
    ] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    std::fs::copy(dir.join(backup), dir.join("state-machine.redb")).unwrap();
    edit(copy, "\"sqlite\"", "\"redb\"");
}

/// Changes the backend in the configuration, as the guide's `sed` does.
fn edit(copy: &Copy<'_>, from: &str, to: &str) {
    let text = std::fs::read_to_string(copy.config()).unwrap();
    let line = |value: &str| format!("storage_backend = {value}");
    assert!(text.contains(&line(from)), "{text}");
    std::fs::write(copy.config(), text.replace(&line(from), &line(to))).unwrap();
}

/// A start by the configuration file alone: its health and its log.
fn start(copy: &Copy<'_>) -> (String, String) {
    let mut node = node_on(&copy.data()).config(&copy.config()).start();
    let health = get(node.ready(), "/health").body;
    (health, node.stop().with(0).log)
}

fn healthy(storage: &str, last_applied: u64) -> String {
    format!(r#"{{"status":"healthy","storage":"{storage}","last_applied":{last_applied}}}"#)
}

#[test]
fn the_guides_rollback_serves_redb_and_the_way_forward_migrates_again() {
    for (name, last_applied) in [("plain", 1235), ("unclean", 801)] {
        let scenario = Scenario::new("legacy", name, "sqlite");
        let copy = scenario.copy();
        edit(&copy, "\"redb\"", "\"sqlite\"");
        assert_eq!(start(&copy).0, healthy("sqlite", last_applied));
        let first = backups(&copy.data());
        assert_eq!(first.len(), 1);

        roll_back(&copy, &first[0]);
        let (health, log) = start(&copy);
        assert_eq!(health, healthy("redb", last_applied));
        assert!(log.contains("The redb backend is deprecated"), "{log}");
        // Brought to the current format: the backup that was there was reused.
        assert_eq!(backups(&copy.data()), first);
        assert_eq!(read::sha256(&copy.data().join(&first[0])), scenario.source);
        let rows = read::redb_tables(&copy.data().join("state-machine.redb")).0;
        assert_eq!(read::rows_sha256(&rows), scenario.state.rows_sha256);
        // And so it stays, start after start.
        assert_eq!(start(&copy).0, healthy("redb", last_applied));

        edit(&copy, "\"redb\"", "\"sqlite\"");
        assert_eq!(start(&copy).0, healthy("sqlite", last_applied));
        let both = backups(&copy.data());
        assert_eq!((both.len(), &both[0]), (2, &first[0]));
        let history = std::fs::read_to_string(copy.data().join("migrations.jsonl")).unwrap();
        assert_eq!(history.lines().count(), 2, "{history}");
        let config = std::fs::read_to_string(copy.config()).unwrap();
        assert_eq!(config.matches("[cluster.migrated]").count(), 1, "{config}");
        assert!(config.contains(&both[1]), "{config}");
        let database = copy.data().join("state-machine.db");
        let rows = read::sqlite_table(&database, "state_machine_kv");
        assert_eq!(read::rows_sha256(&rows), scenario.state.rows_sha256);
    }
}

#[test]
fn the_tools_way_back_keeps_what_was_written_since() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy();
    edit(&copy, "\"redb\"", "\"sqlite\"");
    start(&copy);
    let (source, target) = (
        copy.data().join("state-machine.db"),
        copy.data().join("state-machine.redb"),
    );
    let write = "INSERT INTO state_machine_kv VALUES ('since', 'the migration')";
    read::query(&source, write);
    // What the node says when only the configuration was changed.
    edit(&copy, "\"sqlite\"", "\"redb\"");
    let before = contents(&copy.data());
    let node = node_on(&copy.data()).config(&copy.config()).start();
    let log = node.end().with(78).log;
    let advice = format!(
        "aspen-migrate --source {} --target {} --full-verify",
        source.display(),
        target.display()
    );
    assert!(log.contains(&advice), "{log}");
    assert_eq!(contents(&copy.data()), before);

    let run = convert(&source, &target, &["--full-verify"]);
    assert_eq!(run.code, 0, "{run:?}");
    std::fs::rename(&source, copy.data().join("state-machine.db.set-aside")).unwrap();
    assert_eq!(start(&copy).0, healthy("redb", 1235));
    let mut node = node_on(&copy.data()).config(&copy.config()).start();
    let answer = get(node.ready(), "/api/kv/since?consistency=stale");
    assert_eq!(answer.json()["value"], "the migration");
    node.stop().with(0);
}

/// A start on data with `names` beside it; the backups that are left, and the log.
fn start_beside(names: &[String], keep: &str) -> (Vec<String>, String) {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy();
    for name in names {
        std::fs::write(copy.data().join(name), "an older state").unwrap();
    }
    let launch = copy.launch().env("ASPEN_MIGRATION__KEEP_BACKUPS", keep);
    let log = launch.start().ready_then_stop().log;
    (backups(&copy.data()), log)
}

#[test]
fn old_backups_go_beyond_those_to_keep_and_young_ones_stay() {
    let ages = [300, 30, 8, 6, 3, 1].map(Duration::days);
    let names = ages.map(backup_of);
    // The new one counts among those to keep.
    for (keep, removed) in [("1", 3), ("3", 3), ("5", 2), ("6", 1), ("7", 0), ("100", 0)] {
        let (mut kept, log) = start_beside(&names, keep);
        let new = kept.pop().unwrap();
        assert!(!names.contains(&new), "the newest is the new one");
        assert_eq!(kept, names[removed..], "keeping {keep}");
        let told = format!("Removed {removed} old backups");
        assert_eq!(log.contains(&told), removed > 0, "{log}");
    }
}

#[test]
fn what_is_no_backup_of_ours_is_never_removed() {
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|data| {
        for name in [
            "state-machine.redb.backup-manual",
            "state-machine.redb.backup-20200101",
            "state-machine.redb.backup-20200101-000000.gz",
            "raft-log.redb.backup-manual",
            "state-machine.db.backup-20200101-000000",
            "notes.txt",
        ] {
            std::fs::write(data.join(name), name).unwrap();
        }
    });
    let copy = scenario.copy();
    let launch = copy.launch().env("ASPEN_MIGRATION__KEEP_BACKUPS", "1");
    launch.start().ready_then_stop();
    let left = listing(&copy.data());
    for name in &scenario.known {
        assert!(
            left.contains(name) || name == "state-machine.redb",
            "{name} is gone"
        );
    }
}

#[test]
fn the_only_backup_of_what_was_migrated_stays_however_old_it_is() {
    // Reused, since it has the same content: the operator copied it long ago.
    let name = backup_of(Duration::days(400));
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|dir| {
        std::fs::copy(dir.join("state-machine.redb"), dir.join(&name)).unwrap();
        for age in [20, 30, 40] {
            let other = dir.join(backup_of(Duration::days(age)));
            std::fs::write(other, "another state").unwrap();
        }
    });
    let copy = scenario.copy();
    for _ in 0..2 {
        let launch = copy.launch().env("ASPEN_MIGRATION__KEEP_BACKUPS", "1");
        launch.start().ready_then_stop();
        let kept = backups(&copy.data());
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert_eq!(kept[0], name);
    }
    assert_eq!(read::sha256(&copy.data().join(&name)), scenario.source);
}
