//! Which files the tool takes, and whose.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::common::fixture::{self, scratch};
use super::common::{MIGRATE, contents, convert, listing, read};
use super::{REDB, SQLITE, legacy_node, plain_rows, rows_of, run, tool};

#[test]
fn odd_file_names_are_file_names_like_any_other() {
    let data = fixture::one("legacy", "plain").unpack();
    let names: [&[u8]; 6] = [
        b"with space",
        b"quote'\"%?#&=\\",
        b"-dash",
        b"new\nline",
        "\u{e4}\u{1f600}".as_bytes(),
        b"not utf-8 \xff\xfe",
    ];
    for name in names {
        let work = scratch();
        let name = Path::new(OsStr::from_bytes(name));
        let (source, there) = (name.join("a.redb"), name.join("b.db"));
        let back = name.join("c.redb");
        std::fs::create_dir(work.join(name)).unwrap();
        std::fs::copy(data.join("state-machine.redb"), work.join(&source)).unwrap();
        for (from, to) in [(&source, &there), (&there, &back)] {
            for options in [["--json", "--dry-run"], ["--json", "--full-verify"]] {
                // A name that begins with a dash is an option unless it is attached.
                let attached = |option: &str, path: &Path| {
                    let mut joined = std::ffi::OsString::from(option);
                    joined.push(path);
                    joined
                };
                let mut command = Command::new(MIGRATE);
                command.current_dir(&*work).args(options);
                command
                    .arg(attached("--source=", from))
                    .arg(attached("--target=", to));
                let run = run(&mut command);
                assert_eq!(run.code, 0, "{name:?}: {}", run.err);
                let object: Value = serde_json::from_str(&run.out).unwrap();
                assert_eq!(object["source"], *from.to_string_lossy());
                assert_eq!(object["keys"], 1234);
            }
        }
        let (rows, _) = read::redb_tables(&work.join(&back));
        assert_eq!(read::rows_sha256(&rows), plain_rows());
        assert_eq!(listing(&work.join(name)), ["a.redb", "b.db", "c.redb"]);
        let failed = run(tool(&work, work.join(name).join("none"), "x").arg("--json"));
        assert_eq!(failed.code, 66);
        let object: Value = serde_json::from_str(&failed.out).unwrap();
        assert_eq!(object["exit_code"], 66);
    }
}

#[test]
fn relative_and_absolute_paths_and_other_directories_all_do() {
    let work = legacy_node();
    let elsewhere = scratch();
    std::fs::create_dir(work.join("out")).unwrap();
    let node = work.join("data/node-1");
    let absolute = work.join(REDB);
    let pairs: [(&Path, &Path, PathBuf); 5] = [
        (&work, REDB.as_ref(), "out/a.db".into()),
        (&work, &absolute, elsewhere.join("b.db")),
        (&node, "state-machine.redb".as_ref(), "c.db".into()),
        (&node, "./state-machine.redb".as_ref(), "../d.db".into()),
        (&elsewhere, &absolute, "e.db".into()),
    ];
    for (from, source, target) in pairs {
        let run = run(&mut tool(from, source, &target));
        assert_eq!(run.code, 0, "{source:?} {target:?}: {}", run.err);
        assert_eq!(rows_of(&from.join(target)), plain_rows());
    }
    // A directory that is no node's gets the file and no lock.
    assert_eq!(listing(&elsewhere), ["b.db", "e.db"]);
}

