//! The API of a node: health before and after a migration, keys of every
//! shape, and requests that are refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::fixture::{self, scratch};
use common::node::{Answer, Node, bare_node, free_address, get, node_on, parse, request};
use common::scenario::{Copy, Scenario};
use common::{client, each, read};

const SLOW: &str = "ASPEN_TEST_SLOW_MS_PER_STEP";

/// A node that serves the legacy data.
fn serving(copy: &Copy<'_>) -> (Node, SocketAddr) {
    let mut node = copy.launch().start();
    let address = node.ready();
    (node, address)
}

/// Every byte of `key` as a path holds it, whether or not it has to be encoded.
fn encoded(key: &str) -> String {
    key.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What every answer has, whatever it says.
fn assert_sound(answer: &Answer) {
    assert_eq!(
        answer.header("x-content-type-options"),
        Some("nosniff"),
        "{answer:?}"
    );
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "{answer:?}"
    );
    assert_eq!(
        answer.header("cache-control"),
        Some("no-store"),
        "{answer:?}"
    );
}

/// A request that is refused with `status` and an error of `code`.
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.error_code(), code, "{answer:?}");
    assert_sound(answer);
}

#[test]
fn health_is_what_the_guide_shows_to_the_letter() {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let (node, address) = serving(&copy);
    let answer = get(address, "/health");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        r#"{"status":"healthy","storage":"sqlite","last_applied":1234}"#
    );
    assert_sound(&answer);
    for path in ["/livez", "/readyz"] {
        let answer = get(address, path);
        assert_eq!(answer.status, 200, "{path}");
        assert_sound(&answer);
    }
    node.stop().with(0);
}

