//! From exec to `READY=1`, as systemd sees it, beside little data and beside
//! much, after a clean end and after a kill in the middle of puts.
//!
//! After a kill the log is read through, page by page, however much the state
//! machine holds. So for these starts both logs are filled with single puts, of
//! which they have most pages; for those after a clean end they are as the bulk
//! load left them.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::common::{Result, Runs, settle};
use crate::data::Shape;
use crate::load::{Load, Request, Windows, fill, measure};
use crate::server::{Peer, Server, Wrapping};
use crate::setting::{describe, fdatasync_rate};
use crate::{Bench, table};

/// Starts of each store after a clean end: milliseconds each, of which anything
/// else on the machine takes its part, so that there have to be many.
const CLEAN_STARTS: usize = 25;
/// Starts of each store after a kill, for which there has to be a load.
const KILLED_STARTS: usize = 5;
/// Keys of the small state machine: with their values, 1 MB.
const FEW: u64 = 1_000;
/// Puts before a kill.
const BUSY: Duration = Duration::from_secs(2);
const CONNECTIONS: u64 = 64;
/// Put before the kills: what a log holds at most before it is shortened to `raft.log_keep`.
const LOG_BYTES: u64 = 320 << 20;
/// After this a log is as short as `raft.log_keep` has it: the node looks every two seconds.
const SHORTENED: Duration = Duration::from_secs(5);
/// How much longer the large one may take.
const REACH: f64 = 1.5;
/// A start that takes longer has failed.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How the node ended before the start that is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Clean,
    Kill,
}

/// Measures and prints the table.
pub(crate) async fn run(bench: &Bench) -> Result<()> {
    let value_bytes = bench.value_bytes.unwrap_or(1_000);
    let many = bench
        .keys
        .unwrap_or(if bench.quick { 20_000 } else { 1_000_000 });
    let disk = Runs(vec![fdatasync_rate(&bench.dir)?]);
    let mut stores = Vec::new();
    for keys in [FEW, many] {
        let shape = Shape { keys, value_bytes };
        let dir = bench.empty_dir(&format!("start-{keys}"))?;
        let server = Server::start(&bench.programs, Peer::Sqlite, &dir)?;
        eprintln!("loading {} bytes", table::thousands(shape.bytes()));
        fill(&server, shape).await?;
        server.stop()?;
        stores.push((shape, dir));
    }
    println!("\n## From exec to READY=1\n");
    println!(
        "Medians of {CLEAN_STARTS} and {KILLED_STARTS} starts, in turn, files in the page cache. \
         Before the kills both logs are filled with single puts. {}\n",
        describe(&bench.programs, &bench.dir, &disk)?
    );
    println!(
        "| | {} keys | {} keys | ratio | to reach |",
        table::thousands(FEW),
        table::thousands(many)
    );
    println!("|---|---|---|---|---|");
    for (end, starts, what) in [
        (End::Clean, CLEAN_STARTS, "after a clean end"),
        (
            End::Kill,
            KILLED_STARTS,
            "after `kill -9` in the middle of puts",
        ),
    ] {
        if end == End::Kill {
            for (shape, dir) in &stores {
                let bytes = LOG_BYTES.min(many * value_bytes as u64);
                lengthen(bench, *shape, dir, bytes).await?;
            }
        }
        let mut runs = [Runs::default(), Runs::default()];
        for _ in 0..starts {
            for ((shape, dir), runs) in stores.iter().zip(&mut runs) {
                end_once(bench, *shape, dir, end).await?;
                runs.0.push(start_once(bench, dir)?);
            }
        }
        print_row(what, &runs);
    }
    for (_, dir) in stores {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

fn print_row(what: &str, runs: &[Runs; 2]) {
    let [few, many] = runs.each_ref().map(Runs::median);
    let cell = |runs: &Runs| {
        let (least, most) = runs.spread();
        let median = table::time(runs.median());
        format!("{median} ({} to {})", table::time(least), table::time(most))
    };
    let ratio = many / few;
    let reached = if ratio <= REACH {
        ""
    } else {
        ": **not reached**"
    };
    println!(
        "| {what} | {} | {} | {ratio:.2} | at most {REACH} ×{reached} |",
        cell(&runs[0]),
        cell(&runs[1]),
    );
}

/// Puts one key at a time until the log holds nothing else, and waits until it is
/// no longer than it is to be.
async fn lengthen(bench: &Bench, shape: Shape, dir: &Path, bytes: u64) -> Result<()> {
    let server = Server::start(&bench.programs, Peer::Sqlite, dir)?;
    let servers = [&server];
    let mut put = 0;
    while put < bytes {
        let load = measure(&servers, &servers, shape, Request::Put, CONNECTIONS, BUSY);
        put += load.await?.latencies.count() * shape.value_bytes as u64;
    }
    sleep(SHORTENED).await;
    server.stop()
}

/// Brings the store into the state in which the measured start finds it.
async fn end_once(bench: &Bench, shape: Shape, dir: &Path, end: End) -> Result<()> {
    if end == End::Clean {
        return Ok(()); // It ended so when it was loaded or last measured.
    }
    let server = Server::start(&bench.programs, Peer::Sqlite, dir)?;
    let windows = Arc::new(Windows::new(1));
    let shared = Arc::clone(&windows);
    let load = Load::start(&[&server], shape, Request::Put, CONNECTIONS, shared).await?;
    sleep(BUSY).await;
    server.kill()?;
    drop(load);
    Ok(())
}

fn start_once(bench: &Bench, dir: &Path) -> Result<f64> {
    settle();
    let socket = Socket::bind()?;
    let wrapping = Wrapping {
        notify: Some(socket.path.clone()),
        ..Wrapping::default()
    };
    let began = Instant::now();
    let server = Server::start_wrapped(&bench.programs, Peer::Sqlite, dir, &wrapping)?;
    let ready = socket.ready(began).map_err(|error| server.blame(error))?;
    server.stop()?;
    Ok(ready)
}

/// What systemd listens on.
struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Socket {
    /// Where the path is short enough for a socket.
    fn bind() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("serving-{}.notify", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(READY_WITHIN))?;
        Ok(Self { socket, path })
    }

    /// Seconds since `began` until the node says that it is ready.
    fn ready(&self, began: Instant) -> Result<f64> {
        let mut message = [0; 4096];
        loop {
            let length = self.socket.recv(&mut message)?;
            let elapsed = began.elapsed();
            if message[..length]
                .split(|&byte| byte == b'\n')
                .any(|line| line == b"READY=1")
            {
                return Ok(elapsed.as_secs_f64());
            }
            if elapsed > READY_WITHIN {
                return Err("is not ready".into());
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
