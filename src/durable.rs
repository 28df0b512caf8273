//! The only code that creates, copies, renames, fsyncs or removes files.
//!
//! Invariants that the migration builds on:
//!
//! - A function returns `Ok` only when what its name says would survive a
//!   power cut, or its documentation says that it does not.
//! - A name that others may read is only ever changed by `rename`, so it
//!   holds either the old content or the new, complete one.
//! - Every operation passes a *crash point*. Debug builds can be told to die
//!   at the n-th (`ASPEN_TEST_CRASH_AT`) or to be stopped there
//!   (`ASPEN_TEST_STOP_AT`), which is how `tests/crash_matrix.rs` and
//!   `tests/interruptions.rs` show that a start may be killed anywhere.

mod direct;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags};
use nix::libc;

use self::direct::Direct;
use crate::exit::Exit;

/// Mode of the files that Aspen makes: the node's own user's alone.
pub const FILE_MODE: u32 = 0o600;
/// Mode of the directories that Aspen makes.
pub const DIR_MODE: u32 = 0o750;

/// Bytes copied between two looks at cancellation, two progress reports and
/// two hints to the kernel to start writing: large enough to cost nothing,
/// small enough that a stop or a final fsync never waits long.
pub const COPY_CHUNK: u64 = 8 << 20;

/// A file operation that failed, with what it was tried on.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct DurableError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DurableError {
    /// What failed, in words that follow "cannot".
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The operating system's reason.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        &self.source
    }

    /// The exit code that fits the reason.
    #[must_use]
    pub fn exit(&self) -> Exit {
        Exit::of_io(&self.source)
    }
}

type Result<T> = std::result::Result<T, DurableError>;

fn context<T>(result: io::Result<T>, operation: &'static str, path: &Path) -> Result<T> {
    result.map_err(|source| DurableError {
        operation,
        path: path.to_owned(),
        source,
    })
}

/// Dies here when a test asked for it, or has the process be told to stop;
/// compiled into debug builds only.
#[cfg(debug_assertions)]
fn crash_point(operation: &str, path: &Path) {
    use nix::sys::signal::{Signal, kill};
    use std::sync::atomic::{AtomicU64, Ordering};
    /// Long enough for a signal to be noticed, so that a test sees what it changes.
    const NOTICED: std::time::Duration = std::time::Duration::from_millis(50);
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let n = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(trace) = std::env::var_os("ASPEN_TEST_CRASH_TRACE")
        && let Ok(mut file) = OpenOptions::new().append(true).create(true).open(trace)
    {
        // In one piece: several threads pass here.
        let line = format!("{n} {operation} {}\n", path.display());
        let _ = file.write_all(line.as_bytes());
    }
    let is_chosen = |variable| {
        let chosen = std::env::var(variable).ok();
        chosen.and_then(|at| at.parse::<u64>().ok()) == Some(n)
    };
    if is_chosen("ASPEN_TEST_CRASH_AT") {
        let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
    }
    if is_chosen("ASPEN_TEST_STOP_AT") {
        let _ = kill(nix::unistd::getpid(), Signal::SIGTERM);
        std::thread::sleep(NOTICED);
    }
}

#[cfg(not(debug_assertions))]
fn crash_point(_operation: &str, _path: &Path) {}

/// Creates a file that must not exist yet, readable by its owner alone. The
/// name is not durable before [`fsync_parent`].
///
/// # Errors
/// When it exists or cannot be created.
pub fn create_new(path: &Path) -> Result<File> {
    crash_point("create", path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path);
    context(file, "create", path)
}

/// Creates a file in place of any that has its name, readable by its owner alone, its name
/// durable. For a file that means nothing until another one says so, and whose loss is then
/// found out: it belongs to no start, and no test has one die here.
///
/// # Errors
/// When one of its name cannot be removed, or it cannot be created.
pub fn create_spare(path: &Path) -> Result<File> {
    remove_spare(path)?;
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = context(options.mode(FILE_MODE).open(path), "create", path)?;
    let dir = parent(path);
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    context(synced, "fsync directory", dir)?;
    Ok(file)
}

/// Removes such a file, if it is there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_spare(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            context(Err(error), "remove", path)
        }
        _ => Ok(()),
    }
}

/// Creates a directory, its missing parents too, for the owner and its group.
///
/// # Errors
/// When it cannot be created, or something else has its name.
pub fn create_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_dir() {
        return Ok(());
    }
    crash_point("create directory", path);
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIR_MODE)
        .create(path);
    context(made, "create directory", path)?;
    fsync_parent(path)
}