#[test]
fn one_node_of_three_by_itself_is_healthy_reads_and_says_that_it_has_no_majority() {
    for backend in ["sqlite", "redb"] {
        let scenario = Scenario::new("legacy", "plain", backend);
        let copy = scenario.copy();
        let (node, address) = serving(&copy);
        // Its own storage is well; whether a majority answers is for /readyz.
        let health = format!(r#"{{"status":"healthy","storage":"{backend}","last_applied":1235}}"#);
        assert_eq!(get(address, "/health").body, health);
        let ready = get(address, "/readyz?verbose");
        assert_eq!(ready.status, 503, "{ready:?}");
        assert_eq!(ready.json()["checks"]["raft"]["status"], "degraded");
        let key = "/api/kv/user/afbc24be31077b2e";
        let stale = get(address, &format!("{key}?consistency=stale"));
        assert_eq!(stale.json()["value"], "value-1014");
        assert_eq!(get(address, key).status, 503);
        let write = client::ask(
            address,
            "PUT",
            key,
            Some(&serde_json::json!({ "value": "v" })),
        );
        assert_refused(&write, 503, "no_leader");
        node.stop().with(0);
    }
}

#[test]
fn health_names_the_other_backends_too() {
    for (backend, name) in [("memory", "memory"), ("redb", "redb")] {
        let dir = scratch();
        let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
        let body = get(node.ready(), "/health").body;
        let expected = format!(r#"{{"status":"healthy","storage":"{name}","last_applied":1}}"#);
        assert_eq!(body, expected);
        node.stop().with(0);
    }
}

#[test]
#[cfg(debug_assertions)] // release builds have no slow copies
fn during_a_migration_health_tells_how_far_it_is_and_the_rest_is_told_to_come_back() {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let address = free_address();
    let launch = bare_node().config(&copy.config());
    let launch = launch
        .env("ASPEN_DATA_DIR", copy.data())
        .env("ASPEN_STORAGE_BACKEND", "sqlite");
    let launch = launch.env("ASPEN_HTTP_ADDR", address.to_string());
    let mut node = launch.env(SLOW, "50").start();
    // The copy takes three seconds; its progress is told within one.
    assert!(node.says(": copy"));
    let health = get(address, "/health");
    assert_eq!(health.status, 503, "{health:?}");
    assert_eq!(health.header("retry-after"), Some("1"));
    assert_sound(&health);
    let told = health.json();
    assert_eq!(told["status"], "migrating");
    assert_eq!(told["phase"], "copy");
    assert!(
        told["percent"]
            .as_u64()
            .is_some_and(|percent| percent < 100),
        "{told}"
    );
    assert_eq!(told["checks"]["storage"]["total"], 1234);
    for path in ["/api/kv/test_key", "/api/kv/a/b", "/no/such/route"] {
        let answer = get(address, path);
        assert_refused(&answer, 503, "unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(get(address, "/livez").status, 200);
    assert_eq!(get(address, "/readyz").status, 503);
    node.ready();
    assert_eq!(get(address, "/health").status, 200);
    node.stop().with(0);
}

#[test]
fn every_key_is_found_whatever_it_is_made_of() {
    for (set, name) in [("golden", "unicode-redb-2.6-unclean"), ("legacy", "plain")] {
        for backend in ["sqlite", "redb"] {
            let scenario = Scenario::new(set, name, backend);
            let copy = scenario.copy();
            let (node, address) = serving(&copy);
            let state = fixture::one(set, name);
            // Most fixtures are of one node of three, which has nobody to ask.
            let rows = state.state().listed_rows.as_ref();
            // A path cannot name the empty key.
            let rows = rows
                .into_iter()
                .flatten()
                .filter(|(key, _)| !key.is_empty());
            let mut found = 0;
            for (key, value) in rows {
                let answer = get(
                    address,
                    &format!("/api/kv/{}?consistency=stale", encoded(key)),
                );
                assert_eq!(answer.status, 200, "{key:?}: {answer:?}");
                assert_eq!(answer.json()["key"], *key);
                assert_eq!(answer.json()["value"], *value);
                assert_sound(&answer);
                found += 1;
            }
            assert!(found > 20 || set == "legacy", "{found}");
            node.stop().with(0);
        }
    }
}

#[test]
fn a_key_may_hold_slashes_and_escapes_and_is_taken_as_it_stands_otherwise() {
    let pairs = |keys: &[&str]| -> Vec<(String, String)> {
        keys.iter()
            .map(|&key| (key.to_owned(), format!("value of {key}")))
            .collect()
    };
    let keys = [
        "a/b", "a//b/", "a b", "a+b", "50%", "%2F", "..", "../x", "?q=1", "ä", "nul\0nul",
    ];
    let scenario = Scenario::of_rows(&pairs(&keys));
    let copy = scenario.copy();
    let (node, address) = serving(&copy);
    for (target, key) in [
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("a//b/", "a//b/"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("50%25", "50%"),
        ("%252F", "%2F"),
        ("..", ".."),
        ("../x", "../x"),
        ("%2E%2E/x", "../x"),
        ("%3Fq=1", "?q=1"),
        ("%C3%A4", "ä"),
        ("nul%00nul", "nul\0nul"),
        ("a/b?consistency=stale", "a/b"),
    ] {
        let answer = get(address, &format!("/api/kv/{target}"));
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        assert_eq!(answer.json()["key"], key, "{target}");
        assert_eq!(answer.json()["value"], format!("value of {key}"));
    }
    for target in ["a", "a/", "a/b/", "A/b", "a%252Fb", "%61%00", "b"] {
        assert_refused(
            &get(address, &format!("/api/kv/{target}")),
            404,
            "key_not_found",
        );
    }
    for target in ["%FF", "a%C3", "%ED%A0%80"] {
        assert_refused(
            &get(address, &format!("/api/kv/{target}")),
            400,
            "bad_request",
        );
    }
    node.stop().with(0);
}

#[test]
fn what_is_not_there_or_not_allowed_is_told_in_json() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    for path in [
        "/index.html",
        "/api",
        "/api/kv/",
        "/health/",
        "/HEALTH",
        "/healthz",
        "//health",
    ] {
        assert_refused(&get(address, path), 404, "no_such_route");
    }
    for (method, path, allowed) in [
        ("POST", "/health", "GET,HEAD"),
        ("DELETE", "/livez", "GET,HEAD"),
        ("PUT", "/readyz", "GET,HEAD"),
        ("BREW", "/health", "GET,HEAD"),
    ] {
        let answer = request(address, method, path, &[("Host", "localhost")]);
        assert_refused(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
    let head = request(address, "HEAD", "/health", &[("Host", "localhost")]);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    node.stop().with(0);
}

#[test]
fn a_foreign_host_is_refused_on_loopback() {
    let dir = scratch();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    let port = address.port();
    let local = [
        format!("localhost:{port}"),
        address.to_string(),
        "[::1]:1".to_owned(),
    ];
    for host in local {
        let answer = request(address, "GET", "/health", &[("Host", &host)]);
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "10.0.0.1",
        "0.0.0.0",
    ] {
        for path in ["/health", "/api/kv/x", "/nothing"] {
            let answer = request(address, "GET", path, &[("Host", host)]);
            assert_refused(&answer, 403, "host_not_allowed");
        }
        // What a proxy sends, and what counts then (RFC 9112, 3.2.2).
        let target = format!("http://{host}/health");
        let answer = request(address, "GET", &target, &[("Host", "localhost")]);
        assert_refused(&answer, 403, "host_not_allowed");
    }
    let two = [("Host", "localhost"), ("Host", "evil.example")];
    let answer = request(address, "GET", "/health", &two);
    assert!([400, 403].contains(&answer.status), "{answer:?}");
    node.stop().with(0);
}

#[test]
fn one_connection_serves_many_requests_and_rubbish_does_not_hurt_the_next() {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let (node, address) = serving(&copy);
    let mut stream = TcpStream::connect(address).unwrap();
    for n in 0..50 {
        let close = if n == 49 { "Connection: close\r\n" } else { "" };
        write!(
            stream,
            "GET /livez HTTP/1.1\r\nHost: localhost\r\n{close}\r\n"
        )
        .unwrap();
    }
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 50);
    for rubbish in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET /health HTTP/9.9\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(rubbish.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer.is_empty() || parse(&answer).status == 400,
            "{answer}"
        );
    }
    assert_eq!(get(address, "/health").status, 200);
    node.stop().with(0);
}

/// Each way to confirm a read has a queue of its own. One that was empty held on
/// to a reader of the pool, and with as few readers as queues nobody was served.
#[test]
fn many_readers_share_a_small_pool() {
    let rows: Vec<_> = (0..50)
        .map(|n| (format!("key-{n}"), format!("value-{n}")))
        .collect();
    let scenario = Scenario::of_rows(&rows);
    for size in ["1", "2"] {
        let copy = scenario.copy();
        let launch = copy.launch().env("ASPEN_CLUSTER__SQLITE__POOL_SIZE", size);
        let mut node = launch.start();
        let address = node.ready();
        std::thread::scope(|scope| {
            for reader in 0..16 {
                let query = ["", "?consistency=lease", "?consistency=stale"][reader % 3];
                let rows = &rows;
                scope.spawn(move || {
                    for (key, value) in rows {
                        let answer = get(address, &format!("/api/kv/{key}{query}"));
                        assert_eq!(answer.json()["value"], *value, "{answer:?}");
                    }
                });
            }
        });
        each(
            &rows,
            |(key, _)| key.clone(),
            |(key, value)| {
                assert_eq!(
                    get(address, &format!("/api/kv/{key}")).json()["value"],
                    *value
                );
            },
        );
        node.stop().with(0);
        assert_eq!(copy.outcome(), scenario.copy().complete());
    }
}

/// SQLite's locks are the process's: whoever opens and closes the file beside
/// it gives them up, and then another reader, closing, takes the log away.
#[test]
fn a_reader_beside_the_node_does_not_take_its_log_away() {
    let scenario = Scenario::alone("sqlite");
    let copy = scenario.copy();
    let (node, address) = serving(&copy);
    // Opens the whole pool.
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(get(address, "/api/kv/nothing").status, 404));
        }
    });
    let database = copy.data().join("state-machine.db");
    let log = copy.data().join("state-machine.db-wal");
    assert!(log.exists());
    let count = read::query(&database, "SELECT count(*) FROM state_machine_kv");
    assert_eq!(count, [["1234"]]);
    assert!(log.exists(), "the log of a running node is gone");
    node.stop().with(0);
    assert!(!log.exists());
}
