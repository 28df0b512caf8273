//! What an engine says that it holds, in one number for each table.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Bed, Engine, at, digest, entry, once, set};
use crate::format::digest::{Digest, Digester};
use crate::format::entry::{Plain, Request};
use crate::storage::StorageError;

fn put(key: &str, value: &str) -> Plain {
    Plain::Set {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

/// The digest of pairs, computed the plain way.
fn digest_of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Digest {
    let mut digester = Digester::default();
    for (key, value) in pairs {
        digester.row(key.as_bytes(), value.as_bytes());
    }
    digester.finish()
}

/// Each entry sets all of these keys to its index, so that any mixture of two
/// states, or of rows and position, shows.
#[test]
fn a_digest_computed_while_entries_are_applied_is_of_one_moment() {
    const KEYS: usize = 300;
    let keys: Vec<_> = (0..KEYS).map(|n| format!("k{n:03}")).collect();
    for bed in Bed::all() {
        let (bed, keys, stop) = (&bed, &keys, &AtomicBool::new(false));
        let all_equal = |index: u64| {
            let value = format!("{index:0500}");
            let pairs = keys.iter().map(|key| (key.clone(), value.clone()));
            let pairs = pairs.collect();
            entry(index, Request::SetMulti { pairs })
        };
        bed.store.apply(&[all_equal(1)]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut index = 1;
                while !stop.load(Ordering::Relaxed) {
                    let name = index.to_string();
                    let entries = [all_equal(index + 1), once(index + 2, &name, put("z", ""))];
                    bed.store.apply(&entries).unwrap();
                    index += 2;
                }
            });
            for _ in 0..10 {
                let found = digest(&*bed.store);
                let index = found.last_applied.unwrap().index;
                // The entry before it, but for the first.
                let value = format!("{:0500}", (index - 1).max(1));
                let mut pairs: Vec<_> = keys.iter().map(|key| (&**key, &*value)).collect();
                pairs.extend((index > 1).then_some(("z", "")));
                assert_eq!(found.pairs, digest_of(pairs), "{:?}", bed.engine);
                let remembered = (index / 2).min(crate::format::idempotency::MAX_RECORDS);
                assert_eq!(found.idempotency.rows, remembered);
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
        // Nothing holds on to an old state.
        if bed.engine == Engine::Sqlite {
            let done = bed.store.checkpoint().unwrap().unwrap();
            assert_eq!(done.wal_bytes_after, 0);
        }
    }
}

#[test]
fn engines_with_the_same_entries_have_the_same_digest_and_only_they() {
    let beds = Bed::all();
    let entries = [
        set(1, "b", "2"),
        set(2, "a", "1"),
        once(3, "k", put("c", "3")),
        set(4, "a", ""),
    ];
    let of = |bed: &Bed| digest(&*bed.store);
    for bed in &beds {
        assert_eq!(of(bed).pairs.rows, 0);
        assert_eq!(of(bed), of(&beds[0]));
    }
    for bed in &beds {
        bed.store.apply(&entries).unwrap();
        assert_eq!(of(bed).last_applied, Some(at(4)));
    }
    for bed in &beds {
        assert_eq!(of(bed), of(&beds[0]), "{:?}", bed.engine);
    }
    let (known, other) = (of(&beds[0]), Bed::new(Engine::Memory));
    other.store.apply(&entries[..2]).unwrap();
    let plain = [set(3, "c", "3"), set(4, "a", "")];
    other.store.apply(&plain).unwrap();
    let found = of(&other);
    assert_eq!(found.pairs, known.pairs);
    assert_ne!(found.idempotency, known.idempotency);
}

/// The digest that the migration puts on record and `aspen-migrate` prints.
#[test]
fn the_digest_is_the_migrations() {
    for bed in Bed::all() {
        let big = "v".repeat(200_000);
        let entries = [set(1, "b", &big), set(2, "a", "1"), set(3, "\u{e9}", "")];
        bed.store.apply(&entries).unwrap();
        let wanted = digest_of([("a", "1"), ("b", &*big), ("\u{e9}", "")]);
        assert_eq!(digest(&*bed.store).pairs, wanted);
    }
}

#[test]
fn a_digest_ends_when_nobody_wants_it() {
    for bed in Bed::all() {
        let entries: Vec<_> = (1..2000).map(|n| set(n, &n.to_string(), "v")).collect();
        bed.store.apply(&entries).unwrap();
        let stopped = bed.store.digest(&AtomicBool::new(true));
        assert!(matches!(stopped, Err(StorageError::Closed)));
    }
}
