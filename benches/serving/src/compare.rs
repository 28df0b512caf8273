//! The peers side by side: each round loads, writes and reads each of them,
//! one after the other, and rounds repeat, so that a disk that changes its
//! speed changes it for all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{Result, Runs, settle};
use crate::data::Shape;
use crate::load::{Outcome, Request, fill, measure};
use crate::server::{Memory, Peer, Server};
use crate::setting::{describe, fdatasync_rate};
use crate::{Bench, table};

/// One phase of a round.
struct Phase {
    what: &'static str,
    request: Request,
    connections: u64,
    seconds: u64,
    quick_seconds: u64,
    /// In a fresh process, on what the phases before have written.
    restarted: bool,
    /// The least that requests a second may be, of etcd's.
    rate: Option<f64>,
    /// The most that the 99th percentile may be, of etcd's.
    p99: Option<f64>,
}

/// etcd 3.4 copies with each read a buffer as large as its last burst of writes
/// made it, until it is restarted. The bound is on what it does without that.
const PHASES: [Phase; 4] = [
    Phase {
        what: "durable puts, 64 connections",
        request: Request::Put,
        connections: 64,
        seconds: 10,
        quick_seconds: 2,
        restarted: false,
        rate: Some(2.0),
        p99: Some(1.0),
    },
    Phase {
        what: "durable puts, 1 connection",
        request: Request::Put,
        connections: 1,
        seconds: 5,
        quick_seconds: 1,
        restarted: false,
        rate: Some(1.0),
        p99: None,
    },
    Phase {
        what: "linearizable gets, 64 connections, right after the puts",
        request: Request::Get,
        connections: 64,
        seconds: 5,
        quick_seconds: 1,
        restarted: false,
        rate: None,
        p99: None,
    },
    Phase {
        what: "linearizable gets, 64 connections, restarted",
        request: Request::Get,
        connections: 64,
        seconds: 5,
        quick_seconds: 1,
        restarted: true,
        rate: Some(5.0),
        p99: None,
    },
];

/// The most memory that ours may have, in MiB.
const MEMORY: f64 = 256.0;

/// What one peer showed in one round.
struct Sample {
    /// What the disk did just before.
    fdatasync_rate: f64,
    load_rate: f64,
    phases: Vec<Outcome>,
    memory: Memory,
    disk: u64,
}

type Samples = BTreeMap<Peer, Vec<Sample>>;

/// Runs all rounds and prints the table.
pub(crate) async fn run(bench: &Bench) -> Result<()> {
    let shape = Shape {
        keys: bench
            .keys
            .unwrap_or(if bench.quick { 20_000 } else { 1_000_000 }),
        value_bytes: bench.value_bytes.unwrap_or(100),
    };
    let mut samples = Samples::new();
    let mut disk = Runs::default();
    for round in 1..=bench.rounds() {
        for &peer in &bench.peers {
            settle();
            eprintln!("round {round}: {}", peer.name());
            let sample = one(bench, peer, shape).await?;
            disk.0.push(sample.fdatasync_rate);
            samples.entry(peer).or_default().push(sample);
        }
    }
    println!("\n## Serving, beside etcd\n");
    println!(
        "{} keys, values of {} bytes; medians of {} rounds. {}\n",
        table::thousands(shape.keys),
        shape.value_bytes,
        bench.rounds(),
        describe(&bench.programs, &bench.dir, &disk)?,
    );
    print(&samples);
    Ok(())
}

async fn one(bench: &Bench, peer: Peer, shape: Shape) -> Result<Sample> {
    let dir = bench.empty_dir("compare")?;
    let fdatasync_rate = fdatasync_rate(&dir)?;
    let mut server = Server::start(&bench.programs, peer, &dir)?;
    let mut memory = Memory::default();
    let load_rate = fill(&server, shape).await?;
    let mut phases = Vec::new();
    for phase in &PHASES {
        if phase.restarted {
            memory.add(server.memory()?);
            server.stop()?;
            server = Server::start(&bench.programs, peer, &dir)?;
        }
        let seconds = match bench.quick {
            true => phase.quick_seconds,
            false => phase.seconds,
        };
        let time = Duration::from_secs(seconds);
        let outcome = measure(
            &[&server],
            &[&server],
            shape,
            phase.request,
            phase.connections,
            time,
        )
        .await?;
        eprintln!(
            "  {}: {} a second, p99 {}, failed {}",
            phase.what,
            table::rate(outcome.rate()),
            table::time(outcome.latencies.percentile(99.0)),
            outcome.latencies.failures,
        );
        phases.push(outcome);
    }
    memory.add(server.memory()?);
    server.stop()?;
    let disk = crate::size_of(&dir)?;
    std::fs::remove_dir_all(dir)?;
    Ok(Sample {
        fdatasync_rate,
        load_rate,
        phases,
        memory,
        disk,
    })
}

/// What is to be reached.
enum Reach {
    /// At least so many times what etcd shows.
    Over(f64),
    /// At most so many times what etcd shows.
    Under(f64),
    /// At most so much, whatever etcd shows.
    Within(f64),
}

/// One row of the table.
struct Row<'a> {
    what: String,
    of: &'a dyn Fn(&Sample) -> f64,
    tell: fn(f64) -> String,
    reach: Option<Reach>,
    /// Least and most too.
    spread: bool,
    /// The worst round in place of the median.
    worst: bool,
}

