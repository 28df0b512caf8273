//! The two units: one node, and several on a host.

use crate::host::Host;

/// A unit's settings without comments, and with lines that go on joined.
fn settings(unit: &str) -> Vec<String> {
    let unit = unit.replace("\\\n", " ");
    let lines = unit
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn the_unit_for_several_nodes_differs_from_the_other_by_the_names_of_its_node_alone() {
    let one = settings(include_str!("../../systemd/aspen-node.service"));
    let several = settings(include_str!("../../systemd/aspen-node@.service"));
    let mut expected = Vec::new();
    for line in one {
        let of_instance = match line.as_str() {
            "Description=Aspen node" => "Description=Aspen node %i".to_owned(),
            "ExecStart=/usr/bin/aspen-node" => {
                "ExecStart=/usr/bin/aspen-node --config /etc/aspen/%i.toml".to_owned()
            }
            "StateDirectory=aspen" | "LogsDirectory=aspen" => format!("{line}-%i"),
            "EnvironmentFile=-/etc/default/aspen-node" => {
                expected.push(line.clone());
                format!("{line}@%i")
            }
            _ => line
                .replace(":aspen-node.", ":aspen-node@%i.")
                .replace("find %S/aspen ", "find %S/aspen-%i "),
        };
        expected.push(of_instance);
    }
    assert_eq!(several, expected);
}

#[test]
fn both_are_free_of_mistakes_and_exposed_by_no_more_than_one_point_three() {
    let Some(host) = Host::installed() else {
        return;
    };
    host.ok("cp /etc/aspen/config.toml /etc/aspen/a.toml");
    for unit in ["aspen-node.service", "aspen-node@a.service"] {
        assert_eq!(
            host.said(&format!("systemd-analyze verify --man=no {unit}")),
            ""
        );
    }
    for unit in ["aspen-node.service", "aspen-node@.service"] {
        let path = format!("/usr/lib/systemd/system/{unit}");
        host.ok(&format!(
            "systemd-analyze security --offline=true --threshold=13 {path}"
        ));
    }
}

#[test]
fn a_running_node_is_accounted_for() {
    let Some(host) = Host::running() else { return };
    let used = host.property("aspen-node", "CPUUsageNSec");
    assert!(used.parse::<u64>().is_ok_and(|n| n > 0), "{used}");
    for name in ["CPU", "Memory", "IO", "IP", "Tasks"] {
        assert_eq!(
            host.property("aspen-node", &format!("{name}Accounting")),
            "yes"
        );
    }
}
