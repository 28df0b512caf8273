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

/// Most bytes that stay free: some seconds of writing at full speed into log
/// and state machine, more than requests in flight can add.
pub const RESERVE_BYTES: u64 = 64 << 20;
/// Of a small file system one part in so many is reserved: 5 %, as ext4 does.
pub const RESERVE_PART: u64 = 20;
/// How long an answer holds: long enough to cost nothing per request, short
/// enough that what is written meanwhile is a small part of the reserve.
const HOLDS: Duration = Duration::from_millis(100);

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

/// The free space of a directory's file system.
#[derive(Debug)]
pub struct Space {
    dir: PathBuf,
    /// When it was last looked at, and what was found.
    seen: Mutex<Option<(Instant, Result<(), NoSpace>)>>,
}

impl Space {
    /// Names the directory; nothing is looked at yet.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
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
                *seen = Some((Instant::now(), found.clone()));
                found
            }
        }
    }

    fn look(&self) -> Result<(), NoSpace> {
        // A file system that cannot be asked refuses writes by itself, with a better reason.
        let Some((free, needed)) = free_and_reserved(&self.dir) else {
            return Ok(());
        };
        if free >= needed {
            return Ok(());
        }
        Err(NoSpace {
            dir: self.dir.clone(),
            free,
            needed,
        })
    }
}

/// Bytes free on the file system that holds `dir`, and how many must stay free
/// for what is in the log already; `None` where it cannot be asked.
pub(super) fn free_and_reserved(dir: &Path) -> Option<(u64, u64)> {
    let stat = statvfs(dir).ok()?;
    let free = stat.blocks_available() * stat.fragment_size();
    Some((free, reserve(stat.blocks() * stat.fragment_size())))
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
