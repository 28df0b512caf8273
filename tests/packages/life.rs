//! The Debian package from its installation to its end, and what other programs of the system do
//! to what it installed.

use crate::host::{HEALTH, Host, MIGRATED};
use crate::made::{Kind, NEXT_VERSION};

const PUT: &str = r#"curl -sf -X PUT -H 'Content-Type: application/json' -d '{"value":"kept"}' \
    http://localhost:8080/api/kv/key"#;
const GET: &str = "curl -sf http://localhost:8080/api/kv/key";
const KEPT: &str = r#"{"key":"key","value":"kept"}"#;

#[test]
fn a_first_installation_starts_nothing_and_says_how_to() {
    let Some(host) = Host::boot(Kind::Deb) else {
        return;
    };
    let said = host.dpkg("-i /root/this");
    assert!(said.contains("systemctl enable --now aspen-node"), "{said}");
    assert_eq!(host.state(), "ii");
    assert_eq!(host.said("systemctl is-enabled aspen-node"), "disabled\n");
    assert_eq!(host.said("systemctl is-active aspen-node"), "inactive\n");
    let modes =
        "stat -c '%a %U %G %n' /etc/aspen/config.toml /etc/aspen /var/lib/aspen /var/log/aspen";
    assert_eq!(
        host.ok(modes),
        "640 aspen aspen /etc/aspen/config.toml\n755 aspen aspen /etc/aspen\n\
         750 aspen aspen /var/lib/aspen\n750 aspen aspen /var/log/aspen"
    );
    assert_eq!(host.ok("dpkg-query -W -f '${Conffiles}' aspen"), "");
    // What it said, done.
    host.ok("systemctl enable -q --now aspen-node");
    host.ok(HEALTH);
    host.ok("grep -q 'Storage backend initialized: sqlite' /var/log/aspen/node.log");
    let explained = host.ok("journalctl -q -x _COMM=aspen-node");
    assert!(explained.contains("Defined-By: Aspen"), "{explained}");
    let processes = host.ok("ps -o user= -C aspen-node");
    assert_eq!(processes, "aspen");
}

#[test]
fn data_that_was_put_in_place_is_migrated_by_the_first_start() {
    let Some(host) = Host::installed() else {
        return;
    };
    host.put_legacy_data();
    host.ok("systemctl enable -q --now aspen-node");
    assert_eq!(host.ok(HEALTH), MIGRATED);
    let config = host.ok("cat /etc/aspen/config.toml");
    assert!(config.contains("\n[cluster.migrated]\n"), "{config}");
}

#[test]
fn removed_and_installed_again_it_is_as_it_was_and_purged_it_leaves_the_data_alone() {
    let Some(host) = Host::running() else { return };
    host.ok(PUT);
    host.ok(
        "echo '# by hand' >>/etc/aspen/config.toml; echo '# by hand' >>/etc/default/aspen-node",
    );
    let before = host.snapshot("/etc/aspen /etc/default/aspen-node /etc/logrotate.d/aspen");

    host.dpkg("-r aspen");
    assert_eq!(host.said("pgrep -c -x aspen-node"), "0\n");
    assert_eq!(host.property("aspen-node", "LoadState"), "not-found");
    let after = host.snapshot("/etc/aspen /etc/default/aspen-node /etc/logrotate.d/aspen");
    assert_eq!(after, before);

    // Nothing ran, so nothing is started; but it is still enabled, for the next boot.
    host.dpkg("-i /root/this");
    assert_eq!(host.said("systemctl is-enabled aspen-node"), "enabled\n");
    host.ok("systemctl start aspen-node");
    assert_eq!(host.ok(GET), KEPT);
    let after = host.snapshot("/etc/aspen /etc/default/aspen-node /etc/logrotate.d/aspen");
    assert_eq!(after, before);

    let said = host.dpkg("-P aspen");
    assert!(
        said.contains("/var/lib/aspen is kept. If nobody needs it: rm -r /var/lib/aspen"),
        "{said}"
    );
    assert_eq!(
        host.said("dpkg-query -W aspen"),
        "dpkg-query: no packages found matching aspen\n"
    );
    let left = "find / -xdev \\( -path /proc -o -path /root -o -path '/var/log/journal*' \\) -prune \
                -o -name '*aspen*' -print";
    assert_eq!(host.ok(left), "/var/lib/aspen");
    host.ok("systemctl daemon-reload; ! systemctl list-unit-files | grep aspen");

    host.dpkg("-i /root/this");
    assert_eq!(host.said("systemctl is-enabled aspen-node"), "disabled\n");
    host.ok("systemctl start aspen-node");
    assert_eq!(host.ok(GET), KEPT);
}