/// Makes a file's content and length durable.
///
/// # Errors
/// When the device reports an error; the content is then unknown.
pub fn fsync(file: &File, path: &Path) -> Result<()> {
    crash_point("fsync", path);
    context(file.sync_all(), "fsync", path)
}

/// Makes the names in the directory that holds `path` durable.
///
/// # Errors
/// When the directory cannot be opened or its device reports an error.
pub fn fsync_parent(path: &Path) -> Result<()> {
    let dir = parent(path);
    crash_point("fsync directory", dir);
    context(
        File::open(dir).and_then(|d| d.sync_all()),
        "fsync directory",
        dir,
    )
}

/// The directory that holds `path`.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Renames without ever replacing: fails with `AlreadyExists` where `to` is
/// there. Durable after [`fsync_parent`].
///
/// # Errors
/// When `to` exists or the file system refuses.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    crash_point("rename", to);
    let flags = RenameFlags::RENAME_NOREPLACE;
    let renamed = match nix::fcntl::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) {
        // File systems without the flag (NFS, some FUSE): the data-directory lock is
        // held, so that nothing of ours can appear between the look and the rename.
        Err(nix::Error::EINVAL | nix::Error::ENOSYS) if !to.exists() => std::fs::rename(from, to),
        other => other.map_err(io::Error::from),
    };
    context(renamed, "rename into place", to)
}

/// Renames, replacing what is there. Durable after [`fsync_parent`].
///
/// # Errors
/// When the file system refuses.
pub fn rename_over(from: &Path, to: &Path) -> Result<()> {
    crash_point("rename over", to);
    context(std::fs::rename(from, to), "rename over", to)
}

/// Makes `to` another name of `from`. Durable after [`fsync_parent`].
///
/// # Errors
/// When `to` exists or the file system has no hard links.
pub fn hard_link(from: &Path, to: &Path) -> Result<()> {
    crash_point("link", to);
    context(std::fs::hard_link(from, to), "link", to)
}

/// Takes a file from everybody but its owner. Not durable by itself.
///
/// # Errors
/// When it cannot be looked at, or belongs to somebody else.
pub fn keep_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = context(path.metadata(), "look at", path)?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    crash_point("set the mode", path);
    let private = std::fs::Permissions::from_mode(FILE_MODE);
    context(
        std::fs::set_permissions(path, private),
        "set the mode of",
        path,
    )
}

/// Removes a file; one that is not there is fine, and answers `false`.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<bool> {
    crash_point("remove", path);
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => context(Err(error), "remove", path),
    }
}

/// Replaces the content of `path` by `bytes`, atomically and durably, through
/// `temporary` beside it (a leftover of which is overwritten). The temporary
/// file is handed to `prepare` before the rename, to set its mode or owner.
///
/// # Errors
/// When any step fails; `path` then still has its old content.
pub fn replace(
    path: &Path,
    temporary: &Path,
    bytes: &[u8],
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> Result<()> {
    remove(temporary)?;
    let mut file = create_new(temporary)?;
    let done = (|| {
        context(prepare(&file), "set owner and mode of", temporary)?;
        context(file.write_all(bytes), "write", temporary)?;
        fsync(&file, temporary)?;
        rename_over(temporary, path)?;
        fsync_parent(path)
    })();
    if done.is_err() {
        // The reason of the failure matters more than that of a failed clean-up.
        let _ = std::fs::remove_file(temporary);
    }
    done
}

/// Appends `bytes` to a file, made when absent, and makes them durable.
///
/// # Errors
/// When it cannot be opened, written or synced; what it had is then still all it has.
pub fn append(path: &Path, bytes: &[u8]) -> Result<()> {
    crash_point("append", path);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .open(path);
    let mut file = context(file, "open", path)?;
    let before = context(file.metadata(), "look at", path)?.len();
    let written = context(file.write_all(bytes), "append to", path);
    if written.is_err() {
        // What a full disk cut short is worth less than nothing.
        let _ = file.set_len(before);
    }
    written?;
    fsync(&file, path)?;
    fsync_parent(path)
}

/// How [`copy`] made its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Shared blocks: no data was moved.
    Reflink,
    /// The bytes were copied; holes stayed holes.
    Bytes,
}

