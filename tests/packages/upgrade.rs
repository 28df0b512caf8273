//! Upgrades by dpkg, from a package of the legacy kind and from this release.

use crate::host::{HEALTH, Host, MIGRATED};
use crate::made::Kind;
use aspen::telemetry::events;

/// As a legacy package had it: a conffile.
const LEGACY_CONFIG: &str = "# The node.\n[cluster]\nstorage_backend = \"redb\"\n";
/// The drop-in of a unit that a test makes slow, or otherwise its own.
const DROP_IN: &str = "/etc/systemd/system/aspen-node.service.d/test.conf";
const SOURCE: &str = "/var/lib/aspen/state-machine.redb";

/// Makes and installs a package of the legacy kind whose node runs: its configuration is a
/// conffile, its data is in redb. The program only stands for the legacy one: nothing is asked of
/// it but to be stopped.
fn legacy() -> Option<Host> {
    let host = Host::boot(Kind::Deb)?;
    host.write("/root/old/etc/aspen/config.toml", LEGACY_CONFIG);
    host.write(
        "/root/old/usr/bin/aspen-node",
        "#!/bin/sh\nexec sleep infinity\n",
    );
    host.write(
        "/root/old/lib/systemd/system/aspen-node.service",
        "[Service]\nUser=aspen\nExecStart=/usr/bin/aspen-node\nStateDirectory=aspen\n\
         [Install]\nWantedBy=multi-user.target\n",
    );
    host.write(
        "/root/old/DEBIAN/control",
        "Package: aspen\nVersion: 0.0.9\nArchitecture: all\nMaintainer: T <t@localhost>\nDescription: t\n",
    );
    host.write("/root/old/DEBIAN/conffiles", "/etc/aspen/config.toml\n");
    host.write(
        "/root/old/DEBIAN/postinst",
        "#!/bin/sh\nid aspen >/dev/null 2>&1 || useradd --system --home-dir /var/lib/aspen aspen\n\
         systemctl daemon-reload; systemctl enable -q --now aspen-node\n",
    );
    host.ok(
        "chmod 755 /root/old/usr/bin/aspen-node /root/old/DEBIAN/postinst
         dpkg-deb -Zgzip --root-owner-group -b /root/old /root/legacy.deb",
    );
    host.dpkg("-i /root/legacy.deb");
    host.put_legacy_data();
    host.ok("chown -R aspen:aspen /var/lib/aspen");
    Some(host)
}

#[test]
fn a_legacy_package_is_replaced_without_a_question_and_its_node_restarted_once() {
    let cases = [
        // As the package brought it: root's, on redb.
        ("true", "redb", LEGACY_CONFIG.to_owned()),
        // By hand, still on redb.
        (
            "echo '# By hand.' >>/etc/aspen/config.toml",
            "redb",
            format!("{LEGACY_CONFIG}# By hand.\n"),
        ),
        // By hand, and the configuration asks for the migration.
        (
            "sed -i 's/\"redb\"/\"sqlite\"/' /etc/aspen/config.toml",
            "sqlite",
            LEGACY_CONFIG.replace("redb", "sqlite"),
        ),
    ];
    for (edit, storage, kept) in cases {
        let Some(host) = legacy() else { return };
        host.ok(edit);
        let said = host.dpkg("-i /root/this");
        assert_eq!(host.state(), "ii", "{said}");
        // No waiting: dpkg has waited.
        assert_eq!(
            host.ok(HEALTH),
            MIGRATED.replace("sqlite", storage),
            "{said}"
        );
        assert_eq!(host.starts("aspen-node"), 1, "{said}");
        assert_eq!(host.property("aspen-node", "NRestarts"), "0");
        assert_eq!(host.said("systemctl is-enabled aspen-node"), "enabled\n");
        let config = host.ok("cat /etc/aspen/config.toml");
        assert!(config.starts_with(kept.trim()), "{config}");
        let migrated = config.contains("[cluster.migrated]");
        assert_eq!(migrated, storage == "sqlite", "{config}");
        // From here on it is one restart, whatever package it came from.
        if storage == "redb" {
            host.configure("\"redb\"", "\"sqlite\"");
            host.ok("systemctl restart aspen-node");
            assert_eq!(host.ok(HEALTH), MIGRATED);
            let config = host.ok("cat /etc/aspen/config.toml");
            assert!(config.contains("[cluster.migrated]"), "{config}");
        }
        host.dpkg("-P aspen");
        assert_eq!(
            host.said("ls /etc/aspen"),
            "ls: cannot access '/etc/aspen': No such file or directory\n"
        );
    }
}

