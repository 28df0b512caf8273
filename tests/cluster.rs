//! Three processes that are one cluster: whoever is killed, what was
//! acknowledged on any node is there on every other.
//!
//! `ASPEN_TEST_EXHAUSTIVE=1` kills many times instead of a few.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::client::{ask, put, until, value};
use common::cluster::Cluster;
use common::load::{times, under_load, wait_up_to, writers};
use serde_json::json;

#[test]
fn the_leader_is_killed_under_load_again_and_again_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::all(&["sqlite", "sqlite", "redb"]);
    let mut writers = writers(8, 100);
    for _ in 0..times(4, 40) {
        let leader = cluster.leader();
        let followers = cluster.others(leader);
        let [one, other] = [cluster.address(followers[0]), cluster.address(followers[1])];
        let (half, rest) = writers.split_at_mut(4);
        under_load(half, one, || {
            under_load(rest, other, || {
                wait_up_to(300);
                cluster.kill(leader);
                let next = cluster.leader();
                assert_ne!(next, leader);
                // Writes that come after it leads.
                put(one, "round", &next.to_string());
                wait_up_to(200);
            });
        });
        let restarted = cluster.start(leader);
        for writer in &mut writers {
            writer.check(restarted);
            writer.check(one);
            writer.check(other);
        }
    }
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    assert!(acknowledged > 100, "{acknowledged}");
}

#[test]
fn a_cluster_that_is_killed_whole_comes_back_with_all_that_was_acknowledged() {
    let mut cluster = Cluster::all(&["sqlite"; 3]);
    let mut writers = writers(6, 100);
    for _ in 0..times(3, 20) {
        cluster.leader();
        let [a, b, c] = [1, 2, 3].map(|id| cluster.address(id));
        let (first, rest) = writers.split_at_mut(2);
        let (second, third) = rest.split_at_mut(2);
        under_load(first, a, || {
            under_load(second, b, || {
                under_load(third, c, || {
                    wait_up_to(500);
                    for id in [2, 1, 3] {
                        cluster.kill(id);
                    }
                });
            });
        });
        for id in 1..=3 {
            cluster.start(id);
        }
        for (writer, id) in writers.iter_mut().zip([1, 2, 3].into_iter().cycle()) {
            writer.check(cluster.address(id));
        }
    }
}

#[test]
fn a_node_is_ready_for_its_service_manager_before_there_is_a_majority_and_serves_with_one() {
    let mut cluster = Cluster::new(&["sqlite"; 3]);
    let first = cluster.start(3);
    assert_eq!(ask(first, "GET", "/readyz", None).status, 503);
    let body = json!({ "value": "v" });
    let refused = ask(first, "PUT", "/api/kv/key", Some(&body));
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "no_leader")
    );
    assert_eq!(
        ask(first, "GET", "/api/kv/key?consistency=stale", None).status,
        404
    );
    let second = cluster.start(1);
    until(
        || ask(first, "GET", "/readyz", None),
        |answer| answer.status == 200,
    );
    put(second, "key", "value");
    assert_eq!(value(first, "key").as_deref(), Some("value"));
    assert_eq!(
        cluster.status(1)["cluster_id"],
        cluster.status(3)["cluster_id"]
    );
}

#[test]
fn a_node_of_another_cluster_is_refused_and_both_logs_say_so_once() {
    let mut cluster = Cluster::new(&["sqlite"; 3]);
    cluster.start(1);
    cluster.start(2);
    cluster.leader();
    let term = cluster.status(1)["term"].clone();
    let mut members = cluster.members();
    members[1] = members[1].replace(":7000", ":7001");
    let mut stranger = cluster.launch(3, &members).start();
    stranger.ready();
    let said = |id: u64, what: &str| cluster.said(id, what);
    let (refused, refuses) = (
        "reached: refused: this is cluster",
        "was refused: this is cluster",
    );
    while said(3, refused) == 0 || said(1, refuses) == 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    // Several elections of its, that all end the same way.
    std::thread::sleep(Duration::from_secs(4));
    // From either side: node 1 and the stranger try each other.
    assert_eq!(said(3, refused), 1);
    assert_eq!(said(1, refuses), 1);
    assert_eq!(cluster.status(1)["term"], term);
    put(cluster.address(2), "key", "value");
    stranger.stop().with(0);
}

