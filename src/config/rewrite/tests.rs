#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::error::Error as _;
use std::os::unix::fs::symlink;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::config::tests::unprivileged;

mod shapes;

pub(super) fn migrated() -> Migrated {
    Migrated {
        from: Backend::Redb,
        to: Backend::Sqlite,
        at: "2026-11-22T18:37:34Z".into(),
        fingerprint: "v2:12:0011".into(),
        keys: 1234,
        last_applied: Some(1300),
        backup: "/srv/state-machine.redb.backup-20261122-183734".into(),
        version: "0.1.0".into(),
    }
}

/// The table as it is written anew.
pub(super) const TABLE: &str = r#"# Written by aspen-node after it migrated this node's data.
[cluster.migrated]
from = "redb"
to = "sqlite"
at = "2026-11-22T18:37:34Z"
fingerprint = "v2:12:0011"
keys = 1234
last_applied = 1300
backup = "/srv/state-machine.redb.backup-20261122-183734"
version = "0.1.0"
"#;

const CONFIG: &str = "# Ours\n[cluster]\nstorage_backend = \"redb\" # legacy\n";

/// A directory with the file in it.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn expected() -> String {
    format!("# Ours\n[cluster]\nstorage_backend = \"sqlite\" # legacy\n\n{TABLE}")
}

fn failure(path: &Path) -> RewriteError {
    record_migration(path, &migrated()).unwrap_err()
}

#[test]
fn a_migration_is_written_once_and_then_nothing_is_touched() {
    let (dir, path) = file(CONFIG);
    assert_eq!(
        record_migration(&path, &migrated()).unwrap(),
        Outcome::Written
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected());

    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    let before = path.metadata().unwrap();
    assert_eq!(
        record_migration(&path, &migrated()).unwrap(),
        Outcome::Unchanged
    );
    let after = path.metadata().unwrap();
    assert_eq!(identity(&before), identity(&after));
    assert_eq!(after.modified().unwrap(), long_ago);
    assert_eq!(names(dir.path()), ["config.toml"]);
}

#[test]
fn mode_and_owner_are_kept() {
    let (_dir, path) = file(CONFIG);
    // Only root can give a file away; anyone else checks that it stays their own.
    if Uid::effective().is_root() {
        nix::unistd::chown(
            &path,
            Some(Uid::from_raw(12345)),
            Some(Gid::from_raw(54321)),
        )
        .unwrap();
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let before = path.metadata().unwrap();
    record_migration(&path, &migrated()).unwrap();
    let after = path.metadata().unwrap();
    assert_ne!(before.ino(), after.ino());
    assert_eq!(
        (before.mode(), before.uid(), before.gid()),
        (after.mode(), after.uid(), after.gid())
    );
}

const USER: u32 = 4242;

fn give(path: &Path, mode: u32, user: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    // Without root these tests end before this would matter.
    let _ = nix::unistd::chown(path, Some(Uid::from_raw(user)), None);
}

#[test]
fn a_file_whose_owner_could_not_be_kept_stays_as_it_was() {
    let (dir, path) = file(CONFIG);
    give(dir.path(), 0o755, USER);
    give(&path, 0o666, 0);
    let Some(error) = unprivileged(USER, || failure(&path)) else {
        return;
    };
    let source = error.source().unwrap().source().unwrap();
    assert!(
        source
            .to_string()
            .starts_with("cannot set owner and mode of "),
        "{source}"
    );
    assert_eq!(error.exit(), Exit::Permission);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIG);
    assert_eq!(path.metadata().unwrap().uid(), 0);
    assert_eq!(names(dir.path()), ["config.toml"]);
}

#[test]
fn a_file_or_directory_that_may_not_be_written_to_stays_as_it_was() {
    // The first is what a packaged file that belongs to root looks like to a service.
    for (dir_user, mode, file_user) in [(USER, 0o644, 0), (0, 0o600, USER)] {
        let (dir, path) = file(CONFIG);
        give(dir.path(), 0o755, dir_user);
        give(&path, mode, file_user);
        let Some(error) = unprivileged(USER, || failure(&path)) else {
            return;
        };
        match error.failure {
            Failure::Write { .. } => assert_eq!(file_user, 0),
            Failure::Replace { .. } => assert_eq!(dir_user, 0),
            _ => panic!("{error:?}"),
        }
        assert_eq!(error.exit(), Exit::Permission);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIG);
        assert_eq!(names(dir.path()), ["config.toml"]);
    }
}

#[test]
fn a_service_rewrites_its_own_file_without_any_privilege() {
    let (dir, path) = file(CONFIG);
    give(dir.path(), 0o755, USER);
    give(&path, 0o640, USER);
    if let Some(outcome) = unprivileged(USER, || record_migration(&path, &migrated()).unwrap()) {
        assert_eq!(outcome, Outcome::Written);
        let after = path.metadata().unwrap();
        assert_eq!((after.uid(), after.mode() & 0o7777), (USER, 0o640));
    }
}

