//! Which rows make a page, decided once for all engines.

use std::ops::Bound;

use super::{Page, Range};

/// A page being filled with rows in key order.
pub(super) struct Collector<'a> {
    range: &'a Range,
    page: Page,
    bytes: usize,
}

impl<'a> Collector<'a> {
    pub(super) fn new(range: &'a Range) -> Self {
        Self {
            range,
            page: Page::default(),
            bytes: 0,
        }
    }

    /// From where rows are wanted. There is no upper bound: the end of a prefix
    /// such as `"a\u{10FFFF}"` has no successor in UTF-8 that could be one, so
    /// that [`offer`](Self::offer) ends the scan instead.
    pub(super) fn start(range: &Range) -> Bound<&str> {
        match &range.after {
            Some(after) if *after >= range.prefix => Bound::Excluded(after),
            _ => Bound::Included(&range.prefix),
        }
    }

    /// Takes the next row; false when no further one is wanted.
    pub(super) fn offer(&mut self, key: &str, value: &str) -> bool {
        if !key.starts_with(&self.range.prefix) {
            return false;
        }
        let bytes = self.bytes + key.len() + value.len();
        let full = self.page.pairs.len() >= self.range.limit
            || (!self.page.pairs.is_empty() && bytes > self.range.max_bytes);
        if full {
            self.page.more = true;
            return false;
        }
        self.bytes = bytes;
        self.page.pairs.push((key.to_owned(), value.to_owned()));
        true
    }

    pub(super) fn finish(self) -> Page {
        self.page
    }
}
