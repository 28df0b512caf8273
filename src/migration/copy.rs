//! Streaming rows from a source to whatever takes them.
//!
//! One thread reads, the caller's thread writes; between them goes a bounded
//! number of batches, so that memory does not grow with the data, and used
//! batches come back, so that nothing is allocated on the way. The digest is
//! taken of what was read, before the target sees it.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::progress::{Control, Phase};
use super::source::{Enough, RowSink, Source, SourceError};
use crate::format::digest::{Batch, Digest, Digester};

/// A batch is sent on when it holds this many bytes: large enough to make the
/// hand-over free, small enough to stay in the processor's cache.
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way at once.
const BATCHES: usize = 4;
/// Most keys that a sampled verification compares (the guide's number).
pub const SAMPLE_KEYS: u64 = 100;

/// The receiving end: rows in key order, until the source is exhausted or fails.
pub struct Feed {
    full: Receiver<Batch>,
    empty: Sender<Batch>,
    batch: Batch,
    row: usize,
}

impl Feed {
    /// Moves to the next row; false when there is none.
    pub fn advance(&mut self) -> bool {
        self.row += 1;
        while self.row >= self.batch.len() {
            let Ok(next) = self.full.recv() else {
                return false;
            };
            let mut used = std::mem::replace(&mut self.batch, next);
            used.clear(2 * BATCH_BYTES);
            // The reader may have finished, then nobody wants it back.
            let _ = self.empty.send(used);
            self.row = 0;
        }
        true
    }

    /// The current row, key and value, in UTF-8.
    #[must_use]
    pub fn row(&self) -> Option<(&[u8], &[u8])> {
        self.batch.get(self.row)
    }
}

/// What was read while copying.
#[derive(Debug, Default)]
pub struct Read {
    /// The digest of all rows.
    pub digest: Digest,
    /// The digest of all keys, each as a row without a value: what an index holds.
    pub keys: Digest,
    /// Keys spread evenly over the key range, at most [`SAMPLE_KEYS`].
    pub sample: Vec<String>,
}

/// Streams all rows of `source` into `write`, and tells what was read.
///
/// # Errors
/// The source's error if it failed, else that of `write`.
pub fn stream<T, E: From<SourceError> + Send>(
    source: &mut Source,
    rows: u64,
    control: &Control<'_>,
    write: impl FnOnce(Feed) -> Result<T, E>,
) -> Result<(T, Read), E> {
    let scan = move |sink: RowSink<'_>| {
        source.scan(sink)?;
        match control.stopped() {
            true => Err(SourceError::Stopped.into()),
            false => Ok(()),
        }
    };
    stream_rows(scan, rows, control, write)
}

/// Streams the rows that `scan` hands over, in key order, into `write`.
pub(crate) fn stream_rows<T, E: Send>(
    scan: impl FnOnce(RowSink<'_>) -> Result<(), E> + Send,
    rows: u64,
    control: &Control<'_>,
    write: impl FnOnce(Feed) -> Result<T, E>,
) -> Result<(T, Read), E> {
    let (full_sender, full) = sync_channel(BATCHES);
    let (empty, empty_receiver) = channel();
    let feed = Feed {
        full,
        empty,
        batch: Batch::default(),
        row: 0,
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(scan, rows, control, &full_sender, &empty_receiver));
        let written = write(feed);
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((written?, read))
    })
}

fn read<E>(
    scan: impl FnOnce(RowSink<'_>) -> Result<(), E>,
    rows: u64,
    control: &Control<'_>,
    full: &SyncSender<Batch>,
    empty: &Receiver<Batch>,
) -> Result<Read, E> {
    let mut digester = Digester::default();
    let mut sample = Vec::new();
    let stride = (rows / SAMPLE_KEYS).max(1);
    let mut batch = Batch::default();
    let (mut keys, mut key_batch) = (Digester::default(), Batch::default());
    let mut done = 0_u64;
    let mut send = |batch: &mut Batch, done| -> Result<(), Enough> {
        digester.batch(batch);
        let next = empty.try_recv().unwrap_or_default();
        full.send(std::mem::replace(batch, next))
            .map_err(|_| Enough)?;
        control.observer.work(Phase::Copy, done, rows);
        if control.stopped() {
            Err(Enough)
        } else {
            Ok(())
        }
    };
    scan(&mut |key, value| {
        if done.is_multiple_of(stride) && (sample.len() as u64) < SAMPLE_KEYS {
            sample.push(key.to_owned());
        }
        batch.push(key.as_bytes(), value.as_bytes());
        key_batch.push(key.as_bytes(), b"");
        keys.drain(&mut key_batch);
        done += 1;
        #[cfg(debug_assertions)]
        dawdle(done, rows, control);
        if batch.bytes() >= BATCH_BYTES {
            send(&mut batch, done)
        } else {
            Ok(())
        }
    })?;
    if !batch.is_empty() {
        // A writer that has gone reports its own error.
        let _ = send(&mut batch, done);
    }
    keys.batch(&key_batch);
    Ok(Read {
        digest: digester.finish(),
        keys: keys.finish(),
        sample,
    })
}

/// Takes its time when a test asked for it (`ASPEN_TEST_SLOW_MS_PER_STEP`), so
/// that the test can act in the middle; compiled into debug builds only.
#[cfg(debug_assertions)]
pub(super) fn dawdle(done: u64, rows: u64, control: &Control<'_>) {
    const ROWS_PER_STEP: u64 = 20;
    static PAUSE: std::sync::LazyLock<Option<u64>> = std::sync::LazyLock::new(|| {
        std::env::var("ASPEN_TEST_SLOW_MS_PER_STEP")
            .ok()?
            .parse()
            .ok()
    });
    if let Some(pause) = *PAUSE
        && done.is_multiple_of(ROWS_PER_STEP)
        && !control.stopped()
    {
        std::thread::sleep(std::time::Duration::from_millis(pause));
        control.observer.work(Phase::Copy, done, rows);
    }
}
