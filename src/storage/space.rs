//! Room for what has already been promised: a write is refused while it has
//! not entered the Raft log, or it is carried out.
//!
//! An entry that is in the log is in the end applied, copied into snapshots
//! and purged, and all of that takes space. A node that takes writes until the
//! last block is used can do none of it, so the end of the disk is reserved.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::telemetry::events;

/// Most bytes that stay free: some seconds of writing at full speed into log
/// and state machine, more than requests in flight can add.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// Of a small file system one part in so many is reserved: 5 %, as ext4 does.
pub const RESERVE_PART: u64 = 20;
/// How long an answer holds: long enough to cost nothing per request, short
/// enough that what is written meanwhile is a small part of the reserve.
const HOLDS: Duration = Duration::from_millis(100);
/// How often it is told at most that writes are refused, or taken again.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// Too little space to take a write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disk is nearly full: {free} bytes are free in {}, {needed} must stay free; free some (df -h), \
     writes are then taken again",
    dir.display()
)]
pub struct NoSpace {
    /// The data directory.
    pub dir: PathBuf,
    /// Bytes free.
    pub free: u64,
    /// Bytes that must stay free.
    pub needed: u64,
}

/// What there is of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Free, for others than root.
    pub free: u64,
    /// To stay free: with less, no write is taken.
    pub reserved: u64,
    /// In all.
    pub size: u64,
}

/// The free space of a directory's file system.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    /// When it was last told that writes are refused, or taken again, and which.
    told: Mutex<Option<(Instant, bool)>>,
    /// When it was last looked at, and what was found.
    seen: Mutex<Option<(Instant, Result<(), NoSpace>)>>,
}

impl Space {
    /// Names the directory; nothing is looked at yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            told: Mutex::new(None),
            seen: Mutex::new(None),
        }
    }

    /// Whether a write may enter the log. What is found holds for 100 ms.
    ///
    /// # Errors
    /// When the file system has no more than its reserve free.
    pub fn check(&self) -> Result<(), NoSpace> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((when, found)) if when.elapsed() < HOLDS => found.clone(),
            _ => {
                let found = self.look();
                self.tell(found.as_ref().err());
                *seen = Some((Instant::now(), found.clone()));
                found
            }
        }
    }

    /// What there is; `None` where the file system cannot be asked.
    #[must_use]
    pub fn free(&self) -> Option<Free> {
        free(&self.dir)
    }

    fn look(&self) -> Result<(), NoSpace> {
        // A file system that cannot be asked refuses writes by itself, with a better reason.
        let Some(found) = self.free() else {
            return Ok(());
        };
        if found.free >= found.reserved {
            return Ok(());
        }
        Err(NoSpace {
            dir: self.dir.clone(),
            free: found.free,
            needed: found.reserved,
        })
    }

    /// Tells that writes are refused or taken again, where that is news, and
    /// not at every turn of a disk that is just at its limit.
    fn tell(&self, full: Option<&NoSpace>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.as_ref();
        let news = before.is_some_and(|(_, was_full)| *was_full) != full.is_some();
        if !news || before.is_some_and(|(when, _)| when.elapsed() < TELL_INTERVAL) {
            return;
        }
        *told = Some((Instant::now(), full.is_some()));
        match full {
            Some(full) => tracing::error!(
                target: "aspen::storage",
                MESSAGE_ID = events::DISK_FULL,
                "No write is taken: {full}"
            ),
            None => tracing::info!(
                target: "aspen::storage",
                MESSAGE_ID = events::DISK_RECOVERED,
                "There is space again in {}: writes are taken",
                self.dir.display()
            ),
        }
    }
}

/// What there is of the file system that holds `dir`; `None` where it cannot be asked.
pub(super) fn free(dir: &Path) -> Option<Free> {
    let stat = statvfs(dir).ok()?;
    let size = stat.blocks() * stat.fragment_size();
    Some(Free {
        free: stat.blocks_available() * stat.fragment_size(),
        reserved: reserve(size),
        size,
    })
}

/// What must stay free of a file system of `total` bytes.
fn reserve(total: u64) -> u64 {
    RESERVE_BYTES.min(total / RESERVE_PART)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_reserve_is_5_percent_and_no_more_than_64_mib() {
        assert_eq!(reserve(100 << 20), 5 << 20);
        assert_eq!(reserve(1 << 40), 64 << 20);
    }

    #[test]
    fn a_directory_with_space_takes_writes_and_a_missing_one_is_not_called_full() {
        let dir = tempfile::tempdir().unwrap();
        let free = crate::durable::free_space(dir.path()).unwrap();
        assert_eq!(
            Space::new(dir.path()).check().is_ok(),
            free >= RESERVE_BYTES
        );
        assert_eq!(Space::new(&dir.path().join("none")).check(), Ok(()));
    }

    #[test]
    fn what_was_found_holds_for_a_moment_and_is_looked_at_again() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::new(dir.path());
        let full = NoSpace {
            dir: dir.path().to_owned(),
            free: 1,
            needed: 2,
        };
        // Far ahead, so that it holds however slow this machine is.
        let ahead = Instant::now() + Duration::from_secs(3600);
        *space.seen.lock().unwrap() = Some((ahead, Err(full.clone())));
        assert_eq!(space.check(), Err(full.clone()));
        let before = Instant::now().checked_sub(HOLDS).unwrap();
        *space.seen.lock().unwrap() = Some((before, Err(full)));
        assert_eq!(space.check(), Space::new(dir.path()).check());
    }

    #[test]
    fn the_message_names_directory_and_numbers() {
        let full = NoSpace {
            dir: "/var/lib/aspen".into(),
            free: 1,
            needed: 2,
        };
        let text = full.to_string();
        for part in ["/var/lib/aspen", "1 bytes are free", "2 must stay free"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
