//! Closing so that what was said last is heard.
//!
//! A connection that is closed while the other end still sends is reset by the
//! kernel, and who finds that out while it sends may give up without having read
//! what came before: the answers to writes that are done, and that no others
//! were looked at. So what is sent ends first, and what the other end sends until
//! it has read that and closes as well is thrown away.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long the other end may take to close after this one.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// A connection that is not shut down before the other end has closed, too, or
/// [`LINGER_TIME`] is over.
pub(super) struct Lingering<S> {
    inner: S,
    /// Since nothing more is sent: until when the other end is waited for.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Lingering<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, until: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.until.is_none() {
            ready!(Pin::new(&mut this.inner).poll_shutdown(cx))?;
        }
        let sleep = || Box::pin(tokio::time::sleep(LINGER_TIME));
        let until = this.until.get_or_insert_with(sleep);
        loop {
            if until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 4096];
            let mut into = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                // It has closed, or there is nobody any more.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// Both ends of a connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await;
        (near.unwrap(), listener.accept().await.unwrap().0)
    }

    /// A node that stopped reset the connection on whoever had just sent it another
    /// write, and the answers to those before were lost in one hand-over of some fifty.
    #[tokio::test]
    async fn what_was_said_last_is_heard_by_one_who_still_sends() {
        let (mut near, far) = connection().await;
        let closing = tokio::spawn(async move {
            let mut far = Lingering::new(far);
            far.write_all(b"the answer").await.unwrap();
            far.shutdown().await.unwrap();
        });
        // Without anybody to read it, this is what the kernel answers with a reset.
        for _ in 0..100 {
            near.write_all(&[0; 10_000]).await.unwrap();
        }
        let mut heard = String::new();
        near.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "the answer");
        near.write_all(b"more").await.unwrap();
        assert!(!closing.is_finished());
        drop(near);
        closing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_never_closes_is_not_waited_for_longer_than_the_time() {
        let (near, far) = connection().await;
        let began = tokio::time::Instant::now();
        Lingering::new(far).shutdown().await.unwrap();
        assert!(began.elapsed() >= LINGER_TIME);
        drop(near);
    }
}
