//! A node on a disk that becomes full while it serves: writes are refused
//! before they enter the log, reads go on, health says so, nothing that was
//! acknowledged is lost, and when there is space again the same process goes on.
//!
//! Needs root, to mount file systems that may be filled.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::client::{ask, put, until, value};
use common::disk::{Disk, is_root};
use common::load::{Writer, under_load, writers};
use common::node::{Answer, Node, get, node_on};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Room for a node and some seconds of writing.
const DISK: u64 = 160 * MIB;
/// Less than the 8 MiB that a node keeps free of such a disk (`storage::space`)
/// for what is in the log already, and more than half of that.
const NEARLY_FULL: u64 = 6 * MIB;
const BACKENDS: [&str; 3] = ["sqlite", "redb", "memory"];

fn data(disk: &Disk) -> PathBuf {
    disk.path().join("data")
}

fn start(disk: &Disk, backend: &str) -> (Node, SocketAddr) {
    let mut node = launch(disk, backend);
    let address = node.ready();
    (node, address)
}

fn launch(disk: &Disk, backend: &str) -> Node {
    node_on(&data(disk))
        .env("ASPEN_STORAGE_BACKEND", backend)
        .start()
}

/// Every way to write `key`.
fn every_write(key: &str) -> [(&'static str, String, Option<Value>); 5] {
    let path = format!("/api/kv/{key}");
    let batch = json!({ "set": [{ "key": key, "value": "batch" }], "delete": [] });
    [
        ("PUT", path.clone(), Some(json!({ "value": "put" }))),
        ("POST", path.clone(), Some(json!({ "value": "post" }))),
        (
            "POST",
            path.clone(),
            Some(json!({ "value": "cas", "expect": null })),
        ),
        ("DELETE", path, None),
        ("POST", "/api/kv".into(), Some(batch)),
    ]
}

fn last_log_index(address: SocketAddr) -> Value {
    get(address, "/status").json()["last_log_index"].clone()
}

fn is_healthy(answer: &Answer) -> bool {
    answer.status == 200
}

/// Health names the disk, and everything but writing goes on.
fn assert_degraded(health: &Answer, backend: &str) {
    assert_eq!(health.status, 503, "{health:?}");
    let told = health.json();
    assert_eq!(told["status"], "degraded", "{told}");
    assert_eq!(told["storage"], backend);
    assert_eq!(told["checks"]["disk"]["status"], "degraded", "{told}");
    let message = told["checks"]["disk"]["message"].as_str().unwrap();
    assert!(message.contains("df -h"), "{message}");
}

#[test]
fn a_nearly_full_disk_takes_no_writes_serves_reads_and_takes_writes_again() {
    if !is_root("serving on a nearly full disk") {
        return;
    }
    for disk in [Disk::ext4(DISK), Disk::tmpfs(DISK)] {
        for backend in BACKENDS {
            serves_while_nearly_full(&disk, backend);
            std::fs::remove_dir_all(data(&disk)).unwrap();
        }
    }
}

fn serves_while_nearly_full(disk: &Disk, backend: &str) {
    let (node, address) = start(disk, backend);
    put(address, "before", "a value");
    disk.leave(NEARLY_FULL);
    let write = || ask(address, "PUT", "/api/kv/k", Some(&json!({ "value": "v" })));
    // What was found last time holds for a moment.
    until(write, |answer| answer.status == 507);
    let (last, there) = (last_log_index(address), value(address, "k"));
    for (method, target, body) in every_write("k") {
        let refused = ask(address, method, &target, body.as_ref());
        assert_eq!(refused.status, 507, "{method} {target}: {refused:?}");
        assert_eq!(refused.error_code(), "disk_full");
        assert!(refused.body.contains("df -h"), "{refused:?}");
    }
    // Refused means that it never was in the log.
    assert_eq!(last_log_index(address), last);
    assert_eq!(value(address, "k"), there);
    for target in [
        "/api/kv/before",
        "/api/kv/before?consistency=stale",
        "/api/kv?prefix=before",
    ] {
        let read = get(address, target);
        assert_eq!(read.status, 200, "{read:?}");
        assert!(read.body.contains("a value"), "{read:?}");
    }
    assert_degraded(&get(address, "/health"), backend);
    assert!(get(address, "/status").json()["disk_full"].is_string());
    assert_eq!(get(address, "/livez").status, 200);

    disk.free_up();
    until(|| get(address, "/health"), is_healthy);
    let index = put(address, "after", "a value");
    assert_eq!(Some(index), last.as_u64().map(|last| last + 1));
    node.stop().with(0);
    let (node, address) = start(disk, backend);
    assert_eq!(value(address, "k"), there);
    for key in ["before", "after"] {
        assert_eq!(value(address, key).as_deref(), Some("a value"));
    }
    node.stop().with(0);
}

/// Fills the disk to the last byte under load, and returns when the node has noticed.
fn fill_up(disk: &Disk, address: SocketAddr) {
    // There is something to read, and the files are growing.
    std::thread::sleep(Duration::from_millis(300));
    disk.fill();
    until(|| get(address, "/health"), |health| health.status == 503);
    // And what was left of it then.
    disk.fill();
}

fn check(writers: &mut [Writer], address: SocketAddr) {
    for writer in writers {
        writer.check(address);
    }
}

#[test]
fn a_disk_that_is_suddenly_full_loses_nothing_and_the_same_process_goes_on() {
    if !is_root("a disk that fills up under load") {
        return;
    }
    for disk in [Disk::ext4(DISK), Disk::tmpfs(DISK)] {
        for backend in BACKENDS {
            let (node, address) = start(&disk, backend);
            put(address, "before", "a value");
            let mut writers = writers(6, 20_000);
            under_load(&mut writers, address, || {
                fill_up(&disk, address);
                let body = json!({ "value": "v" });
                let write = || ask(address, "PUT", "/api/kv/k", Some(&body));
                let refused = until(write, |answer| answer.status != 200);
                assert_eq!((refused.status, &*refused.error_code()), (507, "disk_full"));
                for _ in 0..20 {
                    let read = get(address, "/api/kv/before?consistency=stale");
                    assert_eq!(read.status, 200, "{read:?}");
                    std::thread::sleep(Duration::from_millis(20));
                }
                disk.free_up();
                until(|| get(address, "/health"), is_healthy);
                // Writes are taken again, from all of them.
                put(address, "after", "a value");
                std::thread::sleep(Duration::from_millis(200));
            });
            for writer in &mut writers {
                writer.writes_again(address);
            }
            check(&mut writers, address);
            node.stop().with(0);
            let (node, address) = start(&disk, backend);
            check(&mut writers, address);
            assert_eq!(value(address, "before").as_deref(), Some("a value"));
            node.stop().with(0);
            std::fs::remove_dir_all(data(&disk)).unwrap();
        }
    }
}

/// How a node on a full disk ends.
enum End {
    Killed,
    Stopped,
}

/// Ends a node on a full disk under load, tries a start there, and makes room.
fn ends_while_full(disk: &Disk, backend: &str, end: &End) {
    let (node, address) = start(disk, backend);
    let mut writers = writers(6, 20_000);
    under_load(&mut writers, address, || {
        fill_up(disk, address);
        match end {
            End::Killed => {
                node.signal(Signal::SIGKILL);
                node.end().killed();
            }
            End::Stopped => {
                let ended = node.stop();
                // It may have had something left to write, and then says so.
                assert!([Some(0), Some(74)].contains(&ended.code()), "{ended:?}");
                assert!(!ended.log.contains("panicked at"), "{ended:?}");
            }
        }
    });
    let mut node = launch(disk, backend);
    match node.says("READY=1") {
        true => drop(node.stop()),
        false => {
            let ended = node.end().with(74);
            let last = ended.said.last().unwrap();
            assert!(last.starts_with("STATUS=Failed: "), "{last}");
        }
    }
    disk.free_up();
    let (node, address) = start(disk, backend);
    check(&mut writers, address);
    writers
        .iter_mut()
        .for_each(|writer| writer.writes_again(address));
    check(&mut writers, address);
    node.stop().with(0);
    std::fs::remove_dir_all(data(disk)).unwrap();
}

#[test]
fn a_node_that_is_killed_on_a_full_disk_has_everything_when_there_is_space() {
    if !is_root("kills on a full disk") {
        return;
    }
    for disk in [Disk::ext4(DISK), Disk::tmpfs(DISK)] {
        for backend in BACKENDS {
            ends_while_full(&disk, backend, &End::Killed);
        }
    }
}

#[test]
fn a_node_that_is_stopped_on_a_full_disk_has_everything_when_there_is_space() {
    if !is_root("stops on a full disk") {
        return;
    }
    for disk in [Disk::ext4(DISK), Disk::tmpfs(DISK)] {
        for backend in BACKENDS {
            ends_while_full(&disk, backend, &End::Stopped);
        }
    }
}
