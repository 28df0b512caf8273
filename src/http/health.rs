//! `/health` for people and their scripts, `/livez` and `/readyz` for supervisors.
//!
//! Health is about this node alone; whether a majority answers is for `/readyz`.
//!
//! - Healthy: nothing here keeps requests from being served, nor is about to.
//! - Degraded: some requests are not served (a full disk), or a limit is near.
//!   It may pass by itself.
//! - Unhealthy: somebody has to act.
//!
//! `/livez` says only that the process answers, since a restart would cure
//! nothing else. `/readyz` says whether to send requests here.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::error::ApiError;
use super::openapi::{Always, Outer, OuterQuery};
use super::{Phase, Progress, Shared, answer, input};
use crate::raft::{Node, RequestError, Status};

/// Bytes of the write-ahead log from which on the node is degraded: checkpoints
/// keep it at a few megabytes, so that something holds on to it. As every tool
/// does for disks, a megabyte is a million bytes.
const WAL_DEGRADED_BYTES: u64 = 100_000_000;
/// Bytes of it from which on the node is unhealthy: opening and reading the
/// database become slow.
const WAL_UNHEALTHY_BYTES: u64 = 500_000_000;
/// How long a majority may take to confirm the leader before it counts as
/// silent; less than those who probe wait.
const READY_TIME: Duration = Duration::from_secs(2);

/// The node as a whole, or one thing about it; worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Standing {
    Healthy,
    Migrating,
    Degraded,
    Unhealthy,
}

/// How the node is. In the order in which operators know it.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    status: Standing,
    /// The engine, once it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<&'static str>,
    /// Index of the last applied entry; null before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    last_applied: Option<Option<u64>>,
    /// What a migration is at.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'static str>,
    /// How far a migration is.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    /// What there is to say when the node is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Checks>,
}

/// What was looked at.
#[derive(Debug, Serialize, ToSchema)]
struct Checks {
    storage: Check,
    /// Whether linearizable requests are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    raft: Option<Check>,
    /// Whether the cluster can do without this node while it restarts.
    #[serde(skip_serializing_if = "Option::is_none")]
    restart: Option<Check>,
    /// The size of the write-ahead log.
    #[serde(skip_serializing_if = "Option::is_none")]
    wal: Option<Check>,
    /// Whether there is space to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Check {
    /// `healthy`, `degraded` or `unhealthy`; of storage that is not open yet what
    /// the node does instead: `starting`, `migrating` or `stopping`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// What a migration is at, and how far in that.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
}

/// The process answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Live {
    /// `live`
    status: &'static str,
    /// `starting`, `migrating`, `serving` or `stopping`.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime_seconds: Option<f64>,
}

/// Whether to send requests here.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    /// `ready` or `not_ready`
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Checks>,
}

impl Standing {
    fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Migrating => "migrating",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }

    fn check(self, message: Option<String>) -> Check {
        Check {
            status: self.name(),
            message,
            ..Check::default()
        }
    }
}

/// Whether the node is well, on what storage, and how far it has applied.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "Healthy", body = Health),
    (status = 503, description = "Degraded, unhealthy, or migrating", body = Health,
        headers(("Retry-After" = u32, description = "Seconds after which to ask again"))),
    Outer,
))]
pub(super) async fn health(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let health = match shared.phase() {
        Phase::Serving(_) => serving(&shared.status().await?),
        Phase::Migrating(progress) => migrating(&progress),
        phase => not_open(Standing::Unhealthy, phase.name()),
    };
    Ok(told(health.status == Standing::Healthy, &health))
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/livez", tag = "health",
    params(("verbose" = Option<String>, Query, description = "Tells more: nothing, or `true`", pattern = "^(true|false)?$")),
    responses((status = 200, description = "It does", body = Live), Always))]
pub(super) async fn livez(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let verbose = input::verbose(uri.query())?;
    let live = Live {
        status: "live",
        phase: verbose.then(|| shared.phase().name()),
        uptime_seconds: verbose.then(|| shared.uptime().as_secs_f64()),
    };
    Ok(answer::json(StatusCode::OK, &live))
}

/// Whether linearizable requests are served; with `restart`, whether the cluster
/// also goes on without this node: all other voters take part and have caught up,
/// and are a majority.
#[utoipa::path(get, path = "/readyz", tag = "health",
    params(("restart" = Option<String>, Query, description = "Asks about a restart: nothing, or `true`", pattern = "^(true|false)?$"),
        ("verbose" = Option<String>, Query, description = "Tells more: nothing, or `true`", pattern = "^(true|false)?$")),
    responses(
        (status = 200, description = "They are", body = Ready),
        (status = 503, description = "They are not", body = Ready,
            headers(("Retry-After" = u32, description = "Seconds after which to ask again"))),
        OuterQuery,
    ))]
