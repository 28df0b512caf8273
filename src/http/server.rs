//! The listener: accepts connections up to a limit, has each served by a task
//! of its own, and stops.
//!
//! Over the limit a connection is answered 503 and closed rather than left in
//! the backlog: a client that hears of it can go elsewhere, one that waits
//! behind idle connections cannot. With TLS it is closed without a word, since
//! a handshake is the very cost that the limit is to bound.
//!
//! Failure points:
//! - Accepting fails for want of descriptors or memory: that is told now and
//!   then, and tried again after a pause that grows, because the connection stays
//!   in the backlog and accepting would spin. Connections that end free
//!   descriptors. Clients alone cannot bring that about: some descriptors are
//!   out of their reach, so that storage and peers have theirs.
//! - It fails for the one connection: the next is accepted at once.
//! - It fails for good: [`serve`] returns the error.
//! - [`serve`] is dropped: no more is accepted, connections stop as if asked to.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Times, drive};
use super::edge::Edge;
use super::error::Code;
use super::protect::Guard;
use crate::telemetry::{count, events};

/// The pauses after accepting has failed, first and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Connections over the limit that are told so at a time; more are just closed.
const MAX_TURNED_AWAY: usize = 64;
/// Descriptors that are left to storage, peers and backups, however many clients come:
/// connections of both listeners, a pool of usual size with two files for each reader, and files
/// that are open for a moment.
const OWN_DESCRIPTORS: usize = 256;
/// How often it is told that connections are turned away, or cannot be accepted.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What a connection over the limit is told, before there is anything of hyper.
fn full() -> String {
    let message = "the node has as many connections as it may; try again";
    let body = json!({ "error": { "code": "too_many_connections", "message": message } });
    let body = body.to_string();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         x-content-type-options: nosniff\r\ncache-control: no-store\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Serves `router` on `listener`, behind `edge`, until `stop` resolves; then
/// finishes the requests under way and returns once the last connection is
/// closed. How long requests may take is for the caller to limit.
///
/// # Errors
/// When the listener fails for good.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    edge: Edge,
    times: Times,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let guard = Arc::new(Guard::new(listener.local_addr()?, edge.clone()));
    // Holds a receiver for each connection, and so counts them, tells them to
    // stop, and knows when the last is gone.
    let (connections, _) = watch::channel(false);
    let (mut full, mut short) = (Full::default(), Told::default());
    let room = room();
    let mut stop = pin!(stop);
    loop {
        let stream = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &mut short) => accepted?,
        };
        let most = edge.max_connections().min(room);
        count::CONNECTIONS_MOST.set(most as u64);
        if connections.receiver_count() >= most {
            full.turn_away(stream, most, edge.tls().is_some(), times.linger);
            continue;
        }
        let (router, guard, edge) = (router.clone(), Arc::clone(&guard), edge.clone());
        let stopping = connections.subscribe();
        tokio::spawn(async move {
            let _open = count::CONNECTIONS.held();
            // Kept to the end: it is what counts this connection.
            let mut counted = stopping;
            serve_one(stream, router, guard, &edge, times, &mut counted).await;
        });
    }
    drop(listener);
    connections.send_replace(true);
    connections.closed().await;
    Ok(())
}

async fn serve_one(
    stream: TcpStream,
    router: Router,
    guard: Arc<Guard>,
    edge: &Edge,
    times: Times,
    stopping: &mut watch::Receiver<bool>,
) {
    prepare(&stream, times);
    let mut stop = pin!(async {
        // The sender is gone only when the server is.
        let _ = stopping.wait_for(|stop| *stop).await;
    });
    let Some(tls) = edge.tls() else {
        return drive(stream, router, guard, times, stop).await;
    };
    let handshake = tls.acceptor().accept(stream);
    let stream = tokio::select! {
        () = &mut stop => return,
        done = timeout(times.head, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                count::HANDSHAKES_FAILED.inc();
                return tracing::debug!("A TLS handshake failed: {error}");
            }
            Err(_) => {
                count::HANDSHAKES_FAILED.inc();
                return tracing::debug!("A TLS handshake took too long");
            }
        },
    };
    drive(stream, router, guard, times, stop).await;
}

/// Options of a socket; a connection that has gone already is found out soon enough.
fn prepare(stream: &TcpStream, times: Times) {
    let _ = stream.set_nodelay(true);
    // What is left to be sent when a connection is given up is the kernel's: with
    // this it gives up in its turn.
    let give_up = u32::try_from(2 * times.stall.as_millis()).unwrap_or(u32::MAX);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &give_up);
}

/// Connections that the limit of open files has room for.
fn room() -> usize {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((limit, _)) => within(usize::try_from(limit).unwrap_or(usize::MAX)),
        // Whoever knows no limit has none to keep to.
        Err(_) => usize::MAX,
    }
}

/// Connections of clients where `limit` files may be open: of a limit that is
/// so low that it hardly keeps a node, half.
fn within(limit: usize) -> usize {
    limit.saturating_sub(OWN_DESCRIPTORS).max(limit / 2)
}

/// When something was told last that is told now and then.
#[derive(Default)]
struct Told(Option<Instant>);

impl Told {
    /// Whether it is time to tell it again; then it counts as told.
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|told| told.elapsed() >= TELL_INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// The next connection, whatever happens to others.
async fn accept(listener: &TcpListener, short: &mut Told) -> io::Result<TcpStream> {
    let mut pause = PAUSES.0;
    loop {
        let error = match listener.accept().await {
            Ok((stream, _)) => return Ok(stream),
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EFAULT) => {
                return Err(error);
            }
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                if short.is_due() {
                    tracing::warn!(
                        MESSAGE_ID = events::DESCRIPTORS_EXHAUSTED,
                        "No connection can be accepted: {error}; they wait until others end. \
                         Raise the limit of open files (LimitNOFILE=), or lower http.max_connections"
                    );
                }
                sleep(pause).await;
                pause = (2 * pause).min(PAUSES.1);
            }
            // The connection was gone before it was accepted (see accept(2)).
            _ => tracing::debug!("A connection was not accepted: {error}"),
        }
    }
}

/// Turns connections away, and tells of it now and then.
struct Full {
    told: Told,
    turned_away: u64,
    speaking: Arc<Semaphore>,
}

impl Default for Full {
    fn default() -> Self {
        Self {
            told: Told::default(),
            turned_away: 0,
            speaking: Arc::new(Semaphore::new(MAX_TURNED_AWAY)),
        }
    }
}

impl Full {
    fn turn_away(&mut self, mut stream: TcpStream, most: usize, tls: bool, linger: Duration) {
        self.turned_away += 1;
        Code::TooManyConnections.count();
        if self.told.is_due() {
            tracing::warn!(
                MESSAGE_ID = events::CONNECTIONS_EXHAUSTED,
                ASPEN_CONNECTIONS = most,
                "There are {most} connections and no more are taken; {} turned away so far. \
                 Find out who opens so many, or raise http.max_connections \
                 (and LimitNOFILE= where that allows no more)",
                self.turned_away
            );
        }
        let permit = Arc::clone(&self.speaking).try_acquire_owned();
        let (Ok(permit), false) = (permit, tls) else {
            return;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let told = async {
                stream.write_all(full().as_bytes()).await?;
                stream.shutdown().await?;
                // Bytes left unread would turn the answer into a reset.
                let mut scratch = [0; 1024];
                while stream.read(&mut scratch).await? != 0 {}
                io::Result::Ok(())
            };
            // Gone, or slow: it was told, or does not listen.
            let _ = timeout(linger, told).await;
        });
    }
}

#[cfg(test)]
mod tests;
