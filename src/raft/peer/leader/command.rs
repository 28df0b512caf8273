//! What operators want of the leader.

use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::{Known, Leader};
use crate::format::peer::{Answer, Call, Command, Commanded, Refusal};
use crate::raft::{CommandError, lead, members};

/// How long the leader may take for a command: longer than any takes there.
const COMMAND_TIME: Duration = Duration::from_secs(25);

impl Leader {
    /// Has the leader carry out a command, and waits `patience` for there to be one.
    pub(in crate::raft) async fn command(
        &self,
        command: Command,
        patience: Duration,
    ) -> Result<Commanded, CommandError> {
        let began = Instant::now();
        let within = |rest: Duration| rest.saturating_sub(began.elapsed());
        loop {
            let done = match self.known() {
                Known::Nobody => Err(Refusal::NotLeader),
                Known::Me => self.carry_out(command.clone()).await,
                Known::Other { id, address } => {
                    self.ask_command(id, &address, command.clone()).await
                }
            };
            match done {
                Ok(done) => return Ok(done),
                Err(Refusal::NoMember(why)) => return Err(CommandError::NoMember(why)),
                Err(Refusal::Refused(why)) => return Err(CommandError::Refused(why)),
                Err(Refusal::NotYet(why)) => return Err(CommandError::NotYet(why)),
                Err(Refusal::Unconfirmed) => return Err(CommandError::Unconfirmed),
                Err(Refusal::NotLeader)
                    if within(patience).is_zero() || self.no_member().is_some() =>
                {
                    return Err(self.nobody().into());
                }
                Err(Refusal::NotLeader) => self.change(within(patience)).await?,
            }
        }
    }

    /// A command on this node, if it leads.
    pub(in crate::raft::peer) async fn carry_out(
        &self,
        command: Command,
    ) -> Result<Commanded, Refusal> {
        match command {
            Command::Lead(to) => {
                let led = lead::hand_over(&self.raft, to, self.election).await?;
                Ok(Commanded::Leads {
                    leader: led.leader,
                    term: led.term,
                })
            }
            Command::Members => self.members(),
            Command::SetMember { id, peer, voter } => {
                let _changing = self.begin_change()?;
                members::set_member(&self.raft, id, &peer, voter, self.election).await?;
                self.members()
            }
            Command::RemoveMember(id) => {
                let _changing = self.begin_change()?;
                members::remove_member(&self.raft, id, self.election).await?;
                self.members()
            }
            Command::MayRestart(id) => {
                let why_not = members::may_restart(&self.raft, id, self.election)?;
                Ok(Commanded::Restart(why_not))
            }
        }
    }

    fn members(&self) -> Result<Commanded, Refusal> {
        let (leader, members) = members::members(&self.raft)?;
        Ok(Commanded::Members { leader, members })
    }

    /// One change of members at a time.
    fn begin_change(&self) -> Result<MutexGuard<'_, ()>, Refusal> {
        let busy = |_| Refusal::NotYet("another change of members is under way".into());
        self.changing.try_lock().map_err(busy)
    }

    /// Ends a change of members that another leader left halfway.
    pub(in crate::raft) async fn settle(&self) {
        // Whoever changes something now does it first.
        if let Ok(_changing) = self.begin_change()
            && let Err(refusal) = members::settle(&self.raft).await
        {
            tracing::debug!("A change of members is still halfway: {refusal:?}");
        }
    }

    async fn ask_command(
        &self,
        id: u64,
        address: &str,
        command: Command,
    ) -> Result<Commanded, Refusal> {
        let Some(link) = self.reach(id, address).await else {
            return Err(Refusal::NotLeader);
        };
        let asked = async { link?.call(&Call::Command(command), COMMAND_TIME).await };
        match asked.await {
            Ok(Answer::Commanded(done)) => done,
            Ok(Answer::NoMember(at)) => {
                self.peers.local().removed(at);
                Err(Refusal::NotLeader)
            }
            Ok(_) => Err(Refusal::Unconfirmed),
            Err(error) if error.is_undone() => Err(Refusal::NotLeader),
            Err(error) => {
                tracing::debug!("A command is unconfirmed: {error}");
                Err(Refusal::Unconfirmed)
            }
        }
    }
}