pub(super) async fn readyz(State(shared): State<Shared>, uri: Uri) -> Result<Response, ApiError> {
    let (verbose, about_restart) = input::probe(uri.query())?;
    let (is_ready, checks) = match shared.phase() {
        Phase::Serving(node) => {
            let restart = match about_restart {
                true => Some(may_restart(&node).await),
                false => None,
            };
            let may = restart.as_ref().is_none_or(|why_not| why_not.is_none());
            let restart = restart.map(restart_check);
            // What would be told is not even asked for.
            if verbose {
                let (status, ready) = look(&shared, &node).await?;
                let (_, mut checks) = checks(&status, Some(&ready));
                checks.restart = restart;
                (ready.is_ok() && may, Some(checks))
            } else {
                (may && confirmed(&node).await.is_ok(), None)
            }
        }
        Phase::Migrating(progress) => (false, migrating(&progress).checks),
        phase => (false, not_open(Standing::Unhealthy, phase.name()).checks),
    };
    let status = if is_ready { "ready" } else { "not_ready" };
    let checks = checks.filter(|_| verbose);
    Ok(told(is_ready, &Ready { status, checks }))
}

/// Why the node must not restart now, as far as anybody can tell.
async fn may_restart(node: &Node) -> Option<String> {
    match timeout(READY_TIME, node.may_restart()).await {
        Ok(Ok(why_not)) => why_not,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("the leader did not answer in time".to_owned()),
    }
}

fn restart_check(why_not: Option<String>) -> Check {
    match why_not {
        None => Standing::Healthy.check(None),
        why_not => Standing::Degraded.check(why_not),
    }
}

async fn confirmed(node: &Node) -> Result<(), RequestError> {
    let confirmed = timeout(READY_TIME, node.ready()).await;
    confirmed.unwrap_or(Err(RequestError::Timeout))
}

async fn look(
    shared: &Shared,
    node: &Node,
) -> Result<(Status, Result<(), RequestError>), ApiError> {
    let (status, ready) = tokio::join!(shared.status(), confirmed(node));
    Ok((status?, ready))
}

fn told<T: Serialize>(well: bool, value: &T) -> Response {
    if well {
        return answer::json(StatusCode::OK, value);
    }
    let mut response = answer::json(StatusCode::SERVICE_UNAVAILABLE, value);
    let retry = HeaderValue::from_static("1");
    response.headers_mut().insert(header::RETRY_AFTER, retry);
    response
}

/// Judges a node that serves.
fn serving(status: &Status) -> Health {
    let (standing, checks) = checks(status, None);
    Health {
        status: standing,
        storage: Some(status.backend),
        last_applied: Some(status.last_applied.map(|id| id.index)),
        phase: None,
        percent: None,
        checks: (standing != Standing::Healthy).then_some(checks),
    }
}

/// All that is looked at, and the worst of what is this node's own.
fn checks(status: &Status, ready: Option<&Result<(), RequestError>>) -> (Standing, Checks) {
    use Standing::{Degraded, Healthy, Unhealthy};
    let storage = match (&status.failed, ready) {
        (Some(_), _) | (None, Some(Err(RequestError::Storage(_)))) => Unhealthy,
        _ => Healthy,
    };
    let raft = ready.map(|ready| match ready {
        Ok(()) => Healthy.check(None),
        Err(why_not) => Degraded.check(Some(why_not.to_string())),
    });
    let wal = status.sizes.wal.map(|bytes| match bytes {
        bytes if bytes > WAL_UNHEALTHY_BYTES => (Unhealthy, bytes),
        bytes if bytes > WAL_DEGRADED_BYTES => (Degraded, bytes),
        bytes => (Healthy, bytes),
    });
    let disk = if status.full.is_some() {
        Degraded
    } else {
        Healthy
    };
    let all = [storage, wal.map_or(Healthy, |(wal, _)| wal), disk];
    let worst = all.into_iter().max().unwrap_or(Healthy);
    let checks = Checks {
        storage: storage.check(status.failed.clone()),
        raft,
        restart: None,
        wal: wal.map(|(wal, bytes)| {
            let large = wal != Healthy;
            let message = large.then(|| {
                "the write-ahead log grows: end what reads the database for long, \
                 then POST /admin/checkpoint"
                    .to_owned()
            });
            let bytes = Some(bytes);
            Check {
                bytes,
                ..wal.check(message)
            }
        }),
        disk: Some(disk.check(status.full.clone())),
    };
    (worst, checks)
}

