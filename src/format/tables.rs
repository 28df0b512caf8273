//! The tables of a legacy redb state machine.

/// Keys and values: `&str` to `&str`.
pub const KV: &str = "sm_kv";
/// Raft metadata, as [`record`](super::record) encodes it: `&str` to `&[u8]`.
pub const META: &str = "sm_meta";
/// Snapshots: `&str` to `&[u8]`. Derived data, and wrong in every legacy file
/// (the recorded log id is shifted by one byte), so nothing reads it.
pub const SNAPSHOTS: &str = "snapshots";
/// Made by legacy nodes beside the others and always empty: `u64` to `&[u8]`.
pub const RAFT_LOG: &str = "raft_log";
/// Made by legacy nodes beside the others and always empty: `&str` to `&[u8]`.
pub const RAFT_META: &str = "raft_meta";
