//! A file that is being made: it has a reserved name until it is complete, and
//! is gone again, with whatever SQLite put beside it, when it is not published.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::MigrationError;
use super::source::SourceError;
use crate::durable::{self, DurableError};
use crate::layout;

/// A file on its way to a name.
pub(super) struct Temporary {
    path: PathBuf,
    /// Held open: it has the lock, and the inode that shall get the name.
    file: File,
    published: bool,
}

impl Temporary {
    /// Makes an empty file beside `target`. What a killed run left there goes first.
    pub(super) fn create(target: &Path) -> Result<Self, MigrationError> {
        let path = layout::temporary(target);
        if let Ok(existing) = File::open(&path)
            && fs2::FileExt::try_lock_exclusive(&existing).is_err()
        {
            return Err(MigrationError::Source(SourceError::InUse(path)));
        }
        remove_with_companions(&path)?;
        let file = match durable::create_new(&path) {
            Err(error) if error.io().kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(MigrationError::Source(SourceError::InUse(path)));
            }
            created => created?,
        };
        let made = Self {
            path,
            file,
            published: false,
        };
        made.lock()?;
        Ok(made)
    }

    /// Tells other tools that this file is no leftover. Again after redb had
    /// it open, which takes the same lock and gives it back.
    pub(super) fn lock(&self) -> Result<(), MigrationError> {
        match fs2::FileExt::try_lock_exclusive(&self.file) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(
                MigrationError::Source(SourceError::InUse(self.path.clone())),
            ),
            // A file system without locks: `publish` looks whose file it is.
            _ => Ok(()),
        }
    }

    /// The reserved name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Root converts a node's data: the copy must belong to the node's user.
    /// For others the call fails, and the files are theirs anyway.
    pub(super) fn give_to_owner_of(&self, source: &File) {
        if let Ok(about) = source.metadata() {
            let _ = std::os::unix::fs::fchown(&self.file, Some(about.uid()), Some(about.gid()));
        }
    }

    /// Gives the file its name, after its content has been made durable. With
    /// `replace` it takes the place of what has that name, else nothing may
    /// have it. Durable after [`durable::fsync_parent`].
    pub(super) fn publish(&mut self, target: &Path, replace: bool) -> Result<(), MigrationError> {
        if !self.has_its_name() {
            // Somebody removed it, and may be making another.
            return Err(MigrationError::Source(SourceError::InUse(
                self.path.clone(),
            )));
        }
        if replace {
            durable::rename_over(&self.path, target)?;
        } else {
            durable::rename_new(&self.path, target)?;
        }
        self.published = true;
        Ok(())
    }

    fn has_its_name(&self) -> bool {
        let same =
            |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (self.file.metadata(), self.path.symlink_metadata()) {
            (Ok(file), Ok(name)) => same(file, name),
            _ => false,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published && self.has_its_name() {
            // A leftover that cannot be removed now is removed by the next run.
            let _ = remove_with_companions(&self.path);
        }
    }
}

fn remove_with_companions(path: &Path) -> Result<(), DurableError> {
    durable::remove(path)?;
    for companion in layout::sqlite_companions(path) {
        durable::remove(&companion)?;
    }
    Ok(())
}
