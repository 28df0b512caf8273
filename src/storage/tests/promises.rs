//! Applying, reading and what is left after a restart.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bed, at, contents, entry, set};
use crate::format::entry::{Entry, Outcome, Payload, Request};
use crate::format::record::{Membership, NodeAddress};
use crate::storage::{Applied, Range, StorageError};

const DONE: Outcome = Outcome::Done { deleted: 0 };

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn swap(index: u64, key: &str, expect: Option<&str>, value: &str) -> Entry {
    let request = Request::CompareAndSet {
        key: key.to_owned(),
        expect: expect.map(str::to_owned),
        value: value.to_owned(),
    };
    entry(index, request)
}

#[test]
fn an_entry_sees_what_those_before_it_in_the_same_batch_did() {
    for bed in Bed::all() {
        let outcomes = bed.store.apply(&[
            set(1, "a", "1"),
            swap(2, "a", Some("1"), "2"),
            swap(3, "a", Some("1"), "3"),
            entry(4, Request::Delete { key: "a".into() }),
            swap(5, "a", Some("2"), "4"),
            swap(6, "a", None, "5"),
            swap(7, "a", None, "6"),
        ]);
        let conflict = |current: Option<&str>| Outcome::Conflict {
            current: current.map(str::to_owned),
        };
        let wanted = [
            DONE,
            DONE,
            conflict(Some("2")),
            Outcome::Done { deleted: 1 },
            conflict(None),
            DONE,
            conflict(Some("5")),
        ];
        assert_eq!(outcomes.unwrap(), wanted, "{:?}", bed.engine);
        assert_eq!(bed.get("a").as_deref(), Some("5"));
        assert_eq!(bed.store.applied().unwrap().last_applied, Some(at(7)));
    }
}

#[test]
fn a_batch_counts_the_keys_that_were_there_to_remove_and_the_last_value_counts() {
    for bed in Bed::all() {
        let twice = vec![pair("a", "1"), pair("b", "2"), pair("a", "3")];
        let batch = Request::Batch {
            set: vec![pair("c", "4")],
            delete: vec!["a".into(), "b".into(), "nothing".into()],
        };
        let gone = Request::Delete { key: "z".into() };
        let first = bed
            .store
            .apply(&[entry(1, Request::SetMulti { pairs: twice })]);
        assert_eq!(first.unwrap(), [DONE]);
        assert_eq!(bed.get("a").as_deref(), Some("3"));
        let outcomes = bed.store.apply(&[entry(2, batch), entry(3, gone)]);
        assert_eq!(outcomes.unwrap(), [Outcome::Done { deleted: 2 }, DONE]);
        assert_eq!(contents(&*bed.store), BTreeMap::from([pair("c", "4")]));
    }
}

#[test]
fn several_keys_are_answered_in_their_order_even_twice() {
    for bed in Bed::all() {
        bed.store
            .apply(&[set(1, "a", "1"), set(2, "b", "")])
            .unwrap();
        let keys = ["b", "none", "a", "b"].map(str::to_owned);
        let values = bed.store.get(&keys).unwrap();
        let wanted = [Some(""), None, Some("1"), Some("")];
        assert_eq!(values, wanted.map(|value| value.map(str::to_owned)));
        assert_eq!(bed.store.get(&[]).unwrap(), [None; 0]);
    }
}

#[test]
fn pages_follow_the_bytes_of_the_keys_and_end_with_the_prefix() {
    let keys = [
        "",
        "a",
        "a\0b",
        "a/1",
        "a/2",
        "a/\u{e9}",
        "a/\u{10FFFF}",
        "a/\u{10FFFF}x",
        "b",
        "\u{10FFFF}",
        "\u{10FFFF}\u{10FFFF}",
    ];
    for bed in Bed::all() {
        let entries: Vec<_> = (1..).zip(keys).map(|(n, key)| set(n, key, "v")).collect();
        bed.store.apply(&entries).unwrap();
        let scan = |prefix: &str, after: Option<&str>, limit| {
            let page = bed.store.scan(&Range {
                prefix: prefix.to_owned(),
                after: after.map(str::to_owned),
                limit,
                max_bytes: usize::MAX,
            });
            let page = page.unwrap();
            let found: Vec<_> = page.pairs.into_iter().map(|(key, _)| key).collect();
            (found, page.more)
        };
        let check = |(found, more): (Vec<String>, bool), wanted: &[&str], wanted_more| {
            assert_eq!(found, wanted, "{:?}", bed.engine);
            assert_eq!(more, wanted_more, "{:?}: {wanted:?}", bed.engine);
        };
        check(scan("", None, 100), &keys, false);
        check(scan("", Some(""), 2), &keys[1..3], true);
        check(scan("a/", None, 100), &keys[3..8], false);
        check(scan("a/", None, 5), &keys[3..8], false);
        check(scan("a/", None, 4), &keys[3..7], true);
        check(scan("a/\u{10FFFF}", None, 9), &keys[6..8], false);
        check(scan("\u{10FFFF}", None, 1), &keys[9..10], true);
        check(
            scan("\u{10FFFF}", Some("\u{10FFFF}"), 1),
            &keys[10..],
            false,
        );
        check(scan("a/", Some("a/1z"), 1), &keys[4..5], true);
        check(scan("a/", Some("a"), 1), &keys[3..4], true);
        check(scan("a/", Some("z"), 9), &[], false);
        check(scan("c", None, 9), &[], false);
        check(scan("a", None, 0), &[], true);
        check(scan("c", None, 0), &[], false);
    }
}

