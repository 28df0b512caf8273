//! The migration guide, followed to the letter: every command of it that talks
//! to a node or changes its files, typed into a shell, with what it shows.
//!
//! Only the port, the log's path and the backup's time stamp are this test's
//! own (`common/operator.rs`); the data is a legacy node's that is alone in its
//! cluster, with as many keys as the guide's example.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::client::{Client, last_applied, put, until, value};
use common::node::get;
use common::operator::{Operator, has};
use common::{listing, read};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const BACKUP: &str = "cp data/node-1/state-machine.redb \
     data/node-1/state-machine.redb.backup-$(date +%Y%m%d-%H%M%S)";
const MIGRATE: &str = r"aspen-migrate \
  --source data/node-1/state-machine.redb \
  --target data/node-1/state-machine.db \
  --verify";
const MIGRATED: &str = "\
Aspen State Machine Migration Tool
===================================
Source (redb):  data/node-1/state-machine.redb
Target (SQLite): data/node-1/state-machine.db

[1/6] Opening source redb database...
[2/6] Reading all key-value pairs from redb...
      Found 1234 key-value pairs
[3/6] Reading metadata from redb...
      Last applied log: term=5, index=1234
[4/6] Creating target SQLite database...
[5/6] Migrating data to SQLite...
      Migration complete!
[6/6] Verifying migration integrity...
      Count verification: 1234 keys
      Data verification: 100 of 1234 keys sampled
      Metadata verification: passed
      Verification passed!

Migration Summary
=================
  Keys migrated:  1234
  Source:         data/node-1/state-machine.redb
  Target:         data/node-1/state-machine.db
  Verified:       true

Next steps:
  1. Backup the original redb file
  2. Update configuration to use SQLite storage
  3. Restart the Aspen node
";
const WRITE: &str = r#"curl -X POST http://localhost:8080/api/kv/test_key \
  -H "Content-Type: application/json" \
  -d '{"value":"test_value"}'"#;
/// The guide's rollback, step 2, but for the time stamp.
const REMOVE: &str = "\
rm -f data/node-1/state-machine.db
rm -f data/node-1/state-machine.db-wal
rm -f data/node-1/state-machine.db-shm";
/// What the guide's FAQ lacks, as the node's refusal has it.
const BACK: &str = "aspen-migrate --source ../backup/state-machine.db \
     --target node-1/state-machine.redb --verify";

