//! The idempotent writes that a source remembers.

use super::redb::EngineError;
use super::{Engine, Enough, Source, SourceError};
use crate::format::idempotency::Record;
use crate::format::tables;

/// Receives idempotent writes in the order of the log: the index of the entry,
/// the client's key, the record; an error ends the scan.
pub(crate) type IdempotentSink<'a> = &'a mut dyn FnMut(u64, &str, &[u8]) -> Result<(), Enough>;

impl Source {
    /// Hands every idempotent write to `sink`, in order, until it has [`Enough`].
    /// Each is known to decode: a node that could not read one would end.
    pub(crate) fn scan_idempotency(&self, sink: IdempotentSink<'_>) -> Result<(), SourceError> {
        let mut damaged = None;
        let mut checked = |index, key: &str, record: &[u8]| match Record::decode(record) {
            Ok(_) => sink(index, key, record),
            Err(error) => {
                damaged = Some(error);
                Err(Enough)
            }
        };
        match &self.engine {
            Engine::Sqlite(reader) => reader.scan_idempotency(&mut checked)?,
            Engine::Redb(engine) => {
                if self.rows_of(tables::IDEMPOTENCY)? == 0 {
                    return Ok(());
                }
                match engine.scan_idempotency(tables::IDEMPOTENCY, &mut checked) {
                    Ok(()) | Err(EngineError::Stopped) => {}
                    Err(error) => return Err(self.damaged(error)),
                }
            }
        }
        damaged.map_or(Ok(()), |source| {
            Err(SourceError::Record {
                path: self.path.clone(),
                source,
            })
        })
    }
}
