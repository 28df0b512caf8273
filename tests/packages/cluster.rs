//! A cluster whose package is upgraded, one machine after the other.

use crate::common::client::ask;
use crate::common::retrying::{at_work, clients};
use crate::made::{self, Kind};
use crate::rig::Network;
use crate::rig::cluster::{Cluster, IDS, api};

/// The upgrade includes the migration, and no client has to ask more than two nodes.
#[test]
fn three_nodes_are_upgraded_and_migrated_one_after_another_and_no_client_notices() {
    let (Some(this), Some(next)) = (made::package(Kind::Deb), made::next(Kind::Deb)) else {
        return;
    };
    let [this, next] = [this, next].map(|package| std::fs::read(package).unwrap());
    Network::run(|network| {
        let cluster = Cluster::packaged(network, |machine| {
            machine.write("/root/this", &this);
            machine.write("/root/next", &next);
            machine.ok("dpkg -i /root/this 2>&1");
        });
        cluster.on_all("systemctl enable -q --now aspen-node");
        let leader = cluster.leader(1);
        for id in IDS {
            cluster.wait_until_caught_up(id);
        }
        let mut order = IDS;
        order.sort_by_key(|id| *id == leader);
        let mut clients = clients(6, &IDS.map(api));
        at_work(&mut clients, || {
            for id in order {
                cluster.configure_sqlite(id);
                cluster[id].ok("dpkg -i /root/next 2>&1 </dev/null");
                // dpkg has waited: the node serves, from its new database.
                let health = ask(api(id), "GET", "/health", None).json();
                assert_eq!(health["storage"], "sqlite", "node {id}: {health}");
                cluster.wait_until_caught_up(id);
            }
        });
        for client in &clients {
            assert!(client.count() > 0 && client.retried > 0);
            for id in IDS {
                client.check(api(id));
            }
        }
        let installed = cluster.on_all("dpkg-query -W -f '${Version}' aspen; dpkg --audit");
        let version = format!("{}-1", made::NEXT_VERSION);
        assert!(
            installed.iter().all(|said| *said == version),
            "{installed:?}"
        );
    });
}
