//! How fast a node serves, beside etcd.
//!
//! ```text
//! cargo run --release --manifest-path benches/serving/Cargo.toml
//!     --scenario compare | cluster | join | disturb | start | trace     may be repeated, default all
//!     --quick           seconds instead of minutes, to try it out
//!     --rounds R        of the comparison, default 3
//!     --peers P,P       of sqlite, redb and etcd
//!     --keys N --value-bytes M
//!     --node FILE       a node that is built; else a release build is made
//!     --dir DIR         where the servers' data lies, default target/bench-data
//!     --driver-threads N
//! ```
//!
//! Every server is a process of its own on the loopback and a real disk, and
//! one at a time runs. One runtime drives all of them in the same closed loops
//! (`load.rs`) with the leanest client of each protocol (`client/`). Every
//! answer is checked, and no time of a failed request is kept.

mod client;
mod cluster;
#[path = "../../common/mod.rs"]
mod common;
mod compare;
mod data;
mod disturb;
mod join;
mod load;
mod server;
mod setting;
mod start;
mod table;
mod trace;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

use common::Result;
use data::LEAST_VALUE_BYTES;
use server::{Peer, Programs};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    Compare,
    Cluster,
    Join,
    Disturb,
    Start,
    Trace,
}

/// How fast a node serves, beside etcd.
#[derive(Parser)]
struct Arguments {
    /// What is measured; may be repeated, default all.
    #[arg(long)]
    scenario: Vec<Scenario>,
    /// Seconds instead of minutes, to try it out.
    #[arg(long)]
    quick: bool,
    /// Rounds of the comparison.
    #[arg(long)]
    rounds: Option<usize>,
    /// What is compared.
    #[arg(long, value_delimiter = ',', default_value = "sqlite,redb,etcd")]
    peers: Vec<Peer>,
    #[arg(long)]
    keys: Option<u64>,
    #[arg(long)]
    value_bytes: Option<usize>,
    /// A node that is built; else a release build is made.
    #[arg(long)]
    node: Option<PathBuf>,
    /// Where the servers' data lies.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Threads that drive the servers; what they use, the servers lack.
    #[arg(long, default_value_t = 1)]
    driver_threads: usize,
}

/// What every scenario needs.
struct Bench {
    programs: Programs,
    peers: Vec<Peer>,
    dir: PathBuf,
    quick: bool,
    rounds: Option<usize>,
    keys: Option<u64>,
    value_bytes: Option<usize>,
}

impl Bench {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    fn empty_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

fn main() -> ExitCode {
    // As text: it holds lines of a server's output.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    let scenarios = match arguments.scenario.is_empty() {
        true => vec![
            Scenario::Compare,
            Scenario::Cluster,
            Scenario::Join,
            Scenario::Disturb,
            Scenario::Start,
            Scenario::Trace,
        ],
        false => arguments.scenario,
    };
    if arguments
        .value_bytes
        .is_some_and(|bytes| bytes < LEAST_VALUE_BYTES)
    {
        return Err(format!("a value has at least {LEAST_VALUE_BYTES} bytes").into());
    }
    if arguments.keys == Some(0) || arguments.rounds == Some(0) {
        return Err("at least one key and one round are needed".into());
    }
    let dir = arguments
        .dir
        .unwrap_or_else(|| root().join("target/bench-data/serving"));
    std::fs::create_dir_all(&dir)?;
    let dir = dir.canonicalize()?;
    setting::file_system(&dir)?;

    let (mut peers, etcd) = (arguments.peers, find("etcd"));
    if etcd.is_none() && peers.contains(&Peer::Etcd) {
        eprintln!(
            "Without the peer: there is no etcd in PATH (Debian: apt-get install etcd-server)."
        );
        peers.retain(|peer| *peer != Peer::Etcd);
    }
    let node = match arguments.node {
        Some(node) => node.canonicalize()?,
        None => build()?,
    };
    let bench = Bench {
        programs: Programs { node, etcd },
        peers,
        dir,
        quick: arguments.quick,
        rounds: arguments.rounds,
        keys: arguments.keys,
        value_bytes: arguments.value_bytes,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.driver_threads)
        .enable_all()
        .build()?;
    for scenario in scenarios {
        match scenario {
            Scenario::Compare => runtime.block_on(compare::run(&bench))?,
            Scenario::Cluster => runtime.block_on(cluster::run(&bench))?,
            Scenario::Join => runtime.block_on(join::run(&bench))?,
            Scenario::Disturb => runtime.block_on(disturb::run(&bench))?,
            Scenario::Start => runtime.block_on(start::run(&bench))?,
            Scenario::Trace => runtime.block_on(trace::run(&bench))?,
        }
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds the node as it is released, so that no older one is measured.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| root().join("target"));
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--bin", "aspen-node"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root())
        .status()?;
    match status.success() {
        true => Ok(target.join("release/aspen-node").canonicalize()?),
        false => Err(format!("building the node failed: {status}").into()),
    }
}

/// The program of that name in `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    candidates.find(|candidate| candidate.is_file())
}

/// Bytes of the files below `dir`.
fn size_of(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        bytes += match path.is_dir() {
            true => size_of(&path)?,
            false => path.metadata()?.len(),
        };
    }
    Ok(bytes)
}
