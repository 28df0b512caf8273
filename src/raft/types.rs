//! The types that consensus runs on, and how they map to the records on disk.
//!
//! openraft's defaults for ids, votes and leader ids (`leader_id_adv`) are what
//! legacy nodes had, so the two sides hold the same fields; the golden bytes in
//! [`format::entry`](crate::format::entry) pin the records, and the tests below
//! that openraft's own encoding of these types is the same.

use std::collections::BTreeMap;
use std::io;

use openraft::errors::{NetworkError, RPCError, Unreachable};
use openraft::impls::leader_id_adv::LeaderId;
use openraft::impls::{BasicNode, Vote as RaftVote};
use openraft::{EntryPayload, LogId as RaftLogId, Membership as RaftMembership};

use super::peer::PeerError;
use crate::format::entry::{Entry, Outcome, Payload, Request, Vote};
use crate::format::record::{LogId, Membership, NodeAddress, StoredMembership};

openraft::declare_raft_types!(
    /// Node ids are numbers, nodes have one address, requests and outcomes are ours.
    pub(crate) Types:
        D = Request,
        R = Outcome,
);

pub(super) type Leader = LeaderId<u64, u64>;
pub(super) type Id = RaftLogId<Leader>;
pub(super) type RaftEntry = openraft::alias::EntryOf<Types>;
pub(super) type Stored = openraft::StoredMembership<Leader, u64, BasicNode>;
pub(super) type Members = RaftMembership<u64, BasicNode>;
pub(super) type Meta = openraft::SnapshotMeta<Leader, u64, BasicNode>;

/// A failed request as consensus takes it: it waits before it tries again, but
/// for answers that may come the next time.
pub(super) fn rpc_error(error: PeerError) -> RPCError<Types> {
    match error {
        PeerError::Unreached { .. }
        | PeerError::Timeout { .. }
        | PeerError::Forgot { .. }
        | PeerError::Nonsense { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        PeerError::Lost { .. } | PeerError::Closing { .. } => {
            RPCError::Network(NetworkError::new(&error))
        }
    }
}

pub(super) fn to_log_id(id: &Id) -> LogId {
    LogId {
        term: id.committed_leader_id().term,
        node_id: id.committed_leader_id().node_id,
        index: id.index(),
    }
}

pub(super) fn from_log_id(id: LogId) -> Id {
    let leader = Leader {
        term: id.term,
        node_id: id.node_id,
    };
    Id::new(leader, id.index)
}

pub(super) fn to_vote(vote: &RaftVote<Leader>) -> Vote {
    Vote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

pub(super) fn from_vote(vote: Vote) -> RaftVote<Leader> {
    match vote.committed {
        true => RaftVote::new_committed(vote.term, vote.node_id),
        false => RaftVote::new(vote.term, vote.node_id),
    }
}

pub(super) fn to_entry(entry: RaftEntry) -> Entry {
    Entry {
        log_id: to_log_id(&entry.log_id),
        payload: match entry.payload {
            EntryPayload::Blank => Payload::Blank,
            EntryPayload::Normal(request) => Payload::Normal(request),
            EntryPayload::Membership(members) => Payload::Membership(to_membership(&members)),
        },
    }
}

/// Fails on a membership that no node can have written.
pub(super) fn from_entry(entry: Entry) -> io::Result<RaftEntry> {
    Ok(RaftEntry {
        log_id: from_log_id(entry.log_id),
        payload: match entry.payload {
            Payload::Blank => EntryPayload::Blank,
            Payload::Normal(request) => EntryPayload::Normal(request),
            Payload::Membership(members) => EntryPayload::Membership(from_membership(&members)?),
        },
    })
}

pub(super) fn to_membership(members: &Members) -> Membership {
    let nodes = members.nodes().map(|(id, node)| {
        let addr = node.addr.clone();
        (*id, NodeAddress { addr })
    });
    Membership {
        configs: members.get_joint_config().clone(),
        nodes: nodes.collect(),
    }
}

pub(super) fn from_membership(members: &Membership) -> io::Result<Members> {
    let nodes: BTreeMap<u64, BasicNode> = members
        .nodes
        .iter()
        .map(|(id, node)| (*id, BasicNode::new(&node.addr)))
        .collect();
    if members.configs.is_empty() && nodes.is_empty() {
        return Ok(Members::default());
    }
    Members::new(members.configs.clone(), nodes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(super) fn from_stored(stored: &StoredMembership) -> io::Result<Stored> {
    let members = from_membership(&stored.membership)?;
    Ok(Stored::new(stored.log_id.map(from_log_id), members))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn to_stored(stored: &Stored) -> StoredMembership {
        StoredMembership {
            log_id: stored.log_id().as_ref().map(to_log_id),
            membership: to_membership(stored.membership()),
        }
    }

    fn entry(payload: Payload) -> Entry {
        let log_id = LogId {
            term: 5,
            node_id: 2,
            index: 7,
        };
        Entry { log_id, payload }
    }

    #[test]
    fn an_entry_goes_through_consensus_and_keeps_every_byte() {
        let joint = Membership {
            configs: vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            nodes: (1..=4)
                .map(|id| {
                    let addr = format!("10.0.0.{id}:7000");
                    (id, NodeAddress { addr })
                })
                .collect(),
        };
        let set = Request::Set {
            key: "k".into(),
            value: "v".into(),
        };
        for payload in [
            Payload::Blank,
            Payload::Normal(set),
            Payload::Membership(joint),
        ] {
            let entry = entry(payload);
            let raft = from_entry(entry.clone()).unwrap();
            let theirs = crate::format::record::encode_as_consensus_does(&raft).unwrap();
            assert_eq!(theirs, entry.encode().unwrap());
            assert_eq!(to_entry(raft), entry);
        }
    }

    #[test]
    fn a_vote_and_a_stored_membership_have_the_same_bytes_in_consensus() {
        for committed in [false, true] {
            let vote = Vote {
                term: 5,
                node_id: 2,
                committed,
            };
            let theirs = crate::format::record::encode_as_consensus_does(&from_vote(vote)).unwrap();
            assert_eq!(theirs, vote.encode().unwrap());
            assert_eq!(to_vote(&from_vote(vote)), vote);
        }
        let stored = StoredMembership {
            log_id: Some(entry(Payload::Blank).log_id),
            membership: Membership {
                configs: vec![BTreeSet::from([1])],
                nodes: BTreeMap::from([(1, NodeAddress { addr: "a:1".into() })]),
            },
        };
        let raft = from_stored(&stored).unwrap();
        let theirs = crate::format::record::encode_as_consensus_does(&raft).unwrap();
        let ours = crate::format::record::encode_membership(&stored).unwrap();
        assert_eq!(theirs, ours);
        assert_eq!(to_stored(&raft), stored);
    }

    #[test]
    fn a_voter_without_an_address_is_damage() {
        let members = Membership {
            configs: vec![BTreeSet::from([1])],
            nodes: BTreeMap::new(),
        };
        assert!(from_membership(&members).is_err());
    }
}
