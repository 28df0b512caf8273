//! Connections to others: one each, shared by all that is said to that node but
//! snapshots, and made again when it has broken.
//!
//! Whoever needs one while it is made waits for the same attempt; an attempt
//! goes on when who asked for it gives up, since a heartbeat's patience may be
//! shorter than the way to its node.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};

use super::grpc::{self, Http2};
use super::handshake::{self, HandshakeError};
use super::{CONNECT_TIME, FLOW_BYTES, Local, PING_INTERVAL, PING_TIME, Said};
use crate::format::entry::Vote;
use crate::format::peer::{Answer, Call, decode, encode};
use crate::format::record::LogId;
use crate::telemetry::{Chain, events};

/// Why a peer did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::raft) enum PeerError {
    /// There is no connection: nothing was sent.
    #[error("node {id} at {address} cannot be reached")]
    Unreached {
        id: u64,
        address: String,
        source: Arc<HandshakeError>,
    },
    /// It closes the connection, and has not looked at the request.
    #[error("node {id} is stopping")]
    Closing { id: u64 },
    /// It may have done it.
    #[error("node {id} did not answer in time")]
    Timeout { id: u64 },
    /// It may have done it.
    #[error("node {id} broke off")]
    Lost { id: u64, source: Box<Status> },
    /// It has lost what it had confirmed, and is talked to no more.
    #[error("node {id} lacks what it has confirmed")]
    Forgot { id: u64 },
    /// It may have done it.
    #[error("node {id} answered {what}, which makes no sense")]
    Nonsense { id: u64, what: String },
}

impl PeerError {
    /// Whether it is certain that nothing was done.
    pub(super) fn is_undone(&self) -> bool {
        matches!(self, Self::Unreached { .. } | Self::Closing { .. })
    }
}

/// A connection to a peer; a cheap handle.
#[derive(Clone)]
pub(in crate::raft) struct Link {
    id: u64,
    http: Http2,
}

impl Link {
    /// A request and its answer.
    pub(in crate::raft) async fn call(
        &self,
        call: &Call,
        patience: Duration,
    ) -> Result<Answer, PeerError> {
        let message = encode(call).map_err(|error| self.nonsense(&error))?;
        let answer = timeout(patience, self.http.unary(grpc::CALL, message.into()));
        let answer = answer
            .await
            .map_err(|_| PeerError::Timeout { id: self.id })?;
        let answer = answer.map_err(|status| self.lost(status))?;
        decode(&answer).map_err(|error| self.nonsense(&error))
    }

    /// A stream of messages, and the stream of answers.
    pub(super) async fn stream<S>(
        &self,
        path: &'static str,
        messages: S,
        patience: Duration,
    ) -> Result<Streaming<Bytes>, PeerError>
    where
        S: futures_util::Stream<Item = Bytes> + Send + 'static,
    {
        let answers = timeout(patience, self.http.stream(path, messages)).await;
        let answers = answers.map_err(|_| PeerError::Timeout { id: self.id })?;
        answers.map_err(|status| self.lost(status))
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn timeout(&self) -> PeerError {
        PeerError::Timeout { id: self.id }
    }

    pub(super) fn lost(&self, status: Status) -> PeerError {
        if grpc::was_not_taken(&status) {
            return PeerError::Closing { id: self.id };
        }
        let source = Box::new(status);
        PeerError::Lost {
            id: self.id,
            source,
        }
    }

    pub(super) fn nonsense(&self, what: &dyn std::fmt::Display) -> PeerError {
        PeerError::Nonsense {
            id: self.id,
            what: what.to_string(),
        }
    }
}

/// The other nodes; a cheap handle.
#[derive(Clone)]
pub(in crate::raft) struct Peers(Arc<Inner>);

struct Inner {
    local: Arc<Local>,
    addresses: BTreeMap<u64, String>,
    slots: Mutex<BTreeMap<u64, Arc<tokio::sync::Mutex<Slot>>>>,
    said: Said,
    confirmed: Confirmed,
}

/// What each follower has last confirmed to this node as a leader: with which vote, and up to where.
type Confirmed = Mutex<BTreeMap<u64, (Vote, LogId)>>;

#[derive(Default)]
struct Slot {
    open: Option<(String, Http2)>,
    failed: Option<(Instant, PeerError)>,
}

impl Peers {
    /// `addresses` win over those that are stored in the membership.
    pub(in crate::raft) fn new(local: Arc<Local>, addresses: BTreeMap<u64, String>) -> Self {
        Self(Arc::new(Inner {
            local,
            addresses,
            slots: Mutex::default(),
            said: Said::default(),
            confirmed: Mutex::default(),
        }))
    }

    pub(in crate::raft) fn local(&self) -> &Local {
        &self.0.local
    }

