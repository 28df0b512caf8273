//! Streaming rows from a source to whatever takes them: first the pairs, then
//! the idempotent writes.
//!
//! One thread reads, the caller's thread writes; between them goes a bounded
//! number of batches, so that memory does not grow with the data, and used
//! batches come back, so that nothing is allocated on the way. The digest is
//! taken of what was read, before the target sees it.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use super::progress::{Control, Phase};
use super::source::{Enough, Source, SourceError};
use crate::format::digest::{Batch, Digest, Digester};
use crate::format::idempotency;

/// A batch is sent on when it holds this many bytes: large enough to make the
/// hand-over free, small enough to stay in the processor's cache.
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way at once.
const BATCHES: usize = 4;
/// Most keys that a sampled verification compares (the guide's number).
pub const SAMPLE_KEYS: u64 = 100;

/// What a batch holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    /// Keys and values.
    Pairs,
    /// Idempotent writes: the client's key, then the index of the entry (u64,
    /// little-endian) and the record.
    Idempotency,
}

/// Bytes of the index before a record.
const INDEX_BYTES: usize = size_of::<u64>();

/// The receiving end: rows in key order, until the source is exhausted or
/// fails; then idempotent writes in the order of the log.
pub struct Feed {
    full: Receiver<(Table, Batch)>,
    empty: Sender<Batch>,
    table: Table,
    /// The first of the other table.
    ahead: Option<(Table, Batch)>,
    batch: Batch,
    row: usize,
}

impl Feed {
    /// Moves to the next row; false when there is none.
    pub fn advance(&mut self) -> bool {
        self.row += 1;
        while self.row >= self.batch.len() {
            let next = self.ahead.take();
            let Some((table, next)) = next.or_else(|| self.full.recv().ok()) else {
                return false;
            };
            if table != self.table {
                self.ahead = Some((table, next));
                return false;
            }
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

    /// After the last row, moves to the next idempotent write: the index of its
    /// entry, the client's key in UTF-8, its record.
    pub fn next_idempotent(&mut self) -> Option<(u64, &[u8], &[u8])> {
        self.table = Table::Idempotency;
        if !self.advance() {
            return None;
        }
        let (key, rest) = self.row()?;
        let (index, record) = rest.split_first_chunk::<INDEX_BYTES>()?;
        Some((u64::from_le_bytes(*index), key, record))
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
    /// The digest of all idempotent writes.
    pub idempotency: Digest,
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
    let scan = move |reader: &mut Reader<'_>| {
        source.scan(&mut |key, value| reader.row(key, value))?;
        if !control.stopped() {
            source.scan_idempotency(&mut |index, key, record| {
                reader.idempotent(index, key, record)
            })?;
        }
        match control.stopped() {
            true => Err(SourceError::Stopped.into()),
            false => Ok(()),
        }
    };
    stream_rows(scan, rows, control, write)
}

/// Streams what `scan` hands over into `write`: all rows in key order, then all
/// idempotent writes in the order of the log.
pub(crate) fn stream_rows<T, E: Send>(
    scan: impl FnOnce(&mut Reader<'_>) -> Result<(), E> + Send,
    rows: u64,
    control: &Control<'_>,
    write: impl FnOnce(Feed) -> Result<T, E>,
) -> Result<(T, Read), E> {
    let (full_sender, full) = sync_channel(BATCHES);
    let (empty, empty_receiver) = channel();
    let feed = Feed {
        full,
        empty,
        table: Table::Pairs,
        ahead: None,
        batch: Batch::default(),
        row: 0,
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut reader = Reader {
                rows,
                control,
                full: full_sender,
                empty: empty_receiver,
                table: Table::Pairs,
                batch: Batch::default(),
                key_batch: Batch::default(),
                done: 0,
                pairs: Digester::default(),
                keys: Digester::default(),
                idempotency: Digester::default(),
                sample: Vec::new(),
            };
            scan(&mut reader)?;
            Ok(reader.finish())
        });
        let written = write(feed);
        let read = reader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((written?, read))
    })
}

/// The sending end.
pub(crate) struct Reader<'a> {
    rows: u64,
    control: &'a Control<'a>,
    full: SyncSender<(Table, Batch)>,
    empty: Receiver<Batch>,
    table: Table,
    batch: Batch,
    key_batch: Batch,
    done: u64,
    pairs: Digester,
    keys: Digester,
    idempotency: Digester,
    sample: Vec<String>,
}

impl Reader<'_> {
    /// The next row in key order.
    pub(crate) fn row(&mut self, key: &str, value: &str) -> Result<(), Enough> {
        let stride = (self.rows / SAMPLE_KEYS).max(1);
        if self.done.is_multiple_of(stride) && (self.sample.len() as u64) < SAMPLE_KEYS {
            self.sample.push(key.to_owned());
        }
        self.batch.push(key.as_bytes(), value.as_bytes());
        self.key_batch.push(key.as_bytes(), b"");
        self.keys.drain(&mut self.key_batch);
        self.done += 1;
        #[cfg(debug_assertions)]
        dawdle(self.done, self.rows, self.control);
        match self.batch.bytes() >= BATCH_BYTES {
            true => self.send(),
            false => Ok(()),
        }
    }

    /// The next idempotent write, after all rows.
    pub(crate) fn idempotent(
        &mut self,
        index: u64,
        key: &str,
        record: &[u8],
    ) -> Result<(), Enough> {
        if self.table == Table::Pairs {
            if !self.batch.is_empty() {
                self.send()?;
            }
            self.table = Table::Idempotency;
        }
        idempotency::digest(&mut self.idempotency, index, key, record);
        let value = [&index.to_le_bytes(), record].concat();
        self.batch.push(key.as_bytes(), &value);
        match self.batch.bytes() >= BATCH_BYTES {
            true => self.send(),
            false => Ok(()),
        }
    }

    fn send(&mut self) -> Result<(), Enough> {
        if self.table == Table::Pairs {
            self.pairs.batch(&self.batch);
        }
        let next = self.empty.try_recv().unwrap_or_default();
        let full = std::mem::replace(&mut self.batch, next);
        self.full.send((self.table, full)).map_err(|_| Enough)?;
        let (observer, done) = (self.control.observer, self.done);
        observer.work(Phase::Copy, done, self.rows);
        match self.control.stopped() {
            true => Err(Enough),
            false => Ok(()),
        }
    }

    fn finish(mut self) -> Read {
        if !self.batch.is_empty() {
            // A writer that has gone reports its own error.
            let _ = self.send();
        }
        self.keys.batch(&self.key_batch);
        Read {
            digest: self.pairs.finish(),
            keys: self.keys.finish(),
            sample: self.sample,
            idempotency: self.idempotency.finish(),
        }
    }
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
