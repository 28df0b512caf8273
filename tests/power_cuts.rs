//! The power of a cluster's machines fails under load, one machine's or all at
//! once: what was acknowledged on any node is there on every node afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use common::load::{Writer, times, under_load, wait_up_to, writers};
use rig::Network;
use rig::cluster::{Cluster, IDS, api};

/// A cluster of both engines, which has run for a moment.
fn cluster(network: &Network) -> Cluster {
    let cluster = Cluster::legacy(network);
    for id in [1, 2] {
        cluster.configure_sqlite(id);
    }
    cluster.systemctl_all("start");
    for id in IDS {
        cluster.wait_until_caught_up(id);
    }
    // The installation is not what is tested.
    cluster.on_all("sync");
    cluster
}

/// Two writers on each node, while `disturb` runs.
fn load(writers: &mut [Writer], disturb: impl FnOnce()) {
    let (first, rest) = writers.split_at_mut(2);
    let (second, third) = rest.split_at_mut(2);
    under_load(first, api(1), || {
        under_load(second, api(2), || under_load(third, api(3), disturb));
    });
}

fn check(cluster: &Cluster, writers: &mut [Writer]) {
    for id in IDS {
        cluster.wait_until_caught_up(id);
    }
    for writer in writers {
        for id in IDS {
            writer.check(api(id));
        }
    }
}

#[test]
fn the_power_of_the_leader_is_cut_under_load_and_nothing_acknowledged_is_lost() {
    Network::run(|network| {
        let cluster = cluster(network);
        let mut writers = writers(6, 100);
        for _ in 0..times(1, 3) {
            let leader = cluster.leader(1);
            load(&mut writers, || {
                wait_up_to(1000);
                cluster.cut_power(&[leader]);
            });
            check(&cluster, &mut writers);
        }
    });
}

#[test]
fn the_power_of_all_nodes_is_cut_under_load_and_nothing_acknowledged_is_lost() {
    Network::run(|network| {
        let cluster = cluster(network);
        let mut writers = writers(6, 100);
        for _ in 0..times(1, 3) {
            load(&mut writers, || {
                wait_up_to(1000);
                cluster.cut_power(&IDS);
            });
            check(&cluster, &mut writers);
        }
        let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
        assert!(acknowledged > 0);
    });
}
