//! The HTTP API. The listener is bound before a migration begins, so that a
//! restart never refuses a connection for long: until the node serves, the
//! health routes say what is going on and everything else answers 503 with
//! `Retry-After`.
//!
//! - [`input`] turns what clients send into requests that may enter the log;
//!   `limits` says what they may take; `error` and `answer` are what they get.
//! - `kv`, `pairs`, `admin`, `backup`, `health`, `status`, `metrics`, `page`: the
//!   routes, one file per resource. Each function describes itself where it
//!   stands, and `openapi` puts that together: a route is served because it is
//!   described, and cannot be one without the other.
//! - `server`, `connection`, `tls`: who is listened to, and for how long;
//!   `protect`, `auth`, `edge`: who may ask for what; `gate`: what every request
//!   passes on its way to its route.
//!
//! Nothing here knows which engine answers. Keys and values are told to nobody
//! but the client: no log line holds one.

mod admin;
mod answer;
mod auth;
mod backup;
mod connection;
mod edge;
mod error;
mod gate;
mod health;
#[doc(hidden)]
pub mod input;
mod kv;
pub mod limits;
mod metrics;
mod openapi;
mod page;
mod pairs;
mod protect;
mod server;
mod shared;
mod status;
mod tls;

use std::future::Future;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use tokio::net::TcpListener;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

pub use self::connection::Times;
pub use self::edge::Edge;
#[doc(hidden)]
pub use self::error::{ApiError, Code};
pub use self::shared::{About, Phase, Progress, Shared};
pub use self::tls::TlsError;

/// What requests for no route are counted as.
const NOWHERE: &str = "none";

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

/// All routes, and with them `/openapi.json`, which says what they are. What
/// protects them is in [`server`] and [`protect`].
fn router(shared: Shared) -> Router {
    let at = |methods, always| behind_gate(methods, &shared, always);
    let (routes, description) = OpenApiRouter::with_openapi(openapi::base())
        .routes(at(routes!(page::page), true))
        .routes(at(routes!(health::health), true))
        .routes(at(routes!(health::livez), true))
        .routes(at(routes!(health::readyz), true))
        .routes(at(routes!(metrics::metrics), true))
        .routes(at(routes!(status::status), true))
        .routes(at(routes!(openapi::document), false))
        .routes(at(routes!(kv::get, kv::post, kv::put, kv::delete), false))
        .routes(at(routes!(pairs::list, pairs::batch), false))
        .routes(at(routes!(admin::shutdown), true))
        .routes(at(routes!(admin::checkpoint), false))
        .routes(at(routes!(admin::checkpoint_wal), false))
        .routes(at(routes!(admin::snapshot), false))
        .routes(at(routes!(admin::leader::transfer), false))
        .routes(at(
            routes!(admin::members::list, admin::members::set),
            false,
        ))
        .routes(at(routes!(admin::members::remove), false))
        .routes(at(routes!(backup::backup), false))
        .routes(at(routes!(admin::digest), false))
        .split_for_parts();
    shared.describe(openapi::finish(description));
    let nowhere = gate::before(any(nowhere), &shared, NOWHERE, false);
    routes
        .fallback_service(nowhere.with_state(shared.clone()))
        .with_state(shared)
}

/// The methods of one path, with our answer to all others.
fn behind_gate(
    (schemas, paths, methods): UtoipaMethodRouter<Shared>,
    shared: &Shared,
    always: bool,
) -> UtoipaMethodRouter<Shared> {
    let path = paths.paths.keys().next();
    let path = path.map_or(NOWHERE.to_owned(), |path| openapi::template(path));
    let methods = methods.fallback(|| async { ApiError::method() });
    (schemas, paths, gate::before(methods, shared, &path, always))
}

async fn nowhere(State(shared): State<Shared>) -> Result<Response, ApiError> {
    shared.node()?;
    Err(ApiError::no_route())
}

#[cfg(test)]
mod tests;
