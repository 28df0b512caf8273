//! `GET /admin/backup`: a consistent SQLite file, streamed while the node serves.
//!
//! Memory: a chunk on its way to the client and those waiting behind it. A
//! client that takes nothing for [`STALL_TIME`] is given up, so that it holds
//! neither one of the few backups nor the disk space of the copy.
//!
//! The answer's length is declared: a stream that breaks off is seen to.

use std::fs::File;
use std::io::{self, Read as _};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::error::{ApiError, Code};
use super::limits::Share;
use super::openapi::Files;
use super::{Shared, answer};

/// Bytes that are read and sent at a time: few enough system calls, little memory.
const CHUNK_BYTES: u64 = 256 << 10;
/// Chunks that wait for the connection.
const WAITING_CHUNKS: usize = 2;
/// How long a client may take nothing.
const STALL_TIME: Duration = Duration::from_secs(60);

const SQLITE: HeaderValue = HeaderValue::from_static("application/vnd.sqlite3");
/// Index of the last entry that the copy holds.
const LAST_APPLIED: HeaderName = HeaderName::from_static("aspen-last-applied");

/// A consistent copy of the state machine as a SQLite database.
#[utoipa::path(get, path = "/admin/backup", tag = "operation",
    responses(
        (status = 200, description = "The database", content_type = "application/vnd.sqlite3", body = Vec<u8>,
            headers(
                ("Content-Disposition" = String, description = "A file name with the node's id and the last applied index"),
                ("Aspen-Last-Applied" = u64, description = "Index of the last entry in it; absent when there is none"),
            )),
        Files,
    ))]
pub(super) async fn backup(
    State(shared): State<Shared>,
    method: Method,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    if method == Method::HEAD {
        // Nothing to be copied for nobody to read.
        return Ok(answer::with_type(StatusCode::OK, SQLITE, Body::empty()));
    }
    let slot = shared.limits().backup()?;
    let node_id = shared.status().await?.node_id;
    let backup = node.backup().await?;
    let length = backup.file.metadata().map_err(|error| {
        tracing::error!("A finished backup cannot be read: {error}");
        ApiError::new(
            Code::Storage,
            "the backup cannot be read; see the node's log",
        )
    })?;
    let length = length.len();
    let applied = backup.last_applied.map(|id| id.index);
    let body = Body::new(Stream::of(backup.file, length, slot));
    let mut response = answer::with_type(StatusCode::OK, SQLITE, body);
    let headers = response.headers_mut();
    let name = format!(
        "attachment; filename=\"aspen-node-{node_id}-{}.db\"",
        applied.unwrap_or_default()
    );
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    if let Some(applied) = applied {
        headers.insert(LAST_APPLIED, applied.into());
    }
    Ok(response)
}

/// The chunks of a file, read only as fast as they are taken.
struct Stream {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl Stream {
    fn of(file: File, length: u64, slot: Share) -> Self {
        let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        tokio::spawn(send(file, length, sender, slot));
        let left = length;
        Self { chunks, left }
    }
}

/// Reads `length` bytes of `file` and sends them, until they are all sent or
/// nobody takes them. `slot` is held as long.
async fn send(
    mut file: File,
    mut length: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    slot: Share,
) {
    while length > 0 {
        let chunk = usize::try_from(length.min(CHUNK_BYTES)).unwrap_or_default();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; chunk];
            let read = file.read_exact(&mut bytes).map(|()| Bytes::from(bytes));
            (file, read)
        });
        let Ok((same, read)) = read.await else {
            return;
        };
        file = same;
        length -= chunk as u64;
        let failed = read.as_ref().err().map(ToString::to_string);
        if sender.send_timeout(read, STALL_TIME).await.is_err() {
            tracing::debug!("A backup was not taken to its end");
            return;
        }
        if let Some(error) = failed {
            tracing::error!("A backup broke off, because its file cannot be read: {error}");
            return;
        }
    }
    drop(slot);
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = std::task::ready!(self.chunks.poll_recv(cx));
        Poll::Ready(match chunk {
            Some(Ok(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.left == 0 => None,
            // Given up: the connection must not be used for another answer.
            None => Some(Err(io::Error::other("the backup was given up"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Seek as _, Write as _};

    use super::*;
    use crate::http::limits::Limits;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[tokio::test]
    async fn the_whole_file_is_streamed_and_the_slot_given_back() {
        let limits = Limits::default();
        for length in [0, 1, 262_144, 1_000_000_u32] {
            let bytes: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[1]).collect();
            let slot = limits.backup().unwrap();
            let body = Body::new(Stream::of(file(&bytes), length.into(), slot));
            assert_eq!(body.size_hint().exact(), Some(length.into()));
            let sent = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            assert_eq!(sent, bytes);
        }
        while limits.backup().is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_file_that_is_shorter_than_it_was_breaks_the_stream_off() {
        let limits = Limits::default();
        let slot = limits.backup().unwrap();
        let body = Body::new(Stream::of(file(&[7; 1000]), 2000, slot));
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let limits = Limits::default();
        let _other = limits.backup().unwrap();
        let bytes = vec![7; 4 << 20];
        let slot = limits.backup().unwrap();
        let mut stream = Stream::of(file(&bytes), 4 << 20, slot);
        assert_eq!(limits.backup().unwrap_err().code(), Code::Busy);
        while limits.backup().is_err() {
            tokio::time::sleep(STALL_TIME).await;
        }
        // What was waiting is still there, then the end, which is none.
        let mut last = None;
        for _ in 0..=WAITING_CHUNKS {
            last = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_frame(cx)).await;
        }
        assert!(last.unwrap().is_err());
    }
}
