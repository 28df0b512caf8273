//! Who is not of the cluster, or cannot show it, reaches real nodes: it is
//! refused, each node says so once however often it tries, and nothing changes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::authority::Authority;
use common::client::{ask, put, until, value};
use common::cluster::Cluster;

const SECRET: &str = "ASPEN_CLUSTER__SECRET";
/// After this long without a word there is none.
const PATIENCE: Duration = Duration::from_secs(60);
/// Several elections of a node that nobody lets in, each of which is a try.
const TRIES: Duration = Duration::from_secs(4);

/// Two of three nodes run, and hold something. The third is for a stranger.
fn two_of_three(mut cluster: Cluster, environment: Vec<(&'static str, String)>) -> Cluster {
    cluster.environment = environment;
    cluster.start(1);
    cluster.start(2);
    cluster.leader();
    put(cluster.address(1), "key", "value");
    cluster
}

fn until_said(cluster: &Cluster, id: u64, what: &str) {
    let since = Instant::now();
    while cluster.said(id, what) == 0 {
        let log = std::fs::read_to_string(cluster.log(id)).unwrap();
        assert!(since.elapsed() < PATIENCE, "{id} never says {what}: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts node 3 with `environment`, which must keep it out: it says `it` once of
/// each other node, and these say `they` once of it.
fn is_kept_out(cluster: &Cluster, environment: &[(&str, String)], it: &str, they: &str) {
    let before = cluster.status(1);
    let launch = cluster.launch(3, &cluster.members());
    let launch = environment
        .iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value));
    let mut stranger = launch.start();
    let address = stranger.ready();
    for id in [1, 2] {
        until_said(cluster, id, they);
        until_said(cluster, 3, &format!("node {id} at"));
    }
    std::thread::sleep(TRIES);
    let lines = |id, what: &str| {
        let log = std::fs::read_to_string(cluster.log(id)).unwrap();
        let lines = log.lines().filter(|line| line.contains(what));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let about_others = lines(3, it);
    assert_eq!(about_others.len(), 2, "{about_others:#?}");
    for id in [1, 2] {
        let about_it = lines(id, they);
        assert_eq!(about_it.len(), 1, "{about_it:#?}");
    }
    assert_eq!(ask(address, "GET", "/readyz", None).status, 503);
    let stale = "/api/kv/key?consistency=stale";
    assert_eq!(ask(address, "GET", stale, None).status, 404);
    let after = cluster.status(1);
    assert_eq!(
        (&after["term"], &after["leader"]),
        (&before["term"], &before["leader"])
    );
    put(cluster.address(2), "late", "value");
    stranger.stop().with(0);
}

/// Node 3, as it should be, is let in.
fn is_let_in(cluster: &mut Cluster) {
    let address = cluster.start(3);
    until(
        || ask(address, "GET", "/readyz", None),
        |answer| answer.status == 200,
    );
    assert_eq!(value(address, "late").as_deref(), Some("value"));
}

#[test]
fn a_node_without_the_secret_is_kept_out_until_it_has_it() {
    let secret = |text: &str| (SECRET, text.to_owned());
    let cluster = Cluster::new(&["sqlite"; 3]);
    let known = vec![secret("what-all-nodes-of-this-cluster-know")];
    let mut cluster = two_of_three(cluster, known);
    is_kept_out(
        &cluster,
        &[secret("what-somebody-else-only-guesses-it-is")],
        "it does not know this node's cluster.secret",
        "was refused: the handshake broke off",
    );
    is_let_in(&mut cluster);
}

#[test]
fn a_node_whose_certificate_has_expired_is_kept_out_until_it_has_a_new_one() {
    let authority = Authority::new();
    let cluster = Cluster::new(&["sqlite"; 3]);
    let members = cluster.members();
    let hosts = members
        .iter()
        .map(|address| address.split(':').next().unwrap().to_owned());
    let hosts: Vec<_> = hosts.collect();
    let good = authority.environment(authority.sign("good", &hosts, 4000));
    let mut cluster = two_of_three(cluster, good);
    let expired = authority.environment(authority.sign("expired", &hosts, 2021));
    is_kept_out(&cluster, &expired, "cannot be reached", "was refused");
    for id in [1, 2] {
        // Once of who comes, and once of where it goes to, if it went there.
        let said = cluster.said(id, "certificate expired");
        assert!((1..=2).contains(&said), "{said}");
    }
    is_let_in(&mut cluster);
}

#[test]
fn whoever_speaks_nonsense_to_the_peer_listener_is_sent_away_and_mentioned_once() {
    let secret = (SECRET, "what-all-nodes-of-this-cluster-know".to_owned());
    let cluster = two_of_three(Cluster::new(&["sqlite"; 3]), vec![secret]);
    let before = cluster.status(1);
    let nonsense = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 70_000],
        vec![255; 70_000],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    for _ in 0..20 {
        for bytes in &nonsense {
            let mut stream = TcpStream::connect(cluster.peer_address(1)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // It may be sent away before it has said everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 1024, "{answer:?}");
        }
    }
    let refusals = cluster.said(1, "was refused");
    assert!((1..=nonsense.len()).contains(&refusals), "{refusals}");
    assert_eq!(cluster.status(1)["term"], before["term"]);
    put(cluster.address(1), "late", "value");
    assert_eq!(value(cluster.address(2), "late").as_deref(), Some("value"));
}
