//! Writing into the configuration file that its node has been migrated.
//!
//! The file is someone else's: comments, order, white space, line ends, mode,
//! owner, attributes and a symbolic link to it stay as they are. It is replaced
//! atomically, and only when something in it has to change.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};
use xattr::FileExt as _;

use super::fragments::MAX_FILE;
use super::settings::Backend;
use crate::durable::{self, DurableError};
use crate::exit::Exit;

mod edit;
#[cfg(test)]
mod tests;

/// What follows the file's name in that of the file that is to replace it. One
/// that a killed run left behind is removed by the next.
const TEMPORARY_SUFFIX: &str = ".aspen-tmp";
/// The extended attribute that holds the access control list, which a
/// directory may hand down to a new file.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// What a migration did, as `[cluster.migrated]` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The backend that was left.
    pub from: Backend,
    /// The backend that replaced it; it becomes `cluster.storage_backend`.
    pub to: Backend,
    /// When, as RFC 3339 in UTC.
    pub at: String,
    /// The fingerprint of the source.
    pub fingerprint: String,
    /// How many keys were copied.
    pub keys: u64,
    /// The index of the last applied entry; none if nothing was ever applied.
    pub last_applied: Option<u64>,
    /// Where the source is kept.
    pub backup: PathBuf,
    /// The version of the program that did it.
    pub version: String,
}

/// Whether the file was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Written,
    /// It said all of this already, and was not touched.
    Unchanged,
}

/// The file could not be rewritten. It is as it was.
#[derive(Debug, thiserror::Error)]
#[error("{} does not tell of the migration", path.display())]
pub struct RewriteError {
    /// The file, as it was named.
    pub path: PathBuf,
    /// The lines that it should hold.
    pub by_hand: String,
    /// What failed.
    #[source]
    pub failure: Failure,
}

/// What failed in rewriting the file.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not there, or its links lead nowhere.
    #[error("cannot find {}", path.display())]
    Find {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It may not be written to by this user.
    #[error("cannot write to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Its mode lets nobody write to it, which is respected of `root` too.
    #[error("{} is read-only (mode {mode:04o})", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no TOML (any more).
    #[error("line {line} is not valid TOML: {message}")]
    Parse {
        /// The line, from 1.
        line: usize,
        /// The parser's words.
        message: String,
    },
    /// It says `cluster` in a way that cannot be extended without rewriting the
    /// operator's own lines.
    #[error("{key} is written in a form that only a person should change")]
    Form {
        /// The key.
        key: &'static str,
    },
    /// Somebody else changed it while it was being rewritten.
    #[error("{} was changed by someone else at the same time", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It could not be replaced.
    #[error("cannot replace {}", path.display())]
    Replace {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        source: DurableError,
    },
}

impl RewriteError {
    /// The exit code that fits, for a program that would stop for this; the node does not.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match &self.failure {
            Failure::Read { source, .. } | Failure::Write { source, .. } => Exit::of_io(source),
            Failure::Replace { source, .. } => source.exit(),
            Failure::ReadOnly { .. } => Exit::Permission,
            Failure::Find { .. }
            | Failure::Parse { .. }
            | Failure::Form { .. }
            | Failure::Changed { .. } => Exit::Config,
        }
    }
}

/// Sets `cluster.storage_backend` and the table `cluster.migrated` in the
/// configuration file `path`, or in the file that it is a link to.
///
/// # Errors
/// When that is not possible; the file is then as it was, and the error says
/// what a person should write into it.
pub fn record_migration(path: &Path, migrated: &Migrated) -> Result<Outcome, RewriteError> {
    rewrite(path, migrated).map_err(|failure| RewriteError {
        path: path.to_owned(),
        by_hand: edit::by_hand(migrated),
        failure,
    })
}

fn rewrite(path: &Path, migrated: &Migrated) -> Result<Outcome, Failure> {
    let found = path.canonicalize();
    let path = found.map_err(|source| Failure::Find {
        path: path.to_owned(),
        source,
    })?;
    let replace = |source| Failure::Replace {
        path: path.clone(),
        source,
    };
    let temporary = temporary_beside(&path);
    if temporary.symlink_metadata().is_ok() {
        durable::remove(&temporary).map_err(replace)?;
    }

    let (old, file, text) = read(&path)?;
    let new = edit::edit(&text, migrated)?;
    if new == text {
        return Ok(Outcome::Unchanged);
    }
    check_writable(&path, &old)?;
    // Not proof against an editor that saves in the next millisecond, but
    // against one that saved while the migration was deciding.
    let now = path.metadata().map_err(|source| Failure::Read {
        path: path.clone(),
        source,
    })?;
    if identity(&now) != identity(&old) {
        return Err(Failure::Changed { path });
    }
    durable::replace(&path, &temporary, new.as_bytes(), |target| {
        make_alike(target, &file, &old)
    })
    .map_err(replace)?;
    Ok(Outcome::Written)
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(TEMPORARY_SUFFIX);
    path.with_file_name(name)
}

fn read(path: &Path) -> Result<(Metadata, File, String), Failure> {
    let read = || {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let mut text = String::new();
        (&mut file).take(MAX_FILE).read_to_string(&mut text)?;
        if metadata.len() > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok((metadata, file, text))
    };
    read().map_err(|source| Failure::Read {
        path: path.to_owned(),
        source,
    })
}

/// A rename would replace a file that may not be written to as well, wherever its
/// directory may: but whoever took the permission away meant its content.
fn check_writable(path: &Path, old: &Metadata) -> Result<(), Failure> {
    let path = path.to_owned();
    let mode = old.mode() & 0o7777;
    if mode & 0o222 == 0 {
        return Err(Failure::ReadOnly { path, mode });
    }
    match File::options().write(true).open(&path) {
        Ok(_) => Ok(()),
        Err(source) => Err(Failure::Write { path, source }),
    }
}

/// What changes when a file is replaced or written to.
fn identity(metadata: &Metadata) -> (u64, u64, u64, i64, i64) {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// Gives the new file the owner, the mode and the extended attributes of the old one.
fn make_alike(new: &File, old: &File, metadata: &Metadata) -> io::Result<()> {
    let made = new.metadata()?;
    // Only where it differs: a service that may not change owners at all (`@privileged`
    // filtered) can still rewrite its own file.
    let uid = (made.uid() != metadata.uid()).then(|| Uid::from_raw(metadata.uid()));
    let gid = (made.gid() != metadata.gid()).then(|| Gid::from_raw(metadata.gid()));
    if uid.is_some() || gid.is_some() {
        nix::unistd::fchown(new, uid, gid)?;
    }
    // After the owner, since a change of owner drops bits.
    new.set_permissions(PermissionsExt::from_mode(metadata.mode() & 0o7777))?;
    copy_attributes(new, old)
}

fn copy_attributes(new: &File, old: &File) -> io::Result<()> {
    let names = match old.list_xattr() {
        Ok(names) => names,
        // A file system without them.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut has_access_list = false;
    for name in names {
        has_access_list |= name == ACCESS_LIST;
        let value = old.get_xattr(&name)?;
        if let Some(value) = value
            && new.get_xattr(&name)?.as_ref() != Some(&value)
        {
            new.set_xattr(&name, &value)?;
        }
    }
    let inherited = !has_access_list && new.list_xattr()?.any(|name| name == ACCESS_LIST);
    if inherited {
        new.remove_xattr(ACCESS_LIST)?;
    }
    Ok(())
}
