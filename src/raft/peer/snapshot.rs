//! A snapshot's way from the leader's state machine to another's.
//!
//! 1. The leader makes a copy, as a file without a name, and its digest.
//! 2. It offers the copy; the other answers from where it needs the bytes. If it
//!    needs none, because the leader is one of the past or it has more already,
//!    that is the end.
//! 3. The bytes follow, and are written as they come, in pieces that the disk is
//!    told to write at once, so that the last sync does not stop everybody.
//! 4. When all are there: digest, sync, and what the file itself says of its
//!    last entry and membership are compared with the offer. Then it is installed.
//!
//! Invariants:
//!
//! - One snapshot is received at a time: its file has one name. The file belongs
//!   to whoever holds [`Receiver`]'s lock; it lives as long as the offer that it
//!   is a part of may come again, and is gone after a crash.
//! - After a broken connection the same copy goes on where it stopped. Another
//!   copy begins anew.
//! - What was not received completely and correctly is never installed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use openraft::Snapshot;
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::{Instant, timeout};
use tonic::{Status, Streaming};
use xxhash_rust::xxh3::Xxh3;

use super::{Link, PeerError, Peers, Service, grpc};
use crate::durable;
use crate::format::entry::Vote;
use crate::format::peer::{SnapshotAnswer, SnapshotHead, decode, encode};
use crate::raft::blocking::{Aside, blocking};
use crate::raft::copies::Copy;
use crate::raft::machine::SnapshotData;
use crate::raft::types::{Meta, from_log_id, from_stored, from_vote, to_log_id, to_vote};
use crate::storage::{self, Applied};
use crate::telemetry::{Chain, count, events};

/// Bytes of one message.
const CHUNK: usize = 256 << 10;

/// Messages that wait for the connection: little, it has a buffer of its own.
const QUEUED: usize = 2;

/// How long a transfer may make no progress before it is given up, and the
/// consensus library begins another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the other may take to install: it checks and syncs every page.
const INSTALL_TIME: Duration = Duration::from_secs(600);

/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(500);

/// Bytes between two requests to the disk to write.
const WRITEBACK: u64 = 8 << 20;

