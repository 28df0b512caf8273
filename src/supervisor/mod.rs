//! The node's life: start order, signals, stop order.
//!
//! 1. Load the configuration; set up the log.
//! 2. Take the data-directory lock.
//! 3. Bind the HTTP listener; from here on health answers 503 with progress.
//! 4. Migrate what has to be migrated.
//! 5. Open storage.
//! 6. `READY=1`.
//! 7. Until a signal to stop: reload on SIGHUP, keep the watchdog content.
//! 8. `STOPPING=1`, hand leadership over, finish requests, close storage, exit 0.
//!
//! A signal to stop during 4 stops the migration; everything is then as it was
//! found and the exit is clean. The event loop runs on the main thread and
//! never blocks: migration and storage work happen on threads of their own, so
//! that the watchdog tells a hang from work.

mod arguments;
mod error;
mod reload;
mod replay;
mod report;
mod signals;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use self::arguments::Arguments;
use self::error::NodeError;
use self::replay::Replay;
use self::report::Reporter;
use self::signals::{Signal, Signals};
use crate::config::Loaded;
use crate::config::settings::{Backend, Settings};
use crate::durable;
use crate::exit::Exit;
use crate::http::{self, Edge, Phase, Shared};
use crate::layout::DataDir;
use crate::lock::LockedDir;
use crate::migration::progress::Control;
use crate::migration::{self, MigrationError, Options, Prepared};
use crate::notify::Notify;
use crate::raft::{self, Node};
use crate::storage::{self, StateMachine, StorageError};
use crate::telemetry::{self, Chain, LogOptions, events};

/// How long requests under way may take once the node stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How often it is looked whether the data directory is still there: this long may
/// writes go on into files that somebody has removed.
const LOOK_AT_LOCK: Duration = Duration::from_secs(1);

/// How often it is looked whether certificates end soon.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Name and version, for records.
const PROGRAM: &str = concat!("aspen-node ", env!("CARGO_PKG_VERSION"));

