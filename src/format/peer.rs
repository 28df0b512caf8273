//! What nodes say to each other, in the encoding of [`record`]:
//! bincode 1.3, little-endian, fixed-width. [`PROTOCOL`] counts the versions;
//! nodes of different versions refuse each other, so that a message never has
//! to be guessed at. Variants are only ever appended within a version.
//!
//! Nothing here has been checked beyond its shape: who sent it may still lie.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::entry::{Entry, Outcome, Request, Vote};
use super::record::{self, LogId, RecordError, StoredMembership};

/// The version of all that is below.
pub const PROTOCOL: u32 = 1;

/// Length of a nonce and of a proof, in bytes.
pub const PROOF: usize = 32;

/// The first message on a connection, from the one who connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`]; it stays the first field in every version.
    pub protocol: u32,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Its node id.
    pub from: u64,
    /// The node that it means to reach.
    pub to: u64,
    /// Random, never used before.
    pub nonce: [u8; PROOF],
    /// Which data it has: random, made with its data directory.
    pub incarnation: u128,
    /// Whether it made the cluster's id from legacy data, and nobody has confirmed it.
    pub provisional: bool,
    /// Index of the membership that it knows.
    pub members_at: Option<u64>,
    /// Its own address in that membership, and that of whom it means to reach.
    pub addresses: [String; 2],
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Challenge {
    /// There will be no connection, and why.
    Refused(String),
    /// Prove that you know the secret; I do.
    Prove {
        /// Random, never used before.
        nonce: [u8; PROOF],
        /// That the answering node knows the secret.
        proof: [u8; PROOF],
    },
}

/// The answer to [`Challenge::Prove`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(pub [u8; PROOF]);

/// The last word of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// There will be no connection, and why.
    Refused(String),
    /// Requests may follow.
    Accepted {
        /// Which data the one who listens has.
        incarnation: u128,
    },
    /// The same, and the cluster's id is this one.
    Adopt {
        /// Which data the one who listens has.
        incarnation: u128,
        /// The cluster.
        cluster: String,
    },
    /// There will be no connection: a node of this id was met before with other data.
    Barred(String),
}

/// A request for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidacy {
    /// What the candidate asks for.
    pub vote: Vote,
    /// Its last entry.
    pub last_log_id: Option<LogId>,
    /// Whether the leader has asked it to take over.
    pub transfer: bool,
}

/// A request with one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Vote for me; answered by [`Answer::Voted`].
    Vote(Candidacy),
    /// Would you vote for me; answered by [`Answer::Voted`].
    PreVote(Candidacy),
    /// The leader hands over; answered by [`Answer::Transferred`].
    Transfer {
        /// The leader that hands over.
        from: Vote,
        /// Who shall lead.
        to: u64,
        /// What it must have for that.
        last_log_id: Option<LogId>,
    },
    /// Writes for the leader; answered by [`Answer::Written`].
    Write(Vec<Request>),
    /// Up to where has a reader to wait; answered by [`Answer::ReadIndex`].
    ReadIndex,
    /// What an operator wants, for the leader; answered by [`Answer::Commanded`].
    Command(Command),
    /// As [`Call::ReadIndex`], confirmed by the leader's lease.
    LeaseRead,
}

/// What an operator wants the leader to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Hand leadership over: to this voter, or to the best one.
    Lead(Option<u64>),
    /// Who the members are and how they are.
    Members,
    /// Have this node be a member, at this address.
    SetMember {
        /// Its id.
        id: u64,
        /// Where its peers reach it.
        peer: String,
        /// Whether it shall vote.
        voter: bool,
    },
    /// Have this node be no member.
    RemoveMember(u64),
    /// Say whether this node may restart now.
    MayRestart(u64),
}

