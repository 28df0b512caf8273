//! The Raft log, in redb. (Skeleton: the interface is settled, the rest is being built.)

use std::path::Path;

use crate::format::entry::{Entry, Vote};
use crate::format::record::LogId;

/// Called once, when an operation is durable or has failed for good.
pub type Done = Box<dyn FnOnce(std::io::Result<()>) + Send>;

/// Where the log begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The last entry that was purged.
    pub last_purged: Option<LogId>,
    /// The last entry that is there, or else `last_purged`.
    pub last: Option<LogId>,
}

/// An open log; a cheap handle that may be cloned. Operations are carried out
/// in the order in which they were asked for, many in one transaction.
#[derive(Clone)]
pub struct Log {}

impl Log {
    /// Opens the log at `path`, or makes an empty one.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let _ = path;
        todo!()
    }
    /// Where it begins and ends, with all that was asked for.
    pub fn bounds(&self) -> Bounds {
        todo!()
    }
    /// The last vote that was asked to be saved.
    pub fn vote(&self) -> Option<Vote> {
        todo!()
    }
    /// The last committed position that was asked to be saved.
    pub fn committed(&self) -> Option<LogId> {
        todo!()
    }
    /// Saves the vote; `done` when it is durable.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        let _ = (vote, done);
        todo!()
    }
    /// Saves the committed position together with the next durable operation.
    pub fn save_committed(&self, committed: Option<LogId>) {
        let _ = committed;
        todo!()
    }
    /// Appends; the entries can be read at once, `done` when they are durable.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        let _ = (entries, done);
        todo!()
    }
    /// Removes what lies behind `last`.
    pub fn truncate_after(&self, last: Option<LogId>, done: Done) {
        let _ = (last, done);
        todo!()
    }
    /// Removes what lies up to `upto`, inclusive; the entries need not exist.
    pub fn purge(&self, upto: LogId, done: Done) {
        let _ = (upto, done);
        todo!()
    }
    /// The entries in `range` that are there, in their order, without a gap, up to
    /// about `max_bytes`, but at least one if there is one.
    pub fn read(
        &self,
        range: std::ops::Range<u64>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let _ = (range, max_bytes);
        todo!()
    }
    /// As [`read`](Self::read), if all of it is in memory: never blocks.
    pub fn read_recent(&self, range: std::ops::Range<u64>, max_bytes: u64) -> Option<Vec<Entry>> {
        let _ = (range, max_bytes);
        todo!()
    }
    /// A record of the metadata table beyond Raft's own, such as the node's identity.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, LogError> {
        let _ = name;
        todo!()
    }
    /// Sets such a record, durably.
    pub fn set_meta(&self, name: &str, value: &[u8]) -> Result<(), LogError> {
        let _ = (name, value);
        todo!()
    }
    /// Why nothing can be written at the moment, if so: the disk is full, and the log tries again.
    pub fn stalled(&self) -> Option<String> {
        todo!()
    }
    /// The lowest index such that the entries from there on take about `bytes` at most.
    pub fn index_for_last(&self, bytes: u64) -> u64 {
        let _ = bytes;
        todo!()
    }
    /// What the file takes, in bytes.
    pub fn file_bytes(&self) -> u64 {
        todo!()
    }
    /// Finishes what was asked for and closes the file.
    pub fn close(&self) -> Result<(), LogError> {
        todo!()
    }
}

/// Why the log cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {}

impl LogError {
    /// The exit code that fits.
    pub fn exit(&self) -> crate::exit::Exit {
        crate::exit::Exit::Io
    }
}
