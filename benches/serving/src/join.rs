//! A third node that comes to two full ones while they are written to: it gets
//! a snapshot, since the log no longer reaches back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::cluster::{Cluster, start_node};
use crate::common::{Result, Runs, settle};
use crate::data::Shape;
use crate::load::{Load, Request, Windows, fill};
use crate::server::{Peer, Place};
use crate::setting::{describe, fdatasync_rate};
use crate::{Bench, table};

const CONNECTIONS: u64 = 64;
/// Puts with nothing beside them, before.
const QUIET_TIME: Duration = Duration::from_secs(10);
const QUIET: u8 = 1;
const JOINING: u8 = 2;
/// The most that p99 may be, of the quiet one.
const REACH: f64 = 3.0;
/// The most memory of a node, in MiB.
const MEMORY: f64 = 256.0;

/// Measures and prints the table.
pub(crate) async fn run(bench: &Bench) -> Result<()> {
    let shape = Shape {
        keys: bench
            .keys
            .unwrap_or(if bench.quick { 20_000 } else { 1_000_000 }),
        value_bytes: bench.value_bytes.unwrap_or(1_000),
    };
    settle();
    let disk = Runs(vec![fdatasync_rate(&bench.dir)?]);
    drop(bench.empty_dir("cluster")?);
    let places = Place::of(3)?;
    let mut cluster = Cluster::start(bench, Peer::Sqlite, &places[..2])?;
    let leader = cluster.leader().await?;
    eprintln!("loading {} bytes", table::thousands(shape.bytes()));
    fill(&cluster.0[&leader], shape).await?;

    let windows = Arc::new(Windows::new(3));
    let shared = Arc::clone(&windows);
    let asked = [&cluster.0[&leader]];
    let mut load = Load::start(&asked, shape, Request::Put, CONNECTIONS, shared).await?;
    sleep(Duration::from_secs(2)).await;
    windows.switch_to(QUIET);
    sleep(QUIET_TIME).await;
    windows.switch_to(JOINING);
    let began = Instant::now();
    let third = start_node(bench, Peer::Sqlite, &places[2])?;
    // It is ready when it can confirm a read: with all that was written before.
    let ready = Client::connect_when_ready(third.peer, third.port).await;
    let took = began.elapsed();
    windows.end();
    let latencies = load.join(asked[0]).await?;
    drop(ready.map_err(|error| third.blame(error))?);
    let of_leader = asked[0].memory()?.peak;
    let of_third = third.memory()?.peak;
    cluster.0.insert(3, third);
    cluster.stop()?;

    let [quiet, joining] = [QUIET, JOINING].map(|window| &latencies[usize::from(window)]);
    println!("\n## A new node under load\n");
    println!(
        "{} keys, values of {} bytes, {CONNECTIONS} connections to the leader. {}\n",
        table::thousands(shape.keys),
        shape.value_bytes,
        describe(&bench.programs, &bench.dir, &disk)?,
    );
    println!("| | puts | p50 | p99 | longest | failed | to reach |");
    println!("|---|---|---|---|---|---|---|");
    let ratio = joining.percentile(99.0) / quiet.percentile(99.0);
    let reached = |reached| if reached { "" } else { ": **not reached**" };
    for (what, latencies, bound) in [
        ("quiet", quiet, String::new()),
        (
            "while the third comes",
            joining,
            format!(
                "p99 at most {REACH} ×: {ratio:.2} ×{}",
                reached(ratio <= REACH)
            ),
        ),
    ] {
        println!(
            "| {what} | {} | {} | {} | {} | {} | {bound} |",
            table::thousands(latencies.count()),
            table::time(latencies.percentile(50.0)),
            table::time(latencies.percentile(99.0)),
            table::time(latencies.percentile(100.0)),
            latencies.failures,
        );
        latencies.complain(what);
    }
    println!(
        "\nThe third node was ready after {}. Peak memory: leader {}, third node {}; at most {}{}.",
        table::time(took.as_secs_f64()),
        table::mib(of_leader),
        table::mib(of_third),
        table::mib(MEMORY),
        reached(of_leader.max(of_third) <= MEMORY),
    );
    Ok(())
}
