//! The records of the Raft log, encoded as [`record`]'s are:
//! bincode 1.3, little-endian, fixed-width, enum variants as `u32` in the order
//! below. Legacy nodes wrote the first variants; later ones are only ever
//! appended, so that every log ever written still reads.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::record::{self, LogId, Membership, RecordError};

/// Key of the vote in the log's metadata table: a [`Vote`].
pub const VOTE: &str = "vote";
/// Key of the last committed position in the log's metadata table: a [`LogId`].
pub const COMMITTED: &str = "committed";
/// Key of the last purged position in the log's metadata table: a [`LogId`].
pub const LAST_PURGED: &str = "last_purged_log_id";

/// Whom this node voted for, or which leader it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The term of the vote.
    pub term: u64,
    /// The candidate or leader.
    pub node_id: u64,
    /// Whether a quorum granted it, which makes it a leader.
    pub committed: bool,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub log_id: LogId,
    /// What it does.
    pub payload: Payload,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Nothing: a new leader's first entry.
    Blank,
    /// Changes the data.
    Normal(Request),
    /// Changes the members.
    Membership(Membership),
}

/// What a write asks for. It was validated before it entered the log: applying
/// it cannot fail.
pub type Request = Change<Box<Idempotent>>;

/// A write that asks for nothing but a change of the data.
pub type Plain = Change<Never>;

/// A change of the data, or what is made of one: `O`, which in turn holds a
/// change that is nothing else, so that no record nests deeper than this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<O> {
    /// Sets one key.
    Set {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// Sets several keys at once; of a key that stands twice the last value counts.
    SetMulti {
        /// Keys and values.
        pairs: Vec<(String, String)>,
    },
    /// Removes one key.
    Delete {
        /// The key.
        key: String,
    },
    /// Sets one key if it holds what is expected.
    CompareAndSet {
        /// The key.
        key: String,
        /// What it must hold; `None` means that it must not exist.
        expect: Option<String>,
        /// Its new value.
        value: String,
    },
    /// Sets and removes several keys at once; no key stands twice.
    Batch {
        /// Keys and values to set.
        set: Vec<(String, String)>,
        /// Keys to remove.
        delete: Vec<String>,
    },
    /// Another change, once.
    Idempotent(O),
}

/// A change that is made once, however often it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotent {
    /// The client's name for this request, as [`idempotency`](super::idempotency) takes it.
    pub key: String,
    /// xxh3-128 of the change's bytes: tells a repetition from another request
    /// under the same key. It is part of the entry, so that all nodes agree on it.
    pub fingerprint: u128,
    /// The change.
    pub change: Plain,
}

/// There is none: a change of this kind is one of the plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl Idempotent {
    /// The request that makes `change` once under `key`.
    ///
    /// # Errors
    /// Never for what can be built in memory; bincode's signature has it.
    pub fn new(key: String, change: Plain) -> Result<Self, RecordError> {
        let fingerprint = xxhash_rust::xxh3::xxh3_128(&record::encode("request", &change)?);
        Ok(Self {
            key,
            fingerprint,
            change,
        })
    }
}

impl From<Plain> for Request {
    fn from(plain: Plain) -> Self {
        match plain {
            Change::Set { key, value } => Self::Set { key, value },
            Change::SetMulti { pairs } => Self::SetMulti { pairs },
            Change::Delete { key } => Self::Delete { key },
            Change::CompareAndSet { key, expect, value } => {
                Self::CompareAndSet { key, expect, value }
            }
            Change::Batch { set, delete } => Self::Batch { set, delete },
            Change::Idempotent(never) => match never {},
        }
    }
}

impl Request {
    /// Bytes of its keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes_with(|once| {
            let change = once.change.bytes_with(|never| match *never {});
            once.key.len() + change
        })
    }
}

impl<O> Change<O> {
    fn bytes_with(&self, other: impl FnOnce(&O) -> usize) -> usize {
        let all = |pairs: &[(String, String)]| pairs.iter().map(|(k, v)| k.len() + v.len()).sum();
        match self {
            Self::Set { key, value } => key.len() + value.len(),
            Self::SetMulti { pairs } => all(pairs),
            Self::Delete { key } => key.len(),
            Self::CompareAndSet { key, expect, value } => {
                key.len() + expect.as_ref().map_or(0, String::len) + value.len()
            }
            Self::Batch { set, delete } => all(set) + delete.iter().map(String::len).sum::<usize>(),
            Self::Idempotent(once) => other(once),
        }
    }
}

/// The kind and size only: keys and values belong into no log.
impl<O: fmt::Display> fmt::Display for Change<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { .. } => f.write_str("set"),
            Self::SetMulti { pairs } => write!(f, "set of {} keys", pairs.len()),
            Self::Delete { .. } => f.write_str("delete"),
            Self::CompareAndSet { .. } => f.write_str("compare-and-set"),
            Self::Batch { set, delete } => {
                write!(f, "batch of {} keys", set.len() + delete.len())
            }
            Self::Idempotent(once) => once.fmt(f),
        }
    }
}

