//! The RPM, by real rpm, with its scriptlets in rpm's order.

use crate::host::{HEALTH, Host, MIGRATED};
use crate::made::Kind;

#[test]
fn installed_upgraded_and_erased_it_starts_nothing_restarts_once_and_leaves_what_is_not_its() {
    let Some(host) = Host::boot(Kind::Rpm) else {
        return;
    };
    let said = host.rpm("-i /root/this");
    assert!(said.contains("systemctl enable --now aspen-node"), "{said}");
    assert_eq!(host.said("systemctl is-active aspen-node"), "inactive\n");
    assert_eq!(host.said("systemctl is-enabled aspen-node"), "disabled\n");
    let owner = "stat -c '%a %U %G' /etc/aspen/config.toml";
    assert_eq!(host.ok(owner), "640 aspen aspen");
    // Nothing that is packaged is other than packaged.
    assert_eq!(host.ok("rpm --verify --nodeps aspen"), "");
    host.put_legacy_data();
    host.ok("systemctl enable -q --now aspen-node");
    assert_eq!(host.ok(HEALTH), MIGRATED);

    host.ok("echo '# By hand.' >>/etc/default/aspen-node");
    let before = host.snapshot("/etc/aspen /etc/default/aspen-node");
    let said = host.rpm("-U /root/next");
    assert!(said.contains("Restarting aspen-node.service."), "{said}");
    assert_eq!(host.ok(HEALTH), MIGRATED);
    assert_eq!(host.starts("aspen-node"), 2);
    assert_eq!(host.snapshot("/etc/aspen /etc/default/aspen-node"), before);
    assert_eq!(host.said("systemctl is-enabled aspen-node"), "enabled\n");

    // And back.
    host.rpm("-U --oldpackage /root/this");
    assert_eq!(host.starts("aspen-node"), 3);
    host.ok("systemctl stop aspen-node");
    host.rpm("-U /root/next");
    assert_eq!(host.said("systemctl is-active aspen-node"), "inactive\n");

    host.ok("systemctl start aspen-node; systemctl enable -q aspen-node@a");
    host.rpm("-e aspen");
    assert_eq!(host.said("pgrep -c -x aspen-node"), "0\n");
    host.ok(
        "test -s /var/lib/aspen/state-machine.db; test -s /etc/aspen/config.toml
         ! ls /etc/systemd/system/multi-user.target.wants | grep aspen
         ! systemctl list-unit-files | grep aspen",
    );
    host.rpm("-i /root/this");
    host.ok("systemctl start aspen-node");
    assert_eq!(host.ok(HEALTH), MIGRATED);
}

/// rpm removes an unchanged %config file of the package that is replaced, and renames a changed one.
#[test]
fn a_configuration_that_a_legacy_package_owned_outlives_it() {
    let spec = "Name: aspen\nVersion: 0.0.9\nRelease: 1\nSummary: t\nLicense: t\nBuildArch: noarch\n\
                %description\nt\n%install\nmkdir -p %{buildroot}/etc/aspen\n\
                printf '[cluster]\\nstorage_backend = \"redb\"\\n' >%{buildroot}/etc/aspen/config.toml\n\
                %files\n%config /etc/aspen/config.toml\n";
    for edit in ["true", "echo '# By hand.' >>/etc/aspen/config.toml"] {
        let Some(host) = Host::boot(Kind::Rpm) else {
            return;
        };
        host.write("/root/legacy.spec", spec);
        host.ok("rpmbuild --quiet -bb --define '_topdir /root/work' --define '_rpmdir /root' /root/legacy.spec 2>/dev/null");
        host.rpm("-i /root/noarch/aspen-0.0.9-1.noarch.rpm");
        host.ok(edit);
        let before = host.ok("cat /etc/aspen/config.toml");
        host.rpm("-U /root/this");
        assert_eq!(host.ok("cat /etc/aspen/config.toml"), before);
        assert_eq!(host.ok("stat -c %U /etc/aspen/config.toml"), "aspen");
        assert_eq!(host.ok("ls -A /etc/aspen"), "config.toml");
    }
}

#[test]
fn a_migration_that_fails_fails_no_transaction_and_says_what_to_do() {
    let Some(host) = Host::boot(Kind::Rpm) else {
        return;
    };
    host.rpm("-i /root/this");
    host.ok("systemctl enable -q --now aspen-node; systemctl stop aspen-node; rm /var/lib/aspen/*.db* /var/lib/aspen/raft-log.redb");
    host.put_legacy_data();
    host.ok("truncate -s 100000 /var/lib/aspen/state-machine.redb; ! systemctl start aspen-node");
    // A failed node gets another chance by the new release.
    let said = host.rpm("-U /root/next");
    assert!(
        said.contains("aspen-node.service has not started, and is down"),
        "{said}"
    );
    assert!(said.contains("/var/lib/aspen/state-machine.redb"), "{said}");
    assert_eq!(host.property("aspen-node", "ActiveState"), "failed");
    assert_eq!(
        host.ok("rpm -q aspen | cut -d- -f2"),
        crate::made::NEXT_VERSION
    );
}
