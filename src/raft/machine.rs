//! openraft's view of the state machine.
//!
//! Snapshots: a persistent state machine is its own snapshot. "Building" one
//! makes durable what was applied, so that the log up to there may be purged;
//! no copy is made until somebody needs it, and then it is made as of that
//! moment ([`SnapshotData::Live`]). Copying a database of gigabytes every so
//! many entries, only to have the right to shorten the log, would cost more
//! than all writes together.
//!
//! An entry is applied when it is durable in this node's own log, too: a majority
//! may consist of others, and after a crash the state machine would be ahead of
//! the log that it is checked against.
//!
//! A full disk is waited out: an error here would end the node, and nothing is
//! lost by waiting, since the entries are durable in the log. Reads go on.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use openraft::alias::{LogIdOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder, Snapshot};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::blocking::{blocking, in_place};
use super::log::Durable;
use super::start;
use super::types::{
    Id, Leader, Meta, Stored, Types, from_log_id, from_stored, to_entry, to_log_id,
};
use crate::format::entry::Entry;
use crate::storage::log::Log;
use crate::storage::{Applied, StateMachine, StorageError};
use crate::telemetry::{Chain, count, events};

/// Entries applied in one transaction at most: bounds how long a transaction
/// takes and what it holds in memory.
const MAX_BATCH_ENTRIES: usize = 4096;

/// Entries that are applied without the runtime making room: some 2 ms of
/// SQLite, which syncs nothing.
const QUICK_ENTRIES: usize = 256;

/// How long a full disk is left alone before the next try.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// A snapshot on its way.
pub(crate) enum SnapshotData {
    /// What a state machine holds when the snapshot is sent: at least what its
    /// description says.
    Live(Arc<dyn StateMachine>),
    /// A complete copy, received from a peer.
    Received(PathBuf),
}

/// What the machine tells the node beside openraft's back.
#[derive(Default)]
pub(super) struct Condition {
    /// Why entries cannot be applied at the moment.
    full: Mutex<Option<String>>,
    /// Set when the node stops: nothing is waited out any longer.
    pub(super) stopping: AtomicBool,
}

impl Condition {
    pub(super) fn full(&self) -> Option<String> {
        self.full
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_full(&self, why: Option<String>) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Does `work` until it succeeds or fails for another reason than a full disk.
    fn wait_out<T>(&self, mut work: impl FnMut() -> Result<T, StorageError>) -> io::Result<T> {
        let mut waited = false;
        let result = loop {
            match work() {
                Err(error) if error.is_full() && !self.stopping.load(Ordering::Relaxed) => {
                    if !waited {
                        tracing::error!(
                            MESSAGE_ID = events::DISK_FULL,
                            "The disk is full, entries wait to be applied: {}",
                            Chain(&error)
                        );
                        self.set_full(Some(format!("the disk is full: {error}")));
                    }
                    waited = true;
                    std::thread::sleep(RETRY_AFTER);
                }
                done => break done,
            }
        };
        if waited {
            self.set_full(None);
            if result.is_ok() {
                tracing::info!(
                    MESSAGE_ID = events::DISK_RECOVERED,
                    "The disk has space again, entries are applied"
                );
            }
        }
        result.map_err(io::Error::other)
    }
}

/// The state machine as openraft sees it.
pub(super) struct Machine {
    pub(super) state_machine: Arc<dyn StateMachine>,
    pub(super) condition: Arc<Condition>,
    /// This node's log, and how far it is durable.
    pub(super) log: Log,
    pub(super) durable: watch::Receiver<Durable>,
    /// Where a copy of another live state machine is made before it is installed.
    pub(super) copy: PathBuf,
}

impl Machine {
    /// Runs `work` where blocking is allowed.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn StateMachine, &Condition) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (machine, condition) = (Arc::clone(&self.state_machine), Arc::clone(&self.condition));
        blocking(move || work(machine.as_ref(), &condition))
            .await
            .map_err(io::Error::other)?
    }

    /// Returns once the entry at `index` is durable in this node's own log.
    async fn durable(&mut self, index: u64) -> io::Result<()> {
        let reached = |durable: &Durable| durable.is_none_or(|next| next > index);
        loop {
            let waited = timeout(RETRY_AFTER, self.durable.wait_for(reached)).await;
            let failed = match &waited {
                Ok(Ok(next)) => next.is_none(),
                Ok(Err(_)) => true,
                Err(_) => self.condition.stopping.load(Ordering::Relaxed),
            };
            match (failed, waited) {
                (true, _) => return Err(io::Error::other("the log takes no more entries")),
                (false, Ok(_)) => return Ok(()),
                (false, Err(_)) => {}
            }
        }
    }

