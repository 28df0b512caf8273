//! An operator who follows the guide: a directory as the guide's examples have
//! it, and a shell that is given the guide's commands as they stand there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::fixture::{self, Scratch, State, scratch};
use super::node::{Launch, NODE, bare_node, free_address};
use super::{MIGRATE, Run, client, finished};

/// After so long a node hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the guide's examples name, and what stands for it here. Only these
/// differ: a port that no other test has, and files that nobody else has.
const PORT: &str = "localhost:8080";
const LOG: &str = "/var/log/aspen/node.log";
const BACKUPS: &str = "/backup/aspen/";

/// `config.toml` and `data/node-1`, with the data of a legacy node that is
/// alone in its cluster.
pub(crate) struct Operator {
    root: Scratch,
    address: SocketAddr,
    /// What the legacy state machine holds.
    pub(crate) state: State,
}

impl Operator {
    pub(crate) fn new() -> Self {
        let fixture = fixture::one("golden", "alone-redb-2.6-clean");
        let root = scratch();
        for dir in ["data", "bin", "log", "backup"] {
            std::fs::create_dir(root.join(dir)).unwrap();
        }
        let found = fixture.unpack();
        let mut copy = Command::new("cp");
        copy.arg("-aT").arg(&*found).arg(root.join("data/node-1"));
        assert!(copy.status().unwrap().success());
        for program in [NODE, MIGRATE] {
            let name = Path::new(program).file_name().unwrap();
            std::os::unix::fs::symlink(program, root.join("bin").join(name)).unwrap();
        }
        let address = free_address();
        let config = format!(
            "# config.toml\n[cluster]\n# Change from 'redb' to 'sqlite'\nstorage_backend = \"redb\"\n\n\
             [http]\nlisten = \"{address}\"\n\n[log]\nfile = \"{}\"\n",
            root.join("log/node.log").display()
        );
        std::fs::write(root.join("config.toml"), config).unwrap();
        Self {
            root,
            address,
            state: fixture.manifest.state.unwrap(),
        }
    }

    /// Where the API is once a node runs.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data/node-1")
    }

    /// `aspen-node --config config.toml`, as the guide starts it.
    pub(crate) fn starts(&self) -> Launch {
        bare_node()
            .arguments(["--config", "config.toml"])
            .cwd(&self.root)
    }

    /// Has a shell run a command of the guide in the directory above `data`.
    pub(crate) fn runs(&self, command: &str) -> Run {
        let port = format!("localhost:{}", self.address.port());
        let log = self.path("log/node.log").display().to_string();
        let here = command.replace(PORT, &port).replace(LOG, &log);
        let here = here.replace(BACKUPS, "backup/");
        let programs = [
            &self.path("bin").display().to_string(),
            &std::env::var("PATH").unwrap(),
        ];
        let mut shell = Command::new("bash");
        shell.args(["-c", &here]).current_dir(&*self.root);
        shell.env("PATH", programs.map(String::as_str).join(":"));
        // Nobody's ~/.curlrc and ~/.sqliterc have a say.
        shell.env("HOME", "/nonexistent");
        finished(&shell.output().unwrap())
    }

    /// The same; it must succeed. What it printed.
    pub(crate) fn types(&self, command: &str) -> String {
        let run = self.runs(command);
        assert_eq!(run.code, 0, "{command}: {run:?}");
        run.out
    }

    /// Types a `curl` of the guide, or asks the same without curl where there is none.
    pub(crate) fn curls(&self, command: &str, method: &str, target: &str, body: &str) -> String {
        if has("curl") {
            return self.types(command);
        }
        assert!(!super::all_tests_required(), "curl is needed");
        let body = (!body.is_empty()).then(|| serde_json::from_str(body).unwrap());
        client::ask(self.address, method, target, body.as_ref()).body
    }

    /// `curl http://localhost:8080/health`
    pub(crate) fn health(&self) -> String {
        self.curls("curl -s http://localhost:8080/health", "GET", "/health", "")
    }

    /// What `tail -f` shows in the end: waits until the log has `line`.
    pub(crate) fn sees_in_the_log(&self, line: &str) {
        let since = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.path("log/node.log")).unwrap_or_default();
            if log.contains(line) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "no {line:?} in {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The guide's `sed`, for its way forward or back.
    pub(crate) fn configures(&self, from: &str, to: &str) {
        self.types(&format!(
            r#"sed -i 's/storage_backend = "{from}"/storage_backend = "{to}"/' config.toml"#
        ));
        let config = std::fs::read_to_string(self.path("config.toml")).unwrap();
        assert!(
            config.contains(&format!("storage_backend = \"{to}\"")),
            "{config}"
        );
    }
}

/// Whether a program can be run.
pub(crate) fn has(program: &str) -> bool {
    let tried: std::io::Result<Output> = Command::new(program).arg("--version").output();
    tried.is_ok_and(|output| output.status.success())
}
