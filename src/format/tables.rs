//! The tables of a legacy redb state machine and of the Raft log.

/// Keys and values: `&str` to `&str`.
pub const KV: &str = "sm_kv";
/// Raft metadata, as [`record`](super::record) encodes it: `&str` to `&[u8]`.
pub const META: &str = "sm_meta";
/// Snapshots: `&str` to `&[u8]`. Derived data, and wrong in every legacy file
/// (the recorded log id is shifted by one byte), so nothing reads it.
pub const SNAPSHOTS: &str = "snapshots";
/// In the log's own file the entries, as [`entry`](super::entry) encodes them:
/// `u64` to `&[u8]`. Legacy nodes made it in the state machine too, always empty.
pub const RAFT_LOG: &str = "raft_log";
/// In the log's own file vote, committed and purged position: `&str` to
/// `&[u8]`. Legacy nodes made it in the state machine too, always empty.
pub const RAFT_META: &str = "raft_meta";
