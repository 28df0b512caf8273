//! Who is not of the cluster, or pretends.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::peer::{Local, PeerError, Peers};
use super::authority::Authority;
use super::*;
use crate::format::entry::Vote;
use crate::format::peer::{Answer, Call, Candidacy};

/// A node that is none of `cluster`, and speaks as `id`.
pub(super) fn stranger(cluster: &Cluster, id: u64, cluster_id: &str, secret: &str) -> Peers {
    let mut local = Local::new(id, Some(secret));
    if let Some(node) = cluster.running.get(&id) {
        local.pose_as(node.incarnation());
    }
    local.join(cluster_id, false);
    Peers::new(Arc::new(local), cluster.addresses.clone())
}

pub(super) async fn asks(peers: &Peers, to: u64, call: &Call) -> Result<Answer, PeerError> {
    let link = peers.link(to, "", PATIENCE).await?;
    link.call(call, PATIENCE).await
}

/// A term that only a stranger can bring into a cluster. The cluster's own may grow by
/// an election that it has on a busy machine.
pub(super) const TERM: u64 = 1_000_000;

pub(super) fn candidacy(node_id: u64, committed: bool) -> Candidacy {
    let vote = Vote {
        term: TERM,
        node_id,
        committed,
    };
    Candidacy {
        vote,
        last_log_id: None,
        transfer: true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_turned_away_and_change_nothing() {
    let cluster = Cluster::all(&[Backend::Memory; 3]).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let status = cluster.node(1).status();
    let id = status.cluster_id.as_str();
    let vote = Call::Vote(candidacy(2, false));
    for (stranger, part) in [
        (
            stranger(&cluster, 2, id, "what-a-stranger-guesses"),
            "does not know",
        ),
        (stranger(&cluster, 2, "another", SECRET), "not another"),
        (stranger(&cluster, 1, id, SECRET), "itself"),
    ] {
        let error = asks(&stranger, 1, &vote).await.unwrap_err();
        assert!(matches!(error, PeerError::Unreached { .. }));
        let text = crate::telemetry::Chain(&error).to_string();
        assert!(text.contains(part), "{text}");
    }
    assert!(cluster.node(1).status().term < TERM);
    assert_eq!(get(cluster.node(1), "key").await.as_deref(), Some("value"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_speaks_for_another_is_refused_and_changes_nothing() {
    let cluster = Cluster::all(&[Backend::Memory; 3]).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let status = cluster.node(1).status();
    let liar = stranger(&cluster, 2, &status.cluster_id, SECRET);
    let transfer = Call::Transfer {
        from: candidacy(3, true).vote,
        to: 1,
        last_log_id: None,
    };
    for call in [
        Call::Vote(candidacy(3, false)),
        Call::Vote(candidacy(2, true)),
        Call::PreVote(candidacy(3, false)),
        transfer,
    ] {
        let error = asks(&liar, 1, &call).await.unwrap_err();
        assert!(matches!(error, PeerError::Lost { .. }), "{error:?}");
    }
    assert!(cluster.node(1).status().term < TERM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_on_the_listener_ends_its_connection_only() {
    let cluster = Cluster::all(&[Backend::Memory; 3]).await;
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 4096],
        &[255; 4096],
        b"",
    ] {
        let mut stream = TcpStream::connect(&cluster.addresses[&1]).await.unwrap();
        // It may be gone before all has been said.
        let _ = stream.write_all(nonsense).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.len() < 1024);
    }
    set(cluster.node(1), "key", "value").await.unwrap();
    assert_eq!(get(cluster.node(2), "key").await.as_deref(), Some("value"));
}

fn host(address: &str) -> &str {
    address.split(':').next().unwrap()
}

/// A cluster whose nodes have certificates of one authority.
async fn with_tls() -> Cluster {
    let mut cluster = Cluster::new(&[Backend::Memory; 3]);
    let authority = Authority::new();
    for (id, address) in &cluster.addresses {
        authority.sign(*id, host(address), 4000);
    }
    cluster.tls = Some(authority);
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_of_one_authority_form_a_cluster() {
    let cluster = with_tls().await;
    set(cluster.node(1), "key", "value").await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(get(node, "key").await.as_deref(), Some("value"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_no_good_certificate_is_turned_away_though_it_knows_the_secret() {
    let cluster = with_tls().await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let status = cluster.node(1).status();
    let ours = cluster.tls.as_ref().unwrap();
    ours.sign(7, "127.0.0.1", 2021);
    let theirs = Authority::new();
    theirs.sign(7, "127.0.0.1", 4000);
    let mut mixed = theirs.files(7);
    mixed.ca = ours.files(7).ca;
    for files in [
        None,
        Some(ours.files(7)),
        Some(theirs.files(7)),
        Some(mixed),
    ] {
        let mut local = Local::new(2, Some(SECRET));
        if let Some(files) = &files {
            local.protect(files).unwrap();
        }
        local.join(&status.cluster_id, false);
        let stranger = Peers::new(Arc::new(local), cluster.addresses.clone());
        let asked = asks(&stranger, 1, &Call::Vote(candidacy(2, false))).await;
        assert!(
            matches!(asked, Err(PeerError::Unreached { .. })),
            "{files:?}"
        );
    }
    assert!(cluster.node(1).status().term < TERM);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_certificate_names_another_host_is_not_connected_to() {
    let cluster = with_tls().await;
    let authority = cluster.tls.as_ref().unwrap();
    authority.sign(1, "127.99.99.99", 4000);
    cluster
        .node(1)
        .renew_certificate(&authority.files(1))
        .unwrap();
    let mut local = Local::new(2, Some(SECRET));
    local.protect(&authority.files(2)).unwrap();
    local.join(&cluster.node(1).status().cluster_id, false);
    let other = Peers::new(Arc::new(local), cluster.addresses.clone());
    let asked = asks(&other, 1, &Call::ReadIndex).await.unwrap_err();
    let text = crate::telemetry::Chain(&asked).to_string();
    assert!(text.contains("not valid for name"), "{text}");
}
