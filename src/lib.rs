//! Aspen: a Raft key-value node for systemd that migrates its legacy redb
//! state machine to SQLite at start-up.
//!
//! The modules below are listed in the order in which a start uses them, and
//! imports point only upwards in this list (`tests/house_style.rs` keeps it so):
//!
//! 1. [`exit`], [`panics`], [`layout`], [`durable`], [`format`](mod@format): exit codes, panics
//!    that become errors, file names, the only code that changes files, and what is inside them.
//! 2. [`config`]: fragments from command line, environment and file become
//!    validated settings; rewriting the file afterwards.
//! 3. [`telemetry`], [`notify`]: what the journal and systemd are told.
//! 4. [`lock`]: the data-directory lock.
//! 5. [`migration`]: from whatever is on disk to storage that may be opened.
//! 6. [`offline`]: the same by hand, for `aspen-migrate`.
//! 7. [`storage`]: the Raft log and the state machines, opened only with what
//!    migration returns.
//! 8. [`certificate`]: certificates and keys for TLS.
//! 9. [`raft`]: the node; the only place that names openraft.
//! 10. [`http`]: the API.
//! 11. [`supervisor`]: start order, signals, stop order.
//!
//! The two programs in `src/bin/` parse, call one function here, and exit.

pub mod certificate;
pub mod config;
pub mod durable;
pub mod exit;
pub mod format;
pub mod http;
pub mod layout;
pub mod lock;
pub mod migration;
pub mod notify;
pub mod offline;
pub mod panics;
pub mod raft;
pub mod storage;
pub mod supervisor;
pub mod telemetry;
