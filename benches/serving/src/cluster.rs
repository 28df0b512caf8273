//! Three nodes on the loopback, beside three of etcd's: rates through leader
//! and follower, and how long nobody is answered when leadership moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::{Client, aspen};
use crate::common::{Result, Runs, settle};
use crate::data::Shape;
use crate::load::{Latencies, Load, Outcome, Request, Windows, fill, measure};
use crate::server::{Peer, Place, Server, Wrapping};
use crate::setting::{describe, fdatasync_rate};
use crate::{Bench, table};

const NODES: u64 = 3;
const CONNECTIONS: u64 = 64;
/// How often leadership is handed over.
const HAND_OVERS: usize = 5;
/// Before leadership moves.
const BEFORE: Duration = Duration::from_secs(2);
/// For the effects to be seen: longer than any election should take.
const AFTER: Duration = Duration::from_secs(6);
/// A cluster that has no leader by then never has.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// What nodes are started with: Aspen's `raft.election_timeout_ms`, by default.
const ELECTION: Duration = Duration::from_secs(1);
/// The longest time without an acknowledgement when leadership is handed over.
const HAND_OVER_GAP: Duration = Duration::from_millis(200);

/// Running nodes, by id from 1.
pub(crate) struct Cluster(pub(crate) BTreeMap<u64, Server>);

impl Cluster {
    /// Starts a node at each of these places, each in a directory of its own.
    pub(crate) fn start(bench: &Bench, peer: Peer, places: &[Place]) -> Result<Self> {
        let mut nodes = BTreeMap::new();
        for place in places {
            nodes.insert(place.id, start_node(bench, peer, place)?);
        }
        Ok(Self(nodes))
    }

    pub(crate) fn all(&self) -> Vec<&Server> {
        self.0.values().collect()
    }

