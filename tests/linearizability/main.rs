//! Whatever happens to the nodes and the ways between them: what clients see is
//! what one copy of the data would show, one operation after the other.
//!
//! Clients on all nodes of a real cluster write down what they ask for and what
//! they hear, while troubles strike. Their history must be linearizable, key by
//! key, reads by the leader's lease included, and a read with a bound may be as if it
//! had been asked for that much earlier; what was acknowledged must be there, what was refused must not; and all
//! nodes must hold the same in the end.
//!
//! A run prints its seed, from which the troubles and the requests follow;
//! `ASPEN_TEST_SEED=N` has the same again, though not in the same moments.
//! `ASPEN_TEST_EXHAUSTIVE=1` has more trouble, and `ASPEN_TEST_SOAK_MINUTES=N`
//! as many minutes of it for each test:
//!
//! ```text
//! ASPEN_TEST_SOAK_MINUTES=5 cargo test --release --test linearizability -- --nocapture
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checker;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod links;
mod run;
mod site;
mod spaces;
mod troubles;

use std::path::Path;
use std::time::Duration;

use common::disk::is_root;
use common::fixture;
use common::linearizable::Action;
use common::read;

use crate::clients::{Clients, Reads};
use crate::run::run;
use crate::site::{Site, eventually};
use crate::spaces::in_a_network_of_its_own;
use crate::troubles::{
    AWAY, CLOCK, CUT_ONE_WAY, FULL_DISK, ISOLATE, KILL, KILL_MANY, LOST_DISK, MEMBERS, MIGRATE,
    PAUSE, RESTART, SLOW, SPLIT, TOGETHER, TRANSFER, UNPLUG,
};

/// Room for a node and for what is written to it while a test runs.
const DISK: u64 = 192 << 20;
/// Where Debian's faketime has what it puts in front of the C library.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

#[test]
fn three_nodes_that_are_killed_stopped_and_paused_answer_as_one() {
    let site = Site::new(&["sqlite", "sqlite", "redb"]).up();
    run(site, &[KILL, KILL_MANY, RESTART, PAUSE]);
}

#[test]
fn three_nodes_that_lose_sight_of_each_other_answer_as_one() {
    let site = Site::new(&["sqlite"; 3]).up();
    run(site, &[ISOLATE, CUT_ONE_WAY, SPLIT, SLOW]);
}

#[test]
fn three_nodes_that_are_away_until_they_need_a_snapshot_answer_as_one() {
    let site = Site::new(&["sqlite", "redb", "sqlite"]).up();
    run(site, &[AWAY, KILL]);
}

#[test]
fn three_nodes_whose_leadership_is_handed_on_answer_as_one() {
    let site = Site::new(&["sqlite", "sqlite", "redb"]).up();
    run(site, &[TRANSFER, RESTART, ISOLATE, PAUSE]);
}

#[test]
fn nodes_that_come_and_go_and_lose_their_disks_answer_as_one() {
    let site = Site::new(&["sqlite", "redb", "sqlite"]).up();
    run(site, &[MEMBERS, LOST_DISK, KILL, ISOLATE]);
}

#[test]
fn five_nodes_in_two_troubles_at_once_answer_as_one() {
    let site = Site::new(&["sqlite", "redb", "sqlite", "memory", "sqlite"]).up();
    run(site, &[TOGETHER, KILL_MANY, SPLIT, PAUSE]);
}

#[test]
fn three_nodes_with_cables_that_are_pulled_and_packets_that_are_lost_answer_as_one() {
    in_a_network_of_its_own("a broken network", || {
        let site = Site::in_spaces(&["sqlite", "sqlite", "redb"]);
        run(site.up(), &[UNPLUG, ISOLATE, CUT_ONE_WAY, SPLIT, SLOW]);
    });
}

#[test]
fn three_nodes_whose_disks_are_full_answer_as_one() {
    if is_root("a full disk") {
        let site = Site::new(&["sqlite", "sqlite", "redb"]).with_disks(DISK);
        run(site.up(), &[FULL_DISK, KILL, PAUSE]);
    }
}

