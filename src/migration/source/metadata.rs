//! Raft metadata as a source holds it.

use std::collections::BTreeMap;

use crate::format::record::{self, LogId, RecordError, StoredMembership};

/// Raft metadata: the bytes as they are, and what they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Every record, copied byte for byte.
    pub records: BTreeMap<String, Vec<u8>>,
    /// The last applied entry; `None` in a node that never applied one.
    pub last_applied: Option<LogId>,
    /// The last membership, where one is recorded.
    pub membership: Option<StoredMembership>,
}

impl Metadata {
    /// Decodes the known records.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn new(records: BTreeMap<String, Vec<u8>>) -> Result<Self, RecordError> {
        let last_applied = match records.get(record::LAST_APPLIED) {
            Some(bytes) => record::last_applied(bytes)?,
            None => None,
        };
        let membership = match records.get(record::LAST_MEMBERSHIP) {
            Some(bytes) => Some(record::membership(bytes)?),
            None => None,
        };
        Ok(Self {
            records,
            last_applied,
            membership,
        })
    }
}
