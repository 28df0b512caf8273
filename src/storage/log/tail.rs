//! The log as it is after everything that was asked for: its bounds, and its
//! newest entries in memory.
//!
//! Invariants:
//!
//! - The log holds the entries from `begin` to `bounds.last`. Those below
//!   `first` are in the file, those from `first` on are here.
//! - What is in the file and below `first` is durable, and no operation that
//!   still waits changes it; only purging removes it, and then `begin` has
//!   already passed it. So an index below `first` is read from the file, one
//!   from `first` on from here, and neither can be something older.
//! - An entry leaves this memory only when the operation that appended it is
//!   in the file; that it is durable in the journal is not enough.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Bounds;
use super::sizes::Sizes;
use crate::format::record::LogId;

/// Bytes of recent entries that are kept: what appliers and followers read in
/// ordinary life, so that it is never read from the file.
pub(super) const TAIL_BYTES: u64 = 32 << 20;
/// What an entry takes beside its bytes, here and in the file, about.
pub(super) const ENTRY_OVERHEAD: u64 = 32;

/// An entry's bytes as they are in the file.
pub(super) type Encoded = Arc<[u8]>;

/// The whole log's bounds and its newest entries.
pub(super) struct Tail {
    pub(super) bounds: Bounds,
    /// The index of the first entry of the log, or of the one to come.
    pub(super) begin: u64,
    /// The index of `entries[0]`, or of the entry to come.
    pub(super) first: u64,
    /// How often entries were taken off the end: a reader that sees this change
    /// may have read from two logs.
    pub(super) truncations: u64,
    entries: VecDeque<Recent>,
    bytes: u64,
    /// The most that `bytes` may be, as far as entries are in the file.
    most: u64,
    sizes: Sizes,
}

struct Recent {
    bytes: Encoded,
    /// The number of the operation that appended it.
    operation: u64,
}

/// What a purge has to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purge {
    /// Nothing: it was purged before.
    Nothing,
    /// The oldest entries.
    Oldest,
    /// All of them, and the log goes on behind a gap.
    Everything,
}

impl Tail {
    /// Begins with what is in the file, which takes about `bytes`. Of what
    /// comes, `most` bytes are kept here.
    pub(super) fn new(bounds: Bounds, begin: u64, bytes: u64, most: u64) -> Self {
        let next = bounds.last.map_or(0, |last| last.index.saturating_add(1));
        Self {
            bounds,
            begin,
            first: next,
            truncations: 0,
            entries: VecDeque::new(),
            bytes: 0,
            most,
            sizes: Sizes::new(begin..next, bytes),
        }
    }

    /// The index that the next entry must have; `None` where any will do: before
    /// the first one ever.
    pub(super) fn next(&self) -> Option<u64> {
        self.bounds.last.map(|last| last.index.saturating_add(1))
    }

    fn is_empty(&self) -> bool {
        self.bounds.last == self.bounds.last_purged
    }

    /// Appends an entry at [`next`](Self::next).
    pub(super) fn push(&mut self, id: LogId, bytes: Encoded, operation: u64) {
        if self.is_empty() {
            self.begin = id.index;
            self.sizes = Sizes::new(id.index..id.index, 0);
        }
        if self.entries.is_empty() {
            self.first = id.index;
        }
        self.bounds.last = Some(id);
        let size = weight(&bytes);
        self.bytes += size;
        self.sizes.push(size);
        self.entries.push_back(Recent { bytes, operation });
    }

    /// Takes off what lies behind `last`, and returns the first index that is
    /// then free; `None` if nothing lies there.
    pub(super) fn truncate(&mut self, last: Option<LogId>) -> Option<u64> {
        // What was purged is behind us.
        let last = last.max_by_index(self.bounds.last_purged);
        let from = last.map_or(0, |last| last.index.saturating_add(1));
        if self.next().is_none_or(|next| from >= next) {
            return None;
        }
        while self.first + self.entries.len() as u64 > from
            && let Some(entry) = self.entries.pop_back()
        {
            self.bytes -= weight(&entry.bytes);
        }
        self.first = self.first.min(from);
        self.bounds.last = last;
        self.truncations += 1;
        self.sizes.truncate(from);
        Some(from)
    }

    /// Removes what lies up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) -> Purge {
        if self
            .bounds
            .last_purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return Purge::Nothing;
        }
        let next = upto.index.saturating_add(1);
        while self.first < next
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= weight(&entry.bytes);
            self.first += 1;
        }
        self.first = self.first.max(next);
        self.begin = self.begin.max(next);
        self.bounds.last_purged = Some(upto);
        self.sizes.purge(next);
        match self.bounds.last {
            Some(last) if last.index >= upto.index => Purge::Oldest,
            _ => {
                self.bounds.last = Some(upto);
                Purge::Everything
            }
        }
    }

    /// Forgets the oldest entries that are too many here, but only those that
    /// operations up to `filed` have appended.
    pub(super) fn forget(&mut self, filed: u64) {
        while self.bytes > self.most
            && self
                .entries
                .front()
                .is_some_and(|entry| entry.operation <= filed)
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= weight(&entry.bytes);
            self.first += 1;
        }
    }

    /// The part of `range` that the log holds.
    pub(super) fn within(&self, range: &Range<u64>) -> Range<u64> {
        let end = self.next().unwrap_or(0);
        range.start.max(self.begin)..range.end.min(end)
    }

    /// The entries from `range`, which must begin at `first` or behind, as many
    /// as `most` bytes hold, and at least one where `forced`.
    pub(super) fn collect(&self, range: Range<u64>, most: u64, forced: bool) -> Vec<Encoded> {
        let skip = usize::try_from(range.start - self.first).unwrap_or(usize::MAX);
        let count = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut taken = 0;
        let entries = self.entries.iter().skip(skip).take(count);
        let fitting = entries.enumerate().take_while(|(n, entry)| {
            taken += entry.bytes.len() as u64;
            taken <= most || (forced && *n == 0)
        });
        fitting.map(|(_, entry)| Arc::clone(&entry.bytes)).collect()
    }

    /// See [`Log::index_for_last`](super::Log::index_for_last).
    pub(super) fn index_for_last(&self, bytes: u64) -> u64 {
        self.sizes.index_for_last(bytes)
    }
}

fn weight(bytes: &Encoded) -> u64 {
    bytes.len() as u64 + ENTRY_OVERHEAD
}

/// The later of two positions.
trait Later {
    fn max_by_index(self, other: Self) -> Self;
}

impl Later for Option<LogId> {
    fn max_by_index(self, other: Self) -> Self {
        match (self, other) {
            (Some(a), Some(b)) if b.index >= a.index => other,
            (None, _) => other,
            _ => self,
        }
    }
}
