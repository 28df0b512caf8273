//! The node's life: start order, signals, stop order.
//!
//! 1. Load the configuration; set up the log.
//! 2. Take the data-directory lock.
//! 3. Bind the HTTP listener; from here on health answers 503 with progress.
//! 4. Migrate what has to be migrated.
//! 5. Open storage.
//! 6. `READY=1`.
//! 7. Until a signal to stop: reload on SIGHUP, keep the watchdog content.
//! 8. `STOPPING=1`, finish requests, close storage, exit 0.
//!
//! A signal to stop during 4 stops the migration; everything is then as it was
//! found and the exit is clean. The event loop runs on the main thread and
//! never blocks: migration and storage work happen on threads of their own, so
//! that the watchdog tells a hang from work.

mod report;
mod signals;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::report::Reporter;
use self::signals::{Signal, Signals};
use crate::config::settings::{Backend, Settings};
use crate::config::{self, ConfigError, Loaded, Overrides};
use crate::durable::{self, DurableError};
use crate::exit::Exit;
use crate::http::{self, Phase, Shared};
use crate::layout::DataDir;
use crate::lock::{LockError, LockedDir};
use crate::migration::progress::Control;
use crate::migration::source::SourceError;
use crate::migration::{self, MigrationError, Options, Prepared};
use crate::notify::Notify;
use crate::storage::{self, StateMachine, StorageError};
use crate::telemetry::{self, Chain, LogOptions, TelemetryError, events};

/// How long requests under way may take once the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Name and version, for records.
const PROGRAM: &str = concat!("aspen-node ", env!("CARGO_PKG_VERSION"));

/// One node of an Aspen cluster: a Raft key-value store run by systemd.
///
/// Without any configuration it is node 1, keeps its data in ./data/node-1 and
/// listens on 127.0.0.1:8080. A legacy redb state machine in the data directory
/// is migrated to SQLite at start, behind a backup, before the node is ready.
///
/// Command line wins over environment (ASPEN_..., see --check-config) over file
/// over defaults.
#[derive(Debug, Parser)]
#[command(name = "aspen-node", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Configuration file [default: $ASPEN_CONFIG, else /etc/aspen/config.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This node's Raft id
    #[arg(long, value_name = "ID")]
    pub node_id: Option<std::ffi::OsString>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<std::ffi::OsString>,
    /// Address of the HTTP API
    #[arg(long, value_name = "IP:PORT")]
    pub http_addr: Option<std::ffi::OsString>,
    /// State machine: sqlite, redb (deprecated) or memory
    #[arg(long, value_name = "BACKEND")]
    pub storage_backend: Option<std::ffi::OsString>,
    /// Print the effective configuration and where each value comes from, and exit
    #[arg(long)]
    pub check_config: bool,
}

const EXAMPLES: &str = "\
Examples:
  aspen-node                                     run with no configuration at all
  aspen-node --config /etc/aspen/config.toml     as the service does
  ASPEN_STORAGE_BACKEND=sqlite aspen-node        migrate redb data found, then serve it
  aspen-node --check-config                      what would be in effect, and why

Signals:
  SIGTERM, SIGINT  stop cleanly (a migration is left for the next start)
  SIGHUP           reload the log filter, reopen the log file

Exit status:
  0 stopped as asked, 64 usage, 65 wrong data, 74 I/O error or disk full,
  75 locked (try again), 77 not permitted, 78 configuration";

impl Arguments {
    fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            node_id: self.node_id.clone(),
            data_dir: self.data_dir.clone(),
            http_addr: self.http_addr.clone(),
            storage_backend: self.storage_backend.clone(),
        }
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        config::load(
            &self.overrides(),
            std::env::vars_os(),
            Path::new(config::DEFAULT_FILE),
        )
    }
}

/// Why a node ended other than by being told to.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot {operation}")]
    System {
        operation: &'static str,
        source: std::io::Error,
    },
    #[error("cannot listen on {address}; is another program listening there?")]
    Listen {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("the HTTP listener failed")]
    Serve(#[source] std::io::Error),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("a thread of the node ended unexpectedly; please report this with the log")]
    Bug,
}

