//! The legacy records: Raft metadata as bincode 1.3 (little-endian,
//! fixed-width integers) wrote it, which every release must go on reading.
//!
//! bincode 1.3.3 is finished and pinned; nothing outside this module names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Key of the last applied log id in the metadata tables of both engines.
pub const LAST_APPLIED: &str = "last_applied_log";
/// Key of the last membership in the metadata tables of both engines.
pub const LAST_MEMBERSHIP: &str = "last_membership";

/// The position of an entry in the Raft log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader's node id.
    pub node_id: u64,
    /// The position, from 0.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term={}, index={}", self.term, self.index)
    }
}

/// A cluster member's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Host and port.
    pub addr: String,
}

/// Who votes and who listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// One set of voters, or two during a joint change.
    pub configs: Vec<BTreeSet<u64>>,
    /// Every member, learners too.
    pub nodes: BTreeMap<u64, NodeAddress>,
}

/// The last membership that was applied, and the entry that held it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembership {
    /// The entry; `None` before the first.
    pub log_id: Option<LogId>,
    /// The membership.
    pub membership: Membership,
}

/// A record whose bytes do not decode, or have something behind them.
#[derive(Debug, thiserror::Error)]
#[error("the record {name:?} ({bytes} bytes) cannot be decoded; the data is damaged")]
pub struct RecordError {
    name: &'static str,
    bytes: usize,
    source: bincode::Error,
}

/// Decodes [`LAST_APPLIED`].
///
/// # Errors
/// When the bytes are not exactly one such record.
pub fn last_applied(bytes: &[u8]) -> Result<Option<LogId>, RecordError> {
    decode(LAST_APPLIED, bytes)
}

/// Decodes [`LAST_MEMBERSHIP`].
///
/// # Errors
/// When the bytes are not exactly one such record.
pub fn membership(bytes: &[u8]) -> Result<StoredMembership, RecordError> {
    decode(LAST_MEMBERSHIP, bytes)
}

/// Encodes [`LAST_APPLIED`].
///
/// # Errors
/// Never in practice; bincode's signature has it.
pub fn encode_last_applied(id: Option<LogId>) -> Result<Vec<u8>, RecordError> {
    encode(LAST_APPLIED, &id)
}

/// Encodes [`LAST_MEMBERSHIP`].
///
/// # Errors
/// As for [`encode_last_applied`].
pub fn encode_membership(membership: &StoredMembership) -> Result<Vec<u8>, RecordError> {
    encode(LAST_MEMBERSHIP, membership)
}

/// Decodes a bare position, as the log's metadata holds it.
///
/// # Errors
/// When the bytes are not exactly one position.
pub fn position(name: &'static str, bytes: &[u8]) -> Result<LogId, RecordError> {
    decode(name, bytes)
}

/// Encodes a bare position.
///
/// # Errors
/// As for [`encode_last_applied`].
pub fn encode_position(name: &'static str, id: LogId) -> Result<Vec<u8>, RecordError> {
    encode(name, &id)
}

/// The bytes of another type in this encoding, to compare it with a record here.
#[cfg(test)]
pub(crate) fn encode_as_consensus_does<T: Serialize>(value: &T) -> Result<Vec<u8>, RecordError> {
    encode("consensus", value)
}

pub(super) fn encode<T: Serialize>(name: &'static str, value: &T) -> Result<Vec<u8>, RecordError> {
    // Its defaults: little-endian, fixed-width integers.
    bincode::serialize(value).map_err(|source| RecordError {
        name,
        bytes: 0,
        source,
    })
}

pub(super) fn decode<'a, T: Deserialize<'a>>(
    name: &'static str,
    bytes: &'a [u8],
) -> Result<T, RecordError> {
    use bincode::Options as _;
    // The limit keeps a damaged length from asking for memory that the record cannot fill.
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .reject_trailing_bytes()
        .with_limit(bytes.len() as u64)
        .deserialize(bytes)
        .map_err(|source| RecordError {
            name,
            bytes: bytes.len(),
            source,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_legacy_log_id_is_25_bytes_and_these() {
        let mut golden = vec![1];
        for field in [5_u64, 2, 1235] {
            golden.extend_from_slice(&field.to_le_bytes());
        }
        let id = LogId {
            term: 5,
            node_id: 2,
            index: 1235,
        };
        assert_eq!(last_applied(&golden).unwrap(), Some(id));
        assert_eq!(bincode::serialize(&Some(id)).unwrap(), golden);
        assert_eq!(last_applied(&[0]).unwrap(), None);
    }

    #[test]
    fn a_joint_membership_keeps_its_bytes() {
        let stored = StoredMembership {
            log_id: Some(LogId {
                term: 1,
                node_id: 1,
                index: 0,
            }),
            membership: Membership {
                configs: vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
                nodes: BTreeMap::from([(
                    1,
                    NodeAddress {
                        addr: "10.0.0.1:7000".into(),
                    },
                )]),
            },
        };
        let bytes = bincode::serialize(&stored).unwrap();
        assert_eq!(membership(&bytes).unwrap(), stored);
    }

    #[test]
    fn bytes_missing_or_left_over_are_damage_not_absence() {
        let whole = bincode::serialize(&Some(LogId {
            term: 1,
            node_id: 1,
            index: 9,
        }))
        .unwrap();
        for length in 0..whole.len() {
            assert!(last_applied(&whole[..length]).is_err(), "{length} bytes");
        }
        let longer: Vec<u8> = whole.iter().copied().chain([0]).collect();
        assert!(last_applied(&longer).is_err());
        assert!(last_applied(&[2]).is_err());
        assert!(membership(&[0, 255, 255, 255, 255, 255, 255, 255, 127]).is_err());
    }
}
