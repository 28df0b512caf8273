//! Writes, gathered: what waits goes to the leader in one message, whether that
//! is this node or another, and what arrives meanwhile in the next.

use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt as _;
use openraft::errors::ClientWriteError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::timeout;

use super::leader::{Known, Leader};
use crate::format::entry::Request;
use crate::format::peer::{Answer, Call, Fate};
use crate::raft::REQUEST_TIME;
use crate::telemetry::Chain;

/// Most writes in one message.
const MAX_BATCH: usize = 256;

/// Bytes of keys and values that one message holds, and one write more.
const BATCH_BYTES: usize = 1 << 20;

/// Messages with writes that may be under way at once: each waits for an fsync
/// of the leader and one of a follower, and the log gathers them once more.
const MAX_UNDER_WAY: usize = 8;

/// A write that waits to be sent.
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) fate: oneshot::Sender<Fate>,
}

/// Who waits for the fate of a write.
struct Asker {
    /// `None` once told.
    fate: Option<oneshot::Sender<Fate>>,
    /// Whether the write happens once, however often it is asked for.
    once: bool,
}

impl Asker {
    fn tell(&mut self, fate: Fate) {
        if let Some(asker) = self.fate.take() {
            // A client that went away does not wait for its answer.
            let _ = asker.send(fate);
        }
    }
}

impl Leader {
    /// Writes that another node forwarded; never forwarded again.
    pub(super) async fn propose_for_others(&self, requests: Vec<Request>) -> Vec<Fate> {
        let _under_way = self.foreign.subscribe();
        self.propose_all(requests).await
    }

    /// Writes on this node, if it leads; never forwarded.
    async fn propose_all(&self, requests: Vec<Request>) -> Vec<Fate> {
        let count = requests.len();
        if let Some(why) = self.gate.full() {
            return vec![Fate::DiskFull(why); count];
        }
        let mut fates = Vec::with_capacity(count);
        let proposed = async {
            let mut results = self.raft.client_write_many(requests).await.ok()?;
            while let Some(result) = results.next().await {
                fates.push(match result.ok()? {
                    Ok(written) => Fate::Written {
                        index: written.log_id.index(),
                        outcome: written.response,
                    },
                    // Refused before it was appended. What was appended and lost its place to
                    // another leader's entry is told as discarded, which others may still have.
                    Err(ClientWriteError::ForwardToLeader(_)) => Fate::NotLeader,
                    Err(_) => Fate::Unconfirmed,
                });
            }
            Some(())
        };
        // What has no fate by then is unconfirmed, whatever the reason.
        let _ = timeout(REQUEST_TIME, proposed).await;
        fates.resize(count, Fate::Unconfirmed);
        fates
    }

    /// Sends what waits to whoever leads by then.
    pub(super) async fn forward(self, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
        let places = Arc::new(Semaphore::new(MAX_UNDER_WAY));
        let mut taken = Vec::new();
        loop {
            // First the place, then the writes: what arrives meanwhile joins.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            if taken.is_empty() {
                if waiting.recv_many(&mut taken, MAX_BATCH).await == 0 {
                    return;
                }
                // Whose request is being read just now gets in as well: consensus and
                // log do little more for all of them than for one.
                yield_now().await;
                while taken.len() < MAX_BATCH
                    && let Ok(next) = waiting.try_recv()
                {
                    taken.push(next);
                }
            }
            let mut bytes = 0;
            let fits = |waiting: &Waiting| {
                let room = bytes < BATCH_BYTES;
                bytes += waiting.request.bytes();
                room
            };
            let count = taken.iter().map(fits).take_while(|fits| *fits).count();
            let batch: Vec<_> = taken.drain(..count).collect();
            let leader = self.clone();
            tokio::spawn(async move { leader.send(batch, place).await });
        }
    }

    async fn send(&self, batch: Vec<Waiting>, place: OwnedSemaphorePermit) {
        let (requests, mut askers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| {
                let once = matches!(waiting.request, Request::Idempotent(_));
                let fate = Some(waiting.fate);
                (waiting.request, Asker { fate, once })
            })
            .unzip();
        let fates = match self.known() {
            Known::Me => self.propose_all(requests).await,
            Known::Other { id, address } => {
                let mut forwarded = pin!(self.forwarded(id, &address, requests));
                tokio::select! {
                    biased;
                    fates = &mut forwarded => fates,
                    () = self.deposed(id) => {
                        // It may answer yet, and may be gone for good. What comes next need not
                        // wait behind that, nor what happens once, whoever is asked for it.
                        drop(place);
                        for asker in askers.iter_mut().filter(|asker| asker.once) {
                            asker.tell(Fate::Unconfirmed);
                        }
                        forwarded.await
                    }
                }
            }
            Known::Nobody => vec![Fate::NotLeader; askers.len()],
        };
        for (fate, asker) in fates.into_iter().zip(&mut askers) {
            asker.tell(fate);
        }
    }

    async fn forwarded(&self, id: u64, address: &str, requests: Vec<Request>) -> Vec<Fate> {
        let count = requests.len();
        let Some(link) = self.reach(id, address).await else {
            return vec![Fate::NotLeader; count];
        };
        let answered = async { link?.call(&Call::Write(requests), REQUEST_TIME).await };
        match answered.await {
            Ok(Answer::Written(fates)) if fates.len() == count => fates,
            Ok(Answer::NoMember(at)) => {
                self.peers.local().removed(at);
                vec![Fate::NotLeader; count]
            }
            Ok(_) => vec![Fate::Unconfirmed; count],
            Err(error) if error.is_undone() => vec![Fate::NotLeader; count],
            Err(error) => {
                tracing::debug!("Forwarded writes are unconfirmed: {}", Chain(&error));
                vec![Fate::Unconfirmed; count]
            }
        }
    }
}
