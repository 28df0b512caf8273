//! Told to stop anywhere, killed at any time, and the tool killed anywhere.
//!
//! A stop before the copy is published leaves everything as it was found; one
//! after that, or none at all, everything as an undisturbed start leaves it.
#![cfg(debug_assertions)] // release builds have no crash points
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::fixture::{self, Fixture, scratch};
use common::scenario::{Copy, Scenario};
use common::{MIGRATE, convert, each, listing, read};
use nix::sys::signal::Signal;

/// Stops a start before each of its durable operations.
fn stops(scenario: &Scenario) {
    let (expected, operations) = scenario.copy().complete_traced();
    let points: Vec<usize> = (1..=operations.len()).collect();
    let as_found = AtomicUsize::new(0);
    each(
        &points,
        |n| format!("stopped at {n}"),
        |n| {
            let copy = scenario.copy();
            let found = copy.everything();
            let launch = copy.launch().env("ASPEN_TEST_STOP_AT", n.to_string());
            launch.start().end().with(0);
            if copy.everything() == found {
                as_found.fetch_add(1, Ordering::Relaxed);
            } else {
                assert_eq!(copy.outcome(), expected, "stopped at {n}, and half done");
            }
            assert_eq!(copy.complete(), expected, "after a stop at {n}");
        },
    );
    let as_found = as_found.into_inner();
    println!("{} stops, {as_found} left all as found", points.len());
    assert!(as_found > 0);
}

#[test]
fn a_migration_that_is_stopped_leaves_everything_as_it_was_found() {
    stops(&Scenario::new("legacy", "plain", "sqlite"));
}

#[test]
fn a_migration_with_links_that_is_stopped_leaves_everything_as_it_was_found() {
    stops(&Scenario::new("legacy", "unclean", "sqlite").with_links());
}

#[test]
fn an_upgrade_that_is_stopped_leaves_everything_as_it_was_found() {
    stops(&Scenario::new("legacy", "plain", "redb"));
}

#[test]
fn taking_over_a_log_alone_can_be_stopped() {
    let alone = |dir: &Path| std::fs::remove_file(dir.join("state-machine.redb")).unwrap();
    stops(&Scenario::new("legacy", "unclean", "memory").after(alone));
}

#[test]
fn parting_a_file_from_its_backup_can_be_stopped() {
    let name = "state-machine.redb.backup-20250102-030405";
    let linked = |dir: &Path| {
        std::fs::hard_link(dir.join("state-machine.redb"), dir.join(name)).unwrap();
    };
    stops(&Scenario::new("golden", "ordinary-redb-4.6-clean", "redb").after(linked));
}

#[test]
fn a_stop_while_rows_are_copied_is_clean_and_quick() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    let copy = scenario.copy();
    let found = copy.everything();
    // The copy alone takes 12 s: it ends because it is told to.
    let mut node = copy
        .launch()
        .env("ASPEN_TEST_SLOW_MS_PER_STEP", "200")
        .start();
    assert!(node.says(": copy"));
    let ended = node.stop().with(0);
    assert_eq!(copy.everything(), found);
    assert!(
        ended
            .said
            .iter()
            .any(|message| message.starts_with("STOPPING=1\n"))
    );
    assert!(
        ended
            .log
            .contains("the data is as it was, and the next start begins again")
    );
}

/// Kills a start before the operation that publishes, wherever that is, and
/// starts with the other backend then: the operator has changed his mind.
fn killed_then_started_with(backend: &str, scenario: &Scenario, publishes: &str) {
    let (_, operations) = scenario.copy().complete_traced();
    let publish = operations.iter().position(|line| line == publishes);
    let points: Vec<usize> = (1..=publish.unwrap() + 1).collect();
    each(
        &points,
        |n| format!("died at {n}"),
        |&n| {
            let copy = scenario.copy();
            assert!(copy.dies_at(n));
            copy.launch_with(backend).start().ready_then_stop();
            let outcome = copy.outcome();
            let left = outcome.files.iter().map(|(name, ..)| name.as_str());
            let left: Vec<&str> = left.filter(|name| name.contains("tmp")).collect();
            assert!(left.is_empty(), "{left:?} after a death at {n}");
            let rows = outcome.rows_sha256.as_ref();
            assert_eq!(rows, Some(&scenario.state.rows_sha256));
            let backups = outcome
                .files
                .iter()
                .filter(|(name, ..)| name.starts_with("state-machine.redb.backup-"));
            for (name, _, sha256) in backups {
                assert_eq!(sha256.as_ref(), Some(&scenario.source), "{name}");
            }
        },
    );
}

#[test]
fn a_start_with_the_other_backend_takes_away_what_a_killed_one_left() {
    const SQLITE: &str = "rename ROOT/data/state-machine.db";
    const REDB: &str = "rename over ROOT/data/state-machine.redb";
    let plain = |backend| Scenario::new("legacy", "plain", backend);
    killed_then_started_with("redb", &plain("sqlite"), SQLITE);
    killed_then_started_with("sqlite", &plain("redb"), REDB);
    // The backup, which is a link, must not change when redb is opened.
    let linked = Scenario::new("golden", "ordinary-redb-4.6-unclean", "sqlite").with_links();
    killed_then_started_with("redb", &linked, SQLITE);
}

/// Pseudo-random and the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

