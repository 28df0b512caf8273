//! Hours of trouble in minutes: a cluster in one thread, where the network, the disks of
//! the Raft log and the time are simulated, and everything else is what a node is.
//!
//! The nodes are [`aspen::raft::Node`], with their engines, their Raft log in redb and all
//! that they say to each other; below that lies turmoil's network instead of TCP, and a
//! disk that loses at a power cut what was not synced. Nothing in a run depends on the
//! real time or on another thread, so a run is repeated to the last moment by its seed,
//! which is printed:
//!
//! ```text
//! ASPEN_TEST_SEED=N cargo test --test simulation whatever -- --nocapture
//! ASPEN_TEST_LOG=debug                      with what the nodes say, on standard error
//! ASPEN_TEST_SOAK_MINUTES=M                 new seeds for so many minutes, instead of a few
//! ```
//!
//! What is asked of the answers is the same as of real processes in
//! `tests/linearizability`: an order of all operations on a key explains them, nothing that
//! was acknowledged is lost, and in the end all nodes hold the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chance;
mod clients;
mod clock;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod log;
mod machine;
mod network;
mod run;
mod troubles;

use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use machine::ELECTION;
use run::{Gone, Run, gaps, run};

/// Tells a test that it is a process of its own for one seed.
const CHILD: &str = "ASPEN_TEST_SIMULATED_SEED";
/// Runs at a time.
const AT_ONCE: usize = 2;
/// Seeds by default, and where everything is tried.
const SEEDS: (u64, u64) = (2, 4);
/// Seconds that a run may take: many times what it needs.
const LIMIT: &str = "900";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The same test in a process of its own, which is where a run repeats itself: what a
/// process has drawn before counts.
fn child(test: &str, seed: u64) -> Output {
    // Work that takes no simulated time would go on for ever.
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, seed.to_string());
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last words of a run: what happened in it, and a digest of every moment of it.
fn summary(output: &Output) -> Option<String> {
    let lines = said(output);
    let line = lines.lines().find(|line| line.starts_with("seed "));
    line.map(str::to_owned)
}

#[test]
fn whatever_happens_to_a_cluster_it_answers_as_one() {
    const NAME: &str = "whatever_happens_to_a_cluster_it_answers_as_one";
    if let Some(seed) = number(CHILD).or(number("ASPEN_TEST_SEED")) {
        return run(seed, Run::default());
    }
    let soak = number("ASPEN_TEST_SOAK_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let count = match (soak, number("ASPEN_TEST_EXHAUSTIVE") == Some(1)) {
        (Some(_), _) => u64::MAX,
        (None, true) => SEEDS.1,
        (None, false) => SEEDS.0,
    };
    let (first, began) = (u64::from(rand::random::<u32>()), Instant::now());
    let left = Mutex::new(first..first.saturating_add(count));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while soak.is_none_or(|soak| began.elapsed() < soak) {
                    let Some(seed) = left.lock().unwrap().next() else {
                        return;
                    };
                    let output = child(NAME, seed);
                    match (output.status.success(), summary(&output)) {
                        (true, Some(summary)) => println!("{summary}"),
                        _ => failed.lock().unwrap().push((seed, output)),
                    }
                }
            });
        }
    });
    if let Some((seed, output)) = failed.into_inner().unwrap().pop() {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("ASPEN_TEST_SEED={seed}:\n{}{errors}", said(&output));
    }
}

#[test]
fn a_seed_has_the_same_happen_in_the_same_moments() {
    const NAME: &str = "a_seed_has_the_same_happen_in_the_same_moments";
    let short = Run {
        seconds: 20,
        ..Run::default()
    };
    if let Some(seed) = number(CHILD) {
        return run(seed, short);
    }
    let seed = rand::random::<u32>().into();
    let [first, second] = [(); 2].map(|()| {
        let output = child(NAME, seed);
        assert!(output.status.success(), "{seed}: {}", said(&output));
        summary(&output).unwrap()
    });
    assert_eq!(first, second);
    assert_ne!(summary(&child(NAME, seed + 1)), Some(first));
}

/// Of simulated time a test may say how much: it is always the same. Writes went on being
/// sent to a leader that was off until the attempt to connect was given up, for two seconds.
#[test]
fn a_leader_that_is_gone_is_replaced_and_nobody_waits_for_it() {
    const TIMES: usize = 5;
    for gone in [Gone::Off, Gone::Unplugged] {
        let mut all: Vec<_> = (1..=2).flat_map(|seed| gaps(seed, TIMES, gone)).collect();
        all.sort_unstable();
        println!("{gone:?}: {all:?}");
        assert_eq!(all.len(), 2 * TIMES);
        // A round of votes in which nobody wins is rare, and takes as long again.
        let median = all[all.len() / 2];
        assert!(median < ELECTION * 3 / 2, "{gone:?}: {all:?}");
        assert!(
            all.iter().all(|gap| *gap < ELECTION * 3),
            "{gone:?}: {all:?}"
        );
    }
}

/// The proof of the proof: disks that say that they have synced, and have not.
#[test]
fn disks_that_lie_are_found_out() {
    let lying = Run {
        lying_disks: true,
        ..Run::default()
    };
    is_found_out("disks_that_lie_are_found_out", lying, "Raft log");
}

/// The same of reads that may be old, passed off as linearizable.
#[test]
fn stale_reads_that_pose_as_linearizable_are_found_out() {
    let lying = Run {
        stale_reads: true,
        ..Run::default()
    };
    let name = "stale_reads_that_pose_as_linearizable_are_found_out";
    is_found_out(name, lying, "no order of its");
}

/// Fails unless one of some runs fails, and says `why`.
fn is_found_out(test: &str, lying: Run, why: &str) {
    if let Some(seed) = number(CHILD) {
        return run(seed, lying);
    }
    let found_out = (1..=8).find(|seed| {
        let output = child(test, *seed);
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains(why)
    });
    println!("found out by seed {}", found_out.expect("nobody noticed"));
}
