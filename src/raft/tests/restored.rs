//! Nodes whose data is an older copy of their own.

use super::members::is_told_to_ask_another;
use super::*;

fn copy_of(from: &std::path::Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// A follower whose whole directory was restored from a copy lacked entries that it had
/// confirmed. The leader sent it what came after them for ever; nobody said anything, and the
/// leader showed no lag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_restored_from_an_older_copy_of_itself_is_barred() {
    let mut cluster = Cluster::patient(&[Backend::Sqlite; 3]).await;
    set(cluster.node(1), "key", "old").await.unwrap();
    let restored = cluster.follower().await;
    let at = usize::try_from(restored).unwrap() - 1;
    cluster.stop(restored).await;
    let copy = copy_of(cluster.dirs[at].path());
    cluster.start(restored).await;
    let leader = cluster.leader().await;
    let written = set(cluster.node(leader), "key", "new").await.unwrap().index;
    eventually("a node that has confirmed the write", || {
        (applied(&cluster.node(restored).status()) >= written).then_some(())
    })
    .await;
    cluster.stop(restored).await;
    cluster.dirs[at] = copy;
    cluster.start(restored).await;
    cluster.until_membership(restored, "barred").await;
    is_told_to_ask_another(cluster.node(restored), "takes no part").await;
    // The others go on, and it stays out after a restart.
    set(cluster.node(leader), "key", "newer").await.unwrap();
    cluster.stop(restored).await;
    cluster.start(restored).await;
    cluster.until_membership(restored, "barred").await;
    cluster.stop(restored).await;
    cluster.node(leader).remove_member(restored).await.unwrap();
    let new = cluster.newcomer(Backend::Sqlite).await;
    cluster.add(leader, new, true).await.unwrap();
    assert_eq!(
        get(cluster.node(new), "key").await.as_deref(),
        Some("newer")
    );
}
