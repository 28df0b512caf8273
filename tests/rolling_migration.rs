//! The three nodes of a legacy cluster, each under a systemd of its own, moved to
//! SQLite as the guide says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use common::client::ask;
use common::fixture;
use common::read::{Table, rows_sha256};
use common::retrying::{Retrying, clients, pairs};
use rig::Network;
use rig::cluster::{Cluster, IDS, LEADER, api};

/// The guide's edit.
const CONFIGURE_SQLITE: &str =
    r#"sed -i 's/storage_backend = "redb"/storage_backend = "sqlite"/' /etc/aspen/config.toml"#;

fn assert_healthy(id: u64, storage: &str) {
    let answer = ask(api(id), "GET", "/health", None);
    let health = answer.json();
    assert_eq!(
        (answer.status, &health["status"], &health["storage"]),
        (200, &"healthy".into(), &storage.into()),
        "node {id}: {answer:?}"
    );
}

/// The node has its data in SQLite, its old data as a backup, and says so everywhere.
fn assert_migrated(cluster: &Cluster, id: u64) {
    assert_healthy(id, "sqlite");
    let node = &cluster[id];
    // The redb backend had brought the legacy file to format 3, beside a backup as well.
    let names = node.ok("ls /var/lib/aspen | sed -E 's/[0-9]{8}-[0-9]{6}$/TIME/' | uniq");
    let kept = [
        "aspen.lock",
        "migrations.jsonl",
        "raft-log.redb",
        "raft-log.redb.backup-TIME",
        "state-machine.db",
        "state-machine.db-shm",
        "state-machine.db-wal",
        "state-machine.redb.backup-TIME",
    ];
    assert_eq!(names.lines().collect::<Vec<_>>(), kept, "node {id}");
    let config = node.ok("cat /etc/aspen/config.toml");
    assert!(config.starts_with("# Kept by hand."), "{config}");
    for line in [
        "storage_backend = \"sqlite\"  # the old one",
        "[cluster.migrated]",
    ] {
        assert_eq!(config.matches(line).count(), 1, "{config}");
    }
    assert_eq!(cluster.status(id)["migration"]["to"], "sqlite");
}

/// All that the clients were promised is on every node, and nothing else differs.
fn assert_equal(cluster: &Cluster, clients: &[Retrying]) {
    for id in IDS {
        cluster.wait_until_caught_up(id);
    }
    let all = IDS.map(|id| pairs(api(id), ""));
    assert!(all[0] == all[1] && all[0] == all[2], "the nodes differ");
    for client in clients {
        assert!(client.count() > 0);
        for id in IDS {
            client.check(api(id));
        }
    }
}

/// The rows of the legacy cluster are all there, as its leader had them.
fn assert_legacy_rows() {
    let rows = pairs(api(1), "").into_iter();
    let rows = rows.filter(|(key, _)| !key.starts_with("client-"));
    let rows: Table = rows
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    let leader = fixture::one("golden", LEADER);
    assert_eq!(rows.len() as u64, leader.state().rows);
    assert_eq!(rows_sha256(&rows), leader.state().rows_sha256);
}

#[test]
fn a_cluster_is_shut_down_and_migrated_by_hand_all_at_once_and_started_again() {
    Network::run(|network| {
        let cluster = Cluster::legacy(network);
        // The machines run the legacy release up to here, as far as their data tells.
        let said = cluster.on_all(
            "cd /var/lib/aspen
             aspen-migrate --source state-machine.redb --target state-machine.db --verify",
        );
        for said in said {
            assert!(said.contains("Verification passed!"), "{said}");
        }
        cluster.on_all(CONFIGURE_SQLITE);
        cluster.systemctl_all("start");
        for id in IDS {
            assert_healthy(id, "sqlite");
        }
        let mut clients = clients(3, &IDS.map(api));
        for client in &mut clients {
            client.count_on();
        }
        assert_equal(&cluster, &clients);
        assert_legacy_rows();
        for id in IDS {
            assert_migrated(&cluster, id);
        }
    });
}
