//! Verifying a SQLite copy, all of it or a sample.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::{close, stop_when_told};
use crate::format::digest::{Batch, Digest, Digester};
use crate::format::idempotency;
use crate::format::sqlite::{self, Access};
use crate::migration::progress::{Control, Event, Phase};
use crate::migration::source::Metadata;
use crate::migration::target::TargetError;

/// Page cache of each pass that reads the copy back, from end to end and once.
const VERIFY_CACHE_KIB: i64 = 512;
/// Rows between two progress reports of the verification.
const ROWS_PER_REPORT: i64 = 10_000;

/// How a copy is compared with its source.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// What was read from the source.
    pub(crate) digest: Digest,
    /// Its keys alone.
    pub(crate) keys: Digest,
    /// Its metadata.
    pub(crate) metadata: &'a Metadata,
    /// Its idempotent writes.
    pub(crate) idempotency: Digest,
}

/// Verifies everything: structure, table and index against the source and so
/// against each other, and the metadata, through the node's own open path.
///
/// `PRAGMA integrity_check` looks up the index entry of every row, which takes
/// longer than the copy did. The same is proven here by three passes side by
/// side: `quick_check` verifies the structure of all b-trees; a walk of the
/// table shows that row n is the source's n-th row; a walk of the index shows
/// that its n-th entry is the source's n-th key and points at row n.
pub(crate) fn verify(
    path: &Path,
    expected: Expected<'_>,
    control: &Control<'_>,
) -> Result<(), TargetError> {
    let writer = sqlite::open(path, Access::Write)?;
    let found = std::thread::scope(|scope| -> Result<_, TargetError> {
        let structure = scope.spawn(|| quick_check(path, control));
        let index = scope.spawn(|| walk(path, INDEX, None, control));
        let table = walk(path, TABLE, Some(expected.digest.rows), control);
        let index = index
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let structure = structure
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        structure.and(Ok((table?, index?)))
    });
    let (found, index): (Digest, Digest) = found?;
    if found.rows != expected.digest.rows {
        return Err(TargetError::Count {
            wanted: expected.digest.rows,
            found: found.rows,
        });
    }
    control.observer.event(&Event::CountVerified(found.rows));
    if found != expected.digest {
        let (wanted, found) = (expected.digest.to_string(), found.to_string());
        return Err(TargetError::Digest { wanted, found });
    }
    if index != expected.keys {
        let complaint = "table and index disagree".to_owned();
        return Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint,
        });
    }
    control.observer.event(&Event::RowsVerified {
        sampled: None,
        of: found.rows,
    });
    verify_metadata(&writer, path, expected.metadata)?;
    verify_idempotency(&writer, path, expected.idempotency)?;
    control.observer.event(&Event::MetadataVerified);
    control.observer.event(&Event::DigestVerified(found));
    close(writer, path)
}

