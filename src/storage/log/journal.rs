//! Where appended entries are durable first: a file beside the log's, written from
//! its beginning to its end, again and again.
//!
//! A transaction of redb writes seven or more pages all over its file for however
//! small an entry. Here the same entry is one page behind the last one, so that
//! an fdatasync takes little more than the disk needs for any. What lies here
//! is filed, put into the log's file, thousands of entries at a time.
//!
//! The journal has two segments. While what one holds is being filed, the other
//! is written. A segment is written anew in each *epoch*: 1, 2, 3, ..., the odd ones
//! in one segment and the even ones in the other. The file has a *mark*: which journal
//! belongs to it, once it has one, and the first epoch that is not filed. It changes in the
//! transaction that files, so that every record is either in the file or
//! counts from here, never both, whatever the moment of a crash.
//!
//! Invariants:
//!
//! - With a mark in the file, the log is what the file holds and behind that the records
//!   of the marked epoch and of the one after it, as far as they are whole.
//!   Without one there is no journal, and a file of its name means nothing.
//! - A record that was confirmed is not written to again before it is filed: it has
//!   pages of its own.
//! - The epoch after the marked one begins when the marked one is full or ended, with all
//!   of its records durable. A later one begins only when the mark has moved.
//! - Anything but an append of 256 KiB at most goes into the file at once, together with
//!   all that is here (`writer`). So a record's entries go on where those before it end.
//! - A log that was closed has neither mark nor journal: its file is all of it.
//!
//! What may fail, and what then holds:
//!
//! - Killed, or power lost: the record that was being written is not whole, by its checksum,
//!   and was not confirmed. The next start files what is whole.
//! - The journal is gone, is another log's, or belongs to a later state of the log than its
//!   file: confirmed entries are missing, and the log does not open. (An older one of the same
//!   log cannot be told from one to which nothing was written.)
//! - The journal cannot be made, or there are not 64 MiB free beside it: the log goes on
//!   without one, as durable and less fast.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use redb::StorageBackend;
use redb::backends::FileBackend;
use xxhash_rust::xxh3::Xxh3;

use super::disk::{Disk, Part};
use super::tail::Encoded;
use super::{LogError, file};
use crate::durable;
use crate::format::record::LogId;
use crate::layout;
use crate::storage::space::RESERVE_BYTES;
use crate::telemetry::count;

/// The name of the mark among the file's records.
pub(super) const MARK: &str = "aspen_journal";

/// A record has pages of its own.
const PAGE: usize = 4096;
/// Most bytes of a record: of more, writing them twice costs more than pages
/// all over the file.
const MOST: usize = 256 << 10;
/// No journal is longer.
const MOST_LENGTH: u64 = 128 << 20;
/// What a journal is filled with when it is made, a piece at a time.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// What the file says about the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Drawn when the journal was made: records of another one are none.
    id: u64,
    /// The first epoch that is not in the file.
    epoch: u64,
    /// Bytes of a segment.
    segment: u64,
}

impl Mark {
    pub(super) fn encode(self) -> Vec<u8> {
        let numbers = [self.id, self.epoch, self.segment];
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let [id, epoch, segment] = *numbers else {
            return None;
        };
        Some(Self {
            id: u64::from_le_bytes(id),
            epoch: u64::from_le_bytes(epoch),
            segment: u64::from_le_bytes(segment),
        })
    }
}

/// What stands before a record's entries: id, epoch, checksum of all else, bytes of the entries
/// with their lengths, index of the first, and the committed position: 0 or 1 and three numbers.
const HEADER: usize = 9 * 8;
const CHECKSUM: std::ops::Range<usize> = 16..24;

fn checksum(record: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(&record[..CHECKSUM.start]);
    sum.update(&record[CHECKSUM.end..]);
    sum.digest()
}

/// An open journal.
pub(super) struct Journal {
    file: Box<dyn StorageBackend>,
    mark: Mark,
    /// The epoch that is being written, and where its next record goes.
    epoch: u64,
    at: u64,
    /// The record that is written, a memory that is used again.
    record: Vec<u8>,
    syncs: Arc<AtomicU64>,
}

