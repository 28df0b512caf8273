//! Two of three disks are gone: by the commands in docs/operations.md, a new
//! cluster begins with all that the third one holds.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod rig;

use common::client::{ask, until};
use common::retrying::clients;
use rig::Network;
use rig::cluster::{Cluster, IDS, api};

/// What an operator types to write into the new cluster what was left.
fn command() -> String {
    let page = include_str!("../docs/operations.md");
    let block = |block: &&str| block.contains("json_group_array");
    let block = page.split("```").find(block).unwrap();
    block.strip_prefix("sh\n").unwrap().to_owned()
}

const MEMBERS: &str = r#"cat >>/etc/aspen/config.toml <<END
[cluster.initial_members]
1 = { peer = "10.0.0.1:7000", http = "10.0.0.1:8080" }
2 = { peer = "10.0.0.2:7000", http = "10.0.0.2:8080" }
3 = { peer = "10.0.0.3:7000", http = "10.0.0.3:8080" }
END"#;

#[test]
fn a_cluster_of_which_one_disk_is_left_begins_anew_with_what_is_on_it() {
    Network::run(|network| {
        let cluster = Cluster::legacy(network);
        for id in IDS {
            cluster.configure_sqlite(id);
        }
        cluster.systemctl_all("start");
        let mut clients = clients(3, &IDS.map(api));
        for client in &mut clients {
            client.count_on();
        }
        for id in IDS {
            cluster.wait_until_caught_up(id);
        }
        for id in [1, 2] {
            cluster.systemctl("stop", id);
            cluster[id].ok("rm -r /var/lib/aspen/*");
        }
        until(
            || ask(api(3), "GET", "/readyz", None),
            |answer| answer.status == 503,
        );
        let left = ask(api(3), "GET", "/admin/digest", None).json();
        cluster[3].ok("curl -sf -o /var/tmp/left.db localhost:8080/admin/backup");
        cluster.systemctl("stop", 3);
        cluster[3].ok("mkdir /root/old; mv /var/lib/aspen/* /root/old");

        cluster.on_all(MEMBERS);
        cluster.systemctl_all("start");
        for id in IDS {
            cluster.wait_until_caught_up(id);
        }
        let said = cluster[3].run(&command());
        assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
        for id in IDS {
            cluster.wait_until_caught_up(id);
            let now = ask(api(id), "GET", "/admin/digest", None).json();
            for what in ["keys", "checksum"] {
                assert_eq!(now[what], left[what], "{what} on node {id}");
            }
            for client in &clients {
                client.check(api(id));
            }
        }
    });
}
