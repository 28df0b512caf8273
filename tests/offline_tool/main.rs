//! `aspen-migrate` as the guide's users meet it: what it prints, how it ends,
//! which files it takes, and what a signal or a lock does to it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod others;
mod output;
mod paths;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use common::fixture::{self, Scratch, scratch};
use common::{MIGRATE, finished, read};

/// The guide's "Expected Output"; the data at hand is one entry further.
const GUIDE: &str = "\
Aspen State Machine Migration Tool
===================================
Source (redb):  data/node-1/state-machine.redb
Target (SQLite): data/node-1/state-machine.db

[1/6] Opening source redb database...
[2/6] Reading all key-value pairs from redb...
      Found 1234 key-value pairs
[3/6] Reading metadata from redb...
      Last applied log: term=5, index=1235
[4/6] Creating target SQLite database...
[5/6] Migrating data to SQLite...
      Migration complete!
[6/6] Verifying migration integrity...
      Count verification: 1234 keys
      Data verification: 100 of 1234 keys sampled
      Metadata verification: passed
      Verification passed!

Migration Summary
=================
  Keys migrated:  1234
  Source:         data/node-1/state-machine.redb
  Target:         data/node-1/state-machine.db
  Verified:       true

Next steps:
  1. Backup the original redb file
  2. Update configuration to use SQLite storage
  3. Restart the Aspen node
";

/// The lines of a verification, with `--verify`, with `--full-verify`, and without.
const SAMPLED: &str = "\
[6/6] Verifying migration integrity...
      Count verification: 1234 keys
      Data verification: 100 of 1234 keys sampled
      Metadata verification: passed
      Verification passed!
";
const FULL: &str = "\
[6/6] Verifying migration integrity...
      Count verification: 1234 keys
      Data verification: all 1234 keys verified
      Metadata verification: passed
      Checksum verification: passed (CHECKSUM)
      Verification passed!
";
const SKIPPED: &str = "[6/6] Skipping verification (use --verify to enable)\n";
/// xxh3-128 of the fixture's rows, as another implementation computes it.
const CHECKSUM: &str = "db690165b7ecae32f24a26430839e360";

const REDB: &str = "data/node-1/state-machine.redb";
const SQLITE: &str = "data/node-1/state-machine.db";

/// A directory with a legacy node's data at the guide's path.
fn legacy_node() -> Scratch {
    let (work, data) = (scratch(), fixture::one("legacy", "plain").unpack());
    std::fs::create_dir_all(work.join("data")).unwrap();
    std::fs::rename(&*data, work.join("data/node-1")).unwrap();
    work
}

/// The tool in `work`, about to convert.
fn tool(work: &Path, source: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(MIGRATE);
    command.current_dir(work).arg("--source").arg(source);
    command.arg("--target").arg(target);
    command
}

fn run(command: &mut Command) -> common::Run {
    finished(&command.output().unwrap())
}

fn rows_of(database: &Path) -> String {
    read::rows_sha256(&read::sqlite_table(database, "state_machine_kv"))
}

fn plain_rows() -> String {
    fixture::one("legacy", "plain").state().rows_sha256.clone()
}
