//! The servers under test: real processes on the loopback, each with a fresh
//! directory unless told otherwise, gone when dropped.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::Result;

/// How long a server may take to end.
const END_WITHIN: Duration = Duration::from_secs(120);
/// What the kernel counts processor time in, for every program.
const TICKS_PER_SECOND: f64 = 100.0;
/// Bytes of a server's output that are shown when it fails.
const LAST_WORDS: usize = 2_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Peer {
    Sqlite,
    Redb,
    Etcd,
}

impl Peer {
    /// As the tables call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "aspen, SQLite",
            Self::Redb => "aspen, redb",
            Self::Etcd => "etcd",
        }
    }

    /// The program and its arguments.
    fn command(self, programs: &Programs, dir: &Path, place: &Place) -> Result<Vec<OsString>> {
        let backend = match self {
            Self::Sqlite => "sqlite",
            Self::Redb => "redb",
            Self::Etcd => return etcd(programs, dir, place),
        };
        let config = dir.join("config.toml");
        let data = dir.join("data");
        let members = place.members.iter().map(|(id, ports)| {
            let Ports { client, peer } = ports;
            format!("{id} = {{ peer = \"127.0.0.1:{peer}\", http = \"127.0.0.1:{client}\" }}\n")
        });
        let Ports { client, peer } = place.own()?;
        let text = format!(
            "[node]\nid = {}\ndata_dir = \"{}\"\n\n[http]\nlisten = \"127.0.0.1:{client}\"\n\n\
             [cluster]\nstorage_backend = \"{backend}\"\npeer_listen = \"127.0.0.1:{peer}\"\n\n\
             [cluster.initial_members]\n{}",
            place.id,
            data.display(),
            members.collect::<String>(),
        );
        std::fs::write(&config, text)?;
        Ok(vec![
            programs.node.clone().into(),
            "--config".into(),
            config.into(),
        ])
    }
}

fn etcd(programs: &Programs, dir: &Path, place: &Place) -> Result<Vec<OsString>> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let own = place.own()?;
    let (client, peer) = (url(own.client), url(own.peer));
    let mut command: Vec<OsString> = vec![
        programs.etcd.clone().ok_or("etcd is not installed")?.into(),
        "--data-dir".into(),
        dir.join("data").into(),
    ];
    let members = place.members.iter();
    let members = members.map(|(id, ports)| format!("node-{id}={}", url(ports.peer)));
    let options = [
        ["--name", &format!("node-{}", place.id)],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &members.collect::<Vec<_>>().join(",")],
    ];
    command.extend(options.as_flattened().iter().map(OsString::from));
    Ok(command)
}

/// Where one node listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    client: u16,
    peer: u16,
}

/// One node's place in its cluster.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) id: u64,
    members: BTreeMap<u64, Ports>,
}

impl Place {
    /// The places of a cluster of so many.
    pub(crate) fn of(count: u64) -> Result<Vec<Self>> {
        let mut members = BTreeMap::new();
        for id in 1..=count {
            let (client, peer) = (free_port()?, free_port()?);
            members.insert(id, Ports { client, peer });
        }
        let place = |id| Self {
            id,
            members: members.clone(),
        };
        Ok((1..=count).map(place).collect())
    }

    fn own(&self) -> Result<Ports> {
        let own = self.members.get(&self.id).copied();
        Ok(own.ok_or("a node is no member of its cluster")?)
    }
}

/// Where the programs are.
pub(crate) struct Programs {
    pub(crate) node: PathBuf,
    pub(crate) etcd: Option<PathBuf>,
}

/// Memory of a process in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// The most it ever had, mapped files included.
    pub(crate) peak: f64,
    /// What it has now of its own, mapped files not included.
    pub(crate) anonymous: f64,
}

impl Memory {
    /// The more of what two processes of a server had.
    pub(crate) fn add(&mut self, other: Self) {
        self.peak = self.peak.max(other.peak);
        self.anonymous = self.anonymous.max(other.anonymous);
    }
}

