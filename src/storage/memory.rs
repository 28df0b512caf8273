//! A state machine that lives as long as its process.

use super::{StateMachine, StorageError};
use crate::format::record::LogId;

/// Empty until entries are applied.
pub(super) struct Memory;

impl StateMachine for Memory {
    fn backend(&self) -> &'static str {
        "memory"
    }

    fn get(&self, _key: &str) -> Result<Option<String>, StorageError> {
        Ok(None)
    }

    fn last_applied(&self) -> Result<Option<LogId>, StorageError> {
        Ok(None)
    }

    fn close(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