impl Journal {
    /// Makes an empty journal for the log at `path`, all of its blocks there, durable. It is
    /// used from the moment that its mark is in the log's file.
    pub(super) fn make(log: &Path, disk: &dyn Disk, syncs: Arc<AtomicU64>) -> io::Result<Self> {
        let path = layout::journal(log);
        let segment = disk.segment();
        let dir = durable::parent(&path);
        let free = durable::free_space(dir).map_err(io::Error::other)?;
        if free < RESERVE_BYTES + 2 * segment {
            let what = format!("there are only {free} bytes free in {}", dir.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let made = || -> io::Result<_> {
            let file = durable::create_spare(&path).map_err(io::Error::other)?;
            let file = FileBackend::new(file).map_err(io::Error::other)?;
            let file = disk.attach(Part::Journal, file);
            file.set_len(2 * segment)?;
            let mut at = 0;
            while at < 2 * segment {
                let length = (2 * segment - at).min(ZEROS.len() as u64);
                let zeros = usize::try_from(length).map_or(&ZEROS[..], |length| &ZEROS[..length]);
                file.write(at, zeros)?;
                at += length;
            }
            StorageBackend::sync_data(file.as_ref())?;
            Ok(file)
        };
        let file = made().inspect_err(|_| drop(durable::remove_spare(&path)))?;
        let mark = Mark {
            id: rand::random(),
            epoch: 1,
            segment,
        };
        Ok(Self {
            file,
            mark,
            epoch: mark.epoch,
            at: 0,
            record: Vec::new(),
            syncs,
        })
    }

    /// What the file's mark is when nothing has been written here.
    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// What the file's mark is once all that is here is filed and the next epoch begins.
    pub(super) fn next_mark(&self) -> Mark {
        Mark {
            epoch: self.epoch + 1,
            ..self.mark
        }
    }

    /// Begins the next epoch, in the other segment, of which everything is filed.
    pub(super) fn turn(&mut self) {
        self.epoch += 1;
        self.at = 0;
    }

    /// Whether these entries are worth a record here.
    pub(super) fn takes(&self, entries: &[&Encoded]) -> bool {
        let size = size(entries);
        size <= MOST && size.next_multiple_of(PAGE) as u64 <= self.mark.segment
    }

    /// Whether these entries still have room in this epoch. In an empty one those have that it takes.
    pub(super) fn has_room(&self, entries: &[&Encoded]) -> bool {
        self.at + size(entries).next_multiple_of(PAGE) as u64 <= self.mark.segment
    }

    /// Writes a record, for which there is room in this epoch; durable when this returns. False
    /// if there was none on the disk: nothing more is written in this epoch then.
    pub(super) fn write(
        &mut self,
        first: u64,
        entries: &[&Encoded],
        committed: Option<LogId>,
    ) -> io::Result<bool> {
        self.encode(first, entries, committed);
        let at = self.epoch % 2 * self.mark.segment + self.at;
        match self.file.write(at, &self.record) {
            Err(error) if durable::is_full(&error) => return Ok(false),
            written => written?,
        }
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let synced = StorageBackend::sync_data(self.file.as_ref());
        count::LOG_SYNCS.observe(began.elapsed());
        synced?;
        self.at += self.record.len() as u64;
        Ok(true)
    }

    fn encode(&mut self, first: u64, entries: &[&Encoded], committed: Option<LogId>) {
        let record = &mut self.record;
        record.clear();
        record.resize(HEADER, 0);
        for entry in entries {
            // Not more than `MOST`.
            record.extend_from_slice(&(entry.len() as u64).to_le_bytes());
            record.extend_from_slice(entry);
        }
        let bytes = (record.len() - HEADER) as u64;
        let committed = committed.map_or([0; 4], |id| [1, id.term, id.node_id, id.index]);
        let [some, term, node, index] = committed;
        let head = [
            self.mark.id,
            self.epoch,
            0,
            bytes,
            first,
            some,
            term,
            node,
            index,
        ];
        for (place, number) in record.chunks_exact_mut(8).zip(head) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(record);
        record[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
        record.resize(record.len().next_multiple_of(PAGE), 0);
    }
}

/// Bytes of a record with these entries.
fn size(entries: &[&Encoded]) -> usize {
    let bytes = entries.iter().map(|entry| size_of::<u64>() + entry.len());
    HEADER + bytes.sum::<usize>()
}

/// What a journal holds that is not in the log's file.
#[derive(Default)]
pub(super) struct Unfiled {
    /// Index and bytes of each entry.
    pub(super) entries: Vec<(u64, Encoded)>,
    /// The committed position that the last record has, if there is a record.
    pub(super) committed: Option<Option<LogId>>,
}

/// Reads what the journal of the log at `path` holds behind `last`.
///
/// # Errors
/// When it is missing, cannot be read, or is not the one that this log goes on with.
pub(super) fn unfiled(
    path: &Path,
    disk: &dyn Disk,
    mark: &[u8],
    last: Option<LogId>,
) -> Result<Unfiled, LogError> {
    let journal = layout::journal(path);
    let lacks = |what: String| file::damaged(path, format!("{what} {}", journal.display()));
    let mark = Mark::decode(mark).ok_or_else(|| lacks("its record is none of".into()))?;
    let cannot = |error: io::Error| file::cannot_open(path, error.into());
    let opened = OpenOptions::new().read(true).write(true).open(&journal);
    let opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(lacks(
                "confirmed entries are missing with its journal".into(),
            ));
        }
        opened => opened.map_err(cannot)?,
    };
    let opened = FileBackend::new(opened).map_err(|error| cannot(io::Error::other(error)))?;
    let opened = disk.attach(Part::Journal, opened);
    let length = opened.len().map_err(cannot)?;
    if length > MOST_LENGTH || mark.segment.checked_mul(2) != Some(length) {
        return Err(lacks("confirmed entries are missing with a part of".into()));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    opened.read(0, &mut bytes).map_err(cannot)?;
    let (even, odd) = bytes.split_at(bytes.len() / 2);
    let of = |epoch: u64| if epoch.is_multiple_of(2) { even } else { odd };

    for record in [even, odd].into_iter().filter_map(Record::at) {
        if record.id != mark.id {
            return Err(lacks(
                "confirmed entries are missing: of another log is".into(),
            ));
        }
        if record.epoch.saturating_sub(mark.epoch) > 1 {
            return Err(lacks(
                "confirmed entries are missing: it is older than its journal".into(),
            ));
        }
    }
    let mut found = Unfiled::default();
    let mut next = last.map(|last| last.index.saturating_add(1));
    for epoch in [mark.epoch, mark.epoch.saturating_add(1)] {
        let of_epoch = |record: &Record<'_>| (record.id, record.epoch) == (mark.id, epoch);
        let whole = |bytes| Record::at(bytes).filter(of_epoch);
        let mut rest = of(epoch);
        while let Some(record) = whole(rest) {
            if next.is_some_and(|next| next != record.first) {
                let (first, next) = (record.first, next.unwrap_or(0));
                return Err(lacks(format!(
                    "entry {next} is missing before entry {first} of"
                )));
            }
            for (index, entry) in (record.first..).zip(record.entries) {
                file::decode(path, index, entry)?;
                found.entries.push((index, entry.into()));
                next = Some(index.saturating_add(1));
            }
            found.committed = Some(record.committed);
            rest = &rest[record.pages..];
        }
        // A record was written only when those before it were durable.
        let mut places = (0..rest.len()).step_by(PAGE);
        if places.any(|at| whole(&rest[at..]).is_some()) {
            return Err(lacks("confirmed entries are damaged in".into()));
        }
    }
    Ok(found)
}

/// A whole record.
struct Record<'b> {
    id: u64,
    epoch: u64,
    first: u64,
    committed: Option<LogId>,
    entries: Vec<&'b [u8]>,
    /// Bytes up to the record that follows.
    pages: usize,
}

impl<'b> Record<'b> {
    /// The record that `bytes` begin with; `None` if that is none, or not whole.
    fn at(bytes: &'b [u8]) -> Option<Self> {
        let head = bytes.first_chunk::<HEADER>()?;
        let number = |place: usize| {
            let number = head[place * 8..].first_chunk::<8>();
            number.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        let length = usize::try_from(number(3)).ok()?;
        let record = bytes.get(..HEADER.checked_add(length)?)?;
        if number(2) != checksum(record) {
            return None;
        }
        let mut rest = &record[HEADER..];
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (length, behind) = rest.split_first_chunk::<8>()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let (entry, behind) = behind.split_at_checked(length)?;
            entries.push(entry);
            rest = behind;
        }
        // No log reaches further.
        number(4).checked_add(entries.len() as u64)?;
        let committed = LogId {
            term: number(6),
            node_id: number(7),
            index: number(8),
        };
        Some(Self {
            id: number(0),
            epoch: number(1),
            first: number(4),
            committed: (number(5) == 1).then_some(committed),
            entries,
            pages: record.len().next_multiple_of(PAGE).min(bytes.len()),
        })
    }
}
