//! Calls to whoever leads, this node or another.
//!
//! Writes for another node are gathered: what waits goes in one message, and
//! what arrives meanwhile in the next. A write is tried again only while it is
//! certain that nothing was done; how long, is up to who asks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::linearizable_read::{Linearizer, ReadLogId};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::{CONNECT_TIME, Peers};
use crate::format::entry::Request;
use crate::format::peer::{Answer, Call, Command, Commanded, Fate, Refusal};
use crate::format::record::LogId;
use crate::raft::lead;
use crate::raft::members;
use crate::raft::reads::Raft;
use crate::raft::types::{from_log_id, to_log_id};
use crate::raft::{CommandError, Gate, REQUEST_TIME, RequestError, Written};

/// Most writes in one message.
const MAX_BATCH: usize = 256;

/// Bytes of keys and values that one message holds, and one write more.
const BATCH_BYTES: usize = 1 << 20;

/// Messages with writes that may be under way at once: each waits for an fsync
/// of the leader and one of a follower, and the leader gathers them anyway.
const MAX_UNDER_WAY: usize = 8;

/// How long to wait before asking again who leads, when nothing has changed.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the leader may take for a command: longer than any takes there.
const COMMAND_TIME: Duration = Duration::from_secs(25);

struct Waiting {
    request: Request,
    fate: oneshot::Sender<Fate>,
}

/// The way to the leader; a cheap handle.
#[derive(Clone)]
pub(in crate::raft) struct Leader {
    raft: Raft,
    peers: Peers,
    gate: Arc<Gate>,
    /// Bounded by the number of requests that the API lets in.
    queue: mpsc::UnboundedSender<Waiting>,
    election: Duration,
    /// Has a receiver for each message with writes of another node's that is under way.
    foreign: Arc<watch::Sender<()>>,
    changing: Arc<Mutex<()>>,
}

/// Who leads, as far as this node knows.
enum Known {
    Nobody,
    Me,
    Other { id: u64, address: String },
}