/// Runs a node until it is told to stop, and says how the process shall exit.
#[must_use]
pub fn run(arguments: &Arguments) -> Exit {
    let notify = Notify::from_env();
    let loaded = match arguments.load() {
        Ok(loaded) => loaded,
        Err(error) => return failed_early(&error, error.exit(), &notify),
    };
    let (edge, doubts) = match Edge::new(&loaded.settings.http) {
        Ok(edge) => edge,
        Err(error) => return failed_early(&error, error.exit(), &notify),
    };
    if arguments.check_config {
        let doubts = doubts.iter().map(|doubt| format!("# Warning: {doubt}\n"));
        let report = loaded.report() + &doubts.collect::<String>();
        // A reader that has gone is no error.
        let _ = std::io::stdout().write_all(report.as_bytes());
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
    let dir = DataDir::new(loaded.settings.node.data_dir.clone());
    reload::warn_of_certificate(&loaded.settings.http, &doubts);
    let mut life = Life::new(arguments, loaded, edge, handle, notify.clone());
    match life.run(&dir) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            let (exit, message_id) = (error.exit(), error.message_id());
            tracing::error!(
                MESSAGE_ID = message_id,
                ASPEN_EXIT = exit.code(),
                ASPEN_DATA_DIR = %dir.path().display(),
                ASPEN_SOURCE = %error.source_path().unwrap_or(&dir.redb()).display(),
                ASPEN_PHASE = life.failed_in,
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
    telemetry::say_failed("aspen-node", error);
    notify.failed(&format!("Failed: {}", Chain(error)));
    exit
}

struct Life<'a> {
    arguments: &'a Arguments,
    loaded: Loaded,
    edge: Edge,
    log: telemetry::Handle,
    notify: Notify,
    shared: Shared,
    stop: Arc<AtomicBool>,
    began: Instant,
    /// The phase in which a migration failed.
    failed_in: Option<&'static str>,
}

impl<'a> Life<'a> {
    fn new(
        arguments: &'a Arguments,
        loaded: Loaded,
        edge: Edge,
        log: telemetry::Handle,
        notify: Notify,
    ) -> Self {
        Self {
            arguments,
            loaded,
            edge,
            log,
            notify,
            shared: Shared::default(),
            stop: Arc::default(),
            began: Instant::now(),
            failed_in: None,
        }
    }

    fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    fn run(&mut self, dir: &DataDir) -> Result<(), NodeError> {
        self.announce();
        self.notify.status("Starting");
        let signals = Signals::listen().map_err(system("listen for signals"))?;
        durable::create_dir(dir.path()).map_err(NodeError::DataDir)?;
        let locked = LockedDir::take(dir.clone(), "aspen-node")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers())
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
        let mut server = tokio::spawn(http::serve(
            listener,
            self.shared.clone(),
            self.edge.clone(),
            async {
                // Either told to drain, or the sender is gone: both mean stop.
                let _ = draining.await;
            },
        ));

        let lived = self
            .start_and_serve(locked, address, &mut signals, &mut server)
            .await;
        let draining_since = Instant::now();
        self.shared.set(match &lived {
            Ok(Some(node)) => Phase::Leaving(node.clone()),
            Ok(None) | Err(_) => Phase::Stopping,
        });
        let Some(node) = lived? else {
            return Ok(());
        };
        node.hand_over().await;
        drop(drain);
        if tokio::time::timeout(DRAIN_TIME, server).await.is_err() {
            tracing::warn!(
                MESSAGE_ID = events::REQUESTS_CUT_OFF,
                "Requests were still under way after {DRAIN_TIME:?} and are cut off"
            );
        }
        node.stop().await?;
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
    ) -> Result<Option<Node>, NodeError> {
        let Some(prepared) = self.prepare(locked, signals).await? else {
            return Ok(None);
        };
        if let Some(record) = &prepared.record {
            self.shared.set_migration(record.clone());
        }
        let pool_size = self.settings().cluster.sqlite.pool_size;
        let opened = tokio::task::spawn_blocking(move || {
            let state_machine = storage::open(&prepared, pool_size)?;
            let last_applied = state_machine.applied()?.last_applied;
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
        let Some(node) = self.join(locked.dir(), state_machine, signals).await? else {
            return Ok(None);
        };
        self.shared.set(Phase::Serving(node.clone()));
        let milliseconds = self.began.elapsed().as_millis();
        let scheme = self.edge.scheme();
        tracing::info!(
            MESSAGE_ID = events::NODE_READY,
            ASPEN_STORAGE = backend,
            ASPEN_HTTP_LISTEN = %address,
            ASPEN_DURATION_MS = u64::try_from(milliseconds).unwrap_or(u64::MAX),
            "Ready after {milliseconds} ms: {backend} on {scheme}://{address}"
        );
        let ready = format!("Ready: {backend} on {scheme}://{address}");
        self.notify.ready(&ready);
        // Who rotates logs tells the nodes that are ready, and this one may have taken hours.
        self.reopen_log();
        self.serve_until_stopped(locked, &ready, &node, signals, server)
            .await?;
        Ok(Some(node))
    }

    /// Starts consensus, which applies again what a crash took from the state
    /// machine; `None` when it was told to stop meanwhile.
    async fn join(
        &mut self,
        dir: &DataDir,
        state_machine: Arc<dyn StateMachine>,
        signals: &mut Signals,
    ) -> Result<Option<Node>, NodeError> {
        let progress = Replay::new(self.notify.clone(), Arc::clone(&state_machine));
        let mut looks = tokio::time::interval(replay::INTERVAL);
        let mut starting = std::pin::pin!(Node::start(
            dir,
            Arc::clone(&state_machine),
            self.node_options()
        ));
        let joined = loop {
            tokio::select! {
                started = &mut starting => break started.map(Some)?,
                _ = looks.tick() => progress.look(),
                signal = signals.next() => match signal {
                    Signal::Stop(cause) => {
                        self.stop_requested(cause);
                        break None;
                    }
                    Signal::Reload => self.reload(),
                },
            }
        };
        if joined.is_none() {
            let closed = tokio::task::spawn_blocking(move || state_machine.close());
            closed.await.map_err(|_| NodeError::Bug)??;
        }
        Ok(joined)
    }

    fn node_options(&self) -> raft::Options {
        let settings = self.settings();
        let members = settings.cluster.initial_members.iter();
        raft::Options {
            id: settings.node.id,
            members: members
                .map(|(id, member)| (*id, member.peer.clone()))
                .collect(),
            join: settings.cluster.join,
            peer_listen: settings.cluster.peer_listen,
            secret: settings.cluster.secret.clone(),
            tls: settings.cluster.tls(),
            election_timeout: settings.raft.election_timeout,
            heartbeat: settings.raft.heartbeat,
            log_keep: settings.raft.log_keep,
            readers: usize::try_from(settings.cluster.sqlite.pool_size).unwrap_or(1),
            transport: Arc::new(raft::Tcp),
            disk: None,
        }
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
                error => {
                    self.failed_in = Some(reporter.phase());
                    Err(error.into())
                }
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
        locked: &LockedDir,
        ready: &str,
        node: &Node,
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
        let mut days = tokio::time::interval_at(tokio::time::Instant::now() + DAY, DAY);
        let mut looks = tokio::time::interval(LOOK_AT_LOCK);
        let mut failed = std::pin::pin!(node.failed());
        loop {
            tokio::select! {
                _ = alive.tick() => self.notify.ping_watchdog(),
                _ = looks.tick() => locked.check()?,
                _ = days.tick() => reload::warn_of_ends(self.settings()),
                signal = signals.next() => match signal {
                    Signal::Stop(cause) => {
                        self.stop_requested(cause);
                        return Ok(());
                    }
                    Signal::Reload => {
                        self.notify.reloading("Reloading");
                        self.reload();
                        self.renew_peer_certificate(node);
                        self.notify.reloaded(ready);
                    }
                },
                () = self.shared.stop_requested() => {
                    self.stop_requested("POST /admin/shutdown");
                    return Ok(());
                }
                reason = &mut failed => return Err(NodeError::Failed(reason)),
                ended = &mut *server => {
                    return Err(match ended {
                        Ok(Err(error)) => NodeError::Serve(error),
                        _ => NodeError::Bug,
                    });
                }
            }
        }
    }
}

fn system(operation: &'static str) -> impl Fn(std::io::Error) -> NodeError {
    move |source| NodeError::System { operation, source }
}

/// Threads of the event loop: half the processors. The log, the state machine
/// and the kernel's network need the other half, and threads that look for work
/// take time from those that have some.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}
