//! The edge of a real node: TLS, tokens, the rule for addresses that others
//! reach, and clients that stall, flood or send rubbish.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::fixture::scratch;
use common::node::{Answer, Launch, Node, get, node_on, parse, request};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const TOKEN: &str = "the-token-of-clients";
const ADMIN: &str = "the-token-of-admins";

/// Writes a new certificate for localhost and its key into `dir`.
fn certify(dir: &Path) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
    certificate.into()
}

/// A node with the certificate in `dir`, and with tokens.
fn protected(dir: &Path, listen: &str) -> Launch {
    common::node::bare_node()
        .env("ASPEN_DATA_DIR", dir.join("data"))
        .env("ASPEN_HTTP_ADDR", listen)
        .env("ASPEN_HTTP__TLS_CERTIFICATE", dir.join("tls.crt"))
        .env("ASPEN_HTTP__TLS_KEY", dir.join("tls.key"))
        .env("ASPEN_HTTP__TOKEN", TOKEN)
        .env("ASPEN_HTTP__ADMIN_TOKEN", ADMIN)
}

/// A connection over TLS by somebody who trusts `root` alone.
fn secured(
    address: SocketAddr,
    root: &CertificateDer<'static>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(address).unwrap())
}

/// What comes back over TLS; none where the certificate is not trusted.
fn ask(
    address: SocketAddr,
    root: &CertificateDer<'static>,
    path: &str,
    token: &str,
) -> Option<Answer> {
    let mut stream = secured(address, root);
    let head = format!("GET {path} HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n");
    write!(stream, "{head}Authorization: Bearer {token}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Some(parse(&answer))
}

fn ready(mut node: Node) -> (Node, SocketAddr) {
    let address = node.ready();
    (node, address)
}

/// Where loopback is, for a node that listens everywhere.
fn on_loopback(address: SocketAddr) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], address.port()))
}

#[test]
fn with_tls_and_tokens_a_node_serves_any_address_to_those_who_have_them() {
    let dir = scratch();
    let root = certify(&dir);
    let (node, address) = ready(protected(&dir, "0.0.0.0:0").start());
    let address = on_loopback(address);
    let status = |path: &str, token: &str| ask(address, &root, path, token).unwrap().status;
    for token in ["", "wrong", TOKEN, ADMIN] {
        for path in ["/livez", "/readyz", "/health"] {
            assert_eq!(status(path, token), 200, "{path} {token}");
        }
    }
    for path in ["/api/kv/x", "/metrics", "/nothing", "/admin/shutdown"] {
        let answer = ask(address, &root, path, "wrong").unwrap();
        assert_eq!(
            (answer.status, answer.error_code()),
            (401, "unauthorized".into())
        );
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!(status("/api/kv/x", TOKEN), 404);
    assert_eq!(status("/api/kv/x", ADMIN), 404);
    assert_eq!(status("/admin/nothing", TOKEN), 403);
    assert_eq!(status("/admin/nothing", ADMIN), 404);
    // Who does not speak TLS gets no answer that looks like one.
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = plain.read_to_end(&mut bytes);
    assert!(!bytes.starts_with(b"HTTP/"));
    let ended = node.stop().with(0);
    assert!(!ended.log.contains(TOKEN) && !ended.log.contains(ADMIN));
}

#[test]
fn a_reload_takes_a_new_certificate_and_keeps_the_old_one_for_a_bad_one() {
    let dir = scratch();
    let old = certify(&dir);
    let (mut node, address) = ready(protected(&dir, "127.0.0.1:0").start());
    let trusted = |root: &_| ask(address, root, "/livez", "").map(|answer| answer.status);
    assert_eq!(trusted(&old), Some(200));
    let mut reload = || {
        node.signal(Signal::SIGHUP);
        assert!(node.says("RELOADING=1") && node.says("READY=1"));
    };
    std::fs::write(dir.join("tls.key"), "rubbish").unwrap();
    reload();
    assert_eq!(trusted(&old), Some(200));
    let new = certify(&dir);
    assert_eq!(trusted(&new), None);
    reload();
    assert_eq!(trusted(&new), Some(200));
    assert_eq!(trusted(&old), None);
    let ended = node.stop().with(0);
    let kept = "The certificate in use stays: ";
    assert!(
        ended.log.contains(kept) && ended.log.contains("tls.key"),
        "{ended:?}"
    );
}

#[test]
fn tokens_and_the_limit_change_with_a_reload_and_credentials_give_them() {
    let dir = scratch();
    let credentials = dir.join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("http.token"), format!("{TOKEN}\n")).unwrap();
    let launch = node_on(&dir.join("data")).env("CREDENTIALS_DIRECTORY", &credentials);
    let (mut node, address) = ready(launch.start());
    let with = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Host", "localhost"), ("Authorization", &*bearer)];
        request(address, "GET", "/api/kv/x", &headers).status
    };
    assert_eq!((with(TOKEN), with(ADMIN)), (404, 401));
    std::fs::write(credentials.join("http.token"), ADMIN).unwrap();
    node.signal(Signal::SIGHUP);
    assert!(node.says("RELOADING=1") && node.says("READY=1"));
    assert_eq!((with(TOKEN), with(ADMIN)), (401, 404));
    node.stop().with(0);
}

