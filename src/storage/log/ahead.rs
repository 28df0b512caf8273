//! Blocks before they are needed.
//!
//! redb doubles its file by its length alone, and the blocks come one by one
//! with the pages that are written. Each fdatasync then has the file system's
//! journal to write too, which makes it half as long again. So the file is
//! filled with zeros a piece ahead of the last page: one fdatasync in hundreds
//! pays for all. Pages that are freed and used again have their blocks.
//!
//! Invariant: no byte at `filled` or behind it was ever written, so that zeros
//! take nothing away. Where that is not known, `filled` is too high rather than
//! too low, which costs time and nothing else.

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use redb::StorageBackend;

use crate::durable;

/// How much is filled at once: some milliseconds of writing, for thousands of entries.
const AHEAD: usize = 1 << 20;
static ZEROS: [u8; AHEAD] = [0; AHEAD];

/// How far a file is filled.
#[derive(Debug)]
pub(super) struct Ahead {
    filled: Mutex<u64>,
}

/// Behind the last byte of `file` that was written, as far as the file system
/// tells; else the file's length.
pub(super) fn written(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = 0;
    loop {
        let hole = match lseek(file, end, Whence::SeekHole) {
            Ok(hole) => hole,
            Err(_) => return Ok(length),
        };
        match lseek(file, hole, Whence::SeekData) {
            Ok(data) => end = data,
            // No data from there on.
            Err(Errno::ENXIO) => return Ok(u64::try_from(hole).unwrap_or(length)),
            Err(_) => return Ok(length),
        }
    }
}

impl Ahead {
    /// Nothing at `written` or behind it was ever written to the file.
    pub(super) fn new(written: u64) -> Self {
        Self {
            filled: Mutex::new(written),
        }
    }

    pub(super) fn set_len(&self, file: &dyn StorageBackend, len: u64) -> io::Result<()> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(len)?;
        *filled = (*filled).min(len);
        Ok(())
    }

    pub(super) fn write(
        &self,
        file: &dyn StorageBackend,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        fill(file, &mut filled, offset + data.len() as u64)?;
        file.write(offset, data)
    }
}

/// Fills behind `end` if that is where nothing was written yet.
fn fill(file: &dyn StorageBackend, filled: &mut u64, end: u64) -> io::Result<()> {
    if end <= *filled {
        return Ok(());
    }
    let upto = file.len()?.min(end + AHEAD as u64);
    // A page that lies far behind the others leaves a hole before it.
    let from = (*filled).max(upto.saturating_sub(2 * AHEAD as u64));
    *filled = upto.max(end);
    let mut at = from;
    while at < upto {
        let length = (upto - at).min(AHEAD as u64);
        let zeros = usize::try_from(length).map_or(&ZEROS[..], |length| &ZEROS[..length]);
        match file.write(at, zeros) {
            // Room for what matters may be left.
            Err(error) if durable::is_full(&error) => return Ok(()),
            result => result?,
        }
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use redb::backends::FileBackend;

    use super::*;

    const LENGTH: u64 = 16 << 20;

    fn file(dir: &tempfile::TempDir) -> File {
        let path = dir.path().join("file");
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        file.open(path).unwrap()
    }

    /// A file and how far it is filled.
    struct Filled(FileBackend, Ahead);

    impl Filled {
        fn of(file: &File) -> Self {
            let backend = FileBackend::new(file.try_clone().unwrap()).unwrap();
            Self(backend, Ahead::new(written(file).unwrap()))
        }

        fn set_len(&self, len: u64) {
            self.1.set_len(&self.0, len).unwrap();
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.1.write(&self.0, offset, data).unwrap();
        }
    }

    #[test]
    fn zeros_never_take_the_place_of_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = vec![0_u8; usize::try_from(LENGTH).unwrap()];
        let places: [u64; 7] = [0, 4096, 9 << 20, 5 << 20, 8192, LENGTH - 4096, 3 << 20];
        for (n, place) in places.into_iter().enumerate() {
            // Opened anew each time, as after a restart.
            let file = file(&dir);
            let ahead = Filled::of(&file);
            if n == 0 {
                ahead.set_len(LENGTH);
            }
            let page = [u8::try_from(n).unwrap() + 1; 4096];
            ahead.write(place, &page);
            let at = usize::try_from(place).unwrap();
            model[at..at + page.len()].copy_from_slice(&page);
            let mut found = vec![0; model.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == model, "after page {n}");
        }
    }

    #[test]
    fn a_page_behind_the_last_brings_blocks_for_those_to_come() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        let ahead = Filled::of(&file);
        ahead.set_len(LENGTH);
        assert_eq!(written(&file).unwrap(), 0);
        ahead.write(0, &[1; 4096]);
        file.sync_all().unwrap();
        let blocks = file.metadata().unwrap().blocks();
        assert!(blocks * 512 >= AHEAD as u64, "{blocks} blocks");
        ahead.write(4096, &[1; 4096]);
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }

    #[test]
    fn what_was_cut_off_is_filled_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        let ahead = Filled::of(&file);
        ahead.set_len(LENGTH);
        ahead.write(8 << 20, &[1; 4096]);
        ahead.set_len(4096);
        ahead.set_len(LENGTH);
        ahead.write(4096, &[1; 4096]);
        assert!(written(&file).unwrap() > AHEAD as u64);
    }
}
