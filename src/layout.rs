//! Every file name in the data directory, in one place.

use std::path::{Path, PathBuf};

/// The legacy state machine, in redb.
pub const STATE_MACHINE_REDB: &str = "state-machine.redb";
/// The state machine, in SQLite.
pub const STATE_MACHINE_SQLITE: &str = "state-machine.db";
/// The Raft log, in redb.
pub const RAFT_LOG: &str = "raft-log.redb";
/// Where its new entries are before they are in it, unless it was closed.
pub const RAFT_LOG_JOURNAL: &str = "raft-log.journal";
/// The data-directory lock; never unlinked.
pub const LOCK: &str = "aspen.lock";
/// One JSON line for each migration that was completed.
pub const HISTORY: &str = "migrations.jsonl";

/// The snapshot that a state machine in memory received last, a SQLite file.
pub const MEMORY_SNAPSHOT: &str = "memory-snapshot.db";

/// What stands between a file's name and the time stamp of its backup.
pub const BACKUP_INFIX: &str = ".backup-";

/// A data directory and the paths in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Names the directory; nothing is read.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The legacy redb state machine.
    #[must_use]
    pub fn redb(&self) -> PathBuf {
        self.0.join(STATE_MACHINE_REDB)
    }

    /// The SQLite state machine.
    #[must_use]
    pub fn sqlite(&self) -> PathBuf {
        self.0.join(STATE_MACHINE_SQLITE)
    }

    /// What a state machine in memory begins with, if it is there.
    #[must_use]
    pub fn memory_snapshot(&self) -> PathBuf {
        self.0.join(MEMORY_SNAPSHOT)
    }

    /// The Raft log.
    #[must_use]
    pub fn raft_log(&self) -> PathBuf {
        self.0.join(RAFT_LOG)
    }

    /// The data-directory lock.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join(LOCK)
    }

    /// The history of completed migrations.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.0.join(HISTORY)
    }
}

/// `path` with `suffix` appended to its file name.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// The journal of the Raft log `log`, beside it.
#[must_use]
pub fn journal(log: &Path) -> PathBuf {
    log.with_file_name(RAFT_LOG_JOURNAL)
}

/// The files that SQLite keeps beside a database in WAL mode.
#[must_use]
pub fn sqlite_companions(database: &Path) -> [PathBuf; 2] {
    [with_suffix(database, "-wal"), with_suffix(database, "-shm")]
}

/// What the name of a file ends in that Aspen is still making. Nobody else
/// uses such names, so that a file that has one after a crash may be removed:
/// the directory itself is the journal of an interrupted run.
pub const TEMPORARY: &str = ".aspen-tmp";

/// The name under which `path` is made before it is renamed into place.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    with_suffix(path, TEMPORARY)
}

impl DataDir {
    /// Where a copy of the state machine is made, for a backup or for a peer.
    #[must_use]
    pub fn copy(&self) -> PathBuf {
        temporary(&self.0.join("copy.db"))
    }

    /// Where a copy that a peer sends is kept until it is installed.
    #[must_use]
    pub fn received(&self) -> PathBuf {
        temporary(&self.0.join("received.db"))
    }

    /// Every file that an interrupted run of ours can have left half-made.
    #[must_use]
    pub fn possible_leftovers(&self) -> Vec<PathBuf> {
        let sqlite = temporary(&self.sqlite());
        let [wal, shm] = sqlite_companions(&sqlite);
        let backup = temporary_backup(&self.redb());
        let mut all = vec![sqlite, wal, shm, temporary(&self.redb()), backup];
        all.extend(self.possible_leftovers_beside_memory());
        all
    }

    /// Those of them that a node can leave whose state machine is in memory.
    #[must_use]
    pub fn possible_leftovers_beside_memory(&self) -> Vec<PathBuf> {
        let mut all = self.possible_leftovers_of_log().to_vec();
        all.extend([self.copy(), self.received()]);
        all
    }

    /// Those of them that belong to the Raft log.
    #[must_use]
    pub fn possible_leftovers_of_log(&self) -> [PathBuf; 2] {
        let log = self.raft_log();
        [temporary(&log), temporary_backup(&log)]
    }
}

/// The name under which a backup of `path` is made.
#[must_use]
pub fn temporary_backup(path: &Path) -> PathBuf {
    temporary(&with_suffix(path, ".backup"))
}
