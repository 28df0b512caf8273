//! `/admin`: what operators have the node and the cluster do.

pub(super) mod leader;
pub(super) mod members;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::openapi::{Files, Inner};
use super::{Shared, answer};
use crate::storage::Checkpoint;

/// The node stops.
#[derive(Serialize, ToSchema)]
pub(super) struct Stopping {
    /// `stopping`
    status: &'static str,
}

/// What a checkpoint did. All but the first is null on an engine that has no
/// write-ahead log, where there is nothing to be done.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = Checkpoint)]
pub(super) struct CheckpointDone {
    /// Whether there is a write-ahead log, which is now empty.
    checkpointed: bool,
    /// Pages that the write-ahead log held.
    #[schema(required)]
    wal_pages: Option<u64>,
    /// Pages of it that were copied into the database.
    #[schema(required)]
    checkpointed_pages: Option<u64>,
    #[schema(required)]
    wal_bytes_before: Option<u64>,
    #[schema(required)]
    wal_bytes_after: Option<u64>,
    #[schema(required)]
    database_bytes_before: Option<u64>,
    #[schema(required)]
    database_bytes_after: Option<u64>,
}

impl From<Checkpoint> for CheckpointDone {
    fn from(done: Checkpoint) -> Self {
        Self {
            checkpointed: true,
            wal_pages: Some(done.wal_pages),
            checkpointed_pages: Some(done.checkpointed_pages),
            wal_bytes_before: Some(done.wal_bytes_before),
            wal_bytes_after: Some(done.wal_bytes_after),
            database_bytes_before: Some(done.database_bytes_before),
            database_bytes_after: Some(done.database_bytes_after),
        }
    }
}

/// A Raft snapshot.
#[derive(Serialize, ToSchema)]
pub(super) struct Snapshot {
    /// Index of the last entry that it covers; null when the log is empty.
    #[schema(required)]
    last_log_index: Option<u64>,
    /// Term of that entry.
    #[schema(required)]
    term: Option<u64>,
    /// Index of the last entry that was purged from the log.
    #[schema(required)]
    last_purged_index: Option<u64>,
}

/// What this node holds, in one number for each table: nodes that have applied
/// the same entries have the same, whatever their engine.
#[derive(Serialize, ToSchema)]
#[schema(as = Digest)]
pub(super) struct DigestBody {
    /// How many keys there are.
    keys: u64,
    /// xxh3-128 of all keys and values in the byte order of the keys, as migrations record it.
    checksum: String,
    /// How many idempotent writes are remembered.
    idempotency_keys: u64,
    /// The same of them, in the order of the log.
    idempotency_checksum: String,
    /// The last entry that all of this holds; null before the first.
    #[schema(required)]
    last_applied: Option<Position>,
}

/// The position of an entry.
#[derive(Serialize, ToSchema)]
pub(super) struct Position {
    term: u64,
    /// Who led in that term.
    node_id: u64,
    index: u64,
}

/// Computes the digests of one consistent view while the node serves, which
/// reads all of it. Compare those with the same `last_applied`.
#[utoipa::path(get, path = "/admin/digest", tag = "operation",
    responses((status = 200, description = "The digests", body = DigestBody), Files))]
pub(super) async fn digest(
    State(shared): State<Shared>,
    method: Method,
) -> Result<Response, ApiError> {
    let node = shared.node()?;
    if method == Method::HEAD {
        // Nothing to be computed for nobody to read.
        return Ok(answer::with_type(
            StatusCode::OK,
            answer::JSON,
            Body::empty(),
        ));
    }
    let _slot = shared.limits().digest()?;
    let held = node.digest().await?;
    let body = DigestBody {
        keys: held.pairs.rows,
        checksum: held.pairs.to_string(),
        idempotency_keys: held.idempotency.rows,
        idempotency_checksum: held.idempotency.to_string(),
        last_applied: held.last_applied.map(|id| Position {
            term: id.term,
            node_id: id.node_id,
            index: id.index,
        }),
    };
    Ok(answer::json(StatusCode::OK, &body))
}

/// Stops the node as SIGTERM does.
#[utoipa::path(post, path = "/admin/shutdown", tag = "operation",
    responses((status = 202, description = "The node stops", body = Stopping), Inner))]
pub(super) async fn shutdown(State(shared): State<Shared>) -> Result<Response, ApiError> {
    shared.node()?;
    shared.request_stop();
    let status = "stopping";
    Ok(answer::json(StatusCode::ACCEPTED, &Stopping { status }))
}

/// Moves the write-ahead log into the database and truncates it.
#[utoipa::path(post, path = "/admin/checkpoint", tag = "operation",
    responses((status = 200, description = "Done", body = CheckpointDone), Files))]
pub(super) async fn checkpoint(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let done = shared.node()?.checkpoint().await?;
    let done = done.map(CheckpointDone::from).unwrap_or_default();
    Ok(answer::json(StatusCode::OK, &done))
}

/// The same as `/admin/checkpoint`.
#[utoipa::path(post, path = "/admin/checkpoint-wal", tag = "operation",
    responses((status = 200, description = "Done", body = CheckpointDone), Files))]
pub(super) async fn checkpoint_wal(shared: State<Shared>) -> Result<Response, ApiError> {
    checkpoint(shared).await
}

/// Makes a Raft snapshot now, so that the log may be shortened.
#[utoipa::path(post, path = "/admin/snapshot", tag = "operation",
    responses((status = 200, description = "Done", body = Snapshot), Files))]
pub(super) async fn snapshot(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let done = shared.node()?.snapshot().await?;
    let snapshot = Snapshot {
        last_log_index: done.last_log_id.map(|id| id.index),
        term: done.last_log_id.map(|id| id.term),
        last_purged_index: done.last_purged.map(|id| id.index),
    };
    Ok(answer::json(StatusCode::OK, &snapshot))
}
