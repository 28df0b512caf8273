//! One connection: HTTP/1 over a stream of bytes, with a deadline on whatever
//! the other side owes.
//!
//! A client can hold a connection in four ways without giving anything for it,
//! and each has its own limit in [`Times`]:
//!
//! | it | limit | then |
//! |---|---|---|
//! | does not finish the head of a request (the first one included) | `head` | closed |
//! | sends no next request | `idle` | closed |
//! | does not send the rest of a body that is asked for | `stall` | the body ends in an error of the kind [`TimedOut`](io::ErrorKind::TimedOut), so that the route can answer; if it does not, closed |
//! | does not take the bytes of an answer | `stall` | closed |
//!
//! How long the node itself takes to answer is no concern of this module.
//!
//! Invariants:
//! - What is waited for is known from the bytes and from the calls of the
//!   service alone ([`Activity`]), never from hyper's state.
//! - A timer is armed again only when a deadline comes closer than the one it is
//!   armed for, or has fired: not once a request.
//! - Told to stop, an idle connection closes at once, a request that is half
//!   sent is dropped, a request under way is answered with `Connection: close`,
//!   and nobody is waited for longer than `linger`.
//! - A connection that is closed while its client is still sending is read for a
//!   while first: the kernel answers bytes that nobody reads with a reset, and a
//!   reset takes the answer away that was sent before it.
//!
//! hyper's own `header_read_timeout` is not used: it counts the idle time too.
//! Nor is `pipeline_flush`: it holds an answer back while half of a next request
//! is in the buffer, and then buffers answers without a limit.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tower_service::Service as _;

use super::error::Code;
use super::protect::Guard;

/// Most bytes of a request's line and headers together, as most servers have it.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Most bytes that a connection buffers in each direction: a few full reads of a body.
const MAX_BUFFER: usize = 64 * 1024;
/// Most bytes that are read from a client after its connection was given up.
const MAX_DRAINED: usize = 1024 * 1024;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the first byte of a head (or the connection) to its last; for TLS
    /// the handshake too.
    pub head: Duration,
    /// Between an answer and the next request.
    pub idle: Duration,
    /// Between bytes of a body, in either direction.
    pub stall: Duration,
    /// For reading on after the last answer; and instead of the others once the
    /// node stops.
    pub linger: Duration,
}

impl Default for Times {
    /// A slow-loris holds a connection for 10 s; load balancers keep idle ones
    /// for 60 s and are to be the first to close; a stall of 45 s is no network,
    /// and longer than routes wait for a body, so that their own limit answers.
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(45),
            linger: Duration::from_secs(1),
        }
    }
}

/// Serves requests on `stream` until either side ends it.
pub(super) async fn drive<S>(
    stream: S,
    router: Router,
    guard: Arc<Guard>,
    times: Times,
    stop: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Shared::new();
    let io = TokioIo::new(Watched {
        stream,
        activity: activity.clone(),
        shut: false,
        drained: 0,
    });
    let of_service = activity.clone();
    let service =
        service_fn(move |request| answer(request, router.clone(), &guard, of_service.clone()));
    let mut connection = pin!(
        http1::Builder::new()
            .header_read_timeout(None)
            // A client that has sent everything may close its side and still read.
            .half_close(true)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(io, service)
    );
    let mut stop = pin!(stop);
    let mut armed = Instant::now() + times.head;
    let mut timer = pin!(tokio::time::sleep_until(armed));
    let mut stopping = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                if let Err(error) = ended {
                    count_refusal(&error);
                    tracing::debug!("A connection ended: {error}");
                }
                return Poll::Ready(());
            }
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                if activity.lock().half_sent() {
                    return Poll::Ready(());
                }
                connection.as_mut().graceful_shutdown();
                continue;
            }
            let owed = loop {
                let Some((deadline, owed)) = activity.lock().deadline(&times, stopping) else {
                    return Poll::Pending;
                };
                if deadline < armed {
                    (armed, _) = (deadline, timer.as_mut().reset(deadline));
                }
                ready!(timer.as_mut().poll(cx));
                if deadline <= Instant::now() {
                    break owed;
                }
                (armed, _) = (deadline, timer.as_mut().reset(deadline));
            };
            if !activity.lock().expire(owed) {
                return Poll::Ready(());
            }
        }
    })
    .await;
}

/// Counts what hyper has answered by itself to bytes that are no request: 431, or
/// 400. It has closed the connection without a word where nothing had come that
/// could be wrong.
fn count_refusal(error: &hyper::Error) {
    if error.is_parse_too_large() {
        Code::HeadTooLarge.count();
    } else if error.is_parse() {
        Code::BadRequest.count();
    }
}

/// Has a request admitted and answered, and watches both bodies.
fn answer(
    request: Request<Incoming>,
    mut router: Router,
    guard: &Guard,
    activity: Shared,
) -> impl Future<Output = Result<Response<Download>, Infallible>> + use<> {
    let whole = request.body().is_end_stream();
    activity.lock().begin(whole);
    let routed = match guard.admit(&request) {
        Ok(()) => Ok(router.call(request.map(|body| match whole {
            // Costs nothing, where a body in a box costs an allocation.
            true => Body::empty(),
            false => Body::new(Upload {
                body,
                activity: activity.clone(),
            }),
        }))),
        Err(refusal) => Err(refusal.into_response()),
    };
    async move {
        let mut response = match routed {
            Ok(future) => future.await.unwrap_or_else(|never| match never {}),
            Err(refused) => refused,
        };
        Guard::seal(response.headers_mut());
        Ok(response.map(|body| Download { body, activity }))
    }
}

