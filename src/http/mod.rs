//! The HTTP API. The listener is bound before a migration begins, so that a
//! restart never refuses a connection for long: until the state machine is
//! open, the health routes say what is going on and everything else answers
//! 503 with `Retry-After`.
//!
//! Nothing here knows which engine answers.

mod auth;
mod connection;
mod edge;
mod error;
mod health;
mod kv;
mod protect;
mod server;
mod tls;

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

pub use self::connection::Times;
pub use self::edge::Edge;
use self::error::ApiError;
pub use self::tls::TlsError;
use crate::raft::Node;

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
    /// The node is on its way down.
    Stopping,
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

/// The phase, shared between the API and whoever changes it.
#[derive(Clone, Default)]
pub struct Shared(Arc<RwLock<Phase>>);

impl Shared {
    /// Changes the phase.
    pub fn set(&self, phase: Phase) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Serves until `stop` resolves, then finishes the requests under way.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    shared: Shared,
    edge: Edge,
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    server::serve(listener, router(shared), edge, Times::default(), stop).await
}

/// All routes; what protects them is in [`server`] and [`protect`].
fn router(shared: Shared) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .merge(
            Router::new()
                .route("/api/kv/{*key}", get(kv::get).post(kv::put).put(kv::put))
                .fallback(|| async { ApiError::no_route() })
                .layer(middleware::from_fn_with_state(shared.clone(), when_serving)),
        )
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .with_state(shared)
}

/// Lets a request through once the state machine is open.
async fn when_serving(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match shared.phase() {
        Phase::Serving(_) => next.run(request).await,
        Phase::Starting => ApiError::unavailable("the node is starting").into_response(),
        Phase::Migrating(progress) => ApiError::unavailable(format!(
            "the node is migrating its data ({} %)",
            progress.percent
        ))
        .into_response(),
        Phase::Stopping => ApiError::unavailable("the node is stopping").into_response(),
    }
}
