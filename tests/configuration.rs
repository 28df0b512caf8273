//! The configuration as packages ship it, as operators check it, and as a
//! migration leaves it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use aspen::config::keys::{ANY_ID, KEYS};
use aspen::config::rewrite::{Migrated, Outcome, record_migration};
use aspen::config::settings::Backend;
use aspen::config::{Loaded, Overrides, load};

const TEMPLATE: &str = include_str!("../packaging/config.toml");

fn load_file(path: &Path) -> Loaded {
    load(&Overrides::default(), [], path).unwrap()
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

/// What the template shows in place of a secret, which is none: too many would be that one.
const NO_SECRET: &str = " = \"(what `openssl rand -hex 24` prints)\"";

/// The template with its defaults no longer commented out.
fn uncommented() -> String {
    let lines = TEMPLATE.lines().filter(|line| !line.ends_with(NO_SECRET));
    let lines = lines.map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_packaged_template_sets_the_backend_and_the_log_file_and_nothing_else() {
    let (_dir, path) = written(TEMPLATE);
    let packaged = load_file(&path);
    let without = load_file(Path::new("/nowhere"));
    let mut expected = without.settings;
    expected.log.file = Some("/var/log/aspen/node.log".into());
    assert_eq!(packaged.settings, expected);
    assert_eq!(packaged.storage_backend_in_file(), Some(Backend::Sqlite));
}

#[test]
fn what_the_template_shows_commented_out_are_the_defaults() {
    let (_dir, path) = written(&uncommented());
    let shown = load_file(&path);
    let mut expected = load_file(Path::new("/nowhere")).settings;
    // These show what packages use, and examples.
    expected.http.tls_certificate = Some("/etc/aspen/tls.crt".into());
    expected.http.tls_key = Some("/etc/aspen/tls.key".into());
    expected.cluster.tls_certificate = Some("/etc/aspen/peer.crt".into());
    expected.cluster.tls_key = Some("/etc/aspen/peer.key".into());
    expected.cluster.tls_ca = Some("/etc/aspen/peer-ca.crt".into());
    expected.node.data_dir = "/var/lib/aspen".into();
    expected.log.file = Some("/var/log/aspen/node.log".into());
    expected.cluster.initial_members = shown.settings.cluster.initial_members.clone();
    assert_eq!(expected.cluster.initial_members.len(), 3);
    assert_eq!(shown.settings, expected);
}

#[test]
fn the_template_names_and_explains_every_known_key() {
    let (_dir, path) = written(&uncommented());
    let shown = load_file(&path);
    for key in KEYS {
        assert!(TEMPLATE.contains(key.doc), "{}: {}", key.path, key.doc);
        // These two are tables and have no value of their own.
        if ["cluster.initial_members", "cluster.migrated"].contains(&key.path) {
            assert!(TEMPLATE.contains(&format!("[{}]", key.path)));
        } else if key.secret {
            let name = key.path.rsplit('.').next().unwrap();
            assert!(TEMPLATE.contains(&format!("\n#{name}{NO_SECRET}\n")));
        } else {
            let origin = shown.origin(&key.path.replace(ANY_ID, "1"));
            assert!(origin.starts_with("file "), "{}: {origin}", key.path);
        }
    }
}

#[test]
fn what_the_template_shows_in_place_of_a_secret_is_refused() {
    let shown = TEMPLATE.lines().filter(|line| line.ends_with(NO_SECRET));
    let mut tested = 0;
    for line in shown {
        let line = line.trim_start_matches('#');
        let section = match line.starts_with("secret") {
            true => "cluster",
            false => "http",
        };
        let (_dir, path) = written(&format!("[{section}]\n{line}\n"));
        let refused = load(&Overrides::default(), [], &path).unwrap_err();
        assert!(
            refused.to_string().contains("not shown"),
            "{line}: {refused}"
        );
        tested += 1;
    }
    assert_eq!(tested, KEYS.iter().filter(|key| key.secret).count());
}

#[test]
fn a_migration_turns_the_guides_configuration_to_sqlite_and_keeps_its_comments() {
    let guide = "# config.toml\n[cluster]\n# Change from 'redb' to 'sqlite'\nstorage_backend = \"redb\"\n\n\
                 # Optional: Configure SQLite-specific settings\n[cluster.sqlite]\n\
                 pool_size = 10  # Number of read connections\n";
    let (_dir, path) = written(guide);
    assert_eq!(
        load_file(&path).settings.cluster.storage_backend,
        Backend::Redb
    );
    let migrated = Migrated {
        from: Backend::Redb,
        to: Backend::Sqlite,
        at: "2026-11-22T18:37:34Z".into(),
        fingerprint: "0011".into(),
        keys: 1234,
        last_applied: None,
        backup: "/srv/state-machine.redb.backup-20261122-183734".into(),
        version: "0.1.0".into(),
    };
    assert_eq!(
        record_migration(&path, &migrated).unwrap(),
        Outcome::Written
    );

    let text = std::fs::read_to_string(&path).unwrap();
    let before = guide.replace("\"redb\"", "\"sqlite\"");
    let added = text.strip_prefix(&before).expect("every other byte stays");
    assert!(
        added.contains("\n[cluster.migrated]\nfrom = \"redb\"\nto = \"sqlite\"\n"),
        "{added}"
    );
    let loaded = load_file(&path);
    assert_eq!(loaded.settings.cluster.storage_backend, Backend::Sqlite);
    assert_eq!(loaded.storage_backend_in_file(), Some(Backend::Sqlite));

    // An operator who rolls back by the guide, with its own `sed` the other way round,
    // still has a valid configuration, and the next migration writes it once more.
    std::fs::write(
        &path,
        text.replace("storage_backend = \"sqlite\"", "storage_backend = \"redb\""),
    )
    .unwrap();
    assert_eq!(
        load_file(&path).settings.cluster.storage_backend,
        Backend::Redb
    );
    assert_eq!(
        record_migration(&path, &migrated).unwrap(),
        Outcome::Written
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_migration_changes_nothing_of_the_packaged_template_but_adds_the_record() {
    let (_dir, path) = written(TEMPLATE);
    let migrated = Migrated {
        from: Backend::Redb,
        to: Backend::Sqlite,
        at: "2026-11-22T18:37:34Z".into(),
        fingerprint: "0011".into(),
        keys: 0,
        last_applied: Some(1),
        backup: "b".into(),
        version: "0.1.0".into(),
    };
    let before = load_file(&path).settings;
    assert_eq!(
        record_migration(&path, &migrated).unwrap(),
        Outcome::Written
    );
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with(TEMPLATE)
    );
    assert_eq!(load_file(&path).settings, before);
}

#[test]
fn the_report_of_any_configuration_loads_as_the_same_configuration() {
    for text in ["", TEMPLATE, &uncommented()] {
        let (_dir, path) = written(text);
        let loaded = load_file(&path);
        let (_other, report) = written(&loaded.report());
        assert_eq!(load_file(&report).settings, loaded.settings);
    }
}
