//! How members come and go. All of it happens on the leader, one change at a time.
//!
//! A node begins as a learner, which gets all entries and has no vote. It becomes
//! a voter when it has caught up, so that no write ever waits for a voter that
//! has to be filled first. Voters change by joint consensus: for a moment a
//! majority of the old and one of the new set have to agree.
//!
//! Every change is asked for as what shall be, and may be asked for again: what
//! is done already stays done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use openraft::{ChangeMembers, Instant as _, RaftMetrics, ServerState};
use tokio::time::{Instant, sleep, timeout};

use super::lead::{self, unfit};
use super::reads::Raft;
use super::types::Types;
use super::{MAX_MEMBERS, MAX_VOTERS, REQUEST_TIME};
use crate::format::peer::{MemberState, Refusal};

/// How long a change waits for a learner to catch up before it says how far that is.
const CATCH_UP_TIME: Duration = Duration::from_secs(8);

/// Election timeouts that voters are waited for before a change is refused for their
/// silence: a leader that is new has heard of nobody yet.
const SILENT_ELECTIONS: u32 = 2;

/// How long until it is looked again.
const PAUSE: Duration = Duration::from_millis(50);

type Metrics = RaftMetrics<Types>;

/// What the leader knows now.
fn leading(raft: &Raft) -> Result<Metrics, Refusal> {
    let metrics = raft.metrics().borrow_watched().clone();
    match metrics.state {
        ServerState::Leader => Ok(metrics),
        _ => Err(Refusal::NotLeader),
    }
}

fn voters(metrics: &Metrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().voter_ids().collect()
}

/// The members, as the leader knows them.
pub(super) fn members(raft: &Raft) -> Result<(u64, Vec<MemberState>), Refusal> {
    let metrics = leading(raft)?;
    let voters = voters(&metrics);
    let members = metrics.membership_config.membership().nodes();
    let members = members.map(|(id, node)| {
        let matched = metrics.replication.as_ref().and_then(|all| *all.get(id)?);
        let heard = metrics.heartbeat.as_ref().and_then(|all| *all.get(id)?);
        let last = metrics.last_log_index.map_or(0, |last| last + 1);
        let own = *id == metrics.id;
        MemberState {
            id: *id,
            peer: node.addr.clone(),
            voter: voters.contains(id),
            lag: match own {
                true => Some(0),
                false => matched.map(|id| last.saturating_sub(id.index() + 1)),
            },
            silent_ms: match own {
                true => Some(0),
                false => {
                    heard.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
                }
            },
        }
    });
    Ok((metrics.id, members.collect()))
}

/// Why a set of voters could not decide anything now; none if it could.
fn undecided(metrics: &Metrics, voters: &BTreeSet<u64>, election: Duration) -> Option<String> {
    let others = voters.iter().filter(|id| **id != metrics.id);
    let unfit: Vec<_> = others
        .filter_map(|id| unfit(metrics, *id, election))
        .collect();
    let fit = voters.len() - unfit.len();
    let majority = voters.len() / 2 + 1;
    (fit < majority).then(|| {
        format!(
            "of the {} voters that there would be, {majority} have to take part, and {}",
            voters.len(),
            unfit.join("; ")
        )
    })
}

/// Returns once these voters could decide, or refuses the change that makes them all.
async fn decidable(raft: &Raft, voters: &BTreeSet<u64>, election: Duration) -> Result<(), Refusal> {
    let began = Instant::now();
    loop {
        match undecided(&leading(raft)?, voters, election) {
            None => return Ok(()),
            Some(why) if began.elapsed() >= SILENT_ELECTIONS * election => {
                return Err(Refusal::Refused(why));
            }
            Some(_) => sleep(PAUSE).await,
        }
    }
}

/// Why node `id` must not restart now; none if it may.
pub(super) fn may_restart(
    raft: &Raft,
    id: u64,
    election: Duration,
) -> Result<Option<String>, Refusal> {
    let metrics = leading(raft)?;
    let membership = metrics.membership_config.membership();
    if membership.get_node(&id).is_none() {
        return Err(Refusal::NoMember(format!("there is no member {id}")));
    }
    if membership.get_joint_config().len() > 1 {
        return Ok(Some("a change of members is under way".into()));
    }
    let mut others = voters(&metrics);
    let majority = others.len() / 2 + 1;
    others.remove(&id);
    if others.len() < majority {
        return Ok(Some(format!(
            "without node {id} there are {} voters, and {majority} are a majority",
            others.len()
        )));
    }
    let silent = others.iter().filter(|other| **other != metrics.id);
    let unfit: Vec<_> = silent
        .filter_map(|id| unfit(&metrics, *id, election))
        .collect();
    Ok((!unfit.is_empty()).then(|| unfit.join("; ")))
}

