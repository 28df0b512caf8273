//! Making a redb copy in the current file format (v3), and verifying it: the
//! way back from SQLite, and the way forward from format v2.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, Durability, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition,
};

use super::TargetError;
use super::sqlite::Expected;
use crate::format::digest::{Digest, Digester};
use crate::format::{idempotency, tables};
use crate::migration::copy::Feed;
use crate::migration::progress::{Control, Event, Phase};
use crate::migration::source::Metadata;

const KV: TableDefinition<'_, &str, &str> = TableDefinition::new(tables::KV);
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::META);
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(tables::SNAPSHOTS);
pub(super) const IDEMPOTENCY: TableDefinition<'_, u64, (&str, &[u8])> =
    TableDefinition::new(tables::IDEMPOTENCY);
pub(super) const IDEMPOTENCY_KEYS: TableDefinition<'_, &str, u64> =
    TableDefinition::new(tables::IDEMPOTENCY_KEYS);
pub(super) const RAFT_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(tables::RAFT_LOG);
pub(super) const RAFT_META: TableDefinition<'_, &str, &[u8]> =
    TableDefinition::new(tables::RAFT_META);

/// redb's page cache; also bounds what it keeps of an uncommitted transaction.
const CACHE_BYTES: usize = 64 << 20;
/// Bytes of rows in one transaction.
pub(super) const TRANSACTION_BYTES: u64 = 32 << 20;
/// Rows between two progress reports of the verification.
const ROWS_PER_REPORT: u64 = 10_000;

fn redb_error<E: Into<redb::Error>>(
    operation: &'static str,
    path: &Path,
) -> impl Fn(E) -> TargetError {
    move |error| TargetError::Redb {
        operation,
        path: path.to_owned(),
        source: Box::new(error.into()),
    }
}

/// Runs `work`, which fails as redb does, with `operation` and `path` in its error.
pub(super) fn on<T>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, TargetError> {
    work().map_err(redb_error(operation, path))
}

/// Opens `file`, which `path` names for messages. By its descriptor, since
/// redb's lock is then that of the descriptor's other users, and since nobody
/// can have put another file in its place. Closing gives the lock back.
pub(super) fn open(file: &File) -> Result<Database, redb::Error> {
    let file = FileBackend::new(file.try_clone()?)?;
    Ok(Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(file)?)
}

/// Makes the tables in the empty `file` and fills them.
pub(crate) fn build(
    path: &Path,
    file: &File,
    mut feed: Feed,
    metadata: &Metadata,
    stop: &AtomicBool,
) -> Result<(), TargetError> {
    let database = on("create", path, || open(file))?;
    on("create the tables of", path, || {
        create_tables(&database, metadata)
    })?;
    while on("write rows to", path, || write_some(&database, &mut feed))? {
        if stop.load(Ordering::Relaxed) {
            return Err(TargetError::Stopped);
        }
    }
    on("write idempotent writes to", path, || {
        write_idempotency(&database, &mut feed)
    })?;
    // The commits so far were not made durable; this one makes all of them so.
    on("finish", path, || Ok(database.begin_write()?.commit()?))
}

/// Makes an empty state machine in the empty `file`.
pub(crate) fn create_empty(path: &Path, file: &File) -> Result<(), TargetError> {
    on("create", path, || {
        let database = open(file)?;
        create_tables(&database, &Metadata::default())?;
        Ok(database.begin_write()?.commit()?)
    })
}

fn create_tables(database: &Database, metadata: &Metadata) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::None)?;
    write.open_table(KV)?;
    write.open_table(SNAPSHOTS)?;
    write.open_table(RAFT_LOG)?;
    write.open_table(RAFT_META)?;
    let mut meta = write.open_table(META)?;
    for (key, value) in &metadata.records {
        meta.insert(key.as_str(), value.as_slice())?;
    }
    drop(meta);
    Ok(write.commit()?)
}

/// Writes one transaction's worth of rows; false when the feed is exhausted.
fn write_some(database: &Database, feed: &mut Feed) -> Result<bool, redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::None)?;
    let mut table = write.open_table(KV)?;
    let mut bytes = 0;
    let mut more = true;
    while bytes < TRANSACTION_BYTES {
        more = feed.advance();
        let Some((key, value)) = feed.row().filter(|_| more) else {
            break;
        };
        let (key, value) = (str(key)?, str(value)?);
        table.insert(key, value)?;
        bytes += (key.len() + value.len()) as u64;
    }
    drop(table);
    write.commit()?;
    Ok(more)
}

/// Writes all idempotent writes, which are bounded, in one transaction. Where
/// there is none, there are no tables of them.
fn write_idempotency(database: &Database, feed: &mut Feed) -> Result<(), redb::Error> {
    let Some(mut next) = feed.next_idempotent() else {
        return Ok(());
    };
    let mut write = database.begin_write()?;
    write.set_durability(Durability::None)?;
    let mut records = write.open_table(IDEMPOTENCY)?;
    let mut keys = write.open_table(IDEMPOTENCY_KEYS)?;
    loop {
        let (index, key, record) = next;
        let key = str(key)?;
        records.insert(index, (key, record))?;
        keys.insert(key, index)?;
        next = match feed.next_idempotent() {
            Some(next) => next,
            None => break,
        };
    }
    drop((records, keys));
    Ok(write.commit()?)
}

