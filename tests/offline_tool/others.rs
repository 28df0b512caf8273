//! What other processes may do meanwhile: nodes, other tools, whoever sends a signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::{self, contents, convert, finished, fixture::scratch, listing};
use super::{CHECKSUM, FULL, GUIDE, REDB, SAMPLED, SQLITE};
use super::{legacy_node, plain_rows, rows_of, run, tool};

/// Another process that has `path` locked as a whole, until dropped.
struct Holder(Child);

impl Holder {
    fn of(path: &Path, kind: &str) -> Self {
        let mut flock = Command::new("flock");
        let script = "echo held; read _";
        flock
            .args([kind, "--no-fork"])
            .arg(path)
            .args(["bash", "-c", script]);
        let mut child = flock
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 5];
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut said).unwrap();
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_source_that_a_legacy_node_has_open_is_left_to_it() {
    let work = legacy_node();
    let before = contents(&work.join("data/node-1"));
    let node = Holder::of(&work.join(REDB), "--exclusive");
    for options in [[].as_slice(), &["--dry-run"]] {
        let held = run(tool(&work, REDB, SQLITE).args(options));
        assert_eq!(held.code, 75, "{}", held.err);
        assert!(
            held.err
                .contains("state-machine.redb is in use by another process")
        );
    }
    let mut after = contents(&work.join("data/node-1"));
    after.remove("aspen.lock");
    assert_eq!(after, before);
    drop(node);
    assert_eq!(run(&mut tool(&work, REDB, SQLITE)).code, 0);
}

#[test]
fn two_tools_may_read_the_same_source() {
    let work = legacy_node();
    let _reader = Holder::of(&work.join(REDB), "--shared");
    assert_eq!(run(&mut tool(&work, REDB, SQLITE)).code, 0);
}

#[test]
fn a_sqlite_source_that_a_node_has_open_is_left_to_it() {
    let work = legacy_node();
    run(&mut tool(&work, REDB, SQLITE));
    let node = rusqlite::Connection::open(work.join(SQLITE)).unwrap();
    node.query_row("SELECT count(*) FROM state_machine_kv", [], |_| Ok(()))
        .unwrap();
    let held = run(&mut tool(&work, SQLITE, "back.redb"));
    assert_eq!(held.code, 75, "{}", held.err);
    assert!(
        held.err
            .contains("state-machine.db is in use by another process")
    );
    assert!(!work.join("back.redb").exists());
    drop(node);
    assert_eq!(run(&mut tool(&work, SQLITE, "back.redb")).code, 0);
}

#[test]
fn the_data_directory_lock_is_respected_whichever_path_lies_in_it() {
    let (work, elsewhere) = (legacy_node(), scratch());
    let node = work.join("data/node-1");
    std::fs::write(node.join("aspen.lock"), "pid 4711 aspen-node\n").unwrap();
    std::fs::copy(work.join(REDB), elsewhere.join("copy.redb")).unwrap();
    symlink(work.join(REDB), elsewhere.join("link.redb")).unwrap();
    let lock = Holder::of(&node.join("aspen.lock"), "--exclusive");
    let out = elsewhere.join("out.db");
    let pairs = [
        (work.join(REDB), work.join(SQLITE)),
        (work.join(REDB), out.clone()),
        (elsewhere.join("copy.redb"), work.join(SQLITE)),
        (elsewhere.join("copy.redb"), node.join("any-name")),
        (elsewhere.join("link.redb"), out.clone()),
    ];
    let before = (contents(&node), listing(&elsewhere));
    for (source, target) in &pairs {
        let held = convert(source, target, &[]);
        assert_eq!(held.code, 75, "{source:?} {target:?}: {}", held.err);
        assert!(held.err.contains("pid 4711 aspen-node"), "{}", held.err);
        assert!(held.err.contains("node-1 is in use by another process"));
    }
    assert_eq!((contents(&node), listing(&elsewhere)), before);
    // What touches no file of the node need not wait for it.
    assert_eq!(convert(&elsewhere.join("copy.redb"), &out, &[]).code, 0);
    drop(lock);
    assert_eq!(convert(&pairs[0].0, &pairs[0].1, &[]).code, 0);
}

#[test]
fn two_tools_that_want_the_same_target_make_it_once() {
    let work = legacy_node();
    std::fs::create_dir(work.join("out")).unwrap();
    let mut tools: Vec<_> = (0..4)
        .map(|_| {
            tool(&work, REDB, "out/target.db")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let codes = tools
        .iter_mut()
        .map(|tool| tool.wait().unwrap().code().unwrap());
    let mut count = BTreeMap::new();
    codes.for_each(|code| *count.entry(code).or_insert(0) += 1);
    assert_eq!(count.remove(&0), Some(1), "{count:?}");
    assert!(
        count.keys().all(|code| [73, 75].contains(code)),
        "{count:?}"
    );
    assert_eq!(listing(&work.join("out")), ["target.db"]);
    assert_eq!(rows_of(&work.join("out/target.db")), plain_rows());
}

/// Runs the tool until it has printed `printed` and cannot print more, because
/// its pipe is full; then sends `signal`, then reads all.
fn interrupted(mut command: Command, printed: &str, signal: Signal) -> common::Run {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let smallest = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1)).unwrap();
    let room = usize::try_from(smallest).unwrap();
    writer.write_all(&vec![b'.'; room - printed.len()]).unwrap();
    command.stdout(writer).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    wait_until_full(&reader, smallest);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    let mut out = Vec::new();
    reader.read_to_end(&mut out).unwrap();
    let mut output = child.wait_with_output().unwrap();
    output.stdout = out.split_off(room - printed.len());
    finished(&output)
}

fn wait_until_full(pipe: &std::io::PipeReader, size: i32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut waiting = 0;
    while waiting < size {
        assert!(Instant::now() < deadline, "the tool printed less");
        std::thread::sleep(Duration::from_millis(1));
        // SAFETY: FIONREAD writes one int, to a place that lives long enough.
        let asked =
            unsafe { nix::libc::ioctl(pipe.as_raw_fd(), nix::libc::FIONREAD, &raw mut waiting) };
        assert_eq!(asked, 0);
    }
}

#[test]
fn a_signal_at_any_line_before_the_summary_leaves_nothing_behind() {
    let work = legacy_node();
    let node = work.join("data/node-1");
    File::create(node.join("aspen.lock")).unwrap();
    let before = contents(&node);
    let text = GUIDE.replace(SAMPLED, &FULL.replace("CHECKSUM", CHECKSUM));
    let (progress, _) = text.split_once("\nMigration Summary").unwrap();
    let ends = progress.match_indices('\n').map(|(at, _)| at + 1);
    for (number, end) in ends.enumerate() {
        let signal = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP][number % 3];
        let mut command = tool(&work, REDB, SQLITE);
        command.arg("--full-verify");
        let printed = &progress[..end];
        let run = interrupted(command, printed, signal);
        assert!(run.out.starts_with(printed), "{}", run.out);
        assert_eq!(run.code, 75, "after {printed:?}: {run:?}");
        assert!(run.err.starts_with("Error: the migration was stopped; "));
        assert_eq!(contents(&node), before, "after {printed:?}");
    }
    // Nothing of all this is in the way of the next try.
    assert_eq!(run(&mut tool(&work, REDB, SQLITE)).code, 0);
}
