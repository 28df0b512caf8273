//! A machine with a node on it, as the simulation runs it: killed, it begins again with
//! what is on its disk.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aspen::config::settings::{Backend, BackupKind, Secret, Verify};
use aspen::layout::DataDir;
use aspen::lock::LockedDir;
use aspen::migration::progress::{Control, Event, Observer, Phase};
use aspen::migration::{self, Options};
use aspen::raft::{self, CommandError, Node};
use aspen::storage::{self, Contents, StateMachine};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::clients::Clients;
use crate::disk::SimulatedDisk;
use crate::network::Simulated;

const PORT: u16 = 7000;
/// How long a leader may be silent.
pub(crate) const ELECTION: Duration = Duration::from_secs(1);
/// Clients that a node serves at a time.
const SERVED: usize = 4;
/// How often a machine looks what it is told to do.
const LOOK: Duration = Duration::from_millis(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of applied entries that stay in a log: so few that who is away for some seconds
/// needs a snapshot.
const LOG_KEEP: u64 = 32 << 10;

/// What a machine is told to do.
pub(crate) enum Order {
    /// Hand leadership on to whoever comes next.
    Transfer,
    /// Have a node be a voter.
    Add(u64),
    /// Have a node be no member.
    Remove(u64),
    /// Stop in order.
    Stop,
    /// Read every key.
    ReadAll,
    /// Tell what the node holds.
    Digest,
}

pub(crate) struct Machine {
    pub(crate) id: u64,
    pub(crate) disk: SimulatedDisk,
    backend: Backend,
    dir: Mutex<TempDir>,
    /// The members of the cluster that it forms, or none if it joins one.
    members: BTreeMap<u64, String>,
    clients: Arc<Clients>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    node: Option<Node>,
    orders: VecDeque<Order>,
    /// How many orders were carried out.
    done: u64,
    contents: Option<Contents>,
}

struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event<'_>) {}
    fn work(&self, _phase: Phase, _done: u64, _total: u64) {}
}

pub(crate) fn address(id: u64) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 0, u8::try_from(id).unwrap())
}

pub(crate) fn peer(id: u64) -> String {
    format!("{}:{PORT}", address(id))
}

impl Machine {
    pub(crate) fn new(
        id: u64,
        backend: Backend,
        disk: SimulatedDisk,
        members: BTreeMap<u64, String>,
        clients: &Arc<Clients>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            disk,
            backend,
            dir: Mutex::new(tempfile::tempdir().unwrap()),
            members,
            clients: Arc::clone(clients),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node, while it runs.
    pub(crate) fn node(&self) -> Option<Node> {
        self.state().node.clone()
    }

    /// Tells it to do something; the number by which [`Self::has_done`] knows it.
    pub(crate) fn order(&self, order: Order) -> u64 {
        let mut state = self.state();
        state.orders.push_back(order);
        state.done + state.orders.len() as u64
    }

    pub(crate) fn has_done(&self, number: u64) -> bool {
        self.state().done >= number
    }

    /// Its disk is replaced by an empty one.
    pub(crate) fn lose_disk(&self) {
        *self.dir.lock().unwrap() = tempfile::tempdir().unwrap();
        self.disk.replace();
    }

    pub(crate) fn contents(&self) -> Option<Contents> {
        self.state().contents
    }

    /// It is off: nobody is served, and what it was told to do is not done.
    pub(crate) fn off(&self) {
        let mut state = self.state();
        state.node = None;
        state.done += std::mem::take(&mut state.orders).len() as u64;
    }

    /// What a machine does from its start on.
    pub(crate) async fn live(self: Arc<Self>) -> turmoil::Result {
        let dir = DataDir::new(self.dir.lock().unwrap().path());
        let (_locked, state_machine) = self.open(&dir);
        let node = Node::start(&dir, state_machine, self.options()).await?;
        self.state().node = Some(node.clone());
        for _ in 0..SERVED {
            let (machine, clients) = (Arc::clone(&self), Arc::clone(&self.clients));
            tokio::spawn(async move { clients.use_while(|| machine.node()).await });
        }
        let failing = node.clone();
        tokio::spawn(async move { panic!("a node failed: {}", failing.failed().await) });
        loop {
            let order = self.state().orders.pop_front();
            match order {
                None => sleep(LOOK).await,
                Some(Order::Stop) => break,
                Some(order) => {
                    self.carry_out(&node, order).await;
                    self.state().done += 1;
                }
            }
        }
        node.hand_over().await;
        self.state().node = None;
        node.stop().await?;
        self.state().done += 1;
        Ok(())
    }

    fn open(&self, dir: &DataDir) -> (LockedDir, Arc<dyn StateMachine>) {
        let locked = LockedDir::take(dir.clone(), "simulation").unwrap();
        let options = Options {
            backend: self.backend,
            backup: BackupKind::Copy,
            keep_backups: 1,
            verify: Verify::Full,
            config_file: None,
            program: "simulation".into(),
        };
        let control = Control {
            observer: &Silent,
            stop: Arc::default(),
        };
        let prepared = migration::prepare(&locked, &options, &control).unwrap();
        (locked, storage::open(&prepared, 2).unwrap())
    }

    fn options(&self) -> raft::Options {
        raft::Options {
            id: self.id,
            members: self.members.clone(),
            join: self.members.is_empty(),
            peer_listen: SocketAddr::from((address(self.id), PORT)),
            secret: Some(Secret::new("what-only-these-nodes-know")),
            tls: None,
            election_timeout: ELECTION,
            heartbeat: Duration::from_millis(250),
            log_keep: LOG_KEEP,
            readers: 4,
            transport: Arc::new(Simulated),
            disk: Some(Arc::new(self.disk.clone())),
        }
    }

    async fn carry_out(&self, node: &Node, order: Order) {
        match order {
            Order::Transfer => drop(node.transfer_leadership(None).await),
            // Asked again, both go on where they were.
            Order::Add(id) => {
                while let Err(error) = node.set_member(id, peer(id), true).await {
                    tracing::info!("Node {id} is no voter yet: {error}");
                    sleep(PAUSE).await;
                }
            }
            Order::Remove(id) => {
                while let Err(error) = node.remove_member(id).await {
                    tracing::info!("Node {id} may still be a member: {error}");
                    // It is none since the answer before this one got lost.
                    if matches!(error, CommandError::NoMember(_)) {
                        break;
                    }
                    sleep(PAUSE).await;
                }
            }
            Order::ReadAll => self.clients.read_all(node).await,
            Order::Digest => self.state().contents = node.digest().await.ok(),
            Order::Stop => {}
        }
    }
}
