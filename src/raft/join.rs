//! From a log and a state machine to a member of a cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Config, ServerState, SnapshotPolicy};

use super::Gate;
use super::blocking::blocking;
use super::log::LogStore;
use super::machine::Machine;
use super::network::Network;
use super::options::Options;
use super::patience::{SHORTEST_WAIT, VOTERS_LEASE};
use super::peer::{self, Local, Peers};
use super::promise::Promise;
use super::reads::Raft;
use super::start::{self, Identity, Pair, StartError};
use super::types::to_membership;
use crate::config::settings::Secret;
use crate::format::entry::{Entry, Payload};
use crate::format::record::{LogId, Membership, NodeAddress};
use crate::storage::log::{Disk, Log};
use crate::storage::{Applied, StateMachine};
use crate::telemetry::events;

/// How often a start looks whether it waits for space.
const LOOK_FOR_SPACE: Duration = Duration::from_millis(100);

/// Bytes of entries that are looked through at once.
const LOOK_BYTES: u64 = 1 << 20;

/// A log that belongs to the state machine and to this node.
pub(super) struct Opened {
    pub(super) log: Log,
    pub(super) recorded: Option<Identity>,
    /// Whether this node is its cluster's only one: no other can have seen an entry of it.
    pub(super) alone: bool,
}

/// Opens the log and checks it against configuration and state machine.
pub(super) fn open_log(
    path: &Path,
    machine: &dyn StateMachine,
    id: u64,
    disk: Option<Arc<dyn Disk>>,
) -> Result<Opened, StartError> {
    let applied = machine.applied()?;
    if let Some(position) = applied.last_applied.filter(|_| !path.exists()) {
        tracing::warn!(
            MESSAGE_ID = events::RAFT_LOG_MISSING,
            ASPEN_PATH = %path.display(),
            ASPEN_LAST_APPLIED = position.index,
            "There is no Raft log {}: a new one begins behind {position}. Votes that this node \
             gave before are forgotten",
            path.display()
        );
    }
    let log = match disk {
        Some(disk) => Log::open_on(disk, path, applied.last_applied)?,
        None => Log::open(path, applied.last_applied)?,
    };
    let recorded = start::recorded(&log, path)?;
    start::check_identity(recorded.as_ref(), id, path)?;
    if recorded.is_none() {
        start::check_member(&applied.membership.membership, id, path)?;
    }
    let at_applied = match applied.last_applied {
        Some(applied) => log.read(applied.index..applied.index + 1, u64::MAX)?,
        None => Vec::new(),
    };
    let pair = Pair {
        backend: machine.backend(),
        applied: &applied,
        bounds: log.bounds(),
        at_applied: at_applied.first().map(|entry| entry.log_id),
        installing: start::installing(&log)?,
        log: path,
    };
    start::check(&pair)?;
    // Who voted for another has company, whatever became of the entries that say so.
    let has_followed = log.vote().is_some_and(|vote| vote.node_id != id);
    let alone = !has_followed && is_alone(&log, &applied, id)?;
    Ok(Opened {
        log,
        recorded,
        alone,
    })
}

/// Whether neither the applied membership nor one in the log behind it names
/// another node.
fn is_alone(log: &Log, applied: &Applied, id: u64) -> Result<bool, StartError> {
    let others = |members: &Membership| peer::has_others(members.nodes.keys(), id);
    if others(&applied.membership.membership) {
        return Ok(false);
    }
    let mut next = applied.last_applied.map_or(0, |last| last.index + 1);
    loop {
        let entries = log.read(next..u64::MAX, LOOK_BYTES)?;
        let Some(last) = entries.last() else {
            return Ok(true);
        };
        next = last.log_id.index + 1;
        let named = |entry: &Entry| match &entry.payload {
            Payload::Membership(members) => others(members),
            Payload::Blank | Payload::Normal(_) => false,
        };
        if entries.iter().any(named) {
            return Ok(false);
        }
    }
}

