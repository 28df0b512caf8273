//! What operators have the cluster do, on any node.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;

use super::Node;
use crate::format::peer::{Command, Commanded};
use crate::raft::{CommandError, LEADER_TIME, Leads, MemberState, Members, RequestError};

impl Node {
    /// Has another node lead: `to`, or the voter that has most. Returns once it does.
    ///
    /// # Errors
    /// See [`CommandError`]. One that is not done yet may be done a moment later.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<Leads, CommandError> {
        match self.command(Command::Lead(to)).await? {
            Commanded::Leads { leader, term } => Ok(Leads { leader, term }),
            _ => Err(CommandError::Unconfirmed),
        }
    }

    /// The members, as the leader knows them; without a leader, as this node does.
    ///
    /// # Errors
    /// When the node is stopping.
    pub async fn members(&self) -> Result<Members, CommandError> {
        let asked = self.0.leader.command(Command::Members, Duration::ZERO);
        match asked.await {
            Ok(Commanded::Members { leader, members }) => Ok(Members {
                leader: Some(leader),
                members,
            }),
            Err(CommandError::Request(RequestError::Stopping)) => {
                Err(RequestError::Stopping.into())
            }
            _ => Ok(self.known_members()),
        }
    }

    fn known_members(&self) -> Members {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let voters: Vec<u64> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| MemberState {
            id: *id,
            peer: node.addr.clone(),
            voter: voters.contains(id),
            lag: None,
            silent_ms: None,
        });
        Members {
            leader: None,
            members: members.collect(),
        }
    }

    /// Has node `id` be a member that others reach at `peer`: a voter, once it has
    /// caught up, or a learner. It may be asked for again, and goes on then.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn set_member(
        &self,
        id: u64,
        peer: String,
        voter: bool,
    ) -> Result<Members, CommandError> {
        let command = Command::SetMember { id, peer, voter };
        self.change(command).await
    }

    /// Has node `id` be no member any more.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn remove_member(&self, id: u64) -> Result<Members, CommandError> {
        self.change(Command::RemoveMember(id)).await
    }

    async fn change(&self, command: Command) -> Result<Members, CommandError> {
        match self.command(command).await? {
            Commanded::Members { leader, members } => Ok(Members {
                leader: Some(leader),
                members,
            }),
            _ => Err(CommandError::Unconfirmed),
        }
    }

    /// Whether this node may restart now: why not, if the others could not do
    /// without it.
    ///
    /// # Errors
    /// See [`CommandError`]; without a leader nobody can tell.
    pub async fn may_restart(&self) -> Result<Option<String>, CommandError> {
        let command = Command::MayRestart(self.0.options.id);
        match self.0.leader.command(command, Duration::ZERO).await? {
            Commanded::Restart(why_not) => Ok(why_not),
            _ => Err(CommandError::Unconfirmed),
        }
    }

    async fn command(&self, command: Command) -> Result<Commanded, CommandError> {
        self.0.leader.command(command, LEADER_TIME).await
    }
}