/// How a server is started beyond the ordinary.
#[derive(Default)]
pub(crate) struct Wrapping {
    /// A program and its arguments that runs the server in its own process.
    pub(crate) prefix: Vec<OsString>,
    /// The socket that is told when it is ready.
    pub(crate) notify: Option<PathBuf>,
}

/// A running server.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) port: u16,
    child: Child,
    output: PathBuf,
}

impl Server {
    /// Starts `peer` on what is in `dir`, a cluster of its own.
    pub(crate) fn start(programs: &Programs, peer: Peer, dir: &Path) -> Result<Self> {
        Self::start_wrapped(programs, peer, dir, &Wrapping::default())
    }

    /// The same, differently.
    pub(crate) fn start_wrapped(
        programs: &Programs,
        peer: Peer,
        dir: &Path,
        wrapping: &Wrapping,
    ) -> Result<Self> {
        let places = Place::of(1)?;
        Self::start_at(programs, peer, dir, wrapping, &places[0])
    }

    /// Starts a node of a cluster.
    pub(crate) fn start_at(
        programs: &Programs,
        peer: Peer,
        dir: &Path,
        wrapping: &Wrapping,
        place: &Place,
    ) -> Result<Self> {
        let port = place.own()?.client;
        let mut words = wrapping.prefix.clone();
        words.extend(peer.command(programs, dir, place)?);
        let output = dir.join("output");
        let file = File::options().create(true).append(true).open(&output)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(dir);
        // What the caller's environment says is for other nodes.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("ASPEN_") || text.starts_with("ETCD_") || text == "NOTIFY_SOCKET" {
                command.env_remove(&name);
            }
        }
        if let Some(socket) = &wrapping.notify {
            command.env("NOTIFY_SOCKET", socket);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        let child = command.stderr(file).spawn();
        let child = child.map_err(|error| format!("{}: {error}", words[0].display()))?;
        Ok(Self {
            peer,
            port,
            child,
            output,
        })
    }

    /// Memory under the load so far.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = std::fs::read_to_string(self.proc("status"))?;
        let mib = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(kib.ok_or(format!("no {name}"))?.parse::<f64>()? / 1024.0)
        };
        Ok(Memory {
            peak: mib("VmHWM:")?,
            anonymous: mib("RssAnon:")?,
        })
    }

    /// Processor time of all its threads so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu(&self.proc("stat"))
    }

    /// Ends it as an operator would.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait()?;
        // etcd ends by the signal that it was sent.
        if status.success() || self.peer == Peer::Etcd {
            return Ok(());
        }
        Err(format!(
            "{} ended with {status}:\n{}",
            self.peer.name(),
            self.output()
        )
        .into())
    }

    /// Ends it without a chance to write anything.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().map(drop)
    }

    /// Adds to an error what the server said last.
    pub(crate) fn blame(&self, error: impl std::fmt::Display) -> String {
        format!("{}: {error}\n{}", self.peer.name(), self.output())
    }

    fn output(&self) -> String {
        let text = std::fs::read(&self.output).unwrap_or_default();
        let last = &text[text.len().saturating_sub(LAST_WORDS)..];
        String::from_utf8_lossy(last).into_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).map_err(|error| self.blame(format!("is gone: {error}")).into())
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let began = Instant::now();
        while began.elapsed() < END_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(self.blame("does not end").into())
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that a `stat` of `/proc` tells, in seconds.
pub(crate) fn cpu(stat: &Path) -> Result<f64> {
    let stat = std::fs::read_to_string(stat)?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

/// Processor time of the whole machine that was not idle, in seconds; what its
/// host took away counts as used.
pub(crate) fn machine_cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        // What guests use is part of what users do.
        [user, nice, system, _idle, _io, irq, soft, stolen, ..] => {
            Ok((user + nice + system + irq + soft + stolen) / TICKS_PER_SECOND)
        }
        _ => Err("/proc/stat has fewer fields than expected".into()),
    }
}

/// A port of the loopback that nobody uses, most likely for some time yet.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
