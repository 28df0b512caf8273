//! What is redb's own; what every engine does is in `storage::tests`.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::format::entry::Request;

fn set(index: u64, key: &str, value: &str) -> Entry {
    let (key, value) = (key.to_owned(), value.to_owned());
    let log_id = LogId {
        term: 1,
        node_id: 1,
        index,
    };
    let payload = Payload::Normal(Request::Set { key, value });
    Entry { log_id, payload }
}

/// A node that was killed in its first commit after a start was refused its
/// data from then on: the header pointed back at another commit.
#[test]
fn an_open_database_can_be_judged_after_a_crash_in_the_next_commit() {
    const FLAGS: usize = 9;
    const TWO_PHASE_COMMIT: u8 = 4;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state-machine.redb");
    let file = durable::create_new(&path).unwrap();
    target::redb::create_empty(&path, &file).unwrap();
    let flags = || std::fs::read(&path).unwrap()[FLAGS];
    assert_ne!(flags() & TWO_PHASE_COMMIT, 0, "closed");
    for _ in 0..2 {
        let store = Redb::open(&path).unwrap();
        assert_eq!(flags() & TWO_PHASE_COMMIT, 0, "open");
        store.close().unwrap();
    }
}

#[test]
fn a_database_that_failed_is_opened_again_with_all_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state-machine.redb");
    let file = durable::create_new(&path).unwrap();
    target::redb::create_empty(&path, &file).unwrap();
    let store = Redb::open(&path).unwrap();
    store.apply(&[set(1, "a", "1")]).unwrap();
    // What redb says of everything after a failed write.
    let failed = store.with("write", |_| Err::<(), _>(redb::Error::PreviousIo));
    let failed = failed.unwrap_err();
    assert!(!failed.is_full());
    assert_eq!(failed.exit(), crate::exit::Exit::Io);
    let value = store.get(&["a".to_owned()]).unwrap();
    assert_eq!(value, [Some("1".to_owned())]);
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let failed = store.with("write", |_| Err::<(), _>(redb::Error::Io(full)));
    assert!(failed.unwrap_err().is_full());
    store.apply(&[set(2, "a", "2")]).unwrap();
    assert_eq!(store.persist().unwrap().unwrap().index, 2);
    store.close().unwrap();
    let applied = store.apply(&[set(3, "a", "3")]);
    assert!(matches!(applied, Err(StorageError::Closed)));
}
