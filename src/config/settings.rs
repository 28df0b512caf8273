//! The validated settings: what the rest of the program is given.
//!
//! A value of these types has passed the checks of each key in [`super::keys`]
//! and those between keys below; nothing downstream looks at text again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

/// The most read connections: each costs a descriptor for the database and one
/// for its WAL, and the usual limit of descriptors is 1024 soft, 524288 hard.
pub const MAX_POOL_SIZE: u64 = 1024;
/// The fewest backups to keep: with none there is no way back.
pub const MIN_KEEP_BACKUPS: u64 = 1;
/// The smallest node id: 0 is what an unset id looks like in Raft messages.
pub const MIN_NODE_ID: u64 = 1;

/// The most connections of the API: each costs a descriptor, of which a process
/// rarely may have more.
pub const MAX_CONNECTIONS: u64 = 1_000_000;
/// The fewest characters of a token: 16 random hexadecimal digits are 64 bits,
/// too many to be guessed over a network.
pub const MIN_TOKEN: usize = 16;
/// The most characters of a token; several times what any generator makes.
pub const MAX_TOKEN: usize = 128;
/// The least and the most bytes of log to keep.
pub const LOG_KEEP: (u64, u64) = (1 << 20, 1 << 40);
/// The shortest and the longest election timeout in milliseconds: a disk's sync
/// must fit into the one, a person's patience end with the other.
pub const ELECTION_MS: (u64, u64) = (50, 60_000);
/// The shortest and the longest interval of heartbeats in milliseconds.
pub const HEARTBEAT_MS: (u64, u64) = (10, 20_000);
/// How many heartbeats fit into the shortest election timeout: two may be lost.
const HEARTBEATS_PER_ELECTION: u32 = 3;

/// An enum whose variants have names in the configuration, written once.
macro_rules! choice {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// The names in the configuration, in the order of the variants.
            pub const NAMES: &'static [&'static str] = &[$($text,)+];

            /// The name in the configuration.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

choice! {
    /// Where the state machine lives.
    Backend {
        /// SQLite, the default.
        Sqlite = "sqlite",
        /// redb, deprecated.
        Redb = "redb",
        /// Memory: gone with the process.
        Memory = "memory",
    }
}

choice! {
    /// How the legacy source is kept after a migration.
    BackupKind {
        /// A file of its own: shared blocks where the file system can, else a copy.
        Copy = "copy",
        /// A hard link, for those short of space.
        Link = "link",
    }
}

choice! {
    /// How much of a migration's result is compared with its source.
    Verify {
        /// Every row.
        Full = "full",
        /// A sample spread over the whole key range.
        Sample = "sample",
    }
}

choice! {
    /// The shape of the log.
    LogFormat {
        /// The journal where standard error is connected to it, else text.
        Auto = "auto",
        /// Native journal fields.
        Journald = "journald",
        /// Lines of text on standard error.
        Text = "text",
        /// One JSON object a line on standard error.
        Json = "json",
    }
}

/// Everything that a node can be told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Settings {
    /// Who this node is and where its data lies.
    pub node: Node,
    /// The HTTP API.
    pub http: Http,
    /// Storage and membership.
    pub cluster: Cluster,
    /// Consensus.
    pub raft: Raft,
    /// What a migration at start-up does.
    pub migration: Migration,
    /// The log.
    pub log: Log,
}

impl Settings {
    /// The sections, or keys of `[log]`, in which `newer` differs in what a
    /// running node cannot take over.
    #[must_use]
    pub fn changes_that_need_a_restart(&self, newer: &Self) -> Vec<&'static str> {
        let changed = [
            ("[node]", self.node != newer.node),
            ("[http]", self.http.needs_a_restart_for(&newer.http)),
            ("[cluster]", self.cluster != newer.cluster),
            ("[raft]", self.raft != newer.raft),
            ("[migration]", self.migration != newer.migration),
            ("log.format", self.log.format != newer.log.format),
            ("log.file", self.log.file != newer.log.file),
        ];
        changed
            .into_iter()
            .filter(|(_, changed)| *changed)
            .map(|(name, _)| name)
            .collect()
    }
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// The Raft id, at least [`MIN_NODE_ID`].
    pub id: u64,
    /// The data directory; it need not exist yet.
    pub data_dir: PathBuf,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Http {
    /// Where the API listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Whether an address that other machines reach may be served unprotected.
    pub insecure: bool,
    /// Connections at a time, from 1 to [`MAX_CONNECTIONS`].
    pub max_connections: u64,
    /// The certificate's file; there is a key if and only if there is this.
    #[serde(default)]
    pub tls_certificate: Option<PathBuf>,
    /// The private key's file.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// What requests need.
    #[serde(default)]
    pub token: Option<Secret>,
    /// What requests to `/admin` need.
    #[serde(default)]
    pub admin_token: Option<Secret>,
}

