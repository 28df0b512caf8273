//! The node's handle: start, requests, status, stop.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use openraft::{Config, Instant as _, ServerState, SnapshotPolicy};
use tokio::task::spawn_blocking;

use super::log::LogStore;
use super::machine::{Condition, Machine};
use super::network::Network;
use super::reads::{Raft, Reads, confirm, failed};
use super::start::{self, Identity, Pair, StartError};
use super::types::{to_log_id, to_membership};
use super::{
    Backup, Consistency, Member, REQUEST_TIME, RequestError, SnapshotDone, Status, Written, compact,
};
use crate::durable;
use crate::format::entry::Request;
use crate::format::record::LogId;
use crate::layout::DataDir;
use crate::storage::log::Log;
use crate::storage::space::Space;
use crate::storage::{Checkpoint, Page, Range, StateMachine, StorageError};

/// How often a start looks whether it waits for space.
const LOOK_FOR_SPACE: Duration = Duration::from_millis(100);

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its id.
    pub id: u64,
    /// The members that form a new cluster and their addresses; this node alone if empty.
    pub members: BTreeMap<u64, String>,
    /// This node's own address, for a cluster of its own.
    pub address: String,
    /// How long a follower waits for its leader, at least; at most twice as long.
    pub election_timeout: Duration,
    /// How often a leader shows itself.
    pub heartbeat: Duration,
    /// Bytes of applied entries that stay in the log, for peers that are behind
    /// and for a state machine that is restored from a backup.
    pub log_keep: u64,
    /// Reads from the state machine that may be under way at once.
    pub readers: usize,
}

/// A running node; a cheap handle.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    id: u64,
    cluster_id: String,
    dir: DataDir,
    raft: Raft,
    log: Log,
    state_machine: Arc<dyn StateMachine>,
    condition: Arc<Condition>,
    reads: Reads,
    space: Space,
    /// Copies are made one at a time: they share a name while they are made.
    copying: tokio::sync::Mutex<()>,
    compaction: tokio::task::AbortHandle,
}

impl Node {
    /// Opens the log, checks it against the state machine, and starts consensus.
    /// A node that is its cluster's only voter leads when this returns.
    ///
    /// # Errors
    /// When log, state machine and configuration do not belong together, or the disk fails.
    pub async fn start(
        dir: &DataDir,
        state_machine: Arc<dyn StateMachine>,
        options: Options,
    ) -> Result<Self, StartError> {
        let path = dir.raft_log();
        let checked = {
            let (path, machine) = (path.clone(), Arc::clone(&state_machine));
            let id = options.id;
            spawn_blocking(move || open_log(&path, machine.as_ref(), id)).await
        };
        let (log, recorded) =
            checked.map_err(|_| StartError::Raft("a thread ended unexpectedly".into()))??;
        let condition = Arc::new(Condition::default());
        let machine = Machine {
            state_machine: Arc::clone(&state_machine),
            condition: Arc::clone(&condition),
            copy: dir.copy(),
        };
        let config = Arc::new(config(&options)?);
        // On a task of its own: what is applied again blocks it.
        let mut starting = tokio::spawn({
            let (log, options) = (log.clone(), options.clone());
            async move {
                let store = LogStore(log.clone());
                let raft = Raft::new(options.id, config, Network, store, machine)
                    .await
                    .map_err(refused)?;
                let cluster_id = join(&raft, &log, &path, recorded, &options).await?;
                lead_if_alone(&raft, options.id).await?;
                Ok::<_, StartError>((raft, cluster_id))
            }
        });
        let (raft, cluster_id) = tokio::select! {
            started = &mut starting => started.map_err(refused)??,
            // Nobody is served yet who would be worth waiting for.
            why = out_of_space(&log, &condition) => {
                condition.stopping.store(true, Ordering::Relaxed);
                starting.abort();
                return Err(StartError::Full(why));
            }
        };
        let compaction = compact::start(&raft, &log, state_machine.backend(), options.log_keep);
        let reads = Reads::start(&raft, &state_machine, options.readers);
        Ok(Self(Arc::new(Inner {
            id: options.id,
            cluster_id,
            space: Space::new(dir.path()),
            dir: dir.clone(),
            raft,
            log,
            state_machine,
            condition,
            reads,
            copying: tokio::sync::Mutex::new(()),
            compaction,
        })))
    }

