//! openraft's view of the Raft log: types are translated, nothing is decided.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::alias::{LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{oneshot, watch};

use super::blocking::blocking;
use super::types::{
    RaftEntry, Types, from_entry, from_log_id, from_vote, to_entry, to_log_id, to_vote,
};
use crate::format::entry::Entry;
use crate::storage::log::{Done, Log, LogError};
use crate::telemetry::events;

/// Bytes of entries that one message to a peer holds at most: large enough
/// that a peer far behind catches up at the speed of the network, small enough
/// that a heartbeat never waits long behind it.
const MAX_MESSAGE_BYTES: u64 = 2 << 20;

/// The log as openraft sees it.
#[derive(Clone)]
pub(super) struct LogStore {
    log: Log,
    durable: watch::Sender<Durable>,
}

/// The index behind the last durable entry; `None` when the log has failed.
pub(super) type Durable = Option<u64>;

impl LogStore {
    pub(super) fn new(log: Log) -> Self {
        let next = log.bounds().last.map_or(0, |last| last.index + 1);
        let (durable, _) = watch::channel(Some(next));
        Self { log, durable }
    }

    /// How far the log is durable, now and later.
    pub(super) fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.subscribe()
    }

    /// Writes the entry that a cluster begins with into a log that has none.
    pub(super) async fn begin(&self, first: Entry) -> io::Result<()> {
        let next = first.log_id.index + 1;
        self.durably(|log, done| log.append(vec![first], done))
            .await?;
        self.durable.send_replace(Some(next));
        Ok(())
    }

    /// Entries may lie on disk only: reading them must not hold up the event loop.
    async fn read(
        &self,
        range: std::ops::Range<u64>,
        max_bytes: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = if self.log.in_memory(range.start) {
            self.log.read(range, max_bytes)
        } else {
            let log = self.log.clone();
            blocking(move || log.read(range, max_bytes))
                .await
                .map_err(io::Error::other)?
        };
        let entries = entries.map_err(into_io)?;
        entries.into_iter().map(from_entry).collect()
    }

    async fn durably(&self, ask: impl FnOnce(&Log, Done)) -> io::Result<()> {
        let (done, finished) = oneshot::channel();
        ask(
            &self.log,
            Box::new(move |result| {
                // Nobody waits any more when the node is stopping.
                let _ = done.send(result);
            }),
        );
        finished
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }
}

fn into_io(error: LogError) -> io::Error {
    io::Error::other(error)
}

fn bounds(range: &impl RangeBounds<u64>) -> std::ops::Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<RaftEntry>> {
        self.read(bounds(&range), u64::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        self.read(start..end, MAX_MESSAGE_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        Ok(self.log.vote().map(from_vote))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let bounds = self.log.bounds();
        Ok(LogState {
            last_purged_log_id: bounds.last_purged.map(from_log_id),
            last_log_id: bounds.last.map(from_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        let vote = to_vote(vote);
        self.durably(|log, done| log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        self.log.save_committed(committed.as_ref().map(to_log_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        Ok(self.log.committed().map(from_log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(to_entry).collect();
        let last = entries.last().map(|entry| entry.log_id.index);
        let durable = self.durable.clone();
        let done = Box::new(move |result: io::Result<()>| {
            match (&result, last) {
                (Ok(()), Some(last)) => drop(durable.send_replace(Some(last + 1))),
                (Ok(()), None) => {}
                (Err(_), _) => drop(durable.send_replace(None)),
            }
            callback.io_completed(result);
        });
        self.log.append(entries, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let last = last.as_ref().map(to_log_id);
        self.durably(|log, done| log.truncate_after(last, done))
            .await?;
        let next = last.map_or(0, |last| last.index + 1);
        self.durable.send_replace(Some(next));
        Ok(())
    }

    /// Does not wait: an entry that is still there after a crash is purged again.
    async fn purge(&mut self, upto: LogIdOf<Types>) -> io::Result<()> {
        let failed = |result: io::Result<()>| {
            if let Err(error) = result {
                tracing::error!(
                    MESSAGE_ID = events::STORAGE_FAILED,
                    "The Raft log could not be purged: {error}"
                );
            }
        };
        self.log.purge(to_log_id(&upto), Box::new(failed));
        Ok(())
    }
}
