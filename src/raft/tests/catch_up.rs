//! Nodes that were away.

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::format::entry::{Idempotent, Plain};
use crate::storage::Contents;
use Backend::{Memory, Redb, Sqlite};

const VALUE: &str = "a value that takes its place in the log and in the state machine";

/// Node 3 is away while `count` keys are written; the last one is returned.
async fn write_without_the_third(cluster: &mut Cluster, count: u64) -> u64 {
    cluster.leader().await;
    set(cluster.node(3), "early", VALUE).await.unwrap();
    cluster.stop(3).await;
    let node = cluster.node(cluster.leader().await).clone();
    let mut last = 0;
    for block in 0..count / 100 {
        let pair = |n| (format!("key-{}", block * 100 + n), VALUE.to_owned());
        let pairs = (0..100).map(pair).collect();
        let written = node.write(Request::SetMulti { pairs }).await.unwrap();
        last = written.index;
    }
    last
}

async fn holds_all(node: &Node, count: u64, last: u64) {
    eventually("a node that caught up", || {
        (applied(&node.status()) >= last).then_some(())
    })
    .await;
    for n in [0, count / 2, count - 1] {
        let stale = node
            .get(format!("key-{n}"), Consistency::Stale)
            .await
            .unwrap();
        assert_eq!(stale.as_deref(), Some(VALUE), "key-{n}");
    }
    assert_eq!(get(node, "early").await.as_deref(), Some(VALUE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_gets_the_entries_it_missed() {
    let mut cluster = Cluster::all(&[Sqlite, Sqlite, Redb]).await;
    let last = write_without_the_third(&mut cluster, 5_000).await;
    cluster.start(3).await;
    holds_all(cluster.node(3), 5_000, last).await;
    assert_eq!(cluster.node(3).status().last_purged, None);
}

/// Leads to `address`, and breaks every connection after so many bytes that way.
async fn fragile_way(address: String, bytes: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let address = address.clone();
            tokio::spawn(async move {
                // The node may be away.
                let Ok(mut far) = TcpStream::connect(address).await else {
                    return;
                };
                let (from_near, mut to_near) = near.split();
                let (mut from_far, mut to_far) = far.split();
                let mut few = from_near.take(bytes);
                tokio::select! {
                    _ = tokio::io::copy(&mut few, &mut to_far) => {}
                    _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
                }
            });
        }
    });
    here
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_its_connection_broke() {
    let mut cluster = Cluster::new(&[Sqlite; 3]);
    // A fraction of the snapshot: whoever begins anew each time never ends.
    let way = fragile_way(cluster.addresses[&3].clone(), 600_000).await;
    cluster.detours.insert(3, way);
    get_by_snapshot(cluster).await;
}

/// A write that happens once.
fn once(key: &str) -> Request {
    let change = Plain::Set {
        key: key.to_owned(),
        value: VALUE.to_owned(),
    };
    let once = Idempotent::new(format!("once-{key}"), change);
    Request::Idempotent(Box::new(once.unwrap()))
}

/// The digest that all nodes have, once they have applied the same.
async fn held_by_all(cluster: &Cluster) -> Contents {
    let look = async {
        loop {
            let mut held = Vec::new();
            for node in cluster.nodes() {
                held.push(node.digest().await.unwrap());
            }
            if held.iter().all(|h| h.last_applied == held[0].last_applied) {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let held = tokio::time::timeout(PATIENCE, look).await.unwrap();
    assert!(held.iter().all(|h| *h == held[0]), "{held:?}");
    held[0]
}

async fn by_snapshot(backends: &[Backend]) -> Cluster {
    get_by_snapshot(Cluster::new(backends)).await
}

/// The log is purged beyond what the third node has.
async fn get_by_snapshot(mut cluster: Cluster) -> Cluster {
    cluster.log_keep = 16 << 10;
    for id in 1..=3 {
        cluster.start(id).await;
    }
    let count = 20_000;
    let first = cluster.node(1).write(once("first")).await.unwrap();
    write_without_the_third(&mut cluster, count).await;
    let last = cluster.node(1).write(once("late")).await.unwrap().index;
    for id in [1, 2] {
        let node = cluster.node(id);
        eventually("a purged log", || {
            node.status().last_purged.filter(|at| *at > 10)
        })
        .await;
    }
    cluster.start(3).await;
    holds_all(cluster.node(3), count, last).await;
    let purged = cluster.node(3).status().last_purged;
    assert!(purged.is_some(), "it got the entries, not a snapshot");
    let held = held_by_all(&cluster).await;
    assert_eq!(held.idempotency.rows, 2);
    // It goes on as a member like the others, after a restart too.
    cluster.stop(3).await;
    cluster.start(3).await;
    set(cluster.node(3), "late", VALUE).await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(get(node, "late").await.as_deref(), Some(VALUE));
    }
    // And when it leads it knows from the snapshot what has happened already.
    cluster.node(1).transfer_leadership(Some(3)).await.unwrap();
    let again = cluster.node(3).write(once("first")).await.unwrap();
    assert_eq!((again.index, again.replayed), (first.index, true));
    held_by_all(&cluster).await;
    let dir = DataDir::new(cluster.dirs[2].path());
    assert!(!dir.received().exists() && !dir.copy().exists());
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_node_that_was_away_too_long_gets_a_snapshot() {
    by_snapshot(&[Sqlite; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redb_node_that_was_away_too_long_gets_a_snapshot_from_sqlite() {
    by_snapshot(&[Sqlite, Sqlite, Redb]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_node_that_was_away_too_long_gets_a_snapshot_from_redb() {
    by_snapshot(&[Redb, Redb, Sqlite]).await;
}

/// A node in memory that had received a snapshot was refused by its next start: its
/// log began behind the snapshot, and its state machine with nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_memory_that_was_away_too_long_begins_with_its_snapshot_ever_after() {
    let cluster = by_snapshot(&[Sqlite, Redb, Memory]).await;
    let dir = DataDir::new(cluster.dirs[2].path());
    let options = cluster.options(3);
    // Without the snapshot it does not pretend that the rest is all there ever was.
    let aside = dir.path().join("aside");
    std::fs::rename(dir.memory_snapshot(), &aside).unwrap();
    let start = || async { Node::start(&dir, fresh(&dir, Memory), options.clone()).await };
    let Err(refused) = start().await else {
        panic!("it started")
    };
    let text = refused.to_string();
    assert!(text.starts_with("State machine corruption detected: "));
    assert!(text.contains("memory-snapshot.db"), "{text}");
    std::fs::rename(&aside, dir.memory_snapshot()).unwrap();
    start().await.unwrap().stop().await.unwrap();
    // The ways to SQLite and back that the documentation names.
    let holds = |node: Node| async move {
        let last = node.get("key-19999".into(), Consistency::Stale).await;
        assert_eq!(last.unwrap().as_deref(), Some(VALUE));
        node.stop().await.unwrap();
    };
    std::fs::rename(dir.memory_snapshot(), dir.sqlite()).unwrap();
    let on_sqlite = Node::start(&dir, fresh(&dir, Sqlite), options.clone()).await;
    holds(on_sqlite.unwrap()).await;
    std::fs::copy(dir.sqlite(), dir.memory_snapshot()).unwrap();
    holds(start().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_memory_that_was_away_gets_everything_again() {
    let mut cluster = Cluster::all(&[Sqlite, Redb, Memory]).await;
    let last = write_without_the_third(&mut cluster, 1_000).await;
    cluster.start(3).await;
    holds_all(cluster.node(3), 1_000, last).await;
}
