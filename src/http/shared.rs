//! What the API shares with whoever runs the node, and its routes with each other.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use tokio::sync::Notify;

use super::error::ApiError;
use super::limits::Limits;
use super::metrics::Metrics;
use crate::migration::record::Record;
use crate::raft::{Node, Status};

/// What the node is doing, as the API tells it.
#[derive(Clone, Default)]
pub enum Phase {
    /// Nothing is open yet.
    #[default]
    Starting,
    /// A migration is under way.
    Migrating(Progress),
    /// Requests are served.
    Serving(Node),
    /// The node is on its way down; requests that still come are served.
    Leaving(Node),
    /// The node is on its way down.
    Stopping,
}

impl Phase {
    /// One word.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Migrating(_) => "migrating",
            Self::Serving(_) => "serving",
            Self::Leaving(_) | Self::Stopping => "stopping",
        }
    }
}

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// One word.
    pub phase: &'static str,
    /// Of the whole migration, 0 to 100.
    pub percent: u8,
    /// Units of this phase that are done.
    pub done: u64,
    /// Units of this phase in all.
    pub total: u64,
}

/// What is known when the process starts.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The program's version.
    pub version: &'static str,
    /// When the process started.
    pub started: Instant,
}

impl Default for About {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started: Instant::now(),
        }
    }
}

/// A handle that may be cloned; all clones share the same.
#[derive(Clone, Default)]
pub struct Shared(Arc<Inner>);

struct Inner {
    about: About,
    phase: RwLock<Phase>,
    migration: OnceLock<Record>,
    description: OnceLock<Bytes>,
    stop: Notify,
    limits: Limits,
    metrics: Metrics,
}

impl Default for Inner {
    fn default() -> Self {
        let about = About::default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let started = now
            .unwrap_or_default()
            .saturating_sub(about.started.elapsed());
        Self {
            about,
            phase: RwLock::default(),
            migration: OnceLock::new(),
            description: OnceLock::new(),
            stop: Notify::new(),
            limits: Limits::default(),
            metrics: Metrics::new(about.version, started.as_secs_f64()),
        }
    }
}

impl Shared {
    /// Changes the phase.
    pub fn set(&self, phase: Phase) {
        *self.0.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let phase = self.0.phase.read();
        phase.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The migration that made the state machine, for `/status`. The first counts.
    pub fn set_migration(&self, record: Record) {
        // Never called twice, and harmless if it is.
        let _ = self.0.migration.set(record);
    }

    /// Resolves once for each time that somebody asks the node to stop.
    pub async fn stop_requested(&self) {
        self.0.stop.notified().await;
    }

    pub(super) fn request_stop(&self) {
        self.0.stop.notify_one();
    }

    /// The node, once it serves.
    pub(super) fn node(&self) -> Result<Node, ApiError> {
        match &*self.0.phase.read().unwrap_or_else(PoisonError::into_inner) {
            Phase::Serving(node) | Phase::Leaving(node) => Ok(node.clone()),
            Phase::Starting => Err(ApiError::unavailable("the node is starting")),
            Phase::Migrating(progress) => Err(ApiError::unavailable(format!(
                "the node is migrating its data ({} %)",
                progress.percent
            ))),
            Phase::Stopping => Err(ApiError::unavailable("the node is stopping")),
        }
    }

    /// What the serving node tells of itself. It asks the disk, and a disk may hang.
    pub(super) async fn status(&self) -> Result<Status, ApiError> {
        let node = self.node()?;
        let status = tokio::task::spawn_blocking(move || node.status()).await;
        status.map_err(|_| ApiError::unavailable("the node is stopping"))
    }

    pub(super) fn uptime(&self) -> Duration {
        self.0.about.started.elapsed()
    }

    pub(super) fn version(&self) -> &'static str {
        self.0.about.version
    }

    pub(super) fn migration(&self) -> Option<&Record> {
        self.0.migration.get()
    }

    /// Sets what `/openapi.json` says.
    pub(super) fn describe(&self, description: Bytes) {
        // The same for every router.
        let _ = self.0.description.set(description);
    }

    pub(super) fn description(&self) -> Bytes {
        self.0.description.get().cloned().unwrap_or_default()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}
