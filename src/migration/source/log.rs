//! What a source that is a Raft log can be asked for.

use std::collections::BTreeMap;

use super::redb::{EngineError, Redb};
use super::{Engine, Enough, Source, SourceError};
use crate::format::tables;

/// Receives entries by their index, in ascending order; an error ends the scan.
pub(crate) type EntrySink<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), Enough>;

impl Source {
    /// How many entries the log has.
    pub(crate) fn entries(&self) -> Result<u64, SourceError> {
        self.rows_of(tables::RAFT_LOG)
    }

    /// Hands every entry to `sink`, in order, until it has [`Enough`].
    pub(crate) fn scan_entries(&self, sink: EntrySink<'_>) -> Result<(), SourceError> {
        match self.redb()?.scan_entries(tables::RAFT_LOG, sink) {
            Ok(()) | Err(EngineError::Stopped) => Ok(()),
            Err(error) => Err(self.damaged(error)),
        }
    }

    /// Vote, committed and purged position, and whatever else lies with them.
    pub(crate) fn log_records(&self) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        self.redb()?
            .read_meta(tables::RAFT_META)
            .map_err(|error| self.damaged(error))
    }

    fn redb(&self) -> Result<&Redb, SourceError> {
        match &self.engine {
            Engine::Redb(engine) => Ok(engine),
            Engine::Sqlite(_) => Err(SourceError::NotADatabase {
                path: self.path.clone(),
                found: "it is a SQLite database",
            }),
        }
    }
}