    /// Writes; answered once it is durable on a majority and applied.
    ///
    /// # Errors
    /// See [`RequestError`]: which of them say that nothing was done.
    pub async fn write(&self, request: Request) -> Result<Written, RequestError> {
        let node = &self.0;
        if let Some(why) = self.full() {
            return Err(RequestError::DiskFull(why));
        }
        let written = tokio::time::timeout(REQUEST_TIME, node.raft.client_write(request)).await;
        match written {
            Ok(Ok(response)) => Ok(Written {
                index: response.log_id.index(),
                outcome: response.data,
            }),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(RequestError::NoLeader)
            }
            // Anything else may have come after the entry was appended.
            Ok(Err(_)) | Err(_) => Err(RequestError::Unconfirmed),
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn get(
        &self,
        key: String,
        consistency: Consistency,
    ) -> Result<Option<String>, RequestError> {
        self.0.reads.get(key, consistency).await
    }

    /// A page of pairs.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn scan(&self, range: Range, consistency: Consistency) -> Result<Page, RequestError> {
        if consistency == Consistency::Linearizable {
            confirm(&self.0.raft).await?;
        }
        self.blocking(move |machine| machine.scan(&range)).await
    }

    /// Truncates the write-ahead log; `None` on an engine without one.
    ///
    /// # Errors
    /// When the state machine fails.
    pub async fn checkpoint(&self) -> Result<Option<Checkpoint>, RequestError> {
        self.blocking(|machine| machine.checkpoint()).await
    }

    /// Makes a Raft snapshot now: what is applied becomes durable, so that the
    /// log may be purged up to there.
    ///
    /// # Errors
    /// When the state machine fails or the node stops.
    pub async fn snapshot(&self) -> Result<SnapshotDone, RequestError> {
        let raft = &self.0.raft;
        let applied = self.last_applied();
        compact::snapshot_up_to(raft, applied.map(|id| id.index)).await?;
        let metrics = raft.metrics().borrow_watched().clone();
        Ok(SnapshotDone {
            last_log_id: metrics.snapshot.as_ref().map(to_log_id),
            last_purged: metrics.purged.as_ref().map(to_log_id),
        })
    }

    /// Makes a consistent copy while serving. It takes as much space in the data
    /// directory as the state machine until it is dropped.
    ///
    /// # Errors
    /// When the state machine fails or the disk is full.
    pub async fn backup(&self) -> Result<Backup, RequestError> {
        let _one_at_a_time = self.0.copying.lock().await;
        let path = self.0.dir.copy();
        self.blocking(move |machine| copy(machine, &path)).await
    }

    /// Whether linearizable requests are served now.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), RequestError> {
        confirm(&self.0.raft).await
    }

    /// The last applied entry.
    #[must_use]
    pub fn last_applied(&self) -> Option<LogId> {
        let applied = self.0.state_machine.applied();
        applied.ok().and_then(|applied| applied.last_applied)
    }

    /// Why no write is taken at the moment.
    fn full(&self) -> Option<String> {
        let node = &self.0;
        let waiting = node.log.stalled().or_else(|| node.condition.full());
        waiting.or_else(|| node.space.check().err().map(|full| full.to_string()))
    }

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> Status {
        let node = &self.0;
        let metrics = node.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let lag = |id: &u64| {
            let matched = metrics.replication.as_ref()?.get(id)?.as_ref()?;
            Some(metrics.last_log_index?.saturating_sub(matched.index()))
        };
        let members = membership.nodes().map(|(id, address)| Member {
            id: *id,
            address: address.addr.clone(),
            voter: voters.contains(id),
            lag: lag(id),
        });
        let leads = metrics.state == ServerState::Leader;
        Status {
            node_id: node.id,
            cluster_id: node.cluster_id.clone(),
            role: role(metrics.state),
            term: metrics.current_term,
            leader: metrics.current_leader,
            members: members.collect(),
            last_log_index: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(|id| id.index()),
            last_applied: self.last_applied(),
            last_purged: metrics.purged.as_ref().map(|id| id.index()),
            snapshot: metrics.snapshot.as_ref().map(|id| id.index()),
            quorum_age_ms: leads
                .then(|| metrics.last_quorum_acked.map(|at| at.elapsed().as_millis()))
                .flatten()
                .map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            backend: node.state_machine.backend(),
            sizes: node.state_machine.sizes(),
            log_bytes: node.log.file_bytes(),
            full: self.full(),
            failed: metrics.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// Resolves when the node cannot go on, with the reason.
    pub async fn failed(&self) -> String {
        let mut metrics = self.0.raft.metrics();
        loop {
            let fatal = metrics.borrow_watched().running_state.clone().err();
            if let Some(fatal) = fatal {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "consensus ended unexpectedly".into();
            }
        }
    }

    /// Stops consensus, then closes log and state machine. Requests fail afterwards.
    ///
    /// # Errors
    /// When a file cannot be closed; nothing durable is lost by it.
    pub async fn stop(&self) -> Result<(), StartError> {
        let node = &self.0;
        node.compaction.abort();
        node.condition.stopping.store(true, Ordering::Relaxed);
        if node.raft.shutdown().await.is_err() {
            tracing::error!("Consensus did not end in order");
        }
        let (log, machine) = (node.log.clone(), Arc::clone(&node.state_machine));
        let closed = spawn_blocking(move || {
            let log = log.close();
            machine.close()?;
            Ok(log?)
        });
        closed
            .await
            .unwrap_or_else(|_| Err(StartError::Raft("a thread ended unexpectedly".into())))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn StateMachine) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let machine = Arc::clone(&self.0.state_machine);
        spawn_blocking(move || work(machine.as_ref()))
            .await
            .map_err(|_| RequestError::Stopping)?
            .map_err(|error| match error.is_full() {
                true => RequestError::DiskFull(error.to_string()),
                false => failed(error),
            })
    }
}

