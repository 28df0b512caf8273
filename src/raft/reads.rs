//! Reads, gathered: all that wait are confirmed by one round of ReadIndex and
//! served by one read transaction, so that many clients cost little more than
//! one. A read joins only a round that begins after it arrived, which is what
//! makes it linearizable.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::yield_now;

use super::blocking::blocking;
use super::machine::Machine;
use super::peer::{Confirmation, Leader};
use super::types::Types;
use super::{Consistency, LEADER_TIME, RequestError};
use crate::storage::{StateMachine, StorageError};
use crate::telemetry::{Chain, events};

pub(super) type Raft = openraft::Raft<Types, Machine>;

/// Reads that one round holds at most: bounds its transaction and its memory.
const MAX_ROUND: usize = 256;

type Answer = Result<Option<String>, RequestError>;

struct Waiting {
    key: String,
    answer: oneshot::Sender<Answer>,
}

/// Where reads queue, one queue for each way to confirm them.
#[derive(Clone)]
pub(super) struct Reads {
    linearizable: mpsc::UnboundedSender<Waiting>,
    lease: mpsc::UnboundedSender<Waiting>,
    stale: mpsc::UnboundedSender<Waiting>,
    leader: Leader,
}

impl Reads {
    /// `rounds` is how many rounds may be under way at once. The queues are
    /// bounded by the number of requests that the API lets in.
    pub(super) fn start(
        leader: &Leader,
        state_machine: &Arc<dyn StateMachine>,
        rounds: usize,
    ) -> Self {
        let rounds = Arc::new(Semaphore::new(rounds));
        let queue = |confirmation| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let rounds = Arc::clone(&rounds);
            let (leader, state_machine) = (leader.clone(), Arc::clone(state_machine));
            tokio::spawn(serve(receiver, rounds, leader, state_machine, confirmation));
            sender
        };
        Self {
            linearizable: queue(Some(Confirmation::Majority)),
            lease: queue(Some(Confirmation::Lease)),
            stale: queue(None),
            leader: leader.clone(),
        }
    }

    pub(super) async fn get(&self, key: String, consistency: Consistency) -> Answer {
        let (answer, answered) = oneshot::channel();
        let queue = match self.leader.confirmation(consistency) {
            Some(Confirmation::Majority) => &self.linearizable,
            Some(Confirmation::Lease) => &self.lease,
            None => &self.stale,
        };
        queue
            .send(Waiting { key, answer })
            .map_err(|_| RequestError::Stopping)?;
        answered.await.map_err(|_| RequestError::Stopping)?
    }
}

async fn serve(
    mut queue: mpsc::UnboundedReceiver<Waiting>,
    rounds: Arc<Semaphore>,
    leader: Leader,
    state_machine: Arc<dyn StateMachine>,
    confirmation: Option<Confirmation>,
) {
    let mut round = Vec::new();
    loop {
        // A queue without reads must hold no permit: the others would lack it.
        let Some(first) = queue.recv().await else {
            return;
        };
        round.push(first);
        let Ok(permit) = Arc::clone(&rounds).acquire_owned().await else {
            return;
        };
        // What has arrived meanwhile joins, and whose request is being read just now.
        yield_now().await;
        while round.len() < MAX_ROUND
            && let Ok(next) = queue.try_recv()
        {
            round.push(next);
        }
        let waiting = std::mem::take(&mut round);
        let (leader, state_machine) = (leader.clone(), Arc::clone(&state_machine));
        tokio::spawn(async move {
            if let Some(confirmation) = confirmation
                && let Err(error) = leader.confirm(confirmation, LEADER_TIME).await
            {
                for read in waiting {
                    let _ = read.answer.send(Err(error.clone()));
                }
                return;
            }
            answer(state_machine, waiting).await;
            drop(permit);
        });
    }
}

/// Reads on a thread that may wait for the disk, and answers from here: to wake
/// many tasks from another thread costs more than to read for them.
async fn answer(state_machine: Arc<dyn StateMachine>, waiting: Vec<Waiting>) {
    let (keys, answers): (Vec<_>, Vec<_>) = waiting
        .into_iter()
        .map(|read| (read.key, read.answer))
        .unzip();
    let Ok(read) = blocking(move || state_machine.get(&keys)).await else {
        // The thread ended unexpectedly, which the clients notice by the dropped answers.
        return;
    };
    // A client that went away does not wait for its answer.
    match read {
        Ok(values) => answers.into_iter().zip(values).for_each(|(answer, value)| {
            let _ = answer.send(Ok(value));
        }),
        Err(error) => {
            let error = failed(error);
            answers.into_iter().for_each(|answer| {
                let _ = answer.send(Err(error.clone()));
            });
        }
    }
}

/// Tells the log why the state machine failed, and the client that it did.
pub(super) fn failed(error: StorageError) -> RequestError {
    if matches!(error, StorageError::Closed) {
        return RequestError::Stopping;
    }
    tracing::error!(
        MESSAGE_ID = events::STORAGE_FAILED,
        "The state machine failed: {}",
        Chain(&error)
    );
    RequestError::Storage(Arc::new(error))
}
