//! A source that is only ever read, on which redb can still do its recovery.
//!
//! redb writes even to a file that it opens to read: it marks it in use,
//! repairs it after a crash, sometimes grows it on close. The overlay gives it
//! a file of its own to do so: reads come from the source's descriptor, which
//! is opened read-only, and writes stay in memory, page by page, on top.
//!
//! Invariants: the source's descriptor cannot write, so no defect here or in
//! redb can change one byte of it; a page is in memory only after a write to
//! it; bytes beyond `base`, the shortest length that redb ever set, read as
//! zeros unless written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// redb's page size.
const PAGE: u64 = 4096;
/// One page in memory.
type Page = [u8; 4096];

/// Most bytes that recovery may keep in memory. Recovery writes the header and
/// the allocator's bitmaps, under 1/2,000 of the file: 64 MiB would be enough
/// for more than 100 GB. Past it, an error is better than an exhausted machine.
const MAX_WRITTEN_BYTES: u64 = 64 << 20;

/// Bytes that the kernel is asked to read ahead at a time.
const AHEAD_BYTES: u64 = 4 << 20;

/// A cheap handle to the overlay; clones share it.
#[derive(Clone, Debug)]
pub struct Overlay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: File,
    stop: Arc<AtomicBool>,
    bytes_read: AtomicU64,
    largest_read: AtomicU64,
    written: RwLock<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    base: u64,
    pages: BTreeMap<u64, Box<Page>>,
}

impl Overlay {
    /// Lays an overlay over `source`, which must be open for reading only.
    /// Once `stop` is true every read fails, which ends whatever redb is doing.
    ///
    /// # Errors
    /// When the length of the source cannot be read.
    pub fn new(source: File, stop: Arc<AtomicBool>) -> io::Result<Self> {
        let length = source.metadata()?.len();
        Ok(Self(Arc::new(Shared {
            source,
            stop,
            bytes_read: AtomicU64::new(0),
            largest_read: AtomicU64::new(0),
            written: RwLock::new(Written {
                length,
                base: length,
                pages: BTreeMap::new(),
            }),
        })))
    }

    /// Bytes read so far; grows as redb works, which makes it progress.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Ordering::Relaxed)
    }

    /// The largest single read so far. redb reads a value in one piece, so no
    /// value that it has visited is larger.
    #[must_use]
    pub fn largest_read(&self) -> u64 {
        self.0.largest_read.load(Ordering::Relaxed)
    }

    /// The length that redb sees.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.0
            .written
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .length
    }

    /// Reads what redb would read.
    ///
    /// # Errors
    /// When told to stop, when the range lies outside, or when the source cannot be read.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.0.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        let wanted = out.len() as u64;
        self.0.bytes_read.fetch_add(wanted, Ordering::Relaxed);
        self.0.largest_read.fetch_max(wanted, Ordering::Relaxed);
        let written = self
            .0
            .written
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let end = offset
            .checked_add(wanted)
            .filter(|&end| end <= written.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;

        let from_source = written.base.saturating_sub(offset).min(wanted);
        let (below, beyond) = out.split_at_mut(index(from_source)?);
        self.0.source.read_exact_at(below, offset)?;
        beyond.fill(0);
        for (&number, page) in written.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (first, last) = (start.max(offset), (start + PAGE).min(end));
            let (to, from) = (index(first - offset)?, index(first - start)?);
            let length = index(last - first)?;
            out[to..to + length].copy_from_slice(&page[from..from + length]);
        }
        Ok(())
    }

    /// Has the kernel read the source from end to end into its cache, until
    /// `enough`. redb visits pages in key order, which on disk is no order at
    /// all: from a cold cache this makes the check many times faster. Left out
    /// where the source would not fit into memory and only drive itself out.
    pub fn read_ahead(&self, enough: &AtomicBool) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        let length = self.length();
        let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
        if length > memory / 2 {
            return;
        }
        let mut at = 0;
        while at < length && !enough.load(Ordering::Relaxed) && !self.0.stop.load(Ordering::Relaxed)
        {
            let (Ok(offset), Ok(bytes)) = (i64::try_from(at), i64::try_from(AHEAD_BYTES)) else {
                return;
            };
            // A hint: where it is refused, reading works as before.
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&self.0.source, offset, bytes, advice);
            at += AHEAD_BYTES;
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self
            .0
            .written
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(io::ErrorKind::InvalidInput)?;
        written.length = written.length.max(end);
        let mut at = offset;
        while at < end {
            let (number, start) = (at / PAGE, at / PAGE * PAGE);
            let last = (start + PAGE).min(end);
            let page = written.page(&self.0.source, number)?;
            let (to, from, length) = (index(at - start)?, index(at - offset)?, index(last - at)?);
            page[to..to + length].copy_from_slice(&data[from..from + length]);
            at = last;
        }
        Ok(())
    }

    fn set_length(&self, length: u64) {
        let mut written = self
            .0
            .written
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if length < written.length {
            let first_gone = length.div_ceil(PAGE);
            written.pages.split_off(&first_gone);
            // The rest of a page cut in two must read as zeros if the file grows again.
            if let Some(cut) = written.pages.get_mut(&(length / PAGE)) {
                cut[index(length % PAGE).unwrap_or(0)..].fill(0);
            }
            written.base = written.base.min(length);
        }
        written.length = length;
    }
}

