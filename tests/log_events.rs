//! The events that nodes tell of each other, and what they never tell: seen in
//! the log as JSON, whose fields are those of the journal.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;

use aspen::telemetry::events;
use common::client::{ask, put, until};
use common::cluster::Cluster;
use common::fixture::scratch;
use common::node::{Ended, Node, exchange, node_on, request, send};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The fields of every line that has this `MESSAGE_ID`.
fn told(ended: &Ended, id: &str) -> Vec<Value> {
    let lines = ended.log.lines();
    let fields = lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].take());
    fields.filter(|fields| fields["MESSAGE_ID"] == id).collect()
}

fn leads(node: std::net::SocketAddr) -> bool {
    ask(node, "GET", "/status", None).json()["role"] == "leader"
}

/// Three nodes; the leader is killed and comes back after the others have gone
/// on without it.
#[test]
fn who_led_when_and_who_was_away_is_told_by_every_node() {
    let cluster = Cluster::new(&["sqlite", "sqlite", "sqlite"]);
    let start = |id| {
        let launch = cluster.launch(id, &cluster.members());
        let mut node = launch.env("ASPEN_LOG__FORMAT", "json").start();
        let address = node.ready();
        (node, address)
    };
    let mut nodes: BTreeMap<u64, (Node, std::net::SocketAddr)> =
        (1..=3).map(|id| (id, start(id))).collect();
    let leader = |nodes: &BTreeMap<u64, (Node, std::net::SocketAddr)>| {
        let addresses: Vec<_> = nodes.iter().map(|(id, (_, at))| (*id, *at)).collect();
        let first = addresses[0].1;
        until(
            || ask(first, "GET", "/status", None),
            |_| addresses.iter().any(|(_, at)| leads(*at)),
        );
        let leader = addresses.iter().find(|(_, at)| leads(*at));
        leader.map(|(id, _)| *id)
    };
    let first = std::iter::repeat_with(|| leader(&nodes)).flatten().next();
    let first = first.unwrap();
    put(nodes[&first].1, "key", "value");
    // Two elect and write while the third may still be about to connect.
    for (_, at) in nodes.values() {
        until(
            || ask(*at, "GET", "/status", None),
            |answer| answer.json()["leader"] == first,
        );
    }
    let (node, _) = nodes.remove(&first).unwrap();
    node.signal(Signal::SIGKILL);
    let killed = node.end().killed();
    let second = std::iter::repeat_with(|| leader(&nodes)).flatten().next();
    let second = second.unwrap();
    assert_ne!(first, second);
    put(nodes[&second].1, "key", "another");
    nodes.insert(first, start(first));
    let back = nodes[&first].1;
    until(
        || ask(back, "GET", "/api/kv/key", None),
        |answer| answer.status == 200 && answer.json()["value"] == "another",
    );
    let ended: BTreeMap<_, _> = nodes
        .into_iter()
        .map(|(id, (node, _))| (id, node.stop().with(0)))
        .collect();

    let gained = told(&killed, events::LEADERSHIP_GAINED);
    assert_eq!(gained[0]["ASPEN_LEADER"], first, "{gained:?}");
    let gained = told(&ended[&second], events::LEADERSHIP_GAINED);
    assert_eq!(gained[0]["ASPEN_LEADER"], second, "{gained:?}");
    // The one that saw both of them.
    let third = 6 - first - second;
    let leaders = told(&ended[&third], events::LEADER_CHANGED);
    let leaders: Vec<_> = leaders.iter().map(|told| &told["ASPEN_LEADER"]).collect();
    assert!(leaders.contains(&&first.into()), "{leaders:?}");
    assert!(leaders.contains(&&second.into()), "{leaders:?}");
    let away = told(&ended[&second], events::PEER_UNREACHABLE);
    let is_first = |told: &Value| told["ASPEN_MEMBER"] == first;
    assert!(away.iter().any(is_first), "{away:?}");
    let again = told(&ended[&second], events::PEER_CONNECTED);
    assert!(again.iter().any(is_first), "{again:?}");
    let address = cluster.peer_address(first);
    assert!(
        again
            .iter()
            .any(|told| told["ASPEN_PEER_ADDRESS"] == address.as_str())
    );
}

/// What clients store and show is theirs.
#[test]
fn no_key_no_value_and_no_token_is_logged() {
    let token = "token-that-is-a-secret-0123456789";
    let (key, value, wrong) = ("key-of-somebody", "value-of-somebody", "guess-of-somebody");
    let dir = scratch();
    let launch = node_on(&dir).env("ASPEN_HTTP__ADMIN_TOKEN", token);
    let mut node = launch.env("ASPEN_LOG__FORMAT", "json").start();
    let address = node.ready();
    let path = format!("/api/kv/{key}");
    put(address, key, value);
    let json = ("Content-Type", "application/json");
    for (method, body) in [
        (
            "PUT",
            format!(r#"{{"value":"{value}","expect":"{wrong}"}}"#),
        ),
        ("PUT", format!(r#"{{"value":"{value}"#)),
        ("PUT", format!(r#"{{"value":"{value}\u0000"}}"#)),
        ("GET", String::new()),
        ("DELETE", String::new()),
        ("PATCH", value.to_owned()),
    ] {
        exchange(address, method, &path, &[json], &body);
    }
    for refused in [wrong, &token[1..]] {
        let bearer = format!("Bearer {refused}");
        let headers = [("Host", "localhost"), ("Authorization", bearer.as_str())];
        assert_eq!(
            request(address, "POST", "/admin/snapshot", &headers).status,
            401
        );
    }
    assert_eq!(send(address, "POST", &format!("/{value}"), "").status, 404);
    let ended = node.stop().with(0);
    assert!(!told(&ended, events::NODE_READY).is_empty());
    for secret in [token, &token[1..], key, value, wrong] {
        assert!(!ended.log.contains(secret), "{secret} is in {}", ended.log);
    }
}