/// Opens the log and checks it against configuration and state machine.
fn open_log(
    path: &Path,
    machine: &dyn StateMachine,
    id: u64,
) -> Result<(Log, Option<Identity>), StartError> {
    let applied = machine.applied()?;
    if let Some(position) = applied.last_applied.filter(|_| !path.exists()) {
        tracing::warn!(
            "There is no Raft log {}: a new one begins behind {position}. Votes that this node \
             gave before are forgotten",
            path.display()
        );
    }
    let log = Log::open(path, applied.last_applied)?;
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
        applied: &applied,
        bounds: log.bounds(),
        at_applied: at_applied.first().map(|entry| entry.log_id),
        log: path,
    };
    start::check(&pair)?;
    Ok((log, recorded))
}

fn config(options: &Options) -> Result<Config, StartError> {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let election = milliseconds(options.election_timeout);
    Config {
        cluster_name: "aspen".into(),
        heartbeat_interval: milliseconds(options.heartbeat),
        election_timeout_min: election,
        election_timeout_max: election.saturating_mul(2),
        // `compact` decides by bytes, which openraft cannot.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        ..Config::default()
    }
    .validate()
    .map_err(|error| StartError::Raft(error.to_string()))
}

fn refused(error: impl std::fmt::Display) -> StartError {
    StartError::Raft(error.to_string())
}

/// Forms the cluster where there is none yet, and records whose data this is.
async fn join(
    raft: &Raft,
    log: &Log,
    path: &Path,
    recorded: Option<Identity>,
    options: &Options,
) -> Result<String, StartError> {
    let mut members = options.members.clone();
    if members.is_empty() {
        members.insert(options.id, options.address.clone());
    }
    if !raft.is_initialized().await.map_err(refused)? {
        let nodes: BTreeMap<u64, BasicNode> = members
            .iter()
            .map(|(id, address)| (*id, BasicNode::new(address)))
            .collect();
        raft.initialize(nodes).await.map_err(refused)?;
    } else if recorded.is_none() {
        let stored = raft.metrics().borrow_watched().membership_config.clone();
        let membership = to_membership(stored.membership());
        start::check_member(&membership, options.id, path)?;
        let nodes = membership.nodes.into_iter();
        members = nodes.map(|(id, node)| (id, node.addr)).collect();
    }
    if let Some(identity) = recorded {
        return Ok(identity.cluster_id);
    }
    let identity = Identity {
        node_id: options.id,
        cluster_id: start::cluster_id(&members),
    };
    let (log, path, recorded) = (log.clone(), path.to_owned(), identity.clone());
    spawn_blocking(move || start::record(&log, &recorded, &path))
        .await
        .map_err(refused)??;
    Ok(identity.cluster_id)
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
async fn out_of_space(log: &Log, condition: &Condition) -> String {
    let mut looks = tokio::time::interval(LOOK_FOR_SPACE);
    loop {
        looks.tick().await;
        if let Some(why) = log.stalled().or_else(|| condition.full()) {
            return why;
        }
    }
}

fn copy(machine: &dyn StateMachine, path: &Path) -> Result<Backup, StorageError> {
    let file = durable::create_new(path)?;
    let copied = machine.write_snapshot(path);
    // Without a name, it is gone when the last handle to it is closed.
    durable::remove(path)?;
    Ok(Backup {
        file,
        last_applied: copied?.last_applied,
    })
}

fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Leader => "leader",
        ServerState::Follower => "follower",
        ServerState::Candidate => "candidate",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "stopped",
    }
}
