//! What is remembered of idempotent writes: for each key that a client gave,
//! which request it was, which entry of the log applied it, and what came of it.
//!
//! What is remembered is part of the replicated state: it changes with entries of the log and
//! nothing else, no clock among them, so that every node answers a repetition alike. It is bounded
//! twice, by number and by bytes; the oldest go first, and only another idempotent write makes
//! them go. For that each record carries its place and the bytes up to it, counted from the
//! first there ever was, so that the oldest and the newest tell how much there is.
//!
//! The encoding is [`record`]'s; variants are only ever appended.

use serde::{Deserialize, Serialize};

use super::digest::Digester;
use super::entry::Outcome;
use super::record::{self, RecordError};

/// Bytes of a key that a client gives: several UUIDs, and less than a line of a log.
pub const MAX_KEY_BYTES: usize = 255;

/// Idempotent writes that are remembered: at 10,000 a second those of the last 26 s, more
/// than twice as long as a node tries to have one confirmed. With usual keys they take about
/// 40 MB in a file and 60 MB in memory.
#[cfg(not(test))]
pub const MAX_RECORDS: u64 = 1 << 18;
/// So few that a test reaches it.
#[cfg(test)]
pub const MAX_RECORDS: u64 = 24;

/// Bytes of those behind the oldest, keys included: bounds memory and snapshots even if all of
/// them were conflicts with long values, of which it holds 15,000.
#[cfg(not(test))]
pub const MAX_BYTES: u64 = 64 << 20;
/// So few that a test reaches it.
#[cfg(test)]
pub const MAX_BYTES: u64 = 40 << 10;

/// Bytes of the value that a conflict found, for it to be remembered. Else the values of a few
/// conflicts would make the node forget that thousands of writes have happened.
pub const MAX_VALUE_BYTES: usize = 4 << 10;

/// Bytes that are counted for a record beside its key and value.
const RECORD_BYTES: usize = 64;

/// What is remembered of one idempotent write, beside its key and the index of its entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which request it was; see [`Idempotent`](super::entry::Idempotent).
    pub fingerprint: u128,
    /// How many idempotent writes there were up to this one.
    pub count: u64,
    /// How many bytes they took, this one's included.
    pub bytes: u64,
    /// What came of it.
    pub result: Done,
}

/// What came of an idempotent write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// As [`Outcome::Done`].
    Applied {
        /// Number of keys that existed and were gone.
        deleted: u64,
    },
    /// As [`Outcome::Conflict`].
    Conflict {
        /// What the key held.
        current: Option<String>,
    },
    /// The same, with more than [`MAX_VALUE_BYTES`].
    LargeConflict,
}

impl Record {
    /// What is remembered of a write after `newest`, the newest so far.
    #[must_use]
    pub fn after(newest: Option<&Self>, key: &str, fingerprint: u128, result: Done) -> Self {
        let value = match &result {
            Done::Conflict {
                current: Some(value),
            } => value.len(),
            _ => 0,
        };
        let bytes = (RECORD_BYTES + key.len() + value) as u64;
        Self {
            fingerprint,
            count: newest.map_or(0, |newest| newest.count).saturating_add(1),
            bytes: newest
                .map_or(0, |newest| newest.bytes)
                .saturating_add(bytes),
            result,
        }
    }

    /// Whether `oldest` has to go, with this one being the newest.
    #[must_use]
    pub fn displaces(&self, oldest: &Self) -> bool {
        self.count.saturating_sub(oldest.count) >= MAX_RECORDS
            || self.bytes.saturating_sub(oldest.bytes) > MAX_BYTES
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Never for what can be built in memory; bincode's signature has it.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        record::encode("idempotent write", self)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// When the bytes are not exactly one record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        record::decode("idempotent write", bytes)
    }
}

impl From<&Outcome> for Done {
    /// Of what a plain change did; the outcomes of others are never remembered.
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { deleted } => Self::Applied { deleted: *deleted },
            Outcome::Conflict {
                current: Some(value),
            } if value.len() > MAX_VALUE_BYTES => Self::LargeConflict,
            Outcome::Conflict { current } => Self::Conflict {
                current: current.clone(),
            },
            Outcome::ReplayedDone { .. }
            | Outcome::ReplayedConflict { .. }
            | Outcome::KeyReused => Self::Applied { deleted: 0 },
        }
    }
}

/// Adds one to the digest of all, which are taken in the order of the log.
pub fn digest(digester: &mut Digester, index: u64, key: &str, record: &[u8]) {
    digester.row(key.as_bytes(), &[&index.to_le_bytes(), record].concat());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(result: Done) -> Record {
        Record {
            fingerprint: 7,
            count: 2,
            bytes: 300,
            result,
        }
    }

    #[test]
    fn every_record_has_these_bytes_for_ever() {
        let head = [
            &7_u128.to_le_bytes()[..],
            &2_u64.to_le_bytes(),
            &300_u64.to_le_bytes(),
        ]
        .concat();
        let one = 1_u64.to_le_bytes();
        for (result, tail) in [
            (Done::Applied { deleted: 1 }, [&[0; 4][..], &one].concat()),
            (
                Done::Conflict {
                    current: Some("v".into()),
                },
                [&[1, 0, 0, 0, 1][..], &one, b"v"].concat(),
            ),
            (Done::Conflict { current: None }, vec![1, 0, 0, 0, 0]),
            (Done::LargeConflict, vec![2, 0, 0, 0]),
        ] {
            let bytes = [&head[..], &tail].concat();
            let record = record(result);
            assert_eq!(record.encode().unwrap(), bytes);
            assert_eq!(Record::decode(&bytes).unwrap(), record);
            for length in 0..bytes.len() {
                assert!(Record::decode(&bytes[..length]).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_value_is_remembered_up_to_its_limit() {
        let found = |bytes: usize| Outcome::Conflict {
            current: Some("v".repeat(bytes)),
        };
        let kept = Done::from(&found(MAX_VALUE_BYTES));
        assert!(matches!(kept, Done::Conflict { current: Some(_) }));
        let long = Done::from(&found(MAX_VALUE_BYTES + 1));
        assert_eq!(long, Done::LargeConflict);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_or_they_are_too_long() {
        let first = Record::after(None, "k", 0, Done::Applied { deleted: 0 });
        assert_eq!((first.count, first.bytes), (1, 65));
        let nth = |count, bytes| Record {
            count,
            bytes,
            ..first.clone()
        };
        assert!(!nth(MAX_RECORDS, 65).displaces(&first));
        assert!(nth(MAX_RECORDS + 1, 65).displaces(&first));
        assert!(!nth(2, 65 + MAX_BYTES).displaces(&first));
        assert!(nth(2, 66 + MAX_BYTES).displaces(&first));
    }
}
