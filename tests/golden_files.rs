//! Every legacy file ever written can be converted, row for row and byte for
//! byte, and is not changed by it; every file that is none is refused.
//!
//! `fixtures/golden/README.md` says what the files are and who wrote them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::fixture::{self, Fixture, State};
use common::{contents, convert, each, listing, read};

/// The golden and the legacy fixtures of which `expect` is true.
fn expecting(expect: impl Fn(&str) -> bool) -> Vec<Fixture> {
    let mut found = fixture::all("golden");
    found.extend(fixture::all("legacy"));
    found.retain(|fixture| expect(&fixture.manifest.expect));
    found
}

fn name(fixture: &Fixture) -> String {
    fixture.name.clone()
}

/// `database` must hold exactly the state of the manifest, as the shell reads it.
fn assert_holds(database: &Path, state: &State) {
    let integrity = read::query(database, "PRAGMA integrity_check");
    assert_eq!(integrity, [["ok"]]);
    let rows = read::sqlite_table(database, "state_machine_kv");
    assert_same_rows(&rows, state);
    let metadata = read::sqlite_table(database, "state_machine_meta");
    assert_same_metadata(&metadata, state);
    let snapshots = read::query(database, "SELECT count(*) FROM snapshots");
    assert_eq!(snapshots, [["0"]], "a snapshot is derived data");
}

fn assert_same_rows(rows: &read::Table, state: &State) {
    assert_eq!(rows.len() as u64, state.rows);
    for (key, value) in state.listed_rows.iter().flatten() {
        let found = rows.get(key.as_bytes()).map(Vec::as_slice);
        assert_eq!(found, Some(value.as_bytes()), "{key:?}");
    }
    assert_eq!(read::rows_sha256(rows), state.rows_sha256);
}

/// The bytes are what a legacy node encodes, and mean what the manifest says.
fn assert_same_metadata(metadata: &read::Table, state: &State) {
    let expected = state.metadata();
    let expected = expected.iter();
    let expected: read::Table = expected
        .map(|(key, value)| (key.clone().into_bytes(), value.clone()))
        .collect();
    assert_eq!(*metadata, expected);
    if let Some(bytes) = metadata.get(b"last_membership".as_slice()) {
        let decoded = aspen::format::record::membership(bytes).unwrap();
        let wanted = state.membership.as_ref().unwrap();
        assert_eq!(decoded.membership.configs, wanted.configs);
        let addresses = decoded.membership.nodes.into_iter();
        let addresses: std::collections::BTreeMap<_, _> =
            addresses.map(|(id, node)| (id, node.addr)).collect();
        assert_eq!(addresses, wanted.nodes);
    }
    if let Some(bytes) = metadata.get(b"last_applied_log".as_slice()) {
        let decoded = aspen::format::record::last_applied(bytes).unwrap();
        let decoded = decoded.map(|id| (id.term, id.node_id, id.index));
        let wanted = state.last_applied.map(|id| (id.term, id.node, id.index));
        assert_eq!(decoded, wanted);
    }
}

/// The digest that a run with `--full-verify` printed.
fn digest(out: &str) -> &str {
    let line = "      Checksum verification: passed (";
    let found = out.lines().find_map(|text| text.strip_prefix(line));
    found.unwrap().strip_suffix(')').unwrap()
}

