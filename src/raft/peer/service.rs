//! What others may ask of this node.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::{Request, Response};
use hyper::body::Incoming;
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{TransferLeaderError, TransferLeaderRequest, VoteRequest, VoteResponse};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::server::StreamingService;
use tonic::{Status, Streaming};

use super::grpc::{APPEND, CALL, Raw, SNAPSHOT};
use super::snapshot::Receiver;
use super::{Confirmation, Leader, Local, MAX_MESSAGE_BYTES, Peers, append, snapshot};
use crate::format::peer::{Answer, Call, Candidacy, Transferred, decode, encode};
use crate::raft::promise::Promise;
use crate::raft::reads::Raft;
use crate::raft::types::{Types, from_log_id, from_vote, to_log_id, to_vote};
use crate::telemetry::events;

/// How long others may take to hear that their connections close, and to close them.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// Answers to others.
pub(in crate::raft) struct Service {
    pub(in crate::raft) raft: Raft,
    pub(in crate::raft) peers: Peers,
    pub(in crate::raft) leader: Leader,
    pub(in crate::raft) receiver: Arc<Receiver>,
    pub(in crate::raft) promise: Promise,
    /// Turns true when the node stops; has a receiver for each connection.
    pub(in crate::raft) leaving: watch::Sender<bool>,
}

/// One stream of requests from node `from`.
struct Rpc {
    service: Arc<Service>,
    from: u64,
    path: String,
}

type Messages = BoxStream<'static, Result<Bytes, Status>>;
type Opened = Result<tonic::Response<Messages>, Status>;

impl StreamingService<Bytes> for Rpc {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = Pin<Box<dyn Future<Output = Opened> + Send>>;

    fn call(&mut self, request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let (service, from) = (Arc::clone(&self.service), self.from);
        let path = std::mem::take(&mut self.path);
        Box::pin(async move {
            let messages = request.into_inner();
            if let Some(why) = service.local().barred() {
                return Err(Status::failed_precondition(why));
            }
            let leaving = service.left();
            let answers = match path.as_str() {
                CALL => service.call(from, messages).await?,
                APPEND => append::receive(&service.raft, from, messages),
                SNAPSHOT => snapshot::receive(&service, from, messages),
                _ => return Err(Status::unimplemented("no such request")),
            };
            // A stream would go on for as long as the other one has something to say.
            let answers: Messages = match path.as_str() {
                CALL => answers,
                _ => answers.take_until(Box::pin(leaving)).boxed(),
            };
            Ok(tonic::Response::new(answers))
        })
    }
}

impl Service {
    /// Tells all who are connected to ask elsewhere, and answers what comes until
    /// they know, which is for a moment; returns when every connection is closed.
    pub(in crate::raft) async fn leave(&self) {
        self.leaving.send_replace(true);
        // Whoever does not hear of it finds out by himself.
        let _ = timeout(LEAVE_TIME, self.leaving.closed()).await;
    }