fn migrating(progress: &Progress) -> Health {
    let mut health = not_open(Standing::Migrating, "migrating");
    health.phase = Some(progress.phase);
    health.percent = Some(progress.percent);
    if let Some(checks) = &mut health.checks {
        checks.storage.phase = Some(progress.phase);
        checks.storage.done = Some(progress.done);
        checks.storage.total = Some(progress.total);
    }
    health
}

fn not_open(standing: Standing, storage: &'static str) -> Health {
    let storage = Check {
        status: storage,
        ..Check::default()
    };
    Health {
        status: standing,
        storage: None,
        last_applied: None,
        phase: None,
        percent: None,
        checks: Some(Checks {
            storage,
            raft: None,
            restart: None,
            wal: None,
            disk: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::http::tests::status;
    use crate::storage::StorageError;

    fn json(health: &Health) -> serde_json::Value {
        serde_json::from_slice(&answer::encode(health)).unwrap()
    }

    #[test]
    fn a_healthy_node_says_what_the_guide_shows_to_the_letter() {
        let text = String::from_utf8(answer::encode(&serving(&status()))).unwrap();
        assert_eq!(
            text,
            r#"{"status":"healthy","storage":"sqlite","last_applied":1234}"#
        );
    }

    #[test]
    fn a_growing_log_degrades_the_node_and_then_makes_it_unhealthy() {
        for (bytes, expected) in [
            (0, "healthy"),
            (100_000_000, "healthy"),
            (100_000_001, "degraded"),
            (500_000_000, "degraded"),
            (500_000_001, "unhealthy"),
        ] {
            let mut status = status();
            status.sizes.wal = Some(bytes);
            let told = json(&serving(&status));
            assert_eq!(told["status"], expected, "{bytes}");
            if expected != "healthy" {
                assert_eq!(told["checks"]["wal"]["status"], expected);
                assert_eq!(told["checks"]["wal"]["bytes"], bytes);
                assert_eq!(told["checks"]["disk"]["status"], "healthy");
            }
        }
    }

    #[test]
    fn what_the_node_cannot_do_is_told_by_name() {
        let full = Status {
            full: Some("no space".to_owned()),
            ..status()
        };
        let failed = Status {
            failed: Some("gone".to_owned()),
            ..status()
        };
        for (status, expected, check) in
            [(full, "degraded", "disk"), (failed, "unhealthy", "storage")]
        {
            let told = json(&serving(&status));
            assert_eq!(told["status"], expected, "{told}");
            assert_eq!(told["checks"][check]["status"], expected, "{told}");
            assert_eq!(told["storage"], "sqlite");
            assert_eq!(told["last_applied"], 1234);
        }
    }

    #[test]
    fn a_missing_majority_is_told_by_readiness_and_leaves_the_node_healthy() {
        let storage = RequestError::Storage(Arc::new(StorageError::Closed));
        for (ready, expected, check) in [
            (Ok(()), "healthy", "raft"),
            (Err(RequestError::NoLeader), "degraded", "raft"),
            (Err(RequestError::Timeout), "degraded", "raft"),
            (Err(storage), "unhealthy", "storage"),
        ] {
            let (standing, checks) = checks(&status(), Some(&ready));
            let told = serde_json::to_value(&checks).unwrap();
            assert_eq!(told[check]["status"], expected, "{told}");
            assert_eq!(standing == Standing::Healthy, check == "raft");
        }
        assert_eq!(json(&serving(&status()))["status"], "healthy");
    }

    #[test]
    fn a_migration_is_told_with_its_progress() {
        let progress = Progress {
            phase: "copy",
            percent: 40,
            done: 3,
            total: 9,
        };
        let expected = serde_json::json!({
            "status": "migrating", "phase": "copy", "percent": 40,
            "checks": {"storage": {"status": "migrating", "phase": "copy", "done": 3, "total": 9}},
        });
        assert_eq!(json(&migrating(&progress)), expected);
    }

    #[test]
    fn a_node_that_has_applied_nothing_says_so() {
        let status = Status {
            last_applied: None,
            ..status()
        };
        let told = json(&serving(&status));
        assert_eq!(told["last_applied"], serde_json::Value::Null);
        assert!(told.get("last_applied").is_some());
    }
}