/// Sends a copy until it is installed; the vote in effect at the other end.
pub(in crate::raft) async fn send(
    peers: &Peers,
    to: (u64, &str),
    vote: Vote,
    copy: Copy,
) -> Result<Vote, PeerError> {
    let (id, address) = to;
    let file = Arc::new(copy.file);
    let digest = {
        let file = Arc::clone(&file);
        blocking(move || digest(&file)).await
    };
    // A copy that cannot be read back is made again by who asked for this one.
    let (bytes, digest) = match digest {
        Ok(Ok(digest)) => digest,
        Ok(Err(error)) => return Err(unreadable(id, &error)),
        Err(error) => return Err(unreadable(id, &error)),
    };
    let head = SnapshotHead {
        vote,
        last_applied: copy.applied.last_applied,
        membership: copy.applied.membership,
        bytes,
        digest,
    };
    tracing::info!("Sending a snapshot of {bytes} bytes to node {id}");
    let began = Instant::now();
    let (mut reached, mut since) = (0, began);
    loop {
        let before = reached;
        let attempt = async {
            let link = peers.own_link(id, address).await?;
            send_from(&link, &head, &file, &mut reached).await
        };
        match attempt.await {
            Ok(vote) => {
                // Nothing was sent to a node that needed nothing.
                if reached > 0 {
                    sent(id, bytes, began.elapsed());
                }
                return Ok(vote);
            }
            Err(error) => {
                if reached > before {
                    since = Instant::now();
                }
                tracing::debug!(
                    "The snapshot for node {id} stopped at {reached}: {}",
                    Chain(&error)
                );
                if since.elapsed() > PATIENCE {
                    tracing::warn!(
                        MESSAGE_ID = events::SNAPSHOT_FAILED,
                        ASPEN_MEMBER = id,
                        "The snapshot for node {id} was not sent, it stopped at {reached} of {bytes} bytes: {}",
                        Chain(&error)
                    );
                    return Err(error);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn sent(id: u64, bytes: u64, took: Duration) {
    count::SNAPSHOTS_SENT.observe(took);
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        MESSAGE_ID = events::SNAPSHOT_SENT,
        ASPEN_MEMBER = id,
        ASPEN_BYTES = bytes,
        ASPEN_DURATION_MS = milliseconds,
        "Node {id} has the snapshot of {bytes} bytes after {milliseconds} ms"
    );
}

fn unreadable(id: u64, error: &dyn std::fmt::Display) -> PeerError {
    let source = Box::new(Status::internal(format!("cannot read the copy: {error}")));
    PeerError::Lost { id, source }
}

/// One attempt; `reached` is how far the bytes got.
async fn send_from(
    link: &Link,
    head: &SnapshotHead,
    file: &Arc<Aside<File>>,
    reached: &mut u64,
) -> Result<Vote, PeerError> {
    let (sender, mut receiver) = mpsc::channel(QUEUED);
    let messages = stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let offer = encode(head).map_err(|error| link.nonsense(&error))?;
    let mut answers = link.stream(grpc::SNAPSHOT, messages, PATIENCE).await?;
    let broken = |_| link.lost(Status::unavailable("the stream of the snapshot ended"));
    sender.send(Bytes::from(offer)).await.map_err(broken)?;
    let mut next = match answer(link, &mut answers, PATIENCE).await? {
        SnapshotAnswer::From(next) => next,
        SnapshotAnswer::Done(vote) => return Ok(vote),
    };
    *reached = next.max(*reached);
    while next < head.bytes {
        let chunk = {
            let file = Arc::clone(file);
            blocking(move || read_chunk(&file, next)).await
        };
        let chunk = match chunk {
            Ok(Ok(chunk)) if !chunk.is_empty() => chunk,
            Ok(Err(error)) => return Err(unreadable(link.id(), &error)),
            _ => return Err(unreadable(link.id(), &"it ends early")),
        };
        next += chunk.len() as u64;
        let sent = async {
            tokio::select! {
                sent = sender.send(chunk) => sent.map_err(broken),
                // Nothing is to be said now: it refuses what comes.
                refused = answers.message() => Err(link.lost(match refused {
                    Err(status) => status,
                    Ok(_) => Status::unavailable("the stream of the snapshot ended"),
                })),
            }
        };
        timeout(PATIENCE, sent)
            .await
            .map_err(|_| link.timeout())??;
        *reached = next.max(*reached);
    }
    drop(sender);
    match answer(link, &mut answers, INSTALL_TIME).await? {
        SnapshotAnswer::Done(vote) => Ok(vote),
        other => Err(link.nonsense(&format!("{other:?}"))),
    }
}

async fn answer(
    link: &Link,
    answers: &mut Streaming<Bytes>,
    patience: Duration,
) -> Result<SnapshotAnswer, PeerError> {
    let answer = timeout(patience, answers.message()).await;
    let answer = answer.map_err(|_| link.timeout())?;
    let answer = answer.map_err(|status| link.lost(status))?;
    let ended = || link.lost(Status::unavailable("the stream of the snapshot ended"));
    decode(&answer.ok_or_else(ended)?).map_err(|error| link.nonsense(&error))
}

/// Length and digest of a file.
fn digest(file: &File) -> std::io::Result<(u64, u128)> {
    let (mut hash, mut at) = (Xxh3::new(), 0);
    loop {
        let chunk = read_chunk(file, at)?;
        if chunk.is_empty() {
            return Ok((at, hash.digest128()));
        }
        hash.update(&chunk);
        at += chunk.len() as u64;
    }
}

fn read_chunk(file: &File, at: u64) -> std::io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(CHUNK);
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read_at(&mut chunk[filled..], at + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    chunk.truncate(filled);
    Ok(chunk.freeze())
}

/// Where snapshots arrive.
pub(in crate::raft) struct Receiver {
    path: PathBuf,
    part: Arc<Mutex<Option<Part>>>,
}

/// What has arrived of a snapshot.
struct Part {
    digest: u128,
    bytes: u64,
    have: u64,
    hash: Xxh3,
    file: Arc<File>,
}

type Held = OwnedMutexGuard<Option<Part>>;

impl Receiver {
    /// `path` is where the file is kept until it is installed.
    pub(in crate::raft) fn new(path: PathBuf) -> Self {
        Self {
            path,
            part: Arc::default(),
        }
    }

    /// The file for an offer, with what is there of it, in `held`; and how much that is.
    async fn take_up(&self, mut held: Held, head: &SnapshotHead) -> Result<(Held, u64), Status> {
        let (digest, bytes) = (head.digest, head.bytes);
        if let Some(part) = held.as_ref()
            && (part.digest, part.bytes) == (digest, bytes)
        {
            let have = part.have;
            return Ok((held, have));
        }
        let path = self.path.clone();
        // Gives back the blocks of what is there of another, which takes its time.
        let begun = blocking(move || {
            *held = None;
            *held = Some(Part {
                digest,
                bytes,
                have: 0,
                hash: Xxh3::new(),
                file: Arc::new(durable::create_new(&path)?),
            });
            Ok::<_, durable::DurableError>(held)
        });
        let held = begun.await.map_err(|error| failed(&error))?;
        Ok((held.map_err(|error| failed(&error))?, 0))
    }

    async fn forget(&self, mut held: Held) {
        let path = self.path.clone();
        let removed = blocking(move || {
            *held = None;
            durable::remove(&path)
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(MESSAGE_ID = events::STORAGE_FAILED, "{}", Chain(&error));
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Status {
    Status::internal(Chain(error).to_string())
}

/// The receiving end: what the stream of messages from node `from` does here.
pub(super) fn receive(
    service: &Arc<Service>,
    from: u64,
    messages: Streaming<Bytes>,
) -> BoxStream<'static, Result<Bytes, Status>> {
    let (answers, mut told) = mpsc::channel(2);
    let service = Arc::clone(service);
    // A task of its own: what is being installed is not given up half-way.
    tokio::spawn(async move {
        if let Err(status) = take(&service, from, messages, &answers).await {
            tracing::warn!(
                MESSAGE_ID = events::SNAPSHOT_FAILED,
                ASPEN_MEMBER = from,
                "The snapshot from node {from} was not taken: {}",
                status.message()
            );
            let _ = answers.send(Err(status)).await;
        }
    });
    Box::pin(stream::poll_fn(move |cx| told.poll_recv(cx)))
}

type Answers = mpsc::Sender<Result<Bytes, Status>>;

async fn take(
    service: &Service,
    from: u64,
    mut messages: Streaming<Bytes>,
    answers: &Answers,
) -> Result<(), Status> {
    let receiver = &service.receiver;
    let offer = next(&mut messages).await?;
    let head: SnapshotHead =
        decode(&offer).map_err(|error| Status::invalid_argument(error.to_string()))?;
    if let Some(vote) = unneeded(service, from, &head)? {
        return say(answers, SnapshotAnswer::Done(vote)).await;
    }
    let busy = |_| Status::unavailable("another snapshot is being received");
    let held = Arc::clone(&receiver.part).try_lock_owned().map_err(busy)?;
    let (mut held, have) = receiver.take_up(held, &head).await?;
    say(answers, SnapshotAnswer::From(have)).await?;
    let Some(part) = held.as_mut() else {
        return Err(Status::internal("the file is gone"));
    };
    while part.have < part.bytes {
        let chunk = next(&mut messages).await?;
        if let Err(status) = part.write(chunk).await {
            receiver.forget(held).await;
            return Err(status);
        }
    }
    let installed = install(service, from, head, part).await;
    // It was consumed, or is of no use.
    receiver.forget(held).await;
    say(answers, SnapshotAnswer::Done(installed?)).await
}

async fn next(messages: &mut Streaming<Bytes>) -> Result<Bytes, Status> {
    let message = timeout(PATIENCE, messages.message()).await;
    let message =
        message.map_err(|_| Status::deadline_exceeded("the snapshot does not go on"))??;
    message.ok_or_else(|| Status::invalid_argument("the snapshot ends early"))
}

async fn say(answers: &Answers, answer: SnapshotAnswer) -> Result<(), Status> {
    let answer = encode(&answer).map_err(|error| failed(&error))?;
    let gone = |_| Status::cancelled("the sender is gone");
    answers.send(Ok(answer.into())).await.map_err(gone)
}

/// The vote to answer with when the snapshot is not needed; an error when no
/// leader can have sent it.
fn unneeded(service: &Service, from: u64, head: &SnapshotHead) -> Result<Option<Vote>, Status> {
    let wrong = |why: &str| Err(Status::invalid_argument(why));
    if !head.vote.committed || head.vote.node_id != from {
        return wrong("it is not from the leader that it names");
    }
    let Some(last) = head.last_applied else {
        return wrong("it is empty");
    };
    if (last.term, last.node_id) > (head.vote.term, head.vote.node_id) {
        return wrong("it is of a later term than its leader");
    }
    let metrics = service.raft.metrics();
    let metrics = metrics.borrow_watched();
    let vote = to_vote(&metrics.vote);
    let of = |vote: &Vote| (vote.term, vote.node_id, vote.committed);
    if of(&vote) > of(&head.vote) {
        return Ok(Some(vote));
    }
    let committed = metrics.local_committed.as_ref().map(to_log_id);
    match committed {
        Some(committed) if last > committed && last.index <= committed.index => {
            wrong("it contradicts what a majority has confirmed")
        }
        // The consensus library would not install it; its leader has sent more than it knew.
        Some(committed) if last <= committed => Ok(Some(head.vote)),
        _ => Ok(None),
    }
}

impl Part {
    async fn write(&mut self, chunk: Bytes) -> Result<(), Status> {
        let length = chunk.len() as u64;
        if length == 0 || length > self.bytes - self.have {
            return Err(Status::invalid_argument(
                "the snapshot is longer than it said",
            ));
        }
        self.hash.update(&chunk);
        let (file, at) = (Arc::clone(&self.file), self.have);
        let written = blocking(move || {
            file.write_all_at(&chunk, at)?;
            if at / WRITEBACK != (at + length) / WRITEBACK {
                durable::start_writeback(&file, 0, 0);
            }
            Ok(())
        });
        let written = written
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
        written.map_err(|error| failed(&error))?;
        self.have += length;
        Ok(())
    }
}

/// Step 4; the vote in effect afterwards.
async fn install(
    service: &Service,
    from: u64,
    head: SnapshotHead,
    part: &Part,
) -> Result<Vote, Status> {
    if part.hash.digest128() != head.digest {
        return Err(Status::data_loss(
            "the snapshot's bytes do not give its digest",
        ));
    }
    let (path, file) = (service.receiver.path.clone(), Arc::clone(&part.file));
    let offered = Applied {
        last_applied: head.last_applied,
        membership: head.membership,
    };
    let checked = {
        let path = path.clone();
        blocking(move || {
            durable::fsync(&file, &path).map_err(|error| failed(&error))?;
            storage::inspect_snapshot(&path).map_err(|error| failed(&error))
        })
    };
    let found = checked.await.map_err(|error| failed(&error))??;
    if found != offered {
        return Err(Status::invalid_argument(
            "the snapshot is not of the state that was offered",
        ));
    }
    let snapshot = Snapshot {
        meta: Meta {
            last_log_id: found.last_applied.map(from_log_id),
            last_membership: from_stored(&found.membership).map_err(|error| failed(&error))?,
        },
        snapshot: SnapshotData::Received(path),
    };
    tracing::info!("Installing a snapshot of {} bytes", part.bytes);
    let began = Instant::now();
    let installed = service
        .raft
        .install_full_snapshot(from_vote(head.vote), snapshot)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let took = began.elapsed();
    count::SNAPSHOTS_INSTALLED.observe(took);
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    tracing::info!(
        MESSAGE_ID = events::SNAPSHOT_INSTALLED,
        ASPEN_MEMBER = from,
        ASPEN_BYTES = part.bytes,
        ASPEN_DURATION_MS = milliseconds,
        "The snapshot of {} bytes from node {from} is installed after {milliseconds} ms",
        part.bytes
    );
    Ok(to_vote(&installed.vote))
}
