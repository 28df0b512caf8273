//! How long nodes wait for each other, in parts of `raft.election_timeout_ms`.
//!
//! A voter that has heard of its leader elects nobody for [`VOTERS_LEASE`]. Then it waits
//! for a time of its own, between [`SHORTEST_WAIT`] and as long again as the lease
//! (openraft takes one number for both), before it asks for votes. So a leader may
//! be silent for 1.1 election timeouts, and is replaced before 1.4 of them and a
//! round of votes are over; if two ask at once and neither wins, before 2.1.
//!
//! A voter that was restarted has forgotten of which leader it heard, and when: it holds
//! still for the whole lease (`promise`).
//!
//! Three heartbeats fit into an election timeout, so the shortest wait is longer
//! than one, which openraft insists on.

use std::time::Duration;

/// So many hundredths of the election timeout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part(u32);

impl Part {
    pub(super) fn of(self, election: Duration) -> Duration {
        election * self.0 / 100
    }
}

/// How long a voter that has heard of its leader elects no other, and how long a leader
/// leads that hears of no majority.
pub(super) const VOTERS_LEASE: Part = Part(70);

/// The shortest time that a voter waits after its lease before it wants to lead.
pub(super) const SHORTEST_WAIT: Part = Part(40);

/// How old the answers of a majority may be on which a leader reads by its lease: less than
/// half of [`VOTERS_LEASE`], which is the margin for clocks that run at different rates.
pub(super) const READERS_LEASE: Part = Part(33);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_for_reads_ends_before_half_of_that_for_votes() {
        for milliseconds in [50, 300, 1_000, 60_000] {
            let election = Duration::from_millis(milliseconds);
            assert!(2 * READERS_LEASE.of(election) < VOTERS_LEASE.of(election));
        }
    }

    #[test]
    fn a_dead_leader_is_replaced_within_two_election_timeouts() {
        let election = Duration::from_secs(1);
        let longest = 2 * VOTERS_LEASE.of(election);
        assert!(longest > election && longest < election * 3 / 2);
        assert!(VOTERS_LEASE.of(election) + SHORTEST_WAIT.of(election) > election);
    }
}
