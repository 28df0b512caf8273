//! What a read may miss, by the consistency that it asks for: nothing, nothing
//! while clocks run, or what is younger than a bound.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::client::{ask, put, until, value};
use common::cluster::Cluster;
use common::node::{Answer, parse};

fn read(address: SocketAddr, query: &str) -> Answer {
    ask(address, "GET", &format!("/api/kv/key?{query}"), None)
}

#[track_caller]
fn sees(address: SocketAddr, query: &str, wanted: &str) {
    for target in ["/api/kv/key?", "/api/kv?prefix=key&"] {
        let answer = ask(address, "GET", &format!("{target}{query}"), None);
        assert_eq!(answer.status, 200, "{target}{query}: {answer:?}");
        let found = answer.json();
        let pair = found["pairs"].get(0).unwrap_or(&found);
        assert_eq!(pair["value"], wanted, "{target}{query}");
    }
}

#[test]
fn every_node_sees_what_any_node_has_acknowledged_whichever_way_it_is_confirmed() {
    let cluster = Cluster::all(&["sqlite", "redb", "memory"]);
    cluster.leader();
    for n in 0..5_u64 {
        let writer = cluster.address(n % 3 + 1);
        put(writer, "key", &n.to_string());
        for id in cluster.ids() {
            for query in ["", "consistency=lease", "consistency=stale&max_lag=0"] {
                sees(cluster.address(id), query, &n.to_string());
            }
        }
    }
}

#[test]
fn a_node_that_is_alone_answers_with_a_bound_only_while_it_knows_that_it_keeps_it() {
    let mut cluster = Cluster::all(&["sqlite"; 3]);
    let [stays, other] = cluster.followers()[..] else {
        panic!("two follow")
    };
    let (address, leader) = (cluster.address(stays), cluster.leader());
    put(address, "key", "v");
    assert_eq!(value(address, "key").as_deref(), Some("v"));
    cluster.kill(other);
    cluster.kill(leader);
    // It read a moment ago, which is less than a day.
    sees(address, "consistency=stale&max_lag=86400000", "v");
    sees(address, "consistency=stale", "v");
    std::thread::sleep(Duration::from_millis(100));
    for query in [
        "consistency=stale&max_lag=50",
        "consistency=stale&max_lag=0",
        "consistency=lease",
        "consistency=linearizable",
    ] {
        let refused = read(address, query);
        assert_eq!(refused.status, 503, "{query}: {refused:?}");
        assert_eq!(refused.error_code(), "no_leader");
    }
    cluster.start(leader);
    let answer = until(
        || read(address, "consistency=stale&max_lag=50"),
        |answer| answer.status == 200,
    );
    assert_eq!(answer.json()["value"], "v");
}

/// A request that is in the node's hands before it may go on.
struct Asked(TcpStream);

impl Asked {
    fn of(address: SocketAddr, query: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let head = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        write!(stream, "GET /api/kv/key?{query} {head}").unwrap();
        Self(stream)
    }

    fn answer(mut self) -> Answer {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).unwrap();
        parse(&answer)
    }
}

/// Its clock went on while it stood still, and with it the age of what it knows.
#[test]
fn a_follower_that_stood_still_does_not_take_what_it_has_for_recent() {
    let cluster = Cluster::all(&["sqlite"; 3]);
    let follower = cluster.followers()[0];
    let (address, leader) = (cluster.address(follower), cluster.address(cluster.leader()));
    for n in 0..5 {
        put(leader, "key", &format!("old {n}"));
        // Now it knows how recent it is.
        assert_eq!(value(address, "key").unwrap(), format!("old {n}"));
        cluster.pause(follower);
        put(leader, "key", &format!("new {n}"));
        let asked: Vec<_> = (0..3)
            .map(|_| Asked::of(address, "consistency=stale&max_lag=100"))
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        cluster.resume(follower);
        for asked in asked {
            let answer = asked.answer();
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["value"], format!("new {n}"));
        }
    }
}

/// A leader that stood still until another was elected must not answer by a
/// lease that ended meanwhile.
#[test]
fn a_leader_of_the_past_answers_no_read_by_its_lease() {
    let cluster = Cluster::all(&["sqlite"; 3]);
    let old = cluster.leader();
    let address = cluster.address(old);
    put(address, "key", "old");
    sees(address, "consistency=lease", "old");
    cluster.pause(old);
    let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != old).collect();
    let one = cluster.address(others[0]);
    let answer = until(
        || {
            let body = serde_json::json!({ "value": "new" });
            ask(one, "PUT", "/api/kv/key", Some(&body))
        },
        |answer| answer.status == 200,
    );
    assert_eq!(answer.json()["value"], "new");
    let asked: Vec<_> = (0..8)
        .map(|_| Asked::of(address, "consistency=lease"))
        .collect();
    cluster.resume(old);
    for asked in asked {
        let answer = asked.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["value"], "new");
    }
}
