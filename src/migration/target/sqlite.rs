//! Making a SQLite copy as fast as it can be made, and verifying it.
//!
//! SQLite pulls the rows itself, by `INSERT ... SELECT` from a virtual table
//! over the [`Feed`]: a third faster than a statement for each row, and eight
//! times faster than that with a journal. The file is temporary until it is
//! complete, verified and durable, so that it needs no journal.

use std::borrow::Cow;
use std::ffi::{CStr, c_int};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::vtab::{
    Context, Filters, IndexInfo, Module, VTab, VTabConfig, VTabConnection, VTabCursor,
};
use rusqlite::{Connection, ffi};

use super::TargetError;
use crate::durable;
use crate::format::digest::{Batch, Digest, Digester};
use crate::format::sqlite::{self, Access};
use crate::migration::copy::Feed;
use crate::migration::progress::{Control, Event, Phase};
use crate::migration::source::Metadata;

/// Page cache while the copy is made. Rows arrive in key order, so that only
/// the last path of each tree is needed again; what is larger than the
/// processor's own cache makes writing slower.
const BUILD_CACHE_KIB: i64 = 2 * 1024;
/// Page cache of each pass that reads the copy back, from end to end and once.
const VERIFY_CACHE_KIB: i64 = 512;
/// SQLite instructions between two looks at the stop flag: about a millisecond.
const INSTRUCTIONS_PER_LOOK: c_int = 100_000;
/// Rows between two progress reports of the verification.
const ROWS_PER_REPORT: i64 = 10_000;

/// Makes the tables in the empty file `path` and fills them.
pub(crate) fn build(
    path: &Path,
    feed: Feed,
    metadata: &Metadata,
    stop: &Arc<AtomicBool>,
) -> Result<(), TargetError> {
    let failed = |operation| {
        let stop = Arc::clone(stop);
        move |source| match stop.load(Ordering::Relaxed) {
            true => TargetError::Stopped,
            false => TargetError::Sqlite {
                operation,
                path: path.to_owned(),
                source,
            },
        }
    };
    let mut connection = Connection::open(path).map_err(failed("open"))?;
    prepare(&connection).map_err(failed("create the tables of"))?;
    stop_when_told(&mut connection, stop).map_err(failed("watch"))?;
    fill(&connection, feed, metadata, path).map_err(failed("write rows to"))?;
    // From here on the file says that it wants a write-ahead log, and has none.
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed("finish"))?;
    connection
        .close()
        .map_err(|(_, source)| failed("close")(source))
}

/// Makes an empty state machine in the empty file `path`.
pub(crate) fn create_empty(path: &Path) -> Result<(), TargetError> {
    let failed = |source| TargetError::Sqlite {
        operation: "create",
        path: path.to_owned(),
        source,
    };
    let connection = Connection::open(path).map_err(failed)?;
    prepare(&connection).map_err(failed)?;
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(failed)?;
    close(connection, path)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", sqlite::PAGE_BYTES)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -BUILD_CACHE_KIB)?;
    connection.execute_batch(sqlite::SCHEMA)
}

fn stop_when_told(connection: &mut Connection, stop: &Arc<AtomicBool>) -> rusqlite::Result<()> {
    let stop = Arc::clone(stop);
    let look = move || stop.load(Ordering::Relaxed);
    connection.progress_handler(INSTRUCTIONS_PER_LOOK, Some(look))
}

fn fill(
    connection: &Connection,
    feed: Feed,
    metadata: &Metadata,
    path: &Path,
) -> rusqlite::Result<()> {
    const FEED: Module<'_, FeedTable> = Module::eponymous_only_module();
    let written = File::open(path).ok();
    let aux = Arc::new(Mutex::new(Some(Rows {
        feed,
        written,
        since_writeback: 0,
        at: 0,
    })));
    connection.create_module(c"aspen_feed", &FEED, Some(aux))?;
    connection.execute_batch("BEGIN")?;
    connection.execute_batch(
        "INSERT INTO state_machine_kv(key, value) SELECT key, value FROM aspen_feed",
    )?;
    let mut insert = connection.prepare("INSERT INTO state_machine_meta VALUES (?1, ?2)")?;
    for (key, value) in &metadata.records {
        insert.execute((key, value))?;
    }
    connection.execute_batch("COMMIT")
}

