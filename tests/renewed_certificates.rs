//! Certificates for other nodes are replaced while nodes run: SIGHUP, and every
//! connection from then on has the new ones. One that is no good is not let in.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::authority::Authority;
use common::client::{ask, put, until, value};
use common::cluster::Cluster;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// After this long what shall happen never does.
const PATIENCE: Duration = Duration::from_secs(60);

/// The certificate that a node shows to others, if it takes the one in `own`.
fn shown(
    cluster: &Cluster,
    id: u64,
    authority: &Authority,
    own: &[PathBuf; 2],
) -> Option<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(authority.own()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&own[0]).unwrap()],
            PrivateKeyDer::from_pem_file(&own[1]).unwrap(),
        )
        .unwrap();
    let address = cluster.peer_address(id);
    let (host, _) = address.split_once(':').unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    let shown = connection.peer_certificates().unwrap();
    Some(shown[0].clone().into_owned())
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let since = Instant::now();
    while !look() {
        assert!(since.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ready(cluster: &Cluster, id: u64) {
    let address = cluster.address(id);
    until(
        || ask(address, "GET", "/readyz", None),
        |answer| answer.status == 200,
    );
}

#[test]
fn nodes_take_new_certificates_over_while_they_run_and_refuse_those_that_are_over() {
    let authority = Authority::new();
    let mut cluster = Cluster::new(&["sqlite"; 3]);
    let hosts = cluster.members();
    let hosts: Vec<_> = hosts
        .iter()
        .map(|address| address.split(':').next().unwrap().to_owned())
        .collect();
    let sign = |id: u64, until| authority.sign(&id.to_string(), &hosts, until);
    let files: Vec<_> = (1..=3).map(|id| sign(id, 4000)).collect();
    for (id, files) in (1..).zip(&files) {
        cluster.environment = authority.environment(files.clone());
        cluster.start(id);
    }
    put(cluster.address(1), "key", "first");
    let first: Vec<_> = files
        .iter()
        .map(|files| CertificateDer::from_pem_file(&files[0]).unwrap())
        .collect();
    let visitor = authority.sign("visitor", &hosts, 4000);
    for (id, first) in (1..).zip(&first) {
        assert_eq!(
            shown(&cluster, id, &authority, &visitor).as_ref(),
            Some(first)
        );
    }

    // New keys under the old names. Those in use stay until the nodes are told.
    for id in 1..=3 {
        sign(id, 4000);
    }
    assert_eq!(
        shown(&cluster, 1, &authority, &visitor).as_ref(),
        Some(&first[0])
    );
    for (id, files) in (1..).zip(&files) {
        cluster.reload(id);
        let new = CertificateDer::from_pem_file(&files[0]).unwrap();
        eventually("a node that shows its new certificate", || {
            shown(&cluster, id, &authority, &visitor).as_ref() == Some(&new)
        });
    }
    // Connections that are made now are made with them.
    cluster.environment = authority.environment(files[1].clone());
    cluster.kill(2);
    cluster.start(2);
    ready(&cluster, 2);
    put(cluster.address(2), "key", "second");
    assert_eq!(value(cluster.address(3), "key").as_deref(), Some("second"));

    // One that is over is not let in, nor gone to, and the others do without it.
    sign(3, 2021);
    cluster.reload(3);
    eventually("a node that has taken over what is over", || {
        cluster.said(3, "Reloaded: ") == 2 && shown(&cluster, 3, &authority, &visitor).is_none()
    });
    for id in [1, 2] {
        cluster.environment =
            authority.environment(files[usize::try_from(id).unwrap() - 1].clone());
        cluster.kill(id);
        cluster.start(id);
    }
    for id in [1, 2] {
        ready(&cluster, id);
        eventually("a word about it", || {
            cluster.said(id, "certificate expired") > 0
        });
    }
    assert_eq!(ask(cluster.address(3), "GET", "/readyz", None).status, 503);
    put(cluster.address(1), "key", "third");
    let stale = "/api/kv/key?consistency=stale";
    let old = ask(cluster.address(3), "GET", stale, None).json();
    assert_eq!(old["value"], "second");

    // With a good one it is back, without a restart.
    sign(3, 4000);
    cluster.reload(3);
    ready(&cluster, 3);
    assert_eq!(value(cluster.address(3), "key").as_deref(), Some("third"));
}
