//! Any sequence of batches does to each engine what it does to a `BTreeMap`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Bed, at, contents, digest, entry};
use crate::format::entry::{Idempotent, Outcome, Plain, Request};
use crate::format::idempotency::{MAX_BYTES, MAX_RECORDS, MAX_VALUE_BYTES};
use crate::storage::Range;

type Pairs = BTreeMap<String, String>;

/// Pairs, and idempotent writes in their order.
#[derive(Default)]
struct Model {
    pairs: Pairs,
    once: Vec<Once>,
}

struct Once {
    request: Idempotent,
    index: u64,
    outcome: Outcome,
}

/// Few keys, so that they meet; some beyond ASCII, one empty.
fn key() -> impl Strategy<Value = String> {
    const KEYS: &[&str] = &["", "a", "aa", "ab", "\u{e9}", "\u{10FFFF}", "z\0"];
    prop::sample::select(KEYS).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c]{0,2}",
        Just("x".repeat(9000)),
        Just("y".repeat(MAX_VALUE_BYTES))
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let once = ("[a-g]{1,2}", change()).prop_map(|(key, change)| {
        Request::Idempotent(Box::new(Idempotent::new(key, change).unwrap()))
    });
    prop_oneof![change().prop_map(Request::from), once]
}

fn change() -> impl Strategy<Value = Plain> {
    let pairs = || prop::collection::vec((key(), value()), 0..4);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Plain::Set { key, value }),
        pairs().prop_map(|pairs| Plain::SetMulti { pairs }),
        key().prop_map(|key| Plain::Delete { key }),
        (key(), prop::option::of("[a-c]{0,1}"), value())
            .prop_map(|(key, expect, value)| Plain::CompareAndSet { key, expect, value }),
        (pairs(), prop::collection::vec(key(), 0..4)).prop_map(|(set, mut delete)| {
            // As requests are validated: no key stands twice.
            let set: Pairs = set.into_iter().collect();
            delete.sort_unstable();
            delete.dedup();
            delete.retain(|key| !set.contains_key(key));
            let set = set.into_iter().collect();
            Plain::Batch { set, delete }
        }),
    ]
}

impl Model {
    fn apply(&mut self, index: u64, request: &Request) -> Outcome {
        let Request::Idempotent(once) = request else {
            return apply(&mut self.pairs, request);
        };
        if let Some(first) = self.once.iter().find(|first| first.request.key == once.key) {
            return match first.request.change == once.change {
                true => self.replay(first),
                false => Outcome::KeyReused,
            };
        }
        let outcome = apply(&mut self.pairs, &once.change.clone().into());
        self.once.push(Once {
            request: (**once).clone(),
            index,
            outcome: outcome.clone(),
        });
        let bytes = |once: &Once| {
            let value = match &once.outcome {
                Outcome::Conflict {
                    current: Some(value),
                } if value.len() <= MAX_VALUE_BYTES => value.len(),
                _ => 0,
            };
            (64 + once.request.key.len() + value) as u64
        };
        while self.once.len() as u64 > MAX_RECORDS
            || self.once[1..].iter().map(bytes).sum::<u64>() > MAX_BYTES
        {
            self.once.remove(0);
        }
        outcome
    }

    fn replay(&self, first: &Once) -> Outcome {
        let index = first.index;
        match first.outcome.clone() {
            Outcome::Conflict { current } => {
                let is_long = |value: &String| value.len() > MAX_VALUE_BYTES;
                let current = match (&first.request.change, current) {
                    (Plain::CompareAndSet { key, .. }, Some(value)) if is_long(&value) => {
                        self.pairs.get(key).cloned()
                    }
                    (_, current) => current,
                };
                Outcome::ReplayedConflict { index, current }
            }
            Outcome::Done { deleted } => Outcome::ReplayedDone { index, deleted },
            other => other,
        }
    }
}

fn apply(model: &mut Pairs, request: &Request) -> Outcome {
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
        Request::Idempotent(once) => return apply(model, &once.change.into()),
    }
    Outcome::Done { deleted: 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_engine_does_what_a_map_does(
        batches in prop::collection::vec(prop::collection::vec(request(), 1..12), 1..8),
        prefix in key(),
        after in prop::option::of(key()),
        limit in 1_usize..5,
    ) {
        let mut digests = Vec::new();
        for mut bed in Bed::all() {
            let (mut model, mut index) = (Model::default(), 0);
            for batch in &batches {
                let entries: Vec<_> = batch.iter().map(|request| {
                    index += 1;
                    entry(index, request.clone())
                }).collect();
                let wanted: Vec<_> = entries.iter().zip(batch)
                    .map(|(entry, request)| model.apply(entry.log_id.index, request))
                    .collect();
                prop_assert_eq!(bed.store.apply(&entries).unwrap(), wanted);
            }
            if bed.engine != super::Engine::Memory {
                bed.reopen();
            }
            prop_assert_eq!(bed.store.applied().unwrap().last_applied, Some(at(index)));
            prop_assert_eq!(&contents(&*bed.store), &model.pairs);
            let digest = digest(&*bed.store);
            prop_assert_eq!(digest.idempotency.rows, model.once.len() as u64);
            digests.push(digest);
            let range = Range { prefix: prefix.clone(), after: after.clone(), limit, max_bytes: usize::MAX };
            let page = bed.store.scan(&range).unwrap();
            let mut wanted: Vec<_> = model.pairs.iter()
                .filter(|(key, _)| key.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            prop_assert_eq!(page.more, wanted.len() > limit);
            wanted.truncate(limit);
            prop_assert_eq!(page.pairs, wanted);
        }
        prop_assert!(digests.iter().all(|digest| *digest == digests[0]));
    }
}
