//! The node: consensus on the log, and what it applies. The only module that
//! names openraft.
//!
//! - `types`: the types of consensus, and how they map to records.
//! - `log`, `machine`, `network`: openraft's views of the log store, the state
//!   machine and the peers.
//! - `peer`: what nodes say to each other, by a `transport`. `copies`: of the state machine.
//! - `blocking`: work that waits for the disk.
//! - `start`: what is checked before consensus starts; `join`: the cluster that
//!   it then forms or finds.
//! - `watcher`: who leads and who is a member, told when it changes.
//! - `patience`: how long nodes wait for each other before they elect another;
//!   `promise`: what they had promised each other before a restart.
//! - `node`: the node's handle, with `options`; `reads`: reads, gathered; `compact`: when the
//!   log is shortened; `lead`: how leadership is handed over;
//!   `members`: how members come and go; `keeper`: what each node does then.
//!
//! Invariants:
//!
//! - A write is answered when it is durable on a majority and applied on the leader. One
//!   that is refused ([`RequestError::NoLeader`], [`RequestError::DiskFull`])
//!   never entered the log; one that is [`RequestError::Unconfirmed`] did.
//! - An entry is applied here only when it is durable here, however many others
//!   have it; a node that is not alone never leads again in a term in which it led
//!   before a restart.
//! - The log is purged only up to what the state machine has made durable.
//! - An error of the disk that is not just a full one ends the node: what it
//!   would answer afterwards could not be trusted.

mod blocking;
mod compact;
mod copies;
mod join;
mod keeper;
mod lead;
mod log;
mod machine;
mod members;
mod network;
mod node;
mod options;
mod patience;
mod peer;
mod promise;
mod reads;
mod start;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;
mod transport;
mod types;
mod watcher;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use self::machine::Condition;
use crate::format::entry::Outcome;
use crate::format::record::LogId;
use crate::storage::log::Log;
use crate::storage::space::{Free, Space};
use crate::storage::{Sizes, StorageError};

pub use self::blocking::Aside;
pub use self::node::Node;
pub use self::options::Options;
pub use self::start::StartError;
pub use self::transport::{Connection, Listener, Tcp, Transport};
pub use crate::format::peer::MemberState;

/// How long a request may wait for its confirmation: several elections at the
/// longest timeout that makes sense, and less than clients wait.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// How long a request waits for there to be a leader: an election and a second
/// one, at the timeouts that nodes have unless they are told otherwise.
const LEADER_TIME: Duration = Duration::from_secs(5);

/// Most voters: with more, a write waits for more disks than it is worth.
pub const MAX_VOTERS: usize = 5;

/// Most members: each voter's replacement can be there before the voter goes.
pub const MAX_MEMBERS: usize = 2 * MAX_VOTERS;

/// How fresh a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It sees every write that was answered before it began, on any node: a
    /// majority confirms the leader for it.
    Linearizable,
    /// The same, confirmed by what a majority has told the leader in the last
    /// third of an election timeout. It relies on clocks: `peer::leader` says how far.
    Lease,
    /// It sees at least what was committed so long before it began.
    Bounded(Duration),
    /// It sees what this node has applied.
    Stale,
}

/// A write that is durable on a majority and applied on the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its index in the log.
    pub index: u64,
    /// What it did: [`Outcome::Done`] or [`Outcome::Conflict`].
    pub outcome: Outcome,
    /// Whether it is an idempotent write that had happened before, and all of
    /// this tells what it did then.
    pub replayed: bool,
}

impl Written {
    /// What the entry at `index` has done.
    fn of(index: u64, outcome: Outcome) -> Result<Self, RequestError> {
        let (index, outcome, replayed) = match outcome {
            Outcome::ReplayedDone { index, deleted } => (index, Outcome::Done { deleted }, true),
            Outcome::ReplayedConflict { index, current } => {
                (index, Outcome::Conflict { current }, true)
            }
            Outcome::KeyReused => return Err(RequestError::KeyReused),
            Outcome::Done { .. } | Outcome::Conflict { .. } => (index, outcome, false),
        };
        Ok(Self {
            index,
            outcome,
            replayed,
        })
    }
}

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody leads, or the leader does not reach a majority: nothing was done.
    #[error("the cluster has no leader at the moment; try again")]
    NoLeader,
    /// This node belongs to no cluster, so that nobody leads it: nothing was done.
    #[error("{0}")]
    NoMember(String),
    /// The disk is nearly full: refused before it entered the log.
    #[error("{0}")]
    DiskFull(String),
    /// It entered the log and was not confirmed in time: it may or may not happen.
    #[error("the write was not confirmed in time; it may still happen")]
    Unconfirmed,
    /// Another request had the same idempotency key: nothing was done.
    #[error(
        "another request was sent with this Idempotency-Key; give every request a key of its own"
    )]
    KeyReused,
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

/// Why a command of an operator is not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// Nothing was done: there is no such member.
    #[error("{0}")]
    NoMember(String),
    /// Nothing was done: the cluster must not change like that.
    #[error("{0}")]
    Refused(String),
    /// It is not done yet; asked again later, it may be.
    #[error("{0}")]
    NotYet(String),
    /// It may or may not happen.
    #[error("the leader did not answer in time; it may still happen: look at /status")]
    Unconfirmed,
    /// No leader, or the node is stopping.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leads {
    /// Its id.
    pub leader: u64,
    /// Its term.
    pub term: u64,
}

/// Whether writes may enter the log.
struct Gate {
    log: Log,
    condition: Arc<Condition>,
    space: Space,
}

impl Gate {
    /// Why no write is taken at the moment.
    fn full(&self) -> Option<String> {
        let low = || self.space.check().err().map(|full| full.to_string());
        self.waits().or_else(low)
    }

    /// What waits for space at the moment.
    fn waits(&self) -> Option<String> {
        self.log.stalled().or_else(|| self.condition.full())
    }
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
    pub file: Aside<File>,
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

/// The members, as the leader knows them; from this node's log if there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// By id.
    pub members: Vec<MemberState>,
}

/// All that an operator asks about consensus and storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's id.
    pub node_id: u64,
    /// The cluster's id; empty while it is not known.
    pub cluster_id: String,
    /// What this node is to the cluster: `voter`, `learner`, `joining` (not yet a
    /// member), `removed`, or `barred`.
    pub membership: &'static str,
    /// Why this node takes no part, if it is barred.
    pub barred: Option<String>,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
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
    /// The file system of the data directory; `None` where it cannot be asked.
    pub disk: Option<Free>,
    /// Why no write is taken at the moment, if so.
    pub full: Option<String>,
    /// Why this node cannot go on, if so: it exits soon.
    pub failed: Option<String>,
}
