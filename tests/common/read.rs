//! Reading what a conversion made without any code of ours: the `sqlite3`
//! shell, redb itself, `sha256sum`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

/// Rows or metadata by key.
pub(crate) type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> String {
    let mut sum = Command::new("sha256sum");
    let file = std::fs::File::open(path).unwrap();
    digest_of(sum.stdin(file).stdout(Stdio::piped()).spawn().unwrap())
}

/// The manifests' digest of rows: see `fixtures/golden/README.md`.
pub(crate) fn rows_sha256(rows: &Table) -> String {
    let mut sum = Command::new("sha256sum");
    let piped = sum.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut input = std::io::BufWriter::new(child.stdin.take().unwrap());
    for part in rows.iter().flat_map(|(key, value)| [key, value]) {
        input.write_all(&(part.len() as u64).to_le_bytes()).unwrap();
        input.write_all(part).unwrap();
    }
    drop(input);
    digest_of(child)
}

fn digest_of(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "sha256sum: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

/// What the `sqlite3` shell answers, by row and column. Where there is no
/// shell the library answers, unless all tests are required.
pub(crate) fn query(database: &Path, sql: &str) -> Vec<Vec<String>> {
    let mut shell = Command::new("sqlite3");
    shell.args(["-batch", "-list", "-noheader", "-separator", "|"]);
    // Nobody's ~/.sqliterc has a say.
    shell.env("HOME", "/nonexistent").arg(database).arg(sql);
    match shell.output() {
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && complaint.is_empty(),
                "{complaint}"
            );
            let text = String::from_utf8(output.stdout).unwrap();
            let columns = |line: &str| line.split('|').map(str::to_owned).collect();
            text.lines().map(columns).collect()
        }
        Err(error) => {
            assert!(!super::all_tests_required(), "sqlite3: {error}");
            query_by_library(database, sql)
        }
    }
}

fn query_by_library(database: &Path, sql: &str) -> Vec<Vec<String>> {
    use rusqlite::types::Value;
    let connection = rusqlite::Connection::open(database).unwrap();
    let mut select = connection.prepare(sql).unwrap();
    let columns = select.column_count();
    let rows = select.query_map([], |row| {
        (0..columns)
            .map(|n| {
                Ok(match row.get::<_, Value>(n)? {
                    Value::Text(text) => text,
                    Value::Integer(number) => number.to_string(),
                    other => panic!("a test asks for {other:?}"),
                })
            })
            .collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// A table of two columns, byte for byte whatever is in it.
pub(crate) fn sqlite_table(database: &Path, table: &str) -> Table {
    let sql = format!("SELECT hex(key), hex(value) FROM {table}");
    let rows = query(database, &sql);
    let count = rows.len();
    let table: Table = rows
        .iter()
        .map(|row| (unhex(&row[0]), unhex(&row[1])))
        .collect();
    assert_eq!(table.len(), count, "a key is there twice");
    table
}

/// Upper-case digits only; tens of megabytes, so without a call for each byte.
fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    for pair in text.as_bytes().chunks_exact(2) {
        // '0' is 0x30, 'A' is 0x41.
        let high = (pair[0] & 15) + 9 * (pair[0] >> 6);
        let low = (pair[1] & 15) + 9 * (pair[1] >> 6);
        bytes.push(high << 4 | low);
    }
    bytes
}

/// Rows and metadata of a redb file of the current format. Opening it marks it in use.
pub(crate) fn redb_tables(path: &Path) -> (Table, Table) {
    let database = redb::Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let rows = TableDefinition::<&str, &str>::new("sm_kv");
    let rows = read.open_table(rows).unwrap();
    let rows = rows.iter().unwrap().map(|row| {
        let (key, value) = row.unwrap();
        (key.value().into(), value.value().into())
    });
    let meta = TableDefinition::<&str, &[u8]>::new("sm_meta");
    let meta = read.open_table(meta).unwrap();
    let meta = meta.iter().unwrap().map(|row| {
        let (key, value) = row.unwrap();
        (key.value().into(), value.value().to_vec())
    });
    (rows.collect(), meta.collect())
}

/// Entries, by their big-endian index, and metadata of a Raft log of the
/// current format. Opening it marks it in use.
pub(crate) fn log_tables(path: &Path) -> (Table, Table) {
    let database = redb::Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let entries = TableDefinition::<u64, &[u8]>::new("raft_log");
    let entries = read.open_table(entries).unwrap();
    let entries = entries.iter().unwrap().map(|row| {
        let (index, entry) = row.unwrap();
        (index.value().to_be_bytes().into(), entry.value().to_vec())
    });
    let meta = TableDefinition::<&str, &[u8]>::new("raft_meta");
    let meta = read.open_table(meta).unwrap();
    let meta = meta.iter().unwrap().map(|row| {
        let (name, record) = row.unwrap();
        (name.value().into(), record.value().to_vec())
    });
    (entries.collect(), meta.collect())
}

/// The same of the format that a legacy node left, by its own redb.
pub(crate) fn legacy_log_tables(path: &Path) -> (Table, Table) {
    let database = redb2::Database::open(path).unwrap();
    let read = database.begin_read().unwrap();
    let entries = redb2::TableDefinition::<u64, &[u8]>::new("raft_log");
    let entries = read.open_table(entries).unwrap();
    let entries = redb2::ReadableTable::iter(&entries).unwrap().map(|row| {
        let (index, entry) = row.unwrap();
        (index.value().to_be_bytes().into(), entry.value().to_vec())
    });
    let meta = redb2::TableDefinition::<&str, &[u8]>::new("raft_meta");
    let meta = read.open_table(meta).unwrap();
    let meta = redb2::ReadableTable::iter(&meta).unwrap().map(|row| {
        let (name, record) = row.unwrap();
        (name.value().into(), record.value().to_vec())
    });
    (entries.collect(), meta.collect())
}
