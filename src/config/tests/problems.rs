//! What is refused, and in which words.

use std::os::unix::ffi::OsStringExt as _;

use proptest::prelude::*;

use super::*;

fn wrong(text: &str) -> Vec<String> {
    Given::file(text).problems()
}

#[test]
fn a_file_that_is_named_must_be_there_and_readable() {
    let mut given = Given::nothing();
    given.overrides.config = Some("/nowhere/config.toml".into());
    let error = given.load().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the configuration file /nowhere/config.toml does not exist; create it, or correct --config"
    );
    assert_eq!(error.exit(), Exit::Config);

    let error = Given::nothing()
        .env("ASPEN_CONFIG", "/nowhere/c")
        .load()
        .unwrap_err();
    assert!(
        error.to_string().ends_with("correct ASPEN_CONFIG"),
        "{error}"
    );

    given.overrides.config = Some(given.dir.path().into());
    let error = given.load().unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    // No restart makes a file of a directory.
    assert_eq!(error.exit(), Exit::Config);
}

/// The link's file system is not mounted, say. Without its settings, the node would be another one,
/// and would migrate what they tell it to leave alone.
#[test]
fn a_link_that_leads_nowhere_is_no_missing_file() {
    let mut given = Given::nothing();
    let link = given.path();
    std::os::unix::fs::symlink(given.dir.path().join("nowhere"), &link).unwrap();
    let told = format!(
        "the configuration file {} is a symbolic link to a file that does not exist; \
         create or mount that, or remove the link",
        link.display()
    );
    for named in [None, Some(link)] {
        given.overrides.config = named;
        let error = given.load().unwrap_err();
        assert_eq!(error.to_string(), told);
        assert_eq!(error.exit(), Exit::Config);
    }
}

#[test]
fn a_file_that_may_not_be_read_is_a_matter_of_permission() {
    use std::os::unix::fs::PermissionsExt as _;
    let given = Given::file("node.id = 2");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(given.dir.path(), open).unwrap();
    let closed = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(given.path(), closed).unwrap();
    if let Some(error) = unprivileged(4242, || given.load().unwrap_err()) {
        let path = given.path().display().to_string();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot read the configuration file {path}; \
                 check that it is a file that this user may read (ls -l)"
            )
        );
        assert_eq!(error.exit(), Exit::Permission);
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_closest_known_one() {
    assert_eq!(
        wrong("[cluster]\n  storage_backnd = \"sqlite\"\n"),
        ["FILE line 2 column 3: cluster.storage_backnd: unknown key, did you mean cluster.storage_backend?"]
            .map(|p| format!("file {p}"))
    );
    assert_eq!(
        wrong("storage_backend = \"redb\"\n[clusterr]\n[extra.deep]\nx = 1\n"),
        [
            "file FILE line 1 column 1: storage_backend: unknown key, did you mean cluster.storage_backend?",
            "file FILE line 2 column 2: clusterr: unknown key, did you mean cluster?",
            "file FILE line 3 column 2: extra: unknown key, expected one of node, http, cluster, raft, migration, log",
        ]
    );
    assert_eq!(
        wrong("\"node.id\" = 3\n"),
        ["file FILE line 1 column 1: \"node.id\": unknown key, did you mean node.id?"]
    );
}

