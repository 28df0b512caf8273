//! What each request does, written once for all engines.

use super::Applied;
use crate::format::entry::{Entry, Outcome, Payload, Request};
use crate::format::record::{self, LogId, RecordError, StoredMembership};

/// The pairs of an engine inside its open transaction: what was set earlier in
/// the same transaction is seen.
pub(super) trait Rows {
    /// How the engine fails.
    type Error;
    fn get(&mut self, key: &str) -> Result<Option<String>, Self::Error>;
    fn set(&mut self, key: &str, value: &str) -> Result<(), Self::Error>;
    /// Whether the key was there.
    fn delete(&mut self, key: &str) -> Result<bool, Self::Error>;
}

/// Applies entries in their order.
pub(super) fn apply<R: Rows>(rows: &mut R, entries: &[Entry]) -> Result<Vec<Outcome>, R::Error> {
    let outcomes = entries.iter().map(|entry| match &entry.payload {
        Payload::Blank | Payload::Membership(_) => Ok(Outcome::Done { deleted: 0 }),
        Payload::Normal(request) => apply_one(rows, request),
    });
    outcomes.collect()
}

fn apply_one<R: Rows>(rows: &mut R, request: &Request) -> Result<Outcome, R::Error> {
    let mut deleted = 0;
    match request {
        Request::Set { key, value } => rows.set(key, value)?,
        Request::SetMulti { pairs } => set_all(rows, pairs)?,
        Request::Delete { key } => deleted += u64::from(rows.delete(key)?),
        Request::CompareAndSet { key, expect, value } => {
            let current = rows.get(key)?;
            if current != *expect {
                return Ok(Outcome::Conflict { current });
            }
            rows.set(key, value)?;
        }
        Request::Batch { set, delete } => {
            set_all(rows, set)?;
            for key in delete {
                deleted += u64::from(rows.delete(key)?);
            }
        }
    }
    Ok(Outcome::Done { deleted })
}

fn set_all<R: Rows>(rows: &mut R, pairs: &[(String, String)]) -> Result<(), R::Error> {
    pairs
        .iter()
        .try_for_each(|(key, value)| rows.set(key, value))
}

/// How far a batch of entries takes a state machine.
pub(super) struct Advance {
    last: LogId,
    membership: Option<StoredMembership>,
}

impl Advance {
    /// `None` without entries.
    pub(super) fn by(entries: &[Entry]) -> Option<Self> {
        let membership = entries.iter().rev().find_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some(StoredMembership {
                log_id: Some(entry.log_id),
                membership: membership.clone(),
            }),
            _ => None,
        });
        let last = entries.last()?.log_id;
        Some(Self { last, membership })
    }

    /// The position of the last entry.
    pub(super) fn last(&self) -> LogId {
        self.last
    }

    /// The metadata records that change with the rows, in the same transaction.
    pub(super) fn records(&self) -> Result<Vec<(&'static str, Vec<u8>)>, RecordError> {
        let mut records = vec![(
            record::LAST_APPLIED,
            record::encode_last_applied(Some(self.last))?,
        )];
        if let Some(membership) = &self.membership {
            records.push((
                record::LAST_MEMBERSHIP,
                record::encode_membership(membership)?,
            ));
        }
        Ok(records)
    }

    /// Notes it, once it is committed.
    pub(super) fn note(self, applied: &mut Applied) {
        applied.last_applied = Some(self.last);
        if let Some(membership) = self.membership {
            applied.membership = membership;
        }
    }
}

impl Applied {
    /// What metadata records say; one that is absent was never written.
    pub(super) fn decode(
        last_applied: Option<&[u8]>,
        membership: Option<&[u8]>,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            last_applied: last_applied.map_or(Ok(None), record::last_applied)?,
            membership: membership.map_or(Ok(StoredMembership::default()), record::membership)?,
        })
    }
}
