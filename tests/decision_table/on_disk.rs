//! Each row with real files: what is in the directory afterwards, and what a
//! person is told.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use aspen::config::settings::{Backend, BackupKind, Verify};
use aspen::exit::Exit;
use aspen::layout::DataDir;
use aspen::lock::{LockError, LockedDir};
use aspen::migration::progress::{Control, Event, Observer, Phase};
use aspen::migration::{MigrationError, Options, Prepared, Storage, prepare};

use super::common::fixture::{self, Fixture, Scratch, scratch};
use super::common::{self, contents, convert, listing, read};
use super::{R, S};

/// Nobody listens.
struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event<'_>) {}
    fn work(&self, _: Phase, _: u64, _: u64) {}
}

fn start(dir: &Path, backend: Backend) -> Result<Prepared, MigrationError> {
    let options = Options {
        backend,
        backup: BackupKind::Copy,
        keep_backups: 3,
        verify: Verify::Full,
        config_file: None,
        program: "aspen-node 0.1.0".to_owned(),
    };
    let locked = locked(dir);
    let control = Control {
        observer: &Silent,
        stop: Default::default(),
    };
    prepare(&locked, &options, &control)
}

/// Takes the lock. A test beside this one that starts a program has, between
/// fork and exec, a copy of every descriptor, and so for a moment the lock too.
fn locked(dir: &Path) -> LockedDir {
    loop {
        match LockedDir::take(DataDir::new(dir), "a test") {
            Ok(locked) => return locked,
            Err(LockError::Held { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn refusal(dir: &Path, backend: Backend, exit: Exit) -> String {
    // The lock file stays, whatever is decided.
    drop(locked(dir));
    let before = contents(dir);
    let error = start(dir, backend).unwrap_err();
    assert_eq!(error.exit(), exit, "{error}");
    assert_eq!(contents(dir), before, "a refusal changes nothing");
    error.to_string()
}

/// Each of `parts` must be in `text`.
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// Runs what `text` gives as a command after `label`, up to the next sentence.
fn follow(text: &str, label: &str) {
    let (_, rest) = text.split_once(label).expect(text);
    let command = rest.split(". ").next().unwrap();
    let command = command.split(" (").next().unwrap();
    let status = Command::new("sh").args(["-c", command]).status();
    assert!(status.unwrap().success(), "{command}");
}

fn golden(name: &str) -> Fixture {
    fixture::one("golden", name)
}

/// A fixture whose rows differ from those of the others used here.
fn other() -> Scratch {
    golden("joint-redb-4.6-clean").unpack()
}

fn assert_rows(database: &Path, fixture: &Fixture) {
    let rows = read::sqlite_table(database, "state_machine_kv");
    assert_eq!(read::rows_sha256(&rows), fixture.state().rows_sha256);
}

fn stamped(name: &str) -> bool {
    let stamp = name
        .strip_prefix("state-machine.redb.backup-")
        .unwrap_or("");
    let digits = stamp.bytes().filter(u8::is_ascii_digit).count();
    stamp.len() == 15 && digits == 14 && stamp.as_bytes()[8] == b'-'
}

/// The listing with the time in a backup's name replaced.
fn names(dir: &Path) -> Vec<String> {
    let name = |name: String| match stamped(&name) {
        true => "state-machine.redb.backup-TIME".to_owned(),
        false => name,
    };
    listing(dir).into_iter().map(name).collect()
}

fn backup(dir: &Path) -> PathBuf {
    let name = listing(dir).into_iter().find(|name| stamped(name)).unwrap();
    dir.join(name)
}

fn assert_mode(path: &Path, mode: u32) {
    let found = path.metadata().unwrap().permissions().mode();
    assert_eq!(found & 0o7777, mode, "{}", path.display());
}

#[test]
fn sqlite_and_nothing_on_disk_is_a_fresh_start() {
    let dir = scratch();
    let prepared = start(&dir, Backend::Sqlite).unwrap();
    assert_eq!(*prepared.storage(), Storage::Sqlite(dir.join(S)));
    assert!(prepared.record.is_none() && !prepared.migrated_now);
    assert_eq!(listing(&dir), ["aspen.lock", S]);
    assert_mode(&dir.join(S), 0o600);
    assert_eq!(
        read::sqlite_table(&dir.join(S), "state_machine_kv").len(),
        0
    );
}

#[test]
fn redb_and_nothing_on_disk_is_a_fresh_start() {
    let dir = scratch();
    let prepared = start(&dir, Backend::Redb).unwrap();
    assert_eq!(*prepared.storage(), Storage::Redb(dir.join(R)));
    assert_eq!(listing(&dir), ["aspen.lock", R]);
    assert_mode(&dir.join(R), 0o600);
    let (rows, metadata) = read::redb_tables(&dir.join(R));
    assert_eq!((rows.len(), metadata.len()), (0, 0));
}

#[test]
fn sqlite_and_a_sqlite_file_is_opened_as_it_is() {
    for name in ["ordinary-sqlite-clean", "ordinary-sqlite-unclean"] {
        let dir = golden(name).unpack();
        let mut before = contents(&dir);
        before.insert("aspen.lock".to_owned(), String::new());
        let prepared = start(&dir, Backend::Sqlite).unwrap();
        assert_eq!(*prepared.storage(), Storage::Sqlite(dir.join(S)));
        assert!(!prepared.migrated_now);
        assert_eq!(contents(&dir), before);
    }
}

#[test]
fn sqlite_and_a_redb_file_is_migrated_and_the_source_lives_on_as_backup() {
    for name in ["ordinary-redb-2.6-unclean", "ordinary-redb-4.6-clean"] {
        let fixture = golden(name);
        let dir = fixture.unpack();
        let prepared = start(&dir, Backend::Sqlite).unwrap();
        assert_eq!(*prepared.storage(), Storage::Sqlite(dir.join(S)));
        assert!(prepared.migrated_now);
        let after = [
            "aspen.lock",
            "migrations.jsonl",
            S,
            "state-machine.redb.backup-TIME",
        ];
        assert_eq!(names(&dir), after);
        assert_rows(&dir.join(S), &fixture);
        let source = &fixture.manifest.files[R];
        assert_eq!(read::sha256(&backup(&dir)), source.sha256);
        assert_eq!(prepared.record.unwrap().backup, Some(backup(&dir)));
        for made in [dir.join(S), backup(&dir), dir.join("migrations.jsonl")] {
            assert_mode(&made, 0o600);
        }
        // The next start finds nothing to do.
        let before = contents(&dir);
        assert!(!start(&dir, Backend::Sqlite).unwrap().migrated_now);
        assert_eq!(contents(&dir), before);
    }
}

#[test]
fn sqlite_and_both_made_from_each_other_is_finished_with_one_backup() {
    let fixture = golden("ordinary-redb-2.6-clean");
    for operator_made_a_backup in [false, true] {
        let dir = fixture.unpack();
        // By the guide: copy, convert, restart.
        let copy = dir.join("state-machine.redb.backup-20260102-030405");
        if operator_made_a_backup {
            std::fs::copy(dir.join(R), &copy).unwrap();
        }
        assert_eq!(convert(&dir.join(R), &dir.join(S), &["--verify"]).code, 0);
        let prepared = start(&dir, Backend::Sqlite).unwrap();
        assert_eq!(*prepared.storage(), Storage::Sqlite(dir.join(S)));
        let after = [
            "aspen.lock",
            "migrations.jsonl",
            S,
            "state-machine.redb.backup-TIME",
        ];
        assert_eq!(names(&dir), after);
        assert_eq!(backup(&dir) == copy, operator_made_a_backup);
        assert_eq!(
            read::sha256(&backup(&dir)),
            fixture.manifest.files[R].sha256
        );
        assert_eq!(prepared.record.unwrap().backup, Some(backup(&dir)));
        assert_rows(&dir.join(S), &fixture);
    }
}

#[test]
fn sqlite_and_both_of_different_origin_is_refused_with_both_sides_and_ways_out() {
    let (old, new) = (
        golden("ordinary-sqlite-clean"),
        golden("joint-redb-4.6-clean"),
    );
    // Made by other hands; made from another file than the one that is there now.
    for by_tool in [false, true] {
        let both = || {
            let dir = match by_tool {
                false => old.unpack(),
                true => {
                    let dir = golden("ordinary-redb-2.6-clean").unpack();
                    assert_eq!(convert(&dir.join(R), &dir.join(S), &[]).code, 0);
                    dir
                }
            };
            std::fs::copy(other().join(R), dir.join(R)).unwrap();
            let touched = ["-d", "2026-02-03T04:05:06Z"];
            for name in [R, S] {
                let touch = Command::new("touch")
                    .args(touched)
                    .arg(dir.join(name))
                    .status();
                assert!(touch.unwrap().success());
            }
            dir
        };
        let dir = both();
        let text = refusal(&dir, Backend::Sqlite, Exit::Data);
        let (r, s) = (dir.join(R), dir.join(S));
        let sides = [
            format!("{} (last applied term=7, index=12", r.display()),
            format!("{} (last applied term=5, index=736", s.display()),
        ];
        assert_says(
            &text,
            &[&sides[0], &sides[1], "last changed 2026-02-03T04:05:06Z"],
        );

        follow(&text, "To go on with SQLite: ");
        assert!(!start(&dir, Backend::Sqlite).unwrap().migrated_now);
        assert_rows(&s, &old);

        let dir = both();
        let text = refusal(&dir, Backend::Sqlite, Exit::Data);
        follow(&text, "To migrate redb again: ");
        assert!(start(&dir, Backend::Sqlite).unwrap().migrated_now);
        assert_rows(&dir.join(S), &new);
    }
}

#[test]
fn redb_and_a_current_redb_file_is_opened_as_it_is() {
    for name in ["ordinary-redb-4.6-clean", "ordinary-redb-3.1-unclean"] {
        let dir = golden(name).unpack();
        let mut before = contents(&dir);
        before.insert("aspen.lock".to_owned(), String::new());
        let prepared = start(&dir, Backend::Redb).unwrap();
        assert_eq!(*prepared.storage(), Storage::Redb(dir.join(R)));
        assert_eq!(contents(&dir), before);
    }
}

#[test]
fn redb_and_an_old_redb_file_is_brought_to_the_current_format_beside_a_backup() {
    for name in ["ordinary-redb-2.0-clean", "ordinary-redb-2.6-unclean"] {
        let fixture = golden(name);
        let dir = fixture.unpack();
        let prepared = start(&dir, Backend::Redb).unwrap();
        assert_eq!(*prepared.storage(), Storage::Redb(dir.join(R)));
        assert_eq!(
            names(&dir),
            ["aspen.lock", R, "state-machine.redb.backup-TIME"]
        );
        assert_eq!(
            read::sha256(&backup(&dir)),
            fixture.manifest.files[R].sha256
        );
        assert_mode(&dir.join(R), 0o600);
        let before = contents(&dir);
        start(&dir, Backend::Redb).unwrap();
        assert_eq!(contents(&dir), before, "once");
        let (rows, _) = read::redb_tables(&dir.join(R));
        assert_eq!(read::rows_sha256(&rows), fixture.state().rows_sha256);
    }
}

#[test]
fn redb_and_a_file_that_is_linked_to_its_backup_is_given_blocks_of_its_own() {
    let dir = golden("ordinary-redb-4.6-clean").unpack();
    let kept = dir.join("state-machine.redb.backup-20260102-030405");
    std::fs::hard_link(dir.join(R), &kept).unwrap();
    let before = contents(&dir);
    start(&dir, Backend::Redb).unwrap();
    let mut after = contents(&dir);
    after.remove("aspen.lock");
    assert_eq!(after, before);
    let inode = |path: &Path| path.metadata().unwrap().ino();
    assert_ne!(inode(&dir.join(R)), inode(&kept));
}

#[test]
fn redb_and_only_a_sqlite_file_is_refused_with_the_date_and_every_way_on() {
    let fixture = golden("ordinary-redb-4.6-clean");
    let migrated = || {
        let dir = fixture.unpack();
        start(&dir, Backend::Sqlite).unwrap();
        let text = refusal(&dir, Backend::Redb, Exit::Config);
        (dir, text)
    };
    let (dir, text) = migrated();
    let (r, s) = (dir.join(R), dir.join(S));
    let date = "SELECT completed_at FROM aspen_migrations";
    let date = read::query(&s, date).remove(0).remove(0);
    let back = format!(
        "aspen-migrate --source {} --target {}",
        s.display(),
        r.display()
    );
    let kept = backup(&dir);
    let parts = [
        &format!("(migrated on {date})"),
        "set storage_backend = \"sqlite\"",
        kept.to_str().unwrap(),
        &back,
    ];
    assert_says(&text, &parts);
    assert_eq!(
        start(&dir, Backend::Sqlite).unwrap().storage(),
        &Storage::Sqlite(s.clone())
    );

    follow(&text, "To go back to the state before the migration: ");
    start(&dir, Backend::Redb).unwrap();
    assert_eq!(read::sha256(&r), fixture.manifest.files[R].sha256);

    let (dir, text) = migrated();
    let (_, command) = text.split_once("keep what was written since: ").unwrap();
    let (convert, set_aside) = command.split_once(", then ").unwrap();
    let tool = Path::new(common::MIGRATE).parent().unwrap().display();
    for command in [convert, set_aside] {
        let command = format!("PATH={tool}:$PATH; {command}");
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    start(&dir, Backend::Redb).unwrap();
    let (rows, _) = read::redb_tables(&dir.join(R));
    assert_eq!(read::rows_sha256(&rows), fixture.state().rows_sha256);
}

#[test]
fn redb_and_both_is_refused_as_an_unfinished_rollback() {
    let fixture = golden("ordinary-redb-4.6-clean");
    let dir = fixture.unpack();
    start(&dir, Backend::Sqlite).unwrap();
    std::fs::copy(backup(&dir), dir.join(R)).unwrap();
    let text = refusal(&dir, Backend::Redb, Exit::Config);
    let (r, s) = (dir.join(R), dir.join(S));
    let named = [r.to_str().unwrap(), s.to_str().unwrap()];
    assert_says(&text, &named);
    assert_says(
        &text,
        &["(migrated on 20", "set storage_backend = \"sqlite\""],
    );
    follow(&text, "To finish a rollback: ");
    assert!(!s.exists());
    start(&dir, Backend::Redb).unwrap();
}

#[test]
fn a_log_whose_database_is_gone_is_refused_and_named() {
    for with_redb in [false, true] {
        let dir = golden("ordinary-redb-4.6-clean").unpack();
        if !with_redb {
            std::fs::remove_file(dir.join(R)).unwrap();
        }
        let log = dir.join("state-machine.db-wal");
        std::fs::write(&log, "frames").unwrap();
        let text = refusal(&dir, Backend::Sqlite, Exit::Data);
        assert_says(&text, &[log.to_str().unwrap(), "move it back"]);
        std::fs::remove_file(log).unwrap();
        start(&dir, Backend::Sqlite).unwrap();
    }
}

#[test]
fn what_an_interrupted_run_left_is_removed_and_nothing_that_looks_like_it() {
    let theirs = [
        "notes.aspen-tmp",
        "state-machine.db.tmp",
        "state-machine.redb.backup-by-hand",
        "state-machine.redb.aspen-tmp.old",
    ];
    for backend in [Backend::Sqlite, Backend::Redb] {
        let dir = golden("ordinary-redb-4.6-clean").unpack();
        let ours = DataDir::new(&*dir).possible_leftovers();
        for path in ours
            .iter()
            .cloned()
            .chain(theirs.map(|name| dir.join(name)))
        {
            std::fs::write(path, "half").unwrap();
        }
        start(&dir, backend).unwrap();
        let left = listing(&dir);
        for path in ours {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(!left.iter().any(|left| left == name), "{name}: {left:?}");
        }
        for name in theirs {
            assert_eq!(std::fs::read(dir.join(name)).unwrap(), b"half", "{name}");
        }
    }
}

#[test]
fn memory_touches_nothing_whatever_is_there() {
    let dir = golden("ordinary-sqlite-unclean").unpack();
    std::fs::write(dir.join("state-machine.db.aspen-tmp"), "half").unwrap();
    std::fs::copy(other().join(R), dir.join(R)).unwrap();
    let mut before = contents(&dir);
    before.insert("aspen.lock".to_owned(), String::new());
    // But for the Raft log, which is kept in redb whatever the backend.
    std::fs::write(dir.join("raft-log.redb.aspen-tmp"), "half").unwrap();
    let prepared = start(&dir, Backend::Memory).unwrap();
    assert!(matches!(prepared.storage(), Storage::Memory(_)));
    assert_eq!(contents(&dir), before);
}

/// A file that is there and cannot be read is an error, never an empty store.
#[test]
fn missing_is_not_corrupt() {
    for name in [R, S] {
        for content in [b"".as_slice(), b"neither one nor the other", &[0; 8192]] {
            for backend in [Backend::Sqlite, Backend::Redb] {
                let dir = scratch();
                std::fs::write(dir.join(name), content).unwrap();
                drop(locked(&dir));
                let before = contents(&dir);
                let error = start(&dir, backend).unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
                assert!([Exit::Data, Exit::Io].contains(&error.exit()), "{error}");
                assert_eq!(contents(&dir), before);
            }
        }
    }
}

#[test]
fn a_state_machine_that_is_no_file_of_its_own_is_refused() {
    for name in [R, S] {
        for make in [symlink_elsewhere as fn(&Path), make_directory] {
            let dir = scratch();
            make(&dir.join(name));
            let error = start(&dir, Backend::Sqlite).unwrap_err();
            assert_says(&error.to_string(), &[name, "not a regular file"]);
            assert_eq!(error.exit(), Exit::Config);
            assert_eq!(listing(&dir), ["aspen.lock", name]);
        }
    }
}

fn symlink_elsewhere(path: &Path) {
    std::os::unix::fs::symlink("/dev/null", path).unwrap();
}

fn make_directory(path: &Path) {
    std::fs::create_dir(path).unwrap();
}
