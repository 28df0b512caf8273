//! Nodes as processes that form a cluster, each on a loopback address of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::client::ask;
use super::fixture::{Scratch, scratch};
use super::node::{Ended, Launch, Node, bare_node};

/// After this long without a leader there never is one.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes by id, from 1.
pub(crate) struct Cluster {
    dir: Scratch,
    count: u64,
    /// Third and second part of all its addresses.
    net: (u8, u8),
    backends: Vec<&'static str>,
    /// What every node is told in its environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    running: BTreeMap<u64, (Node, SocketAddr)>,
}

impl Cluster {
    /// Nodes with these backends, none of them running.
    pub(crate) fn new(backends: &[&'static str]) -> Self {
        Self {
            dir: scratch(),
            count: backends.len() as u64,
            // 127/8 is large: whatever else runs has other addresses.
            net: (rand::random::<u8>().max(1), rand::random()),
            backends: backends.to_vec(),
            environment: Vec::new(),
            running: BTreeMap::new(),
        }
    }

    pub(crate) fn all(backends: &[&'static str]) -> Self {
        let mut cluster = Self::new(backends);
        for id in 1..=cluster.count {
            cluster.start(id);
        }
        cluster
    }

    pub(crate) fn peer_address(&self, id: u64) -> String {
        let (second, third) = self.net;
        format!("127.{second}.{third}.{id}:7000")
    }

    pub(crate) fn log(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    /// Where a node's data is, or will be.
    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.dir.join(format!("data-{id}"))
    }

    /// How often a node's log has `what` in it.
    pub(crate) fn said(&self, id: u64, what: &str) -> usize {
        let log = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        log.matches(what).count()
    }

    /// How node `id` is started; `members` is what it is told of the cluster.
    pub(crate) fn launch(&self, id: u64, members: &[String]) -> Launch {
        let config = self.dir.join(format!("{id}.toml"));
        let lines = members.iter().zip(1..).map(|(peer, id)| {
            let (host, _) = peer.split_once(':').unwrap();
            format!("{id} = {{ peer = \"{peer}\", http = \"{host}:8080\" }}\n")
        });
        let text = format!(
            "[node]\nid = {id}\n[cluster]\nstorage_backend = \"{}\"\npeer_listen = \"{}\"\n\
             [cluster.initial_members]\n{}[log]\nfile = \"{}\"\n",
            self.backends[usize::try_from(id).unwrap() - 1],
            self.peer_address(id),
            lines.collect::<String>(),
            self.log(id).display(),
        );
        std::fs::write(&config, text).unwrap();
        let data = self.data(id);
        // A place of its own, which it also has after a restart.
        let http = self.peer_address(id).replace(":7000", ":8080");
        let launch = bare_node()
            .arguments(["--data-dir".as_ref(), data.as_os_str()])
            .arguments(["--http-addr", &http])
            .config(&config);
        let environment = self.environment.iter();
        environment.fold(launch, |launch, (name, value)| launch.env(name, value))
    }

    pub(crate) fn members(&self) -> Vec<String> {
        (1..=self.count).map(|id| self.peer_address(id)).collect()
    }

    pub(crate) fn start(&mut self, id: u64) -> SocketAddr {
        let mut node = self.launch(id, &self.members()).start();
        let address = node.ready();
        self.running.insert(id, (node, address));
        address
    }

    pub(crate) fn kill(&mut self, id: u64) -> Ended {
        let (node, _) = self.running.remove(&id).unwrap();
        node.signal(Signal::SIGKILL);
        node.end().killed()
    }

    /// Has node `id` read again what can be read again.
    pub(crate) fn reload(&self, id: u64) {
        self.running[&id].0.signal(Signal::SIGHUP);
    }

    /// Has node `id` stand still: it is alive and does nothing.
    pub(crate) fn pause(&self, id: u64) {
        self.running[&id].0.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self, id: u64) {
        self.running[&id].0.signal(Signal::SIGCONT);
    }

    pub(crate) fn stop(&mut self, id: u64) -> Ended {
        let (node, _) = self.running.remove(&id).unwrap();
        node.stop().with(0)
    }

    pub(crate) fn address(&self, id: u64) -> SocketAddr {
        self.running[&id].1
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    pub(crate) fn status(&self, id: u64) -> Value {
        ask(self.address(id), "GET", "/status", None).json()
    }

    /// Who leads, once a node says that it does, of those that run.
    pub(crate) fn leader(&self) -> u64 {
        let since = Instant::now();
        loop {
            let leads = |id: &u64| self.status(*id)["role"] == "leader";
            if let Some(leader) = self.ids().into_iter().find(leads) {
                return leader;
            }
            assert!(since.elapsed() < PATIENCE, "nobody ever leads");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Those that run and do not lead.
    pub(crate) fn followers(&self) -> Vec<u64> {
        self.others(self.leader())
    }

    /// Those that run, without node `id`, whoever leads meanwhile.
    pub(crate) fn others(&self, id: u64) -> Vec<u64> {
        let mut ids = self.ids();
        ids.retain(|other| *other != id);
        ids
    }
}
