//! Data directories that a start has work with, and starts that are interrupted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fixture::{self, Scratch, State, scratch};
use super::node::{Launch, node_on};
use super::outcome::{Outcome, outcome};
use super::read;

/// What the operator's configuration says, with room for a line.
const CONFIG: &str = "\
# Kept by hand.
[cluster]
# Change from 'redb' to 'sqlite'
storage_backend = \"redb\"  # the old one

[migration]
backup = \"copy\"  # or \"link\"
";

/// A directory `data` and a configuration `etc/config.toml`, as found by a
/// start that is told `ASPEN_STORAGE_BACKEND`.
pub(crate) struct Scenario {
    template: Scratch,
    backend: &'static str,
    /// What is in the source.
    pub(crate) state: State,
    /// The source's SHA-256.
    pub(crate) source: String,
    /// The SHA-256 of the legacy Raft log, where there is one, and of its entries.
    pub(crate) log: Option<[String; 2]>,
    /// Backups that were there before.
    pub(crate) known: BTreeSet<String>,
}

/// One copy of a scenario.
pub(crate) struct Copy<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) root: PathBuf,
    /// Gone with it, if it is one of ours.
    scratch: Option<Scratch>,
}

impl Scenario {
    /// The state machine of `fixture` of `set`, for a node with `backend`.
    pub(crate) fn new(set: &str, name: &str, backend: &'static str) -> Self {
        let fixture = fixture::one(set, name);
        Self::of(&fixture.unpack(), fixture.manifest.state.unwrap(), backend)
    }

    /// The data of a legacy node that is alone in its cluster and therefore
    /// serves everything: 1234 rows, of which entry 1234 was the last.
    pub(crate) fn alone(backend: &'static str) -> Self {
        Self::new("golden", "alone-redb-2.6-clean", backend)
    }

    fn of(data: &Path, state: State, backend: &'static str) -> Self {
        let template = scratch();
        std::fs::create_dir(template.join("etc")).unwrap();
        std::fs::write(template.join("etc/config.toml"), CONFIG).unwrap();
        copy_all(data, &template.join("data"));
        let source = read::sha256(&template.join("data/state-machine.redb"));
        let log = template.join("data/raft-log.redb");
        let log = log
            .exists()
            .then(|| [read::sha256(&log), entries_sha256(&log)]);
        Self {
            template,
            backend,
            state,
            source,
            log,
            known: BTreeSet::new(),
        }
    }

    /// A state machine in redb format 3 with these rows.
    pub(crate) fn of_rows(rows: &[(String, String)]) -> Self {
        let scratch = scratch();
        write_redb(&scratch.join("state-machine.redb"), rows);
        let bytes = |(key, value): &(String, String)| (key.clone().into(), value.clone().into());
        let table: read::Table = rows.iter().map(bytes).collect();
        let state = State {
            rows: table.len() as u64,
            rows_sha256: read::rows_sha256(&table),
            last_applied: None,
            membership: None,
            listed_rows: None,
        };
        Self::of(&scratch, state, "sqlite")
    }

    /// Configures hard links for backups.
    pub(crate) fn with_links(self) -> Self {
        let text = CONFIG.replace("\"copy\"", "\"link\"");
        std::fs::write(self.template.join("etc/config.toml"), text).unwrap();
        self
    }

    /// Has the operator do `what` in the data directory before.
    pub(crate) fn after(mut self, what: impl FnOnce(&Path)) -> Self {
        let dir = self.template.join("data");
        what(&dir);
        self.known = super::listing(&dir).into_iter().collect();
        self
    }

    /// A fresh copy, gone when dropped.
    pub(crate) fn copy(&self) -> Copy<'_> {
        let scratch = scratch();
        let mut copy = self.copy_to(&scratch);
        copy.scratch = Some(scratch);
        copy
    }

    /// A fresh copy in `root`, in place of what a scenario has there.
    pub(crate) fn copy_to(&self, root: &Path) -> Copy<'_> {
        for part in ["data", "etc"] {
            if root.join(part).exists() {
                std::fs::remove_dir_all(root.join(part)).unwrap();
            }
            copy_all(&self.template.join(part), &root.join(part));
        }
        Copy {
            scenario: self,
            root: root.to_owned(),
            scratch: None,
        }
    }
}

