//! What a source must be, so that nothing in it is left behind.

use super::{Engine, Source, SourceError};
use crate::format::tables;

/// What a redb file of a legacy node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Keys, values and their metadata.
    StateMachine,
    /// The Raft log.
    RaftLog,
}

impl Holds {
    fn name(self) -> &'static str {
        match self {
            Self::StateMachine => "state machine",
            Self::RaftLog => "Raft log",
        }
    }

    /// The tables that are carried over. Each must be there: a damaged file can
    /// repair to an empty one.
    fn tables(self) -> [&'static str; 2] {
        match self {
            Self::StateMachine => [tables::KV, tables::META],
            Self::RaftLog => [tables::RAFT_LOG, tables::RAFT_META],
        }
    }

    /// Whether a table may have rows: it is carried over, or made from what is.
    fn may_have(self, table: &str) -> bool {
        let made = match self {
            Self::StateMachine => [tables::IDEMPOTENCY, tables::IDEMPOTENCY_KEYS].as_slice(),
            Self::RaftLog => &[],
        };
        self.tables().contains(&table) || table == tables::SNAPSHOTS || made.contains(&table)
    }
}

impl Source {
    /// Fails unless the file is what it should be. Whatever is not carried over
    /// must be empty or derived, or data would be lost.
    pub(super) fn require(&self, holds: Holds) -> Result<(), SourceError> {
        let Engine::Redb(engine) = &self.engine else {
            return Ok(());
        };
        let found = engine.tables().map_err(|error| self.damaged(error))?;
        let not = |why| {
            Err(SourceError::WrongContent {
                path: self.path.clone(),
                wanted: holds.name(),
                why,
            })
        };
        for needed in holds.tables() {
            if !found.iter().any(|table| table.name == needed) {
                let names: Vec<_> = found.iter().map(|table| table.name.as_str()).collect();
                return not(format!(
                    "it has no table {needed} (it has: {})",
                    names.join(", ")
                ));
            }
        }
        match found
            .iter()
            .find(|t| t.rows > 0 && !holds.may_have(&t.name))
        {
            Some(table) => not(format!(
                "its table {} has {} rows that a migration would leave behind",
                table.name, table.rows
            )),
            None => Ok(()),
        }
    }

    /// How many rows a redb file's table has; none where there is no such table.
    pub(super) fn rows_of(&self, name: &str) -> Result<u64, SourceError> {
        let tables = match &self.engine {
            Engine::Redb(engine) => engine.tables().map_err(|error| self.damaged(error))?,
            Engine::Sqlite(_) => Vec::new(),
        };
        let table = tables.iter().find(|table| table.name == name);
        Ok(table.map_or(0, |table| table.rows))
    }
}
