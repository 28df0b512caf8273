//! The decision table, three times: row by row, as laws that hold for every
//! inventory there can be, and with real files in a real directory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod on_disk;

use std::path::PathBuf;

use aspen::config::settings::Backend;
use aspen::format::Kind;
use aspen::migration::inspect::{Inventory, RedbFile, SqliteFile};
use aspen::migration::plan::{Decision, Refusal, decide};
use aspen::migration::record::Record;
use aspen::migration::source::Identity;
use proptest::prelude::*;

const R: &str = "state-machine.redb";
const S: &str = "state-machine.db";

fn redb(version: u8, fingerprint: &str) -> Option<RedbFile> {
    Some(RedbFile {
        identity: Identity {
            kind: Kind::Redb,
            fingerprint: fingerprint.to_owned(),
            version: Some(version),
            closed_cleanly: true,
            length: 4096,
        },
        linked: false,
    })
}

/// A SQLite file that says that it was made from `fingerprint`, or nothing.
fn sqlite(fingerprint: Option<&str>) -> Option<SqliteFile> {
    let record = fingerprint.map(|fingerprint| {
        serde_json::from_value::<Record>(serde_json::json!({
            "id": "1", "program": "aspen-migrate 0.1.0", "uid": 0, "host": "h",
            "started_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:01Z",
            "from": "redb", "to": "sqlite", "source": R, "source_bytes": 4096,
            "source_fingerprint": fingerprint, "source_closed_cleanly": true, "target": S,
            "keys": 0, "checksum": "0", "verified": "full", "last_applied": null,
            "seconds": {"check": 0.0, "backup": 0.0, "copy": 0.0, "verify": 0.0, "total": 0.0},
        }))
        .unwrap()
    });
    Some(SqliteFile { record })
}

fn inventory(redb: Option<RedbFile>, sqlite: Option<SqliteFile>) -> Inventory {
    Inventory {
        redb,
        sqlite,
        log: None,
        leftovers: vec![],
        orphans: vec![],
    }
}

#[test]
fn every_row_of_the_table_is_decided_as_it_says() {
    use Backend::{Memory, Redb, Sqlite};
    use Decision::{FinishRetiring, FreshRedb, FreshSqlite, Migrate, OpenSqlite, UpgradeRedb};
    let refuse = Decision::Refuse;
    let open = Decision::OpenRedb {
        unlink_first: false,
    };
    let (a, none) = (Some("a"), None);
    let table = [
        (Sqlite, None, None, FreshSqlite),
        (Sqlite, None, sqlite(none), OpenSqlite),
        (Sqlite, None, sqlite(a), OpenSqlite),
        (Sqlite, redb(2, "a"), None, Migrate),
        (Sqlite, redb(3, "a"), None, Migrate),
        (Sqlite, redb(2, "a"), sqlite(a), FinishRetiring),
        (Sqlite, redb(3, "a"), sqlite(a), FinishRetiring),
        (Sqlite, redb(2, "b"), sqlite(a), refuse(Refusal::Conflict)),
        (
            Sqlite,
            redb(2, "a"),
            sqlite(none),
            refuse(Refusal::Conflict),
        ),
        (Redb, None, None, FreshRedb),
        (Redb, redb(3, "a"), None, open),
        (Redb, redb(2, "a"), None, UpgradeRedb),
        (Redb, None, sqlite(none), refuse(Refusal::MigratedAway)),
        (Redb, None, sqlite(a), refuse(Refusal::MigratedAway)),
        (
            Redb,
            redb(2, "a"),
            sqlite(a),
            refuse(Refusal::RollbackUnfinished),
        ),
        (
            Redb,
            redb(3, "b"),
            sqlite(none),
            refuse(Refusal::RollbackUnfinished),
        ),
        (Memory, redb(2, "b"), sqlite(a), Decision::Memory),
        (Memory, None, None, Decision::Memory),
    ];
    for (backend, redb, sqlite, expected) in table {
        let row = format!("{backend:?} {redb:?} {sqlite:?}");
        assert_eq!(decide(backend, &inventory(redb, sqlite)), expected, "{row}");
    }
}

#[test]
fn a_file_that_shares_its_blocks_with_a_backup_gets_its_own_before_redb_opens_it() {
    let mut linked = redb(3, "a");
    linked.as_mut().unwrap().linked = true;
    let decision = decide(Backend::Redb, &inventory(linked, None));
    assert_eq!(decision, Decision::OpenRedb { unlink_first: true });
}

