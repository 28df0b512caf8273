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
/// What idempotent writes did, `u64` to `(&str, &[u8])`: the index of the entry
/// to the client's key and the record, as [`idempotency`](super::idempotency)
/// encodes it. Made with the first such write; legacy nodes have none.
pub const IDEMPOTENCY: &str = "aspen_idempotency";
/// Where to find them by the client's key, `&str` to `u64`: derived data, made anew
/// with each copy.
pub const IDEMPOTENCY_KEYS: &str = "aspen_idempotency_keys";
