//! Any sequence of batches does to each engine what it does to a `BTreeMap`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Bed, at, contents, entry};
use crate::format::entry::{Outcome, Request};
use crate::storage::Range;

type Model = BTreeMap<String, String>;

/// Few keys, so that they meet; some beyond ASCII, one empty.
fn key() -> impl Strategy<Value = String> {
    const KEYS: &[&str] = &["", "a", "aa", "ab", "\u{e9}", "\u{10FFFF}", "z\0"];
    prop::sample::select(KEYS).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]{0,2}", Just("x".repeat(9000))]
}

fn request() -> impl Strategy<Value = Request> {
    let pairs = || prop::collection::vec((key(), value()), 0..4);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Request::Set { key, value }),
        pairs().prop_map(|pairs| Request::SetMulti { pairs }),
        key().prop_map(|key| Request::Delete { key }),
        (key(), prop::option::of("[a-c]{0,1}"), value())
            .prop_map(|(key, expect, value)| Request::CompareAndSet { key, expect, value }),
        (pairs(), prop::collection::vec(key(), 0..4)).prop_map(|(set, mut delete)| {
            // As requests are validated: no key stands twice.
            let set: Model = set.into_iter().collect();
            delete.sort_unstable();
            delete.dedup();
            delete.retain(|key| !set.contains_key(key));
            let set = set.into_iter().collect();
            Request::Batch { set, delete }
        }),
    ]
}

fn apply(model: &mut Model, request: &Request) -> Outcome {
    let before = model.len() as u64;
    match request.clone() {
        Request::Set { key, value } => drop(model.insert(key, value)),
        Request::SetMulti { pairs } => model.extend(pairs),
        Request::Delete { key } => {
            model.remove(&key);
            let deleted = before - model.len() as u64;
            return Outcome::Done { deleted };
        }
        Request::CompareAndSet { key, expect, value } => {
            let current = model.get(&key).cloned();
            if current != expect {
                return Outcome::Conflict { current };
            }
            model.insert(key, value);
        }
        Request::Batch { set, delete } => {
            model.retain(|key, _| !delete.contains(key));
            let deleted = before - model.len() as u64;
            model.extend(set);
            return Outcome::Done { deleted };
        }
    }
    Outcome::Done { deleted: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_engine_does_what_a_map_does(
        batches in prop::collection::vec(prop::collection::vec(request(), 1..6), 1..8),
        prefix in key(),
        after in prop::option::of(key()),
        limit in 1_usize..5,
    ) {
        for mut bed in Bed::all() {
            let (mut model, mut index) = (Model::new(), 0);
            for batch in &batches {
                let entries: Vec<_> = batch.iter().map(|request| {
                    index += 1;
                    entry(index, request.clone())
                }).collect();
                let wanted: Vec<_> = batch.iter().map(|r| apply(&mut model, r)).collect();
                prop_assert_eq!(bed.store.apply(&entries).unwrap(), wanted);
            }
            if bed.engine != super::Engine::Memory {
                bed.reopen();
            }
            prop_assert_eq!(bed.store.applied().unwrap().last_applied, Some(at(index)));
            prop_assert_eq!(&contents(&*bed.store), &model);
            let range = Range { prefix: prefix.clone(), after: after.clone(), limit, max_bytes: usize::MAX };
            let page = bed.store.scan(&range).unwrap();
            let mut wanted: Vec<_> = model.iter()
                .filter(|(key, _)| key.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            prop_assert_eq!(page.more, wanted.len() > limit);
            wanted.truncate(limit);
            prop_assert_eq!(page.pairs, wanted);
        }
    }
}
