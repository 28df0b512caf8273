//! Who leads and who is a member, told in the log when it changes, so that
//! "who led when" has an answer on every node.

use std::collections::BTreeMap;

use openraft::async_runtime::WatchReceiver as _;
use tokio::task::AbortHandle;

use super::reads::Raft;
use super::types::Stored;
use crate::telemetry::{count, events};

/// A member: where its peers reach it, and whether it votes.
type Part = (String, bool);

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    term: u64,
    leader: Option<u64>,
    members: BTreeMap<u64, Part>,
}

/// Starts watching. What there is at the start is told of the leader, and not
/// of the members, which have been told when they became such.
pub(super) fn start(raft: &Raft, id: u64) -> AbortHandle {
    let mut metrics = raft.server_metrics();
    let watching = tokio::spawn(async move {
        let mut told = Told {
            members: members(&metrics.borrow_watched().membership_config).unwrap_or_default(),
            ..Told::default()
        };
        loop {
            let (term, leader, members) = {
                let now = metrics.borrow_watched();
                let members = members(&now.membership_config);
                (now.vote.leader_id.term, now.current_leader, members)
            };
            told.leader(id, term, leader);
            if let Some(members) = members {
                told.members(members);
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    });
    watching.abort_handle()
}

/// The members; `None` while one membership gives way to another.
fn members(stored: &Stored) -> Option<BTreeMap<u64, Part>> {
    let membership = stored.membership();
    if membership.get_joint_config().len() > 1 {
        return None;
    }
    let voters: Vec<_> = membership.voter_ids().collect();
    let part = |(id, node): (&u64, &openraft::BasicNode)| {
        let votes = voters.contains(id);
        (*id, (node.addr.clone(), votes))
    };
    Some(membership.nodes().map(part).collect())
}

impl Told {
    /// Tells who leads, where that is news.
    fn leader(&mut self, id: u64, term: u64, leader: Option<u64>) {
        let news = leader != self.leader || (leader.is_some() && term != self.term);
        if !news {
            return;
        }
        if self.leader == Some(id) && leader != Some(id) {
            tracing::info!(
                target: "aspen::raft",
                MESSAGE_ID = events::LEADERSHIP_LOST,
                ASPEN_LEADER = leader,
                ASPEN_TERM = term,
                "This node, {id}, leads no more; it is term {term}"
            );
        }
        match leader {
            Some(leader) if leader == id => tracing::info!(
                target: "aspen::raft",
                MESSAGE_ID = events::LEADERSHIP_GAINED,
                ASPEN_LEADER = leader,
                ASPEN_TERM = term,
                "This node, {id}, leads in term {term}"
            ),
            Some(leader) => tracing::info!(
                target: "aspen::raft",
                MESSAGE_ID = events::LEADER_CHANGED,
                ASPEN_LEADER = leader,
                ASPEN_TERM = term,
                "Node {leader} leads in term {term}"
            ),
            None => tracing::warn!(
                target: "aspen::raft",
                MESSAGE_ID = events::LEADER_UNKNOWN,
                ASPEN_TERM = term,
                "No leader is known; it is term {term}"
            ),
        }
        if leader.is_some() {
            count::LEADER_CHANGES.inc();
        }
        (self.term, self.leader) = (term, leader);
    }

    /// Tells what has become of each member.
    fn members(&mut self, members: BTreeMap<u64, Part>) {
        for (id, part) in &members {
            match self.members.get(id) {
                Some(before) if before == part => {}
                Some(_) => tell(events::MEMBER_CHANGED, "is now", *id, part),
                None => tell(events::MEMBER_ADDED, "has come as", *id, part),
            }
        }
        for id in self.members.keys().filter(|id| !members.contains_key(id)) {
            tracing::info!(
                target: "aspen::raft",
                MESSAGE_ID = events::MEMBER_REMOVED,
                ASPEN_MEMBER = id,
                "Node {id} is no member of the cluster any more"
            );
        }
        self.members = members;
    }
}

fn tell(message_id: &str, verb: &str, id: u64, (address, votes): &Part) {
    let part = if *votes { "a voter" } else { "a learner" };
    tracing::info!(
        target: "aspen::raft",
        MESSAGE_ID = message_id,
        ASPEN_MEMBER = id,
        ASPEN_PEER_ADDRESS = address,
        ASPEN_VOTER = u8::from(*votes),
        "Node {id} at {address} {verb} {part}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::text_of;

    #[test]
    fn leaders_are_told_once_each_term_and_their_loss_too() {
        let lines = text_of("info", || {
            let mut told = Told::default();
            for (term, leader) in [
                (1, None),
                (1, Some(2)),
                (1, Some(2)),
                (2, None),
                (2, Some(1)),
                (3, Some(1)),
                (4, Some(3)),
                (5, None),
            ] {
                told.leader(1, term, leader);
            }
        });
        assert_eq!(
            lines,
            [
                " INFO aspen::raft: Node 2 leads in term 1",
                " WARN aspen::raft: No leader is known; it is term 2",
                " INFO aspen::raft: This node, 1, leads in term 2",
                " INFO aspen::raft: This node, 1, leads in term 3",
                " INFO aspen::raft: This node, 1, leads no more; it is term 4",
                " INFO aspen::raft: Node 3 leads in term 4",
                " WARN aspen::raft: No leader is known; it is term 5",
            ]
        );
    }

    #[test]
    fn members_are_told_when_they_come_change_and_go() {
        let part = |address: &str, votes| (address.to_owned(), votes);
        let lines = text_of("info", || {
            let mut told = Told::default();
            let one = (1, part("a:1", true));
            told.members(BTreeMap::from([one.clone()]));
            told.members(BTreeMap::from([one.clone()]));
            told.members(BTreeMap::from([one.clone(), (2, part("b:1", false))]));
            told.members(BTreeMap::from([one.clone(), (2, part("b:1", true))]));
            told.members(BTreeMap::from([one]));
        });
        assert_eq!(
            lines,
            [
                " INFO aspen::raft: Node 1 at a:1 has come as a voter",
                " INFO aspen::raft: Node 2 at b:1 has come as a learner",
                " INFO aspen::raft: Node 2 at b:1 is now a voter",
                " INFO aspen::raft: Node 2 is no member of the cluster any more",
            ]
        );
    }
}
