//! A client whose connection stays open: what it does not hear of, it does not know.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::node::Answer;

/// After this long without an answer a node hangs: it gives up by itself long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection at a time, made when it is needed.
pub(crate) struct Client {
    address: SocketAddr,
    patience: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::patient(address, PATIENCE)
    }

    /// One that gives up after `patience`.
    pub(crate) fn patient(address: SocketAddr, patience: Duration) -> Self {
        Self {
            address,
            patience,
            connection: None,
        }
    }

    /// Connects unless it is; after an error nothing has been asked for.
    pub(crate) fn connect(&mut self) -> io::Result<()> {
        if self.connection.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, self.patience)?;
            stream.set_read_timeout(Some(self.patience))?;
            stream.set_write_timeout(Some(self.patience))?;
            stream.set_nodelay(true)?;
            notice_death(&stream);
            self.connection = Some(BufReader::new(stream));
        }
        Ok(())
    }

    /// Asks once. After an error it is unknown what became of it.
    pub(crate) fn ask(
        &mut self,
        method: &str,
        target: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        self.ask_with(method, target, "", body)
    }

    /// The same with more lines in the head, each with its end.
    pub(crate) fn ask_with(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let answer = self.exchange(method, target, headers, body);
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    fn exchange(
        &mut self,
        method: &str,
        target: &str,
        headers: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        self.connect()?;
        let mut connection = self.connection.take().unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             {headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.get_mut().write_all(request.as_bytes())?;
        let (answer, open) = receive(&mut connection)?;
        self.connection = open.then_some(connection);
        Ok(answer)
    }
}

/// A machine without power closes no connection: ask the kernel to find out.
fn notice_death(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::KeepAlive, &true).unwrap();
    setsockopt(stream, sockopt::TcpKeepIdle, &1).unwrap();
    setsockopt(stream, sockopt::TcpKeepInterval, &1).unwrap();
    setsockopt(stream, sockopt::TcpKeepCount, &4).unwrap();
    setsockopt(stream, sockopt::TcpUserTimeout, &4000).unwrap();
}

/// An answer, and whether the connection can be used again.
fn receive(from: &mut impl io::BufRead) -> io::Result<(Answer, bool)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut answer = super::node::parse(&head);
    let length = answer.header("content-length").map(|text| text.parse());
    let length: u64 = length.expect("an answer without a length").unwrap();
    from.take(length).read_to_string(&mut answer.body)?;
    if answer.body.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let open = answer.header("connection") != Some("close");
    Ok((answer, open))
}

/// Asks on a connection of its own; the node must answer.
pub(crate) fn ask(address: SocketAddr, method: &str, target: &str, body: Option<&Value>) -> Answer {
    Client::new(address).ask(method, target, body).unwrap()
}

/// Sets `key`, which must succeed, and returns the entry's index.
pub(crate) fn put(address: SocketAddr, key: &str, value: &str) -> u64 {
    let body = serde_json::json!({ "value": value });
    let answer = ask(address, "PUT", &format!("/api/kv/{key}"), Some(&body));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["index"].as_u64().unwrap()
}

/// The value of `key`, if it is there.
pub(crate) fn value(address: SocketAddr, key: &str) -> Option<String> {
    let answer = ask(address, "GET", &format!("/api/kv/{key}"), None);
    if answer.status == 404 {
        return None;
    }
    assert_eq!(answer.status, 200, "{answer:?}");
    Some(answer.json()["value"].as_str().unwrap().to_owned())
}

/// Asks for `/health`; the last applied entry in the answer, 0 where there is none.
pub(crate) fn last_applied(address: SocketAddr) -> u64 {
    let answer = ask(address, "GET", "/health", None);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["last_applied"].as_u64().unwrap_or(0)
}

/// Asks until `wanted` is true of the answer. Nothing is measured: the bound
/// only turns a hang into a failure.
pub(crate) fn until(mut ask: impl FnMut() -> Answer, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let since = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(since.elapsed() < PATIENCE, "never came true: {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
