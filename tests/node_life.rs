//! A node's life as a process: what it tells a service manager and its log,
//! what signals do to it, and what it does without being told anything.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::fixture::scratch;
use common::node::{NODE, bare_node, get, node_on};
use common::scenario::Scenario;
use common::{finished, listing};
use nix::sys::signal::Signal;

const SLOW: &str = "ASPEN_TEST_SLOW_MS_PER_STEP";

fn plain() -> Scenario {
    Scenario::new("legacy", "plain", "sqlite")
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn a_start_that_migrates_is_told_in_order() {
    let scenario = plain();
    let copy = scenario.copy();
    // Longer than the interval in which progress is told.
    let mut node = copy.launch().env(SLOW, "40").start();
    node.ready();
    let said = node.stop().with(0).said;
    assert_eq!(said[0], "STATUS=Starting\n");
    let ready = said
        .iter()
        .position(|message| message.contains("READY=1"))
        .unwrap();
    let (before, after) = said.split_at(ready);
    assert!(
        after[0].starts_with("READY=1\nSTATUS=Ready: sqlite on http://127.0.0.1:"),
        "{said:#?}"
    );
    assert_eq!(after[1..], ["STOPPING=1\nSTATUS=Stopping\n"]);

    let is_extension = |message: &&String| message.starts_with("EXTEND_TIMEOUT_USEC=");
    for (n, message) in before.iter().enumerate().skip(1) {
        if is_extension(&message) {
            assert!(
                before[n - 1].starts_with("STATUS=Migrating"),
                "no progress: {said:#?}"
            );
        } else {
            assert!(message.starts_with("STATUS=Migrating"), "{said:#?}");
        }
    }
    assert!(before.iter().filter(is_extension).count() >= 3, "{said:#?}");
    let copying = before
        .iter()
        .filter(|message| message.contains(" %: copy, "));
    let rates = copying.filter(|message| message.contains(" of 1234 keys, "));
    assert!(rates.count() >= 2, "{said:#?}");
    let percents = before.iter().filter_map(|message| {
        let text = message.strip_prefix("STATUS=Migrating ")?;
        text.split_once(" %")?.0.parse::<u8>().ok()
    });
    let percents: Vec<_> = percents.collect();
    assert!(
        percents.is_sorted() && percents.last() > Some(&80),
        "{percents:?}"
    );
}

#[test]
fn a_start_with_nothing_to_migrate_asks_for_no_more_time() {
    let scenario = plain();
    let copy = scenario.copy();
    copy.complete();
    let said = copy.launch().start().ready_then_stop().said;
    assert_eq!(said[0], "STATUS=Starting\n");
    assert!(said[1].starts_with("READY=1\n"), "{said:?}");
}

#[test]
fn a_start_that_fails_leaves_its_reason_as_the_last_word() {
    let scenario = plain();
    let copy = scenario.copy();
    std::fs::write(copy.data().join("state-machine.redb"), "nonsense").unwrap();
    let ended = copy.launch().start().end().with(65);
    let last = ended.said.last().unwrap();
    for text in [&ended.log, last] {
        assert!(
            text.contains("neither a redb nor a SQLite database"),
            "{ended:?}"
        );
    }
    assert!(
        last.starts_with("STATUS=Failed: ") && last.contains("state-machine.redb"),
        "{last}"
    );
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn a_migration_that_hangs_does_not_ask_for_more_time() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut node = copy.launch().env(SLOW, "60000").start();
    copy.wait_until_rows_are_copied();
    // What was on its way.
    while node.hear_within(Duration::from_secs(1)).is_some() {}
    // Three times the interval in which progress is told.
    assert_eq!(node.hear_within(Duration::from_secs(3)), None);
}

#[test]
fn an_abstract_socket_is_told_too() {
    let scenario = plain();
    let copy = scenario.copy();
    let name = format!("aspen-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let launch = copy.launch().without_notify();
    let node = launch.env("NOTIFY_SOCKET", format!("@{name}")).start();
    let mut buffer = [0; 8192];
    loop {
        let length = socket.recv(&mut buffer).unwrap();
        if buffer[..length].starts_with(b"READY=1\n") {
            break;
        }
    }
    node.stop().with(0);
}

#[test]
fn the_watchdog_hears_from_a_node_that_serves() {
    let dir = scratch();
    let mut node = node_on(&dir).env("WATCHDOG_USEC", "200000").start();
    node.ready();
    for _ in 0..3 {
        assert_eq!(node.hear().unwrap(), "WATCHDOG=1\n");
    }
    let said = node.stop().with(0).said;
    let ready = said
        .iter()
        .position(|message| message.contains("READY=1"))
        .unwrap();
    assert!(
        !said[..ready]
            .iter()
            .any(|message| message == "WATCHDOG=1\n"),
        "{said:?}"
    );

    let mut node = node_on(&dir).start();
    node.ready();
    assert_eq!(node.hear_within(Duration::from_millis(500)), None);
}

#[test]
fn both_signals_to_stop_end_a_node_well_whoever_is_connected() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let scenario = plain();
        let copy = scenario.copy();
        let mut node = copy.launch().start();
        let address = node.ready();
        // Kept alive after an answer, in the middle of a request, and silent.
        let mut kept = TcpStream::connect(address).unwrap();
        kept.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_ne!(kept.read(&mut [0; 4096]).unwrap(), 0);
        let mut stalled = TcpStream::connect(address).unwrap();
        if signal == Signal::SIGTERM {
            // Such a request is waited for, but not for long.
            stalled
                .write_all(b"GET /health HTTP/1.1\r\nHost: loc")
                .unwrap();
        }
        let _silent = TcpStream::connect(address).unwrap();
        assert_eq!(get(address, "/livez").status, 200);
        node.signal(signal);
        let ended = node.end().with(0);
        assert!(
            ended.log.contains(&format!("Stopping on {signal}")),
            "{ended:?}"
        );
        assert!(ended.log.contains("Stopped in "), "{ended:?}");
        assert_eq!(copy.outcome(), scenario.copy().complete());
    }
}