#[test]
fn a_problem_is_one_line_whatever_the_names_in_it() {
    assert_eq!(
        wrong("[\"\\n\"]\n[cluster.initial_members]\n\"\\u0000\".peer = \"a:1\"\n"),
        [
            "file FILE line 1 column 2: \"\\n\": unknown key, expected one of node, http, cluster, raft, migration, log",
            "file FILE line 3 column 17: cluster.initial_members.\"\\0\".peer: found the member id \"\\0\", expected an integer of at least 1",
        ]
    );
    let problems = Given::nothing().env("ASPEN_\n\x07", "x").problems();
    assert!(problems[0].starts_with("environment ASPEN_\u{fffd}\u{fffd}: unknown name"));
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    assert_eq!(
        wrong(
            "node.id = \"3\"\nhttp.insecure = 1\ncluster.sqlite.pool_size = 1.5\nlog.filter = true\n\
             log.file = [\"a\"]\nmigration.backup = 1979-05-27\nmigration.verify = { a = 1 }\ncluster.peer_listen = 7000\n"
        ),
        [
            "file FILE line 1 column 11: node.id: found \"3\", expected an integer of at least 1",
            "file FILE line 2 column 17: http.insecure: found the integer 1, expected true or false",
            "file FILE line 3 column 28: cluster.sqlite.pool_size: found the float 1.5, expected an integer from 1 to 1024",
            "file FILE line 8 column 23: cluster.peer_listen: found the integer 7000, expected an IP address and a port, such as \"127.0.0.1:8080\"",
            "file FILE line 4 column 14: log.filter: found the boolean true, expected a log filter, such as \"info\" or \"info,aspen=debug\"",
            "file FILE line 5 column 12: log.file: found an array, expected a path",
            "file FILE line 6 column 20: migration.backup: found the date 1979-05-27, expected one of \"copy\", \"link\"",
            "file FILE line 7 column 20: migration.verify: found a table, expected one of \"full\", \"sample\"",
        ]
    );
    assert_eq!(
        wrong("cluster = 5\n[node.id]\n[[http]]\nlisten = \"127.0.0.1:1\"\n[log]\nfile = \"\"\n"),
        [
            "file FILE line 1 column 11: cluster: found the integer 5, expected a table",
            "file FILE line 2 column 7: node.id: found a table, expected an integer of at least 1",
            "file FILE line 3 column 3: http: found an array of tables, expected a table",
            "file FILE line 6 column 8: log.file: found \"\", expected a path",
        ]
    );
    assert_eq!(
        wrong("[cluster]\nmigrated = 1\ninitial_members = \"a\"\n"),
        [
            "file FILE line 2 column 12: cluster.migrated: found the integer 1, expected a table",
            "file FILE line 3 column 19: cluster.initial_members: found \"a\", expected a table of members, each ID = { peer = \"HOST:PORT\", http = \"HOST:PORT\" }",
        ]
    );
}

#[test]
fn a_number_out_of_range_is_refused() {
    assert_eq!(
        wrong(
            "[node]\nid = 0\n[cluster.sqlite]\npool_size = 1025\n[migration]\nkeep_backups = -1\n"
        ),
        [
            "file FILE line 2 column 6: node.id: found the integer 0, expected an integer of at least 1",
            "file FILE line 4 column 13: cluster.sqlite.pool_size: found the integer 1025, expected an integer from 1 to 1024",
            "file FILE line 6 column 16: migration.keep_backups: found the integer -1, expected an integer from 1 to 4294967295",
        ]
    );
    assert_eq!(
        Given::nothing()
            .env("ASPEN_CLUSTER__SQLITE__POOL_SIZE", "0")
            .problems(),
        [
            "environment ASPEN_CLUSTER__SQLITE__POOL_SIZE: cluster.sqlite.pool_size: found \"0\", expected an integer from 1 to 1024"
        ]
    );
}

#[test]
fn a_name_that_is_no_choice_is_refused_with_the_closest_one() {
    assert_eq!(
        wrong("[cluster]\nstorage_backend = \"sqllite\" # oh\n"),
        [
            "file FILE line 2 column 19: cluster.storage_backend: found \"sqllite\", expected one of \"sqlite\", \"redb\", \"memory\"; did you mean \"sqlite\"?"
        ]
    );
    let mut given = Given::nothing();
    given.overrides.storage_backend = Some("postgres".into());
    assert_eq!(
        given.problems(),
        [
            "command line --storage-backend: cluster.storage_backend: found \"postgres\", expected one of \"sqlite\", \"redb\", \"memory\""
        ]
    );
}

