//! The table of known keys: what each may hold, and how it is described.
//!
//! This one table drives validation of every source, `--check-config`, the
//! names in the environment, and the test of the packaged template.

pub use super::kind::Kind;
use super::settings::{
    Backend, BackupKind, ELECTION_MS, HEARTBEAT_MS, LOG_KEEP, LogFormat, MAX_CONNECTIONS,
    MAX_POOL_SIZE, MIN_KEEP_BACKUPS, MIN_NODE_ID, Verify,
};

/// The segment of a [`Key::path`] that stands for any member's id.
pub const ANY_ID: &str = "ID";
/// What every name of ours in the environment begins with.
pub const ENV_PREFIX: &str = "ASPEN_";
/// What joins the segments of a path in the environment.
const ENV_JOINER: &str = "__";
/// How alike (0 to 1) two names must be for one to be suggested for the other:
/// three slips in ten letters still pass, unrelated words do not.
const SIMILAR: f64 = 0.7;
/// How alike two names are of which one holds the other, such as `backend`.
const CONTAINED: f64 = 0.8;

/// One known key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its segments, joined by dots; [`ANY_ID`] stands for any member's id.
    pub path: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// One line for people.
    pub doc: &'static str,
    /// Its value when nothing gives one, as text.
    pub default: Option<&'static str>,
    /// Its short name in the environment; the long name wins over it.
    pub short: Option<&'static str>,
    /// Whether its value must never be shown.
    pub secret: bool,
}

impl Key {
    const fn new(path: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self {
            path,
            kind,
            doc,
            default: None,
            short: None,
            secret: false,
        }
    }

