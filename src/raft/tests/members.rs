//! Members that come and go.

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;

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

impl Cluster {
    /// Returns once every node that runs has met every other.
    async fn until_all_have_met(&self) {
        eventually("a meeting of all", || {
            let mut pairs = self
                .running
                .iter()
                .flat_map(|(id, node)| self.running.keys().map(move |other| (*id, node, *other)));
            let met = pairs.all(|(id, node, other)| id == other || node.has_met(other));
            met.then_some(())
        })
        .await;
    }

    /// The voters that node `id` tells of.
    async fn voters(&self, id: u64) -> Vec<u64> {
        let members = self.node(id).members().await.unwrap().members;
        let voters = members.into_iter().filter(|member| member.voter);
        voters.map(|member| member.id).collect()
    }

    async fn until_voters(&self, id: u64, wanted: &[u64]) {
        eventually_async(&format!("the voters {wanted:?}"), || async {
            self.voters(id).await == wanted
        })
        .await;
    }

    /// The sets of voters that node `id` goes by; two while one gives way to the other.
    fn sets_of_voters(&self, id: u64) -> usize {
        let metrics = self.node(id).raft().metrics();
        let membership = metrics.borrow_watched().membership_config.clone();
        membership.membership().get_joint_config().len()
    }
}

/// A cluster that was formed anew of the members of a former one had its id, too. A node
/// that still had the former data, and had never met a certain one of the members
/// because both had followed the third, took the new one for a member that it knew
/// nothing of: its older log won, and what the new cluster had acknowledged was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_data_of_a_former_cluster_of_the_same_members_is_never_mixed_with_the_new() {
    let mut cluster = Cluster::new(&[Backend::Sqlite; 3]);
    cluster.start(1).await;
    cluster.start(2).await;
    cluster.leader().await;
    cluster.node(2).transfer_leadership(Some(1)).await.unwrap();
    // The second one is away when the third asks for votes: they never have a reason to talk.
    cluster.stop(2).await;
    cluster.start(3).await;
    set(cluster.node(3), "key", "value").await.unwrap();
    cluster.start(2).await;
    for n in 0..20 {
        set(cluster.node(1), &format!("former-{n}"), "value")
            .await
            .unwrap();
    }
    assert!(get(cluster.node(3), "former-19").await.is_some());
    cluster.until_all_have_met().await;
    let former = cluster.node(3).status().cluster_id;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in [1, 2] {
        cluster.dirs[usize::try_from(id).unwrap() - 1] = tempfile::tempdir().unwrap();
        cluster.start(id).await;
    }
    set(cluster.node(1), "new", "kept").await.unwrap();
    assert_eq!(cluster.node(1).status().cluster_id, former);
    // Those who are in doubt about each other take part in nothing: a person decides.
    cluster.start(3).await;
    for id in [1, 2] {
        cluster.until_membership(id, "barred").await;
    }
    let stale = |id: u64, key: &str| {
        let (node, key) = (cluster.node(id).clone(), key.to_owned());
        async move { node.get(key, Consistency::Stale).await.unwrap() }
    };
    assert!(set(cluster.node(3), "former-0", "again").await.is_err());
    for id in [1, 2] {
        assert_eq!(stale(id, "former-0").await, None);
        assert_eq!(stale(id, "new").await.as_deref(), Some("kept"));
    }
    assert_eq!(stale(3, "new").await, None);
    assert_eq!(stale(3, "former-0").await.as_deref(), Some("value"));
    // The way out: the node with the former data goes.
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in [1, 2] {
        cluster.start(id).await;
    }
    assert_eq!(get(cluster.node(2), "new").await.as_deref(), Some("kept"));
}

/// Three voters and a learner, one of each away, and a leader that has begun to make
/// the learner a voter: the change can neither be committed nor taken back.
async fn halfway() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::all(&[Backend::Sqlite; 3]).await;
    let leader = cluster.leader().await;
    let new = cluster.newcomer(Backend::Sqlite).await;
    cluster.add(leader, new, false).await.unwrap();
    cluster.until_membership(new, "learner").await;
    let leader = cluster.leader().await;
    let away = cluster.follower_that_votes().await;
    cluster.stop(away).await;
    cluster.stop(new).await;
    let raft = cluster.node(leader).raft().clone();
    let change = ChangeMembers::AddVoterIds([new].into());
    // As after its time: nobody waits for it any more.
    let asked = tokio::time::timeout(
        Duration::from_millis(300),
        raft.change_membership(change, false),
    );
    assert!(asked.await.is_err(), "it was committed by two of four");
    let other = (1..=3).find(|id| ![leader, away].contains(id)).unwrap();
    eventually("a change halfway", || {
        let both = [leader, other]
            .iter()
            .all(|id| cluster.sets_of_voters(*id) == 2);
        both.then_some(())
    })
    .await;
    // Who has a say is told already.
    assert_eq!(cluster.voters(other).await, [1, 2, 3, new]);
    let why = cluster.node(leader).may_restart().await.unwrap();
    assert_eq!(why.as_deref(), Some("a change of members is under way"));
    (cluster, leader, away)
}

impl Cluster {
    async fn follower_that_votes(&self) -> u64 {
        let leader = self.leader().await;
        (1..=3).find(|id| *id != leader).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_leader_left_halfway_is_ended_by_the_next_leader() {
    let (mut cluster, leader, away) = halfway().await;
    cluster.stop(leader).await;
    cluster.start(away).await;
    // Of three old voters two are there, of four new ones three are needed.
    let other = (1..=3).find(|id| ![leader, away].contains(id)).unwrap();
    assert!(set(cluster.node(other), "key", "early").await.is_err());
    assert_eq!(cluster.voters(other).await, [1, 2, 3, 4]);
    cluster.start_alone(4, true).await;
    set(cluster.node(other), "key", "value").await.unwrap();
    for id in [other, away, 4] {
        cluster.until_voters(id, &[1, 2, 3, 4]).await;
        eventually("the end of the change", || {
            (cluster.sets_of_voters(id) == 1).then_some(())
        })
        .await;
    }
    cluster.start(leader).await;
    assert_eq!(
        get(cluster.node(leader), "key").await.as_deref(),
        Some("value")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_took_too_long_is_ended_by_its_own_leader_and_the_next_change_follows() {
    let (mut cluster, leader, away) = halfway().await;
    cluster.start(away).await;
    eventually("the end of the change", || {
        (cluster.sets_of_voters(leader) == 1).then_some(())
    })
    .await;
    assert_eq!(cluster.voters(away).await, [1, 2, 3, 4]);
    // The new voter never came: it goes again.
    eventually_async("the next change", || async {
        cluster.node(away).remove_member(4).await.is_ok()
    })
    .await;
    assert_eq!(cluster.voters(leader).await, [1, 2, 3]);
    set(cluster.node(away), "key", "value").await.unwrap();
}
