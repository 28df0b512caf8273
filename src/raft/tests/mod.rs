//! Nodes in one process that form a cluster over real connections.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod authority;
mod catch_up;
mod leading;
mod life;
mod members;
mod restored;
mod slow;
mod strangers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use self::authority::Authority;
use super::suite::fresh;
use super::{Consistency, Node, Options, RequestError, Status, Tcp, Written};
use crate::config::settings::{Backend, Secret};
use crate::format::entry::Request;
use crate::layout::DataDir;

/// How long something may take that always happens in the end.
const PATIENCE: Duration = Duration::from_secs(60);

const SECRET: &str = "what-only-these-nodes-know";

/// Nodes by id, running or not.
struct Cluster {
    addresses: BTreeMap<u64, String>,
    backends: Vec<Backend>,
    dirs: Vec<tempfile::TempDir>,
    running: BTreeMap<u64, Node>,
    log_keep: u64,
    /// How long followers wait for a leader.
    election: Duration,
    tls: Option<Authority>,
    /// Where the others find a node instead of where it listens.
    detours: BTreeMap<u64, String>,
    /// Where one node finds another instead.
    ways: BTreeMap<(u64, u64), String>,
}

/// Loopback addresses of this test's own, whatever else runs: 127/8 is large.
fn addresses(count: u64) -> BTreeMap<u64, String> {
    static NEXT: AtomicU16 = AtomicU16::new(7000);
    let [a, b, ..] = std::process::id().to_le_bytes();
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    let address = |id| (id, format!("127.{}.{a}.{id}:{port}", b.max(1)));
    (1..=count).map(address).collect()
}

impl Cluster {
    fn new(backends: &[Backend]) -> Self {
        let dirs = backends.iter().map(|_| tempfile::tempdir().unwrap());
        Self {
            addresses: addresses(backends.len() as u64),
            backends: backends.to_vec(),
            dirs: dirs.collect(),
            running: BTreeMap::new(),
            log_keep: 64 << 20,
            election: Duration::from_millis(600),
            tls: None,
            detours: BTreeMap::new(),
            ways: BTreeMap::new(),
        }
    }

    async fn all(backends: &[Backend]) -> Self {
        Self::new(backends).started().await
    }

    /// With so much patience that on a busy machine, too, nobody takes another for dead.
    async fn patient(backends: &[Backend]) -> Self {
        let mut cluster = Self::new(backends);
        cluster.election = Duration::from_millis(2_500);
        cluster.started().await
    }

    async fn started(mut self) -> Self {
        for id in 1..=self.backends.len() as u64 {
            self.start(id).await;
        }
        self
    }

    fn options(&self, id: u64) -> Options {
        let mut members = self.addresses.clone();
        members.extend(self.detours.clone());
        let ways = self.ways.iter().filter(|((from, _), _)| *from == id);
        members.extend(ways.map(|((_, to), way)| (*to, way.clone())));
        Options {
            id,
            members,
            join: false,
            peer_listen: self.addresses[&id].parse::<SocketAddr>().unwrap(),
            secret: Some(Secret::new(SECRET)),
            tls: self.tls.as_ref().map(|tls| tls.files(id)),
            election_timeout: self.election,
            heartbeat: Duration::from_millis(50),
            log_keep: self.log_keep,
            readers: 4,
            transport: Arc::new(Tcp),
            disk: None,
        }
    }

    async fn start(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap() - 1;
        let dir = DataDir::new(self.dirs[at].path());
        let started = Node::start(&dir, fresh(&dir, self.backends[at]), self.options(id)).await;
        self.running.insert(id, started.unwrap());
    }

    async fn stop(&mut self, id: u64) {
        let node = self.running.remove(&id).unwrap();
        node.stop().await.unwrap();
    }

    fn node(&self, id: u64) -> &Node {
        &self.running[&id]
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.running.values()
    }

    /// Who leads, once all that run agree.
    async fn leader(&self) -> u64 {
        eventually("a leader", || {
            let mut leaders: Vec<_> = self.nodes().map(|node| node.status().leader).collect();
            leaders.dedup();
            match leaders[..] {
                [Some(id)] if self.running.contains_key(&id) => Some(id),
                _ => None,
            }
        })
        .await
    }

    /// One that runs and does not lead.
    async fn follower(&self) -> u64 {
        let leader = self.leader().await;
        *self.running.keys().find(|id| **id != leader).unwrap()
    }
}

/// What `look` returns once it is something.
async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.unwrap_or_else(|_| panic!("there never was {what}"))
}

/// Returns once `look` is true.
async fn eventually_async<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let found = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.unwrap_or_else(|_| panic!("there never was {what}"));
}

async fn set(node: &Node, key: &str, value: &str) -> Result<Written, RequestError> {
    let (key, value) = (key.to_owned(), value.to_owned());
    node.write(Request::Set { key, value }).await
}

async fn get(node: &Node, key: &str) -> Option<String> {
    let got = node.get(key.to_owned(), Consistency::Linearizable).await;
    got.unwrap()
}

fn applied(status: &Status) -> u64 {
    status.last_applied.map_or(0, |id| id.index)
}
