//! `/status`: all that an operator asks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::openapi::Inner;
use super::{Shared, answer};
use crate::migration::record::Record;
use crate::raft::{Member, Status};

/// What is going on.
#[derive(Serialize, ToSchema)]
#[schema(as = Status)]
pub(super) struct StatusBody<'a> {
    version: &'a str,
    uptime_seconds: f64,
    node_id: u64,
    /// Null while the node waits to be added to a cluster.
    #[schema(required)]
    cluster_id: Option<&'a str>,
    /// `voter`, `learner`, `joining` (not added to a cluster yet), `removed`, or
    /// `barred`: its id was known with other data.
    membership: &'a str,
    /// Why the node is barred.
    #[schema(required)]
    barred: Option<&'a str>,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    role: &'a str,
    term: u64,
    /// Who leads, if known.
    #[schema(required)]
    leader: Option<u64>,
    members: Vec<MemberBody<'a>>,
    /// Index of the last entry in the log.
    #[schema(required)]
    last_log_index: Option<u64>,
    /// Index of the last entry known to be on a majority.
    #[schema(required)]
    committed: Option<u64>,
    /// Index of the last applied entry.
    #[schema(required)]
    last_applied: Option<u64>,
    /// Entries that are committed and not applied here yet.
    lag: u64,
    /// Index of the last entry that was purged from the log.
    #[schema(required)]
    last_purged: Option<u64>,
    /// Index of the last entry in a snapshot.
    #[schema(required)]
    snapshot: Option<u64>,
    /// On the leader: milliseconds since a majority last confirmed it.
    #[schema(required)]
    quorum_age_ms: Option<u64>,
    storage: StorageBody<'a>,
    /// Why no write is taken at the moment.
    #[schema(required)]
    disk_full: Option<&'a str>,
    /// Why this node cannot go on.
    #[schema(required)]
    failed: Option<&'a str>,
    /// The migration that made the state machine.
    #[schema(required)]
    migration: Option<Migration<'a>>,
}

/// A member of the cluster.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberBody<'a> {
    id: u64,
    /// Where its peers reach it.
    address: &'a str,
    voter: bool,
    /// On the leader: entries that it is behind.
    #[schema(required)]
    lag: Option<u64>,
}

/// What lies on the disk.
#[derive(Serialize, ToSchema)]
#[schema(as = Storage)]
struct StorageBody<'a> {
    /// The engine.
    backend: &'a str,
    /// Of the state machine; 0 in memory.
    database_bytes: u64,
    /// Of the state machine's write-ahead log; null on an engine without one.
    #[schema(required)]
    wal_bytes: Option<u64>,
    /// Of the Raft log.
    log_bytes: u64,
}

/// A migration that was done.
#[derive(Serialize, ToSchema)]
struct Migration<'a> {
    id: &'a str,
    /// Program and version that did it.
    program: &'a str,
    /// RFC 3339, UTC.
    started_at: &'a str,
    completed_at: &'a str,
    /// The engine before and after.
    from: &'a str,
    to: &'a str,
    source: String,
    target: String,
    /// Where the source lives on.
    #[schema(required)]
    backup: Option<String>,
    /// Rows copied.
    keys: u64,
    /// xxh3-128 of all rows.
    checksum: &'a str,
    /// Index of the last entry that it holds.
    #[schema(required)]
    last_applied: Option<u64>,
    seconds: f64,
}

/// All that an operator asks.
#[utoipa::path(get, path = "/status", tag = "operation",
    responses((status = 200, description = "What is going on", body = StatusBody), Inner))]
pub(super) async fn status(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let status = shared.status().await?;
    let seconds = shared.uptime().as_secs_f64();
    let body = body(&status, shared.version(), seconds, shared.migration());
    Ok(answer::json(StatusCode::OK, &body))
}

fn body<'a>(
    status: &'a Status,
    version: &'a str,
    uptime_seconds: f64,
    migration: Option<&'a Record>,
) -> StatusBody<'a> {
    let last_applied = status.last_applied.map(|id| id.index);
    let committed = status.committed.unwrap_or_default();
    StatusBody {
        version,
        uptime_seconds,
        node_id: status.node_id,
        cluster_id: Some(status.cluster_id.as_str()).filter(|id| !id.is_empty()),
        membership: status.membership,
        barred: status.barred.as_deref(),
        role: status.role,
        term: status.term,
        leader: status.leader,
        members: status.members.iter().map(MemberBody::from).collect(),
        last_log_index: status.last_log_index,
        committed: status.committed,
        last_applied,
        lag: committed.saturating_sub(last_applied.unwrap_or_default()),
        last_purged: status.last_purged,
        snapshot: status.snapshot,
        quorum_age_ms: status.quorum_age_ms,
        storage: StorageBody {
            backend: status.backend,
            database_bytes: status.sizes.database,
            wal_bytes: status.sizes.wal,
            log_bytes: status.log_bytes,
        },
        disk_full: status.full.as_deref(),
        failed: status.failed.as_deref(),
        migration: migration.map(Migration::from),
    }
}

impl<'a> From<&'a Member> for MemberBody<'a> {
    fn from(member: &'a Member) -> Self {
        Self {
            id: member.id,
            address: &member.address,
            voter: member.voter,
            lag: member.lag,
        }
    }
}

impl<'a> From<&'a Record> for Migration<'a> {
    fn from(record: &'a Record) -> Self {
        let backup = record.backup.as_ref();
        Self {
            id: &record.id,
            program: &record.program,
            started_at: &record.started_at,
            completed_at: &record.completed_at,
            from: &record.from,
            to: &record.to,
            source: record.source.display().to_string(),
            target: record.target.display().to_string(),
            backup: backup.map(|path| path.display().to_string()),
            keys: record.keys,
            checksum: &record.checksum,
            last_applied: record.last_applied.map(|id| id.index),
            seconds: record.seconds.total,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::http::tests::status;

    #[test]
    fn an_operator_is_told_all_there_is() {
        let status = status();
        let bytes = answer::encode(&body(&status, "1.2.3", 4.5, None));
        let told: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let expected = serde_json::json!({
            "version": "1.2.3", "uptime_seconds": 4.5, "node_id": 1, "cluster_id": "c",
            "membership": "voter", "barred": null,
            "role": "leader", "term": 5, "leader": 1,
            "members": [
                {"id": 1, "address": "127.0.0.1:7000", "voter": true, "lag": null},
                {"id": 2, "address": "127.0.0.1:7001", "voter": false, "lag": 3},
            ],
            "last_log_index": 1236, "committed": 1235, "last_applied": 1234, "lag": 1,
            "last_purged": null, "snapshot": null, "quorum_age_ms": 7,
            "storage": {
                "backend": "sqlite", "database_bytes": 4096, "wal_bytes": 8192, "log_bytes": 65536,
            },
            "disk_full": null, "failed": null, "migration": null,
        });
        assert_eq!(told, expected);
    }
}
