//! `aspen-node` as a process, with a service manager that listens.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const NODE: &str = env!("CARGO_BIN_EXE_aspen-node");

/// After this long without a word a node hangs: no test has it wait for a tenth of that.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the thread that reads standard error says when the process is gone.
const GONE: &[u8] = b"gone";

/// How a node is to be started.
pub(crate) struct Launch {
    command: Command,
    notify: bool,
}

/// A node on `dir`, on a port of the kernel's choice, in an environment of its own.
pub(crate) fn node_on(dir: &Path) -> Launch {
    bare_node()
        .arguments(["--data-dir".as_ref(), dir.as_os_str()])
        .arguments(["--http-addr", "127.0.0.1:0"])
}

/// A node that is told nothing at all.
pub(crate) fn bare_node() -> Launch {
    let mut command = Command::new(NODE);
    command.env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap());
    Launch {
        command,
        notify: true,
    }
}

impl Launch {
    pub(crate) fn arguments<A: AsRef<OsStr>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn config(self, file: &Path) -> Self {
        self.arguments(["--config".as_ref(), file.as_os_str()])
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn cwd(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Has other programs start it: `words` come before its own.
    pub(crate) fn through(mut self, words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.command.get_program());
        command.args(self.command.get_args()).env_clear();
        let set = self.command.get_envs();
        command.envs(set.filter_map(|(name, value)| Some((name, value?))));
        self.command = command;
        self
    }

    /// Without a service manager: only [`Node::end`] hears of it.
    pub(crate) fn without_notify(mut self) -> Self {
        self.notify = false;
        self
    }

    pub(crate) fn start(mut self) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Whoever the node runs as may speak.
        for path in [dir.path(), &path] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        if self.notify {
            self.command.env("NOTIFY_SOCKET", &path);
        }
        self.command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = self.command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            let teller = UnixDatagram::unbound().unwrap();
            // The test may have gone by now.
            let _ = teller.send_to(GONE, &path);
            String::from_utf8(log).unwrap()
        });
        Node {
            child,
            socket,
            log: Some(log),
            said: Vec::new(),
            gone: false,
            _dir: dir,
        }
    }
}

/// A running node; killed when dropped.
pub(crate) struct Node {
    child: Child,
    socket: UnixDatagram,
    log: Option<JoinHandle<String>>,
    said: Vec<String>,
    gone: bool,
    _dir: tempfile::TempDir,
}

/// How a node ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Standard error.
    pub(crate) log: String,
    /// To the service manager.
    pub(crate) said: Vec<String>,
}

impl Ended {
    /// The exit code; `None` after a signal.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless it ended with `code`, with nothing that should not happen in its log.
    pub(crate) fn with(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self.quietly()
    }

    /// Fails if it died of SIGKILL for any reason but that, or panicked before.
    pub(crate) fn killed(self) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let signal = Signal::SIGKILL as i32;
        assert_eq!(self.status.signal(), Some(signal), "{self:?}");
        self.quietly()
    }

    fn quietly(self) -> Self {
        assert!(!self.log.contains("panicked at"), "{self:?}");
        self
    }
}

impl Node {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The next message to the service manager; `None` once the process is gone.
    pub(crate) fn hear(&mut self) -> Option<String> {
        if self.gone {
            return None;
        }
        let mut buffer = [0; 8192];
        let length = loop {
            match self.socket.recv(&mut buffer) {
                // Where a machine is frozen and goes on.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("the node hangs: {error}; it said {:?}", self.said),
                Ok(length) => break length,
            }
        };
        let message = &buffer[..length];
        if message == GONE {
            self.gone = true;
            return None;
        }
        let message = String::from_utf8(message.to_vec()).unwrap();
        self.said.push(message.clone());
        Some(message)
    }

    /// The next message, if there is one within `time`.
    pub(crate) fn hear_within(&mut self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 8192];
        let received = self.socket.recv(&mut buffer);
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = received.ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// Listens until a message contains `word`; false when the process ended before.
    pub(crate) fn says(&mut self, word: &str) -> bool {
        while let Some(message) = self.hear() {
            if message.contains(word) {
                return true;
            }
        }
        false
    }

    /// Waits for `READY=1`, and answers where the API is.
    pub(crate) fn ready(&mut self) -> SocketAddr {
        if !self.says("READY=1") {
            let log = self.log.take().unwrap().join().unwrap();
            panic!("ended before it was ready: {log}");
        }
        let said = self.said.last().unwrap();
        let (_, address) = said.trim_end().rsplit_once("://").unwrap();
        address.parse().unwrap()
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        while self.hear().is_some() {}
        let status = self.child.wait().unwrap();
        let log = self.log.take().unwrap().join().unwrap();
        let said = std::mem::take(&mut self.said);
        Ended { status, log, said }
    }

    /// Stops it as a service manager does, and waits for the end.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.end()
    }

    /// Waits until it is ready, then stops it; it must end well.
    pub(crate) fn ready_then_stop(mut self) -> Ended {
        self.ready();
        self.stop().with(0)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Gone already in the good case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens on, for a node whose API is asked before it
/// says where it is.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The code in an answer that is an error.
    pub(crate) fn error_code(&self) -> String {
        let body = self.json();
        assert!(body["error"]["message"].is_string(), "{self:?}");
        body["error"]["code"].as_str().unwrap().to_owned()
    }
}

/// Asks for `target` (a path as it stands in the request line).
pub(crate) fn get(address: SocketAddr, target: &str) -> Answer {
    request(address, "GET", target, &[("Host", "localhost")])
}

/// Asks with a method and headers; one answer, then the connection is closed.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers: String = headers
        .iter()
        .map(|(n, v)| format!("{n}: {v}\r\n"))
        .collect();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    parse(&answer)
}

/// Sends JSON; one answer, then the connection is closed.
pub(crate) fn send(address: SocketAddr, method: &str, target: &str, body: &str) -> Answer {
    let json = "application/json";
    let (head, bytes) = exchange(address, method, target, &[("Content-Type", json)], body);
    let answer = format!("{head}\r\n\r\n{}", String::from_utf8(bytes).unwrap());
    parse(&answer)
}

/// Sends a body with headers of choice; the answer's head, and its body whatever it is.
pub(crate) fn exchange(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n"));
    let (headers, length) = (headers.collect::<String>(), body.len());
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A request that is refused by its head may be answered and closed before this.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let body = answer.split_off(end + 4);
    answer.truncate(end);
    (String::from_utf8(answer).unwrap(), body)
}

/// Parses an answer that is complete.
pub(crate) fn parse(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Answer {
        status: status.parse().unwrap(),
        headers: headers.collect(),
        body: body.to_owned(),
    }
}
