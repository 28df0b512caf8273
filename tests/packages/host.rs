//! A machine that packages are installed on, and what tests ask of it.

use crate::common::fixture;
use crate::made::{self, Kind};
use crate::rig::{Machine, text};
use aspen::telemetry::events;
use std::ops::Deref;

/// Of a node that is alone in its cluster, so that it can serve.
const LEGACY_DATA: &str = "alone-redb-2.6-clean";
/// Asks for the node's health; succeeds only where it is good.
pub(crate) const HEALTH: &str = "curl -sf http://localhost:8080/health";
/// The health of the legacy data in SQLite.
pub(crate) const MIGRATED: &str = r#"{"status":"healthy","storage":"sqlite","last_applied":1234}"#;

/// A machine with this tree's package and the next release's beside it, neither installed.
pub(crate) struct Host(Machine);

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl Host {
    /// `None` where there is no package or no machine.
    pub(crate) fn boot(kind: Kind) -> Option<Self> {
        let (package, next) = (made::package(kind)?, made::next(kind)?);
        let machine = Machine::boot(&[])?;
        machine.write("/root/this", std::fs::read(package).unwrap());
        machine.write("/root/next", std::fs::read(next).unwrap());
        Some(Self(machine))
    }

    /// A machine on which this tree's Debian package is installed.
    pub(crate) fn installed() -> Option<Self> {
        let host = Self::boot(Kind::Deb)?;
        host.dpkg("-i /root/this");
        Some(host)
    }

    /// A machine whose node, by this tree's Debian package, runs, is enabled, and is fresh.
    pub(crate) fn running() -> Option<Self> {
        let host = Self::installed()?;
        host.ok("systemctl enable -q --now aspen-node");
        Some(host)
    }

    /// Runs dpkg, which must succeed and leave no package half-configured; what it and the scripts
    /// said.
    pub(crate) fn dpkg(&self, arguments: &str) -> String {
        let said = self.ok(&format!("dpkg {arguments} 2>&1"));
        assert_eq!(self.ok("dpkg --audit"), "", "{said}");
        said
    }

    /// Runs rpm, which must succeed. Its database knows no package of a Debian system, so
    /// dependencies are left out.
    pub(crate) fn rpm(&self, arguments: &str) -> String {
        let said = self.ok(&format!("rpm --nodeps {arguments} 2>&1"));
        assert!(!said.contains("scriptlet failed"), "{said}");
        said
    }

    /// Two letters: what is wanted of the Debian package, and what it is.
    pub(crate) fn state(&self) -> String {
        self.ok("dpkg-query -W -f '${db:Status-Abbrev}' aspen") // trimmed: dpkg's third letter is a blank
    }

    /// Puts the data of a legacy node in place, as root does.
    pub(crate) fn put_legacy_data(&self) {
        let data = fixture::one("golden", LEGACY_DATA).unpack();
        for name in ["state-machine.redb", "raft-log.redb"] {
            let content = std::fs::read(data.join(name)).unwrap();
            self.write(&format!("/var/lib/aspen/{name}"), content);
        }
        self.ok("chmod 600 /var/lib/aspen/*.redb");
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.ok(&format!("systemctl show -P {name} {unit}"))
    }

    /// How often the node of a unit has started since the machine booted.
    pub(crate) fn starts(&self, unit: &str) -> usize {
        let matches = format!("MESSAGE_ID={} -u {unit}", events::NODE_STARTING);
        self.journal(&matches).len()
    }

    /// Digests of all files below these, and their modes and owners.
    pub(crate) fn snapshot(&self, paths: &str) -> String {
        self.ok(&format!(
            "find {paths} -type f ! -name '*.lock' ! -name '*.log' | sort | while read -r f; do
               sha256sum \"$f\"; stat -c '%a %U %G' \"$f\"; done"
        ))
    }

    /// What the script printed, however it ended.
    pub(crate) fn said(&self, script: &str) -> String {
        let output = self.run(&format!("{{ {script}; }} 2>&1"));
        text(&output.stdout)
    }

    /// Changes the configuration by hand.
    pub(crate) fn configure(&self, from: &str, to: &str) {
        self.ok(&format!(
            "grep -qF '{from}' /etc/aspen/config.toml
             sed -i 's|{from}|{to}|' /etc/aspen/config.toml"
        ));
    }
}
