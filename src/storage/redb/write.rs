//! The tables of one transaction, as applying sees them.

use redb::{AccessGuard, ReadableTable as _, Table, WriteTransaction};

use super::{IDEMPOTENCY, IDEMPOTENCY_KEYS, KV, Remembered};
use crate::format::idempotency::Record;
use crate::format::record::RecordError;
use crate::storage::apply;

/// The tables of one transaction.
pub(super) struct Rows<'a> {
    write: &'a WriteTransaction,
    pairs: Table<'a, &'static str, &'static str>,
    /// Opened, and made, for the first idempotent write.
    idempotent: Option<Idempotent<'a>>,
}

struct Idempotent<'a> {
    records: Table<'a, u64, Remembered>,
    by_key: Table<'a, &'static str, u64>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(write: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            write,
            pairs: write.open_table(KV)?,
            idempotent: None,
        })
    }

    fn idempotent(&mut self) -> Result<&mut Idempotent<'a>, redb::Error> {
        let open = match self.idempotent.take() {
            Some(open) => open,
            None => Idempotent {
                records: self.write.open_table(IDEMPOTENCY)?,
                by_key: self.write.open_table(IDEMPOTENCY_KEYS)?,
            },
        };
        Ok(self.idempotent.insert(open))
    }
}

impl apply::Rows for Rows<'_> {
    type Error = redb::Error;

    fn get(&mut self, key: &str) -> Result<Option<String>, redb::Error> {
        let value = self.pairs.get(key)?;
        Ok(value.map(|value| value.value().to_owned()))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), redb::Error> {
        self.pairs.insert(key, value)?;
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<bool, redb::Error> {
        Ok(self.pairs.remove(key)?.is_some())
    }
}

impl apply::Remembered for Rows<'_> {
    fn recall(&mut self, key: &str) -> Result<Option<(u64, Record)>, redb::Error> {
        let tables = self.idempotent()?;
        let index = tables.by_key.get(key)?.map(|index| index.value());
        let Some(index) = index else {
            return Ok(None);
        };
        match tables.records.get(index)? {
            Some(found) => Ok(Some((index, decode(found.value().1)?))),
            None => Ok(None),
        }
    }

    fn oldest(&mut self) -> Result<Option<(u64, Record)>, redb::Error> {
        of_entry(self.idempotent()?.records.first()?)
    }

    fn newest(&mut self) -> Result<Option<(u64, Record)>, redb::Error> {
        of_entry(self.idempotent()?.records.last()?)
    }

    fn remember(&mut self, index: u64, key: &str, record: Record) -> Result<(), redb::Error> {
        let record = record.encode().map_err(damaged)?;
        let tables = self.idempotent()?;
        tables.records.insert(index, (key, record.as_slice()))?;
        tables.by_key.insert(key, index)?;
        Ok(())
    }

    fn forget(&mut self, index: u64) -> Result<(), redb::Error> {
        let tables = self.idempotent()?;
        if let Some(forgotten) = tables.records.remove(index)? {
            tables.by_key.remove(forgotten.value().0)?;
        }
        Ok(())
    }
}

type Found<'a> = (AccessGuard<'a, u64>, AccessGuard<'a, Remembered>);

fn of_entry(found: Option<Found<'_>>) -> Result<Option<(u64, Record)>, redb::Error> {
    let record = |(index, value): Found<'_>| Ok((index.value(), decode(value.value().1)?));
    found.map(record).transpose()
}

fn decode(record: &[u8]) -> Result<Record, redb::Error> {
    Record::decode(record).map_err(damaged)
}

fn damaged(error: RecordError) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}
