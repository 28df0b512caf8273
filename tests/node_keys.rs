//! Keys over the API of a real node: written, compared, removed, listed, and
//! refused before they enter the log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::fixture::{Scratch, scratch};
use common::node::{Answer, Node, exchange, get, node_on, send};
use serde_json::{Value, json};

const BACKENDS: [&str; 3] = ["sqlite", "redb", "memory"];

fn on(backend: &str) -> (Node, SocketAddr, Scratch) {
    let dir = scratch();
    let mut node = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend).start();
    let address = node.ready();
    (node, address, dir)
}

fn put(address: SocketAddr, key: &str, body: &Value) -> Answer {
    send(address, "PUT", &format!("/api/kv/{key}"), &body.to_string())
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.error_code(), code);
}

/// How far the log is; what was refused must not have moved it.
fn last_log_index(address: SocketAddr) -> u64 {
    get(address, "/status").json()["last_log_index"]
        .as_u64()
        .unwrap()
}

#[test]
fn the_guides_write_can_be_read_on_every_backend() {
    for backend in BACKENDS {
        let (node, address, _dir) = on(backend);
        let answer = send(
            address,
            "POST",
            "/api/kv/test_key",
            r#"{"value":"test_value"}"#,
        );
        assert_eq!(answer.status, 200, "{answer:?}");
        let index = answer.json()["index"].as_u64().unwrap();
        let expected = format!(r#"{{"key":"test_key","value":"test_value","index":{index}}}"#);
        assert_eq!(answer.body, expected);
        for target in ["/api/kv/test_key", "/api/kv/test_key?consistency=stale"] {
            assert_eq!(
                get(address, target).body,
                r#"{"key":"test_key","value":"test_value"}"#
            );
        }
        let later = put(address, "test_key", &json!({"value": ""})).json()["index"].clone();
        assert_eq!(later, index + 1);
        assert_eq!(get(address, "/health").json()["last_applied"], index + 1);
        node.stop().with(0);
    }
}

#[test]
fn a_write_happens_only_if_the_key_holds_what_is_expected() {
    for backend in BACKENDS {
        let (node, address, _dir) = on(backend);
        let write = |body: Value| put(address, "a/b", &body);
        let conflict = |body: Value, current: Value| {
            let answer = write(body);
            refused(&answer, 409, "conflict");
            assert_eq!(answer.json()["current"], current);
            assert!(answer.json().as_object().unwrap().contains_key("current"));
        };
        conflict(json!({"value": "1", "expect": "0"}), Value::Null);
        assert_eq!(write(json!({"value": "1", "expect": null})).status, 200);
        conflict(json!({"value": "2", "expect": null}), json!("1"));
        conflict(json!({"value": "2", "expect": ""}), json!("1"));
        assert_eq!(write(json!({"value": "2", "expect": "1"})).status, 200);
        assert_eq!(get(address, "/api/kv/a/b").json()["value"], "2");
        node.stop().with(0);
    }
}

#[test]
fn a_key_is_removed_once() {
    for backend in BACKENDS {
        let (node, address, _dir) = on(backend);
        put(address, "k", &json!({"value": "v"}));
        let gone = send(address, "DELETE", "/api/kv/k", "");
        assert_eq!(gone.status, 200, "{gone:?}");
        let index = gone.json()["index"].as_u64().unwrap();
        assert_eq!(
            gone.body,
            format!(r#"{{"key":"k","deleted":true,"index":{index}}}"#)
        );
        refused(
            &send(address, "DELETE", "/api/kv/k", ""),
            404,
            "key_not_found",
        );
        refused(&get(address, "/api/kv/k"), 404, "key_not_found");
        node.stop().with(0);
    }
}

#[test]
fn a_batch_happens_as_a_whole() {
    for backend in BACKENDS {
        let (node, address, _dir) = on(backend);
        put(address, "old", &json!({"value": "v"}));
        let batch = |body: Value| send(address, "POST", "/api/kv", &body.to_string());
        let done = batch(json!({
            "set": [{"key": "a", "value": "1"}, {"key": "b/c", "value": "2"}],
            "delete": ["old", "never"],
        }));
        assert_eq!(done.status, 200, "{done:?}");
        assert_eq!(
            (&done.json()["set"], &done.json()["deleted"]),
            (&json!(2), &json!(1))
        );
        let twice = json!({"set": [{"key": "a", "value": "3"}], "delete": ["a"]});
        refused(&batch(twice), 400, "duplicate_key");
        let pairs = json!([{"key": "a", "value": "1"}, {"key": "b/c", "value": "2"}]);
        assert_eq!(
            get(address, "/api/kv").json(),
            json!({"pairs": pairs, "next": null})
        );
        node.stop().with(0);
    }
}

#[test]
fn all_keys_of_a_prefix_are_listed_page_by_page_in_order() {
    for backend in BACKENDS {
        let (node, address, _dir) = on(backend);
        let keys: Vec<_> = (0..25).map(|n| format!("p/{n:02}")).collect();
        let foreign = ["o", "p", "p0", "q/00"].map(str::to_owned);
        let all = keys.iter().chain(&foreign);
        let set: Vec<_> = all.map(|key| json!({"key": key, "value": key})).collect();
        let body = json!({ "set": set }).to_string();
        assert_eq!(send(address, "POST", "/api/kv", &body).status, 200);
        let (mut found, mut after) = (Vec::new(), String::new());
        for page in 0.. {
            let answer = get(address, &format!("/api/kv?prefix=p/&limit=10{after}"));
            let body = answer.json();
            let pairs = body["pairs"].as_array().unwrap();
            assert_eq!(pairs.len(), [10, 10, 5][page]);
            found.extend(
                pairs
                    .iter()
                    .map(|pair| pair["key"].as_str().unwrap().to_owned()),
            );
            let Some(next) = body["next"].as_str() else {
                break;
            };
            after = format!("&after={next}");
        }
        assert_eq!(found, keys);
        refused(&get(address, "/api/kv?limit=1001"), 400, "bad_request");
        node.stop().with(0);
    }
}

#[test]
fn what_is_refused_never_enters_the_log() {
    let (node, address, _dir) = on("sqlite");
    put(address, "k", &json!({"value": "v"}));
    let before = last_log_index(address);
    let long = "k".repeat(4097);
    let large = "v".repeat((8 << 20) + 1);
    for (target, body, status, code) in [
        (
            "/api/kv/k",
            r#"{"value":"v","expct":"x"}"#.to_owned(),
            400,
            "bad_request",
        ),
        (
            "/api/kv/k",
            r#"{"value":"v","value":"v"}"#.to_owned(),
            400,
            "bad_request",
        ),
        ("/api/kv/k", String::new(), 400, "bad_request"),
        (
            "/api/kv/k?expect=v",
            r#"{"value":"w"}"#.to_owned(),
            400,
            "bad_request",
        ),
        (
            "/api/kv/a%00b",
            r#"{"value":"v"}"#.to_owned(),
            400,
            "invalid_key",
        ),
        (
            &format!("/api/kv/{long}"),
            r#"{"value":"v"}"#.to_owned(),
            414,
            "key_too_long",
        ),
        (
            "/api/kv/k",
            json!({"value": large}).to_string(),
            413,
            "value_too_large",
        ),
        (
            "/api/kv",
            json!({"set": [{"key": long, "value": "v"}]}).to_string(),
            413,
            "key_too_long",
        ),
        (
            "/api/kv",
            json!({"set": [{"key": "", "value": "v"}]}).to_string(),
            400,
            "invalid_key",
        ),
        (
            "/api/kv",
            json!({"sets": []}).to_string(),
            400,
            "bad_request",
        ),
    ] {
        refused(&send(address, "POST", target, &body), status, code);
    }
    assert_eq!(last_log_index(address), before);
    assert_eq!(get(address, "/api/kv/k").json()["value"], "v");
    node.stop().with(0);
}

#[test]
fn a_body_that_is_not_json_or_too_large_is_refused_by_its_head() {
    let (node, address, _dir) = on("sqlite");
    let before = last_log_index(address);
    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let headers = content_type.map(|value| ("Content-Type", value));
        let headers: Vec<_> = headers.into_iter().collect();
        let (head, _) = exchange(address, "POST", "/api/kv/k", &headers, r#"{"value":"w"}"#);
        assert!(head.starts_with("HTTP/1.1 415 "), "{head}");
    }
    let (head, _) = exchange(
        address,
        "POST",
        "/api/kv/k",
        &[("Content-Type", "application/json")],
        &" ".repeat((16 << 20) + 1),
    );
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(last_log_index(address), before);
    node.stop().with(0);
}

#[test]
fn the_largest_key_and_value_come_back_as_they_were() {
    let (node, address, _dir) = on("sqlite");
    let (key, value) = ("k".repeat(4096), "ü".repeat(4 << 20));
    let written = put(address, &key, &json!({ "value": value }));
    assert_eq!(written.status, 200);
    assert_eq!(written.json()["value"], value);
    assert_eq!(
        get(address, &format!("/api/kv/{key}")).json()["value"],
        value
    );
    node.stop().with(0);
}

#[test]
fn many_writers_are_all_answered_with_indices_of_their_own() {
    let (node, address, _dir) = on("sqlite");
    let mut indices: Vec<u64> = std::thread::scope(|scope| {
        let writer = |n: usize| {
            move || {
                let write = |m: usize| put(address, &format!("{n}/{m}"), &json!({"value": "v"}));
                let index = |m| write(m).json()["index"].as_u64().unwrap();
                (0..20).map(index).collect::<Vec<_>>()
            }
        };
        let writers: Vec<_> = (0..8).map(|n| scope.spawn(writer(n))).collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect()
    });
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), 160);
    let page = get(address, "/api/kv?limit=1000&consistency=stale");
    assert_eq!(page.json()["pairs"].as_array().unwrap().len(), 160);
    node.stop().with(0);
}
