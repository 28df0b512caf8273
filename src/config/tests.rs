#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, UNIX_EPOCH};

use super::settings::{BackupKind, LogFormat, Member, Secret, Verify};
use super::*;

mod problems;
mod protection;

/// Runs `work` as a user without privileges, in a thread of its own; `None`
/// where this process may not change users. Root passes every check of permissions.
pub(super) fn unprivileged<T: Send>(user: u32, work: impl FnOnce() -> T + Send) -> Option<T> {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("not tested: needs root to become another user");
        return None;
    }
    std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            // SAFETY: the bare system call changes the ids of this thread alone, where the
            // wrapper of libc would change them for all tests; it touches no memory.
            let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, user, user, user) };
            assert_eq!(changed, 0);
            work()
        });
        Some(thread.join().unwrap())
    })
}

/// A configuration file in a directory of its own, and what else is given.
struct Given {
    dir: tempfile::TempDir,
    environment: Vec<(OsString, OsString)>,
    overrides: Overrides,
}

impl Given {
    fn nothing() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
            overrides: Overrides::default(),
        }
    }

    fn file(text: impl AsRef<[u8]>) -> Self {
        let given = Self::nothing();
        std::fs::write(given.path(), text).unwrap();
        given
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.overrides, self.environment.clone(), &self.path())
    }

    fn settings(&self) -> Settings {
        self.load().unwrap().settings
    }

    /// What is wrong, the file's path shown as FILE.
    fn problems(&self) -> Vec<String> {
        let Err(ConfigError::Invalid(problems)) = self.load() else {
            panic!("expected problems");
        };
        let path = self.path().display().to_string();
        problems
            .iter()
            .map(|p| p.to_string().replace(&path, "FILE"))
            .collect()
    }
}

#[test]
fn without_any_configuration_one_node_runs_on_loopback_with_sqlite() {
    let settings = Given::nothing().settings();
    assert_eq!(settings.node.id, 1);
    assert_eq!(settings.node.data_dir, Path::new("./data/node-1"));
    assert_eq!(settings.http.listen, "127.0.0.1:8080".parse().unwrap());
    assert!(!settings.http.insecure);
    assert_eq!(settings.http.max_connections, 1024);
    assert_eq!(settings.http.tls(), None);
    assert_eq!(
        (settings.http.token, settings.http.admin_token),
        (None, None)
    );
    assert_eq!(settings.raft.log_keep, 256 << 20);
    assert_eq!(settings.raft.election_timeout, Duration::from_secs(1));
    assert_eq!(settings.raft.heartbeat, Duration::from_millis(150));
    assert_eq!(settings.cluster.storage_backend, Backend::Sqlite);
    assert_eq!(settings.cluster.sqlite.pool_size, 10);
    assert_eq!(
        settings.cluster.peer_listen,
        "127.0.0.1:7000".parse().unwrap()
    );
    assert!(settings.cluster.initial_members.is_empty());
    assert_eq!(settings.migration.backup, BackupKind::Copy);
    assert_eq!(settings.migration.keep_backups, 3);
    assert_eq!(settings.migration.verify, Verify::Full);
    assert_eq!(settings.log.filter, "info");
    assert_eq!(settings.log.format, LogFormat::Auto);
    assert_eq!(settings.log.file, None);
}

