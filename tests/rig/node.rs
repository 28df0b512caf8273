//! A machine on which a package has installed the node, with the data of a
//! legacy node, and what tests ask of it.

use super::Machine;
use std::io::Read as _;
use std::ops::Deref;

const CONFIG: &str = r#"# Kept by hand.
[cluster]
storage_backend = "redb"  # the old one

[log]
file = "/var/log/aspen/node.log"
"#;
pub(super) const PROGRAMS: [&str; 2] = [
    env!("CARGO_BIN_EXE_aspen-node"),
    env!("CARGO_BIN_EXE_aspen-migrate"),
];
/// Of a node that is alone in its cluster, so that it can serve.
const LEGACY: &str = "alone-redb-2.6-clean";

/// The legacy state machine.
pub(crate) const SOURCE: &str = "/var/lib/aspen/state-machine.redb";
/// Asks for the node's health; succeeds only where it is good.
pub(crate) const HEALTH: &str = "curl -sf http://localhost:8080/health";
/// Succeeds while rows are copied.
const COPYING: &str = "systemctl show -P StatusText aspen-node | grep -q '^Migrating .*: copy'";

/// Installs the node as a package does, enabled, with the data of a legacy node:
/// the golden files called `data`.
pub(super) fn install(machine: &Machine, config: &str, data: &str) {
    machine.write(
        "/usr/lib/systemd/system/aspen-node.service",
        include_str!("../../systemd/aspen-node.service"),
    );
    machine.write(
        "/usr/lib/systemd/catalog/aspen.catalog",
        include_str!("../../systemd/aspen.catalog"),
    );
    machine.ok("useradd --system --home-dir /var/lib/aspen --shell /usr/sbin/nologin aspen");
    settle(machine, config, data);
    machine.ok("journalctl --update-catalog; systemctl daemon-reload
         systemctl -q enable aspen-node; sync");
}

/// Gives an installed node its configuration and the golden files called `data`.
pub(super) fn settle(machine: &Machine, config: &str, data: &str) {
    machine.write("/etc/aspen/config.toml", config);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden");
    let archive = std::fs::File::open(format!("{golden}/{data}.tar.zst")).unwrap();
    let mut tar = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(archive)
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    machine.write("/tmp/legacy.tar", tar);
    machine.ok(
        "chown -R aspen:aspen /etc/aspen; chmod 640 /etc/aspen/config.toml
         tar -xf /tmp/legacy.tar --strip-components=1 -C /var/lib/aspen
         chown -R aspen:aspen /var/lib/aspen; chmod 600 /var/lib/aspen/*",
    );
}

/// An installed node; the machine is that of its one test.
pub(crate) struct Node {
    machine: Machine,
    /// The SHA-256 of the legacy state machine.
    source: String,
}

impl Deref for Node {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Node {
    /// A node that is enabled, configured for redb, and not started yet. `None`
    /// where no machine can be had.
    pub(crate) fn legacy() -> Option<Self> {
        let machine = Machine::boot(&PROGRAMS)?;
        install(&machine, CONFIG, LEGACY);
        let source = String::new();
        let mut node = Self { machine, source };
        node.source = node.source_hash();
        Some(node)
    }

    /// Edits the configuration as the guide says, durably.
    pub(crate) fn configure_sqlite(&self) {
        self.ok(r#"sed -i 's/storage_backend = "redb"/storage_backend = "sqlite"/' /etc/aspen/config.toml; sync"#);
    }

    /// Settings of the unit until the next boot, or the next call.
    pub(crate) fn drop_in(&self, settings: &str) {
        self.write(
            "/run/systemd/system/aspen-node.service.d/test.conf",
            format!("[Service]\n{settings}"),
        );
        self.ok("systemctl daemon-reload");
    }

    /// Starts a migration that lasts until somebody intervenes, and waits until
    /// rows are copied. The start after that is a fast one.
    pub(crate) fn start_slowly(&self) {
        self.drop_in("Environment=ASPEN_TEST_SLOW_MS_PER_STEP=1000\n");
        self.ok("systemctl restart --no-block aspen-node");
        self.wait_until(COPYING);
        self.drop_in("");
    }

    /// Waits until the node is ready, by itself.
    pub(crate) fn wait_until_active(&self) {
        self.wait_until("systemctl is-active -q aspen-node");
    }

    /// A property of the unit.
    pub(crate) fn property(&self, name: &str) -> String {
        self.ok(&format!("systemctl show -P {name} aspen-node"))
    }

    /// Properties of the unit must have these values.
    pub(crate) fn assert_properties<const N: usize>(&self, wanted: [(&str, &str); N]) {
        for (name, value) in wanted {
            assert_eq!(self.property(name), value, "{name} of {wanted:?}");
        }
    }

    /// The log entries of one event since the machine booted.
    pub(crate) fn events(&self, message_id: &str) -> Vec<serde_json::Value> {
        self.journal(&format!("MESSAGE_ID={message_id}"))
    }

    /// The names in the data directory, time stamps of backups left out.
    pub(crate) fn listing(&self) -> Vec<String> {
        let names = self.ok("ls -A /var/lib/aspen | sed -E 's/[0-9]{8}-[0-9]{6}$/TIME/'");
        names.lines().map(str::to_owned).collect()
    }

    fn source_hash(&self) -> String {
        self.ok(&format!("sha256sum <{SOURCE}"))
    }

    /// Everything is as it was before the first start.
    pub(crate) fn assert_as_found(&self) {
        assert_eq!(self.source_hash(), self.source);
        let files = ["aspen.lock", "raft-log.redb", "state-machine.redb"];
        assert_eq!(self.listing(), files);
        let config = CONFIG.replace("\"redb\"", "\"sqlite\"");
        assert_eq!(self.ok("cat /etc/aspen/config.toml"), config.trim());
    }

    /// Everything is as a migration leaves it, whatever happened on the way.
    pub(crate) fn assert_migrated(&self) {
        let health = r#"{"status":"healthy","storage":"sqlite","last_applied":1234}"#;
        assert_eq!(self.ok(HEALTH), health);
        let rows = "sqlite3 -readonly /var/lib/aspen/state-machine.db \
                    'SELECT count(*) FROM state_machine_kv'";
        assert_eq!(self.ok(rows), "1234");
        let backup = self.ok(&format!("cat {SOURCE}.backup-* | sha256sum"));
        assert_eq!(backup, self.source);
        let config = self.ok("cat /etc/aspen/config.toml");
        let kept = CONFIG.replace("\"redb\"", "\"sqlite\"");
        assert!(config.starts_with(&kept), "{config}");
        assert!(config.contains("[cluster.migrated]"), "{config}");
        assert_eq!(
            self.listing(),
            [
                "aspen.lock",
                "migrations.jsonl",
                "raft-log.redb",
                "raft-log.redb.backup-TIME",
                "state-machine.db",
                "state-machine.db-shm",
                "state-machine.db-wal",
                "state-machine.redb.backup-TIME",
            ]
        );
    }
}