/// What the connection waits for the client to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To send the rest of a head.
    Head,
    /// Nothing: the node is at work.
    Answering,
    /// To send a next request.
    Idle,
    /// To stop sending; the last answer is out.
    Closing,
}

/// What a client has let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    /// The rest of a body, of which the route can be told.
    Body,
    /// Anything else.
    Else,
}

/// What is going on, and since when.
#[derive(Debug)]
struct Activity {
    stage: Stage,
    since: Instant,
    /// The rest of a body is asked for, since its last byte.
    upload: Option<Instant>,
    /// The body has ended in an error, for want of bytes.
    expired: bool,
    /// The client takes no bytes.
    blocked: Option<Instant>,
    /// Part of a request has not been read.
    unread: bool,
}

impl Activity {
    fn enter(&mut self, stage: Stage) {
        (self.stage, self.since) = (stage, Instant::now());
    }

    /// Bytes have come.
    fn received(&mut self) {
        if self.stage == Stage::Idle {
            self.enter(Stage::Head);
        }
        if self.stage == Stage::Head {
            self.unread = true;
        }
    }

    /// A head is complete; `whole` when the request has no body.
    fn begin(&mut self, whole: bool) {
        self.enter(Stage::Answering);
        (self.upload, self.expired, self.unread) = (None, false, !whole);
    }

    /// How a write went.
    fn sent<T>(&mut self, polled: &Poll<T>) {
        match polled {
            Poll::Ready(_) => self.blocked = None,
            Poll::Pending => {
                self.blocked.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Whether what has come is no more than a part of a head.
    fn half_sent(&self) -> bool {
        self.stage == Stage::Head && self.unread
    }

    /// When patience ends, and with what.
    fn deadline(&self, times: &Times, stopping: bool) -> Option<(Instant, Owed)> {
        let limit = |time: Duration| if stopping { times.linger } else { time };
        let stage = match self.stage {
            Stage::Head => Some(limit(times.head)),
            Stage::Idle => Some(limit(times.idle)),
            Stage::Closing => Some(times.linger),
            Stage::Answering => None,
        };
        let stall = limit(times.stall);
        let all = [
            (self.upload.map(|since| since + stall), Owed::Body),
            (self.blocked.map(|since| since + stall), Owed::Else),
            (stage.map(|limit| self.since + limit), Owed::Else),
        ];
        let all = all.into_iter().filter_map(|(at, owed)| Some((at?, owed)));
        all.min_by_key(|(at, _)| *at)
    }

    /// Patience is over; false when the connection is to end.
    fn expire(&mut self, owed: Owed) -> bool {
        if self.expired || owed == Owed::Else {
            return false;
        }
        // The route hears of it when it is polled next, which is now.
        (self.expired, self.upload) = (true, Some(Instant::now()));
        true
    }
}

/// [`Activity`], shared by the parts of one connection. They run in one task, so
/// that the lock is free but for a body that a route has taken elsewhere.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Activity>>);

impl Shared {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Activity {
            stage: Stage::Head,
            since: Instant::now(),
            upload: None,
            expired: false,
            blocked: None,
            unread: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream whose bytes are noticed.
struct Watched<S> {
    stream: S,
    activity: Shared,
    /// The writing side is closed.
    shut: bool,
    /// Bytes read since.
    drained: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.lock().received();
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.lock().sent(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.activity.lock().sent(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.activity.lock().sent(&polled);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
            self.activity.lock().sent(&polled);
            ready!(polled)?;
            self.shut = true;
            let mut activity = self.activity.lock();
            if !activity.unread {
                return Poll::Ready(Ok(()));
            }
            activity.enter(Stage::Closing);
        }
        let mut scratch = [0; 4096];
        while self.drained < MAX_DRAINED {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            let length = buffer.filled().len();
            if read.is_err() || length == 0 {
                break;
            }
            self.drained += length;
        }
        Poll::Ready(Ok(()))
    }
}

/// The body of a request, which notices when it is waited for.
struct Upload {
    body: Incoming,
    activity: Shared,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if self.activity.lock().expired {
            let reason = "the rest of the request's body did not come";
            let error = io::Error::new(io::ErrorKind::TimedOut, reason);
            return Poll::Ready(Some(Err(error.into())));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let mut activity = self.activity.lock();
        match &polled {
            Poll::Pending => {
                activity.upload.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => {
                activity.upload = None;
                activity.unread = !self.body.is_end_stream();
            }
        }
        polled.map(|frame| Some(frame?.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut activity = self.activity.lock();
        // A route that was told of a stall owes an answer.
        if !activity.expired {
            activity.upload = None;
        }
    }
}

/// The body of an answer; once it is gone, the next request may come.
struct Download {
    body: Body,
    activity: Shared,
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let mut activity = self.activity.lock();
        activity.upload = None;
        activity.enter(Stage::Idle);
    }
}
