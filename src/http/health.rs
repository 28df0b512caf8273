//! `/health` for people and their scripts, `/livez` and `/readyz` for supervisors.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Phase, Shared};
use crate::raft::Node;

/// Whether the node is well, on what storage, and how far it has applied.
pub(super) async fn health(State(shared): State<Shared>) -> Response {
    match shared.phase() {
        Phase::Serving(node) => serving(node).await,
        Phase::Migrating(progress) => not_ready(json!({
            "status": "migrating",
            "phase": progress.phase,
            "percent": progress.percent,
            "checks": { "storage": {
                "status": "migrating",
                "phase": progress.phase,
                "done": progress.done,
                "total": progress.total,
            }},
        })),
        Phase::Starting => not_ready(unhealthy("starting")),
        Phase::Stopping => not_ready(unhealthy("stopping")),
    }
}

/// In the order in which operators know it.
#[derive(Serialize)]
struct Healthy {
    status: &'static str,
    storage: &'static str,
    /// `null` before the first entry is applied.
    last_applied: Option<u64>,
}

async fn serving(node: Node) -> Response {
    let status = node.status();
    Json(Healthy {
        status: "healthy",
        storage: status.backend,
        last_applied: status.last_applied.map(|id| id.index),
    })
    .into_response()
}

fn unhealthy(storage: &str) -> Value {
    json!({ "status": "unhealthy", "checks": { "storage": { "status": storage } } })
}

fn not_ready(body: Value) -> Response {
    let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
    (StatusCode::SERVICE_UNAVAILABLE, retry, Json(body)).into_response()
}

/// Whether the process answers at all.
pub(super) async fn livez() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

/// Whether requests are served.
pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.phase() {
        Phase::Serving(_) => Json(json!({ "status": "ready" })).into_response(),
        _ => not_ready(json!({ "status": "not_ready" })),
    }
}