#[test]
fn every_key_can_be_set_in_the_file() {
    let settings = Given::file(
        r#"
        node = { id = 3, data_dir = "/srv/aspen" }
        http.listen = "0.0.0.0:80"
        http.insecure = true
        http.max_connections = 7
        http.tls_certificate = "/etc/aspen/tls.crt"
        http.tls_key = "/etc/aspen/tls.key"
        http.token = "0123456789abcdef"
        http.admin_token = "fedcba9876543210"
        raft = { log_keep = 1048576, election_timeout_ms = 300, heartbeat_ms = 99 }
        [cluster]
        storage_backend = "redb"
        peer_listen = "[::1]:7001"
        [cluster.sqlite]
        pool_size = 1024
        [cluster.initial_members]
        1 = { peer = "10.0.0.1:7000", http = "10.0.0.1:8080" }
        18446744073709551615 = { peer = "node-3.example.org:7000", http = "[fe80::3]:8080" }
        [cluster.migrated]
        from = "redb"
        anything = ["that", { an = "old" }, "version wrote"]
        [migration]
        backup = "link"
        keep_backups = 1
        verify = "sample"
        [log]
        filter = "info,aspen::raft=debug"
        format = "json"
        file = "/var/log/aspen/node.log"
        "#,
    )
    .settings();
    assert_eq!(settings.node.id, 3);
    assert_eq!(settings.node.data_dir, Path::new("/srv/aspen"));
    assert_eq!(settings.http.listen, "0.0.0.0:80".parse().unwrap());
    assert_eq!(settings.http.max_connections, 7);
    let tls = ("/etc/aspen/tls.crt".as_ref(), "/etc/aspen/tls.key".as_ref());
    assert_eq!(settings.http.tls(), Some(tls));
    assert_eq!(settings.http.token, Some(Secret::new("0123456789abcdef")));
    let admin = Secret::new("fedcba9876543210");
    assert_eq!(settings.http.admin_token, Some(admin));
    assert_eq!(settings.raft.log_keep, 1 << 20);
    assert_eq!(settings.raft.election_timeout, Duration::from_millis(300));
    assert_eq!(settings.raft.heartbeat, Duration::from_millis(99));
    assert_eq!(settings.cluster.storage_backend, Backend::Redb);
    assert_eq!(settings.cluster.sqlite.pool_size, 1024);
    assert_eq!(settings.cluster.peer_listen, "[::1]:7001".parse().unwrap());
    let last = Member {
        peer: "node-3.example.org:7000".into(),
        http: "[fe80::3]:8080".into(),
    };
    assert_eq!(
        settings.cluster.initial_members.keys().collect::<Vec<_>>(),
        [&1, &u64::MAX]
    );
    assert_eq!(settings.cluster.initial_members[&u64::MAX], last);
    assert_eq!(settings.migration.backup, BackupKind::Link);
    assert_eq!(settings.migration.keep_backups, 1);
    assert_eq!(settings.migration.verify, Verify::Sample);
    assert_eq!(settings.log.filter, "info,aspen::raft=debug");
    assert_eq!(settings.log.format, LogFormat::Json);
    assert_eq!(
        settings.log.file.as_deref(),
        Some(Path::new("/var/log/aspen/node.log"))
    );
}

