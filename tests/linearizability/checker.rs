//! The checker itself: what it takes and what it refuses, and that it says of
//! every small history what trying all orders says.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use crate::common::linearizable::{Action, Operation, Outcome, Value, check};
use Action::{Compare, Delete, Get, Put};
use Outcome::{Conflict, Done, Missing, Read, Unknown};

fn operation(action: Action, outcome: Outcome, invoked: u64, completed: u64) -> Operation {
    Operation {
        action,
        outcome,
        invoked,
        completed,
    }
}

/// One after the other.
fn sequence(steps: &[(Action, Outcome)]) -> Vec<Operation> {
    let steps = steps.iter().zip(0..);
    let steps = steps.map(|((action, outcome), n)| operation(*action, *outcome, 2 * n, 2 * n + 1));
    steps.collect()
}

#[test]
fn what_one_client_does_alone_must_be_what_a_map_does() {
    let good = sequence(&[
        (Get, Read(None)),
        (Delete, Missing),
        (Compare(Some(7), 1), Conflict(None)),
        (Compare(None, 1), Done),
        (Get, Read(Some(1))),
        (Put(2), Done),
        (Compare(Some(1), 3), Conflict(Some(2))),
        (Compare(Some(2), 3), Done),
        (Get, Read(Some(3))),
        (Delete, Done),
        (Get, Read(None)),
    ]);
    check(&good).unwrap();
    for wrong in [
        (Get, Read(None)),
        (Get, Read(Some(1))),
        (Delete, Missing),
        (Compare(None, 4), Done),
        (Compare(Some(3), 4), Conflict(Some(2))),
        (Compare(Some(1), 4), Conflict(None)),
    ] {
        let mut bad = good[..9].to_vec();
        bad.push(operation(wrong.0, wrong.1, 18, 19));
        let contradiction = check(&bad).unwrap_err();
        assert_eq!(contradiction.order.len(), 9);
        assert_eq!(contradiction.holds, Some(3));
        assert_eq!(contradiction.next, [bad[9]]);
    }
}

#[test]
fn a_read_beside_a_write_sees_either_value_and_a_read_after_it_only_the_new_one() {
    let written = [
        operation(Put(1), Done, 0, 1),
        operation(Put(2), Done, 10, 20),
    ];
    for (read, invoked, completed, good) in [
        (1, 5, 15, true),
        (2, 5, 15, true),
        (2, 19, 30, true),
        (1, 20, 30, true), // at the same moment, which may be before
        (1, 21, 30, false),
        (2, 5, 9, false),
    ] {
        let mut history = written.to_vec();
        history.push(operation(Get, Read(Some(read)), invoked, completed));
        assert_eq!(check(&history).is_ok(), good, "{history:?}");
    }
}

#[test]
fn two_readers_never_see_two_writes_in_different_orders() {
    let mut history = vec![
        operation(Put(1), Done, 0, 100),
        operation(Put(2), Done, 0, 100),
        operation(Get, Read(Some(1)), 10, 20),
        operation(Get, Read(Some(2)), 30, 40),
    ];
    check(&history).unwrap();
    history.push(operation(Get, Read(Some(1)), 50, 60));
    assert!(check(&history).is_err());
}

#[test]
fn what_has_no_answer_may_happen_late_or_never_but_once() {
    let mut history = vec![
        operation(Put(1), Done, 0, 1),
        operation(Put(2), Unknown, 2, 0),
        operation(Get, Read(Some(1)), 10, 11),
    ];
    check(&history).unwrap();
    history.push(operation(Get, Read(Some(2)), 20, 21));
    check(&history).unwrap();
    history.push(operation(Get, Read(Some(1)), 30, 31));
    assert!(check(&history).is_err());
    // A second time would be a write that was done twice.
    let twice = [
        operation(Put(2), Unknown, 2, 0),
        operation(Get, Read(Some(2)), 3, 4),
        operation(Put(3), Done, 5, 6),
        operation(Get, Read(Some(2)), 7, 8),
    ];
    assert!(check(&twice).is_err());
    // Nor before it was asked for.
    let early = [
        operation(Get, Read(Some(2)), 0, 1),
        operation(Put(2), Unknown, 2, 0),
    ];
    assert!(check(&early).is_err());
}

#[test]
fn many_without_an_answer_do_not_make_the_search_endless() {
    let mut history = Vec::new();
    for n in 0..200 {
        let start = u64::from(n) * 10;
        history.push(operation(Put(1000 + n), Unknown, start, 0));
        history.push(operation(Delete, Unknown, start, 0));
        history.push(operation(Put(n), Done, start + 1, start + 4));
        history.push(operation(Compare(Some(n), 5000 + n), Unknown, start + 1, 0));
        history.push(operation(Get, Read(Some(n)), start + 5, start + 6));
    }
    check(&history).unwrap();
    history.push(operation(Get, Read(Some(7)), 5000, 5001));
    assert!(check(&history).is_err());
}

/// Whether some order of `left` is possible, by trying all of them.
fn by_force(left: &[Operation], held: Option<Value>) -> bool {
    if left.iter().all(|operation| operation.outcome == Unknown) {
        return true;
    }
    (0..left.len()).any(|first| {
        let mut rest = left.to_vec();
        let operation = rest.remove(first);
        let follows =
            |other: &Operation| other.outcome != Unknown && other.completed < operation.invoked;
        let after = operation.after(held);
        !rest.iter().any(follows) && after.is_some_and(|then| by_force(&rest, then))
    })
}

/// Some operation; small numbers, so that what is answered is often possible.
fn any_operation(value: Value) -> impl Strategy<Value = Operation> {
    let seen = prop_oneof![Just(None), (0..6u32).prop_map(Some)];
    let kinds = (0..9u8, seen.clone(), seen);
    (kinds, 0..12u64, 0..6u64).prop_map(move |((kind, seen, expect), invoked, takes)| {
        let (action, outcome) = match kind {
            0 | 1 => (Get, Read(seen)),
            2 => (Put(value), Done),
            3 => (Put(value), Unknown),
            4 => (Compare(expect, value), Done),
            5 => (Compare(expect, value), Conflict(seen)),
            6 => (Compare(expect, value), Unknown),
            7 => (Delete, if seen.is_some() { Done } else { Missing }),
            _ => (Delete, Unknown),
        };
        operation(action, outcome, invoked, invoked + takes)
    })
}

fn any_history() -> impl Strategy<Value = Vec<Operation>> {
    (1..=6usize).prop_flat_map(|length| {
        let operations = (0..length).map(|n| any_operation(u32::try_from(n).unwrap()));
        operations.collect::<Vec<_>>()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn it_says_of_any_history_what_trying_all_orders_says(history in any_history()) {
        prop_assert_eq!(check(&history).is_ok(), by_force(&history, None));
    }
}

/// That the comparison above sees both kinds of histories.
#[test]
fn small_histories_are_of_both_kinds() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let good = (0..500).filter(|_| {
        let history = any_history().new_tree(&mut runner).unwrap().current();
        history.len() > 2 && check(&history).is_ok()
    });
    let good = good.count();
    assert!((50..450).contains(&good), "{good}");
}
