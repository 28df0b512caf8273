//! Members that come and go.

use super::*;
use crate::raft::CommandError;

impl Cluster {
    /// A node with an empty directory that waits to be added.
    async fn newcomer(&mut self, backend: Backend) -> u64 {
        let id = self.backends.len() as u64 + 1;
        self.backends.push(backend);
        self.dirs.push(tempfile::tempdir().unwrap());
        let next = addresses(id);
        self.addresses.insert(id, next[&id].clone());
        self.start_alone(id, true).await;
        id
    }

    /// Starts a node that is told of no other.
    async fn start_alone(&mut self, id: u64, join: bool) {
        let at = usize::try_from(id).unwrap() - 1;
        let dir = DataDir::new(self.dirs[at].path());
        let options = Options {
            members: BTreeMap::new(),
            join,
            ..self.options(id)
        };
        let started = Node::start(&dir, fresh(&dir, self.backends[at]), options).await;
        self.running.insert(id, started.unwrap());
    }

    async fn add(&self, on: u64, id: u64, voter: bool) -> Result<(), CommandError> {
        let address = self.addresses[&id].clone();
        self.node(on)
            .set_member(id, address, voter)
            .await
            .map(|_| ())
    }

    async fn until_membership(&self, id: u64, wanted: &str) {
        eventually(wanted, || {
            (self.node(id).status().membership == wanted).then_some(())
        })
        .await;
    }
}

/// Who asks a node that is no member is told so. It was told that there is no
/// leader at the moment, as if waiting helped, and only after seconds.
async fn is_told_to_ask_another(node: &Node, why: &str) {
    let told = set(node, "key", "value").await.map(|written| written.index);
    assert!(
        matches!(&told, Err(RequestError::NoMember(text)) if text.contains(why)),
        "{told:?}"
    );
    let read = node
        .get("key".into(), Consistency::Linearizable)
        .await
        .unwrap_err();
    assert!(matches!(read, RequestError::NoMember(_)), "{read:?}");
    let command = node.remove_member(9).await.unwrap_err();
    assert!(
        matches!(command, CommandError::Request(RequestError::NoMember(_))),
        "{command:?}"
    );
}

