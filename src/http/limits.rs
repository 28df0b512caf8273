//! What one request may take, and what all may take together.
//!
//! A request over a limit of its own gets a 4xx of its own and never reaches
//! the node. One that is within its limits but finds the node's memory taken
//! by others waits for a moment and is then told to come back: nothing was done.
//!
//! Memory: whatever is at most `SMALL_BYTES` long is let through, bounded by
//! the number of requests; whatever is longer takes a `Share` of a budget
//! first, one for bodies and one for answers, so that a thousand small requests
//! and a few large ones do not stand in each other's way, and clients that
//! stall hold up only other large requests.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::{ApiError, Code};

/// Bytes of a key to be written: escaped, it still fits the head of a request
/// (3 bytes for each). Keys of legacy data may be longer and can be read.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// Bytes of a value to be written. Values of megabytes are in use; each is in
/// memory several times on its way through log, state machine and answer.
pub const MAX_VALUE_BYTES: usize = 8 << 20;
/// Keys in a batch: what one transaction applies without holding others up.
pub const MAX_BATCH_KEYS: usize = 1024;
/// Bytes of all keys and values of a batch: no more than of one value, since
/// it is one entry of the log just the same.
pub const MAX_BATCH_BYTES: usize = MAX_VALUE_BYTES;
/// Bytes of a body: the largest value with a usual amount of JSON's escapes.
pub const MAX_BODY_BYTES: usize = 2 * MAX_VALUE_BYTES;

/// Pairs of a page when the client does not say.
pub const USUAL_PAGE: usize = 100;
/// The most pairs of a page.
pub const MAX_PAGE: usize = 1000;
/// Bytes of a page's keys and values, but for one pair that is longer by itself.
pub const MAX_PAGE_BYTES: usize = 1 << 20;

/// The largest `max_lag`, in milliseconds: a day. Who takes what is older wants a
/// read without a bound.
pub const MAX_LAG_MS: u64 = 24 * 60 * 60 * 1000;

/// Requests at the same time, health and metrics apart. HTTP/1.1 has one per
/// connection; with `SMALL_BYTES` each way this is the memory of all small ones.
pub const MAX_REQUESTS: usize = 1024;
/// Bytes of a body or an answer that are taken without a share.
const SMALL_BYTES: usize = 16 << 10;
/// Bytes of all larger bodies: two of the largest.
const BODIES_BYTES: usize = 2 * MAX_BODY_BYTES;
/// Bytes of all larger answers: 64 of a megabyte.
const ANSWERS_BYTES: usize = 64 << 20;
/// Backups at the same time; each reads and writes the whole state machine.
const MAX_BACKUPS: usize = 2;
/// Digests at the same time; each reads the whole state machine, and holds on to its view.
const MAX_DIGESTS: usize = 1;

/// How long a body may take to arrive: 16 MiB at 5 Mbit/s.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How long a large request waits for others to finish.
const SHARE_TIME: Duration = Duration::from_secs(5);
/// How long the node may take to read or write. It has limits of its own, which
/// are shorter and know better; this one is for a disk that does not answer.
pub(super) const NODE_TIME: Duration = Duration::from_secs(30);

/// A part of a budget; given back when dropped.
pub(super) type Share = OwnedSemaphorePermit;

/// What all requests share.
pub(super) struct Limits {
    requests: AtomicUsize,
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    backups: Arc<Semaphore>,
    digests: Arc<Semaphore>,
}

/// A request that is under way; counted until dropped.
pub(super) struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that has arrived.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) bytes: Bytes,
    /// To be kept until the request is done: what is made of the body is as large.
    pub(super) share: Option<Share>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: AtomicUsize::new(0),
            bodies: Arc::new(Semaphore::new(BODIES_BYTES)),
            answers: Arc::new(Semaphore::new(ANSWERS_BYTES)),
            backups: Arc::new(Semaphore::new(MAX_BACKUPS)),
            digests: Arc::new(Semaphore::new(MAX_DIGESTS)),
        }
    }
}