impl NodeError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(error) => error.exit(),
            Self::Telemetry(error) => error.exit(),
            Self::Durable(error) => error.exit(),
            Self::Lock(error) => error.exit(),
            Self::System { source, .. } | Self::Listen { source, .. } | Self::Serve(source) => {
                Exit::of_io(source)
            }
            Self::Migration(error) => error.exit(),
            Self::Storage(error) => error.exit(),
            Self::Bug => Exit::Software,
        }
    }

    /// The event that an operator looks for.
    fn message_id(&self) -> &'static str {
        match self {
            Self::Lock(_) => events::DATA_DIR_LOCKED,
            Self::Migration(MigrationError::Refused(_)) => events::START_REFUSED,
            Self::Migration(error) => match error.source_error() {
                Some(SourceError::InUse(_)) => events::DATA_DIR_LOCKED,
                Some(error) if error.exit() == Exit::Data => events::SOURCE_DAMAGED,
                _ => events::MIGRATION_FAILED,
            },
            _ => events::NODE_FAILED,
        }
    }
}

/// Runs a node until it is told to stop, and says how the process shall exit.
#[must_use]
pub fn run(arguments: &Arguments) -> Exit {
    let notify = Notify::from_env();
    let loaded = match arguments.load() {
        Ok(loaded) => loaded,
        Err(error) => return failed_early(&error, error.exit(), &notify),
    };
    if arguments.check_config {
        print!("{}", loaded.report());
        return Exit::Ok;
    }
    let log = &loaded.settings.log;
    let options = LogOptions {
        filter: &log.filter,
        format: log.format,
        file: log.file.as_deref(),
    };
    let handle = match telemetry::init(&options) {
        Ok(handle) => handle,
        Err(error) => return failed_early(&error, error.exit(), &notify),
    };
    match Node::new(arguments, loaded, handle, notify.clone()).run() {
        Ok(()) => Exit::Ok,
        Err(error) => {
            let (exit, message_id) = (error.exit(), error.message_id());
            tracing::error!(
                MESSAGE_ID = message_id,
                ASPEN_EXIT = exit.code(),
                "{}",
                Chain(&error)
            );
            notify.failed(&format!("Failed: {}", Chain(&error)));
            exit
        }
    }
}

/// There is no log yet: standard error has to do.
fn failed_early(error: &(dyn std::error::Error + 'static), exit: Exit, notify: &Notify) -> Exit {
    eprintln!("aspen-node: {}", Chain(error));
    notify.failed(&format!("Failed: {}", Chain(error)));
    exit
}

struct Node<'a> {
    arguments: &'a Arguments,
    loaded: Loaded,
    log: telemetry::Handle,
    notify: Notify,
    shared: Shared,
    stop: Arc<AtomicBool>,
    began: Instant,
}

impl<'a> Node<'a> {
    fn new(
        arguments: &'a Arguments,
        loaded: Loaded,
        log: telemetry::Handle,
        notify: Notify,
    ) -> Self {
        Self {
            arguments,
            loaded,
            log,
            notify,
            shared: Shared::default(),
            stop: Arc::default(),
            began: Instant::now(),
        }
    }

    fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    fn run(mut self) -> Result<(), NodeError> {
        self.announce();
        self.notify.status("Starting");
        let signals = Signals::listen().map_err(system("listen for signals"))?;
        let dir = DataDir::new(self.settings().node.data_dir.clone());
        durable::create_dir(dir.path())?;
        let locked = LockedDir::take(dir, "aspen-node")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(system("start the event loop"))?;
        let result = runtime.block_on(self.live(&locked, signals));
        // A client that keeps its connection must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }

    fn announce(&self) {
        let settings = self.settings();
        tracing::info!(
            MESSAGE_ID = events::NODE_STARTING,
            ASPEN_VERSION = env!("CARGO_PKG_VERSION"),
            ASPEN_NODE_ID = settings.node.id,
            ASPEN_DATA_DIR = %settings.node.data_dir.display(),
            "Aspen {} starts as node {} with its data in {}",
            env!("CARGO_PKG_VERSION"),
            settings.node.id,
            settings.node.data_dir.display(),
        );
        for contradiction in self.loaded.contradictions() {
            tracing::warn!(
                MESSAGE_ID = events::CONFIG_CONTRADICTION,
                ASPEN_SETTING = contradiction.key,
                ASPEN_CONFIG = self
                    .loaded
                    .file
                    .as_ref()
                    .map(|file| file.display().to_string()),
                "Configuration: {contradiction}"
            );
        }
    }

    /// Steps 3 to 8.
    async fn live(&mut self, locked: &LockedDir, mut signals: Signals) -> Result<(), NodeError> {
        let address = self.settings().http.listen;
        let listen = |source| NodeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (drain, draining) = oneshot::channel::<()>();
        let mut server = tokio::spawn(http::serve(listener, self.shared.clone(), async {
            // Either told to drain, or the sender is gone: both mean stop.
            let _ = draining.await;
        }));

        let lived = self
            .start_and_serve(locked, address, &mut signals, &mut server)
            .await;
        let draining_since = Instant::now();
        self.shared.set(Phase::Stopping);
        drop(drain);
        let state_machine = match lived {
            Ok(Some(state_machine)) => state_machine,
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        if tokio::time::timeout(DRAIN_TIME, server).await.is_err() {
            tracing::warn!("Requests were still under way after {DRAIN_TIME:?} and are cut off");
        }
        let closed = tokio::task::spawn_blocking(move || state_machine.close()).await;
        closed.map_err(|_| NodeError::Bug)??;
        let milliseconds = draining_since.elapsed().as_millis();
        tracing::info!(
            MESSAGE_ID = events::NODE_STOPPED,
            ASPEN_DURATION_MS = u64::try_from(milliseconds).unwrap_or(u64::MAX),
            "Stopped in {milliseconds} ms"
        );
        Ok(())
    }

    /// Steps 4 to 7; the state machine to close, or none when it was not opened.
    async fn start_and_serve(
        &mut self,
        locked: &LockedDir,
        address: std::net::SocketAddr,
        signals: &mut Signals,
        server: &mut tokio::task::JoinHandle<std::io::Result<()>>,
    ) -> Result<Option<Arc<dyn StateMachine>>, NodeError> {
        let Some(prepared) = self.prepare(locked, signals).await? else {
            return Ok(None);
        };
        let pool_size = self.settings().cluster.sqlite.pool_size;
        let opened = tokio::task::spawn_blocking(move || {
            let state_machine = storage::open(&prepared, pool_size)?;
            let last_applied = state_machine.last_applied()?;
            Ok::<_, StorageError>((state_machine, last_applied))
        });
        let (state_machine, last_applied) = opened.await.map_err(|_| NodeError::Bug)??;
        let backend = state_machine.backend();
        events::storage_initialized(backend);
        events::state_machine_loaded(last_applied.map(|id| id.index));
        if self.settings().cluster.storage_backend == Backend::Redb {
            tracing::warn!(
                MESSAGE_ID = events::BACKEND_DEPRECATED,
                ASPEN_SOURCE = %locked.dir().redb().display(),
                "The redb backend is deprecated; set storage_backend = \"sqlite\" and restart to migrate"
            );
        }
        self.shared.set(Phase::Serving(Arc::clone(&state_machine)));
        let milliseconds = self.began.elapsed().as_millis();
        tracing::info!(
            MESSAGE_ID = events::NODE_READY,
            ASPEN_STORAGE = backend,
            ASPEN_HTTP_LISTEN = %address,
            ASPEN_DURATION_MS = u64::try_from(milliseconds).unwrap_or(u64::MAX),
            "Ready after {milliseconds} ms: {backend} on http://{address}"
        );
        self.notify
            .ready(&format!("Ready: {backend} on http://{address}"));
        self.serve_until_stopped(backend, signals, server).await?;
        Ok(Some(state_machine))
    }

    /// Migrates on a thread of its own; `None` when it was told to stop.
    async fn prepare(
        &mut self,
        locked: &LockedDir,
        signals: &mut Signals,
    ) -> Result<Option<Prepared>, NodeError> {
        let settings = self.settings();
        let options = Options {
            backend: settings.cluster.storage_backend,
            backup: settings.migration.backup,
            keep_backups: settings.migration.keep_backups,
            verify: settings.migration.verify,
            config_file: self.loaded.file.clone(),
            program: PROGRAM.to_owned(),
        };
        let reporter = Reporter::new(self.notify.clone(), self.shared.clone(), locked.dir());
        let stop = Arc::clone(&self.stop);
        let (done, mut finished) = oneshot::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let control = Control {
                    observer: &reporter,
                    stop,
                };
                // The receiver outlives this thread, which the scope joins.
                let _ = done.send(migration::prepare(locked, &options, &control));
            });
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    loop {
                        tokio::select! {
                            result = &mut finished => break result,
                            signal = signals.next() => match signal {
                                Signal::Stop(cause) => self.stop_requested(cause),
                                Signal::Reload => self.reload(),
                            },
                        }
                    }
                })
            })
        })
        .map_err(|_| NodeError::Bug)?
        .map_or_else(
            |error| match error {
                MigrationError::Stopped => {
                    reporter.interrupted();
                    Ok(None)
                }
                error => Err(error.into()),
            },
            |prepared| {
                reporter.completed(&prepared);
                // A stop that came too late to stop the migration still stops the node.
                Ok(Some(prepared).filter(|_| !self.stop.load(Ordering::Relaxed)))
            },
        )
    }

    fn stop_requested(&self, cause: &'static str) {
        self.stop.store(true, Ordering::Relaxed);
        tracing::info!(
            MESSAGE_ID = events::NODE_STOPPING,
            ASPEN_CAUSE = cause,
            "Stopping on {cause}"
        );
        self.notify.stopping("Stopping");
    }

    async fn serve_until_stopped(
        &mut self,
        backend: &str,
        signals: &mut Signals,
        server: &mut tokio::task::JoinHandle<std::io::Result<()>>,
    ) -> Result<(), NodeError> {
        let watchdog = self.notify.watchdog().map(|period| period / 2);
        if let Some(interval) = watchdog {
            let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                MESSAGE_ID = events::WATCHDOG_ENABLED,
                ASPEN_INTERVAL_MS = milliseconds,
                "The watchdog hears from the event loop every {milliseconds} ms"
            );
        }
        // Without a watchdog the timer only has to exist.
        let mut alive = tokio::time::interval(watchdog.unwrap_or(Duration::from_secs(3600)));
        loop {
            tokio::select! {
                _ = alive.tick() => self.notify.ping_watchdog(),
                signal = signals.next() => match signal {
                    Signal::Stop(cause) => {
                        self.stop_requested(cause);
                        return Ok(());
                    }
                    Signal::Reload => {
                        self.notify.reloading("Reloading");
                        self.reload();
                        self.notify.reloaded(&format!("Ready: {backend}"));
                    }
                },
                ended = &mut *server => {
                    return Err(match ended {
                        Ok(Err(error)) => NodeError::Serve(error),
                        _ => NodeError::Bug,
                    });
                }
            }
        }
    }

    /// Takes over what can be changed while the node runs, and says what cannot.
    fn reload(&mut self) {
        if let Err(error) = self.log.reopen_file() {
            tracing::warn!("{}", Chain(&error));
        }
        let loaded = match self.arguments.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!(
                    "Not reloaded, the running configuration stays: {}",
                    Chain(&error)
                );
                return;
            }
        };
        if let Err(error) = self.log.set_filter(&loaded.settings.log.filter) {
            tracing::error!("The log filter was not reloaded: {}", Chain(&error));
            return;
        }
        let waiting = self
            .loaded
            .settings
            .changes_that_need_a_restart(&loaded.settings);
        let rest = match waiting.is_empty() {
            true => "nothing else has changed".to_owned(),
            false => format!("a restart is needed for {}", waiting.join(", ")),
        };
        tracing::info!(
            MESSAGE_ID = events::RELOADED,
            ASPEN_CONFIG = loaded.file.as_ref().map(|file| file.display().to_string()),
            "Reloaded: log filter {:?}, log file reopened; {rest}",
            loaded.settings.log.filter
        );
    }
}

fn system(operation: &'static str) -> impl Fn(std::io::Error) -> NodeError {
    move |source| NodeError::System { operation, source }
}
