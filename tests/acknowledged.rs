//! What was acknowledged is there, whatever ends the node: `kill -9` at random
//! moments under load, again and again on the same data, and a stop in order.
//!
//! `ASPEN_TEST_EXHAUSTIVE=1` kills hundreds of times instead of a dozen.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::path::Path;

use common::client::last_applied;
use common::fixture::scratch;
use common::load::{Writer, times, under_load, wait_up_to, writers};
use common::node::{Node, node_on};
use nix::sys::signal::Signal;

/// Clients at once: enough that several writes share a transaction.
const WRITERS: usize = 8;
/// One start in so many is killed before it is ready.
const EARLY: u64 = 6;

fn start(dir: &Path, backend: &str) -> Node {
    let launch = node_on(dir).env("ASPEN_STORAGE_BACKEND", backend);
    launch.start()
}

/// Everything that the answers allow and nothing else is there, and the node
/// has not gone back behind what it said before.
fn check(writers: &mut [Writer], address: SocketAddr, told: &mut u64) {
    let now = last_applied(address);
    let answered = writers.iter().map(|writer| writer.index).max().unwrap();
    assert!(
        now >= *told && now >= answered,
        "{now} after {told} was told and {answered} answered"
    );
    *told = now;
    for writer in writers {
        writer.check(address);
    }
}

/// Kills a node under load, checks and goes on with the next start.
fn killed_again_and_again(backend: &str, kills: u32) {
    let dir = scratch();
    let mut writers = writers(WRITERS, 100);
    let mut told = 0;
    for kill in 0..kills {
        let mut node = start(&dir, backend);
        if rand::random::<u64>().is_multiple_of(EARLY) {
            wait_up_to(60);
            node.signal(Signal::SIGKILL);
            node.end().killed();
            continue;
        }
        let address = node.ready();
        check(&mut writers, address, &mut told);
        let seen = under_load(&mut writers, address, || {
            // The first has time to write something.
            wait_up_to(if kill == 0 { 400 } else { 150 });
            let seen = last_applied(address);
            node.signal(Signal::SIGKILL);
            seen
        });
        told = told.max(seen);
        node.end().killed();
    }
    let mut node = start(&dir, backend);
    check(&mut writers, node.ready(), &mut told);
    node.stop().with(0);

    let sum = |count: fn(&Writer) -> u64| writers.iter().map(count).sum::<u64>();
    let acknowledged = sum(|writer| writer.acknowledged);
    let (refused, unknown) = (sum(|writer| writer.refused), sum(|writer| writer.unknown));
    println!(
        "{backend}: {kills} kills; {acknowledged} writes were acknowledged, {refused} refused"
    );
    println!("and {unknown} never answered; {told} entries");
    assert!(acknowledged > u64::from(kills) && refused > 0 && unknown > 0);
}

#[test]
fn what_was_acknowledged_survives_every_kill_on_sqlite() {
    killed_again_and_again("sqlite", times(12, 260));
}

#[test]
fn what_was_acknowledged_survives_every_kill_on_redb() {
    killed_again_and_again("redb", times(5, 90));
}

#[test]
fn what_was_acknowledged_comes_back_from_the_log_where_the_state_machine_is_in_memory() {
    killed_again_and_again("memory", times(4, 60));
}

#[test]
fn a_stop_under_load_loses_nothing_that_was_acknowledged_and_ends_well() {
    for backend in ["sqlite", "redb", "memory"] {
        let dir = scratch();
        let mut writers = writers(WRITERS, 100);
        let mut told = 0;
        for _ in 0..times(2, 6) {
            let mut node = start(&dir, backend);
            let address = node.ready();
            check(&mut writers, address, &mut told);
            under_load(&mut writers, address, || {
                wait_up_to(200);
                node.stop().with(0);
            });
        }
        let mut node = start(&dir, backend);
        check(&mut writers, node.ready(), &mut told);
        node.stop().with(0);
    }
}
