//! Making a Raft log in the current file format (redb v3), and verifying it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
};

use super::TargetError;
use super::redb::{RAFT_LOG, RAFT_META, TRANSACTION_BYTES, on, open};
use crate::format::digest::{Digest, Digester};

/// What a log holds, as far as two are compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogContents {
    /// Number and digest of the entries; see [`add`].
    pub(crate) entries: Digest,
    /// The metadata.
    pub(crate) records: BTreeMap<String, Vec<u8>>,
}

/// Adds an entry to the digest of a log: its key is the index, big-endian, so
/// that byte order is the order of the entries.
pub(crate) fn add(digester: &mut Digester, index: u64, entry: &[u8]) {
    digester.row(&index.to_be_bytes(), entry);
}

/// A log that is being made.
pub(crate) struct LogWriter {
    path: PathBuf,
    database: Database,
    /// Entries that are not in the file yet; [`TRANSACTION_BYTES`] and one entry at most.
    waiting: Vec<(u64, Vec<u8>)>,
    bytes: u64,
}

impl LogWriter {
    /// Makes the tables in the empty `file`, which `path` names for messages,
    /// and writes the metadata.
    pub(crate) fn create(
        path: &Path,
        file: &File,
        records: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, TargetError> {
        let database = on("create", path, || {
            let database = open(file)?;
            let mut write = database.begin_write()?;
            write.set_durability(Durability::None)?;
            write.open_table(RAFT_LOG)?;
            let mut table = write.open_table(RAFT_META)?;
            for (name, record) in records {
                table.insert(name.as_str(), record.as_slice())?;
            }
            drop(table);
            write.commit()?;
            Ok(database)
        })?;
        Ok(Self {
            path: path.to_owned(),
            database,
            waiting: Vec::new(),
            bytes: 0,
        })
    }

    /// Appends an entry.
    pub(crate) fn push(&mut self, index: u64, entry: &[u8]) -> Result<(), TargetError> {
        self.bytes += entry.len() as u64;
        self.waiting.push((index, entry.to_vec()));
        match self.bytes >= TRANSACTION_BYTES {
            true => self.write_waiting(),
            false => Ok(()),
        }
    }

    fn write_waiting(&mut self) -> Result<(), TargetError> {
        on("write entries to", &self.path, || {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::None)?;
            let mut table = write.open_table(RAFT_LOG)?;
            for (index, entry) in &self.waiting {
                table.insert(index, entry.as_slice())?;
            }
            drop(table);
            Ok(write.commit()?)
        })?;
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Writes what is left and closes the file, whose content is then durable.
    pub(crate) fn finish(mut self) -> Result<(), TargetError> {
        self.write_waiting()?;
        // The commits so far were not made durable; this one makes all of them so.
        on("finish", &self.path, || {
            Ok(self.database.begin_write()?.commit()?)
        })
    }
}

/// Verifies redb's own checksums, every entry and the metadata. `tick` hears
/// how many entries were read and may end it by an error.
pub(crate) fn verify(
    path: &Path,
    file: &File,
    expected: &LogContents,
    tick: &dyn Fn(u64) -> Result<(), TargetError>,
) -> Result<(), TargetError> {
    let damaged = |complaint: &str| {
        Err(TargetError::Damaged {
            path: path.to_owned(),
            complaint: complaint.to_owned(),
        })
    };
    let mut database = on("open", path, || open(file))?;
    if !on("check", path, || Ok(database.check_integrity()?))? {
        return damaged("redb had to repair it");
    }
    let read = on("open", path, || Ok(database.begin_read()?))?;
    let entries = on("open", path, || Ok(read.open_table(RAFT_LOG)?))?;
    let mut digester = Digester::default();
    let mut rows = on("read back", path, || Ok(entries.iter()?))?;
    let mut done = 0;
    while let Some((index, entry)) = on("read back", path, || Ok(rows.next().transpose()?))? {
        add(&mut digester, index.value(), entry.value());
        done += 1;
        tick(done)?;
    }
    let count = on("count", path, || Ok(entries.len()?))?;
    if count != expected.entries.rows || digester.finish() != expected.entries {
        return damaged("its entries differ from those of the source");
    }
    let records = on("read the metadata of", path, || {
        let mut records = BTreeMap::new();
        for row in read.open_table(RAFT_META)?.iter()? {
            let (name, record) = row?;
            records.insert(name.value().to_owned(), record.value().to_vec());
        }
        Ok(records)
    })?;
    match records == expected.records {
        true => Ok(()),
        false => damaged("its metadata differs from that of the source"),
    }
}
