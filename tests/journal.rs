//! `docs/journal.md` typed into a machine: every query there is run on the
//! journal of a node to which all of it has happened, and finds it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use std::collections::BTreeMap;

use aspen::telemetry::events;
use rig::node::{HEALTH, Node, SOURCE};

/// What the output of every query under a heading must contain.
const FOUND: &[(&str, &[&str])] = &[
    ("Looking", &["aspen-node"]),
    (
        "What was migrated when, from what, how long did it take?",
        &["1234", SOURCE, ".backup-"],
    ),
    (
        "How did the migration go, phase by phase?",
        &[
            "phase check",
            "phase copy",
            "phase verify",
            "Migrated 1234 keys",
        ],
    ),
    ("Where is the backup?", &["ASPEN_BACKUP", ".backup-"]),
    (
        "Why did it refuse, or fail?",
        &["state-machine.redb", "state-machine.db"],
    ),
    ("Who led when?", &["leads in term"]),
    (
        "When did it start and stop, and why?",
        &[
            "starts as node 1",
            "Ready after",
            "Stopping on SIGTERM",
            "Stopped in",
        ],
    ),
    (
        "When was the disk full, and for how long?",
        &["No write is taken", "space again"],
    ),
    ("Is the write-ahead log kept short?", &["WAL checkpoint"]),
    ("When was the last backup taken?", &["Sent a backup of"]),
];

/// The queries of the page, by the heading that they stand under.
fn queries() -> BTreeMap<String, Vec<String>> {
    let page = include_str!("../docs/journal.md");
    let (mut found, mut heading) = (BTreeMap::<String, Vec<String>>::new(), String::new());
    let mut query: Option<String> = None;
    for line in page.lines() {
        match (&mut query, line) {
            (None, "```sh") => query = Some(String::new()),
            (Some(text), "```") => {
                found.entry(heading.clone()).or_default().push(text.clone());
                query = None;
            }
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, line) => {
                if let Some(text) = line.strip_prefix("## ") {
                    heading = text.to_owned();
                }
            }
        }
    }
    found
}

/// A start that is refused, a migration, a full disk, a checkpoint, a backup, a restart.
fn live_through_everything(node: &Node) {
    node.configure_sqlite();
    node.ok("cd /var/lib/aspen; sqlite3 state-machine.db \"
             CREATE TABLE state_machine_kv (key TEXT PRIMARY KEY, value TEXT NOT NULL);
             CREATE TABLE state_machine_meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
             CREATE TABLE snapshots (id TEXT PRIMARY KEY, data BLOB NOT NULL);
             INSERT INTO state_machine_kv VALUES ('key', 'value');\"
         chown aspen:aspen state-machine.db");
    assert!(!node.run("systemctl restart aspen-node").status.success());
    node.ok("rm /var/lib/aspen/state-machine.db; systemctl restart aspen-node");
    node.assert_migrated();

    let put = "curl -s -o /dev/null -w '%{http_code}' -X PUT -H 'Content-Type: application/json' \
               -d '{\"value\":\"v\"}' http://localhost:8080/api/kv/key";
    // Less than the node keeps back, and enough for what was let in before it looked.
    node.ok("avail=$(df --output=avail -B1 /var/lib/aspen | tail -n 1)
         fallocate -l $((avail - 16 * 1024 * 1024)) /var/lib/aspen/filler");
    node.wait_until(&format!("test \"$({put})\" = 507"));
    node.ok("rm /var/lib/aspen/filler");
    node.wait_until(&format!("test \"$({put})\" = 200"));
    // Each look at the disk may be the one that tells it.
    let recovered = format!(
        "journalctl -q MESSAGE_ID={} | grep -q .",
        events::DISK_RECOVERED
    );
    node.wait_until(&format!("{HEALTH} && {recovered}"));

    node.ok("curl -sf -X POST http://localhost:8080/admin/checkpoint");
    node.ok("curl -sf -o /tmp/backup.db http://localhost:8080/admin/backup");
    let sent = format!(
        "journalctl -q MESSAGE_ID={} | grep -q .",
        events::BACKUP_SENT
    );
    node.wait_until(&sent);
    node.ok("systemctl restart aspen-node");
}

#[test]
fn every_query_of_the_page_finds_what_it_asks_for() {
    let queries = queries();
    let known: BTreeMap<_, _> = FOUND.iter().copied().collect();
    let headings = |keys: Vec<&str>| keys.join("\n");
    assert_eq!(
        headings(queries.keys().map(String::as_str).collect()),
        headings(known.keys().copied().collect())
    );
    let Some(node) = Node::legacy() else { return };
    live_through_everything(&node);
    for (heading, queries) in &queries {
        let mut all = String::new();
        for query in queries {
            let output = node.ok(query);
            assert!(!output.is_empty(), "{query}");
            assert!(!output.contains("-- No entries --"), "{query}");
            all.push_str(&output);
        }
        for words in known[heading.as_str()] {
            assert!(all.contains(words), "{heading}: no {words:?} in {all}");
        }
    }
    let priority = |event: &str| node.events(event)[0]["PRIORITY"].clone();
    assert_eq!(priority(events::START_REFUSED), "3");
    assert_eq!(priority(events::DISK_FULL), "3");
    assert_eq!(priority(events::MIGRATION_COMPLETED), "6");
    // What a reader of the explanations sees is complete.
    let explained = node.ok("journalctl -q -b -x -t aspen-node");
    assert!(!explained.contains("@ASPEN"), "{explained}");
}
