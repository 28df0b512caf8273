//! How many bytes the log takes from any index on, about: one count per
//! thousand entries instead of one per entry.

use std::collections::VecDeque;
use std::ops::Range;

/// Entries between two counts: 16 bytes of memory per so many entries.
const STEP: u64 = 1024;

/// Counts of bytes over the indexes `points[0].index..end.index`.
pub(super) struct Sizes {
    /// In rising order; the first stands at the beginning.
    points: VecDeque<Point>,
    end: Point,
}

/// So many bytes were counted before the entry at `index`.
#[derive(Clone, Copy)]
struct Point {
    index: u64,
    bytes: u64,
}

impl Sizes {
    /// For `entries` that take `bytes` together, evenly as far as is known.
    pub(super) fn new(entries: Range<u64>, bytes: u64) -> Self {
        let point = |index, bytes| Point { index, bytes };
        Self {
            points: VecDeque::from([point(entries.start, 0)]),
            end: point(entries.end.max(entries.start), bytes),
        }
    }

    /// Adds an entry at the end.
    pub(super) fn push(&mut self, bytes: u64) {
        let last = self.points.back().map_or(0, |point| point.index);
        if self.end.index >= last + STEP {
            self.points.push_back(self.end);
        }
        self.end.index += 1;
        self.end.bytes += bytes;
    }

    /// Takes off the entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        if index >= self.end.index {
            return;
        }
        self.end = self.at(index);
        self.points.retain(|point| point.index < index);
        if self.points.is_empty() {
            self.points.push_back(self.end);
        }
    }

    /// Removes the entries below `index`.
    pub(super) fn purge(&mut self, index: u64) {
        let Some(first) = self.points.front() else {
            return;
        };
        if index <= first.index {
            return;
        }
        let beginning = match index < self.end.index {
            true => self.at(index),
            false => Point {
                index,
                bytes: self.end.bytes,
            },
        };
        self.points.retain(|point| point.index > index);
        self.points.push_front(beginning);
        self.end.index = self.end.index.max(index);
    }

    /// The lowest index from which on there are about `bytes` at most.
    pub(super) fn index_for_last(&self, bytes: u64) -> u64 {
        let before = self.end.bytes.saturating_sub(bytes);
        let n = self.points.partition_point(|point| point.bytes < before);
        let Some(low) = n.checked_sub(1).and_then(|n| self.points.get(n)) else {
            return self.points.front().map_or(0, |point| point.index);
        };
        let high = self.points.get(n).unwrap_or(&self.end);
        let share = ratio(
            high.index - low.index,
            before - low.bytes,
            high.bytes - low.bytes,
        );
        // Rather one entry fewer than one too many.
        (low.index + share + 1).min(high.index)
    }

    fn at(&self, index: u64) -> Point {
        let n = self.points.partition_point(|point| point.index <= index);
        let Some(low) = n.checked_sub(1).and_then(|n| self.points.get(n)) else {
            return Point { index, bytes: 0 };
        };
        let high = self.points.get(n).unwrap_or(&self.end);
        let share = ratio(
            high.bytes - low.bytes,
            index - low.index,
            high.index - low.index,
        );
        let bytes = low.bytes + share;
        Point { index, bytes }
    }
}

/// `whole` times `part` by `of`, rounded down.
fn ratio(whole: u64, part: u64, of: u64) -> u64 {
    let scaled = u128::from(whole) * u128::from(part) / u128::from(of.max(1));
    u64::try_from(scaled).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_begin_where_they_should() {
        let mut sizes = Sizes::new(0..0, 0);
        for _ in 0..10_000 {
            sizes.push(100);
        }
        assert_eq!(sizes.index_for_last(u64::MAX), 0);
        assert_eq!(sizes.index_for_last(1_000_000), 0);
        for entries in [1, 500, 1024, 5000, 9999] {
            let index = sizes.index_for_last(entries * 100);
            let exact = 10_000 - entries;
            assert!((exact..=exact + 1).contains(&index), "{entries}: {index}");
        }
        assert_eq!(sizes.index_for_last(0), 10_000);
    }

    #[test]
    fn large_entries_among_small_ones_are_counted_as_large() {
        let mut sizes = Sizes::new(0..0, 0);
        for n in 0..8192 {
            sizes.push(if n < 4096 { 10 } else { 1000 });
        }
        let index = sizes.index_for_last(1_024_000);
        assert!((7168..=7169).contains(&index), "{index}");
        let index = sizes.index_for_last(4_096_000 + 10_240);
        assert!((3072..=3073).contains(&index), "{index}");
    }

    #[test]
    fn what_is_purged_or_truncated_counts_no_more() {
        let mut sizes = Sizes::new(100..5100, 500_000);
        sizes.purge(1100);
        assert_eq!(sizes.index_for_last(u64::MAX), 1100);
        sizes.truncate(3100);
        assert_eq!(sizes.end.index, 3100);
        for _ in 0..1000 {
            sizes.push(100);
        }
        let index = sizes.index_for_last(200_000);
        assert!((2100..=2101).contains(&index), "{index}");
        sizes.truncate(50);
        assert_eq!(sizes.index_for_last(u64::MAX), 50);
        sizes.purge(9000);
        sizes.push(100);
        assert_eq!(sizes.index_for_last(u64::MAX), 9000);
        assert_eq!(sizes.index_for_last(10), 9001);
    }
}
