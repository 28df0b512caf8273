//! Others at the same time: a second node, the tool, a legacy node that still
//! runs, another program on the port.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use common::fixture::{self, scratch};
use common::node::{Ended, Node, bare_node, get};
use common::scenario::{Copy, Scenario};
use common::{MIGRATE, contents, convert, each, listing, read};

const SLOW: &str = "ASPEN_TEST_SLOW_MS_PER_STEP";

fn plain() -> Scenario {
    Scenario::new("legacy", "plain", "sqlite")
}

/// A start that ends before it is ready, with `code`.
fn refused(copy: &Copy<'_>, code: i32) -> Ended {
    let mut node = copy.launch().start();
    assert!(!node.says("READY=1"));
    node.end().with(code)
}

fn owner(node: &Node, program: &str) -> String {
    format!("in use by another process (pid {} {program})", node.pid())
}

#[test]
fn the_second_node_on_a_directory_ends_and_names_the_first() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut first = copy.launch().start();
    let address = first.ready();
    let second = refused(&copy, 75);
    assert!(
        second.log.contains(&owner(&first, "aspen-node")),
        "{second:?}"
    );
    assert!(
        second.said.last().unwrap().starts_with("STATUS=Failed: "),
        "{second:?}"
    );
    assert_eq!(get(address, "/health").status, 200);
    first.stop().with(0);
    assert_eq!(copy.outcome(), scenario.copy().complete());
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn the_second_node_leaves_a_migration_of_the_first_alone() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut first = copy.launch().env(SLOW, "10").start();
    copy.wait_until_rows_are_copied();
    let second = refused(&copy, 75);
    assert!(
        second.log.contains(&owner(&first, "aspen-node")),
        "{second:?}"
    );
    first.ready();
    first.stop().with(0);
    assert_eq!(copy.outcome(), scenario.copy().complete());
}

#[test]
fn of_many_nodes_at_once_one_migrates_and_the_others_end() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut nodes: Vec<_> = (0..6).map(|_| copy.launch().start()).collect();
    let ready: Vec<_> = nodes.iter_mut().map(|node| node.says("READY=1")).collect();
    assert_eq!(ready.iter().filter(|&&ready| ready).count(), 1, "{ready:?}");
    for (node, ready) in nodes.into_iter().zip(ready) {
        if ready {
            node.stop().with(0);
        } else {
            node.end().with(75);
        }
    }
    assert_eq!(copy.outcome(), scenario.copy().complete());
}

