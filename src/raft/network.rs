//! How consensus reaches the other nodes: openraft's view of [`peer`](super::peer).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use openraft::alias::VoteOf;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError};
use openraft::impls::BasicNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot};

use super::copies::Copies;
use super::machine::SnapshotData;
use super::peer::{self, Link, PeerError, Peers};
use super::types::{Leader, Types, from_log_id, from_vote, rpc_error, to_log_id, to_vote};
use crate::format::peer::{Answer, Call, Candidacy, Transferred};

/// Patience with the way to a peer, at least: a heartbeat's own may be shorter.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);

/// Makes what reaches a peer.
pub(super) struct Network {
    pub(super) peers: Peers,
    pub(super) copies: Arc<Copies>,
}

/// One use of a peer.
pub(super) struct Peer {
    id: u64,
    address: String,
    peers: Peers,
    copies: Arc<Copies>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer {
            id: target,
            address: node.addr.clone(),
            peers: self.peers.clone(),
            copies: Arc::clone(&self.copies),
        }
    }
}

impl Peer {
    async fn link(&self, option: &RPCOption) -> Result<Link, RPCError<Types>> {
        let patience = option.soft_ttl().max(LEAST_PATIENCE);
        let link = self.peers.link(self.id, &self.address, patience).await;
        link.map_err(rpc_error)
    }

    async fn call(&self, call: Call, option: &RPCOption) -> Result<Answer, RPCError<Types>> {
        let link = self.link(option).await?;
        let answer = link.call(&call, option.soft_ttl()).await;
        answer.map_err(rpc_error)
    }

    async fn ask(
        &self,
        request: VoteRequest<Types>,
        option: &RPCOption,
        kind: impl FnOnce(Candidacy) -> Call,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let candidacy = Candidacy {
            vote: to_vote(&request.vote),
            last_log_id: request.last_log_id.as_ref().map(to_log_id),
            transfer: request.leadership_transfer,
        };
        match self.call(kind(candidacy), option).await? {
            Answer::Voted {
                vote,
                granted,
                last_log_id,
            } => Ok(VoteResponse::new(
                from_vote(vote),
                last_log_id.map(from_log_id),
                granted,
            )),
            Answer::NoMember(at) => {
                self.peers.local().removed(at);
                Err(RPCError::Network(NetworkError::from_string(
                    "this node is not a member",
                )))
            }
            other => Err(self.nonsense(&other)),
        }
    }

    fn nonsense(&self, answer: &Answer) -> RPCError<Types> {
        rpc_error(PeerError::Nonsense {
            id: self.id,
            what: format!("{answer:?}"),
        })
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotData;

    /// Consensus streams; this is a stream of one.
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let input = stream::iter([request]);
        let mut answers = RaftNetworkV2::stream_append(self, input, option).await?;
        match answers.next().await {
            Some(answer) => Ok(answer?.into()),
            None => Err(RPCError::Network(NetworkError::from_string("no answer"))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> futures_util::future::BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        async move {
            // Before there is a way: where there was none the last time, openraft waits in
            // here. Else a peer that refuses connections is asked as fast as it can refuse.
            let mut input = input;
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed());
            };
            let link = self.link(&option).await?;
            let input = stream::iter([first]).chain(input);
            let patience = option.soft_ttl().max(LEAST_PATIENCE);
            peer::stream_append(self.peers.clone(), link, input, patience).await
        }
        .boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(request, &option, Call::Vote).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(request, &option, Call::PreVote).await
    }

    /// What is sent is made now, and holds at least what was asked to be sent.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        _snapshot: Snapshot<Leader, u64, BasicNode, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sending = async {
            let copy = self.copies.make().await;
            let copy = copy.map_err(|error| {
                let error = super::reads::failed(error);
                StreamingError::Unreachable(openraft::errors::Unreachable::new(&error))
            })?;
            let to = (self.id, self.address.as_str());
            let sent = peer::send_snapshot(&self.peers, to, to_vote(&vote), copy).await;
            let vote = sent.map_err(|error| StreamingError::from(rpc_error(error)))?;
            Ok(SnapshotResponse::new(from_vote(vote)))
        };
        tokio::select! {
            sent = sending => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let call = Call::Transfer {
            from: to_vote(request.from_leader()),
            to: *request.to_node_id(),
            last_log_id: request.last_log_id().map(to_log_id),
        };
        // The other end waits for its log as long as an election takes.
        let link = self.link(&option).await?;
        let answer = link.call(&call, option.hard_ttl()).await;
        Ok(match answer.map_err(rpc_error)? {
            Answer::Transferred(Transferred::Accepted) => Ok(()),
            Answer::Transferred(Transferred::VoteChanged(vote)) => {
                Err(TransferLeaderError::VoteChanged {
                    expected: *request.from_leader(),
                    actual: from_vote(vote),
                })
            }
            Answer::Transferred(Transferred::Behind(last)) => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: request.last_log_id().copied(),
                    actual: last.map(from_log_id),
                })
            }
            other => return Err(self.nonsense(&other)),
        })
    }
}
