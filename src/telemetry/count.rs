//! What the process has done, counted and timed, for `/metrics`.
//!
//! These belong to the process, as the log does: whoever does something counts
//! it where it is done, without being handed anything for it, at the price of
//! one or two atomic additions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Transactions of the Raft log: from the first entry written to its commit.
pub static LOG_WRITES: Times = Times::new();
/// `fdatasync` of the Raft log, the better part of a transaction.
pub static LOG_SYNCS: Times = Times::new();
/// Checkpoints of SQLite's write-ahead log that emptied it.
pub static CHECKPOINTS: Times = Times::new();
/// Snapshots made: what was applied became durable, so that the log may be shortened.
pub static SNAPSHOTS_MADE: Times = Times::new();
/// Snapshots that another node got and installed.
pub static SNAPSHOTS_SENT: Times = Times::new();
/// Snapshots of the leader that replaced this node's state.
pub static SNAPSHOTS_INSTALLED: Times = Times::new();
/// Backups that a client got to the end.
pub static BACKUPS: Times = Times::new();
/// Backups that were not made, or not taken to the end.
pub static BACKUPS_FAILED: Count = Count::new();
/// How often this node learnt of another leader than before, itself included.
pub static LEADER_CHANGES: Count = Count::new();
/// Connections to the API that are open.
pub static CONNECTIONS: Count = Count::new();
/// Connections to the API that there may be.
pub static CONNECTIONS_MOST: Count = Count::new();
/// Handshakes of TLS with clients that failed.
pub static HANDSHAKES_FAILED: Count = Count::new();
/// When the certificate that clients see ends, in seconds since 1970; 0 where there is none.
pub static CERTIFICATE_ENDS: Count = Count::new();
/// The same of the certificate that other nodes see.
pub static PEER_CERTIFICATE_ENDS: Count = Count::new();

/// Upper bounds of what is told apart, in nanoseconds: from a read in memory to
/// the longest that a request may take.
const BOUNDS: [u64; 17] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// A number that goes up, or that is set.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Another number.
    pub fn set(&self, number: u64) {
        self.0.store(number, Relaxed);
    }

    /// One more until the value is dropped.
    #[must_use]
    pub fn held(&'static self) -> Held {
        self.inc();
        Held(self)
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is counted while it lasts.
#[derive(Debug)]
pub struct Held(&'static Count);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// How long something took, each time: a histogram.
#[derive(Debug)]
pub struct Times {
    /// By the first bound that is not below; the last are those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

/// A histogram as it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// All times together, in seconds.
    pub sum: f64,
    /// How often.
    pub count: u64,
    /// The upper bounds in seconds, each with how often it took no longer than
    /// that and longer than the bound before; the last is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl Default for Times {
    fn default() -> Self {
        Self::new()
    }
}

impl Times {
    /// Nothing has happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1],
            nanoseconds: AtomicU64::new(0),
        }
    }

    /// It happened, and took so long.
    pub fn observe(&self, time: Duration) {
        // 584 years do not end in a wrong number.
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let place = BOUNDS.iter().position(|bound| nanoseconds <= *bound);
        self.counts[place.unwrap_or(BOUNDS.len())].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// All of it. What happens meanwhile may be in one number and not yet in another.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // seconds need no more
    pub fn told(&self) -> Told {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e9);
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        Told {
            sum: self.nanoseconds.load(Relaxed) as f64 / 1e9,
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_where_the_first_bound_is_not_below_it() {
        let times = Times::new();
        for microseconds in [0, 100, 101, 250, 31_000_000] {
            times.observe(Duration::from_micros(microseconds));
        }
        let told = times.told();
        assert_eq!(told.count, 5);
        assert!((told.sum - 31.000_451).abs() < 1e-9, "{told:?}");
        assert_eq!(told.buckets[..3], [(0.0001, 2), (0.000_25, 2), (0.0005, 0)]);
        assert_eq!(told.buckets.last(), Some(&(f64::INFINITY, 1)));
    }

    #[test]
    fn a_time_beyond_all_numbers_is_counted_and_stops_nobody() {
        let times = Times::new();
        times.observe(Duration::MAX);
        assert_eq!(times.told().count, 1);
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        static OPEN: Count = Count::new();
        let (first, second) = (OPEN.held(), OPEN.held());
        assert_eq!(OPEN.get(), 2);
        drop(first);
        assert_eq!(OPEN.get(), 1);
        drop(second);
        assert_eq!(OPEN.get(), 0);
    }
}