#[test]
fn a_symbolic_link_is_followed_to_the_source_and_never_overwritten_as_target() {
    let work = legacy_node();
    symlink(work.join(REDB), work.join("link.redb")).unwrap();
    let linked = run(tool(&work, "link.redb", "a.db").arg("--full-verify"));
    assert_eq!(linked.code, 0, "{}", linked.err);
    assert_eq!(rows_of(&work.join("a.db")), plain_rows());

    // The log of a SQLite source lies beside the file, not beside the link.
    let unclean = fixture::one("golden", "ordinary-sqlite-unclean");
    let data = unclean.unpack();
    let before = contents(&data);
    symlink(data.join("state-machine.db"), work.join("link.db")).unwrap();
    let linked = run(tool(&work, "link.db", "a.redb").arg("--full-verify"));
    assert_eq!(linked.code, 0, "{}", linked.err);
    let (rows, _) = read::redb_tables(&work.join("a.redb"));
    assert_eq!(read::rows_sha256(&rows), unclean.state().rows_sha256);
    let mut after = contents(&data);
    assert!(
        after.remove("aspen.lock").is_some(),
        "the lock of the node's directory"
    );
    assert_eq!(after, before);

    symlink("nowhere", work.join("dangling.db")).unwrap();
    let dangling = run(&mut tool(&work, REDB, "dangling.db"));
    assert_eq!(dangling.code, 73);
    assert!(!work.join("nowhere").exists());
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let work = legacy_node();
    nix::unistd::mkfifo(&work.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for source in ["fifo", "data", "/dev/zero", "/dev/null"] {
        let run = convert(&work.join(source), &work.join("x.db"), &[]);
        assert_eq!(run.code, 65, "{source}: {}", run.err);
        assert!(run.err.contains(source) && run.err.contains("not a regular file"));
    }
    assert_eq!(listing(&work), ["data", "fifo"]);
}

#[test]
fn a_target_whose_directory_is_missing_is_an_error_that_names_it() {
    let work = legacy_node();
    for options in [[].as_slice(), &["--dry-run"]] {
        let run = run(tool(&work, REDB, "missing/state-machine.db").args(options));
        assert_eq!(run.code, 74, "{}", run.err);
        assert!(run.err.contains("missing"), "{}", run.err);
    }
    assert_eq!(listing(&work), ["data"]);
}

#[test]
fn a_write_that_fails_leaves_nothing_behind() {
    let work = legacy_node();
    let before = contents(&work.join("data/node-1"));
    // No file may grow past 16 KiB, and the signal that would say so is ignored.
    let limited =
        format!("trap '' XFSZ; ulimit -f 16; exec {MIGRATE} --source {REDB} --target {SQLITE}");
    let run = run(Command::new("bash")
        .current_dir(&*work)
        .args(["-c", &limited]));
    assert_eq!(run.code, 74, "{}", run.err);
    assert!(run.err.contains("state-machine.db"), "{}", run.err);
    let mut after = contents(&work.join("data/node-1"));
    after.remove("aspen.lock");
    assert_eq!(after, before);
}

/// The tool's command as a user who owns none of the files: `nobody` where the
/// tests run as root, who is never forbidden anything.
fn as_another_user(work: &Path, source: &Path, target: &Path) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return tool(work, source, target);
    }
    // The tests' own directory may be closed to others. Copied by a program: a file
    // that this process had open to write could not be run while another test forks.
    let copy = work.join("aspen-migrate");
    if !copy.exists() {
        let copied = Command::new("cp").arg(MIGRATE).arg(&copy).status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(copy);
    command.current_dir(work).arg("--source").arg(source);
    command.arg("--target").arg(target).uid(65534).gid(65534);
    command
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_this_user_may_not_do_is_told_apart_from_what_fails() {
    let work = legacy_node();
    set_mode(&work, 0o755);
    let (node, source) = (work.join("data/node-1"), work.join(REDB));
    let (closed, open) = (work.join("closed"), work.join("open"));
    std::fs::create_dir(&closed).unwrap();
    std::fs::create_dir(&open).unwrap();
    set_mode(&open, 0o777);
    set_mode(&closed, 0o555);
    set_mode(&node, 0o555);
    let before = contents(&node);

    set_mode(&source, 0o000);
    let unreadable = run(&mut as_another_user(&work, &source, &open.join("x.db")));
    assert_eq!(unreadable.code, 77, "{}", unreadable.err);
    assert!(unreadable.err.contains("state-machine.redb"));

    set_mode(&source, 0o444);
    let unwritable = run(&mut as_another_user(&work, &source, &closed.join("x.db")));
    assert_eq!(unwritable.code, 77, "{}", unwritable.err);
    assert!(unwritable.err.contains("closed"), "{}", unwritable.err);
    assert_eq!((listing(&closed), listing(&open)), (vec![], vec![]));
    assert_eq!(contents(&node), before);

    // Reading is all that the source's directory need allow.
    let made = run(&mut as_another_user(&work, &source, &open.join("x.db")));
    assert_eq!(made.code, 0, "{}", made.err);
    assert_eq!(contents(&node), before);
    assert_eq!(rows_of(&open.join("x.db")), plain_rows());
    set_mode(&node, 0o755);
}

/// Closing it was not to change a SQLite source; so it must be readable where
/// nothing can be written, its log included.
#[test]
fn a_sqlite_source_can_be_read_where_nothing_can_be_written() {
    for name in ["ordinary-sqlite-clean", "ordinary-sqlite-unclean"] {
        let fixture = fixture::one("golden", name);
        let (data, work) = (fixture.unpack(), scratch());
        set_mode(data.parent().unwrap(), 0o755);
        set_mode(&work, 0o777);
        for entry in listing(&data) {
            set_mode(&data.join(entry), 0o444);
        }
        set_mode(&data, 0o555);
        let before = contents(&data);
        let (source, target) = (data.join("state-machine.db"), work.join("x.redb"));
        let run = run(&mut as_another_user(&work, &source, &target));
        assert_eq!(run.code, 0, "{name}: {}", run.err);
        assert_eq!(contents(&data), before);
        let (rows, _) = read::redb_tables(&target);
        assert_eq!(read::rows_sha256(&rows), fixture.state().rows_sha256);
        set_mode(&data, 0o755);
    }
}
