//! What the tool prints and how it ends.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::common::{MIGRATE, contents, migrate, read};
use super::{CHECKSUM, FULL, GUIDE, REDB, SAMPLED, SKIPPED, SQLITE};
use super::{legacy_node, plain_rows, rows_of, run, tool};

#[test]
fn the_output_is_the_guides_line_for_line() {
    let work = legacy_node();
    let verified = run(tool(&work, REDB, SQLITE).arg("--verify"));
    assert_eq!((verified.code, verified.err.as_str()), (0, ""));
    assert_eq!(verified.out, GUIDE);
    assert_eq!(rows_of(&work.join(SQLITE)), plain_rows());
}

#[test]
fn without_verify_the_output_says_how_to_verify() {
    let work = legacy_node();
    let skipped = run(&mut tool(&work, REDB, SQLITE));
    let expected = GUIDE
        .replace(SAMPLED, SKIPPED)
        .replace("Verified:       true", "Verified:       false");
    assert_eq!((skipped.code, skipped.out), (0, expected));
    assert_eq!(rows_of(&work.join(SQLITE)), plain_rows());
}

#[test]
fn full_verify_needs_no_verify_and_prints_all_keys_and_the_checksum() {
    let expected = GUIDE.replace(SAMPLED, &FULL.replace("CHECKSUM", CHECKSUM));
    for options in [["--full-verify"].as_slice(), &["--verify", "--full-verify"]] {
        let work = legacy_node();
        let full = run(tool(&work, REDB, SQLITE).args(options));
        assert_eq!((full.code, full.out.as_str()), (0, expected.as_str()));
    }
}

#[test]
fn the_way_back_prints_the_same_with_the_engines_exchanged() {
    let work = legacy_node();
    run(&mut tool(&work, REDB, SQLITE));
    std::fs::remove_file(work.join(REDB)).unwrap();
    let back = run(tool(&work, SQLITE, REDB).arg("--full-verify"));
    let expected = "\
Aspen State Machine Migration Tool
===================================
Source (SQLite): data/node-1/state-machine.db
Target (redb): data/node-1/state-machine.redb

[1/6] Opening source SQLite database...
[2/6] Reading all key-value pairs from SQLite...
      Found 1234 key-value pairs
[3/6] Reading metadata from SQLite...
      Last applied log: term=5, index=1235
[4/6] Creating target redb database...
[5/6] Migrating data to redb...
      Migration complete!
FULL
Migration Summary
=================
  Keys migrated:  1234
  Source:         data/node-1/state-machine.db
  Target:         data/node-1/state-machine.redb
  Verified:       true

Next steps:
  1. Move the original SQLite file aside
  2. Update configuration to use redb storage
  3. Restart the Aspen node
";
    let expected = expected.replace("FULL", &FULL.replace("CHECKSUM", CHECKSUM));
    assert_eq!((back.code, back.out), (0, expected));
    let (rows, _) = read::redb_tables(&work.join(REDB));
    assert_eq!(read::rows_sha256(&rows), plain_rows());
}

#[test]
fn a_dry_run_reads_everything_and_writes_nothing_not_even_a_lock() {
    let work = legacy_node();
    let before = contents(&work.join("data/node-1"));
    let dry = run(tool(&work, REDB, SQLITE).args(["--full-verify", "--dry-run"]));
    let read_only = GUIDE.split_once("[4/6]").unwrap().0;
    let verdict = "\nDry run: nothing was written, and nothing is in the way of the migration.\n";
    assert_eq!((dry.code, dry.out), (0, format!("{read_only}{verdict}")));
    assert_eq!(contents(&work.join("data/node-1")), before);
}

