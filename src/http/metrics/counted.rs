//! What the process has counted and timed, whoever did it.

use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::timed::Timed;
use crate::http::error::Code;
use crate::telemetry::count::{self, Count, Times};

pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    let aspen = registry.sub_registry_with_prefix("aspen");
    http(aspen.sub_registry_with_prefix("http"));
    certificates(aspen);
    let times: [(&str, &str, &'static Times); 7] = [
        (
            "log_write_duration",
            "Time that writing to the Raft log or its journal took",
            &count::LOG_WRITES,
        ),
        (
            "log_sync_duration",
            "Time of it that the disk took to make it durable",
            &count::LOG_SYNCS,
        ),
        (
            "storage_checkpoint_duration",
            "Time that it took to empty the write-ahead log",
            &count::CHECKPOINTS,
        ),
        (
            "raft_snapshot_duration",
            "Time that it took to make durable what is applied, so that the log may be shortened",
            &count::SNAPSHOTS_MADE,
        ),
        (
            "raft_snapshot_send_duration",
            "Time until another node had a snapshot and had installed it",
            &count::SNAPSHOTS_SENT,
        ),
        (
            "raft_snapshot_install_duration",
            "Time that it took to install a snapshot of the leader here",
            &count::SNAPSHOTS_INSTALLED,
        ),
        (
            "backup_duration",
            "Time until a client had a whole backup",
            &count::BACKUPS,
        ),
    ];
    for (name, help, times) in times {
        aspen.register_with_unit(name, help, Unit::Seconds, Timed(times));
    }
    let counters: [(&str, &str, &Count); 2] = [
        (
            "backup_failures",
            "Backups that were not made, or not taken to the end",
            &count::BACKUPS_FAILED,
        ),
        (
            "raft_leader_changes",
            "How often this node learnt of another leader or another term of it",
            &count::LEADER_CHANGES,
        ),
    ];
    for (name, help, counter) in counters {
        aspen.register(name, help, ConstCounter::new(counter.get()));
    }
    registry
}

/// What the API's server counts, beside its routes.
fn http(http: &mut Registry) {
    let open = ConstGauge::new(count::CONNECTIONS.get());
    http.register("connections", "Connections that are open", open);
    let most = ConstGauge::new(count::CONNECTIONS_MOST.get());
    let help = "Connections that there may be; 0 before the first";
    http.register("connections_limit", help, most);
    let failed = ConstCounter::new(count::HANDSHAKES_FAILED.get());
    let help = "TLS handshakes with clients that failed";
    http.register("tls_handshake_failures", help, failed);
    // Two codes share a name where only the status differs.
    let errors = Family::<[(&str, String); 2], Counter>::default();
    for code in Code::ALL {
        let status = code.status().as_u16().to_string();
        let labels = [("code", code.name().to_owned()), ("status", status)];
        errors.get_or_create_owned(&labels).inc_by(code.counted());
    }
    let help = "Answers that were errors, those to requests that were not admitted included";
    http.register("errors", help, errors);
}

/// When certificates end.
fn certificates(aspen: &mut Registry) {
    let ends = Family::<[(&str, &str); 1], Gauge>::default();
    for (listener, end) in [
        ("http", &count::CERTIFICATE_ENDS),
        ("peer", &count::PEER_CERTIFICATE_ENDS),
    ] {
        if end.get() > 0 {
            let end = i64::try_from(end.get()).unwrap_or(i64::MAX);
            ends.get_or_create_owned(&[("listener", listener)]).set(end);
        }
    }
    let help = "When the certificate of a listener ends, in seconds since 1970";
    let name = "tls_certificate_expiry_timestamp";
    aspen.register_with_unit(name, help, Unit::Seconds, ends);
}
