//! What the service manager is told: sd_notify(3), and nothing where there is
//! no service manager.
//!
//! The words are those of the `sd-notify` crate. The sending is ours: the crate
//! reads its address from the environment at every call, and takes an abstract
//! one (`@name`) for a file name.
//!
//! The environment stays as it is: changing it is undefined behaviour while
//! other threads may read it, and Aspen starts no process that could inherit
//! `NOTIFY_SOCKET`.

use sd_notify::NotifyState;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The longest status, in bytes; a longer one is cut.
///
/// systemd drops a whole message of more than 4096 bytes (`NOTIFY_BUFFER_MAX`),
/// and a message holds other words besides.
pub const MAX_STATUS: usize = 2048;

/// A line to the service manager. Clones share it, and any thread may use it.
///
/// The order of a service's life is kept here, whatever order threads call in:
/// nothing says `READY=1` before [`ready`](Self::ready) or after
/// [`stopping`](Self::stopping), and a start that is being stopped is not
/// extended. Sending waits for the service manager to read, as libsystemd does;
/// errors are logged once, at debug level, and change nothing else.
#[derive(Clone, Debug, Default)]
pub struct Notify(Option<Arc<Line>>);

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    /// Held while sending, so that messages go out in the order of the phases.
    phase: Mutex<Phase>,
    has_failed_to_send: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Stopping,
    Failed,
}

impl Notify {
    /// The service manager named in the environment (`NOTIFY_SOCKET`,
    /// `WATCHDOG_USEC`, `WATCHDOG_PID`), or none.
    #[must_use]
    pub fn from_env() -> Self {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(address) if !address.is_empty() => {
                Self::to(&address, sd_notify::watchdog_enabled())
            }
            _ => Self::none(),
        }
    }

    /// No service manager: every call does nothing.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn to(address: &OsStr, watchdog: Option<Duration>) -> Self {
        let connected = socket_address(address)
            .and_then(|address| UnixDatagram::unbound().map(|socket| (socket, address)));
        match connected {
            Ok((socket, address)) => Self(Some(Arc::new(Line {
                socket,
                address,
                watchdog: watchdog.filter(|interval| !interval.is_zero()),
                phase: Mutex::new(Phase::Starting),
                has_failed_to_send: AtomicBool::new(false),
            }))),
            Err(error) => {
                tracing::debug!(target: "aspen::notify", "Cannot use NOTIFY_SOCKET {address:?}: {error}");
                Self::none()
            }
        }
    }

    /// Says in words what the node is doing, for `systemctl status`: control
    /// characters become spaces, and what exceeds [`MAX_STATUS`] is cut. How
    /// often is up to the caller.
    pub fn status(&self, status: &str) {
        self.send(|phase| (*phase != Phase::Failed).then(|| vec![NotifyState::Status(status)]));
    }

    /// The node serves (`READY=1`).
    pub fn ready(&self, status: &str) {
        self.send(|phase| {
            if !matches!(phase, Phase::Starting | Phase::Ready) {
                return None;
            }
            *phase = Phase::Ready;
            Some(vec![NotifyState::Ready, NotifyState::Status(status)])
        });
    }

    /// The configuration is being read again; [`reloaded`](Self::reloaded) must
    /// follow. Does nothing on a node that is not ready yet, because the
    /// `READY=1` that ends a reload would declare it so.
    ///
    /// Correct with `Type=notify` and an `ExecReload=` that sends SIGHUP, with a
    /// plain SIGHUP, and with the `Type=notify-reload` of systemd 253, which
    /// wants the time stamp.
    pub fn reloading(&self, status: &str) {
        let Ok(now) = NotifyState::monotonic_usec_now() else {
            return;
        };
        self.send(|phase| {
            (*phase == Phase::Ready)
                .then(|| vec![NotifyState::Reloading, now, NotifyState::Status(status)])
        });
    }

    /// The reload is over, well or badly (`READY=1`, on a ready node only).
    pub fn reloaded(&self, status: &str) {
        self.send(|phase| {
            (*phase == Phase::Ready).then(|| vec![NotifyState::Ready, NotifyState::Status(status)])
        });
    }

    /// The node has begun to stop (`STOPPING=1`).
    pub fn stopping(&self, status: &str) {
        self.send(|phase| {
            if *phase == Phase::Failed {
                return None;
            }
            *phase = Phase::Stopping;
            Some(vec![NotifyState::Stopping, NotifyState::Status(status)])
        });
    }

    /// Leaves the reason of a failure as the last status; the process is about
    /// to exit with a code that says the rest.
    pub fn failed(&self, reason: &str) {
        self.send(|phase| {
            *phase = Phase::Failed;
            Some(vec![NotifyState::Status(reason)])
        });
    }

    /// Asks that the start may go on for `time` from now, at most 71 minutes
    /// (2^32 microseconds). To be sent when there has been progress, never from
    /// a timer, and the first time before `TimeoutStartSec=` has passed.
    ///
    /// Does nothing once the node is ready or stops: the stop timeout would be
    /// extended with it.
    pub fn extend_timeout(&self, time: Duration) {
        let microseconds = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.send(|phase| {
            (*phase == Phase::Starting).then(|| vec![NotifyState::ExtendTimeoutUsec(microseconds)])
        });
    }

    /// The time within which the service manager expects each
    /// [`ping_watchdog`](Self::ping_watchdog), from [`ready`](Self::ready) on;
    /// halve it. None where it expects none.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.0.as_ref().and_then(|line| line.watchdog)
    }

    /// A sign of life (`WATCHDOG=1`). Does nothing where none is expected.
    pub fn ping_watchdog(&self) {
        if self.watchdog().is_some() {
            self.send(|_| Some(vec![NotifyState::Watchdog]));
        }
    }

    /// Sends in one message what `words` makes of the phase, which it may change.
    fn send<'a>(&self, words: impl FnOnce(&mut Phase) -> Option<Vec<NotifyState<'a>>>) {
        let Some(line) = &self.0 else { return };
        let mut phase = line.lock();
        if let Some(words) = words(&mut phase) {
            let message: String = words.iter().map(spell).collect();
            let sent = line.send(message.as_bytes());
            drop(phase);
            if let Err(error) = sent
                && !line.has_failed_to_send.swap(true, Ordering::Relaxed)
            {
                tracing::debug!(target: "aspen::notify", "Cannot tell the service manager: {error}");
            }
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        loop {
            // By address each time: the socket outlives a restart of the service manager.
            match self.socket.send_to_addr(message, &self.address) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

/// A path, or `@` and the name of an abstract socket. Those of other families
/// (`vsock:`) are for virtual machines, not for services.
fn socket_address(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "neither a path nor an abstract socket",
        )),
    }
}