    async fn apply_batch(&mut self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let (entries, responders): (Vec<Entry>, Vec<_>) = batch
            .into_iter()
            .map(|(entry, responder)| (to_entry(entry), responder))
            .unzip();
        if let Some(last) = entries.last() {
            self.durable(last.log_id.index).await?;
        }
        let pause = self.state_machine.pause();
        if !pause.is_zero() {
            sleep(pause).await;
        }
        // A small batch takes less time than waking a thread for it; anything that
        // waits for the disk lets the runtime have another thread meanwhile.
        let apply = || self.state_machine.apply(&entries);
        let is_quick = entries.len() <= QUICK_ENTRIES && self.state_machine.backend() != "redb";
        let first = if is_quick { Some(apply()) } else { None };
        let outcomes = match first {
            Some(Ok(outcomes)) => outcomes,
            Some(Err(error)) if !error.is_full() => return Err(io::Error::other(error)),
            _ => in_place(|| self.condition.wait_out(apply))?,
        };
        for (outcome, responder) in outcomes.into_iter().zip(responders) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }
}

/// What is durable of `machine`, described for openraft; `None` while it is empty.
fn durable(machine: &dyn StateMachine, condition: &Condition) -> io::Result<Option<Meta>> {
    // In this order: what was applied before is what gets durable.
    let applied = machine.applied().map_err(io::Error::other)?;
    condition.wait_out(|| machine.persist())?;
    match applied.last_applied {
        Some(_) => meta(&applied).map(Some),
        None => Ok(None),
    }
}

fn meta(applied: &Applied) -> io::Result<Meta> {
    Ok(Meta {
        last_log_id: applied.last_applied.map(from_log_id),
        last_membership: from_stored(&applied.membership)?,
    })
}

fn snapshot(
    meta: Meta,
    data: SnapshotData,
) -> Snapshot<Leader, u64, openraft::BasicNode, SnapshotData> {
    Snapshot {
        meta,
        snapshot: data,
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        let applied = self.state_machine.applied().map_err(io::Error::other)?;
        let last: Option<Id> = applied.last_applied.map(from_log_id);
        let membership: Stored = from_stored(&applied.membership)?;
        Ok((last, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Vec::new();
        while let Some(entry) = entries.next().await {
            batch.push(entry?);
            if batch.len() == MAX_BATCH_ENTRIES {
                self.apply_batch(std::mem::take(&mut batch)).await?;
            }
        }
        match batch.is_empty() {
            true => Ok(()),
            false => self.apply_batch(batch).await,
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state_machine: Arc::clone(&self.state_machine),
            condition: Arc::clone(&self.condition),
        }
    }

    async fn install_snapshot(&mut self, meta: &Meta, data: SnapshotData) -> io::Result<()> {
        let (copy, log) = (self.copy.clone(), self.log.clone());
        let position = meta.last_log_id.as_ref().map(to_log_id);
        self.blocking(move |machine, condition| {
            let file = match data {
                SnapshotData::Received(file) => file,
                SnapshotData::Live(other) => {
                    drop(crate::durable::create_new(&copy).map_err(io::Error::other)?);
                    condition.wait_out(|| other.write_snapshot(&copy))?;
                    copy
                }
            };
            // Until the log is purged up to there, it may end before the state
            // machine; after a crash the next start has to know why.
            if let Some(position) = position {
                start::record_installing(&log, position).map_err(io::Error::other)?;
            }
            condition
                .wait_out(|| machine.install_snapshot(&file))
                .map(|_| ())
        })
        .await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<Snapshot<Leader, u64, openraft::BasicNode, SnapshotData>>> {
        let meta = self.blocking(durable).await?;
        let live = SnapshotData::Live(Arc::clone(&self.state_machine));
        Ok(meta.map(|meta| snapshot(meta, live)))
    }
}

/// Makes what is applied durable, on a thread of its own.
pub(super) struct Builder {
    state_machine: Arc<dyn StateMachine>,
    condition: Arc<Condition>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<Snapshot<Leader, u64, openraft::BasicNode, SnapshotData>> {
        let (machine, condition) = (Arc::clone(&self.state_machine), Arc::clone(&self.condition));
        let began = Instant::now();
        let meta = blocking(move || durable(machine.as_ref(), &condition))
            .await
            .map_err(io::Error::other)??;
        count::SNAPSHOTS_MADE.observe(began.elapsed());
        let live = SnapshotData::Live(Arc::clone(&self.state_machine));
        Ok(snapshot(meta.unwrap_or_default(), live))
    }
}