#[test]
fn a_dry_run_ends_as_the_conversion_would() {
    let work = legacy_node();
    let node = work.join("data/node-1");
    let dry = |source: &str| {
        let dry = run(tool(&work, source, SQLITE).arg("--dry-run"));
        let real = run(&mut tool(&work, source, SQLITE));
        assert_eq!((dry.code, &dry.err), (real.code, &real.err));
        assert!(!dry.out.contains("Dry run"), "{}", dry.out);
        dry
    };
    assert_eq!(dry("data/node-1/nothing.redb").code, 66);
    std::fs::write(work.join("text"), "no database at all").unwrap();
    assert_eq!(dry("text").code, 65);
    std::fs::write(node.join("state-machine.db-wal"), "somebody's log").unwrap();
    let orphan = dry(REDB);
    assert_eq!(orphan.code, 65);
    assert!(
        orphan.err.contains("state-machine.db-wal"),
        "{}",
        orphan.err
    );
    std::fs::remove_file(node.join("state-machine.db-wal")).unwrap();
    std::fs::write(work.join(SQLITE), "there already").unwrap();
    assert_eq!(dry(REDB).code, 73);
}

#[test]
fn json_is_one_object_with_the_same_facts_and_nothing_else() {
    let work = legacy_node();
    let json = run(tool(&work, REDB, SQLITE).args(["--full-verify", "--json"]));
    assert_eq!((json.code, json.err.as_str()), (0, ""));
    let object: Value = serde_json::from_str(&json.out).unwrap();
    let expected = serde_json::json!({
        "status": "migrated", "keys": 1234, "verified": true, "verification": "full",
        "source": REDB, "target": SQLITE, "from": "redb", "to": "sqlite", "checksum": CHECKSUM,
        "last_applied": {"term": 5, "node_id": 2, "index": 1235}, "source_closed_cleanly": true,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(object[name], *value, "{name}");
    }
    // What the file itself says of its making.
    let stored = "SELECT json_extract(record, '$.id'), source_fingerprint FROM aspen_migrations";
    let stored = read::query(&work.join(SQLITE), stored);
    let same = ["id", "source_fingerprint"].map(|name| object[name].as_str().unwrap());
    assert_eq!(stored, [same]);
}

#[test]
fn json_of_a_dry_run_and_of_a_sample_say_so() {
    let work = legacy_node();
    let object = |options: &[&str]| -> Value {
        let run = run(tool(&work, REDB, SQLITE).args(options));
        assert_eq!(run.code, 0, "{}", run.err);
        serde_json::from_str(&run.out).unwrap()
    };
    let dry = object(&["--json", "--dry-run"]);
    assert_eq!(
        (&dry["status"], &dry["keys"]),
        (&"checked".into(), &1234.into())
    );
    assert_eq!(dry["verified"], false);
    let sample = object(&["--json", "--verify"]);
    assert_eq!(sample["status"], "migrated");
    assert_eq!(
        (&sample["verified"], &sample["verification"]),
        (&true.into(), &"sample".into())
    );
}

#[test]
fn json_of_a_failure_is_one_object_too_and_says_what_standard_error_says() {
    let work = legacy_node();
    let failed = run(tool(&work, "no/such.redb", SQLITE).arg("--json"));
    assert_eq!(failed.code, 66);
    let object: Value = serde_json::from_str(&failed.out).unwrap();
    assert_eq!(
        (&object["status"], &object["exit_code"]),
        (&"failed".into(), &66.into())
    );
    assert_eq!(
        (&object["source"], &object["target"]),
        (&"no/such.redb".into(), &SQLITE.into())
    );
    let error = object["error"].as_str().unwrap();
    assert!(error.starts_with("Source database does not exist: no/such.redb"));
    assert_eq!(failed.err, format!("Error: {error}\n"));
}

#[test]
fn quiet_prints_errors_and_nothing_else() {
    let work = legacy_node();
    let quiet = run(tool(&work, REDB, SQLITE).args(["--quiet", "--full-verify"]));
    assert_eq!(
        (quiet.code, quiet.out.as_str(), quiet.err.as_str()),
        (0, "", "")
    );
    assert_eq!(rows_of(&work.join(SQLITE)), plain_rows());
    let again = run(tool(&work, REDB, SQLITE).arg("-q"));
    assert_eq!((again.code, again.out.as_str()), (73, ""));
    assert!(
        again
            .err
            .starts_with("Error: Target database already exists")
    );
}

#[test]
fn the_errors_begin_as_the_guide_quotes_them() {
    let work = legacy_node();
    let missing = run(&mut tool(&work, "data/node-2/state-machine.redb", SQLITE));
    let expected = "Error: Source database does not exist: data/node-2/state-machine.redb; ";
    assert_eq!(missing.code, 66);
    assert!(missing.err.starts_with(expected), "{}", missing.err);
    assert_eq!(missing.out, "");

    std::fs::write(work.join(SQLITE), "somebody's").unwrap();
    let exists = run(&mut tool(&work, REDB, SQLITE));
    let expected = "Error: Target database already exists: data/node-1/state-machine.db; ";
    assert_eq!(exists.code, 73);
    assert!(exists.err.starts_with(expected), "{}", exists.err);
    assert_eq!(std::fs::read(work.join(SQLITE)).unwrap(), b"somebody's");

    use aspen::migration::target::TargetError;
    let (wanted, found) = (1234, 1233);
    let count = TargetError::Count { wanted, found };
    assert!(count.to_string().starts_with("Key count mismatch: "));
    assert_eq!(count.exit().code(), 65);
    let (number, key) = (7, "secret".to_owned());
    let value = TargetError::Value { number, key };
    assert!(value.to_string().starts_with("Value mismatch for key "));
    assert!(!value.to_string().contains("secret"), "logs hold no keys");
    assert_eq!(value.exit().code(), 65);
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let wrong: [&[&str]; 7] = [
        &[],
        &["--source", "a"],
        &["--target", "b"],
        &["--source", "a", "--target", "b", "--bogus"],
        &["--source", "a", "--target", "b", "c"],
        &["--source", "a", "--target", "b", "--verify=yes"],
        &["--source", "a", "--target", "b", "--json", "--quiet"],
    ];
    for arguments in wrong {
        let run = migrate(arguments);
        assert_eq!((run.code, run.out.as_str()), (64, ""), "{arguments:?}");
        assert!(run.err.contains("--help"), "{arguments:?}: {}", run.err);
    }
}

#[test]
fn help_and_version_are_answers_not_errors() {
    let help = migrate(["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    for part in [
        "--source <PATH>",
        "--full-verify",
        "Examples:",
        "73 target exists",
    ] {
        assert!(help.out.contains(part), "{part}: {}", help.out);
    }
    let version = migrate(["--version"]);
    let expected = concat!("aspen-migrate ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!((version.code, version.out.as_str()), (0, expected));
}

#[test]
fn a_reader_that_goes_away_does_not_stop_the_conversion() {
    let work = legacy_node();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = tool(&work, REDB, SQLITE).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(rows_of(&work.join(SQLITE)), plain_rows());

    let pipeline = format!("{MIGRATE} --source {REDB} --target other.db | head -1");
    let mut bash = Command::new("bash");
    bash.current_dir(&*work)
        .args(["-o", "pipefail", "-c", &pipeline]);
    let head = run(&mut bash);
    assert_eq!(
        (head.code, head.out.as_str()),
        (0, "Aspen State Machine Migration Tool\n")
    );
    assert_eq!(rows_of(&work.join("other.db")), plain_rows());
}

#[test]
fn nothing_need_be_open_but_the_files() {
    let work = legacy_node();
    let closed = format!("exec {MIGRATE} --source {REDB} --target {SQLITE} <&- >&- 2>&-");
    let status = Command::new("bash")
        .current_dir(&*work)
        .args(["-c", &closed])
        .status();
    assert_eq!(status.unwrap().code(), Some(0));
    assert_eq!(rows_of(&work.join(SQLITE)), plain_rows());
    assert_eq!(std::fs::read(work.join(REDB)).unwrap().len(), 3_686_400);
}

#[test]
fn a_progress_bar_goes_to_a_terminal_and_not_into_the_output() {
    let work = legacy_node();
    let command = format!("{MIGRATE} --source {REDB} --target {SQLITE} --verify >out.txt");
    let mut script = Command::new("script");
    script
        .current_dir(&*work)
        .env("TERM", "xterm")
        .stdin(Stdio::null());
    let terminal = run(script.args(["-qec", &command, "/dev/null"]));
    assert_eq!(terminal.code, 0, "{}", terminal.out);
    assert!(
        terminal.out.contains("\u{1b}["),
        "no bar: {:?}",
        terminal.out
    );
    assert_eq!(
        std::fs::read_to_string(work.join("out.txt")).unwrap(),
        GUIDE
    );
}
