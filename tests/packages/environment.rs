//! Settings from the environment that systemd gives.

use crate::host::{HEALTH, Host};
use aspen::telemetry::events;

/// As docs/operations.md says: the service's own view of its settings.
const CHECK: &str = "systemd-run --quiet --wait --pipe -p User=aspen -p StateDirectory=aspen \
                     -p EnvironmentFile=-/etc/default/aspen-node aspen-node --check-config";

#[test]
fn the_environment_file_and_a_drop_in_win_over_the_file_and_the_log_names_each() {
    let Some(host) = Host::installed() else {
        return;
    };
    host.configure("#pool_size = 10", "pool_size = 5");
    host.configure("#keep_backups = 3", "keep_backups = 4");
    host.ok("echo ASPEN_CLUSTER__SQLITE__POOL_SIZE=7 >>/etc/default/aspen-node");
    host.write(
        "/etc/systemd/system/aspen-node.service.d/test.conf",
        "[Service]\nEnvironment=ASPEN_MIGRATION__KEEP_BACKUPS=9 ASPEN_HTTP_ADDR=127.0.0.1:8090\n",
    );
    host.ok("systemctl daemon-reload; systemctl start aspen-node; curl -sf http://localhost:8090/health");
    let mut named: Vec<_> = host
        .journal(&format!("MESSAGE_ID={}", events::CONFIG_CONTRADICTION))
        .iter()
        .map(|entry| {
            (
                entry["ASPEN_SETTING"].as_str().unwrap().to_owned(),
                entry["MESSAGE"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    named.sort();
    let keys: Vec<_> = named.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["cluster.sqlite.pool_size", "migration.keep_backups"]);
    for (variable, message) in ["POOL_SIZE", "KEEP_BACKUPS"].iter().zip(&named) {
        let message = &message.1;
        assert!(message.contains(variable), "{message}");
        assert!(
            message.contains("/etc/aspen/config.toml line "),
            "{message}"
        );
    }
}

#[test]
fn nonsense_in_the_environment_is_refused_once_and_named() {
    let Some(host) = Host::installed() else {
        return;
    };
    host.ok("echo ASPEN_CLUSTER__SQLITE__POOL_SIZE=many >>/etc/default/aspen-node");
    let said = host.said("systemctl start aspen-node");
    assert!(said.contains("failed"), "{said}");
    assert_eq!(host.property("aspen-node", "ExecMainStatus"), "78");
    assert_eq!(host.property("aspen-node", "ActiveState"), "failed");
    assert_eq!(host.property("aspen-node", "NRestarts"), "0");
    let status = host.said("systemctl status --full --no-pager aspen-node");
    assert!(
        status.contains("ASPEN_CLUSTER__SQLITE__POOL_SIZE"),
        "{status}"
    );
    // The advice of the docs finds it before a restart does.
    let checked = host.run(CHECK);
    assert_eq!(checked.status.code(), Some(78));
    host.ok("sed -i s/many/7/ /etc/default/aspen-node");
    let checked = host.ok(CHECK);
    assert!(
        checked.contains("environment ASPEN_CLUSTER__SQLITE__POOL_SIZE"),
        "{checked}"
    );
    assert!(checked.contains("/var/lib/aspen"), "{checked}");
    host.ok("systemctl start aspen-node");
    host.ok(HEALTH);
}
