//! What a node is told at its start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::transport::Transport;
use crate::config::settings::{PeerFiles, Secret};
use crate::storage::log::Disk;

/// What a node is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its id.
    pub id: u64,
    /// The members that form a new cluster and their addresses; this node alone if empty.
    pub members: BTreeMap<u64, String>,
    /// Whether a node without data waits to be added to a cluster instead of forming one.
    pub join: bool,
    /// Where other nodes connect; its own address in a cluster of its own.
    pub peer_listen: SocketAddr,
    /// What only the nodes of the cluster know.
    pub secret: Option<Secret>,
    /// The certificate for other nodes; without one, connections are not encrypted.
    pub tls: Option<PeerFiles>,
    /// How long a leader may be silent: `patience` has what follows from it.
    pub election_timeout: Duration,
    /// How often a leader shows itself.
    pub heartbeat: Duration,
    /// Bytes of applied entries that stay in the log, for peers that are behind
    /// and for a state machine that is restored from a backup.
    pub log_keep: u64,
    /// Reads from the state machine that may be under way at once.
    pub readers: usize,
    /// How other nodes are reached.
    pub transport: Arc<dyn Transport>,
    /// What the log is written to, in place of its file and by its own thread.
    pub disk: Option<Arc<dyn Disk>>,
}
