//! A node as its clients and its service manager meet it, without systemd.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use common::fixture::{self, Scratch};
use common::node::{Node, bare_node, get, node_on, parse, request};
use nix::sys::signal::Signal;

const CONFIG: &str = "[cluster]\nstorage_backend = \"sqlite\"\n";

fn legacy() -> Scratch {
    fixture::one("legacy", "plain").unpack()
}

/// A node on migrated legacy data.
fn serving(dir: &Path) -> (Node, std::net::SocketAddr) {
    let mut node = node_on(dir).start();
    let address = node.ready();
    (node, address)
}

fn value_of(dir: &Path, key: &str) -> String {
    let database = rusqlite::Connection::open(dir.join("state-machine.db")).unwrap();
    let select = "SELECT value FROM state_machine_kv WHERE key = ?1";
    database.query_row(select, [key], |row| row.get(0)).unwrap()
}

mod towards_clients {
    use super::*;

    #[test]
    fn health_is_word_for_word_what_scripts_expect() {
        let dir = legacy();
        let (node, address) = serving(&dir);
        let answer = get(address, "/health");
        assert_eq!(answer.status, 200);
        let expected = r#"{"status":"healthy","storage":"sqlite","last_applied":1235}"#;
        assert_eq!(answer.body, expected);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        for path in ["/livez", "/readyz"] {
            assert_eq!(get(address, path).status, 200, "{path}");
        }
        node.stop().with(0);
    }

    #[test]
    #[cfg(debug_assertions)] // release builds cannot be slowed down
    fn while_a_migration_runs_health_tells_how_far_and_the_rest_asks_to_come_back() {
        let dir = legacy();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let slow = bare_node()
            .arguments(["--data-dir".as_ref(), dir.as_os_str()])
            .arguments(["--http-addr", &address.to_string()])
            .env("ASPEN_TEST_SLOW_MS_PER_STEP", "30");
        let mut node = slow.start();
        assert!(node.says(": copy"), "no progress was told");
        let health = get(address, "/health");
        assert_eq!(health.status, 503);
        let body = health.json();
        assert_eq!(body["status"], "migrating");
        assert!(body["percent"].as_u64().unwrap() < 100, "{body}");
        assert_eq!(body["checks"]["storage"]["total"].as_u64(), Some(1234));
        assert_eq!(get(address, "/livez").status, 200);
        for path in ["/readyz", "/api/kv/a", "/nothing"] {
            let answer = get(address, path);
            assert_eq!(answer.status, 503, "{path}");
            assert!(answer.header("retry-after").is_some(), "{path}");
        }
        node.ready();
        node.stop().with(0);
    }

    #[test]
    fn keys_of_every_shape_are_read_as_they_are() {
        let dir = fixture::one("golden", "unicode-redb-2.6-clean").unpack();
        let (node, address) = serving(&dir);
        let database = rusqlite::Connection::open(dir.join("state-machine.db")).unwrap();
        let mut select = database
            .prepare("SELECT key, value FROM state_machine_kv WHERE key != ''")
            .unwrap();
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let rows: Vec<(String, String)> = rows.unwrap().map(Result::unwrap).collect();
        assert!(rows.len() > 10);
        for (key, value) in rows {
            let encoded: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let answer = get(address, &format!("/api/kv/{encoded}"));
            assert_eq!(answer.status, 200, "{key:?}");
            assert_eq!(
                answer.json(),
                serde_json::json!({ "key": key, "value": value })
            );
        }
        node.stop().with(0);
    }

    #[test]
    fn a_key_may_hold_slashes_in_the_open() {
        let dir = legacy();
        let (node, address) = serving(&dir);
        let key = "user/0000000000000000";
        let answer = get(address, &format!("/api/kv/{key}"));
        assert_eq!(answer.json()["value"], value_of(&dir, key));
        node.stop().with(0);
    }

    #[test]
    fn what_is_not_there_or_not_allowed_is_told_as_json() {
        let dir = legacy();
        let (node, address) = serving(&dir);
        let local = [("Host", "localhost")];
        for (method, path, status, code) in [
            ("GET", "/api/kv/nothing%20here", 404, "key_not_found"),
            ("GET", "/api/kv/%ff", 400, "bad_request"),
            ("GET", "/nothing", 404, "no_such_route"),
            ("POST", "/api/kv/a", 405, "method_not_allowed"),
            ("DELETE", "/health", 405, "method_not_allowed"),
        ] {
            let answer = request(address, method, path, &local);
            assert_eq!(answer.status, status, "{method} {path}");
            assert_eq!(answer.error_code(), code, "{method} {path}");
        }
        let foreign = request(address, "GET", "/health", &[("Host", "evil.example")]);
        assert_eq!(
            (foreign.status, foreign.error_code().as_str()),
            (403, "host_not_allowed")
        );
        node.stop().with(0);
    }

