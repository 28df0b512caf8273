//! A cluster of real processes, and what can be done to it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value as Json;

use crate::clients::Addresses;
use crate::common::client::Client;
use crate::common::convert;
use crate::common::disk::Disk;
use crate::common::fixture::{Fixture, Scratch, scratch};
use crate::common::node::{Launch, Node, bare_node};
use crate::links::Links;
use crate::spaces::{self, Spaces};

/// After this long a cluster that can serve does.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take for a question about itself: some are paused.
const SHORT: Duration = Duration::from_millis(500);
/// Lines of a node's log that a failure shows.
const LAST_LINES: usize = 40;
/// Bytes of the log that stay, the least that a node can be told.
const LOG_KEEP: usize = 1 << 20;
/// What the real listener's address has added to its last number.
const BEHIND_RELAY: u64 = 100;

/// What is between the nodes.
enum Net {
    /// Relays on addresses of 127/8, the second and third part of which are these.
    Relays(Links, (u8, u8)),
    /// Routed packets.
    Spaces(Spaces),
}

/// Where a node is, and what it runs on.
pub(crate) struct Place {
    pub(crate) backend: &'static str,
    /// A file system of its own, where it has one.
    pub(crate) disk: Option<Disk>,
    pub(crate) environment: Vec<(String, String)>,
    /// Whether it was there when the cluster was formed.
    founds: bool,
    running: Option<Node>,
}

/// Nodes by id, from 1.
pub(crate) struct Site {
    dir: Scratch,
    net: Net,
    pub(crate) addresses: Addresses,
    pub(crate) places: BTreeMap<u64, Place>,
    /// The last id that was given out: none is used again.
    last: u64,
}

