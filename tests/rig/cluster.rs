//! The three nodes of a legacy cluster, each on a machine of its own, and what
//! an operator does with them.

use super::node::{PROGRAMS, install, settle};
use super::{Machine, Network};
use crate::common::client::{ask, until};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Index;

/// What each node keeps, by id from 1: a follower, the leader, and a follower that
/// was behind when it was killed.
const DATA: [&str; 3] = ["three-1-redb-2.6-clean", LEADER, "three-3-redb-2.6-unclean"];

/// What the leader keeps: all that was ever answered.
pub(crate) const LEADER: &str = "three-2-redb-2.6-clean";

/// The guide's edit.
const CONFIGURE_SQLITE: &str =
    r#"sed -i 's/storage_backend = "redb"/storage_backend = "sqlite"/' /etc/aspen/config.toml"#;

/// The nodes' ids.
pub(crate) const IDS: [u64; 3] = [1, 2, 3];

/// The machines, by the id of their node.
pub(crate) struct Cluster(Vec<Machine>);

impl Index<u64> for Cluster {
    type Output = Machine;

    fn index(&self, id: u64) -> &Machine {
        &self.0[usize::try_from(id).unwrap() - 1]
    }
}

/// Where legacy data says that the node is.
fn address(id: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, id.try_into().unwrap())
}

/// Where the API of a node is.
pub(crate) fn api(id: u64) -> SocketAddr {
    (address(id), 8080).into()
}

/// A configuration without members: legacy data knows them.
fn config(id: u64) -> String {
    format!(
        r#"# Kept by hand.
[node]
id = {id}

[http]
listen = "0.0.0.0:8080"
insecure = true  # nobody else is on this network

[cluster]
storage_backend = "redb"  # the old one
peer_listen = "{}:7000"
secret = "known-to-these-three-alone"

[log]
file = "/var/log/aspen/node.log"
"#,
        address(id)
    )
}

/// Does something for each of these nodes at the same time.
fn each<T: Send>(ids: &[u64], work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads = ids.iter().map(|id| scope.spawn(move || work(*id)));
        let threads: Vec<_> = threads.collect();
        let threads = threads.into_iter();
        threads.map(|thread| thread.join().unwrap()).collect()
    })
}

impl Cluster {
    /// Nodes that are installed, configured for redb, and not started yet.
    pub(crate) fn legacy(network: &Network) -> Self {
        Self::boot(network, &PROGRAMS, install)
    }

    /// The same, where `install` installs a package.
    pub(crate) fn packaged(network: &Network, install: impl Fn(&Machine) + Sync) -> Self {
        Self::boot(network, &[], |machine, config, data| {
            install(machine);
            settle(machine, config, data);
        })
    }

    fn boot(
        network: &Network,
        programs: &[&str],
        install: impl Fn(&Machine, &str, &str) + Sync,
    ) -> Self {
        Self(each(&IDS, |id| {
            let machine = network.boot(&format!("node-{id}"), address(id), programs);
            let data = DATA[usize::try_from(id).unwrap() - 1];
            install(&machine, &config(id), data);
            machine
        }))
    }

    /// Runs a shell script on all machines at the same time; it must succeed on all.
    pub(crate) fn on_all(&self, script: &str) -> Vec<String> {
        each(&IDS, |id| self[id].ok(script))
    }

    /// Starts, stops or restarts a node, which must succeed.
    pub(crate) fn systemctl(&self, verb: &str, id: u64) {
        self[id].ok(&format!(
            "systemctl {verb} aspen-node || {{ systemctl status -l aspen-node >&2; exit 1; }}"
        ));
    }

    /// The same with all nodes at the same time.
    pub(crate) fn systemctl_all(&self, verb: &str) {
        each(&IDS, |id| self.systemctl(verb, id));
    }

    /// Edits the configuration as the guide says.
    pub(crate) fn configure_sqlite(&self, id: u64) {
        self[id].ok(CONFIGURE_SQLITE);
    }

    /// Makes `migrate` a command of each machine: the edit and a restart.
    pub(crate) fn teach_to_migrate(&self) {
        let script = format!("#!/bin/sh -e\n{CONFIGURE_SQLITE}\nsystemctl restart aspen-node\n");
        for id in IDS {
            self[id].write("/usr/bin/migrate", &script);
            self[id].ok("chmod 755 /usr/bin/migrate");
        }
    }

    /// Edits it back.
    pub(crate) fn configure_redb(&self, id: u64) {
        self[id].ok(r#"sed -i 's/= "sqlite"/= "redb"/' /etc/aspen/config.toml"#);
    }

    /// Cuts the power of these machines at the same time, and boots them again.
    pub(crate) fn cut_power(&self, ids: &[u64]) {
        each(ids, |id| self[id].cut_power());
    }

    /// What the node says of itself.
    pub(crate) fn status(&self, id: u64) -> Value {
        ask(api(id), "GET", "/status", None).json()
    }

    /// Who leads, once the node knows.
    pub(crate) fn leader(&self, id: u64) -> u64 {
        let knows = |answer: &crate::common::node::Answer| answer.json()["leader"].is_u64();
        let answer = until(|| ask(api(id), "GET", "/status", None), knows);
        answer.json()["leader"].as_u64().unwrap()
    }

    /// Waits until the node serves and has all that was committed when this was asked.
    pub(crate) fn wait_until_caught_up(&self, id: u64) {
        let ready = |answer: &crate::common::node::Answer| answer.status == 200;
        until(|| ask(api(id), "GET", "/readyz", None), ready);
        let committed = self.status(self.leader(id))["committed"].as_u64();
        until(
            || ask(api(id), "GET", "/status", None),
            |answer| answer.json()["last_applied"].as_u64() >= committed,
        );
    }
}