    #[test]
    fn a_reader_beside_the_node_does_not_take_its_log_away() {
        let dir = legacy();
        let (node, address) = serving(&dir);
        // Opens the whole pool, each of which once cost the writer its locks.
        let clients: Vec<_> = (0..20)
            .map(|_| {
                std::thread::spawn(move || get(address, "/api/kv/user/0000000000000000").status)
            })
            .collect();
        assert!(
            clients
                .into_iter()
                .all(|client| client.join().unwrap() == 200)
        );
        let wal = dir.join("state-machine.db-wal");
        assert!(wal.exists());
        value_of(&dir, "user/0000000000000000");
        assert!(
            wal.exists(),
            "closing a second reader removed the log of a running node"
        );
        node.stop().with(0);
        assert!(!wal.exists());
    }
}

mod towards_the_service_manager {
    use super::*;

    #[test]
    #[cfg(debug_assertions)] // release builds cannot be slowed down
    fn a_start_tells_progress_then_ready_and_a_stop_tells_stopping() {
        let dir = legacy();
        let mut node = node_on(&dir)
            .env("ASPEN_TEST_SLOW_MS_PER_STEP", "25")
            .start();
        node.ready();
        let said = node.stop().with(0).said;
        let at = |word: &str| {
            said.iter()
                .position(|message| message.contains(word))
                .unwrap()
        };
        assert!(at("STATUS=Starting") < at("EXTEND_TIMEOUT_USEC="));
        assert!(at("EXTEND_TIMEOUT_USEC=") < at("STATUS=Migrating "));
        assert!(at("STATUS=Migrating ") < at("READY=1"));
        assert!(at("READY=1") < at("STOPPING=1"));
        let late = said
            .iter()
            .rposition(|message| message.contains("EXTEND_TIMEOUT"));
        assert!(late.unwrap() < at("READY=1"));
    }

    #[test]
    fn without_anything_to_migrate_no_time_is_asked_for() {
        let dir = legacy();
        node_on(&dir).start().ready_then_stop();
        let said = node_on(&dir).start().ready_then_stop().said;
        assert!(
            !said
                .iter()
                .any(|message| message.contains("EXTEND_TIMEOUT")),
            "{said:?}"
        );
    }

    #[test]
    fn the_watchdog_hears_from_a_ready_node() {
        let dir = legacy();
        let mut node = node_on(&dir).env("WATCHDOG_USEC", "200000").start();
        node.ready();
        for _ in 0..3 {
            assert!(node.says("WATCHDOG=1"));
        }
        node.stop().with(0);
    }

    #[test]
    fn a_failed_start_leaves_its_reason_as_the_last_word() {
        let dir = legacy();
        std::fs::write(dir.join("state-machine.redb"), "nonsense").unwrap();
        let ended = node_on(&dir).start().end().with(65);
        let last = ended.said.last().unwrap();
        assert!(
            last.starts_with("STATUS=Failed: ") && last.contains("state-machine.redb"),
            "{last}"
        );
        assert!(
            ended.log.contains("neither a redb nor a SQLite database"),
            "{}",
            ended.log
        );
    }

    #[test]
    fn a_wrong_configuration_is_told_before_there_is_a_log() {
        let dir = legacy();
        let config = dir.join("config.toml");
        std::fs::write(&config, "[cluster]\nstorage_backend = \"sqllite\"\n").unwrap();
        let ended = node_on(&dir).config(&config).start().end().with(78);
        for words in [
            "config.toml line 2",
            "\"sqllite\"",
            "did you mean \"sqlite\"?",
        ] {
            assert!(ended.log.contains(words), "{}", ended.log);
            assert!(
                ended.said.last().unwrap().contains("config.toml"),
                "{:?}",
                ended.said
            );
        }
    }
}

mod on_signals {
    use super::*;

    #[test]
    fn idle_and_stalled_connections_do_not_hold_up_a_stop() {
        let dir = legacy();
        let (node, address) = serving(&dir);
        let mut idle = TcpStream::connect(address).unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut answer = [0; 4096];
        let length = idle.read(&mut answer).unwrap();
        assert_eq!(
            parse(std::str::from_utf8(&answer[..length]).unwrap()).status,
            200
        );
        let mut stalled = TcpStream::connect(address).unwrap();
        stalled.write_all(b"GET /hea").unwrap();
        let ended = node.stop().with(0);
        assert!(ended.log.contains("Stopped in "), "{}", ended.log);
        assert!(!dir.join("state-machine.db-wal").exists());
    }