fn str(bytes: &[u8]) -> Result<&str, redb::Error> {
    std::str::from_utf8(bytes)
        .map_err(|error| redb::Error::Corrupted(format!("a row is not UTF-8: {error}")))
}

/// Verifies redb's own checksums, every row's checksum, or a sample, and the metadata.
pub(crate) fn verify(
    path: &Path,
    file: &File,
    expected: Expected<'_>,
    sample: Option<&[(String, Option<String>)]>,
    control: &Control<'_>,
) -> Result<(), TargetError> {
    let mut database = on("open", path, || open(file))?;
    if !on("check", path, || Ok(database.check_integrity()?))? {
        let complaint = "redb had to repair it".to_owned();
        return Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint,
        });
    }
    let rows = on("count", path, || {
        Ok(database.begin_read()?.open_table(KV)?.len()?)
    })?;
    if rows != expected.digest.rows {
        return Err(TargetError::Count {
            wanted: expected.digest.rows,
            found: rows,
        });
    }
    control.observer.event(&Event::CountVerified(rows));
    match sample {
        Some(sample) => {
            compare_sample(&database, path, rows, sample)?;
            let sampled = Some(sample.len() as u64);
            control
                .observer
                .event(&Event::RowsVerified { sampled, of: rows });
        }
        None => {
            compare_all(&database, path, expected, control)?;
            control.observer.event(&Event::RowsVerified {
                sampled: None,
                of: rows,
            });
        }
    }
    verify_metadata(&database, path, expected.metadata)?;
    verify_idempotency(&database, path, expected.idempotency)?;
    control.observer.event(&Event::MetadataVerified);
    if sample.is_none() {
        control
            .observer
            .event(&Event::DigestVerified(expected.digest));
    }
    Ok(())
}

fn compare_all(
    database: &Database,
    path: &Path,
    expected: Expected<'_>,
    control: &Control<'_>,
) -> Result<(), TargetError> {
    let found = on("read back", path, || {
        let mut digester = Digester::default();
        let mut done = 0_u64;
        for row in database.begin_read()?.open_table(KV)?.iter()? {
            let (key, value) = row?;
            digester.row(key.value().as_bytes(), value.value().as_bytes());
            done += 1;
            if done.is_multiple_of(ROWS_PER_REPORT) {
                if control.stopped() {
                    break;
                }
                control
                    .observer
                    .work(Phase::Verify, done, expected.digest.rows);
            }
        }
        Ok(digester.finish())
    })?;
    if control.stopped() {
        return Err(TargetError::Stopped);
    }
    if found == expected.digest {
        Ok(())
    } else {
        let (wanted, found) = (expected.digest.to_string(), found.to_string());
        Err(TargetError::Digest { wanted, found })
    }
}

fn compare_sample(
    database: &Database,
    path: &Path,
    rows: u64,
    sample: &[(String, Option<String>)],
) -> Result<(), TargetError> {
    for (n, (key, value)) in sample.iter().enumerate() {
        let found = on("read", path, || {
            let table = database.begin_read()?.open_table(KV)?;
            let value = table.get(key.as_str())?;
            Ok(value.map(|value| value.value().to_owned()))
        })?;
        if found != *value {
            let number = n as u64 * (rows / sample.len() as u64).max(1) + 1;
            return Err(TargetError::Value {
                number,
                key: key.clone(),
            });
        }
    }
    Ok(())
}

fn verify_metadata(
    database: &Database,
    path: &Path,
    expected: &Metadata,
) -> Result<(), TargetError> {
    let found = on("read the metadata of", path, || {
        let table = database.begin_read()?.open_table(META)?;
        let mut records = std::collections::BTreeMap::new();
        for row in table.iter()? {
            let (key, value) = row?;
            records.insert(key.value().to_owned(), value.value().to_vec());
        }
        Ok(records)
    })?;
    let differs = expected
        .records
        .keys()
        .chain(found.keys())
        .find(|&key| expected.records.get(key) != found.get(key));
    differs.map_or(Ok(()), |record| {
        Err(TargetError::Metadata {
            record: record.clone(),
        })
    })
}

/// All of them, however many rows are sampled: they are bounded.
fn verify_idempotency(
    database: &Database,
    path: &Path,
    expected: Digest,
) -> Result<(), TargetError> {
    let (found, indexed) = on("read the idempotent writes of", path, || {
        let (read, mut digester) = (database.begin_read()?, Digester::default());
        let records = match read.open_table(IDEMPOTENCY) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((digester.finish(), true)),
            records => records?,
        };
        let keys = read.open_table(IDEMPOTENCY_KEYS)?;
        let mut indexed = records.len()? == keys.len()?;
        for row in records.iter()? {
            let (index, value) = row?;
            let (key, record) = value.value();
            idempotency::digest(&mut digester, index.value(), key, record);
            let found = keys.get(key)?.map(|found| found.value());
            indexed &= found == Some(index.value());
        }
        Ok((digester.finish(), indexed))
    })?;
    if found != expected {
        return Err(TargetError::Idempotency {
            wanted: expected.to_string(),
            found: found.to_string(),
        });
    }
    match indexed {
        true => Ok(()),
        false => Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint: "idempotent writes and their index disagree".to_owned(),
        }),
    }
}