/// One word as it is sent. A line break in a status would begin another word,
/// `READY=1` perhaps.
fn spell(word: &NotifyState<'_>) -> String {
    let NotifyState::Status(status) = word else {
        return format!("{word}\n");
    };
    let mut tame = String::new();
    for c in status.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if tame.len() + c.len_utf8() > MAX_STATUS {
            break;
        }
        tame.push(c);
    }
    format!("{}\n", NotifyState::Status(&tame))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::process::Command;

    /// The service manager's end.
    struct Manager {
        dir: tempfile::TempDir,
        socket: UnixDatagram,
    }

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { dir, socket }
        }

        fn address(&self) -> std::path::PathBuf {
            self.dir.path().join("notify")
        }

        fn notify(&self) -> Notify {
            Notify::to(self.address().as_os_str(), None)
        }

        /// The messages that have arrived.
        fn heard(&self) -> Vec<String> {
            let mut buffer = [0; 8192];
            std::iter::from_fn(|| {
                self.socket
                    .recv(&mut buffer)
                    .ok()
                    .map(|n| buffer[..n].to_vec())
            })
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
        }
    }

    #[test]
    fn a_start_and_a_stop_are_told_in_the_words_of_sd_notify() {
        let manager = Manager::new();
        let notify = manager.notify();
        notify.status("Migrating: 42 %");
        notify.extend_timeout(Duration::from_secs(30));
        notify.ready("Serving");
        notify.stopping("Stopping");
        assert_eq!(
            manager.heard(),
            [
                "STATUS=Migrating: 42 %\n",
                "EXTEND_TIMEOUT_USEC=30000000\n",
                "READY=1\nSTATUS=Serving\n",
                "STOPPING=1\nSTATUS=Stopping\n",
            ]
        );
    }

    #[test]
    fn a_reload_is_told_with_its_time_and_ended_with_ready() {
        let manager = Manager::new();
        let notify = manager.notify();
        notify.ready("Serving");
        notify.reloading("Reloading");
        notify.reloaded("Serving");
        let heard = manager.heard();
        let now = heard[1]
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.strip_suffix("\nSTATUS=Reloading\n"))
            .expect("both words and a status");
        assert!(now.parse::<u64>().is_ok(), "{now}");
        assert_eq!(heard[2], "READY=1\nSTATUS=Serving\n");
    }

    #[test]
    fn a_reload_during_the_start_does_not_declare_the_node_ready() {
        let manager = Manager::new();
        let notify = manager.notify();
        notify.reloading("Reloading");
        notify.reloaded("Serving");
        assert!(manager.heard().is_empty());
    }

    #[test]
    fn after_stopping_nothing_is_ready_and_no_timeout_is_extended() {
        let manager = Manager::new();
        let notify = manager.notify();
        notify.stopping("Stopping");
        notify.clone().extend_timeout(Duration::from_secs(30));
        notify.reloading("Reloading");
        notify.reloaded("Serving");
        notify.ready("Serving");
        notify.status("Checkpoint");
        assert_eq!(
            manager.heard(),
            ["STOPPING=1\nSTATUS=Stopping\n", "STATUS=Checkpoint\n"]
        );
    }

    #[test]
    fn the_reason_of_a_failure_stays_the_last_status() {
        let manager = Manager::new();
        let notify = manager.notify();
        let worker = notify.clone();
        notify.failed("The disk is full");
        std::thread::spawn(move || worker.status("Migrating: 43 %"))
            .join()
            .unwrap();
        notify.ready("Serving");
        notify.stopping("Stopping");
        assert_eq!(manager.heard(), ["STATUS=The disk is full\n"]);
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_word() {
        let manager = Manager::new();
        manager.notify().status("a\nREADY=1\r\u{1b}[2J\u{85}\0b");
        assert_eq!(manager.heard(), ["STATUS=a READY=1  [2J  b\n"]);
    }

    #[test]
    fn a_status_of_any_length_arrives_cut_between_characters() {
        let manager = Manager::new();
        manager.notify().ready(&format!("a{}", "é".repeat(100_000)));
        let heard = manager.heard();
        let status = heard[0].strip_prefix("READY=1\nSTATUS=").unwrap();
        assert_eq!(status, format!("a{}\n", "é".repeat((MAX_STATUS - 1) / 2)));
    }

    #[test]
    fn an_extension_beyond_what_a_message_can_hold_is_the_longest_that_it_can() {
        let manager = Manager::new();
        manager.notify().extend_timeout(Duration::from_secs(86_400));
        assert_eq!(manager.heard(), ["EXTEND_TIMEOUT_USEC=4294967295\n"]);
    }

    #[test]
    fn an_abstract_socket_is_reached() {
        let name = format!("aspen-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        Notify::to(OsStr::new(&format!("@{name}")), None).ready("Serving");
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=Serving\n");
    }

    #[test]
    fn the_watchdog_is_pinged_only_where_it_is_expected() {
        let manager = Manager::new();
        let interval = Duration::from_secs(60);
        let expected = Notify::to(manager.address().as_os_str(), Some(interval));
        assert_eq!(expected.watchdog(), Some(interval));
        expected.ping_watchdog();
        for none in [None, Some(Duration::ZERO)] {
            let unexpected = Notify::to(manager.address().as_os_str(), none);
            assert_eq!(unexpected.watchdog(), None);
            unexpected.ping_watchdog();
        }
        assert_eq!(manager.heard(), ["WATCHDOG=1\n"]);
    }

    #[test]
    fn addresses_that_cannot_be_used_are_the_same_as_none() {
        for address in [
            "",
            "notify",
            "vsock:2:1234",
            &format!("/{}", "x".repeat(200)),
        ] {
            assert!(
                Notify::to(OsStr::new(address), None).0.is_none(),
                "{address}"
            );
        }
    }

    #[test]
    fn a_service_manager_that_went_away_is_no_error_and_can_come_back() {
        let manager = Manager::new();
        let notify = manager.notify();
        let path = manager.address();
        std::fs::remove_file(&path).unwrap();
        notify.status("Nobody hears");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager { socket, ..manager };
        manager.socket.set_nonblocking(true).unwrap();
        notify.status("Somebody hears");
        assert_eq!(manager.heard(), ["STATUS=Somebody hears\n"]);
    }

    /// Runs [`a_service`] as a process of its own, since the environment is the process's.
    fn service(manager: &Manager) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "notify::tests::a_service"])
            .env("ASPEN_TEST_SERVICE", "1")
            .env("NOTIFY_SOCKET", manager.address())
            .env("WATCHDOG_USEC", "60000000")
            .env_remove("WATCHDOG_PID");
        command
    }

    /// Does its work only in the process that [`service`] starts.
    #[test]
    fn a_service() {
        if std::env::var_os("ASPEN_TEST_SERVICE").is_none() {
            return;
        }
        let notify = Notify::from_env();
        notify.ready(&format!("{:?}", notify.watchdog()));
    }

    #[test]
    fn the_environment_says_where_the_service_manager_is_and_what_it_expects() {
        let manager = Manager::new();
        let run = |command: &mut Command| assert!(command.output().unwrap().status.success());
        run(&mut service(&manager));
        run(service(&manager).env("WATCHDOG_PID", "1"));
        run(service(&manager).env_remove("WATCHDOG_USEC"));
        run(service(&manager).env("NOTIFY_SOCKET", ""));
        run(service(&manager).env_remove("NOTIFY_SOCKET"));
        assert_eq!(
            manager.heard(),
            [
                "READY=1\nSTATUS=Some(60s)\n",
                "READY=1\nSTATUS=None\n",
                "READY=1\nSTATUS=None\n",
            ]
        );
    }
}