    #[test]
    fn an_interrupt_from_the_keyboard_is_as_good_as_a_stop() {
        let dir = legacy();
        let (node, _) = serving(&dir);
        node.signal(Signal::SIGINT);
        assert!(node.end().with(0).log.contains("Stopping on SIGINT"));
    }

    #[test]
    fn a_hangup_reloads_the_filter_reopens_the_log_and_names_what_must_wait() {
        let dir = legacy();
        let (config, log) = (dir.join("config.toml"), dir.join("node.log"));
        let with = |filter: &str, keep: u32| {
            let text = format!(
                "{CONFIG}[migration]\nkeep_backups = {keep}\n[log]\nfilter = \"{filter}\"\nfile = {log:?}\n"
            );
            std::fs::write(&config, text).unwrap();
        };
        with("info", 3);
        let mut node = node_on(&dir).config(&config).start();
        node.ready();
        let first = std::fs::read_to_string(&log).unwrap();
        for line in [
            "INFO aspen::raft: Storage backend initialized: sqlite\n",
            "INFO aspen::raft: State machine loaded: last_applied=1235\n",
        ] {
            assert!(first.contains(line), "{first}");
        }
        std::fs::rename(&log, dir.join("node.log.1")).unwrap();
        with("warn,aspen::supervisor=info", 5);
        node.signal(Signal::SIGHUP);
        assert!(node.says("RELOADING=1"));
        assert!(node.says("READY=1"));
        let ended = node.stop().with(0);
        assert!(
            ended.log.contains("a restart is needed for [migration]"),
            "{}",
            ended.log
        );
        let second = std::fs::read_to_string(&log).unwrap();
        assert!(
            second.contains("Reloaded: log filter \"warn,aspen::supervisor=info\""),
            "{second}"
        );
    }

    #[test]
    fn a_hangup_with_a_broken_configuration_changes_nothing() {
        let dir = legacy();
        let config = dir.join("config.toml");
        std::fs::write(&config, CONFIG).unwrap();
        let mut node = node_on(&dir).config(&config).start();
        let address = node.ready();
        std::fs::write(&config, "[cluster").unwrap();
        node.signal(Signal::SIGHUP);
        assert!(node.says("READY=1"));
        assert_eq!(get(address, "/health").status, 200);
        let log = node.stop().with(0).log;
        assert!(log.contains("the running configuration stays"), "{log}");
    }
}

mod by_itself {
    use super::*;

    #[test]
    fn without_any_configuration_it_is_node_1_in_the_current_directory() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = bare_node()
            .cwd(dir.path())
            .arguments(["--http-addr", "127.0.0.1:0"]);
        let mut node = fresh.start();
        let address = node.ready();
        let expected = r#"{"status":"healthy","storage":"sqlite","last_applied":null}"#;
        assert_eq!(get(address, "/health").body, expected);
        node.stop().with(0);
        let data = dir.path().join("data/node-1");
        assert_eq!(common::listing(&data), ["aspen.lock", "state-machine.db"]);
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            path.metadata().unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(&data), 0o750);
        assert_eq!(mode(&data.join("state-machine.db")), 0o600);
        assert_eq!(mode(&data.join("aspen.lock")), 0o600);
    }

    #[test]
    fn a_node_without_a_service_manager_runs_as_well() {
        let dir = legacy();
        let node = node_on(&dir).without_notify().start();
        let history = dir.join("migrations.jsonl");
        let done = || history.exists();
        for _ in 0..600 {
            if done() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(done());
        node.stop().with(0);
    }

    #[test]
    fn the_guides_rollback_leads_to_redb_and_a_restart_back_to_sqlite() {
        let dir = legacy();
        let ended = node_on(&dir).start().ready_then_stop();
        assert!(ended.log.contains("Migrated 1234 keys"), "{}", ended.log);
        let backup = common::listing(&dir)
            .into_iter()
            .find(|name| name.starts_with("state-machine.redb.backup-"))
            .unwrap();
        std::fs::remove_file(dir.join("state-machine.db")).unwrap();
        std::fs::copy(dir.join(&backup), dir.join("state-machine.redb")).unwrap();
        let mut node = node_on(&dir)
            .arguments(["--storage-backend", "redb"])
            .start();
        let address = node.ready();
        let expected = r#"{"status":"healthy","storage":"redb","last_applied":1235}"#;
        assert_eq!(get(address, "/health").body, expected);
        let log = node.stop().with(0).log;
        assert!(
            log.contains("WARN") && log.contains("The redb backend is deprecated"),
            "{log}"
        );
        let (node, address) = serving(&dir);
        assert_eq!(get(address, "/health").json()["storage"], "sqlite");
        node.stop().with(0);
        assert!(dir.join(&backup).exists());
    }
}