#[test]
fn an_address_that_is_none_is_refused() {
    for bad in [
        "localhost:8080",
        "127.0.0.1",
        "127.0.0.1:99999",
        ":8080",
        "127.0.0.1:8080 ",
    ] {
        assert_eq!(
            wrong(&format!("\n[http]\nlisten = {bad:?}\n")),
            [format!(
                "file FILE line 3 column 10: http.listen: found {bad:?}, expected an IP address and a port, such as \"127.0.0.1:8080\""
            )]
        );
    }
    assert_eq!(
        wrong("[cluster.initial_members]\n1 = { peer = \"10.0.0.1\", http = \"a:2\" }\n"),
        [
            "file FILE line 2 column 14: cluster.initial_members.1.peer: found \"10.0.0.1\", expected a host and a port, such as \"10.0.0.1:7000\""
        ]
    );
}

#[test]
fn members_must_be_complete_and_apart() {
    assert_eq!(
        wrong(
            "[cluster.initial_members]\n1 = { peer = \"a:1\" }\n01 = { peer = \"b:1\", http = \"b:2\" }\n\
             2 = { peer = \"a:1\", http = \"c:2\", port = 3 }\nx = { http = \"d:2\" }\n0 = { http = \"e:2\" }\n3 = {}\n"
        ),
        [
            "file FILE line 3 column 15: cluster.initial_members.01.peer: found the member id \"01\", expected an integer of at least 1",
            "file FILE line 3 column 29: cluster.initial_members.01.http: found the member id \"01\", expected an integer of at least 1",
            "file FILE line 4 column 35: cluster.initial_members.2.port: unknown key, expected one of peer, http",
            "file FILE line 5 column 14: cluster.initial_members.x.http: found the member id \"x\", expected an integer of at least 1",
            "file FILE line 6 column 14: cluster.initial_members.0.http: found the member id \"0\", expected an integer of at least 1",
            "file FILE line 7 column 1: cluster.initial_members.3: found a member without addresses, expected peer and http",
            "file FILE line 2: cluster.initial_members.1.peer: found member 1 with this address only, expected cluster.initial_members.1.http as well",
            "file FILE line 4: cluster.initial_members.2.peer: found \"a:1\", which is also cluster.initial_members.1.peer; expected an address of its own",
        ]
    );
}

#[test]
fn a_log_filter_that_does_not_parse_is_refused() {
    assert_eq!(
        Given::nothing().env("RUST_LOG", "aspen=loud").problems(),
        [
            "environment RUST_LOG: log.filter: found \"aspen=loud\", expected a log filter, such as \"info\" or \"info,aspen=debug\""
        ]
    );
}

#[test]
fn a_syntax_error_is_told_by_line_and_column() {
    assert_eq!(
        wrong("[node]\nid = 3\n[cluster\nstorage_backend = \"redb\"\n"),
        ["file FILE line 3 column 9: not valid TOML: unclosed table, expected `]`"]
    );
    assert_eq!(
        wrong("\u{feff}id = \r\n"),
        [
            "file FILE line 1 column 6: not valid TOML: string values must be quoted, expected literal string"
        ]
    );
    assert_eq!(
        wrong("[node]\nid = 1\nid = 2\n"),
        ["file FILE line 3 column 1: not valid TOML: duplicate key"]
    );
}

#[test]
fn a_file_that_is_not_text_is_told_by_line_and_column() {
    assert_eq!(
        Given::file(b"[node]\nid = \xff\n").problems(),
        ["file FILE line 2 column 6: found a byte that is not UTF-8, expected TOML"]
    );
    let large = "# more\n".repeat(200_000);
    assert_eq!(
        wrong(&large),
        ["file FILE line 1 column 1: found a file of more than 1048576 bytes, expected less"]
    );
}