#[test]
fn an_address_that_others_reach_is_refused_without_protection() {
    let dir = scratch();
    certify(&dir);
    let bare = || {
        let launch = common::node::bare_node().env("ASPEN_HTTP_ADDR", "0.0.0.0:0");
        launch.env("ASPEN_DATA_DIR", dir.join("data"))
    };
    let ended = bare().start().end().with(78);
    assert!(
        ended
            .log
            .contains("set http.tls_certificate, http.tls_key and http.token"),
        "{ended:?}"
    );
    let ended = bare()
        .env("ASPEN_HTTP__TOKEN", TOKEN)
        .start()
        .end()
        .with(78);
    assert!(
        ended
            .log
            .contains("set http.tls_certificate and http.tls_key"),
        "{ended:?}"
    );
    assert!(!ended.log.contains(TOKEN));
    assert!(!dir.join("data").exists());
    let (node, address) = ready(bare().env("ASPEN_HTTP__INSECURE", "true").start());
    assert_eq!(get(on_loopback(address), "/livez").status, 200);
    node.stop().with(0);
}

#[test]
fn a_certificate_that_cannot_be_used_is_told_before_anything_is_touched() {
    let dir = scratch();
    certify(&dir);
    std::fs::write(dir.join("tls.crt"), "rubbish").unwrap();
    let ended = protected(&dir, "127.0.0.1:0").start().end().with(78);
    let path: PathBuf = dir.join("tls.crt");
    assert!(ended.log.contains(&*path.to_string_lossy()), "{ended:?}");
    assert!(ended.log.contains("http.tls_certificate"), "{ended:?}");
    assert!(ended.said.last().unwrap().starts_with("STATUS=Failed: "));
    assert!(!dir.join("data").exists());
}

/// Reads until the node closes or resets.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn slow_huge_and_malformed_clients_are_ended_while_others_are_served() {
    let dir = scratch();
    let (node, address) = ready(node_on(&dir).start());
    let send = |text: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text).unwrap();
        stream
    };
    // Half a head each, held by nobody's patience but the node's ten seconds.
    let mut slow: Vec<_> = (0..200)
        .map(|_| send(b"GET /livez HTTP/1.1\r\nHos"))
        .collect();
    for (text, status) in [
        (
            format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20)),
            "431",
        ),
        (
            format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101)),
            "431",
        ),
        ("GET /livez HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = send(text.as_bytes());
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = String::from_utf8(rest(&mut stream)).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert_eq!(get(address, "/livez").status, 200);
    }
    for stream in &mut slow {
        assert_eq!(rest(stream), b"");
    }
    assert_eq!(get(address, "/livez").status, 200);
    node.stop().with(0);
}

#[test]
fn more_connections_than_allowed_are_told_so_and_it_is_in_the_log() {
    let dir = scratch();
    let launch = node_on(&dir).env("ASPEN_HTTP__MAX_CONNECTIONS", "8");
    let (node, address) = ready(launch.start());
    let mut held: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let answer = get(address, "/livez");
    assert_eq!(
        (answer.status, answer.error_code()),
        (503, "too_many_connections".into())
    );
    held.clear();
    // The node hears of their end when it does.
    while get(address, "/livez").status != 200 {}
    let ended = node.stop().with(0);
    assert!(
        ended
            .log
            .contains("There are 8 connections and no more are taken"),
        "{ended:?}"
    );
}

#[test]
fn a_stop_waits_for_no_half_sent_request() {
    let dir = scratch();
    let (node, address) = ready(node_on(&dir).start());
    let send = |text: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(text).unwrap();
        stream
    };
    let _silent = TcpStream::connect(address).unwrap();
    let _half = send(b"GET /livez HTTP/1.1\r\nHost: loc");
    let _body = send(b"POST /api/kv/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{");
    assert_eq!(get(address, "/livez").status, 200);
    let ended = node.stop().with(0);
    assert!(!ended.log.contains("are cut off"), "{ended:?}");
}
