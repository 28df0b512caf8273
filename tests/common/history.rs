//! What clients did and what they were told, by keys.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::linearizable::{Action, Operation, Outcome, Value, check};

/// What became of a write that is never overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// All that was recorded, by all clients of a run.
pub(crate) struct History {
    began: Instant,
    values: AtomicU32,
    recorded: Mutex<Recorded>,
}

#[derive(Default)]
struct Recorded {
    operations: BTreeMap<u32, Vec<Operation>>,
    /// Written once each, two keys at a time; by their number.
    kept: BTreeMap<u32, Fate>,
    /// When a write was asked for and answered, and its place in the log.
    placed: Vec<Placed>,
    refusals: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Placed {
    invoked: u64,
    completed: u64,
    index: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            values: AtomicU32::new(1),
            recorded: Mutex::default(),
        }
    }

    /// Nanoseconds of the one clock that all clients share: it never goes back.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// One that was never given out before.
    pub(crate) fn value(&self) -> Value {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    fn recorded(&self) -> std::sync::MutexGuard<'_, Recorded> {
        // A client that failed fails the run by itself.
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an operation that was not refused. A read without an answer says nothing.
    pub(crate) fn operation(&self, key: u32, operation: Operation) {
        if operation.action != Action::Get || operation.outcome != Outcome::Unknown {
            let mut recorded = self.recorded();
            recorded.operations.entry(key).or_default().push(operation);
        }
    }

    pub(crate) fn kept(&self, number: u32, fate: Fate) {
        self.recorded().kept.insert(number, fate);
    }

    pub(crate) fn placed(&self, invoked: u64, completed: u64, index: u64) {
        let placed = Placed {
            invoked,
            completed,
            index,
        };
        self.recorded().placed.push(placed);
    }

    pub(crate) fn refused(&self, code: &str) {
        let mut recorded = self.recorded();
        *recorded.refusals.entry(code.to_owned()).or_default() += 1;
    }

    pub(crate) fn keys(&self) -> Vec<u32> {
        self.recorded().operations.keys().copied().collect()
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.recorded().placed.len()
    }

    /// How much there was, for people.
    pub(crate) fn summary(&self) -> String {
        let recorded = self.recorded();
        let operations = recorded.operations.values().flatten();
        let unknown = operations.filter(|operation| operation.outcome == Outcome::Unknown);
        format!(
            "{} operations on {} keys, of which {} without an answer; {} batches; refused: {:?}",
            recorded.operations.values().map(Vec::len).sum::<usize>(),
            recorded.operations.len(),
            unknown.count(),
            recorded.kept.len(),
            recorded.refusals
        )
    }

    /// Every moment of it.
    pub(crate) fn text(&self) -> String {
        let recorded = self.recorded();
        format!(
            "{:?} {:?} {:?}",
            recorded.operations, recorded.kept, recorded.placed
        )
    }

    /// Fails unless every key's history is linearizable.
    pub(crate) fn is_linearizable(&self) -> Result<(), String> {
        for (key, operations) in &self.recorded().operations {
            check(operations).map_err(|contradiction| {
                let last = contradiction.order.len().saturating_sub(20);
                format!(
                    "key {key}: no order of its {} operations explains all answers; the \
                     longest one has {} and ends with {:#?}, where the key holds {:?} and none of \
                     these can be next: {:#?}",
                    operations.len(),
                    contradiction.order.len(),
                    &contradiction.order[last..],
                    contradiction.holds,
                    contradiction.next
                )
            })?;
        }
        Ok(())
    }

    /// Fails unless places in the log are unique and in the order of time.
    pub(crate) fn check_places(&self) {
        let mut recorded = self.recorded();
        let placed = &mut recorded.placed;
        placed.sort_unstable_by_key(|placed| placed.index);
        let same = placed.windows(2).find(|two| two[0].index == two[1].index);
        assert!(same.is_none(), "two writes have the same place in the log");
        // From the end: nobody may have been answered before one of a lower place asked.
        let mut earliest = u64::MAX;
        for write in placed.iter().rev() {
            assert!(
                write.invoked <= earliest,
                "entry {} was asked for after a later one had been answered",
                write.index
            );
            earliest = earliest.min(write.completed);
        }
    }

    /// Fails unless `found`, by number how many of its two keys, is what the answers
    /// to writes of keys that are never overwritten allow.
    pub(crate) fn check_kept(&self, found: &BTreeMap<u32, usize>) {
        let recorded = self.recorded();
        for (number, count) in found {
            assert_eq!(*count, 2, "half of batch {number} is there");
            assert!(recorded.kept.contains_key(number), "nobody wrote {number}");
        }
        for (number, fate) in &recorded.kept {
            let there = found.contains_key(number);
            match fate {
                Fate::Acknowledged => assert!(there, "batch {number} was acknowledged and is lost"),
                Fate::Refused => assert!(!there, "batch {number} was refused and is there"),
                Fate::Unknown => {}
            }
        }
    }
}
