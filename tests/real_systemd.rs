//! What an operator sees: the unit, the node and a real systemd together.
//!
//! Each test boots a machine of its own (`rig/`), which takes half a second.
//! Tests wait for states and never for times: the bound on waiting only turns a
//! hang into a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use aspen::telemetry::events;
use rig::node::{HEALTH, Node, SOURCE};
use rig::{Machine, text};
use serde_json::Value;

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
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    // No waiting: what follows is what "ready" means.
    node.assert_migrated();
    assert_eq!(node.property("SubState"), "running");
    assert_ne!(node.property("WatchdogUSec"), "infinity");
    let modes = "stat -c '%a %U' /var/lib/aspen /var/lib/aspen/* | sort -u";
    assert_eq!(node.ok(modes), "600 aspen\n750 aspen");
    let value = node.ok("curl -sf http://localhost:8080/api/kv/user/ec039746d489fc96");
    let value: Value = serde_json::from_str(&value).unwrap();
    let value = value["value"].as_str().unwrap();
    assert!(value.starts_with("value 1014 "), "{value}");
    // A second restart finds nothing to do.
    let before = node.ok("cat /var/lib/aspen/migrations.jsonl /etc/aspen/config.toml");
    node.ok("systemctl restart aspen-node");
    node.assert_migrated();
    let after = node.ok("cat /var/lib/aspen/migrations.jsonl /etc/aspen/config.toml");
    assert_eq!(after, before);
}

#[test]
fn a_node_that_runs_on_redb_is_moved_by_one_restart() {
    let Some(node) = Node::legacy() else { return };
    node.ok("systemctl start aspen-node");
    let health = r#"{"status":"healthy","storage":"redb","last_applied":1234}"#;
    assert_eq!(node.ok(HEALTH), health);
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    assert_eq!(node.ok(HEALTH), health.replace("redb", "sqlite"));
    node.assert_properties([("NRestarts", "0"), ("SubState", "running")]);
}

/// Root's files would be out of the node's reach; the unit hands them over.
#[test]
fn the_guide_can_be_followed_by_hand_as_root_and_back() {
    let Some(node) = Node::legacy() else { return };
    node.ok("systemctl stop aspen-node; cd /var/lib/aspen
         cp state-machine.redb state-machine.redb.backup-$(date +%Y%m%d-%H%M%S)
         aspen-migrate --source state-machine.redb --target state-machine.db --verify");
    node.configure_sqlite();
    node.ok("systemctl start aspen-node");
    node.assert_migrated();

    node.ok(r#"systemctl stop aspen-node; cd /var/lib/aspen
           rm -f state-machine.db; rm -f state-machine.db-wal; rm -f state-machine.db-shm
           cp state-machine.redb.backup-* state-machine.redb
           sed -i 's/storage_backend = "sqlite"/storage_backend = "redb"/' /etc/aspen/config.toml
           systemctl start aspen-node"#);
    assert_eq!(
        node.ok(HEALTH),
        r#"{"status":"healthy","storage":"redb","last_applied":1234}"#
    );
}

#[test]
fn the_journal_tells_a_migration_once_in_fields_of_its_own() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    let entries = node.journal("SYSLOG_IDENTIFIER=aspen-node _COMM=aspen-node");
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
    assert_eq!(loaded["MESSAGE"], "State machine loaded: last_applied=1234");
    assert_eq!(loaded["ASPEN_LAST_APPLIED"], "1234");
    let completed = only(events::MIGRATION_COMPLETED);
    assert_eq!(completed["ASPEN_KEYS"], "1234");
    assert_eq!(completed["ASPEN_SOURCE"], SOURCE);
    assert_eq!(completed["ASPEN_TARGET"], "/var/lib/aspen/state-machine.db");
    only(events::NODE_READY);

    let explained = node.ok("journalctl -q -x _COMM=aspen-node");
    assert!(explained.contains("Defined-By: Aspen"), "{explained}");
    assert!(!explained.contains("@ASPEN"), "{explained}");

    // The guide has operators look for these lines in this file.
    let file = node.ok("cat /var/log/aspen/node.log");
    for line in [
        "INFO aspen::raft: Storage backend initialized: sqlite",
        "INFO aspen::raft: State machine loaded: last_applied=1234",
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
        let Some(node) = Node::legacy() else { return };
        node.write(place, content);
        node.ok("systemctl daemon-reload; systemctl restart aspen-node");
        // The file, which says redb, is made to agree.
        node.assert_migrated();
    }
}

#[test]
fn while_it_migrates_the_status_counts_up_and_health_says_so() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.start_slowly();
    let percent = |status: &str| -> u32 {
        let (percent, _) = status.split_once(" %: copy, ").unwrap();
        percent.strip_prefix("Migrating ").unwrap().parse().unwrap()
    };
    let first = node.property("StatusText");
    node.wait_until(&format!(
        "! systemctl show -P StatusText aspen-node | grep -q '^Migrating {} %'",
        percent(&first)
    ));
    assert!(percent(&node.property("StatusText")) > percent(&first));
    assert_eq!(node.property("ActiveState"), "activating");
    let answer = node.ok("curl -s -w '\\n%{http_code}' http://localhost:8080/health");
    let (health, code) = answer.rsplit_once('\n').unwrap();
    let health: Value = serde_json::from_str(health).unwrap();
    assert_eq!(
        (code, health["status"].as_str()),
        ("503", Some("migrating"))
    );
    let other = node.ok("curl -s -i http://localhost:8080/api/kv/user/ec039746d489fc96");
    assert!(other.starts_with("HTTP/1.1 503"), "{other}");
    assert!(other.to_lowercase().contains("retry-after: "), "{other}");
}

