//! What the node makes and for whom, and what happens where it may not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use common::disk::{Disk, is_root};
use common::fixture::scratch;
use common::node::{Ended, Launch, node_on};
use common::scenario::{Copy, Scenario};
use common::{contents, convert, listing};

/// Nobody in particular; the node's user where the test is root.
const USER: u32 = 65_534;

fn plain() -> Scenario {
    Scenario::new("legacy", "plain", "sqlite")
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A launch as somebody whom permissions bind: as [`USER`] where the test is
/// root, who may do anything.
fn as_user(launch: Launch) -> Launch {
    if !nix::unistd::geteuid().is_root() {
        return launch;
    }
    let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
    launch.through(&["setpriv", &user[0], &user[1], "--clear-groups"])
}

/// Gives everything in `root` to that user.
fn give_to_user(root: &Path) {
    if nix::unistd::geteuid().is_root() {
        for entry in std::fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => give_to_user(&path),
                false => chown(&path, Some(USER), Some(USER)).unwrap(),
            }
        }
        chown(root, Some(USER), Some(USER)).unwrap();
    }
    set_mode(root, 0o755);
}

fn refused(launch: Launch, code: i32) -> Ended {
    let mut node = launch.start();
    assert!(!node.says("READY=1"));
    node.end().with(code)
}

#[test]
fn a_data_directory_and_its_parents_are_made_for_owner_and_group_whatever_the_umask() {
    for (umask, wanted) in [("0", 0o750), ("022", 0o750), ("077", 0o700)] {
        for backend in ["sqlite", "redb"] {
            let root = scratch();
            let dir = root.join("var/lib/node-1");
            let shell = format!("umask {umask}; exec \"$0\" \"$@\"");
            let launch = node_on(&dir).env("ASPEN_STORAGE_BACKEND", backend);
            launch
                .through(&["sh", "-c", &shell])
                .start()
                .ready_then_stop();
            for made in ["var", "var/lib", "var/lib/node-1"] {
                assert_eq!(mode(&root.join(made)), wanted, "{made} with umask {umask}");
            }
            for name in listing(&dir) {
                assert_eq!(mode(&dir.join(&name)), 0o600, "{name} with umask {umask}");
            }
        }
    }
}

/// Legacy nodes left their files readable to all. What `aspen-migrate` has made a copy of becomes the
/// backup by its name alone, and holds the same values.
#[test]
fn a_source_that_everybody_could_read_becomes_a_backup_that_only_its_owner_can() {
    let scenario = plain();
    let copy = scenario.copy();
    let source = copy.data().join("state-machine.redb");
    set_mode(&source, 0o644);
    let target = copy.data().join("state-machine.db");
    assert_eq!(convert(&source, &target, &[]).code, 0);
    copy.complete();
    let kept = listing(&copy.data());
    let backup = |name: &&String| name.starts_with("state-machine.redb.backup-");
    let kept = kept.iter().find(backup).unwrap();
    assert_eq!(mode(&copy.data().join(kept)), 0o600);
}

