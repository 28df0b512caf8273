//! What is done whenever the membership changes, on every node.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::sleep;

use super::peer::{Leader, Peers};
use super::reads::Raft;
use crate::telemetry::events;

/// How long one try to meet a node may take, and the pause between two.
const MEETING_TIME: Duration = Duration::from_secs(2);

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
    let mut meeting = Meeting::default();
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
        meeting.with(&peers, &members);
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

/// Meets all members, each once for ever, so that none can lose its disk, or be of
/// another cluster with the same members, and find a node that knows no better.
/// Followers would have no other reason to meet.
#[derive(Default)]
struct Meeting {
    members: BTreeMap<u64, String>,
    under_way: Option<JoinHandle<()>>,
}

impl Meeting {
    fn with(&mut self, peers: &Peers, members: &BTreeMap<u64, String>) {
        if self.members != *members {
            self.members.clone_from(members);
            self.end();
            self.under_way = Some(tokio::spawn(meet(peers.clone(), members.clone())));
        }
    }

    fn end(&mut self) {
        if let Some(before) = self.under_way.take() {
            before.abort();
        }
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.end();
    }
}

async fn meet(peers: Peers, mut members: BTreeMap<u64, String>) {
    let local = peers.local();
    loop {
        members.retain(|id, _| *id != local.id() && !local.has_met(*id));
        if members.is_empty() || local.barred().is_some() {
            return;
        }
        for (id, address) in &members {
            // Why it is not reached is said by whoever tries.
            let _ = peers.link(*id, address, MEETING_TIME).await;
        }
        sleep(MEETING_TIME).await;
    }
}
