//! Several nodes on one host.

use crate::host::{HEALTH, Host, MIGRATED};

/// As docs/operations.md says.
fn instance(host: &Host, name: &str, http: u16) {
    host.ok(&format!(
        "sed -e 's|^#listen = .*|listen = \"127.0.0.1:{http}\"|' \
             -e 's|/var/log/aspen/|/var/log/aspen-{name}/|' \
             /usr/share/aspen/config.toml >/etc/aspen/{name}.toml
         chown aspen:aspen /etc/aspen/{name}.toml; chmod 640 /etc/aspen/{name}.toml"
    ));
}

fn health(port: u16) -> String {
    format!("curl -sf http://localhost:{port}/health")
}

#[test]
fn two_instances_and_the_plain_node_live_side_by_side() {
    let Some(host) = Host::installed() else {
        return;
    };
    host.put_legacy_data();
    instance(&host, "a", 8081);
    instance(&host, "b", 8082);
    host.ok("systemctl enable -q --now aspen-node aspen-node@a aspen-node@b");
    assert_eq!(host.ok(HEALTH), MIGRATED);
    for (name, port) in [("a", 8081), ("b", 8082)] {
        assert!(host.ok(&health(port)).contains("\"healthy\""));
        host.ok(&format!(
            "test -s /var/lib/aspen-{name}/state-machine.db; test -s /var/log/aspen-{name}/node.log
             systemctl reload aspen-node@{name}"
        ));
        // Of the files that the node, root and nobody else made, all are the node's.
        let owners =
            format!("stat -c '%a %U' /var/lib/aspen-{name} /var/lib/aspen-{name}/* | sort -u");
        assert_eq!(host.ok(&owners), "600 aspen\n750 aspen");
    }
    // An upgrade restarts those that run, each once, and leaves the one that is stopped.
    host.ok("systemctl stop aspen-node@b");
    host.dpkg("-i /root/next");
    for (unit, starts) in [("aspen-node", 2), ("aspen-node@a", 2), ("aspen-node@b", 1)] {
        assert_eq!(host.starts(unit), starts, "{unit}");
    }
    assert_eq!(host.said("systemctl is-active aspen-node@b"), "inactive\n");
    host.ok(&health(8081));
    // One that cannot start does not hold up the others.
    host.ok("echo 'nonsense = 1' >>/etc/aspen/a.toml; systemctl start aspen-node@b");
    let said = host.dpkg("-i /root/this");
    assert!(
        said.contains("aspen-node@a.service has not started, and is down"),
        "{said}"
    );
    assert!(said.contains("/etc/aspen/a.toml"), "{said}");
    host.ok(&health(8082));
    host.ok(HEALTH);

    host.dpkg("-P aspen");
    assert_eq!(host.said("pgrep -c -x aspen-node"), "0\n");
    host.ok(
        "test -s /var/lib/aspen-b/state-machine.db; test -s /etc/aspen/b.toml
         test ! -e /var/log/aspen-b; ! ls /etc/systemd/system/*.wants | grep aspen",
    );
}

#[test]
fn secrets_come_from_the_credential_store_each_nodes_own() {
    let Some(host) = Host::installed() else {
        return;
    };
    instance(&host, "a", 8081);
    host.ok("umask 077; mkdir -p /etc/credstore
         printf %s the-token-of-the-plain-node >/etc/credstore/aspen-node.http.token
         printf %s the-token-of-the-instance >/etc/credstore/aspen-node@a.http.token
         systemctl start aspen-node aspen-node@a");
    let status = |port: u16, token: &str| {
        host.ok(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {token}' http://localhost:{port}/status"
        ))
    };
    assert_eq!(status(8080, "the-token-of-the-plain-node"), "200");
    assert_eq!(status(8081, "the-token-of-the-instance"), "200");
    assert_eq!(status(8080, "the-token-of-the-instance"), "401");
    assert_eq!(status(8081, "the-token-of-the-plain-node"), "401");
    let environment =
        host.ok("cat /proc/$(systemctl show -P MainPID aspen-node)/environ | tr '\\0' '\\n'");
    assert!(!environment.contains("the-token"), "{environment}");
}
