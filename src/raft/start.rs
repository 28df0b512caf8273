//! What is checked before consensus starts: that this data is this node's, and
//! that log and state machine belong together.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::certificate::TlsError;
use crate::exit::{Exit, cannot_listen};
use crate::format::record::{self, LogId, Membership, RecordError};
use crate::storage::log::{Bounds, Log, LogError};
use crate::storage::{Applied, StorageError};

/// Key of the identity in the log's metadata table: JSON.
const IDENTITY: &str = "identity";

/// Key of the last entry in the snapshot that was installed last, in the same
/// table: a [`LogId`] in the encoding of the others.
const INSTALLING: &str = "installing_snapshot";

/// Key of the incarnation, 16 bytes, little-endian: see [`Local`](super::peer::Local).
const INCARNATION: &str = "incarnation";

/// Key of the incarnations of other nodes by id: JSON.
const MET: &str = "met";

/// Whose data this is; recorded at the first start, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) node_id: u64,
    pub(super) cluster_id: String,
    /// Whether the cluster's id was made from legacy data, and nobody has confirmed it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) provisional: bool,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be opened or read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state machine cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The data directory is another node's.
    #[error(
        "node.id is {configured}, but {} belongs to node {recorded} of cluster {cluster_id}; \
         set node.id = {recorded}, or node.data_dir to a directory of node {configured}'s own", path.display()
    )]
    OtherNode {
        /// The configured id.
        configured: u64,
        /// The recorded id.
        recorded: u64,
        /// The recorded cluster.
        cluster_id: String,
        /// The log that records it.
        path: PathBuf,
    },
    /// Legacy data whose cluster does not know this node.
    #[error(
        "node.id is {configured}, but the data in {} is of a cluster of the nodes {}; \
         set node.id to the id that this node had", path.display(), members
    )]
    NoMember {
        /// The configured id.
        configured: u64,
        /// The members, for people.
        members: String,
        /// The data directory.
        path: PathBuf,
    },
    /// The recorded identity does not decode.
    #[error("the identity recorded in {} is damaged; restore the file from a backup", path.display())]
    Identity {
        /// The log.
        path: PathBuf,
        /// The decoder's reason.
        source: serde_json::Error,
    },
    /// A record in the log's metadata is damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Log and state machine do not belong together.
    #[error("State machine corruption detected: {0}")]
    Inconsistent(String),
    /// The address for other nodes is taken, or is not this machine's.
    #[error(
        "cannot listen on {address} for other nodes; {} (cluster.peer_listen)",
        cannot_listen(source)
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The certificate for other nodes cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no space for what a start has to write.
    #[error("the node cannot start: {0}; free some space (df -h) and start it again")]
    Full(String),
    /// openraft refuses.
    #[error("consensus does not start: {0}")]
    Raft(String),
}

impl StartError {
    /// The exit code that fits.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Log(error) => error.exit(),
            Self::Storage(error) => error.exit(),
            Self::OtherNode { .. } | Self::NoMember { .. } => Exit::Config,
            Self::Identity { .. } | Self::Record(_) | Self::Inconsistent(_) => Exit::Data,
            Self::Listen { source, .. } => Exit::of_io(source),
            Self::Tls(error) => error.exit(),
            Self::Full(_) => Exit::Io,
            Self::Raft(_) => Exit::Software,
        }
    }
}

/// The identity that the log records.
pub(super) fn recorded(log: &Log, path: &Path) -> Result<Option<Identity>, StartError> {
    let Some(bytes) = log.meta(IDENTITY)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| identity_damaged(path, source))
}

/// Records the identity for ever.
pub(super) fn record(log: &Log, identity: &Identity, path: &Path) -> Result<(), StartError> {
    let bytes = serde_json::to_vec(identity).map_err(|source| identity_damaged(path, source))?;
    Ok(log.set_meta(IDENTITY, &bytes)?)
}

/// The incarnation of this data, made if there is none.
pub(super) fn incarnation(log: &Log) -> Result<u128, StartError> {
    if let Some(bytes) = log.meta(INCARNATION)?
        && let Ok(bytes) = bytes.try_into()
    {
        return Ok(u128::from_le_bytes(bytes));
    }
    let made: u128 = rand::random();
    log.set_meta(INCARNATION, &made.to_le_bytes())?;
    Ok(made)
}

/// Whom this node has met, and with which data.
pub(super) fn met(log: &Log, path: &Path) -> Result<BTreeMap<u64, u128>, StartError> {
    let Some(bytes) = log.meta(MET)? else {
        return Ok(BTreeMap::new());
    };
    serde_json::from_slice(&bytes).map_err(|source| identity_damaged(path, source))
}

