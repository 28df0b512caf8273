//! A write with an `Idempotency-Key` happens once, whatever becomes of the nodes
//! between two attempts: restarted, killed, migrated and back again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::client::{put, until, value};
use common::cluster::Cluster;
use common::fixture::scratch;
use common::load::{times, wait_up_to};
use common::node::{Answer, Launch, exchange, get, node_on, parse};
use common::{convert, listing, read};
use nix::sys::signal::Signal;
use serde_json::json;

const SET: &str = r#"{"value":"1"}"#;

/// Asks once, under an idempotency key.
fn once(address: SocketAddr, key: &str, method: &str, target: &str, body: &str) -> Answer {
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    let (head, body) = exchange(address, method, target, &headers, body);
    parse(&format!(
        "{head}\r\n\r\n{}",
        String::from_utf8(body).unwrap()
    ))
}

/// Everything but the time in the head, and whether it is marked as a repetition.
fn told(answer: &Answer) -> (u16, &str, bool) {
    let marked = answer.header("idempotent-replayed");
    assert!(matches!(marked, None | Some("true")), "{answer:?}");
    (answer.status, &answer.body, marked.is_some())
}

fn on(dir: &Path, backend: &str) -> Launch {
    node_on(dir).env("ASPEN_STORAGE_BACKEND", backend)
}

/// Requests of every kind, some of which find nothing to do: target, method, body, status.
const REQUESTS: [(&str, &str, &str, &str, u16); 6] = [
    ("set", "PUT", "/api/kv/a", SET, 200),
    (
        "swap",
        "POST",
        "/api/kv/a",
        r#"{"value":"2","expect":"1"}"#,
        200,
    ),
    (
        "lost",
        "POST",
        "/api/kv/a",
        r#"{"value":"3","expect":"1"}"#,
        409,
    ),
    (
        "batch",
        "POST",
        "/api/kv",
        r#"{"set":[{"key":"b","value":"1"}],"delete":["a"]}"#,
        200,
    ),
    ("gone", "DELETE", "/api/kv/b", "", 200),
    ("none", "DELETE", "/api/kv/b", "", 404),
];

/// Sends all of them; the answers, with what marks a repetition left out.
fn send_all(address: SocketAddr, repeated: bool) -> Vec<(u16, String)> {
    let answers = REQUESTS.map(|(key, method, target, body, status)| {
        let answer = once(address, key, method, target, body);
        let (found, body, marked) = told(&answer);
        assert_eq!((found, marked), (status, repeated), "{key}: {answer:?}");
        (status, body.to_owned())
    });
    answers.into()
}

#[test]
fn a_repetition_is_answered_as_the_first_on_every_backend_and_after_a_kill() {
    for backend in ["sqlite", "redb", "memory"] {
        let dir = scratch();
        let mut node = on(&dir, backend).start();
        let address = node.ready();
        let first = send_all(address, false);
        put(address, "a", "later");
        assert_eq!(send_all(address, true), first, "{backend}");
        assert_eq!(value(address, "a").as_deref(), Some("later"));
        node.signal(Signal::SIGKILL);
        node.end().killed();
        let mut node = on(&dir, backend).start();
        let address = node.ready();
        assert_eq!(send_all(address, true), first, "{backend}");
        assert_eq!(value(address, "a").as_deref(), Some("later"));
        node.stop().with(0);
    }
}

