//! What a start has left: everything that must be the same however often it
//! was interrupted, and nothing that differs from run to run.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use super::read;

/// A data directory, its configuration beside it, and what they say.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Name, mode and, where the content has to be the same to the bit, its
    /// SHA-256; in order. Two backups are two entries.
    pub(crate) files: Vec<(String, u32, Option<String>)>,
    /// Of all rows: see `fixtures/golden/README.md`.
    pub(crate) rows_sha256: Option<String>,
    pub(crate) metadata: read::Table,
    /// Of all entries of the Raft log, their keys the big-endian indexes.
    pub(crate) log_sha256: Option<String>,
    /// The record of the migration, as the database and the history both have it.
    pub(crate) record: Option<Value>,
    /// The configuration's directory and text.
    pub(crate) config: Option<(Vec<String>, String)>,
}

/// What of a record differs from run to run.
const RUN: [&str; 6] = ["id", "host", "started_at", "completed_at", "seconds", "uid"];
/// Files whose content is looked at in other ways.
const CHANGING: [&str; 5] = [
    "aspen.lock",
    "raft-log.redb",
    "migrations.jsonl",
    "state-machine.db",
    "state-machine.redb",
];
/// What stands for a time in names and texts.
const TIME: &str = "TIME";

/// Looks at `root/data` and, where there is one, `root/etc/config.toml`. Names
/// in `known` are left as they are; other backups lose their time.
pub(crate) fn outcome(root: &Path, known: &BTreeSet<String>) -> Outcome {
    let dir = root.join("data");
    let database = dir.join("state-machine.db");
    let mut outcome = Outcome {
        files: files(&dir, known),
        rows_sha256: None,
        metadata: BTreeMap::new(),
        log_sha256: None,
        record: None,
        config: None,
    };
    // Of copies: opening a file marks it in use.
    let copies = super::fixture::scratch();
    let copy = |name: &str| {
        let to = copies.join(name);
        std::fs::copy(dir.join(name), &to).unwrap();
        to
    };
    if dir.join("raft-log.redb").exists() {
        let (entries, _) = read::log_tables(&copy("raft-log.redb"));
        outcome.log_sha256 = Some(read::rows_sha256(&entries));
    }
    if dir.join("state-machine.redb").exists() {
        let (rows, metadata) = read::redb_tables(&copy("state-machine.redb"));
        outcome.rows_sha256 = Some(read::rows_sha256(&rows));
        outcome.metadata = metadata;
    }
    if database.exists() {
        let rows = read::sqlite_table(&database, "state_machine_kv");
        outcome.rows_sha256 = Some(read::rows_sha256(&rows));
        outcome.metadata = read::sqlite_table(&database, "state_machine_meta");
        outcome.record = record(&dir, root, known);
    }
    let config = root.join("etc/config.toml");
    if config.exists() {
        let text = std::fs::read_to_string(&config).unwrap();
        let lines = text.lines().map(|line| match line.strip_prefix("at = ") {
            Some(_) => format!("at = {TIME}"),
            None => timeless(line, root, known),
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        outcome.config = Some((super::listing(&root.join("etc")), text));
    }
    outcome
}

fn files(dir: &Path, known: &BTreeSet<String>) -> Vec<(String, u32, Option<String>)> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let sha256 = (!CHANGING.contains(&name.as_str())).then(|| read::sha256(&entry.path()));
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            (timeless(&name, dir, known), mode, sha256)
        })
        .collect();
    files.sort_unstable();
    files
}

/// The record in the database, which must be the history's only line.
fn record(dir: &Path, root: &Path, known: &BTreeSet<String>) -> Option<Value> {
    let rows = read::query(
        &dir.join("state-machine.db"),
        "SELECT record FROM aspen_migrations",
    );
    let history = std::fs::read_to_string(dir.join("migrations.jsonl")).unwrap_or_default();
    let lines: Vec<&str> = history.lines().collect();
    let stored: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(lines, stored, "history and database disagree");
    assert!(lines.len() <= 1, "{history}");
    let line = lines.first()?;
    if let Some(backup) = serde_json::from_str::<Value>(line).unwrap()["backup"].as_str() {
        assert!(Path::new(backup).exists(), "{backup} is recorded and gone");
    }
    let mut record: Value = serde_json::from_str(&timeless(line, root, known)).unwrap();
    for name in RUN {
        assert!(
            record.as_object_mut().unwrap().remove(name).is_some(),
            "{name}"
        );
    }
    Some(record)
}

/// `text` without the place of `root` and the times in names of backups.
pub(crate) fn timeless(text: &str, root: &Path, known: &BTreeSet<String>) -> String {
    const BEFORE: &str = ".redb.backup-";
    const DIGITS: usize = "20261231-235959".len();
    const OF: [&str; 2] = ["state-machine", "raft-log"];
    let text = text.replace(&root.display().to_string(), "ROOT");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(BEFORE) {
        let (start, end) = (
            at + BEFORE.len(),
            (at + BEFORE.len() + DIGITS).min(rest.len()),
        );
        let (before, stamp) = (&rest[..start], &rest[start..end]);
        let is_known = OF.iter().any(|of| {
            before.ends_with(&format!("{of}{BEFORE}"))
                && known.contains(&format!("{of}{BEFORE}{stamp}"))
        });
        out.push_str(before);
        out.push_str(if is_known { stamp } else { TIME });
        rest = &rest[end..];
    }
    out + rest
}