/// Converts with `--full-verify`, which must succeed, and answers the digest.
fn converted(source: &Path, target: &Path) -> String {
    let run = convert(source, target, &["--full-verify"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let mode = target.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    digest(&run.out).to_owned()
}

#[test]
fn the_fixtures_are_all_there_and_are_what_their_manifests_say() {
    let count = |expect: &str| expecting(|found| found.starts_with(expect)).len();
    let counts = [count("migrates"), count("opens"), count("refused")];
    assert_eq!(counts, [65, 2, 13]);
    each(&expecting(|_| true), name, |fixture| {
        let found = contents(&fixture.unpack());
        let files = fixture.manifest.files.iter();
        let promised = files.map(|(name, facts)| (name.clone(), facts.sha256.clone()));
        assert_eq!(found, promised.collect());
    });
}

#[test]
fn every_legacy_redb_file_becomes_a_sqlite_file_with_the_same_content_and_stays_as_it_was() {
    each(&expecting(|expect| expect == "migrates"), name, |fixture| {
        let dir = fixture.unpack();
        let before = contents(&dir);
        let target = dir.join("state-machine.db");
        converted(&dir.join("state-machine.redb"), &target);

        let mut after = contents(&dir);
        assert!(after.remove("state-machine.db").is_some());
        assert!(after.remove("aspen.lock").is_some());
        assert_eq!(after, before);
        assert_holds(&target, fixture.state());
    });
}

#[test]
fn the_way_to_redb_and_back_again_loses_nothing() {
    each(&expecting(|expect| expect == "migrates"), name, |fixture| {
        let dir = fixture.unpack();
        let (there, back) = (dir.join("there.db"), dir.join("back.redb"));
        let again = dir.join("again.db");
        let first = converted(&dir.join("state-machine.redb"), &there);
        let before = contents(&dir);
        assert_eq!(converted(&there, &back), first);
        assert_eq!(converted(&back, &again), first);

        let mut after = contents(&dir);
        assert!(after.remove("back.redb").is_some() && after.remove("again.db").is_some());
        assert_eq!(after, before);
        let (rows, metadata) = read::redb_tables(&back);
        assert_same_rows(&rows, fixture.state());
        assert_same_metadata(&metadata, fixture.state());
        assert_holds(&again, fixture.state());
    });
}

#[test]
fn a_sqlite_file_of_a_legacy_node_goes_to_redb_with_the_rows_of_its_log_and_stays_as_it_was() {
    each(&expecting(|expect| expect == "opens"), name, |fixture| {
        let dir = fixture.unpack();
        let before = contents(&dir);
        let (back, again) = (dir.join("state-machine.redb"), dir.join("again.db"));
        let first = converted(&dir.join("state-machine.db"), &back);
        let mut after = contents(&dir);
        assert!(after.remove("state-machine.redb").is_some());
        assert!(after.remove("aspen.lock").is_some());
        assert_eq!(after, before);

        assert_eq!(converted(&back, &again), first);
        let (rows, metadata) = read::redb_tables(&back);
        assert_same_rows(&rows, fixture.state());
        assert_same_metadata(&metadata, fixture.state());
        assert_holds(&again, fixture.state());
    });
}

/// The half of the rows that is only in the log must not be what the test above
/// takes for granted.
#[test]
fn the_log_of_the_unclean_sqlite_file_holds_rows_that_the_file_lacks() {
    let fixture = fixture::one("golden", "ordinary-sqlite-unclean");
    let dir = fixture.unpack();
    std::fs::remove_file(dir.join("state-machine.db-wal")).unwrap();
    let rows = read::sqlite_table(&dir.join("state-machine.db"), "state_machine_kv");
    assert_ne!(read::rows_sha256(&rows), fixture.state().rows_sha256);
}

#[test]
fn what_is_no_legacy_state_machine_is_refused_by_name_and_nothing_is_made() {
    let refused = expecting(|expect| expect.starts_with("refused"));
    each(&refused, name, |fixture| {
        for options in [[].as_slice(), &["--full-verify"], &["--dry-run"]] {
            let dir = fixture.unpack();
            let before = contents(&dir);
            let source = dir.join(fixture.file());
            let elsewhere = fixture::scratch();
            let run = convert(&source, &elsewhere.join("target"), options);
            assert_eq!(run.code, 65, "{}", run.err);
            let named = source.to_str().unwrap();
            assert!(run.err.starts_with("Error: ") && run.err.contains(named));
            // One line that a person can read, and no key or value of the data.
            assert_eq!(run.err.lines().count(), 1, "{}", run.err);
            assert_eq!(listing(&elsewhere), [""; 0]);
            let mut after = contents(&dir);
            after.remove("aspen.lock");
            assert_eq!(after, before);
        }
    });
}
