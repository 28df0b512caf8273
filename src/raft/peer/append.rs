//! The stream of appends, from both ends.
//!
//! The leader's end sends ahead of the answers, up to a window of bytes. It is
//! one task: when the consensus library drops it, nothing more is read from its
//! input, which it lends to the next attempt.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use openraft::errors::{Fatal, RPCError};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::{APPEND_TIME, Link, PeerError, WINDOW_BYTES, grpc};
use crate::format::peer::{Append, Appended, decode, encode};
use crate::format::record::{LogId, RecordError};
use crate::raft::reads::Raft;
use crate::raft::types::{
    Id, Types, from_entry, from_log_id, from_vote, rpc_error, to_entry, to_log_id, to_vote,
};
use crate::telemetry::events;

type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>;

/// An append that has not been answered.
struct Pending {
    prev: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
}

/// The leader's end.
struct Sending<S> {
    link: Link,
    /// `None` when there is no more to send.
    input: Option<(S, mpsc::Sender<Bytes>)>,
    answers: Streaming<Bytes>,
    pending: VecDeque<Pending>,
    bytes: usize,
    /// When there was last nothing pending, or an answer.
    progress: Instant,
}

/// Streams `input` to a peer.
pub(in crate::raft) async fn stream<'s, S>(
    link: Link,
    input: S,
    patience: Duration,
) -> Result<Answers<'s>, RPCError<Types>>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let (sender, mut receiver) = mpsc::channel(1);
    let messages = stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let opened = link.stream(grpc::APPEND, messages, patience).await;
    let sending = Sending {
        answers: opened.map_err(rpc_error)?,
        link,
        input: Some((input, sender)),
        pending: VecDeque::new(),
        bytes: 0,
        progress: Instant::now(),
    };
    Ok(stream::unfold(Some(sending), |sending| async {
        let mut sending = sending?;
        let answer = sending.next().await?;
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer.map_err(rpc_error), goes_on.then_some(sending)))
    })
    .boxed())
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Sending<S> {
    /// The next answer; sends meanwhile.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<Types>, PeerError>> {
        loop {
            let deadline = self.progress + APPEND_TIME;
            let waiting = !self.pending.is_empty();
            let room = !waiting || self.bytes < WINDOW_BYTES;
            tokio::select! {
                biased;
                answer = self.answers.message() => match self.answered(answer) {
                    Some(Ok(Ok(upto))) if self.is_repeated(upto.as_ref()) => {}
                    told => return told,
                },
                asked = next_append(&mut self.input), if room && self.input.is_some() => {
                    if let Err(error) = self.send(asked) {
                        return Some(Err(self.link.nonsense(&error)));
                    }
                }
                () = sleep_until(deadline), if waiting => return Some(Err(self.link.timeout())),
            }
        }
    }

    fn send(
        &mut self,
        asked: Option<(AppendEntriesRequest<Types>, mpsc::OwnedPermit<Bytes>)>,
    ) -> Result<(), RecordError> {
        let Some((request, place)) = asked else {
            self.input = None;
            return Ok(());
        };
        let append = Append {
            vote: to_vote(&request.vote),
            prev: request.prev_log_id.as_ref().map(to_log_id),
            committed: request.leader_commit.as_ref().map(to_log_id),
            entries: request.entries.into_iter().map(to_entry).collect(),
        };
        let message = encode(&append)?;
        let last = append.entries.last().map(|entry| entry.log_id);
        if self.pending.is_empty() {
            self.progress = Instant::now();
        }
        self.bytes += message.len();
        self.pending.push_back(Pending {
            prev: append.prev,
            last: last.or(append.prev),
            bytes: message.len(),
        });
        place.send(message.into());
        Ok(())
    }

    /// Whether the append behind the one that was just answered gets the same answer:
    /// it has no entries, and only tells what is committed. Then that answer is told for
    /// both. openraft takes an answer for one to all that end there, sent since or not,
    /// and would count a lease from the last of them, though the follower may have
    /// counted its own from the first, and elected another leader since.
    fn is_repeated(&self, upto: Option<&Id>) -> bool {
        let next = self.pending.front();
        next.is_some_and(|next| next.last == upto.map(to_log_id))
    }

    fn answered(
        &mut self,
        answer: Result<Option<Bytes>, Status>,
    ) -> Option<Result<StreamAppendResult<Types>, PeerError>> {
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) if self.pending.is_empty() && self.input.is_none() => return None,
            Ok(None) => {
                let status = Status::unavailable("the stream of appends ended");
                return Some(Err(self.link.lost(status)));
            }
            Err(status) => return Some(Err(self.link.lost(status))),
        };
        let answer = match decode::<Appended>(&answer) {
            Ok(answer) => answer,
            Err(error) => return Some(Err(self.link.nonsense(&error))),
        };
        let Some(pending) = self.pending.pop_front() else {
            return Some(Err(self.link.nonsense(&"to what was not asked")));
        };
        self.bytes -= pending.bytes;
        self.progress = Instant::now();
        Some(match answer {
            Appended::Upto(upto) if upto == pending.last => Ok(Ok(upto.map(from_log_id))),
            Appended::Conflict(at) if Some(at) == pending.prev => {
                Ok(Err(StreamAppendError::Conflict(from_log_id(at))))
            }
            Appended::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(from_vote(vote)))),
            other => Err(self.link.nonsense(&format!("{other:?}"))),
        })
    }
}