#[test]
fn a_migration_may_take_longer_than_the_limit_on_starts() {
    let Some(node) = Node::legacy() else { return };
    // It takes 61 steps.
    node.drop_in("TimeoutStartSec=2s\nEnvironment=ASPEN_TEST_SLOW_MS_PER_STEP=60\n");
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    node.assert_migrated();
    let time = |name| node.property(name).parse::<u64>().unwrap();
    let microseconds =
        time("ActiveEnterTimestampMonotonic") - time("InactiveExitTimestampMonotonic");
    assert!(
        microseconds > 2_000_000,
        "too fast to show anything: {microseconds} us"
    );
}

#[test]
fn stopping_a_migration_leaves_the_source_as_it_was_and_nothing_half_made() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.start_slowly();
    node.ok("systemctl stop aspen-node");
    node.assert_properties([
        ("ActiveState", "inactive"),
        ("Result", "success"),
        ("ExecMainStatus", "0"),
    ]);
    assert_eq!(node.events(events::MIGRATION_INTERRUPTED).len(), 1);
    node.assert_as_found();
    node.ok("systemctl start aspen-node");
    node.assert_migrated();
}

#[test]
fn a_migration_that_was_killed_is_done_again_by_the_next_start() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.start_slowly();
    node.ok("systemctl kill -s KILL aspen-node");
    // Such a failure is worth a restart, so nobody needs to do anything.
    node.wait_until_active();
    assert_eq!(node.property("NRestarts"), "1");
    node.assert_migrated();
}

/// Starts the node on data that it must refuse.
fn assert_refused(node: &Node, named: &[&str]) {
    let before = node.ok("cd /var/lib/aspen; sha256sum state-machine.*");
    node.configure_sqlite();
    assert!(!node.run("systemctl restart aspen-node").status.success());
    // Not "activating (auto-restart)": it stays down.
    node.assert_properties([
        ("ActiveState", "failed"),
        ("Result", "exit-code"),
        ("ExecMainStatus", "65"),
        ("NRestarts", "0"),
    ]);
    let status = node.run("systemctl status --full --no-pager aspen-node");
    let status = text(&status.stdout);
    for name in named {
        assert!(status.contains(name), "{name} is not in: {status}");
    }
    let after = node.ok("cd /var/lib/aspen; sha256sum state-machine.*");
    assert_eq!(after, before);
}

#[test]
fn damaged_data_fails_the_unit_once_and_says_what_is_wrong() {
    let Some(node) = Node::legacy() else { return };
    // One bit of one value; in the dead copies of its page as well, because which one is alive
    // only redb knows.
    node.ok(&format!(
        "perl -pi -e 's/value 1014 /value 1015 /g' {SOURCE}"
    ));
    assert_refused(&node, &[SOURCE, "damaged"]);
}

#[test]
fn two_state_machines_that_disagree_fail_the_unit_once_and_both_are_named() {
    let Some(node) = Node::legacy() else { return };
    // Some(term 5, node 2, index 1300), as the legacy encoding has it.
    let last_applied = "01 0500000000000000 0200000000000000 1405000000000000".replace(' ', "");
    node.ok(&format!(
        "cd /var/lib/aspen; sqlite3 state-machine.db \"
             CREATE TABLE state_machine_kv (key TEXT PRIMARY KEY, value TEXT NOT NULL);
             CREATE TABLE state_machine_meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
             CREATE TABLE snapshots (id TEXT PRIMARY KEY, data BLOB NOT NULL);
             INSERT INTO state_machine_kv VALUES ('key', 'value');
             INSERT INTO state_machine_meta VALUES ('last_applied_log', x'{last_applied}');\"
         chown aspen:aspen state-machine.db"
    ));
    let named = [SOURCE, "/var/lib/aspen/state-machine.db", "1234", "1300"];
    assert_refused(&node, &named);
}

