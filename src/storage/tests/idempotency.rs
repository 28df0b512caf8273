//! A request with an idempotency key happens once, on every engine, however
//! often it is in the log; and what is remembered of it is bounded.

use super::{Bed, at, digest, once, set};
use crate::format::entry::{Outcome, Plain};
use crate::format::idempotency::{MAX_BYTES, MAX_RECORDS, MAX_VALUE_BYTES};

fn put(key: &str, value: &str) -> Plain {
    Plain::Set {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn swap(key: &str, expect: Option<&str>, value: &str) -> Plain {
    Plain::CompareAndSet {
        key: key.to_owned(),
        expect: expect.map(str::to_owned),
        value: value.to_owned(),
    }
}

fn delete(key: &str) -> Plain {
    Plain::Delete { key: key.into() }
}

const DONE: Outcome = Outcome::Done { deleted: 0 };

fn replayed(index: u64, deleted: u64) -> Outcome {
    Outcome::ReplayedDone { index, deleted }
}

#[test]
fn a_repetition_changes_nothing_and_tells_what_the_first_did() {
    for mut bed in Bed::all() {
        let first = bed.store.apply(&[
            once(1, "set", put("a", "1")),
            // In the same batch, as in one to come.
            once(2, "set", put("a", "1")),
            once(3, "swap", swap("a", Some("1"), "2")),
            once(4, "lost", swap("a", Some("1"), "3")),
            once(5, "gone", delete("a")),
            once(6, "none", delete("a")),
        ]);
        let current = Some("2".to_owned());
        let wanted = [
            DONE,
            replayed(1, 0),
            DONE,
            Outcome::Conflict {
                current: current.clone(),
            },
            Outcome::Done { deleted: 1 },
            DONE,
        ];
        assert_eq!(first.unwrap(), wanted, "{:?}", bed.engine);
        bed.store.apply(&[set(7, "a", "later")]).unwrap();
        if bed.engine != super::Engine::Memory {
            bed.reopen();
        }
        let second = bed.store.apply(&[
            once(8, "set", put("a", "1")),
            once(9, "swap", swap("a", Some("1"), "2")),
            once(10, "lost", swap("a", Some("1"), "3")),
            once(11, "gone", delete("a")),
            once(12, "none", delete("a")),
        ]);
        let wanted = [
            replayed(1, 0),
            replayed(3, 0),
            Outcome::ReplayedConflict { index: 4, current },
            replayed(5, 1),
            replayed(6, 0),
        ];
        assert_eq!(second.unwrap(), wanted, "{:?}", bed.engine);
        assert_eq!(bed.get("a").as_deref(), Some("later"));
        assert_eq!(bed.store.applied().unwrap().last_applied, Some(at(12)));
    }
}

#[test]
fn another_request_with_the_same_key_is_refused_and_does_nothing() {
    for bed in Bed::all() {
        let outcomes = bed.store.apply(&[
            once(1, "k", put("a", "1")),
            once(2, "k", put("a", "2")),
            once(3, "k", delete("a")),
            once(4, "k", put("a", "1")),
        ]);
        let wanted = [DONE, Outcome::KeyReused, Outcome::KeyReused, replayed(1, 0)];
        assert_eq!(outcomes.unwrap(), wanted, "{:?}", bed.engine);
        assert_eq!(bed.get("a").as_deref(), Some("1"));
    }
}

#[test]
fn a_conflict_with_a_long_value_is_told_again_with_what_the_key_holds_by_then() {
    for bed in Bed::all() {
        let long = "x".repeat(MAX_VALUE_BYTES + 1);
        let request = || swap("a", None, "2");
        let outcomes = bed.store.apply(&[
            set(1, "a", &long),
            once(2, "k", request()),
            once(3, "k", request()),
            set(4, "a", "short"),
            once(5, "k", request()),
        ]);
        let (long, short) = (Some(long), Some("short".to_owned()));
        let wanted = [
            DONE,
            Outcome::Conflict {
                current: long.clone(),
            },
            Outcome::ReplayedConflict {
                index: 2,
                current: long,
            },
            DONE,
            Outcome::ReplayedConflict {
                index: 2,
                current: short,
            },
        ];
        assert_eq!(outcomes.unwrap(), wanted, "{:?}", bed.engine);
    }
}

#[test]
fn the_oldest_are_forgotten_when_there_are_too_many() {
    for bed in Bed::all() {
        let request = |n: u64| once(n, &format!("k{n}"), put("a", "1"));
        let entries: Vec<_> = (1..=MAX_RECORDS).map(request).collect();
        bed.store.apply(&entries).unwrap();
        assert_eq!(digest(&*bed.store).idempotency.rows, MAX_RECORDS);
        let next = MAX_RECORDS + 1;
        // A repetition is nothing new to remember: all are still there.
        let again = bed.store.apply(&[once(next, "k1", put("a", "1"))]);
        assert_eq!(again.unwrap(), [replayed(1, 0)]);
        bed.store.apply(&[request(next + 1)]).unwrap();
        assert_eq!(digest(&*bed.store).idempotency.rows, MAX_RECORDS);
        let outcomes = bed.store.apply(&[
            once(next + 2, "k2", put("a", "1")),
            once(next + 3, "k1", put("a", "1")),
        ]);
        assert_eq!(
            outcomes.unwrap(),
            [replayed(2, 0), DONE],
            "{:?}",
            bed.engine
        );
    }
}

#[test]
fn the_oldest_are_forgotten_when_they_take_too_much() {
    for bed in Bed::all() {
        let value = "x".repeat(MAX_VALUE_BYTES);
        bed.store.apply(&[set(1, "a", &value)]).unwrap();
        let conflicts = MAX_BYTES / MAX_VALUE_BYTES as u64 + 1;
        assert!(conflicts < MAX_RECORDS);
        let entries: Vec<_> = (2..2 + conflicts)
            .map(|n| once(n, &format!("k{n}"), swap("a", None, "1")))
            .collect();
        bed.store.apply(&entries).unwrap();
        let left = digest(&*bed.store).idempotency.rows;
        assert!(left < conflicts && left > conflicts / 2, "{left}");
        let last = 2 + conflicts;
        let outcomes = bed.store.apply(&[once(last, "k2", put("a", "1"))]);
        assert_eq!(outcomes.unwrap(), [DONE], "{:?}", bed.engine);
    }
}