#[test]
fn three_nodes_whose_clocks_are_wrong_answer_as_one() {
    let Some(library) = LIBRARIES
        .map(Path::new)
        .into_iter()
        .find(|file| file.exists())
    else {
        assert!(!common::all_tests_required(), "faketime is not there");
        println!("left out: faketime is not installed");
        return;
    };
    let site = Site::new(&["sqlite", "redb", "sqlite"]).with_clocks(library);
    site.set_clock(1, 86_400 * 4000);
    let site = site.up();
    let year = |id| {
        let log = std::fs::read_to_string(site.log(id)).unwrap();
        log[..4].parse::<u32>().unwrap()
    };
    assert!(year(1) > year(2) + 9, "the clock of a node cannot be set");
    run(site, &[CLOCK, KILL, ISOLATE, PAUSE]);
}

/// Four nodes as a legacy release left them, three of which vote.
#[test]
fn legacy_nodes_that_migrate_under_load_answer_as_one_and_keep_what_they_had() {
    let legacy = fixture::one("legacy", "plain");
    let site = Site::new(&["redb"; 4]).with_data(&legacy);
    let others = run(site.up(), &[MIGRATE, KILL, PAUSE]);
    let bytes = |(key, value): (String, String)| (key.into_bytes(), value.into_bytes());
    let rows = others.into_iter().map(bytes).collect();
    assert_eq!(read::rows_sha256(&rows), legacy.state().rows_sha256);
}

/// The proof of the proof: reads that may be old, passed off as linearizable,
/// are found out.
#[test]
fn stale_reads_that_pose_as_linearizable_are_found_out() {
    let site = Site::new(&["sqlite"; 3]).up();
    let clients = Clients::new(site.addresses.clone());
    let cut_off = eventually("nobody follows", || {
        let leader = site.leader()?;
        site.ids().into_iter().find(|id| *id != leader)
    });
    let mut honest = clients.client(1, Reads::Linearizable);
    let mut liar = clients.client(2, Reads::Stale(Duration::ZERO));
    let [first, second] = [(); 2].map(|()| clients.history.value());
    honest.go_to(site.http(cut_off));
    assert!(honest.operate(0, Action::Put(first)));
    assert!(honest.operate(0, Action::Get));
    for other in site.ids() {
        site.cut(other, cut_off);
    }
    let other = site.ids().into_iter().find(|id| *id != cut_off).unwrap();
    honest.go_to(site.http(other));
    assert!(honest.operate(0, Action::Put(second)));
    clients.history.is_linearizable().unwrap();
    liar.go_to(site.http(cut_off));
    assert!(liar.operate(0, Action::Get));
    let why = clients.history.is_linearizable().unwrap_err();
    assert!(why.contains("no order of its 4 operations"), "{why}");
}

/// The same of a bound: a stale read that poses as one that is kept is found out as soon
/// as what it misses is older.
#[test]
fn stale_reads_that_break_the_bound_that_they_claim_are_found_out() {
    const BOUND: Duration = Duration::from_millis(300);
    let site = Site::new(&["sqlite"; 3]).up();
    let clients = Clients::new(site.addresses.clone());
    let cut_off = eventually("nobody follows", || {
        let leader = site.leader()?;
        site.ids().into_iter().find(|id| *id != leader)
    });
    for other in site.ids() {
        site.cut(other, cut_off);
    }
    let other = site.ids().into_iter().find(|id| *id != cut_off).unwrap();
    let mut honest = clients.client(1, Reads::Linearizable);
    honest.go_to(site.http(other));
    assert!(honest.operate(0, Action::Put(clients.history.value())));
    std::thread::sleep(2 * BOUND);
    let mut liar = clients.client(2, Reads::Stale(Duration::from_secs(3600)));
    liar.go_to(site.http(cut_off));
    assert!(liar.operate(0, Action::Get));
    clients.history.is_linearizable().unwrap();
    let mut liar = clients.client(3, Reads::Stale(BOUND));
    liar.go_to(site.http(cut_off));
    assert!(liar.operate(0, Action::Get));
    clients.history.is_linearizable().unwrap_err();
}
