//! Calls to whoever leads, this node or another.
//!
//! Writes are gathered (`gather`). A write is tried again only while it is certain
//! that nothing was done, or if it happens once anyway; how long, is up to who
//! asks.
//!
//! Reads are confirmed by the leader, in one of two ways. *Majority* (ReadIndex): a majority
//! has answered it since the read began. Nothing is assumed. *Lease*: a majority has answered
//! it in the last third of the election timeout; those that did elect nobody else for twice that
//! time, nor after a restart (`promise`). So it is assumed that no two nodes' monotonic clocks run
//! at rates that differ by a factor of two, and that no machine is suspended and goes on with its
//! clock behind. A leader that hands over serves no read by its lease.
//!
//! A stale read with a bound needs no leader if this node knows that it is recent: it remembers
//! when the last round that a majority confirmed, and whose index is applied here, had
//! *begun*. All that was committed before that moment is applied here, whatever this node hears or
//! does not hear from then on. Only this node's own monotonic clock is asked.

mod command;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::linearizable_read::{Linearizer, ReadLogId};
use openraft::{LinearizerOption, ReadPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::gather::Waiting;
use super::{CONNECT_TIME, Link, PeerError, Peers};
use crate::format::entry::Request;
use crate::format::peer::{Answer, Call, Fate};
use crate::format::record::LogId;
use crate::raft::patience::READERS_LEASE;
use crate::raft::reads::Raft;
use crate::raft::types::{from_log_id, to_log_id};
use crate::raft::{Consistency, Gate, REQUEST_TIME, RequestError, Written};

/// How long to wait before asking again who leads, when nothing has changed.
const PAUSE: Duration = Duration::from_millis(20);

/// How a read is confirmed; see above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::raft) enum Confirmation {
    /// By an answer of a majority since the read began.
    Majority,
    /// By the lease that earlier answers gave.
    Lease,
}

/// The way to the leader; a cheap handle.
#[derive(Clone)]
pub(in crate::raft) struct Leader {
    pub(super) raft: Raft,
    pub(super) peers: Peers,
    pub(super) gate: Arc<Gate>,
    /// Bounded by the number of requests that the API lets in.
    queue: mpsc::UnboundedSender<Waiting>,
    election: Duration,
    /// Has a receiver for each message with writes of another node's that is under way.
    pub(super) foreign: Arc<watch::Sender<()>>,
    /// Held while members change.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// When the last round that a majority confirmed and that is applied here began.
    recent: Arc<Mutex<Option<Instant>>>,
}

