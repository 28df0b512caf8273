//! When the log is shortened: by bytes, which bound the disk, rather than by
//! entries. openraft's own policy is off; it still guards every purge, so that
//! nothing goes that a snapshot does not cover or a peer is being sent.

use std::time::Duration;

use openraft::LogIdOptionExt as _;
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::AbortHandle;

use super::RequestError;
use super::reads::Raft;
use crate::storage::log::Log;

/// How often the log's size is looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Purging begins when the log holds this part more than it shall keep, so that
/// it comes in worthwhile portions.
const SLACK: u64 = 4;

/// Starts looking after the log. A state machine in memory is rebuilt from the
/// whole log at the next start, so that nothing may go.
pub(super) fn start(raft: &Raft, log: &Log, backend: &'static str, keep: u64) -> AbortHandle {
    let (raft, log) = (raft.clone(), log.clone());
    let task = tokio::spawn(async move {
        if backend == "memory" {
            return;
        }
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            shorten(&raft, &log, keep).await;
        }
    });
    task.abort_handle()
}

/// Purges what lies before the last `keep` bytes, once that is worthwhile.
async fn shorten(raft: &Raft, log: &Log, keep: u64) {
    let first = log.bounds().last_purged.map_or(0, |id| id.index + 1);
    if log.index_for_last(keep + keep / SLACK) <= first {
        return;
    }
    let Some(upto) = log.index_for_last(keep).checked_sub(1) else {
        return;
    };
    // What fails here is tried again at the next tick, or ends the node anyway.
    if snapshot_up_to(raft, Some(upto)).await.is_ok() {
        let covered = raft.metrics().borrow_watched().snapshot;
        let upto = covered.index().map_or(upto, |covered| covered.min(upto));
        tracing::debug!("Purging the Raft log up to {upto}");
        let _ = raft.trigger().purge_log(upto).await;
    }
}

/// Returns once a snapshot covers `index` at least.
pub(super) async fn snapshot_up_to(raft: &Raft, index: Option<u64>) -> Result<(), RequestError> {
    let mut metrics = raft.metrics();
    let covered =
        |metrics: &openraft::RaftMetrics<super::types::Types>| metrics.snapshot.index() >= index;
    if covered(&metrics.borrow_watched()) {
        return Ok(());
    }
    let stopping = |_| RequestError::Stopping;
    raft.trigger().snapshot().await.map_err(stopping)?;
    loop {
        if covered(&metrics.borrow_watched()) {
            return Ok(());
        }
        if metrics.borrow_watched().running_state.is_err() {
            return Err(RequestError::Stopping);
        }
        metrics
            .changed()
            .await
            .map_err(|_| RequestError::Stopping)?;
    }
}
