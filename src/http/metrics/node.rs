//! What the node knows of itself, as it is now. What is not known is left out.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::http::{Phase, Progress, Shared};
use crate::migration::record::Record;
use crate::raft::Status;

/// What a node can be doing, and what part it can have in its cluster.
const PHASES: [&str; 4] = ["starting", "migrating", "serving", "stopping"];
const ROLES: [&str; 5] = ["leader", "follower", "candidate", "learner", "stopped"];

/// Gauges that differ in one label.
type Labelled = Family<[(&'static str, String); 1], Gauge>;

pub(super) fn registry(shared: &Shared, status: Option<&Status>) -> Registry {
    let mut registry = Registry::default();
    let aspen = registry.sub_registry_with_prefix("aspen");
    let phase = shared.phase();
    let help = "What the node is doing: 1 for that, 0 for all else";
    let phases = one_of("phase", &PHASES, phase.name());
    aspen.register("node_phase", help, phases);
    if let Phase::Migrating(progress) = phase {
        migrating(aspen, &progress);
    }
    if let Some(record) = shared.migration() {
        migrated(aspen, record);
    }
    if let Some(status) = status {
        let ids = [
            ("node_id", status.node_id.to_string()),
            ("cluster_id", status.cluster_id.clone()),
        ];
        aspen.register("node", "Which node of which cluster", Info::new(ids));
        raft(aspen.sub_registry_with_prefix("raft"), status);
        storage(aspen, status);
    }
    registry
}

/// A gauge for each name, 1 for `now` and 0 for the others.
fn one_of(label: &'static str, names: &[&str], now: &str) -> Labelled {
    let family = Labelled::default();
    for name in names {
        let gauge = family.get_or_create_owned(&[(label, (*name).to_owned())]);
        gauge.set(i64::from(*name == now));
    }
    family
}

/// A migration that is under way.
fn migrating(aspen: &mut Registry, progress: &Progress) {
    let done = ConstGauge::new(f64::from(progress.percent) / 100.0);
    let (name, help) = ("migration_progress", "How far the migration is");
    aspen.register_with_unit(name, help, Unit::Other("ratio".to_owned()), done);
    let step = one_of("step", &[progress.phase], progress.phase);
    aspen.register("migration_step", "The step that the migration is at", step);
}

/// The migration that made the state machine.
fn migrated(aspen: &mut Registry, record: &Record) {
    let last = aspen.sub_registry_with_prefix("last_migration");
    let keys = ConstGauge::new(record.keys);
    last.register("keys", "Keys that it copied", keys);
    let (name, help) = ("duration", "Time from its first look to its record");
    last.register_with_unit(
        name,
        help,
        Unit::Seconds,
        ConstGauge::new(record.seconds.total),
    );
    if let Ok(end) = OffsetDateTime::parse(&record.completed_at, &Rfc3339) {
        let end = ConstGauge::new(end.unix_timestamp());
        let (name, help) = (
            "completed_timestamp",
            "When it ended, in seconds since 1970",
        );
        last.register_with_unit(name, help, Unit::Seconds, end);
    }
    let about = Info::new([
        ("from", record.from.clone()),
        ("to", record.to.clone()),
        ("program", record.program.clone()),
    ]);
    aspen.register(
        "last_migration",
        "The migration that made the state machine",
        about,
    );
}

/// Consensus.
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
    let help = "The part that this node has: 1 for that, 0 for all others";
    raft.register("role", help, one_of("role", &ROLES, status.role));
    if let Some(milliseconds) = status.quorum_age_ms {
        #[allow(clippy::cast_precision_loss)] // seconds need no more
        let seconds = ConstGauge::new(milliseconds as f64 / 1000.0);
        let help = "Time since a majority last confirmed this leader";
        raft.register_with_unit("quorum_age", help, Unit::Seconds, seconds);
    }
    members(raft, status);
}

fn members(raft: &mut Registry, status: &Status) {
    let (kinds, lags) = (Labelled::default(), Labelled::default());
    for kind in ["voter", "learner"] {
        let count = status.members.iter();
        let count = count.filter(|member| member.voter == (kind == "voter"));
        let count = i64::try_from(count.count()).unwrap_or(i64::MAX);
        kinds
            .get_or_create_owned(&[("kind", kind.to_owned())])
            .set(count);
    }
    raft.register("members", "Members of the cluster", kinds);
    for member in &status.members {
        if let Some(lag) = member.lag {
            let gauge = lags.get_or_create_owned(&[("member", member.id.to_string())]);
            gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
    }
    let help = "Entries that a member is behind the leader; only the leader knows";
    raft.register("member_lag_entries", help, lags);
}

/// What lies on the disk.
fn storage(aspen: &mut Registry, status: &Status) {
    let engine = Info::new([("backend", status.backend)]);
    aspen.register("storage", "The engine of the state machine", engine);
    let (database, wal) = (Some(status.sizes.database), status.sizes.wal);
    let log = Some(status.log_bytes);
    let disk = status.disk;
    for (name, help, bytes) in [
        ("storage_database", "Size of the state machine", database),
        ("storage_wal", "Size of its write-ahead log", wal),
        ("log", "Size of the Raft log with its journal", log),
        (
            "disk_free",
            "Free on the data directory's file system",
            disk.map(|disk| disk.free),
        ),
        (
            "disk_reserved",
            "With less than this free, no write is taken",
            disk.map(|disk| disk.reserved),
        ),
        (
            "disk_size",
            "Size of the data directory's file system",
            disk.map(|disk| disk.size),
        ),
    ] {
        if let Some(bytes) = bytes {
            aspen.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
        }
    }
    let full = ConstGauge::new(u64::from(status.full.is_some()));
    let help = "Whether writes are refused for want of space";
    aspen.register("disk_full", help, full);
}