#[test]
fn the_next_release_may_be_taken_back() {
    let Some(host) = Host::boot(Kind::Deb) else {
        return;
    };
    host.dpkg("-i /root/next");
    host.ok("systemctl enable -q --now aspen-node");
    host.ok(PUT);
    let before = host.snapshot("/etc");
    let said = host.dpkg("-i /root/this");
    assert!(
        said.contains(&format!("downgrading aspen from {NEXT_VERSION}-1")),
        "{said}"
    );
    assert_eq!(host.ok(GET), KEPT);
    assert_eq!(host.starts("aspen-node"), 2);
    assert_eq!(host.snapshot("/etc"), before);
}

/// The connection of an operator breaks, or a terminal is closed.
#[test]
fn an_upgrade_that_is_killed_while_it_waits_is_finished_by_dpkg_later() {
    let Some(host) = Host::running() else { return };
    // Before it is ready, a node takes as long as whoever holds its data.
    host.ok("systemctl stop aspen-node
         mkdir -p /run/systemd/system/aspen-node.service.d
         printf '[Service]\\nExecStartPre=+/usr/bin/sh -c \"while test -e /run/hold; do sleep 0.1; done\"\\n' \
           >/run/systemd/system/aspen-node.service.d/test.conf
         systemctl daemon-reload; systemctl start aspen-node
         touch /run/hold; setsid dpkg -i /root/next >/dev/null 2>&1 &");
    host.wait_until("test \"$(systemctl show -P SubState aspen-node)\" = start-pre");
    host.ok("pkill -KILL -x dpkg; pkill -KILL -f [a]spen.postinst; pkill -KILL -x systemctl; rm /run/hold");
    assert_eq!(host.state(), "iF");
    host.wait_until(HEALTH);
    host.dpkg("--configure -a");
    assert_eq!(host.state(), "ii");
    host.ok(HEALTH);
}

/// Debian policy 9.3.3.2: whoever builds images, or has a time for restarts, says no.
#[test]
fn an_upgrade_restarts_nothing_where_that_is_forbidden() {
    let Some(host) = Host::running() else { return };
    host.ok(
        "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d",
    );
    let said = host.dpkg("-i /root/next");
    assert!(
        said.contains("aspen-node.service runs the old program"),
        "{said}"
    );
    assert_eq!(host.starts("aspen-node"), 1);
    host.ok(HEALTH);
}

#[test]
fn needrestart_restarts_a_node_whose_libraries_were_replaced_like_any_restart() {
    let Some(host) = Host::running() else { return };
    host.ok(PUT);
    host.ok(
        "library=$(ls /lib/*/libgcc_s.so.1); cp $library /run/new; install /run/new $library.new
         mv $library.new $library",
    );
    let said = host.ok("needrestart -r a -m a 2>&1 </dev/null");
    assert!(
        said.contains("systemctl restart aspen-node.service"),
        "{said}"
    );
    assert_eq!(host.starts("aspen-node"), 2);
    assert_eq!(host.property("aspen-node", "Result"), "success");
    assert_eq!(host.ok(GET), KEPT);
}

#[test]
fn the_log_is_rotated_under_a_running_node_and_starts_none_that_is_stopped() {
    let Some(host) = Host::running() else { return };
    let pid = host.property("aspen-node", "MainPID");
    let rotate = "logrotate --force /etc/logrotate.d/aspen 2>&1";
    assert_eq!(host.ok(rotate), "");
    host.wait_until("test -s /var/log/aspen/node.log");
    assert_eq!(host.property("aspen-node", "MainPID"), pid);
    host.ok("systemctl stop aspen-node
         grep -q 'Stopped in ' /var/log/aspen/node.log
         grep -q 'Storage backend initialized' /var/log/aspen/node.log.1");
    assert_eq!(host.ok(rotate), "");
    assert_eq!(host.said("systemctl is-active aspen-node"), "inactive\n");
    let modes = host.ok("stat -c '%a %U' /var/log/aspen/node.log* | sort -u");
    assert_eq!(modes, "640 aspen");
}