#[test]
fn a_node_without_a_service_manager_lives_and_stops_all_the_same() {
    let dir = scratch();
    let address = common::node::free_address();
    let launch = bare_node().arguments(["--data-dir".as_ref(), dir.as_os_str()]);
    let launch = launch.env("ASPEN_HTTP_ADDR", address.to_string());
    let node = launch.without_notify().start();
    while TcpStream::connect(address).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(get(address, "/livez").status, 200);
    let ended = node.stop().with(0);
    assert_eq!(ended.said, [] as [&str; 0]);
}

/// A configuration with a log file in `dir`, and further lines.
fn config(dir: &Path, level: &str, rest: &str) -> std::path::PathBuf {
    let file = dir.join("config.toml");
    let log = dir.join("node.log");
    let text = format!("[log]\nfilter = \"{level}\"\nfile = {log:?}\n\n{rest}");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn sighup_reloads_the_filter_and_the_log_file_and_names_what_needs_a_restart() {
    let dir = scratch();
    let (file, log) = (config(&dir, "info", ""), dir.join("node.log"));
    let mut node = node_on(&dir.join("data")).config(&file).start();
    let address = node.ready();
    std::fs::rename(&log, dir.join("node.log.1")).unwrap();
    config(&dir, "debug", "[cluster.sqlite]\npool_size = 3\n");
    node.signal(Signal::SIGHUP);
    assert!(
        node.hear()
            .unwrap()
            .starts_with("RELOADING=1\nMONOTONIC_USEC=")
    );
    let ready = format!("READY=1\nSTATUS=Ready: sqlite on http://{address}\n");
    assert_eq!(node.hear().unwrap(), ready);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("log filter \"debug\", log file reopened"),
        "{text}"
    );
    assert!(text.contains("a restart is needed for [cluster]"), "{text}");
    assert_eq!(
        listing(&dir),
        ["config.toml", "data", "node.log", "node.log.1"]
    );

    // A mistake leaves everything as it runs.
    std::fs::write(&file, "[log]\nfilter = 7\n").unwrap();
    node.signal(Signal::SIGHUP);
    assert!(node.says("RELOADING=1") && node.says("READY=1"));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.contains("Not reloaded, the running configuration stays"),
        "{text}"
    );
    assert_eq!(get(address, "/health").status, 200);
    node.stop().with(0);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("Stopping on SIGTERM"), "{text}");
}

/// A weekly rotation that found a node in a migration told nobody: the node went on to write into
/// the file that had been rotated away, until it was compressed.
#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn a_log_that_was_rotated_during_a_migration_is_written_anew_once_the_node_is_ready() {
    let scenario = plain();
    let copy = scenario.copy();
    let log = copy.root.join("node.log");
    let launch = copy.launch().env("ASPEN_LOG__FILE", &log).env(SLOW, "10");
    let mut node = launch.start();
    copy.wait_until_rows_are_copied();
    std::fs::rename(&log, copy.root.join("node.log.1")).unwrap();
    node.ready();
    node.stop().with(0);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("Stopping on SIGTERM"), "{text}");
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn sighup_during_a_migration_neither_ends_it_nor_declares_the_node_ready() {
    let scenario = plain();
    let copy = scenario.copy();
    let mut node = copy.launch().env(SLOW, "10").start();
    copy.wait_until_rows_are_copied();
    node.signal(Signal::SIGHUP);
    node.ready();
    let ended = node.stop().with(0);
    assert!(ended.log.contains("Reloaded: "), "{ended:?}");
    assert!(
        !ended
            .said
            .iter()
            .any(|message| message.contains("RELOADING")),
        "{ended:?}"
    );
    assert_eq!(copy.outcome(), scenario.copy().complete());
}