/// Makes node `id` a learner or a voter at `peer`.
pub(super) async fn set_member(
    raft: &Raft,
    id: u64,
    peer: &str,
    voter: bool,
    election: Duration,
) -> Result<(), Refusal> {
    settle(raft).await?;
    let metrics = leading(raft)?;
    check_member(&metrics, id, peer, voter)?;
    let membership = metrics.membership_config.membership();
    let node = BTreeMap::from([(id, BasicNode::new(peer))]);
    match membership.get_node(&id) {
        None => {
            tracing::info!("Adding node {id} at {peer} as a learner");
            change(raft, ChangeMembers::AddNodes(node)).await?;
        }
        Some(known) if known.addr != peer => {
            tracing::info!("Node {id} moves from {} to {peer}", known.addr);
            change(raft, ChangeMembers::SetNodes(node)).await?;
        }
        Some(_) => {}
    }
    if !voter || voters(&metrics).contains(&id) {
        return Ok(());
    }
    caught_up(raft, id, election).await?;
    let mut after = voters(&leading(raft)?);
    after.insert(id);
    decidable(raft, &after, election).await?;
    tracing::info!("Making node {id} a voter");
    change(raft, ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
}

/// Whether such a member may be.
fn check_member(metrics: &Metrics, id: u64, peer: &str, voter: bool) -> Result<(), Refusal> {
    let refused = |why: String| Err(Refusal::Refused(why));
    let membership = metrics.membership_config.membership();
    let voters = voters(metrics);
    if let Some((other, _)) = membership
        .nodes()
        .find(|(other, node)| **other != id && node.addr == peer)
    {
        return refused(format!("{peer} is the address of node {other}"));
    }
    if voters.contains(&id) && !voter {
        return refused(format!(
            "node {id} is a voter; remove it and add it again to make it a learner"
        ));
    }
    if membership.get_node(&id).is_none() && membership.nodes().count() >= MAX_MEMBERS {
        return refused(format!(
            "there are {MAX_MEMBERS} members, which is the most"
        ));
    }
    if voter && !voters.contains(&id) && voters.len() >= MAX_VOTERS {
        return refused(format!(
            "there are {MAX_VOTERS} voters, which is the most; remove one first, or add a learner"
        ));
    }
    Ok(())
}

/// Returns once the learner lacks few entries.
async fn caught_up(raft: &Raft, id: u64, election: Duration) -> Result<(), Refusal> {
    let began = Instant::now();
    loop {
        let Some(why) = unfit(&leading(raft)?, id, election) else {
            return Ok(());
        };
        if began.elapsed() >= CATCH_UP_TIME {
            return Err(Refusal::NotYet(format!(
                "node {id} is a learner and becomes a voter when it has caught up; {why}. \
                 The same request again goes on with it"
            )));
        }
        sleep(PAUSE).await;
    }
}

/// Removes node `id`. A leader hands over first, and another removes it.
pub(super) async fn remove_member(raft: &Raft, id: u64, election: Duration) -> Result<(), Refusal> {
    settle(raft).await?;
    let metrics = leading(raft)?;
    if metrics
        .membership_config
        .membership()
        .get_node(&id)
        .is_none()
    {
        return Err(Refusal::NoMember(format!("there is no member {id}")));
    }
    let mut after = voters(&metrics);
    if !after.remove(&id) {
        tracing::info!("Removing node {id}, a learner");
        return change(raft, ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await;
    }
    if after.is_empty() {
        return Err(Refusal::Refused(format!("node {id} is the last voter")));
    }
    decidable(raft, &after, election).await?;
    if id == metrics.id {
        lead::hand_over(raft, None, election).await?;
        return Err(Refusal::NotLeader);
    }
    tracing::info!("Removing node {id}, a voter");
    change(raft, ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
}

/// Ends a change that a leader left halfway: it would need two majorities for ever.
pub(super) async fn settle(raft: &Raft) -> Result<(), Refusal> {
    let metrics = leading(raft)?;
    match metrics
        .membership_config
        .membership()
        .get_joint_config()
        .len()
    {
        0 | 1 => Ok(()),
        _ => change(raft, ChangeMembers::AddVoterIds(BTreeSet::new())).await,
    }
}

/// Changes the membership, and returns once that is committed, and the metrics tell it.
async fn change(raft: &Raft, change: ChangeMembers<u64, BasicNode>) -> Result<(), Refusal> {
    let changed = timeout(REQUEST_TIME, raft.change_membership(change, false)).await;
    let error = match changed {
        Ok(Ok(done)) => {
            let known =
                |metrics: &Metrics| *metrics.membership_config.log_id() >= Some(done.log_id);
            let told = raft
                .wait(Some(REQUEST_TIME))
                .metrics(known, "a membership")
                .await;
            return told.map(drop).map_err(|_| Refusal::Unconfirmed);
        }
        Ok(Err(RaftError::APIError(error))) => error,
        Ok(Err(RaftError::Fatal(_))) | Err(_) => return Err(Refusal::Unconfirmed),
    };
    Err(match error {
        ClientWriteError::ForwardToLeader(_) => Refusal::NotLeader,
        ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::InProgress(_)
            | ChangeMembershipError::UncommittedLeaderLog(_)),
        ) => Refusal::NotYet(error.to_string()),
        ClientWriteError::ChangeMembershipError(error) => Refusal::Refused(error.to_string()),
        ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::PreconditionFailed(_) => {
            Refusal::Unconfirmed
        }
    })
}
