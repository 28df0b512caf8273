//! Data directories that a start has work with, and starts that are interrupted.

use std::collections::BTreeSet;
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
    /// Backups that were there before.
    pub(crate) known: BTreeSet<String>,
}

/// One copy of a scenario, gone when dropped.
pub(crate) struct Copy<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) root: Scratch,
}

impl Scenario {
    /// The state machine of `fixture` of `set`, for a node with `backend`.
    pub(crate) fn new(set: &str, name: &str, backend: &'static str) -> Self {
        let fixture = fixture::one(set, name);
        let template = scratch();
        std::fs::create_dir(template.join("etc")).unwrap();
        std::fs::write(template.join("etc/config.toml"), CONFIG).unwrap();
        copy_all(&fixture.unpack(), &template.join("data"));
        let source = read::sha256(&template.join("data/state-machine.redb"));
        Self {
            template,
            backend,
            state: fixture.manifest.state.unwrap(),
            source,
            known: BTreeSet::new(),
        }
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

    /// A fresh copy.
    pub(crate) fn copy(&self) -> Copy<'_> {
        let root = scratch();
        for part in ["data", "etc"] {
            copy_all(&self.template.join(part), &root.join(part));
        }
        Copy {
            scenario: self,
            root,
        }
    }
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
        node_on(&self.data())
            .config(&self.config())
            .env("ASPEN_STORAGE_BACKEND", self.scenario.backend)
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

    pub(crate) fn outcome(&self) -> Outcome {
        outcome(&self.root, &self.scenario.known)
    }
}
