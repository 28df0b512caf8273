//! `/metrics`: what Prometheus collects, in the format that it asks for.
//!
//! Counting must cost a request next to nothing: each route resolves its
//! series when the router is built, each status when it is first answered, and
//! from then on counting is an addition to a known place. What the node knows
//! of itself is asked for only when somebody collects.
//!
//! Names follow the conventions of Prometheus: base units, `_total` for what
//! only grows, `_info` for what is told in labels. The values that a label can
//! have are bounded by the program or by the members of the cluster.
//!
//! It is answered in every phase, like the health routes: who watches a node
//! must see a migration too. What is not known yet is left out.

mod counted;
mod format;
mod node;
mod process;
mod timed;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::timed::Timed;
use super::error::ApiError;
use super::openapi::Watched;
use super::{Phase, Shared, answer};
use crate::raft::Status;
use crate::telemetry::count::Times;

/// The methods that are told apart; anything else is `other`.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "other"];
/// The lowest and highest status that is told apart.
const STATUSES: std::ops::RangeInclusive<u16> = 200..=511;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: Arc<str>,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: Arc<str>,
}

type Seconds = Family<Asked, Timed<Arc<Times>>>;

/// All that is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Seconds,
    write_seconds: Timed<Arc<Times>>,
    in_flight: Gauge,
}

impl Metrics {
    /// Nothing counted yet. `started` is in seconds since 1970.
    pub(super) fn new(version: &'static str, started: f64) -> Self {
        let requests = Family::<Answered, Counter>::default();
        let seconds = Seconds::default();
        let (write_seconds, in_flight) = (Timed::default(), Gauge::default());
        let mut registry = Registry::default();
        let help = "When the process started, in seconds since 1970";
        let name = "process_start_time";
        registry.register_with_unit(name, help, Unit::Seconds, ConstGauge::new(started));
        let aspen = registry.sub_registry_with_prefix("aspen");
        let build = Info::new([("version", version)]);
        aspen.register("build", "The program that runs", build);
        let http = aspen.sub_registry_with_prefix("http");
        let help = "Requests that were answered";
        http.register("requests", help, requests.clone());
        let help = "Time from a request's head to the head of its answer";
        let name = "request_duration";
        http.register_with_unit(name, help, Unit::Seconds, seconds.clone());
        let help = "Requests under way";
        http.register("requests_in_flight", help, in_flight.clone());
        let help = "Time until a write was durable on a majority and applied, or refused";
        let name = "write_duration";
        aspen.register_with_unit(name, help, Unit::Seconds, write_seconds.clone());
        Self {
            registry,
            requests,
            seconds,
            write_seconds,
            in_flight,
        }
    }

    /// The series of a route, by its template.
    pub(super) fn route(&self, template: &str) -> Series {
        let route = Arc::<str>::from(template);
        Series(METHODS.map(|method| OfMethod {
            asked: Asked {
                method,
                route: Arc::clone(&route),
            },
            requests: self.requests.clone(),
            all_seconds: self.seconds.clone(),
            counters: STATUSES.map(|_| OnceLock::new()).collect(),
            seconds: OnceLock::new(),
        }))
    }

    /// Counts a write.
    pub(super) fn wrote(&self, time: Duration) {
        self.write_seconds.0.observe(time);
    }