/// A scenario's copy that belongs to the user, with `data` in `mode`; the
/// caller gets to look at it all the same.
fn forbidden(prepare: impl FnOnce(&Copy<'_>), launch_mode: u32) -> (String, bool) {
    let scenario = plain();
    let copy = scenario.copy();
    prepare(&copy);
    give_to_user(&copy.root);
    set_mode(&copy.data(), launch_mode);
    let before = contents(&copy.data());
    let ended = refused(as_user(copy.launch()), 77);
    set_mode(&copy.data(), 0o750);
    let untouched = contents(&copy.data()) == before;
    (ended.log, untouched)
}

#[test]
fn a_directory_that_may_not_be_written_to_is_named_and_left_as_it_is() {
    let (log, untouched) = forbidden(|_| {}, 0o555);
    assert!(untouched && log.contains("cannot lock "), "{log}");
    assert!(log.contains("/data/aspen.lock"), "{log}");

    let locked = |copy: &Copy<'_>| std::fs::write(copy.data().join("aspen.lock"), "").unwrap();
    let (log, untouched) = forbidden(locked, 0o555);
    assert!(untouched && log.contains("may not write to "), "{log}");

    let migrated = |copy: &Copy<'_>| drop(copy.complete());
    let (log, untouched) = forbidden(migrated, 0o555);
    assert!(
        untouched && log.contains("Failed to open SQLite database"),
        "{log}"
    );
    assert!(
        log.contains("this user may read and write it and its directory"),
        "{log}"
    );
}

#[test]
fn a_file_that_may_not_be_read_is_named_and_left_as_it_is() {
    let unreadable = |copy: &Copy<'_>| set_mode(&copy.data().join("state-machine.redb"), 0);
    let name = "/data/state-machine.redb";
    // The owner of the scratch directory may look into the file: not by its mode.
    let scenario = plain();
    let copy = scenario.copy();
    give_to_user(&copy.root);
    unreadable(&copy);
    let log = refused(as_user(copy.launch()), 77).log;
    assert!(log.contains("cannot read ") && log.contains(name), "{log}");
    assert_eq!(
        listing(&copy.data()),
        ["aspen.lock", "raft-log.redb", "state-machine.redb"]
    );

    let copy = scenario.copy();
    copy.complete();
    give_to_user(&copy.root);
    set_mode(&copy.data().join("state-machine.db"), 0o400);
    let log = refused(as_user(copy.launch()), 77).log;
    assert!(log.contains("Failed to open SQLite database"), "{log}");
    assert!(log.contains("this user may read and write it"), "{log}");
}

#[test]
fn a_directory_of_another_user_is_refused() {
    if !is_root("another user's directory") {
        return;
    }
    let scenario = plain();
    let copy = scenario.copy();
    give_to_user(&copy.root);
    chown(copy.data(), Some(0), Some(0)).unwrap();
    set_mode(&copy.data(), 0o700);
    let before = contents(&copy.data());
    let log = refused(as_user(copy.launch()), 77).log;
    assert!(log.contains("Permission denied"), "{log}");
    assert_eq!(contents(&copy.data()), before);
}

#[test]
fn a_file_system_that_is_read_only_is_named_and_left_as_it_is() {
    if !is_root("a read-only file system") {
        return;
    }
    let scenario = plain();
    for migrated in [false, true] {
        let disk = Disk::tmpfs(64 << 20);
        let copy = scenario.copy_to(disk.path());
        if migrated {
            copy.complete();
        }
        disk.make_read_only();
        let before = contents(&copy.data());
        let log = refused(copy.launch(), 74).log;
        assert!(log.contains("Read-only file system"), "{log}");
        assert!(log.contains(&copy.data().display().to_string()), "{log}");
        assert_eq!(contents(&copy.data()), before);
    }
}

#[test]
fn what_root_migrates_by_the_guide_the_nodes_user_takes_over() {
    if !is_root("the tool as root and the node as another user") {
        return;
    }
    let scenario = plain();
    let copy = scenario.copy();
    give_to_user(&copy.root);
    let dir = copy.data();
    let (source, target) = (dir.join("state-machine.redb"), dir.join("state-machine.db"));
    let run = convert(&source, &target, &["--verify"]);
    assert_eq!(run.code, 0, "{run:?}");
    as_user(copy.launch()).start().ready_then_stop();
    for name in listing(&dir) {
        let about = dir.join(&name).metadata().unwrap();
        assert_eq!((about.uid(), about.gid()), (USER, USER), "{name}");
    }
    let config = copy.config().metadata().unwrap();
    assert_eq!((config.uid(), config.gid()), (USER, USER));
    let outcome = copy.outcome();
    assert_eq!(
        outcome.rows_sha256.as_ref(),
        Some(&scenario.state.rows_sha256)
    );
    assert!(outcome.record.is_some());
}

#[test]
fn a_configuration_that_may_not_be_written_is_warned_of_at_every_start_until_it_may() {
    let scenario = plain();
    let expected = scenario.copy().complete();
    let copy = scenario.copy();
    let before = std::fs::read(copy.config()).unwrap();
    set_mode(&copy.config(), 0o444);
    for _ in 0..3 {
        let log = copy.launch().start().ready_then_stop().log;
        assert!(
            log.contains(" WARN ") && log.contains("is read-only (mode 0444)"),
            "{log}"
        );
        assert!(log.contains("storage_backend = \"sqlite\""), "{log}");
        assert_eq!(std::fs::read(copy.config()).unwrap(), before);
    }
    set_mode(&copy.config(), 0o640);
    let log = copy.launch().start().ready_then_stop().log;
    assert!(
        log.contains("now says storage_backend = \"sqlite\""),
        "{log}"
    );
    assert_eq!(copy.outcome(), expected);
    assert_eq!(mode(&copy.config()), 0o640);
}

#[test]
fn a_configuration_of_root_is_warned_of_and_the_node_runs() {
    let scenario = plain();
    let copy = scenario.copy();
    give_to_user(&copy.data());
    set_mode(&copy.root, 0o755);
    // The usual package: /etc/aspen belongs to root.
    let etc = copy.root.join("etc");
    set_mode(&etc, 0o555);
    let ended = as_user(copy.launch()).start().ready_then_stop();
    set_mode(&etc, 0o755);
    assert!(
        ended.log.contains("does not tell of the migration: cannot"),
        "{ended:?}"
    );
    // Nothing but TOML from there to the end of the entry, which is a line in the text log.
    let (_, by_hand) = ended.log.split_once("Write this into it by hand:").unwrap();
    let by_hand = by_hand.lines().next().unwrap().replace("\\n", "\n");
    let table: toml_edit::DocumentMut = by_hand.parse().unwrap();
    assert_eq!(table["cluster"]["migrated"]["to"].as_str(), Some("sqlite"));
    assert_eq!(copy.outcome().record.unwrap()["keys"], scenario.state.rows);
}

#[test]
fn a_data_directory_may_be_a_symbolic_link() {
    let scenario = plain();
    let copy = scenario.copy();
    let elsewhere = copy.root.join("elsewhere");
    std::fs::rename(copy.data(), &elsewhere).unwrap();
    symlink(&elsewhere, copy.data()).unwrap();
    assert_eq!(copy.complete(), scenario.copy().complete());
    assert!(copy.data().is_symlink());
    assert!(elsewhere.join("state-machine.db").exists());
}

/// A start on a state machine `name` that `put` has put there.
fn replaced(name: &str, put: impl FnOnce(&Path)) {
    let scenario = plain();
    let copy = scenario.copy();
    let path = copy.data().join(name);
    // Only one of the two is there.
    let _ = std::fs::remove_file(&path);
    put(&path);
    let before = listing(&copy.data());
    let log = refused(copy.launch(), 78).log;
    let after = listing(&copy.data())
        .into_iter()
        .filter(|name| name != "aspen.lock");
    assert_eq!(after.collect::<Vec<_>>(), before);
    assert!(
        log.contains(name) && log.contains("is not a regular file"),
        "{log}"
    );
}

#[test]
fn a_state_machine_that_is_no_regular_file_is_refused() {
    for name in ["state-machine.redb", "state-machine.db"] {
        let outside = scratch();
        let target = outside.join("target");
        std::fs::write(&target, "somebody's").unwrap();
        replaced(name, |path| symlink(&target, path).unwrap());
        replaced(name, |path| symlink("/nonexistent", path).unwrap());
        replaced(name, |path| std::fs::create_dir(path).unwrap());
        replaced(name, |path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        });
        assert_eq!(std::fs::read(&target).unwrap(), b"somebody's");
    }
}