fn config(options: &Options, alone: bool, promise: Promise) -> Result<Config, StartError> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let election = options.election_timeout;
    Config {
        cluster_name: "aspen".into(),
        heartbeat_interval: milliseconds(options.heartbeat),
        election_timeout_min: milliseconds(SHORTEST_WAIT.of(election)),
        election_timeout_max: milliseconds(VOTERS_LEASE.of(election)),
        // `compact` decides by bytes, which openraft cannot.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        enable_elect: !promise.holds(),
        // A leader that restarts may lack entries that it never made durable and
        // others did, and does not know how far the majority is. In its old term
        // it would give their places to new ones, and serve reads without them.
        // One that is alone knows all there is.
        enable_leader_restore: Some(alone),
        ..Config::default()
    }
    .validate()
    .map_err(|error| StartError::Raft(error.to_string()))
}

/// The other nodes, as this node reaches them.
pub(super) fn peers(
    options: &Options,
    recorded: Option<&Identity>,
    log: &Log,
    path: PathBuf,
) -> Result<Peers, StartError> {
    let mut local = Local::new(options.id, options.secret.as_ref().map(Secret::reveal));
    local.reach_by(Arc::clone(&options.transport));
    if let Some(files) = &options.tls {
        peer::warn_of(files, &local.protect(files)?);
    }
    local.keep_in(log, path)?;
    if let Some(identity) = recorded {
        local.join(&identity.cluster_id, identity.provisional);
    }
    Ok(Peers::new(Arc::new(local), options.members.clone()))
}

fn refused(error: impl std::fmt::Display) -> StartError {
    StartError::Raft(error.to_string())
}

/// What consensus begins with.
pub(super) struct Beginning {
    pub(super) network: Network,
    pub(super) store: LogStore,
    pub(super) machine: Machine,
    pub(super) opened: Opened,
    pub(super) path: PathBuf,
    pub(super) promise: Promise,
    pub(super) options: Options,
}

impl Beginning {
    /// Starts consensus, and forms or finds the cluster.
    pub(super) async fn while_there_is_space(self, gate: &Gate) -> Result<Raft, StartError> {
        // On a task of its own: what is applied again blocks it.
        let mut starting = tokio::spawn(self.begin());
        tokio::select! {
            started = &mut starting => started.map_err(refused)?,
            // Nobody is served yet who would be worth waiting for.
            why = out_of_space(gate) => {
                gate.condition.stopping.store(true, Ordering::Relaxed);
                starting.abort();
                Err(StartError::Full(why))
            }
        }
    }

    async fn begin(self) -> Result<Raft, StartError> {
        let Self {
            opened, options, ..
        } = self;
        let config = Arc::new(config(&options, opened.alone, self.promise)?);
        let peers = self.network.peers.clone();
        let is_new = is_empty(&opened.log) && opened.recorded.is_none();
        let formed = match is_new && !options.join {
            true => Some(form(&self.store, &options).await?),
            false => None,
        };
        let raft = Raft::new(options.id, config, self.network, self.store, self.machine)
            .await
            .map_err(refused)?;
        let (log, recorded, local) = (&opened.log, opened.recorded, peers.local());
        let joined = join(&raft, log, &self.path, recorded, formed, &options, local);
        if joined.await? {
            lead_if_alone(&raft, options.id).await?;
        }
        Ok(raft)
    }
}

/// Whether nothing was ever written.
fn is_empty(log: &Log) -> bool {
    log.bounds().last.is_none() && log.vote().is_none()
}

/// Writes the first entry, the members, as each of them does for itself: whoever leads first
/// has the others take its own. Returns them. Not by openraft's `initialize`, which has the node want to
/// lead without asking the others whether they have a leader: a member that comes
/// late would depose it.
async fn form(store: &LogStore, options: &Options) -> Result<BTreeMap<u64, String>, StartError> {
    let mut members = options.members.clone();
    if members.is_empty() {
        members.insert(options.id, options.peer_listen.to_string());
    }
    start::check_initial(&members, options.id)?;
    let nodes = members.clone().into_iter();
    let membership = Membership {
        configs: vec![members.keys().copied().collect()],
        nodes: nodes.map(|(id, addr)| (id, NodeAddress { addr })).collect(),
    };
    let first = Entry {
        log_id: LogId {
            term: 0,
            node_id: options.id,
            index: 0,
        },
        payload: Payload::Membership(membership),
    };
    store.begin(first).await.map_err(refused)?;
    Ok(members)
}

