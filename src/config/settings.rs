//! The validated settings: what the rest of the program is given.
//!
//! A value of these types has passed the checks of each key in [`super::keys`]
//! and those between keys below; nothing downstream looks at text again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de::Error as _};

/// The most read connections: each costs a descriptor for the database and one
/// for its WAL, and the usual limit of descriptors is 1024 soft, 524288 hard.
pub const MAX_POOL_SIZE: u64 = 1024;
/// The fewest backups to keep: with none there is no way back.
pub const MIN_KEEP_BACKUPS: u64 = 1;
/// The smallest node id: 0 is what an unset id looks like in Raft messages.
pub const MIN_NODE_ID: u64 = 1;

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
            ("[http]", self.http != newer.http),
            ("[cluster]", self.cluster != newer.cluster),
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
    /// The members by id; empty means this node alone.
    #[serde(default, deserialize_with = "members_by_id")]
    pub initial_members: BTreeMap<u64, Member>,
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
    found.extend(unprotected_listener(settings));
    found.extend(same_listener(settings));
    found.extend(incomplete_members(settings));
    found.extend(shared_addresses(settings));
    found
}

fn unprotected_listener(settings: &Settings) -> Option<Conflict> {
    let listen = settings.http.listen;
    if settings.http.insecure || listen.ip().to_canonical().is_loopback() {
        return None;
    }
    Some(Conflict {
        key: "http.listen".into(),
        with: vec!["http.insecure".into()],
        message: format!(
            "found \"{listen}\", which other machines can reach; this release has neither TLS \
             nor tokens, so that whoever reaches it could read and write everything; expected \
             a loopback address such as \"127.0.0.1:{}\", or http.insecure = true to accept that",
            listen.port()
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