    /// Everything, in the format of OpenMetrics.
    fn text(&self, shared: &Shared, status: Option<&Status>) -> Result<String, std::fmt::Error> {
        let in_flight = shared.limits().in_flight();
        self.in_flight
            .set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let mut text = String::with_capacity(32 << 10);
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &counted::registry())?;
        encode_registry(&mut text, &node::registry(shared, status))?;
        encode_registry(&mut text, &process::registry())?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// The series of one route.
pub(super) struct Series([OfMethod; METHODS.len()]);

struct OfMethod {
    asked: Asked,
    requests: Family<Answered, Counter>,
    all_seconds: Seconds,
    counters: Box<[OnceLock<Counter>]>,
    seconds: OnceLock<Timed<Arc<Times>>>,
}

impl Series {
    /// Counts an answer. `method` is what [`index`] made of the request's.
    pub(super) fn answered(&self, method: usize, status: StatusCode, time: Duration) {
        let Some(series) = self.0.get(method) else {
            return;
        };
        series
            .seconds
            .get_or_init(|| series.all_seconds.get_or_create_owned(&series.asked))
            .0
            .observe(time);
        let status = status.as_u16();
        let place = status.checked_sub(*STATUSES.start()).map(usize::from);
        let Some(counter) = place.and_then(|place| series.counters.get(place)) else {
            return;
        };
        let labels = || Answered {
            method: series.asked.method,
            route: Arc::clone(&series.asked.route),
            status,
        };
        let counter = counter.get_or_init(|| series.requests.get_or_create_owned(&labels()));
        counter.inc();
    }
}

/// The place of a method's series.
pub(super) fn index(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::DELETE => 4,
        _ => 5,
    }
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "OpenMetrics text where `Accept` names it, else the text format of Prometheus",
        content((String = "application/openmetrics-text"), (String = "text/plain"))),
    Watched,
))]
pub(super) async fn metrics(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let status = match shared.phase() {
        // A node that has just begun to stop knows nothing of itself any more.
        Phase::Serving(_) => shared.status().await.ok(),
        _ => None,
    };
    let open = format::wants_open_metrics(headers.get_all(header::ACCEPT));
    let text = tokio::task::spawn_blocking(move || shared.metrics().text(&shared, status.as_ref()));
    let text = text.await.map_err(|_| ApiError::overloaded())?;
    let text = text.map_err(|_| ApiError::overloaded())?;
    let (kind, text) = match open {
        true => (format::OPEN_METRICS, text),
        false => (format::TEXT, format::to_text(&text)),
    };
    Ok(answer::with_type(StatusCode::OK, kind, Body::from(text)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::http::tests::status;

    #[test]
    fn every_answer_is_counted_by_route_method_and_status() {
        let metrics = Metrics::new("1.2.3", 1_700_000_000.5);
        let shared = Shared::default();
        let _under_way = shared.limits().enter();
        let series = metrics.route("/api/kv/{key}");
        let time = Duration::from_micros(300);
        for _ in 0..3 {
            series.answered(index(&Method::GET), StatusCode::OK, time);
        }
        series.answered(index(&Method::PUT), StatusCode::INSUFFICIENT_STORAGE, time);
        series.answered(index(&Method::PATCH), StatusCode::METHOD_NOT_ALLOWED, time);
        metrics.wrote(time);
        let text = metrics.text(&shared, None).unwrap();
        for line in [
            r#"aspen_http_requests_total{method="GET",route="/api/kv/{key}",status="200"} 3"#,
            r#"aspen_http_requests_total{method="PUT",route="/api/kv/{key}",status="507"} 1"#,
            r#"aspen_http_requests_total{method="other",route="/api/kv/{key}",status="405"} 1"#,
            r#"aspen_http_request_duration_seconds_bucket{le="0.00025",method="GET",route="/api/kv/{key}"} 0"#,
            r#"aspen_http_request_duration_seconds_bucket{le="0.0005",method="GET",route="/api/kv/{key}"} 3"#,
            r#"aspen_http_request_duration_seconds_count{method="GET",route="/api/kv/{key}"} 3"#,
            "# UNIT aspen_write_duration_seconds seconds",
            "aspen_write_duration_seconds_count 1",
            "aspen_http_requests_in_flight 1",
            r#"aspen_build_info{version="1.2.3"} 1"#,
            "process_start_time_seconds 1700000000.5",
            r#"aspen_node_phase{phase="starting"} 1"#,
            r#"aspen_node_phase{phase="serving"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn positions_and_sizes_are_told_and_what_is_unknown_is_left_out() {
        let metrics = Metrics::new("1", 0.0);
        let text = metrics.text(&Shared::default(), Some(&status())).unwrap();
        for line in [
            "aspen_raft_term 5",
            "aspen_raft_is_leader 1",
            "aspen_raft_committed_index 1235",
            "aspen_raft_applied_index 1234",
            r#"aspen_raft_member_lag_entries{member="2"} 3"#,
            "aspen_storage_wal_bytes 8192",
            "aspen_log_bytes 65536",
            "aspen_disk_full 0",
            r#"aspen_storage_info{backend="sqlite"} 1"#,
            r#"aspen_node_info{node_id="1",cluster_id="c"} 1"#,
            r#"aspen_raft_role{role="leader"} 1"#,
            r#"aspen_raft_role{role="follower"} 0"#,
            r#"aspen_raft_members{kind="voter"} 1"#,
            r#"aspen_raft_members{kind="learner"} 1"#,
            "aspen_raft_quorum_age_seconds 0.007",
            "aspen_disk_free_bytes 1000",
            "aspen_disk_reserved_bytes 50",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("aspen_raft_purged_index"), "{text}");
        assert!(!text.contains(r#"member="1""#), "{text}");
    }

    #[test]
    fn a_migration_is_told_while_it_lasts() {
        let shared = Shared::default();
        shared.set(Phase::Migrating(crate::http::Progress {
            phase: "copy",
            percent: 37,
            done: 600,
            total: 1234,
        }));
        let text = shared.metrics().text(&shared, None).unwrap();
        for line in [
            r#"aspen_node_phase{phase="migrating"} 1"#,
            r#"aspen_migration_step{step="copy"} 1"#,
            "aspen_migration_progress_ratio 0.37",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        shared.set(Phase::Starting);
        let text = shared.metrics().text(&shared, None).unwrap();
        assert!(!text.contains("aspen_migration_"), "{text}");
    }

    #[test]
    fn every_series_has_its_help_and_its_type_once() {
        let text = Metrics::new("1", 0.0)
            .text(&Shared::default(), Some(&status()))
            .unwrap();
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        assert!(lines().count() > 15, "{text}");
        for kind in ["# HELP ", "# TYPE "] {
            let names = text.lines().filter_map(|line| line.strip_prefix(kind));
            let mut names: Vec<_> = names.map(|rest| rest.split(' ').next()).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
            for line in lines() {
                let described = names.iter().flatten().any(|name| line.starts_with(name));
                assert!(described, "{line}");
            }
        }
    }
}
