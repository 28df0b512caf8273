//! What nodes say to each other: HTTP/2 over TCP, framed as gRPC, the messages
//! in [`format::peer`](crate::format::peer)'s encoding.
//!
//! - `local`: this node, as its peers know it, and whom it has met.
//! - `tls`, `handshake`: who is there, and may they; before the first byte of HTTP/2.
//! - `link`: connections to others. `server`: connections from others; `door`: those
//!   who have not shown yet who they are; `linger`: how a connection is closed.
//! - `grpc`: messages as bytes in gRPC frames.
//! - `append`, `snapshot`: both ends of the two streams.
//! - `service`: what a call does here. `leader`: calls to whoever leads; `gather`:
//!   writes on their way there.
//!
//! Invariants:
//!
//! - A connection carries requests only after both ends have proved that they
//!   know the cluster's secret, and agreed on protocol, cluster, and on who each
//!   of them is. Without that nothing that was sent is looked at.
//! - A peer can speak for itself only: a vote that it asks for, and a log that
//!   it sends as leader, must be its own. What fails such a check, does not
//!   decode or contradicts itself ends its stream, is logged, and changes nothing.
//! - Answers to appends come in the order of the appends, and each is the one
//!   that its append can have; anything else ends the stream and counts as lost.
//! - A forwarded write is sent once. It is sent again, to another leader, only
//!   when the first has said that nothing was done, or was never reached.
//! - Everything is bounded: messages by [`MAX_MESSAGE_BYTES`], what is under way
//!   to a peer by [`WINDOW_BYTES`], connections by [`MAX_CONNECTIONS`], and
//!   every wait by a time.
//!
//! What may fail, and what then holds:
//!
//! - A connection breaks anywhere: the consensus library sends appends and votes
//!   again, and a snapshot goes on where it stopped; writes that were under way
//!   are unconfirmed.
//! - A peer is stopped without closing its connections: pings find out.
//! - The disk of the receiver of a snapshot is full: what came of it is removed.
//!
//! The secret keeps strangers out. It does not hide what is said, and does not
//! keep somebody on the wire from taking a connection over; TLS does.

mod append;
mod door;
mod gather;
mod grpc;
mod handshake;
mod leader;
mod linger;
mod link;
mod local;
mod server;
mod service;
mod snapshot;
mod tls;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub(super) use self::append::stream as stream_append;
pub(super) use self::leader::{Confirmation, Leader};
pub(super) use self::link::{Link, PeerError, Peers};
pub(super) use self::local::Local;
pub(super) use self::server::{has_others, serve};
pub(super) use self::service::Service;
pub(super) use self::snapshot::{Receiver, send as send_snapshot};

use crate::config::settings::PeerFiles;
use crate::telemetry::events;

/// Most bytes of one message. Requests over 8 MiB do not enter the log, but
/// legacy nodes knew no limit; what is larger than this they could not send either.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Bytes of appends that may wait for their answers, and one message more: some
/// 100 ms of a fast network, which keeps a peer busy that answers after its fsync.
const WINDOW_BYTES: usize = 8 << 20;

/// What HTTP/2 lets a peer send before it is read, per stream and connection.
const FLOW_BYTES: u32 = 4 << 20;

/// Most connections from members at a time: two from each of a handful, and as
/// many that have broken and are not yet found out.
const MAX_CONNECTIONS: usize = 64;

/// Most requests at a time on one connection.
const MAX_STREAMS: u32 = 256;

/// How long connecting and the handshake may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// How often a silent connection is asked whether it still works, and how long
/// the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIME: Duration = Duration::from_secs(4);

/// How long an append may wait for its answer: a few fsyncs of a busy disk.
const APPEND_TIME: Duration = Duration::from_secs(5);

/// Tells what is doubtful about the certificate.
pub(super) fn warn_of(files: &PeerFiles, doubts: &[String]) {
    for doubt in doubts {
        tracing::warn!(
            MESSAGE_ID = events::CERTIFICATE_DOUBTFUL,
            ASPEN_CERTIFICATE = %files.certificate.display(),
            "{doubt}"
        );
    }
}

/// Why somebody was not talked to, without digits: times and counts in a text, or
/// whatever number a stranger chose, do not make it another reason.
fn reason(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// What was said last about whom, so that it is said once and again only when
/// it changes.
#[derive(Default)]
struct Said(Mutex<BTreeMap<String, String>>);

impl Said {
    /// Most that it remembers: strangers can come from everywhere.
    const MOST: usize = 256;

    /// Whether `what` is news about `whom`.
    fn is_news(&self, whom: &str, what: &str) -> bool {
        let what = reason(what);
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(whom).is_some_and(|before| *before == what) {
            return false;
        }
        if said.len() >= Self::MOST && !said.contains_key(whom) {
            said.clear();
        }
        said.insert(whom.to_owned(), what);
        true
    }

    /// What was said about those whose first word is `whom` is over: said again, it is news.
    fn forget(&self, whom: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|key, _| key.split(' ').next() != Some(whom));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer with an expired certificate was mentioned once a second for as long
    /// as it tried: the text of the refusal holds the time.
    #[test]
    fn a_reason_that_differs_in_numbers_only_is_said_once() {
        let said = Said::default();
        let text = |time: u64| format!("certificate expired: verification time {time}");
        assert!(said.is_news("3 at 10.0.0.3:7000", &text(1_795_602_143)));
        assert!(!said.is_news("3 at 10.0.0.3:7000", &text(1_795_602_144)));
        assert!(said.is_news("4 at 10.0.0.4:7000", &text(1_795_602_144)));
        assert!(said.is_news("3 at 10.0.0.3:7000", "connection refused"));
        said.forget("4");
        assert!(said.is_news("4 at 10.0.0.4:7000", &text(1_795_602_145)));
    }
}
