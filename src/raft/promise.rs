//! What this node had promised before it was started.
//!
//! A voter that has heard of its leader elects no other for [`VOTERS_LEASE`], and the
//! leader answers reads by that. openraft keeps this promise in memory only: a node
//! that was killed and came back at once would elect another leader while the old one
//! still reads by the answer that this node gave it. So a node that has ever voted gives
//! no vote, and does not want to lead, until the longest promise that it can have made
//! is over, unless the leader itself has it lead.

use std::time::Duration;

use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, sleep_until};

use super::patience::{SHORTEST_WAIT, VOTERS_LEASE};
use super::reads::Raft;
use crate::storage::log::Log;

/// Until when the node is bound; never, if it has not promised anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise(Option<Instant>);

impl Promise {
    /// What a node may have promised that has this log and is opened now. One that is
    /// alone has nobody to promise anything.
    pub(super) fn of(log: &Log, alone: bool, election: Duration) -> Self {
        let has_voted = log.vote().is_some() && !alone;
        Self(has_voted.then(|| Instant::now() + VOTERS_LEASE.of(election)))
    }

    /// Whether the node is bound now.
    pub(super) fn holds(self) -> bool {
        self.0.is_some_and(|end| Instant::now() < end)
    }

    /// Has the node stand for election when it is no longer bound.
    pub(super) fn stand_afterwards(self, raft: &Raft, election: Duration) -> Standing {
        let raft = raft.clone();
        let stands = tokio::spawn(async move {
            let Some(end) = self.0 else {
                return;
            };
            // Nodes that were started together must not all ask for votes at once.
            sleep_until(end + SHORTEST_WAIT.of(election).mul_f64(rand::random())).await;
            raft.runtime_config().elect(true);
        });
        Standing(stands.abort_handle())
    }
}

/// That the node will stand for election.
pub(super) struct Standing(AbortHandle);

impl Standing {
    /// The node will not, or already does.
    pub(super) async fn give_up(&self) {
        self.0.abort();
        while !self.0.is_finished() {
            yield_now().await;
        }
    }
}
