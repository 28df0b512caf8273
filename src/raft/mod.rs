//! The node: consensus on the log, and what it applies. The only module that
//! names openraft. (Skeleton: the interface is settled, the rest is being built.)

use std::fs::File;
use std::sync::Arc;

use crate::format::entry::{Outcome, Request};
use crate::format::record::LogId;
use crate::storage::{Checkpoint, Page, Range, Sizes, StorageError};

/// How fresh a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was answered before it began, on any node.
    Linearizable,
    /// It sees what this node has applied.
    Stale,
}

/// A write that is durable on a majority and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its index in the log.
    pub index: u64,
    /// What it did.
    pub outcome: Outcome,
}

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody leads, or the leader does not reach a majority: nothing was done.
    #[error("the cluster has no leader at the moment; try again")]
    NoLeader,
    /// The disk is nearly full: refused before it entered the log.
    #[error("{0}")]
    DiskFull(String),
    /// It entered the log and was not confirmed in time: it may or may not happen.
    #[error("the write was not confirmed in time; it may still happen")]
    Unconfirmed,
    /// A read was not confirmed in time.
    #[error("the read was not confirmed in time")]
    Timeout,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The state machine fails; the reason is in the log.
    #[error("the state machine failed; see the node's log")]
    Storage(Arc<StorageError>),
}

/// What a Raft snapshot covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotDone {
    /// The last entry it covers; up to there the log may be purged.
    pub last_log_id: Option<LogId>,
    /// The last entry that was purged.
    pub last_purged: Option<LogId>,
}

/// A consistent copy of the state machine, as a file without a name.
#[derive(Debug)]
pub struct Backup {
    /// The SQLite database, at its beginning.
    pub file: File,
    /// Its bytes.
    pub bytes: u64,
    /// The last entry it holds.
    pub last_applied: Option<LogId>,
}

/// A member as `/status` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
    /// On the leader: how many entries it is behind; `None` where unknown.
    pub lag: Option<u64>,
}

/// All that an operator asks about consensus and storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's id.
    pub node_id: u64,
    /// The cluster's id.
    pub cluster_id: String,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: &'static str,
    /// The current term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// The members, by id.
    pub members: Vec<Member>,
    /// The last entry in the log.
    pub last_log_index: Option<u64>,
    /// The last entry known to be on a majority.
    pub committed: Option<u64>,
    /// The last applied entry.
    pub last_applied: Option<LogId>,
    /// The last purged entry.
    pub last_purged: Option<u64>,
    /// The last entry in a snapshot.
    pub snapshot: Option<u64>,
    /// Milliseconds since a majority last confirmed the leader; only on the leader.
    pub quorum_age_ms: Option<u64>,
    /// The engine.
    pub backend: &'static str,
    /// What the state machine takes.
    pub sizes: Sizes,
    /// What the log takes, in bytes.
    pub log_bytes: u64,
    /// Why no write is taken at the moment, if so.
    pub full: Option<String>,
    /// Why this node cannot go on, if so: it exits soon.
    pub failed: Option<String>,
}

/// A running node; a cheap handle.
#[derive(Clone)]
pub struct Node {}

impl Node {
    /// Writes; answered once it is durable on a majority and applied.
    pub async fn write(&self, request: Request) -> Result<Written, RequestError> {
        let _ = request;
        todo!()
    }
    /// The value of a key.
    pub async fn get(
        &self,
        key: String,
        consistency: Consistency,
    ) -> Result<Option<String>, RequestError> {
        let _ = (key, consistency);
        todo!()
    }
    /// A page of pairs.
    pub async fn scan(&self, range: Range, consistency: Consistency) -> Result<Page, RequestError> {
        let _ = (range, consistency);
        todo!()
    }
    /// Truncates the write-ahead log; `None` on an engine without one.
    pub async fn checkpoint(&self) -> Result<Option<Checkpoint>, RequestError> {
        todo!()
    }
    /// Makes a Raft snapshot now and lets the log be purged.
    pub async fn snapshot(&self) -> Result<SnapshotDone, RequestError> {
        todo!()
    }
    /// Makes a consistent copy while serving.
    pub async fn backup(&self) -> Result<Backup, RequestError> {
        todo!()
    }
    /// Whether linearizable requests would be served now: a leader is known and confirmed.
    pub async fn ready(&self) -> Result<(), RequestError> {
        todo!()
    }
    /// What is going on.
    pub fn status(&self) -> Status {
        todo!()
    }
}