    const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    const fn short(mut self, name: &'static str) -> Self {
        self.short = Some(name);
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// The long name in the environment.
    #[must_use]
    pub fn env_name(&self) -> String {
        let joined = self.path.replace('.', ENV_JOINER);
        format!("{ENV_PREFIX}{}", joined.to_ascii_uppercase())
    }

    /// How many segments this key's path has beyond `path`, if it begins with it.
    fn beyond(&self, path: &[&str]) -> Option<usize> {
        let mut own = self.path.split('.');
        path.iter()
            .all(|segment| own.next().is_some_and(|o| o == *segment || o == ANY_ID))
            .then(|| own.count())
    }
}

/// Every known key, in the order in which people are shown them.
pub static KEYS: &[Key] = &[
    Key::new(
        "node.id",
        Kind::Integer {
            min: MIN_NODE_ID,
            max: u64::MAX,
        },
        "This node's id in the cluster; it never changes.",
    )
    .or("1")
    .short("ASPEN_NODE_ID"),
    Key::new(
        "node.data_dir",
        Kind::Path,
        "The data directory: ./data/node-ID, or $STATE_DIRECTORY under systemd.",
    )
    .short("ASPEN_DATA_DIR"),
    Key::new(
        "http.listen",
        Kind::Listen,
        "Where the HTTP API listens, an IP address and a port.",
    )
    .or("127.0.0.1:8080")
    .short("ASPEN_HTTP_ADDR"),
    Key::new(
        "http.insecure",
        Kind::Bool,
        "Whether http.listen may be an address that other machines reach without TLS and a token.",
    )
    .or("false"),
    Key::new(
        "http.max_connections",
        Kind::Integer {
            min: 1,
            max: MAX_CONNECTIONS,
        },
        "How many connections the API takes at a time, from 1 to 1000000; more get 503.",
    )
    .or("1024"),
    Key::new(
        "http.tls_certificate",
        Kind::Path,
        "The certificate for TLS, with its chain, as PEM; http.tls_key belongs to it.",
    ),
    Key::new(
        "http.tls_key",
        Kind::Path,
        "The private key of the certificate, as PEM.",
    ),
    Key::new(
        "http.token",
        Kind::Token,
        "The token that requests need, 16 to 128 characters; health needs none.",
    )
    .secret(),
    Key::new(
        "http.admin_token",
        Kind::Token,
        "The token that /admin needs; it opens everything else too.",
    )
    .secret(),
    Key::new(
        "cluster.storage_backend",
        Kind::Choice(Backend::NAMES),
        "Where the state machine lives: sqlite, redb (deprecated) or memory.",
    )
    .or("sqlite")
    .short("ASPEN_STORAGE_BACKEND"),
    Key::new(
        "cluster.peer_listen",
        Kind::Listen,
        "Where other nodes connect, an IP address and a port.",
    )
    .or("127.0.0.1:7000"),
    Key::new(
        "cluster.join",
        Kind::Bool,
        "Whether a node without data waits to be added to a cluster instead of forming one.",
    )
    .or("false"),
    Key::new(
        "cluster.secret",
        Kind::Token,
        "What only the nodes of the cluster know, 16 to 128 characters, the same on all.",
    )
    .secret(),
    Key::new(
        "cluster.tls_certificate",
        Kind::Path,
        "This node's certificate for other nodes, with its chain, as PEM.",
    ),
    Key::new(
        "cluster.tls_key",
        Kind::Path,
        "The private key of that certificate, as PEM.",
    ),
    Key::new(
        "cluster.tls_ca",
        Kind::Path,
        "The certificates that have signed those of all nodes, as PEM.",
    ),
    Key::new(
        "cluster.sqlite.pool_size",
        Kind::Integer {
            min: 1,
            max: MAX_POOL_SIZE,
        },
        "Number of read connections, from 1 to 1024.",
    )
    .or("10"),
    Key::new(
        "cluster.initial_members",
        Kind::Members,
        "The members that form the cluster, one line each; without any, this node alone.",
    ),
    Key::new(
        "cluster.initial_members.ID.peer",
        Kind::Address,
        "Where its peers reach the member, a host and a port.",
    ),
    Key::new(
        "cluster.initial_members.ID.http",
        Kind::Address,
        "Where clients reach the member's API, a host and a port.",
    ),
    Key::new(
        "cluster.migrated",
        Kind::Record,
        "What a migration at start-up has done; written by aspen-node.",
    ),
    Key::new(
        "raft.log_keep",
        Kind::Bytes {
            min: LOG_KEEP.0,
            max: LOG_KEEP.1,
        },
        "How much log is kept behind the last applied entry, for slow peers and for going back.",
    )
    .or("256MiB"),
    Key::new(
        "raft.election_timeout_ms",
        Kind::Integer {
            min: ELECTION_MS.0,
            max: ELECTION_MS.1,
        },
        "How long a leader may be silent before another is elected, from 50 to 60000 ms.",
    )
    .or("1000"),
    Key::new(
        "raft.heartbeat_ms",
        Kind::Integer {
            min: HEARTBEAT_MS.0,
            max: HEARTBEAT_MS.1,
        },
        "How often a leader is heard of, in ms; less than a third of the election timeout.",
    )
    .or("150"),
    Key::new(
        "migration.backup",
        Kind::Choice(BackupKind::NAMES),
        "How the legacy database is kept: copy, or link (a hard link, for those short of space).",
    )
    .or("copy"),
    Key::new(
        "migration.keep_backups",
        Kind::Integer {
            min: MIN_KEEP_BACKUPS,
            max: u32::MAX as u64,
        },
        "How many backups are kept; none younger than 7 days is ever removed.",
    )
    .or("3"),
    Key::new(
        "migration.verify",
        Kind::Choice(Verify::NAMES),
        "How much of a migration is compared with its source: full, or sample.",
    )
    .or("full"),
    Key::new(
        "log.filter",
        Kind::Filter,
        "What is logged: a level, or levels by module such as \"info,aspen=debug\".",
    )
    .or("info")
    .short("RUST_LOG"),
    Key::new(
        "log.format",
        Kind::Choice(LogFormat::NAMES),
        "The log's shape: auto (the journal if connected to it, else text), journald, text, json.",
    )
    .or("auto"),
    Key::new(
        "log.file",
        Kind::Path,
        "A file that gets the log as text as well.",
    ),
];

/// What a path leads to.
pub(super) enum Known {
    /// A key with a value.
    Key(&'static Key),
    /// A table on the way to keys.
    Section,
}

impl Known {
    /// What belongs here, in words that follow "expected".
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Key(key) => key.kind.expected(),
            Self::Section => "a table".into(),
        }
    }
}

/// What `path` leads to, if anything.
pub(super) fn lookup(path: &[&str]) -> Option<Known> {
    if let Some(key) = KEYS.iter().find(|key| key.beyond(path) == Some(0)) {
        return Some(Known::Key(key));
    }
    let section = KEYS.iter().any(|key| key.beyond(path).is_some());
    section.then_some(Known::Section)
}