/// Records whom this node has met.
pub(super) fn record_met(
    log: &Log,
    met: &BTreeMap<u64, u128>,
    path: &Path,
) -> Result<(), StartError> {
    let bytes = serde_json::to_vec(met).map_err(|source| identity_damaged(path, source))?;
    Ok(log.set_meta(MET, &bytes)?)
}

fn identity_damaged(path: &Path, source: serde_json::Error) -> StartError {
    StartError::Identity {
        path: path.to_owned(),
        source,
    }
}

/// Records which snapshot is about to replace the state machine.
pub(super) fn record_installing(log: &Log, position: LogId) -> Result<(), StartError> {
    let bytes = record::encode_position(INSTALLING, position)?;
    Ok(log.set_meta(INSTALLING, &bytes)?)
}

/// The snapshot that was installed last, or was about to be.
pub(super) fn installing(log: &Log) -> Result<Option<LogId>, StartError> {
    let bytes = log.meta(INSTALLING)?;
    let position = bytes.map(|bytes| record::position(INSTALLING, &bytes));
    Ok(position.transpose()?)
}

/// Refuses data that was recorded as another node's.
pub(super) fn check_identity(
    recorded: Option<&Identity>,
    configured: u64,
    path: &Path,
) -> Result<(), StartError> {
    match recorded {
        Some(identity) if identity.node_id != configured => Err(StartError::OtherNode {
            configured,
            recorded: identity.node_id,
            cluster_id: identity.cluster_id.clone(),
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Refuses to adopt data whose members are all others.
pub(super) fn check_member(
    membership: &Membership,
    configured: u64,
    path: &Path,
) -> Result<(), StartError> {
    if membership.nodes.is_empty() || membership.nodes.contains_key(&configured) {
        return Ok(());
    }
    let ids: Vec<_> = membership.nodes.keys().map(u64::to_string).collect();
    Err(StartError::NoMember {
        configured,
        members: ids.join(", "),
        path: path.to_owned(),
    })
}

/// The cluster's id: nodes that start with the same members agree on it without
/// having met; a node alone takes a random one.
pub(super) fn cluster_id(members: &BTreeMap<u64, String>) -> String {
    if members.len() == 1 {
        return format!("{:032x}", rand::random::<u128>());
    }
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for (id, address) in members {
        hash.update(&id.to_le_bytes());
        hash.update(&(address.len() as u64).to_le_bytes());
        hash.update(address.as_bytes());
    }
    format!("{:032x}", hash.digest128())
}

/// What [`check`] compares.
pub(super) struct Pair<'a> {
    /// The state machine's engine.
    pub(super) backend: &'static str,
    /// The state machine.
    pub(super) applied: &'a Applied,
    /// What the log holds.
    pub(super) bounds: Bounds,
    /// The log's own position at the state machine's index, if it has that entry.
    pub(super) at_applied: Option<LogId>,
    /// The snapshot that was installed last, after which the log begins anew.
    pub(super) installing: Option<LogId>,
    /// The log, for the message.
    pub(super) log: &'a Path,
}

/// Whether log and state machine can be of one node: what was applied is in the
/// log or was purged from it, and what was not applied is still there.
pub(super) fn check(pair: &Pair<'_>) -> Result<(), StartError> {
    let Bounds { last_purged, last } = pair.bounds;
    let log = pair.log.display();
    let at = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| id.to_string());
    let applied = pair.applied.last_applied;
    if let Some(applied) = applied {
        // A crash came between a snapshot's installation and the purge that follows.
        let installed = pair.installing == Some(applied);
        if !installed && last.is_none_or(|last| last.index < applied.index) {
            return Err(StartError::Inconsistent(format!(
                "the state machine has applied up to {applied}, but the log {log} ends at {}; \
                 restore both from one backup, or start a node with an empty data directory and \
                 a new id as a new member",
                at(last)
            )));
        }
        if let Some(there) = pair.at_applied.filter(|there| *there != applied) {
            return Err(StartError::Inconsistent(format!(
                "the state machine has applied {applied}, but the log {log} holds {there} there; \
                 the two are of different nodes or times: restore both from one backup"
            )));
        }
    }
    if let Some(purged) = last_purged
        && applied.is_none_or(|applied| applied.index < purged.index)
    {
        let way_out = match pair.backend {
            "memory" => {
                "a state machine in memory begins with memory-snapshot.db, which is missing or \
                 older; set cluster.storage_backend to the engine that this node had before, or \
                 start a node with an empty data directory and a new id as a new member"
            }
            _ => {
                "if this state machine was restored from a backup and newer data is at hand in \
                 SQLite, convert that instead (aspen-migrate --source state-machine.db --target \
                 state-machine.redb --verify), or restore both from one backup"
            }
        };
        return Err(StartError::Inconsistent(format!(
            "the state machine has applied up to {}, but the log {log} was purged up to {purged}: \
             the entries between are gone; {way_out}",
            at(applied)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term,
            node_id: 1,
            index,
        }
    }

    fn checked(
        applied: Option<LogId>,
        last_purged: Option<LogId>,
        last: Option<LogId>,
        at_applied: Option<LogId>,
    ) -> Result<(), StartError> {
        let applied = Applied {
            last_applied: applied,
            ..Applied::default()
        };
        check(&Pair {
            backend: "sqlite",
            applied: &applied,
            bounds: Bounds { last_purged, last },
            at_applied,
            installing: None,
            log: Path::new("raft-log.redb"),
        })
    }

    #[test]
    fn a_log_that_reaches_from_before_to_behind_the_state_machine_fits() {
        let fits = |applied, purged, last, at| {
            checked(applied, purged, last, at).unwrap();
        };
        fits(None, None, None, None);
        fits(None, None, Some(id(1, 9)), None);
        fits(Some(id(1, 9)), None, Some(id(1, 9)), Some(id(1, 9)));
        fits(Some(id(1, 5)), Some(id(1, 5)), Some(id(1, 9)), None);
        fits(
            Some(id(1, 5)),
            Some(id(1, 2)),
            Some(id(2, 9)),
            Some(id(1, 5)),
        );
    }

    #[test]
    fn corruption_is_told_with_both_positions() {
        let says = |result: Result<(), StartError>, parts: &[&str]| {
            let error = result.unwrap_err();
            assert_eq!(error.exit(), Exit::Data);
            let text = error.to_string();
            assert!(text.starts_with("State machine corruption detected: "));
            for part in parts {
                assert!(text.contains(part), "{text}");
            }
        };
        let beyond = checked(Some(id(1, 9)), None, Some(id(1, 5)), None);
        says(beyond, &["term=1, index=9", "ends at term=1, index=5"]);
        let empty = checked(Some(id(1, 9)), None, None, None);
        says(empty, &["term=1, index=9", "ends at nothing"]);
        let before = checked(Some(id(1, 2)), Some(id(1, 5)), Some(id(1, 9)), None);
        says(
            before,
            &[
                "term=1, index=2",
                "purged up to term=1, index=5",
                "aspen-migrate",
            ],
        );
        let nothing = checked(None, Some(id(1, 5)), Some(id(1, 9)), None);
        says(nothing, &["applied up to nothing", "term=1, index=5"]);
        let other = checked(Some(id(1, 5)), None, Some(id(2, 9)), Some(id(2, 5)));
        says(
            other,
            &["has applied term=1, index=5", "holds term=2, index=5"],
        );
    }

    #[test]
    fn a_log_that_ends_before_the_snapshot_that_was_just_installed_fits() {
        let installed = |installing| {
            check(&Pair {
                backend: "sqlite",
                applied: &Applied {
                    last_applied: Some(id(2, 9)),
                    ..Applied::default()
                },
                bounds: Bounds {
                    last_purged: None,
                    last: Some(id(1, 5)),
                },
                at_applied: None,
                installing,
                log: Path::new("raft-log.redb"),
            })
        };
        installed(Some(id(2, 9))).unwrap();
        assert!(installed(Some(id(2, 8))).is_err());
        assert!(installed(None).is_err());
    }

    #[test]
    fn nodes_with_the_same_members_agree_on_the_cluster_id_and_lone_nodes_do_not() {
        let two = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        assert_eq!(cluster_id(&two), cluster_id(&two.clone()));
        let other = BTreeMap::from([(1, "a:1".to_owned()), (3, "b:1".to_owned())]);
        assert_ne!(cluster_id(&two), cluster_id(&other));
        let one = BTreeMap::from([(1, "a:1".to_owned())]);
        assert_ne!(cluster_id(&one), cluster_id(&one));
    }

    #[test]
    fn data_of_another_node_is_refused_with_both_ids() {
        let identity = Identity {
            node_id: 2,
            cluster_id: "c".into(),
            provisional: false,
        };
        let path = Path::new("raft-log.redb");
        assert!(check_identity(Some(&identity), 2, path).is_ok());
        assert!(check_identity(None, 2, path).is_ok());
        let error = check_identity(Some(&identity), 1, path).unwrap_err();
        assert_eq!(error.exit(), Exit::Config);
        let text = error.to_string();
        assert!(
            text.contains("node.id is 1") && text.contains("belongs to node 2"),
            "{text}"
        );
    }
}
