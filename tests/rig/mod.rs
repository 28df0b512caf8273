//! Machines with a real systemd, for tests. `rig.sh` beside this boots them;
//! here they become values that are gone when dropped.
#![allow(dead_code)] // each file in tests/ is a program of its own and uses its part

pub(crate) mod cluster;
pub(crate) mod node;

use crate::common::all_tests_required;
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rig/rig.sh");
/// The name of a machine that is the only one.
const NAME: &str = "node";

/// The right to have machines: one test at a time, in whatever process.
struct Turn {
    _lock: File,
    cleaner: Child,
}

impl Turn {
    /// Waits for it. `None`, and the reason on standard error, where there can be no
    /// machines, unless `ASPEN_REQUIRE_ALL_TESTS=1` makes that a failure.
    fn take() -> Option<Arc<Self>> {
        let need = rig(&["need"]).output().unwrap();
        if !need.status.success() {
            let why = text(&need.stdout);
            assert!(
                !all_tests_required(),
                "no real systemd to test against: {why}"
            );
            // Not eprintln: the harness would keep that from whoever runs the tests.
            let _ = writeln!(
                std::io::stderr(),
                "skipped, needs a real systemd: {}",
                why.trim()
            );
            return None;
        }
        // Now, while there is a way to a mirror: a network of its own has none.
        ok(&mut rig(&["root"]));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rig.lock");
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        // What the test before has left, if even its cleaner was killed.
        ok(&mut rig(&["clean"]));
        // Whoever else can lock the file knows that this test is dead and its machines nobody's.
        let clean = rig(&["clean"]);
        let cleaner = Command::new("flock")
            .args(["--shared".as_ref(), path.as_os_str(), clean.get_program()])
            .args(clean.get_args())
            .env("CARGO_TARGET_DIR", target())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Arc::new(Self {
            _lock: lock,
            cleaner,
        }))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The machines have gone before: each holds this.
        let _ = self.cleaner.kill();
        let _ = self.cleaner.wait();
    }
}

/// A network that reaches machines and the test, and nobody else.
///
/// It is a namespace of the thread that made it, and of the threads and processes
/// that this one starts; nothing has to be removed afterwards.
pub(crate) struct Network(Arc<Turn>);

impl Network {
    /// Runs a test in a network of its own; not at all where there can be no machines.
    pub(crate) fn run(test: impl FnOnce(&Self) + Send) {
        let Some(turn) = Turn::take() else { return };
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                ok(&mut rig(&["bridge"]));
                test(&Self(turn));
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Boots a machine that is reached at `address`, in 10.0.0.0/24.
    pub(crate) fn boot(&self, name: &str, address: Ipv4Addr, programs: &[&str]) -> Machine {
        Machine::new(name, Some(address), programs, Arc::clone(&self.0))
    }
}

/// A machine that has booted.
pub(crate) struct Machine {
    name: String,
    arguments: Vec<String>,
    _turn: Arc<Turn>,
}

impl Machine {
    /// Boots a machine in which each of `programs` is `/usr/bin/` and its name;
    /// `None` where there can be none.
    pub(crate) fn boot(programs: &[&str]) -> Option<Self> {
        Some(Self::new(NAME, None, programs, Turn::take()?))
    }

    fn new(name: &str, address: Option<Ipv4Addr>, programs: &[&str], turn: Arc<Turn>) -> Self {
        let bind = |program: &&str| {
            let name = Path::new(program).file_name().unwrap().to_str().unwrap();
            format!("--bind-ro={program}:/usr/bin/{name}")
        };
        let address = address.map(|address| format!("--address={address}"));
        let machine = Self {
            name: name.to_owned(),
            arguments: address
                .into_iter()
                .chain(programs.iter().map(bind))
                .collect(),
            _turn: turn,
        };
        machine.start();
        machine
    }

    fn start(&self) {
        ok(rig(&["boot", &self.name]).args(&self.arguments));
    }

    /// Shuts down in order and boots again.
    pub(crate) fn reboot(&self) {
        ok(&mut rig(&["off", &self.name]));
        self.start();
    }

    /// Cuts the power, losing what was not synced, and boots again.
    pub(crate) fn cut_power(&self) {
        ok(&mut rig(&["cut", &self.name]));
        self.start();
    }

    /// Runs a shell script that goes on for ever, and cuts the power when it has
    /// printed so many lines; boots again, and returns all lines that it printed.
    pub(crate) fn cut_power_under(&self, script: &str, lines: usize) -> Vec<String> {
        let mut command = self.command(script);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let printed = BufReader::new(child.stdout.take().unwrap());
        let mut printed = printed.lines().map_while(Result::ok);
        let mut seen: Vec<_> = printed.by_ref().take(lines).collect();
        assert_eq!(seen.len(), lines, "{script} ended");
        ok(&mut rig(&["cut", &self.name]));
        seen.extend(printed);
        child.wait().unwrap();
        self.start();
        seen
    }

    /// Runs a shell script in the machine, as root.
    pub(crate) fn run(&self, script: &str) -> Output {
        self.command(script).output().unwrap()
    }

    /// Runs a shell script that must succeed, and returns what it printed, trimmed.
    pub(crate) fn ok(&self, script: &str) -> String {
        ok(&mut self.command(script))
    }

    fn command(&self, script: &str) -> Command {
        rig(&["exec", &self.name, "sh", "-euc", script])
    }

    /// Writes a file in the machine, as root; the mode is 0644.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let script = format!("mkdir -p \"$(dirname {path})\"; cat >{path}");
        let mut command = self.command(&script);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(content.as_ref())
            .unwrap();
        assert!(child.wait().unwrap().success(), "writing {path}");
    }

    /// Waits until a shell script succeeds. Nothing is measured: the bound only
    /// turns a hang into a failure, and says what the service was doing.
    pub(crate) fn wait_until(&self, script: &str) {
        for _ in 0..600 {
            if self.run(script).status.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let state = self.run("systemctl --no-pager --full status aspen-node; ls -l /var/lib/aspen");
        panic!("never came true: {script}\n{}", text(&state.stdout));
    }

    /// The journal's entries that match, oldest first, each one JSON object.
    pub(crate) fn journal(&self, matches: &str) -> Vec<serde_json::Value> {
        let lines = self.ok(&format!("journalctl -q -b -o json {matches}"));
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // While a test panics, a second panic would hide its message.
        let cleaned = rig(&["clean", &self.name]).status();
        assert!(std::thread::panicking() || cleaned.is_ok_and(|status| status.success()));
    }
}

/// How a shell on the host runs a command in a machine; its name comes next.
pub(crate) fn exec_words() -> String {
    format!("CARGO_TARGET_DIR='{}' '{SCRIPT}' exec", target().display())
}

fn rig(arguments: &[&str]) -> Command {
    let mut command = Command::new(SCRIPT);
    command.args(arguments).stdin(Stdio::null());
    command.env("CARGO_TARGET_DIR", target());
    command
}

/// The directory that cargo builds in: the parent of the one for tests' files.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Runs a command that must succeed, and returns what it printed, trimmed.
fn ok(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout.trim().to_owned()
}

/// Output as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