/// Copies all of `from` into the empty file `to`: by reflink where the file
/// system has it, else by copying its data and keeping its holes.
/// `on_progress` is told of bytes passed since its last call and stops the
/// copy by an error. Not durable before [`fsync`].
///
/// # Errors
/// When reading or writing fails, or `on_progress` says to stop.
pub fn copy(
    from: &File,
    to: &File,
    path: &Path,
    on_progress: &mut dyn FnMut(u64) -> io::Result<()>,
) -> Result<Copied> {
    crash_point("copy", path);
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    let length = context(from.metadata(), "read the length of the source of", path)?.len();
    // SAFETY: both descriptors are open for the whole call; FICLONE takes a
    // descriptor by value and touches no memory of ours.
    let cloned = unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd().unsigned_abs().into()) };
    if cloned.is_ok() {
        context(on_progress(length), "copy to", path)?;
        return Ok(Copied::Reflink);
    }
    context(to.set_len(length), "allocate", path)?;
    context(
        copy_data(from, to, path, length, on_progress),
        "copy to",
        path,
    )?;
    Ok(Copied::Bytes)
}

fn copy_data(
    from: &File,
    to: &File,
    path: &Path,
    length: u64,
    on_progress: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let chunk = usize::try_from(COPY_CHUNK).map_err(io::Error::other)?;
    let mut direct = Direct::begin(to, chunk);
    let mut at = 0;
    while at < length {
        let (start, end) = next_data(from, at, length)?;
        on_progress(start - at)?;
        at = start;
        while at < end {
            crash_point("copy a chunk", path);
            let wanted = (end - at).min(COPY_CHUNK);
            let copied = match &mut direct {
                Some(direct) => direct.copy(from, at, wanted)?,
                None => false,
            };
            if !copied {
                direct = None;
                copy_range(from, to, at, wanted)?;
                start_writeback(to, at, wanted);
            }
            on_progress(wanted)?;
            at += wanted;
        }
    }
    Ok(())
}

/// The next stretch of data at or after `at`; empty at the end where only a hole is left.
fn next_data(file: &File, at: u64, length: u64) -> io::Result<(u64, u64)> {
    use nix::unistd::{Whence, lseek};
    let seek = |position: u64, whence| -> io::Result<u64> {
        let position = i64::try_from(position).map_err(io::Error::other)?;
        let found = lseek(file, position, whence)?;
        u64::try_from(found).map_err(io::Error::other)
    };
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start.min(length),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Ok((length, length));
        }
        // A file system that cannot tell holes from data: all is data.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok((at, length)),
        Err(error) => return Err(error),
    };
    let end = seek(start, Whence::SeekHole)?.min(length);
    Ok((start, end))
}

fn copy_range(from: &File, to: &File, at: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let end = at + length;
    let mut at = at;
    while at < end {
        let mut source = i64::try_from(at).map_err(io::Error::other)?;
        let mut target = source;
        let wanted = usize::try_from(end - at).map_err(io::Error::other)?;
        match nix::fcntl::copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => at += copied as u64,
            Err(nix::Error::EINTR) => {}
            // Across file systems or kinds of them: through memory.
            Err(
                nix::Error::EXDEV
                | nix::Error::EINVAL
                | nix::Error::ENOSYS
                | nix::Error::EOPNOTSUPP,
            ) => {
                let mut buffer = vec![0; wanted.min(1 << 20)];
                from.read_exact_at(&mut buffer, at)?;
                to.write_all_at(&buffer, at)?;
                at += buffer.len() as u64;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Asks the kernel to start writing a range, without waiting: a later fsync
/// then has little left to do. A hint: failure changes nothing.
pub fn start_writeback(file: &File, offset: u64, length: u64) {
    write_range(file, offset, length, libc::SYNC_FILE_RANGE_WRITE);
}

/// As [`start_writeback`], and waits until the range is written. It is durable
/// only after an fsync.
pub fn write_back(file: &File, offset: u64, length: u64) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    write_range(file, offset, length, flags);
}

fn write_range(file: &File, offset: u64, length: u64, flags: u32) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    // SAFETY: plain system call on an open descriptor; it touches no memory of ours.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) };
}

/// Whether it is only that there is no room, on the disk or in the quota.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// Bytes free for this process on the file system that holds `dir`.
///
/// # Errors
/// When the file system cannot be asked.
pub fn free_space(dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir).map_err(io::Error::from);
    let stat = context(stat, "ask for the free space of", dir)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Whether two paths lie on the same file system.
///
/// # Errors
/// When either cannot be looked at.
pub fn same_file_system(a: &Path, b: &Path) -> Result<bool> {
    let device = |path: &Path| context(path.metadata().map(|m| m.dev()), "look at", path);
    Ok(device(a)? == device(b)?)
}