#[test]
fn the_guides_lines_are_in_the_log_file_as_written() {
    let scenario = plain();
    let copy = scenario.copy();
    let log = copy.root.join("node.log");
    copy.launch()
        .env("ASPEN_LOG__FILE", &log)
        .start()
        .ready_then_stop();
    let text = std::fs::read_to_string(&log).unwrap();
    for line in [
        "INFO aspen::raft: Storage backend initialized: sqlite",
        "INFO aspen::raft: State machine loaded: last_applied=1235",
    ] {
        assert!(
            text.lines().any(|written| written.ends_with(line)),
            "{text}"
        );
    }
}

#[test]
fn rust_log_and_the_configuration_say_how_much_is_logged() {
    let dir = scratch();
    let log = |name: &str, value: &str| {
        let launch = node_on(&dir).env(name, value);
        launch.start().ready_then_stop().log
    };
    assert_eq!(log("RUST_LOG", "error"), "");
    assert_eq!(log("ASPEN_LOG__FILTER", "error"), "");
    let text = log("RUST_LOG", "error,aspen::raft=info");
    assert!(
        text.lines().all(|line| line.contains(" INFO aspen::raft"))
            && text.contains("Storage backend initialized"),
        "{text}"
    );
}

#[test]
fn a_node_that_is_told_nothing_keeps_its_data_in_the_working_directory() {
    let dir = scratch();
    let check = Command::new(NODE)
        .arg("--check-config")
        .env_clear()
        .current_dir(&*dir)
        .output();
    let check = finished(&check.unwrap());
    assert_eq!(check.code, 0, "{check:?}");
    assert!(
        check.out.contains("\"127.0.0.1:8080\" # default"),
        "{check:?}"
    );
    assert_eq!(listing(&dir), [] as [&str; 0]);

    // The port alone is not left to the default, which may be taken.
    let launch = bare_node()
        .arguments(["--http-addr", "127.0.0.1:0"])
        .cwd(&dir);
    let mut node = launch.start();
    let answer = get(node.ready(), "/health");
    assert_eq!(
        answer.body,
        r#"{"status":"healthy","storage":"sqlite","last_applied":1}"#
    );
    node.stop().with(0);
    assert_eq!(listing(&dir), ["data"]);
    assert_eq!(
        listing(&dir.join("data/node-1")),
        ["aspen.lock", "raft-log.redb", "state-machine.db"]
    );
}

#[test]
fn under_systemd_the_data_is_in_the_state_directory() {
    let dir = scratch();
    let state = dir.join("aspen");
    std::fs::create_dir(&state).unwrap();
    let launch = bare_node()
        .arguments(["--http-addr", "127.0.0.1:0"])
        .cwd(&dir);
    launch
        .env("STATE_DIRECTORY", &state)
        .start()
        .ready_then_stop();
    assert_eq!(
        listing(&state),
        ["aspen.lock", "raft-log.redb", "state-machine.db"]
    );
    assert_eq!(listing(&dir), ["aspen"]);
}

#[test]
fn a_bad_configuration_is_told_on_standard_error_and_to_the_service_manager() {
    let dir = scratch();
    let file = dir.join("config.toml");
    std::fs::write(&file, "# mine\n[cluster]\nstorage_backend = \"sqllite\"\n").unwrap();
    let ended = node_on(&dir.join("data"))
        .config(&file)
        .start()
        .end()
        .with(78);
    let expected = format!("{} line 3", file.display());
    for text in [&ended.log, ended.said.last().unwrap()] {
        assert!(text.contains(&expected), "{ended:?}");
        assert!(
            text.contains("cluster.storage_backend") && text.contains("did you mean \"sqlite\"?"),
            "{ended:?}"
        );
    }
    assert!(
        ended.said.last().unwrap().starts_with("STATUS=Failed: "),
        "{ended:?}"
    );
    assert!(!dir.join("data").exists());

    let mut check = Command::new(NODE);
    check
        .arg("--check-config")
        .arg("--config")
        .arg(&file)
        .env_clear();
    let check = finished(&check.output().unwrap());
    assert_eq!(check.code, 78, "{check:?}");
    assert!(check.err.contains(&expected), "{check:?}");
    let usage = Command::new(NODE).arg("--no-such-flag").output().unwrap();
    assert_eq!(finished(&usage).code, 64);
}