/// The tool, while it copies slowly.
fn slow_tool(source: &Path, target: &Path) -> Child {
    let mut tool = Command::new(MIGRATE);
    tool.arg("--source").arg(source).arg("--target").arg(target);
    let tool = tool.env(SLOW, "10").stdout(Stdio::null());
    tool.stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn the_tool_ends_while_a_node_runs_and_names_it() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut node = copy.launch().start();
    node.ready();
    let before = contents(&copy.data());
    let (source, target) = (
        copy.data().join("state-machine.db"),
        copy.data().join("new.redb"),
    );
    let run = convert(&source, &target, &[]);
    assert_eq!(run.code, 75, "{run:?}");
    assert!(run.err.contains(&owner(&node, "aspen-node")), "{run:?}");
    assert_eq!(contents(&copy.data()), before);
    node.stop().with(0);
    let run = convert(&source, &target, &[]);
    assert_eq!(run.code, 0, "{run:?}");
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn a_node_ends_while_the_tool_runs_and_names_it() {
    let scenario = plain();
    let copy = scenario.copy();
    let dir = copy.data();
    let mut tool = slow_tool(
        &dir.join("state-machine.redb"),
        &dir.join("state-machine.db"),
    );
    copy.wait_until_rows_are_copied();
    let ended = refused(&copy, 75);
    let owner = format!(
        "in use by another process (pid {} aspen-migrate)",
        tool.id()
    );
    assert!(ended.log.contains(&owner), "{ended:?}");
    assert!(tool.wait().unwrap().success());
    // The node finishes what the tool began.
    let outcome = copy.complete();
    assert_eq!(
        outcome.rows_sha256.as_ref(),
        Some(&scenario.state.rows_sha256)
    );
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn of_two_tools_with_one_target_one_succeeds_and_the_other_touches_nothing() {
    let legacy = fixture::one("legacy", "plain");
    let unpacked = legacy.unpack();
    // No data directory, so that there is no lock of one.
    let dir = scratch();
    let (source, target) = (dir.join("legacy.redb"), dir.join("new.db"));
    std::fs::copy(unpacked.join(legacy.file()), &source).unwrap();
    let mut first = slow_tool(&source, &target);
    while !dir.join("new.db.aspen-tmp").exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for _ in 0..3 {
        let second = convert(&source, &target, &[]);
        assert_eq!(second.code, 75, "{second:?}");
        assert!(
            second.err.contains("in use by another process"),
            "{second:?}"
        );
    }
    assert!(first.wait().unwrap().success());
    assert_eq!(listing(&dir), ["legacy.redb", "new.db"]);
    let rows = read::sqlite_table(&target, "state_machine_kv");
    assert_eq!(read::rows_sha256(&rows), legacy.state().rows_sha256);
}

#[test]
fn tools_that_begin_at_once_make_one_target() {
    let legacy = fixture::one("golden", "ordinary-sqlite-clean");
    let unpacked = legacy.unpack();
    let dir = scratch();
    let (source, target) = (dir.join("legacy.db"), dir.join("new.redb"));
    std::fs::copy(unpacked.join(legacy.file()), &source).unwrap();
    for _ in 0..10 {
        let codes = Mutex::new(Vec::new());
        each(
            &[(); 2],
            |()| "one of two".to_owned(),
            |()| {
                let run = convert(&source, &target, &["--full-verify"]);
                codes.lock().unwrap().push(run.code);
            },
        );
        let mut codes = codes.into_inner().unwrap();
        codes.sort_unstable();
        // Locked, or a little later: the target exists. Never two, never none.
        assert!(codes == [0, 73] || codes == [0, 75], "{codes:?}");
        let rows = read::redb_tables(&target).0;
        assert_eq!(read::rows_sha256(&rows), legacy.state().rows_sha256);
        assert_eq!(listing(&dir), ["legacy.db", "new.redb"]);
        std::fs::remove_file(&target).unwrap();
    }
}

/// A start, for which somebody else has the source open.
fn held(copy: &Copy<'_>) {
    let before = copy.everything();
    let ended = refused(copy, 75);
    let path = copy.data().join("state-machine.redb");
    let message = format!("{} is in use by another process", path.display());
    assert!(ended.log.contains(&message), "{ended:?}");
    assert_eq!(copy.everything(), before);
}

#[test]
fn a_legacy_node_that_still_runs_keeps_its_data_to_itself() {
    for (name, backend) in [
        ("plain", "sqlite"),
        ("unclean", "sqlite"),
        ("plain", "redb"),
    ] {
        let scenario = Scenario::new("legacy", name, backend);
        let copy = scenario.copy();
        // What the legacy node itself does: this is its redb.
        let legacy = redb2::Database::open(copy.data().join("state-machine.redb")).unwrap();
        held(&copy);
        let write = legacy.begin_write().unwrap();
        let table = redb2::TableDefinition::<&str, &str>::new("sm_kv");
        write
            .open_table(table)
            .unwrap()
            .insert("late", "but applied")
            .unwrap();
        write.commit().unwrap();
        drop(legacy);
        let mut node = copy.launch().start();
        let answer = get(node.ready(), "/api/kv/late?consistency=stale");
        assert_eq!(answer.json()["value"], "but applied");
        node.stop().with(0);
    }
}

#[test]
fn a_source_that_is_locked_is_not_retired_after_the_guide_either() {
    let scenario = plain().after(|dir| {
        let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
        assert_eq!(convert(&source, &target, &[]).code, 0);
    });
    let copy = scenario.copy();
    let file = File::open(copy.data().join("state-machine.redb")).unwrap();
    fs2::FileExt::lock_exclusive(&file).unwrap();
    held(&copy);
    drop(file);
    assert_eq!(copy.complete(), scenario.copy().complete());
}

/// An address that is not set up yet, or has moved to another machine, is nobody's port to free.
#[test]
fn an_address_that_is_not_this_machines_is_told_as_such() {
    let scenario = plain();
    let copy = scenario.copy();
    // Of a network that is for documentation alone (RFC 5737).
    let launch = bare_node().arguments(["--http-addr", "203.0.113.5:8080"]);
    let launch = launch
        .config(&copy.config())
        .env("ASPEN_DATA_DIR", copy.data())
        .env("ASPEN_HTTP__INSECURE", "true");
    let ended = launch.start().end().with(74);
    let told = "cannot listen on 203.0.113.5:8080; give an address that this machine has";
    assert!(ended.log.contains(told), "{ended:?}");
}

#[test]
fn a_node_whose_port_is_taken_names_it_and_changes_nothing() {
    let scenario = plain();
    let copy = scenario.copy();
    let before = copy.everything();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let launch = bare_node().arguments(["--http-addr", &address]);
    let launch = launch
        .config(&copy.config())
        .env("ASPEN_DATA_DIR", copy.data());
    let ended = launch.start().end().with(74);
    let told = format!(
        "cannot listen on {address}; stop the program that listens there, or take another port"
    );
    assert!(ended.log.contains(&told), "{ended:?}");
    assert_eq!(copy.everything(), before);
}