#[test]
fn a_node_whose_data_is_locked_tries_again_until_it_is_free() {
    let Some(node) = Node::legacy() else { return };
    node.drop_in("RestartSec=1s\n");
    node.configure_sqlite();
    node.ok(
        "cd /var/lib/aspen; touch aspen.lock; chown aspen:aspen aspen.lock
         setsid flock aspen.lock sleep infinity >/dev/null 2>&1 &
         while flock -n aspen.lock true; do :; done",
    );
    assert!(!node.run("systemctl restart aspen-node").status.success());
    let refusals = format!(
        "journalctl -q MESSAGE_ID={} ASPEN_EXIT=75",
        events::DATA_DIR_LOCKED
    );
    node.wait_until(&format!("test \"$({refusals} | wc -l)\" -ge 3"));
    node.ok("pkill -x sleep");
    node.wait_until_active();
}

#[test]
fn after_a_reboot_the_node_comes_back_by_itself() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    node.reboot();
    node.wait_until_active();
    node.assert_migrated();
}

#[test]
fn a_power_cut_during_a_migration_loses_nothing() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.start_slowly();
    node.cut_power();
    node.wait_until_active();
    node.assert_migrated();
    // What was half-made is not what is used now: the second start migrated.
    assert_eq!(node.events(events::MIGRATION_COMPLETED).len(), 1);
}

#[test]
fn a_power_cut_right_after_ready_loses_nothing() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    node.cut_power();
    node.wait_until_active();
    node.assert_migrated();
    // The second start had nothing to migrate.
    assert_eq!(node.events(events::MIGRATION_STARTED).len(), 0);
}

#[test]
fn every_write_that_was_acknowledged_before_a_power_cut_is_there_after_it() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    let writes = |round: u32| {
        format!(
            r#"i=0; while i=$((i + 1)); do
               curl -sf -X PUT -H 'Content-Type: application/json' -d "{{\"value\":\"$i\"}}" \
                 http://localhost:8080/api/kv/cut/{round}/$i >/dev/null && echo $i
             done"#
        )
    };
    for round in 0..3 {
        let acknowledged = node.cut_power_under(&writes(round), 20 + 30 * round as usize);
        node.wait_until_active();
        let page =
            format!("curl -sf 'http://localhost:8080/api/kv?prefix=cut/{round}/&limit=1000'");
        let page: Value = serde_json::from_str(&node.ok(&page)).unwrap();
        let pairs = page["pairs"].as_array().unwrap();
        for n in acknowledged {
            let pair = serde_json::json!({ "key": format!("cut/{round}/{n}"), "value": n });
            assert!(pairs.contains(&pair), "{pair} is gone: {page}");
        }
    }
}

#[test]
fn a_node_that_is_stopped_as_the_guide_says_stays_stopped() {
    let Some(node) = Node::legacy() else { return };
    for stop in [
        "curl -sf -X POST http://localhost:8080/admin/shutdown",
        "pkill -TERM aspen-node",
    ] {
        node.ok("systemctl start aspen-node");
        node.ok(stop);
        node.wait_until("test \"$(systemctl show -P ActiveState aspen-node)\" = inactive");
        node.assert_properties([("Result", "success"), ("ExecMainStatus", "0")]);
        assert_eq!(
            node.run("ps aux | grep [a]spen-node").status.code(),
            Some(1)
        );
        node.ok("grep -q 'Stopped in ' /var/log/aspen/node.log");
    }
}

#[test]
fn a_reload_keeps_the_node_running_and_reports_itself() {
    let Some(node) = Node::legacy() else { return };
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    let pid = node.property("MainPID");
    node.ok("mv /var/log/aspen/node.log /var/log/aspen/node.log.1; systemctl reload aspen-node");
    node.wait_until(&format!(
        "journalctl -q MESSAGE_ID={} | grep -q .",
        events::RELOADED
    ));
    node.wait_until("test -s /var/log/aspen/node.log");
    assert_eq!(node.property("MainPID"), pid);
    node.ok(HEALTH);
}

#[test]
fn a_node_that_hangs_is_found_by_the_watchdog_and_restarted() {
    let Some(node) = Node::legacy() else { return };
    node.drop_in("WatchdogSec=3s\nRestartSec=100ms\n");
    node.configure_sqlite();
    node.ok("systemctl restart aspen-node");
    let ping = "systemctl show -P WatchdogTimestampMonotonic aspen-node";
    for _ in 0..2 {
        let last = node.ok(ping);
        node.wait_until(&format!("test \"$({ping})\" != '{last}'"));
    }
    node.ok("systemctl kill -s STOP aspen-node");
    node.wait_until("test \"$(systemctl show -P NRestarts aspen-node)\" = 1");
    node.wait_until(HEALTH);
}

#[test]
fn the_unit_is_free_of_mistakes_and_exposed_by_no_more_than_one_point_three() {
    let Some(node) = Node::legacy() else { return };
    let unit = "/usr/lib/systemd/system/aspen-node.service";
    let verified = node.run(&format!("systemd-analyze verify --man=no {unit} 2>&1"));
    assert_eq!(text(&verified.stdout), "");
    node.ok(&format!(
        "systemd-analyze security --offline=true --threshold=13 {unit}"
    ));
}
