//! What the settings of the listener for other nodes need of each other.

use super::settings::{Cluster, Conflict};

const TLS: [&str; 3] = [
    "cluster.tls_certificate",
    "cluster.tls_key",
    "cluster.tls_ca",
];

pub(super) fn conflicts(cluster: &Cluster) -> Vec<Conflict> {
    let mut found = Vec::new();
    found.extend(part_of_tls(cluster));
    found.extend(unprotected_listener(cluster));
    found
}

/// TLS between nodes is mutual: each shows a certificate and checks the other's.
fn part_of_tls(cluster: &Cluster) -> Option<Conflict> {
    let set = [
        cluster.tls_certificate.is_some(),
        cluster.tls_key.is_some(),
        cluster.tls_ca.is_some(),
    ];
    let of = |wanted: bool| {
        let keys = TLS.into_iter().zip(set);
        keys.filter(move |(_, set)| *set == wanted)
            .map(|(key, _)| key)
    };
    let present = of(true).next()?;
    let missing: Vec<_> = of(false).collect();
    (!missing.is_empty()).then(|| Conflict {
        key: present.into(),
        with: missing.iter().map(|key| (*key).to_owned()).collect(),
        message: format!(
            "found a part of what TLS between nodes needs, expected {} as well",
            missing.join(" and ")
        ),
    })
}

fn unprotected_listener(cluster: &Cluster) -> Option<Conflict> {
    let listen = cluster.peer_listen;
    let protected = cluster.secret.is_some() || cluster.tls().is_some();
    if protected || listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let with = TLS.iter().chain(&["cluster.secret"]);
    Some(Conflict {
        key: "cluster.peer_listen".into(),
        with: with.map(|key| (*key).to_owned()).collect(),
        message: format!(
            "found \"{listen}\", which other machines can reach, so that whoever reaches it could \
             pose as a node; set cluster.secret to the same on all nodes, or {}, or listen on a \
             loopback address such as \"127.0.0.1:{}\"",
            TLS.join(", "),
            listen.port()
        ),
    })
}