/// An access list: the owner reads and writes, one more user and the group read.
fn access_list() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (1, 6, u32::MAX),
        (2, 4, 4242),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn an_access_list_is_kept_and_none_is_inherited() {
    let (_dir, path) = file(CONFIG);
    if xattr::set(&path, ACCESS_LIST, &access_list()).is_err() {
        eprintln!("not tested: this file system has no access lists");
        return;
    }
    let mode = path.metadata().unwrap().mode();
    record_migration(&path, &migrated()).unwrap();
    assert_eq!(xattr::get(&path, ACCESS_LIST).unwrap(), Some(access_list()));
    assert_eq!(path.metadata().unwrap().mode(), mode);

    let (dir, path) = file(CONFIG);
    let mode = path.metadata().unwrap().mode();
    xattr::set(dir.path(), "system.posix_acl_default", &access_list()).unwrap();
    record_migration(&path, &migrated()).unwrap();
    assert_eq!(xattr::get(&path, ACCESS_LIST).unwrap(), None);
    assert_eq!(path.metadata().unwrap().mode(), mode);
}

#[test]
fn a_symbolic_link_stays_and_the_file_that_it_names_is_rewritten() {
    let (dir, path) = file(CONFIG);
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("node.toml");
    symlink(&path, elsewhere.path().join("middle")).unwrap();
    symlink("middle", &link).unwrap();
    record_migration(&link, &migrated()).unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("middle"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected());
    assert_eq!(names(dir.path()), ["config.toml"]);
    assert_eq!(names(elsewhere.path()), ["middle", "node.toml"]);
}

#[test]
fn what_a_killed_run_left_behind_is_removed_whether_or_not_there_is_more_to_do() {
    let (dir, path) = file(CONFIG);
    let leftover = dir.path().join(".config.toml.aspen-tmp");
    std::fs::write(&leftover, "half a fi").unwrap();
    record_migration(&path, &migrated()).unwrap();
    assert_eq!(names(dir.path()), ["config.toml"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected());

    std::fs::write(&leftover, "half a fi").unwrap();
    assert_eq!(
        record_migration(&path, &migrated()).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(names(dir.path()), ["config.toml"]);
}

#[test]
fn a_link_planted_at_the_temporary_name_is_not_written_through() {
    let (dir, path) = file(CONFIG);
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    symlink(&victim, dir.path().join(".config.toml.aspen-tmp")).unwrap();
    record_migration(&path, &migrated()).unwrap();
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(names(dir.path()), ["config.toml", "victim"]);
}

#[test]
fn a_failure_says_what_to_write_by_hand() {
    let error = failure(Path::new("/nowhere/config.toml"));
    assert!(matches!(error.failure, Failure::Find { .. }));
    assert_eq!(error.exit(), Exit::Config);
    let table = TABLE.lines().skip(1).collect::<Vec<_>>().join("\n");
    assert_eq!(
        error.to_string(),
        "/nowhere/config.toml does not tell of the migration"
    );
    assert_eq!(
        error.by_hand,
        format!("[cluster]\nstorage_backend = \"sqlite\"\n\n{table}")
    );
    assert_eq!(
        error.source().unwrap().to_string(),
        "cannot find /nowhere/config.toml"
    );
    // What is to be written by hand is what the program would have written.
    let by_hand = error.by_hand + "\n";
    let (_dir, path) = file(&by_hand);
    assert_eq!(
        record_migration(&path, &migrated()).unwrap(),
        Outcome::Unchanged
    );
}

#[test]
fn a_read_only_file_is_respected_unless_nothing_has_to_change() {
    let (dir, path) = file(CONFIG);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    let error = failure(&path);
    assert!(matches!(
        error.failure,
        Failure::ReadOnly { mode: 0o444, .. }
    ));
    assert_eq!(error.exit(), Exit::Permission);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIG);
    assert_eq!(names(dir.path()), ["config.toml"]);

    let (_dir, path) = file(&expected());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    assert_eq!(
        record_migration(&path, &migrated()).unwrap(),
        Outcome::Unchanged
    );
}

#[test]
fn a_file_that_cannot_be_replaced_stays_as_it_was() {
    let (dir, path) = file(CONFIG);
    std::fs::create_dir(dir.path().join(".config.toml.aspen-tmp")).unwrap();
    let error = failure(&path);
    assert!(
        matches!(error.failure, Failure::Replace { .. }),
        "{:?}",
        error.failure
    );
    assert_eq!(error.exit(), Exit::Io);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIG);
}

#[test]
fn what_is_no_configuration_is_left_alone() {
    let (_dir, path) = file("[cluster\n");
    let error = failure(&path);
    assert!(matches!(error.failure, Failure::Parse { line: 1, .. }));
    assert_eq!(error.exit(), Exit::Config);

    let (_dir, path) = file("");
    std::fs::write(&path, b"# \xff\n").unwrap();
    assert!(matches!(failure(&path).failure, Failure::Read { .. }));

    let large = "#".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
    let (_dir, path) = file(&large);
    assert!(matches!(failure(&path).failure, Failure::Read { .. }));

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(failure(dir.path()).failure, Failure::Read { .. }));
}
