//! A copy of idempotent writes that differs from what was read is found out.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rusqlite::Connection;

use super::sqlite::Expected;
use super::{TargetError, redb, sqlite};
use crate::durable;
use crate::format::idempotency::{Done, Record};
use crate::migration::copy::{Read, stream_rows};
use crate::migration::progress::{Control, Event, Observer, Phase};
use crate::migration::source::Metadata;

struct Nobody;

impl Observer for Nobody {
    fn event(&self, _: &Event<'_>) {}
    fn work(&self, _: Phase, _: u64, _: u64) {}
}

/// A copy of one pair and many idempotent writes, more than one batch.
struct Copy {
    path: PathBuf,
    file: File,
    read: Read,
    metadata: Metadata,
    control: Control<'static>,
    _dir: tempfile::TempDir,
}

const WRITES: u64 = 5000;

impl Copy {
    fn made(
        build: impl FnOnce(&Path, &File, super::super::copy::Feed) -> Result<(), TargetError>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let file = durable::create_new(&path).unwrap();
        let control = Control {
            observer: &Nobody,
            stop: Arc::default(),
        };
        let ((), read) = stream_rows(
            |reader| {
                let _ = reader.row("key", "value");
                for n in 1..=WRITES {
                    let result = Done::Conflict {
                        current: Some("v".repeat(100)),
                    };
                    let record = Record::after(None, "k", 7, result).encode().unwrap();
                    let _ = reader.idempotent(10 * n, &format!("key-{n}"), &record);
                }
                Ok(())
            },
            1,
            &control,
            |feed| build(&path, &file, feed),
        )
        .unwrap();
        assert_eq!((read.digest.rows, read.idempotency.rows), (1, WRITES));
        Self {
            path,
            file,
            read,
            metadata: Metadata::default(),
            control,
            _dir: dir,
        }
    }

    fn sqlite() -> Self {
        let stop = Arc::<AtomicBool>::default();
        Self::made(|path, _, feed| sqlite::build(path, feed, &Metadata::default(), &stop))
    }

    fn redb() -> Self {
        let stop = AtomicBool::default();
        Self::made(|path, file, feed| redb::build(path, file, feed, &Metadata::default(), &stop))
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            digest: self.read.digest,
            keys: self.read.keys,
            metadata: &self.metadata,
            idempotency: self.read.idempotency,
        }
    }

    /// All of it, and with a sample.
    fn verify_sqlite(&self) -> [Result<(), TargetError>; 2] {
        let sample = [("key".to_owned(), Some("value".to_owned()))];
        [
            sqlite::verify(&self.path, self.expected(), &self.control),
            sqlite::verify_sample(&self.path, self.expected(), &sample, &self.control),
        ]
    }

    fn verify_redb(&self) -> [Result<(), TargetError>; 2] {
        let sample = [("key".to_owned(), Some("value".to_owned()))];
        [None, Some(&sample[..])].map(|sample| {
            redb::verify(
                &self.path,
                &self.file,
                self.expected(),
                sample,
                &self.control,
            )
        })
    }
}

#[test]
fn a_sqlite_copy_is_verified_with_its_idempotent_writes() {
    for change in [
        "UPDATE aspen_idempotency SET record = x'00' WHERE log_index = 20",
        "UPDATE aspen_idempotency SET log_index = 21 WHERE log_index = 20",
        "UPDATE aspen_idempotency SET key = 'other' WHERE log_index = 20",
        "DELETE FROM aspen_idempotency WHERE log_index = 50000",
        "DELETE FROM aspen_idempotency",
        "DROP TABLE aspen_idempotency",
    ] {
        let copy = Copy::sqlite();
        let [(), ()] = copy.verify_sqlite().map(Result::unwrap);
        let connection = Connection::open(&copy.path).unwrap();
        connection.execute_batch(change).unwrap();
        connection.close().unwrap();
        for verified in copy.verify_sqlite() {
            let found = verified.unwrap_err();
            assert!(matches!(found, TargetError::Idempotency { .. }), "{found}");
        }
    }
}

#[test]
fn a_redb_copy_is_verified_with_its_idempotent_writes() {
    type Change = fn(&::redb::WriteTransaction);
    let changes: [(Change, bool); 4] = [
        (
            |write| {
                let mut table = write.open_table(redb::IDEMPOTENCY).unwrap();
                table.insert(20, ("key-2", &[0][..])).unwrap();
            },
            true,
        ),
        (
            |write| {
                let mut table = write.open_table(redb::IDEMPOTENCY).unwrap();
                table.remove(20).unwrap();
            },
            true,
        ),
        (
            |write| {
                let mut table = write.open_table(redb::IDEMPOTENCY_KEYS).unwrap();
                table.insert("key-2", 30).unwrap();
            },
            false,
        ),
        (
            |write| {
                let mut table = write.open_table(redb::IDEMPOTENCY_KEYS).unwrap();
                table.remove("key-2").unwrap();
            },
            false,
        ),
    ];
    for (change, differs) in changes {
        let copy = Copy::redb();
        let [(), ()] = copy.verify_redb().map(Result::unwrap);
        let database = redb::open(&copy.file).unwrap();
        let write = database.begin_write().unwrap();
        change(&write);
        write.commit().unwrap();
        drop(database);
        for verified in copy.verify_redb() {
            let found = verified.unwrap_err();
            let as_expected = match differs {
                true => matches!(found, TargetError::Idempotency { .. }),
                // What is remembered is right, and could not be found by its key.
                false => matches!(found, TargetError::Damaged { .. }),
            };
            assert!(as_expected, "{found}");
        }
    }
}