#[test]
fn an_unknown_name_in_the_environment_is_refused() {
    let given = Given::nothing()
        .env("ASPEN_STORAGE_BACKENT", "redb")
        .env("ASPEN_CLUSTER_STORAGE_BACKEND", "redb")
        .env("ASPEN_cluster__storage_backend", "redb")
        .env("ASPEN_CLUSTER__MIGRATED", "{}")
        .env("ASPEN_", "x")
        .env("SOMETHING_ELSE", "x");
    let unknown = "unknown name, expected ASPEN_ and a key's path joined by __, such as ASPEN_CLUSTER__SQLITE__POOL_SIZE";
    assert_eq!(
        given.problems(),
        [
            format!("environment ASPEN_: {unknown}"),
            "environment ASPEN_CLUSTER_STORAGE_BACKEND: unknown name, did you mean ASPEN_CLUSTER__STORAGE_BACKEND?".into(),
            "environment ASPEN_CLUSTER__MIGRATED: ".to_owned() + unknown,
            "environment ASPEN_STORAGE_BACKENT: unknown name, did you mean ASPEN_STORAGE_BACKEND?".into(),
            "environment ASPEN_cluster__storage_backend: unknown name, did you mean ASPEN_CLUSTER__STORAGE_BACKEND?".into(),
        ]
    );
}

#[test]
fn what_is_not_unicode_is_refused_by_name() {
    let not_unicode = || OsString::from_vec(b"/data/\xff".to_vec());
    let mut given = Given::nothing()
        .env("ASPEN_DATA_DIR", not_unicode())
        .env("ASPEN_CONFIG", not_unicode())
        .env("STATE_DIRECTORY", not_unicode())
        .env("OTHER", not_unicode());
    given
        .environment
        .push((OsString::from_vec(b"ASPEN_\xff".to_vec()), "x".into()));
    given.overrides.data_dir = Some(not_unicode());
    let found = "found a value that is not Unicode, expected UTF-8";
    assert_eq!(
        given.problems(),
        [
            format!("environment ASPEN_DATA_DIR: node.data_dir: {found}"),
            format!("environment ASPEN_CONFIG: {found}"),
            "environment ASPEN_\u{fffd}: unknown name, expected ASPEN_ and a key's path joined by __, such as ASPEN_CLUSTER__SQLITE__POOL_SIZE".into(),
            format!("environment STATE_DIRECTORY: node.data_dir: {found}"),
            format!("command line --data-dir: node.data_dir: {found}"),
        ]
    );
}

#[test]
fn bounds_of_raft_hold_each_for_itself_and_together() {
    assert_eq!(
        wrong("[raft]\nlog_keep = \"1KiB\"\nelection_timeout_ms = 49\n"),
        [
            "file FILE line 2 column 12: raft.log_keep: found \"1KiB\", expected bytes from 1MiB to 1TiB, such as 1048576 or \"1MiB\"",
            "file FILE line 3 column 23: raft.election_timeout_ms: found the integer 49, expected an integer from 50 to 60000",
        ]
    );
    assert_eq!(
        wrong("raft.heartbeat_ms = 100\nraft.election_timeout_ms = 300\n"),
        [
            "file FILE line 1: raft.heartbeat_ms: found 100 ms, expected less than a third of raft.election_timeout_ms, which is 300 ms"
        ]
    );
}

#[test]
fn the_two_listeners_need_an_address_each() {
    assert_eq!(
        wrong("cluster.peer_listen = \"127.0.0.1:8080\"\n"),
        [
            "file FILE line 1: cluster.peer_listen: found \"127.0.0.1:8080\", which is also http.listen; expected an address of its own"
        ]
    );
    Given::file("cluster.peer_listen = \"127.0.0.1:0\"\nhttp.listen = \"127.0.0.1:0\"").settings();
}

