//! What an operator sees: the unit, the node and a real systemd together.
//!
//! Each test boots a machine of its own (`rig/rig.sh`), which takes a second.
//! Tests wait for states and never for times: the bound on waiting only turns a
//! hang into a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rig;

use aspen::telemetry::events;
use rig::{Machine, text};
use serde_json::{Value, json};
use std::process::Command;

const NODE: &str = env!("CARGO_BIN_EXE_aspen-node");
const MIGRATE: &str = env!("CARGO_BIN_EXE_aspen-migrate");

const CONFIG: &str = r#"# Kept by hand.
[cluster]
storage_backend = "redb"  # the old one

[log]
file = "/var/log/aspen/node.log"
"#;
/// What the guide has operators do about it.
const EDIT: &str = r#"sed -i 's/storage_backend = "redb"/storage_backend = "sqlite"/' /etc/aspen/config.toml; sync"#;

const HEALTH: &str = "curl -sf http://localhost:8080/health";
const STATUS: &str = "systemctl show -P StatusText aspen-node";
/// Makes a migration of the small fixture take a while, in steps as a long one would.
const SLOW: &str = "[Service]\nEnvironment=ASPEN_TEST_SLOW_MS_PER_STEP=400\n";
const COPYING: &str = "systemctl show -P StatusText aspen-node | grep -q '^Migrating .*: copy'";

