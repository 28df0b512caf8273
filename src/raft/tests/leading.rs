//! Who leads: handed over, cut off, and left alone by those who were away.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::strangers::{TERM, asks, candidacy, stranger};
use super::*;
use crate::format::peer::{Answer, Call};
use crate::raft::CommandError;

const SQLITE: [Backend; 3] = [Backend::Sqlite; 3];

/// Elections' worth of time in which much would happen if it could.
const LONG: Duration = Duration::from_secs(3);

/// Writes on `node` until told to stop; how many there were, all of them answered.
fn writing(node: Node, name: &'static str) -> (watch::Sender<()>, tokio::task::JoinHandle<u64>) {
    let (stop, stopped) = watch::channel(());
    let writes = tokio::spawn(async move {
        let mut count = 0;
        while stopped.has_changed().is_ok() {
            set(&node, &format!("{name}-{count}"), "value")
                .await
                .unwrap();
            count += 1;
        }
        count
    });
    (stop, writes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_where_it_is_sent_from_any_node_and_no_write_fails() {
    let cluster = Cluster::patient(&SQLITE).await;
    cluster.leader().await;
    let writers = [(1, "a"), (2, "b"), (3, "c")];
    let writers = writers.map(|(id, name)| (name, writing(cluster.node(id).clone(), name)));
    let mut term = cluster.node(1).status().term;
    for (asked, to) in [(1, 2), (1, 3), (2, 1), (1, 2), (2, 3), (3, 1)] {
        // Who has been told to lead already says so.
        let led = cluster
            .node(asked)
            .transfer_leadership(Some(to))
            .await
            .unwrap();
        assert_eq!(led.leader, to);
        assert!(led.term >= term, "{led:?} after {term}");
        term = led.term;
        assert_eq!(cluster.leader().await, to);
    }
    for (name, (stop, writes)) in writers {
        drop(stop);
        let count = writes.await.unwrap();
        assert!(count > 0);
        let last = format!("{name}-{}", count - 1);
        assert_eq!(get(cluster.node(1), &last).await.as_deref(), Some("value"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_name_some_other_voter_leads_and_with_a_wrong_one_nothing_changes() {
    let mut cluster = Cluster::all(&SQLITE).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let before = cluster.leader().await;
    let led = cluster
        .node(before)
        .transfer_leadership(None)
        .await
        .unwrap();
    assert_ne!(led.leader, before);
    assert_eq!(cluster.leader().await, led.leader);
    let unknown = cluster.node(before).transfer_leadership(Some(9)).await;
    assert!(
        matches!(unknown, Err(CommandError::NoMember(_))),
        "{unknown:?}"
    );
    let same = cluster
        .node(before)
        .transfer_leadership(Some(led.leader))
        .await;
    assert_eq!(same.unwrap(), led);
    let away = *cluster
        .addresses
        .keys()
        .find(|id| **id != led.leader)
        .unwrap();
    cluster.stop(away).await;
    let leader = cluster.node(led.leader).clone();
    let refused = eventually("a refusal", || {
        let leader = leader.clone();
        tokio::task::block_in_place(|| {
            let asked = leader.transfer_leadership(Some(away));
            match tokio::runtime::Handle::current().block_on(asked) {
                Err(CommandError::Refused(why)) => Some(why),
                // It is not known yet, is asked in vain, and comes back to who can.
                _ => None,
            }
        })
    })
    .await;
    assert!(refused.contains(&format!("node {away}")), "{refused}");
    set(&leader, "key", "again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_first_and_no_write_on_another_node_fails() {
    let mut cluster = Cluster::patient(&SQLITE).await;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let term = cluster.node(leader).status().term;
        let others = cluster.running.iter().filter(|(id, _)| **id != leader);
        let writers: Vec<_> = others
            .map(|(_, node)| writing(node.clone(), "key"))
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.node(leader).hand_over().await;
        assert_ne!(cluster.node(leader).status().leader, Some(leader));
        cluster.stop(leader).await;
        let next = cluster.leader().await;
        assert_eq!(cluster.node(next).status().term, term + 1);
        for (stop, writes) in writers {
            drop(stop);
            assert!(writes.await.unwrap() > 0);
        }
        cluster.start(leader).await;
    }
}

/// A node that was told to stop while nobody led was elected while it closed,
/// took what others forwarded, and left it unconfirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_stop_is_not_elected_any_more() {
    let mut cluster = Cluster::all(&SQLITE).await;
    let leader = cluster.leader().await;
    let others: Vec<_> = (1..=3).filter(|id| *id != leader).collect();
    cluster.node(others[0]).hand_over().await;
    for _ in 0..3 {
        // The other one has to lead each time, however often there is an election.
        let leader = cluster.leader().await;
        assert_ne!(leader, others[0]);
        cluster.stop(leader).await;
        cluster.start(leader).await;
        set(cluster.node(others[0]), "key", "value").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_company_just_stops() {
    let cluster = Cluster::all(&[Backend::Sqlite]).await;
    cluster.node(1).hand_over().await;
    let refused = cluster.node(1).transfer_leadership(None).await;
    assert!(
        matches!(refused, Err(CommandError::Refused(_))),
        "{refused:?}"
    );
    set(cluster.node(1), "key", "value").await.unwrap();
}

/// Leads to `address` while `open` is true; when it turns false, what goes through breaks.
async fn way(address: String, open: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (address, mut open) = (address.clone(), open.clone());
            tokio::spawn(async move {
                if !*open.borrow() {
                    return;
                }
                let Ok(mut far) = TcpStream::connect(address).await else {
                    return;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = open.wait_for(|open| !open) => {}
                }
            });
        }
    });
    here
}

/// Three nodes, and for each the switch of all its ways from and to the others.
async fn with_switches() -> (Cluster, BTreeMap<u64, watch::Sender<bool>>) {
    // It is formed with the addresses that all agree on.
    let mut cluster = Cluster::all(&SQLITE).await;
    cluster.leader().await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let switches: BTreeMap<_, _> = (1..=3).map(|id| (id, watch::channel(true).0)).collect();
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            // Through both: the way is open as long as both are.
            let address = cluster.addresses[&to].clone();
            let inner = way(address, switches[&from].subscribe()).await;
            let outer = way(inner, switches[&to].subscribe()).await;
            cluster.ways.insert((from, to), outer);
        }
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    (cluster, switches)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_nobody_and_follows_when_it_is_back() {
    let (cluster, switches) = with_switches().await;
    set(cluster.node(1), "key", "before").await.unwrap();
    let old = cluster.leader().await;
    switches[&old].send_replace(false);
    let others: Vec<_> = (1..=3).filter(|id| *id != old).collect();
    let new = eventually("another leader", || {
        let leader = cluster.node(others[0]).status().leader;
        leader.filter(|leader| *leader != old)
    })
    .await;
    set(cluster.node(others[1]), "key", "after").await.unwrap();
    let alone = cluster.node(old);
    assert!(alone.ready().await.is_err());
    let read = alone.get("key".into(), Consistency::Linearizable).await;
    assert!(read.is_err(), "{read:?}");
    // Its lease is over: nothing enters its log.
    let before = alone.status().last_log_index;
    let refused = set(alone, "key", "lost").await.unwrap_err();
    assert!(matches!(refused, RequestError::NoLeader), "{refused:?}");
    assert_eq!(alone.status().last_log_index, before);
    let term = cluster.node(new).status().term;
    switches[&old].send_replace(true);
    eventually("the old leader following", || {
        (cluster.node(old).status().leader == Some(new)).then_some(())
    })
    .await;
    assert_eq!(
        get(cluster.node(old), "key").await.as_deref(),
        Some("after")
    );
    assert_eq!(cluster.node(new).status().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_cut_off_asks_before_it_is_a_candidate_and_disturbs_nobody() {
    let (cluster, switches) = with_switches().await;
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().term;
    let away = cluster.follower().await;
    switches[&away].send_replace(false);
    tokio::time::sleep(LONG).await;
    // It has wanted to lead many times over by now, and asked in vain each time.
    assert_eq!(cluster.node(away).status().term, term);
    set(cluster.node(leader), "key", "value").await.unwrap();
    switches[&away].send_replace(true);
    assert_eq!(
        get(cluster.node(away), "key").await.as_deref(),
        Some("value")
    );
    let status = cluster.node(leader).status();
    assert_eq!((status.leader, status.term), (Some(leader), term));
}

/// A voter forgot in a restart of which leader it had heard a moment ago, and would have
/// elected another while the old one still read by the lease that it had been given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_was_restarted_keeps_the_promise_that_it_gave_its_leader() {
    let mut cluster = Cluster::new(&SQLITE);
    // Its lease is longer than this test takes on a busy machine.
    cluster.election = Duration::from_secs(12);
    let mut cluster = cluster.started().await;
    // The first election may have to be held again, which takes longer than a write waits.
    let leader = cluster.leader().await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let voter = cluster.follower().await;
    let other = (1..=3).find(|id| ![leader, voter].contains(id)).unwrap();
    let id = cluster.node(other).status().cluster_id;
    let candidate = stranger(&cluster, other, &id, SECRET);
    // Nobody renews the promise.
    cluster.stop(leader).await;
    cluster.stop(voter).await;
    cluster.start(voter).await;
    let mut candidacy = candidacy(other, false);
    candidacy.last_log_id = cluster.node(other).status().last_applied;
    candidacy.transfer = false;
    for call in [Call::PreVote(candidacy), Call::Vote(candidacy)] {
        let answer = asks(&candidate, voter, &call).await.unwrap();
        assert!(
            matches!(answer, Answer::Voted { granted: false, vote, .. } if vote.term < TERM),
            "{answer:?}"
        );
    }
    // Then it does what a voter does.
    assert_ne!(cluster.leader().await, leader);
    set(cluster.node(voter), "key", "again").await.unwrap();
}