/// Of a copy: opening it marks it in use.
fn entries_sha256(log: &Path) -> String {
    let scratch = scratch();
    let copy = scratch.join("raft-log.redb");
    std::fs::copy(log, &copy).unwrap();
    read::rows_sha256(&read::legacy_log_tables(&copy).0)
}

fn write_redb(path: &Path, rows: &[(String, String)]) {
    let database = redb::Database::create(path).unwrap();
    let write = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, &[u8]>::new("sm_meta");
    write.open_table(meta).unwrap();
    let kv = redb::TableDefinition::<&str, &str>::new("sm_kv");
    let mut table = write.open_table(kv).unwrap();
    for (key, value) in rows {
        table.insert(key.as_str(), value.as_str()).unwrap();
    }
    drop(table);
    write.commit().unwrap();
}

/// Hard links, times and modes included.
fn copy_all(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-aT").arg(from).arg(to).status();
    assert!(status.unwrap().success(), "cp {from:?} {to:?}");
}

impl Copy<'_> {
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.root.join("etc/config.toml")
    }

    /// A start on it.
    pub(crate) fn launch(&self) -> Launch {
        self.launch_with(self.scenario.backend)
    }

    /// A start on it with another backend.
    pub(crate) fn launch_with(&self, backend: &str) -> Launch {
        node_on(&self.data())
            .config(&self.config())
            .env("ASPEN_STORAGE_BACKEND", backend)
    }

    /// A start that takes so many milliseconds for each step of its migration and
    /// listens at `address` meanwhile.
    pub(crate) fn launch_slowly(&self, address: std::net::SocketAddr, step: u32) -> Launch {
        super::node::bare_node()
            .config(&self.config())
            .env("ASPEN_DATA_DIR", self.data())
            .env("ASPEN_HTTP_ADDR", address.to_string())
            .env("ASPEN_STORAGE_BACKEND", self.scenario.backend)
            .env("ASPEN_TEST_SLOW_MS_PER_STEP", step.to_string())
    }

    /// A start that dies at the `n`-th durable operation. False where it was
    /// ready after fewer, and was then stopped: which thread comes first
    /// decides what a death has left to do.
    pub(crate) fn dies_at(&self, n: usize) -> bool {
        let launch = self.launch().env("ASPEN_TEST_CRASH_AT", n.to_string());
        let mut node = launch.start();
        if node.says("READY=1") {
            node.stop().with(0);
            return false;
        }
        node.end().killed();
        true
    }

    /// A start that nothing disturbs, and a clean stop.
    pub(crate) fn complete(&self) -> Outcome {
        self.launch().start().ready_then_stop();
        self.outcome()
    }

    /// The same, and the durable operations that it took.
    pub(crate) fn complete_traced(&self) -> (Outcome, Vec<String>) {
        let trace = self.root.join("trace");
        let launch = self.launch().env("ASPEN_TEST_CRASH_TRACE", &trace);
        launch.start().ready_then_stop();
        let outcome = self.outcome();
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        std::fs::remove_file(&trace).unwrap_or_default();
        let operations = text.lines().map(|line| self.operation(line)).collect();
        (outcome, operations)
    }

    /// Operation and path of a line of a trace, without what differs between runs.
    fn operation(&self, line: &str) -> String {
        let (_, operation) = line.split_once(' ').unwrap();
        super::outcome::timeless(operation, &self.root, &self.scenario.known)
    }

    /// Waits until a start has made the file that it copies to.
    pub(crate) fn wait_until_rows_are_copied(&self) {
        let made = || {
            let names = super::listing(&self.data());
            let copies = ["state-machine.db.aspen-tmp", "state-machine.redb.aspen-tmp"];
            names.iter().any(|name| copies.contains(&name.as_str()))
        };
        while !made() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    pub(crate) fn outcome(&self) -> Outcome {
        outcome(&self.root, &self.scenario.known)
    }

    /// Name and SHA-256 of everything in the directories of the data and the
    /// configuration, but for the lock file: it may come, and never goes.
    pub(crate) fn everything(&self) -> [BTreeMap<String, String>; 2] {
        let mut data = super::contents(&self.data());
        data.remove("aspen.lock");
        [data, super::contents(&self.root.join("etc"))]
    }
}
