//! Frames of SQLite's write-ahead log, gathered so that a commit is one write.
//!
//! SQLite writes each frame with two calls, 24 bytes and a page. A batch of puts of random
//! keys is a frame for each, so that the calls take longer than what they do.
//!
//! Invariants:
//!
//! - A transaction is in the file before SQLite hears that it is written: nothing is held
//!   once its last frame was taken, which says so in its header. Only the writer reads frames
//!   before the log's index names them, and that comes after.
//! - What is held is one piece behind everything that the transaction has written. SQLite goes
//!   back to frames of it to change them; that goes to the file as it comes.
//! - What cannot be written is held until the transaction is rolled back, so that whatever
//!   comes to need it fails as well. SQLite takes a write that was held for done.
//! - What a transaction had written before its end, because the page cache was too small
//!   for it, goes with it when it is rolled back ([`Frames::forget`]): it must not get to the
//!   file later, where another process may have written since.

use std::ffi::c_int;

use rusqlite::ffi::SQLITE_OK;

/// Most that is held: SQLite's own VFS writes no more in one call (`seekAndWriteFd`).
const HELD_BYTES: usize = (128 << 10) - 1;
/// Length of a frame's header, by SQLite's file format.
const HEADER_BYTES: usize = 24;

/// What is held of one log.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Where `held` begins in the file.
    offset: i64,
    held: Vec<u8>,
    /// The end of what was taken so far. Behind the transaction's frames at least.
    end: i64,
    /// The frame that was begun last is the end of its transaction.
    is_last: bool,
}