    /// The id of the node that leads.
    pub(crate) async fn leader(&self) -> Result<u64> {
        let began = Instant::now();
        loop {
            for (id, server) in &self.0 {
                let leads = async {
                    Client::connect(server.peer, server.port)
                        .await?
                        .leads()
                        .await
                };
                // One that is not there yet leads nobody.
                if leads.await.unwrap_or(false) {
                    return Ok(*id);
                }
            }
            if began.elapsed() > LEADER_WITHIN {
                return Err(self.all()[0].blame("nobody leads").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.0.into_values().try_for_each(Server::stop)
    }
}

/// Starts one node.
pub(crate) fn start_node(bench: &Bench, peer: Peer, place: &Place) -> Result<Server> {
    let dir = bench.dir.join(format!("cluster/{}", place.id));
    std::fs::create_dir_all(&dir)?;
    Server::start_at(&bench.programs, peer, &dir, &Wrapping::default(), place)
}

/// What one peer showed.
struct Sample {
    through_leader: Outcome,
    through_follower: Outcome,
    gets: Outcome,
    memory: f64,
}

/// What happened when leadership moved, so many times.
#[derive(Default)]
struct Moves {
    gaps: Runs,
    puts: Latencies,
}

/// Measures and prints the tables.
pub(crate) async fn run(bench: &Bench) -> Result<()> {
    let shape = Shape {
        keys: bench.keys.unwrap_or(100_000),
        value_bytes: bench.value_bytes.unwrap_or(100),
    };
    let disk = Runs(vec![fdatasync_rate(&bench.dir)?]);
    let mut samples: BTreeMap<Peer, Vec<Sample>> = BTreeMap::new();
    let peers = bench.peers.iter().filter(|peer| **peer != Peer::Redb);
    for round in 1..=bench.rounds() {
        for &peer in peers.clone() {
            settle();
            eprintln!("round {round}: {}", peer.name());
            samples
                .entry(peer)
                .or_default()
                .push(rates(bench, peer, shape).await?);
        }
    }
    println!("\n## Three nodes, beside three of etcd's\n");
    println!(
        "{} keys, values of {} bytes, {CONNECTIONS} connections; medians of {} rounds. {}\n",
        table::thousands(shape.keys),
        shape.value_bytes,
        bench.rounds(),
        describe(&bench.programs, &bench.dir, &disk)?,
    );
    print(&samples);
    let (handed_over, killed) = moves(bench, shape).await?;
    println!("\n### When leadership moves, puts through all nodes\n");
    println!(
        "| | times | puts | failed | longest put | longest time without an answer | to reach |"
    );
    println!("|---|---|---|---|---|---|---|");
    print_moves("handed over", &handed_over, HAND_OVER_GAP, true);
    print_moves(
        "leader killed, puts through the others",
        &killed,
        2 * ELECTION,
        false,
    );
    Ok(())
}

async fn rates(bench: &Bench, peer: Peer, shape: Shape) -> Result<Sample> {
    drop(bench.empty_dir("cluster")?);
    let cluster = Cluster::start(bench, peer, &Place::of(NODES)?)?;
    let leader = cluster.leader().await?;
    let (all, seconds) = (cluster.all(), if bench.quick { 2 } else { 8 });
    let follower = cluster.0.iter().find(|(id, _)| **id != leader);
    let follower = follower
        .map(|(_, server)| server)
        .ok_or("there is no follower")?;
    let leader = &cluster.0[&leader];
    fill(leader, shape).await?;
    let time = Duration::from_secs(seconds);
    let one = async |what: &str, asked: &[&Server], request| {
        let outcome = measure(asked, &all, shape, request, CONNECTIONS, time).await?;
        eprintln!(
            "  {what}: {} a second, p99 {}, failed {}; servers {:.2}, driver {:.2} cores",
            table::rate(outcome.rate()),
            table::time(outcome.latencies.percentile(99.0)),
            outcome.latencies.failures,
            outcome.server_cores,
            outcome.driver_cores,
        );
        Ok::<_, Box<dyn std::error::Error>>(outcome)
    };
    let through_leader = one("puts through the leader", &[leader], Request::Put).await?;
    let through_follower = one("puts through a follower", &[follower], Request::Put).await?;
    let gets = one("gets through all", &all, Request::Get).await?;
    let peaks: Result<Vec<f64>> = all.iter().map(|server| Ok(server.memory()?.peak)).collect();
    let memory = peaks?.into_iter().fold(0.0, f64::max);
    cluster.stop()?;
    Ok(Sample {
        through_leader,
        through_follower,
        gets,
        memory,
    })
}

/// Hands leadership over and then kills leaders, while puts go on.
async fn moves(bench: &Bench, shape: Shape) -> Result<(Moves, Moves)> {
    drop(bench.empty_dir("cluster")?);
    let places = Place::of(NODES)?;
    let mut cluster = Cluster::start(bench, Peer::Sqlite, &places)?;
    let leader = cluster.leader().await?;
    fill(&cluster.0[&leader], shape).await?;
    let mut handed_over = Moves::default();
    for _ in 0..if bench.quick { 2 } else { HAND_OVERS } {
        let leader = cluster.leader().await?;
        let next = leader % NODES + 1;
        let port = cluster.0[&leader].port;
        let asked = cluster.all();
        let moving = async {
            let mut client = aspen::Client::connect(port).await?;
            client.hand_over(next).await
        };
        let (gap, puts) = one_move(&asked, shape, moving).await?;
        handed_over.add("handed over", gap, puts);
    }
    let mut killed = Moves::default();
    for _ in 0..if bench.quick { 1 } else { 3 } {
        let leader = cluster.leader().await?;
        let server = cluster.0.remove(&leader).ok_or("no such node")?;
        let asked = cluster.all();
        let moving = async { server.kill().map_err(|error| error.to_string().into()) };
        let (gap, puts) = one_move(&asked, shape, moving).await?;
        killed.add("killed", gap, puts);
        let place = places.iter().find(|place| place.id == leader);
        let place = place.ok_or("no such place")?;
        let back = start_node(bench, Peer::Sqlite, place)?;
        drop(
            Client::connect_when_ready(back.peer, back.port)
                .await
                .map_err(|e| back.blame(e))?,
        );
        cluster.0.insert(leader, back);
    }
    cluster.stop()?;
    Ok((handed_over, killed))
}

impl Moves {
    fn add(&mut self, what: &str, gap: Duration, puts: Latencies) {
        eprintln!(
            "  {what}: nobody was answered for {}",
            table::time(gap.as_secs_f64())
        );
        puts.complain(what);
        self.gaps.0.push(gap.as_secs_f64());
        self.puts.add(puts);
    }
}

/// Puts before, while and after something is done: how long nobody was answered.
async fn one_move(
    asked: &[&Server],
    shape: Shape,
    moving: impl Future<Output = std::result::Result<(), crate::client::Failure>>,
) -> Result<(Duration, Latencies)> {
    let windows = Arc::new(Windows::new(2));
    let shared = Arc::clone(&windows);
    let mut load = Load::start(asked, shape, Request::Put, CONNECTIONS, shared).await?;
    sleep(BEFORE).await;
    windows.switch_to(1);
    let moved = moving.await;
    sleep(AFTER).await;
    let gap = windows.gap();
    windows.end();
    let mut all = load.join(asked[0]).await?;
    moved.map_err(|error| asked[0].blame(error))?;
    Ok((gap, all.swap_remove(1)))
}

fn print(samples: &BTreeMap<Peer, Vec<Sample>>) {
    println!("| | aspen, SQLite | etcd | ratio | to reach |");
    println!("|---|---|---|---|---|");
    let row = |what: &str, tell: fn(f64) -> String, least: f64, of: &dyn Fn(&Sample) -> f64| {
        let figure = |peer| {
            let runs = samples.get(&peer)?.iter().map(of).collect();
            Some(Runs(runs).median())
        };
        let [ours, theirs] = [Peer::Sqlite, Peer::Etcd].map(figure);
        let cell = |figure: Option<f64>| figure.map_or_else(String::new, tell);
        let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
        let reached = match ratio {
            _ if least == 0.0 => String::new(),
            Some(ratio) if ratio >= least => format!("at least {least} ×"),
            Some(_) => format!("at least {least} ×: **not reached**"),
            None => format!("at least {least} ×: not measured"),
        };
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        println!(
            "| {what} | {} | {} | {ratio} | {reached} |",
            cell(ours),
            cell(theirs)
        );
    };
    let phases: [(&str, f64, fn(&Sample) -> &Outcome); 3] = [
        ("durable puts through the leader", 1.3, |sample| {
            &sample.through_leader
        }),
        ("durable puts through a follower", 1.0, |sample| {
            &sample.through_follower
        }),
        ("linearizable gets through all nodes", 3.0, |sample| {
            &sample.gets
        }),
    ];
    for (what, least, outcome) in phases {
        let what = format!("**{what}**, a second");
        row(&what, table::rate, least, &|sample| outcome(sample).rate());
        row("p99", table::time, 0.0, &|sample| {
            outcome(sample).latencies.percentile(99.0)
        });
        row(
            "cores busy with the servers",
            table::fraction,
            0.0,
            &|sample| outcome(sample).server_cores,
        );
        row("failed", table::rate, 0.0, &|sample| {
            outcome(sample).latencies.failures as f64
        });
    }
    row("peak memory of one node", table::mib, 0.0, &|sample| {
        sample.memory
    });
}

fn print_moves(what: &str, moves: &Moves, most: Duration, none_fails: bool) {
    let gap = moves.gaps.most();
    let reached = gap <= most.as_secs_f64() && !(none_fails && moves.puts.failures > 0);
    let bound = match none_fails {
        true => format!("none fails, at most {}", table::time(most.as_secs_f64())),
        false => format!("at most {}", table::time(most.as_secs_f64())),
    };
    println!(
        "| {what} | {} | {} | {} | {} | {} (median {}) | {bound}{} |",
        moves.gaps.0.len(),
        table::thousands(moves.puts.count()),
        moves.puts.failures,
        table::time(moves.puts.percentile(100.0)),
        table::time(gap),
        table::time(moves.gaps.median()),
        if reached { "" } else { ": **not reached**" },
    );
}