#[test]
fn every_key_can_be_set_in_the_environment() {
    let settings = Given::nothing()
        .env("ASPEN_NODE__ID", "4")
        .env("ASPEN_NODE__DATA_DIR", "/srv/aspen")
        .env("ASPEN_HTTP__LISTEN", "0.0.0.0:80")
        .env("ASPEN_HTTP__INSECURE", "true")
        .env("ASPEN_HTTP__TOKEN", "0123456789abcdef")
        .env("ASPEN_RAFT__LOG_KEEP", "2GiB")
        .env("ASPEN_CLUSTER__STORAGE_BACKEND", "memory")
        .env("ASPEN_CLUSTER__PEER_LISTEN", "127.0.0.1:7001")
        .env("ASPEN_CLUSTER__SQLITE__POOL_SIZE", "4")
        .env("ASPEN_CLUSTER__INITIAL_MEMBERS__4__PEER", "10.0.0.4:7000")
        .env("ASPEN_CLUSTER__INITIAL_MEMBERS__4__HTTP", "10.0.0.4:8080")
        .env("ASPEN_MIGRATION__BACKUP", "link")
        .env("ASPEN_MIGRATION__KEEP_BACKUPS", "9")
        .env("ASPEN_MIGRATION__VERIFY", "sample")
        .env("ASPEN_LOG__FILTER", "debug")
        .env("ASPEN_LOG__FORMAT", "text")
        .env("ASPEN_LOG__FILE", "/tmp/node.log")
        .settings();
    assert_eq!(settings.node.id, 4);
    assert_eq!(settings.node.data_dir, Path::new("/srv/aspen"));
    assert!(settings.http.insecure);
    assert_eq!(settings.http.listen, "0.0.0.0:80".parse().unwrap());
    assert_eq!(settings.http.token, Some(Secret::new("0123456789abcdef")));
    assert_eq!(settings.raft.log_keep, 2 << 30);
    assert_eq!(settings.cluster.storage_backend, Backend::Memory);
    assert_eq!(
        settings.cluster.peer_listen,
        "127.0.0.1:7001".parse().unwrap()
    );
    assert_eq!(settings.cluster.sqlite.pool_size, 4);
    assert_eq!(settings.cluster.initial_members[&4].http, "10.0.0.4:8080");
    assert_eq!(settings.migration.backup, BackupKind::Link);
    assert_eq!(settings.migration.keep_backups, 9);
    assert_eq!(settings.migration.verify, Verify::Sample);
    assert_eq!(settings.log.filter, "debug");
    assert_eq!(settings.log.format, LogFormat::Text);
    assert_eq!(
        settings.log.file.as_deref(),
        Some(Path::new("/tmp/node.log"))
    );
}

#[test]
fn the_short_names_of_the_environment_work() {
    let settings = Given::nothing()
        .env("ASPEN_STORAGE_BACKEND", "redb")
        .env("ASPEN_NODE_ID", "7")
        .env("ASPEN_HTTP_ADDR", "127.0.0.2:80")
        .env("ASPEN_DATA_DIR", "elsewhere")
        .env("RUST_LOG", "warn")
        .settings();
    assert_eq!(settings.cluster.storage_backend, Backend::Redb);
    assert_eq!(settings.node.id, 7);
    assert_eq!(settings.http.listen, "127.0.0.2:80".parse().unwrap());
    assert_eq!(settings.node.data_dir, Path::new("elsewhere"));
    assert_eq!(settings.log.filter, "warn");
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let mut given = Given::file("[node]\nid = 2\n[cluster]\nstorage_backend = \"redb\"\n")
        .env("ASPEN_NODE_ID", "3")
        .env("ASPEN_STORAGE_BACKEND", "memory");
    assert_eq!(given.settings().node.id, 3);
    given.overrides = Overrides {
        config: None,
        node_id: Some("4".into()),
        data_dir: Some("d".into()),
        http_addr: Some("127.0.0.1:1".into()),
        storage_backend: Some("sqlite".into()),
    };
    let loaded = given.load().unwrap();
    assert_eq!(loaded.settings.node.id, 4);
    assert_eq!(loaded.settings.node.data_dir, Path::new("d"));
    assert_eq!(loaded.settings.http.listen, "127.0.0.1:1".parse().unwrap());
    assert_eq!(loaded.settings.cluster.storage_backend, Backend::Sqlite);
    assert_eq!(loaded.storage_backend_in_file(), Some(Backend::Redb));
    assert_eq!(loaded.origin("node.id"), "command line --node-id");
    assert_eq!(loaded.origin("migration.verify"), "default");
}

#[test]
fn what_is_overridden_by_a_different_value_is_named() {
    let text = "[cluster]\nstorage_backend = \"redb\"\nsqlite.pool_size = 10\n";
    let given = Given::file(text)
        .env("ASPEN_STORAGE_BACKEND", "sqlite")
        .env("ASPEN_CLUSTER__SQLITE__POOL_SIZE", "10");
    let loaded = given.load().unwrap();
    let named: Vec<_> = loaded
        .contradictions()
        .iter()
        .map(ToString::to_string)
        .collect();
    let path = given.path();
    assert_eq!(
        named,
        [format!(
            "cluster.storage_backend is \"sqlite\" by environment ASPEN_STORAGE_BACKEND, \
             although file {} line 2 says \"redb\"",
            path.display()
        )]
    );
    let agreed = Given::file(text).env("ASPEN_STORAGE_BACKEND", "redb");
    assert_eq!(agreed.load().unwrap().contradictions(), []);
}