/// Kills starts twice each at times spread over all that they take, among
/// others while SQLite or redb writes.
fn random_kills(scenario: &Scenario, times: usize, slow: &str) {
    let launch = |copy: &Copy<'_>| copy.launch().env("ASPEN_TEST_SLOW_MS_PER_STEP", slow);
    let copy = scenario.copy();
    let began = Instant::now();
    launch(&copy).start().ready_then_stop();
    let all = u64::try_from(began.elapsed().as_micros()).unwrap();
    let expected = copy.outcome();
    let mut dice = Dice(times as u64);
    let times: Vec<_> = (0..times)
        .map(|_| [dice.roll(all), dice.roll(all)])
        .collect();
    each(
        &times,
        |times| format!("killed after {times:?} µs"),
        |times| {
            let copy = scenario.copy();
            for &microseconds in times {
                let node = launch(&copy).start();
                std::thread::sleep(Duration::from_micros(microseconds));
                node.signal(Signal::SIGKILL);
                node.end().killed();
            }
            assert_eq!(copy.complete(), expected, "killed after {times:?} µs");
        },
    );
}

#[test]
fn a_migration_that_is_killed_at_any_time_is_migrated_once() {
    let scenario = Scenario::new("legacy", "plain", "sqlite");
    random_kills(&scenario, 30, "1");
    random_kills(&scenario, 30, "0");
}

#[test]
fn an_upgrade_that_is_killed_at_any_time_is_done_once() {
    random_kills(&Scenario::new("legacy", "unclean", "redb"), 20, "1");
}

#[test]
fn a_start_after_the_guide_that_is_killed_at_any_time_finishes_once() {
    let migrated = |dir: &Path| {
        let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
        assert_eq!(convert(&source, &target, &[]).code, 0);
    };
    let scenario = Scenario::new("legacy", "plain", "sqlite").after(migrated);
    random_kills(&scenario, 20, "0");
}

/// The tool, on its way from `source` to `target`.
fn tool(source: &Path, target: &Path) -> Command {
    let mut command = Command::new(MIGRATE);
    command
        .arg("--source")
        .arg(source)
        .arg("--target")
        .arg(target);
    command.arg("--full-verify").env_clear();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills the tool, by `arm` or by `kill`, and looks at what is left.
fn kill_tool(fixture: &Fixture, target: &str, end: impl FnOnce(&mut Command)) {
    let dir = scratch();
    let (source, target) = (dir.join(fixture.file()), dir.join(target));
    std::fs::copy(fixture.unpack().join(fixture.file()), &source).unwrap();
    let before = read::sha256(&source);
    end(&mut tool(&source, &target));
    assert_eq!(read::sha256(&source), before);
    let wanted = match target.exists() {
        true => 73,
        false => 0,
    };
    let again = convert(&source, &target, &["--full-verify"]);
    assert_eq!(again.code, wanted, "{again:?}");
    assert_eq!(read::sha256(&source), before);
    let rows = match fixture.file() {
        "state-machine.db" => read::redb_tables(&target).0,
        _ => read::sqlite_table(&target, "state_machine_kv"),
    };
    assert_eq!(read::rows_sha256(&rows), fixture.state().rows_sha256);
    let names = [
        fixture.file(),
        target.file_name().unwrap().to_str().unwrap(),
    ];
    let rest = listing(&dir)
        .into_iter()
        .filter(|name| !names.contains(&name.as_str()));
    assert_eq!(rest.collect::<Vec<_>>(), ["aspen.lock"]);
}

/// Kills the tool at each of its durable operations.
fn kill_tool_everywhere(fixture: &Fixture, target: &str) {
    let dir = scratch();
    let trace = dir.join("trace");
    let unpacked = fixture.unpack();
    let source = unpacked.join(fixture.file());
    let mut undisturbed = tool(&source, &dir.join("target"));
    let status = undisturbed.env("ASPEN_TEST_CRASH_TRACE", &trace).status();
    assert!(status.unwrap().success());
    let operations = std::fs::read_to_string(&trace).unwrap().lines().count();
    assert!(operations > 3, "{operations}");
    let points: Vec<usize> = (1..=operations).collect();
    each(
        &points,
        |n| format!("died at {n}"),
        |n| {
            kill_tool(fixture, target, |tool| {
                let status = tool.env("ASPEN_TEST_CRASH_AT", n.to_string()).status();
                assert_eq!(status.unwrap().signal(), Some(Signal::SIGKILL as i32));
            });
        },
    );
}

#[test]
fn the_tool_that_is_killed_leaves_a_complete_target_or_none_and_can_be_run_again() {
    kill_tool_everywhere(&fixture::one("legacy", "unclean"), "state-machine.db");
}

#[test]
fn the_tool_that_is_killed_on_the_way_back_leaves_a_complete_target_or_none() {
    kill_tool_everywhere(
        &fixture::one("golden", "ordinary-sqlite-clean"),
        "state-machine.redb",
    );
}

#[test]
fn the_tool_that_is_killed_while_it_copies_leaves_no_target_and_can_be_run_again() {
    let mut dice = Dice(20);
    let times: Vec<u64> = (0..20).map(|_| dice.roll(100_000)).collect();
    let fixture = fixture::one("legacy", "plain");
    each(
        &times,
        |time| format!("killed after {time} µs"),
        |&time| {
            kill_tool(&fixture, "state-machine.db", |tool| {
                let slow = tool.env("ASPEN_TEST_SLOW_MS_PER_STEP", "1");
                let mut child = slow.spawn().unwrap();
                std::thread::sleep(Duration::from_micros(time));
                child.kill().unwrap();
                child.wait().unwrap();
            });
        },
    );
}
