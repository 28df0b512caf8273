//! The data-directory lock: one process at a time, node or tool.
//!
//! The lock is `flock` on a file that is never unlinked, so that no two
//! processes can hold locks on different files of the same name. The file's
//! content names the owner and is only for the other's error message.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::durable::FILE_MODE;
use crate::exit::Exit;
use crate::layout::DataDir;

/// Longest owner note that is read back.
const MAX_OWNER_BYTES: u64 = 200;

/// Why the lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by another process ({owner}); stop it, then try again", path.display())]
    Held {
        /// The data directory.
        path: PathBuf,
        /// Pid and program, as its owner wrote them.
        owner: String,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {}; {}", path.display(), advice(source))]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        // What the service's sandbox keeps from it looks like this.
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount its file system for writing; under systemd, a directory other than the unit's own \
             needs ReadWritePaths= in a drop-in (systemctl edit)"
        }
        _ => "check that this user may write to its directory",
    }
}

impl LockError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Held { .. } => Exit::Locked,
            Self::Io { source, .. } => Exit::of_io(source),
        }
    }
}

/// A data directory that no other process uses as long as this value lives.
#[derive(Debug)]
pub struct LockedDir {
    dir: DataDir,
    _file: File,
}

impl LockedDir {
    /// The directory that is locked.
    #[must_use]
    pub fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// Takes the lock of `dir`, which must exist, or fails at once.
    ///
    /// # Errors
    /// When another process has it, or the lock file cannot be used.
    pub fn take(dir: DataDir, program: &str) -> Result<Self, LockError> {
        let path = dir.lock();
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = open(&path).map_err(io)?;
        match fs2::FileExt::try_lock_exclusive(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let owner = owner(&file);
                return Err(LockError::Held {
                    path: dir.path().to_owned(),
                    owner,
                });
            }
            Err(error) => return Err(io(error)),
        }
        leave_to_owner_of(&dir, &file);
        // Who it is helps the next one to understand; without it the lock is as good.
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "pid {} {program}", std::process::id()));
        Ok(Self { dir, _file: file })
    }
}

/// Opens for writing, or for reading where the file belongs to somebody else:
/// a lock on it is worth the same.
fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.exists() => {
            File::open(path)
        }
        opened => opened,
    }
}

/// Root converts a node's data: the lock file that it made must not keep the
/// node's own user out.
fn leave_to_owner_of(dir: &DataDir, file: &File) {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    if nix::unistd::geteuid().is_root()
        && let (Ok(dir), Ok(made)) = (dir.path().metadata(), file.metadata())
        && dir.uid() != made.uid()
    {
        // Without it the node says that it may not lock, and what to do.
        let _ = fchown(file, Some(dir.uid()), Some(dir.gid()));
    }
}

fn owner(file: &File) -> String {
    let mut note = String::new();
    // A lock whose owner did not get to write its note is held all the same.
    let _ = file.take(MAX_OWNER_BYTES).read_to_string(&mut note);
    let note: String = note.trim().chars().filter(|c| !c.is_control()).collect();
    if note.is_empty() {
        "it left no name".to_owned()
    } else {
        note
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_second_owner_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = LockedDir::take(DataDir::new(dir.path()), "aspen-node").unwrap();
        let second = LockedDir::take(DataDir::new(dir.path()), "aspen-migrate").unwrap_err();
        let pid = std::process::id();
        assert!(
            second
                .to_string()
                .contains(&format!("pid {pid} aspen-node")),
            "{second}"
        );
        assert_eq!(second.exit(), Exit::Locked);
        drop(first);
        LockedDir::take(DataDir::new(dir.path()), "aspen-migrate").unwrap();
    }
}