/// The next append, once there is place for it. What is not taken stays in the input.
async fn next_append<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin>(
    input: &mut Option<(S, mpsc::Sender<Bytes>)>,
) -> Option<(AppendEntriesRequest<Types>, mpsc::OwnedPermit<Bytes>)> {
    let (input, sender) = input.as_mut()?;
    let place = sender.clone().reserve_owned().await.ok()?;
    Some((input.next().await?, place))
}

/// The follower's end: what the stream of messages from node `from` does here.
pub(super) fn receive(
    raft: &Raft,
    from: u64,
    messages: Streaming<Bytes>,
) -> BoxStream<'static, Result<Bytes, Status>> {
    let wrong = Arc::new(Mutex::new(None));
    let noticed = Arc::clone(&wrong);
    let appends = stream::unfold(messages, move |mut messages| {
        let noticed = Arc::clone(&noticed);
        async move {
            // A connection that broke ends the stream as one that was closed does.
            let message = messages.message().await.ok()??;
            match understand(&message, from) {
                Ok(append) => Some((append, messages)),
                Err(why) => {
                    tracing::warn!(
                        MESSAGE_ID = events::PEER_MISUNDERSTOOD,
                        ASPEN_MEMBER = from,
                        "Node {from} sent an append that was refused: {why}"
                    );
                    *noticed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    None
                }
            }
        }
    });
    let answers = raft.stream_append(appends).map(answer);
    let refusal = stream::poll_fn(move |_| {
        let why = wrong.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::task::Poll::Ready(why.map(|why| Err(Status::invalid_argument(why))))
    });
    answers.chain(refusal).boxed()
}

fn answer(result: Result<StreamAppendResult<Types>, Fatal<Types>>) -> Result<Bytes, Status> {
    let appended = match result {
        Ok(Ok(upto)) => Appended::Upto(upto.as_ref().map(to_log_id)),
        Ok(Err(StreamAppendError::Conflict(at))) => Appended::Conflict(to_log_id(&at)),
        Ok(Err(StreamAppendError::HigherVote(vote))) => Appended::HigherVote(to_vote(&vote)),
        Err(fatal) => return Err(Status::unavailable(fatal.to_string())),
    };
    let bytes = encode(&appended).map_err(|error| Status::internal(error.to_string()))?;
    Ok(bytes.into())
}

fn understand(message: &[u8], from: u64) -> Result<AppendEntriesRequest<Types>, String> {
    let append: Append = decode(message).map_err(|error| error.to_string())?;
    check(&append, from)?;
    let entries = append.entries.into_iter().map(from_entry);
    Ok(AppendEntriesRequest {
        vote: from_vote(append.vote),
        prev_log_id: append.prev.map(from_log_id),
        leader_commit: append.committed.map(from_log_id),
        entries: entries
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?,
    })
}

/// Whether a leader can have sent this.
fn check(append: &Append, from: u64) -> Result<(), &'static str> {
    if !append.vote.committed || append.vote.node_id != from {
        return Err("it is not from the leader that it names");
    }
    let leader = (append.vote.term, append.vote.node_id);
    let of = |id: &LogId| (id.term, id.node_id);
    let mut before = append.prev;
    for id in append.entries.iter().map(|entry| entry.log_id) {
        let expected = match before {
            Some(before) => before.index.checked_add(1),
            None => Some(0),
        };
        if Some(id.index) != expected || before.is_some_and(|before| of(&before) > of(&id)) {
            return Err("its entries do not follow each other");
        }
        before = Some(id);
    }
    if before.is_some_and(|last| of(&last) > leader) {
        return Err("its entries are of a later term than its leader");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::entry::{Entry, Payload, Vote};

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term,
            node_id: 2,
            index,
        }
    }

    fn append(prev: Option<LogId>, ids: &[LogId]) -> Append {
        let entry = |log_id: &LogId| Entry {
            log_id: *log_id,
            payload: Payload::Blank,
        };
        Append {
            vote: Vote {
                term: 3,
                node_id: 2,
                committed: true,
            },
            prev,
            committed: None,
            entries: ids.iter().map(entry).collect(),
        }
    }

    #[test]
    fn appends_of_a_leader_pass() {
        assert_eq!(check(&append(None, &[]), 2), Ok(()));
        assert_eq!(check(&append(Some(id(3, 7)), &[]), 2), Ok(()));
        assert_eq!(
            check(&append(None, &[id(0, 0), id(2, 1), id(3, 2)]), 2),
            Ok(())
        );
        assert_eq!(check(&append(Some(id(1, 4)), &[id(1, 5)]), 2), Ok(()));
    }

    #[test]
    fn appends_that_no_leader_sends_are_refused() {
        for wrong in [
            append(None, &[id(1, 1)]),
            append(Some(id(1, 4)), &[id(1, 6)]),
            append(Some(id(1, 4)), &[id(1, 5), id(1, 5)]),
            append(Some(id(2, 4)), &[id(1, 5)]),
            append(Some(id(1, u64::MAX)), &[id(1, 0)]),
            append(Some(id(1, 4)), &[id(4, 5)]),
            append(Some(id(4, 4)), &[]),
        ] {
            assert!(check(&wrong, 2).is_err(), "{wrong:?}");
        }
        assert!(check(&append(None, &[]), 3).is_err());
        let mut candidate = append(None, &[]);
        candidate.vote.committed = false;
        assert!(check(&candidate, 2).is_err());
    }
}