#[test]
fn what_is_no_key_or_another_requests_is_refused_and_leaves_no_trace_in_the_log() {
    let dir = scratch();
    let mut node = on(&dir, "sqlite").start();
    let address = node.ready();
    let first = once(address, "\"k\"", "PUT", "/api/kv/a", SET);
    assert_eq!(told(&first).0, 200);
    // The same in other words: without quotes, by the other method, with spaces.
    for (key, method, body) in [("k", "PUT", SET), ("k", "POST", "{ \"value\" : \"1\" }")] {
        let again = once(address, key, method, "/api/kv/a", body);
        assert_eq!(told(&again), (200, first.body.as_str(), true));
    }
    for (method, target, body) in [
        ("PUT", "/api/kv/a", r#"{"value":"2"}"#),
        ("PUT", "/api/kv/b", SET),
        ("PUT", "/api/kv/a", r#"{"value":"1","expect":null}"#),
        ("DELETE", "/api/kv/a", ""),
        ("POST", "/api/kv", r#"{"set":[{"key":"a","value":"1"}]}"#),
    ] {
        let refused = once(address, "k", method, target, body);
        assert_eq!(refused.status, 422, "{method} {target} {body}");
        assert_eq!(refused.error_code(), "idempotency_key_reused");
    }
    assert_eq!(value(address, "a").as_deref(), Some("1"));
    assert_eq!(value(address, "b"), None);
    let last = || get(address, "/status").json()["last_log_index"].clone();
    let before = last();
    for bad in ["", "a b", "\"a", "a,b", &"k".repeat(256)] {
        let refused = once(address, bad, "PUT", "/api/kv/a", SET);
        assert_eq!(refused.status, 400, "{bad}");
        assert_eq!(refused.error_code(), "invalid_idempotency_key", "{bad}");
    }
    let twice = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", "a"),
        ("Idempotency-Key", "a"),
    ];
    let (head, _) = exchange(address, "PUT", "/api/kv/a", &twice, SET);
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert_eq!(last(), before);
    // Reading is idempotent anyway: the header means nothing there.
    let read = once(address, "a b", "GET", "/api/kv/a", "");
    assert_eq!(told(&read), (200, r#"{"key":"a","value":"1"}"#, false));
    node.stop().with(0);
}

/// The digests that `/admin/digest` tells, without the position.
fn digest(address: SocketAddr) -> serde_json::Value {
    let mut digest = get(address, "/admin/digest").json();
    assert!(digest["last_applied"].take()["index"].is_u64(), "{digest}");
    digest
}

#[test]
fn what_was_remembered_is_there_after_the_tools_way_back_and_after_the_migration() {
    let dir = scratch();
    let mut node = on(&dir, "sqlite").start();
    let address = node.ready();
    let first = send_all(address, false);
    let known = digest(address);
    assert_eq!(known["idempotency_keys"], REQUESTS.len());
    node.stop().with(0);
    let (sqlite, redb) = (dir.join("state-machine.db"), dir.join("state-machine.redb"));
    let keys = read::query(
        &sqlite,
        "SELECT key FROM aspen_idempotency ORDER BY log_index",
    );
    let keys: Vec<_> = keys.concat();
    assert_eq!(keys, REQUESTS.map(|(key, ..)| key.to_owned()));

    for verify in ["--full-verify", "--verify"] {
        let _ = std::fs::remove_file(&redb);
        let run = convert(&sqlite, &redb, &[verify]);
        assert_eq!(run.code, 0, "{run:?}");
    }
    std::fs::remove_file(&sqlite).unwrap();
    let mut node = on(&dir, "redb").start();
    let address = node.ready();
    assert_eq!(digest(address), known);
    assert_eq!(send_all(address, true), first);
    let since = once(address, "since", "PUT", "/api/kv/since", SET);
    assert_eq!(told(&since).0, 200);
    let known = digest(address);
    node.stop().with(0);

    let mut node = on(&dir, "sqlite").start();
    let address = node.ready();
    assert!(!redb.exists());
    let record = get(address, "/status").json()["migration"].clone();
    assert_eq!(record["to"], "sqlite", "{record}");
    let history = std::fs::read_to_string(dir.join("migrations.jsonl")).unwrap();
    let count = format!("\"idempotency_keys\":{}", REQUESTS.len() + 1);
    assert!(history.contains(&count), "{history}");
    assert_eq!(digest(address), known);
    assert_eq!(send_all(address, true), first);
    let again = once(address, "since", "PUT", "/api/kv/since", SET);
    assert_eq!(told(&again), (200, since.body.as_str(), true));
    node.stop().with(0);
}

#[test]
fn a_source_with_a_damaged_memory_of_writes_is_refused_and_stays() {
    let dir = scratch();
    let mut node = on(&dir, "sqlite").start();
    send_all(node.ready(), false);
    node.stop().with(0);
    let (sqlite, redb) = (dir.join("state-machine.db"), dir.join("state-machine.redb"));
    let damage = "UPDATE aspen_idempotency SET record = x'0102' WHERE key = 'lost'";
    read::query(&sqlite, damage);
    let before = read::sha256(&sqlite);
    for options in [["--full-verify"].as_slice(), &["--verify"], &[]] {
        let run = convert(&sqlite, &redb, options);
        assert_eq!(run.code, 65, "{run:?}");
        assert!(run.err.contains("is damaged"), "{}", run.err);
        assert!(run.err.contains("idempotent write"), "{}", run.err);
        assert!(!redb.exists());
        assert_eq!(read::sha256(&sqlite), before);
    }
}

#[test]
#[cfg(debug_assertions)]
fn a_migration_that_dies_anywhere_loses_nothing_that_was_remembered() {
    let origin = scratch();
    let mut node = on(&origin, "redb").start();
    let address = node.ready();
    let first = send_all(address, false);
    let known = digest(address);
    node.stop().with(0);
    let mut died = 0;
    // Elsewhere each operation is tried; what is looked at here differs between few of them.
    let stride = usize::try_from(times(4, 1)).unwrap();
    for n in (1..).step_by(stride) {
        let dir = scratch();
        for name in listing(&origin) {
            std::fs::copy(origin.join(&name), dir.join(&name)).unwrap();
        }
        let mut node = on(&dir, "sqlite")
            .env("ASPEN_TEST_CRASH_AT", n.to_string())
            .start();
        if node.says("READY=1") {
            break;
        }
        node.end().killed();
        died += 1;
        let mut node = on(&dir, "sqlite").start();
        let address = node.ready();
        assert_eq!(digest(address), known, "died at {n}");
        assert_eq!(send_all(address, true), first, "died at {n}");
        node.stop().with(0);
    }
    assert!(died > 5, "{died}");
}

#[test]
fn a_write_that_the_leader_took_with_it_is_sent_again_and_happens_once() {
    let mut cluster = Cluster::all(&["sqlite", "redb", "sqlite"]);
    let leader = cluster.leader();
    let body = r#"{"value":"1","expect":null}"#;
    let target = "/api/kv/counter";
    let first = once(cluster.address(leader), "k", "PUT", target, body);
    assert_eq!(told(&first).0, 200);
    cluster.kill(leader);
    for id in cluster.ids() {
        // Without the key it would be a conflict: it has happened.
        let answer = until(
            || once(cluster.address(id), "k", "PUT", target, body),
            |answer| answer.status != 503,
        );
        assert_eq!(told(&answer), (200, first.body.as_str(), true));
    }
    cluster.start(leader);
    let answer = until(
        || once(cluster.address(leader), "k", "PUT", target, body),
        |answer| answer.status != 503,
    );
    assert_eq!(told(&answer), (200, first.body.as_str(), true));
}

/// Counts up by compare-and-set, so that a step that is taken twice, or taken
/// back, is a conflict from then on.
struct Counter {
    name: String,
    steps: u32,
}

impl Counter {
    /// Takes one step, which is sent again until it is answered.
    fn step(&mut self, address: SocketAddr, unconfirmed: &AtomicUsize) {
        let (name, next) = (&self.name, self.steps + 1);
        let expect = (self.steps > 0).then(|| self.steps.to_string());
        let body = json!({ "value": next.to_string(), "expect": expect }).to_string();
        let (key, target) = (format!("{name}-{next}"), format!("/api/kv/{name}"));
        loop {
            let answer = once(address, &key, "PUT", &target, &body);
            match answer.status {
                200 => break,
                503 => {}
                504 => drop(unconfirmed.fetch_add(1, Ordering::Relaxed)),
                _ => panic!("{key}: {answer:?}"),
            }
        }
        self.steps = next;
    }
}

#[test]
fn a_node_whose_leader_dies_sends_such_writes_again_by_itself() {
    let mut cluster = Cluster::all(&["sqlite", "redb", "sqlite"]);
    let unconfirmed = AtomicUsize::new(0);
    let mut counters: Vec<_> = (0..6)
        .map(|n| Counter {
            name: format!("counter-{n}"),
            steps: 0,
        })
        .collect();
    for _ in 0..times(3, 25) {
        let leader = cluster.leader();
        let stays = cluster.others(leader)[0];
        let address = cluster.address(stays);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for counter in &mut counters {
                let (unconfirmed, stop) = (&unconfirmed, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        counter.step(address, unconfirmed);
                    }
                });
            }
            wait_up_to(300);
            cluster.kill(leader);
            assert_ne!(cluster.leader(), leader);
            wait_up_to(300);
            stop.store(true, Ordering::Relaxed);
        });
        cluster.start(leader);
        for counter in &counters {
            let found = value(cluster.address(leader), &counter.name);
            let steps = (counter.steps > 0).then(|| counter.steps.to_string());
            assert_eq!(found, steps, "{}", counter.name);
        }
    }
    // The time that a node tries is many elections.
    assert_eq!(unconfirmed.into_inner(), 0);
    let digests = || {
        let ids = cluster.ids().into_iter();
        let digests = ids.map(|id| get(cluster.address(id), "/admin/digest").body);
        digests.collect::<BTreeSet<_>>()
    };
    while digests().len() > 1 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
