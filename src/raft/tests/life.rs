//! Forming, writing and reading anywhere, losing the leader.

use super::*;
use crate::format::entry::{Outcome, Vote};
use crate::raft::start::{Identity, cluster_id, record};
use crate::storage::Range;
use crate::storage::log::Log;

const SQLITE: [Backend; 3] = [Backend::Sqlite; 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_the_same_members_form_one_cluster_in_any_order() {
    let mut cluster = Cluster::new(&SQLITE);
    for id in [3, 1, 2] {
        cluster.start(id).await;
    }
    cluster.leader().await;
    let ids: Vec<_> = cluster
        .nodes()
        .map(|node| node.status().cluster_id)
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    for node in cluster.nodes() {
        let voters = node.status().members;
        assert!(voters.len() == 3 && voters.iter().all(|member| member.voter));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_late_deposes_nobody() {
    let mut cluster = Cluster::new(&SQLITE);
    for id in [1, 2] {
        cluster.start(id).await;
    }
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().term;
    // Its first term and its id would be a later vote than the leader's.
    cluster.start(3).await;
    set(cluster.node(3), "key", "value").await.unwrap();
    eventually("the third has the key", || {
        (cluster.node(3).status().last_applied >= cluster.node(leader).status().last_applied)
            .then_some(())
    })
    .await;
    for node in cluster.nodes() {
        assert_eq!(
            (node.status().leader, node.status().term),
            (Some(leader), term)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_written_on_one_node_is_read_on_every_other_at_once() {
    let cluster = Cluster::all(&[Backend::Sqlite, Backend::Redb, Backend::Memory]).await;
    for round in 0..20 {
        for writer in 1..=3 {
            let value = format!("{round} of {writer}");
            set(cluster.node(writer), "key", &value).await.unwrap();
            for reader in cluster.nodes() {
                assert_eq!(get(reader, "key").await.as_ref(), Some(&value));
                let all = Range {
                    limit: 10,
                    max_bytes: 1000,
                    ..Range::default()
                };
                let page = reader.scan(all, Consistency::Linearizable).await.unwrap();
                assert_eq!(page.pairs, [("key".to_owned(), value.clone())]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_come_back_from_the_leader_to_who_asked() {
    let cluster = Cluster::all(&SQLITE).await;
    let node = cluster.node(cluster.follower().await);
    let written = set(node, "a", "1").await.unwrap();
    assert_eq!(written.outcome, Outcome::Done { deleted: 0 });
    let compare = |expect: Option<&str>| Request::CompareAndSet {
        key: "a".into(),
        expect: expect.map(str::to_owned),
        value: "2".into(),
    };
    let refused = node.write(compare(None)).await.unwrap();
    let current = Some("1".to_owned());
    assert_eq!(refused.outcome, Outcome::Conflict { current });
    assert_eq!(refused.index, written.index + 1);
    node.write(compare(Some("1"))).await.unwrap();
    let deleted = node
        .write(Request::Delete { key: "a".into() })
        .await
        .unwrap();
    assert_eq!(deleted.outcome, Outcome::Done { deleted: 1 });
    assert_eq!(get(node, "a").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_forwarded_writes_each_happen_once_and_in_a_block_each() {
    let cluster = Cluster::all(&SQLITE).await;
    let node = cluster.node(cluster.follower().await).clone();
    let writes = (0..500).map(|n| {
        let node = node.clone();
        tokio::spawn(async move {
            // Each a large part of what one message holds, so that there are many.
            let value = format!("{n}").repeat(20_000);
            set(&node, &format!("key-{n}"), &value).await.unwrap().index
        })
    });
    let mut indexes = Vec::new();
    for write in writes.collect::<Vec<_>>() {
        indexes.push(write.await.unwrap());
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 500);
    for n in [0, 7, 499] {
        let value = get(cluster.node(1), &format!("key-{n}")).await.unwrap();
        assert_eq!(value, format!("{n}").repeat(20_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_stops_another_leads_and_nothing_is_lost() {
    let mut cluster = Cluster::all(&SQLITE).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let survivor = cluster.node(cluster.follower().await).clone();
        let writing = tokio::spawn(async move {
            let mut written = Vec::new();
            for n in 0..200 {
                let key = format!("{round}-{n}");
                match set(&survivor, &key, &key).await {
                    Ok(_) => written.push(key),
                    // Those that were under way; the next ones wait for a leader.
                    Err(RequestError::Unconfirmed) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
            written
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.stop(leader).await;
        let written = writing.await.unwrap();
        assert!(written.len() >= 190, "{}", written.len());
        assert_ne!(cluster.leader().await, leader);
        cluster.start(leader).await;
        for node in cluster.nodes() {
            for key in &written {
                assert_eq!(get(node, key).await.as_ref(), Some(key));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_requests_are_refused_and_nothing_is_done() {
    let mut cluster = Cluster::all(&SQLITE).await;
    set(cluster.node(1), "key", "before").await.unwrap();
    // It is applied on the leader; here, when this has been read.
    assert!(get(cluster.node(1), "key").await.is_some());
    cluster.stop(2).await;
    cluster.stop(3).await;
    let node = cluster.node(1);
    let refusal = set(node, "key", "after").await.unwrap_err();
    // It may have entered the log of a leader that did not know yet.
    assert!(matches!(
        refusal,
        RequestError::NoLeader | RequestError::Unconfirmed
    ));
    assert!(node.ready().await.is_err());
    let read = node.get("key".into(), Consistency::Linearizable).await;
    assert!(read.is_err());
    let stale = node.get("key".into(), Consistency::Stale).await.unwrap();
    assert_eq!(stale.as_deref(), Some("before"));
    cluster.start(2).await;
    assert!(cluster.node(2).ready().await.is_ok() || get(cluster.node(1), "key").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_stopped_whole_starts_again_with_all_it_had() {
    let mut cluster = Cluster::all(&SQLITE).await;
    for n in 0..50 {
        set(cluster.node(1), &format!("{n}"), "value")
            .await
            .unwrap();
    }
    let before = cluster.node(1).status().cluster_id;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in [2, 3, 1] {
        cluster.start(id).await;
    }
    for node in cluster.nodes() {
        assert_eq!(get(node, "49").await.as_deref(), Some("value"));
        assert_eq!(node.status().cluster_id, before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_in_the_configuration_win_over_stored_ones() {
    let mut cluster = Cluster::all(&SQLITE).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    cluster.addresses = addresses(3);
    for id in 1..=3 {
        cluster.start(id).await;
    }
    for node in cluster.nodes() {
        assert_eq!(get(node, "key").await.as_deref(), Some("value"));
    }
}

/// The first entry of a node that had voted gave way to the leader's, and its power was cut
/// between the two. It waited at every start for a membership that nobody could bring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_voted_and_has_no_entry_yet_starts_before_the_others_and_joins_them() {
    let mut cluster = Cluster::new(&SQLITE);
    let path = DataDir::new(cluster.dirs[2].path()).raft_log();
    let log = Log::open(&path, None).unwrap();
    let identity = Identity {
        node_id: 3,
        cluster_id: cluster_id(&cluster.addresses),
        provisional: false,
    };
    record(&log, &identity, &path).unwrap();
    let (done, saved) = tokio::sync::oneshot::channel();
    let vote = Vote {
        term: 1,
        node_id: 1,
        committed: false,
    };
    log.save_vote(vote, Box::new(|result| done.send(result).unwrap()));
    saved.await.unwrap().unwrap();
    log.close().unwrap();
    let began = tokio::time::timeout(PATIENCE, cluster.start(3));
    began.await.expect("a start needs nobody else");
    assert!(cluster.node(3).ready().await.is_err());
    cluster.start(1).await;
    cluster.start(2).await;
    set(cluster.node(3), "key", "value").await.unwrap();
    assert_eq!(cluster.node(1).status().cluster_id, identity.cluster_id);
    assert_eq!(get(cluster.node(3), "key").await.as_deref(), Some("value"));
}
