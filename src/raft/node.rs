//! The node's handle: start, requests, status, stop.

mod operate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::blocking::blocking;
use super::copies::Copies;
use super::join::{self, Beginning, Opened, open_log};
use super::log::LogStore;
use super::machine::{Condition, Machine};
use super::network::Network;
use super::options::Options;
use super::peer::{self, Confirmation, Leader, Peers, Receiver, Service};
use super::promise::{Promise, Standing};
use super::reads::{Raft, Reads, failed};
use super::start::StartError;
use super::types::to_log_id;
use super::{
    Backup, Consistency, Gate, LEADER_TIME, Member, RequestError, SnapshotDone, Status, Written,
    compact, keeper, lead, watcher,
};
use crate::certificate::TlsError;
use crate::config::settings::PeerFiles;
use crate::format::entry::Request;
use crate::format::peer::Refusal;
use crate::format::record::LogId;
use crate::layout::DataDir;
use crate::storage::space::Space;
use crate::storage::{Checkpoint, Contents, Page, Range, StateMachine, StorageError};
use crate::telemetry::events;

/// How often a node looks whether consensus has failed.
const LOOK_FOR_FAILURE: Duration = Duration::from_millis(100);

/// How long writes that others forwarded may take to be answered once another
/// node leads: as long as the disk may take.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// A running node; a cheap handle.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    options: Options,
    raft: Raft,
    state_machine: Arc<dyn StateMachine>,
    gate: Arc<Gate>,
    leader: Leader,
    peers: Peers,
    reads: Reads,
    copies: Arc<Copies>,
    compaction: AbortHandle,
    keeping: AbortHandle,
    service: Arc<Service>,
    listening: AbortHandle,
    watching: AbortHandle,
    standing: Standing,
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
        let opened = open(dir, &state_machine, &options).await?;
        let log = opened.log.clone();
        let promise = Promise::of(&log, opened.alone, options.election_timeout);
        let condition = Arc::new(Condition::default());
        let gate = Arc::new(Gate {
            log: log.clone(),
            condition: Arc::clone(&condition),
            space: Space::new(dir.path()),
        });
        let store = LogStore::new(log.clone());
        let machine = Machine {
            log: log.clone(),
            durable: store.durable(),
            state_machine: Arc::clone(&state_machine),
            condition,
            copy: dir.copy(),
        };
        let copies = Arc::new(Copies::new(&state_machine, dir.copy()));
        let peers = join::peers(&options, opened.recorded.as_ref(), &log, dir.raft_log())?;
        let has_company = options.join || peer::has_others(options.members.keys(), options.id);
        let listener = match has_company {
            true => Some(peers.local().listen(options.peer_listen).await?),
            false => None,
        };
        let beginning = Beginning {
            network: Network {
                peers: peers.clone(),
                copies: Arc::clone(&copies),
            },
            store,
            machine,
            opened,
            path: dir.raft_log(),
            promise,
            options: options.clone(),
        };
        let raft = beginning.while_there_is_space(&gate).await?;
        let leader = Leader::new(
            raft.clone(),
            peers.clone(),
            Arc::clone(&gate),
            options.election_timeout,
        );
        let service = Arc::new(Service {
            raft: raft.clone(),
            peers: peers.clone(),
            leader: leader.clone(),
            receiver: Arc::new(Receiver::new(dir.received())),
            promise,
            leaving: watch::channel(false).0,
        });
        let standing = promise.stand_afterwards(&raft, options.election_timeout);
        let serving = peer::serve(listener, options.peer_listen, Arc::clone(&service));
        let listening = tokio::spawn(serving);
        let keeping = keeper::start(&raft, &peers, &leader);
        let compaction = compact::start(&raft, &log, state_machine.backend(), options.log_keep);
        let watching = watcher::start(&raft, options.id);
        let reads = Reads::start(&leader, &state_machine, options.readers);
        Ok(Self(Arc::new(Inner {
            options,
            raft,
            state_machine,
            gate,
            leader,
            peers,
            reads,
            copies,
            compaction,
            keeping,
            service,
            listening: listening.abort_handle(),
            watching,
            standing,
        })))
    }

    /// Writes; answered once it is durable on a majority and applied.
    ///
    /// # Errors
    /// See [`RequestError`]: which of them say that nothing was done.
    pub async fn write(&self, request: Request) -> Result<Written, RequestError> {
        self.0.leader.write(request, LEADER_TIME).await
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
        if let Some(confirmation) = self.0.leader.confirmation(consistency) {
            self.0.leader.confirm(confirmation, LEADER_TIME).await?;
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
        let copy = self.0.copies.make().await.map_err(unanswered)?;
        Ok(Backup {
            file: copy.file,
            last_applied: copy.applied.last_applied,
        })
    }

    /// Computes the digests of what this node holds, while serving, for as long as
    /// the answer is waited for.
    ///
    /// # Errors
    /// When the state machine fails.
    pub async fn digest(&self) -> Result<Contents, RequestError> {
        let unwanted = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&unwanted);
        let _waits = Unwanted(unwanted);
        self.blocking(move |machine| machine.digest(&stop)).await
    }

    /// Whether linearizable requests are served now.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), RequestError> {
        let majority = Confirmation::Majority;
        self.0.leader.confirm(majority, Duration::ZERO).await
    }

    /// The last applied entry.
    #[must_use]
    pub fn last_applied(&self) -> Option<LogId> {
        let applied = self.0.state_machine.applied();
        applied.ok().and_then(|applied| applied.last_applied)
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
        let local = node.peers.local();
        let is_member = membership.get_node(&node.options.id).is_some();
        let standing = match metrics.membership_config.log_id() {
            _ if local.barred().is_some() => "barred",
            None => "joining",
            Some(_) if !is_member || local.is_removed() => "removed",
            Some(_) if voters.contains(&node.options.id) => "voter",
            Some(_) => "learner",
        };
        Status {
            node_id: node.options.id,
            cluster_id: local.cluster().unwrap_or_default(),
            membership: standing,
            barred: local.barred(),
            role: role(metrics.state),
            term: metrics.current_term,
            leader: metrics.current_leader,
            members: members.collect(),
            last_log_index: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(|id| id.index()),
            last_applied: self.last_applied(),
            last_purged: metrics.purged.as_ref().map(|id| id.index()),
            snapshot: metrics.snapshot.as_ref().map(|id| id.index()),
            quorum_age_ms: match metrics.last_quorum_acked {
                // Its own word is its majority's, at any time.
                _ if leads && voters == [node.options.id] => Some(0),
                Some(at) if leads => {
                    Some(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
                }
                _ => None,
            },
            backend: node.state_machine.backend(),
            sizes: node.state_machine.sizes(),
            log_bytes: node.gate.log.file_bytes(),
            disk: node.gate.space.free(),
            full: node.gate.full(),
            failed: metrics.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// Hands leadership over before a stop, if this node leads and another can.
    /// Requests are still served. Returns once writes that others forwarded here
    /// are answered, after some seconds at most. The node never asks for votes again.
    pub async fn hand_over(&self) {
        let Inner {
            raft,
            leader,
            options,
            standing,
            ..
        } = &*self.0;
        standing.give_up().await;
        raft.runtime_config().elect(false);
        // Votes that it asked for before may still come in.
        let waiting = raft.wait(Some(options.election_timeout));
        let decided = waiting.metrics(
            |metrics| metrics.state != ServerState::Candidate,
            "no candidate any more",
        );
        // One that nobody answers cannot win.
        let _ = decided.await;
        match lead::hand_over(raft, None, options.election_timeout).await {
            Ok(_) | Err(Refusal::NotLeader) => {}
            Err(Refusal::Refused(why)) => tracing::info!("Leadership is not handed over: {why}"),
            Err(refusal) => tracing::warn!(
                MESSAGE_ID = events::LEADERSHIP_NOT_HANDED_OVER,
                ASPEN_TERM = raft.metrics().borrow_watched().current_term,
                "Leadership was not handed over in time: {refusal:?}"
            ),
        }
        // It may have led until a moment ago.
        if timeout(ANSWER_TIME, leader.answered()).await.is_err() {
            tracing::warn!(
                MESSAGE_ID = events::REQUESTS_CUT_OFF,
                "Writes of other nodes' were still under way after {ANSWER_TIME:?}"
            );
        }
    }

    /// Which data this node has.
    #[cfg(test)]
    pub(super) fn incarnation(&self) -> u128 {
        self.0.peers.local().incarnation()
    }

    /// Whether this node has met node `id`, with whatever data.
    #[cfg(test)]
    pub(super) fn has_met(&self, id: u64) -> bool {
        self.0.peers.local().has_met(id)
    }

    /// Consensus itself.
    #[cfg(test)]
    pub(super) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    /// Resolves when the node cannot go on, with the reason.
    pub async fn failed(&self) -> String {
        let metrics = self.0.raft.metrics();
        // To be told of every change would wake somebody several times a write.
        let mut looks = tokio::time::interval(LOOK_FOR_FAILURE);
        loop {
            looks.tick().await;
            let fatal = metrics.borrow_watched().running_state.clone().err();
            if let Some(fatal) = fatal {
                return fatal.to_string();
            }
        }
    }

    /// Reads the certificate for other nodes again, for connections from now on.
    ///
    /// # Errors
    /// When it cannot be used; the one in use stays.
    pub fn renew_certificate(&self, files: &PeerFiles) -> Result<(), TlsError> {
        peer::warn_of(files, &self.0.peers.local().renew(files)?);
        Ok(())
    }

    /// Stops consensus, then closes log and state machine. Requests fail afterwards.
    ///
    /// # Errors
    /// When a file cannot be closed; nothing durable is lost by it.
    pub async fn stop(&self) -> Result<(), StartError> {
        let node = &self.0;
        node.compaction.abort();
        node.keeping.abort();
        node.service.leave().await;
        node.listening.abort();
        node.watching.abort();
        node.standing.give_up().await;
        node.gate.condition.stopping.store(true, Ordering::Relaxed);
        if node.raft.shutdown().await.is_err() {
            tracing::error!(
                MESSAGE_ID = events::REQUESTS_CUT_OFF,
                "Consensus did not end in order"
            );
        }
        let (log, machine) = (node.gate.log.clone(), Arc::clone(&node.state_machine));
        let closed = blocking(move || {
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
        blocking(move || work(machine.as_ref()))
            .await
            .map_err(|_| RequestError::Stopping)?
            .map_err(unanswered)
    }
}

/// Says when it is dropped that an answer is no longer waited for.
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Opens and checks the log on a thread where that may take its time.
async fn open(
    dir: &DataDir,
    state_machine: &Arc<dyn StateMachine>,
    options: &Options,
) -> Result<Opened, StartError> {
    let (id, disk) = (options.id, options.disk.clone());
    let (path, machine) = (dir.raft_log(), Arc::clone(state_machine));
    let opened = blocking(move || open_log(&path, machine.as_ref(), id, disk)).await;
    opened.map_err(|_| StartError::Raft("a thread ended unexpectedly".into()))?
}

fn unanswered(error: StorageError) -> RequestError {
    match error.is_full() {
        true => RequestError::DiskFull(error.to_string()),
        false => failed(error),
    }
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