#[test]
fn the_long_name_wins_over_the_short_one_and_the_loser_is_named() {
    let loaded = Given::nothing()
        .env("ASPEN_CLUSTER__STORAGE_BACKEND", "redb")
        .env("ASPEN_STORAGE_BACKEND", "sqlite")
        .load()
        .unwrap();
    assert_eq!(loaded.settings.cluster.storage_backend, Backend::Redb);
    assert_eq!(
        loaded.contradictions()[0].to_string(),
        "cluster.storage_backend is \"redb\" by environment ASPEN_CLUSTER__STORAGE_BACKEND, \
         although environment ASPEN_STORAGE_BACKEND says \"sqlite\""
    );
}

#[test]
fn members_given_as_a_whole_by_the_environment_replace_those_of_the_file() {
    let file = "[cluster.initial_members]\n1 = { peer = \"a:1\", http = \"a:2\" }\n2 = { peer = \"b:1\", http = \"b:2\" }\n";
    let whole = r#"{ 1 = { peer = "a:1", http = "a:9" }, 3 = { peer = "c:1", http = "c:2" } }"#;
    let given = Given::file(file).env("ASPEN_CLUSTER__INITIAL_MEMBERS", whole);
    let loaded = given.load().unwrap();
    let members = &loaded.settings.cluster.initial_members;
    assert_eq!(members.keys().collect::<Vec<_>>(), [&1, &3]);
    let named: Vec<_> = loaded
        .contradictions()
        .into_iter()
        .map(|c| (c.key, c.value))
        .collect();
    assert_eq!(
        named,
        [
            ("cluster.initial_members.1.http".into(), "\"a:9\"".into()),
            ("cluster.initial_members.2.peer".into(), "not set".into()),
            ("cluster.initial_members.2.http".into(), "not set".into()),
        ]
    );
    // One address of one member, on the other hand, changes that alone.
    let one = Given::file(file).env("ASPEN_CLUSTER__INITIAL_MEMBERS__2__HTTP", "b:9");
    let members = one.settings().cluster.initial_members;
    assert_eq!((members.len(), members[&2].http.as_str()), (2, "b:9"));
}

#[test]
fn the_data_directory_is_that_of_systemd_or_named_after_the_node() {
    let id = Given::nothing().env("ASPEN_NODE_ID", "9");
    assert_eq!(id.settings().node.data_dir, Path::new("./data/node-9"));
    let unit = id.env("STATE_DIRECTORY", "/var/lib/aspen:/var/lib/other");
    let loaded = unit.load().unwrap();
    assert_eq!(loaded.settings.node.data_dir, Path::new("/var/lib/aspen"));
    assert_eq!(
        loaded.origin("node.data_dir"),
        "environment STATE_DIRECTORY"
    );
    let file = Given::file("node.data_dir = \"/srv\"").env("STATE_DIRECTORY", "/var/lib/aspen");
    assert_eq!(file.settings().node.data_dir, Path::new("/srv"));
    let empty = Given::nothing().env("STATE_DIRECTORY", "");
    assert_eq!(empty.settings().node.data_dir, Path::new("./data/node-1"));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let settings = Given::nothing()
        .env("ASPEN_STORAGE_BACKEND", "")
        .env("ASPEN_CONFIG", "")
        .env("ASPEN_WHATEVER", "")
        .env("RUST_LOG", "")
        .settings();
    assert_eq!(settings.cluster.storage_backend, Backend::Sqlite);
}