fn healthy(storage: &str, last_applied: u64) -> String {
    format!(r#"{{"status":"healthy","storage":"{storage}","last_applied":{last_applied}}}"#)
}

fn reads(operator: &Operator) -> Value {
    let command = "curl http://localhost:8080/api/kv/test_key";
    serde_json::from_str(&operator.curls(command, "GET", "/api/kv/test_key", "")).unwrap()
}

fn writes(operator: &Operator) -> Value {
    let body = r#"{"value":"test_value"}"#;
    serde_json::from_str(&operator.curls(WRITE, "POST", "/api/kv/test_key", body)).unwrap()
}

/// The backup's name, which the guide has the operator fill in.
fn restores(operator: &Operator) {
    let names = listing(&operator.data()).into_iter();
    let mut backups = names.filter(|name| name.starts_with("state-machine.redb.backup-"));
    let backup = backups.next().unwrap();
    assert_eq!(backups.next(), None);
    let command =
        "cp data/node-1/state-machine.redb.backup-TIMESTAMP data/node-1/state-machine.redb";
    operator.types(&command.replace("state-machine.redb.backup-TIMESTAMP", &backup));
}

#[test]
fn every_step_of_the_migration_does_what_the_guide_shows() {
    let operator = Operator::new();
    operator.types(BACKUP);
    let listed = operator.types("ls -lh data/node-1/state-machine.redb*");
    assert_eq!(listed.lines().count(), 2, "{listed}");
    if has("rsync") {
        operator.types("rsync -av data/node-1/state-machine.redb.backup-* /backup/aspen/");
    }
    assert_eq!(operator.types(MIGRATE), MIGRATED);
    operator.configures("redb", "sqlite");

    let mut node = operator.starts().start();
    assert_eq!(node.ready(), operator.address());
    operator.sees_in_the_log("INFO aspen::raft: Storage backend initialized: sqlite\n");
    operator.sees_in_the_log("INFO aspen::raft: State machine loaded: last_applied=1234\n");
    assert_eq!(operator.health(), healthy("sqlite", 1234));

    let before = reads(&operator);
    assert_eq!(before["key"], "test_key");
    assert!(
        before["value"].as_str().unwrap().starts_with("value "),
        "{before}"
    );
    let written = writes(&operator);
    let expected = json!({ "key": "test_key", "value": "test_value", "index": 1235 });
    assert_eq!(written, expected);
    assert_eq!(
        reads(&operator),
        json!({ "key": "test_key", "value": "test_value" })
    );
    assert_eq!(operator.health(), healthy("sqlite", 1235));

    let wal = operator.types("ls -lh data/node-1/state-machine.db-wal");
    assert_eq!(wal.lines().count(), 1, "{wal}");
    let command = "curl -X POST http://localhost:8080/admin/checkpoint";
    let done = operator.curls(command, "POST", "/admin/checkpoint", "");
    let done: Value = serde_json::from_str(&done).unwrap();
    assert!(done["wal_pages"].as_u64().unwrap() > 0, "{done}");
    assert_eq!(
        (&done["checkpointed"], &done["wal_bytes_after"]),
        (&json!(true), &json!(0))
    );
    let activity = operator.types(r#"grep "WAL checkpoint" /var/log/aspen/node.log"#);
    assert!(!activity.is_empty());

    // What was migrated is all there: the row that was written is the only one that differs.
    node.stop().with(0);
    let mut rows = read::sqlite_table(
        &operator.path("data/node-1/state-machine.db"),
        "state_machine_kv",
    );
    let old = before["value"].as_str().unwrap();
    rows.insert(b"test_key".into(), old.into());
    assert_eq!(read::rows_sha256(&rows), operator.state.rows_sha256);
}

#[test]
fn a_node_stops_by_the_guides_request_and_by_its_signal() {
    let operator = Operator::new();
    for (backend, way) in [
        ("redb", "request"),
        ("redb", "signal"),
        ("sqlite", "request"),
        ("sqlite", "signal"),
    ] {
        let mut node = operator
            .starts()
            .env("ASPEN_STORAGE_BACKEND", backend)
            .start();
        node.ready();
        let written = writes(&operator);
        let pid = node.pid();
        if way == "request" {
            let command = "curl -X POST http://localhost:8080/admin/shutdown";
            let answer = operator.curls(command, "POST", "/admin/shutdown", "");
            assert_eq!(answer, r#"{"status":"stopping"}"#);
        } else {
            // Not the guide's pkill, which would stop the nodes of other tests.
            node.signal(Signal::SIGTERM);
        }
        let ended = node.end().with(0);
        assert!(
            ended.said.iter().any(|said| said.starts_with("STOPPING=1")),
            "{ended:?}"
        );
        // "Wait for clean shutdown (check logs)"; "Verify the process has stopped".
        operator.sees_in_the_log("Stopped in ");
        assert_eq!(operator.runs(&format!("ps -p {pid}")).code, 1);
        // Nothing was pending: the files alone have all of it.
        let mut node = operator
            .starts()
            .env("ASPEN_STORAGE_BACKEND", backend)
            .start();
        assert!(Some(last_applied(node.ready())) >= written["index"].as_u64());
        assert_eq!(reads(&operator)["value"], "test_value");
        node.stop().with(0);
        operator.types("rm log/node.log");
    }
}

#[test]
fn the_environment_may_choose_sqlite_as_the_guide_says() {
    let operator = Operator::new();
    // export ASPEN_STORAGE_BACKEND=sqlite
    let mut node = operator
        .starts()
        .env("ASPEN_STORAGE_BACKEND", "sqlite")
        .start();
    node.ready();
    assert_eq!(operator.health(), healthy("sqlite", 1234));
    node.stop().with(0);
}

#[test]
fn the_guides_manual_checkpoint_truncates_the_log_under_a_running_node() {
    let operator = Operator::new();
    operator.configures("redb", "sqlite");
    let mut node = operator.starts().start();
    let address = node.ready();
    let wal = operator.path("data/node-1/state-machine.db-wal");
    for round in 0..3 {
        put(address, "before", &format!("value {round}"));
        assert!(wal.metadata().unwrap().len() > 0);
        if has("sqlite3") {
            let command =
                r#"sqlite3 data/node-1/state-machine.db "PRAGMA wal_checkpoint(TRUNCATE);""#;
            assert_eq!(operator.types(command), "0|0|0\n");
        } else {
            let database = operator.path("data/node-1/state-machine.db");
            let done = read::query(&database, "PRAGMA wal_checkpoint(TRUNCATE);");
            assert_eq!(done, [["0", "0", "0"]]);
        }
        assert_eq!(wal.metadata().unwrap().len(), 0);
        let found = value(address, "before").unwrap();
        assert_eq!(found, format!("value {round}"));
    }
    put(address, "after", "a value");
    node.stop().with(0);
    let mut node = operator.starts().start();
    let address = node.ready();
    assert_eq!(value(address, "after").as_deref(), Some("a value"));
    node.stop().with(0);
}

/// Every kind of write, after the migration; what must be there then.
fn later_writes(address: SocketAddr) -> Vec<(&'static str, Option<&'static str>)> {
    let mut client = Client::new(address);
    let mut ask = |method: &str, target: &str, body: Option<Value>| {
        let answer = client.ask(method, target, body.as_ref()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    ask(
        "POST",
        "/api/kv/test_key",
        Some(json!({ "value": "later" })),
    );
    ask("PUT", "/api/kv/new/key", Some(json!({ "value": "new" })));
    ask("PUT", "/api/kv/gone", Some(json!({ "value": "soon gone" })));
    ask("DELETE", "/api/kv/gone", None);
    let compare = json!({ "value": "compared", "expect": "new" });
    ask("POST", "/api/kv/new/key", Some(compare));
    let batch = json!({ "set": [{ "key": "b1", "value": "1" }, { "key": "b2", "value": "2" }], "delete": ["b0"] });
    ask("POST", "/api/kv", Some(batch));
    vec![
        ("test_key", Some("later")),
        ("new/key", Some("compared")),
        ("gone", None),
        ("b1", Some("1")),
        ("b2", Some("2")),
    ]
}

fn assert_holds(address: SocketAddr, expected: &[(&str, Option<&str>)]) {
    for (key, expected) in expected {
        assert_eq!(value(address, key).as_deref(), *expected, "{key}");
    }
}

#[test]
fn the_guides_rollback_catches_up_with_every_write_that_came_after_the_migration() {
    let operator = Operator::new();
    operator.types(BACKUP);
    operator.types(MIGRATE);
    operator.configures("redb", "sqlite");
    let mut node = operator.starts().start();
    let expected = later_writes(node.ready());
    let last = last_applied(operator.address());
    assert!(last > 1234);
    node.stop().with(0);

    operator.types(REMOVE);
    restores(&operator);
    operator.configures("sqlite", "redb");
    let mut node = operator.starts().start();
    let address = node.ready();
    // Should show storage="redb"
    assert_eq!(operator.health(), healthy("redb", last));
    assert_holds(address, &expected);
    // It goes on from there, and so does the way forward again.
    assert_eq!(put(address, "on-redb", "a value"), last + 1);
    node.stop().with(0);
    operator.configures("redb", "sqlite");
    let mut node = operator.starts().start();
    let address = node.ready();
    assert_eq!(operator.health(), healthy("sqlite", last + 1));
    assert_holds(address, &expected);
    assert_holds(address, &[("on-redb", Some("a value"))]);
    node.stop().with(0);
}

#[test]
fn a_rollback_that_the_log_no_longer_reaches_is_refused_and_the_way_out_loses_nothing() {
    let operator = Operator::new();
    operator.types(BACKUP);
    operator.types(MIGRATE);
    operator.configures("redb", "sqlite");
    let mut node = operator
        .starts()
        .env("ASPEN_RAFT__LOG_KEEP", "1MiB")
        .start();
    let address = node.ready();
    let expected = later_writes(address);
    let large = "x".repeat(100_000);
    for n in 0..20 {
        put(address, &format!("large-{n}"), &large);
    }
    let purged = |answer: &common::node::Answer| answer.json()["last_purged"].as_u64();
    let status = until(
        || get(address, "/status"),
        |answer| purged(answer) > Some(1234),
    );
    let (purged, last) = (purged(&status).unwrap(), last_applied(address));
    node.stop().with(0);

    // A careful operator's own copy; then the guide's rollback.
    operator.types("cp data/node-1/state-machine.db /backup/aspen/");
    operator.types(REMOVE);
    restores(&operator);
    operator.configures("sqlite", "redb");
    let mut node = operator.starts().start();
    assert!(!node.says("READY=1"));
    let ended = node.end().with(65);
    let ways = [
        "aspen-migrate --source",
        "state-machine.db",
        "state-machine.redb",
    ];
    let positions = ["index=1234".to_owned(), format!("index={purged}")];
    for text in [&ended.log, ended.said.last().unwrap()] {
        assert!(
            text.contains("State machine corruption detected"),
            "{ended:?}"
        );
        let named = ways.into_iter().chain(positions.iter().map(String::as_str));
        for name in named {
            assert!(text.contains(name), "no {name:?}: {ended:?}");
        }
    }
    operator.sees_in_the_log("State machine corruption detected");

    operator.types("rm data/node-1/state-machine.redb");
    let out = operator.types(&format!("cd data; {}", BACK));
    assert!(out.contains("Verification passed!"), "{out}");
    let mut node = operator.starts().start();
    let address = node.ready();
    assert_eq!(operator.health(), healthy("redb", last));
    assert_holds(address, &expected);
    for n in 0..20 {
        assert_eq!(
            value(address, &format!("large-{n}")).as_deref(),
            Some(&*large)
        );
    }
    assert_eq!(put(address, "on-redb", "a value"), last + 1);
    node.stop().with(0);
}