/// Compares counts, a sample of rows and the metadata.
pub(crate) fn verify_sample(
    path: &Path,
    expected: Expected<'_>,
    sample: &[(String, Option<String>)],
    control: &Control<'_>,
) -> Result<(), TargetError> {
    let connection = sqlite::open(path, Access::Write)?;
    let failed = |source| TargetError::Sqlite {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    let rows = connection
        .query_row("SELECT count(*) FROM state_machine_kv", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(failed)?
        .unsigned_abs();
    if rows != expected.digest.rows {
        return Err(TargetError::Count {
            wanted: expected.digest.rows,
            found: rows,
        });
    }
    control.observer.event(&Event::CountVerified(rows));
    for (number, (key, value)) in sample.iter().enumerate() {
        let found = value_of(&connection, key).map_err(failed)?;
        if found != *value {
            let number = number as u64 * (rows / sample.len() as u64).max(1) + 1;
            return Err(TargetError::Value {
                number,
                key: key.clone(),
            });
        }
    }
    let sampled = Some(sample.len() as u64);
    control
        .observer
        .event(&Event::RowsVerified { sampled, of: rows });
    verify_metadata(&connection, path, expected.metadata)?;
    verify_idempotency(&connection, path, expected.idempotency)?;
    control.observer.event(&Event::MetadataVerified);
    close(connection, path)
}

fn value_of(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension as _;
    connection
        .prepare_cached("SELECT value FROM state_machine_kv WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// A connection of the node's kind that reads the copy once, until told to stop.
fn open_to_verify(path: &Path, control: &Control<'_>) -> Result<Connection, TargetError> {
    let mut connection = sqlite::open(path, Access::Read)?;
    connection
        .pragma_update(None, "cache_size", -VERIFY_CACHE_KIB)
        .and_then(|()| stop_when_told(&mut connection, &control.stop))
        .map_err(|source| TargetError::Sqlite {
            operation: "prepare to check",
            path: path.to_owned(),
            source,
        })?;
    Ok(connection)
}

fn quick_check(path: &Path, control: &Control<'_>) -> Result<(), TargetError> {
    let failed = |source| match control.stopped() {
        true => TargetError::Stopped,
        false => TargetError::Sqlite {
            operation: "check",
            path: path.to_owned(),
            source,
        },
    };
    let connection = open_to_verify(path, control)?;
    let verdict = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
        .map_err(failed)?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint: verdict,
        })
    }
}

/// The table's rows in the order in which they were written.
const TABLE: &str = "SELECT rowid, key, value FROM state_machine_kv NOT INDEXED ORDER BY rowid";
/// The index's entries in key order; SQLite need not look at the table for them.
const INDEX: &str = "SELECT rowid, key, '' FROM state_machine_kv \
     INDEXED BY sqlite_autoindex_state_machine_kv_1 ORDER BY key";

/// Computes the digest of what `select` yields. The copy was written in key
/// order into an empty table, so that the n-th of either walk has row id n.
/// Progress goes to `total`, where one is given.
fn walk(
    path: &Path,
    select: &str,
    total: Option<u64>,
    control: &Control<'_>,
) -> Result<Digest, TargetError> {
    let failed = |source| match control.stopped() {
        true => TargetError::Stopped,
        false => TargetError::Sqlite {
            operation: "read back",
            path: path.to_owned(),
            source,
        },
    };
    let connection = open_to_verify(path, control)?;
    let mut select = connection.prepare(select).map_err(failed)?;
    let mut rows = select.query([]).map_err(failed)?;
    let (mut digester, mut batch) = (Digester::default(), Batch::default());
    let mut done = 0_i64;
    while let Some(row) = rows.next().map_err(failed)? {
        done += 1;
        if row.get_ref(0).map_err(failed)? != ValueRef::Integer(done) {
            let complaint = format!("row id {done} is missing");
            return Err(TargetError::Damaged {
                path: path.to_owned(),
                complaint,
            });
        }
        batch.push(text(row, 1).map_err(failed)?, text(row, 2).map_err(failed)?);
        digester.drain(&mut batch);
        if let Some(total) = total.filter(|_| done % ROWS_PER_REPORT == 0) {
            control
                .observer
                .work(Phase::Verify, done.unsigned_abs(), total);
        }
    }
    if let Some(total) = total {
        control
            .observer
            .work(Phase::Verify, done.unsigned_abs(), total);
    }
    digester.batch(&batch);
    Ok(digester.finish())
}

fn text<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) => Ok(bytes),
        other => Err(rusqlite::Error::InvalidColumnType(
            column,
            "text".to_owned(),
            other.data_type(),
        )),
    }
}

fn verify_metadata(
    connection: &Connection,
    path: &Path,
    expected: &Metadata,
) -> Result<(), TargetError> {
    let failed = |source| TargetError::Sqlite {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    for (name, bytes) in &expected.records {
        if sqlite::meta(connection, name).map_err(failed)?.as_ref() != Some(bytes) {
            return Err(TargetError::Metadata {
                record: name.clone(),
            });
        }
    }
    let rows = connection
        .query_row("SELECT count(*) FROM state_machine_meta", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(failed)?;
    if rows.unsigned_abs() == expected.records.len() as u64 {
        Ok(())
    } else {
        Err(TargetError::Metadata {
            record: "(one too many)".to_owned(),
        })
    }
}

/// All of them, however many rows are sampled: they are bounded. SQLite's own
/// check shows that table and index agree, as [`verify`] does for the pairs.
fn verify_idempotency(
    connection: &Connection,
    path: &Path,
    expected: Digest,
) -> Result<(), TargetError> {
    let failed = |source| TargetError::Sqlite {
        operation: "read the idempotent writes of",
        path: path.to_owned(),
        source,
    };
    let mut digester = Digester::default();
    sqlite::scan_idempotency(connection, |index, key, record| {
        idempotency::digest(&mut digester, index, key, record);
        Ok::<_, std::convert::Infallible>(())
    })
    .map_err(failed)?;
    let found = digester.finish();
    if found != expected {
        return Err(TargetError::Idempotency {
            wanted: expected.to_string(),
            found: found.to_string(),
        });
    }
    let check = "PRAGMA integrity_check(aspen_idempotency)";
    let verdict = connection.query_row(check, [], |row| row.get::<_, String>(0));
    match verdict.map_err(failed)? {
        verdict if verdict == "ok" => Ok(()),
        complaint => Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint,
        }),
    }
}
