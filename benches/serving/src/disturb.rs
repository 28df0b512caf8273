//! What a snapshot, a hot backup and a checkpoint do to puts: one closed loop
//! goes on all the time, first quiet, then while each is under way. A put
//! counts for a disturbance if the two overlap at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use tokio::time::sleep;

use crate::client::{Failure, aspen};
use crate::common::{Result, Runs, settle};
use crate::data::Shape;
use crate::load::{Latencies, Load, Request, Windows, fill};
use crate::server::{Peer, Server};
use crate::setting::{describe, fdatasync_rate};
use crate::{Bench, table};

const CONNECTIONS: u64 = 64;
/// Each disturbance is made so often, with puts alone before each.
const TIMES: usize = 5;
const BETWEEN: Duration = Duration::from_secs(3);
/// The most that p99 may be, of the quiet one.
const REACH: f64 = 3.0;

/// A request that disturbs.
struct Disturbance {
    what: &'static str,
    method: Method,
    path: &'static str,
    /// What the body of the answer begins with.
    begins: &'static [u8],
}

const DISTURBANCES: [Disturbance; 3] = [
    Disturbance {
        what: "during a snapshot",
        method: Method::POST,
        path: "/admin/snapshot",
        begins: b"{",
    },
    Disturbance {
        what: "during a hot backup",
        method: Method::GET,
        path: "/admin/backup",
        begins: b"SQLite format 3\0",
    },
    Disturbance {
        what: "during a checkpoint",
        method: Method::POST,
        path: "/admin/checkpoint",
        begins: b"{",
    },
];

/// Windows of the load: between disturbances, quiet, and one for each.
const BETWEEN_WINDOW: u8 = 0;
const QUIET: u8 = 1;
const FIRST: u8 = 2;

/// How long each lasted and how much it answered.
#[derive(Default)]
struct Done {
    seconds: Runs,
    bytes: u64,
}

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
    let dir = bench.empty_dir("disturb")?;
    let server = Server::start(&bench.programs, Peer::Sqlite, &dir)?;
    eprintln!("loading {} bytes", table::thousands(shape.bytes()));
    fill(&server, shape).await?;

    let windows = Arc::new(Windows::new(FIRST + DISTURBANCES.len() as u8));
    let shared = Arc::clone(&windows);
    let mut load = Load::start(&[&server], shape, Request::Put, CONNECTIONS, shared).await?;
    let (port, quick) = (server.port, bench.quick);
    // On a thread of its own: a backup that is taken in must not keep the puts waiting.
    let disturbing = tokio::task::spawn_blocking(move || disturb(port, quick, &windows));
    let done = disturbing.await?.map_err(|error| server.blame(error))?;
    let latencies = load.join(&server).await?;
    let memory = server.memory()?;
    server.stop()?;
    let bytes = crate::size_of(&dir)?;
    std::fs::remove_dir_all(dir)?;

    println!("\n## Puts while the node is busy\n");
    println!(
        "{} keys, values of {} bytes, {} connections; each {TIMES} times. Peak memory {}, \
         data directory {} at the end. {}\n",
        table::thousands(shape.keys),
        shape.value_bytes,
        CONNECTIONS,
        table::mib(memory.peak),
        table::mib(bytes as f64 / f64::from(1 << 20)),
        describe(&bench.programs, &bench.dir, &disk)?,
    );
    print(&latencies, &done);
    Ok(())
}

/// Goes through all windows and ends the load, whatever happens.
fn disturb(port: u16, quick: bool, windows: &Windows) -> std::result::Result<Vec<Done>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        sleep(BETWEEN).await;
        windows.switch_to(QUIET);
        sleep(Duration::from_secs(if quick { 2 } else { 15 })).await;
        windows.switch_to(BETWEEN_WINDOW);
        let mut all = Vec::new();
        for (disturbance, window) in DISTURBANCES.iter().zip(FIRST..) {
            let mut done = Done::default();
            for _ in 0..TIMES {
                sleep(BETWEEN).await;
                // A node does not wait for long for the first request of a connection.
                let mut client = aspen::Client::connect(port).await?;
                windows.switch_to(window);
                let began = Instant::now();
                let answer = client
                    .drain(disturbance.method.clone(), disturbance.path)
                    .await;
                windows.switch_to(BETWEEN_WINDOW);
                done.seconds.0.push(began.elapsed().as_secs_f64());
                let (bytes, first) =
                    answer.map_err(|error| format!("{}: {error}", disturbance.path))?;
                if !first.starts_with(disturbance.begins) {
                    return Err(format!("{}: answered {first:?}", disturbance.path).into());
                }
                done.bytes = bytes;
            }
            eprintln!(
                "  {}: {}",
                disturbance.what,
                table::time(done.seconds.median())
            );
            all.push(done);
        }
        Ok(all)
    });
    windows.end();
    done
}

fn print(latencies: &[Latencies], done: &[Done]) {
    println!(
        "| | lasted | answered | puts | p50 | p99 | p99.9 | longest | p99 of quiet | to reach |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let quiet = latencies[usize::from(QUIET)].percentile(99.0);
    let row = |what: &str, latencies: &Latencies, done: Option<&Done>| {
        let (lasted, answered) = done.map_or_else(Default::default, |done| {
            let lasted = table::time(done.seconds.median());
            (lasted, format!("{} bytes", table::thousands(done.bytes)))
        });
        let ratio = latencies.percentile(99.0) / quiet;
        let reached = match done {
            None => String::new(),
            Some(_) if ratio <= REACH => format!("at most {REACH} ×"),
            Some(_) => format!("at most {REACH} ×: **not reached**"),
        };
        println!(
            "| {what} | {lasted} | {answered} | {} | {} | {} | {} | {} | {ratio:.2} × | {reached} |",
            table::thousands(latencies.count()),
            table::time(latencies.percentile(50.0)),
            table::time(latencies.percentile(99.0)),
            table::time(latencies.percentile(99.9)),
            table::time(latencies.percentile(100.0)),
        );
        latencies.complain(what);
    };
    row("quiet", &latencies[usize::from(QUIET)], None);
    for ((disturbance, done), latencies) in DISTURBANCES
        .iter()
        .zip(done)
        .zip(&latencies[usize::from(FIRST)..])
    {
        row(disturbance.what, latencies, Some(done));
    }
    row(
        "between them",
        &latencies[usize::from(BETWEEN_WINDOW)],
        None,
    );
    let failures: u64 = latencies.iter().map(|latencies| latencies.failures).sum();
    println!("\nFailed puts: {failures}");
}