impl fmt::Display for Idempotent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, once", self.change)
    }
}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was applied; of a delete or a batch, so many keys were there to remove.
    Done {
        /// Number of keys that existed and are gone.
        deleted: u64,
    },
    /// A compare-and-set found something else and changed nothing.
    Conflict {
        /// What the key holds.
        current: Option<String>,
    },
    /// An idempotent request had been applied before; nothing was done again.
    ReplayedDone {
        /// The entry that applied it.
        index: u64,
        /// Number of keys that existed and were gone then.
        deleted: u64,
    },
    /// The same, where it had found something else and changed nothing.
    ReplayedConflict {
        /// The entry that found it.
        index: u64,
        /// What the key held.
        current: Option<String>,
    },
    /// Another request had the same idempotency key; nothing was done.
    KeyReused,
}

impl Entry {
    /// Its bytes in the log.
    ///
    /// # Errors
    /// Never for what can be built in memory; bincode's signature has it.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        record::encode("entry", self)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// When the bytes are not exactly one entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        record::decode("entry", bytes)
    }
}

impl Vote {
    /// Its bytes in the metadata table.
    ///
    /// # Errors
    /// Never in practice, as for [`Entry::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        record::encode(VOTE, self)
    }

    /// Reads a vote.
    ///
    /// # Errors
    /// When the bytes are not exactly one vote.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        record::decode(VOTE, bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn position() -> Vec<u8> {
        [5_u64, 2, 7].iter().flat_map(|n| n.to_le_bytes()).collect()
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn golden(payload: Payload, parts: &[&[u8]]) {
        let log_id = LogId {
            term: 5,
            node_id: 2,
            index: 7,
        };
        let entry = Entry { log_id, payload };
        let bytes: Vec<u8> = [position(), parts.concat()].concat();
        assert_eq!(entry.encode().unwrap(), bytes);
        assert_eq!(Entry::decode(&bytes).unwrap(), entry);
        for length in 0..bytes.len() {
            assert!(Entry::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn every_entry_has_these_bytes_for_ever() {
        let normal = |kind: u32| [1_u32.to_le_bytes(), kind.to_le_bytes()].concat();
        let one = 1_u64.to_le_bytes();
        let (key, value) = ("k".to_owned(), "vv".to_owned());
        let pair = [text("k"), text("vv")].concat();
        golden(Payload::Blank, &[&[0; 4]]);
        let set = Request::Set {
            key: key.clone(),
            value: value.clone(),
        };
        golden(Payload::Normal(set), &[&normal(0), &pair]);
        let pairs = vec![(key.clone(), value.clone())];
        let multi = Request::SetMulti {
            pairs: pairs.clone(),
        };
        golden(Payload::Normal(multi), &[&normal(1), &one, &pair]);
        let delete = Request::Delete { key: key.clone() };
        golden(Payload::Normal(delete), &[&normal(2), &text("k")]);
        let compare = Request::CompareAndSet {
            key: key.clone(),
            expect: Some("e".into()),
            value,
        };
        let expect = [vec![1], text("e")].concat();
        golden(
            Payload::Normal(compare),
            &[&normal(3), &text("k"), &expect, &text("vv")],
        );
        let batch = Request::Batch {
            set: pairs,
            delete: vec![key],
        };
        golden(
            Payload::Normal(batch),
            &[&normal(4), &one, &pair, &one, &text("k")],
        );
        golden(
            Payload::Membership(Membership::default()),
            &[&2_u32.to_le_bytes(), &[0; 16]],
        );
        let delete = Change::Delete { key: "k".into() };
        let once = Idempotent::new("once".into(), delete).unwrap();
        let fingerprint = [
            101, 1, 202, 205, 96, 6, 65, 19, 210, 226, 133, 245, 205, 39, 107, 80,
        ];
        golden(
            Payload::Normal(Request::Idempotent(Box::new(once))),
            &[
                &normal(5),
                &text("once"),
                &fingerprint,
                &2_u32.to_le_bytes(),
                &text("k"),
            ],
        );
    }

    /// A record that nests without end would be read until the stack is used up.
    #[test]
    fn a_request_that_is_to_happen_once_holds_a_plain_one() {
        let once = [&5_u32.to_le_bytes()[..], &text(""), &[0; 16]].concat();
        let nested = [
            position(),
            1_u32.to_le_bytes().to_vec(),
            once.repeat(100_000),
        ];
        assert!(Entry::decode(&nested.concat()).is_err());
    }

    #[test]
    fn the_fingerprint_depends_on_every_part_of_the_change_and_not_on_the_key() {
        let fingerprint = |key: &str, change: Plain| {
            let once = Idempotent::new(key.to_owned(), change);
            once.unwrap().fingerprint
        };
        let set = |key: &str, value: &str| Change::Set {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let compare = |expect: Option<&str>| Change::CompareAndSet {
            key: "a".into(),
            expect: expect.map(str::to_owned),
            value: "b".into(),
        };
        let first = fingerprint("1", set("a", "b"));
        assert_eq!(fingerprint("2", set("a", "b")), first);
        let others = [
            set("ab", ""),
            set("", "ab"),
            compare(None),
            compare(Some("")),
            Change::Delete { key: "a".into() },
        ];
        let mut all: Vec<_> = others.map(|change| fingerprint("1", change)).into();
        all.push(first);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
    }

    #[test]
    fn a_legacy_vote_is_17_bytes() {
        let bytes = [&position()[..16], &[1]].concat();
        let vote = Vote {
            term: 5,
            node_id: 2,
            committed: true,
        };
        assert_eq!(vote.encode().unwrap(), bytes);
        assert_eq!(Vote::decode(&bytes).unwrap(), vote);
        assert!(Vote::decode(&bytes[..16]).is_err());
    }
}