impl Http {
    /// The files of the certificate and of its key.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_certificate.as_deref().zip(self.tls_key.as_deref())
    }

    /// Whether a listener that serves these settings cannot take over `newer`,
    /// and must take over nothing of it: tokens of a listener on loopback may
    /// be none, and would be wrong for the address that it still listens on.
    #[must_use]
    pub fn needs_a_restart_for(&self, newer: &Self) -> bool {
        let fixed = |http: &Self| (http.listen, http.insecure, http.tls().is_some());
        fixed(self) != fixed(newer)
    }
}

/// Text that is never shown: not by `Debug`, and it has no `Display`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Text that is not to be shown.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text, for whoever compares it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// `[raft]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Raft {
    /// Bytes of log that are kept behind the last applied entry.
    pub log_keep: u64,
    /// How long a leader may be silent.
    #[serde(rename = "election_timeout_ms", deserialize_with = "milliseconds")]
    pub election_timeout: Duration,
    /// How often a leader is heard of.
    #[serde(rename = "heartbeat_ms", deserialize_with = "milliseconds")]
    pub heartbeat: Duration,
}

fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Cluster {
    /// Where the state machine lives.
    pub storage_backend: Backend,
    /// Settings of the SQLite backend.
    pub sqlite: Sqlite,
    /// Where other nodes connect.
    pub peer_listen: SocketAddr,
    /// Whether a node without data waits to be added to a cluster instead of forming one.
    pub join: bool,
    /// What only the nodes of the cluster know.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// This node's certificate for other nodes; there are all three files or none.
    #[serde(default)]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key's file.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// The certificates that have signed those of all nodes.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// The members by id; empty means this node alone.
    #[serde(default, deserialize_with = "members_by_id")]
    pub initial_members: BTreeMap<u64, Member>,
}

impl Cluster {
    /// The files for TLS between nodes.
    #[must_use]
    pub fn tls(&self) -> Option<PeerFiles> {
        Some(PeerFiles {
            certificate: self.tls_certificate.clone()?,
            key: self.tls_key.clone()?,
            ca: self.tls_ca.clone()?,
        })
    }
}

/// The files for TLS between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFiles {
    /// The certificate with its chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of nodes.
    pub ca: PathBuf,
}

/// `[cluster.sqlite]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sqlite {
    /// Read connections, from 1 to [`MAX_POOL_SIZE`].
    pub pool_size: u32,
}

/// One line of `[cluster.initial_members]`: a host (name or IP) and port each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Where its peers reach it.
    #[serde(default)]
    pub peer: String,
    /// Where clients reach its API.
    #[serde(default)]
    pub http: String,
}