impl Leader {
    pub(in crate::raft) fn new(
        raft: Raft,
        peers: Peers,
        gate: Arc<Gate>,
        election: Duration,
    ) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let leader = Self {
            raft,
            peers,
            gate,
            queue,
            election,
            foreign: Arc::new(watch::channel(()).0),
            changing: Arc::default(),
        };
        // It ends when the last handle is dropped: its own holds another queue.
        let sending = Self {
            queue: mpsc::unbounded_channel().0,
            ..leader.clone()
        };
        tokio::spawn(sending.forward(waiting));
        leader
    }

    /// Writes on the leader, and waits `patience` for there to be one.
    pub(in crate::raft) async fn write(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<Written, RequestError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        loop {
            let fate = match self.known() {
                Known::Nobody => Ok(Fate::NotLeader),
                Known::Me => timeout(within(REQUEST_TIME), self.propose(request.clone())).await,
                Known::Other { .. } => {
                    let (fate, told) = oneshot::channel();
                    let request = request.clone();
                    self.queue
                        .send(Waiting { request, fate })
                        .map_err(|_| RequestError::Stopping)?;
                    let told = timeout(within(REQUEST_TIME), told).await;
                    told.map(|told| told.unwrap_or(Fate::Unconfirmed))
                }
            };
            match fate.unwrap_or(Fate::Unconfirmed) {
                Fate::Written { index, outcome } => return Ok(Written { index, outcome }),
                Fate::DiskFull(why) => return Err(RequestError::DiskFull(why)),
                Fate::Unconfirmed => return Err(RequestError::Unconfirmed),
                Fate::NotLeader if within(patience).is_zero() => {
                    return Err(RequestError::NoLeader);
                }
                Fate::NotLeader => self.change(within(patience)).await?,
            }
        }
    }

    /// Returns once this node has applied all that was committed when the call
    /// began, as the leader knows; waits `patience` for there to be one.
    pub(in crate::raft) async fn confirm(&self, patience: Duration) -> Result<(), RequestError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        loop {
            let confirmed = timeout(within(REQUEST_TIME), async {
                match self.known() {
                    Known::Nobody => Ok(None),
                    Known::Me => self.read_index().await,
                    Known::Other { id, address } => self.ask_read_index(id, &address).await,
                }
            });
            match confirmed.await.unwrap_or(Err(RequestError::Timeout))? {
                Some(upto) => return self.applied(upto, within(REQUEST_TIME)).await,
                None if within(patience).is_zero() => return Err(RequestError::NoLeader),
                None => self.change(within(patience)).await?,
            }
        }
    }

    /// Has the leader carry out a command, and waits `patience` for there to be one.
    pub(in crate::raft) async fn command(
        &self,
        command: Command,
        patience: Duration,
    ) -> Result<Commanded, CommandError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        loop {
            let done = match self.known() {
                Known::Nobody => Err(Refusal::NotLeader),
                Known::Me => self.carry_out(command.clone()).await,
                Known::Other { id, address } => {
                    self.ask_command(id, &address, command.clone()).await
                }
            };
            match done {
                Ok(done) => return Ok(done),
                Err(Refusal::NoMember(why)) => return Err(CommandError::NoMember(why)),
                Err(Refusal::Refused(why)) => return Err(CommandError::Refused(why)),
                Err(Refusal::NotYet(why)) => return Err(CommandError::NotYet(why)),
                Err(Refusal::Unconfirmed) => return Err(CommandError::Unconfirmed),
                Err(Refusal::NotLeader) if within(patience).is_zero() => {
                    return Err(RequestError::NoLeader.into());
                }
                Err(Refusal::NotLeader) => self.change(within(patience)).await?,
            }
        }
    }

    /// A command on this node, if it leads.
    pub(super) async fn carry_out(&self, command: Command) -> Result<Commanded, Refusal> {
        match command {
            Command::Lead(to) => {
                let led = lead::hand_over(&self.raft, to, self.election).await?;
                Ok(Commanded::Leads {
                    leader: led.leader,
                    term: led.term,
                })
            }
            Command::Members => self.members(),
            Command::SetMember { id, peer, voter } => {
                let _changing = self.begin_change()?;
                members::set_member(&self.raft, id, &peer, voter, self.election).await?;
                self.members()
            }
            Command::RemoveMember(id) => {
                let _changing = self.begin_change()?;
                members::remove_member(&self.raft, id, self.election).await?;
                self.members()
            }
            Command::MayRestart(id) => {
                let why_not = members::may_restart(&self.raft, id, self.election)?;
                Ok(Commanded::Restart(why_not))
            }
        }
    }

    fn members(&self) -> Result<Commanded, Refusal> {
        let (leader, members) = members::members(&self.raft)?;
        Ok(Commanded::Members { leader, members })
    }

    /// One change of members at a time.
    fn begin_change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Refusal> {
        let busy = |_| Refusal::NotYet("another change of members is under way".into());
        self.changing.try_lock().map_err(busy)
    }

    /// Ends a change of members that another leader left halfway.
    pub(in crate::raft) async fn settle(&self) {
        // Whoever changes something now does it first.
        if let Ok(_changing) = self.begin_change()
            && let Err(refusal) = members::settle(&self.raft).await
        {
            tracing::debug!("A change of members is still halfway: {refusal:?}");
        }
    }

    async fn ask_command(
        &self,
        id: u64,
        address: &str,
        command: Command,
    ) -> Result<Commanded, Refusal> {
        let asked = async {
            let link = self.peers.link(id, address, CONNECT_TIME).await?;
            link.call(&Call::Command(command), COMMAND_TIME).await
        };
        match asked.await {
            Ok(Answer::Commanded(done)) => done,
            Ok(Answer::NoMember(at)) => {
                self.peers.local().removed(at);
                Err(Refusal::NotLeader)
            }
            Ok(_) => Err(Refusal::Unconfirmed),
            Err(error) if error.is_undone() => Err(Refusal::NotLeader),
            Err(error) => {
                tracing::debug!("A command is unconfirmed: {error}");
                Err(Refusal::Unconfirmed)
            }
        }
    }

    /// Returns once no writes of other nodes' are under way here.
    pub(in crate::raft) async fn answered(&self) {
        self.foreign.closed().await;
    }

    fn known(&self) -> Known {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            None => Known::Nobody,
            Some(id) if id == metrics.id => Known::Me,
            Some(id) => {
                let members = metrics.membership_config.membership();
                let address = members.get_node(&id).map(|node| node.addr.clone());
                let address = address.unwrap_or_default();
                Known::Other { id, address }
            }
        }
    }

    /// Waits for a change of what is known about the leader, or a little while.
    async fn change(&self, patience: Duration) -> Result<(), RequestError> {
        let mut metrics = self.raft.server_metrics();
        // What has changed before, nobody of this handle's has looked at yet.
        let _ = metrics.changed().now_or_never();
        // What this node knows may be right already, and the other one wrong.
        match timeout(PAUSE.min(patience), metrics.changed()).await {
            Ok(Err(_)) => Err(RequestError::Stopping),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// A write on this node, if it leads.
    async fn propose(&self, request: Request) -> Fate {
        if let Some(why) = self.gate.full() {
            return Fate::DiskFull(why);
        }
        match self.raft.client_write(request).await {
            Ok(response) => Fate::Written {
                index: response.log_id.index(),
                outcome: response.data,
            },
            // Refused before it was appended. What was appended and lost its place to
            // another leader's entry is told as discarded, which others may still have.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Fate::NotLeader,
            Err(_) => Fate::Unconfirmed,
        }
    }

    /// Writes that another node forwarded; never forwarded again.
    pub(super) async fn propose_all(&self, requests: Vec<Request>) -> Vec<Fate> {
        let count = requests.len();
        let _under_way = self.foreign.subscribe();
        if let Some(why) = self.gate.full() {
            return vec![Fate::DiskFull(why); count];
        }
        let mut fates = Vec::with_capacity(count);
        let proposed = async {
            let mut results = self.raft.client_write_many(requests).await.ok()?;
            while let Some(result) = results.next().await {
                fates.push(match result.ok()? {
                    Ok(written) => Fate::Written {
                        index: written.log_id.index(),
                        outcome: written.response,
                    },
                    Err(ClientWriteError::ForwardToLeader(_)) => Fate::NotLeader,
                    Err(_) => Fate::Unconfirmed,
                });
            }
            Some(())
        };
        // What has no fate by then is unconfirmed, whatever the reason.
        let _ = timeout(REQUEST_TIME, proposed).await;
        fates.resize(count, Fate::Unconfirmed);
        fates
    }

    /// Up to where a reader has to wait; `None` when this node does not lead.
    pub(super) async fn read_index(&self) -> Result<Option<LogId>, RequestError> {
        let asked = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
        match asked {
            Ok(linearizer) => Ok(Some(to_log_id(linearizer.read_log_id().log_id()))),
            Err(error) if error.fatal().is_some() => Err(RequestError::Stopping),
            Err(_) => Ok(None),
        }
    }

    async fn ask_read_index(&self, id: u64, address: &str) -> Result<Option<LogId>, RequestError> {
        let asked = async {
            let link = self.peers.link(id, address, CONNECT_TIME).await?;
            link.call(&Call::ReadIndex, REQUEST_TIME).await
        };
        match asked.await {
            Ok(Answer::ReadIndex(upto)) => Ok(upto),
            Ok(Answer::NoMember(at)) => {
                self.peers.local().removed(at);
                Ok(None)
            }
            Ok(_) => Ok(None),
            // Nothing was changed by asking: it may be asked again.
            Err(error) => {
                tracing::debug!("No read index: {error}");
                Ok(None)
            }
        }
    }

    async fn applied(&self, upto: LogId, patience: Duration) -> Result<(), RequestError> {
        let read = ReadLogId::from_log_id(from_log_id(upto));
        let wait = Linearizer::new(upto.node_id, read, None);
        match wait.try_await_ready(&self.raft, Some(patience)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(RequestError::Timeout),
            Err(_) => Err(RequestError::Stopping),
        }
    }

    /// Sends what waits to whoever leads by then.
    async fn forward(self, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
        let places = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let mut taken = Vec::new();
        loop {
            // First the place, then the writes: what arrives meanwhile joins.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            if taken.is_empty() && waiting.recv_many(&mut taken, MAX_BATCH).await == 0 {
                return;
            }
            let mut bytes = 0;
            let fits = |waiting: &Waiting| {
                let room = bytes < BATCH_BYTES;
                bytes += waiting.request.bytes();
                room
            };
            let count = taken.iter().map(fits).take_while(|fits| *fits).count();
            let batch: Vec<_> = taken.drain(..count).collect();
            let leader = self.clone();
            tokio::spawn(async move {
                leader.send(batch).await;
                drop(place);
            });
        }
    }

    async fn send(&self, batch: Vec<Waiting>) {
        let (requests, told): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.request, waiting.fate))
            .unzip();
        let fates = match self.known() {
            Known::Other { id, address } => self.forwarded(id, &address, requests).await,
            Known::Me | Known::Nobody => vec![Fate::NotLeader; told.len()],
        };
        for (fate, told) in fates.into_iter().zip(told) {
            // A client that went away does not wait for its answer.
            let _ = told.send(fate);
        }
    }

    async fn forwarded(&self, id: u64, address: &str, requests: Vec<Request>) -> Vec<Fate> {
        let count = requests.len();
        let answered = async {
            let link = self.peers.link(id, address, CONNECT_TIME).await?;
            link.call(&Call::Write(requests), REQUEST_TIME).await
        };
        match answered.await {
            Ok(Answer::Written(fates)) if fates.len() == count => fates,
            Ok(Answer::NoMember(at)) => {
                self.peers.local().removed(at);
                vec![Fate::NotLeader; count]
            }
            Ok(_) => vec![Fate::Unconfirmed; count],
            Err(error) if error.is_undone() => vec![Fate::NotLeader; count],
            Err(error) => {
                tracing::debug!("Forwarded writes are unconfirmed: {error}");
                vec![Fate::Unconfirmed; count]
            }
        }
    }
}