impl Written {
    /// The page in memory, made from the source when this is its first write.
    fn page(&mut self, source: &File, number: u64) -> io::Result<&mut Page> {
        use std::collections::btree_map::Entry;
        let bytes = self.pages.len() as u64 * PAGE;
        match self.pages.entry(number) {
            Entry::Occupied(page) => Ok(page.into_mut()),
            Entry::Vacant(_) if bytes >= MAX_WRITTEN_BYTES => Err(io::Error::other(format!(
                "recovery wants to change more than {MAX_WRITTEN_BYTES} bytes"
            ))),
            Entry::Vacant(free) => {
                let mut page = Box::new([0; 4096]);
                let start = number * PAGE;
                let present = index(self.base.saturating_sub(start).min(PAGE))?;
                source.read_exact_at(&mut page[..present], start)?;
                Ok(free.insert(page))
            }
        }
    }
}

fn index(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
}

impl redb2::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        // A damaged length must not ask for memory that the file cannot fill.
        if len as u64 > self.length() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut out = vec![0; len];
        self.read_at(offset, &mut out)?;
        Ok(out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_length(len);
        Ok(())
    }

    fn sync_data(&self, _eventual: bool) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_length(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLength(u64),
        Read(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = 0..20_000_u64;
        prop_oneof![
            (at.clone(), prop::collection::vec(any::<u8>(), 0..9000))
                .prop_map(|(a, d)| Step::Write(a, d)),
            at.clone().prop_map(Step::SetLength),
            (at, 0..9000_usize).prop_map(|(a, n)| Step::Read(a, n)),
        ]
    }

    proptest! {
        #[test]
        fn an_overlay_behaves_like_a_file_and_never_changes_its_source(
            content in prop::collection::vec(any::<u8>(), 0..15_000),
            steps in prop::collection::vec(step(), 1..40),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("source");
            std::fs::write(&path, &content).unwrap();
            let overlay = Overlay::new(File::open(&path).unwrap(), Arc::default()).unwrap();
            let mut model = content.clone();
            for step in steps {
                match step {
                    Step::Write(at, data) => {
                        overlay.write_at(at, &data).unwrap();
                        let end = at as usize + data.len();
                        if model.len() < end { model.resize(end, 0); }
                        model[at as usize..end].copy_from_slice(&data);
                    }
                    Step::SetLength(length) => {
                        overlay.set_length(length);
                        model.resize(length as usize, 0);
                    }
                    Step::Read(at, length) => {
                        let mut out = vec![0; length];
                        let read = overlay.read_at(at, &mut out);
                        match model.get(at as usize..at as usize + length) {
                            Some(expected) => { read.unwrap(); prop_assert_eq!(out, expected); }
                            None => prop_assert!(read.is_err()),
                        }
                    }
                }
                prop_assert_eq!(overlay.length(), model.len() as u64);
            }
            prop_assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }
}