#[test]
fn a_migration_that_fails_leaves_the_package_installed_the_data_alone_and_says_what_to_do() {
    let Some(host) = legacy() else { return };
    host.configure("\"redb\"", "\"sqlite\"");
    host.ok(&format!(
        "cp -a {SOURCE} /root/good; perl -pi -e 's/value 1014 /value 1015 /g' {SOURCE}"
    ));
    let before = host.snapshot("/var/lib/aspen /etc/aspen | grep -v ' /etc/aspen'");
    let said = host.dpkg("-i /root/this");
    assert_eq!(host.state(), "ii", "{said}");
    for part in [
        "aspen-node.service has not started, and is down",
        SOURCE,
        "damaged",
        "A migration that fails leaves data and configuration as they were",
        "journalctl -x -u aspen-node.service",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!(
        host.snapshot("/var/lib/aspen /etc/aspen | grep -v ' /etc/aspen'"),
        before
    );
    assert_eq!(host.property("aspen-node", "ActiveState"), "failed");
    assert_eq!(host.property("aspen-node", "ExecMainStatus"), "65");
    assert_eq!(host.property("aspen-node", "NRestarts"), "0");
    let status = host.said("systemctl status --full --no-pager aspen-node");
    assert!(
        status.contains(SOURCE) && status.contains("restore"),
        "{status}"
    );
    // The other packages of the same run are not held up, and the next one tries again.
    host.ok(&format!("cp -a /root/good {SOURCE}"));
    host.dpkg("-i /root/next");
    assert_eq!(host.ok(HEALTH), MIGRATED);
}

#[test]
fn a_migration_during_an_upgrade_takes_its_time_and_dpkg_waits() {
    let Some(host) = legacy() else { return };
    host.configure("\"redb\"", "\"sqlite\"");
    // It takes 61 steps of this, and every step is progress.
    host.write(
        DROP_IN,
        "[Service]\nTimeoutStartSec=2s\nEnvironment=ASPEN_TEST_SLOW_MS_PER_STEP=60\n",
    );
    host.dpkg("-i /root/this");
    assert_eq!(host.ok(HEALTH), MIGRATED);
    let time = |name| host.property("aspen-node", name).parse::<u64>().unwrap();
    let took = time("ActiveEnterTimestampMonotonic") - time("InactiveExitTimestampMonotonic");
    assert!(took > 2_000_000, "too fast to show anything: {took} us");
    assert_eq!(host.starts("aspen-node"), 1);
}

#[test]
fn the_next_release_asks_nothing_and_restarts_once_what_ran() {
    for edit in [
        "true",
        "for file in /etc/aspen/config.toml /etc/default/aspen-node /etc/logrotate.d/aspen
                           do echo '# By hand.' >>$file; done",
    ] {
        let Some(host) = Host::running() else { return };
        host.ok(edit);
        let before = host.snapshot("/etc");
        host.dpkg("-i /root/next");
        assert_eq!(host.state(), "ii");
        assert_eq!(host.snapshot("/etc"), before);
        host.ok(HEALTH);
        assert_eq!(host.starts("aspen-node"), 2);
        assert_eq!(host.property("aspen-node", "NRestarts"), "0");
        let stopped = host.journal(&format!("MESSAGE_ID={}", events::NODE_STOPPED));
        assert_eq!(stopped.len(), 1, "it ended in order");
    }
}

#[test]
fn what_is_stopped_stays_stopped_whether_enabled_disabled_or_masked() {
    let Some(host) = Host::running() else { return };
    for (how, enabled) in [
        ("systemctl stop aspen-node", "enabled\n"),
        ("systemctl disable -q --now aspen-node", "disabled\n"),
        ("systemctl mask -q --now aspen-node", "masked\n"),
    ] {
        host.ok(how);
        let starts = host.starts("aspen-node");
        host.dpkg("-i /root/next");
        host.dpkg("-i /root/this");
        assert_eq!(
            host.said("systemctl is-active aspen-node"),
            "inactive\n",
            "{how}"
        );
        assert_eq!(host.said("systemctl is-enabled aspen-node"), enabled);
        assert_eq!(host.starts("aspen-node"), starts);
    }
}

/// A unit that an installation by hand has left in /etc hides the packaged one.
#[test]
fn a_unit_that_hides_the_packaged_one_is_pointed_out() {
    let Some(host) = Host::boot(Kind::Deb) else {
        return;
    };
    let unit = "/etc/systemd/system/aspen-node.service";
    host.write(unit, include_str!("../../systemd/aspen-node.service"));
    let said = host.dpkg("-i /root/this");
    assert!(
        said.contains(&format!("{unit} hides the packaged unit")),
        "{said}"
    );
}