    /// Resolves when the node stops.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut leaving = self.leaving.subscribe();
        async move { drop(leaving.wait_for(|leaving| *leaving).await) }
    }

    pub(super) fn local(&self) -> &Local {
        self.peers.local()
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        from: u64,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        let service = self;
        let rpc = Rpc {
            service,
            from,
            path,
        };
        let mut grpc = tonic::server::Grpc::new(Raw)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(grpc.streaming(rpc, request).await)
    }

    async fn call(&self, from: u64, mut messages: Streaming<Bytes>) -> Result<Messages, Status> {
        let message = messages.message().await?;
        let message = message.ok_or_else(|| Status::invalid_argument("no message"))?;
        let call = decode::<Call>(&message).map_err(|error| {
            tracing::warn!(
                MESSAGE_ID = events::PEER_MISUNDERSTOOD,
                ASPEN_MEMBER = from,
                "Node {from} sent a request that was refused: {error}"
            );
            Status::invalid_argument(error.to_string())
        })?;
        let answer = self.carry_out(from, call).await?;
        let answer = encode(&answer).map_err(|error| Status::internal(error.to_string()))?;
        let answer = futures_util::future::ready(Ok(answer.into()));
        Ok(Box::pin(futures_util::stream::once(answer)))
    }

    /// Which membership says that node `from`, which asks, is no member. One that
    /// may know a later membership than this node is none of those.
    fn no_member(&self, from: u64, call: &Call) -> Option<Answer> {
        let at = self.local().members_at()?;
        let knows = match call {
            Call::Vote(candidacy) | Call::PreVote(candidacy) => candidacy.last_log_id,
            Call::Transfer { .. } => return None,
            Call::Write(_) | Call::ReadIndex | Call::LeaseRead | Call::Command(_) => None,
        };
        let is_old = knows.is_none_or(|last| last.index < at);
        (is_old && !self.local().is_member(from)).then_some(Answer::NoMember(at))
    }

    async fn carry_out(&self, from: u64, call: Call) -> Result<Answer, Status> {
        if let Some(answer) = self.no_member(from, &call) {
            return Ok(answer);
        }
        match call {
            Call::Vote(Candidacy {
                transfer: false, ..
            })
            | Call::PreVote(_)
                if self.promise.holds() =>
            {
                Ok(self.no_vote())
            }
            Call::Vote(candidacy) => {
                let asked = understand(&candidacy, from)?;
                Ok(voted(&self.raft.vote(asked).await.map_err(stopped)?))
            }
            Call::PreVote(candidacy) => {
                let asked = understand(&candidacy, from)?;
                Ok(voted(&self.raft.pre_vote(asked).await.map_err(stopped)?))
            }
            Call::Transfer {
                from: leader,
                to,
                last_log_id,
            } => {
                if leader.node_id != from || !leader.committed {
                    return Err(refused(from, "a transfer from a leader that it is not"));
                }
                let last = last_log_id.map(from_log_id);
                let request = TransferLeaderRequest::new(from_vote(leader), to, last);
                let handled = self.raft.handle_transfer_leader(request).await;
                Ok(Answer::Transferred(match handled.map_err(stopped)? {
                    Ok(()) => Transferred::Accepted,
                    Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                        Transferred::VoteChanged(to_vote(&actual))
                    }
                    Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                        Transferred::Behind(actual.as_ref().map(to_log_id))
                    }
                }))
            }
            Call::Write(requests) => Ok(Answer::Written(
                self.leader.propose_for_others(requests).await,
            )),
            Call::ReadIndex => self.read_index(Confirmation::Majority).await,
            Call::LeaseRead => self.read_index(Confirmation::Lease).await,
            Call::Command(command) => Ok(Answer::Commanded(self.leader.carry_out(command).await)),
        }
    }

    /// What a voter answers that is bound to a leader.
    fn no_vote(&self) -> Answer {
        let vote = self.raft.server_metrics().borrow_watched().vote;
        Answer::Voted {
            vote: to_vote(&vote),
            granted: false,
            last_log_id: None,
        }
    }

    async fn read_index(&self, confirmation: Confirmation) -> Result<Answer, Status> {
        let upto = self.leader.read_index(confirmation).await;
        Ok(Answer::ReadIndex(upto.map_err(stopped)?))
    }
}

/// A candidate may ask for itself only.
fn understand(candidacy: &Candidacy, from: u64) -> Result<VoteRequest<Types>, Status> {
    if candidacy.vote.node_id != from || candidacy.vote.committed {
        return Err(refused(from, "a candidacy that is not its own"));
    }
    let mut request = VoteRequest::new(
        from_vote(candidacy.vote),
        candidacy.last_log_id.map(from_log_id),
    );
    request.leadership_transfer = candidacy.transfer;
    Ok(request)
}

fn voted(response: &VoteResponse<Types>) -> Answer {
    Answer::Voted {
        vote: to_vote(&response.vote),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(to_log_id),
    }
}

fn refused(from: u64, what: &str) -> Status {
    tracing::warn!(
        MESSAGE_ID = events::PEER_MISUNDERSTOOD,
        ASPEN_MEMBER = from,
        "Node {from} sent {what}"
    );
    Status::invalid_argument(what)
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}
