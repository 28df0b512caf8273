//! A state machine that lives as long as its process.

use super::{StateMachine, StorageError};
use crate::format::record::LogId;

/// Empty until entries are applied.
pub(super) struct Memory;

impl StateMachine for Memory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn get(&self, keys: &[String]) -> Result<Vec<Option<String>>, StorageError> {
        Ok(vec![None; keys.len()])
    }

    fn applied(&self) -> Result<super::Applied, StorageError> {
        Ok(super::Applied::default())
    }

    fn scan(&self, _range: &super::Range) -> Result<super::Page, StorageError> {
        todo!()
    }
    fn apply(
        &self,
        _entries: &[crate::format::entry::Entry],
    ) -> Result<Vec<crate::format::entry::Outcome>, StorageError> {
        todo!()
    }
    fn persist(&self) -> Result<Option<LogId>, StorageError> {
        todo!()
    }
    fn write_snapshot(&self, _to: &std::path::Path) -> Result<super::Applied, StorageError> {
        todo!()
    }
    fn install_snapshot(&self, _from: &std::path::Path) -> Result<super::Applied, StorageError> {
        todo!()
    }
    fn checkpoint(&self) -> Result<Option<super::Checkpoint>, StorageError> {
        todo!()
    }
    fn sizes(&self) -> super::Sizes {
        todo!()
    }

    fn close(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