/// The candidate most like `word`, if any is like enough. Of dotted names the
/// last segments are compared: a right key under the wrong table is a common
/// slip, while names under one table are not alike for that.
pub(super) fn closest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let (table, leaf) = split_leaf(word);
    let scored = candidates.filter_map(|candidate| {
        let (its_table, its_leaf) = split_leaf(candidate);
        let mut alike = strsim::normalized_damerau_levenshtein(leaf, its_leaf);
        // Short names are in too many others to mean anything.
        let long = leaf.len().min(its_leaf.len()) > 3;
        if long && (leaf.contains(its_leaf) || its_leaf.contains(leaf)) {
            alike = alike.max(CONTAINED);
        }
        // Among those that are alike, one in the same table is meant rather than another.
        let near = if table == its_table { 1.0 } else { 0.0 };
        (alike >= SIMILAR).then_some((alike + near, candidate))
    });
    scored
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn split_leaf(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// What to say about a path that leads nowhere: the known name most like it,
/// or else the names known at its place.
pub(super) fn about_unknown(path: &[&str]) -> String {
    let sections = KEYS.iter().flat_map(|key| {
        let dots = key.path.match_indices('.');
        dots.map(|(at, _)| &key.path[..at])
    });
    let names = KEYS.iter().map(|key| key.path).chain(sections);
    if let Some(meant) = closest(&path.join("."), names) {
        return format!("unknown key, did you mean {meant}?");
    }
    let parent = path.get(..path.len().saturating_sub(1)).unwrap_or_default();
    let mut known: Vec<&str> = Vec::new();
    for key in KEYS.iter().filter(|key| key.beyond(parent) > Some(0)) {
        let name = key.path.split('.').nth(parent.len()).unwrap_or_default();
        if !known.contains(&name) {
            known.push(name);
        }
    }
    format!("unknown key, expected one of {}", known.join(", "))
}

/// What a name in the environment stands for: the segments of a path.
pub(super) fn env_path(name: &str) -> Option<Vec<String>> {
    if let Some(key) = KEYS.iter().find(|key| key.short == Some(name)) {
        return Some(key.path.split('.').map(str::to_owned).collect());
    }
    let rest = name.strip_prefix(ENV_PREFIX)?;
    if rest.chars().any(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let path: Vec<_> = rest
        .split(ENV_JOINER)
        .map(str::to_ascii_lowercase)
        .collect();
    let segments: Vec<_> = path.iter().map(String::as_str).collect();
    match lookup(&segments) {
        Some(Known::Key(key)) if !matches!(key.kind, Kind::Record) => Some(path),
        _ => None,
    }
}

/// What to say about a name in the environment that stands for nothing.
pub(super) fn about_unknown_env(name: &str) -> String {
    let settable = || KEYS.iter().filter(|key| !matches!(key.kind, Kind::Record));
    let short = settable().filter_map(|key| key.short.map(str::to_owned));
    let names = settable().map(Key::env_name).chain(short);
    // Without the prefix, which all have and which makes none alike.
    let names: Vec<_> = names
        .chain(["ASPEN_CONFIG".into()])
        .filter_map(|name| name.strip_prefix(ENV_PREFIX).map(str::to_owned))
        .collect();
    let word = name.to_ascii_uppercase();
    let word = word.strip_prefix(ENV_PREFIX).unwrap_or(&word);
    match closest(word, names.iter().map(String::as_str)) {
        Some(meant) => format!("unknown name, did you mean {ENV_PREFIX}{meant}?"),
        None => format!(
            "unknown name, expected {ENV_PREFIX} and a key's path joined by {ENV_JOINER}, \
             such as ASPEN_CLUSTER__SQLITE__POOL_SIZE"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::kind::Raw;
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_own_kind() {
        for key in KEYS {
            if let Some(default) = key.default {
                assert!(
                    key.kind.accept(Raw::Text(default)).is_some(),
                    "{}",
                    key.path
                );
            }
        }
    }

    #[test]
    fn every_name_in_the_environment_leads_back_to_its_key() {
        for key in KEYS.iter().filter(|key| !matches!(key.kind, Kind::Record)) {
            for name in key
                .short
                .into_iter()
                .map(str::to_owned)
                .chain([key.env_name()])
            {
                let path = env_path(&name.replace("__ID__", "__7__"))
                    .expect(&name)
                    .join(".");
                assert_eq!(path.replace(".7.", ".ID."), key.path);
            }
        }
    }

    #[test]
    fn names_are_suggested_only_when_they_are_alike() {
        assert!(
            about_unknown(&["cluster", "storage_backnd"])
                .contains("did you mean cluster.storage_backend?")
        );
        assert!(about_unknown(&["pool_size"]).contains("did you mean cluster.sqlite.pool_size?"));
        assert!(about_unknown(&["clutser"]).contains("did you mean cluster?"));
        assert_eq!(
            about_unknown(&["xyz"]),
            "unknown key, expected one of node, http, cluster, raft, migration, log"
        );
        assert_eq!(
            about_unknown(&["migration", "qqqqqqqqqqq"]),
            "unknown key, expected one of backup, keep_backups, verify"
        );
        assert!(about_unknown_env("ASPEN_DATADIR").contains("did you mean ASPEN_DATA_DIR?"));
        assert!(
            about_unknown_env("ASPEN_QQQQQQQQQQQQQQQQ")
                .contains("expected ASPEN_ and a key's path")
        );
    }
}