#[test]
fn a_listener_that_all_could_reach_or_that_is_taken_stops_the_start() {
    let mut cluster = Cluster::new(&["sqlite"; 3]);
    let members = cluster.members();
    let open = cluster.launch(1, &members);
    let open = open.env("ASPEN_CLUSTER__PEER_LISTEN", "0.0.0.0:7000");
    let ended = open.start().end().with(78);
    assert!(ended.log.contains("could pose as a node"), "{ended:?}");
    cluster.start(1);
    let taken = cluster.launch(2, &members);
    let taken = taken.env("ASPEN_CLUSTER__PEER_LISTEN", cluster.peer_address(1));
    let ended = taken.start().end().with(74);
    assert!(
        ended
            .log
            .contains("for other nodes; stop the program that listens there"),
        "{ended:?}"
    );
}

#[test]
fn a_leader_that_is_stopped_under_load_hands_over_and_no_request_elsewhere_fails() {
    let mut cluster = Cluster::all(&["sqlite"; 3]);
    let mut writers = writers(6, 100);
    let mut handed_over = 0;
    for _ in 0..times(3, 20) {
        let leader = cluster.leader();
        let followers = cluster.others(leader);
        let [one, other] = [cluster.address(followers[0]), cluster.address(followers[1])];
        let (half, rest) = writers.split_at_mut(3);
        under_load(half, one, || {
            under_load(rest, other, || {
                wait_up_to(200);
                let ended = cluster.stop(leader);
                // Another one may have been elected just before.
                handed_over += u32::from(ended.log.contains("Handing leadership over"));
                assert_ne!(cluster.leader(), leader);
                wait_up_to(200);
            });
        });
        cluster.start(leader);
    }
    assert!(handed_over > 0);
    for writer in &mut writers {
        // Nobody was left in doubt, or refused for want of a leader.
        assert_eq!(writer.unknown, 0, "{:?}", writer.codes);
        let codes: Vec<_> = writer.codes.iter().map(String::as_str).collect();
        assert!(codes.iter().all(|code| *code == "bad_request"), "{codes:?}");
        writer.check(cluster.address(1));
    }
}

#[test]
fn leadership_is_handed_over_on_request_to_any_node() {
    let mut cluster = Cluster::all(&["sqlite"; 3]);
    let leader = cluster.leader();
    let [heir, asked] = cluster.others(leader)[..] else {
        panic!("{:?}", cluster.ids());
    };
    let lead = |cluster: &Cluster, on: u64, body: serde_json::Value| {
        ask(cluster.address(on), "POST", "/admin/leader", Some(&body))
    };
    let answer = lead(&cluster, asked, json!({ "id": heir }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["leader"], heir);
    assert_eq!(cluster.leader(), heir);
    assert_eq!(answer.json()["term"], cluster.status(heir)["term"]);
    let answer = lead(&cluster, heir, json!({}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(answer.json()["leader"], heir);
    for (body, status, code) in [
        (json!({ "id": 9 }), 404, "no_such_member"),
        (json!({ "id": "2" }), 400, "bad_request"),
        (json!({ "node": 2 }), 400, "bad_request"),
        (json!([2]), 400, "bad_request"),
    ] {
        let answer = lead(&cluster, leader, body);
        assert_eq!(
            (answer.status, answer.error_code().as_str()),
            (status, code)
        );
    }
    let alone = cluster.leader();
    for id in cluster.others(alone) {
        cluster.kill(id);
    }
    let answer = until(
        || lead(&cluster, alone, json!({})),
        |answer| answer.status != 200,
    );
    assert!([409, 503].contains(&answer.status), "{answer:?}");
}