#[test]
fn a_page_holds_no_more_bytes_than_asked_for_but_one_pair_always() {
    for bed in Bed::all() {
        let big = "x".repeat(1 << 20);
        let entries = [set(1, "a", &big), set(2, "b", "1"), set(3, "c", &big)];
        bed.store.apply(&entries).unwrap();
        let lengths = |after: Option<&str>, max_bytes| {
            let page = bed.store.scan(&Range {
                after: after.map(str::to_owned),
                limit: 100,
                max_bytes,
                ..Range::default()
            });
            let page = page.unwrap();
            (page.pairs.len(), page.more)
        };
        assert_eq!(lengths(None, 0), (1, true));
        assert_eq!(lengths(None, (1 << 20) + 3), (2, true));
        assert_eq!(lengths(None, (2 << 20) + 4), (3, false));
        assert_eq!(lengths(Some("b"), 10), (1, false));
        assert_eq!(bed.get("c"), Some(big));
    }
}

#[test]
fn position_and_membership_are_there_after_a_restart() {
    for mut bed in Bed::on_disk() {
        assert_eq!(bed.store.applied().unwrap(), Applied::default());
        let membership = Membership {
            configs: vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            nodes: BTreeMap::from([(
                1,
                NodeAddress {
                    addr: "10.0.0.1:7000".into(),
                },
            )]),
        };
        let change = |index, membership: &Membership| Entry {
            log_id: at(index),
            payload: Payload::Membership(membership.clone()),
        };
        let blank = |index| Entry {
            log_id: at(index),
            payload: Payload::Blank,
        };
        let entries = [
            change(0, &Membership::default()),
            change(1, &membership),
            set(2, "a", "1"),
            blank(3),
        ];
        assert_eq!(bed.store.apply(&entries).unwrap(), vec![DONE; 4]);
        assert_eq!(bed.store.apply(&[]).unwrap(), []);
        let wanted = bed.store.applied().unwrap();
        assert_eq!(wanted.last_applied, Some(at(3)));
        assert_eq!(wanted.membership.log_id, Some(at(1)));
        assert_eq!(wanted.membership.membership, membership);
        bed.reopen();
        assert_eq!(bed.store.applied().unwrap(), wanted, "{:?}", bed.engine);
        bed.store.apply(&[blank(4)]).unwrap();
        bed.reopen();
        let later = bed.store.applied().unwrap();
        assert_eq!(later.last_applied, Some(at(4)));
        assert_eq!(later.membership, wanted.membership);
    }
}

#[test]
fn what_is_persisted_is_in_the_files_and_memory_never_claims_it() {
    for bed in Bed::all() {
        assert_eq!(bed.store.persist().unwrap(), None);
        bed.store.apply(&[set(1, "a", "1")]).unwrap();
        let persisted = bed.store.persist().unwrap();
        if bed.engine == super::Engine::Memory {
            assert_eq!(persisted, None);
            continue;
        }
        assert_eq!(persisted, Some(at(1)));
        // As after `kill -9`: the files as they are, without a close.
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(bed.dir.path()).unwrap() {
            let file = file.unwrap();
            if !file.file_name().to_str().unwrap().ends_with("-shm") {
                // By another process: opening the database here would drop its locks.
                let copied = std::process::Command::new("cp")
                    .args([file.path(), copy.path().join(file.file_name())])
                    .status();
                assert!(copied.unwrap().success());
            }
        }
        let copy = super::open(bed.engine, copy.path());
        assert_eq!(copy.applied().unwrap().last_applied, Some(at(1)));
        assert_eq!(contents(&*copy), BTreeMap::from([pair("a", "1")]));
    }
}

#[test]
fn a_closed_state_machine_says_so_and_leaves_one_file() {
    for bed in Bed::on_disk() {
        bed.store.apply(&[set(1, "a", "1")]).unwrap();
        bed.store.close().unwrap();
        let keys = ["a".to_owned()];
        assert!(matches!(bed.store.get(&keys), Err(StorageError::Closed)));
        let applied = bed.store.apply(&[set(2, "a", "2")]);
        assert!(matches!(applied, Err(StorageError::Closed)));
        bed.store.close().unwrap();
        assert_eq!(std::fs::read_dir(bed.dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn sizes_are_those_of_the_files() {
    for bed in Bed::all() {
        bed.store.apply(&[set(1, "a", "1")]).unwrap();
        let sizes = bed.store.sizes();
        let file = super::file(bed.engine, bed.dir.path());
        let bytes = file.metadata().map_or(0, |about| about.len());
        assert_eq!(sizes.database, bytes);
        let sqlite = bed.engine == super::Engine::Sqlite;
        assert_eq!(sizes.wal.is_some_and(|wal| wal > 0), sqlite);
        assert_eq!(bed.store.checkpoint().unwrap().is_some(), sqlite);
    }
}
