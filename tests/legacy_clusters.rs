//! Legacy nodes have no cluster id: each makes it of the membership that it had stored.
//! Nodes of one cluster make the same, whatever their ids and however far behind, and
//! nodes of two clusters do not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::client::{put, value};
use common::cluster::Cluster;
use common::fixture::{self, Fixture};

/// Nodes of one legacy cluster with their logs, the last of them behind and killed.
const THREE: [&str; 3] = [
    "three-1-redb-2.6-clean",
    "three-2-redb-2.6-clean",
    "three-3-redb-2.6-unclean",
];

fn give(cluster: &Cluster, id: u64, fixture: &Fixture) {
    let unpacked = fixture.unpack();
    let data = cluster.data(id);
    std::fs::create_dir(&data).unwrap();
    for entry in std::fs::read_dir(&*unpacked).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
    }
}

fn cluster_id(cluster: &Cluster, id: u64) -> String {
    let status = cluster.status(id);
    status["cluster_id"].as_str().unwrap().to_owned()
}

/// The id that each of `nodes` makes of this data, alone.
fn ids_made_of(name: &str, nodes: u64) -> Vec<String> {
    let fixture = fixture::one("golden", name);
    let ids = (1..=nodes).map(|id| {
        let mut cluster = Cluster::new(&["sqlite"; 5]);
        give(&cluster, id, &fixture);
        cluster.start(id);
        cluster_id(&cluster, id)
    });
    ids.collect()
}

#[test]
fn all_nodes_of_a_legacy_cluster_make_the_same_id_of_a_membership_of_any_kind() {
    // Joint, with a learner, and addresses of every kind.
    let joint = ids_made_of("joint-redb-2.6-clean", 5);
    assert!(joint.iter().all(|id| *id == joint[0]), "{joint:?}");
    let newer = ids_made_of("joint-redb-4.6-clean", 1);
    assert_eq!(newer[0], joint[0], "the file's format makes no difference");
    for (id, name) in (1..).zip(THREE) {
        let of_three = ids_made_of(name, id).pop().unwrap();
        assert_ne!(of_three, joint[0]);
    }
}

#[test]
fn legacy_nodes_confirm_each_others_id_and_keep_it() {
    let mut cluster = Cluster::new(&["sqlite"; 3]);
    for (id, name) in (1..).zip(THREE) {
        give(&cluster, id, &fixture::one("golden", name));
    }
    for id in 1..=3 {
        cluster.start(id);
    }
    cluster.leader();
    put(cluster.address(1), "key", "value");
    assert_eq!(value(cluster.address(3), "key").as_deref(), Some("value"));
    let made = cluster_id(&cluster, 1);
    for id in 1..=3 {
        assert_eq!(cluster_id(&cluster, id), made);
        cluster.stop(id);
    }
    for id in 1..=3 {
        cluster.start(id);
        assert_eq!(cluster_id(&cluster, id), made);
    }
}