/// `[migration]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Migration {
    /// How the source is kept.
    pub backup: BackupKind,
    /// How many backups are kept, at least [`MIN_KEEP_BACKUPS`].
    pub keep_backups: u32,
    /// How much is compared.
    pub verify: Verify,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Log {
    /// What is logged, as [`filter::parse`](super::filter::parse) reads it.
    pub filter: String,
    /// In which shape.
    pub format: LogFormat,
    /// A file that gets the log as text as well.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

fn members_by_id<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u64, Member>, D::Error> {
    let by_name = BTreeMap::<String, Member>::deserialize(from)?;
    let by_id = by_name.into_iter().map(|(name, member)| {
        let id = name.parse().map_err(D::Error::custom)?;
        Ok((id, member))
    });
    by_id.collect()
}

/// What is wrong with values that are each right by themselves.
pub(super) struct Conflict {
    /// The key whose place is shown.
    pub(super) key: String,
    /// The other keys that it depends on: when one of those was refused already,
    /// this is a consequence, not news.
    pub(super) with: Vec<String>,
    /// What was found, what was expected, and the way out.
    pub(super) message: String,
}

/// Checks that look at more than one value.
pub(super) fn conflicts(settings: &Settings) -> Vec<Conflict> {
    let mut found = Vec::new();
    found.extend(half_of_tls(settings));
    found.extend(unprotected_listener(settings));
    found.extend(rare_heartbeats(settings));
    found.extend(super::peers::conflicts(&settings.cluster));
    found.extend(same_listener(settings));
    found.extend(incomplete_members(settings));
    found.extend(shared_addresses(settings));
    found
}

fn half_of_tls(settings: &Settings) -> Option<Conflict> {
    let (certificate, key) = ("http.tls_certificate", "http.tls_key");
    let http = &settings.http;
    let (present, missing) = match (&http.tls_certificate, &http.tls_key) {
        (Some(_), None) => (certificate, key),
        (None, Some(_)) => (key, certificate),
        _ => return None,
    };
    Some(Conflict {
        key: present.into(),
        with: vec![missing.into()],
        message: format!("found this file only, expected {missing} as well"),
    })
}

fn unprotected_listener(settings: &Settings) -> Option<Conflict> {
    let http = &settings.http;
    let listen = http.listen;
    if http.insecure || listen.ip().to_canonical().is_loopback() {
        return None;
    }
    let protection = ["http.tls_certificate", "http.tls_key", "http.token"];
    let missing: &[&str] = match (http.tls().is_some(), http.token.is_some()) {
        (true, true) => return None,
        (true, false) => &protection[2..],
        (false, true) => &protection[..2],
        (false, false) => &protection,
    };
    let [rest @ .., last] = missing else {
        return None;
    };
    let and = if rest.is_empty() { "" } else { " and " };
    let with = protection.iter().chain(&["http.insecure"]);
    Some(Conflict {
        key: "http.listen".into(),
        with: with.map(|key| (*key).to_owned()).collect(),
        message: format!(
            "found \"{listen}\", which other machines can reach, so that whoever reaches it could \
             read and write everything; set {}{and}{last}, or listen on a loopback address such as \
             \"127.0.0.1:{}\", or set http.insecure = true to accept that",
            rest.join(", "),
            listen.port()
        ),
    })
}

fn rare_heartbeats(settings: &Settings) -> Option<Conflict> {
    let Raft {
        election_timeout,
        heartbeat,
        ..
    } = settings.raft;
    (heartbeat * HEARTBEATS_PER_ELECTION >= election_timeout).then(|| Conflict {
        key: "raft.heartbeat_ms".into(),
        with: vec!["raft.election_timeout_ms".into()],
        message: format!(
            "found {} ms, expected less than a third of raft.election_timeout_ms, which is {} ms",
            heartbeat.as_millis(),
            election_timeout.as_millis()
        ),
    })
}

fn same_listener(settings: &Settings) -> Option<Conflict> {
    let listen = settings.http.listen;
    // Port 0 is a different port each time.
    (listen == settings.cluster.peer_listen && listen.port() != 0).then(|| Conflict {
        key: "cluster.peer_listen".into(),
        with: vec!["http.listen".into()],
        message: format!(
            "found \"{listen}\", which is also http.listen; expected an address of its own"
        ),
    })
}

fn incomplete_members(settings: &Settings) -> Vec<Conflict> {
    let mut found = Vec::new();
    for (id, member) in &settings.cluster.initial_members {
        let peer = format!("cluster.initial_members.{id}.peer");
        let http = format!("cluster.initial_members.{id}.http");
        let (present, missing) = match (member.peer.is_empty(), member.http.is_empty()) {
            (false, true) => (peer, http),
            (true, false) => (http, peer),
            _ => continue,
        };
        found.push(Conflict {
            message: format!(
                "found member {id} with this address only, expected {missing} as well"
            ),
            key: present,
            with: vec![missing],
        });
    }
    found
}

fn shared_addresses(settings: &Settings) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut owners = BTreeMap::new();
    for (id, member) in &settings.cluster.initial_members {
        for (address, what) in [(&member.peer, "peer"), (&member.http, "http")] {
            let key = format!("cluster.initial_members.{id}.{what}");
            if address.is_empty() {
                continue;
            }
            if let Some(other) = owners.insert(address, key.clone()) {
                let message = format!(
                    "found \"{address}\", which is also {other}; expected an address of its own"
                );
                found.push(Conflict {
                    key,
                    with: vec![other],
                    message,
                });
            }
        }
    }
    found
}