impl Site {
    /// Nodes with these backends, none of them running, that reach each other
    /// through relays.
    pub(crate) fn new(backends: &[&'static str]) -> Self {
        // 127/8 is large: whatever else runs has other addresses.
        let net = (rand::random::<u8>().max(1), rand::random());
        Self::on(Net::Relays(Links::new(), net), backends)
    }

    /// The same, each with an address and a cable of its own.
    pub(crate) fn in_spaces(backends: &[&'static str]) -> Self {
        Self::on(Net::Spaces(Spaces::default()), backends)
    }

    fn on(net: Net, backends: &[&'static str]) -> Self {
        let mut site = Self {
            dir: scratch(),
            net,
            addresses: Addresses::default(),
            places: BTreeMap::new(),
            last: 0,
        };
        for (id, backend) in (1..).zip(backends) {
            site.place(id, backend, true);
        }
        site
    }

    fn place(&mut self, id: u64, backend: &'static str, founds: bool) {
        let place = Place {
            backend,
            disk: None,
            environment: Vec::new(),
            founds,
            running: None,
        };
        self.places.insert(id, place);
        let (public, real) = (self.peer(id), self.peer_listen(id));
        match &mut self.net {
            Net::Relays(links, _) => links.relay(public, real),
            Net::Spaces(spaces) => spaces.add(),
        }
        self.last = id;
        self.addresses.write().unwrap().insert(id, self.http(id));
    }

    fn ip(&self, id: u64) -> Ipv4Addr {
        match &self.net {
            Net::Relays(_, (a, b)) => Ipv4Addr::new(127, *a, *b, id.try_into().unwrap()),
            Net::Spaces(_) => spaces::ip(id),
        }
    }

    /// Where other nodes reach it.
    fn peer(&self, id: u64) -> SocketAddr {
        (self.ip(id), 7000).into()
    }

    /// Where it listens for them.
    fn peer_listen(&self, id: u64) -> SocketAddr {
        match &self.net {
            Net::Relays(..) => (self.ip(id + BEHIND_RELAY), 7000).into(),
            Net::Spaces(_) => self.peer(id),
        }
    }

    pub(crate) fn http(&self, id: u64) -> SocketAddr {
        (self.ip(id), 8080).into()
    }

    pub(crate) fn data(&self, id: u64) -> PathBuf {
        match &self.places[&id].disk {
            Some(disk) => disk.path().join("data"),
            None => self.dir.join(format!("data-{id}")),
        }
    }

    pub(crate) fn log(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    fn launch(&self, id: u64) -> Launch {
        let place = &self.places[&id];
        // Others are told where the members are by whoever adds them.
        let founders = self
            .places
            .iter()
            .filter(|(_, other)| place.founds && other.founds);
        let members = founders.map(|(id, _)| {
            let (peer, http) = (self.peer(*id), self.http(*id));
            format!("{id} = {{ peer = \"{peer}\", http = \"{http}\" }}\n")
        });
        let text = format!(
            "[node]\nid = {id}\ndata_dir = \"{}\"\n[http]\nlisten = \"{}\"\n\
             insecure = true\n[cluster]\nstorage_backend = \"{}\"\npeer_listen = \"{}\"\n\
             secret = \"known-to-all-nodes-of-this-cluster\"\n{}[cluster.initial_members]\n{}\
             [raft]\nlog_keep = {LOG_KEEP}\n\
             [log]\nfile = \"{}\"\n",
            self.data(id).display(),
            self.http(id),
            place.backend,
            self.peer_listen(id),
            if place.founds { "" } else { "join = true\n" },
            members.collect::<String>(),
            self.log(id).display(),
        );
        let config = self.dir.join(format!("{id}.toml"));
        std::fs::write(&config, text).unwrap();
        let mut launch = bare_node().config(&config);
        for (name, value) in &place.environment {
            launch = launch.env(name, value);
        }
        match &self.net {
            Net::Relays(..) => launch,
            Net::Spaces(spaces) => {
                let through = spaces.through(id);
                launch.through(&through.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }

    /// Lets nothing through from one node to another.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        match &self.net {
            Net::Relays(links, _) => links.cut(from, to),
            Net::Spaces(spaces) => spaces.cut(from, to),
        }
    }

    /// Makes the way from one node to another slow; in namespaces, that of all to it.
    pub(crate) fn slow(&self, from: u64, to: u64, delay: Duration) {
        match &self.net {
            Net::Relays(links, _) => links.slow(from, to, delay),
            Net::Spaces(spaces) => spaces.narrow(to),
        }
    }

    /// Makes all ways as they were. Where connections break, what was on its way is lost.
    pub(crate) fn heal(&self, connections_break: bool) {
        match &self.net {
            Net::Relays(links, _) => links.heal(connections_break),
            Net::Spaces(spaces) => spaces.heal(),
        }
    }

    /// Pulls a node's cable for a while.
    pub(crate) fn unplug(&self, id: u64, time: Duration) {
        match &self.net {
            Net::Relays(..) => panic!("there is no cable"),
            Net::Spaces(spaces) => spaces.unplug(id, time),
        }
    }

    /// Starts all of them, and waits until they serve.
    pub(crate) fn up(mut self) -> Self {
        self.start_all();
        self.until_ready();
        self
    }

    /// Gives every node the same data; before the first start.
    pub(crate) fn with_data(self, fixture: &Fixture) -> Self {
        let unpacked = fixture.unpack();
        for id in self.ids() {
            let data = self.data(id);
            std::fs::create_dir(&data).unwrap();
            for entry in std::fs::read_dir(&*unpacked).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), data.join(entry.file_name())).unwrap();
            }
        }
        self
    }

    /// Gives every node a disk of its own; before the first start.
    pub(crate) fn with_disks(mut self, bytes: u64) -> Self {
        for place in self.places.values_mut() {
            // With a journal or without: they fill up differently.
            place.disk = Some(match place.backend {
                "redb" => Disk::tmpfs(bytes),
                _ => Disk::ext4(bytes),
            });
        }
        self
    }

    pub(crate) fn disk(&self, id: u64) -> &Disk {
        self.places[&id].disk.as_ref().unwrap()
    }

    /// Gives every node a clock of its own, made by `library`; before the first start.
    pub(crate) fn with_clocks(mut self, library: &Path) -> Self {
        for id in self.ids() {
            let clock = self.clock(id).to_str().unwrap().to_owned();
            let library = library.to_str().unwrap().to_owned();
            self.places.get_mut(&id).unwrap().environment = [
                ("LD_PRELOAD", library),
                ("FAKETIME_TIMESTAMP_FILE", clock),
                ("FAKETIME_CACHE_DURATION", "1".into()),
                // Nobody can set the clock that only counts.
                ("DONT_FAKE_MONOTONIC", "1".into()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
            self.set_clock(id, 0);
        }
        self
    }

    fn clock(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.clock"))
    }

    /// Sets a node's clock to so many seconds from now.
    pub(crate) fn set_clock(&self, id: u64, seconds: i64) {
        let clock = self.clock(id);
        let new = clock.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(new, clock).unwrap();
    }

    /// Asks a node for a new leader. It may be refused, as all of this is trouble.
    pub(crate) fn lead(&self, asked: u64, next: u64) {
        let body = serde_json::json!({ "id": next });
        let mut client = Client::patient(self.http(asked), PATIENCE);
        if let Ok(answer) = client.ask("POST", "/admin/leader", Some(&body)) {
            assert!(![404, 405].contains(&answer.status), "{answer:?}");
        }
    }

    /// Makes a new node, and a voter of it, whoever has to be asked for that.
    pub(crate) fn add_voter(&mut self) -> u64 {
        let id = self.last + 1;
        self.place(id, "sqlite", false);
        self.start(id);
        let (peer, role) = (self.peer(id).to_string(), "voter");
        let body = serde_json::json!({ "id": id, "peer": peer, "role": role });
        self.until_changed("POST", "/admin/members", Some(&body), &[200]);
        id
    }

    /// Removes a member, which may run or not.
    pub(crate) fn remove_member(&mut self, id: u64) {
        // Also when the answer to an earlier try was lost.
        let target = format!("/admin/members/{id}");
        self.until_changed("DELETE", &target, None, &[200, 404]);
    }

    /// Asks one node after the other until the members are as they shall be.
    fn until_changed(&self, method: &str, target: &str, body: Option<&Json>, done: &[u16]) {
        let mut nodes = self.ids().into_iter().cycle();
        eventually(&format!("{method} {target} is never done"), || {
            let mut client = Client::patient(self.http(nodes.next().unwrap()), PATIENCE);
            let answer = client.ask(method, target, body).ok()?;
            let is_done = done.contains(&answer.status);
            assert!(
                is_done || [409, 503, 504].contains(&answer.status),
                "{answer:?}"
            );
            is_done.then_some(())
        });
    }

    /// Gives up the place of a node that is no member any more.
    pub(crate) fn forget(&mut self, id: u64) {
        self.addresses.write().unwrap().remove(&id);
        if self.is_running(id) {
            self.kill(id);
        }
        self.places.remove(&id);
    }

    /// Has a node that is stopped begin with the other engine: what it holds is
    /// brought to redb by hand, and to SQLite by its next start.
    pub(crate) fn change_engine(&mut self, id: u64) {
        let data = self.data(id);
        let place = self.places.get_mut(&id).unwrap();
        assert!(place.running.is_none());
        place.backend = match place.backend {
            "redb" => "sqlite",
            _ => "redb",
        };
        if place.backend == "redb" {
            let (sqlite, redb) = (
                data.join("state-machine.db"),
                data.join("state-machine.redb"),
            );
            let run = convert(&sqlite, &redb, &["--full-verify"]);
            assert_eq!(run.code, 0, "{run:?}");
            for suffix in ["", "-wal", "-shm"] {
                // What was closed in order has the first one only.
                let _ = std::fs::remove_file(data.join(format!("state-machine.db{suffix}")));
            }
        }
    }

    /// Starts a node; it is ready when this returns, whoever else is.
    pub(crate) fn start(&mut self, id: u64) {
        let mut node = self.launch(id).start();
        node.ready();
        self.places.get_mut(&id).unwrap().running = Some(node);
    }

    pub(crate) fn start_all(&mut self) {
        for id in self.ids() {
            if !self.is_running(id) {
                self.start(id);
            }
        }
    }

    pub(crate) fn kill(&mut self, id: u64) {
        let node = self.places.get_mut(&id).unwrap().running.take().unwrap();
        node.signal(Signal::SIGKILL);
        node.end().killed();
    }

    /// Stops a node in order.
    pub(crate) fn stop(&mut self, id: u64) {
        let node = self.places.get_mut(&id).unwrap().running.take().unwrap();
        node.stop().with(0);
    }

    pub(crate) fn signal(&self, id: u64, signal: Signal) {
        self.places[&id].running.as_ref().unwrap().signal(signal);
    }

    /// Has a node do nothing for a while, from now on.
    pub(crate) fn pause_for(&self, id: u64, time: Duration) -> JoinHandle<()> {
        let pid = self.places[&id].running.as_ref().unwrap().pid();
        kill(pid, Signal::SIGSTOP).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(time);
            kill(pid, Signal::SIGCONT).unwrap();
        })
    }

    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.places[&id].running.is_some()
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.places.keys().copied().collect()
    }

    /// What a node says of itself, if it does.
    pub(crate) fn status(&self, id: u64) -> Option<Json> {
        let answer = Client::patient(self.http(id), SHORT).ask("GET", "/status", None);
        answer.ok().map(|answer| answer.json())
    }

    /// A node that says that it leads.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |id: &u64| {
            self.status(*id)
                .is_some_and(|status| status["role"] == "leader")
        };
        self.ids().into_iter().find(leads)
    }

    /// Waits until every node serves.
    pub(crate) fn until_ready(&self) {
        for id in self.ids() {
            let ready = || Client::patient(self.http(id), PATIENCE).ask("GET", "/readyz", None);
            eventually(&format!("node {id} is never ready"), || {
                ready()
                    .is_ok_and(|answer| answer.status == 200)
                    .then_some(())
            });
        }
    }

    pub(crate) fn last_log_index(&self, id: u64) -> u64 {
        let index = || self.status(id)?["last_log_index"].as_u64();
        eventually(&format!("node {id} never says what it has"), index)
    }

    /// Writes until no node that runs has the entry at `index` any longer.
    pub(crate) fn purge_beyond(&self, index: u64) {
        let running: Vec<_> = self.ids();
        let running = running.into_iter().filter(|id| self.is_running(*id));
        let running: Vec<_> = running.collect();
        let value = "x".repeat(LOG_KEEP / 16);
        let pairs =
            (0..8).map(|n| serde_json::json!({ "key": format!("filler/{n}"), "value": value }));
        let body = serde_json::json!({ "set": pairs.collect::<Vec<_>>(), "delete": [] });
        let mut client = Client::patient(self.http(running[0]), PATIENCE);
        eventually("what a node lacks is never purged", || {
            // Whether it is done does not matter: there will be another.
            let _ = client.ask("POST", "/api/kv", Some(&body));
            let purged = |id: &u64| self.status(*id)?["last_purged"].as_u64();
            let purged = running
                .iter()
                .all(|id| purged(id).is_some_and(|to| to > index));
            purged.then_some(())
        });
    }
}

/// Waits until there is something. Nothing is measured: the bound only turns a
/// hang into a failure.
pub(crate) fn eventually<T>(complaint: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "{complaint}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Site {
    /// The logs go with the directory: a failure shows how they end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in self.ids() {
                let log = std::fs::read_to_string(self.log(id)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
                println!("node {id} logged last:\n{}", last.join("\n"));
            }
        }
    }
}
