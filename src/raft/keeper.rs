//! What is done whenever the membership changes, on every node.

use std::collections::BTreeMap;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::AbortHandle;

use super::peer::{Leader, Peers};
use super::reads::Raft;
use crate::telemetry::events;

/// Starts [`keep`] on a task of its own.
pub(super) fn start(raft: &Raft, peers: &Peers, leader: &Leader) -> AbortHandle {
    let kept = keep(raft.clone(), peers.clone(), leader.clone());
    tokio::spawn(kept).abort_handle()
}

/// Keeps what is said to peers in step with the membership, tells when this node
/// is a member no more, and ends a change that a leader left halfway.
async fn keep(raft: Raft, peers: Peers, leader: Leader) {
    let mut changes = raft.server_metrics();
    let mut was_member = false;
    loop {
        let metrics = changes.borrow_watched().clone();
        let stored = &metrics.membership_config;
        let members: BTreeMap<_, _> = stored
            .membership()
            .nodes()
            .map(|(id, node)| (*id, node.addr.clone()))
            .collect();
        let is_member = members.contains_key(&metrics.id);
        if was_member && !is_member {
            tracing::warn!(
                MESSAGE_ID = events::NODE_REMOVED,
                ASPEN_MEMBER = metrics.id,
                "This node is not a member of the cluster any more; it may be stopped"
            );
        }
        was_member = is_member;
        let at = stored.log_id().as_ref().map(|id| id.index());
        peers.local().set_members(at, members);
        let is_halfway = stored.membership().get_joint_config().len() > 1;
        if metrics.state == ServerState::Leader
            && is_halfway
            && metrics.committed_membership_config == metrics.membership_config
        {
            leader.settle().await;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