/// A machine on which a package has installed the node, with the data of a
/// legacy node and not started yet. `None` where no machine can be had.
fn machine() -> Option<Machine> {
    let machine = Machine::boot(&[NODE, MIGRATE])?;
    machine.write(
        "/usr/lib/systemd/system/aspen-node.service",
        include_str!("../systemd/aspen-node.service"),
    );
    machine.write(
        "/usr/lib/systemd/catalog/aspen.catalog",
        include_str!("../systemd/aspen.catalog"),
    );
    machine.write("/etc/aspen/config.toml", CONFIG);
    let unpacked = Command::new("zstd")
        .args([
            "-dcq",
            concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/legacy/plain.tar.zst"
            ),
        ])
        .output()
        .unwrap();
    machine.write("/tmp/plain.tar", unpacked.stdout);
    machine.ok(
        "useradd --system --home-dir /var/lib/aspen --shell /usr/sbin/nologin aspen
         chown -R aspen:aspen /etc/aspen; chmod 640 /etc/aspen/config.toml
         tar -xf /tmp/plain.tar --strip-components=1 -C /var/lib/aspen
         chown -R aspen:aspen /var/lib/aspen; chmod 600 /var/lib/aspen/*
         journalctl --update-catalog; systemctl daemon-reload; systemctl -q enable aspen-node; sync",
    );
    Some(machine)
}

fn drop_in(machine: &Machine, text: &str) {
    machine.write("/etc/systemd/system/aspen-node.service.d/test.conf", text);
    machine.ok("systemctl daemon-reload; sync");
}

fn property(machine: &Machine, name: &str) -> String {
    machine.ok(&format!("systemctl show -P {name} aspen-node"))
}

fn sha256(machine: &Machine, path: &str) -> String {
    let line = machine.ok(&format!("sha256sum {path}"));
    line.split_once(' ').unwrap().0.to_owned()
}

/// The names in the data directory, time stamps of backups left out.
fn listing(machine: &Machine) -> Vec<String> {
    let names = machine.ok("ls -A /var/lib/aspen | sed -E 's/[0-9]{8}-[0-9]{6}$/TIME/'");
    names.lines().map(str::to_owned).collect()
}

/// Everything that a migrated node must be, whatever happened on the way: `source`
/// is the hash that the legacy file had.
fn assert_migrated(machine: &Machine, source: &str) {
    let health: Value = serde_json::from_str(&machine.ok(HEALTH)).unwrap();
    assert_eq!(
        health,
        json!({"status": "healthy", "storage": "sqlite", "last_applied": 1235})
    );
    assert_eq!(
        sha256(machine, "/var/lib/aspen/state-machine.redb.backup-*"),
        source
    );
    let rows =
        "sqlite3 -readonly /var/lib/aspen/state-machine.db 'SELECT count(*) FROM state_machine_kv'";
    assert_eq!(machine.ok(rows), "1234");
    let config = machine.ok("cat /etc/aspen/config.toml");
    assert!(
        config.contains("storage_backend = \"sqlite\"  # the old one"),
        "{config}"
    );
    assert!(config.starts_with("# Kept by hand.\n"), "{config}");
    assert!(config.contains("[cluster.migrated]"), "{config}");
    assert_eq!(
        listing(machine),
        [
            "aspen.lock",
            "migrations.jsonl",
            "raft-log.redb",
            "state-machine.db",
            "state-machine.db-shm",
            "state-machine.db-wal",
            "state-machine.redb.backup-TIME",
        ]
    );
}

#[test]
fn a_power_cut_of_the_rig_loses_what_was_not_synced_and_nothing_else() {
    let Some(machine) = Machine::boot(&[]) else {
        return;
    };
    machine.ok(
        "echo kept >/var/lib/aspen/synced; echo kept >/etc/synced; sync
                echo lost >/var/lib/aspen/not-synced; echo lost >/etc/not-synced",
    );
    machine.cut_power();
    assert_eq!(
        machine.ok("ls -d /var/lib/aspen/* /etc/*synced"),
        "/etc/synced\n/var/lib/aspen/synced"
    );
}

#[test]
fn a_restart_returns_when_the_data_is_migrated_and_served() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    // No waiting: what follows is what "ready" means.
    assert_migrated(&machine, &source);
    assert_eq!(property(&machine, "SubState"), "running");
    let modes = "stat -c '%a %U' /var/lib/aspen /var/lib/aspen/* | sort -u";
    assert_eq!(machine.ok(modes), "600 aspen\n750 aspen");
    let value = machine.ok("curl -sf http://localhost:8080/api/kv/user/afbc24be31077b2e");
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["value"], "value-1014");
    // A second restart finds nothing to do.
    let before = machine.ok("cat /var/lib/aspen/migrations.jsonl /etc/aspen/config.toml");
    machine.ok("systemctl restart aspen-node");
    assert_migrated(&machine, &source);
    let after = machine.ok("cat /var/lib/aspen/migrations.jsonl /etc/aspen/config.toml");
    assert_eq!(after, before);
}

#[test]
fn the_journal_tells_a_migration_once_in_fields_of_its_own() {
    let Some(machine) = machine() else { return };
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    let entries = machine.journal("SYSLOG_IDENTIFIER=aspen-node _COMM=aspen-node");
    for entry in &entries {
        // Nothing came through standard error as well.
        assert_eq!(entry["_TRANSPORT"], "journal", "{entry}");
        assert_eq!(entry["_SYSTEMD_UNIT"], "aspen-node.service");
    }
    let only = |message_id: &str| {
        let found: Vec<_> = entries
            .iter()
            .filter(|e| e["MESSAGE_ID"] == message_id)
            .collect();
        assert_eq!(found.len(), 1, "{message_id} in {entries:#?}");
        found[0]
    };
    let storage = only(events::STORAGE_INITIALIZED);
    assert_eq!(storage["MESSAGE"], "Storage backend initialized: sqlite");
    assert_eq!(storage["PRIORITY"], "6");
    let loaded = only(events::STATE_MACHINE_LOADED);
    assert_eq!(loaded["MESSAGE"], "State machine loaded: last_applied=1235");
    assert_eq!(loaded["ASPEN_LAST_APPLIED"], "1235");
    let completed = only(events::MIGRATION_COMPLETED);
    assert_eq!(completed["ASPEN_KEYS"], "1234");
    assert_eq!(
        completed["ASPEN_SOURCE"],
        "/var/lib/aspen/state-machine.redb"
    );
    assert_eq!(completed["ASPEN_TARGET"], "/var/lib/aspen/state-machine.db");
    only(events::NODE_READY);

    for event in events::ALL {
        let explained = machine.ok(&format!("journalctl -q -x MESSAGE_ID={}", event.id));
        assert!(!explained.contains("@ASPEN"), "{}: {explained}", event.name);
    }
    let explained = machine.ok(&format!(
        "journalctl -q -x MESSAGE_ID={}",
        events::MIGRATION_COMPLETED
    ));
    assert!(explained.contains("Defined-By: Aspen"), "{explained}");

    // The guide has operators look for these lines in this file.
    let file = machine.ok("cat /var/log/aspen/node.log");
    for line in [
        "INFO aspen::raft: Storage backend initialized: sqlite",
        "INFO aspen::raft: State machine loaded: last_applied=1235",
    ] {
        assert_eq!(file.matches(line).count(), 1, "{file}");
    }
}

#[test]
fn the_environment_may_say_it_instead_of_the_file() {
    for (place, content) in [
        ("/etc/default/aspen-node", "ASPEN_STORAGE_BACKEND=sqlite\n"),
        (
            "/etc/systemd/system/aspen-node.service.d/test.conf",
            "[Service]\nEnvironment=ASPEN_STORAGE_BACKEND=sqlite\n",
        ),
    ] {
        let Some(machine) = machine() else { return };
        let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
        machine.write(place, content);
        machine.ok("systemctl daemon-reload; systemctl restart aspen-node");
        // The file, which says redb, is made to agree.
        assert_migrated(&machine, &source);
    }
}

#[test]
fn while_it_migrates_the_status_counts_up_and_health_says_so() {
    let Some(machine) = machine() else { return };
    drop_in(&machine, SLOW);
    machine.ok(EDIT);
    machine.ok("systemctl restart --no-block aspen-node");
    machine.wait_until(COPYING);
    let first = machine.ok(STATUS);
    machine.wait_until(&format!("test \"$({STATUS})\" != '{first}'"));
    assert_eq!(property(&machine, "ActiveState"), "activating");
    let answer = machine.ok("curl -s -w '\\n%{http_code}' http://localhost:8080/health");
    let (health, code) = answer.rsplit_once('\n').unwrap();
    let health: Value = serde_json::from_str(health).unwrap();
    assert_eq!((code, &health["status"]), ("503", &json!("migrating")));
    let head = machine.ok("curl -s -i http://localhost:8080/api/kv/user/afbc24be31077b2e");
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(head.to_lowercase().contains("retry-after: "), "{head}");
    machine.wait_until("systemctl is-active -q aspen-node");
    assert_ne!(machine.ok(STATUS), first);
}

#[test]
fn a_migration_may_take_longer_than_the_limit_on_starts() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    drop_in(&machine, &format!("{SLOW}TimeoutStartSec=2s\n"));
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    assert_migrated(&machine, &source);
    let times = machine.ok(
        "systemctl show -P InactiveExitTimestampMonotonic -P ActiveEnterTimestampMonotonic aspen-node",
    );
    let times: Vec<u64> = times.lines().map(|line| line.parse().unwrap()).collect();
    assert!(
        times[1] - times[0] > 2_000_000,
        "it was too fast to show anything: {times:?}"
    );
    assert_eq!(property(&machine, "NRestarts"), "0");
}

#[test]
fn stopping_a_migration_leaves_the_source_as_it_was_and_nothing_half_made() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    let config = machine.ok("cat /etc/aspen/config.toml");
    drop_in(
        &machine,
        &format!("{SLOW}Environment=ASPEN_STORAGE_BACKEND=sqlite\n"),
    );
    machine.ok("systemctl restart --no-block aspen-node");
    machine.wait_until(COPYING);
    machine.ok("systemctl stop aspen-node");
    for (name, value) in [
        ("ActiveState", "inactive"),
        ("Result", "success"),
        ("ExecMainCode", "1"),
        ("ExecMainStatus", "0"),
    ] {
        assert_eq!(property(&machine, name), value, "{name}");
    }
    assert_eq!(
        sha256(&machine, "/var/lib/aspen/state-machine.redb"),
        source
    );
    assert_eq!(machine.ok("cat /etc/aspen/config.toml"), config);
    assert_eq!(
        listing(&machine),
        ["aspen.lock", "raft-log.redb", "state-machine.redb"]
    );
    machine.ok("systemctl start aspen-node");
    assert_migrated(&machine, &source);
}

#[test]
fn a_migration_that_was_killed_is_done_again_by_the_next_start() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    drop_in(&machine, SLOW);
    machine.ok(EDIT);
    machine.ok("systemctl restart --no-block aspen-node");
    machine.wait_until(COPYING);
    machine.ok("systemctl kill -s KILL aspen-node");
    // The unit says that such a failure is worth a restart, so nobody needs to do anything.
    machine.wait_until("test \"$(systemctl show -P NRestarts aspen-node)\" = 1");
    machine.wait_until("systemctl is-active -q aspen-node");
    assert_migrated(&machine, &source);
}

/// Starts the node on data that it must refuse.
fn assert_refused(machine: &Machine, named: &[&str]) {
    let before = machine.ok("cd /var/lib/aspen; sha256sum state-machine.*");
    machine.ok(EDIT);
    assert!(!machine.run("systemctl restart aspen-node").status.success());
    // Not "activating (auto-restart)": it stays down.
    for (name, value) in [
        ("ActiveState", "failed"),
        ("Result", "exit-code"),
        ("ExecMainStatus", "65"),
        ("NRestarts", "0"),
    ] {
        assert_eq!(property(machine, name), value, "{name}");
    }
    let status = text(
        &machine
            .run("systemctl status --full --no-pager aspen-node")
            .stdout,
    );
    for name in named {
        assert!(status.contains(name), "{name} is not in: {status}");
    }
    let after = machine.ok("cd /var/lib/aspen; sha256sum state-machine.*");
    assert_eq!(after, before);
}

#[test]
fn damaged_data_fails_the_unit_once_and_says_what_is_wrong() {
    let Some(machine) = machine() else { return };
    // One bit of one value; in the dead copies of its page as well, because which one is alive
    // only redb knows.
    machine.ok(
        "cd /var/lib/aspen; perl -pi -e 's/value-1014/value-1015/g' state-machine.redb
                chown aspen:aspen state-machine.redb; chmod 600 state-machine.redb",
    );
    assert_refused(&machine, &["/var/lib/aspen/state-machine.redb"]);
}

#[test]
fn two_state_machines_that_disagree_fail_the_unit_once_and_both_are_named() {
    let Some(machine) = machine() else { return };
    // Some(term 5, node 2, index 1300), as the legacy encoding has it.
    let last_applied = "01 0500000000000000 0200000000000000 1405000000000000".replace(' ', "");
    machine.ok(&format!(
        "cd /var/lib/aspen; sqlite3 state-machine.db \"
             CREATE TABLE state_machine_kv (key TEXT PRIMARY KEY, value TEXT NOT NULL);
             CREATE TABLE state_machine_meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
             CREATE TABLE snapshots (id TEXT PRIMARY KEY, data BLOB NOT NULL);
             INSERT INTO state_machine_kv VALUES ('key', 'value');
             INSERT INTO state_machine_meta VALUES ('last_applied_log', x'{last_applied}');\"
         chown aspen:aspen state-machine.db"
    ));
    let named = [
        "/var/lib/aspen/state-machine.redb",
        "/var/lib/aspen/state-machine.db",
        "1235",
        "1300",
    ];
    assert_refused(&machine, &named);
}

#[test]
fn a_node_whose_data_is_locked_tries_again_until_it_is_free() {
    let Some(machine) = machine() else { return };
    drop_in(&machine, "[Service]\nRestartSec=1s\n");
    machine.ok(EDIT);
    machine.ok(
        "cd /var/lib/aspen; touch aspen.lock; chown aspen:aspen aspen.lock
                setsid flock aspen.lock sleep infinity >/dev/null 2>&1 & wait_for=$!
                until ! flock -n aspen.lock true; do kill -0 $wait_for; done",
    );
    assert!(!machine.run("systemctl restart aspen-node").status.success());
    let refusals = format!(
        "journalctl -q -o cat MESSAGE_ID={} ASPEN_EXIT=75",
        events::DATA_DIR_LOCKED
    );
    machine.wait_until(&format!("test \"$({refusals} | wc -l)\" -ge 3"));
    machine.ok("pkill -x sleep");
    machine.wait_until("systemctl is-active -q aspen-node");
}

#[test]
fn after_a_reboot_the_node_comes_back_by_itself() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    machine.reboot();
    machine.wait_until("systemctl is-active -q aspen-node");
    assert_migrated(&machine, &source);
}

#[test]
fn a_power_cut_during_a_migration_loses_nothing() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    drop_in(&machine, SLOW);
    machine.ok(EDIT);
    machine.ok("systemctl restart --no-block aspen-node");
    machine.wait_until(COPYING);
    machine.cut_power();
    assert_eq!(
        sha256(&machine, "/var/lib/aspen/state-machine.redb"),
        source
    );
    machine.wait_until("systemctl is-active -q aspen-node");
    assert_migrated(&machine, &source);
}

#[test]
fn a_power_cut_right_after_ready_loses_nothing() {
    let Some(machine) = machine() else { return };
    let source = sha256(&machine, "/var/lib/aspen/state-machine.redb");
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    machine.cut_power();
    machine.wait_until("systemctl is-active -q aspen-node");
    assert_migrated(&machine, &source);
    // The second start had nothing to migrate.
    assert_eq!(
        machine
            .journal(&format!("MESSAGE_ID={}", events::MIGRATION_STARTED))
            .len(),
        0
    );
}

#[test]
fn a_reload_keeps_the_node_running_and_reports_itself() {
    let Some(machine) = machine() else { return };
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    let pid = property(&machine, "MainPID");
    machine.ok("mv /var/log/aspen/node.log /var/log/aspen/node.log.1; systemctl reload aspen-node");
    machine.wait_until(&format!(
        "journalctl -q MESSAGE_ID={} | grep -q .",
        events::RELOADED
    ));
    machine.wait_until("test -s /var/log/aspen/node.log");
    assert_eq!(property(&machine, "MainPID"), pid);
    machine.ok(HEALTH);
}

#[test]
fn a_node_that_hangs_is_found_by_the_watchdog_and_restarted() {
    let Some(machine) = machine() else { return };
    drop_in(&machine, "[Service]\nWatchdogSec=3s\nRestartSec=100ms\n");
    machine.ok(EDIT);
    machine.ok("systemctl restart aspen-node");
    let ping = "systemctl show -P WatchdogTimestampMonotonic aspen-node";
    for _ in 0..2 {
        let last = machine.ok(ping);
        machine.wait_until(&format!("test \"$({ping})\" != '{last}'"));
    }
    machine.ok("systemctl kill -s STOP aspen-node");
    machine.wait_until("test \"$(systemctl show -P NRestarts aspen-node)\" = 1");
    machine.wait_until(HEALTH);
}

#[test]
fn the_unit_is_free_of_mistakes_and_exposed_by_no_more_than_one_point_three() {
    let Some(machine) = machine() else { return };
    let unit = "/usr/lib/systemd/system/aspen-node.service";
    let verified = machine.run(&format!("systemd-analyze verify --man=no {unit} 2>&1"));
    assert_eq!(text(&verified.stdout), "");
    machine.ok(&format!(
        "systemd-analyze security --offline=true --threshold=13 {unit}"
    ));
}
