//! `/metrics`: what Prometheus collects, in the OpenMetrics text format.
//!
//! Counting must cost a request next to nothing: each route resolves its
//! series when the router is built, each status when it is first answered, and
//! from then on counting is an addition to a known place. What the node knows
//! of itself is asked for only when somebody collects.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::error::ApiError;
use super::openapi::Inner;
use super::{Shared, answer};
use crate::raft::Status;

const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Upper bounds of the histograms in seconds: from a read in memory to the
/// longest that a request may take.
const SECONDS: [f64; 17] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

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

type Seconds = Family<Asked, Histogram, fn() -> Histogram>;

/// All that is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Seconds,
    write_seconds: Histogram,
    in_flight: Gauge,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Nothing counted yet. `started` is in seconds since 1970.
    pub(super) fn new(version: &'static str, started: f64) -> Self {
        let requests = Family::<Answered, Counter>::default();
        let seconds = Seconds::new_with_constructor(histogram);
        let (write_seconds, in_flight) = (histogram(), Gauge::default());
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
        self.write_seconds.observe(time.as_secs_f64());
    }

    /// Everything as text.
    fn text(&self, status: Option<&Status>, in_flight: usize) -> Result<String, std::fmt::Error> {
        self.in_flight
            .set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let mut text = String::with_capacity(16 << 10);
        encode_registry(&mut text, &self.registry)?;
        if let Some(status) = status {
            encode_registry(&mut text, &node(status))?;
        }
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
    seconds: OnceLock<Histogram>,
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
            .observe(time.as_secs_f64());
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

/// What the node knows of itself, as it is now. Positions that are not known
/// are left out.
fn node(status: &Status) -> Registry {
    let mut registry = Registry::default();
    let aspen = registry.sub_registry_with_prefix("aspen");
    raft(aspen.sub_registry_with_prefix("raft"), status);
    let engine = Info::new([("backend", status.backend)]);
    aspen.register("storage", "The engine of the state machine", engine);
    let (database, wal) = (Some(status.sizes.database), status.sizes.wal);
    let log = Some(status.log_bytes);
    for (name, help, bytes) in [
        ("storage_database", "Size of the state machine", database),
        ("storage_wal", "Size of its write-ahead log", wal),
        ("log", "Size of the Raft log", log),
    ] {
        if let Some(bytes) = bytes {
            aspen.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
        }
    }
    let full = ConstGauge::new(u64::from(status.full.is_some()));
    let help = "Whether writes are refused for want of space";
    aspen.register("disk_full", help, full);
    registry
}

/// What of it is consensus.
fn raft(raft: &mut Registry, status: &Status) {
    let leads = u64::from(status.leader == Some(status.node_id));
    let knows = u64::from(status.leader.is_some());
    let (log, committed) = (status.last_log_index, status.committed);
    let applied = status.last_applied.map(|id| id.index);
    for (name, help, number) in [
        ("term", "The current term", Some(status.term)),
        ("is_leader", "Whether this node leads", Some(leads)),
        ("has_leader", "Whether a leader is known", Some(knows)),
        ("last_log_index", "The last entry in the log", log),
        ("committed_index", "The last entry on a majority", committed),
        ("applied_index", "The last entry applied here", applied),
        ("purged_index", "The last purged entry", status.last_purged),
        (
            "snapshot_index",
            "The last entry in a snapshot",
            status.snapshot,
        ),
    ] {
        if let Some(number) = number {
            raft.register(name, help, ConstGauge::new(number));
        }
    }
    let lags = Family::<[(&str, String); 1], Gauge>::default();
    for member in &status.members {
        if let Some(lag) = member.lag {
            let gauge = lags.get_or_create_owned(&[("member", member.id.to_string())]);
            gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
    if status.members.iter().any(|member| member.lag.is_some()) {
        let help = "Entries that a member is behind the leader";
        raft.register("member_lag_entries", help, lags);
    }
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text", body = String),
    Inner,
))]
pub(super) async fn metrics(State(shared): State<Shared>) -> Result<Response, ApiError> {
    let status = shared.status().await?;
    let in_flight = shared.limits().in_flight();
    let text = shared.metrics().text(Some(&status), in_flight);
    let text = text.map_err(|_| ApiError::overloaded())?;
    Ok(answer::with_type(
        StatusCode::OK,
        OPEN_METRICS,
        Body::from(text),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::http::tests::status;

    #[test]
    fn every_answer_is_counted_by_route_method_and_status() {
        let metrics = Metrics::new("1.2.3", 1_700_000_000.5);
        let series = metrics.route("/api/kv/{key}");
        let time = Duration::from_micros(300);
        for _ in 0..3 {
            series.answered(index(&Method::GET), StatusCode::OK, time);
        }
        series.answered(index(&Method::PUT), StatusCode::INSUFFICIENT_STORAGE, time);
        series.answered(index(&Method::PATCH), StatusCode::METHOD_NOT_ALLOWED, time);
        metrics.wrote(time);
        let text = metrics.text(None, 7).unwrap();
        for line in [
            r#"aspen_http_requests_total{method="GET",route="/api/kv/{key}",status="200"} 3"#,
            r#"aspen_http_requests_total{method="PUT",route="/api/kv/{key}",status="507"} 1"#,
            r#"aspen_http_requests_total{method="other",route="/api/kv/{key}",status="405"} 1"#,
            r#"aspen_http_request_duration_seconds_bucket{le="0.00025",method="GET",route="/api/kv/{key}"} 0"#,
            r#"aspen_http_request_duration_seconds_bucket{le="0.0005",method="GET",route="/api/kv/{key}"} 3"#,
            r#"aspen_http_request_duration_seconds_count{method="GET",route="/api/kv/{key}"} 3"#,
            "# UNIT aspen_write_duration_seconds seconds",
            "aspen_write_duration_seconds_count 1",
            "aspen_http_requests_in_flight 7",
            r#"aspen_build_info{version="1.2.3"} 1"#,
            "process_start_time_seconds 1700000000.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn positions_and_sizes_are_told_and_what_is_unknown_is_left_out() {
        let metrics = Metrics::new("1", 0.0);
        let text = metrics.text(Some(&status()), 0).unwrap();
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
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("aspen_raft_purged_index"), "{text}");
        assert!(!text.contains(r#"member="1""#), "{text}");
    }

    #[test]
    fn every_series_has_its_help_and_its_type_once() {
        let text = Metrics::new("1", 0.0).text(Some(&status()), 0).unwrap();
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