#[test]
fn all_problems_of_all_sources_are_told_at_once() {
    let mut given = Given::file("[node]\nid = 0\n[cluster]\nbackend = \"redb\"\n")
        .env("ASPEN_NOD_ID", "3")
        .env("ASPEN_STORAGE_BACKEND", "oracle");
    given.overrides.http_addr = Some("here".into());
    let error = given.load().unwrap_err();
    assert_eq!(error.exit(), Exit::Config);
    assert_eq!(
        error.to_string().replace(&given.path().display().to_string(), "FILE"),
        "the configuration is wrong; correct this and try it with `aspen-node --check-config`:
  file FILE line 2 column 6: node.id: found the integer 0, expected an integer of at least 1
  file FILE line 4 column 1: cluster.backend: unknown key, did you mean cluster.storage_backend?
  environment ASPEN_STORAGE_BACKEND: cluster.storage_backend: found \"oracle\", expected one of \"sqlite\", \"redb\", \"memory\"
  environment ASPEN_NOD_ID: unknown name, did you mean ASPEN_NODE_ID?
  command line --http-addr: http.listen: found \"here\", expected an IP address and a port, such as \"127.0.0.1:8080\""
    );
}

#[test]
fn a_refused_value_is_not_also_a_conflict() {
    let problems = wrong("http = { listen = \"0.0.0.0:1\", insecure = \"yes\" }\n");
    assert_eq!(
        problems,
        ["file FILE line 1 column 43: http.insecure: found \"yes\", expected true or false"]
    );
}

#[test]
fn a_very_long_value_is_shown_in_part() {
    let problems = wrong(&format!("log.format = \"{}\"\n", "x".repeat(100_000)));
    assert!(
        problems[0].contains("xxx\"..., expected"),
        "{}",
        problems[0]
    );
    assert!(problems[0].len() < 300);
}

/// A configuration that touches every kind of key, to be damaged.
const WHOLE: &str = r#"# Aspen
[node]
id = 3
data_dir = "/srv/aspen"

[http]
listen = "127.0.0.1:8080"
insecure = false

[cluster]
storage_backend = "redb"   # for now
sqlite = { pool_size = 10 }
initial_members.1 = { peer = "10.0.0.1:7000", http = "10.0.0.1:8080" }
[cluster.migrated]
keys = 5
[migration]
backup = 'link'
[log]
filter = """info"""
"#;

/// Changes to a text: at a place, some bytes go and others come.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Vec<u8>)>> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(vec![
            "[", "]]", "{", "}", "=", ".", "\"", "'''", "\n", "\r", "#", ",", "\u{feff}", "1e9"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0_usize..6, bytes), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_file_never_panics_and_its_problems_name_file_and_line(changes in damage()) {
        let mut bytes = WHOLE.as_bytes().to_vec();
        for (at, gone, come) in changes {
            let start = at.index(bytes.len() + 1);
            let end = (start + gone).min(bytes.len());
            bytes.splice(start..end, come);
        }
        let source = Source::file(Path::new("/etc/c.toml"), &bytes);
        for problem in source.problems {
            let place = problem.place.strip_prefix("file /etc/c.toml line ").expect("file and line");
            let line: usize = place.split(' ').next().and_then(|n| n.parse().ok()).expect("a line");
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            prop_assert!((1..=lines).contains(&line), "{problem}");
            prop_assert!(problem.message.contains("expected") || problem.message.contains("did you mean")
                || problem.message.starts_with("not valid TOML: "), "{problem}");
            prop_assert!(!problem.to_string().contains('\n'), "{problem}");
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let given = Given::file(bytes);
        if let Err(error) = given.load() {
            let place = format!("file {} line ", given.path().display());
            prop_assert!(error.to_string().contains(&place));
        }
    }

    #[test]
    fn arbitrary_variables_never_panic_and_are_named(name in "ASPEN_[A-Z_]{0,30}", value in any::<Vec<u8>>()) {
        let value = OsString::from_vec(value);
        let given = Given::nothing().env(&name, value.clone());
        match given.load() {
            Err(ConfigError::Invalid(problems)) => {
                let place = format!("environment {name}");
                prop_assert!(problems.iter().all(|p| p.place == place));
            }
            other => prop_assert!(value.is_empty() || name == "ASPEN_CONFIG", "{other:?}"),
        }
    }
}
