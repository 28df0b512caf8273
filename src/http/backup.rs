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
use std::time::{Duration, Instant};

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
use crate::raft::Aside;
use crate::telemetry::{count, events};

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
    let began = Instant::now();
    let backup = node.backup().await.inspect_err(|error| {
        count::BACKUPS_FAILED.inc();
        tracing::error!(
            MESSAGE_ID = events::BACKUP_FAILED,
            "A backup could not be made: {error}"
        );
    })?;
    let length = backup.file.metadata().map_err(|error| {
        count::BACKUPS_FAILED.inc();
        tracing::error!(
            MESSAGE_ID = events::BACKUP_FAILED,
            "A finished backup cannot be read: {error}"
        );
        ApiError::new(
            Code::Storage,
            "the backup cannot be read; see the node's log",
        )
    })?;
    let length = length.len();
    let applied = backup.last_applied.map(|id| id.index);
    let taken = Taken {
        began,
        applied,
        _slot: slot,
    };
    let body = Body::new(Stream::of(backup.file, length, taken));
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
    fn of(file: Aside<File>, length: u64, taken: Taken) -> Self {
        let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
        tokio::spawn(send(file, length, sender, taken));
        let left = length;
        Self { chunks, left }
    }
}

/// Reads `length` bytes of `file` and sends them, until they are all sent or
/// nobody takes them.
async fn send(
    mut file: Aside<File>,
    length: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    taken: Taken,
) {
    let mut left = length;
    while left > 0 {
        let chunk = usize::try_from(left.min(CHUNK_BYTES)).unwrap_or_default();
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; chunk];
            let read = (&*file).read_exact(&mut bytes).map(|()| Bytes::from(bytes));
            (file, read)
        });
        let Ok((same, read)) = read.await else {
            return;
        };
        file = same;
        left -= chunk as u64;
        let failed = read.as_ref().err().map(ToString::to_string);
        if sender.send_timeout(read, STALL_TIME).await.is_err() {
            let why = "its client went away or took nothing for too long";
            return taken.broke_off(why);
        }
        if let Some(error) = failed {
            return taken.broke_off(&format!("its file cannot be read: {error}"));
        }
    }
    taken.complete(length);
}

/// What is told of a backup at its end, and the slot that it holds until then.
struct Taken {
    began: Instant,
    applied: Option<u64>,
    _slot: Share,
}

impl Taken {
    fn complete(self, bytes: u64) {
        let took = self.began.elapsed();
        count::BACKUPS.observe(took);
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            MESSAGE_ID = events::BACKUP_SENT,
            ASPEN_BYTES = bytes,
            ASPEN_LAST_APPLIED = self.applied,
            ASPEN_DURATION_MS = milliseconds,
            "Sent a backup of {bytes} bytes in {milliseconds} ms"
        );
    }

    fn broke_off(self, why: &str) {
        count::BACKUPS_FAILED.inc();
        tracing::warn!(
            MESSAGE_ID = events::BACKUP_FAILED,
            "A backup broke off: {why}"
        );
    }
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

    fn file(bytes: &[u8]) -> Aside<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        Aside::new(file)
    }

    fn taken(slot: Share) -> Taken {
        Taken {
            began: Instant::now(),
            applied: None,
            _slot: slot,
        }
    }

    #[tokio::test]
    async fn the_whole_file_is_streamed_and_the_slot_given_back() {
        let limits = Limits::default();
        for length in [0, 1, 262_144, 1_000_000_u32] {
            let bytes: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[1]).collect();
            let taken = taken(limits.backup().unwrap());
            let body = Body::new(Stream::of(file(&bytes), length.into(), taken));
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
        let taken = taken(limits.backup().unwrap());
        let body = Body::new(Stream::of(file(&[7; 1000]), 2000, taken));
        assert!(axum::body::to_bytes(body, usize::MAX).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let limits = Limits::default();
        let _other = limits.backup().unwrap();
        let bytes = vec![7; 4 << 20];
        let taken = taken(limits.backup().unwrap());
        let mut stream = Stream::of(file(&bytes), 4 << 20, taken);
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
