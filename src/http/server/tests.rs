//! Clients of every kind against a small router. Where a limit is tested it is
//! short and the others are hours, so that what ends is ended by that one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use axum::routing::{get, post};
use http_body::Frame;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::config::settings::{Http, Secret};

/// After this long without an event a test has failed.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);
const NEVER: Duration = Duration::from_secs(3600);

const PATIENT: Times = Times {
    head: NEVER,
    idle: NEVER,
    stall: NEVER,
    linger: NEVER,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST: &str = "POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n";

/// Settings as they are by default, on any port.
fn settings() -> Http {
    Http {
        listen: "127.0.0.1:0".parse().unwrap(),
        insecure: false,
        max_connections: 1024,
        tls_certificate: None,
        tls_key: None,
        token: None,
        admin_token: None,
    }
}

/// A body without an end, which tells when it is dropped.
struct Endless(mpsc::UnboundedSender<()>);

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 65536])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Whether it is what a route is told of a body that does not come.
fn timed_out(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::TimedOut)
}

struct Server {
    address: SocketAddr,
    edge: Edge,
    stop: oneshot::Sender<()>,
    running: JoinHandle<io::Result<()>>,
    /// Hears of each endless body that is dropped.
    dropped: mpsc::UnboundedReceiver<()>,
    /// Lets `/wait` answer.
    go: Arc<Semaphore>,
    /// Hears of each request that `/wait` has.
    waiting: mpsc::UnboundedReceiver<()>,
}

async fn start(times: Times, settings: &Http) -> Server {
    let (drops, dropped) = mpsc::unbounded_channel();
    let (waits, waiting) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let permits = Arc::clone(&go);
    let wait = move || async move {
        let _ = waits.send(());
        permits.acquire().await.unwrap().forget();
        "waited"
    };
    let read = |body: Body| async {
        match axum::body::to_bytes(body, 1 << 30).await {
            Ok(bytes) => (StatusCode::OK, bytes.len().to_string()),
            Err(error) => (StatusCode::REQUEST_TIMEOUT, timed_out(&error).to_string()),
        }
    };
    let stubborn = |body: Body| async {
        let _ = axum::body::to_bytes(body, 1 << 30).await;
        std::future::pending::<()>().await;
    };
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/closed", get(|| async { "hello" }))
        .route("/endless", get(|| async { Body::new(Endless(drops)) }))
        .route("/wait", get(wait))
        .route("/read", post(read))
        .route("/stubborn", post(stubborn));
    let listener = TcpListener::bind(settings.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (edge, _) = Edge::new(settings).unwrap();
    let (stop, stopped) = oneshot::channel();
    let serving = serve(listener, router, edge.clone(), times, async {
        let _ = stopped.await;
    });
    Server {
        address,
        edge,
        stop,
        running: tokio::spawn(serving),
        dropped,
        go,
        waiting,
    }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A connection on which `text` was sent.
    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// All that comes back for `text` until the server closes.
    async fn ask(&self, text: &str) -> String {
        rest(&mut self.send(text).await).await
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        let ended = timeout(PATIENCE, self.running).await.expect("it hangs");
        ended.unwrap().unwrap();
    }
}

/// What comes until the other side closes, or resets.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ = read.expect("the connection stays open");
    String::from_utf8(bytes).unwrap()
}

