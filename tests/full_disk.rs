//! From far too small a disk to just enough: a start either does everything or
//! says how much it needs, and leaves all as it found it.
//!
//! Needs root, to mount file systems that may be filled.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::MetadataExt as _;

use common::disk::{Disk, is_root};
use common::node::Ended;
use common::scenario::{Copy, Scenario};
use common::{convert, listing, read};

const MIB: u64 = 1 << 20;
/// Room for the data, all that a migration needs, and more.
const DISK: u64 = 64 * MIB;
/// What a start leaves free for the node that it starts (`migration::preflight`).
const RESERVE: u64 = 16 * MIB;
/// What it adds for schema and small tables.
const FIXED: u64 = MIB;

/// The bytes needed and found that a message tells.
fn needed_and_found(text: &str) -> (u64, u64) {
    let number_before = |what: &str| {
        let (before, _) = text.rsplit_once(what)?;
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let before = number_before(" bytes are needed").zip(number_before(" are free;"));
    let midway = || number_before(" bytes were needed at most").zip(number_before(" are free now"));
    before
        .or_else(midway)
        .unwrap_or_else(|| panic!("no numbers: {text}"))
}

/// A start that finds too little space, and what it said of it.
fn refused(copy: &Copy<'_>) -> (u64, u64) {
    let mut node = copy.launch().start();
    assert!(!node.says("READY=1"));
    needed_and_found(&node.end().with(74).log)
}

/// Starts with more and more space, and then with just as much as is asked for.
fn from_far_too_small_to_just_enough(disk: &Disk, scenario: &Scenario, steps: &[u64]) -> u64 {
    let expected = scenario.copy().complete();
    let copy = scenario.copy_to(disk.path());
    disk.leave(0);
    let (enough, _) = refused(&copy);
    disk.free_up();
    let steps = steps.iter().copied().filter(|&free| free < enough);
    for free in steps.chain([enough - MIB / 2]) {
        let copy = scenario.copy_to(disk.path());
        let found = copy.everything();
        disk.leave(free);
        let (needed, free_then) = refused(&copy);
        assert_eq!(needed, enough);
        assert!(
            free_then <= free && free_then < needed,
            "{free_then} of {free}"
        );
        assert_eq!(copy.everything(), found, "with {free} bytes");
        disk.free_up();
        assert_eq!(copy.complete(), expected, "after there were {free} bytes");
    }
    let copy = scenario.copy_to(disk.path());
    // A few blocks more, which the file system and the test take.
    disk.leave(enough + 64 * 1024);
    assert_eq!(
        copy.complete(),
        expected,
        "with the {enough} bytes that it wants"
    );
    disk.free_up();
    enough
}

#[test]
fn a_start_says_how_much_it_needs_or_does_everything() {
    if !is_root("a full disk") {
        return;
    }
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let steps = [0, 4096, 65536, MIB, 4 * MIB, 8 * MIB, 17 * MIB, 20 * MIB];
    from_far_too_small_to_just_enough(&Disk::tmpfs(DISK), &scenario, &steps);
    from_far_too_small_to_just_enough(&Disk::ext4(DISK), &scenario, &[0, MIB, 17 * MIB]);
}

/// Rows of `keys` and `values` bytes.
fn rows(count: usize, keys: usize, values: usize) -> Vec<(String, String)> {
    // Not in key order, as a node writes them.
    let keys = (0..count).map(|n| format!("{:0>keys$}", n * 7919 % count));
    keys.map(|key| (key, "v".repeat(values))).collect()
}

#[test]
fn what_a_start_asks_for_is_enough_and_not_much_more_whatever_the_rows_are() {
    if !is_root("a disk that is just large enough") {
        return;
    }
    let disk = Disk::tmpfs(256 * MIB);
    let shapes = [
        (20_000, 8, 1),
        (5_000, 21, 100),
        (1_000, 21, 1_000),
        (500, 21, 4_080),
        (150, 21, 8_200),
        (500, 2_000, 10),
        (80, 9_000, 9_000),
        (2, 10, 5 << 20),
    ];
    for (count, keys, values) in shapes {
        let scenario = Scenario::of_rows(&rows(count, keys, values));
        let wanted = from_far_too_small_to_just_enough(&disk, &scenario, &[]);
        let data = disk.path().join("data");
        let size = |name: &String| 512 * data.join(name).metadata().unwrap().blocks();
        let made = listing(&data).iter().map(size).sum::<u64>();
        let percent = (wanted - RESERVE - FIXED) * 100 / made;
        println!("{count} rows of {keys} and {values} bytes: {percent} % of {made} bytes");
        assert!(
            wanted - RESERVE >= made,
            "{percent} % of what backup and copy take"
        );
        assert!(percent < 130, "{percent} % of what backup and copy take");
    }
}

/// Has another program take all space once rows are being copied.
fn fills_up(disk: &Disk, scenario: &Scenario) -> Ended {
    let expected = scenario.copy().complete();
    let copy = scenario.copy_to(disk.path());
    let found = copy.everything();
    // The copy takes a second at least.
    let slow = copy.launch().env("ASPEN_TEST_SLOW_MS_PER_STEP", "25");
    let mut node = slow.start();
    copy.wait_until_rows_are_copied();
    disk.fill();
    assert!(!node.says("READY=1"), "there was enough");
    let ended = node.end().with(74);
    assert_eq!(copy.everything(), found, "{ended:?}");
    disk.free_up();
    assert_eq!(copy.complete(), expected);
    ended
}

#[test]
fn a_disk_that_fills_up_on_the_way_leaves_everything_as_it_was() {
    if !is_root("a disk that fills up") {
        return;
    }
    for disk in [Disk::tmpfs(DISK), Disk::ext4(DISK)] {
        for backend in ["sqlite", "redb"] {
            let ended = fills_up(&disk, &Scenario::new("legacy", "plain", backend));
            let (needed, _) = needed_and_found(&ended.log);
            assert!(needed >= 2 * MIB, "{ended:?}");
        }
        fills_up(
            &disk,
            &Scenario::new("legacy", "unclean", "sqlite").with_links(),
        );
    }
}

#[test]
fn a_backup_by_link_is_the_way_out_where_there_is_no_room_for_a_copy() {
    if !is_root("a disk without room for a backup") {
        return;
    }
    let disk = Disk::tmpfs(DISK);
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy_to(disk.path());
    disk.leave(RESERVE + 4 * MIB);
    let mut node = copy.launch().start();
    assert!(!node.says("READY=1"));
    let log = node.end().with(74).log;
    assert!(log.contains("migration.backup = \"link\""), "{log}");
    let scenario = scenario.with_links();
    disk.free_up();
    let copy = scenario.copy_to(disk.path());
    disk.leave(RESERVE + 4 * MIB);
    assert_eq!(copy.complete(), scenario.copy().complete());
}

#[test]
fn a_history_and_a_configuration_on_full_disks_do_not_stop_the_node() {
    if !is_root("a history on a full disk") {
        return;
    }
    let disk = Disk::tmpfs(8 * MIB);
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy();
    // Both elsewhere, by symbolic links.
    let (history, config) = (disk.path().join("history"), disk.path().join("config.toml"));
    std::os::unix::fs::symlink(&history, copy.data().join("migrations.jsonl")).unwrap();
    std::fs::rename(copy.config(), copy.root.join("original")).unwrap();
    std::fs::copy(copy.root.join("original"), &config).unwrap();
    std::os::unix::fs::symlink(&config, copy.config()).unwrap();
    // A part of the next line fits into what is there.
    let earlier = format!("{}\n", "x".repeat(3999));
    std::fs::write(&history, &earlier).unwrap();
    disk.leave(0);
    let before = std::fs::read(&config).unwrap();
    for _ in 0..2 {
        let log = copy.launch().start().ready_then_stop().log;
        for line in [
            "The history of migrations was not written",
            "Write this into it by hand:",
        ] {
            assert!(log.contains(line), "{log}");
        }
        assert_eq!(std::fs::read(&config).unwrap(), before);
        assert_eq!(std::fs::read_to_string(&history).unwrap(), earlier);
    }
    assert_eq!(listing(disk.path()), ["config.toml", "filler", "history"]);
    disk.free_up();
    copy.launch().start().ready_then_stop();
    assert_eq!(
        std::fs::read_to_string(&history).unwrap().lines().count(),
        2
    );
    let config = std::fs::read_to_string(&config).unwrap();
    assert!(config.contains("[cluster.migrated]"), "{config}");
}

#[test]
fn what_the_tool_has_migrated_is_served_from_a_full_disk_and_finished_later() {
    if !is_root("a full disk after the tool") {
        return;
    }
    let disk = Disk::tmpfs(DISK);
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(|dir| {
        // Taking a log over needs space for that.
        std::fs::remove_file(dir.join("raft-log.redb")).unwrap();
        let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
        assert_eq!(convert(&source, &target, &[]).code, 0);
    });
    let copy = scenario.copy_to(disk.path());
    disk.leave(0);
    let mut node = copy.launch().start();
    assert!(!node.says("READY=1"));
    let log = node.end().with(74).log;
    assert!(log.contains("the space on it (df -h)"), "{log}");
    // The index of SQLite's write-ahead log and a new Raft log, and nothing else.
    disk.leave(256 * 1024);
    copy.launch().start().ready_then_stop();
    disk.free_up();
    assert_eq!(copy.complete(), scenario.copy().complete());
}

#[test]
fn the_tool_says_how_much_it_needs_and_leaves_no_target() {
    if !is_root("the tool on a full disk") {
        return;
    }
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    for disk in [Disk::tmpfs(DISK), Disk::ext4(DISK)] {
        let copy = scenario.copy_to(disk.path());
        let dir = copy.data();
        let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
        let found = copy.everything();
        let mut wanted = 0;
        for free in [0, 65536, MIB, 16 * MIB] {
            disk.leave(free);
            let run = convert(&source, &target, &["--verify"]);
            assert_eq!(run.code, 74, "{run:?}");
            let (needed, found_free) = needed_and_found(&run.err);
            assert!(found_free <= free && found_free < needed, "{run:?}");
            assert_eq!(copy.everything(), found);
            wanted = needed;
        }
        disk.leave(wanted + 64 * 1024);
        let run = convert(&source, &target, &["--full-verify"]);
        assert_eq!(run.code, 0, "{run:?}");
        let rows = read::sqlite_table(&target, "state_machine_kv");
        assert_eq!(read::rows_sha256(&rows), scenario.state.rows_sha256);
    }
}

#[test]
fn a_first_start_on_a_full_disk_leaves_nothing_half_made() {
    if !is_root("a first start on a full disk") {
        return;
    }
    for backend in ["sqlite", "redb"] {
        let disk = Disk::tmpfs(8 * MIB);
        let data = disk.path().join("data");
        std::fs::create_dir(&data).unwrap();
        disk.leave(8192);
        let launch = || common::node::node_on(&data).env("ASPEN_STORAGE_BACKEND", backend);
        let mut node = launch().start();
        assert!(!node.says("READY=1"));
        needed_and_found(&node.end().with(74).log);
        assert_eq!(listing(&data), ["aspen.lock"]);
        disk.free_up();
        launch().start().ready_then_stop();
    }
}

#[test]
fn a_file_that_cannot_be_parted_from_its_backup_is_left_as_it_was() {
    if !is_root("a full disk with a linked backup") {
        return;
    }
    let name = "state-machine.redb.backup-20250102-030405";
    let scenario = Scenario::new("golden", "ordinary-redb-4.6-clean", "redb").after(|dir| {
        std::fs::hard_link(dir.join("state-machine.redb"), dir.join(name)).unwrap();
    });
    let disk = Disk::tmpfs(DISK);
    let copy = scenario.copy_to(disk.path());
    let found = copy.everything();
    // The file has holes, which are not copied.
    disk.leave(64 * 1024);
    refused(&copy);
    assert_eq!(copy.everything(), found);
    disk.free_up();
    assert_eq!(copy.complete(), scenario.copy().complete());
}
