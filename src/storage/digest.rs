//! Digests of what a state machine holds, computed row by row.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Contents;
use crate::format::digest::{Batch, Digester};
use crate::format::idempotency;
use crate::format::record::LogId;

/// Rows between two looks at whether to stop: a millisecond, if they are small.
const ROWS_PER_LOOK: u64 = 1000;

/// Takes the rows of one view: all pairs in key order, and all idempotent
/// writes in the order of the log.
pub(super) struct Digesting<'a> {
    stops: [&'a AtomicBool; 2],
    rows: u64,
    batch: Batch,
    pairs: Digester,
    idempotency: Digester,
}

/// Told to stop.
pub(super) struct Stopped;

impl<'a> Digesting<'a> {
    pub(super) fn new(stops: [&'a AtomicBool; 2]) -> Self {
        Self {
            stops,
            rows: 0,
            batch: Batch::default(),
            pairs: Digester::default(),
            idempotency: Digester::default(),
        }
    }

    /// The next pair.
    pub(super) fn pair(&mut self, key: &str, value: &str) -> Result<(), Stopped> {
        self.batch.push(key.as_bytes(), value.as_bytes());
        self.pairs.drain(&mut self.batch);
        self.look()
    }

    /// The next idempotent write.
    pub(super) fn idempotent(
        &mut self,
        index: u64,
        key: &str,
        record: &[u8],
    ) -> Result<(), Stopped> {
        idempotency::digest(&mut self.idempotency, index, key, record);
        self.look()
    }

    fn look(&mut self) -> Result<(), Stopped> {
        self.rows += 1;
        match self.rows.is_multiple_of(ROWS_PER_LOOK) && self.stopped() {
            true => Err(Stopped),
            false => Ok(()),
        }
    }

    /// Whether to stop: what was taken may be less than all.
    pub(super) fn stopped(&self) -> bool {
        self.stops.iter().any(|stop| stop.load(Ordering::Relaxed))
    }

    pub(super) fn finish(mut self, last_applied: Option<LogId>) -> Contents {
        self.pairs.batch(&self.batch);
        Contents {
            last_applied,
            pairs: self.pairs.finish(),
            idempotency: self.idempotency.finish(),
        }
    }
}
