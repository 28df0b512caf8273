//! Settings from the environment that systemd gives.

use crate::host::{HEALTH, Host};
use aspen::telemetry::events;

const DATA: &str = "/var/lib/aspen";

/// As docs/installing.md says, literally: the service's own view of its settings.
fn check() -> &'static str {
    let page = include_str!("../../docs/installing.md");
    let command = "systemd-run ";
    let start = page.find(command).expect("the page has the command");
    page[start..].split("```").next().unwrap()
}

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
    let checked = host.run(check());
    assert_eq!(checked.status.code(), Some(78));
    host.ok("sed -i s/many/7/ /etc/default/aspen-node");
    let checked = host.ok(check());
    assert!(
        checked.contains("environment ASPEN_CLUSTER__SQLITE__POOL_SIZE"),
        "{checked}"
    );
    assert!(checked.contains(DATA), "{checked}");
    host.ok("systemctl start aspen-node");
    host.ok(HEALTH);
}

/// The check ran without the unit's mode and opened the data directory to everybody, also under a
/// running node; and without its credentials it refused what the service accepts.
#[test]
fn the_check_of_the_settings_sees_the_credentials_and_leaves_the_data_directory_closed() {
    let Some(host) = Host::running() else { return };
    host.ok("umask 077; mkdir -p /etc/credstore
         printf %s a-token-of-some-length >/etc/credstore/aspen-node.http.token");
    let mode = format!("stat -c %a {DATA}");
    let before = host.ok(&mode);
    let checked = host.ok(check());
    assert!(checked.contains("credential http.token"), "{checked}");
    assert!(!checked.contains("a-token-of-some-length"), "{checked}");
    assert_eq!(host.ok(&mode), before);
    assert_eq!(before, "750");
}

/// Without the drop-in's second half, what the sandbox keeps from the node looks like a disk that
/// is mounted for reading.
#[test]
fn data_elsewhere_that_the_sandbox_keeps_away_is_told_with_the_setting_that_it_needs() {
    let Some(host) = Host::installed() else {
        return;
    };
    let unit = |more: &str| {
        host.write(
            "/etc/systemd/system/aspen-node.service.d/data.conf",
            format!("[Service]\nEnvironment=ASPEN_DATA_DIR=/srv/aspen/node-1\n{more}"),
        );
        host.ok("systemctl daemon-reload");
    };
    host.ok("mkdir -p /srv/aspen/node-1; chown -R aspen:aspen /srv/aspen");
    unit("");
    host.said("systemctl start aspen-node");
    let status = host.said("systemctl status --full --no-pager aspen-node");
    assert!(
        status.contains("/srv/aspen/node-1/aspen.lock") && status.contains("ReadWritePaths="),
        "{status}"
    );
    host.ok("systemctl stop aspen-node");
    unit("ReadWritePaths=/srv/aspen\n");
    host.ok("systemctl start aspen-node");
    host.ok(HEALTH);
}

/// An editor that moves the file away for a moment, a weekly rotation of the log that reloads just
/// then: defaults would have taken the place of the file, and its token have been forgotten.
#[test]
fn a_reload_without_the_configuration_file_forgets_no_token() {
    let Some(host) = Host::running() else { return };
    host.ok(
        "sed -i 's/^#token = .*/token = \"a-token-of-some-length\"/' /etc/aspen/config.toml
         systemctl restart aspen-node",
    );
    let status = "curl -s -o /dev/null -w '%{http_code}' http://localhost:8080/status";
    assert_eq!(host.ok(status), "401");
    host.ok("mv /etc/aspen/config.toml /root; systemctl reload aspen-node");
    let told = format!("journalctl -q MESSAGE_ID={}", events::NOT_RELOADED);
    host.wait_until(&format!("{told} | grep -q 'is there no more'"));
    assert_eq!(host.ok(status), "401");
    host.ok("mv /root/config.toml /etc/aspen/; systemctl reload aspen-node");
    host.wait_until(&format!(
        "journalctl -q MESSAGE_ID={} | grep -q .",
        events::RELOADED
    ));
    assert_eq!(host.ok(status), "401");
}