/// Records whose data this is, and has a cluster that was formed just now elect its
/// leader; whether the data belongs to a cluster.
///
/// No peer may reach this node before this has returned: it does not know yet to which
/// cluster it belongs. It may reach others as soon as it does. A node that is to
/// join a cluster forms none: who adds it tells it which one it is.
async fn join(
    raft: &Raft,
    log: &Log,
    path: &Path,
    recorded: Option<Identity>,
    formed: Option<BTreeMap<u64, String>>,
    options: &Options,
    local: &Local,
) -> Result<bool, StartError> {
    if recorded.is_some() {
        // Power may be cut between the vote and the first entry: the others have that one, and
        // cannot bring it before this node listens.
        return Ok(log.bounds().last.is_some());
    }
    let is_formed = formed.is_some();
    let members = match formed {
        Some(members) => members,
        None if is_empty(log) => {
            tracing::info!(
                "Waiting to be added to a cluster: POST /admin/members on one of its nodes, with \
                 the id {} and the address that leads to cluster.peer_listen here",
                options.id
            );
            local.wait_for_cluster();
            return Ok(false);
        }
        None => {
            // The metrics tell of it a moment later.
            let stored = raft.with_raft_state(|state| {
                to_membership(state.membership_state.effective().membership())
            });
            let membership = stored.await.map_err(refused)?;
            start::check_member(&membership, options.id, path)?;
            let nodes = membership.nodes.into_iter();
            nodes.map(|(id, node)| (id, node.addr)).collect()
        }
    };
    let identity = Identity {
        node_id: options.id,
        cluster_id: start::cluster_id(&members),
        // Others may know a later membership than the one stored here.
        provisional: !is_formed && members.len() > 1,
    };
    local.join(&identity.cluster_id, identity.provisional);
    let (log, path) = (log.clone(), path.to_owned());
    blocking(move || start::record(&log, &identity, &path))
        .await
        .map_err(refused)??;
    if is_formed && members.len() > 1 {
        // At once, if the others have no leader; else it is heard of soon.
        raft.trigger().elect(true).await.map_err(refused)?;
    }
    Ok(true)
}

/// A lone voter needs nobody's consent: it leads, and has applied all of its
/// log, before it serves; so what clients saw before a restart they see after.
async fn lead_if_alone(raft: &Raft, id: u64) -> Result<(), StartError> {
    let mut changes = raft.metrics();
    let voters = loop {
        let metrics = changes.borrow_watched().clone();
        let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
        // A cluster that was formed just now is told of a moment later.
        if !voters.is_empty() {
            break voters;
        }
        changes.changed().await.map_err(refused)?;
    };
    if voters != [id] {
        return Ok(());
    }
    if raft.metrics().borrow_watched().current_leader != Some(id) {
        raft.trigger().elect(false).await.map_err(refused)?;
    }
    loop {
        {
            let now = changes.borrow_watched();
            if let Err(fatal) = &now.running_state {
                return Err(refused(fatal));
            }
            let applied = now.last_applied.as_ref().map(|id| id.index());
            if now.state == ServerState::Leader && applied >= now.last_log_index {
                return Ok(());
            }
        }
        changes.changed().await.map_err(refused)?;
    }
}

/// Resolves when something waits for space, with the reason.
async fn out_of_space(gate: &Gate) -> String {
    let mut looks = tokio::time::interval(LOOK_FOR_SPACE);
    loop {
        looks.tick().await;
        if let Some(why) = gate.waits() {
            return why;
        }
    }
}
