//! What operators have a real node do, and what it tells them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::fixture::scratch;
use common::node::{exchange, get, node_on, request, send};
use common::read;

fn fill(address: SocketAddr, keys: usize) {
    for n in 0..keys {
        let answer = send(
            address,
            "PUT",
            &format!("/api/kv/key-{n}"),
            r#"{"value":"v"}"#,
        );
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn a_node_that_is_told_to_shut_down_does_so_as_on_sigterm() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let answer = send(node.ready(), "POST", "/admin/shutdown", "");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (202, r#"{"status":"stopping"}"#)
    );
    let ended = node.end().with(0);
    assert!(ended.log.contains("POST /admin/shutdown"), "{}", ended.log);
    assert!(ended.said.iter().any(|said| said.contains("STOPPING=1")));
}

#[test]
fn a_checkpoint_empties_the_log_and_tells_pages_and_sizes() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    for path in ["/admin/checkpoint", "/admin/checkpoint-wal"] {
        fill(address, 20);
        let answer = send(address, "POST", path, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        let done = answer.json();
        assert_eq!(done["checkpointed"], true);
        assert_eq!(done["wal_bytes_after"], 0, "{done}");
        assert!(done["wal_bytes_before"].as_u64() > Some(0), "{done}");
        assert_eq!(done["wal_pages"], done["checkpointed_pages"]);
        assert!(done["database_bytes_after"].as_u64() > Some(0), "{done}");
    }
    let ended = node.stop().with(0);
    assert!(ended.log.contains("WAL checkpoint"), "{}", ended.log);
}

#[test]
fn an_engine_without_a_log_has_nothing_to_checkpoint() {
    for backend in ["redb", "memory"] {
        let dir = scratch();
        let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
        let answer = send(node.ready(), "POST", "/admin/checkpoint", "");
        assert_eq!(
            (answer.status, &answer.json()["checkpointed"]),
            (200, &false.into())
        );
        node.stop().with(0);
    }
}

#[test]
fn a_backup_is_a_whole_database_with_a_name() {
    for backend in ["sqlite", "redb", "memory"] {
        let dir = scratch();
        let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
        let address = node.ready();
        fill(address, 29);
        let once = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", "k"),
        ];
        let (head, _) = exchange(address, "PUT", "/api/kv/once", &once, r#"{"value":"v"}"#);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let (head, bytes) = exchange(address, "GET", "/admin/backup", &[], "");
        let applied = get(address, "/health").json()["last_applied"].clone();
        let head = head.to_ascii_lowercase();
        for line in [
            "http/1.1 200 ok".to_owned(),
            "content-type: application/vnd.sqlite3".to_owned(),
            format!("content-length: {}", bytes.len()),
            format!("content-disposition: attachment; filename=\"aspen-node-1-{applied}.db\""),
            format!("aspen-last-applied: {applied}"),
        ] {
            assert!(head.lines().any(|found| found == line), "{line}: {head}");
        }
        let copies = scratch();
        let copy = copies.join("copy.db");
        std::fs::write(&copy, &bytes).unwrap();
        assert_eq!(read::query(&copy, "PRAGMA integrity_check"), [["ok"]]);
        assert_eq!(
            read::query(&copy, "SELECT count(*) FROM state_machine_kv"),
            [["30"]]
        );
        assert_eq!(
            read::query(&copy, "SELECT key FROM aspen_idempotency"),
            [["k"]]
        );
        let head = request(address, "HEAD", "/admin/backup", &[("Host", "localhost")]);
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        node.stop().with(0);
    }
}

#[test]
fn a_digest_is_the_same_whatever_the_engine_and_whoever_asks_for_it_first() {
    let mut told = Vec::new();
    for backend in ["sqlite", "redb", "memory"] {
        let dir = scratch();
        let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
        let address = node.ready();
        let empty = get(address, "/admin/digest").json();
        assert_eq!(
            (&empty["keys"], &empty["idempotency_keys"]),
            (&0.into(), &0.into())
        );
        fill(address, 30);
        let digest = get(address, "/admin/digest").json();
        assert_eq!(digest["keys"], 30);
        assert_eq!(digest["checksum"].as_str().unwrap().len(), 32);
        assert_ne!(digest["checksum"], empty["checksum"]);
        let applied = get(address, "/health").json()["last_applied"].clone();
        assert_eq!(digest["last_applied"]["index"], applied);
        let head = request(address, "HEAD", "/admin/digest", &[("Host", "localhost")]);
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        told.push(digest);
        node.stop().with(0);
    }
    assert!(told.iter().all(|digest| *digest == told[0]), "{told:?}");
}

#[test]
fn a_snapshot_reaches_what_was_written() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    fill(address, 30);
    let answer = send(address, "POST", "/admin/snapshot", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    let last = answer.json()["last_log_index"].as_u64().unwrap();
    assert!(last >= 30);
    assert_eq!(get(address, "/status").json()["snapshot"], last);
    node.stop().with(0);
}

#[test]
fn status_and_probes_tell_an_operator_what_is_going_on() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    fill(address, 3);
    let status = get(address, "/status").json();
    for (name, expected) in [
        ("role", "leader".into()),
        ("node_id", 1.into()),
        ("leader", 1.into()),
        ("lag", serde_json::Value::from(0)),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("failed", serde_json::Value::Null),
        ("disk_full", serde_json::Value::Null),
        ("migration", serde_json::Value::Null),
    ] {
        assert_eq!(status[name], expected, "{name}: {status}");
    }
    assert_eq!(status["members"].as_array().unwrap().len(), 1);
    assert_eq!(status["storage"]["backend"], "sqlite");
    assert!(
        status["storage"]["wal_bytes"].as_u64() > Some(0),
        "{status}"
    );
    let ready = get(address, "/readyz?verbose").json();
    assert_eq!(ready["status"], "ready");
    for check in ["storage", "raft", "wal", "disk"] {
        assert_eq!(ready["checks"][check]["status"], "healthy", "{ready}");
    }
    assert_eq!(get(address, "/livez?verbose").json()["phase"], "serving");
    node.stop().with(0);
}

#[test]
fn metrics_count_what_was_asked() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    fill(address, 5);
    get(address, "/api/kv/nothing");
    get(address, "/no/such/route");
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200);
    let content_type = answer.header("content-type").unwrap();
    assert!(content_type.starts_with("text/plain"), "{content_type}");
    for line in [
        r#"aspen_http_requests_total{method="PUT",route="/api/kv/{key}",status="200"} 5"#,
        r#"aspen_http_requests_total{method="GET",route="/api/kv/{key}",status="404"} 1"#,
        r#"aspen_http_requests_total{method="GET",route="none",status="404"} 1"#,
        "aspen_write_duration_seconds_count 5",
        "aspen_raft_is_leader 1",
    ] {
        assert!(
            answer.body.lines().any(|found| found == line),
            "{line}\n{}",
            answer.body
        );
    }
    node.stop().with(0);
}

#[test]
fn the_api_describes_itself() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let described = get(node.ready(), "/openapi.json").json();
    assert_eq!(described["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(described["paths"]["/api/kv/{key}"]["put"].is_object());
    node.stop().with(0);
}