#[test]
fn a_log_without_its_database_is_in_the_way_of_a_new_one_and_of_nothing_else() {
    let mut orphaned = inventory(redb(2, "a"), None);
    orphaned.orphans = vec![PathBuf::from("state-machine.db-wal")];
    let refused = Decision::Refuse(Refusal::OrphanedLog);
    assert_eq!(decide(Backend::Sqlite, &orphaned), refused);
    assert_eq!(decide(Backend::Redb, &orphaned), Decision::UpgradeRedb);
    orphaned.redb = None;
    assert_eq!(decide(Backend::Sqlite, &orphaned), refused);
}

fn any_backend() -> impl Strategy<Value = Backend> {
    prop_oneof![
        Just(Backend::Sqlite),
        Just(Backend::Redb),
        Just(Backend::Memory)
    ]
}

fn any_inventory() -> impl Strategy<Value = Inventory> {
    let fingerprint = || prop_oneof![Just("a"), Just("b"), Just("")];
    let redb = (2..=3_u8, fingerprint(), any::<[bool; 2]>()).prop_map(
        |(version, fingerprint, [linked, clean])| {
            let mut file = redb(version, fingerprint).unwrap();
            file.linked = linked;
            file.identity.closed_cleanly = clean;
            file
        },
    );
    let sqlite = prop::option::of(fingerprint()).prop_map(|print| sqlite(print).unwrap());
    let paths = || prop::collection::vec(Just(PathBuf::from("some-file")), 0..3);
    let parts = (
        prop::option::of(redb),
        prop::option::of(sqlite),
        paths(),
        paths(),
    );
    parts.prop_map(|(redb, sqlite, leftovers, orphans)| Inventory {
        redb,
        sqlite,
        log: None,
        leftovers,
        orphans,
    })
}

/// Whether the SQLite file says that it was made from the redb file that is there.
fn made_from(found: &Inventory) -> bool {
    let record = found.sqlite.as_ref().and_then(|file| file.record.as_ref());
    match (record, &found.redb) {
        (Some(record), Some(redb)) => record.source_fingerprint == redb.identity.fingerprint,
        _ => false,
    }
}

proptest! {
    #[test]
    fn whatever_is_found_is_decided_by_these_laws(
        backend in any_backend(),
        found in any_inventory(),
    ) {
        let (r, s) = (found.redb.is_some(), found.sqlite.is_some());
        let decision = decide(backend, &found);
        let law = match &decision {
            Decision::Memory => backend == Backend::Memory,
            // Nothing is made where there is data, nor beside a log that would spoil it.
            Decision::FreshSqlite => {
                backend == Backend::Sqlite && !r && !s && found.orphans.is_empty()
            }
            Decision::FreshRedb => backend == Backend::Redb && !r && !s,
            // No engine is opened, and nothing copied, past another's data.
            Decision::OpenSqlite => backend == Backend::Sqlite && s && !r,
            Decision::Migrate => {
                backend == Backend::Sqlite && r && !s && found.orphans.is_empty()
            }
            Decision::FinishRetiring => backend == Backend::Sqlite && made_from(&found),
            Decision::OpenRedb { unlink_first } => {
                let redb = found.redb.as_ref();
                let fits = |redb: &RedbFile| {
                    redb.identity.version == Some(3) && redb.linked == *unlink_first
                };
                backend == Backend::Redb && !s && redb.is_some_and(fits)
            }
            Decision::UpgradeRedb => {
                let version = found.redb.as_ref().and_then(|redb| redb.identity.version);
                backend == Backend::Redb && !s && version == Some(2)
            }
            // Nobody is refused without need.
            Decision::Refuse(Refusal::Conflict) => {
                backend == Backend::Sqlite && r && s && !made_from(&found)
            }
            Decision::Refuse(Refusal::MigratedAway) => backend == Backend::Redb && s && !r,
            Decision::Refuse(Refusal::RollbackUnfinished) => backend == Backend::Redb && s && r,
            Decision::Refuse(Refusal::OrphanedLog) => {
                backend == Backend::Sqlite && !s && !found.orphans.is_empty()
            }
        };
        prop_assert!(law, "{decision:?}");
        // Leftovers are removed before; they have no say.
        let swept = Inventory { leftovers: vec![], ..found.clone() };
        prop_assert_eq!(decide(backend, &swept), decision);
    }
}