fn refused<T: std::fmt::Debug>(result: Result<T, CommandError>) -> String {
    match result {
        Err(CommandError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_grows_to_a_cluster_of_three_and_one_of_them_replaces_it() {
    let mut cluster = Cluster::new(&[Backend::Sqlite]);
    cluster.start_alone(1, false).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let two = cluster.newcomer(Backend::Sqlite).await;
    let status = cluster.node(two).status();
    assert_eq!(
        (status.membership, status.cluster_id.as_str()),
        ("joining", "")
    );
    assert!(cluster.node(two).ready().await.is_err());
    is_told_to_ask_another(cluster.node(two), "waits to be added").await;
    cluster.add(1, two, true).await.unwrap();
    assert_eq!(
        get(cluster.node(two), "key").await.as_deref(),
        Some("value")
    );
    let three = cluster.newcomer(Backend::Redb).await;
    // By way of a follower, first without a vote.
    cluster.add(two, three, false).await.unwrap();
    cluster.until_membership(three, "learner").await;
    assert_eq!(
        get(cluster.node(three), "key").await.as_deref(),
        Some("value")
    );
    cluster.add(two, three, true).await.unwrap();
    cluster.until_membership(three, "voter").await;
    let ids: Vec<_> = cluster
        .nodes()
        .map(|node| node.status().cluster_id)
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    // The first one leads, hands over, and goes.
    let members = cluster.node(two).remove_member(1).await.unwrap();
    assert_eq!(members.members.len(), 2);
    assert_ne!(members.leader, Some(1));
    set(cluster.node(three), "key", "without it").await.unwrap();
    cluster.stop(1).await;
    for id in [two, three] {
        cluster.stop(id).await;
    }
    for id in [two, three] {
        // It is a member, and waits for nobody.
        cluster.start_alone(id, true).await;
    }
    assert_eq!(
        get(cluster.node(two), "key").await.as_deref(),
        Some("without it")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_removed_and_another_one_takes_its_place() {
    let mut cluster = Cluster::all(&[Backend::Sqlite; 3]).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    let dead = cluster.follower().await;
    cluster.stop(dead).await;
    let leader = cluster.leader().await;
    let alive = cluster.follower().await;
    // Without it and the one that is left, nobody could decide.
    let why = eventually_refused(&cluster, leader, alive, dead).await;
    assert!(why.contains(&format!("node {dead}")), "{why}");
    cluster.node(alive).remove_member(dead).await.unwrap();
    let new = cluster.newcomer(Backend::Sqlite).await;
    cluster.add(alive, new, true).await.unwrap();
    assert_eq!(
        get(cluster.node(new), "key").await.as_deref(),
        Some("value")
    );
    // The dead one comes back, is told, and disturbs nobody.
    let (term, leader) = (cluster.node(new).status().term, cluster.leader().await);
    cluster.start(dead).await;
    cluster.until_membership(dead, "removed").await;
    assert!(cluster.node(dead).ready().await.is_err());
    is_told_to_ask_another(cluster.node(dead), "was removed").await;
    set(cluster.node(alive), "key", "again").await.unwrap();
    let status = cluster.node(new).status();
    assert_eq!((status.term, status.leader), (term, Some(leader)));
}

/// Why `leader` does not remove `alive`, once it knows that `dead` is.
async fn eventually_refused(cluster: &Cluster, leader: u64, alive: u64, dead: u64) -> String {
    let began = tokio::time::Instant::now();
    loop {
        let members = cluster.node(leader).members().await.unwrap().members;
        let silent = members
            .iter()
            .find(|member| member.id == dead)
            .unwrap()
            .silent_ms;
        let silence = silent.map(Duration::from_millis);
        if silence.is_none_or(|silence| silence > cluster.election) {
            return refused(cluster.node(leader).remove_member(alive).await);
        }
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_harm_the_cluster_is_refused_and_nothing_changes() {
    let mut cluster = Cluster::new(&[Backend::Memory]);
    cluster.start_alone(1, false).await;
    let node = cluster.node(1).clone();
    assert!(refused(node.remove_member(1).await).contains("last voter"));
    assert!(matches!(
        node.remove_member(9).await,
        Err(CommandError::NoMember(_))
    ));
    let own = node.members().await.unwrap().members[0].peer.clone();
    assert!(refused(node.set_member(2, own.clone(), false).await).contains("address of node 1"));
    assert!(refused(node.set_member(1, own, false).await).contains("is a voter"));
    // Nobody is there: it becomes a learner, and not a voter.
    let nobody = cluster.addresses[&1].replace(".1:", ".99:");
    let waits = node.set_member(2, nobody, true).await;
    assert!(matches!(waits, Err(CommandError::NotYet(_))), "{waits:?}");
    set(&node, "key", "value").await.unwrap();
    for id in 3..=10 {
        node.set_member(id, format!("127.0.0.1:{id}"), false)
            .await
            .unwrap();
    }
    let why = refused(node.set_member(11, "127.0.0.1:11".into(), false).await);
    assert!(why.contains("10 members"), "{why}");
    for id in 2..=10 {
        node.remove_member(id).await.unwrap();
    }
    assert_eq!(node.members().await.unwrap().members.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sixth_voter_is_refused() {
    let cluster = Cluster::all(&[Backend::Memory; 5]).await;
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    let why = refused(node.set_member(6, "127.0.0.1:6".into(), true).await);
    assert!(why.contains("5 voters"), "{why}");
    assert_eq!(node.members().await.unwrap().members.len(), 5);
}

/// Node 3 of three, whose directory is new.
async fn with_a_lost_disk() -> (Cluster, u64) {
    let mut cluster = Cluster::all(&[Backend::Sqlite; 3]).await;
    set(cluster.node(3), "key", "value").await.unwrap();
    // All have met each other: whoever leads has connected to all, and they to it.
    for id in 1..=3 {
        cluster
            .node(id)
            .transfer_leadership(Some(id))
            .await
            .unwrap();
        set(cluster.node(id), "key", "value").await.unwrap();
    }
    cluster.stop(3).await;
    cluster.dirs[2] = tempfile::tempdir().unwrap();
    let leader = cluster.leader().await;
    (cluster, leader)
}

/// A node that lost its disk and came back under its old id had forgotten its
/// votes and what it had confirmed: it could vote a second time, and for a node
/// that lacks what it had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_takes_no_part_under_its_old_id() {
    let (mut cluster, leader) = with_a_lost_disk().await;
    cluster.start(3).await;
    cluster.until_membership(3, "barred").await;
    let why = cluster.node(3).status().barred.unwrap();
    assert!(why.contains("DELETE /admin/members/3"), "{why}");
    is_told_to_ask_another(cluster.node(3), "takes no part").await;
    // With it there would be a majority, without it there is none.
    let other = 3 - leader;
    cluster.stop(leader).await;
    let survivor = cluster.node(other).clone();
    assert!(set(&survivor, "key", "lost").await.is_err());
    assert!(cluster.node(3).ready().await.is_err());
    cluster.start(leader).await;
    set(&survivor, "key", "kept").await.unwrap();
    // The way out that it names.
    cluster.stop(3).await;
    survivor.remove_member(3).await.unwrap();
    let new = cluster.newcomer(Backend::Sqlite).await;
    cluster.add(other, new, true).await.unwrap();
    assert_eq!(get(cluster.node(new), "key").await.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moves_is_found_at_its_new_address() {
    let mut cluster = Cluster::new(&[Backend::Sqlite]);
    cluster.start_alone(1, false).await;
    for _ in 0..2 {
        let id = cluster.newcomer(Backend::Sqlite).await;
        cluster.add(1, id, true).await.unwrap();
    }
    set(cluster.node(3), "key", "before").await.unwrap();
    cluster.stop(3).await;
    cluster.addresses.insert(3, addresses(3)[&3].clone());
    cluster.start_alone(3, false).await;
    // A voter that has moved away is still one.
    cluster.add(2, 3, true).await.unwrap();
    set(cluster.node(1), "key", "after").await.unwrap();
    assert_eq!(get(cluster.node(3), "key").await.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_may_restart_while_the_others_are_a_majority_and_well() {
    let mut cluster = Cluster::all(&[Backend::Sqlite; 3]).await;
    set(cluster.node(1), "key", "value").await.unwrap();
    for id in 1..=3 {
        let node = cluster.node(id).clone();
        eventually_async("leave to restart", || async {
            matches!(node.may_restart().await, Ok(None))
        })
        .await;
    }
    let leader = cluster.leader().await;
    let away = cluster.follower().await;
    cluster.stop(away).await;
    let other = (1..=3).find(|id| ![leader, away].contains(id)).unwrap();
    for id in [leader, other] {
        let node = cluster.node(id).clone();
        eventually_async("a reason", || async {
            matches!(node.may_restart().await, Ok(Some(why)) if why.contains(&format!("node {away}")))
        })
        .await;
    }
}

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
