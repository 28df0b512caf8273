//! What a running node holds on to: its database while others read it, and its
//! configuration while somebody edits it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::fixture::{self, Scratch};
use common::node::{get, node_on};
use nix::sys::signal::Signal;

fn legacy() -> Scratch {
    fixture::one("legacy", "plain").unpack()
}

#[test]
fn a_reader_beside_the_node_does_not_take_its_log_away() {
    let dir = legacy();
    let mut node = node_on(&dir).start();
    let address = node.ready();
    // Opens the whole pool, each of which once cost the writer its locks.
    let clients: Vec<_> = (0..20)
        .map(|_| std::thread::spawn(move || get(address, "/api/kv/user/0000000000000000").status))
        .collect();
    assert!(
        clients
            .into_iter()
            .all(|client| client.join().unwrap() == 200)
    );
    let wal = dir.join("state-machine.db-wal");
    assert!(wal.exists());
    let database = rusqlite::Connection::open(dir.join("state-machine.db")).unwrap();
    let count = "SELECT count(*) FROM state_machine_kv";
    let rows = database
        .query_row(count, [], |row| row.get::<_, i64>(0))
        .unwrap();
    assert_eq!(rows, 1234);
    drop(database);
    assert!(
        wal.exists(),
        "closing a second reader removed the log of a running node"
    );
    node.stop().with(0);
    assert!(!wal.exists());
}

#[test]
fn a_hangup_with_a_broken_configuration_changes_nothing() {
    let dir = legacy();
    let config = dir.join("config.toml");
    std::fs::write(&config, "[cluster]\nstorage_backend = \"sqlite\"\n").unwrap();
    let mut node = node_on(&dir).config(&config).start();
    let address = node.ready();
    std::fs::write(&config, "[cluster").unwrap();
    node.signal(Signal::SIGHUP);
    assert!(node.says("READY=1"));
    assert_eq!(get(address, "/health").status, 200);
    let log = node.stop().with(0).log;
    assert!(log.contains("the running configuration stays"), "{log}");
}

#[test]
fn without_anything_to_migrate_no_time_is_asked_for() {
    let dir = legacy();
    node_on(&dir).start().ready_then_stop();
    let said = node_on(&dir).start().ready_then_stop().said;
    assert!(
        !said
            .iter()
            .any(|message| message.contains("EXTEND_TIMEOUT")),
        "{said:?}"
    );
}
