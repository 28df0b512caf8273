//! The three nodes of a legacy cluster, each under a systemd of its own, moved to
//! SQLite by the guide's two strategies, and one of them back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use std::process::Command;

use common::client::{ask, until};
use common::read::{Table, rows_sha256};
use common::retrying::{Retrying, at_work, clients, pairs};
use common::{finished, fixture};
use rig::cluster::{Cluster, IDS, LEADER, api};
use rig::{Network, exec_words};
use serde_json::json;

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
    // The log has a journal once it was written to for a while.
    let names =
        "ls /var/lib/aspen | sed -E 's/[0-9]{8}-[0-9]{6}$/TIME/; /^raft-log.journal$/d' | uniq";
    let names = node.ok(names);
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
    let digest = |id| ask(api(id), "GET", "/admin/digest", None);
    // The last commit may not have been told to all yet.
    until(
        || digest(1),
        |first| {
            [2, 3]
                .map(digest)
                .iter()
                .all(|other| other.json() == first.json())
        },
    );
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
fn a_cluster_is_migrated_one_by_one_and_a_node_goes_back_and_no_client_notices() {
    Network::run(|network| {
        let cluster = Cluster::legacy(network);
        cluster.systemctl_all("start");
        let leader = cluster.leader(1);
        for id in IDS {
            cluster.wait_until_caught_up(id);
            assert_healthy(id, "redb");
        }
        let mut clients = clients(6, &IDS.map(api));
        at_work(&mut clients, || {
            let mut order = IDS.to_vec();
            order.sort_by_key(|id| *id == leader);
            for id in order {
                if id == leader {
                    assert_ne!(lead(json!({})), id);
                }
                cluster.configure_sqlite(id);
                cluster.systemctl("restart", id);
                cluster.wait_until_caught_up(id);
                assert_migrated(&cluster, id);
            }
            go_back(&cluster, leader);
            // Forward again, as the leader of a cluster of both kinds, and nobody has asked it
            // to hand leadership over first.
            assert_eq!(lead(json!({ "id": leader })), leader);
            cluster.configure_sqlite(leader);
            cluster.systemctl("restart", leader);
            cluster.wait_until_caught_up(leader);
            assert_migrated(&cluster, leader);
        });
        // Every node was gone for a while.
        assert!(clients.iter().all(|client| client.retried > 0));
        assert_equal(&cluster, &clients);
        assert_legacy_rows();
    });
}

/// The procedure as a program: it goes by what the nodes say, and refuses to go on
/// where the cluster would not.
#[test]
fn a_cluster_is_migrated_by_the_script_that_restarts_it_and_no_client_notices() {
    Network::run(|network| {
        let cluster = Cluster::legacy(network);
        cluster.systemctl_all("start");
        for id in IDS {
            cluster.wait_until_caught_up(id);
        }
        let leader = cluster.leader(1);
        let script = |restart: &str| {
            let program = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/packaging/aspen-rolling-restart"
            );
            let urls = IDS.map(|id| format!("http://{}", api(id)));
            let mut command = Command::new(program);
            let command = command.args(["--timeout", "60", "--restart", restart]);
            finished(&command.args(urls).output().unwrap())
        };
        // In the place of ssh: a node at 10.0.0.N is on the machine node-N.
        cluster.teach_to_migrate();
        let restart = format!("host={{host}}; {} node-${{host##*.}} migrate", exec_words());
        let mut clients = clients(6, &IDS.map(api));
        at_work(&mut clients, || {
            let run = script(&restart);
            assert_eq!(run.code, 0, "{run:?}");
            assert!(run.out.ends_with("All are restarted\n"), "{run:?}");
            assert!(run.out.contains("leadership handed over"), "{run:?}");
        });
        for id in IDS {
            assert_migrated(&cluster, id);
        }
        assert_equal(&cluster, &clients);
        assert_legacy_rows();

        let away = if leader == 1 { 2 } else { 1 };
        cluster.systemctl("stop", away);
        let run = script("echo not reached");
        assert_eq!(run.code, 69, "{run:?}");
        assert!(!run.out.contains("not reached\n"), "{run:?}");
    });
}

/// What the guide calls to trigger a leader election; who leads then.
fn lead(who: serde_json::Value) -> u64 {
    let answer = ask(api(1), "POST", "/admin/leader", Some(&who));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["leader"].as_u64().unwrap()
}

/// The guide's rollback, to the backup of which the configuration tells.
fn go_back(cluster: &Cluster, id: u64) {
    let node = &cluster[id];
    cluster.systemctl("stop", id);
    node.ok(r#"cd /var/lib/aspen
           rm -f state-machine.db; rm -f state-machine.db-wal; rm -f state-machine.db-shm
           cp "$(sed -n 's/^backup = "\(.*\)"/\1/p' /etc/aspen/config.toml)" state-machine.redb"#);
    cluster.configure_redb(id);
    cluster.systemctl("start", id);
    assert_healthy(id, "redb");
    cluster.wait_until_caught_up(id);
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
        for id in IDS {
            cluster.configure_sqlite(id);
        }
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