/// The rows on their way in.
struct Rows {
    feed: Feed,
    /// The file being written, to have the kernel write it out along the way.
    written: Option<File>,
    since_writeback: u64,
    at: i64,
}

impl Rows {
    fn advance(&mut self) -> bool {
        let more = self.feed.advance();
        self.at += 1;
        if let (Some((key, value)), Some(file)) = (self.feed.row(), &self.written) {
            self.since_writeback += (key.len() + value.len()) as u64;
            if self.since_writeback > durable::COPY_CHUNK {
                self.since_writeback = 0;
                durable::start_writeback(file, 0, 0);
            }
        }
        more
    }
}

/// The virtual table `aspen_feed(key, value)`; it can be read once.
#[repr(C)]
struct FeedTable {
    base: ffi::sqlite3_vtab,
    rows: Arc<Mutex<Option<Rows>>>,
}

#[repr(C)]
struct FeedCursor {
    base: ffi::sqlite3_vtab_cursor,
    rows: Option<Rows>,
    more: bool,
}

// SAFETY: the struct is `repr(C)` and begins with `sqlite3_vtab`, as the trait demands.
unsafe impl VTab<'_> for FeedTable {
    type Aux = Arc<Mutex<Option<Rows>>>;
    type Cursor = FeedCursor;

    fn connect(
        db: &mut VTabConnection,
        aux: Option<&Self::Aux>,
        _module: &[u8],
        _database: &[u8],
        _table: &[u8],
        _arguments: &[&[u8]],
    ) -> rusqlite::Result<(Cow<'static, CStr>, Self)> {
        db.config(VTabConfig::DirectOnly)?;
        let rows = aux.map(Arc::clone).unwrap_or_default();
        let base = ffi::sqlite3_vtab::default();
        Ok((
            Cow::Borrowed(c"CREATE TABLE x(key TEXT, value TEXT)"),
            Self { base, rows },
        ))
    }

    fn best_index(&self, info: &mut IndexInfo) -> rusqlite::Result<bool> {
        info.set_estimated_rows(i64::MAX);
        Ok(true)
    }

    fn open(&mut self) -> rusqlite::Result<FeedCursor> {
        let rows = self
            .rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(FeedCursor {
            base: ffi::sqlite3_vtab_cursor::default(),
            rows,
            more: false,
        })
    }
}

/// Text as SQLite takes it, known to be UTF-8.
struct Text<'a>(&'a [u8]);

impl rusqlite::ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

// SAFETY: the struct is `repr(C)` and begins with `sqlite3_vtab_cursor`, as the trait demands.
unsafe impl VTabCursor for FeedCursor {
    fn filter(&mut self, _: c_int, _: Option<&str>, _: &Filters<'_>) -> rusqlite::Result<()> {
        VTabCursor::next(self)
    }

    fn next(&mut self) -> rusqlite::Result<()> {
        self.more = self.rows.as_mut().is_some_and(Rows::advance);
        Ok(())
    }

    fn eof(&self) -> bool {
        !self.more
    }

    fn column(&self, context: &mut Context, column: c_int) -> rusqlite::Result<()> {
        match self.rows.as_ref().and_then(|rows| rows.feed.row()) {
            Some((key, _)) if column == 0 => context.set_result(Text(key)),
            Some((_, value)) => context.set_result(Text(value)),
            None => Ok(()),
        }
    }

    fn rowid(&self) -> rusqlite::Result<i64> {
        Ok(self.rows.as_ref().map_or(0, |rows| rows.at))
    }
}

/// How a copy is compared with its source.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    /// What was read from the source.
    pub(crate) digest: Digest,
    /// Its keys alone.
    pub(crate) keys: Digest,
    /// Its metadata.
    pub(crate) metadata: &'a Metadata,
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

fn close(connection: Connection, path: &Path) -> Result<(), TargetError> {
    connection
        .close()
        .map_err(|(_, source)| TargetError::Sqlite {
            operation: "close",
            path: path.to_owned(),
            source,
        })
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
