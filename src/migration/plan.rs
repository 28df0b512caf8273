//! What to do about what is on disk: a pure function, and the whole of the
//! decision table. Nothing here touches a file.

use super::inspect::{Inventory, RedbFile, SqliteFile};
use crate::config::settings::Backend;

/// What a start does about its storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing on disk is of interest.
    Memory,
    /// Make an empty SQLite state machine.
    FreshSqlite,
    /// Make an empty redb state machine.
    FreshRedb,
    /// Open the SQLite state machine.
    OpenSqlite,
    /// Copy redb to SQLite, then open that.
    Migrate,
    /// The copy is there already: retire redb, then open SQLite.
    FinishRetiring,
    /// Open the redb state machine; `unlink_first` gives it blocks of its own.
    OpenRedb {
        /// It shares its blocks with a backup.
        unlink_first: bool,
    },
    /// Bring redb to the current file format beside a kept backup, then open it.
    UpgradeRedb,
    /// Leave everything as it is and let a person decide.
    Refuse(Refusal),
}

/// Why a start is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Two state machines, neither made from the other as it is now.
    Conflict,
    /// redb is configured, but the data has moved to SQLite.
    MigratedAway,
    /// redb is configured and SQLite was not removed, as a rollback must.
    RollbackUnfinished,
    /// A write-ahead log without its database lies where the copy would go.
    OrphanedLog,
}

/// Decides.
#[must_use]
pub fn decide(backend: Backend, inventory: &Inventory) -> Decision {
    let orphans = !inventory.orphans.is_empty();
    match (backend, &inventory.redb, &inventory.sqlite) {
        (Backend::Memory, _, _) => Decision::Memory,
        (Backend::Sqlite, _, None) if orphans => Decision::Refuse(Refusal::OrphanedLog),
        (Backend::Sqlite, None, None) => Decision::FreshSqlite,
        (Backend::Sqlite, None, Some(_)) => Decision::OpenSqlite,
        (Backend::Sqlite, Some(_), None) => Decision::Migrate,
        (Backend::Sqlite, Some(redb), Some(sqlite)) if made_from(sqlite, redb) => {
            Decision::FinishRetiring
        }
        (Backend::Sqlite, Some(_), Some(_)) => Decision::Refuse(Refusal::Conflict),
        (Backend::Redb, None, None) => Decision::FreshRedb,
        (Backend::Redb, Some(redb), None) if redb.identity.is_legacy() => Decision::UpgradeRedb,
        (Backend::Redb, Some(redb), None) => Decision::OpenRedb {
            unlink_first: redb.linked,
        },
        (Backend::Redb, None, Some(_)) => Decision::Refuse(Refusal::MigratedAway),
        (Backend::Redb, Some(_), Some(_)) => Decision::Refuse(Refusal::RollbackUnfinished),
    }
}

/// Whether `sqlite` says that it was made from `redb` as it is now.
fn made_from(sqlite: &SqliteFile, redb: &RedbFile) -> bool {
    sqlite
        .record
        .as_ref()
        .is_some_and(|record| record.source_fingerprint == redb.identity.fingerprint)
}