/// The answer to a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To a request for a vote.
    Voted {
        /// The vote that is in effect now.
        vote: Vote,
        /// Whether the candidate got it.
        granted: bool,
        /// The voter's last entry.
        last_log_id: Option<LogId>,
    },
    /// To a transfer.
    Transferred(Transferred),
    /// To writes: what became of each, in their order.
    Written(Vec<Fate>),
    /// The entry that has to be applied before a read; `None` from one who does not lead.
    ReadIndex(Option<LogId>),
    /// To a command.
    Commanded(Result<Commanded, Refusal>),
    /// To one who is not a member, according to the membership at this index.
    NoMember(u64),
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Commanded {
    /// Who leads now, and in which term.
    Leads {
        /// Its id.
        leader: u64,
        /// Its term.
        term: u64,
    },
    /// The members, as the leader knows them.
    Members {
        /// The leader.
        leader: u64,
        /// The members, by id.
        members: Vec<MemberState>,
    },
    /// Why the node must not restart now; none if it may.
    Restart(Option<String>),
}

/// A member, as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// Its id.
    pub id: u64,
    /// Where its peers reach it.
    pub peer: String,
    /// Whether it votes.
    pub voter: bool,
    /// How many entries it is behind.
    pub lag: Option<u64>,
    /// Milliseconds since it was last heard of.
    pub silent_ms: Option<u64>,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Nothing was done: this is not the leader.
    NotLeader,
    /// Nothing was done: there is no such member.
    NoMember(String),
    /// Nothing was done: the cluster must not change like that.
    Refused(String),
    /// It is not done yet; asked again later, it may be.
    NotYet(String),
    /// It may or may not happen.
    Unconfirmed,
}

/// What became of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transferred {
    /// It is under way.
    Accepted,
    /// Another vote came between.
    VoteChanged(Vote),
    /// The entries that it takes are not there yet.
    Behind(Option<LogId>),
}

/// What became of a forwarded write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is durable on a majority and applied on the leader.
    Written {
        /// Its index in the log.
        index: u64,
        /// What it did.
        outcome: Outcome,
    },
    /// Nothing was done: this is not the leader.
    NotLeader,
    /// Nothing was done: the leader's disk is full.
    DiskFull(String),
    /// It may or may not happen.
    Unconfirmed,
}

/// A message from the leader in a stream of them; each is answered by an [`Appended`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The leader.
    pub vote: Vote,
    /// The entry before the first of `entries`.
    pub prev: Option<LogId>,
    /// The last entry that a majority has.
    pub committed: Option<LogId>,
    /// None in a heartbeat.
    pub entries: Vec<Entry>,
}

/// The answer to an [`Append`]. All but the first end the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Appended {
    /// All up to here is durable.
    Upto(Option<LogId>),
    /// This entry is not there.
    Conflict(LogId),
    /// There is a newer leader or candidate.
    HigherVote(Vote),
}

/// The first message of a snapshot; its bytes follow, from where the answer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The leader.
    pub vote: Vote,
    /// The last entry in it.
    pub last_applied: Option<LogId>,
    /// The membership in it.
    pub membership: StoredMembership,
    /// Its length.
    pub bytes: u64,
    /// XXH3-128 of all its bytes, which also tells it from every other one.
    pub digest: u128,
}

/// The answers to a snapshot: first where to begin, then, when it is installed, the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotAnswer {
    /// Send the bytes from here.
    From(u64),
    /// It is installed, or not needed, or from a leader of the past, as the vote in effect tells.
    Done(Vote),
}

/// A message's bytes.
///
/// # Errors
/// Never for what can be built in memory; bincode's signature has it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, RecordError> {
    record::encode("message", message)
}

/// Reads a message.
///
/// # Errors
/// When the bytes are not exactly one such message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    record::decode("message from a peer", bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_hello_has_these_bytes_in_this_version() {
        let hello = Hello {
            protocol: PROTOCOL,
            cluster: "c".into(),
            from: 2,
            to: 3,
            nonce: [7; PROOF],
            incarnation: 5,
            provisional: true,
            members_at: Some(9),
            addresses: ["a".into(), String::new()],
        };
        let mut bytes = vec![1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'c'];
        bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([7; PROOF]);
        bytes.extend(5_u128.to_le_bytes());
        bytes.extend([1, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode(&hello).unwrap(), bytes);
        assert_eq!(decode::<Hello>(&bytes).unwrap(), hello);
        for length in 0..bytes.len() {
            assert!(decode::<Hello>(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn a_length_that_lies_asks_for_no_memory() {
        let lie = [4, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(decode::<Call>(&lie).is_err());
        assert!(decode::<Append>(&[255; 64]).is_err());
    }
}