impl Frames {
    /// Takes a write; `out` writes to the file. Answers SQLite's code, of the first
    /// write that failed or of success.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        offset: i64,
        out: impl Fn(&[u8], i64) -> c_int,
    ) -> c_int {
        let is_header = bytes.len() == HEADER_BYTES;
        let is_next = !self.held.is_empty() && offset == self.end;
        if !is_next || self.held.len() + bytes.len() > HELD_BYTES {
            let code = self.settle(&out);
            if code != SQLITE_OK {
                return code;
            }
            if !is_next && (!is_header || offset < self.end) {
                // The log's header says that it begins anew.
                let before = if offset == 0 { 0 } else { self.end };
                self.end = before.max(offset.saturating_add(length(bytes)));
                return out(bytes, offset);
            }
            self.offset = offset;
        }
        self.held.extend_from_slice(bytes);
        self.end = offset.saturating_add(length(bytes));
        if is_header {
            // How many pages the database has after the transaction; within it, none.
            self.is_last = bytes.get(4..8).is_some_and(|pages| pages != [0; 4]);
            return SQLITE_OK;
        }
        match self.is_last {
            true => self.settle(out),
            false => SQLITE_OK,
        }
    }

    /// Writes what is held.
    pub(super) fn settle(&mut self, out: impl Fn(&[u8], i64) -> c_int) -> c_int {
        if self.held.is_empty() {
            return SQLITE_OK;
        }
        let code = out(&self.held, self.offset);
        if code == SQLITE_OK {
            self.held.clear();
        }
        code
    }

    /// Whether anything is held of `amount` bytes at `offset`.
    pub(super) fn holds(&self, amount: usize, offset: i64) -> bool {
        let (from, to) = (self.offset, self.offset.saturating_add(length(&self.held)));
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        offset < to && offset.saturating_add(amount) > from
    }

    /// The transaction was rolled back.
    pub(super) fn forget(&mut self) {
        self.held.clear();
        self.end = 0;
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use rusqlite::ffi::SQLITE_FULL;

    use super::*;

    const PAGE: usize = 4096;
    const FRAME: usize = HEADER_BYTES + PAGE;
    const LOG_HEADER: usize = 32;

    /// The writes that got to the file: where, and how much.
    #[derive(Default)]
    struct File {
        frames: Frames,
        writes: RefCell<Vec<(i64, usize)>>,
        is_full: bool,
    }

    impl File {
        fn write(&mut self, bytes: &[u8], offset: i64) -> c_int {
            let (writes, is_full) = (&self.writes, self.is_full);
            self.frames.write(bytes, offset, |bytes, offset| {
                writes.borrow_mut().push((offset, bytes.len()));
                if is_full { SQLITE_FULL } else { SQLITE_OK }
            })
        }

        /// A frame as SQLite writes it, the `n`th of the log.
        fn frame(&mut self, n: usize, is_last: bool) -> c_int {
            let mut header = [7; HEADER_BYTES];
            header[4..8].fill(u8::from(is_last));
            let offset = at(n);
            match self.write(&header, offset) {
                SQLITE_OK => self.write(&[9; PAGE], offset + 24),
                failed => failed,
            }
        }

        fn taken(&mut self) -> Vec<(i64, usize)> {
            std::mem::take(self.writes.get_mut())
        }
    }

    /// Where the `n`th frame of the log is.
    fn at(n: usize) -> i64 {
        i64::try_from(LOG_HEADER + n * FRAME).unwrap()
    }

    #[test]
    fn a_commit_is_one_write_and_is_in_the_file_at_its_last_frame() {
        let mut file = File::default();
        assert_eq!(file.write(&[1; 32], 0), SQLITE_OK);
        assert_eq!(file.taken(), [(0, 32)]);
        for n in 0..4 {
            assert_eq!(file.frame(n, n == 3), SQLITE_OK);
        }
        assert_eq!(file.taken(), [(at(0), 4 * FRAME)]);
        assert_eq!(file.frame(4, true), SQLITE_OK);
        assert_eq!(file.taken(), [(at(4), FRAME)]);
    }

    #[test]
    fn a_large_commit_is_written_in_pieces_that_sqlite_can_write_at_once() {
        let mut file = File::default();
        for n in 0..100 {
            assert_eq!(file.frame(n, n == 99), SQLITE_OK);
        }
        let pieces = file.taken();
        let mut end = at(0);
        for (offset, bytes) in &pieces {
            assert_eq!(*offset, end);
            assert!(*bytes <= 0x1ffff, "{bytes}");
            end += i64::try_from(*bytes).unwrap();
        }
        assert_eq!(end, at(100));
        assert_eq!(pieces.len(), 4);
    }

    #[test]
    fn a_frame_that_is_changed_is_written_as_it_comes() {
        let mut file = File::default();
        for n in 0..2 {
            file.frame(n, false);
        }
        // The page of the first frame, then the last frame, then new checksums for both.
        file.write(&[8; PAGE], at(0) + 24);
        file.frame(2, true);
        file.write(&[7; HEADER_BYTES], at(1));
        file.write(&[7; HEADER_BYTES], at(2));
        let expected = [
            (at(0), 2 * FRAME),
            (at(0) + 24, PAGE),
            (at(2), FRAME),
            (at(1), HEADER_BYTES),
            (at(2), HEADER_BYTES),
        ];
        assert_eq!(file.taken(), expected);
    }

    #[test]
    fn a_log_that_begins_anew_is_gathered_from_its_beginning() {
        let mut file = File::default();
        file.frame(7, true);
        file.write(&[1; 32], 0);
        file.taken();
        for n in 0..3 {
            file.frame(n, n == 2);
        }
        assert_eq!(file.taken(), [(at(0), 3 * FRAME)]);
    }

    #[test]
    fn a_commit_that_cannot_be_written_fails_until_it_is_rolled_back() {
        let mut file = File {
            is_full: true,
            ..File::default()
        };
        assert_eq!(file.frame(0, false), SQLITE_OK);
        assert_eq!(file.frame(1, true), SQLITE_FULL);
        assert_eq!(file.frames.settle(|_, _| SQLITE_FULL), SQLITE_FULL);
        file.frames.forget();
        file.taken();
        // The same transaction again, once there is space.
        file.is_full = false;
        for n in 0..2 {
            assert_eq!(file.frame(n, n == 1), SQLITE_OK);
        }
        assert_eq!(file.taken(), [(at(0), 2 * FRAME)]);
    }

    #[test]
    fn what_a_transaction_that_is_rolled_back_had_written_never_gets_to_the_file() {
        let mut file = File::default();
        file.frame(0, false);
        file.frames.forget();
        assert_eq!(file.frames.settle(|_, _| SQLITE_FULL), SQLITE_OK);
        assert_eq!(file.taken(), []);
    }

    #[test]
    fn what_is_held_is_known_to_the_byte() {
        let mut file = File::default();
        assert!(!file.frames.holds(PAGE, at(0)));
        file.frame(1, false);
        let held = |amount, offset| file.frames.holds(amount, offset);
        assert!(held(1, at(1)) && held(1, at(2) - 1) && held(FRAME + 1, at(0)));
        assert!(!held(FRAME, at(0)) && !held(PAGE, at(2)));
    }
}