impl<'a> Row<'a> {
    fn new(what: &str, tell: fn(f64) -> String, of: &'a dyn Fn(&Sample) -> f64) -> Self {
        Self {
            what: what.to_owned(),
            of,
            tell,
            reach: None,
            spread: false,
            worst: false,
        }
    }

    fn reaching(mut self, reach: Option<Reach>) -> Self {
        self.reach = reach;
        self
    }

    fn with_spread(mut self) -> Self {
        self.spread = true;
        self
    }

    fn worst(mut self) -> Self {
        self.worst = true;
        self
    }

    fn print(&self, samples: &Samples) {
        let figure = |peer| {
            let samples = samples.get(&peer)?;
            let runs = Runs(samples.iter().map(self.of).collect());
            let (_, most) = runs.spread();
            Some((if self.worst { most } else { runs.median() }, runs))
        };
        let cell = |peer| {
            let Some((figure, runs)) = figure(peer) else {
                return String::new();
            };
            let (least, most) = runs.spread();
            match self.spread && runs.0.len() > 1 {
                true => {
                    let tell = self.tell;
                    format!("{} ({} to {})", tell(figure), tell(least), tell(most))
                }
                false => (self.tell)(figure),
            }
        };
        let etcd = figure(Peer::Etcd).map(|(figure, _)| figure);
        let ratio = |peer| {
            let (figure, _) = figure(peer)?;
            Some(figure / etcd?)
        };
        let told = |peer| match ratio(peer) {
            Some(ratio) if !ratio.is_nan() => format!("{ratio:.2}"),
            _ => String::new(),
        };
        let ours = figure(Peer::Sqlite).map(|(figure, _)| figure);
        let reached = match &self.reach {
            Some(Reach::Over(bound)) => reaches(
                ratio(Peer::Sqlite),
                |r| r >= *bound,
                format!("at least {bound} ×"),
            ),
            Some(Reach::Under(bound)) => reaches(
                ratio(Peer::Sqlite),
                |r| r <= *bound,
                format!("at most {bound} ×"),
            ),
            Some(Reach::Within(bound)) => reaches(
                ours,
                |figure| figure <= *bound,
                format!("at most {}", (self.tell)(*bound)),
            ),
            None => String::new(),
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {reached} |",
            self.what,
            cell(Peer::Sqlite),
            cell(Peer::Redb),
            cell(Peer::Etcd),
            told(Peer::Sqlite),
            told(Peer::Redb),
        );
    }
}

fn reaches(figure: Option<f64>, reached: impl Fn(f64) -> bool, bound: String) -> String {
    match figure.map(reached) {
        Some(true) => bound,
        Some(false) => format!("{bound}: **not reached**"),
        None => format!("{bound}: not measured"),
    }
}

fn print(samples: &Samples) {
    println!("| | aspen, SQLite | aspen, redb | etcd | SQLite / etcd | redb / etcd | to reach |");
    println!("|---|---|---|---|---|---|---|");
    for (at, phase) in PHASES.iter().enumerate() {
        let rate = |sample: &Sample| sample.phases[at].rate();
        Row::new(&format!("**{}**, a second", phase.what), table::rate, &rate)
            .reaching(phase.rate.map(Reach::Over))
            .with_spread()
            .print(samples);
        for (name, percent) in [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)] {
            let of = |sample: &Sample| sample.phases[at].latencies.percentile(percent);
            let reach = phase.p99.filter(|_| percent == 99.0);
            Row::new(name, table::time, &of)
                .reaching(reach.map(Reach::Under))
                .print(samples);
        }
        let most = |sample: &Sample| sample.phases[at].latencies.percentile(100.0);
        Row::new("longest of all rounds", table::time, &most)
            .worst()
            .print(samples);
        let server = |sample: &Sample| sample.phases[at].server_cores;
        Row::new("cores busy with the server", table::fraction, &server).print(samples);
        let driver = |sample: &Sample| sample.phases[at].driver_cores;
        Row::new("cores busy with the driver", table::fraction, &driver).print(samples);
    }
    let others = |sample: &Sample| {
        let others = sample.phases.iter().map(|phase| phase.other_cores);
        others.fold(0.0, f64::max)
    };
    Row::new(
        "cores busy with anything else, worst phase",
        table::fraction,
        &others,
    )
    .worst()
    .print(samples);
    let disk = |sample: &Sample| sample.fdatasync_rate;
    Row::new(
        "fdatasync of 4 KiB just before, a second",
        table::rate,
        &disk,
    )
    .with_spread()
    .print(samples);
    let load = |sample: &Sample| sample.load_rate;
    Row::new(
        "bulk load, 128 keys a request, keys a second",
        table::rate,
        &load,
    )
    .print(samples);
    Row::new("peak memory (VmHWM)", table::mib, &|sample| {
        sample.memory.peak
    })
    .reaching(Some(Reach::Within(MEMORY)))
    .worst()
    .print(samples);
    let anonymous = |sample: &Sample| sample.memory.anonymous;
    Row::new(
        "not of files (RssAnon), after the puts",
        table::mib,
        &anonymous,
    )
    .print(samples);
    let disk = |sample: &Sample| sample.disk as f64 / f64::from(1 << 20);
    Row::new("disk, once stopped", table::mib, &disk).print(samples);
    let failures = |sample: &Sample| {
        let failures = sample.phases.iter().map(|phase| phase.latencies.failures);
        failures.sum::<u64>() as f64
    };
    Row::new("failed requests, worst round", table::rate, &failures)
        .worst()
        .print(samples);
}
