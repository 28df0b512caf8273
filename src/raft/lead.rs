//! How leadership is handed over.
//!
//! The leader takes no writes from the moment on in which it tells the voters,
//! and sends no heartbeats; who shall lead asks for votes as soon as it has all
//! that the leader has. Entries that were in the leader's log by then go on to
//! it, are committed by it, and are applied by the old leader as a follower,
//! which answers their clients.
//!
//! If the one who shall lead fails in that moment, the others elect somebody
//! when their patience ends, as if the leader had failed: there is no state from
//! which the cluster does not come back by itself.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::{Instant as _, RaftMetrics, ServerState};
use tokio::time::{Instant, sleep, timeout};

use super::Leads;
use super::reads::Raft;
use super::types::Types;
use crate::format::peer::Refusal;

/// Entries that a voter may lack and still count as caught up: under load some
/// are always on their way, and these take less than an election.
pub(super) const FEW_ENTRIES: u64 = 1_000;

/// Election timeouts that a voter may be silent and still count as reachable:
/// it answers several heartbeats in one.
const MOST_SILENCE: u32 = 1;

/// Election timeouts that a transfer may take: the election that is asked for,
/// and one that comes by itself if that fails, each less than twice as long.
const TRANSFER_ELECTIONS: u32 = 4;

/// The longest that a transfer may take, however patient elections are.
const MOST_TRANSFER: Duration = Duration::from_secs(8);

/// How long until it is looked again whether somebody can lead.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a transfer may take.
fn transfer_time(election: Duration) -> Duration {
    (TRANSFER_ELECTIONS * election).min(MOST_TRANSFER)
}

/// What keeps a member from taking part, as the leader knows it; `None` if nothing does.
pub(super) fn unfit(metrics: &RaftMetrics<Types>, id: u64, election: Duration) -> Option<String> {
    let heard = metrics.heartbeat.as_ref().and_then(|all| *all.get(&id)?);
    match heard.map(|at| at.elapsed()) {
        Some(silence) if silence <= MOST_SILENCE * election => {}
        Some(silence) => {
            let seconds = silence.as_secs_f64();
            return Some(format!("node {id} was last heard of {seconds:.1} s ago"));
        }
        None => return Some(format!("node {id} has not been heard of")),
    }
    let matched = metrics.replication.as_ref().and_then(|all| *all.get(&id)?);
    let next = matched.map_or(0, |id| id.index() + 1);
    let lag = metrics
        .last_log_index
        .map_or(0, |last| last + 1)
        .saturating_sub(next);
    (lag > FEW_ENTRIES).then(|| format!("node {id} lacks {lag} entries"))
}

/// Who shall lead instead of this leader: `to`, or the voter that has most;
/// [`Refusal::NotYet`] if nobody can now.
fn heir(metrics: &RaftMetrics<Types>, to: Option<u64>, election: Duration) -> Result<u64, Refusal> {
    let membership = metrics.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    if let Some(id) = to {
        if membership.get_node(&id).is_none() {
            return Err(Refusal::NoMember(format!("there is no member {id}")));
        }
        if !voters.contains(&id) {
            let why =
                format!("node {id} is a learner, and only a voter can lead; make it a voter first");
            return Err(Refusal::Refused(why));
        }
        let unfit = unfit(metrics, id, election);
        return unfit.map_or(Ok(id), |why| Err(Refusal::NotYet(why)));
    }
    let others: Vec<u64> = voters.into_iter().filter(|id| *id != metrics.id).collect();
    if others.is_empty() {
        return Err(Refusal::Refused("there is no other voter".into()));
    }
    let matched = |id: &u64| metrics.replication.as_ref().and_then(|all| *all.get(id)?);
    let unfit: Vec<_> = others
        .iter()
        .map(|id| (*id, unfit(metrics, *id, election)))
        .collect();
    let fit = unfit.iter().filter(|(_, why)| why.is_none());
    fit.map(|(id, _)| *id).max_by_key(matched).ok_or_else(|| {
        let reasons: Vec<_> = unfit.into_iter().filter_map(|(_, why)| why).collect();
        Refusal::NotYet(format!(
            "no other voter can lead now: {}",
            reasons.join("; ")
        ))
    })
}

/// Who shall lead, once somebody can; a leader that is new has heard of nobody yet.
async fn wait_for_heir(
    raft: &Raft,
    to: Option<u64>,
    election: Duration,
) -> Result<(u64, RaftMetrics<Types>), Refusal> {
    let began = Instant::now();
    loop {
        let metrics = raft.metrics().borrow_watched().clone();
        if metrics.state != ServerState::Leader {
            return Err(Refusal::NotLeader);
        }
        if to == Some(metrics.id) {
            return Ok((metrics.id, metrics));
        }
        match heir(&metrics, to, election) {
            Ok(heir) => return Ok((heir, metrics)),
            Err(Refusal::NotYet(why)) if began.elapsed() >= election => {
                return Err(Refusal::Refused(why));
            }
            Err(Refusal::NotYet(_)) => sleep(PAUSE).await,
            Err(refusal) => return Err(refusal),
        }
    }
}

/// Hands leadership over, and returns once this node knows who leads instead.
///
/// A voter that is not reachable or not caught up is waited for as long as an
/// election takes at least.
pub(super) async fn hand_over(
    raft: &Raft,
    to: Option<u64>,
    election: Duration,
) -> Result<Leads, Refusal> {
    let (heir, metrics) = wait_for_heir(raft, to, election).await?;
    let (me, term) = (metrics.id, metrics.current_term);
    if heir == me {
        return Ok(Leads { leader: me, term });
    }
    tracing::info!("Handing leadership over to node {heir}");
    let triggered = raft.trigger().transfer_leader(heir).await;
    triggered.map_err(|_| Refusal::NotLeader)?;
    let led = timeout(transfer_time(election), other_leader(raft, term));
    let Ok(Some(led)) = led.await else {
        return Err(Refusal::NotYet(format!(
            "node {heir} was asked to lead and does not yet; ask again who leads"
        )));
    };
    tracing::info!("Node {} leads now, in term {}", led.leader, led.term);
    if led.leader == me || to.is_some_and(|to| led.leader != to) {
        return Err(Refusal::NotYet(format!(
            "node {} was elected instead of node {heir}; ask again",
            led.leader
        )));
    }
    Ok(led)
}

/// Who leads in a later term than `term`; `None` when the node stops.
async fn other_leader(raft: &Raft, term: u64) -> Option<Leads> {
    // They are told last: whoever asks for the status afterwards sees it, too.
    let mut changes = raft.metrics();
    loop {
        let vote = changes.borrow_watched().vote;
        if vote.committed && vote.leader_id.term > term {
            return Some(Leads {
                leader: vote.leader_id.node_id,
                term: vote.leader_id.term,
            });
        }
        changes.changed().await.ok()?;
    }
}
