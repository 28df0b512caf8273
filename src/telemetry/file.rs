//! The log file beside the main output: lines appended, opened again after
//! rotation, and never in the way of the node.
//!
//! A line that cannot be written is lost, and counted: a disk that is full must
//! stop neither the node nor its main log. When writing works again the file
//! says how many lines it lacks. Lines go straight to the kernel, so that none
//! is lost when the process is killed.

use super::{events, text};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing::Level;

/// Readable by the group, so that log collectors need not be root.
const MODE: u32 = 0o640;

/// A file to which lines are appended.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Absent until it could be opened for the first time.
    file: Option<File>,
    /// Lines that could not be written since the last that could.
    lost: u64,
    /// Whether the file ends in the middle of a line.
    torn: bool,
}

impl LogFile {
    /// Names the file; [`reopen`](Self::reopen) opens it.
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            state: Mutex::default(),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file under its name, as at first and after rotation; the file
    /// that was open before stays in use if that fails.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.file = Some(file);
        state.torn = false;
        Ok(())
    }

    /// Appends one line; the error is that of the first line lost in a row.
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { file, lost, torn } = &mut *state;
        let Some(file) = file else { return Ok(()) };
        let mut buffer = Vec::new();
        if *torn {
            buffer.push(b'\n');
        }
        if *lost > 0 {
            let note = format!("{lost} lines before this one could not be written to this file");
            let note = text::line(Level::WARN, "aspen::telemetry", &note);
            buffer.extend_from_slice(note.as_bytes());
        }
        buffer.extend_from_slice(line);
        let (written, result) = write_all(file, &buffer);
        if let Some(last) = written.checked_sub(1) {
            *torn = buffer[last] != b'\n';
        }
        let first = *lost == 0;
        *lost = if result.is_ok() { 0 } else { *lost + 1 };
        if first { result } else { Ok(()) }
    }
}

/// What `tracing-subscriber` writes to: each call is one line.
impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.append(line) {
            // This event comes back here and is lost like the line before it,
            // silently, since that one was the first.
            tracing::warn!(
                target: "aspen::telemetry",
                MESSAGE_ID = events::LOG_FILE_UNAVAILABLE,
                ASPEN_LOG_FILE = %self.path.display(),
                "Cannot write to the log file {}: {error}; lines are missing from it until this is cured",
                self.path.display(),
            );
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens for appending. A file that is created gets [`MODE`] whatever the umask
/// is; one that exists keeps the mode its owner gave it.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // O_NONBLOCK: a FIFO that nobody reads must not hold up the node.
    options
        .append(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let file = options.create(true).mode(MODE).open(path)?;
            file.set_permissions(Permissions::from_mode(MODE))?;
            Ok(file)
        }
        result => result,
    }
}

/// Writes as much as can be written, and says how much that was.
fn write_all(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::fs;

    fn log_in(dir: &tempfile::TempDir) -> LogFile {
        LogFile::new(&dir.path().join("node.log"))
    }

    #[test]
    fn a_new_file_is_created_readable_by_owner_and_group_only() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir);
        log.reopen().unwrap();
        let mode = fs::metadata(log.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, MODE);
    }

    #[test]
    fn an_existing_file_is_appended_to_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir);
        fs::write(log.path(), "before\n").unwrap();
        fs::set_permissions(log.path(), Permissions::from_mode(0o600)).unwrap();
        log.reopen().unwrap();
        (&log).write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "before\nafter\n");
        let mode = fs::metadata(log.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn after_rotation_lines_go_to_the_old_file_until_it_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir);
        let rotated = dir.path().join("node.log.1");
        log.reopen().unwrap();
        (&log).write_all(b"one\n").unwrap();
        fs::rename(log.path(), &rotated).unwrap();
        (&log).write_all(b"two\n").unwrap();
        log.reopen().unwrap();
        (&log).write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(log.path()).unwrap(), "three\n");
    }

    #[test]
    fn a_failed_reopen_keeps_the_file_that_was_open() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("log");
        let moved = dir.path().join("moved");
        fs::create_dir(&inner).unwrap();
        let log = LogFile::new(&inner.join("node.log"));
        log.reopen().unwrap();
        fs::rename(&inner, &moved).unwrap();
        assert_eq!(log.reopen().unwrap_err().kind(), ErrorKind::NotFound);
        (&log).write_all(b"still here\n").unwrap();
        let text = fs::read_to_string(moved.join("node.log")).unwrap();
        assert_eq!(text, "still here\n");
    }

    #[test]
    fn a_file_that_was_never_opened_swallows_lines() {
        let log = LogFile::new(Path::new("/nonexistent/aspen/node.log"));
        assert_eq!(log.reopen().unwrap_err().kind(), ErrorKind::NotFound);
        log.append(b"line\n").unwrap();
    }

    #[test]
    fn a_full_disk_loses_lines_reports_the_first_and_counts_them_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("node.log");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let log = LogFile::new(&link);
        log.reopen().unwrap();
        let error = log.append(b"one\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        log.append(b"two\n").unwrap();

        fs::remove_file(&link).unwrap();
        log.reopen().unwrap();
        log.append(b"three\n").unwrap();
        log.append(b"four\n").unwrap();
        let text = fs::read_to_string(&link).unwrap();
        let (note, rest) = text.split_once('\n').unwrap();
        assert!(
            note.ends_with("Z  WARN aspen::telemetry: 2 lines before this one could not be written to this file"),
            "{note}"
        );
        assert_eq!(rest, "three\nfour\n");
    }

    #[test]
    fn a_line_that_was_cut_short_does_not_run_into_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir);
        let rotated = dir.path().join("node.log.1");
        fs::write(log.path(), "whole\ncut sho").unwrap();
        log.reopen().unwrap();
        {
            let mut state = log.state.lock().unwrap();
            (state.lost, state.torn) = (1, true);
        }
        log.append(b"next\n").unwrap();
        fs::rename(log.path(), &rotated).unwrap();
        let text = fs::read_to_string(&rotated).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["whole", "cut sho"]);
        assert!(lines[2].ends_with("1 lines before this one could not be written to this file"));
        assert_eq!(lines[3..], ["next"]);
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = log_in(&dir);
        nix::unistd::mkfifo(log.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = log.reopen().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENXIO));
    }
}