/// What comes up to `end`, which must be there.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut bytes = [0; 4096];
        let read = timeout(PATIENCE, stream.read(&mut bytes)).await;
        let length = read.expect("nothing comes").unwrap();
        assert_ne!(length, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
    }
    text
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_the_connection() {
    let times = Times {
        head: SHORT,
        ..PATIENT
    };
    let server = start(times, &settings()).await;
    for part in ["", "G", "GET / HTTP/1.1\r\nHost: local"] {
        assert_eq!(server.ask(part).await, "", "{part:?}");
    }
    // Nor does it help to go on slowly, here after a request that was answered.
    let mut stream = server.send(GET).await;
    until(&mut stream, "hello").await;
    stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let dribble = async {
        while stream.write_all(b"a: b\r\n").await.is_ok() {
            sleep(SHORT / 10).await;
        }
    };
    timeout(PATIENCE, dribble).await.expect("it stays open");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_without_a_next_request_is_closed() {
    let times = Times {
        idle: SHORT,
        ..PATIENT
    };
    let server = start(times, &settings()).await;
    let mut stream = server.send(GET).await;
    until(&mut stream, "hello").await;
    assert_eq!(rest(&mut stream).await, "");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_end_is_an_error_to_its_route_and_then_the_end() {
    let times = Times {
        stall: SHORT,
        linger: SHORT,
        ..PATIENT
    };
    let server = start(times, &settings()).await;
    let mut stream = server.send(&format!("{POST}12345")).await;
    let answer = until(&mut stream, "true").await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(rest(&mut stream).await, "");
    let stubborn = POST.replace("/read", "/stubborn");
    assert_eq!(server.ask(&format!("{stubborn}12345")).await, "");
    // Bytes that come now and then are no stall.
    let mut stream = server.send(POST).await;
    for _ in 0..10 {
        sleep(SHORT / 4).await;
        stream.write_all(b"1").await.unwrap();
    }
    until(&mut stream, "200 OK").await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_given_up() {
    let times = Times {
        stall: SHORT,
        ..PATIENT
    };
    let mut server = start(times, &settings()).await;
    let _stream = server
        .send("GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let dropped = timeout(PATIENCE, server.dropped.recv()).await;
    dropped.expect("the answer stays in memory").unwrap();
    server.stop().await;
}

#[tokio::test]
async fn the_nodes_own_time_counts_against_nobody() {
    let times = Times {
        head: SHORT,
        idle: SHORT,
        stall: SHORT,
        linger: SHORT,
    };
    let mut server = start(times, &settings()).await;
    let wait = "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = server.send(wait).await;
    server.waiting.recv().await.unwrap();
    sleep(4 * SHORT).await;
    server.go.add_permits(1);
    until(&mut stream, "waited").await;
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so_however_much_follows() {
    let server = start(PATIENT, &settings()).await;
    let line = format!("x: {}\r\n", "y".repeat(1000));
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}", line.repeat(800));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    for head in [long, many] {
        let mut stream = server.send(&head).await;
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    }
    let path = "z".repeat(15_000);
    let fits = server.ask(&format!("GET /{path} HTTP/1.0\r\n\r\n")).await;
    assert!(fits.starts_with("HTTP/1.0 404 "), "{fits}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_next_is_served() {
    let times = Times {
        linger: SHORT,
        ..PATIENT
    };
    let server = start(times, &settings()).await;
    let before = Code::BadRequest.counted();
    for rubbish in [
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        "POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\r\n",
    ] {
        let answer = server.ask(rubbish).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{rubbish:?}: {answer}");
    }
    // These answers were in no metric: hyper gives them by itself. Others count, too, meanwhile.
    let counted = async {
        while Code::BadRequest.counted() < before + 7 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("7 refusals");
    until(&mut server.send(GET).await, "hello").await;
    server.stop().await;
}

#[tokio::test]
async fn over_the_limit_a_connection_is_told_so_and_the_limit_can_be_raised() {
    let mut settings = settings();
    settings.max_connections = 1;
    let server = start(PATIENT, &settings).await;
    let mut first = server.send(GET).await;
    until(&mut first, "hello").await;
    let answer = server.ask(GET).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "too_many_connections");

    settings.max_connections = 2;
    server.edge.reload(&settings).unwrap();
    until(&mut server.send(GET).await, "hello").await;
    drop(first);
    // The server hears of the end when it does; until then it is full.
    while !server.ask("GET / HTTP/1.0\r\n\r\n").await.contains("hello") {}
    server.stop().await;
}

#[tokio::test]
async fn a_stop_waits_for_answers_and_for_nothing_else() {
    let times = Times {
        linger: SHORT,
        ..PATIENT
    };
    let mut server = start(times, &settings()).await;
    let mut idle = server.send(GET).await;
    until(&mut idle, "hello").await;
    let mut silent = server.connect().await;
    let mut half_head = server.send("GET / HTTP/1.1\r\nHost: loc").await;
    let mut half_next = server.send(&format!("{GET}GET /")).await;
    until(&mut half_next, "hello").await;
    let mut half_body = server.send(&format!("{POST}1234")).await;
    let wait = "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut under_way = server.send(wait).await;
    server.waiting.recv().await.unwrap();
    let unread = "GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let _unread = server.send(unread).await;

    server.stop.send(()).unwrap();
    for stream in [&mut idle, &mut silent, &mut half_head, &mut half_next] {
        assert_eq!(rest(stream).await, "");
    }
    let answer = rest(&mut half_body).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(TcpStream::connect(server.address).await.is_err());
    // The one that is still waited for.
    assert!(!server.running.is_finished());
    server.go.add_permits(1);
    let answer = rest(&mut under_way).await;
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("waited"), "{answer}");
    let ended = timeout(PATIENCE, server.running).await.expect("it hangs");
    ended.unwrap().unwrap();
}

/// hyper's `pipeline_flush` would hold the first answer back until the second
/// request is whole.
#[tokio::test]
async fn an_answer_does_not_wait_for_the_next_request() {
    let server = start(PATIENT, &settings()).await;
    let mut stream = server.send(&format!("{GET}{GET}GET / HT")).await;
    let mut text = until(&mut stream, "hello").await;
    if text.matches("hello").count() < 2 {
        text += &until(&mut stream, "hello").await;
    }
    assert_eq!(text.matches("hello").count(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_has_closed_its_side_is_answered() {
    let server = start(PATIENT, &settings()).await;
    for request in [GET, "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stream = server.send(request).await;
        stream.shutdown().await.unwrap();
        server.go.add_permits(1);
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    let old = server.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK") && old.ends_with("hello"));
    server.stop().await;
}

#[tokio::test]
async fn every_answer_is_sealed_and_no_route_is_beside_the_guard() {
    let mut settings = settings();
    settings.token = Some(Secret::new("0123456789abcdef"));
    let server = start(PATIENT, &settings).await;
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    for (path, header, status) in [
        ("/", "", 200),
        ("/closed", "", 401),
        ("/closed", bearer, 200),
        ("/nothing", "", 401),
        ("/nothing", bearer, 404),
        ("/admin/shutdown", bearer, 403),
        ("*", "", 401),
        ("/health", "", 404),
    ] {
        let request = format!("GET {path} HTTP/1.0\r\n{header}\r\n");
        let answer = server.ask(&request).await.to_lowercase();
        assert!(answer.contains(&format!("http/1.0 {status} ")), "{answer}");
        assert!(answer.contains("\r\nx-content-type-options: nosniff\r\n"));
        assert!(answer.contains("\r\ncache-control: no-store\r\n"));
        let asks = answer.contains("\r\nwww-authenticate: bearer\r\n");
        assert_eq!(asks, status == 401, "{answer}");
    }
    let foreign = "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert!(server.ask(foreign).await.starts_with("HTTP/1.1 403 "));
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_told_now_and_then_is_not_told_each_time() {
    let mut told = Told::default();
    assert!(told.is_due());
    assert!(!told.is_due());
    tokio::time::advance(TELL_INTERVAL).await;
    assert!(told.is_due());
    assert!(!told.is_due());
}

/// With a limit of 1024 files, which is usual, clients could take every
/// descriptor: backups and other nodes then failed for want of one.
#[test]
fn clients_cannot_take_all_descriptors() {
    for (limit, room) in [(0, 0), (64, 32), (1024, 768), (65_536, 65_280)] {
        assert_eq!(within(limit), room, "{limit}");
    }
}