/// Who leads and can be asked, as far as this node knows.
pub(super) enum Known {
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
            recent: Arc::default(),
        };
        // It ends when the last handle is dropped: its own holds another queue.
        let sending = Self {
            queue: mpsc::unbounded_channel().0,
            ..leader.clone()
        };
        tokio::spawn(sending.forward(waiting));
        leader
    }

    /// Writes on the leader, and waits `patience` for there to be one. What may
    /// or may not have happened is tried again only if it happens once anyway.
    pub(in crate::raft) async fn write(
        &self,
        request: Request,
        patience: Duration,
    ) -> Result<Written, RequestError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        let once = matches!(request, Request::Idempotent(_));
        // From the first attempt that is unconfirmed, no other answer says that nothing was done.
        let mut unconfirmed = false;
        loop {
            let fate = match self.refuses() {
                // Now, and not when those before it that wait for the disk are through.
                Some(why) => Ok(Fate::DiskFull(why)),
                None => {
                    let (fate, told) = oneshot::channel();
                    let request = request.clone();
                    match self.queue.send(Waiting { request, fate }) {
                        Ok(()) => {
                            let told = timeout(within(REQUEST_TIME), told).await;
                            told.map(|told| told.unwrap_or(Fate::Unconfirmed))
                        }
                        Err(_) if unconfirmed => return Err(RequestError::Unconfirmed),
                        Err(_) => return Err(RequestError::Stopping),
                    }
                }
            };
            let fate = fate.unwrap_or(Fate::Unconfirmed);
            unconfirmed |= fate == Fate::Unconfirmed;
            let rest = match fate {
                Fate::Written { index, outcome } => return Written::of(index, outcome),
                Fate::DiskFull(why) if !unconfirmed => return Err(RequestError::DiskFull(why)),
                Fate::NotLeader if !unconfirmed => match within(patience) {
                    _ if self.no_member().is_some() => return Err(self.nobody()),
                    Duration::ZERO => return Err(self.nobody()),
                    rest => rest,
                },
                Fate::Unconfirmed | Fate::NotLeader | Fate::DiskFull(_) => {
                    match within(REQUEST_TIME) {
                        Duration::ZERO => return Err(RequestError::Unconfirmed),
                        _ if !once => return Err(RequestError::Unconfirmed),
                        rest => rest,
                    }
                }
            };
            match self.change(rest).await {
                Err(_) if unconfirmed => return Err(RequestError::Unconfirmed),
                changed => changed?,
            }
        }
    }

    /// What a read has to be confirmed by that begins now; nothing if what is
    /// applied here is known to be recent enough.
    pub(in crate::raft) fn confirmation(&self, consistency: Consistency) -> Option<Confirmation> {
        let age = || self.recent().map(|began| began.elapsed());
        match consistency {
            Consistency::Linearizable => Some(Confirmation::Majority),
            Consistency::Lease => Some(Confirmation::Lease),
            Consistency::Bounded(most) if age().is_some_and(|age| age <= most) => None,
            Consistency::Bounded(_) => Some(Confirmation::Majority),
            Consistency::Stale => None,
        }
    }

    fn recent(&self) -> Option<Instant> {
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A round that began at `began` was confirmed, and what it was told to wait for is applied.
    fn note(&self, began: Instant) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        // Rounds may overtake each other.
        *recent = (*recent).max(Some(began));
    }

    /// Returns once this node has applied all that was committed when the call
    /// began, as the leader knows; waits `patience` for there to be one.
    pub(in crate::raft) async fn confirm(
        &self,
        confirmation: Confirmation,
        patience: Duration,
    ) -> Result<(), RequestError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        loop {
            let asked = Instant::now();
            let confirmed = timeout(within(REQUEST_TIME), async {
                match self.known() {
                    Known::Nobody => Ok(None),
                    Known::Me => self.read_index(confirmation).await,
                    Known::Other { id, address } => {
                        self.ask_read_index(id, &address, confirmation).await
                    }
                }
            });
            match confirmed.await.unwrap_or(Err(RequestError::Timeout))? {
                Some(upto) => {
                    self.applied(upto, within(REQUEST_TIME)).await?;
                    // What rests on the clocks of others is no ground for a bound.
                    if confirmation == Confirmation::Majority {
                        self.note(asked);
                    }
                    return Ok(());
                }
                None if within(patience).is_zero() || self.no_member().is_some() => {
                    return Err(self.nobody());
                }
                None => self.change(within(patience)).await?,
            }
        }
    }

    /// Returns once no writes of other nodes' are under way here.
    pub(in crate::raft) async fn answered(&self) {
        self.foreign.closed().await;
    }

    /// Why this node, if it leads, takes no write at the moment.
    fn refuses(&self) -> Option<String> {
        let leads = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            metrics.current_leader == Some(metrics.id)
        };
        leads.then(|| self.gate.full()).flatten()
    }

    pub(super) fn known(&self) -> Known {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            None => Known::Nobody,
            Some(id) if id == metrics.id => Known::Me,
            Some(id) => {
                let members = metrics.membership_config.membership();
                let stored = members.get_node(&id).map_or("", |node| &node.addr);
                match self.peers.address(id, stored) {
                    // A node that joins hears of a leader before it is told who is where.
                    unknown if unknown.is_empty() => Known::Nobody,
                    address => Known::Other { id, address },
                }
            }
        }
    }

    /// Why nobody leads this node, and waiting does not help: it is no member.
    pub(super) fn no_member(&self) -> Option<String> {
        let local = self.peers.local();
        if let Some(why) = local.barred() {
            return Some(format!("this node takes no part in the cluster: {why}"));
        }
        let (joined, known) = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let stored = &metrics.membership_config;
            let known = stored.membership().get_node(&metrics.id).is_some();
            (stored.log_id().is_some(), known)
        };
        let why = match (joined, known && !local.is_removed()) {
            // It has a cluster, whose leader brings it the first entry.
            (false, _) if !local.joins() => return None,
            (false, _) => "this node waits to be added to a cluster with POST /admin/members",
            (true, false) => "this node was removed from the cluster; ask a member of it",
            (true, true) => return None,
        };
        Some(why.to_owned())
    }

    /// Why nothing was done: there is no leader, or there cannot be one.
    pub(super) fn nobody(&self) -> RequestError {
        self.no_member()
            .map_or(RequestError::NoLeader, RequestError::NoMember)
    }

    /// Returns once node `id` does not lead any more, as far as this node knows.
    pub(super) async fn deposed(&self, id: u64) {
        let mut metrics = self.raft.server_metrics();
        while metrics.borrow_watched().current_leader == Some(id) {
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// The connection to node `id`; none if it does not lead any more before there is one:
    /// nothing was sent, and whoever leads then can be asked instead.
    pub(super) async fn reach(&self, id: u64, address: &str) -> Option<Result<Link, PeerError>> {
        tokio::select! {
            biased;
            link = self.peers.link(id, address, CONNECT_TIME) => Some(link),
            () = self.deposed(id) => None,
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

    /// Up to where a reader has to wait; `None` when this node does not lead.
    pub(super) async fn read_index(
        &self,
        confirmation: Confirmation,
    ) -> Result<Option<LogId>, RequestError> {
        let by = match confirmation {
            Confirmation::Majority => ReadPolicy::ReadIndex.into(),
            // Where the answers are too old, the leader asks for new ones.
            Confirmation::Lease => {
                LinearizerOption::new(Some(READERS_LEASE.of(self.election)), true)
            }
        };
        let asked = self.raft.get_read_linearizer(by).await;
        match asked {
            Ok(linearizer) => Ok(Some(to_log_id(linearizer.read_log_id().log_id()))),
            Err(error) if error.fatal().is_some() => Err(RequestError::Stopping),
            Err(_) => Ok(None),
        }
    }

    async fn ask_read_index(
        &self,
        id: u64,
        address: &str,
        confirmation: Confirmation,
    ) -> Result<Option<LogId>, RequestError> {
        let call = match confirmation {
            Confirmation::Majority => Call::ReadIndex,
            Confirmation::Lease => Call::LeaseRead,
        };
        let asked = async {
            let link = self.peers.link(id, address, CONNECT_TIME).await?;
            link.call(&call, REQUEST_TIME).await
        };
        let answered = tokio::select! {
            biased;
            answered = asked => answered,
            // Whoever leads then can tell as well.
            () = self.deposed(id) => return Ok(None),
        };
        match answered {
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
}