#[test]
fn the_file_is_the_one_named_by_the_option_else_by_the_variable() {
    let by_default = Given::file("node.id = 1");
    let by_variable = Given::file("node.id = 2");
    let by_option = Given::file("node.id = 3");
    let mut given = by_default.env("ASPEN_CONFIG", by_variable.path());
    let loaded = given.load().unwrap();
    assert_eq!(loaded.settings.node.id, 2);
    assert_eq!(loaded.file, Some(by_variable.path()));
    given.overrides.config = Some(by_option.path());
    assert_eq!(given.settings().node.id, 3);
}

#[test]
fn the_report_is_the_configuration_itself_with_origins() {
    let mut given = Given::file("[cluster]\nstorage_backend = \"redb\"\n[cluster.initial_members]\n10 = { peer = \"b:1\", http = \"b:2\" }\n2 = { peer = \"a:1\", http = \"a:2\" }\n")
        .env("ASPEN_STORAGE_BACKEND", "sqlite")
        .env("ASPEN_LOG__FILE", "/tmp/a \"b\".log");
    given.overrides.node_id = Some("2".into());
    let loaded = given.load().unwrap();
    let report = loaded.report();
    let path = given.path().display().to_string();
    let expected = r##"# The configuration is valid. File: FILE
node.id                         = 2                # command line --node-id
node.data_dir                   = "./data/node-2"  # default
http.listen                     = "127.0.0.1:8080" # default
http.insecure                   = false            # default
http.max_connections            = 1024             # default
cluster.storage_backend         = "sqlite"         # environment ASPEN_STORAGE_BACKEND
cluster.peer_listen             = "127.0.0.1:7000" # default
cluster.join                    = false            # default
cluster.sqlite.pool_size        = 10               # default
cluster.initial_members.2.peer  = "a:1"            # file FILE line 5
cluster.initial_members.2.http  = "a:2"            # file FILE line 5
cluster.initial_members.10.peer = "b:1"            # file FILE line 4
cluster.initial_members.10.http = "b:2"            # file FILE line 4
raft.log_keep                   = 268435456        # default
raft.election_timeout_ms        = 1000             # default
raft.heartbeat_ms               = 150              # default
migration.backup                = "copy"           # default
migration.keep_backups          = 3                # default
migration.verify                = "full"           # default
log.filter                      = "info"           # default
log.format                      = "auto"           # default
log.file                        = '/tmp/a "b".log' # environment ASPEN_LOG__FILE
# http.tls_certificate is not set: The certificate for TLS, with its chain, as PEM; http.tls_key belongs to it.
# http.tls_key is not set: The private key of the certificate, as PEM.
# http.token is not set: The token that requests need, 16 to 128 characters; health needs none.
# http.admin_token is not set: The token that /admin needs; it opens everything else too.
# cluster.secret is not set: What only the nodes of the cluster know, 16 to 128 characters, the same on all.
# cluster.tls_certificate is not set: This node's certificate for other nodes, with its chain, as PEM.
# cluster.tls_key is not set: The private key of that certificate, as PEM.
# cluster.tls_ca is not set: The certificates that have signed those of all nodes, as PEM.
# Note: cluster.storage_backend is "sqlite" by environment ASPEN_STORAGE_BACKEND, although file FILE line 2 says "redb"
"##;
    assert_eq!(report.replace(&path, "FILE"), expected);
    assert_eq!(Given::file(report).settings(), loaded.settings);

    let unset = Given::nothing().load().unwrap().report();
    assert!(unset.starts_with("# The configuration is valid. No file was read.\n"));
    assert!(unset.contains("\n# log.file is not set: A file that gets the log as text as well.\n"));
    assert!(unset.contains("\n# cluster.initial_members is not set: "));
}

#[test]
fn reading_leaves_the_file_alone() {
    let given = Given::file("node.id = 2");
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::options()
        .write(true)
        .open(given.path())
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    given.settings();
    assert_eq!(
        std::fs::metadata(given.path()).unwrap().modified().unwrap(),
        long_ago
    );
}