impl Limits {
    /// Requests under way.
    pub(super) fn in_flight(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Counts a request; whether there are too many with it comes second.
    pub(super) fn enter(&self) -> (InFlight<'_>, bool) {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        (InFlight(&self.requests), before >= MAX_REQUESTS)
    }

    /// A slot for a backup, if there is one left.
    pub(super) fn backup(&self) -> Result<Share, ApiError> {
        let slot = Arc::clone(&self.backups).try_acquire_owned();
        slot.map_err(|_| {
            let message =
                format!("{MAX_BACKUPS} backups are under way; try again when one is done");
            ApiError::new(Code::Busy, message)
        })
    }

    /// A slot for a digest, if there is one left.
    pub(super) fn digest(&self) -> Result<Share, ApiError> {
        let slot = Arc::clone(&self.digests).try_acquire_owned();
        slot.map_err(|_| {
            let message = "a digest is being computed; try again when it is done";
            ApiError::new(Code::Busy, message)
        })
    }

    /// The share of an answer of `bytes`; none for a small one. It does not
    /// wait, since the answer is in memory already.
    pub(super) fn answer(&self, bytes: usize) -> Result<Option<Share>, ApiError> {
        if bytes <= SMALL_BYTES {
            return Ok(None);
        }
        let permits = permits(bytes, ANSWERS_BYTES);
        let share = Arc::clone(&self.answers).try_acquire_many_owned(permits);
        share.map(Some).map_err(|_| ApiError::overloaded())
    }

    /// Takes in a body, within its size and its time.
    pub(super) async fn body(&self, body: Body) -> Result<Taken, ApiError> {
        let arrived = timeout(BODY_TIME, self.collect(body)).await;
        arrived.unwrap_or_else(|_| Err(body_too_slow()))
    }

    async fn collect(&self, mut body: Body) -> Result<Taken, ApiError> {
        let declared = body.size_hint();
        // A length that was not declared may turn out to be any.
        let most = declared.exact().unwrap_or(MAX_BODY_BYTES as u64);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let least = usize::try_from(declared.lower()).unwrap_or(usize::MAX);
        let mut share = self.body_share(least, most).await?;
        let (mut first, mut rest) = (Bytes::new(), Vec::new());
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let frame = frame.map_err(|error| broke_off(&error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = first.len().max(rest.len()) + data.len();
            if share.is_none() {
                share = self.body_share(length, most).await?;
            } else if length > MAX_BODY_BYTES {
                return Err(body_too_large());
            }
            if first.is_empty() {
                // The usual case, which needs no copy.
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve_exact(if share.is_some() { most } else { SMALL_BYTES });
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
        let bytes = match rest.is_empty() {
            true => first,
            false => rest.into(),
        };
        Ok(Taken { bytes, share })
    }

    /// The share of a body that is `length` long so far and may become `most`.
    async fn body_share(&self, length: usize, most: usize) -> Result<Option<Share>, ApiError> {
        if length > MAX_BODY_BYTES {
            return Err(body_too_large());
        }
        if length <= SMALL_BYTES {
            return Ok(None);
        }
        let permits = permits(most.max(length), BODIES_BYTES);
        let share = Arc::clone(&self.bodies).acquire_many_owned(permits);
        match timeout(SHARE_TIME, share).await {
            Ok(Ok(share)) => Ok(Some(share)),
            _ => Err(ApiError::overloaded()),
        }
    }
}

/// One permit is a byte. Data of legacy nodes may be larger than the whole
/// budget, and then takes all of it.
fn permits(bytes: usize, budget: usize) -> u32 {
    u32::try_from(bytes.min(budget)).unwrap_or(u32::MAX)
}

/// The connection gives a client up that stalls, and says so in the error.
fn broke_off(error: &axum::Error) -> ApiError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if io == Some(io::ErrorKind::TimedOut) {
            return body_too_slow();
        }
        cause = error.source();
    }
    ApiError::bad_request("the body broke off")
}

fn body_too_slow() -> ApiError {
    ApiError::new(Code::BodyTooSlow, "the body did not arrive in time")
}

fn body_too_large() -> ApiError {
    let message = format!("the body is larger than {MAX_BODY_BYTES} bytes");
    ApiError::new(Code::BodyTooLarge, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::{Context, Poll};

    use axum::body::HttpBody;
    use http_body::Frame;

    use super::*;

    /// A body in pieces, its length undeclared.
    struct Pieces(VecDeque<Bytes>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn pieces(lengths: &[usize]) -> Body {
        let pieces = lengths.iter().enumerate();
        let piece = |(n, &length)| Bytes::from(vec![u8::try_from(n).unwrap(); length]);
        Body::new(Pieces(pieces.map(piece).collect()))
    }

    #[tokio::test]
    async fn a_body_is_put_together_from_its_pieces() {
        let limits = Limits::default();
        for lengths in [&[][..], &[0], &[7], &[0, 3, 0, 4], &[20_000, 30_000, 1]] {
            let taken = limits.body(pieces(lengths)).await.unwrap();
            let mut expected = Vec::new();
            for (n, &length) in lengths.iter().enumerate() {
                expected.resize(expected.len() + length, u8::try_from(n).unwrap());
            }
            assert_eq!(taken.bytes, expected);
            assert_eq!(taken.share.is_some(), expected.len() > SMALL_BYTES);
        }
        assert_eq!(limits.bodies.available_permits(), BODIES_BYTES);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_declared_or_not() {
        let limits = Limits::default();
        let most = limits.body(Body::from(vec![b' '; MAX_BODY_BYTES])).await;
        assert_eq!(most.unwrap().bytes.len(), MAX_BODY_BYTES);
        for body in [
            Body::from(vec![b' '; MAX_BODY_BYTES + 1]),
            pieces(&[MAX_BODY_BYTES, 1]),
            pieces(&[1, MAX_BODY_BYTES]),
            pieces(&[MAX_BODY_BYTES + 1]),
        ] {
            let refused = limits.body(body).await.unwrap_err();
            assert_eq!(refused.code(), Code::BodyTooLarge);
        }
        assert_eq!(limits.bodies.available_permits(), BODIES_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_wait_for_each_other_and_small_ones_for_nobody() {
        let limits = Limits::default();
        let large = || limits.body(Body::from(vec![b' '; MAX_BODY_BYTES]));
        let (first, _second) = (large().await.unwrap(), large().await.unwrap());
        assert_eq!(large().await.unwrap_err().code(), Code::Overloaded);
        let small = limits.body(Body::from(vec![b' '; SMALL_BYTES])).await;
        assert!(small.unwrap().share.is_none());
        let (third, ()) = tokio::join!(large(), async { drop(first) });
        assert!(third.unwrap().share.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        struct Stalled;
        impl HttpBody for Stalled {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Pending
            }
        }
        let given_up = Limits::default().body(Body::new(Stalled)).await;
        assert_eq!(given_up.unwrap_err().code(), Code::BodyTooSlow);
    }

    #[tokio::test]
    async fn a_body_that_the_connection_gave_up_was_too_slow_and_any_other_broke_off() {
        struct Broken(io::ErrorKind);
        impl HttpBody for Broken {
            type Data = Bytes;
            type Error = io::Error;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
                Poll::Ready(Some(Err(self.0.into())))
            }
        }
        for (kind, code) in [
            (io::ErrorKind::TimedOut, Code::BodyTooSlow),
            (io::ErrorKind::ConnectionReset, Code::BadRequest),
        ] {
            let refused = Limits::default().body(Body::new(Broken(kind))).await;
            assert_eq!(refused.unwrap_err().code(), code);
        }
    }

    #[test]
    fn answers_take_their_share_until_they_are_gone() {
        let limits = Limits::default();
        assert!(limits.answer(SMALL_BYTES).unwrap().is_none());
        let all = limits.answer(usize::MAX).unwrap();
        let refused = limits.answer(SMALL_BYTES + 1).unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        drop(all);
        assert!(limits.answer(SMALL_BYTES + 1).unwrap().is_some());
    }

    #[test]
    fn one_digest_is_computed_at_a_time() {
        let limits = Limits::default();
        let first = limits.digest().unwrap();
        assert_eq!(limits.digest().unwrap_err().code(), Code::Busy);
        drop(first);
        assert!(limits.digest().is_ok());
    }

    #[test]
    fn requests_are_counted_while_they_last() {
        let limits = Limits::default();
        let entered: Vec<_> = (0..MAX_REQUESTS).map(|_| limits.enter()).collect();
        assert!(entered.iter().all(|(_, too_many)| !too_many));
        assert!(limits.enter().1);
        drop(entered);
        assert_eq!(limits.in_flight(), 0);
    }
}