    /// The connection to a node, made if there is none.
    pub(in crate::raft) async fn link(
        &self,
        id: u64,
        stored: &str,
        patience: Duration,
    ) -> Result<Link, PeerError> {
        let asked = Instant::now();
        if let Some(why) = self.0.local.barred() {
            return Err(self.unreached(id, stored, HandshakeError::Unfit(why)));
        }
        let address = self.address(id, stored);
        let slot = {
            let slots = self.0.slots.lock();
            let mut slots = slots.unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(id).or_default())
        };
        if let Ok(slot) = slot.try_lock()
            && let Some(link) = slot.usable(id, &address)
        {
            return Ok(link);
        }
        let peers = self.clone();
        let connecting = tokio::spawn(async move {
            let mut slot = slot.lock().await;
            if let Some(link) = slot.usable(id, &address) {
                return Ok(link);
            }
            if let Some((at, error)) = &slot.failed
                && *at >= asked
            {
                return Err(error.clone());
            }
            let connected = peers.connect(id, &address).await;
            slot.open = None;
            match connected {
                Ok(link) => {
                    slot.open = Some((address, link.http.clone()));
                    Ok(link)
                }
                Err(error) => {
                    slot.failed = Some((Instant::now(), error.clone()));
                    Err(error)
                }
            }
        });
        match timeout(patience, connecting).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(_)) => Err(self.unreached(id, stored, broken("the node is stopping").into())),
            Err(_) => Err(self.unreached(id, stored, too_slow().into())),
        }
    }

    /// Node `id` holds the log up to `upto`, as it says to the leader with this vote.
    pub(super) fn confirmed(&self, id: u64, vote: Vote, upto: LogId) {
        let confirmed = self.0.confirmed.lock();
        let mut confirmed = confirmed.unwrap_or_else(PoisonError::into_inner);
        let before = confirmed.get(&id).filter(|(of, _)| *of == vote);
        // It may be asked again for less than it has confirmed already.
        let most = before.map_or(upto, |(_, before)| upto.max(*before));
        confirmed.insert(id, (vote, most));
    }

    /// Node `id` says to the leader with this vote that it lacks the entry `at`.
    /// If it had confirmed that one, it is talked to no more, and the error says so.
    pub(super) fn lacks(&self, id: u64, vote: Vote, at: LogId) -> Result<(), PeerError> {
        let confirmed = {
            let confirmed = self.0.confirmed.lock();
            let confirmed = confirmed.unwrap_or_else(PoisonError::into_inner);
            confirmed.get(&id).copied()
        };
        let Some((_, upto)) = confirmed.filter(|(of, upto)| *of == vote && at.index <= upto.index)
        else {
            return Ok(());
        };
        if !self.0.said.is_news(&format!("{id} forgot"), "") {
            return Err(PeerError::Forgot { id });
        }
        tracing::error!(
            MESSAGE_ID = events::MEMBER_FORGOT,
            ASPEN_MEMBER = id,
            "Node {id} lacks entry {} and has confirmed all up to {}: its data directory was \
             restored from an older copy, or its disk has lost what was synced. Nothing more is \
             sent to it; remove it (DELETE /admin/members/{id}), and add a node with an id that \
             was never used and an empty data directory",
            at.index,
            upto.index
        );
        let peers = self.clone();
        tokio::spawn(async move {
            if let Err(why) = peers.local().disown(id).await {
                return tracing::debug!("Node {id} is not disowned: {why}");
            }
            // The next connection begins with a handshake, which fails.
            let slot = {
                let slots = peers.0.slots.lock();
                let slots = slots.unwrap_or_else(PoisonError::into_inner);
                slots.get(&id).cloned()
            };
            if let Some(slot) = slot {
                slot.lock().await.open = None;
            }
        });
        Err(PeerError::Forgot { id })
    }

    /// A connection of its own, for what must not stand in the way of the rest.
    pub(super) async fn own_link(&self, id: u64, stored: &str) -> Result<Link, PeerError> {
        self.connect(id, &self.address(id, stored)).await
    }

    /// What the configuration says, else the membership now, else what was known before;
    /// empty if nothing is.
    pub(super) fn address(&self, id: u64, stored: &str) -> String {
        if let Some(given) = self.0.addresses.get(&id) {
            return given.clone();
        }
        match self.0.local.address_of(id) {
            now if now.is_empty() => stored.to_owned(),
            now => now,
        }
    }

    fn unreached(&self, id: u64, stored: &str, source: HandshakeError) -> PeerError {
        PeerError::Unreached {
            id,
            address: self.address(id, stored),
            source: Arc::new(source),
        }
    }

    async fn connect(&self, id: u64, address: &str) -> Result<Link, PeerError> {
        let dialed = timeout(CONNECT_TIME, dial(&self.0.local, id, address)).await;
        let whom = format!("{id} at {address}");
        match dialed.unwrap_or_else(|_| Err(too_slow().into())) {
            Ok(http) => {
                if self.0.said.is_news(&whom, "") {
                    tracing::info!(
                        MESSAGE_ID = events::PEER_CONNECTED,
                        ASPEN_MEMBER = id,
                        ASPEN_PEER_ADDRESS = address,
                        "Node {whom} is connected"
                    );
                }
                Ok(Link { id, http })
            }
            Err(source) => {
                let error = PeerError::Unreached {
                    id,
                    address: address.to_owned(),
                    source: Arc::new(source),
                };
                let text = Chain(&error).to_string();
                if self.0.said.is_news(&whom, &text) {
                    tracing::warn!(
                        MESSAGE_ID = events::PEER_UNREACHABLE,
                        ASPEN_MEMBER = id,
                        ASPEN_PEER_ADDRESS = address,
                        "{text}; this is tried again and again"
                    );
                }
                Err(error)
            }
        }
    }
}

impl Slot {
    fn usable(&self, id: u64, wanted: &str) -> Option<Link> {
        let (address, http) = self.open.as_ref()?;
        (address == wanted && !http.0.is_closed()).then(|| Link {
            id,
            http: http.clone(),
        })
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

fn too_slow() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

async fn dial(local: &Local, id: u64, address: &str) -> Result<Http2, HandshakeError> {
    let mut stream = local.connect(address).await?;
    handshake::ask(&mut stream, local, id).await?;
    let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(FLOW_BYTES)
        .initial_connection_window_size(FLOW_BYTES);
    let connected = http.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = connected.map_err(io::Error::other)?;
    // It ends when it breaks, or when nobody holds the sender any more.
    tokio::spawn(connection);
    Ok(Http2(sender))
}
