//! What each request does, written once for all engines.

use super::Applied;
use crate::format::entry::{Change, Entry, Idempotent, Outcome, Payload, Plain};
use crate::format::idempotency::{Done, Record};
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

/// What idempotent writes did, inside the same transaction.
pub(super) trait Remembered: Rows {
    /// The entry that applied a client's key, and what came of it.
    fn recall(&mut self, key: &str) -> Result<Option<(u64, Record)>, Self::Error>;
    /// The first in the order of the log.
    fn oldest(&mut self) -> Result<Option<(u64, Record)>, Self::Error>;
    /// The last in the order of the log.
    fn newest(&mut self) -> Result<Option<(u64, Record)>, Self::Error>;
    fn remember(&mut self, index: u64, key: &str, record: Record) -> Result<(), Self::Error>;
    fn forget(&mut self, index: u64) -> Result<(), Self::Error>;
}

/// Applies entries in their order.
pub(super) fn apply<R: Remembered>(
    rows: &mut R,
    entries: &[Entry],
) -> Result<Vec<Outcome>, R::Error> {
    let outcomes = entries.iter().map(|entry| match &entry.payload {
        Payload::Blank | Payload::Membership(_) => Ok(Outcome::Done { deleted: 0 }),
        Payload::Normal(request) => change(rows, request, |rows, request| {
            once(rows, entry.log_id.index, request)
        }),
    });
    outcomes.collect()
}

/// Applies a request unless its key is remembered; then nothing is done again.
fn once<R: Remembered>(
    rows: &mut R,
    index: u64,
    request: &Idempotent,
) -> Result<Outcome, R::Error> {
    if let Some((first, record)) = rows.recall(&request.key)? {
        return match record.fingerprint == request.fingerprint {
            true => replayed(rows, first, record.result, &request.change),
            false => Ok(Outcome::KeyReused),
        };
    }
    let outcome = change(rows, &request.change, |_, never| match *never {})?;
    let newest = rows.newest()?.map(|(_, newest)| newest);
    let (key, fingerprint) = (&request.key, request.fingerprint);
    let record = Record::after(newest.as_ref(), key, fingerprint, Done::from(&outcome));
    while let Some((oldest, old)) = rows.oldest()?
        && record.displaces(&old)
    {
        rows.forget(oldest)?;
    }
    rows.remember(index, key, record)?;
    Ok(outcome)
}

/// What the entry at `index` was answered. A value that was too long to be
/// remembered is the one that the key holds now.
fn replayed<R: Rows>(
    rows: &mut R,
    index: u64,
    result: Done,
    request: &Plain,
) -> Result<Outcome, R::Error> {
    let current = match result {
        Done::Applied { deleted } => return Ok(Outcome::ReplayedDone { index, deleted }),
        Done::Conflict { current } => current,
        Done::LargeConflict => match request {
            Plain::CompareAndSet { key, .. } => rows.get(key)?,
            _ => None,
        },
    };
    Ok(Outcome::ReplayedConflict { index, current })
}

/// Makes a change; `other` makes what is no plain one.
fn change<O, R: Rows>(
    rows: &mut R,
    change: &Change<O>,
    other: impl FnOnce(&mut R, &O) -> Result<Outcome, R::Error>,
) -> Result<Outcome, R::Error> {
    let mut deleted = 0;
    match change {
        Change::Set { key, value } => rows.set(key, value)?,
        Change::SetMulti { pairs } => set_all(rows, pairs)?,
        Change::Delete { key } => deleted += u64::from(rows.delete(key)?),
        Change::CompareAndSet { key, expect, value } => {
            let current = rows.get(key)?;
            if current != *expect {
                return Ok(Outcome::Conflict { current });
            }
            rows.set(key, value)?;
        }
        Change::Batch { set, delete } => {
            set_all(rows, set)?;
            for key in delete {
                deleted += u64::from(rows.delete(key)?);
            }
        }
        Change::Idempotent(request) => return other(rows, request),
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
